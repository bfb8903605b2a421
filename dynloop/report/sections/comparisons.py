"""Differences between runs, tested between independent units."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dynloop.outcome import Outcome
from dynloop.report.cells import Cell, Table, listed, plain, significant, slug
from dynloop.report.figures import Drawing, caption_of, draw, forest
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section
from dynloop.statistics.adjust import adjust_pvalues
from dynloop.statistics.compare import LEAST_UNITS, Comparison, compare
from dynloop.statistics.nesting import ORBIT


class Question(NamedTuple):
    """What is compared, on the last layer."""

    name: str
    analyzer: str
    variable: str | None = None
    of: Any = None


QUESTIONS = (
    Question("share of tokens still moving", "distance_to_limit", of=Outcome.NOT_CONVERGED),
    Question("rate per recurrence", "contraction_rate", "rate"),
    Question("recurrences to arrival", "convergence_time", "time"),
    Question("share called fixed point", "limit_regime", of="fixed point"),
    Question("share called orbit", "limit_regime", of="orbit"),
    Question("share called slider", "limit_regime", of="slider"),
)


_DRAWN = ("share of tokens still moving", "rate per recurrence")


def differences(runs: Sequence[Run], question: Question, *, baseline: Run) -> list[Comparison]:
    """Every other run against the baseline, p-values Holm-adjusted.

    Left out: runs with fewer than three units with an answer, and those that agree with the baseline to the last unit.
    """
    if _units(baseline, question) < LEAST_UNITS:
        return []
    made: list[Comparison] = []
    for run in runs:
        if run is baseline or _units(run, question) < LEAST_UNITS:
            continue
        parts = {one.name: one.part(question.analyzer, layer=one.last_layer) for one in (baseline, run)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # notes are told below the table
            one, = compare(parts, resample=baseline.resample, variable=question.variable, of=question.of,
                           statistic="mean" if question.of is None else "share", baseline=baseline.name,
                           paired="prompt" if paired(baseline, run) else None, adjust=None,
                           confidence_level=baseline.confidence_level)
        made.append(one)
    adjusted = adjust_pvalues([one.p_value for one in made]).tolist() if made else []
    return [dataclasses.replace(one, p_adjusted=float(p), adjust="holm")
            for one, p in zip(made, adjusted, strict=True) if one.value or np.isfinite(one.low)]


def paired(one: Run, other: Run) -> bool:
    """Whether prompts are what is independent, and both runs had the same ones."""
    hashes = {run.provenance.get("prompts_sha256") for run in (one, other)}
    return one.nesting.levels == ("prompt",) and len(hashes) == 1 and None not in hashes and \
        set(one.labels["prompt"].tolist()) == set(other.labels["prompt"].tolist())


def _units(run: Run, question: Question) -> int:
    """Independent units with an answer."""
    if not run.has(question.analyzer):
        return 0
    part = run.part(question.analyzer, layer=run.last_layer)
    rows = np.ones(part.n_orbits, bool) if isinstance(question.of, Outcome) else part.found
    if not rows.any():
        return 0
    if run.nesting.levels == (ORBIT,):
        return int(rows.sum())
    return len(np.unique(run.nesting.codes(part.labels, rows)[0]))


def difference_cells(one: Comparison) -> tuple[Cell, Cell, Cell]:
    """The difference with its interval, its p-value and Hedges' g."""
    share = "share" in one.statistic
    scale, unit = (100.0, " points") if share else (1.0, "")
    value, low, high = scale * one.value, scale * one.low, scale * one.high
    if np.isfinite([low, high]).all():
        gap = Cell(f"{significant(value)} [{significant(low)}, {significant(high)}]{unit}", value, low, high)
    else:
        gap = plain(value, f"{unit} (no spread)")
    g = Cell("") if not np.isfinite(one.effect_size) else plain(one.effect_size)
    return gap, p_value(one.p_adjusted), g


def p_value(p: float) -> Cell:
    """Two digits, and no smaller than what a reader can use."""
    if not np.isfinite(p):
        return Cell("")
    return Cell("< 0.0001" if p < 1e-4 else significant(p, 2), float(p))


def _drawing(question: Question, found: Sequence[Comparison]) -> Drawing:
    """Several differences from one baseline, one a row."""
    figure = forest(found, labels=[one.condition for one in found], reference=0.0)
    return draw(f"differences-{slug(question.name)}", figure, caption=f"Difference from {found[0].baseline}, "
                f"{question.name}{'' if question.of is None else ' (1 is 100 %)'}, last layer. {caption_of(figure)}")


def section(runs: Sequence[Run]) -> Section | None:
    """Every other run against the first one."""
    if len(runs) < 2:
        return None
    rows, notes, targets, drawings = [], [], [], []
    for question in QUESTIONS:
        found = differences(runs, question, baseline=runs[0])
        if len(found) > 1 and question.name in _DRAWN:
            drawings.append(_drawing(question, found))
        for one in found:
            means = [plain((100.0 if question.of is not None else 1.0) * one.means[name],
                           " %" if question.of is not None else "") for name in (one.condition, one.baseline)]
            rows.append((question.name, one.condition, *means, *difference_cells(one), one.test))
            # labels alone make prompts look alike; whether they are, the hashes say
            said = [text[:1].upper() + text[1:] for text in one.notes if "paired='prompt'" not in text]
            notes += [text for text in said if text not in notes]
            targets += [one.target] if one.target not in targets else []
    if not rows:
        return Section("comparisons", "Comparisons", text=(
            f"Nothing can be compared: no number is known for at least {LEAST_UNITS} {runs[0].nesting.levels[0]}s of "
            f"{runs[0].name} and of another run.",))
    base = runs[0]
    paired_with = [run.name for run in runs[1:] if paired(base, run)]
    note = (f"Difference: model less {base.name}, between {base.units}"
            + (f" (paired by prompt: {listed(paired_with)})" if paired_with else "") + f", with "
            f"{100 * base.confidence_level:g} % intervals; "
            f"means over units, last layer; for {listed(targets)}. p: Holm-adjusted within each number. Runs "
            "that agree in a number to the last unit are left out of it. g: Hedges' effect size in standard deviations "
            "between units.")
    return Section("comparisons", "Comparisons", text=(f"Every model against {base.name}.",), points=notes, tables=(
        Table("comparisons", f"Differences from {base.name}",
              ("number", "model", "its mean", f"mean of {base.name}", "difference", "p", "g", "test"), rows, note),),
        drawings=drawings)
