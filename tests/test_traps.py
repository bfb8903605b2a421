"""What fooled an earlier version of dynloop, or fools a plain reading: each case was seen, and stays seen."""

import copy
import pickle

import numpy as np
import pytest
import torch

import dynloop
from dynloop import Outcome, Trajectories, contraction_rate, distance_to_limit, estimate, measure, successive_distance
from dynloop.store import StoreError, StoreWriter

T = 128


def settling(rng, rates, *, dim=64, noise=0.0, n_steps=T, dtype="float32"):
    rates = np.asarray(rates)[:, None, None]
    end, away = rng.normal(size=(2, len(rates), 1, dim))
    states = end + away * rates ** np.arange(n_steps)[:, None]
    return (states + noise * rng.normal(size=states.shape)).astype(dtype)


def share_found(m):
    return m.found.mean()


def test_one_late_outlier_at_the_floor_does_not_prolong_the_regime(rng):
    clean = settling(rng, [0.3] * 20)
    spiked = clean.copy()
    spiked[:, 110] += 2e-5 * rng.normal(size=(20, 64)).astype("float32")
    a, b = contraction_rate(Trajectories(clean)), contraction_rate(Trajectories(spiked))
    np.testing.assert_allclose(b.values, a.values, rtol=1e-3)
    np.testing.assert_array_equal(b["regime_length"], a["regime_length"])


@pytest.mark.parametrize("rate", [0.86, 0.88, 0.89, 0.9])
def test_a_floor_that_is_met_in_the_last_quarter_is_a_floor(rng, rate):
    m = contraction_rate(Trajectories(settling(rng, [rate] * 60, noise=3e-7)))
    assert share_found(m) > 0.95
    assert np.nanmedian(m.values) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("rate", [0.97, 0.99])
def test_slow_convergence_without_a_floor_is_measured_over_the_whole_record(rng, rate):
    m = contraction_rate(Trajectories(settling(rng, [rate] * 20)))
    assert m.found.all()
    assert np.isnan(m["floor"]).all()
    np.testing.assert_allclose(m.values, rate, rtol=1e-3)


@pytest.mark.parametrize("name", ["noise", "walk", "logistic", "1/t", "1/t^2", "log drift", "slow drift"])
@pytest.mark.parametrize("dim", [1, 2, 64])
def test_what_does_not_contract_gets_no_rate(rng, name, dim):
    t = np.arange(1, T + 1)[:, None]
    direction = rng.normal(size=(300, 1, dim))
    made = {"noise": lambda: rng.normal(size=(300, T, dim)), "walk": lambda: rng.normal(size=(300, T, dim)).cumsum(1),
            "1/t": lambda: 5 + direction * np.log(t), "1/t^2": lambda: 5 + direction / t,
            "log drift": lambda: 100 + direction * np.log1p(t), "slow drift": lambda: direction * (1 - 0.999**t)}
    if name == "logistic":
        x, states = rng.random((300, dim)), []
        for _ in range(T):
            states.append(x)
            x = 4 * x * (1 - x)
        states = np.stack(states, 1)
    else:
        states = made[name]()
    assert share_found(contraction_rate(Trajectories(states))) <= 0.01


def test_a_settled_bfloat16_model_is_at_rest_and_a_slow_one_is_not(rng):
    h, w = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.from_numpy(
        rng.normal(size=(64, 64)) * 0.7 / 8).bfloat16()
    orbit = []
    for _ in range(T):
        h = torch.tanh(h @ w + 0.5)
        orbit.append(h)
    states = torch.stack(orbit, 1)
    m = distance_to_limit(Trajectories(states))
    assert m.found.all()
    assert m.settings["tolerance"] == 4 * 2.0**-7
    # stored wider, the resolution of the computation decides
    assert distance_to_limit(Trajectories(states.float(), resolution=2.0**-7)).found.all()
    slow = distance_to_limit(Trajectories(settling(rng, [0.999] * 5)))
    assert (slow["last_step"] < 1e-3).all()
    assert not slow.found.any()  # small steps, and a long way to go


def test_an_orbit_at_rest_in_zero_is_at_rest(rng):
    states = np.zeros((3, 40, 4))
    states[1:, :9] = rng.normal(size=(2, 1, 4)) * 0.1 ** np.arange(9)[:, None]
    assert distance_to_limit(Trajectories(states)).found.all()
    assert np.isfinite(contraction_rate(Trajectories(states))["relative_floor"]).all()


def test_a_zero_state_has_no_direction_and_the_outcome_says_so(rng):
    states = rng.normal(size=(2, 30, 4))
    states[0, 3] = 0
    m = successive_distance(Trajectories(states), metric="cosine")
    assert m.outcomes.tolist() == [Outcome.NOT_FOUND, Outcome.FOUND]
    assert dynloop.limit_regime_blayney(Trajectories(states)).outcomes.tolist() == [Outcome.NOT_FOUND, Outcome.FOUND]


