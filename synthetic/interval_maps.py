"""Chebyshev polynomials and the Gauss map: smooth or infinitely many branches, and a closed exponent all the same."""

import math

import numpy as np

from synthetic.system import System


def chebyshev(n: int) -> System:
    """The Chebyshev polynomial x' = cos(n arccos x) on [-1, 1]: exponent ln n."""
    return System(f"chebyshev {n}", 1, lambda rng, m: rng.uniform(-0.95, 0.95, size=(m, 1)),
                  lambda x, rng: np.cos(n * np.arccos(np.clip(x, -1, 1))), 100, float64_only=True,
                  exact={"regime": "chaotic", "lyapunov": (math.log(n),), "lyapunov_sum": math.log(n),
                         "dimension": 1.0, "kaplan_yorke": 1.0})


def gauss() -> System:
    """The Gauss map x' = 1/x mod 1 of continued fractions: exponent pi^2 / (6 ln 2) (Khinchin, Levy)."""
    exponent = math.pi**2 / (6 * math.log(2))
    return System("gauss map", 1, lambda rng, n: rng.uniform(0.05, 0.95, size=(n, 1)),
                  lambda x, rng: 1 / np.maximum(x, 1e-12) % 1, 20, float64_only=True,
                  exact={"regime": "chaotic", "lyapunov": (exponent,), "lyapunov_sum": exponent, "dimension": 1.0,
                         "kaplan_yorke": 1.0})


SYSTEMS = (chebyshev(3), chebyshev(5), gauss())
