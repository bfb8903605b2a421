"""How often does a regime occur, given how often the classifier errs?"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import numpy as np

from dynloop.outcome import Outcome
from dynloop.statistics.design import design
from dynloop.statistics.estimate import Estimate, counted, estimate
from dynloop.statistics.share import clopper_pearson
from dynloop.statistics.units import Source, read

_NODES = 1024  # of the lattice over the two error rates: limits right to 0.05 %
_Counts = tuple[int, int]


def proportion(source: Source, *, of: str | Outcome, resample: str, power: _Counts | None = None,
               false_alarms: _Counts | None = None, variable: str | None = None, target: str | None = None,
               confidence_level: float = 0.95) -> Estimate:
    """Prevalence of a regime, corrected for the classifier's measured false-alarm rate and power.

    With p the share of orbits that are called `of`, a the false-alarm rate (called so of those that are not; one minus
    the specificity) and s the power (called so of those that are; the sensitivity), p = s q + a (1 - q), hence

        q = (p - a) / (s - a),  truncated to [0, 1]   (Rogan and Gladen 1978).

    The interval melds the exact (Clopper-Pearson) confidence distributions of the three: its lower limit is the
    tail quantile of q over p ~ Beta(x, n - x + 1) and the upper distributions of a and s, its upper limit that over
    p ~ Beta(x + 1, n - x) and the lower ones. Where a and s are known it is Clopper and Pearson's. For orbits within
    units, n is an effective number (Korn and Graubard 1998): orbits over the design effect between units, which counts
    as at least that of the observed runs, or 5, when fewer than 50 units, or than half of them (but never fewer than
    10), hold an event. With no event at all every unit counts as one observation.

    Args:
        source: a measurement of any number of orbits, or a frame (see `estimate`).
        of: a value of the variable, such as "orbit" (of the orbits that were answered), or an `Outcome` (of all).
        resample: what is independent: "prompt", "seed > prompt", "seed × prompt" or "orbit"; see `estimate`.
        power: (called, tried): of how many orbits that are `of` the classifier called how many so. None takes it as 1,
            and the prevalence is that of what the classifier can see.
        false_alarms: (called, tried): of how many orbits that are not `of` it called how many so. None: it never errs.
        variable: which variable; by default the main one.
        target: "these models", "new seeds" or "new seeds and prompts"; by default what `resample` implies.
        confidence_level: nominal coverage; the interval covers at least as often.

    Returns:
        The estimate; its method says what was corrected, by what rates, and the design effect.

    Raises:
        ValueError: counts that are none, a classifier that does not tell `of` from the rest, nothing to correct for, or
            what `estimate` refuses.

    Warns:
        UserWarning: fewer orbits are called `of` than the false alarms alone would be: the rates do not fit.

    Misleads:
        The error rates must be those of the orbits at hand: same length, noise and number format, and counted among
        the same orbits (those that got an answer). Known orbits that are not like a model's give rates that are not the
        model's, and no interval says so. A prevalence below the false-alarm rate is hardly ever established: with
        a = 0.001, known from a million orbits, 0.0002 cannot be told from 0 in fewer than some 100,000 independent
        orbits. The interval of a rare regime is wider than need be (95 % intervals cover 95 to 100 %, the more the
        rarer the events). The counts of the two rates are taken as independent orbits.

    Source:
        Rogan and Gladen 1978, Am. J. Epidemiology 107, 71; Bayer, Fay and Graubard 2023, Statistics in Medicine 42,
        1822 (melding, with Korn and Graubard's effective numbers).

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome, proportion
        >>> regime = np.where(np.arange(8000) % 200, "fixed point", "orbit")
        >>> m = Measurement("regime", {"regime": regime}, [Outcome.FOUND] * 8000,
        ...                 labels={"prompt": np.arange(8000) // 20})
        >>> print(proportion(m, of="orbit", resample="prompt", power=(180, 200), false_alarms=(20, 10_000)))
        regime: prevalence of orbit 0.003341 [0, 0.00888] 95 % Rogan-Gladen, melded exact intervals:
            share 0.005 corrected for power 180 of 200 and false alarms 20 of 10000; design effect 5, 400 prompts,
            for these models
        8000 of 8000 orbits
    """
    if power is None and false_alarms is None:
        raise ValueError("a correction needs power=(called, tried), false_alarms=(called, tried) or both; got neither. "
                         "For the share as the classifier calls it use estimate(statistic='share').")
    se, fa = _rate("power", power), _rate("false_alarms", false_alarms)
    s, a = (1.0 if se is None else se[0] / se[1]), (0.0 if fa is None else fa[0] / fa[1])
    if s <= a:
        raise ValueError(f"the power must exceed the false-alarm rate; got {s:.3g} and {a:.3g}: the classifier calls "
                         f"orbits {_word(of)!r} as often when they are not. Check the order (called, tried), or use "
                         "another classifier.")
    share = estimate(source, statistic="share", of=of, resample=resample, target=target, variable=variable,
                     confidence_level=confidence_level, method="design effect")
    rows = read(source, variable, of, counts=True)
    own = counted(rows, design(rows, resample, target), confidence_level)
    events, n, effect = own.events, own.n, own.how
    value, low, high = prevalence(events, n, se, fa, confidence_level)
    notes = share.notes
    if clopper_pearson(events, n, confidence_level)[1] < (clopper_pearson(*fa, confidence_level)[0] if fa else 0):
        why = (f"{share.value:.3g} of the orbits are called {_word(of)!r}, fewer than the false alarms alone would be "
               f"({a:.3g}): the rates were not measured on orbits like these")
        warnings.warn(f"{why}. Measure them anew.", UserWarning, stacklevel=2)
        notes = (*notes, why)
    rates = " and ".join(f"{name} {counts[0]} of {counts[1]}" if counts else f"{name} taken as {default}"
                         for name, counts, default in (("power", se, "1"), ("false alarms", fa, "none")))
    how = f"Rogan-Gladen, melded exact intervals: share {share.value:.4g} corrected for {rates}; {effect}"
    return dataclasses.replace(share, statistic=f"prevalence of {_word(of)}", value=value, low=low, high=high,
                               method=how, notes=notes)


def _word(of: Any) -> Any:
    return of.value if isinstance(of, Outcome) else of


def _rate(name: str, counts: Any) -> _Counts | None:
    """Counts (called, tried), checked."""
    if counts is None:
        return None
    if isinstance(counts, tuple | list) and len(counts) == 2 and not any(isinstance(c, bool) for c in counts) and \
            all(isinstance(c, int | np.integer) for c in counts) and 0 <= counts[0] <= counts[1] and counts[1] > 0:
        return int(counts[0]), int(counts[1])
    raise ValueError(f"{name} must be (called, tried): two whole numbers, 0 <= called <= tried and tried > 0; got "
                     f"{counts!r}. A rate alone does not say how well it is known.")


def prevalence(events: float, n: float, power: _Counts | None, false_alarms: _Counts | None,
               level: float) -> tuple[float, float, float]:
    """Rogan and Gladen's estimate and its melded interval.

    Args:
        events, n: orbits that were called, and all; may be effective numbers.
        power, false_alarms: (called, tried); None where the rate is known to be 1 and 0.
        level: confidence level.
    """
    from scipy import optimize, special

    def bound(counts: _Counts | None, upper: bool, known: float, u: np.ndarray) -> np.ndarray:
        """The rate's confidence distribution (upper or lower), at its quantiles u."""
        if counts is None:
            return np.full(len(u), known)
        x, tried = counts
        if x == (tried if upper else 0):
            return np.full(len(u), 1.0 if upper else 0.0)
        return special.betaincinv(x + upper, tried - x + (not upper), u)

    s, a = (1.0 if power is None else power[0] / power[1]), (false_alarms[0] / false_alarms[1] if false_alarms else 0.0)
    value = min(max((events / n - a) / (s - a), 0.0), 1.0)
    first = (np.arange(_NODES) + 0.5) / _NODES
    second = first * _NODES * (np.sqrt(5) - 1) / 2 % 1  # a golden lattice: both rates at once
    tail = (1 - level) / 2

    def limit(upper: bool) -> float:
        """The root of P(q <= t) = tail for the lower, 1 - tail for the upper limit."""
        at_a, at_s = bound(false_alarms, not upper, 0.0, first), bound(power, not upper, 1.0, second)
        nonsense = at_s <= at_a  # such rates exclude no prevalence

        def excess(t: float) -> float:
            p = np.clip(at_a + t * (at_s - at_a), 0.0, 1.0)
            if events == (n if upper else 0):
                below = np.where(p >= (1.0 if upper else 0.0), 1.0, 0.0)
            else:
                below = special.betainc(events + upper, n - events + (not upper), p)
            return float(np.where(nonsense, 0.0 if upper else 1.0, below).mean()) - (1 - tail if upper else tail)

        if excess(0.0) >= 0:
            return 0.0
        if excess(1.0) <= 0:
            return 1.0
        return float(optimize.brentq(excess, 0.0, 1.0, xtol=1e-14, rtol=1e-10))

    return value, min(limit(False), value), max(limit(True), value)
