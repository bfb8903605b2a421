"""A mixed model of two conditions, as a check on `compare`."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.statistics import conditions as reading
from dynloop.statistics.compare import LEAST_UNITS
from dynloop.statistics.nesting import Nesting

_MOST_CELLS = 4000  # the covariance of all cells is held as one matrix
_Z_NOTE = ("statsmodels' own interval (normal quantiles) is narrower and covers 84 % for 95 % with 5 seeds; this one "
           "has t quantiles.")


@dataclasses.dataclass(frozen=True)
class MixedModel:
    """What a linear mixed model says of a difference; `compare` is the answer, this a check.

    Attributes:
        name, condition, baseline, unit: as in `Comparison`.
        value, low, high: condition - baseline, with t quantiles.
        z_low, z_high: with normal quantiles, as statsmodels gives them.
        confidence_level: nominal coverage.
        degrees: degrees of freedom of t.
        p_value: two-sided, of no difference, from t.
        components: SD of each random effect, and of the residual.
        n: by condition, units of every level and orbits.
        excluded: by condition, orbits that did not enter, by outcome.
        notes: what statsmodels warned of, and more.
    """

    name: str
    condition: str
    baseline: str
    unit: str
    value: float
    low: float
    high: float
    z_low: float
    z_high: float
    confidence_level: float
    degrees: float
    p_value: float
    components: Mapping[str, float]
    n: Mapping[str, Mapping[str, int]]
    excluded: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and texts, ready for JSON."""
        return {**dataclasses.asdict(self), "notes": list(self.notes)}

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        parts = ", ".join(f"{name} {sd:.3g}" for name, sd in self.components.items())
        return "\n".join([
            f"{self.name}, {self.condition} - {self.baseline}: {self.value:.4g}{unit} "
            f"[{self.low:.4g}, {self.high:.4g}] {100 * self.confidence_level:g} % mixed model (REML), "
            f"t with {self.degrees:g} degrees of freedom, "
            f"p = {self.p_value:.3g}", f"SDs: {parts}", *self.notes])


def mixed_model(conditions: Any, *, resample: str, statistic: str = "mean", variable: str | None = None,
                of: str | Outcome | None = None, by: str | None = None, paired: str | Sequence[str] | None = None,
                baseline: str | None = None, confidence_level: float = 0.95) -> MixedModel:
    """A linear mixed model of two conditions, fitted by statsmodels' MixedLM (REML) to prompt means.

        y = mean + difference * condition + seed effect + prompt effect + residual

    Seed effects are drawn for each seed of each condition, or, where seeds are paired, for each seed and for each seed
    and condition; prompt effects are common to all seeds (and conditions) when the levels are crossed. The interval is
    value -+ t SE with degrees of freedom between seeds, n_1 + n_2 - 2, or n - 1 where they are paired.

    Args:
        conditions, statistic, variable, of, by: as in `compare`; exactly two conditions, "mean" or "share".
        resample: two levels: "seed × prompt" or "seed > prompt"; the names are those of the labels.
        paired: None, or the outer label where its units are the same in both conditions.
        baseline: which of the two; by default the first.
        confidence_level: nominal coverage.

    Returns:
        The model. Its notes carry every warning of the fit.

    Raises:
        ValueError: other than two conditions or two levels, fewer than 3 seeds, or more than 4,000 cells.

    Misleads:
        With 5 seeds a component is often estimated as 0, and the fit warns or stops early: look at the notes, and
        believe `compare`. Shares are modelled as normal. Balanced data without paired seeds give the t interval of
        `compare` but for the degrees of freedom.

    Source:
        Laird and Ware 1982, Biometrics 38, 963; degrees of freedom between the outer units as in Pinheiro and Bates
        2000, section 2.4.

    Example:
        >>> import numpy as np, pandas as pd
        >>> from dynloop.statistics.mixed_model import mixed_model
        >>> rng = np.random.default_rng(0)
        >>> seed, prompt = (v.ravel() for v in np.indices((5, 12)))
        >>> def run(shift):
        ...     rate = shift + rng.normal(size=5)[seed] + 0.2 * rng.normal(size=60)
        ...     return pd.DataFrame({"rate": rate, "seed": seed, "prompt": prompt})
        >>> fit = mixed_model({"a": run(0), "b": run(3)}, variable="rate", resample="seed > prompt")
        >>> print(round(fit.value, 2), fit.degrees, fit.low < 3 < fit.high, fit.z_low > fit.low)
        3.16 8.0 True True
    """
    from scipy import special

    check_number("confidence_level", confidence_level, lambda v: 0.5 < v < 1,
                 "a number between 0.5 and 1 (the default is 0.95)")
    nesting = Nesting.parse(resample)
    if len(nesting.levels) != 2 or statistic not in ("mean", "share"):
        raise ValueError('a mixed model needs two levels, "seed × prompt" or "seed > prompt", and a mean or share; got '
                         f"{resample!r} and {statistic!r}.")
    outer, inner = nesting.levels
    if paired is not None and paired not in (outer, (outer,), [outer]):
        raise ValueError(f"paired must be {outer!r} or None here: crossed levels say that {inner}s are shared; got "
                         f"{paired!r}.")
    found = reading.read(conditions, by=by, statistic=statistic, variable=variable, of=of, needed=nesting.levels)
    if len(found) != 2:
        raise ValueError(f"a mixed model compares two conditions; got {', '.join(found)}. Choose two.")
    (condition, base), = reading.contrasts(list(found), baseline)
    table, n = _cells(found, nesting)
    for name, own in n.items():
        if own[outer] < LEAST_UNITS:
            raise ValueError(f"a claim about new {outer}s needs at least {LEAST_UNITS} {outer}s in every condition; "
                             f"{name} has {own[outer]}. Record more.")
    if len(table) > _MOST_CELLS:
        raise ValueError(f"a mixed model of {len(table)} cells needs a matrix of that size squared; at most "
                         f"{_MOST_CELLS}. Use compare.")
    table["treated"] = (table["condition"] == condition).astype(float)
    value, error, components, notes = _fit(table, nesting.crossed, paired is not None, outer, inner)
    degrees = float(min(own[outer] for own in n.values()) - 1 if paired is not None else
                    sum(own[outer] for own in n.values()) - 2)
    t, z = float(special.stdtrit(degrees, (1 + confidence_level) / 2)), float(special.ndtri((1 + confidence_level) / 2))
    p = float(2 * special.stdtr(degrees, -abs(value) / error)) if error > 0 else math.nan
    one = found[condition]
    return MixedModel(one.name, condition, base, one.unit, value, value - t * error, value + t * error,
                      value - z * error, value + z * error, confidence_level, degrees, p, components, n,
                      {name: dict(a.excluded) for name, a in found.items()}, (*notes, _Z_NOTE))


