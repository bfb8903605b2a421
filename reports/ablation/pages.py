"""The report of the study, made of numbers.json and nothing else: every number in it is looked up there."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterator
from typing import Any

from drawings import INJECTIONS, NORMS, curves, grid

from dynloop.report import Report
from dynloop.report.cells import Cell, Table, listed, significant
from dynloop.report.figures import Drawing, draw, forest
from dynloop.report.sections.section import Section
from dynloop.statistics import Estimate

Numbers = dict[str, Any]
TITLES = {"rest": "Share of prompts at rest", "rate": "Contraction rate", "growth": "Growth of the norm",
          "extrapolation": "Loss beyond the trained recurrences", "attention": "Share of attention maps at rest",
          "mirroring": "Mirroring, by states", "mirroring_attention": "Mirroring, by attention"}
SHARES = {"rest", "attention"}
WORDS = {"rest": "the share of prompts that come to rest", "rate": "the contraction rate",
         "growth": "the growth of the norm", "extrapolation": "the loss beyond the trained recurrences",
         "attention": "the share of attention maps that come to rest", "mirroring": "mirroring by states",
         "mirroring_attention": "mirroring by attention"}


# ---- numbers as they are shown

def number(entry: dict[str, Any] | None) -> Cell:
    """A number with its interval."""
    if entry is None or entry.get("value") is None:
        return Cell("none")
    value, low, high = entry["value"], entry.get("low"), entry.get("high")
    if low is None or high is None:
        return Cell(significant(value), value)
    return Cell(f"{significant(value)} [{significant(low)}, {significant(high)}]", value, low, high)


def percent(entry: dict[str, Any] | None) -> Cell:
    """A share, or a difference of shares, in percent."""
    if entry is None or entry.get("value") is None:
        return Cell("none")
    value, low, high = (None if entry.get(k) is None else 100 * entry[k] for k in ("value", "low", "high"))
    if low is None or high is None:
        return Cell(f"{significant(value)} %", value)
    return Cell(f"{significant(value)} [{significant(low)}, {significant(high)}] %", value, low, high)


def shown(measure: str) -> Callable[[dict[str, Any] | None], Cell]:
    """How numbers of a measure are shown."""
    return percent if measure in SHARES else number


def p_of(value: float | None) -> Cell:
    """A p-value."""
    return Cell("none") if value is None else Cell(significant(value, 2), value)


def _contrasts(numbers: Numbers, measure: str) -> list[dict[str, Any]]:
    return [c for c in numbers["contrasts"] if c["measure"] == measure]


def _find(numbers: Numbers, measure: str, name: str) -> dict[str, Any] | None:
    return next((c for c in _contrasts(numbers, measure) if c["contrast"] == name), None)


def _seeds(numbers: Numbers) -> str:
    n = numbers["settings"]["n_seeds"]
    return f"{n} seeds"


def told(subject: str, one: dict[str, Any]) -> str:
    """A sentence: it is higher or lower, or so many seeds cannot tell."""
    cell, p = shown(one["measure"])(one), p_of(one["p_adjusted"])
    if one["verdict"] == "differ":
        return f"{subject} is {'higher' if one['value'] > 0 else 'lower'}: difference {cell}, p = {p}"
    seen = shown(one["measure"])({"value": one["detectable"]}) if one["detectable"] is not None else "any size"
    return (f"Whether {subject[0].lower()}{subject[1:]} is higher or lower, {one['n_seeds']} seeds cannot tell: "
            f"difference {cell}, p = {p}; they would have seen one of {seen} with a power of "
            f"{significant(one['power'])}")


def contrast_table(numbers: Numbers, measure: str) -> Table:
    """All contrasts of a measure."""
    form = shown(measure)
    rows = [(c["contrast"], c["n_cells"], form({"value": c["condition_mean"]}), form({"value": c["baseline_mean"]}),
             form(c), p_of(c["p_value"]), p_of(c["p_adjusted"]),
             form({"value": c["detectable"]}) if c["detectable"] is not None else "no spread", c["verdict"])
            for c in _contrasts(numbers, measure)]
    family = next((c["family_size"] for c in _contrasts(numbers, measure)), 0)
    level = f"{100 * numbers['settings']['level']:g} %"
    return Table(f"contrasts-{measure.replace('_', '-')}", f"{TITLES[measure]}: contrasts over matched conditions",
                 ("contrast", "cells", "first", "second", "difference", "p", "p, Holm", "would be seen", "verdict"),
                 rows, f"Cells: conditions that differ in nothing else and have a number at every seed on both sides. "
                 f"Brackets: {level} of Student's t over the seeds' differences, paired by seed. Holm over the "
                 f"{family} contrasts of this table. Would be seen: the difference that {_seeds(numbers)} find with a "
                 f"power of {significant(numbers['settings']['power'])} in a single test.")


def contrast_forest(numbers: Numbers, measure: str) -> Drawing | None:
    """The contrasts of a measure, drawn."""
    own = [c for c in _contrasts(numbers, measure) if c["low"] is not None]
    if not own:
        return None
    scale = 100 if measure in SHARES else 1
    unit = "percent" if measure in SHARES else ""
    items = [types.SimpleNamespace(value=scale * c["value"], low=scale * c["low"], high=scale * c["high"], name=measure,
                                   statistic="difference", unit=unit, difference="difference", method="paired t",
                                   confidence_level=c["confidence_level"], resample="seed", n_units=c["n_seeds"])
             for c in own]
    name = f"forest-{measure.replace('_', '-')}"
    return draw(name, forest(items, labels=[c["contrast"] for c in own], reference=0.0),
                caption=f"{TITLES[measure]}: differences between matched conditions. Dots: means over {_seeds(numbers)}"
                        f"; lines: {100 * numbers['settings']['level']:g} % intervals (paired t over seeds, not "
                        "adjusted). Dashed: no difference.",
                alt="Dots with intervals, one contrast a row. " + "; ".join(
                    f"{c['contrast']}: {shown(measure)(c)}" for c in own))


def _drawn(*drawings: Drawing | None) -> tuple[Drawing, ...]:
    return tuple(d for d in drawings if d is not None)


# ---- sections

def design(numbers: Numbers) -> Section:
    """What was trained and measured, and every outcome that is no answer."""
    s, c = numbers["settings"], numbers["counts"]
    missing = c["planned"] - c["included"]
    text = [
        f"Looped language models of width {s['width']} were trained on bytes for {s['steps']:,} steps of "
        f"{s['batch_size']} windows of {s['length']} bytes with {s['n_recurrences']} recurrences: block size, "
        "injection of the input, place of the norms and a norm at the end of the loop in all combinations, with a "
        "feed-forward control of equal depth for every block size and norm, and, for one block size, the same with the "
        f"number of recurrences drawn anew at every step. Each condition has {_seeds(numbers)} "
        f"({', '.join(map(str, s['seeds']))}); every looped condition has an untrained control of each seed, with the "
        "weights that its training began with.",
        f"{c['included']} of {c['planned']} planned conditions are in this report ({c['trainings']} trainings and "
        f"{c['untrained']} untrained models; blocks of {listed([str(b) for b in c['blocks']])})"
        + (f"; {missing} are not, because some of their seeds have not been trained and measured: "
           + "; ".join(f"{part} ({n})" for part, n in c["missing_parts"].items()) + "." if missing else
           "; none is missing.")
        + f" Trainings that diverged: {c['n_diverged']}"
        + (f" ({'; '.join(f'{name}, seed {seed}' for name, seed in c['diverged'])})." if c["diverged"] else "."),
        f"Every model ran {s['n_prompts']} held-out prompts of {s['n_tokens']} bytes for {s['long_run']} recurrences."
        " The state of a prompt is that of all its tokens. A prompt is at rest where the states of all layers of the "
        f"block have come within {significant(s['tolerance'])} of their norm of the last state, stay there for the "
        "last quarter of the record, and do not travel on. The held-out loss is that of "
        f"{s['n_windows']} other windows of {s['length']} bytes.",
        "The unit is the training run: prompts and tokens are averaged within it, intervals are Student's over seeds, "
        "and shares of prompts have exact intervals on an effective number of prompts."]
    names = {"loop": "fixed points", "rate": "contraction rate", "time": "time of convergence",
             "regime": "regime of prompts", "token_regime": "regime of tokens", "attention": "rest of attention maps"}
    rows = [(f"{names[what]}, {weights}", sum(n.values()), *(n.get(o, 0) for o in _outcomes(c)))
            for weights, of in c["outcomes"].items() for what, n in of.items()]
    return Section("design", "What was trained and measured", text, tables=(
        Table("outcomes", "Outcomes of all measurements", ("measurement", "orbits", *_outcomes(c)), rows,
              "Orbits without an answer enter no mean; they count as not at rest where a share is asked for."),))


def _outcomes(counts: dict[str, Any]) -> list[str]:
    seen = dict.fromkeys(o for of in counts["outcomes"].values() for n in of.values() for o in n)
    return ["found", *sorted(o for o in seen if o != "found")]


def rest(numbers: Numbers) -> Section:
    """Which conditions reach fixed points, of which kind, and how fast."""
    s = numbers["settings"]
    groups = [g for g in numbers["groups"] if g["weights"] == "trained"]
    rows = [(_name(g), g["n_trainings"], percent(g["rest"]), *(g["verdicts"].get(v, 0) for v in
            ("cyclic", "degenerate", "fixed point", "no fixed point")), number(g["rate"]))
            for g in sorted(groups, key=_order)]
    whole, none = ([g for g in groups if test(g["rest"])] for test in
                   (lambda r: r["low"] > s["half"], lambda r: r["high"] < s["half"]))
    points = [
        f"More than half of the prompts come to rest with: {_names(whole)}.",
        f"Fewer than half do with: {_names(none)}.",
        f"{_seeds(numbers).capitalize()} a condition cannot tell for: "
        f"{_names([g for g in groups if g not in whole and g not in none])}."]
    points += [f"Of the prompts at rest in blocks of more than one layer, {weights}, {of.get('cyclic', 0)} are at "
               f"cyclic fixed points and {of.get('degenerate', 0)} at degenerate ones."
               for weights, of in numbers["counts"]["kinds_at_rest"].items()]
    points += [f"At the precision floor before a rate could be told, {weights}: {n} prompts."
               for weights, n in numbers["counts"]["at_floor"].items()]
    regimes = _regime_table(numbers)
    return Section("rest", "Which loops come to rest", (
        "A fixed point of the loop is cyclic if its layers rest at points of their own, degenerate if all rest at the "
        "same one; of a block of one layer that cannot be asked (fixed point).",), points, tables=(
        Table("rest", "Prompts at rest and contraction rates, trained models, over block sizes",
              ("injection, norm, end", "trainings", "at rest", "cyclic", "degenerate", "fixed point", "none", "rate"),
              rows, "At rest: exact interval for new trainings, prompts within them not independent. Counts are of "
              "prompts. Rate: factor by which a recurrence shrinks the distance to the limit, median over the prompts "
              "that have one, mean over seeds with Student's interval."),
        contrast_table(numbers, "rest"), contrast_table(numbers, "rate"), regimes),
        drawings=_drawn(*_grids(numbers), contrast_forest(numbers, "rest"), _curve(
            numbers, "log_distance", "Distance to the last state (geometric mean)", "distance to the last state",
            log=True)))


def _grids(numbers: Numbers) -> Iterator[Drawing]:
    for weights in ("trained", "untrained"):
        cells = {name: c for name, c in numbers["conditions"].items() if c["kind"] == "looped" and weights in c}
        if cells:
            yield draw(f"grid-{weights}", grid(cells, weights=weights),
                       caption=f"Percent of prompts at rest in every looped condition, {weights}: "
                               f"{_seeds(numbers)} of {numbers['settings']['n_prompts']} prompts a cell. Intervals "
                               "stand in the table of all conditions.",
                       alt=f"Grid of shares, {weights}. " + "; ".join(
                           f"{name}: {percent({'value': c[weights]['rest']['value']})}" for name, c in cells.items()))


def _regime_table(numbers: Numbers) -> Table:
    names = list(dict.fromkeys(n for of in numbers["regimes"].values() for one in of.values() for n in
                               (*one["prompts"], *one["tokens"])))
    rows = [(f"{weights}, {injection}, {what}", *(one[what].get(name, 0) for name in names))
            for weights, of in numbers["regimes"].items() for injection, one in of.items()
            for what in ("prompts", "tokens")]
    return Table("regimes", "Calibrated regimes, by injection (counts)", ("weights, injection, of", *names), rows,
                 "By the calibrated classifier of regimes, of whole prompts and of two tokens of each.")


def growth(numbers: Numbers) -> Section:
    """How norms grow, and what the norm at the loop's end does to that."""
    one = _find(numbers, "growth", "end norm - none")
    text = [f"From recurrence {numbers['settings']['n_recurrences']} to {numbers['settings']['long_run']}, in powers "
            "of e: a growth of one is a factor of e."]
    if one is not None:
        text.append(f"{told('The growth with a norm at the end of the loop', one)}; means "
                    f"{number({'value': one['condition_mean']})} with and "
                    f"{number({'value': one['baseline_mean']})} without.")
    return Section("growth", "Growth of the norm", text, tables=(
        _group_table(numbers, "growth"), contrast_table(numbers, "growth")),
        drawings=_drawn(_curve(numbers, "log_norm", "Norm of the states", "ln norm"),
                        contrast_forest(numbers, "growth")))


