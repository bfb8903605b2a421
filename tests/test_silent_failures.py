"""What goes wrong elsewhere without a word is recorded rightly here, or refused with a sentence."""

import dataclasses

import numpy as np
import pytest
import torch
from looped_modules import (
    early_exit,
    inject_and_norm,
    narrow_loop,
    outer_steps,
    sandwich_recurrence,
    two_stacks,
    whole_stack,
)
from looped_modules.parts import VOCABULARY, WIDTH, initialised
from torch import nn

from dynloop import capture, open_store, save
from dynloop.cli import main
from dynloop.models import StatePoint, hooked_block, inspect_model, nano, recording, undisturbed, verify
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording import record, step_statistics
from dynloop.store import StoreError

PROMPTS = [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1], [9, 9, 8]]


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_compiled_code():
    yield
    torch.compiler.reset()


def states_of(store):
    return store.trajectories().states


# ---- compiled models: hooks that are added after a compiled call never fire

FAMILIES = {"sandwich_recurrence": sandwich_recurrence, "two_stacks": two_stacks, "inject_and_norm": inject_and_norm}


def compiled(home, how):
    """The family's model, compiled and run before anybody records it."""
    model = initialised(home.Model)
    loops = {"sandwich_recurrence": "num_steps", "inject_and_norm": "num_recur"}.get(home.__name__.split(".")[-1])
    if how == "wrapper":
        run = model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
        run = model
    elif how == "layers":
        for part in model.modules():
            if type(part).__name__.endswith("Layer"):
                part.compile(backend="eager")
        run = model
    with torch.no_grad():
        run(torch.tensor([PROMPTS[0]]), **({loops: 3} if loops else {}))
    return model


@pytest.mark.parametrize("how", ["wrapper", "in place", "layers"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_compiled_models_are_recorded_as_the_same_model_without_compilation(tmp_path, family, how):
    home = FAMILIES[family]
    expected = capture(home.looped(), PROMPTS, out=tmp_path / "plain", n_recurrences=4)
    model = compiled(home, how)
    found = capture(home.looped(model), PROMPTS, out=tmp_path / "compiled", n_recurrences=4)
    assert torch.equal(states_of(found), states_of(expected))
    assert verify(home.looped(model)).step_error <= 1e-6


def test_plain_hooks_on_a_compiled_model_do_see_nothing():
    model = compiled(inject_and_norm, "wrapper")
    seen = []
    handle = model._orig_mod.recur[0].register_forward_hook(lambda *given: seen.append(given))
    with torch.no_grad():
        model(torch.tensor([PROMPTS[0]]), num_recur=3)
    handle.remove()
    assert not seen  # what the recording has to guard against


def test_layers_wrapped_by_compilation_are_found_by_their_old_paths(tmp_path):
    model = initialised(inject_and_norm.Model)
    expected = capture(hooked_block(model, ["recur.0", "norm_recur"], loops="num_recur"), PROMPTS, out=tmp_path / "a",
                       n_recurrences=4)
    model.recur[0] = torch.compile(model.recur[0], backend="eager")
    for path in ("recur.0", "recur.0._orig_mod"):
        looped = hooked_block(model, [path, "norm_recur"], loops="num_recur")
        found = capture(looped, PROMPTS, out=tmp_path / path, n_recurrences=4)
        assert torch.equal(states_of(found), states_of(expected))
    found = inspect_model(model, lambda n: model(torch.tensor([PROMPTS[0]]), num_recur=n))
    assert found.points == ("inject", "recur.0", "recur.1", "norm_recur")


def test_a_model_compiled_while_it_is_recorded_still_runs_compiled_afterwards(tmp_path):
    model = compiled(inject_and_norm, "wrapper")
    capture(inject_and_norm.looped(model), PROMPTS, out=tmp_path / "s", n_recurrences=4)
    ran = []
    model._orig_mod.recur[0].register_forward_hook(lambda *given: ran.append(given))
    with torch.no_grad():
        model(torch.tensor([PROMPTS[0]]), num_recur=3)
    assert not ran  # compiled code, as before: the eager stance was put back


class Bypassed(nn.Module):
    """Calls its block as block.forward(...), so that no hook of it can fire."""

    def __init__(self):
        super().__init__()
        self.wte, self.block = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens, n=2):
        x = self.wte(tokens)
        for _ in range(n):
            x = self.block.forward(x)
        return x


def test_modules_that_never_fire_are_refused(tmp_path):
    looped = hooked_block(Bypassed(), ["block"], loops="n", width=WIDTH)
    with pytest.raises(RuntimeError, match=r"no recorded module of Bypassed was ever called: .*Nothing can be"):
        capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=3)


