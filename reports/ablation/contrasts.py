"""Contrasts over matched conditions, tested between seeds; what so many could have seen; whether a rerun agrees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dynloop import adjust_pvalues, compare, detectable_effect

FACTORS = ("kind", "block", "injection", "norm", "loop_norm", "weights")
LEVEL, POWER = 0.95, 0.8

# name -> factor, levels of the condition, levels of the baseline, and in which conditions alone
Levels = tuple[Any, ...]
CONTRASTS: dict[str, tuple[Any, ...]] = {
    "any injection - none": ("injection", ("additive", "linear"), ("none",)),
    "any injection - none, end norm": ("injection", ("additive", "linear"), ("none",), {"loop_norm": True}),
    "any injection - none, no end norm": ("injection", ("additive", "linear"), ("none",), {"loop_norm": False}),
    "additive - none": ("injection", ("additive",), ("none",)),
    "linear - none": ("injection", ("linear",), ("none",)),
    "linear - additive": ("injection", ("linear",), ("additive",)),
    "sandwich - pre": ("norm", ("sandwich",), ("pre",)),
    "residual - pre": ("norm", ("residual",), ("pre",)),
    "residual - sandwich": ("norm", ("residual",), ("sandwich",)),
    "end norm - none": ("loop_norm", (True,), (False,)),
    "block of 1 - of 2": ("block", (1,), (2,)),
    "block of 4 - of 2": ("block", (4,), (2,)),
    "sampled - fixed recurrences": ("kind", ("sampled",), ("looped",)),
    "trained - untrained": ("weights", ("trained",), ("untrained",)),
}
HEADLINES = {"injection on rest": ("any injection - none", "rest"),
             "loop-end norm on growth": ("end norm - none", "growth")}


def matched(models: pd.DataFrame, factor: str, plus: Levels, minus: Levels) -> list[pd.DataFrame]:
    """The models of each cell of the other factors in which all of these levels are there."""
    rows = models[models.kind != "feed-forward"]
    if factor != "kind":
        rows = rows[rows.kind == "looped"]
    if factor != "weights":
        rows = rows[rows.weights == "trained"]
    others = [name for name in FACTORS if name != factor]
    wanted = set(plus) | set(minus)
    return [own[own[factor].isin(wanted)] for _, own in rows.groupby(others) if wanted <= set(own[factor])]


def contrast(models: pd.DataFrame, name: str, measure: str) -> dict[str, Any] | None:
    """One contrast: the mean over matched cells, seed by seed, and Student's interval of the seeds' differences.

    A cell counts if every seed has a number on both sides: so seeds are compared over the same cells. None if fewer
    than three seeds or no cell are left.
    """
    factor, plus, minus, *where = CONTRASTS[name]
    for column, value in (where[0] if where else {}).items():
        models = models[models[column] == value]
    if len(plus) > 1:  # any of those that this tier has
        plus = tuple(level for level in plus if level in set(models[factor])) or plus
    cells = matched(models, factor, plus, minus)
    seeds = sorted(models.seed.unique().tolist())
    kept = []
    for cell in cells:
        by_level = {level: own.set_index("seed")[measure].reindex(seeds) for level, own in cell.groupby(factor)}
        if all(np.isfinite(by_level[level]).all() for level in (*plus, *minus)):
            kept.append(np.stack([np.mean([by_level[level] for level in side], axis=0) for side in (plus, minus)]))
    if len(seeds) < 3 or not kept:
        return None
    sides = np.mean(kept, axis=0)
    return {"contrast": name, "measure": measure, "n_cells": len(kept), "n_cells_matched": len(cells),
            **between_seeds(seeds, sides[0], sides[1])}


def between_seeds(seeds: Sequence[int], plus: np.ndarray, minus: np.ndarray) -> dict[str, Any]:
    """Difference of two numbers a seed: value, interval, p-value, and the difference that so many seeds would see."""
    sides = {"condition": pd.DataFrame({"seed": seeds, "value": plus}),
             "baseline": pd.DataFrame({"seed": seeds, "value": minus})}
    found = compare(sides, resample="seed", paired="seed", variable="value", baseline="baseline", test="t",
                    adjust=None, confidence_level=LEVEL)[0]
    gaps = np.asarray(plus) - np.asarray(minus)
    spread, n = float(gaps.std(ddof=1)), len(seeds)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread * math.sqrt(2 / n)
    value = found.value if abs(found.value) > 1e-12 * np.abs([plus, minus]).max() else 0.0  # not the dust of sums
    return {"value": value, "low": found.low, "high": found.high, "condition_mean": float(np.mean(plus)),
            "baseline_mean": float(np.mean(minus)), "p_value": found.p_value, "test": found.test,
            "method": found.method, "confidence_level": LEVEL, "n_seeds": len(seeds), "seeds": list(seeds),
            "per_seed": gaps.tolist(), "sd": spread,
            "rerun_low": value - reach, "rerun_high": value + reach,
            "detectable": detectable_effect(seeds=len(seeds), components=spread / math.sqrt(2), paired=True,
                                            power=POWER) if spread > 1e-12 else math.nan,
            "notes": [note for note in found.notes if "no spread" in note]}


def adjusted(family: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Holm's p-values within a family, and what can be said at 5 %."""
    p = adjust_pvalues([one["p_value"] if one["p_value"] is not None else math.nan for one in family])
    return [{**one, "p_adjusted": float(q), "power": POWER, "family_size": len(family),
             "verdict": "differ" if q < 1 - LEVEL else "cannot tell"}
            for one, q in zip(family, p, strict=True)]