def extrapolation(numbers: Numbers) -> Section:
    """The held-out loss beyond the trained recurrences."""
    s = numbers["settings"]
    groups = [g for g in numbers["groups"] if g["weights"] == "trained" and g.get("extrapolation")]
    worse = [g for g in groups if g["extrapolation"]["low"] > 0]
    better = [g for g in groups if g["extrapolation"]["high"] < 0]
    points = [f"The loss rises from recurrence {s['n_recurrences']} to {s['long_run']} with: {_names(worse)}.",
              f"It falls with: {_names(better)}.",
              f"No difference can be told with: {_names([g for g in groups if g not in worse + better])}."]
    one = _find(numbers, "extrapolation", "sampled - fixed recurrences")
    if one is not None:
        points.append(told("What the loss rises by after training with sampled recurrences", one) + ".")
    return Section("extrapolation", "Extrapolation of the loss", (
        f"Held-out loss at {s['long_run']} recurrences less that at the trained {s['n_recurrences']}, in nats per "
        "byte.",), points, tables=(_group_table(numbers, "extrapolation", extra="loss"),
                                   contrast_table(numbers, "extrapolation")),
        drawings=_drawn(_curve(numbers, "loss", "Held-out loss less that at the trained recurrence",
                               "loss less that at the trained one, nats per byte", less=s["n_recurrences"]),
                        contrast_forest(numbers, "extrapolation")))


