"""Likeness of states, or distance of attention maps, between all pairs of realised depths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.stage_curves import layer_name, spaced
from dynloop.report.figures.style import new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, excluded, plural, subject_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORDS = {"layer_cosine": ("cosine of the states of a token", "Mean cosine between the states of the same token"),
          "layer_cka": ("centred kernel alignment", "Centred kernel alignment (CKA) of the states, debiased over "
                                                    "tokens of distinct prompts,")}
_DISTANCES = {"distance": "Frobenius distance of the maps", "relative": "distance over the largest there can be"}
_MOST_PANELS, _MOST_LINES = 4, 32
_LEAST_RANGE = 1e-3  # of likeness in colours, lest the rounding of a loop at rest show as stripes


@styled
def depth_matrix(matrix: Any, *, variable: str = "distance") -> Figure:
    """A matrix over all pairs of realised depths, as in the paper, with the recurrences marked.

    A loop that goes round a cycle of states shows stripes along the diagonal, one layer of one recurrence like the same
    layer of the others; one that does nothing any more shows one colour.

    Args:
        matrix: of `layer_cosine` or `layer_cka`; or of `attention_distance`, whose mean over prompts and heads is drawn
            (a panel a layer, four at most, where only maps within layers were compared).
        variable: of `attention_distance`: "distance", or "relative", for prompts of several lengths.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: neither.
        ValueError: another matrix, measurement or variable.

    Misleads:
        What all states have in common brings every cosine near 1: read the colour bar. Between layers, distances of
        attention speak of the order of heads, too. A mean over prompts has no interval here; `mirroring` gives those.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), figures 2, 19, 20 and 21.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.report.figures import alt_of, depth_matrix
        >>> from dynloop.stages import layer_cosine
        >>> states = np.array([[[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3])  # layer, recurrence, dim
        >>> orbits = Trajectories(states, labels={"prompt": [0, 0], "layer": [1, 2], "token": [0, 0]})
        >>> alt_of(depth_matrix(layer_cosine(orbits)))
        'Matrix of 6 by 6 depths. One layer in different recurrences: 1.00 on average; different layers: 0.00.'
    """
    if isinstance(matrix, Measurement):
        return _of_attention(matrix, variable)
    import xarray

    if not isinstance(matrix, xarray.DataArray):
        raise TypeError(f"depth_matrix draws what layer_cosine, layer_cka or attention_distance give; got "
                        f"{type(matrix).__name__}.")
    coordinates = ("recurrence", "layer", "other_recurrence", "other_layer")
    if matrix.name not in _WORDS or matrix.ndim != 2 or any(name not in matrix.coords for name in coordinates):
        raise ValueError(f"depth_matrix draws layer_cosine(...) or layer_cka(...); got an array {matrix.name!r} of "
                         f"axes {', '.join(map(str, matrix.dims))}.")
    label, words = _WORDS[str(matrix.name)]
    values = matrix.values
    recurrence, layer, other_recurrence, other_layer = (matrix[name].values for name in coordinates)
    figure, axes = new_axes(width=5.0, height=4.3)
    if not np.isfinite(values).any():
        nothing(axes, "no pairs of depths to draw")
        return described(figure, caption=f"{words} at all pairs of {plural(len(values), 'depth')}: none is known.",
                         alt="There are no pairs of depths to draw.")
    image = _draw(axes, values, (recurrence, layer), (other_recurrence, other_layer), high=1.0,
                  low=min(float(np.nanmin(values)), 1 - _LEAST_RANGE))
    figure.colorbar(image, ax=axes, label=f"{label} (1: alike)", shrink=0.85)
    told = _told(values, recurrence, layer, other_recurrence, other_layer)
    shape = f"{values.shape[0]} by {values.shape[1]} depths"
    return described(
        figure, caption=f"{words} at n = {shape}: {plural(len(np.unique(layer)), 'layer')} in "
                        f"{plural(len(np.unique(recurrence)), 'recurrence')}{_chosen(recurrence)}, in the order in "
                        f"which the model makes them. {told}.{_lines(recurrence)} No interval: means over tokens and "
                        "prompts." + (" Grey: not known." if not np.isfinite(values).all() else ""),
        alt=f"Matrix of {shape}. {told}.")


def _of_attention(measurement: Measurement, variable: str) -> Figure:
    if variable not in _DISTANCES:
        raise ValueError(f"variable must be one of {', '.join(_DISTANCES)}; got {variable!r}. Choose one.")
    values = check_measurement(measurement, "attention_distance(...)", variable=variable, dims=2)
    labels = measurement.labels
    n_rows, n = values.shape
    groups = values.reshape(-1, n, n) if n and n_rows % n == 0 else np.empty((0, n, n))
    recurrence, layer = (labels.get(name, np.zeros(n_rows, dtype=int)) for name in ("recurrence", "layer"))
    if not len(groups) or not np.isfinite(groups).any():
        figure, axes = new_axes()
        nothing(axes, "no attention distances to draw")
        return described(figure, caption=f"No distances between attention maps; n = {plural(n_rows, 'map')}.",
                         alt="There are no attention distances to draw.")
    own = layer.reshape(-1, n)
    within = (own == own[:, :1]).all() and len(np.unique(layer)) > 1
    panels: list[tuple[str, np.ndarray]] = [("", groups)]
    if within:
        names = own[:, 0][np.sort(np.unique(own[:, 0], return_index=True)[1])]
        panels = [(layer_name(name), groups[own[:, 0] == name])
                  for name in spaced(names, by_ratio=False, most=_MOST_PANELS)]
    columns = min(len(panels), 2)
    figure = Figure(figsize=(5.0 if columns == 1 else 6.6, 4.3 if columns == 1 else 3.0 * -(-len(panels) // columns)))
    means = []
    for _, group in panels:
        known = np.isfinite(group)
        total, count = np.where(known, group, 0).sum(0), known.sum(0)
        means.append(np.where(count > 0, total / np.maximum(count, 1), np.nan))
    high = max(float(np.nanmax(mean)) for mean in means)
    image: Any = None
    told = []
    for i, ((name, _), mean) in enumerate(zip(panels, means, strict=True)):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, i + 1)
        place = recurrence[:n], (np.zeros(n, dtype=int) if within else layer[:n])
        image = _draw(axes, mean, place, place, low=0.0, high=max(high, 1e-12))
        axes.set_title(name)
        told.append((f"{name}: " if name else "") + (_told(mean, *place, *place) if not within else
                                                     f"{_off_diagonal(mean):.3g} on average between recurrences"))
    bar = figure.colorbar(image, ax=figure.axes, label=_DISTANCES[variable], shrink=0.85)
    null = _null(measurement, variable)
    if 0 < null < high:
        bar.ax.axhline(null, color="white", linewidth=1.5)
    units = [name for name in ("prompt", "head") if name in labels]
    said = "; ".join(told)
    return described(
        figure, caption=f"{_DISTANCES[variable].capitalize()}{subject_of(labels)}: mean over "
                        f"{' and '.join(plural(len(np.unique(labels[name])), name) for name in units) or 'one map'} at "
                        f"all pairs of {plural(n, 'depth')}{_chosen(recurrence[:n])}; "
                        f"n = {counted(n_rows, labels, what='map')}{excluded(measurement)}. {said}. Uniform attention "
                        f"is {null:.3g} from any map that lays all weight on single keys"
                        + (" (white line)" if 0 < null < high else "") + f".{_lines(recurrence[:n])} No interval: "
                        "means over prompts and heads.",
        alt=f"Matrix of distances between the attention maps of {plural(n, 'depth')}. {said}.")


def _null(measurement: Measurement, variable: str) -> float:
    """Distance of uniform attention from one-hot attention, mean over maps, in the unit of the variable."""
    null = measurement["null"]
    if variable == "relative":
        at_all = measurement["relative"] > 0
        largest = np.where(at_all, measurement["distance"], 0).max(1) / np.where(at_all, measurement["relative"],
                                                                                 0).max(1, initial=1e-300)
        null = np.where(largest > 0, null / np.maximum(largest, 1e-300), np.nan)
    known = null[np.isfinite(null)]
    return float(known.mean()) if len(known) else np.nan


def _draw(axes: Axes, values: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray],
          *, low: float, high: float) -> Any:
    """The matrix, first depth at the top left, with boundaries between recurrences."""
    n, m = values.shape
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", interpolation="nearest", aspect="auto", vmin=low,
                        vmax=high, extent=(0.5, m + 0.5, n + 0.5, 0.5))
    axes.set_facecolor("#cccccc")
    axes.grid(visible=False)
    for axis, (recurrence, layer), line in ((axes.yaxis, rows, axes.axhline), (axes.xaxis, columns, axes.axvline)):
        starts = np.flatnonzero(np.r_[True, np.diff(recurrence) != 0])
        ends = np.r_[starts[1:], len(recurrence)]
        if len(starts) > 1:
            if len(starts) <= _MOST_LINES and len(recurrence) > len(starts):
                for start in starts[1:]:
                    line(start + 0.5, color="#D55E00", linewidth=0.6)
            few = spaced(np.arange(len(starts)), by_ratio=False, most=9) if len(starts) > 12 else np.arange(len(starts))
            axis.set_ticks(((starts + ends + 1) / 2)[few], [str(r) for r in recurrence[starts][few]])
            axis.set_label_text("recurrence" if len(starts) == len(recurrence) else "depth, numbered by recurrence")
        else:
            few = spaced(np.arange(len(layer)), by_ratio=False, most=12)
            axis.set_ticks(few + 1, [str(layer[i]) for i in few])
            axis.set_label_text("layer")
        axis.set_tick_params(length=2)
    return image


def _chosen(recurrence: np.ndarray) -> str:
    """Which recurrences, where some were left out."""
    steps = np.unique(recurrence)
    return "" if (np.diff(steps) == 1).all() else f" ({', '.join(map(str, steps))})"


def _lines(recurrence: np.ndarray) -> str:
    n = len(np.unique(recurrence))
    return " Lines: where a recurrence begins." if 1 < n <= _MOST_LINES and n < len(recurrence) else ""


def _off_diagonal(values: np.ndarray) -> float:
    off = values[~np.eye(len(values), dtype=bool)]
    off = off[np.isfinite(off)]
    return float(off.mean()) if len(off) else np.nan


def _told(values: np.ndarray, recurrence: np.ndarray, layer: np.ndarray, other_recurrence: np.ndarray,
          other_layer: np.ndarray) -> str:
    """The two means that tell stripes from one colour."""
    same = layer[:, None] == other_layer[None]
    known = np.isfinite(values)
    apart = same & (recurrence[:, None] != other_recurrence[None]) & known
    texts = [f"{words}: {values[mask].mean():z.2f} on average"
             for words, mask in (("one layer in different recurrences", apart), ("different layers", ~same & known))
             if mask.any()]
    if len(texts) == 2:
        texts[1] = texts[1].removesuffix(" on average")
    text = "; ".join(texts) or f"mean {values[known].mean():z.2f}"
    return text[:1].upper() + text[1:]
