"""Cells, transition graphs and attractors: closed forms, networkx as oracle, and what must be refused."""

import dataclasses
import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Trajectories
from dynloop.graph import TransitionGraph, attractors, cells, small_world, transition_graph
from dynloop.kernels.graphs import clustering, count_cycles, path_edges, rewired, strongest_return, undirected


def random_graph(rng, n, m):
    u, v = rng.integers(n, size=(2, m))
    return TransitionGraph.from_edges(n, u, v)


def bare(graph):
    """The networkx graph without stays."""
    peer = graph.to_networkx()
    peer.remove_edges_from(list(nx.selfloop_edges(peer)))
    return peer


graphs = st.builds(lambda seed, n, m: random_graph(np.random.default_rng(seed), n, m), st.integers(0, 10**6),
                   st.integers(1, 12), st.integers(0, 40))


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_counts_of_cycles_are_those_of_networkx(graph):
    counts, cut = graph.cycles(max_length=5)
    expected = np.bincount([len(c) for c in nx.simple_cycles(bare(graph), length_bound=5)], minlength=6)
    assert counts.tolist() == expected.tolist()
    assert not cut


@settings(max_examples=60, deadline=None)
@given(graphs)
def test_hops_clustering_and_components_are_those_of_networkx(graph):
    peer = bare(graph)
    lengths = [d for u, found in nx.all_pairs_shortest_path_length(peer) for v, d in found.items() if u != v]
    longest, mean, pairs = graph.hops()
    assert (longest, pairs) == (max(lengths, default=0), len(lengths))
    np.testing.assert_allclose(mean, np.mean(lengths) if lengths else np.nan)
    local, triangles = graph.clustering()
    near = peer.to_undirected()
    assert triangles == sum(nx.triangles(near).values()) // 3
    enough = np.array([near.degree(u) >= 2 for u in range(graph.n_nodes)])
    assert (np.isnan(local) == ~enough).all()
    np.testing.assert_allclose(local[enough], [nx.clustering(near, u) for u in np.flatnonzero(enough)])
    component = graph.strong_components()
    ours = {frozenset(np.flatnonzero(component == c).tolist()) for c in np.unique(component)}
    assert ours == set(map(frozenset, nx.strongly_connected_components(peer)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_the_rows_of_a_path_are_its_edges(path):
    path = np.array(path)
    indptr, indices = np.empty(8, dtype=np.int64), np.empty(len(path), dtype=np.int64)
    path_edges(path, 7, indptr, indices)
    found = [(u, int(v)) for u in range(7) for v in indices[indptr[u]:indptr[u + 1]]]
    assert found == sorted({(int(u), int(v)) for u, v in itertools.pairwise(path) if u != v})
    ptr, near = undirected(indptr, indices[:indptr[-1]])
    both = {(u, v) for a, b in found for u, v in ((a, b), (b, a))}
    assert [(u, int(v)) for u in range(7) for v in near[ptr[u]:ptr[u + 1]]] == sorted(both)


def test_a_complete_graph_has_n_over_l_times_l_minus_1_factorial_cycles():
    u, v = np.nonzero(~np.eye(7, dtype=bool))
    counts, _ = TransitionGraph.from_edges(7, u, v).cycles(max_length=7)
    assert counts[2:].tolist() == [math.comb(7, k) * math.factorial(k - 1) for k in range(2, 8)]


def test_a_count_that_is_cut_short_says_so_and_is_a_lower_bound():
    u, v = np.nonzero(~np.eye(12, dtype=bool))
    graph = TransitionGraph.from_edges(12, u, v)
    counts, cut = graph.cycles(max_length=12, max_work=5000)
    assert cut
    assert 0 < counts.sum() <= 5000


def strength(path, longest):
    """Oracle: largest m(p) - min(m(q), q < p)."""
    m = [np.mean(path[p:] == path[:-p]) for p in range(1, min(longest, len(path) - 1) + 1)]
    return max([m[p] - min(m[:p]) for p in range(1, len(m))], default=0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=40), st.integers(2, 15))
def test_the_strength_of_return_is_the_largest_rise_of_the_share_of_returns(path, longest):
    path = np.array(path)
    found, lag = strongest_return(path, longest)
    np.testing.assert_allclose(found, max(strength(path, longest), 0.0), atol=1e-12)
    assert (lag == 0) == (found == 0)


@pytest.mark.parametrize("period", [2, 3, 7, 12])
def test_a_cycle_returns_wholly_at_its_period_and_a_chain_never(period):
    assert strongest_return(np.arange(60) % period, 20) == (1.0, period)
    settled = np.minimum(np.arange(60), period)
    assert strongest_return(settled, 20) == (0.0, 0)
    assert strongest_return(np.arange(60) // period, 20) == (0.0, 0)


def random_map_statistics(n, rng):
    following = rng.integers(n, size=n)
    # a stay is no edge here, but it is what makes a fixed point
    return attractors(TransitionGraph.from_edges(n, np.arange(n), following)), following


def test_random_maps_have_as_many_cyclic_nodes_and_components_as_the_theory_says(rng):
    n, many = 400, 120
    cyclic, components = np.empty(many), np.empty(many)
    for i in range(many):
        found, _ = random_map_statistics(n, rng)
        cyclic[i], components[i] = sum(map(len, found.members)), len(found)
    k = np.arange(1, n + 1)
    # exact: sum over k of n! / ((n - k)! n^k), and the same over k
    falling = np.exp(np.cumsum(np.log1p(-(k - 1) / n)))
    assert abs(cyclic.mean() - falling.sum()) < 4 * cyclic.std() / math.sqrt(many)
    assert abs(components.mean() - (falling / k).sum()) < 4 * components.std() / math.sqrt(many)
    # and the asymptotic forms are near these
    assert abs(falling.sum() / math.sqrt(math.pi * n / 2) - 1) < 0.02
    assert abs((falling / k).sum() / ((math.log(2 * n) + np.euler_gamma) / 2) - 1) < 0.01


def test_the_attractors_of_a_map_are_its_cycles_and_each_node_has_one_basin(rng):
    for _ in range(20):
        found, following = random_map_statistics(30, rng)
        on_cycle = np.arange(30)
        for _ in range(30):
            on_cycle = following[on_cycle]
        assert sorted(u for own in found.members for u in own.tolist()) == np.unique(on_cycle).tolist()
        assert (found.basins.sum(0) == 1).all()
        np.testing.assert_allclose(found.probability, found.basins)
        for own, kind, basin in zip(found.members, found.kinds, found.basins, strict=True):
            assert kind == ("cycle" if len(own) > 1 else "fixed point")
            assert set(following[own].tolist()) == set(own.tolist())
            assert (basin == np.isin(on_cycle, own)).all()
        assert (np.diff(found.share) <= 0).all()


def test_the_gamblers_ruin_ends_in_proportion_to_the_start():
    u = np.repeat(np.arange(1, 10), 2)
    ruin = TransitionGraph.from_edges(11, np.r_[u, 0, 10], np.r_[u + np.tile([-1, 1], 9), 0, 10])
    found = attractors(ruin)
    assert found.kinds == ("fixed point", "fixed point")
    high = [own.tolist() for own in found.members].index([10])
    np.testing.assert_allclose(found.probability[high], np.arange(11) / 10, atol=1e-12)
    assert found.basins[:, 1:10].all()


def test_a_recording_that_stops_on_its_way_ends_in_a_dead_end():
    found = attractors(transition_graph(cells(Trajectories(np.arange(6.0)[None, :, None]), n_cells=6)))
    assert found.kinds == ("dead end",)
    several_ways = attractors(TransitionGraph.from_edges(3, [0, 1, 1, 2], [1, 0, 2, 1]))
    assert several_ways.kinds == ("set",)


def test_cells_are_as_many_as_there_are_places(rng):
    for places in (3, 6):
        x = 4 * rng.normal(size=(places, 12))[rng.integers(places, size=(4, 25))] + 0.05 * rng.normal(size=(4, 25, 12))
        found = cells(Trajectories(x))
        assert found.n_cells.tolist() == [places] * 4
        own = found.partition()
        assert own.agreement[own.chosen] == 1.0
        by_radius = cells(Trajectories(x), method="radius", radius=(0.1, 2.0, 60.0))
        assert by_radius.n_cells[0] == places


def test_cells_of_noise_agree_little(rng):
    own = cells(Trajectories(rng.normal(size=(20, 30, 8)))).partition()
    assert max(own.agreement) < 0.6


def test_a_state_belongs_to_the_nearest_centre_and_coordinates_say_so(rng):
    x = rng.normal(size=(3, 30, 9))
    found = cells(Trajectories(x), n_cells=4)
    centers = found.partition().centers
    distances = np.linalg.norm(x[:, :, None] - centers, axis=-1)
    assert (found.paths == distances.argmin(-1)).all()
    assert found.coordinates.shape == (3, 30, 3)
    inside = np.linalg.norm(found.coordinates[:, :, None] - found.partition().coordinates(centers), axis=-1)
    np.testing.assert_allclose(np.diff(inside**2, axis=-1), np.diff(distances**2, axis=-1), atol=1e-9)


def test_no_two_centres_of_fixed_radius_are_nearer_than_it_and_no_state_is_farther(rng):
    x = rng.normal(size=(2, 50, 3))
    found = cells(Trajectories(x), method="radius", radius=1.0)
    centers = found.partition().centers
    apart = np.linalg.norm(centers[:, None] - centers, axis=-1) + 9 * np.eye(len(centers))
    assert apart.min() > 1.0
    assert np.linalg.norm(x.reshape(-1, 1, 3) - centers, axis=-1).min(1).max() <= 1.0
    chosen = cells(Trajectories(x), method="radius").partition()
    assert chosen.settings == tuple(sorted(chosen.settings, reverse=True))


def test_orbits_end_where_they_leave_the_finite_numbers(rng):
    x = rng.normal(size=(3, 20, 2))
    x[1, 7:] = np.nan
    x[2] = np.inf
    found = cells(Trajectories(x), n_cells=3)
    assert (found.paths[1] >= 0).tolist() == [True] * 7 + [False] * 13
    assert (found.paths[2] == -1).all()
    graph = transition_graph(found)
    assert graph.visits.sum() == 27
    assert graph.counts.sum() + graph.stays.sum() == 25
    assert (graph.starts.sum(), graph.ends.sum()) == (2, 2)


def test_the_graph_of_many_orbits_is_the_sum_of_theirs(rng):
    found = cells(Trajectories(rng.normal(size=(4, 30, 2))), n_cells=5)
    whole, parts = transition_graph(found), [transition_graph(found[o]) for o in range(4)]
    np.testing.assert_array_equal(whole.visits, sum(p.visits for p in parts))
    np.testing.assert_allclose(whole.matrix(whole.counts).toarray(), sum(p.matrix(p.counts).toarray() for p in parts))
    peer = whole.to_networkx()
    assert sum(d["count"] for _, _, d in peer.edges(data=True)) == 4 * 29


def test_diameter_in_state_units_is_that_of_dijkstra(rng):
    graph = transition_graph(cells(Trajectories(rng.normal(size=(1, 40, 3))), n_cells=12))
    lengths = dict(nx.all_pairs_dijkstra_path_length(bare(graph), weight="length"))
    np.testing.assert_allclose(graph.diameter(), max(d for found in lengths.values() for d in found.values()))


def test_rewiring_keeps_degrees_and_leaves_no_loop(rng):
    graph = random_graph(rng, 20, 60)
    targets = graph.indices.copy()
    made = rewired(graph.sources, targets, 20, *rng.integers(graph.n_edges, size=(2, 600)))
    assert made > 50
    assert (np.bincount(targets, minlength=20) == np.bincount(graph.indices, minlength=20)).all()
    assert (targets != graph.sources).all()
    assert len({*zip(graph.sources.tolist(), targets.tolist(), strict=True)}) == graph.n_edges


def test_random_graphs_are_no_small_worlds_and_rings_with_shortcuts_are(rng):
    p = [small_world(random_graph(rng, 40, 160), n_nulls=39, rng=i).p_index for i in range(40)]
    assert np.mean(np.array(p) <= 0.05) <= 0.15  # 5 % expected; 8 or more of 40 once in 1000
    u = np.repeat(np.arange(80), 4)
    v = (u + np.tile([1, 2, -1, -2], 80)) % 80
    v[rng.random(len(v)) < 0.1] = rng.integers(80)
    found = small_world(TransitionGraph.from_edges(80, u, v))
    assert found.index > 1.5
    assert found.p_index == 0.01
    assert 0 < found.p_index_error < 0.02


def test_a_cycle_is_its_own_rewired_graph():
    ring = TransitionGraph.from_edges(9, np.arange(9), (np.arange(9) + 1) % 9)
    assert small_world(ring).clustering == 0
    assert math.isnan(small_world(TransitionGraph.from_edges(2, [0], [1])).index)


def test_the_same_seed_gives_the_same_cells(rng):
    orbits = Trajectories(rng.normal(size=(4, 30, 3)))
    np.testing.assert_array_equal(cells(orbits, rng=3).paths, cells(orbits, rng=3).paths)


@pytest.mark.parametrize(("wrong", "words"), [
    ({"method": "grid"}, "method must be one of"), ({"radius": 1.0}, "takes n_cells"),
    ({"method": "radius", "n_cells": 3}, "takes radius"), ({"n_cells": 0}, "n_cells must be"),
    ({"n_cells": ()}, "at least one number"), ({"method": "radius", "radius": -1}, "radius must be"),
    ({"n_splits": 1}, "n_splits must be"), ({"n_init": 0}, "n_init must be"), ({"together": 1}, "together must be"),
])
def test_settings_that_do_not_fit_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        cells(Trajectories(np.random.default_rng(0).normal(size=(2, 20, 2))), **wrong)


def test_what_is_no_recording_no_cells_and_no_graph_is_refused(rng):
    x = Trajectories(rng.normal(size=(2, 20, 2)))
    with pytest.raises(TypeError, match="needs Trajectories"):
        cells(x.states)
    with pytest.raises(ValueError, match="nothing to cut"):
        cells(Trajectories(np.full((1, 5, 2), np.nan)))
    with pytest.raises(ValueError, match="more than 1000 cells"):
        cells(Trajectories(rng.normal(size=(1, 1100, 2))), method="radius", radius=1e-9)
    with pytest.raises(TypeError, match="needs Cells"):
        transition_graph(x)
    with pytest.raises(ValueError, match="2 partitions of their own"):
        transition_graph(cells(x, together=False, n_cells=2))
    for function in (attractors, small_world):
        with pytest.raises(TypeError, match="needs a TransitionGraph"):
            function(x)
    graph = random_graph(rng, 4, 9)
    with pytest.raises(ValueError, match="n_nulls must be"):
        small_world(graph, n_nulls=5)
    for name in ("max_length", "max_work"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            graph.cycles(**{name: 0})
    for change, words in (({"indptr": graph.indptr[::-1]}, "indptr must rise"), ({"visits": [1]}, "visits must have"),
                          ({"indices": graph.indices + 9}, "indices must be nodes"),
                          ({"indices": graph.sources}, "to itself")):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(graph, **change)


def test_kernels_take_a_graph_without_edges():
    indptr, none = np.zeros(4, dtype=np.int64), np.zeros(0, dtype=np.int64)
    counts = np.zeros(6, dtype=np.int64)
    assert not count_cycles(indptr, none, 5, 10, counts)
    assert clustering(indptr, none, np.empty(3)) == 0
    assert counts.sum() == 0