def attention(numbers: Numbers) -> Section:
    """Whether attention comes to rest, and whether it follows the state."""
    points = []
    for weights, of in numbers["attention"].items():
        if of["n"]:
            points.append(f"{weights.capitalize()}: of {of['n']:,} maps whose own rest and whose prompt's were both "
                          "seen, " + ", ".join(f"{percent({'value': of['share'][o]})} are {o}" for o in of["share"])
                          + (f"; mean lag of attention behind the state {number(of['lag'])} recurrences."
                             if of["lag"] else "."))
    return Section("attention", "Attention", (
        "An attention map (of one prompt, layer and head) is at rest from the recurrence on from which it stays within "
        f"{significant(numbers['settings']['tolerance'])} of its way from its last form.",), points,
        tables=(_group_table(numbers, "attention", extra="lag"), contrast_table(numbers, "attention")),
        drawings=_drawn(contrast_forest(numbers, "attention")))


def mirroring(numbers: Numbers) -> Section:
    """How far the realised depths repeat the stages of the feed-forward control."""
    s = numbers["settings"]
    tables, points = [], []
    for kind, of in numbers["mirroring"].items():
        rows = [(f"{row['injection']}, {row['norm']}", number(row["score"]), number(row["untrained"]),
                 number(row["above_untrained"]), number(row["shuffled"]), number(row["above_shuffled"]))
                for row in sorted(of["by"], key=_order)]
        rows += [(f"two controls, {norm}", number(value), "", "", "", "") for norm, value in of["ceiling"].items()]
        tables.append(Table(f"mirroring-{kind}", f"Mirroring of the feed-forward control's stages, by {kind}",
                            ("injection, norm", "score", "untrained copies", "above these", "layers shuffled",
                             "above these "), rows,
                            "Score: correlation of the profiles over depth, their line taken off, mean over three "
                            "quantities; all recurrences that were trained, as one stack. Two controls: a feed-forward "
                            "model held against that of another seed. Means over seeds with Student's intervals."))
        for name, word in (("untrained", "untrained copies"), ("shuffled", "copies with their layers shuffled")):
            value = of["all"][name]
            if value is not None:
                sure = "above" if value["low"] > 0 else "below" if value["high"] < 0 else "not to be told from"
                points.append(f"By {kind}, trained models mirror their control {sure} {word}: difference of scores "
                              f"{number(value)}.")
        if of["ceiling_all"] is not None:
            points.append(f"By {kind}, two feed-forward controls of different seeds mirror each other at "
                          f"{number(of['ceiling_all'])}: so much of their stages is common to two trainings of "
                          "this size.")
        if of["loops"]:
            rows = [(row["recurrence"], number(row["score"]), number(row["above_untrained"]),
                     number(row["above_shuffled"])) for row in of["loops"]]
            tables.append(Table(f"loops-{kind}", f"Each loop of the longest blocks by itself, by {kind}",
                                ("recurrence", "score", "above untrained copies", "above layers shuffled"), rows,
                                "Does each loop repeat the stages of the whole control?"))
    return Section("mirroring", "Mirroring of a feed-forward model", (
        "The control has as many layers as the loop realises in training, the same norm and the same seed, and saw the "
        "same text. A block of one or two layers has too few depths to be compared by itself, so the realised depths "
        "of all trained recurrences are taken as one stack: does the unrolled loop go through the control's stages? "
        "Of longer blocks each loop is asked by itself, too. Depth alone makes stacks alike; a score is therefore held "
        f"against those of {s['n_untrained_controls']} untrained copies and of up to {s['most_shuffled_controls']} "
        "copies with the block's layers in other orders (one for a block of two, none for one).",), points,
        tables=(*tables, contrast_table(numbers, "mirroring"), contrast_table(numbers, "mirroring_attention")),
        drawings=_drawn(contrast_forest(numbers, "mirroring"), contrast_forest(numbers, "mirroring_attention")))