@pytest.mark.parametrize("growth", [45.0, 1e4, 1e30])
def test_norms_that_are_small_beside_the_last_one_are_right(rng, growth):
    direction = rng.normal(size=(3, 1, 32))
    states = direction * growth ** (np.arange(64) / 63)[:, None] + 0.1 * rng.normal(size=(3, 64, 32))
    states = states.astype("float32")
    exact = states.astype(np.float64)
    norm = np.linalg.norm(exact, axis=-1)
    relative = np.linalg.norm(np.diff(exact, axis=1), axis=-1) / norm[:, 1:]
    np.testing.assert_allclose(successive_distance(Trajectories(states), metric="relative").values, relative, rtol=2e-3)
    cosine = 1 - (exact * exact[:, -1:]).sum(-1) / norm / norm[:, -1:]
    np.testing.assert_allclose(distance_to_limit(Trajectories(states), metric="cosine").values, cosine, atol=1e-4)


def test_a_training_scripts_matrix_precision_changes_no_distance(rng):
    orbits = settling(rng, [0.8] * 4)
    exact = successive_distance(Trajectories(orbits)).values
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        np.testing.assert_array_equal(successive_distance(Trajectories(orbits)).values, exact)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_given_lengths_survive_a_cast_and_a_store(rng, tmp_path):
    orbits = Trajectories(rng.normal(size=(3, 10, 4)), lengths=[5, 10, 10])
    assert orbits.replace(states=orbits.states.float()).lengths.tolist() == [5, 10, 10]
    store = dynloop.save(orbits, tmp_path / "store")  # without labels, too
    assert store.trajectories().lengths.tolist() == [5, 10, 10]
    assert not store.trajectories().diverged.any()


def test_chunks_bound_the_distances_of_low_dimensional_orbits():
    chunk = next(Trajectories(np.zeros((4000, 1000, 1), "float32")).chunks())
    assert 4 * chunk.n_orbits * chunk.n_steps**2 <= 2**24


def test_nouns_can_be_copied_and_pickled(decaying):
    m = contraction_rate(decaying)
    for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
        np.testing.assert_array_equal(twin.values, m.values)
        assert twin.counts() == m.counts()
    for twin in (copy.copy(decaying), copy.deepcopy(decaying), pickle.loads(pickle.dumps(decaying))):
        assert torch.equal(twin.states, decaying.states)
        assert twin.lengths.tolist() == decaying.lengths.tolist()


def test_labels_and_values_cannot_be_written_to(decaying):
    mine = np.arange(30)
    orbits = decaying.replace(labels={"prompt": mine})
    for array in (orbits.labels["prompt"], contraction_rate(decaying).values):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 7
    mine[0] = 99  # the caller's own stays the caller's
    assert orbits.labels["prompt"][0] == 0


def test_a_share_of_something_misspelt_is_refused_and_not_zero(decaying):
    regime, rate = measure(decaying, [dynloop.limit_regime_blayney, contraction_rate])
    with pytest.raises(ValueError, match="one of fixed point, orbit, slider, unknown; got of='fixd point'"):
        estimate(regime, statistic="share", of="fixd point", resample="token")
    with pytest.raises(ValueError, match="can never be one of them"):
        estimate(rate, statistic="share", of="orbit", resample="token")


def test_orbits_that_belong_to_no_unit_are_refused(decaying):
    labels = {"prompt": np.r_[np.nan, np.arange(29.0)], "orbit": np.arange(30)}
    m = contraction_rate(decaying.replace(labels=labels))
    with pytest.raises(ValueError, match="is NaN, infinite or missing for"):
        estimate(m, statistic="mean", resample="prompt")
    with pytest.raises(ValueError, match="there is a label of that name"):
        estimate(m, statistic="mean", resample="orbit")


def test_two_writers_cannot_double_a_store(tmp_path, decaying):
    with StoreWriter(tmp_path / "s", {}) as writer:
        writer.write_states("a", decaying.states, {})
        with pytest.raises(StoreError, match="another process is writing"):
            StoreWriter(tmp_path / "s", {})
        writer.finish()
    manifest = tmp_path / "s" / "manifest.jsonl"
    lines = manifest.read_bytes().splitlines(keepends=True)
    manifest.write_bytes(b"".join([*lines[:2], *lines[1:]]))
    with pytest.raises(StoreError, match=r"line 3 .* a second time"):
        dynloop.open_store(tmp_path / "s")


