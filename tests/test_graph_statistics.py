"""Graph statistics and their nulls: false alarms and power, the published procedure, the figure."""

import math
from collections import Counter

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from scipy.stats import binom

from dynloop import Outcome, Trajectories
from dynloop.graph import cells, graph_statistics, reasoning_graph
from dynloop.graph.nulls import NULLS, Nulls
from dynloop.report.figures.drawing import alt_of, caption_of
from dynloop.report.figures.state_graph import state_graph
from dynloop.report.figures.style import COLOURS
from dynloop.statistics.surrogates import surrogates


def autoregression(coefficient, dim, n_steps, n, rng):
    x = np.empty((n, n_steps, dim))
    x[:, 0] = rng.normal(size=(n, dim))
    for t in range(1, n_steps):
        x[:, t] = coefficient * x[:, t - 1] + math.sqrt(1 - coefficient**2) * rng.normal(size=(n, dim))
    return x


def walks(dim, n_steps, n, rng):
    return rng.normal(size=(n, n_steps, dim)).cumsum(axis=1)


def planted(period, noise, dim, n_steps, n, rng):
    """Cycles through random places, each orbit through its own; noise in units of the distance of typical places."""
    corners = rng.normal(size=(n, period, dim))
    return corners[:, np.arange(n_steps) % period] + noise * math.sqrt(2) * rng.normal(size=(n, n_steps, dim))


def length_matched(n_places, n_steps, n, rng):
    """Random paths over places, never twice the same in succession."""
    turns = rng.integers(1, n_places, size=(n, n_steps)).cumsum(axis=1) % n_places
    places = rng.normal(size=(n, n_places, 6))
    return places[np.arange(n)[:, None], turns] + 0.02 * rng.normal(size=(n, n_steps, 6))


def called(x, **settings):
    found = cells(Trajectories(x), together=False, n_splits=2, n_init=1, **settings)
    m = graph_statistics(found, n_surrogates=99)
    assert m.found.all()
    return int((m["verdict"] == "cyclic").sum())


N = 150  # orbits of a kind in the slow tests


# more than this share by chance, at a true 5 %, once in 1000
def most(n):
    return int(binom.ppf(0.999, n, 0.05))


WITHOUT = {
    "white noise": lambda n, rng: autoregression(0.0, 8, 64, n, rng),
    "autoregression .5": lambda n, rng: autoregression(0.5, 8, 64, n, rng),
    "autoregression .9": lambda n, rng: autoregression(0.9, 8, 64, n, rng),
    "autoregression .98": lambda n, rng: autoregression(0.98, 2, 64, n, rng),
    "autoregression .9 in 64d": lambda n, rng: autoregression(0.9, 64, 64, n, rng),
    "walk in 2d": lambda n, rng: walks(2, 64, n, rng),
    "walk in 64d": lambda n, rng: walks(64, 64, n, rng),
    "length-matched paths of 3": lambda n, rng: length_matched(3, 64, n, rng),
    "length-matched paths of 8": lambda n, rng: length_matched(8, 64, n, rng),
}
PLANTED = {f"period {period}, noise {noise}": lambda n, rng, p=period, s=noise: planted(p, s, 16, 64, n, rng)
           for period, noise in ((2, 0.0), (2, 0.2), (3, 0.1), (5, 0.0), (5, 0.2), (8, 0.1), (12, 0.1), (16, 0.05))}


@pytest.mark.parametrize("name", ["white noise", "autoregression .9", "walk in 2d", "length-matched paths of 3"])
def test_what_has_no_cycle_is_seldom_called_cyclic(name, rng):
    assert called(WITHOUT[name](20, rng), n_cells=5) <= most(20)


@pytest.mark.parametrize("name", ["period 2, noise 0.0", "period 5, noise 0.2"])
def test_planted_cycles_are_found(name, rng):
    assert called(PLANTED[name](12, rng), n_cells=(2, 5)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT)
def test_at_most_5_percent_of_what_has_no_cycle_are_called_cyclic(name, rng):
    count = called(WITHOUT[name](N, rng))
    print(f"{name}: {count} of {N} called cyclic")
    assert count <= most(N)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_99_percent_of_planted_cycles_are_found(name, rng):
    count = called(PLANTED[name](N, rng))
    print(f"{name}: {count} of {N} found")
    assert count >= binom.ppf(0.001, N, 0.99)


