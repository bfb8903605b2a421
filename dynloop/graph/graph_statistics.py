"""What the graph of each orbit looks like, and whether a path without a cycle would look the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dynloop.graph.attractors import kind_at_end
from dynloop.graph.cells import Cells, several
from dynloop.graph.nulls import NULLS, Nulls
from dynloop.graph.transition_graph import MAX_LENGTH, MAX_WORK, transition_graph
from dynloop.kernels.graphs import path_numbers
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.statistics.surrogate import p_values
from dynloop.statistics.surrogates import LEAST

# of path_numbers: place and unit
_COLUMNS = {"return_strength": 0, "period": 1, "nodes": 2, "edges": 3, "moves": 4, "revisits": 5, "cycles": 6,
            "cycles_truncated": 7, "diameter_hops": 8, "path_length_hops": 9, "clustering": 11, "triangles": 12}
_UNITS = {"period": "steps", "nodes": "cells", "moves": "steps", "revisits": "steps", "diameter_hops": "hops",
          "path_length_hops": "hops", "last_stay": "steps"}
# judged against the nulls, and which side speaks
JUDGED = {"return_strength": "greater", "revisits": "greater", "cycles": "greater", "cycles_per_edge": "greater",
          "clustering": "greater", "diameter_hops": "two-sided", "small_world_hops": "greater"}
VERDICTS = ("cyclic", "not cyclic")
_BATCH = 2**21  # numbers of null states in memory at a time


def graph_statistics(found: Cells | Iterable[Cells], *, nulls: Iterable[str] = NULLS, n_surrogates: int = 199,
                     level: float = 0.05, max_length: int = MAX_LENGTH, max_work: int = MAX_WORK,
                     rng: Any = 0) -> Measurement:
    """The graph of every orbit alone, in numbers, each beside what paths without a cycle give.

    How an orbit returns: m(p) is the share of steps whose cell is the cell of p steps before, and the strength of
    return is the largest m(p) - min(m(q), q < p) over lags up to a third of the steps. A path that stays, settles or
    drifts has 0; a cycle of any period has 1 at that period. An orbit is called cyclic where this is larger than under
    each null, every p-value at most `level`. The nulls, with p = (1 + b) / (1 + n) where b of n come as far:

    * shuffle: independent steps; the same visits in another order.
    * ar1: a first-order autoregression in each coordinate (coefficient at least -0.9), cut into the same cells.
    * walk: a random walk; the same steps in another order, cut into the same cells.
    * length: as many moves with the same stays, each to any other cell that the orbit visits (where it visits two
      alone: as many steps, each in either). The strength of return is that of paths over three cells, which is the
      largest: a place that is cut into several cells is no cycle.

    Cells that were found from one orbit fit it better than any other: null states then get as many cells of their own.

    Args:
        found: from `cells`; several of them (a sweep over k) are measured one after the other, told apart by the label
            `n_cells` (or `partition`, a number in the order given).
        nulls: which of the four; the verdict asks all that are named.
        n_surrogates: of each orbit and null.
        level: of the verdict.
        max_length: longest simple cycle that is counted.
        max_work: edges that the count may follow for one graph.
        rng: seed or generator.

    Returns:
        For each orbit `verdict` ("cyclic", "not cyclic"), `p_value` (the largest over nulls, of the strength of
        return) with its Monte-Carlo standard error `p_error`, `return_strength` and its `period`; `nodes`, `edges`
        (without stays), `moves`, `revisits` (moves to a cell visited before), `cycles` up to `max_length`,
        `cycles_truncated` (1: a lower bound), `cycles_per_edge`; strongly connected `components`, `attractor` in which
        the graph ends ("fixed point": the last quarter of the steps in one cell; "cycle"; "set"; "dead end": it was
        still on its way) and `attractor_size`, `basin` (share of visited cells outside it), `last_stay`;
        `diameter_hops`, `path_length_hops`, `diameter` in units of the states, `clustering`, `triangles` and
        `small_world_hops` = (C / (k / (N - 1))) / (L / (ln N / ln k)) with k neighbours on average. For each of these
        judged, `NAME_p_NULL`, `NAME_p_error_NULL` and `NAME_mean_NULL`. Numbers that a graph does not have (clustering
        without two neighbours, small world with k <= 1) are NaN. `TOO_SHORT`: fewer than 8 steps. `NOT_FINITE`: the
        orbit diverged.

    Raises:
        TypeError: not cells.
        ValueError: settings that do not fit.

    Misleads:
        A slow spiral into a fixed point returns as long as it turns, and counts as cyclic: cut the transient off, and
        ask `limit_regime`, which weighs whether the amplitude lasts. Cells that are too coarse for an orbit see
        nothing; one partition that was found from two or three orbits fits them better than their null states do.
        Alternation with a memory of more than ten steps is a cycle of 2 here, noise or not. Counts of cycles and
        revisits grow with the length and with flicker at a border: compare them with their nulls alone. Verdicts on
        orbits of one prompt or model are not independent; correct (`adjust_pvalues`).

    Source:
        Nulls: Theiler et al. 1992, Physica D 58, 77; all of several must fall: Berger 1982, Technometrics 24, 295;
        small world: Watts and Strogatz 1998, Nature 393, 440; p-values: Phipson and Smyth 2010.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.graph import cells, graph_statistics
        >>> rng = np.random.default_rng(0)
        >>> corners = rng.normal(size=(5, 8))
        >>> turning = corners[np.arange(96) % 5] + 0.1 * rng.normal(size=(96, 8))
        >>> walking = rng.normal(size=(96, 8)).cumsum(axis=0)
        >>> m = graph_statistics(cells(Trajectories(np.stack([turning, walking])), together=False))
        >>> m["verdict"].tolist(), float(m["period"][0])
        (['cyclic', 'not cyclic'], 5.0)
    """
    every = several(found)
    kinds = tuple(nulls) if not isinstance(nulls, str) else (nulls,)
    if not kinds or set(kinds) - set(NULLS):
        raise ValueError(f"nulls must be some of {', '.join(NULLS)}; got {', '.join(map(repr, kinds)) or 'none'}.")
    check_whole("n_surrogates", n_surrogates, 19, "a whole number of at least 19 (the default is 199)")
    check_number("level", level, lambda v: 0 < v < 1, "a number between 0 and 1 (the default is 0.05)")
    check_whole("max_length", max_length, 2, "a whole number of at least 2 (the default is 5)")
    check_whole("max_work", max_work, 1, "a whole number of at least 1 (the default is 10 million)")
    settings = {"nulls": kinds, "n_surrogates": int(n_surrogates), "level": float(level),
                "max_length": int(max_length), "max_work": int(max_work)}
    root = int(np.random.default_rng(rng).integers(2**62))
    return Measurement.concatenate([_one(c, i, kinds, root, settings) for i, c in enumerate(every)])


def group_seeds(root: int, n_surrogates: int, kind: str, *group: int) -> list[np.random.Generator]:
    """Generators of the surrogates of one group of orbits; surrogate i is the same however many are asked for."""
    return np.random.default_rng([root, NULLS.index(kind), *group]).spawn(n_surrogates)


def _one(found: Cells, number: int, kinds: tuple[str, ...], root: int, settings: dict[str, Any]) -> Measurement:
    n = found.n_orbits
    outcomes = np.full(n, Outcome.FOUND, dtype=object)
    outcomes[found.lengths < LEAST] = Outcome.TOO_SHORT
    outcomes[found.diverged] = Outcome.NOT_FINITE
    names = ["p_value", "p_error", *_COLUMNS, "cycles_per_edge", "components", "attractor_size", "basin", "last_stay",
             "diameter", "small_world_hops",
             *(f"{name}_{what}_{kind}" for name in JUDGED for kind in kinds for what in ("p", "p_error", "mean"))]
    out = {name: np.full(n, np.nan) for name in names}
    verdict, attractor = np.full(n, "", dtype="<U10"), np.full(n, "", dtype="<U11")
    usable = np.flatnonzero([o is Outcome.FOUND for o in outcomes])
    for partition, length in sorted({(int(found.partition_of[o]), int(found.lengths[o])) for o in usable}):
        own = usable[(found.partition_of[usable] == partition) & (found.lengths[usable] == length)]
        paths, here = found.paths[own, :length], found.partitions[partition]
        numbers = _numbers(paths, here.n_cells, settings)
        for name in (*_COLUMNS, "cycles_per_edge", "small_world_hops"):
            out[name][own] = numbers[name]
        coordinates = found.coordinates[own, :length, :here.coordinates(here.centers[:1]).shape[1]]
        for kind in kinds:
            seeds = group_seeds(root, settings["n_surrogates"], kind, partition, length)
            drawn = _of_nulls(Nulls(kind, paths, coordinates, here), seeds, settings)
            for name, side in JUDGED.items():
                known = np.isfinite(numbers[name])
                judged = p_values(np.where(known, numbers[name], 0.0), drawn[name], side)
                for what, key in (("p", "p_value"), ("p_error", "p_error"), ("mean", "surrogate_mean")):
                    out[f"{name}_{what}_{kind}"][own] = np.where(known, judged[key], np.nan)
    for o in usable:
        graph = transition_graph(found[o])
        visited, path = graph.visits > 0, found.paths[o, :found.lengths[o]]
        attractor[o], members = kind_at_end(graph, path)
        out["components"][o] = len(np.unique(graph.strong_components()[visited]))
        out["attractor_size"][o] = len(members)
        out["basin"][o] = 1 - len(members) / visited.sum()
        moves = np.flatnonzero(np.diff(path))
        out["last_stay"][o] = len(path) - 1 - moves[-1] if len(moves) else len(path)
        out["diameter"][o] = graph.diameter()
        p = [out[f"return_strength_p_{kind}"][o] for kind in kinds]
        worst = kinds[int(np.argmax(p))]
        out["p_value"][o], out["p_error"][o] = max(p), out[f"return_strength_p_error_{worst}"][o]
        verdict[o] = VERDICTS[int(max(p) > settings["level"])]
    labels = {"n_cells": found.n_cells, "partition": np.full(n, number),
              **{name: values for name, values in found.labels.items() if name not in ("n_cells", "partition")}}
    return Measurement("graph_statistics", {"verdict": verdict, **out, "attractor": attractor}, outcomes,
                       units=_UNITS | {"diameter": "state units"}, settings=settings, labels=labels,
                       categories={"verdict": VERDICTS,
                                   "attractor": ("fixed point", "cycle", "set", "dead end")})


def _numbers(paths: np.ndarray, n_cells: int, settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """The numbers of each path (n, T), by name."""
    found = np.empty((len(paths), 14))
    path_numbers(np.ascontiguousarray(paths), n_cells, max(paths.shape[1] // 3, 2), settings["max_length"],
                 settings["max_work"], found)
    out = {name: found[:, at] for name, at in _COLUMNS.items()}
    edges, nodes, degree = out["edges"], out["nodes"], found[:, 13]
    out["cycles_per_edge"] = np.divide(out["cycles"], edges, out=np.zeros(len(paths)), where=edges > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        index = out["clustering"] * (nodes - 1) / degree / (out["path_length_hops"] * np.log(degree) / np.log(nodes))
    out["small_world_hops"] = np.where((degree > 1) & (nodes > 2) & np.isfinite(index), index, np.nan)
    return out


def _of_nulls(nulls: Nulls, generators: list[np.random.Generator], settings: dict[str, Any]) -> dict[str, np.ndarray]:
    """The judged numbers of null paths, each (n_surrogates, n_orbits)."""
    n, n_steps = nulls.paths.shape
    wide = n_steps * max(nulls.coordinates.shape[2], nulls.partition.n_cells)
    size = max(1, _BATCH // (n * wide))
    parts = []
    for first in range(0, len(generators), size):
        made = nulls.make(generators[first:first + size])
        numbers = _numbers(made.reshape(-1, n_steps), nulls.partition.n_cells, settings)
        if nulls.kind == "length":  # one place may have been cut into many cells
            three = nulls.of_three(generators[first:first + size]).reshape(-1, n_steps)
            numbers["return_strength"] = _numbers(three, nulls.partition.n_cells, settings)["return_strength"]
        parts.append({name: numbers[name].reshape(-1, n) for name in JUDGED})
    return {name: np.concatenate([part[name] for part in parts]) for name in JUDGED}
