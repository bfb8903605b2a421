"""The Ikeda map of a laser in a ring, z' = 1 + u z exp(i (.4 - 6 / (1 + |z|^2)))."""

import math

import numpy as np

from synthetic.system import System


def ikeda(u: float, *, transient: int = 0, reported=None, **exact) -> System:
    """The Ikeda map; each step multiplies areas by u^2. Orbits start near 0."""
    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        z = states[:, 0] + 1j * states[:, 1]
        z = 1 + u * z * np.exp(1j * (0.4 - 6 / (1 + np.abs(z) ** 2)))
        return np.stack([z.real, z.imag], axis=1)

    return System(f"ikeda u={u:g}", 2, lambda rng, n: rng.uniform(-0.1, 0.1, size=(n, 2)), step, transient,
                  exact={"lyapunov_sum": 2 * math.log(u), **exact}, reported=reported or {})


SYSTEMS = (
    ikeda(0.9, transient=200, regime="chaotic", reported={"lyapunov": ((0.50758,), "own run, standard error 7e-5")}),
)
