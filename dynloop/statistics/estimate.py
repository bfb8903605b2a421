"""One number with its interval, and what was resampled to get it."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.statistics import blocks, intervals, resampling
from dynloop.statistics.design import BOTH, THESE, Design, design, under_many
from dynloop.statistics.nesting import ORBIT, Nesting
from dynloop.statistics.share import Effective, clopper_pearson, effective_counts, runs, wilson
from dynloop.statistics.units import Rows, Source, group, leaves, read

OF_SHARES = ("design effect", "Wilson")
METHODS = ("auto", "t", "skewed t", "hierarchical t", "two-way t", "BCa", "percentile", "basic", "studentised",
           *OF_SHARES)
STATISTICS = ("mean", "median", "quantile 0.9", "ratio", "share", "affected share")
_FEW_UNITS, _SOME_UNITS = 40, 20  # below: no bootstrap of a mean; of a median
_EXACT_ROWS = 30  # effective rows that a share needs to be quoted (Korn-Graubard standard of the NCHS, 2017)


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
        n_units: how many of these there are, at the outermost level.
        n: orbits that entered.
        excluded: orbits that did not, by outcome.
        settings: settings of the analyzer.
        labels: labels that all orbits share.
        target: what the interval speaks of: these models, new seeds, or new seeds and prompts.
        units: how many units there are at each level.
        design_effect: for shares, how many times the variance exceeds that of independent orbits.
        notes: what a reader must know besides.
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
    target: str = THESE
    units: Mapping[str, int] = dataclasses.field(default_factory=dict)
    design_effect: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, ready for JSON."""
        return {**dataclasses.asdict(self), "excluded": dict(self.excluded), "settings": dict(self.settings),
                "labels": dict(self.labels), "units": dict(self.units), "notes": list(self.notes)}

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        where = ", ".join(f"{k} {v}" for k, v in self.labels.items())
        left_out = "".join(f"; {n} {outcome}" for outcome, n in self.excluded.items())
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        between = " × " if " × " in self.resample else " > "
        units = between.join(f"{n} {name}s" for name, n in self.units.items()) or f"{self.n_units} {self.resample}s"
        return (f"{self.name}: {self.statistic} {self.value:.4g}{unit} [{self.low:.4g}, {self.high:.4g}] "
                f"{100 * self.confidence_level:g} % {self.method}, {units}, for {self.target}"
                f"{f' ({where})' if where else ''}\n"
                f"{self.n} of {self.n + sum(self.excluded.values())} orbits{left_out}"
                f"{f'   ({settings})' if settings else ''}" + "".join(f"\n({note})" for note in self.notes))


