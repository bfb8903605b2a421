"""Do conditions differ, by how much, and would anybody have seen it?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.statistics import adjust as adjusting
from dynloop.statistics import conditions as reading
from dynloop.statistics import permutation, two_samples
from dynloop.statistics.nesting import ORBIT, Nesting
from dynloop.statistics.two_samples import TwoSamples

if TYPE_CHECKING:
    import pandas

TESTS = ("t", "permutation", "webb")
DIFFERENCES = ("difference", "ratio")
LEAST_UNITS = 3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One condition against another, and everything that is needed to believe it.

    Attributes:
        name: the measurement and the variable.
        statistic: what was computed, in words.
        condition, baseline: the two names.
        difference: "difference" (condition - baseline) or "ratio" (condition / baseline).
        value, low, high: of the difference or ratio, and its interval; NaN where no unit tells it.
        unit: of the three; "" for a ratio.
        means: of the two conditions, by name.
        confidence_level: nominal coverage.
        method: how the interval was made.
        test: how the p-value was found.
        p_value: two-sided, of no difference.
        p_error: its Monte-Carlo standard error; 0 where it is exact.
        p_adjusted: for the family of contrasts.
        adjust: how.
        smallest_p: the smallest p-value that this test can give with so few units; 0 for t.
        effect_size, effect_low, effect_high: Hedges' g over the SD between outermost units, with its interval.
        margin: (low, high) within which conditions count as equivalent, or None.
        p_equivalence: of two one-sided tests, adjusted like `p_adjusted`; None without a margin.
        equivalent: whether these show equivalence at 1 - confidence_level; None without a margin.
        target: of what new recordings the interval speaks.
        resample: what counts as independent.
        paired: labels whose values are the same units in both conditions.
        n: by condition, units of every level and orbits.
        excluded: by condition, orbits that did not enter, by outcome.
        settings: of the analyzer.
        labels: that all orbits share.
        notes: sentences on what to look at.
    """

    name: str
    statistic: str
    condition: str
    baseline: str
    difference: str
    value: float
    low: float
    high: float
    unit: str
    means: Mapping[str, float]
    confidence_level: float
    method: str
    test: str
    p_value: float
    p_error: float
    p_adjusted: float
    adjust: str
    smallest_p: float
    effect_size: float
    effect_low: float
    effect_high: float
    margin: tuple[float, float] | None
    p_equivalence: float | None
    equivalent: bool | None
    target: str
    resample: str
    paired: tuple[str, ...]
    n: Mapping[str, Mapping[str, int]]
    excluded: Mapping[str, Mapping[str, int]]
    settings: Mapping[str, Any]
    labels: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists, ready for JSON (which has no NaN: such numbers are None)."""
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                value = {k: dict(v) if isinstance(v, Mapping) else v for k, v in value.items()}
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, float) and not math.isfinite(value):
                value = None
            plain[field.name] = value
        return plain

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        joined = f"{self.condition} {'/' if self.difference == 'ratio' else '-'} {self.baseline}"
        p = f"p = {self.p_value:.3g}"
        if self.p_error:
            p += f" ± {self.p_error:.1g}"
        if self.adjust != "none":
            p += f", adjusted {self.p_adjusted:.3g} ({self.adjust})"
        lines = [f"{self.name}, {joined}: {self.statistic} {self.value:.4g}{unit} [{self.low:.4g}, {self.high:.4g}] "
                 f"{100 * self.confidence_level:g} % {self.method}",
                 f"{p}, {self.test}; Hedges g {self.effect_size:.3g} [{self.effect_low:.3g}, {self.effect_high:.3g}] "
                 f"in SDs between {self.resample.split()[0]}s; for {self.target}"]
        if self.margin is not None:
            p_margin = "" if self.p_equivalence is None else f", p = {self.p_equivalence:.3g} (TOST)"
            lines.append(f"{'equivalent' if self.equivalent else 'equivalence not shown'} within "
                         f"[{self.margin[0]:.4g}, {self.margin[1]:.4g}]{p_margin}")
        for condition in (self.condition, self.baseline):
            counts = ", ".join(f"{n} {level}{'s' if n != 1 else ''}" for level, n in self.n[condition].items())
            out = "".join(f"; {n} {outcome}" for outcome, n in self.excluded[condition].items())
            lines.append(f"{condition}: {self.means[condition]:.4g}{unit if self.difference != 'ratio' else ''} of "
                         f"{counts}{out}")
        return "\n".join([*lines, *self.notes])


@dataclasses.dataclass(frozen=True)
class Comparisons:
    """The contrasts of one family, in order; a sequence of `Comparison`."""

    contrasts: tuple[Comparison, ...]

    def __len__(self) -> int:
        return len(self.contrasts)

    def __getitem__(self, index: Any) -> Any:
        return self.contrasts[index]

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.contrasts)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, ready for JSON."""
        return {"contrasts": [one.to_dict() for one in self.contrasts]}

    def to_frame(self) -> pandas.DataFrame:
        """A row a contrast; mappings are joined into texts."""
        import pandas as pd

        rows = []
        for one in self.contrasts:
            row = {k: v for k, v in one.to_dict().items() if k not in ("means", "n", "excluded", "margin")}
            row = {k: "; ".join(f"{a}={b}" for a, b in v.items()) if isinstance(v, dict) else
                   " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}
            margin = one.margin or (math.nan, math.nan)
            row |= {"margin_low": margin[0], "margin_high": margin[1]}
            for side, name in (("condition", one.condition), ("baseline", one.baseline)):
                row[f"{side}_mean"] = one.means[name]
                row[f"{side}_n"] = "; ".join(f"{k}={v}" for k, v in one.n[name].items())
                row[f"{side}_excluded"] = "; ".join(f"{k}={v}" for k, v in one.excluded[name].items())
            rows.append(row)
        return pd.DataFrame(rows)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.contrasts))


