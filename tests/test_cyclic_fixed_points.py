"""Fixed points of the layers of one loop: Proposition 4.1 on affine contractions, and what must not pass for it."""

import itertools

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome, Trajectories, contraction_rate, cyclic_fixed_points, measure, save
from dynloop.kernels.rate_errors import rate_errors
from synthetic.blocks import affine_block, drifting_block, record_layers, turning_block

GROUP = ("verdict", "n_layers", "separation", "log_rate_spread", "rates_agree")  # of the loop, not of the layer


def contractions(rng, n_layers, rate, dim=8):
    """Affine maps f_1 ... f_k whose product has spectral radius `rate`, and the fixed point of each rotation."""
    matrices = [rng.normal(size=(dim, dim)) for _ in range(n_layers)]
    product = np.linalg.multi_dot([*matrices[::-1], np.eye(dim)])
    scale = (rate / np.abs(np.linalg.eigvals(product)).max()) ** (1 / n_layers)
    maps = [(scale * a, rng.normal(size=dim)) for a in matrices]
    points = []
    for layer in range(n_layers):
        whole, constant = np.eye(dim), np.zeros(dim)
        for a, b in maps[layer + 1:] + maps[:layer + 1]:
            whole, constant = a @ whole, a @ constant + b
        points.append(np.linalg.solve(np.eye(dim) - whole, constant))
    return maps, np.array(points)


def run(maps, start, n_steps=128):
    """States after every layer: (layers, n_steps, dim)."""
    x, states = start, []
    for _ in range(n_steps):
        states.append([])
        for a, b in maps:
            x = a @ x + b
            states[-1].append(x)
    return np.swapaxes(states, 0, 1)


def recording(loops, resolution=None):
    """Loops, each (layers, n_steps, dim), as one recording with labels prompt and layer."""
    return Trajectories(np.concatenate(loops), resolution=resolution, labels={
        "prompt": np.repeat(np.arange(len(loops)), [len(loop) for loop in loops]),
        "layer": np.concatenate([np.arange(1, len(loop) + 1) for loop in loops])})


@pytest.fixture
def loops(rng):
    """Six loops of four affine layers at rates .5 to .85, and their exact fixed points."""
    made = [contractions(rng, 4, rate) for rate in np.linspace(0.5, 0.85, 6)]
    return recording([run(maps, 5 * rng.normal(size=8)) for maps, _ in made]), np.stack([points for _, points in made])


def all_are(m, verdict):
    assert m.values.tolist() == [verdict] * m.n_orbits
    assert m.found.all()


def test_the_fixed_points_of_the_rotations_are_images_of_one_another(loops, rng):
    """The exact answers that the next tests rest on."""
    maps, points = contractions(rng, 5, 0.7)
    for layer, (a, b) in enumerate(maps):
        np.testing.assert_allclose(points[layer], a @ points[layer - 1] + b, rtol=1e-9)


def test_a_loop_of_contractions_has_one_fixed_point_a_layer(loops):
    orbits, points = loops
    m = cyclic_fixed_points(orbits)
    all_are(m, "cyclic")
    assert (m["n_layers"] == 4).all()
    norms = np.linalg.norm(points, axis=2)
    update = np.linalg.norm(np.roll(points, -1, axis=1) - points, axis=2) / norms
    np.testing.assert_allclose(m["layer_update"], update.ravel(), rtol=1e-5)
    apart = [max(np.linalg.norm(a - b) / max(np.linalg.norm(a), np.linalg.norm(b))
                 for a, b in itertools.combinations(p, 2)) for p in points]
    np.testing.assert_allclose(m["separation"], np.repeat(apart, 4), rtol=1e-5)
    unit = points / norms[:, :, None]
    np.testing.assert_allclose(m["lowest_cosine"][:, -1], (unit @ unit.swapaxes(1, 2)).min(2).ravel(), atol=1e-5)
    np.testing.assert_allclose(m["own_cosine"][:, -1], 1, atol=1e-12)
    assert (np.abs(m["norm_growth"]) < 1e-3).all()
    assert (m["late_distance"] < 1e-3).all()


def test_all_layers_share_their_rate_and_it_is_nearly_that_of_contraction_rate(loops):
    orbits, _ = loops
    m, rates = cyclic_fixed_points(orbits), contraction_rate(orbits)
    np.testing.assert_allclose(m["rate"], rates.values, rtol=0.02)
    np.testing.assert_allclose(m["rate"], np.repeat(np.linspace(0.5, 0.85, 6), 4), rtol=0.03)
    assert (m["rates_agree"] == "yes").all()
    spread = np.ptp(np.log(m["rate"]).reshape(6, 4), axis=1)
    np.testing.assert_allclose(m["log_rate_spread"], np.repeat(spread, 4), rtol=1e-9)
    assert (m["log_rate_spread"] < 0.03).all()


