"""The numbers behind `limit_regime`, fast against slow; the exact null of `minimal_period`; trees against sklearn."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch

from dynloop import Trajectories
from dynloop.kernels.regime import NAMES
from dynloop.kernels.returns import closest_return, shuffled_mean
from dynloop.kernels.trees import probabilities, tree_sums
from dynloop.regime_model import SHORTEST, orbit_numbers

EPS = 2.0**-52
ROUNDING = ("rest_dimension_2", "rest_memory_2", "rest_dimension_5", "rest_memory_5", "late_straightness")
KINDS = ("noise", "noise in 1 dimension", "walk", "circle", "cycle", "spiral", "drift", "logistic", "torus", "growth",
         "late fall")


def orbit(kind, n_steps, seed=0):
    """One orbit (n_steps, dim) of a kind, with noise far above rounding."""
    rng = np.random.default_rng([seed, n_steps, *kind.encode()])
    t = np.arange(n_steps)[:, None]
    noise = 0.03 * rng.normal(size=(n_steps, 5))
    if kind == "noise":
        return rng.normal(size=(n_steps, 5))
    if kind == "noise in 1 dimension":
        return rng.normal(size=(n_steps, 1))
    if kind == "walk":
        return rng.normal(size=(n_steps, 3)).cumsum(0)
    if kind == "circle":
        return np.hstack([np.cos(0.7 * t), np.sin(0.7 * t), 0 * t, 0 * t, 1 + 0 * t]) + noise
    if kind == "cycle":
        return rng.normal(size=(3, 5))[np.arange(n_steps) % 3] + noise
    if kind == "spiral":
        decay = 0.003 ** (t / n_steps)
        return np.hstack([decay * np.cos(t), decay * np.sin(t), decay, 0 * t, 1 + 0 * t]) + 0.03 * noise
    if kind == "drift":
        return 0.1 * t * rng.normal(size=5) + noise
    if kind == "torus":
        return np.hstack([np.cos(0.7 * t), np.sin(0.7 * t), np.cos(2.3 * t), np.sin(2.3 * t), t / n_steps]) + noise
    if kind == "growth":
        return 100 ** (t / n_steps) * rng.normal(size=5) + noise
    if kind == "late fall":
        return np.where(t < n_steps / 3, 3.0, 0.0) * rng.normal(size=(n_steps, 5)) + noise
    x = [0.3]
    for _ in range(n_steps - 1):
        x.append(4 * x[-1] * (1 - x[-1]))
    return np.array(x)[:, None]


def numbers(states, **settings):
    """The numbers of one orbit, by name."""
    return dict(zip(NAMES, orbit_numbers(Trajectories(np.asarray(states)[None], **settings))[0], strict=True))


def agree(got, wanted, atol=1e-6):
    assert set(got) == set(wanted)
    for name in got:
        assert got[name] == pytest.approx(wanted[name], rel=1e-6, abs=atol), name


@pytest.mark.parametrize("n_steps", [16, 17, 19, 33, 64, 101, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_what_the_states_say(kind, n_steps):
    states = orbit(kind, n_steps)
    agree(numbers(states), oracles.regime_numbers(states, EPS))


@pytest.mark.parametrize("kind", ["noise", "circle", "walk"])
def test_of_a_long_record_the_last_256_steps_are_looked_at(kind):
    states = orbit(kind, 300)
    agree(numbers(states), oracles.regime_numbers(states[-256:], EPS))


@pytest.mark.parametrize("kind", ["noise", "circle", "walk"])
def test_and_all_steps_for_returns_when_a_longest_period_is_asked_for(kind):
    states = orbit(kind, 300)
    found = orbit_numbers(Trajectories(states[None]), longest_period=100)[0]
    agree(dict(zip(NAMES, found, strict=True)), oracles.regime_numbers(states, EPS, 100))


@pytest.mark.parametrize("longest", [1, 2, 7, 30, 1000])
def test_the_longest_period_limits_the_profile_of_returns(longest):
    states = orbit("noise", 60)
    found = orbit_numbers(Trajectories(states[None]), longest_period=longest)[0]
    agree(dict(zip(NAMES, found, strict=True)), oracles.regime_numbers(states, EPS, longest))
    assert found[NAMES.index("period")] <= min(longest, 20)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
@pytest.mark.parametrize("kind", ["circle", "noise", "walk"])
def test_the_scale_of_the_states_does_not_matter(kind, scale):
    agree(numbers(scale * orbit(kind, 64)), numbers(orbit(kind, 64)))


@pytest.mark.parametrize("scale", [1e-150, 1e-100, 1e100, 1e150])
def test_nor_does_a_scale_whose_fourth_powers_leave_float64(scale):
    agree(numbers(scale * orbit("circle", 64)), numbers(orbit("circle", 64)))


@pytest.mark.parametrize("kind", KINDS)
def test_neither_a_rotation_nor_a_shift_matters(kind, rng):
    states = orbit(kind, 64)
    wide = np.hstack([states, np.zeros((64, 4))])
    moved = wide @ np.linalg.qr(rng.normal(size=(wide.shape[1],) * 2))[0] + rng.normal(size=wide.shape[1])
    found, wanted = numbers(moved), numbers(states)
    del found["late_over_spacing"], wanted["late_over_spacing"]  # rounding depends on the norm
    agree(found, wanted)


def test_the_spacing_is_the_computations(rng):
    states = orbit("circle", 64).astype("float32")
    fine, coarse = numbers(states), numbers(states, resolution=2.0**-7)
    assert fine["late_over_spacing"] - coarse["late_over_spacing"] == pytest.approx(16 * np.log10(2), abs=1e-9)
    agree({**fine, "late_over_spacing": 0}, {**coarse, "late_over_spacing": 0})


def awkward():
    """Records on which a division or a logarithm may fail."""
    rng = np.random.default_rng(0)
    t = np.arange(64)
    yield "zeros", np.zeros((64, 3))
    yield "constant", np.ones((64, 3)) * [1, -2, 1e-3]
    yield "at rest after one step", np.vstack([np.ones((1, 3)), np.zeros((63, 3))])
    yield "moves in the last step alone", np.vstack([np.zeros((63, 3)), np.ones((1, 3))])
    yield "moves in the first half alone", np.vstack([rng.normal(size=(32, 3)), np.zeros((32, 3))])
    yield "moves in the second half alone", np.vstack([np.zeros((32, 3)), rng.normal(size=(32, 3))])
    for p in (2, 3, 4, 16, 21):
        yield f"exact cycle of {p}", rng.normal(size=(p, 3))[t % p]
    yield "exact line", t[:, None] * [1.0, 2.0, 0]
    yield "alternating signs", (-1.0) ** t[:, None]
    yield "huge", 1e150 * rng.normal(size=(64, 3))
    yield "tiny", 1e-150 * rng.normal(size=(64, 3))
    yield "subnormal", 1e-310 * rng.normal(size=(64, 3))


@pytest.mark.parametrize(("name", "states"), list(awkward()))
@pytest.mark.parametrize("n_steps", [16, 17, 64])
def test_no_number_is_a_zero_over_a_zero(name, states, n_steps, monkeypatch):
    seen = []
    real = np.nan_to_num
    monkeypatch.setattr(np, "nan_to_num", lambda x, **k: (seen.append(np.array(x)), real(x, **k))[1])
    found = orbit_numbers(Trajectories(states[None, 64 - n_steps:]))
    assert np.isfinite(found).all()
    table, = (x for x in seen if x.shape == found.shape)
    assert not [n for n, v in zip(NAMES, table[0], strict=True) if np.isnan(v)]


@pytest.mark.parametrize("states", [np.zeros((64, 3)), np.full((64, 3), 2.5)])
def test_a_constant_record_lies_below_the_spacing(states):
    assert numbers(states)["late_over_spacing"] < 0


@pytest.mark.parametrize("p", [1, 2, 3, 4, 7, 16, 21])
@pytest.mark.parametrize("turned", [False, True])
def test_ties_of_an_exact_cycle_do_not_decide_anything(p, turned, rng):
    """Distances that should be equal differ by rounding after a rotation.

    Left out is the shape of what the lines leave behind, where that is rounding alone.
    """
    states = np.hstack([rng.normal(size=(p, 4))[np.arange(64) % p], np.ones((64, 1))])
    other = states @ np.linalg.qr(rng.normal(size=(5, 5)))[0] if turned else 3 * states
    found, wanted = numbers(other), numbers(states)
    assert found["period"] == p
    for name in ROUNDING if p > 1 else NAMES:
        del found[name], wanted[name]
    agree(found, wanted)


def test_ragged_records_are_as_each_alone(rng):
    states = rng.normal(size=(6, 70, 4))
    lengths = np.array([70, 15, 16, 40, 70, 55])
    states[3, 40:] = np.nan
    found = orbit_numbers(Trajectories(states, lengths=lengths))
    assert (found[1] == 0).all()
    for o in (0, 2, 3, 4, 5):
        alone = orbit_numbers(Trajectories(states[o:o + 1, :lengths[o]]))[0]
        np.testing.assert_allclose(found[o], alone, rtol=1e-9, atol=1e-9)
    assert SHORTEST == 16


def test_they_are_computed_once():
    orbits = Trajectories(orbit("noise", 32)[None])
    assert orbit_numbers(orbits) is orbit_numbers(orbits)
    assert orbit_numbers(orbits, longest_period=3) is not orbit_numbers(orbits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_narrow_formats_the_numbers_are_those_of_the_rounded_states(dtype):
    states = torch.from_numpy(orbit("circle", 64)).to(getattr(torch, dtype))
    found = dict(zip(NAMES, orbit_numbers(Trajectories(states[None]))[0], strict=True))
    agree(found, oracles.regime_numbers(states.double().numpy(), torch.finfo(states.dtype).eps), atol=2e-3)


@pytest.mark.parametrize("n_steps", [12, 13, 40, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_the_closest_return_is_what_the_states_say(kind, n_steps):
    states, out = orbit(kind, n_steps), np.empty(8)
    for longest in (1, 2, n_steps // 3):
        closest_return(oracles.squares(states), longest, out)
        assert out == pytest.approx(oracles.closest_return(states, longest), rel=1e-9, abs=1e-9)


PAIRS = {"lag 1": [(i, i + 1) for i in range(5)], "lag 2": [(i, i + 2) for i in range(4)],
         "one pair": [(0, 3)], "all": list(itertools.combinations(range(6), 2)),
         "a late half": [(3, 4), (3, 5), (4, 5)]}


@pytest.mark.parametrize("pairs", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("dim", [1, 3])
def test_the_null_over_all_orders_of_six_states_is_exact(pairs, dim, rng):
    states = rng.normal(size=(6, dim))
    degrees = np.bincount(np.array(pairs).ravel(), minlength=6).astype(float)
    means = oracles.shuffled_means(states, pairs)
    expected, spread = shuffled_mean(oracles.squares(states), float(len(pairs)), degrees)
    assert expected == pytest.approx(means.mean(), rel=1e-12)
    assert spread == pytest.approx(means.std(), rel=1e-6, abs=1e-7)


def test_the_null_of_five_states_is_exact_too(rng):
    states, pairs = rng.normal(size=(5, 2)), PAIRS["lag 2"][:3]
    degrees = np.bincount(np.array(pairs).ravel(), minlength=5).astype(float)
    means = oracles.shuffled_means(states, pairs)
    assert shuffled_mean(oracles.squares(states), 3.0, degrees) == pytest.approx((means.mean(), means.std()), rel=1e-9)


@pytest.mark.parametrize("kind", ["noise", "circle", "logistic"])
def test_the_null_of_many_states_is_that_of_drawn_orders(kind, rng):
    d, lag = oracles.squares(orbit(kind, 60)), 7
    t = np.arange(60)
    drawn = []
    for _ in range(4000):
        order = rng.permutation(60)
        drawn.append(d[order[:-lag], order[lag:]].mean())
    expected, spread = shuffled_mean(d, 53.0, 1.0 * (t >= lag) + (t < 60 - lag))
    assert np.mean(drawn) == pytest.approx(expected, abs=5 * spread / np.sqrt(4000))
    assert np.std(drawn) == pytest.approx(spread, rel=0.06)


def random_tree(rng, depth, n_features):
    if depth == 0 or rng.random() < 0.2:
        return (rng.normal(),)
    return (int(rng.integers(n_features)), rng.normal(), random_tree(rng, depth - 1, n_features),
            random_tree(rng, depth - 1, n_features))


def flat(trees):
    """Trees as arrays, each node before its children."""
    nodes = []

    def add(node):
        at = len(nodes)
        nodes.append([-1, 0.0, 0, 0, node[0]] if len(node) == 1 else [node[0], node[1], 0, 0, 0.0])
        if len(node) > 1:
            nodes[at][2:4] = add(node[2]), add(node[3])
        return at
    roots = [add(tree) for tree in trees]
    feature, threshold, left, right, value = (np.array(column) for column in zip(*nodes, strict=True))
    return feature, threshold, left, right, value, np.array(roots)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_trees_sum_the_leaves_of_a_recursive_walk(n_classes, rng):
    trees = [random_tree(rng, 5, 4) for _ in range(6 * n_classes)]
    rows, columns = rng.normal(size=(50, 9)), np.array([7, 2, 0, 4])
    rows[:10, 7] = next(t[1] for t in trees if len(t) > 1)  # on a threshold: left
    sums = np.full((50, n_classes), 0.5)
    tree_sums(rows, columns, *flat(trees), n_classes, sums)
    wanted = [[0.5 + sum(oracles.tree_sum(row[columns], tree) for tree in trees[k::n_classes])
               for k in range(n_classes)] for row in rows]
    np.testing.assert_allclose(sums, wanted, rtol=1e-12)


def test_probabilities_neither_overflow_nor_miss_a_class():
    p = probabilities(np.array([[1000.0, 0.0, -1000.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_allclose(p, [[1, 0, 0], [1 / 3] * 3], atol=1e-15)
    np.testing.assert_allclose(probabilities(np.array([[0.0], [np.log(3)], [-800.0]])),
                               [[0.5, 0.5], [0.25, 0.75], [1, 0]], atol=1e-15)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_exported_trees_give_the_probabilities_of_sklearn(n_classes, rng):
    pytest.importorskip("sklearn")
    at = Path(__file__).parents[1] / "benchmarks" / "calibrate_limit_regime.py"
    spec = importlib.util.spec_from_file_location("calibrate_limit_regime", at)
    calibrate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(calibrate)
    x = rng.normal(size=(600, 8)).astype(np.float32).astype(np.float64)
    columns = [5, 0, 3, 6]
    y = np.clip(np.floor(x[:, 5] + x[:, 3] * x[:, 0]) + 1, 0, n_classes - 1).astype(int)
    model = calibrate.fit(x, y, columns, 15)
    part = calibrate.arrays("stage", model, columns)
    base = part["stage_base"]
    sums = np.repeat(base[None], len(x), axis=0)
    tree_sums(x, *(part[f"stage_{w}"] for w in ("columns", "feature", "threshold", "left", "right", "value", "roots")),
              len(base), sums)
    np.testing.assert_allclose(probabilities(sums), model.predict_proba(x[:, columns]), atol=1e-5)
