"""Numbers with intervals, one a row, the figures beside them in digits."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dynloop.measurement import Measurement
from dynloop.report.cells import significant
from dynloop.report.figures.style import log_ticks, looks_of
from dynloop.report.figures.words import plural
from dynloop.statistics import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_HEIGHT = 0.21  # inches
_UNNAMED = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A number with its interval; NaN limits mean that there is none.

    Attributes:
        label: of the row; several rows of one label stand together, told apart by their group.
        value, low, high: the number.
        group: which of the conditions of the figure, "" for the only one.
        kind: how the interval was made, for the caption.
    """

    label: str
    value: float
    low: float
    high: float
    group: str = _UNNAMED
    kind: str = ""


def row_of(found: Any, label: str, *, group: str = _UNNAMED) -> Row:
    """A row of anything with value, low and high: an `Estimate`, a comparison.

    Raises:
        TypeError: something without them.
    """
    try:
        value, low, high = float(found.value), float(found.low), float(found.high)
    except (AttributeError, TypeError):
        raise TypeError(f"rows are made of estimates, which have value, low and high; got {type(found).__name__}. "
                        "Estimate first: estimate(measurement, statistic='median', resample='prompt').") from None
    return Row(label, value, low, high, group, kind_of(found))


def kind_of(found: Any) -> str:
    """"95 % BCa, 1000 resamples, 64 prompts"."""
    level, method = getattr(found, "confidence_level", None), getattr(found, "method", "")
    parts = [f"{100 * level:g} % {method}".strip() if level else str(method)]
    resample, units = getattr(found, "resample", None), getattr(found, "units", None)
    if units:
        parts.append(" of ".join(plural(n, name) for name, n in reversed(list(units.items()))))
    elif isinstance(resample, str):
        n_units = getattr(found, "n_units", None)
        parts.append(f"over {resample}s" if n_units is None else plural(n_units, resample))
    if target := getattr(found, "target", ""):
        parts.append(f"for {target}")
    return ", ".join(part for part in parts if part)


def digits(value: float, scale: float = 1.0) -> str:
    """Three significant digits."""
    if math.isnan(value):
        return "none"
    if scale == 100 and 0 < value < 1e-5:
        return "<0.001"
    return significant(scale * value)  # as in the tables


def text_of(row: Row, scale: float = 1.0) -> str:
    """"0.83 [0.81, 0.85]"."""
    if math.isnan(row.value):
        return row.kind or "none"
    if math.isnan(row.low) or math.isnan(row.high):
        return digits(row.value, scale)
    return f"{digits(row.value, scale)} [{digits(row.low, scale)}, {digits(row.high, scale)}]"


