"""From the files of single models to numbers.json: every number of the report, with its interval and what was left out.

The unit is the training run (seed): tokens and prompts are averaged within it. Intervals are Student's over seeds
(four degrees of freedom for five), shares Clopper and Pearson's on an effective number of prompts.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from conditions import Condition, Tier
from contrasts import claims_of, contrasts_of, headlines_of
from measuring import COSINE_ALIKE, COSINE_AT_REST, WEIGHTS, depths_of, measured_file, plain, read_json
from mirrors import N_SHUFFLED, N_UNTRAINED, mirrored_file
from scipy import stats
from training import DIVERGED, folder_of

from dynloop import estimate
from dynloop.version import __version__

SCHEMA, SCHEMA_VERSION = "dynloop ablation", "1.0"  # the first number changes when a reader of the old one would err
LEAST_SEEDS = 3  # fewer cannot say how seeds differ
FEW = 2
REST = ("cyclic", "degenerate", "fixed point")
Raw = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number a model.

    Attributes:
        title: in the report.
        unit: of it.
        of: the file of a model, its scores of mirroring and the tier -> the number; NaN where there is none.
        low, high: where the number can lie at most.
    """

    title: str
    unit: str
    of: Callable[[Raw, Raw | None, Tier], float]
    low: float = -math.inf
    high: float = math.inf


def _rest(raw: Raw, _: Raw | None, __: Tier) -> float:
    return sum(verdict in REST for verdict in raw["loop"]["verdict"]) / raw["n_prompts"]


