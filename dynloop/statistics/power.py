"""What could a study have seen, and how many seeds does the next one need?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.statistics import conditions as reading
from dynloop.statistics.nesting import Nesting

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class VarianceComponents:
    """Standard deviations between seeds, prompts, and prompts within one seed.

    Attributes:
        seed: SD between seeds of what each would give with endless prompts.
        prompt: SD between prompts, common to all seeds. It cancels between conditions that share their prompts.
        cell: SD of one prompt under one seed beyond both: interaction, and the noise of its tokens.
        unit: of the three.
    """

    seed: float
    prompt: float = 0.0
    cell: float = 0.0
    unit: str = ""

    def __post_init__(self) -> None:
        for name in ("seed", "prompt", "cell"):
            check_number(name, getattr(self, name), lambda v: 0 <= v < math.inf, "a standard deviation, 0 or more")
        if self.seed == self.cell == 0:
            raise ValueError("seed and cell are both 0: nothing varies, and every difference is seen.")

    def of_seed_mean(self, prompts: int | None = None) -> float:
        """SD between seeds of a mean over so many prompts, shared by all; None for endless ones."""
        return math.hypot(self.seed, 0.0 if prompts is None else self.cell / math.sqrt(prompts))

    @classmethod
    def of(cls, pilot: Any, *, resample: str, statistic: str = "mean", variable: str | None = None,
           of: str | Outcome | None = None) -> VarianceComponents:
        """The components of a pilot study: one condition, analysis of variance.

        With mean squares between seeds, between prompts and of cells, cell^2 = MS_cell,
        seed^2 = (MS_seed - MS_cell) / n_prompts and prompt^2 = (MS_prompt - MS_cell) / n_seeds, not below 0.

        Args:
            pilot: a measurement or frame.
            resample: "seed × prompt" (the same prompts under every seed) or "seed > prompt" (prompts of its own under
                each: their SD is part of `cell`); the names are those of the labels.
            statistic, variable, of: as in `compare`; "mean" or "share".

        Raises:
            ValueError: no two levels, fewer than 2 units of either.

        Misleads:
            5 seeds tell their SD within a factor of .6 to 2.9 (95 %). Plan with the upper end, too.
        """
        nesting = Nesting.parse(resample)
        if len(nesting.levels) != 2 or statistic not in ("mean", "share"):
            raise ValueError('components need two levels, "seed × prompt" or "seed > prompt", and a mean or share; got '
                             f"{resample!r} and {statistic!r}.")
        found = {"pilot": reading.answers(pilot, statistic=statistic, variable=variable, of=of, needed=nesting.levels)}
        if not nesting.crossed:
            return cls._nested(found["pilot"], nesting)
        table = reading.reduce(found, nesting, (), statistic).tables["pilot"]
        n, m = table.shape
        if min(n, m) < 2:
            raise ValueError(f"components need at least 2 {nesting.levels[0]}s and 2 {nesting.levels[1]}s; got {n} and "
                             f"{m}.")
        rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        noise = float((rest**2).sum()) / ((n - 1) * (m - 1))
        between, across = m * table.mean(1).var(ddof=1), n * table.mean(0).var(ddof=1)
        return cls(math.sqrt(max(0.0, (between - noise) / m)), math.sqrt(max(0.0, (across - noise) / n)),
                   math.sqrt(noise), found["pilot"].unit)

    @classmethod
    def _nested(cls, found: reading.Answers, nesting: Nesting) -> VarianceComponents:
        codes = nesting.codes(found.labels, np.ones(len(found.x), bool))
        cells = np.bincount(codes[1], found.x) / np.bincount(codes[1])
        seed_of = np.zeros(len(cells), dtype=np.int64)
        seed_of[codes[1]] = codes[0]
        sizes = np.bincount(seed_of)
        if len(sizes) < 2 or sizes.min() < 2:
            raise ValueError(f"components need at least 2 {nesting.levels[0]}s, each with 2 {nesting.levels[1]}s; got "
                             f"{len(sizes)} with {sizes.min()} or more.")
        means = np.bincount(seed_of, cells) / sizes
        noise = float(((cells - means[seed_of])**2).sum()) / (len(cells) - len(sizes))
        between = float(means.var(ddof=1)) - noise * float((1 / sizes).mean())
        return cls(math.sqrt(max(0.0, between)), 0.0, math.sqrt(noise), found.unit)


def power(effect: float, *, seeds: int, components: VarianceComponents | float, prompts: int | None = None,
          paired: bool = False, correlation: float = 0.0, margin: float | None = None,
          confidence_level: float = 0.95) -> float:
    """The chance that a planned study sees a difference, or shows equivalence.

    With s the SD between seed means, n seeds a condition and f = 2 n - 2 degrees of freedom, the t statistic is
    noncentral t with noncentrality effect / (s sqrt(2 / n)); with paired seeds f = n - 1 and
    s^2 = s_seed^2 (1 - r) + s_cell^2 / n_prompts. The chance to show equivalence is that both one-sided tests reject.

    Args:
        effect: the true difference between the conditions, in the unit of the components.
        seeds: in each condition.
        components: the variances, or one number: the SD between seed means (with paired seeds and no correlation, that
            of their differences over sqrt 2).
        prompts: in each seed, the same in both conditions; None for endless ones.
        paired: the seeds are paired.
        correlation: between the two members of a pair, of what seeds differ by.
        margin: None for a two-sided test of no difference; a number m for equivalence within [-m, m].
        confidence_level: 1 minus the level of the test.

    Returns:
        A probability.

    Raises:
        ValueError: settings that do not fit.

    Misleads:
        Components of a pilot of few seeds are uncertain, and so is the power. Power of the effect that was just
        observed says nothing that its p-value did not say. The t test is Student's; Welch's is weaker by about two
        hundredths with 5 seeds.

    Source:
        Cohen 1988; Schuirmann 1987, J. Pharmacokinetics 15, 657; Phillips 1990, same journal 18, 137.

    Example:
        >>> from dynloop.statistics.power import power
        >>> print(round(power(2.0, seeds=5, components=1.0), 3), round(power(0, seeds=5, components=1.0, margin=2), 2))
        0.791 0.78
    """
    check_number("effect", effect, lambda v: -math.inf < v < math.inf, "a finite number")
    error, df = _design(seeds, components, prompts, paired, correlation, confidence_level)
    return _power(float(effect), error, df, confidence_level, _margin(margin))


def detectable_effect(*, seeds: int, components: VarianceComponents | float, prompts: int | None = None,
                      paired: bool = False, correlation: float = 0.0, confidence_level: float = 0.95,
                      power: float = 0.8) -> float:
    """The smallest true difference that a planned study sees with the given power.

    The effect at which `power` reaches `power`. In SDs between seeds, for 80 %: 3.07 with 3 seeds, 2.02 with 5, 1.32
    with 10, .91 with 20; in SDs of the differences of paired seeds 1.68 with 5, 1.00 with 10.

    Args:
        seeds, components, prompts, paired, correlation, confidence_level: as in `power`.
        power: the chance to see it.

    Returns:
        A difference in the unit of the components.

    Raises:
        ValueError: settings that do not fit.

    Misleads:
        As `power`. More prompts do not help once seeds differ by more than their cells' noise: more seeds do.

    Source:
        As `power`.

    Example:
        >>> from dynloop.statistics.power import VarianceComponents, detectable_effect
        >>> few = VarianceComponents(seed=0.22, cell=0.2)
        >>> print([round(detectable_effect(seeds=n, prompts=m, components=few), 3) for n, m in ((5, 64), (5, 1024),
        ...                                                                                   (10, 64))])
        [0.448, 0.446, 0.293]
    """
    from scipy import optimize

    check_number("power", power, lambda v: 0 < v < 1, "a number between 0 and 1 (the default is 0.8)")
    error, df = _design(seeds, components, prompts, paired, correlation, confidence_level)
    if power <= 1 - confidence_level:
        raise ValueError(f"power must exceed the level of the test, {1 - confidence_level:.3g}; got {power!r}.")
    high = error
    while _power(high, error, df, confidence_level, None) < power:
        high *= 2
    return float(optimize.brentq(lambda e: _power(e, error, df, confidence_level, None) - power, 0.0, high,
                                 xtol=1e-12 * error))


def power_table(components: VarianceComponents | float, *, seeds: Iterable[int] = (3, 5, 6, 8, 10, 20),
                prompts: Iterable[int | None] = (None,), paired: bool = False, correlation: float = 0.0,
                margin: float | None = None, confidence_level: float = 0.95, power: float = 0.8) -> pandas.DataFrame:
    """What each planned study could see: a row for every number of seeds and prompts.

    Args:
        components, paired, correlation, confidence_level, power: as in `detectable_effect`.
        seeds, prompts: numbers to look at; None stands for endless prompts.
        margin: adds the chance to show equivalence within it where there is no difference.

    Returns:
        A frame with seeds, prompts, standard_error (of the difference), detectable_effect and, with a margin,
        equivalence_power.

    Raises:
        ValueError: settings that do not fit.

    Misleads:
        As `power`.

    Source:
        As `power`.

    Example:
        >>> from dynloop.statistics.power import power_table
        >>> print(power_table(1.0, seeds=(5, 10), margin=2.0).round(2).to_string(index=False))
         seeds prompts  standard_error  detectable_effect  equivalence_power
             5    None            0.63               2.02               0.78
            10    None            0.45               1.32               0.99
    """
    import pandas as pd

    rows = []
    for n in seeds:
        for m in prompts:
            error, df = _design(n, components, m, paired, correlation, confidence_level)
            row: dict[str, Any] = {
                "seeds": n, "prompts": m, "standard_error": error,
                "detectable_effect": detectable_effect(
                    seeds=n, components=components, prompts=m, paired=paired, correlation=correlation,
                    confidence_level=confidence_level, power=power)}
            if margin is not None:
                row["equivalence_power"] = _power(0.0, error, df, confidence_level, _margin(margin))
            rows.append(row)
    if not rows:
        raise ValueError("seeds and prompts must each name at least one number; got none.")
    table = pd.DataFrame(rows)
    return table.astype({"prompts": object}).where(table.notna(), None).astype(
        {c: float for c in table.columns if c not in ("seeds", "prompts")})


def _margin(margin: float | None) -> float | None:
    if margin is not None:
        check_number("margin", margin, lambda v: 0 < v < math.inf, "a positive number, or None")
    return margin


def _design(seeds: int, components: VarianceComponents | float, prompts: int | None, paired: bool,
            correlation: float, confidence_level: float) -> tuple[float, float]:
    """Standard error of the difference and its degrees of freedom."""
    check_whole("seeds", seeds, 2, "a whole number of at least 2 in each condition")
    if prompts is not None:
        check_whole("prompts", prompts, 1, "a whole number of at least 1, or None for endless prompts")
    if not isinstance(paired, bool):
        raise ValueError(f"paired must be True or False; got {paired!r}.")
    check_number("correlation", correlation, lambda v: -1 <= v < 1, "a number from -1 to below 1 (the default is 0)")
    if correlation and not paired:
        raise ValueError(f"correlation goes with paired=True; got {correlation!r} for seeds that are not paired.")
    check_number("confidence_level", confidence_level, lambda v: 0.5 < v < 1,
                 "a number between 0.5 and 1 (the default is 0.95)")
    if isinstance(components, Measurement):
        raise ValueError("components must be VarianceComponents or one SD between seeds; got a Measurement. Estimate "
                         'them first: VarianceComponents.of(measurement, resample="seed × prompt").')
    if not isinstance(components, VarianceComponents):
        check_number("components", components, lambda v: 0 < v < math.inf,
                     "VarianceComponents, or one positive SD between seeds")
        components = VarianceComponents(float(components))
    own = components.seed**2 * (1 - correlation)
    noise = components.of_seed_mean(prompts) ** 2 - components.seed**2
    error = math.sqrt(2 * (own + noise) / seeds)
    if error == 0:
        raise ValueError("with endless prompts these components leave no variance; give the number of prompts.")
    return error, float(seeds - 1 if paired else 2 * seeds - 2)


def _power(effect: float, error: float, df: float, level: float, margin: float | None) -> float:
    from scipy import special

    if margin is None:
        t = float(special.stdtrit(df, (1 + level) / 2))
        away = effect / error
        return float(special.nctdtr(df, away, -t) + special.nctdtr(df, -away, -t))
    # the estimate must lie within margin - t u error of 0, where u^2 is chi-square over its degrees of freedom
    t = float(special.stdtrit(df, level))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    most = min(margin / (t * error), math.sqrt(special.chdtri(df, 1e-14) / df))  # beyond it not both can reject
    u = (nodes + 1) / 2 * most
    log_density = (df / 2) * math.log(df / 2) - math.lgamma(df / 2) + math.log(2.0) + (df - 1) * np.log(u)
    inside = special.ndtr((margin - effect) / error - t * u) - special.ndtr((-margin - effect) / error + t * u)
    return float((weights * np.exp(log_density - df * u**2 / 2) * inside).sum() * most / 2)
