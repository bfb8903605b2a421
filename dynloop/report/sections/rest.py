"""At rest or moving, and when it arrived."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.outcome import Outcome
from dynloop.report.cells import Cell, Table, listed, number, percent, plain
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section

FEW = 20  # units below which an interval leans on its method


def section(runs: Sequence[Run]) -> Section | None:
    """Still moving, last step, late distance, arrival, on the last layer."""
    runs = [run for run in runs if run.has("distance_to_limit")]
    if not runs:
        return None
    rows = []
    for run in runs:
        part = run.part("distance_to_limit", layer=run.last_layer)
        moving = run.ask("distance_to_limit", "share", of=Outcome.NOT_CONVERGED, layer=run.last_layer)
        row = [run.name, percent(moving) if moving else ""]
        for variable in ("last_step", "late_distance"):
            known = part[variable][np.isfinite(part[variable])]
            row += [plain(float(np.median(known))), plain(float(known.max()))] if len(known) else ["", ""]
        arrived = run.ask("convergence_time", "median", layer=run.last_layer) if run.has("convergence_time") else None
        share = f"{run.part('convergence_time', layer=run.last_layer).found.sum():,} of {part.n_orbits:,}" \
            if run.has("convergence_time") else ""
        tolerance = float(part.settings["tolerance"])
        rows.append((*row, Cell(f"{tolerance:g}", tolerance), number(arrived) if arrived else "none", share))
    first = runs[0]
    few = [f"{run.name} ({run.n_units[0]})" for run in runs if run.n_units[0] < FEW]
    note = ("Last layer. Still moving: the last step, or the median distance from the last state over the last quarter "
            "of the record (late distance), is larger than the tolerance. All are relative to the last state's norm. "
            "Arrival: recurrences after the first recorded state until an orbit stays within a thousandth of that "
            "state's distance from the last one; median of those that do. Brackets: "
            f"{100 * first.confidence_level:g} % intervals over {first.units}.")
    if few:
        note += f" Few {first.nesting.levels[0]}s: {listed(few)}; intervals over so few are wide, and rest on a model."
    return Section("rest", "At rest or moving", tables=(
        Table("rest", "Tokens that still move, and when the others arrived",
              ("model", "tokens still moving", "median last step", "largest last step", "median late distance",
               "largest late distance", "tolerance", "recurrences to arrival", "tokens that arrived"), rows,
              note).without_empty_columns(),))