@pytest.mark.parametrize("n_layers", [2, 5])
def test_a_block_that_does_nothing_at_its_fixed_point_is_degenerate(n_layers, rng):
    maps, _ = contractions(rng, n_layers, 0.7)
    point = rng.normal(size=8)
    m = cyclic_fixed_points(recording([run([(a, point - a @ point) for a, _ in maps], rng.normal(size=8))]))
    all_are(m, "degenerate")
    assert (m["separation"] < 1e-9).all()
    assert (m["layer_update"] < 1e-9).all()
    np.testing.assert_allclose(m["lowest_cosine"][:, -1], 1, atol=1e-12)
    assert (m["rates_agree"] == "yes").all()


def test_a_layer_that_does_nothing_does_not_make_the_others_degenerate(rng):
    maps, _ = contractions(rng, 3, 0.7)
    maps.insert(1, (np.eye(8), np.zeros(8)))
    m = cyclic_fixed_points(recording([run(maps, rng.normal(size=8))]))
    all_are(m, "cyclic")
    assert m["layer_update"][0] == 0
    assert (m["layer_update"][1:] > 0.1).all()


@pytest.mark.parametrize("gap", [5e-4, 1.5e-3, 3e-3])
def test_points_are_distinct_when_they_lie_farther_apart_than_both_radii(gap, rng):
    point, way = rng.normal(size=(2, 8))
    point, way = point / np.linalg.norm(point), way / np.linalg.norm(way)
    ends = point, point + gap * way
    loop = np.stack([end + 0.5 ** np.arange(64)[:, None] * rng.normal(size=8) for end in ends])
    m = cyclic_fixed_points(recording([loop]))
    all_are(m, "cyclic" if gap > 2e-3 else "degenerate")
    np.testing.assert_allclose(m["separation"], gap, rtol=1e-2)
    all_are(cyclic_fixed_points(recording([loop]), tolerance=1e-4), "cyclic")
    all_are(cyclic_fixed_points(recording([loop], resolution=2.0**-7)), "degenerate")  # bfloat16 cannot tell


@pytest.mark.parametrize("block", [affine_block(), turning_block(norm="residual"), turning_block(norm="pre"),
                                   turning_block(norm="sandwich")], ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_toy_blocks_with_injection_are_cyclic(block, dtype):
    m = cyclic_fixed_points(record_layers(block, 6, 128, dtype=dtype))
    all_are(m, "cyclic")
    points = block.limits(block.embed(np.arange(6)))[:, 0].numpy()
    update = np.linalg.norm(np.roll(points, -1, axis=1) - points, axis=2) / np.linalg.norm(points, axis=2)
    np.testing.assert_allclose(m["layer_update"], update.ravel(), rtol=1e-4)
    assert (m["rates_agree"] == "yes").all()
    np.testing.assert_allclose(np.exp(np.log(m["rate"]).mean()), block.exact["rate"], rtol=0.03)


@pytest.mark.parametrize("norm", ["residual", "pre", "sandwich"])
def test_toy_blocks_in_bfloat16_are_nearly_always_cyclic(norm):
    block = turning_block(norm=norm)
    m = cyclic_fixed_points(record_layers(block, 40, 128, dtype="bfloat16"))
    assert (m.values == "cyclic").mean() >= 0.95
    assert (m["rates_agree"] == "no").mean() <= 0.03
    points = block.limits(block.embed(np.arange(40)))[:, 0].numpy()
    update = np.linalg.norm(np.roll(points, -1, axis=1) - points, axis=2) / np.linalg.norm(points, axis=2)
    np.testing.assert_allclose(m["layer_update"], update.ravel(), rtol=0.1)


@pytest.mark.parametrize("block", [affine_block(degenerate=True), turning_block(spread=0.0)], ids=lambda b: b.name)
def test_toy_blocks_whose_layers_share_a_point_are_degenerate(block):
    all_are(cyclic_fixed_points(record_layers(block, 6, 128)), "degenerate")


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
def test_a_norm_that_grows_for_ever_is_no_fixed_point_however_close_to_1_the_cosines_are(norm):
    m = cyclic_fixed_points(record_layers(drifting_block(norm=norm), 6, 400))
    all_are(m, "no fixed point")
    assert (m["norm_growth"] > 0.2).all()
    assert (m["own_cosine"][:, 300:] > 0.999).all()
    assert (m["lowest_cosine"][:, 300:] > 0.999).all()


@pytest.mark.parametrize("block", [turning_block(period=2, orbit=0.3), turning_block(period=7, orbit=0.3),
                                   turning_block(angle=2.4, orbit=0.3)], ids=lambda b: b.name)
def test_a_loop_that_cycles_has_no_fixed_point(block):
    all_are(cyclic_fixed_points(record_layers(block, 6, 128)), "no fixed point")


def test_one_layer_that_moves_leaves_the_loop_without_a_fixed_point(loops, rng):
    orbits, _ = loops
    states = orbits.states.numpy().copy()
    states[2] += 0.1 * rng.normal(size=states[2].shape)
    m = cyclic_fixed_points(orbits.replace(states=states))
    assert m.values.tolist() == ["no fixed point"] * 4 + ["cyclic"] * 20


def test_a_loop_recorded_at_one_layer_has_a_fixed_point_or_none(loops, rng):
    orbits, _ = loops
    moving = rng.normal(size=(2, 128, 8)).cumsum(1)
    states = np.concatenate([orbits.states.numpy()[::4], moving])
    for labels in ({"prompt": range(8), "layer": 4}, {"prompt": range(8)}, {}):
        m = cyclic_fixed_points(Trajectories(states, labels=labels))
        assert m.values.tolist() == ["fixed point"] * 6 + ["no fixed point"] * 2
        assert (m["n_layers"] == 1).all()
        assert (m["rates_agree"] == "unknown").all()
        for name in ("separation", "layer_update", "log_rate_spread"):
            assert np.isnan(m[name]).all()
        np.testing.assert_array_equal(m["lowest_cosine"], m["own_cosine"])


def test_layers_of_loops_that_contract_at_different_rates_disagree(rng):
    t = np.arange(128)[:, None]
    ends, ways = rng.normal(size=(2, 40, 4, 1, 32))
    noise = 1e-6 * rng.normal(size=(40, 4, 128, 32))
    for rates, answer in (([0.8, 0.8, 0.8, 0.8], "yes"), ([0.8, 0.8, 0.77, 0.8], "no")):
        own = np.array(rates)[:, None, None]
        m = cyclic_fixed_points(recording(list(ends + ways * own**t + noise)))
        assert (m["rates_agree"] == answer).mean() > 0.95
        if answer == "no":
            np.testing.assert_allclose(m["log_rate_spread"], np.log(0.8 / 0.77), atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.6, 0.83, 0.93])
