"""How long do the graphs of 10,000 token paths take, and are their counts networkx's?

    python benchmarks/graphs.py --save benchmarks/results/graphs.json

Each graph is that of a path of 2,048 steps over 200 cells that leads from each cell to one of six others (some 905
edges). Seconds of one core for: building the compressed rows, strongly connected components, diameter in hops,
triangles and clustering, simple cycles up to length 5. A few graphs go through networkx, too: the counts must be equal,
and its time is that of those graphs, multiplied.
"""

import time

import networkx as nx
import numpy as np
import side_by_side

from dynloop.graph import TransitionGraph
from dynloop.kernels.graphs import clustering, count_cycles, hops, path_edges

LENGTH = 5


def paths(n_graphs, n_nodes, n_steps, rng):
    """Paths on random graphs of six ways from every node, (n_graphs, n_steps)."""
    ways = rng.integers(n_nodes, size=(n_graphs, n_nodes, 6))
    turns = rng.integers(6, size=(n_graphs, n_steps))
    made = np.empty((n_graphs, n_steps), dtype=np.int64)
    made[:, 0] = rng.integers(n_nodes, size=n_graphs)
    for t in range(1, n_steps):
        made[:, t] = ways[np.arange(n_graphs), made[:, t - 1], turns[:, t]]
    return made


def built(path, n_nodes):
    indptr, indices = np.empty(n_nodes + 1, dtype=np.int64), np.empty(len(path), dtype=np.int64)
    path_edges(path, n_nodes, indptr, indices)
    m = indptr[-1]
    none, ones = np.zeros(n_nodes, dtype=np.int64), np.ones(m)
    return TransitionGraph(indptr, indices[:m], ones, ones, none, none, none, none)


def counted(graph):
    counts = np.zeros(LENGTH + 1, dtype=np.int64)
    assert not count_cycles(graph.indptr, graph.indices, LENGTH, 10**8, counts), "the count was cut short"
    return counts


def local(graph):
    out = np.empty(graph.n_nodes)
    return clustering(graph.indptr, graph.indices, out), np.nan_to_num(out)


OURS = {"components": lambda g: int(g.strong_components().max()) + 1, "clustering": local,
        "diameter": lambda g: hops(g.indptr, g.indices)[0], "cycles": counted}


def _diameter(graph):
    return max(max(found.values()) for _, found in nx.all_pairs_shortest_path_length(graph))


def _clustering(graph):
    near = graph.to_undirected()
    return sum(nx.triangles(near).values()) // 3, np.array([c for _, c in sorted(nx.clustering(near).items())])


def _cycles(graph):
    return np.bincount([len(c) for c in nx.simple_cycles(graph, length_bound=LENGTH)], minlength=LENGTH + 1)


THEIRS = {"components": lambda g: nx.number_strongly_connected_components(g), "diameter": _diameter,
          "clustering": _clustering, "cycles": _cycles}


def same(ours, theirs):
    if isinstance(ours, tuple):
        return ours[0] == theirs[0] and np.allclose(ours[1], theirs[1], rtol=1e-12)
    return np.array_equal(ours, theirs)


def main():
    options = side_by_side.arguments(
        __doc__, graphs=(10_000, 50, "graphs"), nodes=(200, 40, "nodes of each"), steps=(2048, 200, "of each path"),
        checked=(12, 3, "of these also by networkx"))
    side_by_side.one_thread()
    rng = np.random.default_rng(9)
    seconds = dict.fromkeys(("build", *OURS), 0.0)
    theirs = dict.fromkeys(OURS, 0.0)
    edges, cycles, checked = 0, 0, 0
    for task in OURS.values():  # compiled before the clock runs
        task(built(paths(1, options.nodes, options.steps, rng)[0], options.nodes))
    for first in range(0, options.graphs, 500):
        many = paths(min(500, options.graphs - first), options.nodes, options.steps, rng)
        began = time.process_time()
        graphs = [built(path, options.nodes) for path in many]
        seconds["build"] += time.process_time() - began
        answers = {}
        for name, task in OURS.items():
            began = time.process_time()
            answers[name] = [task(g) for g in graphs]
            seconds[name] += time.process_time() - began
        edges += sum(g.n_edges for g in graphs)
        cycles += int(sum(c.sum() for c in answers["cycles"]))
        while checked < options.checked and checked < first + len(graphs):
            peer = graphs[checked - first].to_networkx()
            for name, task in THEIRS.items():
                began = time.process_time()
                answer = task(peer)
                theirs[name] += time.process_time() - began
                assert same(answers[name][checked - first], answer), f"{name} of graph {checked} differs from networkx"
            checked += 1
    scale = options.graphs / checked
    rows = [[name, s, theirs[name] * scale if name in theirs else None,
             theirs[name] * scale / s if name in theirs else None] for name, s in seconds.items()]
    total = sum(seconds.values())
    rows.append(["all", total, sum(theirs.values()) * scale, sum(theirs.values()) * scale / total])
    print(f"{options.graphs} graphs of {options.nodes} nodes, {edges / options.graphs:.0f} edges and "
          f"{cycles / options.graphs:.0f} cycles each; {checked} checked: equal")
    print(side_by_side.table(["", "seconds of one core", "networkx (scaled up)", "times ours"], rows))
    side_by_side.save({"machine": side_by_side.machine(), "graphs": options.graphs, "nodes": options.nodes,
                       "steps": options.steps, "edges": edges / options.graphs, "cycles": cycles / options.graphs,
                       "checked": checked, "seconds": seconds, "total": total,
                       "networkx_seconds_scaled": {k: v * scale for k, v in theirs.items()}}, options.save)


if __name__ == "__main__":
    main()
