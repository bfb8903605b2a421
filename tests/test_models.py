"""Every looped model, of the package or of the small modules beside this file, keeps what its specification promises.

The small modules note their states themselves, by their own loop variables and without hooks: what is recorded is held
against that. A new file in dynloop/models or tests/looped_modules is found by itself.
"""

import contextlib
import copy
import dataclasses
import importlib
import pkgutil
import random

import looped_modules
import numpy as np
import pytest
import torch
from torch import nn

from dynloop import capture
from dynloop.maps.loop_map import LoopMap
from dynloop.models import LoopedModel, StatePoint, hooked_block, load, nano, recording, temporarily, verify
from dynloop.models.by_name import families
from dynloop.models.looped_model import Missing, first_state, parameter_identity
from dynloop.nano import NanoConfig, NanoModel
from dynloop.store import StoreError
from dynloop.testing import MODEL_CONTRACTS, check_looped_model
from dynloop.testing.condition import condition
from dynloop.testing.contract import differ

# ---- what there is


def small_modules():
    homes = {info.name: importlib.import_module(f"looped_modules.{info.name}")
             for info in pkgutil.iter_modules(looped_modules.__path__)}
    return {name: home.looped for name, home in homes.items() if hasattr(home, "looped")}


def albert():
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(vocab_size=31, embedding_size=8, hidden_size=16, num_hidden_layers=3,
                                       num_attention_heads=2, intermediate_size=24, inner_group_num=2,
                                       max_position_embeddings=32)
    with torch.random.fork_rng():
        return load(transformers.AlbertForMaskedLM(config).eval())


def hrm_text():
    transformers = pytest.importorskip("transformers", minversion="5.9")
    config = transformers.HrmTextConfig(vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                        num_attention_heads=2, head_dim=8, H_cycles=2, L_cycles=2,
                                        max_position_embeddings=32)
    with torch.random.fork_rng():
        return load(transformers.HrmTextForCausalLM(config).eval())


SMALL = small_modules()
BUILT = {"nano": lambda: nano(NanoModel(NanoConfig(width=16, n_heads=2, initial_state="random"), seed=1)),
         "albert": albert, "hrm_text": hrm_text}
# whose own code is not here: the small module with the same call pattern
STANDS_FOR = {"huginn": "sandwich_recurrence", "retrofit": "sandwich_recurrence", "ouro": "whole_stack",
              "looped_nanochat": "inject_and_norm", "hrm": "outer_steps", "trm": "one_network", "parcae": "narrow_loop",
              "open_mythos": "early_exit", "mor": "tied_copies"}
MODELS = {**BUILT, **SMALL}


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(),
                                                                             reason="no GPU"))])
def device(request):
    return request.param


@pytest.fixture(params=list(MODELS))
def looped(request):
    return MODELS[request.param]()


@pytest.fixture(params=list(SMALL))
def small(request):
    return SMALL[request.param]()


def loops_of(looped):
    return looped.most_recurrences or 5


def prompts_of(looped, *, ragged=True):
    lengths = [looped.n_tokens] * 3 if looped.n_tokens else [5, 7, 5] if ragged else [5, 5, 5]
    draw = np.random.default_rng(3)
    return [draw.integers(1, looped.vocabulary - 1, length).tolist() for length in lengths]


# ---- conformance

def test_every_family_is_tried_here_or_by_a_module_with_its_call_pattern():
    names = {name for name, _ in families()}
    assert names <= {*BUILT, *STANDS_FOR}
    assert set(STANDS_FOR.values()) | {"layer_group", "two_stacks"} == set(SMALL)  # these two as albert and hrm_text


@pytest.mark.parametrize("contract", MODEL_CONTRACTS)
def test_the_specification_keeps_its_contract(looped, contract):
    check_looped_model(looped, only=[contract])


def test_steps_by_hand_reproduce_the_states_and_logits(looped):
    again = verify(looped, n_recurrences=looped.most_recurrences or 3 * looped.multiple, seed=9)
    assert max(again.step_error, again.logit_error) <= 1e-6