def test_layers_of_one_loop_hardly_ever_disagree(dtype, rate, rng):
    """Their multipliers are shared; 60 random loops of four non-normal layers, complex pairs included."""
    loops = [contractions(rng, 4, rate, dim=16)[0] for _ in range(60)]
    maps = [[torch.tensor(np.stack(part)).to(dtype) for part in zip(*layer, strict=True)]
            for layer in zip(*loops, strict=True)]
    x, states = torch.tensor(5 * rng.normal(size=(60, 16))).to(dtype), []
    for _ in range(128):
        states += [x := torch.einsum("nij,nj->ni", a, x) + b for a, b in maps]
    states = torch.stack(states, dim=1).unflatten(1, (128, 4)).transpose(1, 2).flatten(0, 1)
    own = Trajectories(states, labels={"prompt": np.repeat(range(60), 4), "layer": np.tile(range(4), 60)})
    agree = cyclic_fixed_points(own)["rates_agree"]
    assert (agree == "no").sum() <= 4
    if dtype == torch.float32:
        assert (agree == "yes").mean() > 0.95


def test_neither_the_order_of_orbits_nor_chunks_nor_shards_matter(loops, tmp_path):
    orbits, _ = loops
    whole = cyclic_fixed_points(orbits)
    order = np.random.default_rng(0).permutation(24)
    mixed = cyclic_fixed_points(orbits[order])
    stored, = measure(save(orbits[order], tmp_path / "s"), [cyclic_fixed_points])
    for name in whole.variables:
        for m in (mixed, stored):
            if whole[name].dtype.kind == "f":
                np.testing.assert_allclose(m[name], whole[name][order], rtol=1e-9, err_msg=name)
            else:
                assert m[name].tolist() == whole[name][order].tolist()


def test_layers_are_ordered_by_their_label(loops):
    orbits, _ = loops
    m = cyclic_fixed_points(orbits)
    for other in (10 * orbits.labels["layer"] - 7, np.array(list("abcd"))[orbits.labels["layer"] - 1]):
        again = cyclic_fixed_points(orbits.replace(labels={"prompt": orbits.labels["prompt"], "layer": other}))
        np.testing.assert_array_equal(again["layer_update"], m["layer_update"])
    back = cyclic_fixed_points(orbits.replace(labels={"prompt": orbits.labels["prompt"],
                                                      "layer": -orbits.labels["layer"]}))
    assert not np.allclose(back["layer_update"], m["layer_update"], rtol=1e-2)
    np.testing.assert_allclose(back["separation"], m["separation"])