def estimate(source: Source, *, statistic: str | Callable[[np.ndarray], float], resample: str,
             variable: str | Sequence[str] | None = None, of: Any = None, target: str | None = None,
             confidence_level: float = 0.95, n_resamples: int = 10_000, method: str = "auto",
             block_length: float | None = None, rng: Any = 0) -> Estimate:
    """A statistic of a measurement with a confidence interval for units that are nested, crossed, few or rare.

    Whole units count: a prompt stands with all its tokens and layers, because these are not independent, and a seed
    with all its prompts. A mean or median takes the orbits whose outcome is `FOUND`; the others are counted in
    `excluded`. The interval follows from the units and from what it speaks of (method="auto"):

    * fewer than 40 units (seeds, or prompts): t with units - 1 degrees of freedom, made longer on the side of a long
      tail ("skewed t"); the standard error is that of the unit means, for a function that of the statistic without each
      unit (with fewer than 20 units of one level: of the bootstrap, times sqrt(n / (n - 1)));
    * medians and quantiles: the values at the exact limits of the share below them ("Woodruff"), whatever the units;
      a quantile too far out for its units is treated as a function, and a note says so;
    * "seed × prompt": the variances between seeds and between prompts add up, degrees of freedom after Satterthwaite;
    * 40 units or more of one level (a function: 20): studentised bootstrap of means and ratios, BCa of functions;
    * shares: Clopper-Pearson on the effective number of orbits n / d (Korn and Graubard 1998). The design effect d is
      the variance between units over the binomial one, the largest of all levels; with events in few units at least
      that of the observed runs of tokens, or 5. With no event at all d cannot be seen, and every unit counts as one
      observation: the bound then holds whatever the dependence within units. Where the "skewed t" interval reaches
      further on the side of the long tail, it counts there. Shares with events in many of many units are means.
    * blocks: the bootstrap's standard error with t of (number of blocks - 1) degrees of freedom.

    Args:
        source: a measurement, or a pandas frame with labels, the variable and, optionally, a column "outcome".
        statistic: "mean", "median", "quantile 0.9" (any number from 0 to 1), "ratio" (of the sums of two variables),
            "share" (of the orbits, with `of`), "affected share" (of the innermost units: those in which at least one
            orbit has `of`), or a function of a one-dimensional array.
        resample: what is independent: a label such as "prompt"; "seed > prompt" (prompts within seeds, to any depth);
            "seed × prompt" (the same prompts under every seed); "orbit" when the orbits themselves are; "block",
            "moving block" for a variable of one value a step, whose steps are resampled in blocks within each orbit.
            There is no default: resampling tokens as if they were independent makes a 95 % interval cover 7 %
            (5 seeds of 64 prompts of 128 tokens), the right one 95 %.
        variable: which variable; by default the main one. A ratio takes two, (numerator, denominator).
        of: for shares: a value of the variable, such as "fixed point" (of the orbits that were answered), or an
            `Outcome` (of all orbits).
        target: "these models", "new seeds", or "new seeds and prompts"; by default what `resample` implies ("prompt",
            "seed > prompt", "seed × prompt", in this order). "seed > prompt" for these models keeps the seeds.
        confidence_level: nominal coverage.
        n_resamples: bootstrap resamples.
        method: "auto", or "t", "skewed t", "hierarchical t" (standard error of the nested bootstrap times
            sqrt(n / (n - 1))), "two-way t" (Cameron, Gelbach and Miller, for crossed units), "BCa", "percentile",
            "basic", "studentised" (bootstrap-t over the outermost units), and for shares "design effect" and "Wilson"
            (the same effective numbers).
        block_length: of the blocks, in steps; by default found from the data (`optimal_block_length`).
        rng: seed or generator of the resamples; the same one gives the same interval, whatever the number of threads.

    Returns:
        The estimate. When all orbits agree, the interval has no width and says so.

    Raises:
        ValueError: an unknown name, too few units for the target, numbers that are NaN, or no orbit with an answer.

    Warns:
        UserWarning: a bootstrap over fewer than 20 units was asked for: it covers less than it says.

    Misleads:
        Intervals over prompts speak of these models on new prompts, not of new training runs. With five seeds whose
        effects are very skewed (exponential) the interval covers 93 %, and a share that varies by its own size between
        12 to 60 prompts 92 to 95 %: a note says so. It covers less where one unit holds most of the orbits. A function
        that jumps, such as a median, is badly served by few units: name it as a quantile. "seed × prompt" is wide
        (98 %) where little but the interaction, or only one of the two, varies.

    Source:
        Efron 1987, J. Am. Stat. Assoc. 82, 171 (BCa); Johnson 1978, ibid. 73, 536; Owen 2007, Ann. Appl. Stat. 1, 386;
        Cameron, Gelbach and Miller 2011, J. Bus. Econ. Stat. 29, 238; Woodruff 1952, J. Am. Stat. Assoc. 47,
        635; Korn and Graubard 1998, Survey Methodology 24, 193.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome, estimate
        >>> rate = np.random.default_rng(0).normal(0.8, 0.1, (40, 20)).ravel()
        >>> m = Measurement("rate", {"rate": rate}, [Outcome.FOUND] * 800, labels={"prompt": np.arange(800) // 20})
        >>> print(estimate(m, statistic="mean", resample="prompt"))
        rate: mean 0.7974 [0.7898, 0.8043] 95 % studentised, 10000 resamples, 40 prompts, for these models
        800 of 800 orbits
    """
    statistic = "median" if statistic is np.median else statistic
    of_share, q = _check(statistic, of, confidence_level, n_resamples, method)
    if (variable is not None and not isinstance(variable, str)) != (statistic == "ratio") or \
            (statistic == "ratio" and len(variable or ()) != 2):
        raise ValueError(f"statistic='ratio' takes variable=(numerator, denominator), any other one variable; got "
                         f"statistic={statistic!r}, variable={variable!r}.")
    if (by_block := blocks.kind_of(resample)) is not None:
        if of_share or statistic == "ratio" or target not in (None, THESE):
            raise ValueError(f"resample={resample!r} takes a mean, quantile or function of the steps of these models; "
                             f"got statistic={statistic!r}, target={target!r}.")
        return _of_blocks(read(source, variable, of, curves=True), by_block, statistic, q, block_length,
                          confidence_level, n_resamples, method, rng)
    if block_length is not None:
        raise ValueError(f"block_length goes with resample='block', not with {resample!r}. Leave it out.")
    if statistic == "affected share" and Nesting.parse(resample).levels == (ORBIT,):
        raise ValueError("an affected share counts units that hold several orbits; got resample='orbit'. "
                         "Use statistic='share', or resample='prompt'.")
    orbits = read(source, variable, of, counts=of_share)
    rows = _affected(orbits, resample) if statistic == "affected share" else orbits
    chosen = design(rows, resample, target)
    effect: float | None = None
    notes: list[str] = []
    if chosen.kind == "nested" and chosen.target == BOTH and under_many(rows, chosen.leaves.nesting):
        outer, inner = chosen.leaves.nesting.levels[:2]
        notes.append(f"{inner}s have the same names under several {outer}s: if these are the same {inner}s, this "
                     f"interval is too short for new ones; resample='{outer} × {inner}' is right for these")
    value = low = high = np.nan
    how = ""
    if of_share:
        value, low, high, how, effect, more = _share(rows, chosen, confidence_level, method)
        notes += more
        if rows is not orbits:
            how = how.replace("(exact)", "(exact, on units)")
    if not how:
        at = _Statistic.of(rows, chosen, statistic, q)
        value, low, high, how, more = _interval(at, chosen, confidence_level, n_resamples, method, rng)
        notes += more
        if of_share:
            low, high = max(low, 0.0), min(high, 1.0)
    words = statistic if isinstance(statistic, str) else getattr(statistic, "__name__", "function")
    if of_share:
        words = f"{words} of {of.value if isinstance(of, Outcome) else of}"
    units = chosen.leaves.units()
    return Estimate(rows.name, words, value, low, high, rows.unit, confidence_level, how, str(Nesting.parse(resample)),
                    next(iter(units.values())), int(orbits.used.sum()), orbits.excluded, orbits.settings,
                    orbits.shared_labels(), chosen.target, units, effect, tuple(notes))


