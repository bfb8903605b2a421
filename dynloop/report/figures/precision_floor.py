"""How far down orbits come before rounding stops them."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dynloop.measurement import Measurement
from dynloop.report.figures.bands import median_interval, numbered
from dynloop.report.figures.curves import usual_units
from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import Row, height_of
from dynloop.report.figures.style import COLOURS, groups_of, log_ticks, new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, excluded, plural, settings_of, subject_of
from dynloop.settings import check_number


@styled
def precision_floor(rate: Measurement, *, by: str = "layer", resample: str | None = "prompt",
                    resolution: float | None = None, confidence_level: float = 0.95) -> Figure:
    """Floor of the steps over the norm of the state, by layer: median with its interval, and the spread of the orbits.

    Args:
        rate: of `contraction_rate`.
        by: the label that separates the rows; all orbits are one group where there is no layer.
        resample: the label whose values are independent, for the interval of the median; None for no interval.
        resolution: relative spacing of the dtype in which the model computed, drawn as a line; by default none.
        confidence_level: of the interval.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, an unknown label, a setting that is none.
    """
    floor = check_measurement(rate, "contraction_rate(...)", variable="relative_floor")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    if resolution is not None:
        check_number("resolution", resolution, lambda v: 0 < v < 1, "the relative spacing of a number format, between "
                                                                    "0 and 1, or None for no line")
    resample = usual_units(rate.labels, resample)
    positive = np.where(floor > 0, floor, np.nan)
    rows: list[tuple[str, np.ndarray, float, float]] = []
    n_units, texts = 0, []
    for name, mask in groups_of(rate.labels, rate.n_orbits, by, "layer"):
        own = positive[mask & np.isfinite(positive)]
        if not len(own):
            continue
        low = high = np.array([np.nan])
        if resample is not None:
            units = rate.labels[resample][mask & np.isfinite(positive)]
            low, high = median_interval(own[:, None], units, confidence_level)
            n_units = max(n_units, numbered(units)[1])
        spread: np.ndarray = np.quantile(own, [0.05, 0.25, 0.5, 0.75, 0.95])
        rows.append((name, spread, float(low[0]), float(high[0])))
        texts.append(f"{name}: median {spread[2]:.2g}")
    figure, axes = new_axes(width=5.4, height=0.55 + height_of([Row(r[0], 0, 0, 0) for r in rows]))
    bare = rate.n_orbits - int(np.isfinite(positive).sum())
    if rows:
        for y, (_, quantiles, least, most) in enumerate(rows):
            axes.plot(quantiles[[0, 4]], [y, y], color="#999999", linewidth=1)
            axes.plot(quantiles[[1, 3]], [y, y], color="#999999", linewidth=4, solid_capstyle="butt")
            if np.isfinite([least, most]).all():
                axes.plot([least, most], [y + 0.28] * 2, color=COLOURS[0], linewidth=1.6, marker="|", markersize=6)
            axes.plot(quantiles[2], y + 0.28 * bool(np.isfinite(least)), "o", color=COLOURS[0], markersize=5)
        axes.set(yticks=range(len(rows)), yticklabels=[r[0] for r in rows], ylim=(len(rows) - 0.4, -0.6), xscale="log",
                 xlabel="floor of the steps, over the state's norm")
        spreads = np.array([r[1] for r in rows])
        log_ticks(axes.xaxis, spreads.min(), spreads.max())
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        handles = [Line2D([], [], color="#999999", linewidth=4, label="middle half of the orbits"),
                   Line2D([], [], color="#999999", linewidth=1, label="middle 90 %"),
                   Line2D([], [], color=COLOURS[0], marker="o", markersize=5, linewidth=1.6,
                          label=f"median, {100 * confidence_level:g} % interval" if n_units > 1 else "median")]
        if resolution is not None:
            axes.axvline(resolution, color=COLOURS[1], linestyle="--", linewidth=1)
            handles.append(Line2D([], [], color=COLOURS[1], linestyle="--", linewidth=1,
                                  label=f"spacing of the dtype ({resolution:.2g})"))
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    else:
        nothing(axes, "no floors to draw")
    interval = f"Interval of the median: {100 * confidence_level:g} %, over {plural(n_units, str(resample))} " \
               "(Woodruff)." if n_units > 1 else "No interval: it needs several independent units."
    return described(
        figure, caption="Floor of the steps (median of the last quarter of them) over the norm of the last state"
                        f"{subject_of(rate.labels)}; n = {counted(rate.n_orbits, rate.labels, resample)}"
                        f"{excluded(rate)}; {bare:,} have no floor or one of exactly 0. {interval}"
                        + (f" Dashed: relative spacing of the dtype that computed, {resolution:.3g}."
                           if resolution else "")
                        + settings_of(rate.settings),
        alt="Dots with intervals on a log axis: precision floor of each row. "
            + (f"{'; '.join(texts)}." if texts else "There are no floors to draw."))