def test_one_partition_for_all_orbits_finds_the_cycles_among_them(rng):
    corners = rng.normal(size=(6, 8))
    turning = corners[(np.arange(60) + rng.integers(6, size=(10, 1))) % 6] + 0.05 * rng.normal(size=(10, 60, 8))
    jumping = corners[rng.integers(6, size=(10, 60))] + 0.05 * rng.normal(size=(10, 60, 8))
    m = graph_statistics(cells(Trajectories(np.concatenate([turning, jumping]), labels={"prompt": np.arange(20)})))
    assert (m["n_cells"] if "n_cells" in m.variables else m.labels["n_cells"]).tolist() == [6] * 20
    assert (m["verdict"][:10] == "cyclic").all()
    assert (m["verdict"][10:] == "cyclic").sum() <= most(10)
    assert (m["period"][:10] == 6).all()
    assert (m["attractor"][:10] == "cycle").all()
    assert (m["cycles_per_edge"][:10] == 0).all()  # a cycle of 6 is longer than 5
    assert (m["edges"][:10] == 6).all()
    assert (m["diameter_hops"][:10] == 5).all()


def test_a_fixed_point_a_drift_and_a_constant_have_no_return(rng):
    t = np.arange(60.0)[:, None]
    settling, drifting = rng.normal(size=4) * 0.8**t, rng.normal(size=4) * t
    m = graph_statistics(cells(Trajectories(np.stack([settling, drifting, np.ones((60, 4))])), together=False))
    assert m["return_strength"].tolist() == [0, 0, 0]
    assert (m["p_value"] == 1).all()
    assert m["attractor"][[0, 2]].tolist() == ["fixed point", "fixed point"]
    assert m["cycles"].tolist() == [0, 0, 0]
    assert (m["edges"] == m["nodes"] - 1).all()
    assert m["edges"][2] == 0
    assert m["last_stay"][2] == 60


def test_every_number_stands_beside_every_null_with_p_value_and_error(rng):
    m = graph_statistics(cells(Trajectories(planted(4, 0.1, 6, 48, 2, rng)), together=False), n_surrogates=39)
    for name in ("return_strength", "revisits", "cycles", "cycles_per_edge", "diameter_hops"):
        for kind in NULLS:
            p, error = m[f"{name}_p_{kind}"], m[f"{name}_p_error_{kind}"]
            assert ((p >= 1 / 40) & (p <= 1)).all()
            assert (np.isfinite(error) & (error >= 0)).all()
            assert np.isfinite(m[f"{name}_mean_{kind}"]).all()
    p = np.stack([m[f"return_strength_p_{kind}"] for kind in NULLS])
    np.testing.assert_array_equal(m["p_value"], p.max(0))
    some = graph_statistics(cells(Trajectories(planted(4, 0.1, 6, 48, 2, rng))), nulls="shuffle", n_surrogates=19)
    assert "cycles_p_shuffle" in some.variables
    assert "cycles_p_walk" not in some.variables


def test_a_sweep_over_k_is_one_measurement(rng):
    orbits = Trajectories(planted(6, 0.05, 6, 60, 3, rng), labels={"prompt": np.arange(3)})
    sweep = graph_statistics([cells(orbits, n_cells=k, together=False) for k in (3, 6, 9)], n_surrogates=39)
    assert sweep.labels["n_cells"].tolist() == [3] * 3 + [6] * 3 + [9] * 3
    assert sweep.labels["prompt"].tolist() == [0, 1, 2] * 3
    assert (sweep.select(n_cells=6)["verdict"] == "cyclic").all()


def test_short_and_diverged_orbits_say_so(rng):
    x = rng.normal(size=(3, 40, 2))
    x[1, 20:] = np.inf
    m = graph_statistics(cells(Trajectories(x, lengths=[40, 40, 5]), n_cells=3), n_surrogates=19)
    assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.NOT_FINITE, Outcome.TOO_SHORT]
    assert m["verdict"][1:].tolist() == ["", ""]
    assert all(np.isnan(m[name][1:]).all() for name in m.variables if name not in ("verdict", "attractor"))