def claims(numbers: Numbers) -> Section:
    """Where the papers' claims hold here."""
    say = {True: "rests", False: "does not", None: "not claimed"}
    rows = [(f"{c['weights']}, {_name(c)}", c["n_trainings"], say[c["paper"]], percent(c["rest"]),
             c["verdict"], percent(c["seems_rest"]), percent(c["alike"]))
            for c in sorted(numbers["claims"]["cells"], key=_order)]
    points = []
    for verdict in ("holds", "does not hold", "cannot tell"):
        for weights in ("untrained", "trained"):
            own = [c for c in numbers["claims"]["cells"] if c["verdict"] == verdict and c["weights"] == weights]
            if own:
                words = {"holds": "The claim holds", "does not hold": "It does not hold",
                         "cannot tell": f"{_seeds(numbers)} a condition cannot tell"}[verdict]
                points.append(f"{words}, {weights}: " + "; ".join(
                    f"{_name(c)} ({percent(c['rest'])} at rest)" for c in sorted(own, key=_order))
                    + ".")
    for one in numbers["claims"]["asked"]:
        if one["claim"] == "clearest":
            kind = "attention" if one["measure"].endswith("attention") else "states"
            points.append("Stages clearest without injection and with sandwich norm? "
                          + told(f"Mirroring there (by {kind}, above untrained copies, against all other conditions)",
                                 one) + ". " + _claim(one))
        else:
            points.append("Does the place of the norm decide, and not injection? " + told(
                f"The range of the share at rest over norms ({percent({'value': one['condition_mean']})}), against "
                f"that over injections ({percent({'value': one['baseline_mean']})}),", one) + ". " + _claim(one))
    return Section("claims", "What the papers claim", (
        "Blayney et al. (arXiv 2604.11791) report, for random weights and by cosines: with injection a stable fixed "
        "point for all places of the norm but Ouro's (sandwich); without injection only pre-norm settles, at a "
        "degenerate one; and stages that are clearest without injection with sandwich norm. STARS (arXiv 2605.26733) "
        "reports that the place of the norm decides. Here a condition rests if the interval of its share lies above "
        "one half. Read by cosines, as that paper reads, a prompt seems at rest where every layer's cosine to its last "
        f"state is at least {significant(numbers['settings']['cosine_at_rest'])} three quarters into the record, and "
        f"seems degenerate where the layers' points have a cosine of {significant(numbers['settings']['cosine_alike'])}"
        " or more: states whose norm grows and whose direction freezes seem so without being at rest. The paper does "
        "not part its claims by a norm at the loop's end; here they are asked with and without.",), points,
        tables=(Table("claims", "Rest by injection, norm and end of the loop, over block sizes",
                      ("weights, injection, norm, end", "models", "paper says", "at rest", "verdict",
                       "seems so by cosines", "seems degenerate"), rows, "Exact intervals for new trainings."),))


