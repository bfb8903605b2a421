"""A capture is faithful, leaves the model as it found it, and ends in the same bytes however often it is killed."""

import contextlib
import copy
import dataclasses
import importlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open

import dynloop
import dynloop.store.store as store_module
from dynloop import capture, open_store
from dynloop.models import StatePoint, nano
from dynloop.nano import RECIPES, NanoConfig, NanoModel, load_checkpoint, model_hash, shipped_prompts
from dynloop.store import StoreError

capture_module = importlib.import_module("dynloop.recording.capture")  # the function hides its module
TINY = NanoConfig(width=16, n_heads=2)
RANDOM = dataclasses.replace(TINY, initial_state="random")
ORBIT = 4 * 6 * 16  # bytes of an orbit of 6 recurrences in 16 dimensions
TEXTS = ["def step(self):", "import os, sys!", "for x in range:"]  # 15 bytes each
RAGGED = ["a = 1", "import os", "return", "b = 2", "x" * 16]


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    """One thread: tiny products lose more to the barrier than they gain, tenfold on a busy machine."""
    torch.set_num_threads(1)


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def orbits_of(store, *labels):
    """Every orbit by its labels."""
    keys = zip(*(store.labels[name].tolist() for name in labels), strict=True)
    states = torch.cat([part.states for part in store.parts()])
    found = dict(zip(keys, states, strict=True))
    assert len(found) == store.n_orbits
    return found


def small_shards(patch, size):
    patch.setattr(store_module, "SHARD_BYTES", size)
    patch.setattr(capture_module, "SHARD_BYTES", size)


# ---- the model once more, written out from its weights: the specification that capture is held against