def test_outputs_are_the_same_bit_for_bit(looped, tmp_path):
    prompts = prompts_of(looped, ragged=False)
    store = capture(looped, prompts, out=tmp_path / "s", n_recurrences=loops_of(looped), seed=4)
    batch, = store.inputs()
    start = batch["initial_states"]
    rows = [slice(i, i + 1) for i in range(3)] if looped.ragged else [slice(0, 3)]
    with torch.no_grad():
        own = torch.cat([looped.run(torch.tensor(prompts)[row], loops_of(looped), start[row]) for row in rows])
    assert torch.equal(batch["logits"], own)


def traced(looped, prompts, n, starts):
    """{(recurrence, place): (stack, states of all prompts)}, as the module itself noted them."""
    looped.module.trace = []
    with torch.no_grad():
        looped.run(torch.tensor(prompts), n, starts)
    notes, looped.module.trace = looped.module.trace, None
    found = {(r, place): (stack, state) for r, place, stack, state in notes}
    assert len(found) == len(notes)
    return found


def test_every_state_has_the_recurrence_stack_and_layer_that_the_module_noted_itself(small, tmp_path):
    prompts, n = prompts_of(small, ragged=False), loops_of(small)
    store = capture(small, prompts, out=tmp_path / "s", n_recurrences=n, seed=2, batch_size=1)
    compared = 0
    for batch in store.inputs():
        prompt, = batch["prompts"]
        notes = traced(small, [prompts[prompt]], n, batch["initial_states"])
        own = store.trajectories(prompt=prompt)
        assert {r for r, _ in notes} == set(range(int(own.lengths.max())))
        assert {place + 1 for _, place in notes} == set(own.labels["layer"])
        for orbit, layer, stack, token, length in zip(own.states, own.labels["layer"], own.labels["stack"],
                                                      own.labels["token"], own.lengths, strict=True):
            for r in range(length):
                named, state = notes[r, int(layer) - 1]
                assert named == stack
                assert torch.equal(orbit[r], state[0, small.prefix + token])
                compared += 1
    assert compared >= 3 * 5 * len(small.points) * 2


def test_the_loop_state_is_its_points_side_by_side_and_steps_on(small, tmp_path):
    prompts, n = prompts_of(small, ragged=False), loops_of(small)
    store = capture(small, prompts[:1], out=tmp_path / "s", n_recurrences=n, layers="state")
    parts = capture(small, prompts[:1], out=tmp_path / "parts", n_recurrences=n)
    joint = store.trajectories()
    assert joint.dim == small.state_width
    chosen = [range(len(small.points))[point] + 1 for point in small.state_points]
    beside = torch.cat([parts.trajectories(layer=layer).states for layer in chosen], dim=-1)
    np.testing.assert_array_equal(joint.states.numpy(), beside.numpy())
    assert store.header["state_points"] == chosen
    if small.prefix:
        return  # the states before the tokens are not stored
    context, length = small.embed(torch.tensor(prompts[:1])), int(joint.lengths[0])
    with torch.no_grad():
        for r in range(length - 1):
            which = {} if small.autonomous else {"recurrence": r + 1}
            torch.testing.assert_close(small.step(joint.states[None, :, r], context, **which)[0],
                                       joint.states[:, r + 1], rtol=0, atol=1e-6)


