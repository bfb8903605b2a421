"""How far each recurrence mirrors a reference, beside what shifts and controls score."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import groups_of, looks_of, new_axes, nothing, styled, whole_numbers
from dynloop.report.figures.words import check_measurement, excluded, plural, settings_of, subject_of

_LOG_FROM = 3  # times as far as there are recurrences: chosen at equal ratios


@styled
def mirroring_scores(mirroring: Measurement, *, by: str = "model") -> Figure:
    """Mirroring score of every recurrence with its interval, the null of circular shifts as a band, controls as points.

    Args:
        mirroring: of `mirroring`; of several models or seeds, joined.
        by: the label that separates the colours; all are one group where there is no model.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, or an unknown label.

    Misleads:
        The band is of few shifts where there are few layers, and depth alone makes stacks alike: a score above the band
        is no proof, one among the controls is none at all. See `mirroring`.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.report.figures import alt_of, mirroring_scores
        >>> from dynloop.stages import mirroring
        >>> stack = np.random.default_rng(0).normal(size=(6, 8, 5, 1, 3))  # prompt, layer, token, recurrence, dim
        >>> prompt, layer, token = (i.ravel() for i in np.indices((6, 8, 5)))
        >>> labels = {"prompt": prompt, "layer": layer, "token": token}
        >>> reference = Trajectories(stack.reshape(240, 1, 3), labels=labels)
        >>> loop = Trajectories(np.repeat(stack, 2, axis=3).reshape(240, 2, 3), labels=labels)
        >>> alt_of(mirroring_scores(mirroring(loop, reference)))[:75]
        'Mirroring score by recurrence. Recurrences 1 to 2: scores from 1.00 to 1.00'
    """
    score = check_measurement(mirroring, "mirroring(...)", variable="score")
    for name in ("low", "high", "p_value", "smallest_p"):
        check_measurement(mirroring, "mirroring(...)", variable=name)
    null = check_measurement(mirroring, "mirroring(...)", variable="null", dims=2)
    if "recurrence" not in mirroring.labels:
        raise ValueError("this figure is drawn from mirroring(...); the measurement has no label 'recurrence'.")
    groups = groups_of(mirroring.labels, mirroring.n_orbits, by, "model")
    figure, axes = new_axes(height=3.8)
    recurrence, good = np.asarray(mirroring.labels["recurrence"]), mirroring.found
    if not good.any():
        nothing(axes, "no mirroring to draw")
        return described(figure, caption=f"No recurrence has a mirroring score; n = "
                                         f"{plural(mirroring.n_orbits, 'row')}{excluded(mirroring)}.",
                         alt="There is no mirroring to draw.")
    look_of = looks_of(name for name, _ in groups)
    controls = mirroring["control_scores"] if "control_scores" in mirroring.variables else None
    handles: list[Line2D | Patch] = []
    texts = []
    for name, mask in groups:
        rows = np.flatnonzero(mask & good)
        rows = rows[np.argsort(recurrence[rows], kind="stable")]
        if not len(rows):
            continue
        look, x = look_of[name], recurrence[rows]
        lone = len(np.unique(x)) == len(x)
        shifts = null[rows, 1:]
        if shifts.shape[1]:
            for at in np.unique(x):  # of several seeds one band
                own = shifts[x == at]
                axes.plot([at, at], [own.min(), own.max()], color=look["color"], alpha=0.25, linewidth=7,
                          solid_capstyle="butt", zorder=1)
        if controls is not None:
            for column in controls[rows].T:
                axes.plot(x, column, linestyle="none", marker="x", markersize=4.5, color="#555555", zorder=3)
        error = np.nan_to_num(np.abs(np.stack([score[rows] - mirroring["low"][rows],
                                               mirroring["high"][rows] - score[rows]])))
        axes.errorbar(x, score[rows], error, color=look["color"], marker=look["marker"], markersize=4.5, linewidth=1.2,
                      linestyle=look["linestyle"] if lone else "none", zorder=4)
        if len(groups) > 1:
            handles.append(Line2D([], [], color=look["color"], marker=look["marker"], markersize=4.5, label=name))
        texts.append((f"{name}, " if len(groups) > 1 else "") + f"recurrences {x.min()} to {x.max()}: scores from "
                     f"{score[rows].min():.2f} to {score[rows].max():.2f}, p from "
                     f"{mirroring['p_value'][rows].min():.2g} to {mirroring['p_value'][rows].max():.2g}"
                     + (f", shifts from {shifts.min():.2f} to {shifts.max():.2f}" if shifts.shape[1] else ""))
    every = np.unique(recurrence[good])
    axes.set(xlabel="recurrence", ylabel="mirroring score")
    if len(every) > 2 and every[-1] > _LOG_FROM * len(every):
        axes.set_xscale("log")
        axes.set_xticks(every, [str(r) for r in every])
        axes.minorticks_off()
    else:
        whole_numbers(axes.xaxis)
        axes.set_xlim(every[0] - 0.6, every[-1] + 0.6)
    level = float(mirroring.settings.get("confidence_level", 0.95))
    n_prompts = mirroring["without_prompt"].shape[1] if "without_prompt" in mirroring.variables else 0
    with_interval = bool(np.isfinite(mirroring["low"][good]).any())
    if len(groups) == 1:
        handles.append(Line2D([], [], color=look_of[groups[0][0]]["color"], marker="o", markersize=4.5, label="score"
                              + (f", {100 * level:g} % interval" if with_interval else "")))
    handles.append(Patch(color="#777777", alpha=0.35, linewidth=0, label="circular shifts over the layers"))
    if controls is not None:
        handles.append(Line2D([], [], color="#555555", marker="x", linestyle="none", markersize=4.5,
                              label=f"controls (n = {controls.shape[1]})"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    said = "; ".join(texts)
    least = float(np.nanmin(mirroring["smallest_p"][good]))
    kept = {k: v for k, v in mirroring.settings.items() if k not in ("confidence_level", "n_controls")}
    return described(
        figure, caption=f"How far each recurrence mirrors the reference{subject_of(mirroring.labels)}; "
                        f"n = {plural(int(good.sum()), 'recurrence')} of {plural(n_prompts, 'prompt')}"
                        f"{excluded(mirroring)}. {said[:1].upper()}{said[1:]}. "
                        + (f"Bars: {100 * level:g} % interval over prompts (jackknife, Student's t). "
                           if with_interval else "No interval: there is one prompt. ")
                        + f"Bands: least to largest score of the {plural(null.shape[1] - 1, 'circular shift')}; no "
                        f"p-value can be below {least:.3g}."
                        + (f" Crosses: {plural(controls.shape[1], 'control')}." if controls is not None else "")
                        + settings_of(kept),
        alt=f"Mirroring score by recurrence. {said[:1].upper()}{said[1:]}.")
