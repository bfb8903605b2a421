"""The nano model: every switch runs, nothing leaks backwards in time, and a training survives its interruptions."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import dynloop.nano.corpus as corpus_module
import dynloop.nano.training as training_module
from dynloop.nano import (
    RECIPES,
    NanoConfig,
    NanoModel,
    TrainingConfig,
    held_out_loss,
    load_checkpoint,
    load_corpus,
    load_model,
    model_hash,
    save_model,
    shipped_prompts,
    train,
)
from dynloop.nano.config import INJECTIONS, NORMS, STARTS

TINY = NanoConfig(width=16, n_heads=2, n_recurrences=3)
SHORT = TrainingConfig(steps=12, batch_size=2, length=16, warmup=2, log_every=2, evaluate_every=6, checkpoint_every=4)
SWITCHES = [NanoConfig(width=16, n_heads=2, n_recurrences=3, injection=i, norm=n, loop_norm=loop, initial_state=s)
            for i, n, loop, s in itertools.product(INJECTIONS, NORMS, (True, False), STARTS)
            if not (i == "none" and s == "random")]
SHIPPED = list(RECIPES)


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    """One thread: tiny products lose more to the barrier than they gain, tenfold on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def cheap_evaluation():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module, "held_out_loss", functools.partial(held_out_loss, n=2))
        yield


def name_of(config):
    return f"{config.injection}-{config.norm}-{'norm' if config.loop_norm else 'open'}-{config.initial_state}"


