"""Planted cycles: any period, in any dimension, approached at any rate from as far away as one likes."""

import math

import numpy as np

from synthetic.frames import frame
from synthetic.system import System


def cycle(name: str, states, *, rate: float = 0.7, away: float = 2.0, seed: int = 0) -> System:
    """Orbits that settle on these states: x' = c[k+1] + rate (x - c[k]), where c[k] is the state nearest to x.

    Args:
        name: its name.
        states: the cycle in order, (period, dim), no two of them equal.
        rate: factor by which one step shrinks the distance from the cycle.
        away: how far orbits start from the cycle, in units of its own radius (rms). Within the span of the cycle they
            start nearer (.45 of the smallest gap at most), so that the nearest state stays the same one; in a space
            that the cycle fills there is no other direction.
        seed: unused directions are drawn from it.
    """
    states = np.asarray(states, dtype=np.float64)
    period, dim = states.shape
    following = np.roll(states, -1, axis=0)
    centred = states - states.mean(0)
    radius = math.sqrt((centred**2).sum(1).mean())
    gaps = np.linalg.norm(states[:, None] - states, axis=2)
    inside = 0.45 * gaps[~np.eye(period, dtype=bool)].min()
    across = np.linalg.svd(centred)[2][np.linalg.matrix_rank(centred):]  # (unused directions, dim)

    def start(rng: np.random.Generator, n: int) -> np.ndarray:
        push = rng.normal(size=(n, dim))
        push *= inside * rng.uniform(0.3, 1, size=(n, 1)) / np.linalg.norm(push, axis=1, keepdims=True)
        if len(across):
            aside = rng.normal(size=(n, len(across))) @ across
            push += away * radius * aside / np.linalg.norm(aside, axis=1, keepdims=True)
        return states[rng.integers(period, size=n)] + push

    def step(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nearest = ((states**2).sum(1) - 2 * x @ states.T).argmin(1)
        return following[nearest] + rate * (x - states[nearest])

    return System(name, dim, start, step, exact={
        "regime": "orbit", "period": period, "rate": rate, "cycle": states,
        "multipliers": (rate**period,) * dim, "lyapunov": (math.log(rate),) * dim,
        "lyapunov_sum": dim * math.log(rate)})


def random_points(period: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """(period, dim) normal points; of 64 candidates each time the one that lies farthest from those before."""
    rng = np.random.default_rng([2702, period, dim, seed])
    points = rng.normal(size=(1, dim))
    while len(points) < period:
        more = rng.normal(size=(64, dim))
        best = np.linalg.norm(more[:, None] - points, axis=2).min(1).argmax()
        points = np.concatenate([points, more[best:best + 1]])
    return 1.5 + points[rng.permutation(period)]


def closed_curve(period: int, dim: int, *, turns: int = 1, seed: int = 0) -> np.ndarray:
    """(period, dim) points of a smooth closed curve (a circle and two overtones), `turns` rounds of it in a period."""
    rng = np.random.default_rng([2703, period, dim, seed])
    angle = 2 * np.pi * turns * np.arange(period)[:, None] / period + rng.uniform(0, 2 * np.pi)
    waves = np.concatenate([np.cos(angle), np.sin(angle), 0.2 * np.cos(2 * angle), 0.1 * np.sin(3 * angle)], axis=1)
    if dim < 4:
        waves = waves[:, :2]  # overtones might make a plane curve cross itself
    return 1.5 + waves @ frame(rng, dim, waves.shape[1]).T


def _random(period: int, dim: int, rate: float) -> System:
    return cycle(f"cycle {period} of points in {dim}d", random_points(period, dim), rate=rate)


def _curve(period: int, dim: int, rate: float, turns: int = 1) -> System:
    winding = f", {turns} turns" if turns > 1 else ""
    return cycle(f"cycle {period} on a curve in {dim}d{winding}", closed_curve(period, dim, turns=turns), rate=rate)


SYSTEMS = (
    _random(2, 1, 0.5), _random(2, 16, 0.8), _random(3, 2, 0.7), _random(3, 64, 0.5), _random(4, 8, 0.9),
    _random(5, 3, 0.6), _random(6, 32, 0.7), _random(7, 16, 0.8), _random(8, 4, 0.6), _random(10, 16, 0.3),
    _random(12, 64, 0.85), _random(16, 8, 0.7), _random(24, 32, 0.7),
    _curve(4, 2, 0.7), _curve(5, 8, 0.8), _curve(6, 3, 0.5), _curve(7, 16, 0.7, 3), _curve(8, 32, 0.85, 3),
    _curve(9, 16, 0.7), _curve(12, 64, 0.7, 5), _curve(16, 16, 0.8), _curve(21, 8, 0.7, 8), _curve(24, 64, 0.8),
)