def contrasts_of(models: pd.DataFrame, measures: Sequence[str]) -> list[dict[str, Any]]:
    """All contrasts, a family a measure."""
    told = []
    for measure in measures:
        family = [one for name in CONTRASTS if (one := contrast(models, name, measure)) is not None]
        told += adjusted(family)
    return told


def headlines_of(models: pd.DataFrame) -> list[dict[str, Any]]:
    """The two contrasts that an independent rerun is held against: a family of their own."""
    known = [(key, contrast(models, *of)) for key, of in HEADLINES.items()]
    return adjusted([{"headline": key, **one} for key, one in known if one is not None])


# ---- what the papers say

PAPER = {("linear", "pre"): True, ("linear", "residual"): True, ("linear", "sandwich"): False,
         ("none", "pre"): True, ("none", "residual"): False, ("none", "sandwich"): False}  # comes to rest?


def claims_of(found: Any, share_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """The claims as questions to this study: by injection, norm and end of the loop, and as contrasts."""
    cells = []
    for weights in ("untrained", "trained"):
        prompts = found.prompts[(found.prompts.kind == "looped") & (found.prompts.weights == weights)]
        for (injection, norm, end), own in prompts.groupby(["injection", "norm", "loop_norm"]):
            rest = share_of(own, "rest", "yes", "training")
            says, longer = PAPER.get((injection, norm)), own[own.block > 1]  # one layer is like itself
            seen = None if rest["low"] <= 0.5 <= rest["high"] else rest["value"] > 0.5
            cells.append({
                "weights": weights, "injection": injection, "norm": norm, "loop_norm": bool(end), "paper": says,
                "rest": rest,
                "seems_rest": share_of(own.assign(seems=np.where(own.seems == "no", "no", "yes")), "seems", "yes",
                                       "training"),
                "alike": share_of(longer, "seems", "alike", "training") if len(longer) else None,
                "n_trainings": own.training.nunique(), "seen": seen,
                "verdict": "not claimed" if says is None else "cannot tell" if seen is None else
                "holds" if seen == says else "does not hold"})
    asked = [one for one in (_clearest(found.models, "mirroring"), _clearest(found.models, "mirroring_attention"),
                             _norm_or_injection(found.models)) if one is not None]
    return {"cells": cells, "asked": adjusted(asked)}


def _trained(models: pd.DataFrame) -> pd.DataFrame:
    return models[(models.kind == "looped") & (models.weights == "trained")]


def _clearest(models: pd.DataFrame, measure: str) -> dict[str, Any] | None:
    """Stages clearest without injection with sandwich norm: mirroring there, less that of all other conditions."""
    rows = _trained(models)
    rows = rows[np.isfinite(rows[measure])]
    here = (rows.injection == "none") & (rows.norm == "sandwich")
    one, other = rows[here].groupby("seed")[measure].mean(), rows[~here].groupby("seed")[measure].mean()
    seeds = sorted(set(one.index) & set(other.index))
    if len(seeds) < 3:
        return None
    return {"claim": "clearest", "measure": measure, **between_seeds(seeds, one[seeds].to_numpy(),
                                                                     other[seeds].to_numpy())}


def _norm_or_injection(models: pd.DataFrame) -> dict[str, Any] | None:
    """Range of the share at rest over norms, less its range over injections, seed by seed."""
    rows = _trained(models)
    by = {factor: rows.groupby(["seed", factor]).rest.mean().unstack() for factor in ("norm", "injection")}
    if any(table.shape[1] < 2 for table in by.values()) or len(by["norm"]) < 3:
        return None
    reach = {factor: (table.max(axis=1) - table.min(axis=1)).to_numpy() for factor, table in by.items()}
    return {"claim": "norm or injection", "measure": "rest",
            **between_seeds(by["norm"].index.tolist(), reach["norm"], reach["injection"])}


# ---- an independent rerun

def replicate(one: dict[str, Any], other: dict[str, Any]) -> list[dict[str, Any]]:
    """Whether the headline contrasts of a rerun agree with the first run.

    Both are estimates: their difference has the variance of both. So the criterion is the prediction interval, that is
    whether Welch's interval of the difference between the two runs' seeds covers 0; for two runs of one recipe it does
    so in 95 of 100. (That an estimate lies within the other's own confidence interval, which is told as well, happens
    less often, though nothing has changed: 83 % for many seeds, 88 % for five.)

    Raises:
        ValueError: runs of other settings, or with seeds in common, which are not independent.
    """
    for name in ("width", "n_recurrences", "steps", "long_run"):
        if one["settings"][name] != other["settings"][name]:
            raise ValueError(f"the runs differ in {name}: {one['settings'][name]} and {other['settings'][name]}. "
                             "Compare runs of one tier.")
    if shared := sorted(set(one["settings"]["seeds"]) & set(other["settings"]["seeds"])):
        raise ValueError(f"both runs have seeds {', '.join(map(str, shared))}: they are not independent. Run again "
                         "with others, such as --seeds 5-9.")
    told = []
    for a in one["headlines"]:
        b = next((b for b in other["headlines"] if b["headline"] == a["headline"]), None)
        if b is None:
            raise ValueError(f"the second run has no headline {a['headline']!r}. Run all conditions.")
        found = compare({"first": pd.DataFrame({"seed": a["seeds"], "value": a["per_seed"]}),
                         "second": pd.DataFrame({"seed": b["seeds"], "value": b["per_seed"]})},
                        resample="seed", variable="value", baseline="first", test="t", adjust=None,
                        confidence_level=LEVEL)[0]
        low, high = found.low, found.high
        if math.isnan(low):  # no spread in either
            low = high = found.value
        tiny = 1e-9 * max(1.0, abs(a["value"]))
        told.append({"headline": a["headline"], "first": a["value"], "second": b["value"], "difference": found.value,
                     "low": low, "high": high, "agrees": low - tiny <= 0 <= high + tiny,
                     "second_in_first": _within(b["value"], a), "first_in_second": _within(a["value"], b),
                     "same_cells": a["n_cells"] == b["n_cells"]})
    return told


def _within(value: float, of: dict[str, Any]) -> bool:
    low, high = (of["value"] if of[k] is None else of[k] for k in ("low", "high"))
    tiny = 1e-9 * max(1.0, abs(value))
    return bool(low - tiny <= value <= high + tiny)
