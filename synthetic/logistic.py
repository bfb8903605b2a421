"""The logistic map x' = r x (1 - x): fixed points, doublings, a window of period 3, chaos."""

import math

import numpy as np

from synthetic.system import System

SUPERSTABLE_3 = 3.831874055283315568410


def logistic(r: float, *, start=None, transient: int = 0, float64_only: bool = False, **exact) -> System:
    """The logistic map at r, with what is known there; orbits start anywhere in (.05, .95), unless told where."""
    return System(f"logistic r={r:.7g}", 1, start or (lambda rng, n: rng.uniform(0.05, 0.95, size=(n, 1))),
                  lambda x, rng: r * x * (1 - x), transient, exact=exact, float64_only=float64_only)


def at_rest(r: float) -> System:
    """Where 1 < r <= 3: the fixed point 1 - 1/r, with multiplier 2 - r (at r = 3 approached like 1 / sqrt(t))."""
    rate = abs(2 - r)
    return logistic(r, regime="fixed point" if rate**128 <= 0.01 else "converging", rate=rate, multipliers=(2 - r,),
                    lyapunov=(math.log(rate) if rate else -math.inf,), fixed_point=np.array([1 - 1 / r]))


def period_two(r: float) -> System:
    """Where 3 < r < 1 + sqrt(6): the cycle of 2, with multiplier 4 + 2r - r^2."""
    multiplier = 4 + 2 * r - r * r
    middle, half = (r + 1) / (2 * r), math.sqrt((r + 1) * (r - 3)) / (2 * r)
    return _cycle(r, 2, multiplier, cycle=np.array([[middle + half], [middle - half]]))


def period_three(r: float) -> System:
    """Where 1 + sqrt(8) < r < 3.8415: the cycle of 3; its multiplier in closed form, with c = (r/2)(1 - r/2)."""
    c = r / 2 * (1 - r / 2)
    return _cycle(r, 3, 4 * (c + 2 - math.sqrt((c + 2) ** 2 - 4 * (c**3 + 2 * c**2 + c + 1))), start=_within_window(r))


def _within_window(r: float):
    """Starts about 1/2, and up to two steps on: elsewhere orbits wander for hundreds of steps before they settle."""
    def start(rng: np.random.Generator, n: int) -> np.ndarray:
        x, later = rng.uniform(0.49, 0.51, size=(n, 1)), rng.integers(3, size=(n, 1))
        for t in range(2):
            x = np.where(t < later, r * x * (1 - x), x)
        return x
    return start


def _cycle(r: float, period: int, multiplier: float, **exact) -> System:
    if abs(multiplier) < 1e-12:  # r is a superstable one, up to rounding
        multiplier = 0.0
    lyapunov = math.log(abs(multiplier)) / period if multiplier else -math.inf
    return logistic(r, regime="orbit", period=period, multipliers=(multiplier,), lyapunov=(lyapunov,),
                    rate=math.exp(lyapunov), **exact)


SYSTEMS = (
    at_rest(1.5), at_rest(2.0), at_rest(2.5), at_rest(2.8), at_rest(2.95), at_rest(2.99), at_rest(3.0),
    period_two(3.2), period_two(1 + math.sqrt(5)), period_two(3.4), period_two(3.44),
    logistic(3.5, regime="orbit", period=4),  # within [3.4494897, 3.5440904]
    logistic(3.55, regime="orbit", period=8),  # within [3.5440904, 3.5644073]
    period_three(3.829), period_three(3.83), period_three(SUPERSTABLE_3), period_three(3.84),
    logistic(3.845, start=_within_window(3.845), regime="orbit", period=6),  # just above 3.8414990
    logistic(4.0, transient=100, float64_only=True, regime="chaotic", lyapunov=(math.log(2),),
             lyapunov_sum=math.log(2), dimension=1.0, kaplan_yorke=1.0),
    logistic(4.5, regime="diverging"),  # almost every orbit leaves [0, 1]
)
