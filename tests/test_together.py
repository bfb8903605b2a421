"""Analyzers that compare orbits see whole groups, in whatever order the recording keeps them."""

import functools
import itertools

import numpy as np
import pytest
import torch

import dynloop.measuring
from dynloop import Measurement, Outcome, Store, Trajectories, analyzer, measure, save, successive_distance
from dynloop.measuring import groups
from dynloop.store import StoreWriter

N_PROMPTS, N_LAYERS, N_TOKENS, N_STEPS, DIM = 5, 3, 4, 12, 6


@analyzer(together=("layer",))
def across_layers(trajectories, *, power=1):
    """Mean over the layers of the first feature of the first state, and how many layers there were."""
    number = groups(trajectories.labels, len(trajectories), ("layer",))
    first = trajectories.states[:, 0, 0].double().numpy() ** power
    sizes = np.bincount(number)
    return Measurement("across_layers", {"mean": (np.bincount(number, first) / sizes)[number],
                                         "layers": sizes[number].astype(float)},
                       [Outcome.FOUND] * len(trajectories), labels=trajectories.labels, settings={"power": power})


@analyzer(together=("token",))
def across_tokens(trajectories):
    number = groups(trajectories.labels, len(trajectories), ("token",))
    return Measurement("across_tokens", {"tokens": np.bincount(number)[number].astype(float)},
                       [Outcome.FOUND] * len(trajectories), labels=trajectories.labels)


@pytest.fixture
def orbits(rng):
    """Orbits by prompt, layer and token, as `capture` orders them."""
    of = np.array(list(itertools.product(range(N_PROMPTS), range(N_LAYERS), range(N_TOKENS))))
    states = rng.normal(size=(len(of), N_STEPS, DIM))
    return Trajectories(states, labels={"prompt": of[:, 0], "layer": of[:, 1], "token": of[:, 2]})


@pytest.fixture(params=["captured", "shuffled", "layers outermost"])
def ordered(request, orbits):
    order = {"captured": np.arange(len(orbits)), "shuffled": np.random.default_rng(1).permutation(len(orbits)),
             "layers outermost": np.argsort(orbits.labels["layer"], kind="stable")}[request.param]
    return orbits[order]


@pytest.fixture(params=[1, 7, 1000])
def at_once(request, monkeypatch):
    """Recordings are read and analysed a few orbits at a time."""
    bytes_of = 4 * N_STEPS * max(N_STEPS, DIM)
    monkeypatch.setattr(Trajectories, "chunks", functools.partialmethod(Trajectories.chunks,
                                                                        max_bytes=request.param * bytes_of))
    monkeypatch.setattr(Store, "stream", functools.partialmethod(Store.stream,
                                                                 piece_bytes=request.param * 4 * N_STEPS * DIM))
    monkeypatch.setattr(dynloop.measuring, "orbits_a_chunk", lambda n_steps, dim: request.param)
    return request.param


def stored(orbits, folder, per_shard):
    """A store whose shards hold a few orbits each, whatever their groups."""
    with StoreWriter(folder, {"resolution": orbits.resolution}) as writer:
        for number, first in enumerate(range(0, len(orbits), per_shard)):
            part = orbits[first:first + per_shard]
            writer.write_states(f"s{number:03d}", part.states, {n: (0, v) for n, v in part.labels.items()})
        return writer.finish()


def expected(orbits):
    frame = {}
    for value, prompt, token in zip(orbits.states[:, 0, 0].tolist(), orbits.labels["prompt"], orbits.labels["token"],
                                    strict=True):
        frame.setdefault((prompt, token), []).append(value)
    return np.array([np.mean(frame[key]) for key in zip(orbits.labels["prompt"], orbits.labels["token"], strict=True)])


def check(m, orbits):
    np.testing.assert_allclose(m["mean"], expected(orbits), rtol=1e-12)
    assert (m["layers"] == N_LAYERS).all()
    for name, values in orbits.labels.items():
        assert m.labels[name].tolist() == values.tolist()


def test_partners_meet_in_any_order_and_chunk_size(ordered, at_once):
    check(across_layers(ordered), ordered)
    got, steps = measure(ordered, [across_layers, successive_distance])
    check(got, ordered)
    np.testing.assert_array_equal(steps.values, successive_distance(ordered).values)


