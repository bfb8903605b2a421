"""`dynloop.testing` lets pass what keeps its contract, and names each contract that is broken, and what to do."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from looped_modules import inject_and_norm, whole_stack
from torch import nn

import dynloop
from dynloop import LoopMap, Measurement, Outcome
from dynloop.models import hooked_block, nano
from dynloop.nano import NanoConfig, NanoModel
from dynloop.settings import check_number
from dynloop.testing import (
    ANALYZER_CONTRACTS,
    MAP_CONTRACTS,
    MODEL_CONTRACTS,
    check_analyzer,
    check_looped_model,
    check_map,
)
from dynloop.testing.contract import differ

# ---- analyzers


def measured(trajectories, spread, settings=None, *, name="spread", outcomes=None, labels=None):
    lengths = trajectories.lengths
    said = np.full(len(lengths), Outcome.FOUND, dtype=object)
    said[lengths < 2], said[trajectories.diverged] = Outcome.TOO_SHORT, Outcome.NOT_FINITE
    said = said if outcomes is None else outcomes
    found = np.array([outcome is Outcome.FOUND for outcome in said])
    return Measurement(name, {"spread": np.where(found, spread, np.nan)}, said, settings=settings or {},
                       labels=trajectories.labels if labels is None else labels)


def size(states):
    """Rms distance of the states of one orbit from their mean."""
    return float((states - states.mean(0)).square().sum(1).mean().sqrt()) if len(states) else np.nan


def each(trajectories, of=size):
    return np.array([of(states[:n].double())
                     for states, n in zip(trajectories.states, trajectories.lengths, strict=True)])


def spread(trajectories, *, power=1.0):
    check_number("power", power, lambda v: 0 < v < np.inf, "a positive number (the default is 1)")
    return measured(trajectories, each(trajectories) ** power, {"power": power})


def broken(function):
    """The same name, so that only one contract is broken."""
    function.__name__ = "spread"
    return function


def plain(of):
    return broken(lambda trajectories: measured(trajectories, each(trajectories, of)))


@broken
def positional(trajectories, power=1.0):
    return spread(trajectories, power=power)


@broken
def takes_all(trajectories, **settings):
    return spread(trajectories)


@broken
def careless(trajectories, *, power=1.0):
    return measured(trajectories, each(trajectories), {"power": power})


@broken
def forgetful(trajectories, *, power=1.0):
    check_number("power", power, lambda v: 0 < v < np.inf, "a positive number (the default is 1)")
    return measured(trajectories, each(trajectories))


@broken
def unlabelled(trajectories):
    return measured(trajectories, each(trajectories), labels={})


@broken
def never_done(trajectories):
    m = measured(trajectories, each(trajectories))
    return measured(trajectories, m.values, outcomes=np.where(m.found, Outcome.NOT_FOUND, m.outcomes))


@broken
def relative_to_all(trajectories):
    values = each(trajectories)
    return measured(trajectories, values / np.nanmax(values))


@broken
def chunk_by_chunk(trajectories):
    return measured(trajectories, np.concatenate([each(part) + len(part) for part in trajectories.chunks()]))


@broken
def by_place(trajectories):
    return measured(trajectories, each(trajectories) + np.arange(len(trajectories.lengths)))


@broken
def blind_to_infinity(trajectories):
    m = measured(trajectories, each(trajectories))
    return measured(trajectories, m.values, outcomes=np.where(m.outcomes == Outcome.NOT_FINITE, Outcome.NOT_FOUND,
                                                              m.outcomes))


@broken
def blind_to_shortness(trajectories):
    m = measured(trajectories, each(trajectories))
    return measured(trajectories, m.values, outcomes=np.where(m.outcomes == Outcome.TOO_SHORT, Outcome.NOT_FOUND,
                                                              m.outcomes))


@broken
def beyond_lengths(trajectories):
    return measured(trajectories, np.array([size(states.double().nan_to_num()) for states in trajectories.states]))


@broken
def writes(trajectories):
    m = measured(trajectories, each(trajectories))
    trajectories.states[0, 0] += 1
    return m


CALLS = itertools.count()


@broken
def counts(trajectories):
    return measured(trajectories, each(trajectories) + next(CALLS))


BROKEN = {
    "settings": positional, "unknown settings": takes_all, "nonsense": careless, "recorded settings": forgetful,
    "outcomes": unlabelled, "alone": relative_to_all, "chunks": chunk_by_chunk, "order of orbits": by_place,
    "turned space": plain(lambda x: size(x.abs())), "order of features": plain(lambda x: size(x[:, :3])),
    "features of 0": plain(lambda x: size(x) / x.shape[1]), "shifted space": plain(lambda x: float(x.norm())),
    "orbits that are not finite": blind_to_infinity, "short orbits": blind_to_shortness, "lengths": beyond_lengths,
    "states": writes, "the same again": counts}


def test_an_analyzer_of_somebodys_own_that_keeps_the_contract_passes():
    check_analyzer(spread)
    check_analyzer(spread, settings={"power": 2.0})


def test_there_is_a_broken_one_for_every_contract():
    assert set(BROKEN) == set(ANALYZER_CONTRACTS)
    assert set(BROKEN_MAPS) == set(MAP_CONTRACTS)
    assert set(BROKEN_MODELS) == set(MODEL_CONTRACTS)


@pytest.mark.parametrize("contract", BROKEN)
def test_an_analyzer_that_breaks_a_contract_is_told_which_and_what_to_do(contract):
    with pytest.raises(AssertionError) as told:
        check_analyzer(BROKEN[contract], only=[contract])
    own = ANALYZER_CONTRACTS[contract]
    assert str(told.value).startswith(f"spread breaks the contract {contract!r}: it must {own.promise}; but ")
    assert str(told.value).endswith(f". {own.advice}")


def test_an_analyzer_that_never_finds_anything_or_takes_the_wrong_things_is_told():
    with pytest.raises(AssertionError, match=r"in torch.float64 it never finds anything"):
        check_analyzer(never_done, only=["outcomes"])
    with pytest.raises(AssertionError, match=r"but it raised ZeroDivisionError"):
        check_analyzer(broken(lambda trajectories: 1 / 0), only=["alone"])
    with pytest.raises(AssertionError, match=r"its first argument, here, is not the trajectories alone"):
        check_analyzer(broken(lambda *, here: None), only=["settings"])
    with pytest.raises(AssertionError, match=r"power has no default"):
        check_analyzer(broken(lambda trajectories, *, power: None), only=["settings"])


def test_what_an_analyzer_sees_on_purpose_is_no_breach():
    check_analyzer(BROKEN["shifted space"], sees=["origin"])
    check_analyzer(BROKEN["order of features"], sees=["axes"])
    with pytest.raises(AssertionError, match="'turned space'"):
        check_analyzer(BROKEN["turned space"])


@pytest.mark.parametrize("only", ["alone", [], ["nothing"]])
def test_contracts_that_there_are_not_are_refused(only):
    with pytest.raises(ValueError, match="only must be a list of some of settings, unknown settings"):
        check_analyzer(spread, only=only)
    with pytest.raises(ValueError, match="only must be a list of some of states"):
        check_map(LoopMap(lambda x, contexts: x, (2,)), only=only)


def test_another_thing_to_see_is_refused():
    with pytest.raises(ValueError, match="sees must be a list of some of axes, origin; got 'origin'"):
        check_analyzer(spread, sees="origin")


# ---- maps

TURN = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(12, 12))))[0]


class Cut(torch.autograd.Function):
    """Another derivative backwards than forwards."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return torch.tanh(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, gradient):
        return gradient

    @staticmethod
    def jvp(ctx, tangent):
        return tangent


