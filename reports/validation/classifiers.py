"""Part b: how often Algorithm 1 and the calibrated classifier err on orbits whose regime is known.

Orbits of `synthetic/bank.py`, drawn afresh for this report as `benchmarks/false_alarms.py` draws them, beside the
million orbits that it has counted; and named systems of `synthetic/`, on which the rule was not calibrated.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import false_alarms
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dynloop import Measurement, Outcome, proportion
from dynloop.report import Drawing, Section, Table, draw
from dynloop.report.figures.style import COLOURS, MARKERS, styled
from dynloop.statistics.share import clopper_pearson
from reports.numbers import Numbers

COMPUTE = ("_counted",)
SEED, STEPS = 770_000, 128
LEVELS = (0.0, 0.01, 0.05, 0.2)
FORMATS = false_alarms.FORMATS
RULES = {"published": "Algorithm 1", "regime": "limit_regime"}  # as the counts are called, and in words
SOURCES = {"fresh": "fresh orbits", "committed": "committed counts", "named": "systems it was not calibrated on"}
PREVALENCE, N_TOKENS = 0.0002, 100_000  # published shares of non-fixed points: .01 to .14 % of the tokens

_REGIME = {family: regime for family, (regime, _) in false_alarms.bank.FAMILIES.items()}
_NAMED = {name: regime for name, (regime, _) in false_alarms.sources(True).items()}


def _families(*regimes: str) -> tuple[str, ...]:
    return tuple(name for name, regime in {**_REGIME, **_NAMED}.items() if regime in regimes)


def _noises(*names: str) -> tuple[str, ...]:
    named = [name for name in _NAMED if name.startswith(("white noise", "autoregression"))] \
        if "white_noise" in names else [name for name in _NAMED if name.startswith("random walk")]
    return (*names, *named)


# key -> what was drawn, the families of it, what is said of it, whether that is wrong
QUESTIONS: Mapping[str, tuple[str, tuple[str, ...], str, bool]] = {
    "contraction-orbit": ("fixed points", _families("fixed point"), "orbit", True),
    "contraction-slider": ("fixed points", _families("fixed point"), "slider", True),
    "slow-orbit": ("slow convergence", _families("converging"), "orbit", True),
    "slow-slider": ("slow convergence", _families("converging"), "slider", True),
    "noise-orbit": ("noise, white or coloured", _noises("white_noise", "autoregressive", "coloured_noise"), "orbit",
                    True),
    "walk-orbit": ("random walks", _noises("random_walk"), "orbit", True),
    "walk-slider": ("random walks", _noises("random_walk"), "slider", True),
    "chaos-orbit": ("chaos", _families("chaotic"), "orbit", True),
    "torus-orbit": ("quasi-periodic movement", _families("quasi-periodic"), "orbit", True),
    "orbit-orbit": ("orbits", _families("orbit"), "orbit", False),
    "slider-slider": ("sliders", _families("slider"), "slider", False),
    "contraction-fixed": ("fixed points", _families("fixed point"), "fixed point", False),
}
_SHOWN = ("contraction-orbit", "slow-orbit", "noise-orbit", "chaos-orbit", "orbit-orbit")


def pieces(tier: str) -> dict[str, Callable[[], Any]]:
    """A piece a cell of noise and format."""
    cells = list(itertools.product(LEVELS, FORMATS)) if tier == "full" else [(0.0, FORMATS[0])]
    n, n_named = (64, 6) if tier == "full" else (3, 0)
    found: dict[str, Callable[[], Any]] = {}
    for unit, (level, form) in enumerate(cells):
        cell = (level, STEPS, form)
        found[f"bank-{level:g}-{form.replace(' ', '-')}"] = functools.partial(
            _counted, cell, unit, n, False)
        if n_named and level in (0.0, 0.05):
            found[f"named-{level:g}-{form.replace(' ', '-')}"] = functools.partial(_counted, cell, unit, n_named, True)
    return found


def _counted(cell: tuple[float, int, str], unit: int, n: int, named: bool) -> dict[str, Any]:
    counts = false_alarms.count(cell, SEED, unit, n, 0, named)
    return {"cell": list(cell), "counts": {family: {rule: of[rule] for rule in RULES} for family, of in counts.items()}}


def add(found: Mapping[str, Any], numbers: Numbers) -> None:
    """Shares with exact intervals; what a small prevalence would mean."""
    committed = false_alarms.total(json.loads((false_alarms.RESULTS / "confusion.json").read_text(encoding="utf-8")))
    by_source: dict[str, list[tuple[Any, Any]]] = {
        "fresh": [(piece["cell"], piece["counts"]) for name, piece in found.items() if name.startswith("bank")],
        "named": [(piece["cell"], piece["counts"]) for name, piece in found.items() if name.startswith("named")],
        "committed": [((float(level), int(steps), form), counts) for cell, counts in committed.items()
                      for level, steps, form in [cell.split(" | ")]]}
    for source, cells in by_source.items():
        at = [cell for cell in cells if cell[0][1] == STEPS]
        if not at:
            continue
        numbers.value(f"b.{source}.orbits", sum(_answers(counts, "regime", tuple(counts))[1] for _, counts in at),
                      name=SOURCES[source], what="orbits", unit="orbits")
        numbers.value(f"b.{source}.families", len({family for _, counts in at for family in counts}),
                      name=SOURCES[source], what="families", unit="families")
        for rule, (key, (what, families, claim, _)) in itertools.product(RULES, QUESTIONS.items()):
            _add(numbers, f"b.{source}.{rule}.{key}", at, rule, families, claim, what)
            if key not in _SHOWN or source == "named":
                continue
            for level, form in itertools.product(LEVELS, FORMATS):
                for where, kept in ((f"{level:g}", [c for c in at if c[0][0] == level]),
                                    (f"{level:g}.{form}", [c for c in at if c[0][0] == level and c[0][2] == form])):
                    if kept and f"b.{source}.{rule}.{key}.{where}" not in numbers:
                        _add(numbers, f"b.{source}.{rule}.{key}.{where}", kept, rule, families, claim, what)
    numbers.value("b.committed.all", sum(_answers(c, "regime", tuple(c))[1] for _, c in by_source["committed"]),
                  name="committed counts", what="orbits, all lengths", unit="orbits")
    _prevalences(numbers, [c for c in by_source["committed"] if c[0][0] == 0 and c[0][1] == STEPS])


def _answers(counts: Mapping[str, Any], rule: str, families: tuple[str, ...], claim: str | None = None) \
        -> tuple[int, int]:
    """Orbits of some families of which something was said, and all of them."""
    told = [counts[family][rule] for family in families if family in counts]
    return sum(of.get(claim, 0) for of in told), sum(sum(of.values()) for of in told)


def _add(numbers: Numbers, key: str, cells: Any, rule: str, families: tuple[str, ...], claim: str, what: str) -> None:
    both = np.sum([_answers(counts, rule, families, claim) for _, counts in cells], axis=0)
    numbers.share(key, int(both[0]), int(both[1]), name=RULES[rule], of=f"{what} called {claim}",
                  notes=("independent orbits of the bank; the share is one of this mix of families",))


def _prevalences(numbers: Numbers, cells: Any) -> None:
    """What an orbit prevalence of .02 % among contractions would look like, and what a reader could make of it."""
    numbers.value("b.prevalence", PREVALENCE, name="assumed", what="prevalence of orbits", unit="share")
    numbers.value("b.tokens", N_TOKENS, name="assumed", what="independent tokens", unit="tokens")
    regimes = _families("fixed point", "converging")
    for rule, form in itertools.product(RULES, FORMATS):
        own = [c for c in cells if c[0][2] == form]
        power = tuple(int(v) for v in np.sum([_answers(c, rule, _families("orbit"), "orbit") for _, c in own], axis=0))
        alarms = tuple(int(v) for v in np.sum([_answers(c, rule, regimes, "orbit") for _, c in own], axis=0))
        key = f"b.{PREVALENCE:g}.{rule}.{form}"
        numbers.share(f"{key}.power", *power, name=RULES[rule], of="orbits called orbit")
        numbers.share(f"{key}.alarms", *alarms, name=RULES[rule], of="contractions called orbit")
        s, a = (np.array([counts[0] / counts[1], *clopper_pearson(*counts, 0.975)]) for counts in (power, alarms))
        value, low, high = (q * p / (q * p + r * (1 - q)) if q * p + r else float("nan") for q, p, r in
                            ((PREVALENCE, s[0], a[0]), (PREVALENCE, s[1], a[2]), (PREVALENCE, s[2], a[1])))
        numbers.value(f"{key}.ppv", value, low=low, high=high, name=RULES[rule], unit="share", n=alarms[1],
                      what=f"orbits among those called orbit, at a prevalence of {PREVALENCE:g}",
                      method="exact limits of both rates (Bonferroni)", resample="orbit")
        called = round(N_TOKENS * (PREVALENCE * s[0] + (1 - PREVALENCE) * a[0]))
        regime = np.where(np.arange(N_TOKENS) < called, "orbit", "fixed point")
        seen = Measurement("regime", {"regime": regime}, np.full(N_TOKENS, Outcome.FOUND, dtype=object))
        numbers.share(f"{key}.seen", called, N_TOKENS, name=RULES[rule], of="tokens called orbit, as expected")
        numbers.add(f"{key}.corrected", proportion(seen, of="orbit", resample="orbit", power=power,
                                                   false_alarms=alarms))


def findings(numbers: Numbers) -> tuple[str, ...]:
    """For the top of the page."""
    at = f"b.{PREVALENCE:g}"
    return (numbers.text(
        "Algorithm 1 calls {b.fresh.published.contraction-orbit:%} of known fixed points an orbit and sees "
        "{b.fresh.published.orbit-orbit:%} of the orbits; limit_regime {b.fresh.regime.contraction-orbit:%} and "
        "{b.fresh.regime.orbit-orbit:%} ({b.fresh.orbits:count} fresh orbits)."), numbers.text(
        "Were {b.prevalence:given%} of the tokens orbits, {AT.published.float32.ppv:%} of those that Algorithm 1 calls "
        "so would be, and at least {AT.regime.float32.ppv:low%} of those that limit_regime does.".replace("AT", at)))


def sections(numbers: Numbers) -> list[Section]:
    """Rates, and what they make of a small prevalence."""
    both = [("published", "fresh"), ("published", "committed"), ("regime", "fresh"), ("regime", "committed")]
    has_named = "b.named.orbits" in numbers
    if has_named:
        both = [*both[:2], ("published", "named"), *both[2:], ("regime", "named")]
    heads = {"fresh": "fresh", "committed": "committed", "named": "not calibrated on"}
    rows = [(f"{what} called {claim}" + ("" if wrong else " (right)"),
             *(numbers.cell(f"b.{source}.{rule}.{key}", "%") for rule, source in both))
            for key, (what, _, claim, wrong) in QUESTIONS.items()]
    rates = Table("error-rates", f"What is said of known orbits, {STEPS} recurrences", (
        "said of what", *(f"{RULES[rule]}, {heads[source]}" for rule, source in both)), rows, numbers.text(
        "Exact 95 % intervals (Clopper-Pearson) over independent orbits. Fresh: {b.fresh.orbits:count} orbits of "
        "{b.fresh.families:count} families, seeds used nowhere else. Committed: {b.committed.orbits:count} orbits of "
        "the same length in benchmarks/results/confusion.json, of {b.committed.all:count} in all. "
        + ("Not calibrated on: {b.named.orbits:count} orbits of {b.named.families:count} named systems. "
           if has_named else "")
        + "All noises and number formats pooled."))
    shown = [(f"{100 * level:g} %", form, *(
        numbers.cell(f"b.fresh.{rule}.{key}.{level:g}.{form}", "%") for key in ("contraction-orbit", "slow-orbit",
                                                                                "orbit-orbit") for rule in RULES))
        for level, form in itertools.product(LEVELS, FORMATS)
        if f"b.fresh.regime.orbit-orbit.{level:g}.{form}" in numbers]
    detail = Table("error-rates-by-format", f"By noise and number format, {STEPS} recurrences", (
        "noise", "format", *(f"{what}, {rule}" for what in ("fixed points called orbit", "slow ones called orbit",
                                                            "orbits called orbit") for rule in RULES.values())),
        shown, "Fresh orbits, exact 95 % intervals. Noise: rms over the orbit's amplitude. bfloat16 stored: rounded "
               "when recorded; computed: rounded in the loop as well.")
    text = (numbers.text(
        "Algorithm 1 of Blayney et al. (bit-faithful) and limit_regime were asked of orbits whose regime is known: "
        "{b.fresh.orbits:count} drawn afresh for this report, and the committed counts of benchmarks/false_alarms.py. "
        "Algorithm 1 knows no other regimes than fixed point, orbit and slider, so that it must call what is none of "
        "these something; the error is that it does not say so."), numbers.text(
        "Algorithm 1 calls {b.fresh.published.contraction-orbit:%} of the fixed points and "
        "{b.fresh.published.slow-orbit:%} of the slow approaches an orbit, {b.fresh.published.noise-orbit:%} of the "
        "noise and {b.fresh.published.chaos-orbit:%} of the chaos, and {b.fresh.published.walk-slider:%} of the random "
        "walks a slider; it sees {b.fresh.published.orbit-orbit:%} of the orbits. The same shares of limit_regime are "
        "{b.fresh.regime.contraction-orbit:%}, {b.fresh.regime.slow-orbit:%}, {b.fresh.regime.noise-orbit:%}, "
        "{b.fresh.regime.chaos-orbit:%} and {b.fresh.regime.walk-slider:%}; it sees {b.fresh.regime.orbit-orbit:%} of "
        "the orbits."))
    drawings = [_figure(numbers)]
    return [Section("classifiers", "Algorithm 1 and the calibrated classifier", text=text, tables=(rates, detail),
                    drawings=drawings), _prevalence_section(numbers)]


def _prevalence_section(numbers: Numbers) -> Section:
    rows = []
    for rule, form in itertools.product(RULES, FORMATS):
        key = f"b.{PREVALENCE:g}.{rule}.{form}"
        rows.append((RULES[rule], form, numbers.cell(f"{key}.alarms", "%"), numbers.cell(f"{key}.power", "%"),
                     numbers.cell(f"{key}.ppv", "%"), numbers.cell(f"{key}.seen", "value%"),
                     numbers.cell(f"{key}.corrected", "%")))
    at = f"b.{PREVALENCE:g}"
    return Section("prevalence", "What a small prevalence would mean", text=(numbers.text(
        "Published shares of tokens that do not reach a fixed point are of the order of {b.prevalence:given%}. Were "
        "that the truth, {AT.published.float32.seen:value%} of the tokens would be called an orbit by Algorithm 1 "
        "(float32, no noise), and {AT.published.float32.ppv:%} of these would be one. Of those that limit_regime calls "
        "so, {AT.regime.float32.ppv:low%} or more would be: it called {AT.regime.float32.alarms:%} of "
        "{AT.regime.float32.alarms:n} contractions an orbit, and more orbits would be needed to say more. Corrected "
        "for its own errors, Algorithm 1's share leaves "
        "anything up to {AT.published.float32.corrected:high%} open.".replace("AT", at)),), tables=(
        Table("prevalence", numbers.text("If {b.prevalence:given%} of the tokens were orbits, all others contractions"),
              ("rule", "format", "contractions called orbit", "orbits called orbit", "orbits among those called so",
               "tokens called so", "corrected prevalence"), rows, numbers.text(
                  "Rates: committed counts without noise, half of the contractions fast and half slow, exact 95 % "
                  "intervals. Orbits among those called so: positive predictive value, limits from the exact limits of "
                  "both rates (Bonferroni). Corrected: what dynloop.proportion (Rogan and Gladen, melded exact "
                  "intervals) makes of the share that is expected among {b.tokens:count} independent tokens.")),))


@styled
def _figure(numbers: Numbers) -> Drawing:
    figure = Figure(figsize=(9.2, 3.6))
    panels = figure.subplots(1, 2, sharey=True)
    floor = 1e-4
    for axes, (rule, name) in zip(panels, RULES.items(), strict=True):
        for i, key in enumerate(_SHOWN):
            what, _, _, wrong = QUESTIONS[key]
            at = [(level, numbers[f"b.fresh.{rule}.{key}.{level:g}"]) for level in LEVELS
                  if f"b.fresh.{rule}.{key}.{level:g}" in numbers]
            x = np.arange(len(at)) + 0.08 * (i - 2)
            value, low, high = (np.array([max(getattr(e, part), floor) for _, e in at])
                                for part in ("value", "low", "high"))
            axes.errorbar(x, value, yerr=np.maximum([value - low, high - value], 0), color=COLOURS[i],
                          marker=MARKERS[i], markersize=4, linewidth=0.9, linestyle="--" if wrong else "-",
                          capsize=2, label=f"{what}" + ("" if wrong else " (right)"))
        axes.set(title=name, yscale="log", xticks=range(len(at)), xlabel="noise, rms over the orbit's amplitude",
                 xticklabels=[f"{100 * level:g} %" for level, _ in at], ylim=(0.7 * floor, 1.4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    panels[0].set_ylabel("called orbit")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    n = sorted({numbers[f"b.fresh.regime.{key}.{level:g}"].n for key in _SHOWN for level in LEVELS
                if f"b.fresh.regime.{key}.{level:g}" in numbers})
    return draw("called-orbit", figure, caption=(
        f"Share of known orbits that are called an orbit, by what they are, {STEPS} recurrences, number formats "
        f"pooled; n = {n[0]:,} to {n[-1]:,} orbits a point. Lines: exact 95 % intervals (Clopper-Pearson); shares "
        f"below {100 * floor:g} % stand at {100 * floor:g} %. Algorithm 1 with tau = .05 and rho = .9; limit_regime "
        "with least_confidence = .95."),
        alt="Two panels of dots with intervals on a log axis. Left, Algorithm 1: every kind of movement is called an "
            "orbit in many of the cases. Right, limit_regime: orbits near 100 %, everything else near the bottom.")