@pytest.mark.parametrize(("what", "outcome"), [("nan", Outcome.NOT_FINITE), ("short", Outcome.TOO_SHORT)])
def test_a_loop_shares_the_outcome_of_its_worst_layer(what, outcome, loops):
    orbits, _ = loops
    states, lengths = orbits.states.clone(), np.full(24, 128)
    if what == "nan":
        states[6, 100] = torch.nan
    else:
        lengths[6] = 7
    m, whole = cyclic_fixed_points(orbits.replace(states=states, lengths=lengths)), cyclic_fixed_points(orbits)
    assert m.outcomes.tolist() == [Outcome.FOUND] * 4 + [outcome] * 4 + [Outcome.FOUND] * 16
    for name in m.variables:
        if m[name].dtype.kind == "f":
            assert np.isnan(m[name][4:8]).all(), name
        else:
            assert (m[name][4:8] == "").all()
        np.testing.assert_array_equal(m[name][8:], whole[name][8:])
    seven = cyclic_fixed_points(Trajectories(orbits.states[:, :7], labels=orbits.labels))
    assert set(seven.outcomes) == {Outcome.TOO_SHORT}


def test_a_layer_that_rests_in_0_has_no_direction_and_the_loop_a_verdict(rng):
    decay = np.where(np.arange(64) < 20, 0.1 ** np.arange(64), 0)[:, None]
    m = cyclic_fixed_points(recording([np.stack([decay * rng.normal(size=4), 1 + decay * rng.normal(size=4)]),
                                       np.zeros((2, 64, 4))]))
    assert m.values.tolist() == ["cyclic"] * 2 + ["degenerate"] * 2
    assert m["separation"].tolist() == [1, 1, 0, 0]


def test_two_orbits_of_one_layer_are_refused(loops):
    orbits, _ = loops
    with pytest.raises(ValueError, match=r"'layer' must tell orbits apart .* got 1 twice\. Add a label"):
        cyclic_fixed_points(orbits.replace(labels={"layer": orbits.labels["layer"]}))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(seed=st.integers(0, 2**32 - 1), n_layers=st.integers(1, 4), n_steps=st.integers(8, 90))
@settings(max_examples=25, deadline=None)
def test_every_loop_equals_the_oracle(dtype, seed, n_layers, n_steps):
    rng = np.random.default_rng(seed)
    maps, _ = contractions(rng, n_layers, rng.uniform(0.2, 1.02), dim=6)
    loop = run(maps, rng.normal(size=6), n_steps)
    loop += 10.0 ** rng.uniform(-8, -1) * rng.normal(size=loop.shape)
    orbits = recording([loop.astype(dtype)])
    tolerance = 10.0 ** rng.uniform(-3, -0.3)
    m = cyclic_fixed_points(orbits, tolerance=tolerance)
    exact = orbits.states.double().numpy()
    verdict, separation, updates, lowest = oracles.cyclic_fixed_points(exact, orbits.resolution, tolerance)
    assert m.values.tolist() == [verdict] * n_layers
    assert m["separation"][0] == pytest.approx(separation, rel=1e-6, nan_ok=True)
    if n_layers > 1:
        np.testing.assert_allclose(m["layer_update"], updates, rtol=1e-6)
    np.testing.assert_allclose(m["lowest_cosine"], lowest, atol=1e-9 if dtype == "float64" else 1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_the_errors_of_rates_equal_the_oracle(seed, n_steps):
    rng = np.random.default_rng(seed)
    steps = np.exp(-rng.uniform(0, 1) * np.arange(n_steps) + rng.choice([0.01, 1]) * rng.normal(size=(3, n_steps))
                   + 0.1 * np.sin(np.arange(n_steps) / 5))
    steps[rng.random((3, n_steps)) < 0.1] = 0
    regime = rng.integers(0, n_steps + 1, size=3)
    for error, own, m in zip(rate_errors(steps, regime), steps, regime, strict=True):
        assert error == pytest.approx(oracles.rate_error(own[:m]), rel=1e-6, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("tolerance", [0, -1, True, "1e-3", None, np.nan])
def test_a_tolerance_that_is_no_positive_number_is_refused(tolerance, loops):
    with pytest.raises(ValueError, match="tolerance must be a positive number"):
        cyclic_fixed_points(loops[0], tolerance=tolerance)


def test_what_belongs_to_the_loop_is_the_same_in_all_its_rows(loops):
    m = cyclic_fixed_points(loops[0])
    for name in GROUP:
        for own in m[name].reshape(6, 4).tolist():
            assert own == [own[0]] * 4
    assert set(m.categories) == {"verdict", "rates_agree"}
    assert m.units["rate"] == "per recurrence"
