"""Paths over cells and directed graphs in compressed rows: returns, cycles, hops, triangles, rewiring.

A graph of n nodes is two whole-number arrays: the successors of node u are `indices[indptr[u]:indptr[u + 1]]`, each
once, ascending, without u itself.
"""

import numpy as np

from dynloop.kernels import kernel


@kernel
def path_edges(path, n_nodes, indptr, indices):
    """Successors of every node along a path, without those of a node to itself.

    Args:
        path: (T,) nodes from 0 to n_nodes - 1.
        n_nodes: how many.
        indptr: (n_nodes + 1,) output.
        indices: at least (T,) output; the first indptr[-1] are filled.
    """
    first = np.full(n_nodes, -1)  # a list of successors for each node, by insertion: out-degrees are small
    following = np.empty(len(path), dtype=np.int64)
    value = np.empty(len(path), dtype=np.int64)
    used = 0
    for t in range(len(path) - 1):
        u, v = path[t], path[t + 1]
        if u == v:
            continue
        before, at = -1, first[u]
        while at >= 0 and value[at] < v:
            before, at = at, following[at]
        if at >= 0 and value[at] == v:
            continue
        value[used], following[used] = v, at
        if before < 0:
            first[u] = used
        else:
            following[before] = used
        used += 1
    at_edge = 0
    for u in range(n_nodes):
        indptr[u] = at_edge
        at = first[u]
        while at >= 0:
            indices[at_edge] = value[at]
            at_edge += 1
            at = following[at]
    indptr[n_nodes] = at_edge


@kernel
def hops(indptr, indices):
    """Shortest paths between all pairs, by breadth-first search from every node.

    Returns:
        Longest finite number of hops, mean over connected ordered pairs (NaN without any), and their number.
    """
    n = len(indptr) - 1
    seen = np.full(n, -1)
    queue, depth = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    longest, total, pairs = 0, 0, 0
    for source in range(n):
        seen[source] = source
        queue[0], depth[0] = source, 0
        head, tail = 0, 1
        while head < tail:
            u, d = queue[head], depth[head] + 1
            head += 1
            for e in range(indptr[u], indptr[u + 1]):
                v = indices[e]
                if seen[v] != source:
                    seen[v] = source
                    queue[tail], depth[tail] = v, d
                    tail += 1
                    total += d
        longest = max(longest, depth[tail - 1])
        pairs += tail - 1
    return longest, (total / pairs if pairs else np.nan), pairs


@kernel
def backwards(indptr, indices):
    """The same graph with every edge turned round: (indptr, indices), rows ascending."""
    n = len(indptr) - 1
    into = np.zeros(n + 1, dtype=np.int64)
    for e in range(indptr[n]):
        into[indices[e] + 1] += 1
    for u in range(n):
        into[u + 1] += into[u]
    fill = into[:n].copy()
    sources = np.empty(indptr[n], dtype=np.int64)
    for u in range(n):  # sources of one node come in ascending order
        for e in range(indptr[u], indptr[u + 1]):
            sources[fill[indices[e]]] = u
            fill[indices[e]] += 1
    return into, sources


@kernel
def undirected(indptr, indices):
    """The same graph with every edge both ways: (indptr, indices), rows ascending."""
    n = len(indptr) - 1
    into, sources = backwards(indptr, indices)
    out_ptr, out = np.empty(n + 1, dtype=np.int64), np.empty(2 * indptr[n], dtype=np.int64)
    used = 0
    for u in range(n):
        out_ptr[u] = used
        a, b = indptr[u], into[u]
        while a < indptr[u + 1] or b < into[u + 1]:
            one = indices[a] if a < indptr[u + 1] else n
            other = sources[b] if b < into[u + 1] else n
            out[used] = min(one, other)
            used += 1
            a += one <= other
            b += other <= one
    out_ptr[n] = used
    return out_ptr, out[:used]


@kernel
def clustering(indptr, indices, local):
    """Share of pairs of neighbours that are neighbours themselves, edges taken as undirected (Watts and Strogatz).

    Args:
        indptr, indices: the directed graph.
        local: (n,) output; NaN where a node has fewer than two neighbours.

    Returns:
        Number of triangles.
    """
    n = len(indptr) - 1
    ptr, near = undirected(indptr, indices)
    mark = np.full(n, -1)
    corners = 0
    for u in range(n):
        degree = ptr[u + 1] - ptr[u]
        local[u] = np.nan
        if degree < 2:
            continue
        for a in range(ptr[u], ptr[u + 1]):
            mark[near[a]] = u
        links = 0
        for a in range(ptr[u], ptr[u + 1]):
            v = near[a]
            for b in range(ptr[v], ptr[v + 1]):
                links += mark[near[b]] == u
        corners += links // 2
        local[u] = links / (degree * (degree - 1))
    return corners // 3