def _claim(one: dict[str, Any]) -> str:
    if one["verdict"] == "cannot tell":
        return "So that is open here."
    return "So that holds here." if one["value"] > 0 else "So that does not hold here."


def unknown(numbers: Numbers) -> Section:
    """Contrasts that so many seeds cannot tell."""
    open_ones = [c for c in numbers["contrasts"] if c["verdict"] == "cannot tell"]
    rows = [(c["contrast"], WORDS[c["measure"]], shown(c["measure"])(c), p_of(c["p_adjusted"]),
             "no spread" if c["detectable"] is None else shown(c["measure"])({"value": c["detectable"]}))
            for c in open_ones]
    return Section("unknown", f"What {_seeds(numbers)} cannot tell", (
        f"{len_words(numbers, 'open')} of {len_words(numbers, 'all')} contrasts cannot be told from no difference at "
        f"{significant(100 * (1 - numbers['settings']['level']))} % after Holm's correction. That is no sign of "
        "equality: beside each stands the difference that a single test of as many seeds finds with a power of "
        f"{significant(numbers['settings']['power'])}, given how much seeds differ here.",), tables=(
        Table("open", f"Contrasts that {_seeds(numbers)} cannot tell",
              ("contrast", "on", "difference", "p, Holm", "would be seen"), rows),))


