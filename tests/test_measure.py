"""One pass over a recording: the same answers as one by one, every state read once, one chunk in memory."""

import functools
import json

import numpy as np
import pytest
import torch

import dynloop.distances
from dynloop import (
    Measurement,
    Outcome,
    Store,
    Trajectories,
    analyzer,
    contraction_rate,
    distance_to_limit,
    limit_regime_blayney,
    measure,
    open_store,
    save,
    successive_distance,
)

ALL = [successive_distance, distance_to_limit, contraction_rate, limit_regime_blayney]


def same(got, wanted, rtol=1e-9):
    """Equal measurements: values to rounding, all else exactly."""
    assert (got.name, dict(got.settings), dict(got.units)) == (wanted.name, dict(wanted.settings), dict(wanted.units))
    assert got.outcomes.tolist() == wanted.outcomes.tolist()
    assert {n: v.tolist() for n, v in got.labels.items()} == {n: v.tolist() for n, v in wanted.labels.items()}
    assert list(got.variables) == list(wanted.variables)
    for name, values in got.variables.items():
        if values.dtype.kind == "U":
            assert values.tolist() == wanted[name].tolist()
        else:
            np.testing.assert_allclose(values, wanted[name], rtol=rtol, atol=1e-14, err_msg=name)


@pytest.fixture
def in_fours(monkeypatch, decaying):
    """Recordings are read and analysed four orbits at a time; the third orbit leaves the finite numbers."""
    states = decaying.states.clone()
    states[2, 50] = np.inf
    orbits = decaying.replace(states=states)
    four = 4 * orbits.n_steps * max(orbits.n_steps, orbits.dim) * 4
    pieces = 4 * orbits.n_steps * orbits.dim * 4
    monkeypatch.setattr(Trajectories, "chunks", functools.partialmethod(Trajectories.chunks, max_bytes=four))
    monkeypatch.setattr(Store, "stream", functools.partialmethod(Store.stream, piece_bytes=pieces))
    return orbits


@pytest.fixture
def passes(monkeypatch):
    """Orbits of each heavy pass over the states, in order."""
    counted, heavy = [], dynloop.distances.Distances

    def counting(states, lengths):
        counted.append(len(states))
        return heavy(states, lengths)

    monkeypatch.setattr(dynloop.distances, "Distances", counting)
    return counted


def test_a_pass_over_trajectories_is_each_analyzer_by_itself(in_fours):
    for got, one in zip(measure(in_fours, ALL), ALL, strict=True):
        same(got, one(in_fours))


def test_a_pass_over_a_store_is_each_analyzer_by_itself(in_fours, tmp_path):
    store = save(in_fours, tmp_path / "store")
    for got, one in zip(measure(store, ALL), ALL, strict=True):
        same(got, one(in_fours))
    assert measure(store, [contraction_rate])[0].outcomes[2] is Outcome.NOT_FINITE


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_store_remembers_the_dtype_the_model_computed_in(dtype, decaying, tmp_path):
    orbits = decaying.replace(states=decaying.states.to(dtype), resolution=2**-7)
    got, = measure(save(orbits, tmp_path / "store"), [contraction_rate])
    same(got, contraction_rate(orbits))
    assert contraction_rate(orbits.replace(resolution=2**-23)).values[20] != got.values[20]  # it matters


def test_orbits_keep_the_order_of_the_source(in_fours, tmp_path):
    order = np.random.default_rng(3).permutation(30)
    shuffled = in_fours[order]
    for source in (shuffled, save(shuffled, tmp_path / "store")):
        got, = measure(source, [contraction_rate])
        assert got.labels["true"].tolist() == np.linspace(0.4, 0.9, 30)[order].tolist()
        right = got.found & (np.abs(got.values - got.labels["true"]) < 0.01)
        assert right.tolist() == (order != 2).tolist()


@pytest.mark.parametrize("wanted", [{"prompt": 3}, {"prompt": [0, 5], "token": [1, 4]}, {"token": 2}])
def test_labels_select_alike_in_trajectories_and_stores(wanted, in_fours, tmp_path):
    store = save(in_fours, tmp_path / "store")
    for source in (in_fours, store):
        got, = measure(source, [contraction_rate], select=wanted)
        same(got, contraction_rate(in_fours.select(**wanted)))
        assert set(got.labels["token"]) <= set(np.atleast_1d(wanted.get("token", range(5))))


@pytest.mark.parametrize(("wanted", "words"), [({"prompt": 77}, "no orbit has prompt=77"),
                                               ({"layer": 1}, "no label 'layer'")])