def test_modules_inside_a_traced_graph_are_refused(tmp_path):
    model = initialised(inject_and_norm.Model)
    graph = torch.export.export(model, (torch.tensor([PROMPTS[0]]),)).module()
    looped = hooked_block(model, ["recur.0", "norm_recur"], width=WIDTH, run=lambda tokens, n, state: graph(tokens)[0])
    with pytest.raises(RuntimeError, match=r"the forward pass of Model was never called"):
        capture(looped, [PROMPTS[0]], out=tmp_path / "s", n_recurrences=2)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_scripted_modules_are_refused(tmp_path):
    class Looped(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.block = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, tokens, n: int = 2):
            x = self.wte(tokens)
            for _ in range(n):
                x = self.block(x)
            return x

    scripted = torch.jit.script(Looped())
    looped = hooked_block(scripted, ["block"], width=WIDTH, vocabulary=VOCABULARY,
                          run=lambda tokens, n, state: scripted(tokens, n))
    with pytest.raises(RuntimeError, match="RecursiveScriptModule is scripted: its graph calls no hooks"):
        capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=3)


def test_a_run_that_goes_past_the_module_is_refused(tmp_path):
    looped = inject_and_norm.looped()
    by_hand = dataclasses.replace(looped, run=lambda t, n, s: looped.module.forward(t, n, s)[0])
    with pytest.raises(RuntimeError, match=r"never called: `run` of its specification goes past"):
        capture(by_hand, PROMPTS, out=tmp_path / "s", n_recurrences=3)


# ---- call patterns that a counter alone gets wrong

@pytest.mark.parametrize("name", ["stacks swapped", "a cycle left out", "one layer twice", "another number of loops"])
def test_a_schedule_that_is_not_the_models_is_refused(tmp_path, name):
    looped, n = two_stacks.looped(), 3
    points = list(looped.points)
    changed = {"stacks swapped": points[6:] + points[:6], "a cycle left out": points[2:],
               "one layer twice": [*points[:2], *points[1:]], "another number of loops": points}[name]
    run = looped.run if name != "another number of loops" else lambda t, k, s: looped.run(t, k - 1, s)
    state = [-2, -1]
    with pytest.raises(RuntimeError, match=r"were called \[.*\] times in 3 recurrences; each must be called once"):
        capture(dataclasses.replace(looped, points=changed, run=run, state_points=state), PROMPTS, out=tmp_path / "s",
                n_recurrences=n)


def test_an_outer_loop_goes_on_and_other_passes_are_refused(tmp_path):
    looped = outer_steps.looped()
    assert capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=5).n_steps == 5  # three passes
    with pytest.raises(RuntimeError, match=r"made 3 forward passes where 1 were due: .*n_new_tokens, or set"):
        capture(dataclasses.replace(looped, forwards="decoding"), PROMPTS, out=tmp_path / "t", n_recurrences=5)


def test_calls_outside_the_models_forward_pass_are_not_counted():
    looped, tokens = inject_and_norm.looped(), torch.tensor([PROMPTS[0]])
    model, seen = looped.module, []
    with torch.no_grad(), recording(looped, lambda *found: seen.append(found[:3])) as calls:
        model.recur[0](model.embed(tokens))  # somebody's own call
        model(tokens, num_recur=2)
        model.recur[1](model.embed(tokens))
    calls.check(2)
    assert len(seen) == 4


def test_gradient_checkpointing_calls_the_layers_again_and_is_not_counted():
    model = initialised(inject_and_norm.Model, checkpointed=True).train()
    looped, tokens, seen = inject_and_norm.looped(model), torch.tensor([PROMPTS[0]]), []
    plain = []
    handle = model.recur[0].register_forward_hook(lambda *given: plain.append(1))
    with recording(looped, lambda *found: seen.append(found[:3])) as calls:
        model(tokens, num_recur=3)[0].sum().backward()
    handle.remove()
    calls.check(3)
    assert len(plain) == 6  # three of them recomputed
    assert seen == [(0, r, p) for r in range(3) for p in range(2)]