def _check(statistic: Any, of: Any, confidence_level: Any, n_resamples: Any, method: Any) -> tuple[bool, float | None]:
    """Refuse nonsense; whether a share is asked for, and which quantile."""
    named = re.fullmatch(r"quantile (0?\.\d+|0|1|1\.0+)", statistic) if isinstance(statistic, str) else None
    q = float(named[1]) if named else 0.5 if isinstance(statistic, str) and statistic == "median" else None
    if not callable(statistic) and q is None and statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)} or a function; got {statistic!r}.")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}. Choose one of these.")
    check_number("confidence_level", confidence_level, lambda level: 0 < level < 1, "between 0 and 1 (default 0.95)")
    check_whole("n_resamples", n_resamples, 100, "a whole number of at least 100 (default 10000)")
    of_share = statistic in ("share", "affected share")
    if of_share != (of is not None):
        raise ValueError("a share needs of=..., the value or outcome that is counted." if of_share else
                         f"of goes with a share, not with {statistic!r}. Leave it out.")
    if method in OF_SHARES and not of_share:
        raise ValueError(f"method={method!r} is for shares; got statistic={statistic!r}. Leave method out.")
    return of_share, q


def _affected(rows: Rows, resample: str) -> Rows:
    """One row an innermost unit: does it hold an event?"""
    held = leaves(rows, Nesting.parse(resample))
    hit = np.bincount(held.of_row, rows.x, held.n_leaves) > 0
    first = np.zeros(held.n_leaves, dtype=np.int64)
    at = np.flatnonzero(rows.used)
    first[held.of_row[::-1]] = at[::-1]
    labels = {name: rows.labels[name][first] for name in held.nesting.levels}
    return Rows(rows.name, hit, None, np.ones(held.n_leaves, bool), labels, rows.excluded, rows.unit, rows.settings)