def test_what_is_not_there_is_refused_alike(wanted, words, in_fours, tmp_path):
    for source in (in_fours, save(in_fours, tmp_path / "store")):
        with pytest.raises(ValueError, match=words):
            measure(source, [contraction_rate], select=wanted)


def test_distances_are_computed_once_a_chunk_for_all_analyzers(in_fours, passes, tmp_path):
    measure(in_fours, ALL)
    assert passes == [4] * 7 + [2]
    passes.clear()
    measure(save(in_fours, tmp_path / "store"), ALL)
    assert passes == [4] * 7 + [2]


def test_settings_are_given_with_partial(in_fours):
    strict, loose = measure(in_fours, [functools.partial(contraction_rate, floor_factor=10.0, min_points=9),
                                       contraction_rate])
    assert dict(strict.settings) == {"floor_factor": 10.0, "min_points": 9, "confidence_level": 0.95}
    assert dict(loose.settings) == {"floor_factor": 3.0, "min_points": 5, "confidence_level": 0.95}
    same(strict, contraction_rate(in_fours, floor_factor=10.0, min_points=9))


def test_any_function_of_trajectories_will_do(in_fours):
    def steps(trajectories):
        return Measurement("steps", {"n": trajectories.lengths}, [Outcome.FOUND] * len(trajectories))

    got, = measure(in_fours, (steps,))
    assert got.values.tolist() == [128, 128, 50] + [128] * 27


@pytest.mark.parametrize("source", [np.ones((1, 4, 2)), torch.ones(1, 4, 2), "folder", None])
def test_a_source_of_another_kind_is_refused(source):
    with pytest.raises(TypeError, match=r"measure needs Trajectories or a Store; got .*open_store"):
        measure(source, [contraction_rate])


@pytest.mark.parametrize("analyzers", [contraction_rate, functools.partial(contraction_rate, min_points=9), [], None,
                                       "contraction_rate", ["contraction_rate"], [contraction_rate, 3]],
                         ids=["bare", "partial", "empty", "None", "a name", "names", "a number"])
def test_what_is_no_list_of_analyzers_is_refused(analyzers, decaying):
    with pytest.raises(TypeError, match="measure needs a list of analyzers"):
        measure(decaying, analyzers)


def test_an_unfinished_store_is_refused_and_a_finished_one_is_not(decaying, tmp_path):
    save(decaying, tmp_path / "store")
    manifest = tmp_path / "store" / "manifest.jsonl"
    lines = manifest.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == "complete"
    manifest.write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match=r"is unfinished: its capture was interrupted. Run the same capture again"):
        measure(open_store(tmp_path / "store"), [contraction_rate])
    manifest.write_text("".join(lines))
    assert measure(open_store(tmp_path / "store"), [contraction_rate])[0].n_orbits == 30


@pytest.mark.parametrize("wanted", [{}, {"prompt": 0}])
def test_a_changed_byte_in_a_shard_ends_the_pass(wanted, in_fours, tmp_path):
    save(in_fours, tmp_path / "store")
    shard, = (tmp_path / "store" / "shards").iterdir()
    raw = bytearray(shard.read_bytes())
    raw[-9] ^= 1
    shard.write_bytes(raw)
    with pytest.raises(ValueError, match="checksum"):
        measure(open_store(tmp_path / "store"), [contraction_rate], select=wanted)


def test_an_analyzer_cuts_a_large_recording_into_chunks(in_fours, passes):
    contraction_rate(in_fours)
    assert passes == [4] * 7 + [2]


def with_positional(trajectories, tolerance=1e-3):
    """An analyzer as it must not be written."""


def without_default(trajectories, *, tolerance):
    """Likewise."""


def with_anything(trajectories, **tolerance):
    """Likewise."""


@pytest.mark.parametrize("function", [with_positional, without_default, with_anything])
def test_an_analyzers_settings_are_keyword_only_and_have_defaults(function):
    with pytest.raises(TypeError, match=f"'tolerance' of analyzer {function.__name__} must be keyword-only"):
        analyzer(function)


def test_an_analyzer_refuses_arrays_and_stores_and_says_what_to_do(decaying, tmp_path):
    for other in (decaying.states, decaying.states.numpy(), save(decaying, tmp_path / "store")):
        with pytest.raises(TypeError, match=r"contraction_rate needs Trajectories; got .*Use measure\(store"):
            contraction_rate(other)
