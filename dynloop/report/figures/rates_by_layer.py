"""Contraction rates and floors by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import (
    Row,
    draw_rows,
    estimated,
    group_handles,
    height_of,
    kinds,
    need_resample,
    part_of,
    row_of,
    told,
)
from dynloop.report.figures.style import groups_of, new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, excluded, settings_of

_PANELS = {"rate": "contraction rate\n(per recurrence)", "relative_floor": "floor of the steps,\nover the state's norm",
           "regime_length": "recurrences\nbefore the floor"}


def wide(rows: Sequence[Row]) -> bool:
    """Positive numbers that differ more than tenfold."""
    return min(min(r.value, r.low) for r in rows) > 0 and \
        max(r.value for r in rows) > 10 * min(r.value for r in rows)


@styled
def rates_by_layer(source: Measurement | Sequence[Any], *, by: str = "layer", colour: str = "model",
                   resample: str | None = None, confidence_level: float = 0.95, n_resamples: int = 1000,
                   among: Sequence[str] | None = None) -> Figure:
    """Median contraction rate, floor and length of the regime with their intervals, a row a layer.

    Args:
        source: of `contraction_rate`; or estimates of its variables that were made before, so that the figure and a
            table hold the same numbers.
        by: the label that separates the rows.
        colour: the label that separates the colours; all orbits are one group where there is no model.
        resample: as in `estimate`; needed with a measurement, not with estimates.
        confidence_level: as in `estimate`.
        n_resamples: as in `estimate`.
        among: all names of a report in order, so that a group has one colour in all of its figures.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: neither a measurement nor estimates.
        ValueError: a measurement of another kind, an unknown label, or a measurement without `resample`.

    Misleads:
        All layers of one block share their multipliers, so their rates must agree: a difference between layers is one
        of measurement.
    """
    panels: dict[str, list[Row]] = {name: [] for name in _PANELS}
    if isinstance(source, Measurement):
        for name in _PANELS:
            check_measurement(source, "contraction_rate(...)", variable=name)
        need_resample(resample)
        for layer, of_layer in groups_of(source.labels, source.n_orbits, by, "layer"):
            for group, mask in groups_of(source.labels, source.n_orbits, colour, "model"):
                if (of_layer & mask).any():
                    own = part_of(source, of_layer & mask)
                    for name in _PANELS:
                        row = estimated(own, layer, group=group, statistic="median", variable=name, resample=resample,
                                        confidence_level=confidence_level, n_resamples=n_resamples)
                        panels[name] += [row] if row is not None else []
        n = counted(source.n_orbits, source.labels, resample) + excluded(source)
        settings = settings_of(source.settings)
    else:
        counts = []
        for e in source:
            name = str(getattr(e, "name", "")).partition(".")[2] or "rate"
            if name not in panels:
                raise ValueError(f"rates_by_layer draws {', '.join(_PANELS)}; got an estimate of {e.name}. "
                                 "Draw others with forest.")
            labels = dict(getattr(e, "labels", {}))
            label = f"{by} {labels[by]}" if by in labels else "all orbits"
            panels[name].append(row_of(e, label, group=str(labels.get(colour, ""))))
            counts.append(e.n)
        n = (f"{min(counts):,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}") + " orbits a row" \
            if counts else "0 orbits"
        settings = settings_of(next((e.settings for e in source), {}))
    panels = {name: rows for name, rows in panels.items() if rows}
    if not panels:
        figure, axes = new_axes()
        nothing(axes, "no rates to draw")
        return described(figure, caption=f"Contraction rates: no orbit has one; n = {n}.{settings}",
                         alt="There are no rates to draw.")
    figure = Figure(figsize=(2.6 * len(panels) + 1.2, height_of(next(iter(panels.values()))) + 0.25))
    for i, (name, rows) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        draw_rows(axes, rows, log=name == "relative_floor" and wide(rows), names=i == 0, among=among)
        axes.set_xlabel(_PANELS[name])
        axes.margins(x=0.15)
    every = [row for rows in panels.values() for row in rows]
    if handles := group_handles(every, among):
        figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return described(
        figure, caption=f"Medians over orbits by {by}, with their intervals; n = {n}.{kinds(every)} Rate: factor by "
                        "which a recurrence shrinks the distance to the limit, fitted before the floor; floor: median "
                        f"of the last quarter of the steps.{settings}",
        alt="Dots with intervals in panels. " + " ".join(
            f"{_PANELS[name].replace(chr(10), ' ').capitalize()}: {told(rows, most=8)}."
            for name, rows in panels.items()))