@dataclasses.dataclass(frozen=True, eq=False)
class _Statistic:
    """A statistic of weighted units, with the data that it needs."""

    at: Any
    values: np.ndarray
    smooth: bool

    @classmethod
    def of(cls, rows: Rows, chosen: Design, statistic: Any, q: float | None) -> _Statistic:
        x = rows.x.astype(float, copy=False)
        held = chosen.leaves
        if callable(statistic):
            return cls(resampling.AnyFunction(x, held, statistic), x, False)
        if q is not None:
            return cls(resampling.Quantile(x, held, q), x, False)
        sizes = held.sizes if rows.y is None else np.bincount(held.of_row, rows.y, held.n_leaves)
        if not sizes.sum():
            raise ValueError("the denominator of the ratio adds up to nought. Choose another variable.")
        return cls(resampling.Ratio(np.bincount(held.of_row, x, held.n_leaves), sizes), x, True)


def _interval(statistic: _Statistic, chosen: Design, level: float, n_resamples: int, method: str,
              rng: Any) -> tuple[float, float, float, str, list[str]]:
    """Value, interval, method and notes of anything but a share."""
    at, value = statistic.at, statistic.at.value
    if not np.isfinite(value):
        raise ValueError(f"the statistic is {value}; it must be a finite number. Check the function and the values.")
    if isinstance(at, resampling.Ratio):
        constant = bool((np.abs(at.columns[0]) <= 1e-15 * abs(value) * np.abs(at.columns[1])).all()) and \
            (statistic.values == statistic.values[0]).all()
    else:
        constant = bool((statistic.values == statistic.values[0]).all())
    if constant:
        return value, value, value, "constant (all orbits agree)", []
    n, few, notes = chosen.n_outer, "", []
    if method == "auto" and isinstance(at, resampling.Quantile):
        if found := _of_quantile(statistic, chosen, level):
            return value, *found, []
        notes.append(f"so few {chosen.leaves.nesting.levels[0]}s do not bound a quantile that far out: its interval is "
                     "a guess from the shape of the rest")
    if method == "auto":
        method = _policy(chosen, statistic.smooth)
    outer = chosen.leaves.nesting.levels[0]
    if method in ("BCa", "studentised", "percentile", "basic") and chosen.kind != "strata" and n < _SOME_UNITS:
        covers = 100 * intervals.bootstrap_coverage(n, level)
        few = (f"{n} {outer}s are few for a bootstrap: its {100 * level:g} % interval covers {covers:.0f} %"
               if method != "studentised" else "")
    if method == "two-way t" and chosen.kind != "crossed":
        raise ValueError(f"method='two-way t' is for crossed units, such as 'seed × prompt'; got "
                         f"{chosen.leaves.nesting!s}. Use method='t'.")
    if method in ("t", "skewed t", "two-way t"):
        return value, *_from_units(at, chosen, level, method), notes
    if method in ("BCa", "studentised") and chosen.kind in ("crossed", "nested"):
        raise ValueError(f"method={method!r} resamples units of one level; got {chosen.leaves.nesting!s}. Resample "
                         f"{outer!r} alone, or use method='t'.")
    if few:
        warnings.warn(f"{few}. Record more, or use method='auto'.", UserWarning, stacklevel=4)
        notes.append(few)
    plan = resampling.crossed_plan(chosen.leaves) if chosen.kind == "crossed" else \
        resampling.nested_plan(chosen.leaves, fixed=int(chosen.kind == "strata"))
    how = f"{method}, {n_resamples} resamples"
    if method == "studentised":
        if not isinstance(at, resampling.Ratio) or chosen.kind != "one":
            raise ValueError("method='studentised' needs a mean, ratio or share over units of one level. Use 'BCa', or "
                             "method='auto'.")
        known = _unit_spread(at, chosen, 0)
        off = resampling.replicates(plan, resampling.Studentised(at), n_resamples, rng)
        own = np.sqrt((at.columns[0] ** 2).sum() * n / (n - 1)) / at.columns[1].sum()  # as in each resample
        low, high = intervals.studentised(value, float(own), off, level)
        if known.error == 0:
            low = high = value
        return value, low, high, how, notes
    drawn = resampling.replicates(plan, at, n_resamples, rng)
    if bad := int((~np.isfinite(drawn)).sum()):
        raise ValueError(f"the statistic is not a finite number in {bad} of {n_resamples} resamples. Choose one that "
                         "is always defined, or resample larger units.")
    if method == "hierarchical t":
        known = intervals.Spread(float(drawn.std(ddof=1)) * np.sqrt(n / (n - 1)), n - 1, 0.0)
        low, high = intervals.student(value, known, level)
        return value, low, high, f"t({n - 1}), standard error of {n_resamples} resamples", notes
    if method == "basic":
        low, high = intervals.basic(value, drawn, level)
    elif method == "percentile":
        low, high = intervals.percentile(drawn, level)
    else:
        left_out = resampling.without(at, chosen.leaves, len(chosen.leaves.codes) - 1)
        low, high = intervals.bca(value, drawn, left_out, level, chosen.strata)
        if not (np.isfinite(low) and np.isfinite(high)):
            low, high = intervals.percentile(drawn, level)
            how = f"percentile (BCa is undefined here), {n_resamples} resamples"
    return value, low, high, how, notes


