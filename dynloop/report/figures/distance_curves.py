"""Distance to the last state over recurrences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.report.figures.curves import band_words, draw_curves, finish, from_to, usual_units
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import groups_of, log_ticks, looks_of, new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, settings_of, subject_of
from dynloop.settings import check_number


@styled
def distance_curves(distance: Measurement, rate: Measurement | None = None, *, by: str = "layer",
                    resample: str | None = "prompt", confidence_level: float = 0.95,
                    among: Sequence[str] | None = None) -> Figure:
    """Distance to the last state over recurrences, one line a layer: median, its interval, middle 90 % of the orbits.

    Args:
        distance: of `distance_to_limit` with metric="relative".
        rate: of `contraction_rate` on the same orbits; its median floor is drawn where there is one.
        by: the label that separates the lines; all orbits are one group where there is no layer.
        resample: the label whose values are independent, for the interval of the median; None for no interval.
        confidence_level: of that interval.
        among: all names of a report in order, so that a group has one colour in all of its figures.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, an unknown label, a level that is none.

    Misleads:
        The last stretch falls whatever the orbits do, because the reference is the last state. Intervals are pointwise.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, distance_to_limit
        >>> from dynloop.report.figures import caption_of, distance_curves
        >>> states = 1 + 0.8 ** np.arange(60)[:, None] * np.random.default_rng(0).normal(size=(12, 1, 16))
        >>> orbits = Trajectories(states, labels={"prompt": np.arange(12) // 3})
        >>> caption_of(distance_curves(distance_to_limit(orbits, metric="relative")))[:98]
        'Distance to the state after 60 recurrences, relative to its norm; 12 orbits of 4 prompts. Lines: m'
    """
    values = check_measurement(distance, "distance_to_limit(..., metric='relative')", dims=2)
    if rate is not None:
        check_measurement(rate, "contraction_rate(...)", variable="relative_floor")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    resample = usual_units(distance.labels, resample)
    figure, axes = new_axes(height=4.0)
    n_steps = values.shape[1]
    positive = np.where(values > 0, values, np.nan)[:, :-1]
    drawn = draw_curves(axes, np.arange(1, n_steps), positive, distance.labels, by=by, usual="layer",
                        resample=resample, confidence_level=confidence_level, among=among)
    floors = []
    if rate is not None and drawn.groups:
        groups = groups_of(rate.labels, rate.n_orbits, by, "layer")
        look_of = looks_of((name for name, _ in groups), among)
        for name, mask in groups:
            look = look_of[name]
            floor = rate["relative_floor"][mask]
            if name in drawn.groups and np.isfinite(floor).any():
                floors.append(float(np.nanmedian(floor)))
                axes.axhline(floors[-1], color=look["color"], linewidth=0.9, linestyle=(0, (1, 2)),
                             label=f"floor of the steps, {name}")
    if drawn.groups:
        axes.set(yscale="log", ylabel="distance to the last state,\nrelative to its norm")
        log_ticks(axes.yaxis, *axes.get_ylim())
        finish(axes, drawn, resample, confidence_level)
    else:
        nothing(axes, "no distance to draw")
    floor_words = ""
    if rate is not None:
        factor = rate.settings.get("floor_factor", 3)
        floor_words = (" Dotted: median floor of the steps" if floors else " No floor of the steps was reached") + \
            f" (floor: median of the last quarter of the steps; regime: steps above {factor:g} floors, at least " \
            f"{rate.settings.get('min_points', 5)} of them)."
    return described(
        figure, caption=f"Distance to the state after {n_steps} recurrences, relative to its norm"
                        f"{subject_of(distance.labels)}; {counted(distance.n_orbits, distance.labels, resample)}. "
                        + band_words(drawn, resample, confidence_level) + floor_words
                        + " The last stretch falls by construction: the reference is the last state."
                        + settings_of(distance.settings),
        alt=f"Line chart on a log axis: relative distance to the last state over {n_steps} recurrences. "
            + (f"{from_to(drawn)}." if drawn.groups else "There is no distance to draw."))
