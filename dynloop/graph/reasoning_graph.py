"""The published graph of a chain of hidden states, bit for bit where it is defined, and calibrated beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from dynloop.graph.cells import Cells, cells
from dynloop.graph.graph_statistics import graph_statistics, group_seeds
from dynloop.graph.nulls import NULLS, Nulls
from dynloop.graph.transition_graph import TransitionGraph, from_steps
from dynloop.kernels.graphs import first_revisits
from dynloop.measurement import Measurement
from dynloop.settings import check_whole
from dynloop.statistics.surrogate import p_values
from dynloop.trajectories import Trajectories

_PUBLISHED = ("loop_exists", "loop_count", "diameter", "clustering", "path_length", "random_clustering",
              "random_path_length", "clustering_ratio", "small_world")


def reasoning_graph(trajectories: Trajectories, *, n_cells: int = 200, n_init: int = 10, nulls: Iterable[str] = NULLS,
                    n_surrogates: int = 199, level: float = 0.05, rng: Any = 0) -> Measurement:
    """Loops, diameter and small-world index of chains of states, as published, and what chance gives beside them.

    K-means over the states of all chains; each chain is the path of its cells, each step an edge of its Euclidean
    length, steps within a cell left out. A loop exists where a cell is seen again more than one step after it was seen
    last; its count is the visits of the first such cell, less one. Diameter and path length are the largest and the
    mean finite shortest path by length. Clustering is the mean over nodes of at least two neighbours (edges
    undirected), beside k / (N - 1) and ln N / ln k for N nodes of k neighbours on average;
    small world is (C / C_random) / (L / L_random).

    Args:
        trajectories: chains of hidden states of any origin: recurrences of a loop, or one state (the mean over its
            tokens) a step of a written chain of thought, with `lengths` where they are ragged.
        n_cells: clusters over all chains.
        n_init: starts of k-means.
        nulls: as in `graph_statistics`.
        n_surrogates: of each chain and null.
        level: of the calibrated verdict.
        rng: seed or generator.

    Returns:
        For each chain, as published: `loop_exists` (0, 1), `loop_count`, `diameter` and `path_length` in units of the
        states, `clustering`, `random_clustering`, `random_path_length`, `clustering_ratio`, `small_world`. Calibrated:
        `loop_share_NULL` (null chains with a loop), `loop_count_p_NULL` with `loop_count_p_error_NULL` and
        `loop_count_mean_NULL` (null chains have as many), and of `graph_statistics` on the same cells `verdict`,
        `p_value`, `p_error`, `cycles_per_edge`, `diameter_hops` and `small_world_hops`. Outcomes as there. What the
        release sets to 0 because it is not defined (no clustering, no path) is 0 here; `small_world` is NaN then.

    Raises:
        TypeError: not trajectories.
        ValueError: fewer states than cells, or settings that do not fit.

    Misleads:
        `loop_exists` is near 1 for noise and grows with the length of the chain; `loop_share` says how near. The
        published small-world index divides a length in units of the states by a number of hops, so that it falls when
        states are scaled up; `small_world_hops` does not. The release counts loops of the first revisited cell alone.
        With few states to a cell (below some 50) cells follow the recorded chains, and the states of the nulls ar1 and
        walk, which lie between them, loop more: their p-values are then too large, and only shuffle and length speak of
        loops. The more states beyond 20,000, the fewer of them k-means is fitted on (all are assigned).

    Source:
        Minegishi et al. 2025, Topology of Reasoning, arXiv 2506.05744, sections 3 and 4, and its released code
        (`analyze_graph`; the small-world index, absent there, as its text defines it).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.graph import reasoning_graph
        >>> noise = np.random.default_rng(0).normal(size=(8, 60, 6))
        >>> m = reasoning_graph(Trajectories(noise), n_cells=20, n_init=2, n_surrogates=99)
        >>> m["loop_exists"].tolist(), set(m["verdict"].tolist())
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], {'not cyclic'})
    """
    if not isinstance(trajectories, Trajectories):
        raise TypeError(f"reasoning_graph needs Trajectories; got {type(trajectories).__name__}. Pass "
                        "Trajectories(array).")
    check_whole("n_cells", n_cells, 2, "a whole number of at least 2 (published: 200)")
    if (total := int(trajectories.lengths.sum())) < n_cells:
        raise ValueError(f"n_cells must be at most the number of finite states, {total}; got {n_cells}. Take fewer "
                         "cells (published: 200), or more chains.")
    generator = np.random.default_rng(rng)
    found = cells(trajectories, n_cells=n_cells, n_init=n_init, rng=generator)
    root = int(generator.integers(2**62))
    calibrated = graph_statistics(found, nulls=nulls, n_surrogates=n_surrogates, level=level, rng=root)
    kinds = calibrated.settings["nulls"]
    n = found.n_orbits
    judged = [f"loop_{what}_{kind}" for kind in kinds for what in ("share", "count_p", "count_p_error", "count_mean")]
    out = {name: np.full(n, np.nan) for name in (*_PUBLISHED, *judged)}
    for o in np.flatnonzero(calibrated.found):
        length = int(found.lengths[o])
        x = trajectories.states[o, :length].double().cpu().numpy()
        path = found.paths[o, :length]
        for name, value in published(path, np.linalg.norm(np.diff(x, axis=0), axis=1)).items():
            out[name][o] = value
        for kind in kinds:
            exists, counts = _null_loops(kind, found, int(o), length, group_seeds(root, n_surrogates, kind, int(o)))
            p = p_values(out["loop_count"][o:o + 1], counts[:, None], "greater")
            out[f"loop_share_{kind}"][o] = exists.mean()
            out[f"loop_count_p_{kind}"][o], out[f"loop_count_p_error_{kind}"][o] = p["p_value"][0], p["p_error"][0]
            out[f"loop_count_mean_{kind}"][o] = counts.mean()
    same = ("verdict", "p_value", "p_error", "cycles_per_edge", "diameter_hops", "small_world_hops")
    variables = {**out, **{name: calibrated[name] for name in same}}
    return Measurement("reasoning_graph", variables, calibrated.outcomes,
                       units={"diameter": "state units", "path_length": "state units", "diameter_hops": "hops",
                              "random_path_length": "hops"},
                       settings={"n_cells": int(n_cells), "n_init": int(n_init), "nulls": kinds,
                                 "n_surrogates": int(n_surrogates), "level": float(level)},
                       labels=trajectories.labels, categories={"verdict": calibrated.categories["verdict"]})


def published(path: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """The published numbers of one path (T,) with the lengths (T - 1,) of its steps."""
    visited, own = np.unique(path, return_inverse=True)
    exists, counts = _loops(own[None])
    graph = _graph(len(visited), own, lengths)
    n = graph.n_nodes if graph.n_edges else 0  # every node but that of a path that never moves has an edge
    d = graph.distances()
    pairs = d[np.isfinite(d) & (d > 0)]
    local, _ = graph.clustering()
    known = local[~np.isnan(local)]
    c, path_length = (float(known.mean()) if len(known) else 0.0), (float(pairs.mean()) if len(pairs) else 0.0)
    both = graph.matrix()
    k = float((both + both.T).nnz / n) if n else 0.0
    random_c = k / (n - 1) if n > 1 else 0.0
    random_length = math.log(n) / math.log(k) if n > 1 and k > 1 else math.nan
    return {"loop_exists": float(exists[0]), "loop_count": float(counts[0]),
            "diameter": float(pairs.max()) if len(pairs) else 0.0, "clustering": c, "path_length": path_length,
            "random_clustering": random_c, "random_path_length": random_length,
            "clustering_ratio": c / random_c if random_c else 0.0,
            "small_world": c / random_c / (path_length / random_length) if random_c and path_length else math.nan}


def _graph(n: int, path: np.ndarray, lengths: np.ndarray) -> TransitionGraph:
    starts, ends = np.bincount(path[:1], minlength=n), np.bincount(path[-1:], minlength=n)
    return from_steps(n, path[:-1], path[1:], lengths, np.bincount(path, minlength=n), starts, ends, None)


def _loops(paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    exists, counts = np.empty(len(paths)), np.empty(len(paths))
    first_revisits(np.ascontiguousarray(paths), exists, counts)
    return exists, counts


def _null_loops(kind: str, found: Cells, o: int, length: int, seeds: list) -> tuple[np.ndarray, np.ndarray]:
    maker = Nulls(kind, found.paths[o:o + 1, :length], found.coordinates[o:o + 1, :length], found.partition())
    return _loops(maker.make(seeds)[:, 0])
