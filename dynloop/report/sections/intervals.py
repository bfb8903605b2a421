"""Every estimate with how its interval was made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynloop.report.cells import Table, number, percent, significant
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section
from dynloop.statistics import Estimate

_SHOWN = ("layer", "prompt_set", "recurrence")


def section(runs: Sequence[Run]) -> Section | None:
    """A row an estimate: what it is of, the method, what it speaks of, and how much it rests on."""
    rows: list[tuple[Any, ...]] = []
    for run in runs:
        for e in run.estimates:
            where = ", ".join(f"{name} {e.labels[name]}" for name in _SHOWN if name in e.labels
                              and (name == "recurrence" or len(run.layers if name == "layer" else run.sets) > 1))
            rows.append((run.name, e.name, e.statistic, where, percent(e) if "share" in e.statistic else number(e),
                         e.unit, e.method, e.target, _units(e), e.n,
                         ", ".join(f"{n:,} {outcome}" for outcome, n in e.excluded.items()),
                         "" if e.design_effect is None else significant(e.design_effect), " ".join(e.notes)))
    if not rows:
        return None
    return Section("intervals", "How every interval was made", tables=(
        Table("intervals", "Every estimate of this report",
              ("model", "number", "statistic", "where", "value", "unit", "interval", "speaks of", "units", "orbits",
               "left out", "design effect", "notes"), rows,
              f"{100 * runs[0].confidence_level:g} % intervals. Orbits: those that entered; left out: those without an "
              "answer, by outcome.").without_empty_columns(),))


def _units(e: Estimate) -> str:
    counted = e.units or {e.resample: e.n_units}
    return ", ".join(f"{n:,} {name}{'' if n == 1 else 's'}" for name, n in counted.items())