def test_nulls_keep_what_they_promise(rng):
    x = walks(3, 40, 2, rng)
    found = cells(Trajectories(np.concatenate([x, x])), n_cells=6)[:2]
    make = {kind: Nulls(kind, found.paths, found.coordinates, found.partition()).make(rng.spawn(30)) for kind in NULLS}
    for kind, made in make.items():
        assert made.shape == (30, 2, 40)
        assert ((made >= 0) & (made < 6)).all(), kind
        assert len(np.unique(made, axis=0)) > 20, kind
    for o in range(2):
        path = found.paths[o]
        for made in make["shuffle"][:, o]:
            assert Counter(made.tolist()) == Counter(path.tolist())
        for made in make["walk"][:, o]:
            assert (made[0], made[-1]) == (path[0], path[-1])  # the same steps in another order: the same end
        for made in make["length"][:, o]:
            assert ((np.diff(made) != 0) == (np.diff(path) != 0)).all()
            assert set(made.tolist()) <= set(path.tolist())


def test_the_autoregressive_null_is_that_of_surrogates_but_for_long_alternation(rng):
    x = autoregression(0.5, 3, 40, 1, rng)
    found = cells(Trajectories(np.concatenate([x, x])), n_cells=4)[:1]
    generators, same = np.random.default_rng(1).spawn(5), np.random.default_rng(1)
    ours = Nulls("ar1", found.paths, found.coordinates, found.partition()).make(generators)
    theirs = surrogates(found.coordinates, kind="ar1", n_surrogates=5, rng=same)
    np.testing.assert_array_equal(ours, found.partition().nearest(theirs))
    two = cells(Trajectories(np.resize([0.0, 1.0], (1, 40, 1)) + 0.01 * rng.normal(size=(1, 40, 1))), n_cells=2)
    maker = Nulls("ar1", two.paths, two.coordinates, two.partition()).maker
    assert maker.coefficient.min() == -0.9
    made = maker.make(rng.spawn(400))
    np.testing.assert_allclose(made.std() / two.coordinates.std(), 1.0, atol=0.1)


def release(path, lengths):
    """The published procedure, step by step, as its release has it: loop, count, diameter, clustering, mean path."""
    seen, entry = {}, None
    for i, node in enumerate(path):
        if node in seen and i - seen[node] > 1:
            entry = node
            break
        seen[node] = i
    visits = sum(node == entry and (i == 0 or path[i - 1] != node) for i, node in enumerate(path))
    nodes = sorted(set(path))
    d = {(u, v): 0.0 if u == v else math.inf for u in nodes for v in nodes}
    for u, v, w in zip(path, path[1:], lengths, strict=False):
        if u != v:
            d[u, v] = min(d[u, v], w)
    near = {u: {v for v in nodes if v != u and min(d[u, v], d[v, u]) < math.inf} for u in nodes}
    for k in nodes:
        for u in nodes:
            for v in nodes:
                d[u, v] = min(d[u, v], d[u, k] + d[k, v])
    finite = [d[u, v] for u in nodes for v in nodes if u != v and d[u, v] < math.inf]
    local = [sum(w in near[v] for v in near[u] for w in near[u]) / (len(near[u]) * (len(near[u]) - 1))
             for u in nodes if len(near[u]) > 1]
    k = sum(map(len, near.values())) / len(nodes)
    return {"loop_exists": entry is not None, "loop_count": max(visits - 1, 0) if entry is not None else 0,
            "diameter": max(finite, default=0.0), "path_length": np.mean(finite) if finite else 0.0,
            "clustering": np.mean(local) if local else 0.0,
            "random_clustering": k / (len(nodes) - 1) if len(nodes) > 1 else 0.0}


def test_the_published_numbers_are_those_of_the_published_steps(rng):
    x = walks(2, 50, 12, rng)
    x[-1] = x[-1, :1] + 1e-3 * rng.normal(size=(50, 2))  # a chain that stays
    m = reasoning_graph(Trajectories(x), n_cells=30, n_init=1, n_surrogates=19)
    found = cells(Trajectories(x), n_cells=30, n_init=1, rng=np.random.default_rng(0))
    for o in range(12):
        expected = release(found.paths[o].tolist(), np.linalg.norm(np.diff(x[o], axis=0), axis=1).tolist())
        for name, value in expected.items():
            np.testing.assert_allclose(m[name][o], value, err_msg=f"{name} of {o}")
        if np.isfinite(m["small_world"][o]):
            np.testing.assert_allclose(m["small_world"][o], m["clustering"][o] / m["random_clustering"][o]
                                       / (m["path_length"][o] / m["random_path_length"][o]))