def test_a_checkpointed_model_in_training_is_recorded_as_any_other(tmp_path):
    model = initialised(inject_and_norm.Model, checkpointed=True).train()
    model(torch.tensor([PROMPTS[0]]))[0].sum().backward()
    grads = [weight.grad.clone() for weight in model.parameters()]
    one = capture(inject_and_norm.looped(model), PROMPTS, out=tmp_path / "a", n_recurrences=3)
    two = capture(inject_and_norm.looped(), PROMPTS, out=tmp_path / "b", n_recurrences=3)
    assert torch.equal(states_of(one), states_of(two))
    assert all(torch.equal(weight.grad, grad) for weight, grad in zip(model.parameters(), grads, strict=True))
    assert all(part.training for part in model.modules())


def test_a_state_that_is_changed_in_place_after_its_call_is_recorded_as_it_was_given(tmp_path):
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.block = nn.Embedding(VOCABULARY, WIDTH), nn.Tanh()

        def forward(self, tokens, n=2):
            x = self.wte(tokens)
            for _ in range(n):
                x = self.block(x)
                x.add_(1.0)
            return x

    model = InPlace()
    states = states_of(capture(hooked_block(model, ["block"], loops="n"), [[3]], out=tmp_path / "s", n_recurrences=3))
    expected = model.wte.weight[3].detach()
    for r in range(3):
        expected = expected.tanh()
        torch.testing.assert_close(states[0, r], expected)
        expected = expected + 1


# ---- padding

def test_padding_of_a_tokenizers_batch_is_taken_off(tmp_path):
    looped = sandwich_recurrence.looped()  # ignores masks
    alone = capture(looped, PROMPTS, out=tmp_path / "a", n_recurrences=3)
    for side in ("left", "right"):
        rows = [[0] * (5 - len(p)) + p if side == "left" else p + [0] * (5 - len(p)) for p in PROMPTS]
        mask = [[int(t != 0) for t in row] for row in rows]
        padded = capture(looped, {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)},
                         out=tmp_path / side, n_recurrences=3)
        assert torch.equal(states_of(padded), states_of(alone))


@pytest.mark.parametrize(("inputs", "words"), [
    ({"input_ids": [[1, 2, 0], [1, 2, 3]]}, "need their attention_mask: without it padding cannot be told from"),
    ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, "attention_mask of prompt 0 has a hole"),
    ([[1, 2], [0, 1, 2]], r"prompt 1 begins or ends with padding \(token 0\); the model does not see its mask"),
    ([[1, 2], [1, 2, 0]], r"prompt 1 begins or ends with padding \(token 0\)"),
])
def test_padding_that_cannot_be_taken_off_is_refused(tmp_path, inputs, words):
    looped = dataclasses.replace(sandwich_recurrence.looped(), padding=0)
    with pytest.raises(ValueError, match=words):
        capture(looped, inputs, out=tmp_path / "s", n_recurrences=3)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("pad", [1, -1])
def test_a_model_that_pads_or_drops_tokens_on_its_own_is_refused(tmp_path, pad):
    looped = inject_and_norm.looped()

    def run(tokens, n, state):
        tokens = torch.cat((tokens, tokens[:, :1]), dim=1) if pad > 0 else tokens[:, 1:]
        return looped.module(tokens, n)[0]

    words = rf"has shape \(2, {5 + pad}, 16\) where \(2, 5, 16\) is due .*: a padded batch, tokens that were left out"
    with pytest.raises(RuntimeError, match=words):
        capture(dataclasses.replace(looped, run=run), PROMPTS[:2], out=tmp_path / "s", n_recurrences=3)


# ---- generation with a cache

@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_is_kept_apart_by_decoding_step(tmp_path, use_cache):
    looped = whole_stack.looped(use_cache=use_cache)
    store = capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=4, n_new_tokens=4)
    for batch in store.inputs():
        written = batch["generated"]
        assert written.shape[1] == batch["tokens"].shape[1] + 4
        assert torch.equal(written[:, :-4], batch["tokens"])
        for prompt, tokens in zip(batch["prompts"], written.tolist(), strict=True):
            whole = capture(looped, [tokens[:-1]], out=tmp_path / f"whole-{prompt}", n_recurrences=4)
            found, expected = store.trajectories(prompt=prompt), whole.trajectories()
            assert found.labels["token"].tolist() == expected.labels["token"].tolist()
            decoding = np.maximum(0, found.labels["token"] - len(PROMPTS[prompt]) + 1)
            assert found.labels["decoding"].tolist() == decoding.tolist()
            torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-5)


