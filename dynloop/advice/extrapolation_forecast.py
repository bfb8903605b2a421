"""Where will the loop be at recurrence 128, as its first 16 states tell?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

METHODS = ("dmd", "aitken", "rre")
_AT_FLOOR = 8.0  # spacings: a step below is one of rounding, and nothing can be extrapolated from it
_LEAST = 8  # first states: a quarter is held out, and a fit needs some


@analyzer
def extrapolation_forecast(trajectories: Trajectories, *, n_first: int = 16, target: int | None = None,
                           method: str = "dmd", max_rank: int = 6, trust: float = 0.3,
                           tolerance: float = 1e-2) -> Measurement:
    r"""Forecast a late state from the first ones, and measure its error on what was recorded.

        error = ||forecast - x[target]|| / ||x[target]||,   naive_error: the same of the last state that is known

    Methods, from the steps r[t] = x[t+1] - x[t] of the first `n_first` states:

    * dmd: r[t+1] = A r[t] by least squares on the leading principal components of the steps; the forecast is
      x + (A + A^2 + ... ) r, as many powers as recurrences are missing. Modes may decay, turn or stay;
    * aitken: the same with one multiplier, <r[t+1], r[t]> / <r[t], r[t]> at the end (Aitken's delta-squared process for
      vectors);
    * rre: reduced rank extrapolation: the combination of states whose step is least. It forecasts the limit, whatever
      the target.

    Whether to trust a forecast is decided by what is known at the time. The last quarter of the first states is held
    out, and two questions are asked: how far is the forecast from those before from the states held out, beside the
    naive forecast of these; and how far at the target are the forecasts from those before and one, two, ... of those
    held out from the one that all known states give, beside the way that this one has still to go (one step at least)?
    Rre knows the limit alone; of it the first question is whether its combination makes the steps held out vanish, too,
    and what share of the way to the limit is left at the target if the states go on coming closer as these did. The
    largest share is the `doubt`. Of 1, 2, ... `max_rank` components (rre: steps) the number is taken that does best on
    the states held out.

    Args:
        trajectories: orbits that reach the target.
        n_first: states that the forecast knows.
        target: index of the state that is forecast, counted from 0 (in what `capture` records, state t stands after
            recurrence t + 1); by default the last one of the recording.
        method: see above.
        max_rank: components, or steps that are combined, at most.
        trust: largest doubt of a forecast that is trusted.
        tolerance: for `good`.

    Returns:
        `error` (n_orbits,) where the forecast is trusted (not relative where x[target] is 0); `naive_error`; `gain`,
        naive_error / error; `good`, 1 where the error is at most `tolerance`, else 0; `rank` that was chosen;
        `doubt`; `naive_error` and `doubt` are given whenever the recording reaches the target. `untrusted_error`: of
        the forecasts that were not trusted, to judge the judgement by.
        `NOT_FOUND`: not trusted; stay with the last state, or loop on. `AT_PRECISION_FLOOR`: the last of the known
        steps is within 8 spacings of the number format: the orbit has arrived, and the naive forecast is as good as
        any.
        `TOO_SHORT`: it does not reach the target. `NOT_FINITE`: it left the finite numbers.

    Raises:
        ValueError: settings.

    Misleads:
        Trust is earned on the near future: a slow mode that the first states hardly show decides about the far one. The
        error is relative to the state's norm, which may be much larger than what the loop does to it: compare with
        `naive_error`. A mean of `error` is over the orbits that were trusted. That the state is right does not say that
        the keys and values of a cache, which are those of the recurrences run, are.

    Source:
        Sidi 2017, Vector Extrapolation Methods with Applications; Schmid 2010 (J. Fluid Mech. 656); Aitken 1926. The
        doubt is ours.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.advice import extrapolation_forecast
        >>> t, (a, b) = np.arange(128)[:, None], np.random.default_rng(0).normal(size=(2, 16))
        >>> m = extrapolation_forecast(Trajectories((3 + 0.97**t * a + 0.6**t * b)[None]))
        >>> bool(m.values[0] < 1e-3), m["naive_error"].round(1)
        (True, array([0.2]))
    """
    check_whole("n_first", n_first, _LEAST, f"a whole number of at least {_LEAST} states (the default is 16)")
    if target is not None:
        check_whole("target", target, n_first, f"the index of a state behind the first {n_first}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}. Choose one of these.")
    check_whole("max_rank", max_rank, 1, "a whole number of at least 1 (the default is 6)")
    check_number("trust", trust, lambda v: 0 < v <= 1, "above 0 and at most 1 (the default is 0.3)")
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 0.01)")
    n, lengths, diverged = trajectories.n_orbits, trajectories.lengths, trajectories.diverged
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    names = ("error", "naive_error", "gain", "good", "rank", "doubt", "untrusted_error")
    variables = {name: np.full(n, np.nan) for name in names}
    outcomes = []
    for o in range(n):
        end = int(lengths[o]) - 1 if target is None else target
        if diverged[o] or end < n_first or end >= lengths[o]:
            outcomes.append(Outcome.NOT_FINITE if diverged[o] else Outcome.TOO_SHORT)
            continue
        known = trajectories.states[o, :n_first].double().cpu().numpy()
        truth = trajectories.states[o, end].double().cpu().numpy()
        size = np.linalg.norm(truth) or 1.0  # of 0 there is no share
        naive = np.linalg.norm(known[-1] - truth) / size
        variables["naive_error"][o] = naive
        if np.linalg.norm(known[-1] - known[-2]) <= _AT_FLOOR * spacing * np.linalg.norm(known[-1]):
            outcomes.append(Outcome.AT_PRECISION_FLOOR)
            continue
        ahead = end - n_first + 1
        axes, within = np.linalg.qr((known - known[-1]).T)  # no forecast leaves what the known states span
        seen = axes.T @ (truth - known[-1])
        unseen = np.linalg.norm(truth - known[-1] - axes @ seen)
        with np.errstate(over="ignore", invalid="ignore"):  # a forecast may grow without bounds
            rank, forecast, doubt = _doubted(within.T, ahead, method, max_rank)
            error = np.hypot(np.linalg.norm(forecast - seen), unseen) / size
        variables["doubt"][o] = doubt
        if doubt > trust or not np.isfinite(error):
            variables["untrusted_error"][o] = error
            outcomes.append(Outcome.NOT_FOUND)
            continue
        outcomes.append(Outcome.FOUND)
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.divide(naive, error) if naive or error else 1.0
            answers = {"error": error, "gain": gain, "good": error <= tolerance, "rank": rank}
        for name, value in answers.items():
            variables[name][o] = value
    return Measurement("extrapolation_forecast", variables, outcomes,
                       settings={"n_first": n_first, "target": target, "method": method, "max_rank": max_rank,
                                 "trust": trust, "tolerance": tolerance}, labels=trajectories.labels)


def _doubted(known: np.ndarray, ahead: int, method: str, max_rank: int) -> tuple[int, np.ndarray, float]:
    """The rank that forecasts the held-out states best, the forecast of the target, and how much to doubt it."""
    cut = len(known) - len(known) // 4
    early, late = known[:cut], known[cut:]

    def on_held_out(rank: int) -> float:
        if method == "rre":
            return _left_over(early, late, rank)
        wrong = [_forecast(early, i, method, rank) - state for i, state in enumerate(late, start=1)]
        return _share(np.linalg.norm(wrong), np.linalg.norm(late - early[-1]))

    def at_target(rank: int) -> float:
        all_say = _forecast(known, ahead, method, rank)
        way = max(np.linalg.norm(all_say - known[-1]), np.linalg.norm(known[-1] - known[-2]))
        return max(_share(np.linalg.norm(_forecast(known[:own], ahead + len(known) - own, method, rank) - all_say), way)
                   for own in range(cut, len(known)))

    ranks = [1] if method == "aitken" else range(1, 1 + min(max_rank, (cut - 1) // 2))
    shares = {rank: on_held_out(rank) for rank in ranks}
    best = min(shares, key=shares.__getitem__)
    doubt = max(shares[best], at_target(best), _way_left(known, len(late), ahead, best) if method == "rre" else 0.0)
    return best, _forecast(known, ahead, method, best), doubt


def _left_over(early: np.ndarray, late: np.ndarray, rank: int) -> float:
    """What the combination that makes the early steps vanish leaves of the later ones, beside what a plain mean leaves,
    which is little for any bounded orbit."""
    combination = -np.diff(np.concatenate([[1.0], _weights(np.diff(early, axis=0)[-rank - 1:]), [0.0]]))
    steps = np.diff(np.concatenate([early, late]), axis=0)
    later = np.array([steps[i - rank:i + 1] for i in range(len(early) - 1, len(steps))])
    return _share(np.linalg.norm(combination @ later), np.linalg.norm(later.mean(1)))


def _way_left(known: np.ndarray, window: int, ahead: int, rank: int) -> float:
    """Share of the way to the limit that is left at the target if it goes on shrinking as it does from window to window
    of the known states: a cycle has a centre to which it never goes."""
    way = np.linalg.norm(known - _forecast(known, 0, "rre", rank), axis=1)
    third, second, last = (way[len(way) - i * window:][:window].max() for i in (3, 2, 1))
    return float(min(max(_share(last, second), _share(second, third)), 1e3) ** (ahead / window))


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if np.isfinite(part) and whole > 0 else np.inf


def _forecast(known: np.ndarray, ahead: int, method: str, rank: int) -> np.ndarray:
    """The state `ahead` recurrences behind the last known one."""
    steps = np.diff(known, axis=0)
    if method == "rre":
        steps, states = steps[-rank - 1:], known[-rank - 2:-1]
        return states[0] + np.diff(states, axis=0).T @ _weights(steps)
    if method == "aitken":
        multiplier = np.array([[_share(steps[-1] @ steps[-2], steps[-2] @ steps[-2])]])
        basis, last = steps[-1][None], np.ones(1)
    else:
        basis = np.linalg.svd(steps, full_matrices=False)[2][:rank]
        within = steps @ basis.T
        multiplier = np.linalg.lstsq(within[:-1], within[1:], rcond=None)[0]
        last = within[-1]
    total, power = np.zeros_like(last), last
    for _ in range(ahead):
        power = power @ multiplier
        total = total + power
    return known[-1] + total @ basis


def _weights(steps: np.ndarray) -> np.ndarray:
    """Of the differences of steps, those that bring the first step closest to nothing."""
    return np.linalg.lstsq(np.diff(steps, axis=0).T, -steps[0], rcond=None)[0]
