"""Where do orbits from many starts end up, and which share of them in each place?"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.maps.arguments import check_loop_map, check_repeats, check_rows
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

if TYPE_CHECKING:
    import torch

    from dynloop.maps.loop_map import LoopMap

KINDS = ("fixed point", "cycle", "unsettled", "not finite")
_PERIODS = 3  # of the longest period, that are looked at
_ROUNDING = 64.0  # spacings within which a settled orbit may move on for ever
_APART = 10.0  # radii that two attractors must be apart
_CHUNK_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BasinFractions:
    """Attractors, and who reached them.

    Attributes:
        attractors: states (period, *state_shape) of each, in order.
        measurement: a row a start; see `basin_fractions`.
        shares: a row a class of each context; see `basin_fractions`.
    """

    attractors: tuple[torch.Tensor, ...]
    measurement: Measurement
    shares: Measurement

    def __repr__(self) -> str:
        periods = ", ".join(f"{n} of period {p}" for p, n in sorted(Counter(map(len, self.attractors)).items()))
        return f"BasinFractions({len(self.attractors)} attractors: {periods or 'none'}; {self.measurement!r})"


def basin_fractions(loop: LoopMap, starts: Any, *, n_steps: int = 512, contexts: Any = None, max_period: int = 16,
                    tolerance: float | None = None, confidence_level: float = 0.95) -> BasinFractions:
    r"""Shares of the starts whose orbits settle on each attractor: fixed points and cycles, each context for itself.

    An orbit has settled with period p, the smallest there is, if over its last 3 p states (and at least 8)

    * ||x[t+p] - x[t]|| <= radius = tolerance times the size of states (median norm of the last states of the context,
      or median distance from the first states if that is larger);
    * what is left of the way, going by how the returns still shrink, is within the radius, too; returns that no longer
      shrink must lie within 64 spacings of the number format, and stay there: a drift is no rest, however slow.

    Fixed points within 10 radii are one; cycles are one if all their states agree so well, step by step, when one of
    them is begun at another phase, and so are cycles of unequal period, which then count with the shorter one. All else
    that stays finite is unsettled: chaos, quasi-periodicity, longer cycles, slow convergence.

    Args:
        loop: the map.
        starts: states (n, *state_shape), drawn from the distribution that the shares are to be of.
        n_steps: steps of each orbit, at least 3 max_period.
        contexts: (n,) contexts of the starts, as `LoopMap` takes them.
        max_period: longest period to look for.
        tolerance: relative; by default the square root of the spacing of the number format.
        confidence_level: probability with which each interval covers the share of its basin.

    Returns:
        `attractors`, those with the most starts first, context by context. `measurement`, a row a start: `attractor`
        (number), `period` of the attractor, `remaining` (estimated way to the attractor, in state units); outcomes
        `NOT_CONVERGED` (unsettled) and `NOT_FINITE`. `shares`, a row a class of each context: `share` with its exact
        interval `low`, `high` (Clopper and Pearson), `count`, `n` (starts of the context), `period`, `kind`; labelled
        with `context` and `attractor` (-1 for the unsettled and for those that left the finite numbers).

    Misleads:
        Shares are those of the distribution of the starts, not volumes. The intervals are of one share each, not of all
        together, and take the starts as independent. A basin that no start fell into is not listed: of n starts, one
        with a share above 3 / n would have been seen with 95 %. A start on a repeller or a saddle stays there. Of a
        line of neutral fixed points every start finds its own.

    Source:
        Menck, Heitzig, Marwan and Kurths 2013 (Nature Physics 9, 89): basin stability by sampling; Datseris and
        Wagemakers 2022 (Chaos 32, 023104). Intervals: Clopper and Pearson 1934.

    Example:
        >>> import torch
        >>> from dynloop.maps import LoopMap
        >>> from dynloop.maps.basin_fractions import basin_fractions
        >>> found = basin_fractions(LoopMap(lambda x, contexts: torch.tanh(2 * x), (1,)),
        ...                         torch.linspace(-1, 3, 41)[:, None] + 0.01)
        >>> found
        BasinFractions(2 attractors: 2 of period 1; Measurement(basin_fractions of 41 orbits: 41 found))
        >>> found.shares["share"].round(2)
        array([0.76, 0.24, 0.  , 0.  ])
    """
    import torch

    check_loop_map("loop", loop)
    check_whole("max_period", max_period, 1, "a whole number of at least 1 (the default is 16)")
    window = max(_PERIODS * int(max_period), 8) + 1
    check_whole("n_steps", n_steps, window, f"a whole number of at least {window}, three of the longest period")
    if tolerance is None:
        tolerance = torch.finfo(loop.dtype).eps ** 0.5
    check_number("tolerance", tolerance, lambda v: 0 < v < 1, "between 0 and 1, or None for the square root of the "
                                                              "spacing")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1, both excluded (the "
                                                                           "default is 0.95)")
    states, places = loop._checked(torch.as_tensor(starts).detach(), contexts)
    n = len(states)
    check_rows("starts", states)
    check_repeats(loop, states, places)
    chunk = max(1, _CHUNK_BYTES // (window * loop.dim * 8))
    parts = [_ends(loop, states[first:first + chunk], places[first:first + chunk], n_steps, window)
             for first in range(0, n, chunk)]
    ends = torch.cat(parts)  # (n, window, dim)
    finite = ends.isfinite().flatten(1).all(1)
    at = places.cpu().numpy()
    period, remaining, number = np.zeros(n, dtype=np.int64), np.full(n, np.nan), np.full(n, -1)
    spacing = torch.finfo(loop.dtype).eps
    attractors: list[torch.Tensor] = []
    rows: list[tuple] = []
    for context in np.unique(at):
        own = np.flatnonzero((at == context) & finite.cpu().numpy())
        found: list[tuple[torch.Tensor, list[int]]] = []
        if len(own):
            late = ends[own]
            size = max(float(late[:, -1].norm(dim=1).median()),
                       float((late[:, -1] - states[own].flatten(1)).norm(dim=1).median()))
            period[own], remaining[own] = _settled(late, int(max_period), tolerance * size, _ROUNDING * spacing * size)
            period[own] = _shortest(late, period[own], tolerance * size)
            found = _merged(late, own, period, _APART * tolerance * size)
        found.sort(key=lambda one: -len(one[1]))
        total = int((at == context).sum())
        for cycle, members in found:
            number[members], period[members] = len(attractors), len(cycle)
            rows.append((context, len(attractors), len(members), total, len(cycle), KINDS[int(len(cycle) > 1)]))
            attractors.append(cycle.reshape(-1, *loop.state_shape))
        rows.append((context, -1, int((period[own] == 0).sum()), total, np.nan, "unsettled"))
        rows.append((context, -1, total - len(own), total, np.nan, "not finite"))
    outcomes = np.where(~finite.cpu().numpy(), Outcome.NOT_FINITE,  # type: ignore[call-overload]
                        np.where(period == 0, Outcome.NOT_CONVERGED, Outcome.FOUND))  # type: ignore[call-overload]
    settings = {"n_steps": n_steps, "max_period": max_period, "tolerance": tolerance}
    measurement = Measurement("basin_fractions", {
        "attractor": np.where(number < 0, np.nan, number), "period": np.where(period == 0, np.nan, period),
        "remaining": np.where(period == 0, np.nan, remaining)}, outcomes,
        units={"period": "recurrences", "remaining": "state units"}, settings=settings, labels={"context": at})
    return BasinFractions(tuple(attractors), measurement, _shares(rows, confidence_level, settings))


def _ends(loop: LoopMap, states: torch.Tensor, contexts: torch.Tensor, n_steps: int, window: int) -> torch.Tensor:
    """The last states (n, window, dim) of orbits, in single precision at least."""
    import torch

    last: deque = deque([states], maxlen=window)
    for _ in range(n_steps):
        last.append(loop(last[-1], contexts))
    ends = torch.stack(list(last), dim=1).flatten(2)
    return ends.double() if ends.dtype == torch.float64 else ends.float()


def _settled(late: torch.Tensor, max_period: int, radius: float, rounding: float) -> tuple[np.ndarray, np.ndarray]:
    """Period of each orbit (n,), 0 where it has none, and how far it still has to go; late (n, window, dim)."""
    n, window, _ = late.shape
    period, remaining = np.zeros(n, dtype=np.int64), np.full(n, np.nan)
    for p in range(1, max_period + 1):
        span = max(_PERIODS * p, 8)
        own = late[:, window - span - 1:]
        returns = (own[:, p:] - own[:, :-p]).norm(dim=2).cpu().numpy()  # (n, span + 1 - p)
        turns = (returns.shape[1] - 1) / p  # periods from the first return to the last
        first, last = returns[:, :1].max(1), returns[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (last / first) ** (1 / turns)
            ahead = np.where(last == 0, 0.0, np.where(ratio < 1, last * ratio / (1 - ratio), np.inf))
        at_rest = (returns.max(1) <= rounding) & (_gone(late[:, window // 2:], p) <= min(rounding, radius))
        ahead = np.where(at_rest, last, ahead)
        here = (period == 0) & (returns.max(1) <= radius) & (ahead <= radius)
        period[here], remaining[here] = p, ahead[here]
    return period, remaining


def _gone(late: torch.Tensor, period: int) -> np.ndarray:
    """How far each orbit (n,) has gone to its last states from all earlier ones of the same phase."""
    phase = np.arange(late.shape[1] - period - 1, -1, -1)
    same = late.shape[1] - period + (phase - late.shape[1] + period) % period
    return (late[:, phase] - late[:, same]).norm(dim=2).amax(1).cpu().numpy()


def _shortest(late: torch.Tensor, period: np.ndarray, radius: float) -> np.ndarray:
    """Periods (n,) of settled orbits, shortened to the first lag at which all late states return within the radius.

    What jitters within the radius seems to shrink at some lag by chance, and not at the same one from every start.
    """
    found = period.copy()
    for orbit in np.flatnonzero(period > 1):
        own = late[orbit]
        found[orbit] = next((q for q in range(1, int(period[orbit]))
                             if float((own[q:] - own[:-q]).norm(dim=1).max()) <= radius), period[orbit])
    return found


def _merged(late: torch.Tensor, rows: np.ndarray, period: np.ndarray,
            apart: float) -> list[tuple[torch.Tensor, list[int]]]:
    """Attractors, each with the starts (by number) that reached it; late (n, window, dim) of these rows."""
    found: list[tuple[torch.Tensor, list[int]]] = []
    for place in np.argsort(period[rows], kind="stable").tolist():  # what jitters counts with its shortest period
        row = int(rows[place])
        p = int(period[row])
        if p == 0:
            continue
        cycle = late[place, -p:]
        for other, members in found:
            if _distance(cycle, other) <= apart:
                members.append(row)
                break
        else:
            found.append((cycle, [row]))
    return found


def _distance(cycle: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance between two cycles that go round together, from the phases at which it is the smallest."""
    import torch

    apart = torch.cdist(cycle, other, compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
    p, q = apart.shape
    steps = np.arange(math.lcm(p, q))
    return min(float(apart[(steps + s) % p, steps % q].max()) for s in range(math.gcd(p, q)))


def _shares(rows: list[tuple], confidence_level: float, settings: dict[str, Any]) -> Measurement:
    from scipy.stats import binomtest

    context, attractor, count, total, period, kind = (np.array(column) for column in zip(*rows, strict=True))
    bounds = np.array([binomtest(int(k), int(n)).proportion_ci(confidence_level, method="exact")
                       for k, n in zip(count, total, strict=True)])
    return Measurement("basin_shares", {
        "share": count / total, "low": bounds[:, 0], "high": bounds[:, 1], "count": count.astype(np.float64),
        "n": total.astype(np.float64), "period": period.astype(np.float64), "kind": kind},
        [Outcome.FOUND] * len(rows), units={"count": "starts", "n": "starts", "period": "recurrences"},
        settings={**settings, "confidence_level": confidence_level},
        labels={"context": context, "attractor": attractor}, categories={"kind": KINDS})