class Wrong(LoopMap):
    """A map whose products are spoilt, one at a time."""

    spoilt = ""

    def jvps(self, states, tangents, contexts=None):
        following, pushed = super().jvps(states, tangents, contexts)
        return following, pushed * (len(tangents) if self.spoilt == "many" else 1)

    def vjp(self, states, cotangents, contexts=None):
        following, pulled = super().vjp(states, cotangents, contexts)
        return following, pulled * (2 if self.spoilt == "back" else 1)

    def jacobian(self, states, contexts=None, *, at_once=None):
        whole = super().jacobian(states, contexts)
        return whole.mT if self.spoilt == "whole" else whole


def wrong(spoilt):
    made = Wrong(lambda x, contexts: torch.tanh(x @ TURN), (12,))
    made.spoilt = spoilt
    return made


def remembers(x, contexts):
    return x + next(CALLS)


class Draws(nn.Module):
    def forward(self, x):
        with torch.random.fork_rng(devices=[]):
            np.random.random()
        return torch.tanh(x)


def spoils_its_input(loop_map):
    inner = loop_map.function

    def function(states, contexts):
        following = inner(states, contexts)
        own = states
        while torch._C._functorch.is_functorch_wrapped_tensor(own):
            own = torch._C._functorch.get_unwrapped(own)
        with torch._C.DisableTorchFunction():
            own.numpy()[0] += 1
        return following

    loop_map.function = function
    return loop_map