def _cells(found: Mapping[str, reading.Answers], nesting: Nesting) -> tuple[Any, dict[str, dict[str, int]]]:
    """A row a condition, outer and inner unit: the mean of its orbits; and counts by condition."""
    import pandas as pd

    outer, inner = nesting.levels
    parts, n = [], {}
    for name, a in found.items():
        own = pd.DataFrame({"condition": name, "outer": a.labels[outer], "inner": a.labels[inner], "y": a.x})
        cells = own.groupby(["condition", "outer", "inner"], as_index=False, sort=True)["y"].mean()
        parts.append(cells)
        n[name] = {outer: int(cells["outer"].nunique()),
                   inner: int(cells["inner"].nunique()) if nesting.crossed else len(cells), "orbit": len(a.x)}
    return pd.concat(parts, ignore_index=True), n


def _fit(table: Any, crossed: bool, paired: bool, outer: str, inner: str) \
        -> tuple[float, float, dict[str, float], list[str]]:
    """Difference, its standard error, SDs, and what statsmodels had to say."""
    from statsmodels.regression.mixed_linear_model import MixedLM

    scale = float(table["y"].std()) or 1.0  # the optimiser's tolerances are absolute
    table = table.assign(
        y=(table["y"] - table["y"].mean()) / scale, all=0,
        unit=table["outer"].astype(str) if paired else table["condition"] + "/" + table["outer"].astype(str))
    formulas = {outer: "0 + C(unit)"}
    if paired:
        table["own"] = table["condition"] + "/" + table["unit"]
        formulas[f"{outer} by condition"] = "0 + C(own)"
    if crossed:
        formulas[inner] = "0 + C(inner)"
    # without effects that cross, each outer unit is a group of its own, which is much faster
    groups = "all" if crossed else "unit"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = MixedLM.from_formula("y ~ treated", groups=groups, vc_formula=formulas, re_formula="0", data=table)
        fit = model.fit(reml=True)
    notes = [f"statsmodels: {' '.join(text.split())}" for text in
             dict.fromkeys(str(w.message) for w in caught if not issubclass(
                 w.category, FutureWarning | DeprecationWarning))]
    if not fit.converged:
        notes.insert(0, "The fit did not converge: do not use its numbers.")
    names = model.exog_vc.names
    components = {str(name): math.sqrt(max(0.0, float(v))) * scale for name, v in zip(names, fit.vcomp, strict=True)}
    components["residual"] = math.sqrt(float(fit.scale)) * scale
    return float(fit.fe_params["treated"]) * scale, float(fit.bse_fe["treated"]) * scale, components, notes
