"""Measurements of a study that no other section speaks of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynloop.report.cells import Table, number
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section

KNOWN = ("distance_to_limit", "contraction_rate", "limit_regime", "limit_regime_blayney", "minimal_period",
         "convergence_time")


def section(runs: Sequence[Run]) -> Section | None:
    """Medians of everything with one number an orbit."""
    rows: list[tuple[Any, ...]] = []
    for run in runs:
        for name, measurement in run.measurements.items():
            if name in KNOWN:
                continue
            for variable, values in measurement.variables.items():
                if values.ndim != 1 or values.dtype.kind not in "fiu":
                    continue
                for layer in run.layers:
                    median = run.ask(name, "median", variable=variable, layer=layer)
                    part = run.part(name, layer=layer)
                    rows.append((run.name, name, variable, "" if layer is None else str(layer),
                                 number(median) if median else "none", measurement.units[variable],
                                 f"{int(part.found.sum()):,} of {part.n_orbits:,}"))
    if not rows:
        return None
    return Section("others", "Other measurements", tables=(
        Table("others", "Medians over tokens",
              ("model", "analyzer", "variable", "layer", "median", "unit", "tokens with an answer"), rows,
              f"Brackets: {100 * runs[0].confidence_level:g} % intervals over {runs[0].units}."
              ).without_empty_columns(),))