@kernel
def count_cycles(indptr, indices, max_length, max_work, counts):
    """Simple cycles of 2 to `max_length` nodes, each counted once: from its smallest node.

    A search from every node s through larger nodes only; what is too far from s to come back in time is not entered.

    Args:
        indptr, indices: the graph.
        max_length: longest cycle that counts.
        max_work: edges that may be followed; then the search ends.
        counts: (max_length + 1,) output, by length; added to.

    Returns:
        Whether the search ended early: the counts are lower bounds.
    """
    n = len(indptr) - 1
    into_ptr, into = backwards(indptr, indices)
    on_path = np.zeros(n, dtype=np.bool_)
    stack, edge = np.empty(max_length + 1, dtype=np.int64), np.empty(max_length + 1, dtype=np.int64)
    back = np.full(n, max_length + 1)  # hops home, where they are few
    queue = np.empty(n, dtype=np.int64)
    work = 0
    for s in range(n):
        queue[0], head, tail = s, 0, 1
        back[s] = 0
        while head < tail:
            u = queue[head]
            head += 1
            if back[u] == max_length - 1:
                break
            for e in range(into_ptr[u], into_ptr[u + 1]):
                v = into[e]
                if v > s and back[v] > max_length:
                    back[v] = back[u] + 1
                    queue[tail] = v
                    tail += 1
        stack[0], edge[0], level = s, indptr[s], 0
        on_path[s] = True
        while level >= 0:
            u = stack[level]
            if edge[level] == indptr[u + 1]:
                on_path[u] = False
                level -= 1
                continue
            v = indices[edge[level]]
            edge[level] += 1
            work += 1
            if work > max_work:
                return True
            if v == s:
                counts[level + 1] += 1
            elif v > s and not on_path[v] and level + 1 + back[v] <= max_length:
                level += 1
                stack[level], edge[level] = v, indptr[v]
                on_path[v] = True
        for i in range(tail):
            back[queue[i]] = max_length + 1
    return False


@kernel
def strongest_return(path, longest):
    """How much more often the path is where it was p steps ago than it was at the shorter lag where it was least.

    m(p) is the share of steps t with path[t + p] = path[t]; the largest m(p) - min(m(q), 1 <= q < p) over p up to
    `longest`. A path that stays, or settles, has m falling or constant: 0. A cycle of 2 or more cells comes to 1.

    Returns:
        That difference, and p (0 where there is none).
    """
    least, best, lag = np.inf, 0.0, 0
    n = len(path)
    for p in range(1, min(longest, n - 1) + 1):
        same = 0
        for t in range(n - p):
            same += path[t] == path[t + p]
        share = same / (n - p)
        if share - least > best + 1e-12:
            best, lag = share - least, p
        least = min(least, share)
    return best, lag


@kernel
def path_numbers(paths, n_nodes, longest, max_length, max_work, out):
    """Numbers of the graph of each path alone, cells taken in the order of their first visits.

    Args:
        paths: (n, T) cells from 0 to n_nodes - 1.
        n_nodes: how many there are.
        longest: longest lag of a return.
        max_length, max_work: as in `count_cycles`.
        out: (n, 14) output: strongest return and its lag; nodes, edges, moves, moves back to a node visited before;
            cycles and whether their count is cut short; longest and mean number of hops and connected pairs; mean
            clustering of nodes with two neighbours (NaN without any), triangles, mean number of neighbours.
    """
    n_steps = paths.shape[1]
    name, path = np.empty(n_nodes, dtype=np.int64), np.empty(n_steps, dtype=np.int64)
    indptr, indices = np.empty(n_nodes + 1, dtype=np.int64), np.empty(n_steps, dtype=np.int64)
    local = np.empty(n_nodes)
    counts = np.zeros(max_length + 1, dtype=np.int64)
    for o in range(len(paths)):
        name[:] = -1
        nodes, moves, again = 0, 0, 0
        for t in range(n_steps):
            moved = t > 0 and paths[o, t] != paths[o, t - 1]
            moves += moved
            again += moved and name[paths[o, t]] >= 0
            if name[paths[o, t]] < 0:
                name[paths[o, t]] = nodes
                nodes += 1
            path[t] = name[paths[o, t]]
        ptr = indptr[:nodes + 1]
        path_edges(path, nodes, ptr, indices)
        edges = indices[:ptr[nodes]]
        counts[:] = 0
        cut = count_cycles(ptr, edges, max_length, max_work, counts)
        diameter, mean_hops, pairs = hops(ptr, edges)
        triangles = clustering(ptr, edges, local[:nodes])
        near_ptr, _ = undirected(ptr, edges)
        total, known = 0.0, 0
        for u in range(nodes):
            if not np.isnan(local[u]):
                total += local[u]
                known += 1
        out[o, 0], out[o, 1] = strongest_return(paths[o], longest)
        out[o, 2], out[o, 3], out[o, 4], out[o, 5] = nodes, len(edges), moves, again
        out[o, 6], out[o, 7] = counts.sum(), cut
        out[o, 8], out[o, 9], out[o, 10] = diameter, mean_hops, pairs
        out[o, 11], out[o, 12] = total / known if known else np.nan, triangles
        out[o, 13] = near_ptr[nodes] / nodes