def compare(conditions: Any, *, resample: str, statistic: str | Callable[[np.ndarray], float] = "mean",
            variable: str | None = None, of: str | Outcome | None = None, by: str | None = None,
            paired: str | Sequence[str] | None = None, baseline: str | None = None, difference: str = "difference",
            test: str | None = None, confidence_level: float = 0.95, margin: float | tuple[float, float] | None = None,
            adjust: str | None = "holm", n_resamples: int = 9999, rng: Any = 0) -> Comparisons:
    """Differences between conditions, tested between independent units: never between tokens.

    Tokens are reduced to prompts and these to seeds, as `resample` says; each unit counts once. With unit values x_i of
    the one and y_i of the other condition the interval is Welch's

        mean x - mean y -+ t_df sqrt(s_x^2 / n_x + s_y^2 / n_y),

    or that of the paired differences; of a ratio Fieller's, all rho for which mean x - rho mean y cannot be told from 0
    by that t. Crossed units ("seed × prompt") add to the variance what varies between prompts.

    Args:
        conditions: name -> Measurement or frame, two or more; or one of these and `by`.
        resample: what is independent, the outermost first: "seed", "seed > prompt" (orbits are averaged to prompts,
            these to seeds), "seed × prompt" (the same prompts under every seed, and the answer is to hold for new
            ones), "prompt" (the answer holds for these models), or "orbit". No default, as in `estimate`.
        statistic: "mean", "share" (with `of`), "median", or a function of a one-dimensional array; the last two are
            taken of all orbits of an outermost unit.
        variable: which variable; by default the main one. A frame needs it.
        of: for shares: a value of the variable (of the orbits that were answered), or an `Outcome` (of all orbits).
        by: the label that divides one measurement, or one frame, into conditions.
        paired: label or labels whose values are the same units in all conditions. The outermost ("seed" where seed 3
            has the same initialisation and data order everywhere; "prompt" with resample="prompt") pairs the test.
            Another ("prompt" with resample="seed") keeps the prompts that all seeds of all conditions have, each
            counted once, so that the effects of prompts cancel.
        baseline: compare the others with this one; None compares every later condition with every earlier one.
        difference: "difference", or "ratio" (condition / baseline).
        test: of the p-value: "t" (Welch, paired, or with crossed units that of the interval); "permutation" of
            whole units' labels, or of signs where they are paired: exact up to 20,000 arrangements, Monte-Carlo with
            its own error above; "webb" (wild cluster bootstrap). None takes a permutation for shares, whose unit
            values are skewed, if it can give a p-value that is small enough for all contrasts, and t otherwise.
        confidence_level: nominal coverage; 1 - confidence_level is the level of the tests.
        margin: what difference is too small to matter, for two one-sided tests (TOST): a positive number m for
            [-m, m], of a ratio m > 1 for [1/m, m], or (low, high).
        adjust: p-values over the contrasts: "holm", "fdr_bh" (Benjamini-Hochberg), or None.
        n_resamples: random arrangements of a Monte-Carlo test.
        rng: seed or generator of these.

    Returns:
        The contrasts, each a `Comparison`.

    Raises:
        ValueError: fewer than 3 units in a condition, labels that do not match, unknown names.

    Misleads:
        No seed, no claim about training: with resample="prompt" a small p says that these two models differ on new
        prompts, as two seeds of one recipe do as well. The t tests take unit means as normal: with 5 skewed seeds they
        reject too seldom (2.8 % for 5 % with exponential ones), and all tests do where most units have no event.
        Permutation is of equal distributions: it rejects 7 % for 5 % where means are equal and one SD between 5 seeds
        is three times the other. "Not different" is not "equal": give a margin. The family of `adjust` is the contrasts
        of this one call; intervals are not adjusted. An interval and a p-value of another test may disagree near the
        level. The interval of g for pairs takes the ratio of the two SDs as known.

    Source:
        Welch 1947, Biometrika 34, 28; Fieller 1954, J. Royal Statistical Society B 16, 175; Schuirmann 1987,
        J. Pharmacokinetics 15, 657; Phipson and Smyth 2010, Stat. Appl. Genetics 9, 39; Hedges 1981, J. Educational
        Statistics 6, 107; Miller 2024 (arXiv 2411.00640) on evaluations of language models.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome
        >>> from dynloop.statistics.compare import compare
        >>> rng = np.random.default_rng(0)
        >>> seed, prompt = np.repeat(np.arange(5), 320), np.tile(np.repeat(np.arange(64), 5), 5)
        >>> def run(shift):
        ...     rate = 0.8 + shift + 0.02 * rng.normal(size=5)[seed] + 0.05 * rng.normal(size=1600)
        ...     return Measurement("rate", {"rate": rate}, [Outcome.FOUND] * 1600,
        ...                        labels={"seed": seed, "prompt": prompt})
        >>> print(compare({"plain": run(0.0), "injected": run(0.08)}, resample="seed", margin=0.02))
        rate, injected - plain: mean 0.07946 [0.05764, 0.1013] 95 % Welch t, 4.76 degrees of freedom
        p = 0.000283, Welch t; Hedges g 5.43 [2.57, 8.24] in SDs between seeds; for new seeds, all else as recorded
        equivalence not shown within [-0.02, 0.02], p = 0.999 (TOST)
        injected: 0.8797 of 5 seeds, 1600 orbits
        plain: 0.8003 of 5 seeds, 1600 orbits
        injected and plain have the same seeds: if these stand for the same initialisation and data, paired='seed' ...
    """
    _check(difference, test, adjust, confidence_level, n_resamples)
    bounds = _bounds(margin, difference)
    nesting = Nesting.parse(resample)
    pairing = _pairing(paired, nesting)
    needed = [level for level in dict.fromkeys((*nesting.levels, *pairing)) if level != ORBIT]
    found = reading.read(conditions, by=by, statistic=statistic, variable=variable, of=of, needed=needed)
    wanted = reading.contrasts(list(found), baseline)
    units = reading.reduce(found, nesting, pairing, statistic)
    outer = nesting.levels[0]
    for name, table in units.tables.items():
        if len(table) < LEAST_UNITS:
            raise ValueError(
                f"a claim about new {outer}s needs at least {LEAST_UNITS} {outer}s in every condition; {name} has "
                f"{len(table)}. Record more, or ask about these models alone, resampling what lies within: "
                "resample='prompt'.")
        if nesting.crossed and table.shape[1] < LEAST_UNITS:
            raise ValueError(f"a claim about new {nesting.levels[1]}s needs at least {LEAST_UNITS}; {name} has "
                             f"{table.shape[1]}. Record more, or name the outer level alone: resample={outer!r}.")
    rng = np.random.default_rng(rng)
    raw = [_contrast(units, found, pair, nesting, pairing, statistic, of, difference,
                     test or _test(units, pair, nesting, pairing, of, (1 - confidence_level) / len(wanted)),
                     confidence_level, bounds, n_resamples, rng) for pair in wanted]
    return Comparisons(_adjusted(raw, adjust, 1 - confidence_level))


