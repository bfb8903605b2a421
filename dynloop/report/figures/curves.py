"""Curves over recurrences: the median of every group, its interval over prompts, and the middle of the orbits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynloop.measurement import Measurement
from dynloop.report.figures.bands import median_interval, numbered
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import groups_of, log_ticks, looks_of, new_axes, nothing, styled, whole_numbers
from dynloop.report.figures.words import check_measurement, counted, plural, settings_of, subject_of
from dynloop.settings import check_number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIDDLE = (0.05, 0.95)  # of the orbits, in the light band


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What `draw_curves` drew, for captions."""

    groups: tuple[str, ...]
    first: tuple[float, ...]  # medians at the first and the last column
    last: tuple[float, ...]
    n_units: int  # 0: no interval


def usual_units(labels: Mapping[str, np.ndarray], resample: str | None) -> str | None:
    """The label of the units, of a nesting the outermost; None for none, and where "prompt", the default, is missing.

    Raises:
        ValueError: there is no such label.
    """
    if resample is None or (resample == "prompt" and "prompt" not in labels):
        return None
    outermost = resample.split(">")[0].strip()
    if outermost not in labels:
        raise ValueError("resample must name a label whose values are independent of each other (or a nesting, such as "
                         f"'seed > prompt'), or be None for no interval; got {resample!r}, and there are "
                         f"{', '.join(labels) or 'no labels'}.")
    return outermost


def draw_curves(axes: Axes, recurrence: np.ndarray, values: np.ndarray, labels: Mapping[str, np.ndarray], *, by: str,
                usual: str, resample: str | None, confidence_level: float,
                among: Sequence[str] | None = None) -> Drawn:
    """Median, its interval over units, and the middle 90 % of the orbits of every group."""
    names, first, last = [], [], []
    units = None if resample is None else labels[resample]
    n_units = 0 if units is None else numbered(units)[1]
    groups = groups_of(labels, len(values), by, usual)
    look_of = looks_of((name for name, _ in groups), among)
    for name, mask in groups:
        look = look_of[name]
        own = values[mask]
        known = np.isfinite(own).any(0)
        if not known.any():
            continue
        own, x = own[:, known], recurrence[known]
        low, middle, high = np.nanquantile(own, [MIDDLE[0], 0.5, MIDDLE[1]], axis=0)
        axes.fill_between(x, low, high, color=look["color"], alpha=0.13, linewidth=0)
        if units is not None and n_units > 1:
            axes.fill_between(x, *median_interval(own, units[mask], confidence_level), color=look["color"], alpha=0.4,
                              linewidth=0)
        axes.plot(x, middle, color=look["color"], linestyle=look["linestyle"], label=name, linewidth=1.4)
        names.append(name)
        first.append(float(middle[0]))
        last.append(float(middle[-1]))
    return Drawn(tuple(names), tuple(first), tuple(last), n_units if n_units > 1 else 0)


def band_legend(drawn: Drawn, resample: str | None, confidence_level: float, *, what: str = "orbits") -> list[Any]:
    """What the bands mean, for the legend."""
    handles = [Patch(color="#777777", alpha=0.2, linewidth=0, label=f"middle 90 % of {what}")]
    if drawn.n_units:
        handles.append(Patch(color="#777777", alpha=0.55, linewidth=0,
                             label=f"{100 * confidence_level:g} % interval of the median\n"
                                   f"(over {plural(drawn.n_units, str(resample))})"))
    return handles


def band_words(drawn: Drawn, resample: str | None, confidence_level: float, *, what: str = "orbits") -> str:
    """The same for the caption."""
    text = f"Lines: medians over {what}; light bands: the middle 90 % of {what} (their spread, no interval); "
    if drawn.n_units:
        few = f"; they are few: t with {drawn.n_units - 1} degrees of freedom" if drawn.n_units < 20 else ""
        return text + (f"dark bands: pointwise {100 * confidence_level:g} % interval of the median over "
                       f"{plural(drawn.n_units, str(resample))} (Woodruff){few}.")
    return text + "no interval is drawn, because nothing says which of them are independent."


def from_to(drawn: Drawn) -> str:
    """"layer 1 goes from 1.2 to 3e-7; layer 2 ...", for alternative texts."""
    return "; ".join(f"{name}: the median goes from {a:.2g} to {b:.2g}"
                     for name, a, b in zip(drawn.groups, drawn.first, drawn.last, strict=True))


def finish(axes: Axes, drawn: Drawn, resample: str | None, confidence_level: float, *,
           more: tuple[Line2D, ...] = ()) -> None:
    """Axis of recurrences and legend."""
    axes.set(xlabel="recurrence")
    axes.margins(x=0.01)
    whole_numbers(axes.xaxis)
    handles = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    axes.figure.legend(handles=[*handles, *more, *band_legend(drawn, resample, confidence_level)],
                       loc="outside lower center", ncols=2)


@styled
def step_curves(step: Measurement, *, by: str = "layer", resample: str | None = "prompt",
                confidence_level: float = 0.95) -> Figure:
    """Distance from each state to the next over recurrences, one line a group: how the loop slows down.

    Args:
        step: of `successive_distance`.
        by: the label that separates the lines; all orbits are one group where there is no layer.
        resample: the label whose values are independent, for the interval of the median; None for no interval.
        confidence_level: of that interval.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, an unknown label, a level that is none.
    """
    values = check_measurement(step, "successive_distance(...)", dims=2)
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    resample = usual_units(step.labels, resample)
    figure, axes = new_axes(height=3.9)
    n_steps = values.shape[1]
    drawn = draw_curves(axes, np.arange(2, n_steps + 2), np.where(values > 0, values, np.nan), step.labels, by=by,
                        usual="layer", resample=resample, confidence_level=confidence_level)
    metric = step.settings.get("metric", "euclidean")
    unit = {"relative": "relative to its norm", "cosine": "1 - cosine"}.get(str(metric), "in state units")
    if drawn.groups:
        axes.set(yscale="log", ylabel=f"length of the step into the state,\n{unit}")
        log_ticks(axes.yaxis, *axes.get_ylim())
        finish(axes, drawn, resample, confidence_level)
    else:
        nothing(axes, "no steps to draw")
    return described(
        figure, caption=f"Distance of each state from the one before it, {unit}, over {n_steps + 1} recurrences"
                        f"{subject_of(step.labels)}; {counted(step.n_orbits, step.labels, resample)}. "
                        + band_words(drawn, resample, confidence_level) + " Steps of exactly 0 are not on a log axis."
                        + settings_of(step.settings),
        alt=f"Line chart on a log axis: length of the step over {n_steps + 1} recurrences. "
            + (f"{from_to(drawn)}." if drawn.groups else "There are no steps to draw."))