def test_selected_tokens_of_a_generation_are_those_of_the_prompt_and_every_new_one(tmp_path):
    store = capture(whole_stack.looped(), PROMPTS[:1], out=tmp_path / "s", n_recurrences=2, n_new_tokens=3, tokens=[1])
    assert store.trajectories(layer=1).labels["token"].tolist() == [1, 5, 6]
    assert store.trajectories(layer=1).labels["decoding"].tolist() == [0, 1, 2]


def test_generation_behind_the_back_is_refused(tmp_path):
    looped = whole_stack.looped()
    secret = dataclasses.replace(looped, run=lambda t, n, s: looped.generate(t, n, s, 3).float())
    with pytest.raises(RuntimeError, match="made 3 forward passes where 1 were due"):
        capture(secret, PROMPTS, out=tmp_path / "s", n_recurrences=2)
    with pytest.raises(ValueError, match=r"has no generate=: use n_new_tokens=0"):
        capture(inject_and_norm.looped(), PROMPTS, out=tmp_path / "t", n_recurrences=2, n_new_tokens=2)
    fewer = dataclasses.replace(looped, generate=lambda t, n, s, k: looped.generate(t, n, s, k - 1))
    with pytest.raises(RuntimeError, match="made 2 forward passes where 3 were due"):
        capture(fewer, PROMPTS, out=tmp_path / "u", n_recurrences=2, n_new_tokens=3)


@pytest.mark.parametrize("use_cache", [True, False])
def test_what_the_model_does_by_itself_is_recorded_by_decoding_step(tmp_path, use_cache):
    looped = whole_stack.looped()
    model, tokens = looped.module, torch.tensor(PROMPTS[:2])
    found = record(looped, lambda: model.generate(tokens, 3, use_cache))
    assert found.n_steps == model.total_ut_steps
    assert set(found.labels["decoding"]) == {0, 1, 2}
    later = found.select(decoding=2)
    assert set(later.labels["token"]) == ({6} if use_cache else set(range(7)))
    assert later.n_orbits == 2 * 2 * (1 if use_cache else 7)
    captured = capture(looped, PROMPTS[:2], out=tmp_path / "s", n_recurrences=3, n_new_tokens=3).trajectories()
    for decoding in range(3):
        for prompt in (0, 1):
            chosen = {"prompt": prompt, "layer": 2, "token": 4 + decoding, "decoding": decoding}
            torch.testing.assert_close(found.select(**chosen).states, captured.select(**chosen).states, rtol=0,
                                       atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_recorded_without_its_padding_where_the_mask_is_honoured_and_refused_elsewhere(side):
    rows = [[0] * (5 - len(p)) + p if side == "left" else p + [0] * (5 - len(p)) for p in PROMPTS]
    tokens = torch.tensor(rows)
    mask = (tokens != 0).long()
    looped = whole_stack.looped()
    model = looped.module
    for call in (lambda: model(tokens, mask), lambda: model(tokens, attention_mask=mask)):
        padded = record(looped, call)
        for number, prompt in enumerate(PROMPTS):
            alone = record(looped, lambda prompt=prompt: model(torch.tensor([prompt])))
            own = padded.select(prompt=number)
            assert own.labels["token"].tolist() == alone.labels["token"].tolist()
            torch.testing.assert_close(own.states, alone.states, rtol=0, atol=1e-5)
    deaf = sandwich_recurrence.looped()
    with pytest.raises(ValueError, match="Model ignores its attention mask: in a padded batch the states of real"):
        record(deaf, lambda: deaf.module(tokens, attention_mask=mask))


def test_recorded_calls_must_be_whole_recurrences():
    looped = whole_stack.looped()
    model = looped.module

    def cut():
        model(torch.tensor([PROMPTS[0]]))
        raise KeyError

    with pytest.raises(KeyError):
        record(looped, cut)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    with pytest.raises(RuntimeError, match="the forward pass of Model was never called"):
        record(looped, lambda: None)
    with pytest.raises(RuntimeError, match="were called"):
        record(dataclasses.replace(looped, points=[*looped.points, StatePoint((model.lm_head,))]),
               lambda: model(torch.tensor([PROMPTS[0]])))
    with pytest.raises(ValueError, match="layers must be among 1 to 2"):
        record(looped, lambda: None, layers=[3])
    for wrong in (1, "1", [1.5], [None]):
        with pytest.raises(ValueError, match=r"layers must be among 1 to 2; got .*Give a list such as \[2\], or None"):
            record(looped, lambda: None, layers=wrong)


def test_an_early_exit_is_recorded_with_its_length():
    looped = early_exit.looped()
    found = record(looped, lambda: [looped.module(torch.tensor([[t, 3]]), n_loops=9) for t in range(12)])
    assert len(set(found.lengths)) > 1
    assert found.n_steps == found.lengths.max()
    assert not found.diverged.any()


# ---- loops that end early

def test_an_early_exit_gives_each_prompt_its_own_length(tmp_path):
    looped = early_exit.looped()
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, VOCABULARY, 2).tolist() for _ in range(12)]
    store = capture(looped, prompts, out=tmp_path / "s", n_recurrences=8)
    recorded = store.trajectories()
    assert len(set(recorded.lengths.tolist())) > 1
    assert not recorded.diverged.any()
    assert recorded.states[0, recorded.lengths[0]:].isnan().all()  # nothing that could pass for a state
    for orbit in (0, 9, 17):
        short = capture(looped, [prompts[recorded.labels["prompt"][orbit]]], out=tmp_path / f"{orbit}",
                        n_recurrences=int(recorded.lengths[orbit])).trajectories()
        length = int(recorded.lengths[orbit])
        assert torch.equal(short.states[int(recorded.labels["token"][orbit])], recorded.states[orbit, :length])