def _check(difference: str, test: str | None, adjust: str | None, confidence_level: float, n_resamples: int) -> None:
    for name, value, known in (("difference", difference, DIFFERENCES), ("test", test, (*TESTS, None)),
                               ("adjust", adjust, (*adjusting.METHODS, None))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}. Choose one of these.")
    check_number("confidence_level", confidence_level, lambda v: 0.5 < v < 1,
                 "a number between 0.5 and 1 (the default is 0.95)")
    check_whole("n_resamples", n_resamples, 99, "a whole number of at least 99 (the default is 9999)")


def _bounds(margin: Any, difference: str) -> tuple[float, float] | None:
    """The margin as (low, high), checked."""
    if margin is None:
        return None
    none, ratio = (1.0 if difference == "ratio" else 0.0), difference == "ratio"
    if isinstance(margin, tuple | list) and len(margin) == 2:
        low, high = margin
        for side, fits in ((low, lambda v: v < none), (high, lambda v: none < v < math.inf)):
            check_number("margin", side, fits, f"(low, high) on both sides of {none:g}")
        check_number("margin", low, lambda v: v > (0 if ratio else -math.inf), "(low, high), both finite"
                     + (" and positive" if ratio else ""))
        return float(low), float(high)
    check_number("margin", margin, lambda v: none < v < math.inf,
                 f"a number above {none:g}, or (low, high) on both sides of it")
    return (1 / float(margin), float(margin)) if ratio else (-float(margin), float(margin))