def _policy(chosen: Design, smooth: bool) -> str:
    """The method that holds for these units; `benchmarks/interval_coverage.py` measures it."""
    n = chosen.n_outer
    if chosen.kind in ("nested", "crossed"):
        return "skewed t"
    if smooth:
        return "skewed t" if n < _FEW_UNITS or chosen.kind == "strata" else "studentised"
    if n >= _SOME_UNITS:
        return "BCa"
    return "skewed t" if chosen.target != THESE else "hierarchical t"


def _of_quantile(statistic: _Statistic, chosen: Design, level: float) -> tuple[float, float, str] | None:
    """The interval of a quantile from that of the share below it; None where it lies too far out."""
    x, held = statistic.values, chosen.leaves
    below = ((x < statistic.at.value).astype(float) + (x <= statistic.at.value)) / 2  # a value that agrees is halfway
    share = resampling.Ratio(np.bincount(held.of_row, below, held.n_leaves), held.sizes)
    found = intervals.woodruff(x, statistic.at.q, float(below.var()), _known(share, chosen), level)
    return found and (*found, "Woodruff")


def _unit_spread(at: Any, chosen: Design, level: int) -> intervals.Spread:
    held = chosen.leaves
    left_out = resampling.without(at, held, level)
    if not np.isfinite(left_out).all():
        raise ValueError(f"the statistic is undefined without one of the {held.nesting.levels[level]}s. Record more.")
    return intervals.spread(left_out, held.of_units(level, held.sizes[None])[0], chosen.strata)


def _known(at: Any, chosen: Design) -> intervals.Spread:
    """The spread between the units that are resampled."""
    if chosen.kind == "crossed":
        return intervals.both(*(_unit_spread(at, chosen, i) for i in (0, 1)))
    return _unit_spread(at, chosen, len(chosen.leaves.codes) - 1 if chosen.kind == "strata" else 0)


def _from_units(at: Any, chosen: Design, level: float, method: str) -> tuple[float, float, str]:
    """Intervals of t from the spread between units."""
    held = chosen.leaves
    if method == "two-way t":
        first, second = (_unit_spread(at, chosen, i) for i in (0, 1))
        cells = group(np.arange(held.n_leaves)[None], Nesting((ORBIT,)))
        left_out = resampling.without(at, dataclasses.replace(cells, of_row=held.of_row, sizes=held.sizes), 0)
        known = intervals.two_way(first, second, intervals.spread(left_out, held.sizes))
    else:
        known = _known(at, chosen)
    shape = intervals.skewed_student if method == "skewed t" else intervals.student
    low, high = shape(at.value, known, level)
    words = {"t": "", "skewed t": "skewed ", "two-way t": "two-way "}[method]
    jackknife = "" if isinstance(at, resampling.Ratio) else ", jackknife"
    return low, high, f"{words}t({known.freedom:.3g}){jackknife}"