def test_a_loop_that_ends_early_without_saying_so_is_refused(tmp_path):
    looped = dataclasses.replace(early_exit.looped(), ragged=False)
    with pytest.raises(RuntimeError, match=r"were called \[\d\] times in 30 recurrences"):
        capture(looped, [[1, 2]], out=tmp_path / "s", n_recurrences=30)


# ---- numbers

def test_statistics_are_those_of_the_computation_not_of_the_storage(tmp_path):
    model = NanoModel(NanoConfig(width=16, n_heads=2, initial_state="random"), seed=4)
    settings = {"inputs": ["import os", "def f(x)"], "n_recurrences": 40, "seed": 3, "n_starts": 2}
    fine = capture(model, out=tmp_path / "f", **settings)
    coarse = capture(model, out=tmp_path / "c", dtype=torch.bfloat16, **settings)
    assert (coarse.dtype, coarse.header["resolution"]) == ("BF16", 2.0**-7)
    assert (fine.dtype, fine.header["resolution"]) == ("F32", 2.0**-23)
    assert states_of(coarse).dtype == torch.bfloat16
    x = fine.trajectories()
    states = x.states.double()
    one, two = step_statistics(fine), step_statistics(coarse)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    for name, values in x.labels.items():
        assert one[name].values.tolist() == values.tolist()
    np.testing.assert_allclose(one.state_norm, states.norm(dim=-1), rtol=1e-6)
    steps = (states[:, 1:] - states[:, :-1]).norm(dim=-1)
    np.testing.assert_allclose(one.step_norm[:, 1:], steps, rtol=1e-5, atol=1e-9)
    cosine = torch.cosine_similarity(states[:, 1:], states[:, :-1], dim=-1)
    np.testing.assert_allclose(one.cosine[:, 1:], cosine, rtol=1e-6)
    assert np.isnan(one.step_norm[:, 0]).all()
    assert np.isnan(one.cosine[:, 0]).all()
    late = step_statistics(coarse, start=0).step_norm[:, -1].values
    rounded = coarse.trajectories(start=0).states.float()
    stored = (rounded[:, -1] - rounded[:, -2]).norm(dim=-1).numpy()
    assert ((late > 0) & (stored == 0)).any()  # where the storage says: an exact fixed point