def _pairing(paired: Any, nesting: Nesting) -> tuple[str, ...]:
    if paired is None:
        return ()
    labels = (paired,) if isinstance(paired, str) else tuple(paired) if isinstance(paired, tuple | list) else ()
    if not labels or not all(isinstance(label, str) and label for label in labels) or len(set(labels)) < len(labels):
        raise ValueError(f"paired must be a label, several, or None; got {paired!r}.")
    if ORBIT in labels:
        raise ValueError("paired='orbit' says nothing: orbits are matched by a label. Name one that is unique to each "
                         "orbit of a condition, and resample it.")
    return labels


def _test(units: reading.Units, names: tuple[str, str], nesting: Nesting, pairing: tuple[str, ...], of: Any,
          level: float) -> str:
    """The test where none was named: permutation for shares, if its smallest p-value is below the level."""
    n, m = (len(units.tables[name]) for name in names)
    ways = 2.0**n if nesting.levels[0] in pairing else math.comb(n + m, n)
    return "permutation" if of is not None and not nesting.crossed and level * ways >= 2 else "t"


def _contrast(units: reading.Units, found: Mapping[str, reading.Answers], names: tuple[str, str], nesting: Nesting,
              pairing: tuple[str, ...], statistic: str | Callable, of: Any, difference: str, test: str, level: float,
              bounds: tuple[float, float] | None, n_resamples: int, rng: np.random.Generator) -> Comparison:
    """One contrast, not yet adjusted."""
    condition, baseline = names
    outer, inner = nesting.levels[0], nesting.levels[1] if nesting.crossed else ""
    pair = TwoSamples(units.tables[baseline], units.tables[condition], paired=outer in pairing,
                      crossed=nesting.crossed, columns_paired=inner in pairing)
    ratio = difference == "ratio"
    mean_a, mean_b = pair.means
    if ratio and mean_a == 0:
        raise ValueError(f"the {'share' if of is not None else 'mean'} of {baseline} is 0: there is no ratio to it. "
                         "Use difference='difference'.")
    gap, error, df = pair.at()
    low, high = (two_samples.ratio_interval if ratio else two_samples.difference_interval)(pair, level)
    a, b = pair.a.mean(1), pair.b.mean(1)
    notes = list(units.notes)
    kind = "paired t" if pair.paired else "Welch t"
    method = f"{kind}, {df:.3g} degrees of freedom"
    if nesting.crossed:
        method = f"two-way t ({outer}s and {inner}s), {df:.3g} degrees of freedom"
    if ratio:
        method = f"Fieller, {method}"
        if math.isinf(low):
            notes.append(f"{baseline} cannot be told from 0, so that no ratio is excluded: use "
                         "difference='difference'.")
    exact = permutation.sign_flip(b - a, n_resamples=n_resamples, rng=rng) if pair.paired and (
        test == "permutation" or error == 0) else permutation.label_permutation(
        a, b, n_resamples=n_resamples, rng=rng) if test == "permutation" or error == 0 else None
    if test == "webb" and error > 0:
        p, p_error, smallest, how = permutation.webb_bootstrap(a, b, paired=pair.paired, n_resamples=n_resamples,
                                                               rng=rng)
    elif exact is not None:
        p, p_error, smallest, how = exact
    else:
        p, p_error, smallest, how = two_samples.two_sided(gap, error, df), 0.0, 0.0, (
            "two-way t" if nesting.crossed else kind)
    if error == 0:
        agree = f"all pairs of {outer}s differ by the same" if pair.paired else f"all {outer}s of a condition agree"
        notes.append(f"{agree}: there is no spread from which to make an interval"
                     + (f", and {how} gives the p-value." if test != "permutation" else "."))
        low = high = math.nan
    if nesting.crossed and how not in ("two-way t",):
        notes.append(f"The p-value speaks of new {outer}s with these {inner}s; the interval of new {inner}s, too.")
    alpha = 1 - level
    if smallest > alpha:
        many = f"{len(a)} pairs" if pair.paired else f"{len(b)} {outer}s against {len(a)}"
        notes.append(f"No p-value below {smallest:.3g} can come out of {many} by this test: nothing is significant at "
                     f"{alpha:.3g}: use test='t', or record more {outer}s.")
    if not pair.paired and reading.shared_units(found, outer, condition, baseline):
        notes.append(f"{condition} and {baseline} have the same {outer}s: if these stand for the same "
                     f"{'initialisation and data' if outer == 'seed' else 'thing in both'}, paired={outer!r} "
                     "takes out what they share.")
    if inner and inner not in pairing and reading.shared_units(found, inner, condition, baseline):
        notes.append(f"{condition} and {baseline} have the same {inner}s: if these are the same in both, "
                     f"paired={inner!r} takes out what they share.")
    if repeated := reading.repeats(found, nesting, names):
        second = nesting.levels[1]
        notes.append(f"{second}s have the same names under several {outer}s: if these are the same {second}s, nothing "
                     f"is said of new ones. For these as well: resample='{outer} × {second}', paired={second!r}.")
    effect = two_samples.hedges_g(pair, level)
    p_tost = two_samples.equivalence(pair, *bounds, ratio=ratio)[2] if bounds else None
    words = statistic if isinstance(statistic, str) else getattr(statistic, "__name__", "function")
    if of is not None:
        words = f"{words} of {of.value if isinstance(of, Outcome) else of}"
    one, other = found[condition], found[baseline]
    return Comparison(
        one.name, words, condition, baseline, difference, mean_b / mean_a if ratio else gap, low, high,
        "" if ratio else one.unit, {condition: mean_b, baseline: mean_a}, level, method, how, p, p_error, p, "none",
        smallest, *effect, bounds, p_tost, None, _target(nesting, repeated), str(nesting), pairing,
        {name: units.n[name] for name in names}, {name: dict(found[name].excluded) for name in names},
        {k: v for k, v in one.settings.items() if other.settings.get(k) == v},
        {k: v for k, v in one.shared.items() if k in other.shared and other.shared[k] == v}, tuple(notes))


