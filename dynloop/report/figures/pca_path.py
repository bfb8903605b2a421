"""The path of one orbit in the plane."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import COLOURS, MOST_POINTS, new_axes, nothing, styled
from dynloop.report.figures.words import place_of
from dynloop.trajectories import Trajectories


def one_orbit(orbit: Trajectories) -> np.ndarray:
    """The finite states of one orbit, (n_steps, dim) in float64.

    Raises:
        TypeError: not trajectories.
        ValueError: several orbits.
    """
    if not isinstance(orbit, Trajectories):
        raise TypeError(f"this figure is drawn from one orbit, as Trajectories; got {type(orbit).__name__}. "
                        "Pass Trajectories(states)[0:1], or store.trajectories(prompt=0, token=8, layer=2).")
    if orbit.n_orbits != 1:
        raise ValueError(f"this figure shows one orbit; got {orbit.n_orbits}. Pass orbits[0:1].")
    return orbit.states[0, :int(orbit.lengths[0])].double().cpu().numpy()


def principal_plane(x: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The path in its two leading principal components and their shares of variance; None where it has no plane."""
    from sklearn.decomposition import PCA

    if len(x) < 3 or x.shape[1] < 2 or np.ptp(x, axis=0).max() == 0:
        return None
    pca = PCA(n_components=2, svd_solver="full").fit(x)
    return pca.transform(x), pca.explained_variance_ratio_


@styled
def pca_path(orbit: Trajectories) -> Figure:
    r"""The path of one orbit in the plane of its two leading principal components, coloured by recurrence.

    A random walk drawn this way looks like an arc or a loop, too: read the explained variance, and trust the numbers.

    Args:
        orbit: one orbit.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not trajectories.
        ValueError: several orbits.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.report.figures import draw, pca_path
        >>> walk = np.random.default_rng(0).normal(size=(1, 64, 32)).cumsum(axis=1)
        >>> drawing = draw("walk", pca_path(Trajectories(walk)))
        >>> drawing.svg[:4], drawing.png[:4], drawing.pdf[:4]
        ('<svg', b'\x89PNG', b'%PDF')
    """
    x = one_orbit(orbit)
    figure, axes = new_axes()
    found, place = principal_plane(x), place_of(orbit.labels)
    if found is None:
        nothing(axes, "the orbit does not move in two dimensions")
        told = "The orbit does not move in two dimensions."
    else:
        path, (first, second) = found[0], 100 * found[1]
        axes.plot(path[:, 0], path[:, 1], color="#888888", linewidth=0.8, zorder=1)
        dots = axes.scatter(path[:, 0], path[:, 1], c=np.arange(1, len(path) + 1), cmap="viridis", s=16, zorder=2,
                            rasterized=len(path) > MOST_POINTS)
        axes.plot(*path[0], marker="o", markersize=9, markerfacecolor="none", color="black", linestyle="none",
                  label="first recurrence")
        axes.plot(*path[-1], marker="X", markersize=8, color=COLOURS[1], markeredgecolor="white", linestyle="none",
                  label="last recurrence")
        axes.set(xlabel=f"component 1 ({first:.3g} % of variance)", ylabel=f"component 2 ({second:.3g} %)")
        figure.legend(loc="outside lower center", ncols=2)
        figure.colorbar(dots, ax=axes, label="recurrence")
        told = f"The plane holds {first + second:.3g} % of the variance."
    return described(
        figure, caption=f"Path of one orbit{f' ({place})' if place else ''} over {len(x)} recurrences in the plane of "
                        f"its two leading principal components, fitted on this orbit alone (n = 1: nothing is "
                        f"averaged, there is no interval). {told} A random walk would draw an arc, too.",
        alt=f"Scatter plot of one orbit of {len(x)} recurrences in two principal components, coloured by recurrence. "
            f"{told}")
