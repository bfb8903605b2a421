"""Part c: one model in several number formats, what a naive reading concludes, and what dynloop says.

Truth is the same model in float64: the modulus of the slowest multiplier that reaches a token, from the Jacobian at the
limit (`token_spectrum`), and whether the token comes to rest.
"""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from dynloop import (
    Outcome,
    Trajectories,
    capture,
    contraction_rate,
    estimate,
    limit_regime,
    limit_regime_blayney,
    measure,
    minimal_period,
)
from dynloop.maps import LoopMap, trajectory
from dynloop.maps.token_spectrum import token_spectrum
from dynloop.models import nano
from dynloop.nano import load_checkpoint, shipped_prompts
from dynloop.report import Drawing, Section, Table, draw
from dynloop.report.figures.style import COLOURS, DASHES, new_axes, powers_of_ten, styled
from reports.numbers import Numbers

COMPUTE = ("_recorded", "_relaxed", "_truth", "_model", "_naive", "exact_repeats", "_logistic")
STEPS, LATE = 128, 32  # recurrences of a record, and the last quarter of them
RELAXED = 0.25  # h <- h + .25 (F(h) - h): the same limits, multipliers 1 - .25 (1 - m)
MODELS = {"nano-settles": ("nano-settles", 1.0), "nano-random-start": ("nano-random-start", 1.0),
          "nano-settles, relaxed": ("nano-settles", RELAXED)}
FORMATS = {"float64": (torch.float64, torch.float64), "float32": (torch.float32, torch.float32),
           "bfloat16 computed": (torch.bfloat16, torch.bfloat16), "bfloat16 stored": (torch.float32, torch.bfloat16)}
MARGINAL, OFF, SWINGS = 0.95, 0.1, -0.2
N_STARTS = 200  # of the logistic map


def pieces(tier: str) -> dict[str, Callable[[], Any]]:
    """A piece a model, and one a parameter of the logistic map."""
    full = tier == "full"
    found: dict[str, Callable[[], Any]] = {
        name.replace(", ", "-"): functools.partial(_model, name, 12 if full else 3, 16 if full else 4)
        for name in (MODELS if full else ["nano-settles"])}
    return found | {f"logistic-{r:g}": functools.partial(_logistic, r, N_STARTS if full else 20) for r in (4.0, 3.2)}


def _recorded(name: str, share: float, form: str, prompts: list[str]) -> Trajectories:
    """Two random starts a prompt, the loop state of every token."""
    computed, stored = FORMATS[form]
    model = nano(load_checkpoint(name)[0].to(computed), name=name)
    if share == 1:
        with tempfile.TemporaryDirectory() as folder:
            store = capture(model, prompts, out=f"{folder}/states", n_recurrences=STEPS, layers="state", start="random",
                            n_starts=2, dtype=stored)
            return store.trajectories()
    f = _relaxed(LoopMap.of(model, [model.encode(p) for p in prompts], dtype=computed), share)
    n, (tokens, _) = len(prompts), f.state_shape
    rng = np.random.default_rng(0)
    starts = torch.as_tensor(rng.normal(size=(2 * n, *f.state_shape))).to(computed)
    which = torch.arange(n).repeat(2)
    orbits = trajectory(f, starts, STEPS, contexts=which, per="token")
    states = orbits.states[:, 1:].to(stored)
    return Trajectories(states, labels={"prompt": np.tile(np.arange(n), 2).repeat(tokens),
                                        "start": np.repeat([0, 1], n * tokens),
                                        "token": np.tile(np.arange(tokens), 2 * n)},
                        resolution=float(torch.finfo(stored).eps))


def _relaxed(f: LoopMap, share: float) -> LoopMap:
    return f if share == 1 else LoopMap(lambda x, contexts: x + share * (f(x, contexts) - x), f.state_shape,
                                        n_contexts=f.n_contexts, dtype=f.dtype, causal=True, name=f"relaxed {f.name}")


