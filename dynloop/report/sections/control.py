"""The untrained control beside the trained model: what the architecture does by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynloop.outcome import Outcome
from dynloop.report.cells import Cell, Table, number, percent
from dynloop.report.runs import Run
from dynloop.report.sections.comparisons import QUESTIONS, difference_cells, differences, paired
from dynloop.report.sections.section import Section

_QUESTIONS = {"called " + str(q.of) if q.analyzer == "limit_regime" else q.name.removeprefix("share of "): q
              for q in QUESTIONS}


def pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """(trained, untrained), by the name that the control says it is a copy of, else by the only trained run."""
    trained = [run for run in runs if run.control_of is None]
    found = []
    for control in runs:
        if control.control_of is None:
            continue
        named = [run for run in trained if control.control_of in (run.name, run.name.rpartition(" (")[0])]
        number = control.name.removeprefix(control.name.rpartition(" (")[0])
        named = [run for run in named if run.name.endswith(number)] or named  # of two studies each has its own
        found += [(run, control) for run in named or (trained if len(trained) == 1 else [])]
    return found


def _numbers(run: Run) -> dict[str, tuple[Cell, Any]]:
    """What is held against each other, on the last layer: name -> (cell, estimate)."""
    asked = {
        "tokens still moving": run.has("distance_to_limit") and run.ask(
            "distance_to_limit", "share", of=Outcome.NOT_CONVERGED, layer=run.last_layer),
        "rate per recurrence": run.has("contraction_rate") and run.ask(
            "contraction_rate", "median", variable="rate", layer=run.last_layer),
        "relative floor": run.has("contraction_rate") and run.ask(
            "contraction_rate", "median", variable="relative_floor", layer=run.last_layer),
        "recurrences to arrival": run.has("convergence_time") and run.ask(
            "convergence_time", "median", layer=run.last_layer),
        **{f"called {regime}": run.ask("limit_regime", "share", of=regime, layer=run.last_layer)
           for regime in ("fixed point", "orbit", "slider", "undetermined") if run.has("limit_regime")},
    }
    return {name: (Cell("none") if not e else percent(e) if "share" in e.statistic else number(e), e or None)
            for name, e in asked.items()}


def section(runs: Sequence[Run]) -> Section:
    """Trained and untrained, number by number."""
    found = pairs(runs)
    if not found:
        orphans = [run.name for run in runs if run.control_of is not None]
        return Section("control", "Untrained control", text=(
            f"{', '.join(orphans)}: the trained model of this control is not among the runs, so nothing stands beside "
            "it." if orphans else
            "None was recorded. An untrained copy of the same architecture may contract, too: without it no number "
            "here can be put down to training. Record one with dynloop capture MODEL --untrained.",))
    rows = []
    for trained, control in found:
        own, other = _numbers(trained), _numbers(control)
        for name in own:
            if own[name][1] or other[name][1]:
                asked = _QUESTIONS.get(name)
                gaps = differences([control, trained], asked, baseline=control) if asked else []
                rows.append((trained.name, name, own[name][0], other[name][0],
                             *(difference_cells(gaps[0])[:2] if gaps else ("", ""))))
    return Section("control", "Untrained control", text=(
        "The same architecture with new random weights, on the same prompts: what a number owes to the architecture "
        "and not to training.",), tables=(
        Table("control", "Trained and untrained, last layer",
              ("model", "number", "trained", "untrained", "difference of means", "p"), rows,
              f"Brackets: {100 * runs[0].confidence_level:g} % intervals over {runs[0].units}. Rate, floor and "
              "arrival: medians over the tokens that have one. Difference: trained less untrained, between means of "
              f"{runs[0].units}" + (", paired by prompt" if all(paired(*pair) for pair in found) else "")
              + "; its p-value stands alone."),))



def sentences(runs: Sequence[Run]) -> list[str]:
    """A sentence a pair."""
    told = []
    for trained, control in pairs(runs):
        own, other = _numbers(trained), _numbers(control)
        moving, rate = "tokens still moving", "rate per recurrence"
        text = (f"{control.name}, the untrained control of {trained.name}: still moving {other[moving][0]} of the "
                f"tokens, against {own[moving][0]} after training")
        if own[rate][1] or other[rate][1]:
            text += f"; rate per recurrence {other[rate][0]}, against {own[rate][0]}"
        told.append(f"{text}.")
    return told
