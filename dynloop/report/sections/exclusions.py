"""What became of every orbit."""

from __future__ import annotations

from collections.abc import Sequence

from dynloop.report.cells import Table
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section


def section(runs: Sequence[Run]) -> Section:
    """Orbits by run, analyzer and outcome."""
    rows = [(run.name, name, outcome.value, count, outcome.sentence)
            for run in runs for name, measurement in run.measurements.items()
            for outcome, count in measurement.counts().items()]
    return Section("exclusions", "Exclusions", tables=(
        Table("exclusions", "What became of every orbit", ("model", "analyzer", "outcome", "orbits", "meaning"), rows,
              "All layers. No orbit is left out silently: what is not found is not in the numbers above, and stands "
              "here."),))
