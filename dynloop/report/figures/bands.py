"""Pointwise intervals along a curve, over whole prompts or seeds: closed forms, one for medians and one for shares."""

from __future__ import annotations

import numpy as np

_LEAST_DESIGN_EFFECT = 5.0  # as in `estimate`


def numbered(units: np.ndarray) -> tuple[np.ndarray, int]:
    """The number of each orbit's unit, and how many units there are."""
    names, number = np.unique(units, return_inverse=True)
    return number, len(names)


def _unit_sums(values: np.ndarray, number: np.ndarray, n_units: int) -> np.ndarray:
    """(n_units, n_columns)"""
    sums = np.zeros((n_units, values.shape[1]))
    np.add.at(sums, number, values)
    return sums


def median_interval(values: np.ndarray, units: np.ndarray, confidence_level: float) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the median of every column when whole units are drawn; NaN values are left out.

    Woodruff 1952 (J. Am. Stat. Assoc. 47, 635): the share of orbits below the median is a mean, whose error between
    units is known (t, one degree of freedom a unit but one); the quantiles at its limits are those of the median.

    Args:
        values: (n_orbits, n_columns).
        units: (n_orbits,), the prompt or seed of each.
        confidence_level: nominal coverage of each interval.

    Returns:
        Lower and upper limits, (n_columns,); NaN with fewer than two units.
    """
    from scipy import stats

    number, n_units = numbered(units)
    finite = np.isfinite(values)
    counts = finite.sum(0)
    if n_units < 2:
        return np.full(len(counts), np.nan), np.full(len(counts), np.nan)
    ordered = np.sort(np.where(finite, values, np.nan), axis=0)  # NaN comes last
    middle = _quantile(ordered, counts, np.full(len(counts), 0.5))
    with np.errstate(invalid="ignore", divide="ignore"):
        below = np.where(finite, (values < middle) + 0.5 * (values == middle), 0.0)
        share = below.sum(0) / counts
        apart = _unit_sums(below - share * finite, number, n_units)
        error = np.sqrt(n_units / (n_units - 1) * (apart**2).sum(0)) / counts
    half = stats.t.ppf((1 + confidence_level) / 2, n_units - 1) * error
    return _quantile(ordered, counts, 0.5 - half), _quantile(ordered, counts, 0.5 + half)


def _quantile(ordered: np.ndarray, counts: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Quantile `at` of every column of sorted values, of which the first `counts` are numbers."""
    place = np.clip(np.nan_to_num(at), 0, 1) * np.maximum(counts - 1, 0)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, np.maximum(counts - 1, 0))
    columns = np.arange(ordered.shape[1])
    first, second = ordered[low, columns], ordered[high, columns]
    return first + (place - low) * (second - first)


def share_interval(events: np.ndarray, units: np.ndarray, confidence_level: float) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the share of events in every column when whole units are drawn.

    Clopper and Pearson's on the effective number of orbits n / d (Korn and Graubard 1998), d the design effect between
    units: the largest one of all columns, at least 5 (runs of some three orbits inflate the variance so). Where no
    column shows one, every unit counts as one observation.

    Args:
        events: (n_orbits, n_columns), bool.
        units: (n_orbits,), the prompt or seed of each.
        confidence_level: nominal coverage of each interval.

    Returns:
        Lower and upper limits, (n_columns,).
    """
    from scipy import stats

    number, n_units = numbered(units)
    n = len(events)
    share = events.mean(0)
    sizes = np.bincount(number)[:, None]
    if n_units == n:
        effect = 1.0
    elif n_units < 2:
        effect = float(n)  # one unit is one observation
    else:
        between = n_units / (n_units - 1) * ((_unit_sums(events.astype(float), number, n_units) - share * sizes)**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            effects = between.sum(0) / (n * share * (1 - share))
        seen = effects[(share > 0) & (share < 1)]
        least = min(_LEAST_DESIGN_EFFECT, n / n_units)
        effect = min(max(seen.max(), least, 1.0), float(n)) if len(seen) else n / n_units
    tail = (1 + confidence_level) / 2
    if 1 < n_units < n and ((share > 0) & (share < 1)).any():
        effect *= (stats.t.ppf(tail, n_units - 1) / stats.t.ppf(tail, n - 1))**2  # of few units little is known
    effective = n / effect
    events_seen = share * effective
    with np.errstate(invalid="ignore"):
        low = np.where(share > 0, stats.beta.ppf(1 - tail, events_seen, effective - events_seen + 1), 0.0)
        high = np.where(share < 1, stats.beta.ppf(tail, events_seen + 1, effective - events_seen), 1.0)
    return low, high
