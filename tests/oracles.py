"""Slow, obvious twins of the fast code, in NumPy and float64: the specification that the tests hold the package to."""

import cmath
import itertools
import math

import numpy as np


def norm(v):
    """Euclidean norm that neither overflows nor underflows on the way."""
    largest = np.abs(v).max()
    return float(largest * np.sqrt(((v / largest) ** 2).sum())) if 0 < largest < np.inf else float(largest)


def distance(a, b, metric):
    """Euclidean; relative: over the norm of b; cosine: half the squared distance between the unit vectors."""
    if metric == "cosine":
        return norm(a / norm(a) - b / norm(b)) ** 2 / 2
    return norm(a - b) / (norm(b) if metric == "relative" else 1.0)


def pairwise(states):
    """All distances within one orbit (T, dim), each from its own difference: (T, T)."""
    x = np.asarray(states, dtype=np.float64)
    return np.array([[norm(a - b) for b in x] for a in x]).reshape(len(x), len(x))


def successive(states, metric="euclidean"):
    """Distance from each state of one orbit (T, dim) to the next: (T - 1,)."""
    x = np.asarray(states, dtype=np.float64)
    return np.array([distance(a, b, metric) for a, b in itertools.pairwise(x)])


def from_last(states, metric="euclidean"):
    """Distance from each state of one orbit (T, dim) to its last: (T,)."""
    x = np.asarray(states, dtype=np.float64)
    return np.array([distance(a, x[-1], metric) for a in x])


def line(y, first, stop):
    """Least-squares slope of ln y[t] over t in [first, stop), its standard error, and how many y > 0 there are."""
    t = np.arange(first, stop)[np.asarray(y[first:stop]) > 0]
    if len(t) < 3:
        return math.nan, math.nan, len(t)
    design = np.stack([t - t.mean(), np.ones(len(t))], axis=1)
    (slope, height), *_ = np.linalg.lstsq(design, np.log(y[t]), rcond=None)
    left = np.log(y[t]) - design @ (slope, height)
    return slope, math.sqrt(left @ left / (len(t) - 2) / (design[:, 0] @ design[:, 0])), len(t)


def regime_end(steps, cut):
    """Steps before the floor: the last one above the cut, once eight in a row lie mostly at or below it."""
    m = len(steps)
    over = next((t for t in range(m) if np.median(steps[t:t + 8]) <= cut), None)
    if over is None:
        return m
    above = np.flatnonzero(np.asarray(steps[:over + 8]) > cut)
    return above[-1] + 1 if len(above) else 0


def contraction_regime(steps, least_floor, floor_factor=3.0, min_points=5):
    """Slope, floor, regime length and state of one series of step norms, as `contraction_rate` describes it."""
    m = len(steps)
    if m < min_points:
        return math.nan, math.nan, 0, "too few"
    quarter, eighth = m - max(m // 4, 1), m - max(m // 8, 1)
    floor = max(np.median(steps[quarter:]), least_floor)
    length = regime_end(steps, floor_factor * floor)
    late, error, points = line(steps, quarter, m)
    if points >= 8 and late < -6 * error and floor > floor_factor * least_floor:
        early, _, _ = line(steps, 0, max(length, m // 2))
        tail, tail_error, tail_points = line(steps, eighth, m)
        if tail_points < 6:
            tail, tail_error = late, error
        levelled = np.median(steps[m // 2:quarter]) <= 1.2 * np.median(steps[quarter:])
        if early < 0 and max(tail, late) <= early / 2:  # at least half as fast to the end: no floor was reached
            floor, length = math.nan, m
        elif early < 0 and late <= early / 2:  # met at the very end
            floor = max(np.median(steps[m - max(m // 16, 1):]), least_floor)
            length = regime_end(steps, floor_factor * floor)
        elif not levelled and tail < -6 * tail_error and tail * (m - eighth) < -0.1:
            return math.nan, math.nan, 0, "still falling"
        elif not levelled:  # met within the last quarter
            floor = max(np.median(steps[eighth:]), least_floor)
            length = regime_end(steps, floor_factor * floor)
    slope, error, points = line(steps, 0, length)
    if points < min_points:
        return math.nan, floor, length, "too few"
    if -slope * length < math.log(floor_factor):
        return slope, floor, length, "still falling" if math.isnan(floor) else "not shrinking"
    return slope, floor, length, "fitted" if slope <= -4 * error else "not shrinking"


def contraction_rate(states, spacing, floor_factor=3.0, min_points=5):
    """Outcome, rate, floor and regime length of one finite orbit (T, dim)."""
    x = np.asarray(states, dtype=np.float64)
    steps, end = successive(x), norm(x[-1])
    slope, floor, length, state = contraction_regime(steps, 0.3 * spacing * end, floor_factor, min_points)
    if len(steps) < min_points:
        return "too short", math.nan, floor, length
    if state == "still falling":
        return "not converged", math.nan, math.nan, length
    if floor > 8 * spacing * end:  # not the number format's floor: noise about a limit, or an orbit that moves on
        late = from_last(x)[:-1][-(len(steps) // 4):]
        if state == "too few" or np.median(late) > 8 * floor:
            return "not converged", math.nan, math.nan, length
    if state == "not shrinking":
        return "not found", math.nan, floor, length
    if state == "too few":
        return "at the precision floor", math.nan, floor, length
    return "found", math.exp(slope), floor, length


def algorithm_1(s, tau=0.05, rho=0.9, metric="cosine"):
    """Algorithm 1 of Blayney et al. 2026 on one series: regime, frequency, amplitude, slope."""
    n = len(s)
    slope, height = np.polyfit(np.arange(n), s, 1)
    rest = [(s[i] - slope * i - height) * (0.5 - 0.5 * math.cos(2 * math.pi * i / n)) for i in range(n)]
    power = [abs(sum(rest[i] * cmath.exp(-2j * math.pi * k * i / n) for i in range(n))) for k in range(1, n // 2 + 1)]
    peak = int(np.argmax(power))
    frequency, amplitude = (peak + 1) / n, 4 * power[peak] / n
    near = sum(value >= 1 - tau if metric == "cosine" else value <= tau for value in s)
    if near >= rho * n:
        return "fixed point", frequency, amplitude, slope
    if amplitude >= tau / 2 and frequency >= 2 / n:
        return "orbit", frequency, amplitude, slope
    if (slope if metric == "cosine" else -slope) > tau / n:
        return "slider", frequency, amplitude, slope
    return "unknown", frequency, amplitude, slope
