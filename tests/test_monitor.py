"""The monitor leaves a training untouched to the last bit, gives the analyzers' numbers, and survives what fails."""

import json
import random
import subprocess
import sys

import lookalikes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import dynloop.monitoring.loop_monitor as module_of_monitor
from dynloop.analyzers import contraction_rate, distance_to_limit
from dynloop.maps import LoopMap, jacobian_spectrum
from dynloop.models import hooked_block, load, nano
from dynloop.monitoring import LoopMonitor, read_log
from dynloop.nano import NanoConfig, NanoModel, TrainingConfig, load_corpus, train
from dynloop.recording import capture

PROBE = [list(b"import os"), list(b"for x in ")]
CONFIG = NanoConfig(width=16, n_heads=2, n_prelude=0, n_block=1, n_coda=0)


def small():
    """A nano model whose loop settles."""
    model = NanoModel(CONFIG, seed=1)
    with torch.no_grad():
        model.adapter.weight[:, :CONFIG.width] *= 0.3
    return model


def monitor_of(model, *, every=1, n_recurrences=20, **settings):
    return LoopMonitor(model, PROBE, every=every, n_recurrences=n_recurrences, **settings)


class Restless(nn.Module):
    """A looped model with everything that a careless onlooker could disturb."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 256)
        self.register_buffer("seen", torch.zeros(()))
        self.calls, self.sizes, self.rng = 0, [], np.random.default_rng(3)
        self.generator = torch.Generator().manual_seed(4)

    def forward(self, tokens, loops=4):
        self.calls += 1
        self.sizes.append(tokens.shape[0])
        self.seen = self.seen + 1  # replaced, not written to
        h = x = self.embedding(tokens)
        if self.training:
            x = x + 0.01 * (random.random() + np.random.rand() + self.rng.random())
            x = x + 0.01 * torch.randn(x.shape, generator=self.generator)
        else:  # even out of training it draws from its own
            self.rng.random()
            torch.rand(1, generator=self.generator)
        for _ in range(loops):
            h = self.block(h + x)
        return self.head(self.norm(h.transpose(1, 2)).transpose(1, 2)) / (1 + 0.001 * self.calls + 0.001 * self.seen)


class Hoarder(nn.Module):
    """Keeps things within things, and tensors that are no buffers; two of its layers are one, two of its weights."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(256, 8)
        layer = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.block = nn.Sequential(layer, nn.Tanh(), layer, nn.Dropout(0.3))
        self.head = nn.Linear(8, 256)
        self.head.weight = self.embedding.weight
        self.cache = {"inner": {"calls": 0}, "seen": [[], (torch.zeros(()),)]}
        self.mean, self.sums = torch.zeros(8), {"all": torch.ones(8)}
        self.others = [torch.eye(8).to_sparse(), torch.empty(3, device="meta"), self.sums]
        self.others.append(self.others)

    def forward(self, tokens, loops=4):
        h = x = self.embedding(tokens) + 0.01 * self.mean / self.sums["all"] + 0.01 * self.cache["seen"][1][0]
        for _ in range(loops):
            h = checkpoint(self.block, h + x, use_reentrant=False)
        with torch.no_grad():
            self.mean += h.mean((0, 1))
            self.sums["all"] += 1
            self.cache["seen"][1][0].add_(1)
        self.cache["inner"]["calls"] += 1
        self.cache["seen"][0].append(1)
        return self.head(h) / (1 + 0.01 * self.cache["inner"]["calls"] + 0.01 * len(self.cache["seen"][0]))


def strictly(line):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")
    return json.loads(line, parse_constant=refuse)


def everything_about(model, optimizer):
    return {"weights": [p.detach().clone() for p in model.parameters()],
            "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "buffers": [b.clone() for b in model.buffers()], "modes": [m.training for m in model.modules()],
            "needs": [p.requires_grad for p in model.parameters()],
            "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "torch": torch.get_rng_state(), "numpy": np.random.get_state()[1].tolist(), "python": random.getstate(),
            "optimizer": str(optimizer.state_dict()), "attributes": [sorted(vars(m)) for m in model.modules()]}


def same(a, b):
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, name


