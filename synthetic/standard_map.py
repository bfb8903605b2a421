"""The standard map p' = p + K sin(theta), theta' = theta + p': islands of regular motion in a sea of chaos."""

import numpy as np

from synthetic.system import System


def standard_map(name: str, kick: float, *, theta: tuple[float, float], p: tuple[float, float], transient: int = 0,
                 reported=None, **exact) -> System:
    """The standard map; a state is (cos theta, sin theta, cos p, sin p), without the jumps of the angles.

    Args:
        name: its name.
        kick: K.
        theta: range in which orbits start, radians.
        p: the same.
        transient: steps to leave out.
        reported: as in `System`.
        exact: as in `System`; areas are kept, so on the torus exponents come in pairs of opposite sign.
    """
    def lay(theta: np.ndarray, p: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(theta), np.sin(theta), np.cos(p), np.sin(p)], axis=1)

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        angle = np.arctan2(states[:, 1], states[:, 0])
        moved = np.arctan2(states[:, 3], states[:, 2]) + kick * np.sin(angle)
        return lay(angle + moved, moved)

    return System(name, 4, lambda rng, n: lay(rng.uniform(*theta, size=n), rng.uniform(*p, size=n)), step, transient,
                  exact=exact, reported=reported or {})


def _sea(kick: float, exponent: float) -> System:
    """From the tangle about the saddle at the origin, so that no orbit starts in an island."""
    return standard_map(f"standard map K={kick:g}", kick, theta=(-0.1, 0.1), p=(-0.1, 0.1), transient=100,
                        regime="chaotic", reported={"lyapunov": ((exponent, -exponent), "own run; near ln(K / 2)")})


SYSTEMS = (
    standard_map("standard map K=0.5 island", 0.5, theta=(np.pi - 1, np.pi + 1), p=(-0.4, 0.4),
                 regime="quasi-periodic", reported={"lyapunov": ((0.0, 0.0), "curves about the centre at (pi, 0)")}),
    _sea(5.0, 0.9748), _sea(10.0, 1.6199),
)