def test_starts_of_a_prompt_run_side_by_side_and_their_distance_is_recorded(tmp_path):
    model = NanoModel(NanoConfig(width=16, n_heads=2, initial_state="random"), seed=4)
    store = capture(model, ["import os", "def f(x)", "ab"], out=tmp_path / "s", n_recurrences=9, seed=3, n_starts=3)
    labels = store.labels
    assert set(labels["start"]) == {0, 1, 2}
    assert (labels["seed"] == 3 + labels["prompt"] + 3 * labels["start"]).all()
    single = capture(model, ["import os", "def f(x)", "ab"], out=tmp_path / "one", n_recurrences=9, seed=3)
    first = store.trajectories(start=0)
    torch.testing.assert_close(first.states, states_of(single), rtol=0, atol=1e-5)
    found = step_statistics(store)
    for start in (1, 2):
        other = store.trajectories(start=start)
        assert other.labels["token"].tolist() == first.labels["token"].tolist()
        distance = (other.states - first.states).double().norm(dim=-1)
        recorded = found.two_orbit_distance.values[labels["start"] == start]
        np.testing.assert_allclose(recorded, distance, rtol=1e-5, atol=1e-9)
    assert np.isnan(found.two_orbit_distance.values[labels["start"] == 0]).all()
    for batch in store.inputs():
        for row, seed in enumerate(batch["seeds"]):
            start = model.initial_state(model.embed(batch["tokens"][row:row + 1]), seeds=[seed])
            assert torch.equal(batch["initial_states"][row], start[0])


@pytest.mark.parametrize("home", [inject_and_norm, outer_steps, narrow_loop])
def test_any_map_is_started_in_random_places_as_far_out_as_its_own_start(tmp_path, home):
    looped = home.looped()
    store = capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=9, start="random", n_starts=3, seed=2)
    own = next(capture(looped, PROMPTS, out=tmp_path / "own", n_recurrences=9, seed=2).inputs())["initial_states"]
    batch = next(store.inputs())
    starts = batch["initial_states"]
    if not looped.random_start:
        expected = own.norm(dim=-1).repeat_interleave(3, dim=0)
        torch.testing.assert_close(starts.norm(dim=-1), torch.where(expected > 0, expected, starts.shape[-1]**0.5))
    assert len({row.numpy().tobytes() for row in starts}) == len(starts)
    for row, prompt in enumerate(batch["prompts"]):  # the recorded start leads to the recorded states
        alone = looped.run(torch.tensor([PROMPTS[prompt]]), 9, starts[row:row + 1])
        torch.testing.assert_close(alone[0], batch["logits"][row], rtol=0, atol=1e-4)
    again = capture(looped, PROMPTS, out=tmp_path / "again", n_recurrences=9, start="random", n_starts=3, seed=2)
    assert torch.equal(states_of(again), states_of(store))


def test_selected_recurrences_are_those_of_the_whole_recording(tmp_path):
    looped = inject_and_norm.looped()
    whole = capture(looped, PROMPTS, out=tmp_path / "a", n_recurrences=9)
    some = capture(looped, PROMPTS, out=tmp_path / "b", n_recurrences=9, recurrences=[-1, 2, 5, 9])
    assert torch.equal(states_of(some), states_of(whole)[:, [1, 4, 8]])
    assert some.header["recurrences"] == [2, 5, 9]
    np.testing.assert_array_equal(step_statistics(some).step_norm, step_statistics(whole).step_norm)
    early = capture(early_exit.looped(), [[1, 2]], out=tmp_path / "c", n_recurrences=30, recurrences=[1, 2, 29])
    assert set(early.trajectories().lengths.tolist()) == {2}


def test_a_dtype_that_states_do_not_fit_is_refused(tmp_path):
    looped = inject_and_norm.looped()
    with torch.no_grad():
        looped.module.norm_recur.weight.fill_(1e6)
    with pytest.raises(ValueError, match=r"too large for float16 and would pass for diverged\. Store them with dtype"):
        capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=3, dtype=torch.float16)
    assert capture(looped, PROMPTS, out=tmp_path / "t", n_recurrences=3, dtype=torch.bfloat16).complete


