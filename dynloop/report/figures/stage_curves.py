"""What each realised depth does to a prompt, in the paper's three groupings."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import part_of
from dynloop.report.figures.style import MOST_GROUPS, looks, new_axes, nothing, styled, whole_numbers
from dynloop.report.figures.words import check_measurement, plural, settings_of, subject_of
from dynloop.settings import check_number
from dynloop.stages.profile import GROUPINGS, profile_by

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

USUAL = {"states": ("matrix_entropy", "anisotropy", "residual_norm"), "attention": ("sink_score", "mixing",
                                                                                   "concentration")}
WORDS = {"matrix_entropy": "matrix entropy (nats)", "anisotropy": "anisotropy", "residual_norm": "norm of the states",
         "first_token_norm": "norm of the first token", "layer_step": "step from the layer before",
         "loop_step": "step from the recurrence before", "sink_score": "sink score", "sink_rate": "sink rate",
         "mixing": "mixing (nats)", "concentration": "column concentration", "sink_excess": "sink score over uniform",
         "mixing_share": "mixing over its largest", "concentration_excess": "concentration over uniform"}
MOST = 6  # panels
_NULL_LINE: Any = {"color": "#666666", "linestyle": (0, (1, 1.6)), "linewidth": 1.3}
_REFERENCE: Any = {"color": "#000000", "linestyle": (0, (5, 2)), "linewidth": 1.0}


@styled
def stage_curves(profile: Measurement, *, grouping: str = "depth", quantities: Sequence[str] | None = None,
                 reference: Measurement | None = None, resample: str | None = "prompt",
                 confidence_level: float = 0.95) -> Figure:
    """A profile of stages in one of the paper's three groupings, a panel a quantity, with intervals.

    Args:
        profile: of `stage_profile`, of states or of attention.
        grouping: "depth" (all realised depths in a row), "recurrence" (a line a recurrence, over the percent of the
            block) or "layer" (a line a layer, over recurrences). Of more than eight lines eight are drawn: recurrences
            at equal ratios, layers evenly spaced.
        quantities: at most six; by default matrix entropy, anisotropy and norm, or sink score, mixing and
            concentration, which stand beside the value of uniform attention.
        reference: the profile of a feed-forward model on the same prompts, drawn over the percent of its depth in
            every recurrence; not with grouping="layer".
        resample: as in `profile_by`: what is independent, for the interval of the mean; None for no interval.
        confidence_level: of that interval.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not measurements.
        ValueError: a measurement of another kind, an unknown grouping or quantity, or a reference by layer.

    Misleads:
        Intervals are of each depth by itself. A profile that rises within every block does so in a feed-forward stack
        of shuffled layers, too: `mirroring` says what likeness is worth.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), figures 7 to 12 and 34 to 62.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.report.figures import alt_of, stage_curves
        >>> from dynloop.stages import stage_profile
        >>> states = np.random.default_rng(0).normal(size=(6, 3, 5, 4, 8))  # prompt, layer, token, recurrence, dim
        >>> prompt, layer, token = (i.ravel() for i in np.indices((6, 3, 5)))
        >>> orbits = Trajectories(states.reshape(90, 4, 8), labels={"prompt": prompt, "layer": layer, "token": token})
        >>> alt_of(stage_curves(stage_profile(orbits), quantities=["anisotropy"]))[:66]
        'Line charts of stages in the order of depth. Anisotropy: from 0.41'
    """
    names = _checked(profile, quantities, "stage_profile(...)")
    if grouping not in GROUPINGS:
        raise ValueError(f"grouping must be one of {', '.join(GROUPINGS)}; got {grouping!r}. Choose one.")
    if reference is not None:
        if grouping == "layer":
            raise ValueError("a feed-forward reference has no recurrences to be drawn over: leave it out, or group by "
                             "depth or recurrence.")
        _checked(reference, names, "stage_profile(...) of the reference")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    shown, left = _of_several_units(profile, resample)
    if grouping == "recurrence":
        steps = spaced(np.unique(profile.labels["recurrence"]), by_ratio=True)
        shown = part_of(shown, np.isin(shown.labels["recurrence"], steps))
    elif grouping == "layer":
        layers = spaced(_in_order(profile), by_ratio=False)
        shown = part_of(shown, np.isin(shown.labels["layer"], layers))
    names = [name for name in names if np.isfinite(shown[name][shown.found]).any()]
    if not names:
        figure, axes = new_axes()
        nothing(axes, "no stages to draw")
        return described(figure, caption=f"No profile of stages to draw; n = {plural(profile.n_orbits, 'row')}.",
                         alt="There are no stages to draw.")
    figure = _empty(len(names), deep=grouping == "depth")
    handles: dict[str, Any] = {}
    texts, with_null, intervals = [], False, False
    for i, (axes, name) in enumerate(zip(figure.axes, names, strict=True)):
        found = _grouped(shown, grouping, name, resample, confidence_level)
        intervals |= bool(np.isfinite(found["low"].values).any())
        own = {"depth": _by_depth, "recurrence": _by_recurrence, "layer": _by_layer}[grouping](axes, found, shown)
        handles = handles or own
        if (null := null_of(shown, name)) is not None:
            axes.axhline(null, **_NULL_LINE)
            with_null = True
        if reference is not None:
            _draw_reference(axes, reference, name, grouping, shown)
        axes.set_ylabel(WORDS.get(name, name.replace("_", " ")))
        if grouping != "recurrence":
            axes.margins(x=0.02)
        if name == "sink_rate":
            axes.set_ylim(-0.04, 1.04)
        else:  # what differs by rounding alone is one level, not a picture of rounding
            low, high = axes.get_ylim()
            least = 1e-3 * max(abs(low), abs(high))
            if high - low < least:
                axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
        mean = found["mean"].values
        texts.append(f"{WORDS.get(name, name).capitalize()}: from {np.nanmin(mean):.3g} to {np.nanmax(mean):.3g}"
                     + (f"; uniform attention {null:.3g}" if null is not None else ""))
        if grouping == "depth" and i + 1 < len(names):
            axes.set_xlabel("")
            axes.tick_params(labelbottom=False)
    legend = [*handles.values()]
    if intervals:
        legend.append(Patch(color="#777777", alpha=0.4, linewidth=0,
                            label=f"{100 * confidence_level:g} % interval of the mean"))
    if with_null:
        legend.append(Line2D([], [], label="uniform attention", **_NULL_LINE))
    if reference is not None:
        legend.append(Line2D([], [], label="feed-forward reference", **_REFERENCE))
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=min(4, len(legend)))
    order = {"depth": "in the order of depth", "recurrence": "by recurrence over the percent of the block",
             "layer": "by layer over recurrences"}[grouping]
    return described(figure, caption=_caption(profile, shown, order, resample, confidence_level, left, intervals,
                                              with_null, reference is not None),
                     alt=f"Line charts of stages {order}. {'. '.join(texts)}.")


def spaced(values: np.ndarray, *, by_ratio: bool, most: int = MOST_GROUPS) -> np.ndarray:
    """At most so many of the values, the first and the last among them: at equal ratios of their places, or evenly."""
    if len(values) <= most:
        return values
    if not by_ratio:
        return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]
    return values[np.unique(np.geomspace(1, len(values), most).round().astype(int)) - 1]


def null_of(profile: Measurement, name: str) -> float | None:
    """What uniform attention over as many positions scores, mean over rows; None for what has no null."""
    pairs = {"sink_score": "sink_excess", "mixing": "mixing_share", "concentration": "concentration_excess"}
    if name in ("sink_excess", "concentration_excess"):
        return 0.0
    if name == "mixing_share":
        return 1.0
    if name not in pairs or pairs[name] not in profile.variables:
        return None
    value, other = profile[name], profile[pairs[name]]
    with np.errstate(invalid="ignore", divide="ignore"):
        null = value / other if name == "mixing" else value - other
    null = null[np.isfinite(null)]
    return float(null.mean()) if len(null) else None


def _checked(profile: Any, quantities: Sequence[str] | None, what: str) -> list[str]:
    check_measurement(profile, what)
    if missing := [name for name in ("recurrence", "layer", "depth", "percent") if name not in profile.labels]:
        raise ValueError(f"this figure is drawn from {what}; {profile.name} has no label {missing[0]!r}.")
    if quantities is None:
        quantities = [name for names in USUAL.values() for name in names if name in profile.variables] or \
            list(profile.variables)[:MOST]
    if isinstance(quantities, str) or not 0 < len(quantities) <= MOST:
        raise ValueError(f"quantities must be one to {MOST} names, such as ['matrix_entropy']; got {quantities!r}.")
    for name in quantities:
        check_measurement(profile, what, variable=name)
    return list(quantities)


def _of_several_units(profile: Measurement, resample: str | None) -> tuple[Measurement, int]:
    """The rows at depths that several units reach, so that each has an interval, and how many depths were left out."""
    if resample is None:
        return profile, 0
    outermost = resample.split(">")[0].strip()
    if outermost not in profile.labels:
        raise ValueError(f"resample must name a label of the profile, or be None for no interval; got {resample!r}, "
                         f"and there are {', '.join(profile.labels)}.")
    if len(np.unique(profile.labels[outermost])) < 2:
        return profile, 0
    _, place = np.unique(profile.labels["depth"], return_inverse=True)
    units = np.unique(profile.labels[outermost], return_inverse=True)[1]
    seen = np.zeros((place.max() + 1, units.max() + 1), dtype=bool)
    seen[place[profile.found], units[profile.found]] = True
    several = seen.sum(1) > 1
    return part_of(profile, several[place]), int((~several & seen.any(1)).sum())


def _grouped(profile: Measurement, grouping: str, name: str, resample: str | None, level: float) -> xarray.Dataset:
    """`profile_by`; without an interval where there are no units."""
    units = None if resample is None else profile.labels[resample.split(">")[0].strip()]
    if units is not None and len(np.unique(units)) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few units: the caption gives their number
            return profile_by(profile, grouping, variable=name, resample=str(resample), confidence_level=level)
    # every row its own unit gives the means; the limits are then taken away
    alone = dataclasses.replace(profile, labels={**profile.labels, "copy": np.zeros(profile.n_orbits)})
    twice = Measurement.concatenate([alone, dataclasses.replace(
        alone, labels={**alone.labels, "copy": np.ones(profile.n_orbits)})])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = profile_by(twice, grouping, variable=name, resample="copy", confidence_level=level)
    return found.assign(low=found["low"] * math.nan, high=found["high"] * math.nan)


def _in_order(profile: Measurement) -> np.ndarray:
    """Layers in the order in which they come."""
    layer = profile.labels["layer"]
    first = np.sort([np.flatnonzero(layer == name)[0] for name in np.unique(layer)])
    return layer[first]


def _empty(n: int, *, deep: bool) -> Figure:
    """A figure with n panels: one below the other, or at most three side by side."""
    across = 1 if deep else 2 if n == 4 else min(n, 3)
    down = -(-n // across)
    figure = Figure(figsize=(5.4, 1.4 * down + 0.9) if deep else (2.5 * across + 0.4 + (across == 1) * 1.6,
                                                                  2.1 * down + 0.9))
    for i in range(n):
        figure.add_subplot(down, across, i + 1)
    return figure


def _line(axes: Axes, x: np.ndarray, found: Any, look: dict[str, Any], label: str | None = None,
          shade: float = 0.25) -> None:
    low, high = found["low"].values, found["high"].values
    if len(x) == 1:  # a band over one point has no width
        axes.vlines(x, low, high, color=look["color"], alpha=0.4, linewidth=4)
    else:
        axes.fill_between(x, low, high, color=look["color"], alpha=shade, linewidth=0)
    axes.plot(x, found["mean"].values, label=label, **look)


def _by_depth(axes: Axes, found: xarray.Dataset, profile: Measurement) -> dict[str, Any]:
    """One line a recurrence, end to end; where recurrences were left out the line is broken."""
    depth, first = np.unique(profile.labels["depth"], return_index=True)
    recurrence = profile.labels["recurrence"][first]
    at = np.arange(1, len(depth) + 1)
    starts = np.flatnonzero(np.r_[True, np.diff(recurrence) != 0])
    whole = (np.diff(recurrence) <= 1).all()
    for k, block in enumerate(np.split(at, starts[1:])):
        if k % 2:
            axes.axvspan(block[0] - 0.5, block[-1] + 0.5, color="#f2f2f2", zorder=0, linewidth=0)
        if not whole:
            _line(axes, block, found.isel(depth=block - 1), _DEEP if len(at) <= 96 else {**_DEEP, "marker": ""})
    if whole:
        _line(axes, at, found, _DEEP if len(at) <= 96 else {**_DEEP, "marker": ""})
    ends = np.r_[starts[1:], len(at)]
    few = np.arange(len(starts)) if len(starts) <= 16 else np.unique(np.linspace(0, len(starts) - 1, 9).astype(int))
    axes.set_xticks((at[starts] + at[ends - 1])[few] / 2, [str(r) for r in recurrence[starts][few]])
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("depth, numbered by recurrence")
    return {}


_DEEP: Any = {"color": "#0072B2", "linewidth": 1.2, "marker": "o", "markersize": 2.4}


def _by_recurrence(axes: Axes, found: xarray.Dataset, profile: Measurement) -> dict[str, Any]:
    steps = found["recurrence"].values
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.88, len(steps)))
    for i, step in enumerate(steps):
        _line(axes, found["percent"].values, found.isel(recurrence=i),
              {"color": colours[i], "linewidth": 1.3, "marker": "o", "markersize": 2.6}, f"recurrence {step}",
              0.25 if len(steps) < 3 else 0.12)
    axes.set_xlabel("depth within the block (%)")
    axes.set_xlim(0, 100)
    axes.set_xticks(range(0, 101, 25))
    return {str(line.get_label()): line for line in axes.lines}


def _by_layer(axes: Axes, found: xarray.Dataset, profile: Measurement) -> dict[str, Any]:
    steps = found["recurrence"].values
    for i, (name, look) in enumerate(zip(found["layer"].values, looks(), strict=False)):
        _line(axes, steps, found.isel(layer=i),
              {"color": look["color"], "linestyle": look["linestyle"], "linewidth": 1.3,
               "marker": "o" if len(steps) <= 16 else "", "markersize": 2.4}, layer_name(name))
    axes.set_xlabel("recurrence")
    if len(steps) > 2 and steps[-1] > 3 * len(steps) and steps[0] > 0:  # recorded, or chosen, at equal ratios
        axes.set_xscale("log")
        axes.set_xticks(steps, [str(step) for step in steps])
        axes.minorticks_off()
    else:
        whole_numbers(axes.xaxis)
    return {str(line.get_label()): line for line in axes.lines}


def layer_name(name: Any) -> str:
    """"layer 3", or the module's own name."""
    return name if isinstance(name, str) else f"layer {name}"