def trained(make, watch, *, place="after", autocast=None, steps=6, loss_noise=True, wrap=lambda m: m):
    """Losses of a small training with dropout and noise of every origin; `watch(model)` gives what is called."""
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    model = wrap(make())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    monitor = watch(model)
    losses = []
    for step in range(1, steps + 1):
        tokens = torch.randint(0, 256, (4, 9))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
            if place == "within autocast":
                monitor(step)
            logits = model(tokens)
            loss = F.cross_entropy(F.dropout(logits.float(), 0.1).flatten(0, 1), tokens.flatten())
            if place == "before backward":
                monitor(step)
            optimizer.zero_grad()
            loss.backward()
            if place == "before the optimizer":
                monitor(step)
        optimizer.step()
        if place == "after":
            monitor(step)
        losses.append((loss.item(), random.random(), np.random.rand(), torch.rand(1).item()))
    return losses, everything_about(model, optimizer)


def restless_monitor(model, **settings):
    looped = hooked_block(model, ["block"], loops="loops", vocabulary=256, width=8)  # else it looks, by a run
    return monitor_of(looped, **settings).step


@pytest.mark.parametrize("place", ["after", "before backward", "before the optimizer"])
def test_losses_are_those_without_a_monitor_bit_for_bit(place):
    with_, state = trained(Restless, restless_monitor, place=place)
    without, bare = trained(Restless, lambda model: lambda step: None, place=place)
    assert with_ == without
    same(state, bare)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of the model itself under autocast
@pytest.mark.parametrize("place", ["after", "before backward", "within autocast"])
def test_of_a_nano_model_under_autocast_too(place):
    def watch(model):
        return monitor_of(model, n_recurrences=8, autocast=torch.bfloat16).step

    runs = [trained(small, one, place=place, autocast=torch.bfloat16, steps=4)
            for one in (watch, lambda model: lambda step: None)]
    assert runs[0][0] == runs[1][0]
    same(runs[0][1], runs[1][1])


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("place", ["after", "before the optimizer"])
def test_of_a_model_that_keeps_things_within_things_too(place):
    wanted = trained(Hoarder, lambda model: lambda step: None, place=place)
    got = trained(Hoarder, restless_monitor, place=place)
    assert got[0] == wanted[0]
    same(got[1], wanted[1])


def test_the_probe_under_autocast_is_measured_in_its_dtype():
    model = small()
    full, low = (monitor_of(model, n_recurrences=32, autocast=dtype).step(1) for dtype in (None, torch.bfloat16))
    assert low["precision_floor"] > 100 * full["precision_floor"]
    assert low["spectral_radius"] == pytest.approx(full["spectral_radius"], rel=1e-6)  # in float32 for both


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
def test_the_weights_as_they_are_now_are_measured_whatever_autocast_has_cached():
    model = small()
    monitor = monitor_of(model, spectral_radius=False, attention=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = monitor.step(1)
        model(torch.tensor(PROBE))  # casts the weights, and keeps them
        with torch.no_grad():
            model.adapter.weight[:, :CONFIG.width] *= 0.1
        now = monitor.step(2)
    assert now["contraction_rate"] < 0.7 * before["contraction_rate"]


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel,
                                  pytest.param(lambda m: torch.compile(nn.DataParallel(m), backend="eager"),
                                               marks=pytest.mark.slow)],
                         ids=["compiled", "parallel", "both"])
def test_wrapped_models_are_unwrapped_and_left_alone(wrap):
    runs = [trained(small, one, wrap=wrap, steps=3)
            for one in (lambda m: monitor_of(m, n_recurrences=8).step, lambda m: lambda step: None)]
    assert runs[0][0] == runs[1][0]
    same(runs[0][1], runs[1][1])


def test_a_distributed_model_is_unwrapped_and_the_first_process_alone_measures(tmp_path, monkeypatch):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(small())
        assert monitor_of(model).step(1)["contraction_rate"] > 0
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
        second = monitor_of(model, log=tmp_path / "runs")
        assert second.step(1) is None
        assert second.measure(2) == {}
        assert not (tmp_path / "runs").exists()
    finally:
        torch.distributed.destroy_process_group()