def test_the_map_of_the_loop_steps_as_the_recording_does(looped, tmp_path):
    prompts, n = prompts_of(looped, ragged=False), loops_of(looped)
    if not looped.autonomous:
        with pytest.raises(ValueError, match="applies a different map at every recurrence"):
            LoopMap.of(looped, prompts)
        return
    store = capture(looped, prompts, out=tmp_path / "s", n_recurrences=n, layers="state", seed=1)
    states = store.trajectories().states.unflatten(0, (3, -1))
    held = LoopMap.of(looped, prompts, dtype=None)
    orbit = [held.initial_states(seeds=[1, 2, 3])]
    for r in range(n):
        orbit.append(held(orbit[-1]))
        torch.testing.assert_close(orbit[-1][:, looped.prefix:], states[:, :, r], rtol=0, atol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_comes_back_unchanged(looped, tmp_path, fails):
    module = looped.module
    module.train()
    next(module.children()).eval()
    weights = list(module.parameters())
    weights[0].requires_grad_(False)
    weights[1].grad = torch.ones_like(weights[1])
    before = condition(module)

    def broken(*given):
        torch.rand(3), np.random.random(), random.random()
        looped.run(*given)
        raise ZeroDivisionError

    model = dataclasses.replace(looped, run=broken) if fails else looped
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        capture(model, prompts_of(looped), out=tmp_path / "s", n_recurrences=loops_of(looped))
    assert not differ(before, condition(module))
    if not fails:
        verify(looped)
        assert not differ(before, condition(module))


def test_ragged_prompts_run_as_if_each_were_alone(looped, tmp_path):
    prompts, n = prompts_of(looped), loops_of(looped)
    together = capture(looped, prompts, out=tmp_path / "all", n_recurrences=n, seed=5)
    for number, prompt in enumerate(prompts):
        alone = capture(looped, [prompt], out=tmp_path / str(number), n_recurrences=n, seed=5 + number).trajectories()
        among = together.trajectories(prompt=number)
        assert (among.lengths == alone.lengths).all()
        torch.testing.assert_close(among.states, alone.states, rtol=0, atol=2e-5, equal_nan=True)


def test_on_any_device_the_states_are_the_same(small, tmp_path, device):
    prompts, n = prompts_of(small), loops_of(small)
    here = capture(small, prompts, out=tmp_path / "cpu", n_recurrences=n).trajectories().states
    small.module.to(device)
    there = capture(small, prompts, out=tmp_path / device / "s", n_recurrences=n).trajectories().states
    torch.testing.assert_close(here, there, rtol=0, atol=1e-4, equal_nan=True)


def test_bfloat16_models_are_recorded_as_they_compute(small, tmp_path):
    small.module.bfloat16()
    store = capture(small, prompts_of(small)[:1], out=tmp_path / "s", n_recurrences=loops_of(small))
    states = store.trajectories().states
    assert store.header["resolution"] == 2.0**-7
    assert torch.equal(states.bfloat16().float().nan_to_num(), states.nan_to_num())


# ---- what verify notices

def wrong(name, **changes):
    looped = SMALL[name]()
    return dataclasses.replace(looped, **{key: make(looped) for key, make in changes.items()})


@pytest.mark.parametrize(("make", "words"), [
    (lambda: wrong("whole_stack", step=lambda m: lambda x, c: m.step(x, c) * (1 + 1e-5)), "steps by hand differ"),
    (lambda: wrong("whole_stack", readout=lambda m: lambda x, c: m.readout(2 * x, c)), "the readout of the last state"),
    (lambda: wrong("sandwich_recurrence", run=lambda m: lambda t, n, s: m.module(t, num_steps=n)["logits"]),
     "steps by hand differ"),  # it draws another start than it was given
    (lambda: wrong("sandwich_recurrence", state_points=lambda m: [1]), "steps by hand differ"),
    (lambda: wrong("two_stacks", state_points=lambda m: [7, 5]), "steps by hand differ"),
    (lambda: wrong("two_stacks", state_points=lambda m: [7]), r"initial state of Model has shape \(2, 8, 32\) where"),
    (lambda: wrong("two_stacks", points=lambda m: [m.points[i] for i in (2, 3, 4, 5, 6, 7, 0, 1)]),
     "were called .* each must be called once a recurrence, in order"),
    (lambda: wrong("early_exit", step=lambda m: lambda x, c, recurrence=0: m.step(x, c)), "steps by hand differ"),
    (lambda: wrong("whole_stack", points=lambda m: [StatePoint((m.module.lm_head,))]), "were called"),
])
def test_a_specification_that_does_not_describe_its_model_is_refused(make, words):
    with pytest.raises(RuntimeError, match=words):
        verify(make())


def test_verification_says_how_far_off_it_is():
    looped = wrong("whole_stack", step=lambda m: lambda x, c: m.step(x, c) * (1 + 1e-3))
    assert verify(looped, tolerance=0.01).step_error == pytest.approx(1e-3, rel=0.01)


def test_a_loop_that_magnifies_rounding_is_verified_step_by_step():
    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.map = nn.Embedding(7, 4), nn.Identity()

        def forward(self, x, n):
            for _ in range(n):
                x = self.map(4 * x * (1 - x))
            return x

    model = Wild()
    looped = hooked_block(model, ["map"], run=lambda t, n, x: model(x, n), embed=lambda t: model.wte(t).sigmoid(),
                          initial_state=lambda x, seeds: x, readout=lambda x, c: x,
                          step=lambda x, c: 4 * x - 4 * x * x)  # rounds otherwise
    found = verify(looped, n_recurrences=30, tolerance=1e-5)
    assert found.step_error <= 1e-5 < found.path_error


# ---- hooked_block

def test_without_a_map_states_are_recorded_and_the_map_is_refused(tmp_path):
    full = SMALL["inject_and_norm"]()
    pure = hooked_block(full.module, ["recur.0", "norm_recur"], loops="num_recur")
    assert not pure.is_map
    one, two = (capture(m, [[1, 2, 3]], out=tmp_path / str(i), n_recurrences=4) for i, m in enumerate((full, pure)))
    assert torch.equal(one.trajectories().states, two.trajectories().states)
    assert "initial_states" not in next(two.inputs())
    for part in (pure.embed, pure.step, verify, lambda m: LoopMap.of(pure, [[1, 2]])):
        with pytest.raises(ValueError, match=r"has no embed|has no step.*it is no map\. Give hooked_block embed="):
            part(pure)


def test_a_model_that_draws_its_own_start_is_recorded_from_seeds(tmp_path):
    full = SMALL["sandwich_recurrence"]()
    pure = hooked_block(full.module, ["transformer.core_block.2"], loops="num_steps", random_start=True)
    stores = [capture(pure, [[1, 2, 3], [3, 4, 5]], out=tmp_path / str(i), n_recurrences=4, seed=seed, batch_size=size,
                      n_starts=2) for i, (seed, size) in enumerate([(1, 2), (1, 1), (6, 2)])]
    states = [store.trajectories().states for store in stores]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    orbits = stores[0].trajectories(prompt=0, token=0)
    assert not torch.equal(orbits.states[0], orbits.states[1])
    assert orbits.labels["seed"].tolist() == [1, 3]
    torch.manual_seed(3)  # the seed of prompt 0, start 1
    with torch.no_grad():
        logits = full.module(torch.tensor([[1, 2, 3]]), num_steps=4)["logits"]
    assert torch.equal(next(stores[0].inputs())["logits"][1], logits[0])


def test_an_attribute_sets_the_number_of_loops_and_is_put_back(tmp_path):
    model = SMALL["layer_group"]().module
    looped = hooked_block(model, ["group"], loops="config.num_hidden_layers")
    assert looped.width == 16
    assert looped.vocabulary == 31
    assert capture(looped, [[1, 2]], out=tmp_path / "s", n_recurrences=7).n_steps == 7
    assert model.config.num_hidden_layers == 3


def test_states_are_found_in_tuples_mappings_and_dataclasses_or_by_their_key():
    @dataclasses.dataclass
    class Out:
        loss: None
        states: tuple

    a, b = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    assert first_state(Out(None, (torch.arange(3), a, b))) is a
    assert first_state({"ids": torch.arange(3), "out": [None, {"x": b}]}) is b
    assert first_state(["text", 3, torch.arange(2)]) is None
    here = (nn.Identity(),)
    assert StatePoint(here, key=1).state((a, b)) is b
    assert StatePoint(here, key="y").state({"x": a, "y": (b,)}) is b
    assert StatePoint(here, key="states").state(Out(None, (b, a))) is b
    assert StatePoint(here, reads="input", key="hidden").state((), {"cos": a, "hidden": b}) is b
    assert StatePoint(here, reads="input").state((), {"ids": torch.arange(2), "hidden": b}) is b
    assert StatePoint(here, key="z").state({"x": a}) is None


@pytest.mark.parametrize("point", ["transformer.core_block.1:input", StatePoint])
def test_the_input_of_a_call_is_the_output_of_the_one_before(tmp_path, point):
    full = SMALL["sandwich_recurrence"]()
    if point is StatePoint:
        point = StatePoint((full.module.transformer["core_block"][1],), reads="input", key=0)
    looped = hooked_block(full.module, [point], loops="num_steps", width=16, random_start=True)
    outputs = hooked_block(full.module, ["transformer.core_block.0"], loops="num_steps", random_start=True)
    one, two = (capture(m, [[1, 2, 3]], out=tmp_path / str(i), n_recurrences=4).trajectories().states
                for i, m in enumerate((looped, outputs)))
    assert torch.equal(one, two)


def test_a_store_is_not_gone_on_with_by_other_weights_or_other_points(tmp_path):
    full = SMALL["inject_and_norm"]()
    settings = {"inputs": [[1, 2, 3]], "out": tmp_path / "s", "n_recurrences": 3}
    store = capture(full, **settings)
    assert store.header["model"]["points"] == ["block: output of recur.0", "block: output of norm_recur"]
    assert store.header["model"]["class"] == "Model"
    other = copy.deepcopy(full.module)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1e-3
    for looped in (importlib.import_module("looped_modules.inject_and_norm").looped(other),
                   hooked_block(full.module, [full.points[1]], loops="num_recur")):
        with pytest.raises(StoreError, match=r"made with other settings .*they differ in .*model"):
            capture(looped, **settings)


@dataclasses.dataclass(frozen=True)
class Frozen:
    n: int = 2


def bare(points, **settings):
    module = SMALL["inject_and_norm"]().module
    module.config = Frozen()
    module.register_buffer("table", torch.zeros(3))
    type(module).fixed = property(lambda self: 2)
    return hooked_block(module, points, **{"loops": "num_recur", **settings})


def tied(*paths):
    return hooked_block(SMALL["tied_copies"]().module, [paths])


@pytest.mark.parametrize(("make", "words"), [
    (lambda: bare("recur.0"), "points must be a list of paths"),
    (lambda: bare([]), "points must be a list of paths"),
    (lambda: bare(["recur.7"]), r"no module 'recur.7': recur has 0, 1\. `dynloop inspect`"),
    (lambda: bare(["nothing.0"]), "no module 'nothing.0': the model has wte, inject"),
    (lambda: bare(["recur.0"], stacks=["a", "b"]), "stacks must name the stack of each of 1 points; got 2"),
    (lambda: bare(["recur.0"], loops=None), "loops must say what sets the number of loops"),
    (lambda: bare(["recur.0"], loops="n_loops"), r"loops='n_loops' is neither an argument .*\(idx, num_recur, warm_st"),
    (lambda: bare(["recur.0"], loops="recur"), "loops='recur' is ModuleList, no whole number that could say how often"),
    (lambda: bare(["recur.0"], loops="table"), "loops='table' is Tensor, no whole number"),
    (lambda: bare(["recur.0"], loops="config.n"), "loops='config.n' cannot be set: Frozen does not allow it .*cannot"),
    (lambda: bare(["recur.0"], loops="fixed"), "loops='fixed' cannot be set: .* does not allow it .*hooked_block run="),
    (lambda: bare(["recur.0"], run=lambda t, n, s: {"logits": s, "loss": s}), "gave dict with logits, loss for 1"),
    (lambda: bare(["recur.0"], run=lambda t, n, s: torch.zeros(())), r"gave a tensor of shape \(\) for 1 prompts"),
    (lambda: bare(["recur.0"], run=lambda t, n, s: None), "gave NoneType for 1 prompts"),
    (lambda: tied("layers.0.1:input", "layers.1.1:output"), "read the input of some copies and the output of others"),
    (lambda: bare(["recur.0", "lm_head"]), "were called"),
    (lambda: bare(["recur.0.up", "recur.0"]), r"have \[16, 32\] features; all points need the same width"),
    (lambda: bare([("recur.0", "recur.1")]), "recur.0, recur.1 are no tied copies"),
    (lambda: bare([("norm_recur", "norm_recur")]), "are no tied copies"),
    (lambda: bare(["recur.0"], mask="seen"), "mask of Model must be one of honoured, ignored; got 'seen'"),
    (lambda: bare(["recur.0"], forwards="one"), "forwards of Model must be one of recurrences, decoding"),
    (lambda: bare(["recur.0"], state_points=[1]), "state_points of Model must be among its 1 points"),
    (lambda: StatePoint((nn.Identity(),), reads="both"), "reads must be one of output, input; got 'both'"),
    (lambda: StatePoint(nn.Identity()), "needs a tuple of torch modules"),
    (lambda: hooked_block(nn.Linear(2, 2), [""], loops="x"), "has no torch.nn.Embedding"),
    (lambda: load(nn.Linear(2, 2)), "is of no known family"),
    (lambda: bare(["recur.0"]).encode("text"), "has no encode=: give prompts as lists of token numbers"),
])
def test_what_is_no_specification_is_refused(make, words):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=words):
        make()


