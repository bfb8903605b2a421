"""The recurrence plot of one orbit."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dynloop.analyzers import recurrence_quantification
from dynloop.report.figures.drawing import described
from dynloop.report.figures.pca_path import one_orbit
from dynloop.report.figures.style import new_axes, nothing, styled, whole_numbers
from dynloop.report.figures.words import place_of
from dynloop.trajectories import Trajectories


def state_distances(x: np.ndarray) -> np.ndarray:
    """Distances between all states of an orbit, (n_steps, n_steps)."""
    from scipy.spatial.distance import pdist, squareform

    return squareform(pdist(x))


@styled
def recurrence_plot(orbit: Trajectories, *, threshold: float = 0.1, scale: str = "rms") -> Figure:
    """Which states of one orbit are near each other: distances above the diagonal, recurrences below it.

    Args:
        orbit: one orbit of at least two steps.
        threshold: the distance below which two states are recurrent, in units of `scale`.
        scale: "rms", "absolute" or "rate", as in `recurrence_quantification`.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not trajectories.
        ValueError: several orbits, or settings that `recurrence_quantification` refuses.
    """
    x = one_orbit(orbit)
    found = recurrence_quantification(orbit, threshold=threshold, scale=scale)
    figure, axes = new_axes(height=3.9)
    axes.grid(visible=False)
    place, radius = place_of(orbit.labels), float(found["threshold"][0])
    if len(x) < 2 or not np.isfinite(radius) or radius <= 0:
        nothing(axes, "no recurrences to draw")
        told, numbers = "There are no recurrences to draw", ""
    else:
        d = state_distances(x)
        n = len(x)
        above = np.tri(n, k=-1, dtype=bool)  # rows are drawn from the bottom
        extent = (0.5, n + 0.5, 0.5, n + 0.5)
        shown = np.ma.masked_where(~above, d / np.sqrt((d**2).sum() / (n * (n - 1))) if d.any() else d)
        image = axes.imshow(shown, origin="lower", cmap="cividis", interpolation="nearest", extent=extent)
        recurs = np.ma.masked_where(above, np.where(d < radius, 0.0, 1.0))
        axes.imshow(recurs, origin="lower", cmap="gray", vmin=0, vmax=1, interpolation="nearest", extent=extent)
        axes.plot([0.5, n + 0.5], [0.5, n + 0.5], color="#888888", linewidth=0.8)
        axes.set(xlabel="recurrence", ylabel="recurrence")
        axes.text(0.97, 0.06, "black: recurrent", transform=axes.transAxes, ha="right", va="bottom", fontsize=8,
                  bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "#888888"})
        axes.text(0.03, 0.94, "distance", transform=axes.transAxes, ha="left", va="top", fontsize=8,
                  bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "#888888"})
        whole_numbers(axes.xaxis)
        whole_numbers(axes.yaxis)
        figure.colorbar(image, ax=axes, label="distance over the orbit's rms distance", shrink=0.9)
        told = f"{100 * float((d[above] < radius).mean()):.3g} % of the pairs are nearer than the threshold"
        numbers = "".join(f", {name.replace('_', ' ')} {value:.3g}" for name in ("determinism", "laminarity")
                          if np.isfinite(value := float(found[name][0])))
    return described(
        figure, caption=f"Recurrence plot of one orbit{f' ({place})' if place else ''} over {len(x)} recurrences. "
                        "Above the diagonal: distance of every pair of states over their root-mean-square distance; "
                        f"below: pairs nearer than {threshold:g} ({scale}), in state units {radius:.3g}, are black. "
                        f"{told}{numbers} (n = 1 orbit, no interval). What has come to rest is recurrent because it "
                        "has stopped.",
        alt=f"Recurrence plot of one orbit of {len(x)} recurrences, a square symmetric about its diagonal. {told}.")
