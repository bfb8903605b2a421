"""Rotations: rational ones repeat, irrational ones never do, though they nearly repeat after every Fibonacci number."""

import math
from fractions import Fraction

import numpy as np

from synthetic.frames import frame
from synthetic.system import System

GOLDEN = (math.sqrt(5) - 1) / 2
SILVER = math.sqrt(2) - 1
BRONZE = (math.sqrt(13) - 3) / 2


def _known(turns) -> dict:
    """Regime, and the period if there is one; a Fraction is rational, and nothing else is."""
    if all(isinstance(w, Fraction) for w in turns):
        return {"regime": "orbit", "period": math.lcm(*(w.denominator for w in turns))}
    return {"regime": "quasi-periodic", "rotation": tuple(map(float, turns)), "dimension": float(len(turns))}


def rotation(name: str, turns, *, dim: int | None = None, radii=None, seed: int = 0) -> System:
    """Independent rotations of planes, in a random frame about a random centre.

    Args:
        name: its name.
        turns: of each plane, turns a step: Fraction (it repeats) or float (irrational, and independent of the others).
        dim: dimensions, 2 a plane at least; the directions that no plane takes are flattened in one step.
        radii: of the circle in each plane, 1 unless given; orbits differ by their phases.
        seed: of frame and centre.
    """
    turns = tuple(turns)
    k = len(turns)
    dim = dim or 2 * k
    rng = np.random.default_rng([2704, seed])
    planes = frame(rng, dim, 2 * k)
    centre = rng.normal(size=dim)
    radii = np.ones(k) if radii is None else np.asarray(radii, dtype=np.float64)
    cos, sin = (f(2 * np.pi * np.array(list(map(float, turns)))) for f in (np.cos, np.sin))

    def lay(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return centre + np.concatenate([x, y], axis=1) @ planes.T

    def start(rng: np.random.Generator, n: int) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi, size=(n, k))
        return lay(radii * np.cos(angle), radii * np.sin(angle))

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y = np.split((states - centre) @ planes, 2, axis=1)
        return lay(cos * x - sin * y, sin * x + cos * y)

    return System(name, dim, start, step, exact={**_known(turns), "lyapunov": (0.0,) * 2 * k})


def folded_rotation(name: str, turns, *, dim: int, seed: int = 0) -> System:
    """A torus with overtones: the coordinates are cosines and sines of the angles, and products and powers of these.

    Args:
        name: its name.
        turns: of each angle, turns a step, as for `rotation`.
        dim: dimensions, more than 2 an angle.
        seed: of frame and coordinates.
    """
    turns = tuple(turns)
    k = len(turns)
    rng = np.random.default_rng([2705, seed])
    turn = frame(rng, dim)
    centre = rng.normal(size=dim)
    mix = rng.normal(size=(2 * k, dim - 2 * k)) / math.sqrt(2 * k)
    shift = 2 * np.pi * np.array(list(map(float, turns)))

    def lay(angle: np.ndarray) -> np.ndarray:
        plain = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
        return centre + np.concatenate([plain, 0.5 * np.sin(2 * plain @ mix)], axis=1) @ turn.T

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        latent = (states - centre) @ turn
        return lay(np.arctan2(latent[:, k:2 * k], latent[:, :k]) + shift)

    return System(name, dim, lambda rng, n: lay(rng.uniform(0, 2 * np.pi, size=(n, k))), step,
                  exact={**_known(turns), "lyapunov": (0.0,) * k})


def moebius(name: str, turn: float, *, pull: float) -> System:
    """A circle map that is a rotation in disguise: z' = h(R(h^-1(z))) on |z| = 1, h(z) = (z + pull) / (1 + pull z).

    Its steps are uneven, yet its rotation number is exactly that of R.

    Args:
        name: its name.
        turn: of R, turns a step, irrational.
        pull: in (-1, 1); 0 is the plain rotation.
    """
    rotor = np.exp(2j * np.pi * turn)

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        z = states[:, 0] + 1j * states[:, 1]
        z = rotor * (z - pull) / (1 - pull * z)
        z = (z + pull) / (1 + pull * z)
        z /= np.abs(z)  # else rounding would let the radius wander off
        return np.stack([z.real, z.imag], axis=1)

    def start(rng: np.random.Generator, n: int) -> np.ndarray:
        angle = rng.uniform(0, 2 * np.pi, size=n)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    return System(name, 2, start, step, exact={**_known((turn,)), "lyapunov": (0.0,)})


SYSTEMS = (
    rotation("rotation 1/2", (Fraction(1, 2),), dim=8, seed=1),
    rotation("rotation 1/3", (Fraction(1, 3),), seed=2),
    rotation("rotation 2/5", (Fraction(2, 5),), dim=16, seed=3),
    rotation("rotation 3/8", (Fraction(3, 8),), dim=64, seed=4),
    rotation("rotation 5/13", (Fraction(5, 13),), dim=4, seed=5),
    rotation("rotation 7/24", (Fraction(7, 24),), dim=16, seed=6),
    rotation("rotation 1/2 and 1/3", (Fraction(1, 2), Fraction(1, 3)), dim=16, seed=7),
    rotation("rotation 1/4 and 2/5", (Fraction(1, 4), Fraction(2, 5)), dim=32, seed=8),
    rotation("rotation golden", (GOLDEN,), seed=9),
    rotation("rotation golden in 64d", (GOLDEN,), dim=64, seed=10),
    rotation("rotation silver", (SILVER,), dim=4, seed=11),
    rotation("rotation almost 1/7", (1 / 7 + 1e-3 * GOLDEN,), dim=8, seed=12),  # slips by a turn in 1,600 steps
    rotation("rotation slow", (GOLDEN / 20,), dim=8, seed=13),  # one turn in 32 steps
    rotation("rotation on a 2-torus", (GOLDEN, SILVER), dim=16, seed=14),
    rotation("rotation on a 2-torus, uneven", (GOLDEN, SILVER), dim=32, radii=(1.0, 0.2), seed=15),
    rotation("rotation on a 3-torus", (GOLDEN, SILVER, BRONZE), dim=64, seed=16),
    folded_rotation("folded rotation 3/7", (Fraction(3, 7),), dim=16, seed=17),
    folded_rotation("folded rotation golden", (GOLDEN,), dim=16, seed=18),
    folded_rotation("folded rotation on a 2-torus", (GOLDEN, SILVER), dim=32, seed=19),
    folded_rotation("folded rotation on a 3-torus", (GOLDEN, SILVER, BRONZE), dim=64, seed=20),
    moebius("moebius golden", GOLDEN, pull=0.4),
    moebius("moebius silver", SILVER, pull=-0.6),
)
