"""The circle map x' = x + omega - (K / 2 pi) sin(2 pi x): locked within tongues, quasi-periodic between them."""

import math

import numpy as np

from synthetic.system import System


def circle_map(omega: float, kick: float, *, name: str = "", **exact) -> System:
    """The circle map; a state is the point (cos 2 pi x, sin 2 pi x), without the jump of x mod 1."""
    def lay(x: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(2 * np.pi * x), np.sin(2 * np.pi * x)], axis=1)

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x = np.arctan2(states[:, 1], states[:, 0]) / (2 * np.pi)
        return lay(x + omega - kick / (2 * np.pi) * np.sin(2 * np.pi * x))

    return System(name or f"circle map omega={omega:g} K={kick:g}", 2, lambda rng, n: lay(rng.uniform(size=n)), step,
                  exact=exact)


def locked(omega: float, kick: float) -> System:
    """Where |omega| < K / 2 pi: the tongue 0/1, a fixed point with multiplier 1 - sqrt(K^2 - 4 pi^2 omega^2)."""
    multiplier = 1 - math.sqrt(kick**2 - 4 * math.pi**2 * omega**2)
    angle = math.asin(2 * math.pi * omega / kick)
    rate = abs(multiplier)
    return circle_map(omega, kick, regime="fixed point" if rate**128 <= 0.01 else "converging", rate=rate,
                      multipliers=(multiplier, 0.0), lyapunov=(math.log(rate), -math.inf),
                      fixed_point=np.array([math.cos(angle), math.sin(angle)]))


def halved(kick: float) -> System:
    """Omega 1/2, K < 1: the tongue 1/2, whose cycle is 0 and 1/2 by symmetry, with multiplier 1 - K^2."""
    return circle_map(0.5, kick, regime="orbit", period=2, rate=math.sqrt(1 - kick**2),
                      multipliers=(1 - kick**2, 0.0), lyapunov=(math.log(1 - kick**2) / 2, -math.inf),
                      cycle=np.array([[1.0, 0.0], [-1.0, 0.0]]))


SYSTEMS = (
    locked(0.05, 0.8), locked(0.0, 0.3), locked(0.0477, 0.3), halved(0.6), halved(0.9),
    circle_map((math.sqrt(5) - 1) / 2, 0.0, name="circle map golden", regime="quasi-periodic",
               rotation=((math.sqrt(5) - 1) / 2,), lyapunov=(0.0,), dimension=1.0),
)
