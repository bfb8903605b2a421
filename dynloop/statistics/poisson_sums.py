"""Bootstrap of data larger than memory: sums of shards that merge to the same bits, however they were split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynloop.settings import check_whole
from dynloop.statistics import intervals, resampling
from dynloop.statistics.design import OF_TRAINING, SEEDS, THESE
from dynloop.statistics.estimate import Estimate
from dynloop.statistics.exact_sums import Digits, carried, exact_sums, weighted
from dynloop.statistics.nesting import ORBIT, Nesting
from dynloop.statistics.units import Source, leaves, read

_LEAST_UNITS = 40


@dataclasses.dataclass(frozen=True, eq=False)
class PoissonSums:
    """Sums of every replicate over what was seen so far; add those of two shards with `+`.

    Attributes:
        variables: names, in the order of the last axis but one of `replicates`.
        resample: the label whose values are independent units.
        seed: of the weights; shards of different seeds do not add up.
        keys: (units,) uint64, sorted: which units were seen.
        totals: (variables + 1,) exact sums of the rows, and their number.
        replicates: (replicates, variables + 1) the same under the weights of each replicate.
        excluded: rows that did not enter, by outcome.
        units: unit of each variable.
    """

    variables: tuple[str, ...]
    resample: str
    seed: int
    keys: np.ndarray
    totals: Digits
    replicates: Digits
    excluded: Mapping[str, int]
    units: tuple[str, ...]

    def __add__(self, other: PoissonSums) -> PoissonSums:
        """Both shards as one.

        Raises:
            ValueError: other variables, units, seeds or numbers of replicates.
        """
        for name in ("variables", "resample", "seed", "units"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"shards of different {name} do not add up: {getattr(self, name)!r} and "
                                 f"{getattr(other, name)!r}. Make both with the same settings.")
        if len(self.replicates.parts) != len(other.replicates.parts):
            raise ValueError(f"shards of {len(self.replicates.parts)} and {len(other.replicates.parts)} replicates do "
                             "not add up. Make both with the same n_resamples.")
        excluded = {name: self.excluded.get(name, 0) + other.excluded.get(name, 0)
                    for name in sorted({*self.excluded, *other.excluded})}
        return dataclasses.replace(self, keys=np.union1d(self.keys, other.keys), totals=self.totals + other.totals,
                                   replicates=self.replicates + other.replicates, excluded=excluded)

    def estimate(self, variable: str | None = None, *, confidence_level: float = 0.95) -> Estimate:
        """The mean of a variable over all shards, with its percentile interval.

        Raises:
            ValueError: a variable that was not summed, or fewer than 40 units, for which Poisson weights are no help.
        """
        name = variable or self.variables[0]
        if name not in self.variables:
            raise ValueError(f"no variable {name!r} was summed; there are {', '.join(self.variables)}.")
        n = len(self.keys)
        if n < _LEAST_UNITS:
            raise ValueError(f"Poisson weights need at least {_LEAST_UNITS} units; got {n} {self.resample}s. So few "
                             "fit into memory: use estimate.")
        at = self.variables.index(name)
        totals, drawn = self.totals.rounded(), self.replicates.rounded()
        value = float(totals[at] / totals[-1])
        means = drawn[:, at] / drawn[:, -1]
        low, high = intervals.percentile(means, confidence_level)
        target = SEEDS if self.resample in OF_TRAINING else THESE
        return Estimate(name, "mean", value, low, high, self.units[at], confidence_level,
                        f"percentile, {len(means)} resamples with Poisson weights", self.resample, n, int(totals[-1]),
                        dict(self.excluded), {}, {}, target, {self.resample: n})


def poisson_sums(source: Source, *, resample: str, variables: Sequence[str] | None = None, n_resamples: int = 10_000,
                 seed: int = 0) -> PoissonSums:
    """The bootstrap of one shard of data that are larger than memory.

    In replicate b every unit u weighs w_bu, an independent Poisson(1) number that is a hash of (seed, b, u) alone, so
    that a unit may lie in several shards. Sums are exact whole numbers: merged in any order and any split they are
    equal bit for bit, and so is the interval.

    Args:
        source: a measurement or a frame: one shard.
        resample: one label whose values are independent units, such as "prompt".
        variables: which ones; by default the main one of a measurement.
        n_resamples: replicates.
        seed: a whole number, the same for all shards.

    Returns:
        The sums of the shard. `sum(shards[1:], shards[0]).estimate("rate")` is the mean with its interval.

    Raises:
        ValueError: nested or crossed units, or what `estimate` refuses.

    Misleads:
        For few units the percentile interval is too short; below 40 it is refused.

    Source:
        Chamandy et al. 2012, Estimating uncertainty for massive data streams (Google); Hanley and MacGibbon 2006,
        Comput. Methods Programs Biomed. 83, 57.

    Example:
        >>> import numpy as np, pandas
        >>> rate = np.random.default_rng(0).normal(0.8, 0.1, 2000)
        >>> whole = pandas.DataFrame({"prompt": np.arange(2000) % 100, "rate": rate})
        >>> shards = [poisson_sums(whole[i::3], resample="prompt", variables=["rate"]) for i in range(3)]
        >>> in_parts = (shards[2] + shards[0] + shards[1]).estimate()
        >>> in_parts == poisson_sums(whole, resample="prompt", variables=["rate"]).estimate()
        True
    """
    check_whole("n_resamples", n_resamples, 100, "a whole number of at least 100 (default 10000)")
    check_whole("seed", seed, 0, "a whole number from 0 (default 0)")
    nesting = Nesting.parse(resample)
    if len(nesting.levels) > 1 or nesting.levels == (ORBIT,):
        raise ValueError(f"Poisson weights know units of one label, the same in every shard; got resample={resample!r}."
                         " Use 'prompt', or estimate.")
    names: list[str | None] = list(variables) if variables else [None]
    read_rows = [read(source, name, None) for name in names]
    rows = read_rows[0]
    held = leaves(rows, nesting)
    labels = rows.labels[resample][rows.used]
    first = np.zeros(held.n_leaves, dtype=np.int64)
    first[held.of_row[::-1]] = np.arange(len(labels))[::-1]
    keys = unit_keys(labels[first])
    columns = [*(exact_sums(own.x, held.of_row, held.n_leaves) for own in read_rows),
               exact_sums(np.ones(len(labels)), held.of_row, held.n_leaves)]
    stacked = _stack(columns)
    flat = Digits(stacked.lowest, stacked.parts.reshape(held.n_leaves, -1))
    wanted = np.flatnonzero(flat.parts.any(0))  # digits that no number has cost nothing
    part = Digits(flat.lowest, np.ascontiguousarray(flat.parts[:, wanted]))
    drawn = resampling.replicates(resampling.poisson_plan(keys), lambda w: weighted(w, part), n_resamples, seed)
    full = np.zeros((n_resamples, flat.parts.shape[1]), dtype=np.int64)
    full[:, wanted] = drawn
    shape = stacked.parts.shape[1:]
    named = tuple(name or next(iter(source.variables)) for name in names)
    return PoissonSums(named, resample, int(seed), np.sort(keys), carried(stacked.lowest, stacked.parts.sum(0)),
                       carried(stacked.lowest, full.reshape(n_resamples, *shape)), rows.excluded,
                       tuple(own.unit for own in read_rows))


def unit_keys(labels: np.ndarray) -> np.ndarray:
    """A well-mixed uint64 for each label, the same on every machine: of its text, and whether it is a number."""
    def text(label: Any) -> str:
        if isinstance(label, float) and label.is_integer():
            label = int(label)  # a column with a gap elsewhere is read as floats
        return f"{'text' if isinstance(label, str) else 'number'} {label}"

    return np.array([int.from_bytes(hashlib.blake2b(text(label).encode(), digest_size=8).digest(), "little")
                     for label in labels.tolist()], dtype=np.uint64)


def _stack(columns: Sequence[Digits]) -> Digits:
    """Columns (units,) as one (units, columns), over the same digits."""
    low = min(c.lowest for c in columns)
    high = max(c.lowest + c.parts.shape[-1] for c in columns)
    return Digits(low, np.stack([c.over(low, high) for c in columns], axis=1))
