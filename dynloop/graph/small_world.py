"""Is a graph clustered beyond its degrees, while its paths stay short?"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from dynloop.graph.transition_graph import TransitionGraph
from dynloop.kernels.graphs import clustering, hops, rewired
from dynloop.settings import check_whole
from dynloop.statistics.surrogate import p_values

SWAPS = 10  # tries for each edge: after these nothing of the old edges is left to see (Milo et al. 2003: 100 at most)


@dataclasses.dataclass(frozen=True)
class SmallWorld:
    """Small-world index of a graph against its own degrees, paths by hops only; NaN where there is no index.

    `index` is (clustering / null_clustering) / (path_length / null_path_length). P-values are one-sided (more
    clustering, a larger index), each with its Monte-Carlo error.
    """

    index: float
    clustering: float
    path_length: float
    null_clustering: float
    null_path_length: float
    p_clustering: float
    p_clustering_error: float
    p_index: float
    p_index_error: float
    n_nulls: int


def small_world(graph: TransitionGraph, *, n_nulls: int = 99, rng: Any = 0) -> SmallWorld:
    """Small-world index sigma = (C / C0) / (L / L0), against graphs of the same numbers of successors and predecessors.

    C is the mean local clustering of nodes with two neighbours (edges undirected), L the mean number of hops between
    connected ordered pairs; C0 and L0 are their means over `n_nulls` graphs whose edges were swapped in pairs
    u->v, x->y to u->y, x->v.

    Args:
        graph: from `transition_graph`.
        n_nulls: rewired graphs.
        rng: seed or generator.

    Returns:
        Index, what it is made of, and p-values.

    Raises:
        TypeError: not a transition graph.
        ValueError: fewer than 19 nulls.

    Misleads:
        A path through space has triangles for being a path through space: beside rewired graphs any walk looks small
        world. Compare `graph_statistics`, whose nulls are paths. A graph without triangles has index 0; one that
        cannot be rewired (a cycle, a star) is its own null, with p = 1.

    Source:
        Humphries and Gurney 2008, PLoS ONE 3, e2051; Maslov and Sneppen 2002, Science 296, 910.

    Example:
        >>> import numpy as np
        >>> from dynloop.graph import TransitionGraph, small_world
        >>> u = np.repeat(np.arange(60), 4)
        >>> ring = TransitionGraph.from_edges(60, u, (u + np.tile([1, 2, 3, -1], 60)) % 60)
        >>> found = small_world(ring)
        >>> found.clustering > 4 * found.null_clustering, found.p_clustering
        (True, 0.01)
    """
    if not isinstance(graph, TransitionGraph):
        raise TypeError(f"small_world needs a TransitionGraph; got {type(graph).__name__}. Pass "
                        "transition_graph(cells).")
    check_whole("n_nulls", n_nulls, 19, "a whole number of at least 19 (the default is 99)")
    if graph.n_edges < 2:
        nan = math.nan
        return SmallWorld(nan, nan, nan, nan, nan, nan, nan, nan, nan, n_nulls)
    own = _numbers(graph.indptr, graph.indices, graph.n_nodes)
    drawn = np.empty((n_nulls, 2))
    for i, generator in enumerate(np.random.default_rng(rng).spawn(n_nulls)):
        targets = graph.indices.copy()
        first, second = generator.integers(graph.n_edges, size=(2, SWAPS * graph.n_edges))
        rewired(graph.sources, targets, graph.n_nodes, first, second)
        drawn[i] = _numbers(graph.indptr, targets, graph.n_nodes)
    with np.errstate(divide="ignore", invalid="ignore"):
        null = drawn.mean(0)
        index, indices = (own[0] / null[0]) / (own[1] / null[1]), (drawn[:, 0] / null[0]) / (drawn[:, 1] / null[1])
    judged = [p_values(np.array([a]), b[:, None], "greater") if math.isfinite(a) else None
              for a, b in ((own[0], drawn[:, 0]), (index, indices))]
    p, e = ([math.nan if j is None else float(j[name][0]) for j in judged] for name in ("p_value", "p_error"))
    return SmallWorld(float(index), own[0], own[1], float(null[0]), float(null[1]), p[0], e[0], p[1], e[1], n_nulls)


def _numbers(indptr: np.ndarray, indices: np.ndarray, n_nodes: int) -> tuple[float, float]:
    local = np.empty(n_nodes)
    clustering(indptr, indices, local)
    known = local[~np.isnan(local)]
    return float(known.mean()) if len(known) else 0.0, float(hops(indptr, indices)[1])
