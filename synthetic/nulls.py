"""Noise: orbits without a rule, on which an analyzer has to keep silent."""

import math

import numpy as np

from synthetic.system import System


def random_walk(dim: int, *, seed: int = 0) -> System:
    """The walk x' = x + noise: it wanders off like sqrt(t), and every window of it looks like a trend."""
    centre = 3 * np.random.default_rng([2708, dim, seed]).normal(size=dim)
    return System(f"random walk {dim}d", dim, lambda rng, n: centre + rng.normal(size=(n, dim)),
                  lambda x, rng: x + rng.normal(size=x.shape), exact={"regime": "undetermined"}, noisy=True)


def autoregression(coefficient: float, dim: int, *, seed: int = 0) -> System:
    """Noise with memory, x' = centre + coefficient (x - centre) + noise, of variance 1; without memory if it is 0.

    The cosine between successive steps is -(1 - coefficient) / 2 on average, and the distance between successive states
    sqrt(2 dim (1 - coefficient)), rms.
    """
    centre = 3 * np.random.default_rng([2709, dim, seed]).normal(size=dim)
    width = math.sqrt(1 - coefficient**2)
    name = f"autoregression {coefficient:g} {dim}d" if coefficient else f"white noise {dim}d"
    return System(name, dim, lambda rng, n: centre + rng.normal(size=(n, dim)),
                  lambda x, rng: centre + coefficient * (x - centre) + width * rng.normal(size=x.shape),
                  exact={"regime": "undetermined"}, noisy=True)


SYSTEMS = (
    *(random_walk(dim) for dim in (2, 8, 64)),
    *(autoregression(coefficient, dim) for coefficient in (0.0, 0.5, 0.9, 0.98) for dim in (2, 8, 64)),
    autoregression(-0.7, 8),  # it alternates, like a noisy cycle of 2
)