def test_a_loop_that_computes_more_coarsely_than_its_weights_must_say_so(tmp_path):
    class Cast(nn.Module):
        def forward(self, x):
            return x.bfloat16()

    model = initialised(inject_and_norm.Model)
    model.norm_recur = nn.Sequential(model.norm_recur, Cast())
    model.inject = nn.Sequential(Upcast(), model.inject)
    model.coda = nn.ModuleList([nn.Sequential(Upcast(), model.coda[0])])
    looped = inject_and_norm.looped(model)
    with pytest.raises(RuntimeError, match=r"computes its states in torch.bfloat16, its specification says torch.flo"):
        capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=3, layers=[2])
    honest = dataclasses.replace(looped, dtype=torch.bfloat16)
    assert capture(honest, PROMPTS, out=tmp_path / "t", n_recurrences=3).header["resolution"] == 2.0**-7


class Upcast(nn.Module):
    def forward(self, x):
        return x.float()


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of torch's own norm
def test_under_autocast_the_resolution_is_that_of_autocast(tmp_path):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        store = capture(inject_and_norm.looped(), PROMPTS[:1], out=tmp_path / "s", n_recurrences=3)
    assert (store.header["dtype"], store.header["resolution"]) == ("BF16", 2.0**-7)


# ---- refusals

@pytest.mark.parametrize(("change", "words"), [
    ({"n_starts": 0}, "n_starts must be at least 1; got 0"),
    ({"n_starts": 2}, "every start of Model is the same: its initial state is not random"),
    ({"start": "zero"}, "start must be one of model, random; got 'zero'"),
    ({"model": hooked_block(inject_and_norm.looped().module, ["recur.0"], loops="num_recur"), "start": "random"},
     "has no embed: its states can be recorded, but it is no map"),
    ({"n_new_tokens": -1}, "n_new_tokens must be at least 0"),
    ({"n_starts": 1.5}, "n_starts, n_new_tokens and batch_size are whole numbers"),
    ({"recurrences": [0]}, r"recurrences must be among 1 to 4, or negative ones from the end; got \[0\]"),
    ({"recurrences": [5]}, r"recurrences must be among 1 to 4"),
    ({"recurrences": []}, r"recurrences must be among 1 to 4"),
    ({"layers": "all"}, r"layers must be among 1 to 2, or 'state' for the loop state; got 'all'"),
    ({"dtype": torch.int8}, "dtype must be torch.float32, bfloat16, float16 or float64; got torch.int8"),
    ({"model": dataclasses.replace(inject_and_norm.looped(), multiple=3)}, "runs a multiple of 3 recurrences; got n_r"),
    ({"model": dataclasses.replace(inject_and_norm.looped(), most_recurrences=3)}, "has 3 recurrences at most; got n"),
    ({"model": dataclasses.replace(inject_and_norm.looped(), n_tokens=4)}, "prompt 0 has 5 tokens; Model takes"),
])
def test_what_cannot_be_recorded_is_refused_before_anything_is_written(tmp_path, change, words):
    settings = {"model": inject_and_norm.looped(), "inputs": PROMPTS, "out": tmp_path / "s", "n_recurrences": 4}
    with pytest.raises(ValueError, match=words):
        capture(**{**settings, **change})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("change", [{"n_starts": 2}, {"start": "random"}, {"dtype": torch.bfloat16},
                                    {"recurrences": [1, 2]}, {"layers": "state"}], ids=lambda c: next(iter(c)))
def test_other_settings_do_not_go_on_with_a_store(tmp_path, change):
    model = NanoModel(NanoConfig(width=16, n_heads=2, initial_state="random"))
    settings = {"model": model, "inputs": PROMPTS, "out": tmp_path / "s", "n_recurrences": 4}
    capture(**settings)
    with pytest.raises(StoreError, match="made with other settings"):
        capture(**settings, **change)


def test_a_store_without_statistics_says_so(tmp_path):
    store = capture(inject_and_norm.looped(), PROMPTS, out=tmp_path / "s", n_recurrences=4)
    with pytest.raises(ValueError, match="no label 'colour' in this store; it has model"):
        step_statistics(store, colour=1)
    with pytest.raises(ValueError, match="no orbit of this store has layer=7"):
        step_statistics(store, layer=7)
    bare = store.trajectories()
    with pytest.raises(ValueError, match="holds no statistics"):
        step_statistics(save(bare, tmp_path / "saved"))