def _middle(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else math.nan


def _gap(of: dict[str, float | None], last: int, first: int) -> float:
    one, two = of[str(last)], of[str(first)]
    return math.nan if one is None or two is None else one - two


def _mirrored(kind: str) -> Callable[[Raw, Raw | None, Tier], float]:
    def excess(_: Raw, scores: Raw | None, __: Tier) -> float:
        if scores is None or "controls" not in scores["stack"][kind]:
            return math.nan
        of = scores["stack"][kind]
        untrained = of["controls"][0][:scores["n_untrained"]]
        if of["score"][0] is None or None in untrained:
            return math.nan
        return float(of["score"][0] - np.mean(untrained))
    return excess


def _attention(name: str) -> Callable[[Raw, Raw | None, Tier], float]:
    def found(raw: Raw, _: Raw | None, __: Tier) -> float:
        of = raw["attention"]
        if name == "share":
            return of["outcomes"].get("found", 0) / of["n_maps"]
        return math.nan if of[name] is None else of[name]
    return found


def _loss(raw: Raw, _: Raw | None, tier: Tier) -> float:
    value = raw["loss"][str(tier.n_recurrences)]
    return math.nan if value is None else value


MEASURES = {
    "rest": Measure("share of prompts that come to rest", "", _rest, 0, 1),
    "rate": Measure("contraction rate, median over the prompts that have one", "per recurrence",
                    lambda raw, _, __: _middle(raw["rate"]["value"]), 0),
    "growth": Measure("growth of the state norm from the trained to the last recurrence, in powers of e", "",
                      lambda raw, _, tier: _gap(raw["log_norm"], tier.long_run, tier.n_recurrences)),
    "extrapolation": Measure("held-out loss at the last recurrence, less that at the trained one", "nats per byte",
                             lambda raw, _, tier: _gap(raw["loss"], tier.long_run, tier.n_recurrences)),
    "loss": Measure("held-out loss at the trained recurrence", "nats per byte", _loss),
    "attention": Measure("share of attention maps that come to rest", "", _attention("share"), 0, 1),
    "lag": Measure("recurrences by which attention settles after the state", "recurrences", _attention("lag")),
    "mirroring": Measure("mirroring of the control's stages by states, above untrained copies", "",
                         _mirrored("states")),
    "mirroring_attention": Measure("mirroring of the control's stages by attention, above untrained copies", "",
                                   _mirrored("attention")),
}
ASKED = ("rest", "rate", "growth", "extrapolation", "attention", "mirroring", "mirroring_attention")  # of contrasts


@dataclasses.dataclass(frozen=True)
class Found:
    """The files of a study.

    Attributes:
        tier, seeds: asked for.
        planned, included: conditions; included are those of whole blocks with every seed measured.
        models: a row a model: the fields of its condition, seed, weights, and every measure.
        prompts: a row a prompt of a looped model: whether it rests, and how a reader of cosines would call it.
        raw: (condition, seed, weights) -> the file.
        scores: (condition, seed) -> the scores of mirroring.
        diverged: (condition, seed) of trainings whose loss left the finite numbers.
    """

    tier: Tier
    seeds: tuple[int, ...]
    planned: tuple[Condition, ...]
    included: tuple[Condition, ...]
    models: pd.DataFrame
    prompts: pd.DataFrame
    raw: dict[tuple[str, int, str], Raw]
    scores: dict[tuple[str, int], Raw]
    diverged: tuple[tuple[str, int], ...]


def gather(out: Path, tier: Tier, planned: Sequence[Condition], seeds: Sequence[int]) -> Found:
    """Read what has been measured, and keep the blocks that are whole.

    Raises:
        ValueError: no block is.
    """
    raw, scores, diverged = {}, {}, []
    whole = {}
    for condition in planned:
        complete = True
        for seed in seeds:
            failed = (folder_of(out, condition, seed).parent / f"seed-{seed}-{DIVERGED}").exists()
            if failed:
                diverged.append((condition.name, seed))
            for weights in WEIGHTS if condition.kind == "looped" else WEIGHTS[:1]:
                of = read_json(measured_file(out, condition, seed, weights))
                if of is not None:
                    raw[condition.name, seed, weights] = of
                complete &= of is not None or (failed and weights == "trained")
            score = read_json(mirrored_file(out, condition, seed))
            if score is not None:
                scores[condition.name, seed] = score
            control = [(c.name, seed) for c in planned if c.kind == "feed-forward" and c.block == condition.block]
            complete &= score is not None or failed or any(c in diverged for c in control)
        whole[condition] = complete
    parts = {(c.kind == "sampled", c.block) for c in planned}
    good = {part for part in parts if all(whole[c] for c in planned if (c.kind == "sampled", c.block) == part)}
    included = [c for c in planned if (c.kind == "sampled", c.block) in good]
    if not included:
        raise ValueError(f"{out} holds no whole block of tier {tier.name!r} with seeds {', '.join(map(str, seeds))}. "
                         "Run the study without --report-only, to its end.")
    names = {c.name: c for c in included}
    kept = {key: of for key, of in raw.items() if key[0] in names}
    rows, prompts = [], []
    for (name, seed, weights), of in kept.items():
        about = {**dataclasses.asdict(names[name]), "condition": name, "seed": seed, "weights": weights,
                 "training": f"{name} {seed}"}
        looped = names[name].kind != "feed-forward"
        score = scores.get((name, seed)) if weights == "trained" else None
        rows.append({**about, **{key: measure.of(of, score, tier) if looped else math.nan
                                 for key, measure in MEASURES.items()},
                     **({} if looped else {"loss": of["loss"]["1"]})})
        if looped:
            loop = of["loop"]
            for p, verdict in enumerate(loop["verdict"]):
                own, lowest = loop["own_cosine"][p], loop["lowest_cosine"][p]
                seems = own is not None and own >= COSINE_AT_REST
                prompts.append({**about, "prompt": p, "verdict": verdict or "not finite",
                                "rest": "yes" if verdict in REST else "no",
                                "seems": "no" if not seems else "alike" if lowest is not None and
                                lowest >= COSINE_ALIKE else "distinct", "separation": loop["separation"][p]})
    return Found(tier, tuple(seeds), tuple(planned), tuple(included), pd.DataFrame(rows), pd.DataFrame(prompts), kept,
                 {key: of for key, of in scores.items() if key[0] in names},
                 tuple(d for d in diverged if d[0] in names))


def entry(found: Any, *, unit: str = "") -> dict[str, Any]:
    """An estimate as numbers.json keeps it."""
    return {"value": found.value, "low": found.low, "high": found.high, "unit": unit or found.unit,
            "statistic": found.statistic, "method": found.method, "confidence_level": found.confidence_level,
            "resample": found.resample, "units": dict(found.units), "n": found.n, "excluded": dict(found.excluded)}


def mean_of(rows: pd.DataFrame, name: str) -> dict[str, Any] | None:
    """The mean of a measure over seeds, each the mean of its models; None with fewer than three seeds that have one."""
    measure = MEASURES[name]
    known = rows[np.isfinite(rows[name])]
    by_seed = known.groupby("seed", as_index=False)[name].mean()
    if len(by_seed) < LEAST_SEEDS:
        return None
    found = estimate(by_seed, statistic="mean", variable=name, resample="seed", method="t", target="new seeds")
    values = entry(found, unit=measure.unit)
    values |= {"low": max(values["low"], measure.low), "high": min(values["high"], measure.high), "n": len(known),
               "excluded": {"without an answer": int(len(rows) - len(known))} if len(known) < len(rows) else {}}
    return values


def share_of(prompts: pd.DataFrame, variable: str, of: str, unit: str) -> dict[str, Any]:
    """A share of prompts, with an exact interval for new `unit`s."""
    rows = prompts[[unit, "prompt", variable]]
    hit = rows[variable] == of
    if hit.all() or not hit.any():  # nothing is seen of how prompts depend on each other: a unit counts once
        found = estimate(rows.drop_duplicates(unit), statistic="share", variable=variable, of=of, resample="orbit",
                         method="design effect")
        return entry(found) | {"resample": unit, "units": {unit: found.n}, "n": len(rows)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few units: their number stands beside it
        found = entry(estimate(rows, statistic="share", variable=variable, of=of, resample=f"{unit} > prompt",
                               method="design effect"))
    for rare in (True, False):  # in one or two units nothing is seen either: no narrower than for none
        of_unit = hit if rare else ~hit
        if of_unit.groupby(rows[unit]).any().sum() <= FEW:
            limit = float(stats.beta.ppf((1 + found["confidence_level"]) / 2, 1, rows[unit].nunique()))
            found |= {"high": max(found["high"], limit)} if rare else {"low": min(found["low"], 1 - limit)}
    return found


def numbers_of(found: Found) -> dict[str, Any]:
    """Everything that the report says."""
    tier = found.tier
    contrasts, claims = contrasts_of(found.models, ASKED), claims_of(found, share_of)
    counts = _counts(found)
    counts["contrasts"] = {"all": len(contrasts), "open": sum(c["verdict"] == "cannot tell" for c in contrasts)}
    counts["claims"] = {weights: Counter(c["verdict"] for c in claims["cells"] if c["weights"] == weights)
                        for weights in WEIGHTS}
    return plain({
        "schema": SCHEMA, "schema_version": SCHEMA_VERSION,
        "settings": {
            **dataclasses.asdict(tier), "seeds": list(found.seeds), "n_seeds": len(found.seeds), "level": 0.95,
            "tolerance": 1e-3, "cosine_at_rest": COSINE_AT_REST, "cosine_alike": COSINE_ALIKE, "half": 0.5,
            "n_untrained_controls": N_UNTRAINED, "most_shuffled_controls": N_SHUFFLED, "power": 0.8,
            "depths": depths_of(tier.long_run)},
        "counts": counts, "conditions": {c.name: _of_condition(found, c) for c in found.included},
        "groups": _groups(found), "regimes": _regimes(found), "attention": _attention_orders(found),
        "mirroring": _mirroring(found), "curves": _curves(found), "contrasts": contrasts,
        "headlines": headlines_of(found.models), "claims": claims,
        "provenance": {"dynloop": __version__, "torch": torch.__version__, "python": platform.python_version(),
                       "numpy": np.__version__}})


def _counts(found: Found) -> dict[str, Any]:
    """How many of what, and every outcome that is no answer."""
    outcomes: dict[str, dict[str, Counter]] = {}
    for (_, _, weights), of in found.raw.items():
        for what in ("loop", "rate", "time", "regime", "token_regime", "attention"):
            if what in of:
                outcomes.setdefault(weights, {}).setdefault(what, Counter()).update(of[what]["outcomes"])
    floor = {weights: of["rate"].get("at the precision floor", 0) for weights, of in outcomes.items()}
    return {
        "planned": len(found.planned), "included": len(found.included),
        "missing": [c.name for c in found.planned if c not in found.included],
        "missing_parts": Counter(f"{'sampled recurrences, ' if c.kind == 'sampled' else ''}block of {c.block}"
                                 for c in found.planned if c not in found.included),
        "kinds": Counter(c.kind for c in found.included), "blocks": sorted({c.block for c in found.included}),
        "trainings": len(found.included) * len(found.seeds), "diverged": [list(d) for d in found.diverged],
        "n_diverged": len(found.diverged), "outcomes": outcomes, "at_floor": floor,
        "trained": sum(key[2] == "trained" for key in found.raw),
        "untrained": sum(key[2] == "untrained" for key in found.raw),
        "loops": len(found.prompts),
        "kinds_at_rest": {weights: Counter(of.verdict[(of.rest == "yes") & (of.block > 1)].tolist())
                          for weights, of in found.prompts.groupby("weights")}}


def _of_condition(found: Found, condition: Condition) -> dict[str, Any]:
    """One row of the large table."""
    about: dict[str, Any] = {"kind": condition.kind, "block": condition.block, "injection": condition.injection,
                             "norm": condition.norm, "loop_norm": condition.loop_norm}
    for weights in WEIGHTS:
        rows = found.models[(found.models.condition == condition.name) & (found.models.weights == weights)]
        if rows.empty:
            continue
        own: dict[str, Any] = {name: mean_of(rows, name) for name in MEASURES}
        if condition.kind != "feed-forward":
            prompts = found.prompts[(found.prompts.condition == condition.name) & (found.prompts.weights == weights)]
            own["rest"] = share_of(prompts, "rest", "yes", "seed")
            own["verdicts"] = Counter(prompts.verdict)
            own["separation"] = _middle(prompts.separation[prompts.rest == "yes"].dropna().tolist())
        about[weights] = {name: value for name, value in own.items() if value is not None}
    return about


def _looped(table: pd.DataFrame, weights: str) -> pd.DataFrame:
    return table[(table.kind == "looped") & (table.weights == weights)]


def _groups(found: Found) -> list[dict[str, Any]]:
    """Means over block sizes: a row for every injection, norm and end of the loop."""
    rows = []
    for weights in WEIGHTS:
        models, prompts = _looped(found.models, weights), _looped(found.prompts, weights)
        for (injection, norm, end), own in models.groupby(["injection", "norm", "loop_norm"]):
            part = prompts[(prompts.injection == injection) & (prompts.norm == norm) & (prompts.loop_norm == end)]
            rows.append({"weights": weights, "injection": injection, "norm": norm, "loop_norm": bool(end),
                         "n_conditions": own.condition.nunique(), "n_trainings": len(own),
                         "verdicts": Counter(part.verdict), "rest": share_of(part, "rest", "yes", "training"),
                         **{name: mean_of(own, name) for name in MEASURES if name != "rest"}})
    return rows


def _regimes(found: Found) -> dict[str, Any]:
    """How `limit_regime` calls prompts and tokens, by injection."""
    told: dict[str, Any] = {}
    for (name, _, weights), of in found.raw.items():
        condition = next(c for c in found.included if c.name == name)
        if condition.kind != "looped":
            continue
        own = told.setdefault(weights, {}).setdefault(condition.injection, {
            "prompts": Counter(), "tokens": Counter(), "periods": Counter(), "cross": Counter()})
        own["prompts"].update({k or "not named": v for k, v in of["regime"]["names"].items()})
        own["tokens"].update({k or "not named": v for k, v in of["token_regime"]["names"].items()})
        own["periods"].update(of["regime"]["periods"])
    return {weights: {i: of[i] for i in ("none", "additive", "linear") if i in of} for weights, of in told.items()}


def _attention_orders(found: Found) -> dict[str, Any]:
    """Which settles first, head by head."""
    told: dict[str, Any] = {}
    for (_, _, weights), of in found.raw.items():
        if "attention" in of:
            told.setdefault(weights, {"order": Counter(), "outcomes": Counter()})
            told[weights]["order"].update(of["attention"]["order"])
            told[weights]["outcomes"].update(of["attention"]["lag_outcomes"])
    for weights, of in told.items():
        rows = found.models[(found.models.weights == weights) & (found.models.kind != "feed-forward")]
        of["n"] = sum(of["order"].values())
        of["lag"] = mean_of(rows, "lag")
        of["share"] = {order: n / max(of["n"], 1) for order, n in of["order"].items()}
    return told


def _mirroring(found: Found) -> dict[str, Any]:
    """Scores, controls and the ceiling: two controls of one condition against each other."""
    rows = []
    for (name, seed), of in found.scores.items():
        condition = next(c for c in found.included if c.name == name)
        for form in ("stack", "loops"):
            for kind, one in of.get(form, {}).items():
                for r, score in enumerate(one["score"]):
                    controls = one.get("controls", [[]] * len(one["score"]))[r]
                    cut = of.get("n_untrained", 0)
                    rows.append({**dataclasses.asdict(condition), "condition": name, "seed": seed, "form": form,
                                 "of": kind, "recurrence": r + 1, "score": _number(score),
                                 "untrained": _mean(controls[:cut]), "shuffled": _mean(controls[cut:])})
    table = pd.DataFrame(rows)
    told: dict[str, Any] = {}
    for kind in ("states", "attention"):
        of = table[table.of == kind]
        control = of[of.kind == "feed-forward"]
        looped = of[(of.kind == "looped")]
        stack = looped[looped.form == "stack"]
        told[kind] = {
            "ceiling_all": _over_seeds(control, "score"),
            "ceiling": {norm: _over_seeds(own, "score") for norm, own in control.groupby("norm")},
            "by": [{"injection": i, "norm": n, "score": _over_seeds(own, "score"),
                    "untrained": _over_seeds(own, "untrained"), "shuffled": _over_seeds(own, "shuffled"),
                    "above_untrained": _over_seeds(own.assign(gap=own.score - own.untrained), "gap"),
                    "above_shuffled": _over_seeds(own.assign(gap=own.score - own.shuffled), "gap")}
                   for (i, n), own in stack.groupby(["injection", "norm"])],
            "all": {name: _over_seeds(stack.assign(gap=stack.score - stack[name]), "gap")
                    for name in ("untrained", "shuffled")},
            "loops": [{"recurrence": int(r), "score": _over_seeds(own, "score"),
                       "above_untrained": _over_seeds(own.assign(gap=own.score - own.untrained), "gap"),
                       "above_shuffled": _over_seeds(own.assign(gap=own.score - own.shuffled), "gap")}
                      for r, own in looped[looped.form == "loops"].groupby("recurrence")]}
    return told


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([_number(v) for v in values])) if values else math.nan


def _over_seeds(rows: pd.DataFrame, column: str) -> dict[str, Any] | None:
    """Mean over seeds, each the mean over its models; None with fewer than three."""
    known = rows[np.isfinite(rows[column])]
    by_seed = known.groupby("seed", as_index=False)[column].mean()
    if len(by_seed) < LEAST_SEEDS:
        return None
    found = entry(estimate(by_seed, statistic="mean", variable=column, resample="seed", method="t", target="new seeds"))
    return found | {"n": len(known), "excluded": {"without an answer": int(len(rows) - len(known))}
                    if len(known) < len(rows) else {}}


def _curves(found: Found) -> list[dict[str, Any]]:
    """Loss, norm and distance along the recurrences: mean over seeds, each the mean over block sizes."""
    rows: list[dict[str, Any]] = []
    for (name, seed, weights), of in found.raw.items():
        condition = next(c for c in found.included if c.name == name)
        if weights == "trained" and condition.kind != "feed-forward":
            rows += [{**dataclasses.asdict(condition), "seed": seed, "quantity": quantity, "recurrence": int(depth),
                      "value": _number(value)}
                     for quantity in ("loss", "log_norm", "distance") for depth, value in of[quantity].items()]
    table, told = pd.DataFrame(rows), []
    table.loc[table.quantity == "distance", "value"] = np.log(table.value.where(table.value > 0))
    table["quantity"] = table.quantity.replace("distance", "log_distance")
    for (kind, quantity, injection, norm, end), own in table.groupby(["kind", "quantity", "injection", "norm",
                                                                    "loop_norm"]):
        by_seed = own.groupby(["seed", "recurrence"]).value.mean().unstack()  # NaN where a model has none
        n = by_seed.notna().sum()
        t = pd.Series({d: _student(k) for d, k in n.items()})
        half = t * by_seed.std(ddof=1) / np.sqrt(n)
        told.append({"kind": kind, "quantity": quantity, "injection": injection, "norm": norm, "loop_norm": bool(end),
                     "recurrence": by_seed.columns.tolist(), "mean": by_seed.mean().tolist(),
                     "low": (by_seed.mean() - half).tolist(), "high": (by_seed.mean() + half).tolist(),
                     "n_seeds": n.tolist()})
    return told


def _student(n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1)) if n > 1 else math.nan
