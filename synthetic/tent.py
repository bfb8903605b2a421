"""Piecewise linear maps of the unit interval: the exponent is the log of the slope, whatever the orbit."""

import math

import numpy as np

from synthetic.system import System


def _uniform(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.uniform(0.05, 0.95, size=(n, 1))


def _known(slope: float) -> dict:
    return {"regime": "chaotic", "lyapunov": (math.log(slope),), "lyapunov_sum": math.log(slope), "dimension": 1.0,
            "kaplan_yorke": 1.0}


def tent(slope: float) -> System:
    """The tent x' = slope min(x, 1 - x), 1 < slope < 2. Below sqrt(2) orbits alternate between bands."""
    return System(f"tent {slope:g}", 1, _uniform, lambda x, rng: slope * np.minimum(x, 1 - x), 100,
                  exact=_known(slope), float64_only=True)


def full_tent() -> System:
    """The tent of slope 2 by way of the logistic map at r = 4, as each step of its own would shift out one bit."""
    def step(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        square = np.sin(np.pi / 2 * x) ** 2
        return 2 / np.pi * np.arcsin(np.sqrt(np.minimum(4 * square * (1 - square), 1)))

    return System("tent 2", 1, _uniform, step, 100, exact=_known(2.0), float64_only=True)


def beta(slope: float) -> System:
    """The beta map x' = slope x mod 1, slope > 1 and no power of 2."""
    return System(f"beta {slope:g}", 1, _uniform, lambda x, rng: slope * x % 1, 100, exact=_known(slope),
                  float64_only=True)


SYSTEMS = (full_tent(), tent(1.9), tent(1.3), beta(1.9), beta(2.7))