@pytest.mark.parametrize("per_shard", [1, 5, 1000])
@pytest.mark.parametrize("held", [2**28, 40 * 4 * N_STEPS * DIM, 0])
def test_partners_meet_across_shards_within_bounded_memory(ordered, at_once, per_shard, held, tmp_path, monkeypatch):
    monkeypatch.setattr(dynloop.measuring, "HELD_BYTES", held)
    store = stored(ordered, tmp_path / "s", per_shard)
    got, steps, tokens = measure(store, [functools.partial(across_layers, power=1), successive_distance, across_tokens])
    check(got, ordered)
    assert (tokens.values == N_TOKENS).all()
    np.testing.assert_allclose(steps.values, successive_distance(ordered).values, rtol=1e-12)
    wanted = {"prompt": [1, 3], "token": [0, 2]}
    got, = measure(store, [across_layers], select=wanted)
    check(got, ordered.select(**wanted))
    for select, words in (({"room": 1}, "no label 'room'"), ({"prompt": 77}, "no orbit has prompt=77")):
        with pytest.raises(ValueError, match=words):
            measure(store, [across_layers], select=select)


def test_no_more_orbits_wait_than_may_be_held(orbits, tmp_path, monkeypatch):
    """Streamed pieces wait for one prompt; layers outermost would make all wait, and are gathered instead."""
    sizes = []
    monkeypatch.setattr(dynloop.measuring, "HELD_BYTES", N_LAYERS * N_TOKENS * 4 * N_STEPS * DIM)
    monkeypatch.setattr(Store, "stream", functools.partialmethod(Store.stream, piece_bytes=4 * N_STEPS * DIM))
    monkeypatch.setattr(dynloop.measuring, "orbits_a_chunk", lambda n_steps, dim: 6)
    joined = dynloop.measuring._joined
    monkeypatch.setattr(dynloop.measuring, "_joined", lambda parts: sizes.append(sum(map(len, parts))) or joined(parts))
    measure(stored(orbits, tmp_path / "a", 7), [across_layers])
    assert max(sizes) == N_LAYERS * N_TOKENS
    sizes.clear()
    outermost = orbits[np.argsort(orbits.labels["layer"], kind="stable")]
    measure(stored(outermost, tmp_path / "b", 7), [across_layers])
    assert max(sizes) <= 6


@pytest.mark.parametrize("held", [2**28, 1])
def test_every_state_is_read_once_and_distances_are_shared(orbits, held, tmp_path, monkeypatch):
    counted, heavy = [], dynloop.distances.Distances
    monkeypatch.setattr(dynloop.measuring, "HELD_BYTES", held)
    monkeypatch.setattr(dynloop.distances, "Distances", lambda s, n: counted.append(len(s)) or heavy(s, n))
    measure(save(orbits, tmp_path / "s"), [across_layers, successive_distance, dynloop.contraction_rate])
    assert sum(counted) == len(orbits)


def test_groups_are_what_agrees_in_all_other_labels():
    labels = {"prompt": np.array([0, 0, 1, 1, 0]), "layer": np.array([1, 2, 1, 2, 3])}
    assert groups(labels, 5, ("layer",)).tolist() == [0, 0, 1, 1, 0]
    assert groups(labels, 5, ("layer", "prompt")).tolist() == [0] * 5
    assert groups(labels, 5, ("start",)).tolist() == list(range(5))  # no such label: every orbit by itself
    assert groups({"layer": np.arange(3)}, 3, ("layer",)).tolist() == [0, 0, 0]
    assert groups({}, 3, ("layer",)).tolist() == [0, 1, 2]


def test_a_recording_without_the_label_is_cut_as_ever(orbits):
    plain = orbits.replace(labels={"prompt": orbits.labels["prompt"]})
    assert (across_layers(plain)["layers"] == 1).all()


def test_a_group_that_is_the_recording_keeps_what_was_derived_from_it():
    orbits = Trajectories(torch.randn(4, 8, 3), labels={"layer": range(4)})
    orbits.derived["mark"] = True
    seen = []

    @analyzer(together=("layer",))
    def look(trajectories):
        seen.append(trajectories.derived.get("mark"))
        return across_layers(trajectories)

    look(orbits)
    assert seen == [True]


@pytest.mark.parametrize("together", ["layer", ["layer"], None, (1,)])
def test_together_is_a_tuple_of_names(together):
    with pytest.raises(TypeError, match="together must be a tuple of label names"):
        analyzer(together=together)
