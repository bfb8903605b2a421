"""Shares of events that come in clumps: exact intervals on effective numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from dynloop.statistics.nesting import ranks
from dynloop.statistics.units import Leaves

LEAST_DESIGN_EFFECT = 5.0  # runs of about three tokens inflate the variance fivefold
_ENOUGH_RUNS = 10
ORDERED = ("token", "position", "step")  # labels that order the rows of a unit


def clopper_pearson(events: float, n: float, level: float) -> tuple[float, float]:
    """Exact binomial interval (Clopper and Pearson 1934); `n` may be an effective number."""
    from scipy import stats

    tail = (1 - level) / 2
    low = 0.0 if events <= 0 else float(stats.beta.ppf(tail, events, n - events + 1))
    high = 1.0 if events >= n else float(stats.beta.ppf(1 - tail, events + 1, n - events))
    return low, high


def wilson(events: float, n: float, level: float, freedom: float) -> tuple[float, float]:
    """Wilson's (1927) score interval with a t quantile; `n` is an effective number."""
    from scipy import stats

    p, t2 = events / n, float(stats.t.ppf((1 + level) / 2, freedom)) ** 2
    half = np.sqrt(t2 * (p * (1 - p) / n + t2 / (4 * n**2)))
    low, high = ((p + t2 / (2 * n) + side * half) / (1 + t2 / n) for side in (-1, 1))
    return max(float(low), 0.0), min(float(high), 1.0)


@dataclasses.dataclass(frozen=True)
class Runs:
    """Events that follow each other.

    Attributes:
        n: runs.
        inflation: E[L^2] / E[L] of their lengths L: the design effect of runs that are independent of each other.
    """

    n: int
    inflation: float


def runs(events: np.ndarray, labels: Mapping[str, np.ndarray]) -> Runs | None:
    """Runs of events over the rows that a label such as "token" orders, within equal values of all other labels.

    Args:
        events: (n,) bool.
        labels: of the same rows.

    Returns:
        None where no label says how rows follow each other, or nothing happened.
    """
    order_by = next((name for name in ORDERED if name in labels), None)
    if order_by is None or labels[order_by].dtype.kind not in "iuf" or not events.any():
        return None
    hit = np.flatnonzero(events)  # rows without an event only part the others
    within = np.zeros(len(hit), dtype=np.int64)
    for name, values in labels.items():
        if name != order_by:
            code = ranks(values[hit])
            within = ranks(within * (int(code.max()) + 1) + code)
    place = labels[order_by][hit]
    order = np.lexsort((place, within))
    follows = (np.diff(within[order]) == 0) & (np.diff(place[order]) == 1)
    of_run = np.cumsum(np.r_[0, ~follows])
    length = np.bincount(of_run).astype(float)
    return Runs(len(length), float((length**2).sum() / length.sum()))


@dataclasses.dataclass(frozen=True)
class Effective:
    """Events and rows as if these were independent (Korn and Graubard 1998).

    Attributes:
        events, n: effective numbers, degrees of freedom taken into account.
        effect: the design effect; None where it cannot be seen, as without events.
        how: what was done, in words.
        freedom: degrees of freedom of the design effect.
    """

    events: float
    n: float
    effect: float | None
    how: str
    freedom: float


def effective_counts(called: np.ndarray, leaves: Leaves, level: float, *, strata: bool = False, outer: bool = False,
                     found: Runs | None = None) -> Effective:
    """Effective numbers of a share.

    The design effect is the variance between units over the binomial one, the largest of all levels (of crossed levels:
    their sum). Where few units hold events it cannot be measured well and counts as at least that of the runs, or 5.

    Args:
        called: (n,) of 0 and 1.
        leaves: their units.
        level: confidence level at which degrees of freedom count.
        strata: the outermost level is kept as it is; units vary within it.
        outer: degrees of freedom are those of the outermost level (of the smaller of two crossed ones).
        found: runs of events, where the order of rows is known.
    """
    from scipy import stats

    n, p = float(len(called)), float(called.mean())
    n_leaves = leaves.n_leaves
    if n == n_leaves and len(leaves.codes) == 1:
        return Effective(p * n, n, 1.0, "orbits independent", n - 1)
    levels = range(len(leaves.codes))
    if leaves.nesting.crossed:
        freedom = float(min(leaves.n_units(i) for i in levels) - 1)
    else:
        freedom = float(n_leaves - leaves.n_units(0) if strata else leaves.n_units(0) - 1 if outer else n_leaves - 1)
    tail = (1 + level) / 2

    def fewer(n_then: float) -> float:
        """What is left of n when its design effect is known with so few degrees of freedom only."""
        return float((stats.t.ppf(tail, max(n_then - 1, 1)) / stats.t.ppf(tail, max(freedom, 1))) ** 2)

    events = np.bincount(leaves.of_row, called, n_leaves)
    if p in (0.0, 1.0):
        units = min(n_leaves * fewer(n_leaves), n_leaves)
        return Effective(p * units, units, None, "each unit counts once", freedom)
    columns = np.stack([events - p * leaves.sizes, events, leaves.sizes])
    between = []
    for i in levels:
        if strata and i == 0:
            continue
        off, happened, sizes = leaves.of_units(i, columns)
        m = len(off)
        if strata:
            of_unit = np.zeros(m, dtype=np.int64)
            of_unit[leaves.codes[i]] = leaves.codes[0]
            share = np.bincount(of_unit, happened) / np.bincount(of_unit, sizes)
            many = np.bincount(of_unit)[of_unit]
            between.append(float(((happened - share[of_unit] * sizes) ** 2 * many / np.maximum(many - 1, 1)).sum()))
        else:
            between.append(float(m / (m - 1) * (off**2).sum()))
    if n_leaves > 1 and not strata:
        between.append(float(n_leaves / (n_leaves - 1) * (columns[0] ** 2).sum()))
    variance = max(sum(between[:2]) if leaves.nesting.crossed else 0.0, *between)
    seen = min((events > 0).sum(), (events < leaves.sizes).sum())
    floor = 1.0
    if seen < max(10, min(50, n_leaves // 2)):
        floor = min(LEAST_DESIGN_EFFECT, n / n_leaves)
        if found is not None:
            floor = found.inflation if found.n >= _ENOUGH_RUNS else max(floor, found.inflation)
    effect = max(variance / (n * p * (1 - p)), floor, 1.0)
    effective = min(n, n / effect * fewer(n))
    return Effective(p * effective, effective, effect, f"design effect {effect:.2g}", freedom)
