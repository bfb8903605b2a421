"""One line a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import COLOURS, log_ticks, new_axes, nothing, styled, whole_numbers
from dynloop.report.figures.words import check_measurement, counted, plural, settings_of
from dynloop.settings import check_number


@styled
def seed_lines(curves: Measurement, *, by: str = "seed", variable: str | None = None, log: bool = True,
               confidence_level: float = 0.95) -> Figure:
    """The median curve of every seed, their mean, and its interval for new seeds: how much a training run matters.

    The interval is Student's over the seeds' medians (of their logarithms on a log axis), one degree of freedom a seed
    but one: with few seeds it is wide, as it must be.

    Args:
        curves: with one value a step, such as `distance_to_limit` or `successive_distance`, over several seeds.
        by: the label that tells the seeds (trained models) apart.
        variable: by default the main one.
        log: a logarithmic axis; values of 0 are left out, and the mean is the geometric one.
        confidence_level: of the interval.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, an unknown label, a level that is none.
    """
    from scipy import stats

    values = check_measurement(curves, "a curve such as successive_distance(...)", variable=variable, dims=2)
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    if by not in curves.labels:
        raise ValueError(f"no label {by!r} tells seeds apart; there are {', '.join(curves.labels) or 'none'}.")
    seeds = np.unique(curves.labels[by])
    name = variable or next(iter(curves.variables))
    shown = np.where(np.isfinite(values) & ((values > 0) | (not log)), values, np.nan)
    columns = np.isfinite(shown).any(0)
    recurrence = np.arange(1, shown.shape[1] + 1)[columns]
    medians = []
    for seed in seeds:
        own = shown[curves.labels[by] == seed][:, columns]
        known = np.isfinite(own).any(0)
        medians.append(np.full(len(known), np.nan))
        if known.any():
            medians[-1][known] = np.nanmedian(own[:, known], axis=0)
    figure, axes = new_axes(height=3.8)
    n = len(seeds)
    if columns.any():
        for line in medians:
            axes.plot(recurrence, line, color="#333333", linewidth=0.7, zorder=3)
        everywhere = np.isfinite(medians).all(0)
        handles: list[Any] = [Line2D([], [], color="#333333", linewidth=0.7, label=f"median of one {by} (n = {n})")]
        if n > 1 and everywhere.any():
            m = np.array(medians)[:, everywhere]
            m = np.log(m) if log else m
            centre, back = m.mean(0), (np.exp if log else np.asarray)
            half = stats.t.ppf((1 + confidence_level) / 2, n - 1) * m.std(0, ddof=1) / np.sqrt(n)
            axes.fill_between(recurrence[everywhere], back(centre - half), back(centre + half), color=COLOURS[0],
                              alpha=0.25, linewidth=0)
            axes.plot(recurrence[everywhere], back(centre), color=COLOURS[0], linewidth=1.8)
            handles += [Line2D([], [], color=COLOURS[0], linewidth=1.8, label="mean over them"),
                        Patch(color=COLOURS[0], alpha=0.25, linewidth=0,
                              label=f"its {100 * confidence_level:g} % interval for new ones")]
        unit = curves.units[name]
        axes.set(xlabel="recurrence", ylabel=f"{name.replace('_', ' ')}{f' ({unit})' if unit else ''}")
        if log:
            axes.set_yscale("log")
            log_ticks(axes.yaxis, *axes.get_ylim())
        axes.margins(x=0.01)
        whole_numbers(axes.xaxis)
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        ends = [line[np.isfinite(line)][-1] for line in medians if np.isfinite(line).any()]
        told = f"At the end the medians lie between {min(ends):.2g} and {max(ends):.2g}."
    else:
        nothing(axes, "no curves to draw")
        told = "There are no curves to draw."
    interval = f"Band: pointwise {100 * confidence_level:g} % interval of the {'geometric ' if log else ''}mean over " \
               f"{plural(n, by)} (Student's t, {n - 1} degrees of freedom), for new {by}s." if n > 1 else \
        f"One {by} alone: there is no interval for new ones."
    return described(
        figure, caption=f"{curves.name.capitalize().replace('_', ' ')}, {name}: medians over the orbits of each {by}; "
                        f"n = {counted(curves.n_orbits, curves.labels, by)}, {shown.shape[1]} values a curve. "
                        + interval
                        + settings_of(curves.settings),
        alt=f"Line chart: one thin line for each of {plural(n, by)}, a thick one for their mean with its interval. "
            + told)
