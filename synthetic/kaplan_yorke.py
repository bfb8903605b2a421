"""The map of Kaplan and Yorke, x' = 2x mod 1, y' = a y + cos(4 pi x): its whole spectrum in closed form."""

import math

import numpy as np

from synthetic.system import System

PRIME = 2**50 - 27


def kaplan_yorke(a: float) -> System:
    """The map at 0 < a < 1/2; x moves on the multiples of 1/PRIME, where doubling is exact and never ends in 0."""
    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y = states.T
        return np.stack([2 * np.rint(x * PRIME) % PRIME / PRIME, a * y + np.cos(4 * np.pi * x)], axis=1)

    return System(f"kaplan-yorke a={a:g}", 2, lambda rng, n: rng.uniform(0.05, 0.95, size=(n, 2)), step, 100,
                  float64_only=True, exact={
                      "regime": "chaotic", "lyapunov": (math.log(2), math.log(a)), "lyapunov_sum": math.log(2 * a),
                      "kaplan_yorke": 1 + math.log(2) / -math.log(a)})


SYSTEMS = (kaplan_yorke(0.2), kaplan_yorke(0.35))
