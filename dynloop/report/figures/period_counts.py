"""Which periods were found, and how often."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.report.figures.curves import usual_units
from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import draw_rows, estimated, group_handles, height_of, part_of, told
from dynloop.report.figures.rows import kinds as sources
from dynloop.report.figures.style import groups_of, new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, settings_of
from dynloop.settings import check_number

_MOST_PERIODS = 10


@styled
def period_counts(period: Measurement, *, by: str = "model", resample: str | None = "prompt",
                  confidence_level: float = 0.95) -> Figure:
    """Share of the orbits of each period, and of those without one by outcome, with intervals.

    Args:
        period: of `minimal_period`.
        by: the label that separates the colours; all orbits are one group where there is no model.
        resample: the label whose values are independent; None where the orbits themselves are.
        confidence_level: of the intervals, which are those of `estimate`.

    Returns:
        The figure; `caption_of` and `alt_of` give its words. The ten commonest periods have a row of their own.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, an unknown label, a level that is none.
    """
    values = check_measurement(period, "minimal_period(...)")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    resample = usual_units(period.labels, resample)
    found = period.found
    distinct, counts = np.unique(values[found], return_counts=True)
    shown = np.sort(distinct[np.argsort(-counts, kind="stable")[:_MOST_PERIODS]])
    kinds: dict[str, np.ndarray] = {f"period {p:g}": found & (values == p) for p in shown}
    if len(distinct) > len(shown):
        kinds[f"{len(distinct) - len(shown)} other periods"] = found & ~np.isin(values, shown)
    kinds |= {o.value: np.array([own is o for own in period.outcomes])
              for o in period.counts() if o is not Outcome.FOUND}
    names = np.full(period.n_orbits, "", dtype=object)
    for name, events in kinds.items():
        names[events] = name
    names = names.astype(str)
    counted_all = Measurement(period.name, {"kind": names}, [Outcome.FOUND] * period.n_orbits, labels=period.labels,
                              categories={"kind": tuple(kinds)})
    rows = [row for name in kinds for group, mask in groups_of(period.labels, period.n_orbits, by, "model")
            if (row := estimated(part_of(counted_all, mask), name, group=group, statistic="share", of=name,
                                 resample=resample or "orbit", confidence_level=confidence_level))]
    figure, axes = new_axes(width=6.2, height=height_of(rows))
    if rows:
        draw_rows(axes, rows, scale=100)
        axes.set(xlabel="share of the orbits (%)", xlim=(-2, 102))
        if handles := group_handles(rows):
            figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    else:
        nothing(axes, "no periods to draw")
    return described(
        figure, caption=f"Periods; n = {counted(period.n_orbits, period.labels, resample)}, all of them counted, those "
                        f"without a period by their outcome.{sources(rows)} Period 1 is a fixed point."
                        + settings_of(period.settings),
        alt="Dots with intervals: the share of the orbits of each period in percent. "
            + (f"{told(rows, 100)}." if rows else "There are no periods to draw."))