class Routed(nn.Module):
    """As in Mixture of Recursions: a router picks the tokens that go round once more."""

    def __init__(self):
        super().__init__()
        self.wte, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)
        self.router, self.block = nn.Linear(4, 1), nn.Linear(4, 4)

    def forward(self, tokens, n_loops=2):
        x = self.wte(tokens)
        for r in range(n_loops):
            best = self.router(x)[..., 0].topk(max(1, x.shape[1] >> r), dim=1).indices.sort(dim=1).values[..., None]
            chosen = best.expand(-1, -1, x.shape[2])
            x = x.scatter(1, chosen, self.block(x.gather(1, chosen)))
        return self.head(x)


def test_a_router_that_lets_some_tokens_go_round_is_refused_by_shape(tmp_path):
    with pytest.raises(ValueError, match=r"shapes \[\(1, 1\), \(1, 2\)\] before their features where \(1, 2\) is due"):
        hooked_block(Routed(), ["block"], loops="n_loops")
    for point in ("block", "router"):
        with pytest.raises(RuntimeError, match=r"has shape .*tokens that were left out, or another module"):
            capture(hooked_block(Routed(), [point], loops="n_loops", width=4), [[1, 2, 3, 4]], out=tmp_path / point,
                    n_recurrences=3)


def test_copies_are_told_by_their_matrices():
    layers = SMALL["tied_copies"]().module.layers
    assert parameter_identity(layers[0][1]) == parameter_identity(layers[2][1]) != parameter_identity(layers[0][0])
    assert parameter_identity(copy.deepcopy(layers[0][1])) != parameter_identity(layers[0][1])


