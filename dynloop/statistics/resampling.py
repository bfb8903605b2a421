"""Bootstrap plans, and statistics of the resamples that they draw."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from dynloop.statistics.nesting import one_number
from dynloop.statistics.units import Leaves

_BLOCK = 1 << 19  # weights that are held at a time: 4 MB
_WORTH_THREADS = 1 << 24


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How resamples are drawn: weights of the leaves, replicate by replicate.

    Attributes:
        n_leaves: how many weights a replicate has.
        fill: (seed, number of the first replicate, weights (replicates, n_leaves) to write).
    """

    n_leaves: int
    fill: Callable[[np.uint64, int, np.ndarray], None]


def nested_plan(leaves: Leaves, *, fixed: int = 0) -> Plan:
    """Units are drawn with replacement, then units within each drawn one, down to the innermost.

    With one level this is the cluster bootstrap, and with rows as units the ordinary one.

    Args:
        leaves: nested or of one level.
        fixed: so many outer levels are kept as they are, as strata.
    """
    from dynloop.kernels.resampling import nested_weights

    n_levels = len(leaves.codes)
    widths = np.array([1, *(leaves.n_units(level) for level in range(n_levels))])
    starts = np.zeros((n_levels, int(widths.max()) + 1), dtype=np.int64)
    parent = np.zeros(leaves.n_leaves, dtype=np.int64)
    for level, code in enumerate(leaves.codes):
        parent_of = np.zeros(widths[level + 1], dtype=np.int64)
        parent_of[code] = parent
        starts[level, :widths[level] + 1] = np.searchsorted(parent_of, np.arange(widths[level] + 1))
        parent = code
    return Plan(leaves.n_leaves,
                lambda seed, first, out: nested_weights(seed, first, starts, widths, fixed, out))


def crossed_plan(leaves: Leaves) -> Plan:
    """Both levels are drawn, each for itself, and a cell counts as often as the product (Owen 2007)."""
    from dynloop.kernels.resampling import crossed_weights

    rows, columns = leaves.codes
    n_rows, n_columns = leaves.n_units(0), leaves.n_units(1)
    return Plan(leaves.n_leaves,
                lambda seed, first, out: crossed_weights(seed, first, rows, columns, n_rows, n_columns, out))


def poisson_plan(keys: np.ndarray) -> Plan:
    """Every unit gets a Poisson(1) weight that depends on its key (n,) uint64 alone."""
    from dynloop.kernels.resampling import POISSON, poisson_weights

    return Plan(len(keys), lambda seed, first, out: poisson_weights(seed, first, keys, POISSON, out))


Statistic = Callable[[np.ndarray], np.ndarray]  # weights (replicates, leaves) to values (replicates,)


def replicates(plan: Plan, statistic: Statistic, n_resamples: int, rng: Any) -> np.ndarray:
    """The statistic of every resample, in order; the same whatever the number of threads.

    Args:
        plan: what is drawn.
        statistic: takes weights (m, n_leaves) and gives (m,) or (m, k).
        n_resamples: how many.
        rng: seed or generator.
    """
    import numba

    seed = np.uint64(np.random.default_rng(rng).integers(2**63))
    step = max(4, _BLOCK // plan.n_leaves // 4 * 4)

    def part(first: int) -> np.ndarray:
        weights = np.empty((min(step, n_resamples - first), plan.n_leaves))
        plan.fill(seed, first, weights)
        return statistic(weights)

    firsts = range(0, n_resamples, step)
    threads = min(numba.get_num_threads(), len(firsts)) if n_resamples * plan.n_leaves > _WORTH_THREADS else 1
    if threads == 1 or not getattr(statistic, "threads", True):
        return np.concatenate([part(first) for first in firsts])
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(part, firsts)))