def len_words(numbers: Numbers, which: str) -> str:
    """How many contrasts there are, or are open."""
    return f"{numbers['counts']['contrasts'][which]}"


def rerun(numbers: Numbers) -> Section:
    """The headline contrasts, as a rerun with other seeds can be held against them."""
    rows = [(h["headline"], h["contrast"], h["n_cells"], shown(h["measure"])(h), p_of(h["p_adjusted"]),
             shown(h["measure"])({"value": h["value"], "low": h["rerun_low"], "high": h["rerun_high"]}))
            for h in numbers["headlines"]]
    return Section("rerun", "Headlines that a rerun can be held against", (
        "With other seeds, --replicate NUMBERS OTHERS holds two runs against each other. Both are estimates, so their "
        "difference has the variance of both: a rerun agrees if zero lies in Welch's interval of the difference "
        "between the two runs' seeds, which it does in as many of a hundred reruns as the interval's level says. "
        "Within the first run's own interval fewer fall, though nothing has changed.",), tables=(
        Table("headlines", "Headline contrasts", ("headline", "contrast", "cells", "difference", "p, Holm",
                                                  "a rerun of as many seeds lies within"), rows,
              f"p: Holm over the headlines. Last column: {100 * numbers['settings']['level']:g} % prediction interval, "
              "Student's with the spread of this run."),))