def _truth(name: str, share: float, prompts: list[str]) -> dict[tuple[int, int], tuple[float, float]]:
    """(prompt, token) -> slowest modulus that reaches the token, and its relative step at the end, in float64."""
    model = nano(load_checkpoint(name)[0], name=name)
    f = LoopMap.of(model, [model.encode(p) for p in prompts])
    h = f.initial_states()
    for _ in range(250):
        h = f(h)
    f = _relaxed(f, share)
    found = token_spectrum(f, h[None])
    n = len(prompts)
    radius = np.maximum.accumulate(found["radius"].reshape(n, -1), axis=1)
    return {(i, t): (float(radius[i, t]), float(found["step"].reshape(n, -1)[i, t])) for i, t in np.ndindex(
        radius.shape)}


def _model(name: str, n_prompts: int, n_tokens: int) -> dict[str, Any]:
    """Of every format: what was read off each token, and the median curve of the steps."""
    checkpoint, share = MODELS[name]
    prompts = [text[:n_tokens] for text in shipped_prompts()[:n_prompts]]
    truth = _truth(checkpoint, share, prompts)
    found: dict[str, Any] = {}
    for form in FORMATS:
        orbits = _recorded(checkpoint, share, form, prompts)
        prompt, token = orbits.labels["prompt"], orbits.labels["token"]
        _, numbered = np.unique(prompt, return_inverse=True)
        token = token - token.min() + (len(truth) // n_prompts - len(np.unique(token)))  # states before the prompt's
        own = np.array([truth[i, t] for i, t in zip(numbered.tolist(), token.tolist(), strict=True)])
        rate, regime, published, period = measure(orbits, [contraction_rate, limit_regime, limit_regime_blayney,
                                                           minimal_period])
        once = orbits.labels["start"] == orbits.labels["start"].min()
        naive = _naive(orbits.states.double())
        steps = naive.pop("steps")
        rows = {"prompt": numbered, "truth": own[:, 0], "last_step": own[:, 1], **naive,
                "rate": rate["rate"], "low": rate["rate_low"], "high": rate["rate_high"],
                "floor": rate["relative_floor"], "outcome": np.array([o.name for o in rate.outcomes]),
                "regime": regime["regime"], "published": published["regime"],
                "period": np.where(period.found, period["period"], np.nan)}
        found[form] = {"rows": {key: _plain(values[once]) for key, values in rows.items()},
                       "steps": _plain(np.nanmedian(steps[once], axis=0)),
                       "still": _plain((steps[once] == 0).mean(0))}
    return found


def _naive(states: torch.Tensor) -> dict[str, np.ndarray]:
    """Rate of the whole window, exact repeats and late cosine, as a reader without a notion of rounding takes them."""
    moved = states[:, 1:] - states[:, :-1]
    steps = (moved.norm(dim=2) / states[:, -1:].norm(dim=2)).numpy()
    fitted = np.full(len(states), np.nan)
    for i, own in enumerate(steps):
        at = np.flatnonzero(own > 0)
        if len(at) > 2:
            fitted[i] = math.exp(np.polyfit(at, np.log(own[at]), 1)[0])
    late = moved[:, -LATE:]
    length = late.norm(dim=2)
    cosine = ((late[:, 1:] * late[:, :-1]).sum(2) / (length[:, 1:] * length[:, :-1])).nan_to_num().mean(1).numpy()
    return {"window": fitted, "repeats": exact_repeats(states), "cosine": cosine, "steps": steps}


def exact_repeats(states: torch.Tensor, *, late: int = LATE) -> np.ndarray:
    """Smallest lag at which each of the last states of an orbit is, bit for bit, an earlier one; 0 where there is none.

    Args:
        states: (n, steps, dim).
        late: how many of the last states.
    """
    found = np.zeros(len(states), dtype=int)
    for lag in range(min(late, states.shape[1] - late), 0, -1):
        same = (states[:, -late:] == states[:, -late - lag:-lag]).flatten(1).all(1)
        found[same.numpy()] = lag
    return found


def _logistic(r: float, n: int) -> dict[str, Any]:
    """The rule x <- r x (1 - x) from the same starts in three formats, after a transient."""
    starts = np.random.default_rng(0).uniform(0.1, 0.9, (n, 1))
    f = LoopMap(lambda x, contexts: r * x * (1 - x), (1,))
    found: dict[str, Any] = {}
    for form, dtype in (("float64", torch.float64), ("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        x = torch.from_numpy(starts).to(dtype)
        path = []
        for _ in range(3 * STEPS):
            path.append(x)
            x = r * x * (1 - x)
        states = torch.stack(path[-STEPS:], dim=1)
        regime, period = measure(Trajectories(states), [limit_regime, minimal_period])
        repeats = exact_repeats(states, late=STEPS // 2)
        multiplier = np.full(n, np.nan)
        for i in np.flatnonzero(repeats):
            cycle = states[i, -repeats[i]:].double()
            multiplier[i] = math.prod(float(f.jvp(s[None], torch.ones(1, 1, dtype=torch.float64))[1]) for s in cycle)
        found[form] = {"regime": _plain(regime["regime"]), "repeats": _plain(repeats),
                       "period": _plain(np.where(period.found, period["period"], np.nan)),
                       "multiplier": _plain(np.abs(multiplier))}
    return found


def _plain(values: Any) -> list[Any]:
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in np.asarray(values).tolist()]


def add(found: Mapping[str, Any], numbers: Numbers) -> None:
    """Shares of tokens that a reading gets wrong, with intervals over prompts."""
    for key, what, value in (("steps", "recurrences", STEPS), ("marginal", "rate called marginal", MARGINAL),
                             ("off", "error of ln rate called wrong", OFF), ("relaxed", "share of a step", RELAXED),
                             ("swings", "late cosine called a swing", SWINGS)):
        numbers.value(f"c.{key}", value, name="setting", what=what)
    for name in MODELS:
        if (piece := found.get(name.replace(", ", "-"))) is None:
            continue
        for form, own in piece.items():
            _add_model(numbers, f"c.{name}.{form}", pd.DataFrame(own["rows"]))
        numbers.series[f"c.{name}.steps"] = {form: {"steps": own["steps"], "still": own["still"]}
                                             for form, own in piece.items()}
    for r in ("4", "3.2"):
        for form, own in found[f"logistic-{r}"].items():
            _add_logistic(numbers, f"c.logistic {r}.{form}", own)


def _add_model(numbers: Numbers, key: str, rows: pd.DataFrame) -> None:
    number = rows[["truth", "window", "rate", "low", "high", "floor", "period", "last_step"]].astype(float)
    off = (np.log(number["rate"]) / np.log(number["truth"]) - 1).abs()
    off_window = (np.log(number["window"]) / np.log(number["truth"]) - 1).abs()
    given = number["rate"].notna()
    marks = {"marginal": number["window"] > MARGINAL, "window off": ~(off_window <= OFF),
             "repeat above 1": rows["repeats"] > 1, "frozen": rows["repeats"] == 1,
             "swings": rows["cosine"].astype(float) < SWINGS, "published wrong": rows["published"] != "fixed point",
             "at rest": number["last_step"] < 1e-12, "given": given,
             "refused": rows["outcome"] == Outcome.AT_PRECISION_FLOOR.name, "rate off": off > OFF,
             "regime wrong": ~rows["regime"].isin(["fixed point", "undetermined"]),
             "regime undetermined": rows["regime"] == "undetermined", "period above 1": number["period"] > 1}
    for mark, is_so in marks.items():
        numbers.add(f"{key}.{mark}", estimate(pd.DataFrame({"prompt": rows["prompt"], mark: is_so}), statistic="share",
                                              of=True, variable=mark, resample="prompt"))
    medians = {"truth": number["truth"], "window": number["window"], "rate": number["rate"], "floor": number["floor"],
               "error": off, "window error": off_window}
    for what, values in medians.items():
        known = values.notna()
        if rows["prompt"][known].nunique() > 2:
            numbers.add(f"{key}.{what}", estimate(pd.DataFrame({"prompt": rows["prompt"], what: values})[known],
                                                  statistic="median", variable=what, resample="prompt"))
    if rows["prompt"][given].nunique() > 2:
        holds = (number["low"] <= number["truth"]) & (number["truth"] <= number["high"])
        for mark, is_so in (("covered", holds), ("given off", off > OFF)):
            numbers.add(f"{key}.{mark}", estimate(pd.DataFrame({"prompt": rows["prompt"], mark: is_so})[given],
                                                  statistic="share", of=True, variable=mark, resample="prompt"))


def _add_logistic(numbers: Numbers, key: str, own: Mapping[str, Any]) -> None:
    n, repeats = len(own["repeats"]), np.array(own["repeats"])
    multiplier = np.array(own["multiplier"], dtype=float)
    period = np.array(own["period"], dtype=float)
    for mark, events in (("repeats", int((repeats > 0).sum())), ("period", int((period >= 1).sum())),
                         *((regime, own["regime"].count(regime)) for regime in ("chaotic", "orbit", "fixed point",
                                                                                "undetermined"))):
        numbers.share(f"{key}.{mark}", events, n, name="logistic map", of=mark, resample="start")
    numbers.share(f"{key}.repelled", int((multiplier > 1).sum()), int((repeats > 0).sum()), name="logistic map",
                  of="exact repeats whose cycle the map in float64 repels", resample="start")
    cycles = sorted(set(repeats[repeats > 0].tolist()))
    numbers.value(f"{key}.longest", max(cycles, default=math.nan), name="logistic map", what="longest exact repeat",
                  unit="steps", n=n)


_WRONG = (("whole window: marginal", "marginal"), ("whole window: rate off", "window off"),
          ("late steps point back", "swings"), ("exact repeat: frozen", "frozen"),
          ("exact repeat: a period above 1", "repeat above 1"), ("Algorithm 1: not a fixed point", "published wrong"))
_OURS = (("rate refused: at the precision floor", "refused"), ("rate given", "given"), ("rate off", "rate off"),
         ("regime other than fixed point", "regime wrong"), ("regime undetermined", "regime undetermined"),
         ("period above 1", "period above 1"))


def _names(numbers: Numbers) -> list[str]:
    return [name for name in MODELS if f"c.{name}.float32.truth" in numbers]


def findings(numbers: Numbers) -> tuple[str, ...]:
    """For the top of the page."""
    name = _names(numbers)[0]
    told = f"{name} has a median multiplier of {{KEY.float64.truth}}. A line through all steps of its bfloat16 run " \
           "reads {KEY.bfloat16 computed.window}; contraction_rate refuses {KEY.bfloat16 computed.refused:%} of the " \
           "tokens there, and reads {KEY.float32.rate} in float32."
    last = _names(numbers)[-1]
    short = f"Where it falls short: {last}, a rate of {{KEY.float64.truth}}, is read as {{KEY.float32.rate}} in " \
            "float32, off by more than {c.off:given} of its logarithm in {KEY.float32.rate off:%} of the tokens: the " \
            "slowest mode comes to light late, or below the floor. The intervals hold it in {KEY.float32.covered:%}."
    return (numbers.text(told.replace("KEY", f"c.{name}")), numbers.text(
        short.replace("KEY", f"c.{last}")), numbers.text(
        "Rounding to bfloat16 turns {c.logistic 4.bfloat16.repeats:%} of the chaotic logistic orbits into exact "
        "repeats; the map in float64 repels {c.logistic 4.bfloat16.repelled:%} of these cycles."))


def sections(numbers: Numbers) -> list[Section]:
    """The models, then the logistic map."""
    names = _names(numbers)
    rows = [row for name in names for by, marks in (("naive", _WRONG), ("dynloop", _OURS))
            for row in _conclusions(numbers, name, by, marks)]
    columns = ("truth", "window", "window error", "rate", "error")
    rates = [(name, form, *(numbers.cell(f"c.{name}.{form}.{what}") for what in columns),
              numbers.cell(f"c.{name}.{form}.covered", "%"),
              numbers.cell(f"c.{name}.{form}.floor", "value"))
             for name in names for form in FORMATS]
    first = names[0]
    units = numbers.text(f"{{c.{first}.float32.marginal:n}} tokens of {{c.{first}.float32.marginal:units}} prompts")
    about = numbers.text(
        f"{units} a model, two random starts each, {{c.steps:count}} recurrences. Truth: float64, the largest spectral "
        "radius of the Jacobian's own blocks of the token and those before it, at the limit. Relaxed: the loop "
        "h + {c.relaxed:given} (F(h) - h), which has the same limits and is slower. Brackets: 95 % intervals over "
        "prompts.")
    text = [numbers.text(
        "Shipped models were run in four ways: in float64, in float32, in bfloat16, and in float32 with the states "
        "stored in bfloat16. In float64 every token comes to rest ({KEY.float64.at rest:%} of those of NAME).".replace(
            "KEY", f"c.{first}").replace("NAME", first)), *(
        _told(numbers, name) for name in names)]
    models = Section("precision", "The precision floor", text=text, tables=(
        Table("precision-conclusions", "What is concluded of the tokens of a model that settles", (
            "model", "by", "conclusion", *FORMATS), rows, about + numbers.text(
                " Marginal: a rate above {c.marginal:given}. Rate off: ln rate off by more than {c.off:given} of it; "
                "a line through no more than two steps counts as off, a refusal does not. Steps point back: mean "
                "cosine of successive late steps below {c.swings:given}. Exact repeats: of the last quarter.")),
        Table("precision-rates", "Rates, medians over tokens", (
            "model", "format", "truth", "whole window", "error of its ln", "contraction_rate", "error of this ln",
            "its interval covers", "relative floor"), rates, about + (
            " The error compares the slowest mode that the orbit shows before the floor with the slowest that there "
            "is: a mode that the start hardly excites, or that would come to light below the floor, is not seen, in "
            "narrow formats more often than in float64. Intervals of single tokens are nominal 95 % ones.")),),
        drawings=tuple(_curves(numbers, name) for name in names))
    return [models, _logistic_section(numbers)]


def _told(numbers: Numbers, name: str) -> str:
    """One model in words."""
    key = f"c.{name}.bfloat16 computed"
    text = "NAME: the slowest multiplier that reaches a token is {KEY.float64.truth} in modulus (median). A line " \
           "through the whole window reads {KEY.bfloat16 computed.window} in bfloat16 and {KEY.float32.window} in " \
           "float32: {KEY.bfloat16 computed.marginal:%} and {KEY.float32.marginal:%} of the tokens would be called " \
           "marginal. Stored in bfloat16, {KEY.bfloat16 stored.frozen:%} repeat bit for bit. contraction_rate reads " \
           "{KEY.float32.rate} in float32"
    text += ", and in bfloat16 {KEY.bfloat16 computed.rate} where it answers; it refuses " if f"{key}.rate" in \
        numbers else ", and refuses in bfloat16 "
    text += "{KEY.bfloat16 computed.refused:%}"
    if f"{key}.covered" in numbers:
        text += ". Its intervals hold the truth in {KEY.float32.covered:%} of the tokens in float32 and in " \
                "{KEY.bfloat16 computed.covered:%} of the answered ones in bfloat16"
    text += "; ln rate is off by more than {c.off:given} of it in {KEY.float32.rate off:%} and " \
            "{KEY.bfloat16 computed.rate off:%} of all tokens"
    return numbers.text(text.replace("KEY", f"c.{name}").replace("NAME", name) + ".")


def _conclusions(numbers: Numbers, name: str, by: str, marks: Sequence[tuple[str, str]]) -> list[tuple[Any, ...]]:
    """A row a conclusion, and one for all that nobody would draw in any format."""
    seen = [(text, mark) for text, mark in marks
            if any(numbers[f"c.{name}.{form}.{mark}"].value > 0 for form in FORMATS)]
    rows = [(name, by, text, *(numbers.cell(f"c.{name}.{form}.{mark}", "%") for form in FORMATS))
            for text, mark in seen]
    never = [(text, mark) for text, mark in marks if (text, mark) not in seen]
    if never:
        rows.append((name, by, "none: " + "; ".join(text for text, _ in never), *(
            numbers.cell(f"c.{name}.{form}.{never[0][1]}", "%") for form in FORMATS)))
    return rows


def _logistic_section(numbers: Numbers) -> Section:
    forms = ("float64", "float32", "bfloat16")
    rows = [(r, form, *(numbers.cell(f"c.logistic {r}.{form}.{mark}", "%") for mark in (
        "chaotic", "orbit", "fixed point", "undetermined", "repeats", "repelled")),
             numbers.cell(f"c.logistic {r}.{form}.longest", "count")) for r in ("4", "3.2") for form in forms]
    return Section("logistic", "Chaos that rounding turns into cycles", text=(numbers.text(
        "The logistic map at r = 4 is chaotic: limit_regime says so of {c.logistic 4.float64.chaotic:%} of the starts "
        "in float64. In bfloat16 {c.logistic 4.bfloat16.repeats:%} repeat exactly within {c.steps:count} steps, with "
        "periods up to {c.logistic 4.bfloat16.longest:count}, and a recording alone cannot know better: limit_regime "
        "calls {c.logistic 4.bfloat16.orbit:%} an orbit and {c.logistic 4.bfloat16.fixed point:%} a fixed point. The "
        "map knows: in float64 it repels {c.logistic 4.bfloat16.repelled:%} of these cycles (multiplier above 1), at r "
        "= 3.2, where the period is real, {c.logistic 3.2.bfloat16.repelled:%}."),), tables=(
        Table("logistic", "x <- r x (1 - x) in three formats", (
            "r", "format", "called chaotic", "called orbit", "called fixed point", "undetermined", "exact repeats",
            "of these repelled by the map", "longest repeat"), rows, numbers.text(
                "{c.logistic 4.bfloat16.repeats:n} starts, the same in every format, {c.steps:count} states after a "
                "transient of twice as many; exact 95 % intervals (Clopper-Pearson) over starts. Regimes by "
                "limit_regime. Repelled: the product of the derivatives along the cycle, by LoopMap.jvp in float64, is "
                "above 1 in modulus.")),))


@styled
def _curves(numbers: Numbers, name: str) -> Drawing:
    figure, axes = new_axes(height=3.7)
    for i, (form, own) in enumerate(numbers.series[f"c.{name}.steps"].items()):
        steps = np.array(own["steps"], dtype=float)
        steps[steps == 0] = np.nan
        axes.plot(np.arange(1, len(steps) + 1), steps, color=COLOURS[i], linestyle=DASHES[i], linewidth=1.3, label=form)
    rate = numbers[f"c.{name}.float64.truth"].value
    first = float(numbers.series[f"c.{name}.steps"]["float64"]["steps"][0])
    t = np.arange(1, len(steps) + 1)
    line = first * rate ** (t - 1.0)
    axes.plot(t[line > 1e-17], line[line > 1e-17], color="#555555", linewidth=0.8, label=f"truth, rate {rate:.3g}")
    axes.set(yscale="log", xlabel="recurrence", ylabel="step over norm of the last state", title=name)
    powers_of_ten(axes.yaxis)
    figure.legend(loc="outside lower center", ncols=3)
    share = numbers[f"c.{name}.float64.marginal"]
    return draw(f"steps-{name.replace(', ', '-')}", figure, caption=(
        f"{name}: relative steps by number format, medians over n = {share.n:,} tokens of {share.n_units} prompts, "
        f"{STEPS} recurrences from a random start; a curve ends where the median step is exactly 0. Grey: the decay "
        "of the slowest multiplier (median, float64). No interval is drawn."),
        alt=f"Curves of the step of {name} on a log axis: all formats fall alike at first; bfloat16 levels near 1e-2, "
            "float32 near 1e-7, float64 near 1e-16.")
