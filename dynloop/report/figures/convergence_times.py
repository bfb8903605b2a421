"""When orbits arrive at their limit."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.report.figures.bands import numbered, share_interval
from dynloop.report.figures.curves import usual_units
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import groups_of, looks, new_axes, nothing, percents, styled, whole_numbers
from dynloop.report.figures.words import check_measurement, counted, excluded, plural, settings_of, subject_of
from dynloop.settings import check_number


@styled
def convergence_times(time: Measurement, *, by: str = "layer", resample: str | None = "prompt",
                      confidence_level: float = 0.95) -> Figure:
    """Share of the orbits that have arrived by each recurrence, with its interval; those that never do count, too.

    Args:
        time: of `convergence_time`.
        by: the label that separates the lines; all orbits are one group where there is no layer.
        resample: the label whose values are independent; None where the orbits themselves are.
        confidence_level: of the intervals (Clopper-Pearson on the effective number of orbits, Korn and Graubard).

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, an unknown label, a level that is none.

    Misleads:
        Orbits that did not converge are censored at the end of the record: a line that ends below 100 % says so.
        Orbits too short or not finite are left out, and counted in the caption.
    """
    values = check_measurement(time, "convergence_time(...)", variable="time")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    resample = usual_units(time.labels, resample)
    asked = np.isin([o.value for o in time.outcomes], [Outcome.FOUND.value, Outcome.NOT_CONVERGED.value])
    figure, axes = new_axes(height=3.8)
    recorded = time["n_recorded"][asked] if "n_recorded" in time.variables else np.array([])
    n_steps = int(np.nanmax(np.append(recorded, np.nan_to_num(values[asked], nan=0).max(initial=0) + 1)))
    recurrence = np.arange(1, n_steps + 1)
    units = np.arange(time.n_orbits) if resample is None else time.labels[resample]
    texts = []
    for (name, mask), look in zip(groups_of(time.labels, time.n_orbits, by, "layer"), looks(), strict=False):
        own = mask & asked
        if not own.any():
            continue
        there = values[own][:, None] < recurrence  # the state of index t is that of recurrence t + 1
        axes.fill_between(recurrence, *share_interval(there, units[own], confidence_level), step="post",
                          color=look["color"], alpha=0.25, linewidth=0)
        axes.step(recurrence, there.mean(0), where="post", color=look["color"], linestyle=look["linestyle"],
                  linewidth=1.4, label=name)
        arrived = values[own & time.found]
        when = f", half of them by recurrence {1 + np.median(arrived):.3g}" if len(arrived) else ""
        texts.append(f"{name}: {100 * there[:, -1].mean():.3g} % arrive{when}")
    n_units = numbered(units[asked])[1] if asked.any() else 0
    over = "orbits, taken as independent" if resample is None else plural(n_units, resample)
    if texts:
        axes.set(xlabel="recurrence", ylabel="orbits that have arrived", ylim=(-0.02, 1.02))
        axes.margins(x=0.01)
        percents(axes.yaxis)
        whole_numbers(axes.xaxis)
        band = Patch(color="#777777", alpha=0.35, linewidth=0,
                     label=f"{100 * confidence_level:g} % interval over\n{over}")
        figure.legend(handles=[*axes.lines, band], loc="outside lower center", ncols=2)
    else:
        nothing(axes, "no convergence times to draw")
    return described(
        figure, caption="Share of the orbits that have come within the radius of their last state for good, by "
                        f"recurrence of {n_steps} recurrences{subject_of(time.labels)}; n = "
                        f"{counted(time.n_orbits, time.labels, resample)}{excluded(time)}; not converged counts as not "
                        f"arrived, too short and not finite are left out. Bands: pointwise "
                        f"{100 * confidence_level:g} % Clopper-Pearson intervals on the effective number of orbits "
                        f"(Korn-Graubard), over {over}."
                        + settings_of(time.settings),
        alt="Rising step lines: share of the orbits that have arrived by each recurrence. "
            + (f"{'; '.join(texts)}." if texts else "There are no convergence times to draw."))
