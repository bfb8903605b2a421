"""Periods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dynloop.outcome import Outcome
from dynloop.report.cells import Table, percent, plain
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section

_MOST = 6  # periods that get a row of their own


def section(runs: Sequence[Run]) -> Section | None:
    """How often each period occurs, by model and layer."""
    runs = [run for run in runs if run.has("minimal_period")]
    if not runs:
        return None
    rows: list[tuple[Any, ...]] = []
    for run in runs:
        for layer in run.layers:
            own = run.part("minimal_period", layer=layer)
            found = own.found
            periods, counts = np.unique(own["period"][found], return_counts=True)
            for i in sorted(np.argsort(-counts, kind="stable")[:_MOST]):
                share = run.ask("minimal_period", "share", of=float(periods[i]), variable="period", layer=layer)
                p = own["p_value"][found & (own["period"] == periods[i])]
                rows.append((run.name, "" if layer is None else str(layer),
                             "1 (at rest)" if periods[i] == 1 else f"{periods[i]:g}", int(counts[i]),
                             percent(share) if share else "",
                             plain(float(np.nanmax(p))) if periods[i] > 1 and np.isfinite(p).any() else ""))
            if len(periods) > _MOST:
                rows.append((run.name, "" if layer is None else str(layer), f"{len(periods) - _MOST} others",
                             int(np.sort(counts)[:-_MOST].sum()), "", ""))
            for outcome in (Outcome.NOT_FOUND, Outcome.NOT_CONVERGED):
                if n := own.counts().get(outcome, 0):
                    word = "none repeats" if outcome is Outcome.NOT_FOUND else "still moving"
                    share = run.ask("minimal_period", "share", of=outcome, layer=layer)
                    rows.append((run.name, "" if layer is None else str(layer), word, n,
                                 percent(share) if share else "", ""))
    first = runs[0].measurements["minimal_period"].settings
    return Section("periods", "Periods", tables=(
        Table("periods", "Smallest period of each orbit",
              ("model", "layer", "period", "tokens", "share of tokens", "largest p-value"), rows,
              "Smallest number of recurrences after which the states return as closely as the noise allows; up to "
              f"{'a third of the record' if first['max_period'] is None else first['max_period']}, named above 1 from "
              f"a p-value of {first['significance']:g} down (states in any other order). Shares of a period: of the "
              "tokens with an answer; shares without one: of all. In few bits every bounded orbit ends in an exact "
              f"repeat: a period then says nothing of the map. Brackets: {100 * runs[0].confidence_level:g} % "
              f"intervals over {runs[0].units}.").without_empty_columns(),))
