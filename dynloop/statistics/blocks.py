"""Steps of an orbit that depend on each other: resampled in blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dynloop.settings import check_number
from dynloop.statistics import intervals

KINDS = {"block": "stationary", "stationary block": "stationary", "moving block": "circular"}
_FEW_BLOCKS = 10
_BATCH = 1 << 20


def kind_of(resample: Any) -> str | None:
    """Which blocks a text asks for; None if it asks for something else."""
    return KINDS.get(resample) if isinstance(resample, str) else None


def interval(x: np.ndarray, function: Callable[[np.ndarray], float], kind: str, length: float | None, level: float,
             n_resamples: int, method: str, rng: Any) -> tuple[float, float, float, str, int, list[str]]:
    """Value, interval, method, number of blocks and notes of a statistic of all steps of all orbits.

    The steps of every orbit are resampled within it. The bootstrap's variance is that of k blocks about their own mean,
    (k - 1) / k of the true one; t with k - 1 degrees of freedom is used where no other method is asked for.

    Args:
        x: (n_orbits, n_steps).
        function: of a one-dimensional array.
        kind: "stationary" (geometric lengths) or "circular" (equal lengths); both wrap around the end.
        length: of blocks, in steps; None for the automatic one, from the autocovariances of all orbits.
        level, n_resamples, method, rng: as in `estimate`.
    """
    from dynloop.kernels.resampling import block_indices

    n_orbits, n_steps = x.shape
    value = float(function(x.ravel()))
    if not np.isfinite(value):
        raise ValueError(f"the statistic is {value}; it must be a finite number. Check the function and the values.")
    if length is None:
        from dynloop.statistics.block_length import optimal_block_length

        moving = x[(x != x[:, :1]).any(1)]
        length = float(optimal_block_length(moving, kind=kind)) if len(moving) else 1.0
        length = min(max(length, 1.0), n_steps / 2)
    check_number("block_length", length, lambda steps: 1 <= steps <= n_steps / 2,
                 f"a number of steps from 1 to half of the {n_steps} there are")
    n_blocks = int(n_orbits * n_steps / length)
    if n_blocks < 3:
        raise ValueError(f"{n_orbits * n_steps} steps hold {n_blocks} blocks of {length:.3g}: too few for an interval. "
                         "Record more steps.")
    if (x == x[0, 0]).all():
        return value, value, value, "constant (all steps agree)", n_blocks, []
    length = float(length) if kind == "stationary" else float(round(length))
    seeds = np.asarray(np.random.default_rng(rng).integers(2**63, size=n_orbits), dtype=np.uint64)
    drawn = np.empty(n_resamples)
    step = max(1, _BATCH // x.size)
    for first in range(0, n_resamples, step):
        m = min(step, n_resamples - first)
        index = np.empty((n_orbits, m, n_steps), dtype=np.int64)
        for i in range(n_orbits):
            block_indices(seeds[i], first, n_steps, length, kind == "stationary", index[i])
        if function is np.mean:
            drawn[first:first + m] = np.mean([x[i][index[i]].mean(1) for i in range(n_orbits)], axis=0)
        else:
            picked = np.concatenate([x[i][index[i]] for i in range(n_orbits)], axis=1)
            drawn[first:first + m] = [float(function(row)) for row in picked]
    how = f"{'stationary' if kind == 'stationary' else 'moving'} blocks of {length:.3g} steps, {n_resamples} resamples"
    notes = [f"{n_blocks} blocks are few: the steps of these orbits say little of longer ones"] \
        if n_blocks < _FEW_BLOCKS else []
    if method == "percentile":
        return value, *intervals.percentile(drawn, level), f"percentile, {how}", n_blocks, notes
    if method == "basic":
        return value, *intervals.basic(value, drawn, level), f"basic, {how}", n_blocks, notes
    known = intervals.Spread(float(drawn.std(ddof=1)) * np.sqrt(n_blocks / (n_blocks - 1)), n_blocks - 1, 0.0)
    return value, *intervals.student(value, known, level), f"t({n_blocks - 1}), {how}", n_blocks, notes