@kernel
def rewired(sources, targets, n_nodes, first, second):
    """Swap the targets of pairs of edges, so that every node keeps its number of successors and of predecessors.

    Args:
        sources, targets: (m,) edges; targets are changed.
        n_nodes: how many nodes.
        first, second: (tries,) the two edges of each try; a swap that would make a loop or an edge twice is not made.

    Returns:
        Number of swaps made.
    """
    there = np.zeros((n_nodes, n_nodes), dtype=np.bool_)
    for e in range(len(sources)):
        there[sources[e], targets[e]] = True
    made = 0
    for i in range(len(first)):
        a, b = first[i], second[i]
        u, v, x, y = sources[a], targets[a], sources[b], targets[b]
        if u == y or x == v or there[u, y] or there[x, v]:
            continue
        there[u, v] = there[x, y] = False
        there[u, y] = there[x, v] = True
        targets[a], targets[b] = y, v
        made += 1
    return made


@kernel
def first_revisits(paths, exists, counts):
    """The published search for a loop: a node that is seen again more than one step after it was seen last.

    Args:
        paths: (n, T) nodes, from 0.
        exists: (n,) output: 1 where there is such a node, else 0.
        counts: (n,) output: visits of the first such node less one; immediate succession is one visit.
    """
    last = np.empty(paths.max() + 1, dtype=np.int64)
    for o in range(len(paths)):
        last[:] = -1
        node = -1
        for t in range(paths.shape[1]):
            if last[paths[o, t]] >= 0 and t - last[paths[o, t]] > 1:
                node = paths[o, t]
                break
            last[paths[o, t]] = t
        visits = 0
        for t in range(paths.shape[1]):
            visits += paths[o, t] == node and (t == 0 or paths[o, t - 1] != node)
        exists[o] = node >= 0
        counts[o] = max(visits - 1, 0)


@kernel
def own_cells(states, first, n_rounds, paths):
    """Cells of each orbit found anew from its states alone: k-means from given states.

    Args:
        states: (n, T, d).
        first: (n, k) steps whose states are the first centres.
        n_rounds: at most so many rounds.
        paths: (n, T) output: the nearest centre of each state.
    """
    n, n_steps, dim = states.shape
    k = first.shape[1]
    centers, counts = np.empty((k, dim)), np.empty(k, dtype=np.int64)
    for o in range(n):
        for c in range(k):
            centers[c] = states[o, first[o, c]]
        paths[o] = -1
        for _ in range(n_rounds):
            changed = False
            for t in range(n_steps):
                nearest, least = 0, np.inf
                for c in range(k):
                    d = 0.0
                    for i in range(dim):
                        d += (states[o, t, i] - centers[c, i]) ** 2
                    if d < least:
                        nearest, least = c, d
                changed |= paths[o, t] != nearest
                paths[o, t] = nearest
            if not changed:
                break
            counts[:] = 0
            for t in range(n_steps):
                counts[paths[o, t]] += 1
            for c in range(k):
                if counts[c]:  # a cell that lost all its states keeps its centre
                    centers[c] = 0.0
            for t in range(n_steps):
                for i in range(dim):
                    centers[paths[o, t], i] += states[o, t, i] / counts[paths[o, t]]