def test_a_report_that_was_stopped_halfway_can_be_written_again(tmp_path, decaying, small_panel):
    from dynloop.report import build_report

    (tmp_path / "r" / "figures").mkdir(parents=True)
    (tmp_path / "r" / "report.json.tmp").write_text("half")
    report = build_report([decaying.replace(labels={"prompt": decaying.labels["prompt"]})], n_resamples=100)
    assert report.save(tmp_path / "r").is_file()


def test_a_floor_that_was_not_reached_is_not_told(rng, small_panel):
    from dynloop.report import build_report

    states = settling(rng, [0.7] * 40, n_steps=40)
    finding, = build_report([Trajectories(states, labels={"prompt": range(40)})], n_resamples=100).findings
    assert "0.700" in finding
    assert "floor is met" not in finding


@pytest.mark.parametrize("prompt", [[1, 999], [True, False], [-1], [1.5]])
def test_tokens_that_do_not_exist_are_refused_before_a_folder_is_made(tmp_path, prompt):
    with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
        dynloop.capture("nano-settles", [prompt], out=tmp_path / "s", n_recurrences=2)
    assert not (tmp_path / "s").exists()


def test_a_foreign_manifest_is_left_alone(tmp_path):
    (tmp_path / "manifest.jsonl").write_text('{"image": "a.png"}')  # one line, without its end
    with pytest.raises(StoreError, match="was not written by dynloop"):
        StoreWriter(tmp_path, {})
    assert (tmp_path / "manifest.jsonl").read_text() == '{"image": "a.png"}'


def test_provenance_cannot_break_a_header(tmp_path, decaying):
    odd = {"version": "2.1", "format": "mine", "labels": {"prompt": 3}, "resolution": 0.5, "note": "kept"}
    store = dynloop.save(decaying, tmp_path / "s", provenance=odd)
    assert store.header["note"] == "kept"
    assert store.trajectories().resolution == decaying.resolution


def test_a_label_that_no_store_can_keep_is_refused_before_anything_is_written(tmp_path, decaying):
    when = np.full(30, np.datetime64("2026-01-01"))
    with pytest.raises(ValueError, match="label 'when' holds datetime64"):
        dynloop.save(decaying.replace(labels={"when": when}), tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("states", [np.full((4, 30, 3), np.nan), np.ones((4, 30, 3)), np.zeros((4, 30, 3)),
                                    np.ones((4, 1, 3)), np.ones((4, 2, 3))])
def test_a_recording_with_nothing_to_draw_still_gets_its_report(tmp_path, states, small_panel):
    from dynloop.report import build_report

    report = build_report([Trajectories(states, labels={"prompt": range(4)})], n_resamples=100)
    assert report.save(tmp_path / "r").is_file()
    settled = np.isfinite(states).all() and states.shape[1] > 1
    assert ("all 4 tokens" in report.findings[0]) == settled


def test_numpy_numbers_are_numbers(tmp_path):
    store = dynloop.capture("nano-settles", ["import os", "import re"], out=tmp_path / "s", n_recurrences=np.int64(3),
                            tokens=np.array([0, -1]), layers=np.array([2]), seed=np.int64(1))
    assert store.n_steps == 3
    with pytest.raises(ValueError, match="whole numbers"):
        dynloop.capture("nano-settles", ["import os"], out=tmp_path / "t", n_recurrences=2.5)


@pytest.mark.parametrize("name", ["cut.npz", "cut.pt", "cut.npy", "cut.safetensors", "empty.npy", "empty.pt"])
def test_a_file_that_is_not_whole_is_named(tmp_path, name):
    from safetensors.torch import save_file

    x, path = torch.randn(3, 8, 4), tmp_path / name
    {"npz": lambda: np.savez(path, x=x), "pt": lambda: torch.save(x, path), "npy": lambda: np.save(path, x),
     "safetensors": lambda: save_file({"x": x}, path)}[name.split(".")[1]]()
    raw = path.read_bytes()
    path.write_bytes(b"" if name.startswith("empty") else raw[:len(raw) * 2 // 3])
    with pytest.raises(ValueError, match=name):
        dynloop.load(path, axes="prompt,recurrence,feature")


@pytest.mark.parametrize("orbit_bytes", [64, 512, 2**16, 2**20, 2**27, 2**28 - 2**17])
def test_a_full_shard_is_no_larger_than_it_may_be(orbit_bytes):
    from dynloop.store.store import SHARD_BYTES, orbits_a_shard

    n = orbits_a_shard(orbit_bytes, SHARD_BYTES)
    assert n * (orbit_bytes + 9) + 1000 <= SHARD_BYTES == 256 * 2**20
    assert (n + 1) * orbit_bytes > 0.85 * SHARD_BYTES or n == 1