def everything(numbers: Numbers) -> Section:
    """Every condition."""
    rows = []
    for name, c in numbers["conditions"].items():
        for weights in ("trained", "untrained"):
            if weights in c:
                own = c[weights]
                rows.append((f"{name}, {weights}", percent(own.get("rest")) if "rest" in own else "",
                             _kinds(own.get("verdicts", {})), *(number(own[m]) if m in own else "" for m in
                             ("rate", "growth", "loss", "extrapolation")),
                             percent(own["attention"]) if "attention" in own else "",
                             *(number(own[m]) if m in own else "" for m in ("mirroring", "mirroring_attention"))))
    return Section("conditions", "All conditions", tables=(
        Table("conditions", "Every condition", ("condition", "at rest", "kinds", "rate", "growth", "loss",
                                                "loss beyond", "attention at rest", "mirroring, states",
                                                "mirroring, attention"), rows,
              f"Means over {_seeds(numbers)} with Student's {100 * numbers['settings']['level']:g} % intervals; at "
              "rest: exact intervals. Empty: no seed, or fewer than three, has an answer."),))


def _kinds(verdicts: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(verdicts.items()))


# ---- small things

def _name(group: dict[str, Any]) -> str:
    injection = "no injection" if group["injection"] == "none" else group["injection"]
    return f"{injection}, {group['norm']}, {'end norm' if group['loop_norm'] else 'no end norm'}"


def _names(groups: list[dict[str, Any]]) -> str:
    return "; ".join(_name(g) for g in sorted(groups, key=_order)) or "none"


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row.get("weights", ""), INJECTIONS.index(row["injection"]), NORMS.index(row["norm"]),
            not row.get("loop_norm", True))


def _group_table(numbers: Numbers, measure: str, extra: str | None = None) -> Table:
    form = shown(measure)
    own = {w: {_name(g): g for g in sorted(numbers["groups"], key=_order) if g["weights"] == w}
           for w in ("trained", "untrained")}
    titles = {"loss": "loss as trained", "lag": "lag behind the state"}
    rows = [(name, g["n_trainings"], form(g.get(measure)), form(own["untrained"].get(name, {}).get(measure)),
             *((number(g.get(extra)),) if extra else ())) for name, g in own["trained"].items()]
    return Table(f"groups-{measure.replace('_', '-')}", f"{TITLES[measure]}, over block sizes",
                 ("injection, norm, end", "trainings", "trained", "untrained", *((titles[extra],) if extra else ())),
                 rows, f"Means over {_seeds(numbers)} with Student's {100 * numbers['settings']['level']:g} % "
                 "intervals.")


