"""Which cell follows which: the graph of a recording in compressed rows."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.graph.cells import Cells
from dynloop.kernels.graphs import clustering, count_cycles, hops
from dynloop.settings import check_whole

if TYPE_CHECKING:
    import networkx

MAX_LENGTH, MAX_WORK = 5, 10**7


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TransitionGraph:
    """A directed graph of cells in compressed rows; stays within a cell are counted apart, not as edges.

    Args:
        indptr: (n_nodes + 1,) the edges from u are indptr[u] to indptr[u + 1].
        indices: (n_edges,) the node that each edge leads to, ascending within a row.
        counts: (n_edges,) steps along each edge.
        step_lengths: (n_edges,) length of an edge: by `transition_graph` the distance of the two centres, in units of
            the states.
        visits: (n_nodes,) states in each cell.
        stays: (n_nodes,) steps from a cell to itself.
        starts, ends: (n_nodes,) orbits that began and ended in each.
        positions: (n_nodes, dim) centres, or None.
    """

    indptr: np.ndarray
    indices: np.ndarray
    counts: np.ndarray
    step_lengths: np.ndarray
    visits: np.ndarray
    stays: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    positions: Any = None

    def __post_init__(self) -> None:
        n, m = len(self.indptr) - 1, len(self.indices)
        if n < 1 or self.indptr[0] != 0 or self.indptr[-1] != m or (np.diff(self.indptr) < 0).any():
            raise ValueError("indptr must rise from 0 to the number of edges, one number more than there are nodes.")
        if m and (self.indices.min() < 0 or self.indices.max() >= n):
            raise ValueError(f"indices must be nodes from 0 to {n - 1}; got {self.indices.min()} to "
                             f"{self.indices.max()}.")
        if (self.sources == self.indices).any():
            raise ValueError("an edge leads from a node to itself; count it in stays instead.")
        for name, size in (("counts", m), ("step_lengths", m), ("visits", n), ("stays", n), ("starts", n), ("ends", n)):
            if np.shape(getattr(self, name)) != (size,):
                raise ValueError(f"{name} must have shape ({size},); got {np.shape(getattr(self, name))}.")

    @classmethod
    def from_edges(cls, n_nodes: int, sources: Any, targets: Any) -> TransitionGraph:
        """A graph from a list of edges, each of length 1; an edge given twice is counted, one to itself is a stay."""
        u, v = np.asarray(sources, dtype=np.int64), np.asarray(targets, dtype=np.int64)
        none = np.zeros(n_nodes, dtype=np.int64)
        return from_steps(n_nodes, u, v, np.ones(len(u)), np.bincount(np.r_[u, v], minlength=n_nodes), none, none, None)

    @property
    def n_nodes(self) -> int:
        return len(self.indptr) - 1

    @property
    def n_edges(self) -> int:
        return len(self.indices)

    @functools.cached_property
    def sources(self) -> np.ndarray:
        """(n_edges,) the node that each edge leaves."""
        return np.repeat(np.arange(self.n_nodes), np.diff(self.indptr))

    def __repr__(self) -> str:
        return f"TransitionGraph({self.n_nodes} nodes, {self.n_edges} edges, {int(self.visits.sum())} states)"

    def to_networkx(self) -> networkx.DiGraph:
        """A networkx DiGraph: `count` and `length` of edges (stays as edges to the node itself), `visits` of nodes."""
        import networkx as nx

        graph: networkx.DiGraph = nx.DiGraph()
        graph.add_nodes_from((u, {"visits": int(n)}) for u, n in enumerate(self.visits))
        graph.add_edges_from((int(u), int(v), {"count": int(c), "length": float(d)}) for u, v, c, d in
                             zip(self.sources, self.indices, self.counts, self.step_lengths, strict=True))
        graph.add_edges_from((u, u, {"count": int(n), "length": 0.0}) for u, n in enumerate(self.stays) if n)
        return graph

    def matrix(self, weights: np.ndarray | None = None) -> Any:
        """A scipy sparse matrix of the edges, of 1 or other weights."""
        from scipy.sparse import csr_array

        data = np.ones(self.n_edges) if weights is None else weights
        return csr_array((data, self.indices, self.indptr), shape=(self.n_nodes, self.n_nodes))

    def strong_components(self) -> np.ndarray:
        """(n_nodes,) number of the strongly connected component of each node: it can be left for, and come back from,
        every other node of it."""
        from scipy.sparse.csgraph import connected_components

        return connected_components(self.matrix(), connection="strong")[1]

    def hops(self) -> tuple[int, float, int]:
        """Longest finite shortest path in hops, mean over connected ordered pairs, and the number of these."""
        return hops(self.indptr, self.indices)

    def distances(self) -> np.ndarray:
        """(n_nodes, n_nodes) shortest paths in units of the states; infinite where there is none."""
        from scipy.sparse.csgraph import dijkstra

        return dijkstra(self.matrix(np.maximum(self.step_lengths, np.finfo(float).tiny)))  # 0 would be no edge

    def diameter(self) -> float:
        """Longest finite shortest path, in units of the states."""
        d = self.distances()
        return float(d[np.isfinite(d)].max())

    def clustering(self) -> tuple[np.ndarray, int]:
        """Local clustering (n_nodes,), NaN below two neighbours, and number of triangles; edges as undirected."""
        local = np.empty(self.n_nodes)
        return local, int(clustering(self.indptr, self.indices, local))

    def cycles(self, *, max_length: int = MAX_LENGTH, max_work: int = MAX_WORK) -> tuple[np.ndarray, bool]:
        """Simple cycles by number of nodes (index 2 to max_length), and whether the search was cut short.

        Cut short at `max_work` followed edges; the counts are then lower bounds.
        """
        check_whole("max_length", max_length, 2, "a whole number of at least 2 (the default is 5)")
        check_whole("max_work", max_work, 1, "a whole number of at least 1 (the default is 10 million)")
        counts = np.zeros(max_length + 1, dtype=np.int64)
        return counts, bool(count_cycles(self.indptr, self.indices, max_length, max_work, counts))


def transition_graph(found: Cells) -> TransitionGraph:
    """The graph of all orbits together: a node a cell, an edge where some orbit went from one cell to another.

    Args:
        found: cells of one or many orbits, of one partition; found[3] for a single orbit.

    Returns:
        The graph. Nodes are the cells, visited or not.

    Raises:
        TypeError: not cells.
        ValueError: orbits with partitions of their own.

    Misleads:
        The more orbits and steps, the more edges and cycles: compare graphs of equal length, or read
        `graph_statistics` with its nulls. A state on the border of two cells flickers between them, which is a cycle
        of two to every count. A cell that is only ever an end has no edge because the recording stopped.

    Source:
        Minegishi et al. 2025, Topology of Reasoning, arXiv 2506.05744, section 3 (one graph an orbit).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.graph import cells, transition_graph
        >>> x = np.array([0.0, 1, 2, 1, 2, 1, 2, 1])[None, :, None]
        >>> graph = transition_graph(cells(Trajectories(x), n_cells=3))
        >>> graph
        TransitionGraph(3 nodes, 3 edges, 8 states)
        >>> counts, cut = graph.cycles()
        >>> int(counts.sum()), cut, graph.diameter()
        (1, False, 2.0)
    """
    if not isinstance(found, Cells):
        raise TypeError(f"transition_graph needs Cells; got {type(found).__name__}. Pass cells(trajectories).")
    partition = found.partition()
    n = partition.n_cells
    there = found.paths >= 0
    step = there[:, 1:]
    u, v = found.paths[:, :-1][step], found.paths[:, 1:][step]
    lengths = np.linalg.norm(partition.centers[v] - partition.centers[u], axis=1)
    alive = found.lengths > 0
    return from_steps(n, u, v, lengths, np.bincount(found.paths[there], minlength=n),
                      np.bincount(found.paths[alive, 0], minlength=n),
                      np.bincount(found.paths[alive, found.lengths[alive] - 1], minlength=n), partition.centers)


def from_steps(n: int, u: np.ndarray, v: np.ndarray, lengths: np.ndarray, visits: np.ndarray, starts: np.ndarray,
               ends: np.ndarray, positions: Any) -> TransitionGraph:
    """The graph of steps from u to v, (n_steps,) each; an edge is as long as the shortest step along it."""
    moved = u != v
    edges, of_step, counts = np.unique(u[moved] * n + v[moved], return_inverse=True, return_counts=True)
    shortest = np.full(len(edges), np.inf)
    np.minimum.at(shortest, of_step, lengths[moved])
    indptr = np.searchsorted(edges, n * np.arange(n + 1))
    return TransitionGraph(indptr, edges % n, counts, shortest, visits, np.bincount(u[~moved], minlength=n), starts,
                           ends, positions)
