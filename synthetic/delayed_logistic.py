"""The delayed logistic map x' = a x (1 - y), y' = x: a fixed point, a circle after the bifurcation at a = 2, chaos."""

import cmath
import math

import numpy as np

from synthetic.system import System


def delayed_logistic(a: float, *, transient: int = 0, reported=None, **exact) -> System:
    """The delayed logistic map; orbits start in a box about its fixed point."""
    rest = 1 - 1 / a

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y = states.T
        return np.stack([a * x * (1 - y), x], axis=1)

    return System(f"delayed logistic a={a:g}", 2, lambda rng, n: rest + rng.uniform(-0.1, 0.1, size=(n, 2)), step,
                  transient, exact=exact, reported=reported or {})


def at_rest(a: float) -> System:
    """Where 1 < a < 2: the fixed point 1 - 1/a, with multipliers (1 +- sqrt(5 - 4a)) / 2."""
    root = cmath.sqrt(5 - 4 * a)
    multipliers = ((1 + root) / 2, (1 - root) / 2)
    rate = abs(multipliers[0])
    return delayed_logistic(a, regime="fixed point" if rate**128 <= 0.01 else "converging", rate=rate,
                            fixed_point=np.full(2, 1 - 1 / a), multipliers=multipliers,
                            lyapunov=tuple(math.log(abs(m)) for m in multipliers), lyapunov_sum=math.log(a - 1))


SYSTEMS = (
    at_rest(1.2), at_rest(1.5), at_rest(1.9), at_rest(1.98),
    delayed_logistic(2.1, transient=1000, regime="quasi-periodic", reported={
        "lyapunov": ((0.0,), "own run, within 1e-7"), "dimension": (1.0, "a circle")}),
    delayed_logistic(2.27, transient=1000, regime="chaotic", reported={
        "lyapunov": ((0.183135,), "own run, standard error 1.4e-5; Sprott (2003) has .18312")}),
)