def test_the_published_loops_of_noise_are_no_more_than_chance(rng):
    """Calibration: noise has loops in nearly every chain, and its nulls have them as often."""
    m = reasoning_graph(Trajectories(autoregression(0.0, 4, 40, 10, rng)), n_cells=20, n_init=1, n_surrogates=39)
    assert m["loop_exists"].mean() == 1
    assert (m["loop_share_shuffle"] > 0.95).all()
    assert (m["loop_count_p_shuffle"] <= 0.05).sum() <= most(10)
    assert (m["verdict"] == "cyclic").sum() <= most(10)


def test_small_world_by_hops_has_no_unit_and_the_published_one_has(rng):
    x = autoregression(0.5, 2, 60, 4, rng)
    one, ten = (reasoning_graph(Trajectories(s * x), n_cells=16, n_init=1, nulls="shuffle", n_surrogates=19)
                for s in (1, 8))
    np.testing.assert_allclose(one["small_world_hops"], ten["small_world_hops"])
    np.testing.assert_allclose(one["small_world"], 8 * ten["small_world"])


@pytest.mark.parametrize(("wrong", "words"), [
    ({"nulls": ()}, "nulls must be some of"), ({"nulls": ("phase",)}, "nulls must be some of"),
    ({"n_surrogates": 5}, "n_surrogates must be"), ({"level": 1.5}, "level must be"),
    ({"max_length": 1}, "max_length must be"), ({"max_work": 0}, "max_work must be"),
])
def test_settings_that_do_not_fit_are_refused(wrong, words, rng):
    with pytest.raises(ValueError, match=words):
        graph_statistics(cells(Trajectories(rng.normal(size=(1, 20, 2))), n_cells=2), **wrong)


def test_other_things_than_cells_and_recordings_are_refused(rng):
    for wrong in (3, [], Trajectories(rng.normal(size=(1, 20, 2)))):
        with pytest.raises(TypeError, match="needs Cells"):
            graph_statistics(wrong)
    with pytest.raises(TypeError, match="needs Trajectories"):
        reasoning_graph(rng.normal(size=(1, 20, 2)))
    with pytest.raises(ValueError, match="finite states, 20"):
        reasoning_graph(Trajectories(rng.normal(size=(1, 20, 2))))
    with pytest.raises(ValueError, match="n_cells must be"):
        reasoning_graph(Trajectories(rng.normal(size=(1, 20, 2))), n_cells=1)


def orbit_fixed_point_wanderer(rng):
    turning = planted(6, 0.05, 16, 96, 1, rng)[0]
    settling = rng.normal(size=16) + 3 * rng.normal(size=16) * 0.85 ** np.arange(96)[:, None]
    return Trajectories(np.stack([turning, settling, walks(16, 96, 1, rng)[0]]))


def test_the_figure_tells_an_orbit_a_fixed_point_and_a_wanderer(rng):
    figure = state_graph(cells(orbit_fixed_point_wanderer(rng), together=False, n_cells=6))
    titles = [axes.get_title(loc="left") for axes in figure.axes[:3]]
    assert titles == ["cycle of 6 cells", "fixed point", "on its way"]
    assert "ending in a cycle of 6 cells" in alt_of(figure)
    assert "3 orbits of at most 96 steps" in caption_of(figure)
    orange = [sum(len(dots.get_offsets()) for dots in axes.collections
                  if len(dots.get_facecolor()) and np.allclose(dots.get_facecolor()[0, :3], to_rgb(COLOURS[1])))
              for axes in figure.axes[:3]]
    assert orange == [6, 1, 0]


def test_the_figure_of_nothing_and_of_too_much_is_refused_or_says_so(rng):
    x = rng.normal(size=(7, 20, 2))
    x[0] = np.nan
    found = cells(Trajectories(x), n_cells=2)
    with pytest.raises(ValueError, match="at most 6 orbits; got 7"):
        state_graph(found)
    with pytest.raises(ValueError, match="one for each of 2 orbits; got 1"):
        state_graph(found[:2], titles=["one"])
    assert "no finite state" in alt_of(state_graph(found[:2], titles=["one", "two"]))