def _share(rows: Rows, chosen: Design, level: float,
           method: str) -> tuple[float, float, float, str, float | None, list[str]]:
    """Value, interval, method, design effect and notes of a share; no method where it is a mean like others."""
    held, x = chosen.leaves, rows.x
    value, n = float(x.mean()), len(x)
    effective = counted(rows, chosen, level)
    notes = share_notes(rows, chosen, effective, level)
    if method not in ("auto", *OF_SHARES):
        return value, np.nan, np.nan, "", effective.effect, notes
    events = np.bincount(held.of_row, x, held.n_leaves)
    seen = min((events > 0).sum(), (events < held.sizes).sum())
    # with 40 events in as many of 320 units a bootstrap covers 93.7 %
    if method == "auto" and chosen.kind == "one" and n > held.n_leaves >= _FEW_UNITS and \
            seen >= max(10, min(50, held.n_leaves // 2)):
        return value, np.nan, np.nan, "", effective.effect, notes
    if method == "Wilson":
        low, high = wilson(effective.events, effective.n, level, np.inf)
        name = "Wilson"
    else:
        low, high = clopper_pearson(effective.events, effective.n, level)
        name = "Clopper-Pearson"
    why = "exact" if effective.n == n and effective.how == "orbits independent" else \
        effective.how if effective.effect is None else f"Korn-Graubard, {effective.how}"
    if method == "auto" and effective.effect is not None and n > held.n_leaves:
        # an exact interval does not know that shares of units have a long tail
        known = _known(resampling.Ratio(events, held.sizes), chosen)
        further = intervals.skewed_student(value, known, level)
        if known.skewness > 0 and further[1] > high:
            high, name = min(further[1], 1.0), f"{name}, above skewed t"
        elif known.skewness < 0 and further[0] < low:
            low, name = max(further[0], 0.0), f"{name}, below skewed t"
    return value, low, high, f"{name} ({why})", effective.effect, notes


def counted(rows: Rows, chosen: Design, level: float) -> Effective:
    """Effective numbers of the rows of a share."""
    held = chosen.leaves
    # every row its own unit: no runs within it
    labels = {k: v[rows.used] for k, v in rows.labels.items()} if len(rows.x) > held.n_leaves else {}
    return effective_counts(rows.x, held, level, strata=chosen.kind == "strata", outer=chosen.target != THESE,
                            found=runs(rows.x, labels) if labels else None)


def share_notes(rows: Rows, chosen: Design, effective: Effective, level: float) -> list[str]:
    """What must be said beside a share."""
    held, p, notes = chosen.leaves, float(rows.x.mean()), []
    m, inner = held.n_leaves, held.nesting.levels[-1]
    if p == 0 and m < len(rows.x):
        notes.append(f"0 of {m} {inner}s affected: whatever the dependence within them, the share is below "
                     f"{1 - (1 - level) ** (1 / m):.2g} (one-sided {100 * level:g} %)")
    if 0 < p < 1 and m < len(rows.x):
        few = len(held.codes) - 1 if chosen.target == THESE else \
            int(np.argmin([held.n_units(i) for i in range(len(held.codes))]))
        events, sizes = held.of_units(few, np.stack([np.bincount(held.of_row, rows.x, m), held.sizes]))
        shares, total = events / sizes, p * len(rows.x)
        # the spread that counting alone would give is taken off
        between = max(float(shares.var(ddof=1)) - float((shares / sizes).mean()) * (effective.effect or 1.0) ** 0.5, 0)
        if len(shares) < 100 and total >= 10 and np.sqrt(between) > 0.8 * p:
            notes.append(f"{len(shares)} {held.nesting.levels[few]}s whose shares vary by "
                         f"{100 * np.sqrt(between) / p:.0f} % of their mean: an interval of 95 % then "
                         "covers 92 to 95 %")
    if effective.n < _EXACT_ROWS:
        notes.append(f"as good as {effective.n:.0f} independent orbits: too few to quote the share")
    return notes


def _of_blocks(rows: Rows, kind: str, statistic: Any, q: float | None, length: float | None, level: float,
               n_resamples: int, method: str, rng: Any) -> Estimate:
    """The estimate of a statistic of steps."""
    if method not in ("auto", "percentile", "basic"):
        raise ValueError(f"blocks of steps know the methods auto, percentile and basic; got {method!r}.")
    function: Any = statistic if callable(statistic) else np.mean if q is None else lambda x: np.quantile(x, q)
    value, low, high, how, n_blocks, notes = blocks.interval(rows.x, function, kind, length, level, n_resamples,
                                                             method, rng)
    words = statistic if isinstance(statistic, str) else getattr(statistic, "__name__", "function")
    return Estimate(rows.name, words, value, low, high, rows.unit, level, how, "block", n_blocks, len(rows.x),
                    rows.excluded, rows.settings, rows.shared_labels(), THESE,
                    {"orbit": len(rows.x), "block": n_blocks}, None, tuple(notes))