FIXED = torch.arange(3.0, dtype=torch.float64)[:, None]
BROKEN_MAPS = {
    "states": LoopMap(lambda x, contexts: (x - 5).log(), (12,)),
    "the same again": LoopMap(remembers, (12,)),
    "given states": spoils_its_input(LoopMap(lambda x, contexts: torch.tanh(x), (12,))),
    "rows": LoopMap(lambda x, contexts: torch.tanh(x - x.mean(0)), (12,)),
    "contexts": LoopMap(lambda x, contexts: x + FIXED[:len(x)], (12,), n_contexts=3),
    "tangents": LoopMap(lambda x, contexts: Cut.apply(x), (12,)),
    "many tangents": wrong("many"), "cotangents": wrong("back"), "jacobian": wrong("whole"),
    "causality": LoopMap(lambda x, contexts: x + x.mean(1, keepdim=True), (4, 3), causal=True),
    "the model": LoopMap.from_module(Draws(), (12,))}


@pytest.mark.parametrize("contract", BROKEN_MAPS)
def test_a_map_that_breaks_a_contract_is_told_which_and_what_to_do(contract):
    with pytest.raises(AssertionError) as told:
        check_map(BROKEN_MAPS[contract], only=[contract])
    own = MAP_CONTRACTS[contract]
    assert f"breaks the contract {contract!r}: it must {own.promise}; but " in str(told.value)
    assert str(told.value).endswith(f". {own.advice}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (5,), (12,), (4, 5), (20, 10)])
def test_maps_that_keep_the_contract_pass(shape, dtype):
    gain = torch.linspace(0.5, 1.5, 3, dtype=dtype).reshape(3, *[1] * len(shape))
    check_map(LoopMap(lambda x, contexts: torch.sin(gain[contexts] * x) + 0.1 * x, shape, n_contexts=3, dtype=dtype))


def test_a_map_is_tried_where_the_caller_says():
    root = LoopMap(lambda x, contexts: x.sqrt(), (2,))
    with pytest.raises(AssertionError, match=r"'states': .* not finite for finite states"):
        check_map(root)
    check_map(root, torch.full((2, 2), 4.0))
    with pytest.raises(ValueError, match="states must be at least two"):
        check_map(root, torch.ones(1, 2))
    with pytest.raises(TypeError, match="states must be a torch tensor; got list"):
        check_map(root, [[1.0, 2.0]])
    with pytest.raises(TypeError, match="loop_map must be a LoopMap"):
        check_map(torch.sqrt)
    with pytest.raises(ValueError, match="tolerance must be a number between 0 and 1"):
        check_map(root, tolerance=0)


# ---- looped models

def looped(**changes):
    return dataclasses.replace(whole_stack.looped(), **changes)


def changing(part):
    """A model whose run changes something."""
    own = whole_stack.looped()

    def run(tokens, n, state):
        logits = own.run(tokens, n, state)
        part(own.module)
        return logits

    return dataclasses.replace(own, run=run)


def mixing():
    own = whole_stack.looped()

    def run(tokens, n, state):
        return own.run(tokens, n, state - state.mean(0) if len(state) > 1 else state)

    return dataclasses.replace(own, run=run)


def fickle():
    own, calls = whole_stack.looped(), itertools.count()
    return dataclasses.replace(own, run=lambda tokens, n, state: own.run(tokens, n, state) + next(calls))


def misplaced():
    """Its points are listed in another order than a step by hand calls them."""
    own = inject_and_norm.looped()
    return dataclasses.replace(own, step=lambda state, context: own.step(own.step(state, context), context))


def drawn(own):
    return dataclasses.replace(own, initial_state=lambda context, seeds=None: torch.randn_like(
        own.initial_state(context, seeds=seeds)))


def careless_generation(own):
    def generate(tokens, n, state, n_new):
        made = own.generate(tokens, n, state, n_new)
        made[:, -1] = (made[:, -1] + 1) % own.vocabulary
        return made

    return dataclasses.replace(own, generate=generate)


def bent():
    own = whole_stack.looped()

    def step(state, context):
        return own.step(state, context) + Cut.apply(state) - torch.tanh(state)

    return dataclasses.replace(own, step=step)


BROKEN_MODELS = {
    "steps by hand": lambda: looped(step=lambda state, context: state), "outputs": fickle, "places": misplaced,
    "alone": mixing, "starts": lambda: drawn(whole_stack.looped()),
    "causality": lambda: looped(causal=False), "a map": bent,
    "generation": lambda: careless_generation(whole_stack.looped()),
    "provenance": lambda: looped(provenance={"size": (1, 2)}),
    "the model": lambda: changing(lambda module: setattr(module, "note_of_mine", 1))}


@pytest.mark.parametrize("contract", BROKEN_MODELS)
def test_a_model_that_breaks_a_contract_is_told_which_and_what_to_do(contract):
    with pytest.raises(AssertionError) as told:
        check_looped_model(BROKEN_MODELS[contract](), only=[contract])
    own = MODEL_CONTRACTS[contract]
    assert f"breaks the contract {contract!r}: it must {own.promise}; but " in str(told.value)
    assert str(told.value).endswith(f". {own.advice}")


def test_a_model_that_is_only_recorded_passes_without_a_map():
    model = NanoModel(NanoConfig(width=16, n_heads=2), seed=1)
    check_looped_model(hooked_block(model, ["block.0", "loop_norm"], loops="n_recurrences"))


def test_a_random_start_that_does_not_say_so_and_one_that_is_none_are_told():
    random = nano(NanoModel(NanoConfig(width=16, n_heads=2, initial_state="random"), seed=1))
    with pytest.raises(AssertionError, match="another seed gives another start, and random_start is False"):
        check_looped_model(dataclasses.replace(random, random_start=False), only=["starts"])
    with pytest.raises(AssertionError, match="another seed gives the same start, and random_start is True"):
        check_looped_model(looped(random_start=True), only=["starts"])


@pytest.mark.parametrize(("change", "told"), [
    (lambda m: setattr(m, "extra", 3), "the attributes of"), (lambda m: torch.rand(1), ""),
    (lambda m: m.train(), ""), (lambda m: m.register_forward_hook(print), "the hooks of"),
    (lambda m: next(m.parameters()).requires_grad_(False), "what is asked of the weight"),
    (lambda m: next(m.parameters()).data.add_(1), "the weight or buffer"),
    (lambda m: torch.set_default_dtype(torch.float64), "the default dtype"),
])
def test_what_a_run_leaves_behind_is_named(change, told):
    try:
        model = changing(change)
        model.module.eval()
        with pytest.raises(AssertionError, match=f"'the model': .*but {told}") if told else \
                contextlib.nullcontext():
            check_looped_model(model, only=["the model"])
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_is_no_specification_or_no_prompt_is_refused():
    with pytest.raises(TypeError, match=r"model must be a LoopedModel; got Linear. Describe a torch module with"):
        check_looped_model(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"tokens must be whole numbers .* of at least two prompts; got torch.int64"):
        check_looped_model(whole_stack.looped(), torch.tensor([[1, 2]]))
    with pytest.raises(ValueError, match="n_recurrences must be a whole number of at least 1; got 0"):
        check_looped_model(whole_stack.looped(), n_recurrences=0)


# ---- the comparison

def test_nests_differ_where_they_do():
    a = {"x": [torch.ones(2), (1, "y")], "z": np.arange(3)}
    assert differ(a, {"x": [torch.ones(2), (1, "y")], "z": np.arange(3)}) == ""
    assert differ(a, {"x": [torch.zeros(2), (1, "y")], "z": np.arange(3)}) == "x"
    assert differ(a, {"x": [torch.ones(2), (1, "n")], "z": np.arange(3)}) == "x"
    assert differ(a, {"x": [torch.ones(2)], "z": np.arange(3)}) == "x"
    assert differ(a, {"x": a["x"], "z": np.arange(4)}) == "z"
    assert "z" in differ(a, {"x": a["x"]})
    assert differ(torch.tensor([torch.nan]), torch.tensor([torch.nan])) == ""
    assert dynloop.testing.__name__ == "dynloop.testing"