def test_sharded_weights_are_refused():
    class FSDPModule:  # as torch.distributed.fsdp.fully_shard mixes it in
        pass

    class Sharded(FSDPModule, NanoModel):
        pass

    with pytest.raises(ValueError, match="sharded over processes"):
        LoopMonitor(Sharded(CONFIG), PROBE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_states_of_a_gpu_are_left_alone():
    model = small().cuda()
    monitor = monitor_of(model)
    before = torch.cuda.get_rng_state()
    assert monitor.step(1)["contraction_rate"] > 0
    assert torch.equal(before, torch.cuda.get_rng_state())


class Affine(nn.Module):
    """h <- A h + e: rate and radius are known."""

    def __init__(self, matrix):
        super().__init__()
        self.embedding, self.block = nn.Embedding(256, len(matrix)), nn.Linear(len(matrix), len(matrix), bias=False)
        self.block.weight.data = matrix

    def forward(self, tokens, loops=4):
        e = self.embedding(tokens)
        h = torch.zeros_like(e)
        for _ in range(loops):
            h = self.inject(h, e)
        return h

    def inject(self, h, e):
        return self.block(h) + e


def affine(matrix):
    """`Affine` behind the protocol; its state is read before the input enters again."""
    model = Affine(matrix)
    return model, hooked_block(model, ["block"], loops="loops", vocabulary=256, embed=model.embedding,
                               initial_state=lambda e, seeds: torch.zeros_like(e), step=model.inject,
                               readout=lambda h, e: h)


def rotation(scale, angle):
    turn = scale * torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return torch.block_diag(turn, 0.3 * torch.eye(6)).float()


@pytest.mark.parametrize("rho", [0.5, 0.8])
@pytest.mark.parametrize("angle", [0.0, 1.0])
@pytest.mark.parametrize("n_tokens", [2, 9], ids=["dense", "by products"])
def test_of_a_linear_loop_rate_and_radius_are_the_known_ones(rho, angle, n_tokens):
    torch.manual_seed(0)
    record = LoopMonitor(affine(rotation(rho, angle))[1], [p[:n_tokens] for p in PROBE], every=1,
                         n_recurrences=120).step(1)
    assert record["contraction_rate"] == pytest.approx(rho, abs=0.01)
    assert record["spectral_radius"] == pytest.approx(rho, rel=0.02)
    assert record["share_not_converged"] == 0
    assert 0 < record["precision_floor"] < 1e-5
    assert "attention_distance" not in record


def test_an_expanding_loop_does_not_pass_for_a_converged_one():
    record = LoopMonitor(affine(1.1 * torch.eye(8))[1], PROBE, every=1).step(1)
    assert record["share_not_converged"] == 1
    assert np.isnan(record["contraction_rate"])
    assert record["spectral_radius"] == pytest.approx(1.1, rel=0.02)
    assert "found" not in record["outcomes"]["contraction_rate"]


def test_the_numbers_are_those_of_the_analyzers_on_a_capture(tmp_path):
    model = small()
    record = monitor_of(model, n_recurrences=24).step(1)
    store = capture(model, PROBE, out=tmp_path / "s", n_recurrences=24, layers="state", attention=True)
    orbits = next(iter(store.stream()))
    assert record["contraction_rate"] == np.nanmedian(contraction_rate(orbits).values)
    assert record["share_not_converged"] == 1 - distance_to_limit(orbits).found.mean()
    assert record["state_norm"] == pytest.approx(orbits.states[:, -1].norm(dim=-1).median().item(), rel=0.05)
    from dynloop.recording import attention_of
    last = attention_of(store).distance[:, -1].values
    assert record["attention_distance"] == pytest.approx(last.mean(), rel=1e-6)
    assert record["attention_distance_largest"] == pytest.approx(last.max(), rel=1e-6)
    loop = LoopMap.of(nano(model), PROBE)
    states = loop.initial_states()
    for _ in range(24):
        states = loop(states)
    exact = jacobian_spectrum(loop, states)["spectral_radius"]
    assert record["spectral_radius"] == pytest.approx(np.median(exact), rel=0.03)


def test_a_search_for_the_radius_begins_where_the_last_one_ended(monkeypatch):
    monitor, products = monitor_of(small()), []
    own = LoopMap.jvps
    monkeypatch.setattr(LoopMap, "jvps", lambda self, *a: products.append(1) or own(self, *a))
    first = monitor.step(1)
    warm = len(products)
    monitor._probe._slowest = None
    assert monitor.step(2)["spectral_radius"] == pytest.approx(first["spectral_radius"], rel=0.03)
    assert warm < len(products) - warm


class Clock:
    """Stands for the module `time`."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def time(self):
        return self.now


@pytest.mark.parametrize("overhead", [0.01, 0.1])
def test_the_automatic_interval_stays_below_the_overhead_whatever_a_measurement_takes(monkeypatch, overhead):
    clock, seconds = Clock(), np.random.default_rng(0).uniform(0.4, 0.5, 10_000).tolist()
    monkeypatch.setattr(module_of_monitor, "time", clock)
    monitor = LoopMonitor(small(), PROBE, overhead=overhead, n_recurrences=4)

    def measure(failed):
        clock.now += seconds.pop()
        return {"outcomes": {}}

    monkeypatch.setattr(monitor._probe, "measure", measure)
    monitor._cost = 0.5
    records = []
    for step in range(1, 2001):
        clock.now += 1.0
        if record := monitor.step(step):
            records.append(record)
            assert monitor.overhead <= overhead
    assert len(records) == pytest.approx(2000 * overhead / 0.45, rel=0.1)
    assert records[-1]["step_seconds"] == pytest.approx(1.0)


def test_a_number_measures_at_its_multiples_and_at_none_twice():
    monitor = monitor_of(small(), every=10, n_recurrences=4)
    steps = [1, 9, 10, 10, 11, 20, 33, 34, 5, 6, 40]  # one of several parts; some skipped; counted anew
    assert [s for s in steps if monitor.step(s)] == [10, 20, 33, 40]
    counted = monitor_of(small(), every=2, n_recurrences=4)
    assert [bool(counted.step()) for _ in range(4)] == [False, True, False, True]


def test_a_failing_measurement_is_said_once_and_the_training_goes_on(tmp_path):
    model, looped = affine(0.5 * torch.eye(8))
    monitor = LoopMonitor(looped, PROBE, every=1, log=tmp_path / "a.jsonl")
    model.block = nn.Linear(8, 7)  # surgery in mid-training
    assert [monitor.step(step) for step in (1, 2, 3)] == [None] * 3
    lines = [strictly(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["run", "error"]
    assert lines[1]["step"] == 1
    assert "size of tensor a (7) must match" in lines[1]["error"]
    loud = LoopMonitor(affine(0.5 * torch.eye(8))[1], PROBE, every=1, on_error="raise")
    loud._probe.measure = lambda failed: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loud.step(1)


def test_a_failing_part_costs_no_other_number(tmp_path, monkeypatch):
    monitor = monitor_of(small(), log=tmp_path)
    monkeypatch.setattr(LoopMap, "of", lambda *a, **k: 1 / 0)
    record = monitor.step(1)
    assert record["contraction_rate"] > 0
    assert np.isnan(record["spectral_radius"])
    monitor.step(2)
    assert [e["where"] for e in read_log(tmp_path).attrs["errors"]] == ["spectral radius"]


def test_weights_that_are_not_finite_give_null_and_outcomes(tmp_path):
    model = small()
    monitor = monitor_of(model, log=tmp_path)
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
        model.block[0].mlp[0].weight.fill_(torch.nan)
    monitor.step(1)
    last = strictly((tmp_path / "monitor.jsonl").read_text().splitlines()[-1])
    assert last["contraction_rate"] is None
    assert last["spectral_radius"] is None
    assert last["share_not_converged"] == 1
    assert set(last["outcomes"]["contraction_rate"]) == {"not finite"}
    assert last["outcomes"]["spectral_radius"] == {"not finite": 2}
    assert read_log(tmp_path)["contraction_rate"].isna().all()


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    monitor = monitor_of(small(), log=tmp_path)

    def full(record):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(monitor._writers[0], "write", full)
    with pytest.warns(RuntimeWarning, match="cannot write its log.*No space left"):
        assert monitor.step(1)
    assert monitor.step(2)  # said once


def test_a_log_survives_interruptions_and_repeated_steps(tmp_path):
    model = small()
    for steps in ((2, 4, 6, 8), (6, 8, 10)):  # the second run goes on from a checkpoint at 4
        monitor = monitor_of(model, every=2, n_recurrences=6, log=tmp_path / "run")
        for step in steps:
            monitor.step(step)
        with open(tmp_path / "run" / "monitor.jsonl", "a") as file:
            file.write('{"kind": "step", "step": 12, "contr')  # killed
    frame = read_log(tmp_path / "run")
    assert frame.step.tolist() == [2, 4, 6, 8, 10]
    assert frame.attrs["torn_lines"] == 2
    assert len(frame.attrs["runs"]) == 2
    assert frame.attrs["runs"][0]["at_start"]["state_norm"] > 0
    times = read_log(tmp_path / "run", all_lines=True).query("kind == 'step'")
    assert times.step.tolist() == [2, 4, 6, 8, 6, 8, 10]
    assert frame.time.is_monotonic_increasing
    counts = frame[[name for name in frame if name.startswith("outcomes.contraction_rate")]]
    assert (counts.sum(axis=1) == 18).all()
    assert {dtype.kind for dtype in counts.dtypes} == {"i"}


def test_what_is_no_log_is_neither_read_nor_written_to(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"kind": "run", "schema": 2}\n')
    with pytest.raises(FileExistsError, match="no log of a LoopMonitor"):
        LoopMonitor(small(), PROBE, log=tmp_path / "a.jsonl")
    for name, words in (("a", "no log of a LoopMonitor"), ("b", "schema 2. Update")):
        with pytest.raises(ValueError, match=words):
            read_log(tmp_path / f"{name}.jsonl")
    for line in ('{"kind": "step"}', '{"kind": "step", "step": null}', '{"kind": "run", "schema": "one"}', "[1]", "7"):
        (tmp_path / "d.jsonl").write_text('{"kind": "run", "schema": 1}\n' + line + "\n")
        with pytest.raises(ValueError, match="is none of its records"):
            read_log(tmp_path / "d.jsonl")
    (tmp_path / "c.jsonl").write_text('{"kind": "step", "step": 1}\n')
    with pytest.raises(ValueError, match="does not begin with a run"):
        read_log(tmp_path / "c.jsonl")
    with pytest.raises(FileNotFoundError, match="given to LoopMonitor as log="):
        read_log(tmp_path)


def test_tensorboard_gets_the_numbers_that_the_lines_have(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monitor = monitor_of(small(), every=2, log=tmp_path, format=["jsonl", "tensorboard"])
    monitor.step(2), monitor.step(4)
    monitor.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    frame = read_log(tmp_path)
    for name in ("contraction_rate", "spectral_radius", "attention_distance", "share_not_converged"):
        seen = events.Scalars(f"dynloop/{name}")
        assert [e.step for e in seen] == [2, 4]
        np.testing.assert_allclose([e.value for e in seen], frame[name], rtol=1e-6)
    assert "dynloop/outcomes/contraction_rate/found" in events.Tags()["scalars"]


def test_the_training_of_a_nano_model_takes_a_monitor(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text("the quick brown fox " * 200)
    corpus = load_corpus(tmp_path / "text")
    settings = TrainingConfig(steps=4, batch_size=2, length=16, log_every=1, evaluate_every=4, checkpoint_every=2)
    train(CONFIG, settings, corpus, tmp_path / "a")
    train(CONFIG, settings, corpus, tmp_path / "b",
          monitor=lambda model: monitor_of(model, every=2, log=tmp_path / "b").step)
    lines = [[{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in
              (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in "ab"]
    hashes = [json.loads((tmp_path / name / "model.json").read_text())["sha256"] for name in "ab"]
    assert lines[0] == lines[1]
    assert hashes[0] == hashes[1]
    assert read_log(tmp_path / "b").step.tolist() == [2, 4]


def test_a_loop_without_attention_or_map_says_what_is_left_out():
    assert set(LoopMonitor(affine(0.5 * torch.eye(8))[1], PROBE).left_out) == {"attention"}
    recorded = hooked_block(Restless(), ["block"], loops="loops", vocabulary=256)
    monitor = LoopMonitor(recorded, PROBE, every=1)
    assert set(monitor.left_out) == {"attention", "spectral_radius"}
    assert monitor.step(1)["state_norm"] > 0
    with pytest.raises(ValueError, match="no map that can be stepped"):
        LoopMonitor(recorded, PROBE, spectral_radius=True)
    with pytest.raises(ValueError, match="attention"):
        LoopMonitor(recorded, PROBE, attention=True)
    quiet = monitor_of(small(), attention=False, spectral_radius=False).step(1)
    assert not {"attention_distance", "spectral_radius"} & set(quiet)


@pytest.mark.parametrize(("settings", "words"), [
    ({"every": 0}, "every must be a whole number"), ({"every": "often"}, "every must be"),
    ({"overhead": 0}, "overhead must be above 0"), ({"tolerance": -1}, "tolerance must be"),
    ({"on_error": "ignore"}, "on_error must be one of"), ({"format": "csv"}, "format must be one of"),
    ({"format": "tensorboard"}, "needs a folder"), ({"n_recurrences": 1}, "n_recurrences must be"),
    ({"positions": [99]}, "positions must be among 0 to 8"), ({"positions": [True]}, "positions must be"),
    ({"positions": []}, "positions must be"), ({"autocast": "bf16"}, "autocast must be a dtype"),
    ({"autocast": torch.int8}, "autocast must be a dtype")])
def test_a_bad_setting_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        LoopMonitor(small(), PROBE, **settings)


def test_positions_may_be_an_array():
    settings = {"attention": False, "spectral_radius": False}
    one, two = (monitor_of(small(), positions=positions, **settings) for positions in (np.array([-1, 2]), [2, 8]))
    assert one.step(1)["state_norm"] == two.step(1)["state_norm"]


def test_a_bad_model_or_probe_is_refused():
    with pytest.raises(TypeError, match="torch module that is trained"):
        LoopMonitor("nano-settles", PROBE)
    with pytest.raises(ValueError, match="of no known family"):
        LoopMonitor(Restless(), PROBE)
    with pytest.raises(ValueError, match=r"must have one length; got \[3, 9\]"):
        LoopMonitor(small(), [PROBE[0], [1, 2, 3]])


_COMPILED = """
import pkgutil, importlib, numpy as np, torch, dynloop.kernels
from dynloop import Trajectories
from dynloop.monitoring import LoopMonitor
from dynloop.monitoring.probe import _of_orbits
from dynloop.nano import NanoConfig, NanoModel

def compiled():
    names = [m.name for m in pkgutil.iter_modules(dynloop.kernels.__path__)]
    homes = [importlib.import_module(f"dynloop.kernels.{name}") for name in names]
    return {f"{home.__name__}.{name}": len(kernel.signatures) for home in homes
            for name, kernel in vars(home).items() if hasattr(kernel, "signatures")}

LoopMonitor(NanoModel(NanoConfig(width=16, n_heads=2)), [list(b"import os")], spectral_radius=False, attention=False)
before = compiled()
rng, t = np.random.default_rng(1), np.arange(48)[:, None]
for kind in range(40):
    rate = rng.uniform(0, 1.05, (12, 1, rng.choice([1, 12])))
    noise = rng.normal(size=(12, 48, 12)) * rng.choice([0, 1e-6, 1e-3, 0.3], (12, 1, 1))
    x = 1 + rate**t * np.cos(rng.choice([0, 0.3, np.pi]) * t) * rng.normal(size=(12, 1, 12)) + noise
    x = x + rng.choice([0, 0, 0.1]) * t
    x[0, rng.integers(2, 48):] = rng.choice([np.nan, 1.0])
    _of_orbits(Trajectories(torch.as_tensor(x).float()), 1e-3, {})
after = compiled()
assert sum(after.values()) > 5
print({n: (before[n], k) for n, k in after.items() if before[n] != k})
"""


@pytest.mark.slow
def test_no_kernel_is_compiled_in_the_middle_of_a_training():
    code = [sys.executable, "-W", "ignore", "-c", _COMPILED]
    assert subprocess.check_output(code, text=True).strip() == "{}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", lookalikes.MODELS)
def test_models_of_every_family_are_measured_and_left_alone(name):
    family, make = lookalikes.MODELS[name]
    if family == "ouro":
        pytest.importorskip("transformers")
    model = make()
    looped = load(model)
    probe = torch.randint(0, looped.vocabulary, (2, looped.n_tokens or 6), generator=torch.Generator().manual_seed(0))
    model.train()
    optimizer = torch.optim.SGD(model.parameters())
    before = everything_about(model, optimizer)
    monitor = LoopMonitor(model, probe, every=1, n_recurrences=min(12, looped.most_recurrences or 12))
    record = monitor.step(1)
    same(before, everything_about(model, optimizer))
    assert record["state_norm"] > 0
    assert sum(record["outcomes"]["contraction_rate"].values()) == 2 * probe.shape[1]
    assert "attention_distance" in record or "attention" in monitor.left_out
    assert record.get("spectral_radius", np.nan) > 0 or "spectral_radius" in monitor.left_out