class Ratio:
    """Sum over sum: means, shares and ratios, from the sums of each leaf alone.

    Args:
        sums: (n_leaves,) numerators.
        sizes: (n_leaves,) denominators: counts, for a mean.
    """

    def __init__(self, sums: np.ndarray, sizes: np.ndarray) -> None:
        self.value = float(sums.sum() / sizes.sum())
        # numbers about the value keep their digits where all values are large and alike
        self.columns = np.stack([sums - self.value * sizes, sizes])

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        from dynloop.kernels.resampling import weighted_sums

        out = np.empty((len(weights), 2))
        weighted_sums(weights, self.columns, out)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.value + out[:, 0] / out[:, 1]

    def without(self, leaves: Leaves, level: int) -> np.ndarray:
        """The value without each unit of a level."""
        sums, sizes = leaves.of_units(level, self.columns)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.value + (self.columns[0].sum() - sums) / (self.columns[1].sum() - sizes)


class Studentised:
    """A ratio's deviation over its own standard error between units, in every resample of whole units."""

    def __init__(self, ratio: Ratio) -> None:
        sums, sizes = ratio.columns
        self.columns = np.stack([sums, sizes, sums**2, sums * sizes, sizes**2])
        self.n_units = len(sums)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        from dynloop.kernels.resampling import weighted_sums

        total = np.empty((len(weights), 5))
        weighted_sums(weights, self.columns, total)
        s, n, ss, sn, nn = total.T
        off = s / n
        spread = np.maximum(ss - 2 * off * sn + off**2 * nn, 0.0) * self.n_units / (self.n_units - 1)
        # a resample of one unit many times has no spread: it lies infinitely far out
        error = np.where(spread > 1e-12 * ss, np.sqrt(spread) / n, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(error > 0, off / error, np.where(off == 0, 0.0, np.sign(off) * np.inf))


class Quantile:
    """A quantile, linear between order statistics, without building any resample.

    Args:
        x: (n,) values.
        leaves: their units.
        q: which quantile.
    """

    def __init__(self, x: np.ndarray, leaves: Leaves, q: float) -> None:
        self.q, order = q, np.argsort(x, kind="stable")
        self.sorted, self.unit_of, self.sizes = x[order], leaves.of_row[order], leaves.sizes
        self.value = float(np.quantile(x, q))
        # runs short enough to walk, few enough that their table stays at 16 MB
        n_cells = max(1, min(int(np.sqrt(len(x))), 2**21 // leaves.n_leaves, len(x)))
        self.starts = np.linspace(0, len(x), n_cells + 1).astype(np.int64)
        cell = np.repeat(np.arange(1, n_cells + 1), np.diff(self.starts))
        counts = np.bincount(cell * leaves.n_leaves + self.unit_of, minlength=(n_cells + 1) * leaves.n_leaves)
        self.upto = np.cumsum(counts.reshape(n_cells + 1, -1), axis=0, dtype=float)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        from dynloop.kernels.resampling import weighted_quantiles

        out = np.empty(len(weights))
        weighted_quantiles(weights, self.sorted, self.unit_of, self.sizes, self.upto, self.starts, self.q, out)
        return out


class AnyFunction:
    """Any function of the values: each resample is built. Slow, and never in two threads."""

    threads = False

    def __init__(self, x: np.ndarray, leaves: Leaves, function: Callable[[np.ndarray], float]) -> None:
        order = np.argsort(leaves.of_row, kind="stable")
        self.sorted, self.unit_of, self.function = x[order], leaves.of_row[order], function
        self.value = one_number(function, x)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        times = weights.astype(np.int64)
        return np.array([float(self.function(np.repeat(self.sorted, t[self.unit_of]))) if t.any() else np.nan
                         for t in times])


def without(statistic: Any, leaves: Leaves, level: int) -> np.ndarray:
    """The statistic without each unit of a level, (units,): the delete-one-unit jackknife."""
    if isinstance(statistic, Ratio):
        return statistic.without(leaves, level)
    code, n = leaves.codes[level], leaves.n_units(level)
    step = max(1, _BLOCK // leaves.n_leaves)
    return np.concatenate([statistic((code != np.arange(first, min(first + step, n))[:, None]).astype(float))
                           for first in range(0, n, step)])
