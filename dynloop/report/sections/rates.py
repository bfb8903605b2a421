"""Rates of contraction, and the precision floors above which they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynloop.outcome import Outcome
from dynloop.report.cells import Table, number, percent, plain
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section


def section(runs: Sequence[Run]) -> Section | None:
    """Rate per recurrence by model and layer."""
    runs = [run for run in runs if run.has("contraction_rate")]
    if not runs:
        return None
    rows = []
    for run, layer, chosen in _places(runs):
        own = run.part("contraction_rate", layer=layer, prompt_set=chosen)
        rate = run.ask("contraction_rate", "median", variable="rate", layer=layer, prompt_set=chosen)
        rows.append((run.name, _text(layer), _text(chosen), number(rate) if rate else "none",
                     *(plain(float(np.quantile(own["rate"][own.found], q))) if own.found.any() else ""
                       for q in (0.05, 0.95)),
                     plain(float(np.log(0.5) / np.log(rate.value))) if rate and 0 < rate.value < 1 else "",
                     f"{int(own.found.sum()):,} of {own.n_orbits:,}"))
    settings = runs[0].measurements["contraction_rate"].settings
    note = (f"Medians over tokens with {100 * runs[0].confidence_level:g} % intervals over {runs[0].units}, and the "
            "5th and 95th percentile of tokens. Rate: factor by which a recurrence shrinks the step, fitted on the "
            f"steps above {settings['floor_factor']:g} floors (at least {settings['min_points']} points). Half-life: "
            "recurrences in which a step of the median rate halves. ")
    told = [f"{run.name}: {100 * gap:.1f} %" for run in runs if (gap := _disagreement(run)) is not None]
    if told:
        note += ("All layers of one block share their multipliers, so their rates must agree; median difference of "
                 f"ln rate between layers of one token, relative: {'; '.join(told)}.")
    return Section("rates", "Rates", tables=(
        Table("rates", "Contraction before the precision floor",
              ("model", "layer", "prompt set", "rate per recurrence", "5th percentile", "95th percentile", "half-life",
               "tokens with a rate"), rows, note).without_empty_columns(),))


def floors(runs: Sequence[Run]) -> Section | None:
    """Where the number format, or noise, ends the contraction."""
    runs = [run for run in runs if run.has("contraction_rate")]
    if not runs:
        return None
    rows = []
    for run, layer, chosen in _places(runs):
        own = run.part("contraction_rate", layer=layer, prompt_set=chosen)
        spacing = run.provenance.get("recording", {}).get("resolution")
        floor, length = (run.ask("contraction_rate", "median", variable=v, layer=layer, prompt_set=chosen)
                         for v in ("relative_floor", "regime_length"))
        lost = run.ask("contraction_rate", "share", of=Outcome.AT_PRECISION_FLOOR, layer=layer, prompt_set=chosen)
        counted = own.counts().get(Outcome.AT_PRECISION_FLOOR, 0)
        rows.append((run.name, _text(layer), _text(chosen), number(floor) if floor else "none",
                     plain(floor.value / spacing) if floor and spacing else "", plain(spacing) if spacing else "",
                     number(length) if length else "", counted, percent(lost) if lost else ""))
    settings = runs[0].measurements["contraction_rate"].settings
    return Section("floors", "Precision floors", text=(
        "Every rate above is fitted before the floor: below it steps are rounding or noise, and their ratio is 1 "
        "whatever the loop does.",), tables=(
        Table("floors", "Floors of the steps",
              ("model", "layer", "prompt set", "relative floor", "floor in spacings", "spacing of numbers",
               "recurrences above it", "tokens lost to it", "share lost"), rows,
              "Floor: median of the last quarter of the steps, relative to the last state's norm, median over tokens "
              f"with a rate; recurrences above it: how many steps were above {settings['floor_factor']:g} floors. "
              "Spacing: relative distance between neighbouring numbers of the format in which the model computed. "
              f"Lost: fewer than {settings['min_points']} steps before the floor of the format, so no rate. Brackets: "
              f"{100 * runs[0].confidence_level:g} % intervals over {runs[0].units}.").without_empty_columns(),))


def _places(runs: Sequence[Run]) -> list[tuple[Run, Any, Any]]:
    return [(run, layer, chosen) for run in runs for layer in run.layers for chosen in run.sets]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _disagreement(run: Run) -> float | None:
    """Median over tokens of the spread of ln rate between layers, over its mean."""
    if len(run.layers) < 2:
        return None
    columns = [run.part("contraction_rate", layer=layer)["rate"] for layer in run.layers]
    if len({len(c) for c in columns}) > 1:
        return None
    logs = np.log(np.stack(columns))
    known = np.isfinite(logs).all(0)
    if not known.any():
        return None
    return float(np.median(np.ptp(logs[:, known], axis=0) / np.abs(logs[:, known].mean(0))))