def rms(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def attend(x, weights, n_heads):
    tokens, width = x.shape[1:]
    head = width // n_heads
    q, k, v = (x @ part.T for part in weights["attention.qkv.weight"].split(width))
    out = torch.zeros_like(x)
    angle = torch.arange(tokens)[:, None] * 10_000.0 ** -(torch.arange(head // 2).double() / (head // 2))
    cosine, sine = angle.cos().to(x), angle.sin().to(x)

    def turn(y):
        first, second = y[..., :head // 2], y[..., head // 2:]
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), -1)

    for h in range(n_heads):
        own = slice(h * head, (h + 1) * head)
        scores = turn(q[..., own]) @ turn(k[..., own]).transpose(1, 2) / head**0.5
        hidden = torch.ones(tokens, tokens).triu(1).bool()
        out[..., own] = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[..., own]
    return out @ weights["attention.out.weight"].T


def layer_by_hand(x, weights, config):
    norms = [weights[f"norms.{i}.weight"] for i in range(2 if config.norm == "pre" else 4)]

    def mlp(y):
        up = y @ weights["mlp.0.weight"].T
        return up * (1 + torch.erf(up / math.sqrt(2))) / 2 @ weights["mlp.2.weight"].T

    if config.norm == "pre":
        x = x + attend(rms(x, norms[0]), weights, config.n_heads)
        return x + mlp(rms(x, norms[1]))
    if config.norm == "sandwich":
        x = x + rms(attend(rms(x, norms[0]), weights, config.n_heads), norms[1])
        return x + rms(mlp(rms(x, norms[2])), norms[3])
    x = rms(x + attend(rms(x, norms[0]), weights, config.n_heads), norms[1])
    return rms(x + mlp(rms(x, norms[2])), norms[3])


def by_hand(model, tokens, start, n_recurrences):
    """States (batch, layer, token, recurrence, width) and logits, in the dtype of `start`."""
    config = model.config
    held = {name: weight.detach().to(start) for name, weight in model.state_dict().items()}

    def run(x, part):
        for i in range(len(getattr(model, part))):
            prefix = f"{part}.{i}."
            x = layer_by_hand(x, {k.removeprefix(prefix): w for k, w in held.items() if k.startswith(prefix)}, config)
            yield x

    def last(x, part):
        for y in run(x, part):
            x = y
        return x

    embedded = last(held["embedding.weight"][tokens], "prelude")
    state, recorded = start, []
    for _ in range(n_recurrences):
        if config.injection == "linear":
            state = torch.cat((state, embedded), -1) @ held["adapter.weight"].T
        elif config.injection == "additive":
            state = state + embedded
        layers = list(run(state, "block"))
        state = rms(layers[-1], held["loop_norm.weight"]) if config.loop_norm else layers[-1]
        recorded.append(torch.stack([*layers[:-1], state], 1))
    logits = rms(last(state, "coda"), held["final_norm.weight"]) @ held["head.weight"].T
    return torch.stack(recorded, 3), logits


def assert_faithful(model, store, n_recurrences):
    orbits = orbits_of(store, "prompt", "layer", "token")
    for batch in store.inputs():
        with torch.no_grad():
            states, logits = by_hand(model, batch["tokens"], batch["initial_states"], n_recurrences)
        assert (states.norm(dim=-1) > 0).all()
        for row, prompt in enumerate(batch["prompts"]):
            for layer in range(states.shape[1]):
                for token in batch["positions"]:
                    here, there = states[row, layer, token], orbits[prompt, layer + 1, token]
                    assert ((here - there).norm(dim=-1) <= 1e-6 * here.norm(dim=-1)).all(), (prompt, layer, token)
        torch.testing.assert_close(batch["logits"], logits[:, batch["positions"]], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", list(RECIPES))
def test_stepping_by_hand_reproduces_the_states_and_logits_of_the_shipped_models(tmp_path, name):
    model, _ = load_checkpoint(name)
    prompts = [prompt[:16] for prompt in shipped_prompts()[:3]]
    assert_faithful(model, capture(name, prompts, out=tmp_path / "s", n_recurrences=12), 12)


@pytest.mark.parametrize("config", [
    NanoConfig(width=16, n_heads=4, norm="sandwich", injection="additive", initial_state="random", n_block=3),
    NanoConfig(width=16, n_heads=2, norm="pre", injection="additive", n_prelude=0, n_coda=2),
    NanoConfig(width=16, n_heads=2, norm="sandwich", injection="linear", loop_norm=False, n_block=1)],
    ids=lambda c: f"{c.norm}-{c.injection}-{c.n_block}")
def test_stepping_by_hand_reproduces_every_recurrence_of_other_models(tmp_path, config):
    model, n_layers = NanoModel(config, seed=3), config.n_block
    store = capture(model, TEXTS, out=tmp_path / "s", n_recurrences=12, seed=5)
    batch, = store.inputs()
    states = store.trajectories().states.view(3, n_layers, 15, 12, 16).double()
    before = batch["initial_states"].double()
    for recurrence in range(12):  # each from the recorded state before it: an untrained loop magnifies rounding
        with torch.no_grad():
            after, logits = by_hand(model, batch["tokens"], before, 1)
        error = (after[..., 0, :] - states[..., recurrence, :]).norm(dim=-1)
        assert (error <= 1e-6 * after[..., 0, :].norm(dim=-1)).all()
        before = states[:, -1, :, recurrence]
    torch.testing.assert_close(batch["logits"].double(), logits, rtol=1e-5, atol=1e-5)


def test_the_hand_written_model_notices_a_wrong_state(tmp_path):
    model = NanoModel(TINY, seed=3)
    store = capture(model, TEXTS, out=tmp_path / "s", n_recurrences=4)
    with torch.no_grad():
        model.block[1].norms[3].weight[0] *= 1.001
    with pytest.raises(AssertionError):
        assert_faithful(model, store, 4)


def test_logits_are_those_of_the_model_without_hooks_bit_for_bit(tmp_path):
    model = NanoModel(RANDOM, seed=0)
    tokens = torch.tensor([list(text.encode()) for text in TEXTS])
    with torch.no_grad():
        before = model(tokens, n_recurrences=6, seeds=[4, 5, 6])
    batch, = capture(model, TEXTS, out=tmp_path / "s", n_recurrences=6, seed=4).inputs()
    assert torch.equal(batch["logits"], before)
    assert torch.equal(batch["tokens"], tokens)
    with torch.no_grad():
        assert torch.equal(model(tokens, n_recurrences=6, seeds=[4, 5, 6]), before)


def test_a_recorded_state_is_a_starting_point_that_leads_on(tmp_path):
    model = NanoModel(RANDOM, seed=0)
    store = capture(model, TEXTS, out=tmp_path / "s", n_recurrences=7)
    orbits, batch = orbits_of(store, "prompt", "layer", "token"), next(store.inputs())
    state = torch.stack([torch.stack([orbits[p, 2, t][2] for t in range(15)]) for p in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(model(batch["tokens"], n_recurrences=4, initial_state=state), batch["logits"])


# ---- what capture leaves behind in the model: nothing

@pytest.mark.parametrize("fails", [False, True])
def test_the_model_and_every_random_state_are_left_as_they_were(tmp_path, monkeypatch, fails):
    model = NanoModel(RANDOM, seed=0)
    model.train()
    model.block[1].eval()
    model.block[0].attention.qkv.weight.requires_grad_(False)
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    was = model_hash(model)
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)

    def condition():
        return ({name: part.training for name, part in model.named_modules()},
                {name: (w.requires_grad, None if w.grad is None else w.grad.sum().item())
                 for name, w in model.named_parameters()},
                [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()],
                torch.is_grad_enabled(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),
                random.getstate(), torch.get_default_dtype(), torch.get_num_threads())

    before = condition()
    if fails:
        monkeypatch.setattr(NanoModel, "readout", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        capture(model, TEXTS, out=tmp_path / "s", n_recurrences=3)
    assert condition() == before
    assert model_hash(model) == was


def test_the_model_runs_in_evaluation_and_without_gradients(tmp_path, monkeypatch):
    model, seen, real = NanoModel(TINY), [], NanoModel.step
    model.train()

    def step(self, *given):
        seen.append((torch.is_grad_enabled(), any(part.training for part in self.modules())))
        return real(self, *given)

    monkeypatch.setattr(NanoModel, "step", step)
    capture(model, TEXTS, out=tmp_path / "s", n_recurrences=3)
    assert seen == [(False, False)] * 3


# ---- prompts, tokens, layers, labels

@pytest.mark.parametrize("config", [TINY, RANDOM], ids=["input", "random"])
def test_ragged_prompts_run_as_if_each_were_alone(tmp_path, config):
    model = NanoModel(config, seed=2)
    together = orbits_of(capture(model, RAGGED, out=tmp_path / "all", n_recurrences=6, seed=10),
                         "prompt", "layer", "token")
    assert len(together) == 2 * sum(map(len, RAGGED))
    for number, text in enumerate(RAGGED):
        alone = orbits_of(capture(model, [text], out=tmp_path / str(number), n_recurrences=6, seed=10 + number),
                          "layer", "token")
        for (layer, token), orbit in alone.items():
            torch.testing.assert_close(together[number, layer, token], orbit, rtol=0, atol=1e-5)


def test_labels_say_where_every_orbit_comes_from(tmp_path):
    store = capture(NanoModel(RANDOM, seed=2), RAGGED, out=tmp_path / "s", n_recurrences=4, seed=100)
    labels = store.labels
    assert set(labels) == {"model", "prompt", "layer", "token", "seed", "stack", "start"}
    assert set(labels["model"]) == {"nano"}
    assert set(labels["stack"]) == {"block"}
    assert set(labels["start"]) == {0}
    assert (labels["seed"] == 100 + labels["prompt"]).all()
    expected = {(p, layer, t) for p, text in enumerate(RAGGED) for layer in (1, 2) for t in range(len(text))}
    assert set(zip(*(labels[n].tolist() for n in ("prompt", "layer", "token")), strict=True)) == expected
    first = next(store.parts(prompt=1))  # one prompt: layers, then tokens
    assert first.labels["layer"].tolist() == [1] * 9 + [2] * 9
    assert first.labels["token"].tolist() == [*range(9), *range(9)]


def test_selected_tokens_and_layers_are_the_same_orbits_of_the_whole_recording(tmp_path):
    model = NanoModel(RANDOM, seed=2)
    whole = capture(model, RAGGED, out=tmp_path / "whole", n_recurrences=4)
    some = capture(model, RAGGED, out=tmp_path / "some", n_recurrences=4, tokens=[-1, 0, 2, -1], layers=[2])
    all_orbits, found = (orbits_of(s, "prompt", "layer", "token") for s in (whole, some))
    assert set(found) == {(p, 2, t) for p, text in enumerate(RAGGED) for t in (0, 2, len(text) - 1)}
    assert all(torch.equal(orbit, all_orbits[key]) for key, orbit in found.items())
    for part, every in zip(some.inputs(), whole.inputs(), strict=True):
        length = part["tokens"].shape[1]
        assert part["positions"] == [0, 2, length - 1]
        assert torch.equal(part["initial_states"], every["initial_states"])  # of all tokens, to step by hand
        assert torch.equal(part["logits"], every["logits"][:, part["positions"]])


def test_a_position_named_from_both_ends_is_recorded_once(tmp_path):
    store = capture(NanoModel(TINY), ["abcd"], out=tmp_path / "s", n_recurrences=3, tokens=[3, -1, 0, -4])
    assert store.labels["token"].tolist() == [0, 3] * 2


def test_prompts_may_be_texts_bytes_or_token_numbers(tmp_path):
    model = NanoModel(TINY)
    stores = [capture(model, [given], out=tmp_path / str(i), n_recurrences=3)
              for i, given in enumerate(["hé", "hé".encode(), [104, 195, 169], torch.tensor([104, 195, 169]),
                                         np.array([104, 195, 169], dtype=np.uint8)])]
    assert len({store.header["prompts_sha256"] for store in stores}) == 1
    assert len({store.trajectories().states.numpy().tobytes() for store in stores}) == 1


def test_states_lie_by_prompt_layer_token_recurrence_feature(tmp_path):
    store = capture(NanoModel(TINY), TEXTS, out=tmp_path / "s", n_recurrences=5)
    path, = (tmp_path / "s" / "shards").glob("*states*")
    with safe_open(path, framework="pt") as file:
        states = file.get_tensor("states")
    assert states.shape == (3, 2, 15, 5, 16)
    assert states.dtype == torch.float32
    assert torch.equal(states[1, 0, 4], store.trajectories(prompt=1, layer=1, token=4).states[0])
    assert next(store.parts()).states.stride() == (5 * 16, 16, 1)


def test_the_recording_may_go_on_beyond_or_stop_before_training(tmp_path):
    model = NanoModel(TINY)  # trained with 4
    long, short = (orbits_of(capture(model, TEXTS, out=tmp_path / str(n), n_recurrences=n), "prompt", "layer", "token")
                   for n in (40, 1))
    assert all(torch.equal(long[key][:1], orbit) for key, orbit in short.items())


def test_an_orbit_that_overflows_is_recorded_as_such(tmp_path):
    model = NanoModel(NanoConfig(width=16, n_heads=2, norm="pre", injection="additive", loop_norm=False), seed=0)
    with torch.no_grad():
        model.embedding.weight *= 1e38  # added once a recurrence, until float32 ends
    recorded = capture(model, ["abc"], out=tmp_path / "s", n_recurrences=30).trajectories(layer=2)
    assert recorded.diverged.any()
    assert (recorded.lengths[recorded.diverged] < 30).all()
    finite = recorded.states.isfinite().all(-1)
    assert (recorded.lengths == [int(row.int().argmin()) if not row.all() else 30 for row in finite]).all()


# ---- provenance and refusals

def test_the_header_says_what_was_run(tmp_path):
    model, record = load_checkpoint("nano-settles")
    header = capture("nano-settles", TEXTS, out=tmp_path / "a", n_recurrences=3, seed=7, tokens=[0, -1]).header
    assert header["model"]["sha256"] == record["sha256"]
    assert header["model"]["model"] == dataclasses.asdict(model.config)
    assert header["model"]["corpus"] == record["corpus"]
    assert header["training_recurrences"] == "uniform on 1 to 8"
    assert (header["seed"], header["n_recurrences"], header["tokens"], header["layers"]) == (7, 3, [0, -1], [1, 2])
    assert (header["dtype"], header["stored_dtype"], header["device"]) == ("F32", "F32", "cpu")
    assert header["resolution"] == torch.finfo(torch.float32).eps
    assert header["attention_kernel"]
    assert header["random_start"] is False
    assert header["versions"]["torch"] == torch.__version__
    assert header["versions"]["dynloop"] == dynloop.__version__
    other = capture("nano-random-start", [*TEXTS[:2], "for y in range:"], out=tmp_path / "b", n_recurrences=3).header
    assert other["prompts_sha256"] != header["prompts_sha256"]
    assert other["model"]["sha256"] != header["model"]["sha256"]
    assert other["training_recurrences"] == "4"
    assert other["random_start"] is True


def test_the_resolution_is_that_of_the_models_dtype(tmp_path):
    model = NanoModel(RANDOM).bfloat16()
    store = capture(model, TEXTS, out=tmp_path / "s", n_recurrences=3)
    assert (store.header["dtype"], store.header["stored_dtype"]) == ("BF16", "F32")
    recorded = store.trajectories()
    assert recorded.states.dtype == torch.float32
    assert recorded.resolution == 2.0**-7
    assert torch.equal(recorded.states.bfloat16().float(), recorded.states)


@pytest.mark.parametrize("change", [
    {"n_recurrences": 4}, {"seed": 1}, {"tokens": [0]}, {"layers": [1]}, {"batch_size": 1}, {"inputs": TEXTS[::-1]},
    {"model": NanoModel(TINY, seed=9)}, {"model": NanoModel(TINY, seed=0).double()}], ids=lambda c: next(iter(c)))
def test_other_settings_in_the_same_folder_are_refused_and_change_nothing(tmp_path, change):
    settings = {"model": NanoModel(TINY, seed=0), "inputs": TEXTS, "out": tmp_path / "s", "n_recurrences": 3}
    capture(**settings)
    before = tree(tmp_path / "s")
    with pytest.raises(StoreError, match="holds a store made with other settings"):
        capture(**{**settings, **change})
    assert tree(tmp_path / "s") == before
    assert capture(**settings).complete


@pytest.mark.parametrize(("change", "words"), [
    ({"inputs": "one text"}, r"inputs must be a list of prompts .* got str. One prompt\? Pass \[prompt\]"),
    ({"inputs": b"one text"}, "inputs must be a list of prompts"),
    ({"inputs": []}, "with at least one; got none"),
    ({"inputs": ["ab", ""]}, "prompt 1 is empty"),
    ({"inputs": [[1, 2], []]}, "prompt 1 is empty"),
    ({"n_recurrences": 0}, "n_recurrences must be at least 1; got 0"),
    ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
    ({"layers": [0]}, r"layers must be among 1 to 2; got \[0\]"),
    ({"layers": [3, 1]}, r"layers must be among 1 to 2; got \[3, 1\]"),
    ({"layers": []}, r"layers must be among 1 to 2; got \[\]"),
    ({"layers": 1}, r"layers must be among 1 to 2; got 1. Give a list such as \[2\], or None for all"),
    ({"tokens": []}, r"tokens \[\] do not all exist"),
    ({"tokens": [0, 15]}, r"tokens \[0, 15\] do not all exist in prompt 0, which has 15"),
    ({"tokens": [-16]}, "do not all exist in prompt 0"),
    ({"inputs": [*TEXTS, "ab"], "tokens": [5]}, "do not all exist in prompt 3, which has 2"),
    ({"n_recurrences": 5_000_000}, r"one orbit of 5000000 x 16 float32 takes .*Use fewer recurrences"),
    ({"model": NanoModel(NanoConfig(width=16, n_heads=2, injection="none", looped=False))},
     "has 1 recurrences at most; got n_recurrences=3"),
])
def test_what_does_not_exist_is_refused_before_anything_is_written(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        capture(**{"model": NanoModel(TINY), "inputs": TEXTS, "out": tmp_path / "s", "n_recurrences": 3, **change})
    assert not (tmp_path / "s").exists()


def test_an_unknown_model_is_refused_with_the_names_there_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model 'nano-setles': .*nano-settles, nano-random-start, nano-dri"):
        capture("nano-setles", TEXTS, out=tmp_path / "s")


def test_a_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not empty and holds no dynloop store"):
        capture(NanoModel(TINY), TEXTS, out=tmp_path)
    assert tree(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("twice", [True, False])
def test_a_layer_that_is_not_called_once_a_recurrence_is_refused(tmp_path, twice):
    model = NanoModel(TINY)
    looped = nano(model)
    if twice:
        model.block[1] = model.block[0]  # now called twice a recurrence
    else:
        looped = dataclasses.replace(looped, points=[StatePoint((model.coda[0],)), StatePoint((model.loop_norm,))])
    calls = r"\[6, 3\]" if twice else r"\[1, 3\]"
    with pytest.raises(RuntimeError, match=f"were called {calls} times in 3 recurrences; each must be called once"):
        capture(looped, TEXTS, out=tmp_path / "s", n_recurrences=3)
    with pytest.raises(ValueError, match="holds no states yet"):
        open_store(tmp_path / "s")


def test_a_disk_that_is_too_small_is_refused_at_once_and_the_same_call_goes_on_later(tmp_path, monkeypatch):
    need = 2 * 45 * ORBIT
    settings = {"inputs": TEXTS, "out": tmp_path / "s", "n_recurrences": 6, "batch_size": 1}
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - need + 1, need - 1))
        with pytest.raises(OSError, match=r"the recording needs .* GiB more at .*; .* GiB are free. Select fewer"):
            capture(NanoModel(TINY), **settings)
    assert not (tmp_path / "s" / "shards").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - need, need))
        assert capture(NanoModel(TINY), **settings).complete


# ---- shards

@pytest.mark.parametrize("orbits_a_shard", [1, 2, 7, 15, 29, 30, 31, 59, 60, 89, 90])
def test_a_batch_larger_than_a_shard_is_split_and_reads_back_right(tmp_path, monkeypatch, orbits_a_shard):
    model, settings = NanoModel(RANDOM), {"n_recurrences": 6, "batch_size": 3}
    whole = orbits_of(capture(model, TEXTS, out=tmp_path / "whole", **settings), "prompt", "layer", "token", "seed")
    small_shards(monkeypatch, (orbits_a_shard * (ORBIT + 9) + ORBIT // 2) * 64 // 63)  # 1/64 is left for the header
    store = capture(model, TEXTS, out=tmp_path / "split", **settings)
    found = orbits_of(store, "prompt", "layer", "token", "seed")
    assert set(found) == set(whole)
    assert all(torch.equal(found[key], orbit) for key, orbit in whole.items())
    sizes = [part.n_orbits for part in store.parts()]
    assert max(sizes) <= orbits_a_shard
    assert store.n_shards == math.ceil(90 / orbits_a_shard) or max(sizes) > orbits_a_shard // 2


def test_by_default_a_batch_fills_one_shard(tmp_path, monkeypatch):
    small_shards(monkeypatch, 2 * 30 * (ORBIT + 9) * 64 // 63 + 1)
    store = capture(NanoModel(TINY), TEXTS, out=tmp_path / "s", n_recurrences=6)
    assert [batch["prompts"] for batch in store.inputs()] == [[0, 1], [2]]
    assert [part.n_orbits for part in store.parts()] == [60, 30]


# ---- interruptions

SETTINGS = {"n_recurrences": 6, "tokens": [0, 2, -1], "batch_size": 2, "seed": 3}


def interrupted_at(patch, call):
    """The n-th call that makes something durable raises instead, or right after."""
    made = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def stop(*given, real=real):
            made.append(given)
            if len(made) == call:
                raise KeyboardInterrupt
            done = real(*given)
            if len(made) == -call:
                raise KeyboardInterrupt
            return done
        patch.setattr(os, name, stop)
    return made


@pytest.fixture
def undisturbed(tmp_path, monkeypatch):
    small_shards(monkeypatch, 7 * ORBIT)  # two shards of states a batch of two prompts
    return capture(NanoModel(RANDOM), RAGGED, out=tmp_path / "undisturbed", **SETTINGS).folder


def test_a_capture_stopped_at_any_write_goes_on_to_the_same_bytes(tmp_path, monkeypatch, undisturbed):
    model, few = NanoModel(RANDOM), [RAGGED[0], RAGGED[3], RAGGED[1]]  # a batch of two shards, a batch of one
    with monkeypatch.context() as patch:
        made = interrupted_at(patch, 0)
        expected = tree(capture(model, few, out=tmp_path / "counted", **SETTINGS).folder)
    assert len(expected) == 6
    assert len(made) > 20
    for call in range(1, len(made) + 1):
        for sign in (1, -1):  # instead of the call, or right after it
            out = tmp_path / f"{sign * call}"
            with monkeypatch.context() as patch:
                interrupted_at(patch, sign * call)
                with pytest.raises(KeyboardInterrupt):
                    capture(model, few, out=out, **SETTINGS)
            with contextlib.suppress(ValueError):  # nothing half-written is taken for whole
                store = open_store(out)
                store.verify()
                assert not store.complete or call >= len(made) - 1
            assert capture(model, few, out=out, **SETTINGS).complete
            assert tree(out) == expected, sign * call
            shutil.rmtree(out)


def test_a_capture_of_several_starts_in_another_dtype_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    settings = {**SETTINGS, "n_starts": 2, "dtype": torch.bfloat16, "recurrences": [1, 2, -1], "layers": "state"}
    model, few = NanoModel(RANDOM), [RAGGED[0], RAGGED[1]]
    with monkeypatch.context() as patch:
        made = interrupted_at(patch, 0)
        expected = tree(capture(model, few, out=tmp_path / "counted", **settings).folder)
    for call in range(1, len(made) + 1, 3):
        with monkeypatch.context() as patch:
            interrupted_at(patch, call)
            with pytest.raises(KeyboardInterrupt):
                capture(model, few, out=tmp_path / str(call), **settings)
        assert capture(model, few, out=tmp_path / str(call), **settings).complete
        assert tree(tmp_path / str(call)) == expected, call


def test_a_manifest_torn_at_any_line_goes_on_to_the_same_bytes(tmp_path, undisturbed, rng):
    expected, model = tree(undisturbed), NanoModel(RANDOM)
    whole = expected["manifest.jsonl"]
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for number, end in enumerate(ends):
        begin = ends[number - 1] if number else 0
        for cut in {begin + 1, int(rng.integers(begin + 1, end)), end - 1}:
            shutil.copytree(undisturbed, tmp_path / "torn")
            (tmp_path / "torn" / "manifest.jsonl").write_bytes(whole[:cut])
            capture(model, RAGGED, out=tmp_path / "torn", **SETTINGS)
            assert tree(tmp_path / "torn") == expected, cut
            shutil.rmtree(tmp_path / "torn")


def test_a_resumed_capture_runs_only_the_missing_batches(tmp_path, monkeypatch, undisturbed):
    lines = (undisturbed / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    batches = [json.loads(line).get("file", "")[:18] for line in lines]
    keep = batches.index("shards/batch-00002") + 1  # one shard of the third batch is committed
    (undisturbed / "manifest.jsonl").write_bytes(b"".join(lines[:keep]))
    runs, real = [], capture_module._run
    monkeypatch.setattr(capture_module, "_run", lambda *a: runs.append(a[2].number) or real(*a))
    capture(NanoModel(RANDOM), RAGGED, out=undisturbed, **SETTINGS)
    assert runs == sorted({int(name[-5:]) for name in batches[keep - 1:] if name})
    assert len(runs) < len(set(filter(None, batches)))
    runs.clear()
    capture(NanoModel(RANDOM), RAGGED, out=undisturbed, **SETTINGS)  # complete: nothing runs
    assert not runs


def test_other_models_weights_do_not_complete_an_interrupted_capture(tmp_path, undisturbed):
    (undisturbed / "manifest.jsonl").write_bytes(
        b"".join((undisturbed / "manifest.jsonl").read_bytes().splitlines(keepends=True)[:4]))
    model = copy.deepcopy(NanoModel(RANDOM))
    with torch.no_grad():
        model.head.weight[0, 0] += 1e-3
    with pytest.raises(StoreError, match=r"made with other settings .*they differ in model"):
        capture(model, RAGGED, out=undisturbed, **SETTINGS)


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def kill_and_resume(tmp_path, kills, seed):
    """SIGKILL the command at random moments of its writing, again and again, then let it finish."""
    chance, prompts, out = random.Random(seed), tmp_path / "prompts.json", tmp_path / "killed"
    prompts.write_text(json.dumps(shipped_prompts()[:24]))
    reference = capture("nano-random-start", shipped_prompts()[:24], out=tmp_path / "undisturbed", n_recurrences=24,
                        tokens=range(0, 96, 6), batch_size=1).folder
    command = [sys.executable, "-m", "dynloop", "capture", "nano-random-start", "--prompts", prompts, "--out", out,
               "--recurrences", "24", "--tokens", "0:96:6", "--batch-size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    total, killed = (reference / "manifest.jsonl").stat().st_size, 0
    for moment in sorted(0.95 * chance.random() for _ in range(kills)):
        with subprocess.Popen(command, env=environment, **QUIET) as process:
            manifest = out / "manifest.jsonl"
            while process.poll() is None and not (manifest.exists() and manifest.stat().st_size >= moment * total):
                time.sleep(0.001)
            time.sleep(chance.random() * 0.03)
            process.send_signal(signal.SIGKILL)
        killed += process.returncode == -signal.SIGKILL
        with contextlib.suppress(StoreError):  # empty, so far
            open_store(out).verify()
    assert killed > kills / 2
    subprocess.run(command, env=environment, check=True, **QUIET)
    assert tree(out) == tree(reference)


def test_a_capture_killed_at_three_random_moments_ends_in_the_same_bytes(tmp_path):
    kill_and_resume(tmp_path, 3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_capture_killed_at_twenty_random_moments_ends_in_the_same_bytes(tmp_path):
    kill_and_resume(tmp_path, 20, seed=2)


MEMORY = """
import re, sys, threading, time
from pathlib import Path
import torch
import dynloop
from dynloop.nano import shipped_prompts

torch.set_num_threads(1)
prompts = shipped_prompts()[:16]
dynloop.capture("nano-settles", prompts[:1], out=sys.argv[1] + "/warm", n_recurrences=8)

def private():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

peak, stop, before = [0], threading.Event(), private()
def watch():
    while not stop.is_set():
        peak[0] = max(peak[0], private())
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
store = dynloop.capture("nano-settles", prompts * int(sys.argv[2]), out=sys.argv[1] + "/store", n_recurrences=128,
                        tokens=range(0, 96, 4), batch_size=16)
stop.set()
thread.join()
print(peak[0] - before, store.n_bytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_memory_does_not_grow_with_the_run(tmp_path):
    peaks, sizes = [], []
    for batches in (2, 12):
        done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / str(batches), str(batches)], check=True,
                              capture_output=True, text=True)
        peak, size = map(int, done.stdout.split())
        peaks.append(peak)
        sizes.append(size)
    batch = sizes[0] / 2
    assert sizes[1] > 11.9 * batch
    assert peaks[1] < peaks[0] + 0.9 * batch
    assert peaks[1] < 5 * batch