def _target(nesting: Nesting, repeated: bool) -> str:
    """Of what new recordings the interval speaks; not of units that may be the same under every outer one."""
    if nesting.levels[0] == ORBIT:
        return "new orbits of these models"
    new = " and ".join(f"new {level}s" for level in nesting.levels[:1 if repeated else None])
    if "seed" not in nesting.levels:
        return f"{new}, these models"
    return f"{new}, all else as recorded"


def _adjusted(raw: list[Comparison], method: str | None, alpha: float) -> tuple[Comparison, ...]:
    """The family, its p-values adjusted, and the verdicts on equivalence."""
    many = method is not None and len(raw) > 1
    p = np.array([one.p_value for one in raw])
    tost = np.array([math.nan if one.p_equivalence is None else one.p_equivalence for one in raw])
    how = "none"
    if many and method is not None:
        p, tost = adjusting.adjust_pvalues(p, method=method), adjusting.adjust_pvalues(tost, method=method)
        how = f"{adjusting.WORDS[method]}, {len(raw)} contrasts"
    return tuple(dataclasses.replace(
        one, p_adjusted=float(q), adjust=how,
        p_equivalence=None if one.margin is None else float(e),
        equivalent=None if one.margin is None else bool(e <= alpha)) for one, q, e in zip(raw, p, tost, strict=True))
