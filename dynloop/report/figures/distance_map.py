"""Distance to the last state, orbits by recurrences, as a heat map."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import new_axes, nothing, styled, whole_numbers
from dynloop.report.figures.words import check_measurement, place_of, plural, settings_of


@styled
def distance_map(distance: Measurement, *, label: str = "token") -> Figure:
    """Log distance to the last state, orbits (tokens of one prompt) by recurrences.

    Args:
        distance: of `distance_to_limit` with metric="relative", the orbits of one prompt and one layer.
        label: the label along the vertical axis.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind.
    """
    values = check_measurement(distance, "distance_to_limit(..., metric='relative')", dims=2)
    d = np.where(values > 0, values, np.nan)[:, :-1]
    figure, axes = new_axes()
    axes.grid(visible=False)
    n_steps, place = values.shape[1], place_of(distance.labels)
    if np.isfinite(d).any():
        image = axes.imshow(np.log10(d), aspect="auto", cmap="cividis", interpolation="nearest",
                            extent=(0.5, d.shape[1] + 0.5, len(d) - 0.5, -0.5))
        names = distance.labels.get(label, np.arange(len(d)))
        ticks = np.unique(np.linspace(0, len(d) - 1, min(len(d), 8)).astype(int))
        axes.set(xlabel="recurrence", ylabel=label, yticks=ticks, yticklabels=[str(names[t]) for t in ticks],
                 facecolor="#dddddd")
        whole_numbers(axes.xaxis)
        figure.colorbar(image, ax=axes, label="log10 of relative distance\nto the last state")
        told = f"From {np.nanmin(np.log10(d)):.2g} to {np.nanmax(np.log10(d)):.2g}."
    else:
        nothing(axes, "no distance to draw")
        told = "There is no distance to draw."
    tolerance = distance.settings.get("tolerance")
    rest = f" At rest counts what lies below {tolerance:g} (log10: {np.log10(tolerance):.2g}) for the last quarter." \
        if tolerance else ""
    return described(
        figure, caption=f"Distance of every {label} to its state after {n_steps} recurrences, relative to that state's "
                        f"norm, log10 scale{f' ({place})' if place else ''}; n = {plural(distance.n_orbits, 'orbit')}, "
                        f"every one shown, so that there is nothing to be uncertain of. Grey: no number.{rest}"
                        + settings_of({k: v for k, v in distance.settings.items() if k != "tolerance"}),
        alt=f"Heat map of {plural(distance.n_orbits, 'orbit')} by {n_steps} recurrences: colour is the log10 of the "
            f"relative distance to the last state. {told}")
