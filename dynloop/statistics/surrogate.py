"""Would an orbit without the structure in question give the same number?"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.statistics.surrogates import KINDS, LEAST, Maker
from dynloop.trajectories import Trajectories

ALTERNATIVES = ("two-sided", "greater", "less")
_BATCH = 2**22  # numbers in memory at a time


def surrogate_test(orbits: Any, *, statistic: Callable, kind: str = "phase", n_surrogates: int = 199,
                   alternative: str = "two-sided", variable: str | None = None, recurrence_rate: float = 0.1,
                   rng: Any = 0) -> Measurement:
    """P-value of a statistic of each orbit, against surrogates of that orbit.

    With b of n surrogates at least as extreme as the orbit, p = (1 + b) / (1 + n) with Monte-Carlo standard error
    sqrt(p (1 - p) / (1 + n)); both are doubled for the smaller of two sides. What a small p-value denies is
    the business of `kind`:

    * phase: a stationary linear Gaussian process. Phases of the Fourier transform are drawn anew, the same for all
      features, so that power spectra and cross-spectra stay exactly (Theiler et al. 1992; Prichard and Theiler 1994).
    * ar1: a first-order autoregression in each feature; lag-1 autocorrelation and the covariance of features stay, on
      average.
    * shuffle: independent steps. Steps change places, the same for all features; their distribution stays exactly.
    * twin: another orbit of the same deterministic system. States with the same neighbours (twins) are taken for one
      another, and the surrogate goes on from there (Thiel et al. 2006).

    Args:
        orbits: `Trajectories`, or an array (n_steps,), (n_orbits, n_steps) or (n_orbits, n_steps, dim).
        statistic: a function of an array (n_orbits, n_steps, dim) that gives (n_orbits,) numbers, or an analyzer (also
            as `functools.partial` with settings).
        kind: "phase", "ar1", "shuffle" or "twin".
        n_surrogates: of each orbit. No p-value below 1 / (1 + n) can come out (twice that, two-sided).
        alternative: "two-sided", "greater" (the orbit's number is larger than the surrogates') or "less".
        variable: of an analyzer, which of its numbers; by default the main one.
        recurrence_rate: for twins: the share of pairs of states that count as neighbours.
        rng: seed or generator.

    Returns:
        For each orbit `p_value`, `p_error`, `statistic`, `surrogate_mean` and `surrogate_sd` (of the surrogates that
        got a number), and `unanswered`, how many surrogates got no number: these count as at least as extreme, so
        that p stays valid. `NOT_FINITE`: the orbit diverged. `TOO_SHORT`: fewer than 8 steps. `NOT_FOUND`: the function
        gave no finite number, or the orbit has no twins. An analyzer's own outcome stays where it gave no answer.

    Raises:
        ValueError: settings that do not fit, or a function that does not give one number an orbit.

    Misleads:
        A loop that comes to rest is not stationary: its transient alone is denied by phase, ar1 and shuffle, whatever
        the dynamics afterwards. Cut it off first. Phase surrogates are periodic; where first and last state differ much
        they hold a jump, which statistics of small steps notice. A statistic that the spectrum fixes, such as an
        autocorrelation, hardly varies among them, and the ends of the orbit alone make p small (25 % below .05 for an
        AR(1) of .8, 200 steps); one that is not, such as the skewness of steps, keeps 5 %. Nonlinear is not chaotic: a
        skewed noise is denied, too. With orbits of one prompt or model the p-values are not independent: correct for
        their number (`adjust_pvalues`), and count prompts, not orbits. Twins need orbits that return: some hundred
        steps on a low-dimensional attractor.

    Source:
        Theiler et al. 1992, Physica D 58, 77; Prichard and Theiler 1994, Phys. Rev. Lett. 73, 951; Thiel, Romano,
        Kurths, Rolfs and Kliegl 2006, Europhysics Letters 75, 535; Lancaster et al. 2018, Physics Reports 748, 1;
        Phipson and Smyth 2010, Stat. Appl. Genetics 9, 39.

    Example:
        >>> import numpy as np
        >>> from dynloop.statistics.surrogate import surrogate_test
        >>> x = np.empty((1, 200, 1))
        >>> x[0, 0, 0] = 0.3
        >>> for t in range(1, 200):
        ...     x[0, t] = 4 * x[0, t - 1] * (1 - x[0, t - 1])
        >>> def parabola(x):  # how well the next value follows from the square of this one
        ...     return np.array([np.corrcoef((own[:-1, 0] - 0.5) ** 2, own[1:, 0])[0, 1] for own in x])
        >>> surrogate_test(x, statistic=parabola, n_surrogates=99)["p_value"]
        array([0.02])
    """
    for name, value, known in (("kind", kind, KINDS), ("alternative", alternative, ALTERNATIVES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}. Choose one of these.")
    check_whole("n_surrogates", n_surrogates, 19, "a whole number of at least 19 (the default is 199)")
    check_number("recurrence_rate", recurrence_rate, lambda v: 0 < v < 1,
                 "a number between 0 and 1 (the default is 0.1)")
    if not callable(statistic):
        raise ValueError(f"statistic must be a function or an analyzer; got {statistic!r}.")
    of_trajectories = _is_analyzer(statistic)
    if variable is not None and not of_trajectories:
        raise ValueError("variable goes with an analyzer; a function gives one number an orbit. Leave it out.")
    trajectories = _trajectories(orbits)
    n = trajectories.n_orbits
    outcomes = np.full(n, Outcome.FOUND, dtype=object)
    outcomes[trajectories.lengths < LEAST] = Outcome.TOO_SHORT
    outcomes[trajectories.diverged] = Outcome.NOT_FINITE
    names = ("p_value", "p_error", "statistic", "surrogate_mean", "surrogate_sd", "unanswered")
    out = {name: np.full(n, np.nan) for name in names}
    unit = ""
    generators = np.random.default_rng(rng).spawn(n_surrogates)
    usable = np.array([o is Outcome.FOUND for o in outcomes])
    for length in np.unique(trajectories.lengths[usable]):
        own = np.flatnonzero(usable & (trajectories.lengths == length))
        part = trajectories[own]
        x = part.states[:, :length].double().cpu().numpy()
        ask = _asker(statistic, part, int(length), variable) if of_trajectories else _plain(statistic)
        observed, answered, unit = ask(x)
        outcomes[own] = answered
        maker = Maker(x, kind, recurrence_rate)
        if kind == "twin":
            alone = np.array([twins.share == 0 for twins in maker.twins])
            outcomes[own[alone]] = [o if o is not Outcome.FOUND else Outcome.NOT_FOUND for o in outcomes[own[alone]]]
        asked = np.array([o is Outcome.FOUND for o in outcomes[own]])
        if not asked.any():
            continue
        if not asked.all():  # only those that have a number are worth surrogates
            own, x, part, observed = own[asked], x[asked], part[asked], observed[asked]
            ask = _asker(statistic, part, int(length), variable) if of_trajectories else ask
            maker = Maker(x, kind, recurrence_rate)
        drawn = _of_surrogates(ask, maker, generators, one_by_one=of_trajectories)
        for name, values in p_values(observed, drawn, alternative).items():
            out[name][own] = values
    settings = {"statistic": getattr(getattr(statistic, "func", statistic), "__name__", "function"), "kind": kind,
                "n_surrogates": int(n_surrogates), "alternative": alternative}
    settings |= {"variable": variable} if variable is not None else {}
    settings |= {"recurrence_rate": recurrence_rate} if kind == "twin" else {}
    return Measurement("surrogate_test", out, outcomes,
                       units=dict.fromkeys(("statistic", "surrogate_mean", "surrogate_sd"), unit),
                       settings=settings, labels=trajectories.labels)


def _is_analyzer(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return hasattr(function, "together")


def _trajectories(orbits: Any) -> Trajectories:
    if isinstance(orbits, Trajectories):
        return orbits
    x = np.asarray(orbits, dtype=float)
    if x.ndim not in (1, 2, 3):
        raise ValueError("orbits must be Trajectories or an array (n_steps,), (n_orbits, n_steps) or (n_orbits, "
                         f"n_steps, dim); got shape {x.shape}.")
    return Trajectories(x[None, :, None] if x.ndim == 1 else x[..., None] if x.ndim == 2 else x)


def _plain(function: Callable) -> Callable:
    """A function of arrays, asked with its outcome."""
    def ask(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        values = np.asarray(function(x), dtype=float)
        if values.shape != (len(x),):
            raise ValueError(f"statistic must give one number for each of {len(x)} orbits; got shape {values.shape}.")
        outcomes = np.full(len(values), Outcome.FOUND, dtype=object)
        outcomes[~np.isfinite(values)] = Outcome.NOT_FOUND
        return values, outcomes, ""
    return ask


def _asker(analyzer: Callable, part: Trajectories, length: int, variable: str | None) -> Callable:
    """An analyzer, asked about states that stand in for those of `part`."""
    def ask(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
        measured = analyzer(Trajectories(x, labels=part.labels, resolution=part.resolution))
        name = variable or next(iter(measured.variables))
        values = measured[name]
        if values.ndim != 1 or values.dtype.kind not in "bifu":
            raise ValueError(f"{name} of {measured.name} is not one number an orbit. Choose another variable.")
        values = np.where(measured.found, values.astype(float), np.nan)
        outcomes = measured.outcomes.copy()
        outcomes[measured.found & ~np.isfinite(values)] = Outcome.NOT_FOUND
        return values, outcomes, measured.units[name]
    return ask


def _of_surrogates(ask: Callable, maker: Maker, generators: list[np.random.Generator], *,
                   one_by_one: bool) -> np.ndarray:
    """The statistic of every surrogate, (n_surrogates, n_orbits)."""
    size = 1 if one_by_one else max(1, _BATCH // maker.x.size)
    found = []
    for first in range(0, len(generators), size):
        made = maker.make(generators[first:first + size])
        found.append(ask(made.reshape(-1, *made.shape[2:]))[0].reshape(made.shape[:2]))
    return np.concatenate(found)


def p_values(observed: np.ndarray, drawn: np.ndarray, alternative: str) -> dict[str, np.ndarray]:
    """P-values and what they rest on, an orbit a column of `drawn`."""
    n = len(drawn)
    known = np.isfinite(drawn)
    unanswered = (~known).sum(0)
    slack = 1e-9 * np.maximum(np.abs(observed), np.abs(np.where(known, drawn, 0.0)).max(0))  # rounding is no evidence
    greater = (1 + unanswered + (known & (drawn >= observed - slack)).sum(0)) / (1 + n)
    less = (1 + unanswered + (known & (drawn <= observed + slack)).sum(0)) / (1 + n)
    side = {"greater": greater, "less": less}.get(alternative, np.minimum(greater, less))
    sides = 2 if alternative == "two-sided" else 1
    error = sides * np.sqrt(side * (1 - side) / (1 + n))
    counts = np.maximum(known.sum(0), 1)
    mean = np.where(known, drawn, 0.0).sum(0) / counts
    sd = np.sqrt(np.where(known, (drawn - mean) ** 2, 0.0).sum(0) / np.maximum(counts - 1, 1))
    empty = known.sum(0) == 0
    return {"p_value": np.minimum(sides * side, 1.0), "p_error": error, "statistic": observed,
            "surrogate_mean": np.where(empty, np.nan, mean), "surrogate_sd": np.where(empty, np.nan, sd),
            "unanswered": unanswered.astype(float)}
