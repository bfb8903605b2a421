"""One number with its interval, and what was resampled to get it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome

METHODS = ("BCa", "percentile")
STATISTICS = ("mean", "median", "share", "affected share")
_ENOUGH_UNITS = 20
_LEAST_DESIGN_EFFECT = 5.0  # runs of about three tokens inflate the variance fivefold


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number, its interval, and everything that is needed to believe it.

    Attributes:
        name: the measurement and the variable.
        statistic: what was computed over the orbits, in words.
        value, low, high: the number and its interval.
        unit: unit of the three.
        confidence_level: nominal coverage of the interval.
        method: how the interval was made.
        resample: what was resampled, or counted as independent.
        n_units: how many of these there are.
        n: orbits that entered.
        excluded: orbits that did not, by outcome.
        settings: settings of the analyzer.
        labels: labels that all orbits share.
    """

    name: str
    statistic: str
    value: float
    low: float
    high: float
    unit: str
    confidence_level: float
    method: str
    resample: str
    n_units: int
    n: int
    excluded: Mapping[str, int]
    settings: Mapping[str, Any]
    labels: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, ready for JSON."""
        return {**dataclasses.asdict(self), "excluded": dict(self.excluded),
                "settings": dict(self.settings), "labels": dict(self.labels)}

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        where = ", ".join(f"{k} {v}" for k, v in self.labels.items())
        left_out = "".join(f"; {n} {outcome}" for outcome, n in self.excluded.items())
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return (f"{self.name}: {self.statistic} {self.value:.4g}{unit} [{self.low:.4g}, {self.high:.4g}] "
                f"{100 * self.confidence_level:g} % {self.method}, {self.n_units} {self.resample}s"
                f"{f' ({where})' if where else ''}\n"
                f"{self.n} of {self.n + sum(self.excluded.values())} orbits{left_out}"
                f"{f'   ({settings})' if settings else ''}")


def estimate(measurement: Measurement, *, statistic: str | Callable[[np.ndarray], float], resample: str,
             variable: str | None = None, of: str | Outcome | None = None, confidence_level: float = 0.95,
             n_resamples: int = 1000, method: str = "BCa", rng: Any = 0) -> Estimate:
    """A statistic of a measurement with its confidence interval.

    Whole units are resampled: a prompt is drawn with all its tokens and layers, because these are not independent. A
    mean or median takes the orbits whose outcome is `FOUND`; the others are counted in `excluded`.

    Shares of rare events get no bootstrap, which would give [0, 0] when nothing was seen. With events in few units
    (fewer than 50, or than half of the units, but never fewer than 10), or with few units without one, the interval is
    Clopper-Pearson's: exact, when the orbits are independent (`resample="orbit"`) or whole units are counted ("affected
    share"); otherwise on the effective number of orbits n / d (Korn and Graubard 1998), where the design effect d is
    estimated between units and at least 5. With no event (or nothing but events) at all d cannot be seen, and every
    unit counts as one observation: the bound then holds whatever the dependence within units.

    Args:
        measurement: of any number of orbits.
        statistic: "mean", "median", "share" (of the orbits, with `of`), "affected share" (of the resampled units:
            those in which at least one orbit has `of`), or a function of a one-dimensional array.
        resample: a label whose values are independent of each other, such as "prompt"; "orbit" when the orbits
            themselves are. There is no default: resampling tokens as if they were independent makes a 95 % interval
            cover 42 % (40 prompts of 20 correlated tokens), resampling prompts 93 %.
        variable: which variable; by default the main one.
        of: for shares: a value of the variable, such as "fixed point" (of the orbits that were answered), or an
            `Outcome` (of all orbits).
        confidence_level: nominal coverage.
        n_resamples: bootstrap resamples.
        method: "BCa" (bias-corrected and accelerated, Efron 1987) or "percentile".
        rng: seed or generator of the resamples; the same one gives the same interval.

    Returns:
        The estimate. When all orbits agree, the interval has no width and says so.

    Raises:
        ValueError: an unknown name, fewer than two units, or no orbit with an answer.

    Misleads:
        Intervals over prompts speak of these models on new prompts, not of new training runs. Below 20 units the
        bootstrap covers less than it says (84 % for 95 % with 5); a warning says so. It also covers less where one
        unit holds most of the orbits (83 % with half of them in one of 40).

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome, estimate
        >>> rate = np.random.default_rng(0).normal(0.8, 0.1, (40, 20)).ravel()
        >>> m = Measurement("rate", {"rate": rate}, [Outcome.FOUND] * 800, labels={"prompt": np.arange(800) // 20})
        >>> print(estimate(m, statistic="mean", resample="prompt"))
        rate: mean 0.7974 [0.7901, 0.8038] 95 % BCa, 1000 resamples, 40 prompts
        800 of 800 orbits
    """
    if not callable(statistic) and statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)} or a function; got {statistic!r}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}. Choose one of these.")
    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must lie between 0 and 1; got {confidence_level!r}. The default is 0.95.")
    if isinstance(n_resamples, bool) or not isinstance(n_resamples, int | np.integer) or n_resamples < 100:
        raise ValueError(f"n_resamples must be a whole number of at least 100; got {n_resamples!r}.")
    if resample == "orbit" and "orbit" in measurement.labels:
        raise ValueError("resample='orbit' means that every orbit stands for itself, but there is a label of that "
                         "name. Rename the label.")
    if resample != "orbit" and resample not in measurement.labels:
        raise ValueError(f"resample must name what is independent: {'orbit'!r} or one of the labels "
                         f"{', '.join(measurement.labels) or '(none)'}; got {resample!r}.")
    of_share = statistic in ("share", "affected share")
    if of_share != (of is not None):
        raise ValueError("a share needs of=..., the value or outcome that is counted." if of_share else
                         f"of goes with a share, not with {statistic!r}. Leave it out.")
    if statistic == "affected share" and resample == "orbit":
        raise ValueError("an affected share counts units that hold several orbits; got resample='orbit'. "
                         "Use statistic='share', or resample='prompt'.")
    name = variable or next(iter(measurement.variables))
    values = measurement[name]
    of_outcome = isinstance(of, Outcome)
    if values.ndim != 1 and not of_outcome:
        raise ValueError(f"variable {name!r} has {values.shape[1]} values an orbit; an estimate needs one. Choose "
                         "another variable, or reduce it first.")
    used = np.ones(measurement.n_orbits, bool) if of_outcome else measurement.found
    excluded = {} if of_outcome else {o.value: n for o, n in measurement.counts().items() if o is not Outcome.FOUND}
    if not used.any():
        raise ValueError(f"no orbit of {measurement.name} has an answer "
                         f"({', '.join(f'{n} {o}' for o, n in excluded.items())}); nothing can be estimated.")
    if of_share and not of_outcome:
        known = measurement.categories.get(name)
        if known is not None and of not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}; got of={of!r}. Choose one of these.")
        if (values.dtype.kind in "US") != isinstance(of, str):
            raise ValueError(f"{name} holds values of dtype {values.dtype}; of={of!r} can never be one of them.")
    if of_outcome:
        x = np.array([o is of for o in measurement.outcomes], dtype=float)
    elif of_share:
        x = (values[used] == of).astype(float)
    else:
        x = np.asarray(values[used], dtype=float)
    units = np.arange(used.sum()) if resample == "orbit" else measurement.labels[resample][used]
    if units.dtype.kind == "f" and not np.isfinite(units).all():
        raise ValueError(f"label {resample!r} is NaN or infinite for some orbits: they belong to no {resample}. Give "
                         "every orbit a value.")
    _, unit_of = np.unique(units, return_inverse=True)
    n_units = int(unit_of.max()) + 1
    if n_units < 2:
        raise ValueError(f"resampling needs at least two {resample}s; got {n_units}. Record more, or state the number "
                         "without an interval.")
    if of_share:
        value, low, high, how = _share(x, unit_of, n_units, statistic == "affected share", confidence_level,
                                       n_resamples, method, rng)
    else:
        function: Any = statistic if callable(statistic) else {"mean": np.mean, "median": np.median}[statistic]
        value, low, high, how = _bootstrap(x, unit_of, n_units, function, confidence_level, n_resamples, method, rng)
    if n_units < _ENOUGH_UNITS and "resamples" in how:
        warnings.warn(f"{n_units} {resample}s are few for a bootstrap: its {100 * confidence_level:g} % interval "
                      "covers less than it says (84 % for 95 % with 5 units). Record more.", UserWarning, stacklevel=2)
    words = statistic if isinstance(statistic, str) else getattr(statistic, "__name__", "function")
    if of_share:
        words = f"{words} of {of.value if isinstance(of, Outcome) else of}"
    shared = {k: v[0].item() if isinstance(v[0], np.generic) else v[0] for k, v in measurement.labels.items()
              if (v == v[0]).all()}
    main = of_outcome or name == next(iter(measurement.variables))
    label = measurement.name if main else f"{measurement.name}.{name}"
    return Estimate(label, words, value, low, high, "" if of_share else measurement.units[name], confidence_level, how,
                    resample, n_units, int(used.sum()), excluded, dict(measurement.settings), shared)


def _bootstrap(x: np.ndarray, unit_of: np.ndarray, n_units: int, function: Callable, level: float,
               n_resamples: int, method: str, rng: Any) -> tuple[float, float, float, str]:
    """Value, interval and method of a statistic when whole units are resampled."""
    from scipy import stats

    value = float(function(x))
    if not np.isfinite(value):
        raise ValueError(f"the statistic is {value}; it must be a finite number. Check the function and the values.")
    if (x == x[0]).all():
        return value, value, value, "constant (all orbits agree)"
    if function is np.mean:  # per-unit sums are all that a mean needs
        sums, counts = np.bincount(unit_of, x, n_units), np.bincount(unit_of, minlength=n_units)

        def of_units(index: np.ndarray, axis: int = -1) -> Any:
            return sums[index].sum(axis) / counts[index].sum(axis)
    else:
        members = np.split(np.argsort(unit_of, kind="stable"), np.cumsum(np.bincount(unit_of))[:-1])

        def of_units(index: np.ndarray, axis: int = -1) -> Any:
            return float(function(x[np.concatenate([members[i] for i in index])]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns where BCa is undefined; this is handled below
        found = stats.bootstrap((np.arange(n_units),), of_units, n_resamples=n_resamples, method=method,
                                vectorized=function is np.mean, confidence_level=level,
                                batch=max(1, 2**22 // n_units), rng=np.random.default_rng(rng))
    low, high = map(float, found.confidence_interval)
    how = f"{method}, {n_resamples} resamples"
    if not (np.isfinite(low) and np.isfinite(high)):
        tail = (1 - level) / 2
        low, high = map(float, np.quantile(found.bootstrap_distribution, [tail, 1 - tail]))
        how = f"percentile (BCa is undefined here), {n_resamples} resamples"
    return value, low, high, how


def _share(x: np.ndarray, unit_of: np.ndarray, n_units: int, of_units: bool, level: float, n_resamples: int,
           method: str, rng: Any) -> tuple[float, float, float, str]:
    """Value, interval and method of a share of orbits, or of units with at least one event."""
    events, sizes = np.bincount(unit_of, x, n_units), np.bincount(unit_of, minlength=n_units)
    affected = int((events > 0).sum())
    if of_units:
        return affected / n_units, *clopper_pearson(affected, n_units, level), "Clopper-Pearson (exact, on units)"
    n, p = len(x), float(x.mean())
    unaffected = int((events < sizes).sum())
    if n == n_units:  # every orbit is its own unit
        return p, *clopper_pearson(x.sum(), n, level), "Clopper-Pearson (exact)"
    few = max(10, min(50, n_units // 2))  # with 40 events in as many of 320 units a bootstrap covers 93.7 %
    if min(affected, unaffected) >= few:
        return _bootstrap(x, unit_of, n_units, np.mean, level, n_resamples, method, rng)
    if p in (0.0, 1.0):
        return p, *clopper_pearson(p * n_units, n_units, level), "Clopper-Pearson (each unit counts once)"
    from scipy import stats

    between = n_units / (n_units - 1) * ((events - p * sizes) ** 2).sum()
    effect = max(between / (n * p * (1 - p)), min(_LEAST_DESIGN_EFFECT, n / n_units), 1.0)
    tail = (1 + level) / 2
    degrees = (stats.t.ppf(tail, n - 1) / stats.t.ppf(tail, n_units - 1)) ** 2
    effective = min(n, n / effect * degrees)
    return p, *clopper_pearson(p * effective, effective, level), \
        f"Clopper-Pearson (Korn-Graubard, design effect {effect:.2g})"


def clopper_pearson(events: float, n: float, level: float) -> tuple[float, float]:
    """Exact binomial interval (Clopper and Pearson 1934); `n` may be an effective number."""
    from scipy import stats

    tail = (1 - level) / 2
    low = 0.0 if events <= 0 else float(stats.beta.ppf(tail, events, n - events + 1))
    high = 1.0 if events >= n else float(stats.beta.ppf(1 - tail, events + 1, n - events))
    return low, high