def test_the_command_line_records_starts_and_loop_states_in_any_dtype(tmp_path, capsys):
    (tmp_path / "prompts.json").write_text("[[1, 2, 3], [4, 5]]")
    assert main(["capture", "nano-random-start", "--out", str(tmp_path / "s"), "--prompts",
                 str(tmp_path / "prompts.json"), "--recurrences", "3", "--starts", "2", "--dtype", "bfloat16",
                 "--layers", "state"]) == 0
    store = open_store(tmp_path / "s")
    assert (store.n_orbits, store.n_steps, store.dtype) == (10, 3, "BF16")
    assert set(store.labels["layer"]) == {2}
    assert set(store.labels["start"]) == {0, 1}
    capsys.readouterr()


def test_the_parts_of_a_split_batch_keep_their_statistics_in_order(tmp_path, monkeypatch):
    import importlib

    import dynloop.store.store as store_module
    for home in (store_module, importlib.import_module("dynloop.recording.capture")):
        monkeypatch.setattr(home, "SHARD_BYTES", 7 * 4 * 6 * WIDTH)
    store = capture(inject_and_norm.looped(), PROMPTS, out=tmp_path / "s", n_recurrences=6, batch_size=3)
    assert store.n_shards > 3
    states = torch.cat([part.states for part in store.parts()]).double()
    np.testing.assert_allclose(step_statistics(store).state_norm, states.norm(dim=-1), rtol=1e-6)


def test_a_point_that_holds_no_state_is_refused(tmp_path):
    looped = inject_and_norm.looped()
    points = [StatePoint((looped.module.recur[0],), key=3), looped.points[1]]
    with pytest.raises(RuntimeError, match="the output of point 1 holds no state"):
        capture(dataclasses.replace(looped, points=points), PROMPTS, out=tmp_path / "s", n_recurrences=3)


def test_a_nano_model_by_name_is_verified():
    assert verify(nano("nano-drifts")).step_error == 0.0


class Encoders(nn.Module):
    """A causal loop over torch's own layer, whose fused kernel gives other bits than its parts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens, loops=3):
        self.calls += 1
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        h = self.embedding(tokens)
        for _ in range(loops):
            h = self.block(h, src_mask=mask, is_causal=True)
        return self.head(h)


def test_torch_s_own_encoder_layer_keeps_its_kernel_and_its_bits(tmp_path):
    model = Encoders().eval()
    looped = hooked_block(model, ["block"], loops="loops", vocabulary=11)
    tokens = torch.arange(8).reshape(2, 4)
    with torch.no_grad():
        alone = model(tokens, loops=5)
    model.calls.zero_()
    store = capture(looped, tokens.tolist(), out=tmp_path / "s", n_recurrences=5)
    assert model.calls == 0  # buffers come back, too
    assert torch.equal(torch.cat([torch.as_tensor(np.asarray(batch["logits"])) for batch in store.inputs()]), alone)
    assert "forward" not in vars(model.block)


def test_evaluation_mode_is_set_without_calling_eval():
    class Merging(nn.Linear):
        def train(self, mode=True):
            if not mode:
                self.weight.data *= 2
            return super().train(mode)

    model = Merging(3, 3)
    kept = model.weight.detach().clone()
    with undisturbed(model):
        assert not model.training
    assert model.training
    assert torch.equal(model.weight, kept)


@pytest.mark.parametrize("inputs", [[1, 2, 3], [[float("nan")]], [["a"]], [None], None, iter([[1]])])
def test_what_is_no_list_of_prompts_is_said_so(inputs, tmp_path):
    with pytest.raises(ValueError, match=r"One prompt\? Pass \[prompt\]|are whole numbers from 0"):
        capture("nano-settles", inputs, out=tmp_path / "s", n_recurrences=2)


def test_noise_that_the_specification_does_not_know_of_is_refused(tmp_path):
    class Noisy(Encoders):
        def forward(self, tokens, loops=3):
            h = self.embedding(tokens)
            for _ in range(loops):
                h = self.block(nn.functional.dropout(h, 0.3))
            return self.head(h)

    looped = hooked_block(Noisy(), ["block"], loops="loops", vocabulary=11)
    with pytest.raises(RuntimeError, match="draws random numbers while it runs"):
        capture(looped, [[1, 2, 3]], out=tmp_path / "s", n_recurrences=2)