def _curve(numbers: Numbers, quantity: str, title: str, label: str, *, log: bool = False,
           less: int | None = None) -> Drawing | None:
    own = [c for c in numbers["curves"] if c["quantity"] == quantity and c["kind"] == "looped"]
    if not own:
        return None
    band = "" if less is not None else f" Bands: {100 * numbers['settings']['level']:g} % intervals over seeds."
    figure = curves(numbers["curves"], quantity=quantity, label=label, log=log, less=less,
                    trained_at=numbers["settings"]["n_recurrences"])
    ends = "; ".join(f"{_name(c)}: {significant(c['mean'][-1])}" for c in own if c["mean"][-1] is not None)
    return draw(f"curve-{quantity.replace('_', '-')}", figure,
                caption=f"{title} along the recurrences, trained models: means over {_seeds(numbers)} and block sizes."
                        f"{band} Dotted: recurrences in training.",
                alt=f"Line charts, one a norm. {title}; at the end: {ends}")


def findings(numbers: Numbers) -> list[str]:
    """What the page begins with."""
    said = []
    words = {"injection on rest": "With injection of the input the share of prompts that come to rest",
             "loop-end norm on growth": "With a norm at the loop's end the growth of the state's norm"}
    for h in numbers["headlines"]:
        said.append(f"{told(words[h['headline']], h)} ({h['n_cells']} matched conditions, {h['n_seeds']} seeds).")
    for measure, name, start in (
            ("rest", "end norm - none", "With a norm at the loop's end the share of prompts that come to rest"),
            ("rest", "trained - untrained", "After training the share of prompts that come to rest"),
            ("extrapolation", "any injection - none", "With injection, what the loss rises by beyond the trained "
                                                      "recurrences"),
            ("attention", "any injection - none", "With injection the share of attention maps that come to rest")):
        one = _find(numbers, measure, name)
        if one is not None:
            said.append(f"{told(start, one)}.")
    for kind, of in numbers["mirroring"].items():
        value = of["all"]["untrained"]
        if value is not None:
            sure = "more than" if value["low"] > 0 else "less than" if value["high"] < 0 else "no more than"
            said.append(f"By {kind}, the unrolled loops mirror their feed-forward control {sure} untrained copies do: "
                        f"difference of scores {number(value)}.")
    held = [c for c in numbers["claims"]["cells"] if c["verdict"] != "not claimed" and c["weights"] == "trained"]
    tally = {v: numbers["counts"]["claims"]["trained"].get(v, 0) for v in ("holds", "does not hold", "cannot tell")}
    if held:
        said.append("Of the fixed points that the paper reports by injection and norm, after training "
                    f"{tally['holds']} hold here and {tally['does not hold']} do not; {_seeds(numbers)} a condition "
                    f"cannot tell for {tally['cannot tell']}.")
    return said


def estimates_of(numbers: Numbers) -> tuple[Estimate, ...]:
    """The numbers of all conditions as estimates."""
    found = []
    for name, c in numbers["conditions"].items():
        for weights in ("trained", "untrained"):
            for measure, e in c.get(weights, {}).items():
                if isinstance(e, dict) and "method" in e:
                    found.append(Estimate(
                        measure, e["statistic"],
                        *(math.nan if e[k] is None else e[k] for k in ("value", "low", "high")),
                        e["unit"], e["confidence_level"], e["method"], e["resample"],
                        next(iter(e["units"].values()), 0), e["n"], e["excluded"], {},
                        {"condition": name, "weights": weights}, "new seeds", e["units"]))
    return tuple(found)


def report_of(numbers: Numbers) -> Report:
    """The report."""
    sections = [make(numbers) for make in (design, rest, growth, extrapolation, attention, mirroring, claims, unknown,
                                           rerun, everything)]
    tier = numbers["settings"]["name"]
    return Report(f"Injection, norms and block size of small looped language models: tier {tier}",
                  tuple(findings(numbers)), tuple(sections), estimates_of(numbers),
                  {"numbers": f"{numbers['schema']} {numbers['schema_version']}", "settings": numbers["settings"],
                   "n_resamples": "no", "resample": "intervals are Student's over seeds, or exact",
                   **numbers["provenance"]})
