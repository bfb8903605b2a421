"""Figures of measurements: each function returns a matplotlib figure, each caption says what was counted."""

from __future__ import annotations

import dataclasses
import io
import re
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.trajectories import Trajectories

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
DASHES = ("-", "--", "-.", ":")
STYLE: Any = {
    "font.size": 9, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.titlelocation": "left", "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "figure.dpi": 100,
    "svg.fonttype": "path", "svg.hashsalt": "dynloop", "figure.constrained_layout.use": True,
}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure ready for a report: SVG and PNG of the same drawing, with caption and alternative text."""

    name: str
    caption: str
    alt: str
    svg: str
    png: bytes


def draw(name: str, figure: Figure, *, caption: str, alt: str) -> Drawing:
    """Render a figure; the same figure gives the same bytes."""
    with matplotlib.rc_context(STYLE):
        text, image = io.StringIO(), io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(image, format="png", dpi=200, metadata={"Software": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg"):]
    # one page holds many figures: ids must not repeat
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Drawing(name, caption, alt, svg, image.getvalue())


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.5))
    return figure, figure.add_subplot()


def distance_curves(distance: Measurement, rate: Measurement, *, by: str = "layer") -> Figure:
    """Distance to the last state over recurrences, one line a layer: median over orbits, band for 90 % of them.

    Args:
        distance: of `distance_to_limit` with metric="relative".
        rate: of `contraction_rate` on the same orbits; its median floor is drawn where there is one.
        by: the label that separates the lines.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        groups = np.unique(distance.labels[by]) if by in distance.labels else [None]
        for i, group in enumerate(groups):
            d = distance.values if group is None else distance.select(**{by: group}).values
            d = np.where(d > 0, d, np.nan)[:, :-1]
            recurrence = np.arange(1, d.shape[1] + 1)
            known = np.isfinite(d).any(0)
            if not known.any():
                continue
            low, middle, high = np.nanquantile(d[:, known], [0.05, 0.5, 0.95], axis=0)
            colour = COLOURS[i % len(COLOURS)]
            label = "all orbits" if group is None else f"{by} {group}"
            axes.fill_between(recurrence[known], low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(recurrence[known], middle, color=colour, linestyle=DASHES[i % len(DASHES)], label=label)
            floor = (rate if group is None else rate.select(**{by: group}))["relative_floor"]
            if np.isfinite(floor).any():
                axes.axhline(np.nanmedian(floor), color=colour, linewidth=0.8, linestyle=(0, (1, 2)),
                             label=f"floor of the steps, {label}")
        if not axes.lines:
            axes.text(0.5, 0.5, "no distance to draw", ha="center", transform=axes.transAxes)
            return figure
        axes.set(yscale="log", xlabel="recurrence", ylabel="distance to the last state,\nrelative to its norm",
                 xlim=(1, None))
        axes.legend(fontsize=8)
        return figure


def pca_path(orbit: Trajectories) -> Figure:
    """The path of one orbit in the plane of its two leading principal components, coloured by recurrence.

    A random walk drawn this way looks like an arc or a loop, too: read the explained variance, and trust the numbers.
    """
    from sklearn.decomposition import PCA

    x = orbit.states[0, :int(orbit.lengths[0])].double().cpu().numpy()
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        if len(x) < 3 or x.shape[1] < 2 or np.ptp(x, axis=0).max() == 0:
            axes.text(0.5, 0.5, "the orbit does not move in two dimensions", ha="center", transform=axes.transAxes)
            return figure
        pca = PCA(n_components=2, svd_solver="full").fit(x)
        path = pca.transform(x)
        axes.plot(path[:, 0], path[:, 1], color="#888888", linewidth=0.8, zorder=1)
        dots = axes.scatter(path[:, 0], path[:, 1], c=np.arange(1, len(path) + 1), cmap="viridis", s=16, zorder=2)
        axes.plot(*path[0], marker="o", markersize=9, markerfacecolor="none", color="black", linestyle="none",
                  label="first recurrence")
        axes.plot(*path[-1], marker="X", markersize=8, color=COLOURS[1], markeredgecolor="white", linestyle="none",
                  label="last recurrence")
        first, second = 100 * pca.explained_variance_ratio_
        axes.set(xlabel=f"component 1 ({first:.3g} % of variance)", ylabel=f"component 2 ({second:.3g} %)")
        axes.legend(fontsize=8)
        figure.colorbar(dots, ax=axes, label="recurrence")
        return figure


def distance_map(distance: Measurement, *, label: str = "token") -> Figure:
    """Log distance to the last state, orbits (tokens of one prompt) by recurrences.

    Args:
        distance: of `distance_to_limit` with metric="relative", the orbits of one prompt and one layer.
        label: the label along the vertical axis.
    """
    d = np.where(distance.values > 0, distance.values, np.nan)[:, :-1]
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes()
        axes.grid(visible=False)
        if not np.isfinite(d).any():
            axes.text(0.5, 0.5, "no distance to draw", ha="center", transform=axes.transAxes)
            return figure
        image = axes.imshow(np.log10(d), aspect="auto", cmap="cividis", interpolation="nearest",
                            extent=(0.5, d.shape[1] + 0.5, len(d) - 0.5, -0.5))
        names = distance.labels.get(label, np.arange(len(d)))
        ticks = np.unique(np.linspace(0, len(d) - 1, min(len(d), 8)).astype(int))
        axes.set(xlabel="recurrence", ylabel=label, yticks=ticks, yticklabels=[str(names[t]) for t in ticks])
        figure.colorbar(image, ax=axes, label="log10 of relative distance\nto the last state")
        return figure
