"""The Henon map x' = 1 - a x^2 + y, y' = b x, and the Lozi map, its piecewise linear kin with |x| for x^2."""

import math

import numpy as np

from synthetic.system import System

SPROTT = "Sprott, Chaos and Time-Series Analysis (2003), and sprott.physics.wisc.edu/chaos/comchaos.htm"


def henon(a: float, b: float, *, box=((-0.5, 0.5), (-0.1, 0.1)), transient: int = 0, name: str = "",
          reported=None, **exact) -> System:
    """The Henon map; orbits start anywhere in the box. Each step multiplies areas by b."""
    (left, right), (low, high) = box

    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y = states.T
        return np.stack([1 - a * x * x + y, b * x], axis=1)

    return System(name or f"henon a={a:g} b={b:g}", 2,
                  lambda rng, n: rng.uniform([left, low], [right, high], size=(n, 2)), step, transient, exact=exact,
                  reported=reported or {})


def lozi(a: float, b: float, *, transient: int = 0, reported=None, **exact) -> System:
    """The Lozi map x' = 1 - a |x| + y, y' = b x; orbits start near 0."""
    def step(states: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        x, y = states.T
        return np.stack([1 - a * np.abs(x) + y, b * x], axis=1)

    return System(f"lozi a={a:g} b={b:g}", 2, lambda rng, n: rng.uniform(-0.1, 0.1, size=(n, 2)), step, transient,
                  exact=exact, reported=reported or {})


def at_rest(a: float, b: float) -> System:
    """Where a < 3 (1 - b)^2 / 4: the fixed point, whose multipliers solve m^2 + 2 a x m - b = 0."""
    x = (b - 1 + math.sqrt((1 - b) ** 2 + 4 * a)) / (2 * a)
    multipliers = _roots(-2 * a * x, -b)
    rate = abs(multipliers[0])
    return henon(a, b, regime="fixed point" if rate**128 <= 0.01 else "converging", rate=rate,
                 fixed_point=np.array([x, b * x]), **_multipliers(multipliers, 1, b))


def period_two(a: float, b: float) -> System:
    """Where 3 (1 - b)^2 / 4 < a < (1 - b)^2 + (1 + b)^2 / 4: the cycle of 2."""
    s = (1 - b) / a  # its two x solve x^2 - s x + s^2 - 1/a = 0
    x = _roots(s, s * s - 1 / a)
    multipliers = _roots(4 * a * a * (s * s - 1 / a) + 2 * b, b * b)
    return henon(a, b, regime="orbit", period=2, rate=math.sqrt(abs(multipliers[0])),
                 cycle=np.array([[x[0], b * x[1]], [x[1], b * x[0]]]), **_multipliers(multipliers, 2, b))


def _roots(total: float, product: float) -> tuple:
    """Both roots of z^2 - total z + product, the larger modulus first."""
    return tuple(sorted(np.roots([1, -total, product]).tolist(), key=abs, reverse=True))


def _multipliers(multipliers: tuple, period: int, b: float) -> dict:
    return {"multipliers": multipliers, "lyapunov": tuple(math.log(abs(m)) / period for m in multipliers),
            "lyapunov_sum": math.log(abs(b))}


SYSTEMS = (
    henon(1.4, 0.3, transient=100, regime="chaotic", lyapunov_sum=math.log(0.3), reported={
        "lyapunov": ((0.41922, -1.62319), SPROTT), "kaplan_yorke": (1.25827, SPROTT),
        "dimension": (1.220, f"{SPROTT}; +- .036")}),
    at_rest(0.2, 0.3), at_rest(0.35, 0.3), period_two(0.5, 0.3), period_two(0.8, 0.3),
    henon(1.4, 0.3, box=((3.0, 4.0), (0.0, 1.0)), name="henon a=1.4 b=0.3, outside its basin", regime="diverging"),
    lozi(1.7, 0.5, transient=100, regime="chaotic", lyapunov_sum=math.log(0.5), reported={
        "lyapunov": ((0.470223,), "own run, standard error 1.3e-5")}),
)