def height_of(rows: Sequence[Row]) -> float:
    """Inches that the rows take, with axis and legend."""
    groups = len({row.group for row in rows})
    legend = 0.2 * ((groups + 2) // 3) if groups > 1 else 0.0
    return 1.0 + ROW_HEIGHT * len(rows) + 0.1 * len({row.label for row in rows}) + legend


def draw_rows(axes: Axes, rows: Sequence[Row], *, scale: float = 1.0, log: bool = False, text: bool = True,
              names: bool = True, among: Sequence[str] | None = None) -> None:
    """Dots with intervals from top to bottom, rows of one label together, groups by colour and marker (`looks_of`)."""
    labels, groups = list(dict.fromkeys(r.label for r in rows)), list(dict.fromkeys(r.group for r in rows))
    look = looks_of(groups, among)
    place: dict[int, float] = {}
    centres, at = [], 0.0
    for label in labels:
        own = [i for i, row in enumerate(rows) if row.label == label]
        place.update({i: at + k for k, i in enumerate(own)})
        centres.append(at + (len(own) - 1) / 2)
        at += len(own) + 0.5
    numbers = [v for row in rows for v in (row.value, row.low, row.high) if np.isfinite(v) and (v > 0 or not log)]
    least, most = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    for i, row in enumerate(rows):
        colour = look[row.group]["color"]
        low, high = (np.clip(v, least, most) for v in (row.low, row.high))  # infinite ones end with the axis
        if np.isfinite([low, high]).all():
            axes.plot([low * scale, high * scale], [place[i]] * 2, color=colour, linewidth=1.4, marker="|",
                      markersize=6)
        axes.plot(row.value * scale, place[i], marker=look[row.group]["marker"], color=colour, linestyle="none",
                  markersize=5)
        if text:
            axes.annotate(text_of(row, scale), (1.02, place[i]), xycoords=axes.get_yaxis_transform(), va="center",
                          fontsize=8, annotation_clip=False)
    axes.set(yticks=centres, yticklabels=labels if names else [""] * len(labels), ylim=(at - 0.8, -0.7))
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    for centre in (np.array(centres[1:]) + np.array(centres[:-1])) / 2 if len(groups) > 1 else ():
        axes.axhline(centre, color="#dddddd", linewidth=0.6)
    if log:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, least, most)
    else:
        tiny = most * scale < 1e-3  # such numbers are long
        axes.xaxis.set_major_locator(MaxNLocator(nbins=3 if tiny else 6 if scale == 100 else 5, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-")))


def group_handles(rows: Sequence[Row], among: Sequence[str] | None = None) -> list[Any]:
    """What the colours mean; nothing where there is one group and no other could be meant."""
    from matplotlib.lines import Line2D

    groups = list(dict.fromkeys(r.group for r in rows))
    if len(groups) < 2 and (not any(groups) or len(among or ()) < 2):
        return []
    look = looks_of(groups, among)
    return [Line2D([], [], color=look[group]["color"], marker=look[group]["marker"], linewidth=1.4, markersize=5,
                   label=group) for group in groups]


def kinds(rows: Sequence[Row]) -> str:
    """The kinds of all intervals, for the caption."""
    found = list(dict.fromkeys(re.sub(r", design effect [\d.e+]+", "", row.kind) for row in rows if row.kind))
    bare = sum(math.isnan(row.low) or math.isnan(row.high) for row in rows)
    if len(found) > 4:
        found = [*found[:3], f"and {len(found) - 3} more kinds, which stand with the estimates"]
    text = f" Intervals: {'; '.join(found)}." if found else ""
    return text + (f" {plural(bare, 'row')} without an interval." if bare else "")


def told(rows: Sequence[Row], scale: float = 1.0, *, most: int = 12) -> str:
    """The rows in words, for alternative texts."""
    texts = [f"{row.label}{f', {row.group}' if row.group else ''}: {text_of(row, scale)}" for row in rows[:most]]
    return "; ".join(texts) + (f"; and {len(rows) - most} more" if len(rows) > most else "")


def estimated(measurement: Measurement, label: str, *, group: str = _UNNAMED, **question: Any) -> Row | None:
    """A row by `estimate`; without an interval where there are too few units; None where no orbit has an answer."""
    used = np.ones(measurement.n_orbits, bool) if not isinstance(question.get("of"), str | None) else measurement.found
    if not used.any():
        return None
    outermost = question["resample"].split(">")[0].strip()
    units = measurement.labels.get(outermost, np.arange(len(used)))[used]  # "orbit" is no label
    if len(np.unique(units)) < 2:
        values = measurement[question.get("variable") or next(iter(measurement.variables))][used]
        value = (values == question["of"]).mean() if question["statistic"] == "share" else np.median(values)
        return Row(label, float(value), math.nan, math.nan, group)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # of few units: the caption gives their number
        return row_of(estimate(measurement, **question), label, group=group)


def need_resample(resample: str | None) -> None:
    """A figure that makes intervals of a measurement must be told over what."""
    if resample is None:
        raise ValueError("resample must say what is independent, for example resample='prompt': the intervals of this "
                         "figure need it. Tokens of one prompt are not.")


def part_of(measurement: Measurement, mask: Any) -> Measurement:
    """The masked orbits."""
    return dataclasses.replace(measurement, outcomes=measurement.outcomes[mask],
                               variables={n: v[mask] for n, v in measurement.variables.items()},
                               labels={n: v[mask] for n, v in measurement.labels.items()})