def text(n=2, length=12, seed=0):
    return torch.randint(0, 256, (n, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of 40 small files, 4 of them held out."""
    root = tmp_path_factory.mktemp("corpus")
    words = ("def", "loop", "state", "block", "norm", "recurrence", "return", "for", "in", "range", "width:\n")
    for number in range(40):
        own = random.Random(number)
        (root / f"part{number:02d}.txt").write_text(" ".join(own.choice(words) for _ in range(500)))
    return root


@pytest.fixture(scope="module")
def corpus(folder):
    return load_corpus(folder, least=1000)


# ---- settings

@pytest.mark.parametrize(("settings", "words"), [
    ({"injection": "gated"}, "injection must be one of none, additive, linear; got 'gated'"),
    ({"norm": "post"}, "norm must be one of pre, sandwich, residual; got 'post'"),
    ({"initial_state": "zero"}, "initial_state must be one of input, random; got 'zero'"),
    ({"initial_state": "random", "injection": "none"}, "without injection never sees the input"),
    ({"width": 100, "n_heads": 3}, r"width must be a multiple of 2 \* n_heads = 6"),
    ({"width": 6, "n_heads": 2}, "even head width"),
    ({"width": 0}, "width must be a whole number of at least 2; got 0"),
    ({"width": 16.0}, r"width must be a whole number of at least 2; got 16\.0"),
    ({"n_heads": 0}, "n_heads must be a whole number of at least 1"),
    ({"n_prelude": -1}, "n_prelude must be a whole number of at least 0"),
    ({"n_block": 0}, "n_block must be a whole number of at least 1"),
    ({"n_coda": -1}, "n_coda must be a whole number of at least 0"),
    ({"n_recurrences": 0}, "n_recurrences must be a whole number of at least 1"),
    ({"n_recurrences": True}, "n_recurrences must be a whole number of at least 1; got True"),
    ({"loop_norm": 1}, "loop_norm must be true or false; got 1"),
    ({"looped": "no"}, "looped must be true or false; got 'no'"),
    ({"looped": False}, "control has no recurrence to inject into.* got 'linear' and 'input'"),
    ({"looped": False, "injection": "additive"}, "control has no recurrence to inject into"),
    ({"looped": False, "initial_state": "random"}, "control has no recurrence to inject into"),
])
def test_a_model_that_cannot_work_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        NanoConfig(**settings)


def test_an_unknown_model_setting_is_refused():
    with pytest.raises(ValueError, match=r"unknown model setting n_layers, zeta; known are .*width"):
        NanoConfig.from_dict({"width": 16, "zeta": 1, "n_layers": 2})
    assert NanoConfig.from_dict(dataclasses.asdict(TINY)) == TINY


@pytest.mark.parametrize(("settings", "words"), [
    ({"recurrences": "poisson"}, "recurrences must be one of fixed, uniform; got 'poisson'"),
    *[({name: 0}, f"{name} must be a whole number of at least 1; got 0")
      for name in ("steps", "batch_size", "length", "log_every", "evaluate_every", "checkpoint_every")],
    ({"steps": 2.5}, "steps must be a whole number"),
    ({"learning_rate": 0.0}, "learning_rate must be a positive number"),
    ({"learning_rate": math.nan}, "learning_rate must be a positive number; got nan"),
    ({"learning_rate": math.inf}, "learning_rate must be a positive number; got inf"),
    ({"warmup": -1}, "must not be negative"), ({"weight_decay": -0.1}, "must not be negative"),
    ({"seed": -1}, "must not be negative"),
])
def test_a_training_that_cannot_work_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TrainingConfig(**settings)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    config = TrainingConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = np.array([config.rate(step) for step in range(101)])
    assert rates[0] == pytest.approx(0.1)
    assert rates.max() == rates[9] == rates[10] == 1.0
    assert rates[100] == pytest.approx(0.1)
    assert (np.diff(rates[10:]) < 0).all()
    assert TrainingConfig(warmup=0).rate(0) == TrainingConfig().learning_rate


# ---- the model

@pytest.mark.parametrize("config", SWITCHES, ids=name_of)
def test_every_combination_runs_forward_and_reaches_every_weight_backward(config):
    model = NanoModel(config, seed=1)
    logits = model(text())
    assert logits.shape == (2, 12, 256)
    assert logits.isfinite().all()
    F.cross_entropy(logits.flatten(0, 1), text(seed=1).flatten()).backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


@pytest.mark.parametrize("config", SWITCHES, ids=name_of)
def test_forward_is_embed_start_step_and_readout(config):
    model, tokens = NanoModel(config, seed=2), text()
    with torch.no_grad():
        context = model.embed(tokens)
        state = start = model.initial_state(context, seeds=[3, 4])
        for _ in range(5):
            state = model.step(state, context)
        by_hand = model.readout(state, context)
        assert torch.equal(model(tokens, n_recurrences=5, seeds=[3, 4]), by_hand)
        assert torch.equal(model(tokens, n_recurrences=5, initial_state=start), by_hand)
        assert torch.equal(model(tokens, seeds=[3, 4]), model(tokens, n_recurrences=3, seeds=[3, 4]))
        assert not torch.equal(model(tokens, n_recurrences=4, seeds=[3, 4]), by_hand)


@pytest.mark.parametrize("config", [*SWITCHES[::5], NanoConfig(width=16, n_heads=4, n_prelude=0, n_coda=0, n_block=3),
                                    NanoConfig(width=16, n_heads=1, injection="none", looped=False)], ids=name_of)
def test_a_later_byte_changes_no_earlier_logit(config):
    model, tokens = NanoModel(config, seed=3), text(1, 20)
    with torch.no_grad():
        before = model(tokens)
        for place in (1, 7, 19):
            changed = tokens.clone()
            changed[0, place] = (changed[0, place] + 1) % 256
            after = model(changed)
            torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=1e-6)
            assert (after - before)[:, place].abs().max() > 1e-3
        torch.testing.assert_close(model(tokens[:, :11]), before[:, :11], rtol=0, atol=1e-5)


def test_positions_matter():
    model = NanoModel(TINY, seed=0)
    with torch.no_grad():
        logits = model(torch.tensor([[7, 8, 9, 10], [8, 7, 9, 10]]))
    assert (logits[0, 3] - logits[1, 3]).abs().max() > 1e-3


def test_a_random_start_depends_on_the_prompts_own_seed_alone():
    model = NanoModel(dataclasses.replace(TINY, initial_state="random"), seed=0)
    alone, batch = model.embed(text(1)), model.embed(text(3, seed=5))
    start = model.initial_state(batch, seeds=[5, 6, 7])
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert torch.equal(model.initial_state(alone, seeds=[6])[0], start[1])
    assert torch.equal(model.initial_state(batch, seeds=[7, 5, 6])[[1, 2, 0]], start)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.initial_state(batch), model.initial_state(batch, seeds=range(3)))
    assert len({tuple(row.flatten().tolist()) for row in start}) == 3
    many = model.initial_state(model.embed(text(40, 50)))
    assert abs(many.mean().item()) < 0.03
    assert many.std().item() == pytest.approx(1, abs=0.03)
    with pytest.raises(ValueError, match="one seed a prompt is needed: got 2 seeds for 3 prompts"):
        model.initial_state(batch, seeds=[1, 2])


def test_the_start_from_the_input_is_the_embedded_input():
    model = NanoModel(TINY, seed=0)
    context = model.embed(text())
    assert model.initial_state(context) is context.embedded


def test_the_feed_forward_control_has_as_many_layers_as_the_loop_has_steps():
    control = NanoModel(dataclasses.replace(TINY, injection="none", looped=False, n_block=2, n_recurrences=3), seed=0)
    assert len(control.block) == len({id(layer) for layer in control.block}) == 6
    firsts = [layer.attention.qkv.weight for layer in control.block]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(firsts, 2))
    assert control.n_recurrences == 1
    assert torch.equal(control(text()), control(text(), n_recurrences=1))
    with pytest.raises(ValueError, match="control runs its layers once; got n_recurrences=2"):
        control(text(), n_recurrences=2)


@pytest.mark.parametrize(("call", "words"), [
    (lambda m: m(text(), n_recurrences=0), "n_recurrences must be at least 1; got 0"),
    (lambda m: m(text()[0]), r"tokens must have shape \(batch, tokens\).* got \(12,\)"),
    (lambda m: m(text()[:, :0]), r"with at least one token; got \(2, 0\)"),
])
def test_wrong_inputs_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(NanoModel(TINY))


def test_making_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    np.random.seed(7)
    random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    one = NanoModel(TINY, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert random.getstate() == before[2]
    assert model_hash(one) == model_hash(NanoModel(TINY, seed=5)) != model_hash(NanoModel(TINY, seed=6))


def test_the_hash_changes_with_any_weight_and_with_the_configuration():
    model = NanoModel(TINY, seed=0)
    first = model_hash(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            flat = weight.view(-1)
            for place in (0, len(flat) - 1):
                was = flat[place].clone()
                flat[place] = torch.nextafter(was, torch.tensor(9.0))
                assert model_hash(model) != first, name
                flat[place] = was
    assert model_hash(model) == first
    other = NanoModel(dataclasses.replace(TINY, n_recurrences=5), seed=0)  # the same weights
    assert model_hash(other) != first


# ---- saving

@pytest.mark.parametrize("config", SWITCHES[::7], ids=name_of)
def test_a_saved_model_comes_back(tmp_path, config):
    model = NanoModel(config, seed=4)
    back, record = load_model(save_model(model, tmp_path / "m", record={"note": "mine"}))
    assert back.config == config
    assert model_hash(back) == model_hash(model) == record["sha256"]
    assert record["note"] == "mine"
    assert not back.training
    with torch.no_grad():
        assert torch.equal(back(text()), model(text()))


def test_damaged_weights_and_records_are_refused(tmp_path):
    def broken(name, change):
        folder = save_model(NanoModel(TINY, seed=0), tmp_path / name)
        change(folder)
        return folder

    def flip(folder):
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-3] ^= 1
        (folder / "model.safetensors").write_bytes(content)

    def record(**new):
        def change(folder):
            held = json.loads((folder / "model.json").read_text())
            (folder / "model.json").write_text(json.dumps({**held, **new}))
        return change

    for name, change, words in (
            ("flipped", flip, "are not those that model.json describes: their hash differs"),
            ("config", record(model={**dataclasses.asdict(TINY), "n_recurrences": 9}), "their hash differs"),
            ("shape", record(model={**dataclasses.asdict(TINY), "width": 32}), "does not hold a nano model"),
            ("empty", record(model={}), "does not hold a nano model"),
            ("json", lambda f: (f / "model.json").write_text("{"), "does not hold a nano model"),
            ("unknown", record(model={"depth": 3}), "unknown model setting depth")):
        with pytest.raises(ValueError, match=words):
            load_model(broken(name, change))
    for missing in ("model.safetensors", "model.json"):
        with pytest.raises(FileNotFoundError, match=f"no {missing} in .*Name a folder that `dynloop train` wrote"):
            load_model(broken("no-" + missing, lambda f, missing=missing: (f / missing).unlink()))


# ---- training

def log_of(folder):
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in (folder / "log.jsonl").read_text().splitlines()]


HARD = (dataclasses.replace(TINY, initial_state="random"), dataclasses.replace(SHORT, recurrences="uniform", seed=3))


@pytest.fixture(scope="module")
def undisturbed_training(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("trained") / "m"
    train(*HARD, corpus, folder)
    return folder


def test_training_lowers_the_loss_and_says_so_in_json_lines(tmp_path, corpus):
    settings = dataclasses.replace(SHORT, steps=60, batch_size=4, log_every=5, evaluate_every=20, learning_rate=1e-2)
    model = train(TINY, settings, corpus, tmp_path / "m", name="mine")
    log = [json.loads(line) for line in (tmp_path / "m" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(5, 61, 5))
    assert log[-1]["loss"] < log[0]["loss"] - 1
    assert [line["step"] for line in log if "held_out_loss" in line] == [20, 40, 60]
    assert log[-1]["held_out_loss"] < log[3]["held_out_loss"]
    assert [line["bytes"] for line in log] == [line["step"] * 4 * 16 for line in log]
    assert [line["learning_rate"] for line in log] == [settings.rate(line["step"] - 1) for line in log]
    assert all(line["recurrences"] == 3 for line in log)
    assert (np.diff([line["seconds"] for line in log]) >= 0).all()
    assert log[-1]["held_out_loss"] == held_out_loss(model, corpus, length=16, n=2)
    back, record = load_model(tmp_path / "m")
    assert model_hash(back) == model_hash(model)
    assert record["name"] == "mine"
    assert record["training"] == dataclasses.asdict(settings)
    assert record["corpus"]["sha256"] == corpus.sha256
    assert record["held_out_loss"]["4"] == round(held_out_loss(model, corpus, n_recurrences=4, length=16, n=2), 4)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["log.jsonl", "model.json", "model.safetensors"]


@pytest.mark.parametrize("stops", [[1], [4], [7], [11], [5, 5, 6, 10]], ids=str)
def test_an_interrupted_training_ends_where_an_undisturbed_one_does(tmp_path, corpus, monkeypatch, stops,
                                                                    undisturbed_training):
    real = TrainingConfig.rate
    for stop in stops:
        with monkeypatch.context() as patch:
            def rate(self, step, stop=stop):
                if step == stop:
                    raise KeyboardInterrupt
                return real(self, step)
            patch.setattr(TrainingConfig, "rate", rate)
            with pytest.raises(KeyboardInterrupt):
                train(*HARD, corpus, tmp_path / "m")
        assert not (tmp_path / "m" / "model.json").exists()
        assert (tmp_path / "m" / "checkpoint.pt").exists() == (stop >= 4)
    if stops[-1] >= 4:
        with pytest.raises(FileNotFoundError, match="training was interrupted: run the same `dynloop train` command"):
            load_model(tmp_path / "m")
    torch.manual_seed(99)  # the global state has no say
    train(*HARD, corpus, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == \
        (undisturbed_training / "model.safetensors").read_bytes()
    assert log_of(tmp_path / "m") == log_of(undisturbed_training)
    records = [json.loads((f / "model.json").read_text()) for f in (tmp_path / "m", undisturbed_training)]
    assert {k for k in records[0] if records[0][k] != records[1][k]} <= {"seconds", "name"}
    assert not (tmp_path / "m" / "checkpoint.pt").exists()


def test_a_checkpoint_that_was_half_written_is_not_believed(tmp_path, corpus, monkeypatch, undisturbed_training):
    real, calls = torch.save, []

    def save(state, path):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half a checkpoint")
            raise KeyboardInterrupt
        real(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(*HARD, corpus, tmp_path / "m")
    train(*HARD, corpus, tmp_path / "m")
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == \
        (undisturbed_training / "model.safetensors").read_bytes()
    assert log_of(tmp_path / "m") == log_of(undisturbed_training)


def test_a_finished_training_is_not_done_again(corpus, monkeypatch, undisturbed_training):
    monkeypatch.setattr(training_module.torch.optim, "AdamW", None)
    assert model_hash(train(*HARD, corpus, undisturbed_training)) == model_hash(load_model(undisturbed_training)[0])


def test_other_settings_in_the_same_folder_are_refused(tmp_path, corpus, folder, monkeypatch, undisturbed_training):
    model, training = HARD
    other_corpus = dataclasses.replace(corpus, sha256=hashlib.sha256(b"other").hexdigest())
    others = [(dataclasses.replace(model, norm="pre"), training, corpus),
              (model, dataclasses.replace(training, seed=4), corpus), (model, training, other_corpus)]
    before = (undisturbed_training / "model.safetensors").read_bytes()
    for settings in others:
        with pytest.raises(FileExistsError, match=r"made with other settings. Name another folder"):
            train(*settings, undisturbed_training)
    assert (undisturbed_training / "model.safetensors").read_bytes() == before

    real = TrainingConfig.rate
    monkeypatch.setattr(TrainingConfig, "rate", lambda self, step: real(self, step) if step < 5 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(*HARD, corpus, tmp_path / "m")
    before = (tmp_path / "m" / "checkpoint.pt").read_bytes(), (tmp_path / "m" / "log.jsonl").read_bytes()
    for settings in others:
        with pytest.raises(FileExistsError, match="unfinished training with other settings or another corpus"):
            train(*settings, tmp_path / "m")
    assert ((tmp_path / "m" / "checkpoint.pt").read_bytes(), (tmp_path / "m" / "log.jsonl").read_bytes()) == before


def test_a_foreign_log_is_not_overwritten(tmp_path, corpus):
    (tmp_path / "log.jsonl").write_text('{"event": "theirs"}\n')
    with pytest.raises(FileExistsError, match="holds something else than a training"):
        train(TINY, SHORT, corpus, tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == '{"event": "theirs"}\n'


def test_a_loss_that_leaves_the_finite_numbers_ends_the_training_without_a_model(tmp_path, corpus):
    config = NanoConfig(width=16, n_heads=2, norm="pre", injection="additive", loop_norm=False, n_recurrences=8)
    wild = dataclasses.replace(SHORT, steps=40, learning_rate=1e6, warmup=0, log_every=1)
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) at step \d+: the training diverged"):
        train(config, wild, corpus, tmp_path / "m")
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_the_feed_forward_control_trains(tmp_path, corpus):
    config = dataclasses.replace(TINY, injection="none", looped=False)
    model = train(config, dataclasses.replace(SHORT, steps=3, recurrences="uniform"), corpus, tmp_path / "m")
    assert len(model.block) == 6
    assert list(load_model(tmp_path / "m")[1]["held_out_loss"]) == ["1"]


def test_the_held_out_loss_leaves_the_model_as_it_was(corpus):
    model = NanoModel(TINY, seed=0)
    model.train()
    loss = held_out_loss(model, corpus, n=4, length=16)
    assert model.training
    assert loss == held_out_loss(model, corpus, n=4, length=16)
    assert all(weight.grad is None for weight in model.parameters())
    windows = torch.from_numpy(corpus.held_out_windows(n=4, length=17)).long()
    with torch.no_grad():
        by_hand = -torch.log_softmax(model(windows[:, :-1]), -1).gather(2, windows[:, 1:, None]).mean()
    assert loss == pytest.approx(by_hand.item(), rel=1e-6)


# ---- corpus

def test_the_corpus_depends_on_names_and_bytes_alone(tmp_path, folder, corpus):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sorted(folder.iterdir(), reverse=True):
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / ".hidden").write_text("not read")
    (copy / "image.png").write_bytes(b"\x89PNG\xff\xfe")
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("not read")
    again = load_corpus(copy, least=1000)
    assert (again.sha256, again.n_files, again.held_out_files) == (corpus.sha256, 40, corpus.held_out_files)
    assert (again.train == corpus.train).all()
    assert (again.held_out == corpus.held_out).all()
    (copy / "part00.txt").write_text((copy / "part00.txt").read_text()[:-1] + "!")
    assert load_corpus(copy, least=1000).sha256 != corpus.sha256


def test_held_out_files_are_whole_and_not_trained_on(folder, corpus):
    held_out = dict(corpus.held_out_files)
    assert 0 < len(held_out) < 10
    for name, begin in held_out.items():
        content = (folder / name).read_bytes()
        assert corpus.held_out[begin:begin + len(content)].tobytes() == content
    rest = b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in held_out)
    assert corpus.train.tobytes() == rest
    assert len(corpus.held_out) == sum((folder / name).stat().st_size for name in held_out)


def test_a_few_large_files_lose_their_last_tenth_to_the_held_out_part(tmp_path):
    (tmp_path / "big.txt").write_text("a" * 60_000)
    (tmp_path / "two.txt").write_text("b" * 20_000)
    corpus = load_corpus(tmp_path)
    assert sorted(corpus.held_out.tobytes()) == sorted(b"a" * 6000 + b"b" * 2000)
    assert len(corpus.train) == 72_000


def test_the_standard_library_is_read_without_its_tests(tmp_path, monkeypatch):
    for number in range(60):
        (tmp_path / f"mod{number}.py").write_text(f"x = {number}\n" * 300)
    monkeypatch.setattr(corpus_module.sysconfig, "get_path", lambda name: str(tmp_path))
    before = load_corpus(least=1000)
    for place in ("test", "tests", "json/tests", "idlelib/idle_test", "site-packages/numpy", "__pycache__"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "test_x.py").write_text("assert True\n")
    (tmp_path / "LICENSE.txt").write_text("not Python")
    assert load_corpus(least=1000).sha256 == before.sha256
    (tmp_path / "json" / "decoder.py").write_text("y = 1\n")
    assert load_corpus(least=1000).n_files == before.n_files + 1


def test_this_machines_standard_library_is_enough():
    corpus = load_corpus()
    assert len(corpus.train) > 8e6
    assert 0.05 < len(corpus.held_out) / len(corpus.train) < 0.2
    assert not [name for name, _ in corpus.held_out_files if {"test", "tests"} & set(name.split("/"))]


def test_windows_stay_inside_the_text(corpus, rng):
    draws = corpus.draw(rng, n=50, length=17)
    assert draws.shape == (50, 17)
    assert draws.dtype == np.uint8
    assert all(row.tobytes() in corpus.train.tobytes() for row in draws)
    whole = corpus.held_out_windows(n=3, length=len(corpus.held_out))
    assert (whole == corpus.held_out).all()
    windows = corpus.held_out_windows(n=9, length=17)
    assert windows[0].tobytes() == corpus.held_out[:17].tobytes()
    assert windows[-1].tobytes() == corpus.held_out[-17:].tobytes()


def test_too_little_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 bytes of text to train on and 0 held out; at least 4096"):
        load_corpus(tmp_path)
    (tmp_path / "a.txt").write_text("a" * 9000)
    with pytest.raises(ValueError, match="holds 8100 bytes of text to train on and 900 held out"):
        load_corpus(tmp_path)
    for missing in (tmp_path / "none", tmp_path / "a.txt"):
        with pytest.raises(FileNotFoundError, match=r"no folder .*Name a folder of text files"):
            load_corpus(missing)


# ---- what is shipped

@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_checkpoint_is_the_one_its_recipe_made(name):
    model, record = load_checkpoint(name)
    config, training = RECIPES[name]
    assert model.config == config
    assert record["training"] == dataclasses.asdict(training)
    assert record["name"] == name
    assert model_hash(model) == record["sha256"]
    home = Path(training_module.__file__).parent / "checkpoints" / name
    log = [json.loads(line) for line in (home / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == training.steps
    assert record["held_out_loss"]["4"] == round(log[-1]["held_out_loss"], 4)
    prompts = json.loads((home.parents[1] / "prompts.json").read_text())
    assert prompts["corpus_sha256"] == record["corpus"]["sha256"]


def test_the_shipped_checkpoints_are_small():
    home = Path(training_module.__file__).parent / "checkpoints"
    assert sorted(path.name for path in home.iterdir()) == sorted(SHIPPED)
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) <= 12 * 10**6


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(ValueError, match="no shipped checkpoint is called 'nano'; there are nano-settles, nano-random"):
        load_checkpoint("nano")


def loss_on(model, prompts, n_recurrences=None):
    tokens = torch.tensor([list(prompt.encode()) for prompt in prompts])
    with torch.no_grad():
        logits = model(tokens[:, :-1], n_recurrences=n_recurrences)
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).item()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_models_predict_held_out_text_and_only_the_drifting_one_forgets_it(name):
    model, _ = load_checkpoint(name)
    assert loss_on(model, shipped_prompts()) < 2.5
    short = loss_on(model, shipped_prompts()[::8])
    long = loss_on(model, shipped_prompts()[::8], 128)
    if name == "nano-drifts":
        assert long > short + 1
    else:
        assert long < short + 0.1


def test_the_shipped_prompts_are_64_distinct_windows_of_96_bytes_from_held_out_files():
    prompts = shipped_prompts()
    assert len(set(prompts)) == 64
    assert {len(prompt.encode()) for prompt in prompts} == {96}
    held = json.loads((Path(training_module.__file__).parent / "prompts.json").read_text())["prompts"]
    assert all(int(hashlib.sha256(prompt["file"].encode()).hexdigest(), 16) % 100 < 10 for prompt in held)