def test_points_of_different_numbers_of_copies_are_refused():
    looped = SMALL["tied_copies"]()
    with pytest.raises(ValueError, match=r"have \[1, 3\] copies"):
        dataclasses.replace(looped, points=[looped.points[0], StatePoint((looped.module.head,))])


def test_a_missing_part_says_what_to_give():
    with pytest.raises(ValueError, match=r"the specification of m has no step: .*Give hooked_block"):
        Missing("step", "m")(1, 2)


def test_attributes_are_put_back_even_after_an_error():
    class Config:
        loops, other = 3, 1

    config, seen = Config(), []
    with pytest.raises(ZeroDivisionError), temporarily(config, loops=7, other=2):
        seen.append((config.loops, config.other, 1 / 0 if config.loops == 7 else None))
    assert (config.loops, config.other) == (3, 1)


def test_recording_shows_the_models_own_tensors_in_order():
    looped, seen = SMALL["two_stacks"](), []
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad(), recording(looped, lambda *found: seen.append(found)) as calls:
        looped.run(tokens, 2, looped.initial_state(looped.embed(tokens)))
    calls.check(2)
    assert [(f, r, p) for f, r, p, _ in seen] == [(0, r, p) for r in range(2) for p in range(8)]
    assert isinstance(looped, LoopedModel)
