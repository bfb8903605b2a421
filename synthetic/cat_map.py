"""The cat map (x, y)' = (2x + y, x + y) mod 1: chaos on the square, and long exact cycles on every lattice in it."""

import functools
import math

import numpy as np

from synthetic.system import System

PRIME = 2**50 - 27
LATTICE_PERIODS = {2: 3, 3: 4, 5: 10, 10: 30, 50: 150, 101: 25, 128: 96, 150: 300, 250: 750}


def _lattice_step(states: np.ndarray, rng: np.random.Generator | None, n: int) -> np.ndarray:
    x, y = np.rint(states * n).T
    return np.stack([(2 * x + y) % n, (x + y) % n], axis=1) / n


@functools.cache
def _generic(n: int) -> np.ndarray:
    """Points of the lattice (m, 2), in units of 1/n, that return no sooner than the lattice as a whole."""
    points = np.stack(np.divmod(np.arange(n * n), n), axis=1)
    now, early = points, np.zeros(n * n, dtype=bool)
    for _ in range(LATTICE_PERIODS[n] - 1):
        now = np.stack([(2 * now[:, 0] + now[:, 1]) % n, now.sum(1) % n], axis=1)
        early |= (now == points).all(1)
    return points[~early]


def cat_lattice(n: int) -> System:
    """The multiples of 1/n: a permutation, so every orbit is a cycle from its first step."""
    def start(rng: np.random.Generator, n_orbits: int) -> np.ndarray:
        return _generic(n)[rng.integers(len(_generic(n)), size=n_orbits)] / n

    return System(f"cat map on 1/{n}", 2, start, functools.partial(_lattice_step, n=n),
                  exact={"regime": "orbit", "period": LATTICE_PERIODS[n], "tail": 0})


def cat() -> System:
    """The whole square: the multiples of 1/PRIME, where integers keep every step exact."""
    exponent = 2 * math.log((1 + math.sqrt(5)) / 2)
    return System("cat map", 2, lambda rng, n: rng.uniform(size=(n, 2)), functools.partial(_lattice_step, n=PRIME),
                  float64_only=True, exact={
                      "regime": "chaotic", "lyapunov": (exponent, -exponent), "lyapunov_sum": 0.0, "dimension": 2.0,
                      "kaplan_yorke": 2.0})


SYSTEMS = (cat(), *(cat_lattice(n) for n in (2, 3, 5, 10, 101, 128)))
