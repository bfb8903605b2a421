"""Orbits as graphs of cells: a ring, a chain into one point, or a tangle."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from dynloop.graph.attractors import kind_at_end
from dynloop.graph.cells import Cells, several
from dynloop.graph.transition_graph import transition_graph
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import COLOURS, HEIGHT, WIDTH, nothing, styled
from dynloop.report.figures.words import plural

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 6  # panels
_MOST_EDGES = 400  # in a panel: more of them are a blot


@styled
def state_graph(found: Cells | Iterable[Cells], *, titles: Iterable[str] | None = None) -> Figure:
    """Each orbit as the graph of its cells, a panel an orbit.

    A node is a cell, as large as the number of states in it, in the plane of the two leading principal components of
    the cells; a cycle is laid out as a ring, and what leads to it as a row. An arrow is an edge, as thick as the number
    of steps along it, coloured by the last recurrence that took it. Nodes in orange are those that the orbit does not
    leave again: one large orange node is a fixed point, an orange ring a cycle, an orange tangle of thin arrows noise
    or chaos; a wanderer has none.

    Args:
        found: cells of one to six orbits, as from `cells(orbits[:3], together=False)`, or several `Cells` of those.
        titles: of the panels; by default the kind of the attractor.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not cells.
        ValueError: more than six orbits, or titles of another number.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.graph import cells
        >>> from dynloop.report.figures import alt_of
        >>> from dynloop.report.figures.state_graph import state_graph
        >>> x = np.random.default_rng(0).normal(size=(3, 4))[np.arange(30) % 3][None]
        >>> alt_of(state_graph(cells(Trajectories(x))))
        'Graph of 1 orbit: 3 cells and 3 edges, ending in a cycle of 3 cells.'
    """
    empty = isinstance(found, list | tuple) and not found
    orbits = [] if empty else [c[o] for c in several(found) for o in range(c.n_orbits)]
    if len(orbits) > MOST:
        raise ValueError(f"this figure shows at most {MOST} orbits; got {len(orbits)}. Pass found[:{MOST}].")
    named = None if titles is None else list(titles)
    if named is not None and len(named) != len(orbits):
        raise ValueError(f"titles must hold one for each of {len(orbits)} orbits; got {len(named)}.")
    if not orbits:
        figure = Figure(figsize=(WIDTH, HEIGHT))
        nothing(figure.add_subplot(), "no orbits to draw")
        return described(figure, caption="No orbits to draw.", alt="No orbits to draw.")
    columns = min(len(orbits), 3)
    rows = -(-len(orbits) // columns)
    figure = Figure(figsize=(max(WIDTH, 2.7 * columns), max(HEIGHT, 3.0 * rows)))
    steps = max(int(c.lengths[0]) for c in orbits)
    scale = Normalize(1, max(steps, 2))
    told = []
    for i, orbit in enumerate(orbits):
        axes = figure.add_subplot(rows, columns, i + 1)
        kind, words = _panel(axes, orbit, scale)
        axes.set_title(named[i] if named else kind)
        told.append(words)
    mapped = matplotlib.cm.ScalarMappable(norm=scale, cmap="viridis")
    figure.colorbar(mapped, ax=figure.axes, label="last recurrence along the edge", shrink=0.8)
    sizes = sorted({int(c.n_cells[0]) for c in orbits})
    return described(
        figure, caption=f"{plural(len(orbits), 'orbit')} of at most {plural(steps, 'step')} as graphs of cells "
                        f"({orbits[0].method}, {sizes[0] if len(sizes) == 1 else f'{sizes[0]} to {sizes[-1]}'} cells), "
                        "every one shown. Size of a node: states in it; thickness of an arrow: steps along it; colour: "
                        "the last of them; orange: where it stays; circle: where it begins. Positions: a cycle as a "
                        "ring, else two leading principal components of the visited cells. A picture shows no chance: "
                        "read graph_statistics with its nulls.",
        alt=f"Graph of {plural(len(orbits), 'orbit')}: {'; '.join(told)}.")


def _panel(axes: Axes, orbit: Cells, scale: Normalize) -> tuple[str, str]:
    """Draw one orbit; the kind of its attractor, and what there is to see."""
    length = int(orbit.lengths[0])
    if length == 0:
        nothing(axes, "no finite state")
        return "no finite state", "no finite state"
    axes.set(xticks=[], yticks=[])
    axes.set_axis_off()
    graph, path = transition_graph(orbit), orbit.paths[0, :length]
    kind, members = kind_at_end(graph, path)
    visited = np.flatnonzero(graph.visits)
    spread = _ring(path, members) if kind == "cycle" and len(members) > 2 else _plane(graph.positions[visited])
    place = dict(zip(visited.tolist(), spread, strict=True))
    settled = members if kind != "dead end" else members[:0]
    last = np.zeros((graph.n_nodes, graph.n_nodes), dtype=int)
    last[path[:-1], path[1:]] = np.arange(2, length + 1)
    share = graph.visits / length
    size = 30 + 900 * share
    edges = np.argsort(-graph.counts, kind="stable")[:_MOST_EDGES]
    colours = matplotlib.colormaps["viridis"]
    for e in edges[::-1]:
        u, v = int(graph.sources[e]), int(graph.indices[e])
        axes.annotate("", place[v], place[u], zorder=2, arrowprops={
            "arrowstyle": "-|>", "connectionstyle": "arc3,rad=0.15", "color": colours(scale(last[u, v])),
            "linewidth": 0.6 + 12 * graph.counts[e] / length, "alpha": 0.85,
            "shrinkA": np.sqrt(size[u]) / 2, "shrinkB": np.sqrt(size[v]) / 2, "mutation_scale": 9})
    for nodes, colour in ((np.setdiff1d(visited, settled), "#bbbbbb"), (settled, COLOURS[1])):
        xy: Any = np.array([place[u] for u in nodes.tolist()]).reshape(-1, 2)
        axes.scatter(xy[:, 0], xy[:, 1], size[nodes], color=colour, edgecolor="white", linewidth=0.8, zorder=3)
    x, y = place[int(path[0])]
    axes.scatter([x], [y], size[path[0]] + 90, facecolor="none", edgecolor="black", linewidth=1.2, zorder=4)
    axes.margins(0.18)
    many = plural(len(members), "cell")
    if kind == "dead end":
        kind = "state on its way"
    return kind.removeprefix("state ") if len(members) == 1 else f"{kind} of {many}", \
        f"{plural(len(visited), 'cell')} and {plural(graph.n_edges, 'edge')}, ending in a {kind} of {many}"


def _ring(path: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Visited cells, ascending: those of a cycle on a circle in their order, what came before in a row beside it."""
    visited = np.unique(path)
    _, first = np.unique(path[::-1], return_index=True)  # from the end: a cycle in its order, backwards
    order = visited[np.argsort(-first, kind="stable")]
    ring, row = order[np.isin(order, members)], order[~np.isin(order, members)]
    angle = np.pi - 2 * np.pi * np.arange(len(ring)) / len(ring)
    found = np.zeros((len(visited), 2))
    found[np.searchsorted(visited, ring)] = np.column_stack([np.cos(angle), np.sin(angle)])
    found[np.searchsorted(visited, row), 0] = -1.0 - 0.6 * np.arange(len(row), 0, -1)
    return found


def _plane(points: np.ndarray) -> np.ndarray:
    """Centres in their two leading principal components, (n, 2), each scaled to 1."""
    away = points - points.mean(0)
    u, s, _ = np.linalg.svd(away, full_matrices=False)
    flat = np.zeros((len(points), 2))
    n = min(2, len(s))
    flat[:, :n] = u[:, :n] * s[:n]
    flat -= (flat.max(0) + flat.min(0)) / 2
    return flat / max(np.abs(flat).max(), 1e-300)
