"""Part d: an orbit of period 2 that one token starts and later tokens inherit.

Blocks of `synthetic/token_sources.py`, whose orbits, multipliers and roles are known in closed form: what recordings
say of every token, what the own blocks of the Jacobian say of who started it, and what happens when the source is held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from dynloop import estimate, limit_regime, limit_regime_blayney, measure, minimal_period
from dynloop.maps import LoopMap, cycle_multipliers, find_fixed_points, trajectory
from dynloop.maps.intervention import intervene
from dynloop.maps.token_spectrum import token_spectrum
from dynloop.report import Drawing, Section, Table, draw
from dynloop.report.figures.style import COLOURS, MARKERS, styled
from reports.numbers import Numbers
from synthetic.token_sources import TokenBlock, source_block

COMPUTE = ("_kind", "_prompt", "_distance", "_held", "_still_moving")
STEPS, N_TOKENS, WIDTH = 128, 10, 8
KINDS = {"no source": (), "one source": (1,), "two sources": (2,)}  # how many of them
ROLES = ("still", "source", "driven")


def pieces(tier: str) -> dict[str, Callable[[], Any]]:
    """A piece a kind of prompt."""
    n = {"no source": 4, "one source": 12, "two sources": 6} if tier == "full" else dict.fromkeys(KINDS, 2)
    return {kind.replace(" ", "-"): functools.partial(_kind, kind, n[kind]) for kind in KINDS}


def _kind(kind: str, n: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng([17, len(kind)])
    sources = KINDS[kind][0] if KINDS[kind] else 0
    places = [sorted(rng.choice(np.arange(1, N_TOKENS - 2), sources, replace=False).tolist()) for _ in range(n)]
    return [_prompt(source_block(own, n_tokens=N_TOKENS, width=WIDTH, seed=100 * sources + i))
            for i, own in enumerate(places)]


def _prompt(block: TokenBlock) -> dict[str, Any]:
    """A row a token: what is true, and what each tool says; errors of multipliers and what holding a token does."""
    f = LoopMap.from_module(block, block.shape, causal=True, name="tokens")
    start = torch.from_numpy(np.random.default_rng(3).normal(size=(1, *block.shape)))
    recorded = trajectory(f, start, 2 * STEPS, per="token")
    regime, period, published = measure(recorded.replace(states=recorded.states[:, :STEPS]),
                                        [limit_regime, minimal_period, limit_regime_blayney])
    last = recorded.states[:, -2:].transpose(0, 1)[:, None]  # (2, 1, tokens, width)
    at_cycle = token_spectrum(f, last[:2 if block.sources else 1])
    fixed = find_fixed_points(f, start, method="newton_krylov")
    point = torch.from_numpy(block.fixed_point())
    at_point = token_spectrum(f, point[None, None])
    own = {"cycle": np.abs(block.own_multipliers()).max(1) ** (0.5 if block.sources else 1),
           "fixed point": np.abs(block.own_multipliers(at="fixed point")).max(1)}
    half = (recorded.states[:, -1] - recorded.states[:, -2]).norm(dim=1).numpy() / 2
    whole = cycle_multipliers(f, last[:2 if block.sources else 1])
    exact = float(np.abs(block.own_multipliers()).max())
    rows = {"token": range(N_TOKENS), "role": block.roles, "amplitude": block.amplitudes(), "measured": half,
            "regime": regime["regime"], "period": np.where(period.found, period["period"], 0),
            "published": published["regime"], "role_said": at_cycle["role"], "radius": at_cycle["radius"],
            "radius_exact": own["cycle"], "outside": at_point["radius"], "outside_exact": own["fixed point"]}
    found = {"rows": {k: np.asarray(v).tolist() for k, v in rows.items()}, "sources": list(block.sources),
             "multiplier_error": abs(float(whole["multiplier"][0]) / exact - 1) if whole.found[0] else None,
             "point_error": _distance(fixed, point)}
    for name, tokens in _held(block, at_point["radius"]).items():
        found[name] = _still_moving(f, start, point, tokens, block.roles)
    return found


def _distance(fixed: Any, point: torch.Tensor) -> float | None:
    """Relative distance of the fixed point that was found from the exact one."""
    if not fixed.n_points:
        return None
    away = torch.as_tensor(fixed.points).reshape(fixed.n_points, -1).double() - point.flatten()
    return float(away.norm(dim=1).min() / point.norm())


def _held(block: TokenBlock, radius: np.ndarray) -> dict[str, list[int]]:
    """Which tokens are held: those whose own block is unstable at the fixed point, the first of them, a driven one."""
    outside = np.flatnonzero(radius > 1).tolist()
    if not outside:
        return {}
    driven = [i for i, role in enumerate(block.roles) if role == "driven"]
    return {"held sources": outside, "held driven": driven[:1]} | (
        {"held first": outside[:1]} if len(outside) > 1 else {})


def _still_moving(f: LoopMap, start: torch.Tensor, point: torch.Tensor, tokens: list[int],
                  roles: tuple[str, ...]) -> list[int]:
    """(tokens that still move, all that moved) beside those that are held at the fixed point from a recurrence on."""
    run = intervene(f, start, 3 * STEPS, at=STEPS, n_held=2 * STEPS + 1, state=point[None], tokens=tokens, per="token")
    regime = limit_regime(run.replace(states=run.states[:, -STEPS:]))
    others = np.delete(regime["regime"], tokens)[np.delete(roles, tokens) != "still"]
    return [int((others == "orbit").sum()), len(others)]


def add(found: Mapping[str, Any], numbers: Numbers) -> None:
    """Shares of tokens with intervals over prompts, largest errors, what holding does."""
    for key, what, value in (("steps", "recurrences", STEPS), ("tokens", "tokens of a prompt", N_TOKENS),
                             ("width", "features of a token", WIDTH)):
        numbers.value(f"d.{key}", value, name="setting", what=what)
    prompts = [p for kind in KINDS for p in found[kind.replace(" ", "-")]]
    numbers.value("d.prompts", len(prompts), name="setting", what="prompts", unit="prompts")
    rows = pd.concat([pd.DataFrame(p["rows"]).assign(prompt=i) for i, p in enumerate(prompts)], ignore_index=True)
    orbits = rows["role"] != "still"
    truth = np.where(orbits, "orbit", "fixed point")
    marks = {"regime right": rows["regime"] == truth, "period right": rows["period"] == np.where(orbits, 2, 1),
             "published right": rows["published"] == truth, "role right": rows["role_said"] == rows["role"],
             "source right": (rows["outside"] > 1) == (rows["role"] == "source")}
    for mark, is_so in marks.items():
        numbers.add(f"d.{mark}", estimate(pd.DataFrame({"prompt": rows["prompt"], mark: is_so}), statistic="share",
                                          of=True, variable=mark, resample="prompt"))
    for role in ROLES:
        own = rows["role"] == role
        numbers.value(f"d.{role}", int(own.sum()), name="blocks", what=f"{role} tokens", unit="tokens")
        numbers.share(f"d.{role}.orbit", int((rows["regime"][own] == "orbit").sum()), int(own.sum()),
                      name="limit_regime", of=f"{role} tokens called orbit", resample="token")
        for what, variable in (("cycle", "radius"), ("fixed point", "outside")):
            for part in ("min", "max"):
                numbers.value(f"d.{role}.{what}.{part}", float(getattr(rows[variable][own], part)()),
                              name="token_spectrum", what=f"{part} own radius of {role} tokens at the {what}",
                              unit="per step", n=int(own.sum()))
    for key, what, error in (
            ("amplitude error", "amplitude of an orbit, relative",
             (rows["measured"] / rows["amplitude"].where(orbits) - 1).abs().max()),
            ("radius error", "own radius, relative", (rows["radius"] / rows["radius_exact"] - 1).abs().max()),
            ("outside error", "own radius at the fixed point, relative",
             (rows["outside"] / rows["outside_exact"] - 1).abs().max()),
            ("multiplier error", "multiplier of the cycle, relative",
             max(p["multiplier_error"] for p in prompts if p["multiplier_error"] is not None)),
            ("point error", "fixed point, relative", max(p["point_error"] for p in prompts
                                                         if p["point_error"] is not None))):
        numbers.value(f"d.{key}", float(error), name="largest error", what=what, n=len(rows))
    numbers.share("d.points found", sum(p["point_error"] is not None for p in prompts), len(prompts),
                  name="find_fixed_points", of="prompts with a fixed point found", resample="prompt")
    for held in ("held sources", "held driven", "held first"):
        counts = np.array([p[held] for p in prompts if held in p])
        if len(counts):
            numbers.value(f"d.{held}.prompts", len(counts), name="intervene", what="prompts")
            numbers.share(f"d.{held}", int(counts[:, 0].sum()), int(counts[:, 1].sum()), name="intervene",
                          of=f"other moving tokens still on an orbit, {held}", resample="token")
    one = min(found["one-source"], key=lambda p: abs(p["sources"][0] - N_TOKENS // 3))
    numbers.series["d.example"] = one["rows"] | {"sources": one["sources"]}


def findings(numbers: Numbers) -> tuple[str, ...]:
    """For the top of the page."""
    return (numbers.text(
        "Of tokens on an orbit of period 2 ({d.source:count} sources, {d.driven:count} driven), a recording shows all "
        "alike; the Jacobian's own blocks at the fixed point name the sources rightly in {d.source right:%} of the "
        "tokens, and without the sources {d.held sources:%} of the others move on."),)


def sections(numbers: Numbers) -> list[Section]:
    """What every tool says, and the example."""
    text = numbers.text(
        "In {d.prompts:count} toy prompts {d.source:count} tokens start an orbit of period 2 and {d.driven:count} "
        "later ones inherit it by attention; a recording shows {d.source.orbit:value%} and {d.driven.orbit:value%} of "
        "them on an orbit, one like the other. The own blocks of the Jacobian part them: at the fixed point the own "
        "radius of sources is {d.source.fixed point.min:value} to {d.source.fixed point.max:value}, that of driven "
        "tokens at most {d.driven.fixed point.max:value}, which tells source from other in {d.source right:%} of "
        "the tokens. Holding the sources at the fixed point leaves {d.held sources:%} of the other moving tokens on "
        "their orbit, holding a driven token {d.held driven:%}.")
    rows = [("limit_regime: orbit or fixed point, right", numbers.cell("d.regime right", "%")),
            ("minimal_period: 2 or 1, right", numbers.cell("d.period right", "%")),
            ("Algorithm 1: orbit or fixed point, right", numbers.cell("d.published right", "%")),
            ("token_spectrum on the cycle: source, driven or still, right", numbers.cell("d.role right", "%")),
            ("token_spectrum at the fixed point: source or not, right", numbers.cell("d.source right", "%"))]
    roles = [(role, numbers.cell(f"d.{role}", "count"), numbers.cell(f"d.{role}.orbit", "%"), *(
        numbers.cell(f"d.{role}.{what}.{part}", "value") for what in ("fixed point", "cycle")
        for part in ("min", "max"))) for role in ROLES]
    exact = [(what, numbers.cell(f"d.{key}", "value")) for key, what in (
        ("amplitude error", "amplitude of a token's orbit, by attention weight"),
        ("radius error", "own radius of a token along the cycle (token_spectrum)"),
        ("outside error", "own radius of a token at the fixed point (token_spectrum)"),
        ("multiplier error", "largest multiplier of the whole cycle (cycle_multipliers)"),
        ("point error", "fixed point (find_fixed_points)"))]
    held = [(words, numbers.cell(f"d.{key}.prompts", "count"), numbers.cell(f"d.{key}", "%")) for key, words in (
        ("held sources", "all tokens whose own block is unstable at the fixed point"),
        ("held first", "the first of two sources alone"), ("held driven", "one driven token"))
        if f"d.{key}" in numbers]
    note = numbers.text("{d.prompts:count} prompts of {d.tokens:count} tokens and {d.width:count} features, none, one "
                        "or two sources each, random starts, {d.steps:count} recurrences in float64. ")
    return [Section("sources", "An orbit that is started once and inherited", text=(text, (
        "On the cycle itself every own block is stable, that of a source too, since the cycle attracts: there "
        "token_spectrum takes the first token that moves for the source, and a second source for a driven token. Only "
        "the unstable fixed point shows all of them.")), tables=(
        Table("token-readings", "What is said of the tokens", ("reading", "tokens rightly named"), rows,
              note + "Brackets: 95 % intervals over prompts."),
        Table("token-roles", "Who started it: own radius of a token, a step", (
            "role", "tokens", "called orbit", "at the fixed point, least", "largest", "along the cycle, least",
            "largest "), roles, note + "Called orbit: by limit_regime, exact 95 % interval over tokens. Own radius: of "
            "the response of a token to itself."),
        Table("token-errors", "Largest relative error against the closed form", ("of what", "error"), exact, note),
        Table("token-held", "Tokens held at the fixed point from a recurrence on", (
            "what is held", "prompts", "of the others that moved, still on an orbit"), held,
            note + numbers.text("By intervene; the last {d.steps:count} states are judged by limit_regime. Exact 95 % "
                                "intervals over tokens."))),
        drawings=(_figure(numbers),))]


@styled
def _figure(numbers: Numbers) -> Drawing:
    rows = numbers.series["d.example"]
    figure = Figure(figsize=(9.2, 3.4))
    left, right = figure.subplots(1, 2)
    token, role = np.array(rows["token"]), np.array(rows["role"])
    for i, name in enumerate(ROLES):
        own = role == name
        left.plot(token[own], np.array(rows["measured"])[own], linestyle="none", marker=MARKERS[i], color=COLOURS[i],
                  markersize=6, label=name)
        right.plot(token[own], np.array(rows["outside"])[own], linestyle="none", marker=MARKERS[i], color=COLOURS[i],
                   markersize=6, label=name)
    left.plot(token, rows["amplitude"], linestyle="none", marker="_", color="#333333", markersize=12,
              label="closed form")
    right.axhline(1, color="#555555", linewidth=0.9, linestyle=(0, (4, 2)))
    left.set(xlabel="token", ylabel="half the distance of the two states", title="the orbit, as recorded",
             xticks=token)
    right.set(xlabel="token", ylabel="own radius at the fixed point, a step", title="who starts it", yscale="log",
              xticks=token, yticks=[0.2, 0.5, 1, 2, 3], yticklabels=["0.2", "0.5", "1", "2", "3"])
    right.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return draw("source-and-driven", figure, caption=numbers.text(
        "One prompt of {d.tokens:count} tokens with one source, {d.steps:count} recurrences, no noise, so no "
        "interval. Left: amplitude of each token's orbit, and its closed form. Right: spectral radius of the token's "
        "own block of the Jacobian at the fixed point; above the dashed line a token leaves it by itself."),
        alt="Two panels of dots by token. Left: tokens before the source have amplitude 0, the source the largest, "
            "later ones less. Right: the source alone lies above 1.")
