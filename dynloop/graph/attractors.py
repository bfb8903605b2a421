"""Where a graph can be entered and never left, and what leads there."""

from __future__ import annotations

import dataclasses

import numpy as np

from dynloop.graph.transition_graph import TransitionGraph

KINDS = ("fixed point", "cycle", "set", "dead end")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attractors:
    """Terminal strongly connected components, the one with the most likely basin first.

    Args:
        members: the nodes of each, ascending.
        kinds: "fixed point" (one node that stays), "cycle" (each node leads to one other), "set" (several ways), or
            "dead end" (a node that nothing left because the recording ended there).
        basins: (n, n_nodes) whether each node can reach it.
        probability: (n, n_nodes) that a walk from the node, along edges as often as they were taken, ends there.
        share: (n,) the same for the states with which orbits began; for all nodes alike, where no orbit did.
    """

    members: tuple[np.ndarray, ...]
    kinds: tuple[str, ...]
    basins: np.ndarray
    probability: np.ndarray
    share: np.ndarray

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        told = ", ".join(f"{kind} of {len(own)} ({100 * share:.3g} %)" for kind, own, share in
                         zip(self.kinds, self.members, self.share, strict=True))
        return f"Attractors({told})"


def attractors(graph: TransitionGraph) -> Attractors:
    """The components that a graph can enter and not leave, with their basins.

    An attractor is a strongly connected component without an edge to outside. The basin holds all nodes that can reach
    it; where several can be reached, p = Q p + r gives the probability of ending in each, for a walk that takes the
    edges (stays apart) as often as they were taken: Q between nodes that are in no attractor, r into it.

    Args:
        graph: from `transition_graph`.

    Returns:
        The attractors; every finite graph has one at least.

    Raises:
        TypeError: not a transition graph.

    Misleads:
        One orbit that is still on its way ends in a dead end: that is where the recording stopped. Cells that are too
        coarse join what is apart, and one flicker across a border joins two attractors.

    Source:
        Kemeny and Snell 1960, Finite Markov Chains, chapter 3; Flajolet and Odlyzko 1990, Random Mapping Statistics.

    Example:
        >>> from dynloop.graph import TransitionGraph, attractors
        >>> attractors(TransitionGraph.from_edges(5, [0, 1, 2, 3, 4], [1, 2, 1, 4, 4]))
        Attractors(cycle of 2 (60 %), fixed point of 1 (40 %))
    """
    from scipy.sparse import eye_array
    from scipy.sparse.csgraph import breadth_first_order
    from scipy.sparse.linalg import splu

    if not isinstance(graph, TransitionGraph):
        raise TypeError(f"attractors needs a TransitionGraph; got {type(graph).__name__}. Pass "
                        "transition_graph(cells).")
    n = graph.n_nodes
    component = graph.strong_components()
    known = (graph.visits > 0) | (np.diff(graph.indptr) > 0) | np.isin(np.arange(n), graph.indices)
    left = np.unique(component[graph.sources[component[graph.sources] != component[graph.indices]]])
    final = [c for c in np.unique(component[known]) if c not in set(left.tolist())] if known.any() else []
    members = [np.flatnonzero(component == c) for c in final]
    ahead = graph.matrix()
    behind = ahead.T.tocsr()
    basins = np.zeros((len(members), n), dtype=bool)
    probability = np.zeros((len(members), n))
    for i, own in enumerate(members):
        basins[i, breadth_first_order(behind, own[0], return_predecessors=False)] = True
        probability[i, own] = 1.0
    inside = np.zeros(n, dtype=bool)
    inside[[u for own in members for u in own]] = True
    passing = np.flatnonzero(~inside & known)
    if len(passing):
        taken = graph.matrix(graph.counts.astype(float))
        taken = taken.multiply(1 / np.maximum(taken.sum(axis=1), 1)[:, None]).tocsr()
        solve = splu((eye_array(len(passing)) - taken[passing][:, passing]).tocsc()).solve
        into = np.column_stack([taken[passing][:, own].sum(axis=1) for own in members])
        probability[:, passing] = np.clip(solve(into), 0, 1).T
    begun = graph.starts if graph.starts.any() else known.astype(np.int64)
    share = probability @ begun / max(begun.sum(), 1)
    order = np.argsort(-share, kind="stable")
    return Attractors(tuple(members[i] for i in order), tuple(_kind(graph, members[i]) for i in order), basins[order],
                      probability[order], share[order])


def _kind(graph: TransitionGraph, own: np.ndarray) -> str:
    if len(own) > 1:
        return "cycle" if (np.diff(graph.indptr)[own] == 1).all() else "set"
    return "fixed point" if graph.stays[own[0]] else "dead end"


def kind_at_end(graph: TransitionGraph, path: np.ndarray) -> tuple[str, np.ndarray]:
    """Kind and members of the attractor in which the graph of one path ends: there is exactly one.

    A last cell counts as a fixed point where the path stayed in it for its last quarter, at least: any path ends
    somewhere.
    """
    found = attractors(graph)
    moves = np.flatnonzero(np.diff(path))
    rests = not len(moves) or 4 * (len(path) - 1 - moves[-1]) >= len(path)
    return ("dead end" if found.kinds[0] == "fixed point" and not rests else found.kinds[0]), found.members[0]