def _draw_reference(axes: Axes, reference: Measurement, name: str, grouping: str, shown: Measurement) -> None:
    """The reference's mean over the percent of its depth, once, or once in every recurrence."""
    depths = np.unique(reference.labels["depth"])
    good = reference.found & np.isfinite(reference[name])
    mean = np.array([reference[name][own].mean() if own.any() else np.nan
                     for own in (good & (reference.labels["depth"] == d) for d in depths)])
    part = (np.arange(len(depths)) + 0.5) / len(depths)
    if grouping == "recurrence":
        axes.plot(100 * part, mean, **_REFERENCE)
        return
    n_blocks = len(np.unique(shown.labels["recurrence"]))
    width = len(np.unique(shown.labels["depth"])) / n_blocks
    for block in range(n_blocks):
        axes.plot(0.5 + (block + part) * width, mean, **_REFERENCE)


def _caption(profile: Measurement, shown: Measurement, order: str, resample: str | None, level: float, left: int,
             intervals: bool, with_null: bool, with_reference: bool) -> str:
    steps = np.unique(shown.labels["recurrence"])
    n_layers = len(np.unique(shown.labels["layer"]))
    of = "all" if len(steps) == len(np.unique(profile.labels["recurrence"])) and (np.diff(steps) == 1).all() else \
        ", ".join(map(str, steps))
    unit = None if resample is None else resample.split(">")[0].strip()
    n = len(np.unique(profile.labels[unit])) if unit else len(np.unique(profile.labels.get("prompt", [0])))
    text = (f"Stages of inference {order}{subject_of(profile.labels)}: means over {plural(n, unit or 'prompt')} of "
            f"{plural(n_layers, 'layer')} in {plural(len(steps), 'recurrence')} ({of}); "
            f"n = {plural(int(shown.found.sum()), 'row')} of a prompt at a depth.")
    lost = profile.n_orbits - int(profile.found.sum())
    text += f" Without an answer: {plural(lost, 'row')}." if lost else ""
    text += f" Left out: {plural(left, 'depth')} that a single {unit} reaches." if left else ""
    text += (f" Bands: pointwise {100 * level:g} % interval of the mean over {plural(n, str(unit))} (Student's t)."
             if intervals else " No interval is drawn: there is one prompt, or nothing says what is independent.")
    text += " Dotted: uniform causal attention over as many positions." if with_null else ""
    text += " Dashed: the feed-forward reference over the percent of its depth." if with_reference else ""
    return text + settings_of(profile.settings)
