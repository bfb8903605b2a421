"""Attention statistics beside a capture: those of every map written out, in their place, and nothing else changes."""

import contextlib
import importlib
import math
import os
import pkgutil

import looped_modules
import numpy as np
import pytest
import torch
from looped_modules import early_exit, inject_and_norm, two_stacks
from looped_modules.parts import VOCABULARY, WIDTH, Layer, Traced, initialised
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dynloop import capture, open_store
from dynloop.cli import main
from dynloop.models import hooked_block, load, nano
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording import attention_of, step_statistics

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")
TINY = NanoConfig(width=16, n_heads=2, initial_state="random")
PROMPTS = [[1, 2, 3, 4, 5], [3, 3, 2, 1, 1], [7, 6]]
HOMES = {name: home for _, name, _ in pkgutil.iter_modules(looped_modules.__path__)
         if hasattr(home := importlib.import_module(f"looped_modules.{name}"), "looped")}
OUTSIDE = {"inject_and_norm": (1, 1), "sandwich_recurrence": (1, 1)}  # attention calls before and after the loop
A_RECURRENCE = {"early_exit": 1, "narrow_loop": 1, "one_network": 6, "outer_steps": 6, "sandwich_recurrence": 3,
                "two_stacks": 8}  # else 2
cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


class Maps(TorchFunctionMode):
    """Every attention map, T x T in float64, in the order of the calls."""

    def __init__(self):
        super().__init__()
        self.maps = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            with torch._C.DisableTorchFunction():
                given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
                q, k = given["query"].double(), given["key"].double()
                if k.shape[1] != q.shape[1]:
                    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
                scale, mask = given.get("scale"), given.get("attn_mask")
                scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
                if given.get("is_causal"):
                    mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
                if mask is not None:
                    scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
                self.maps.append(scores.softmax(-1).cpu())
        return func(*args, **kwargs)


def numbers_of(maps):
    """Statistics of maps (recurrence, head, query, key), by their definitions: (head, recurrence) and with tokens."""
    entropy = -torch.special.xlogy(maps, maps).sum(-1)
    step = torch.linalg.vector_norm(maps[1:] - maps[:-1], dim=(-2, -1))
    gap = torch.full_like(maps[:1, :, 0, 0], math.nan)
    per_map = {"sink_score": maps[..., 0].mean(-1), "entropy": entropy.mean(-1), "maximum": maps.amax(-1).mean(-1),
               "distance": torch.cat((gap, step))}
    per_token = {"column_sum": maps.sum(-2), "entropy": entropy, "maximum": maps.amax(-1)}
    return ({name: values.movedim(0, -1).numpy() for name, values in per_map.items()},
            {name: values.movedim(0, -1).numpy() for name, values in per_token.items()})


def maps_of(looped, store, before=0, after=0):
    """(prompt, start) -> layers -> maps (recurrence, head, query, key), from the model run by itself."""
    found = {}
    for batch in store.inputs():
        for row, key in enumerate(zip(batch["prompts"], batch["starts"], strict=True)):
            start = batch["initial_states"][row:row + 1].to(looped.device)
            tokens = batch["tokens"][row:row + 1].to(looped.device)
            with torch.no_grad(), Maps() as seen:
                looped.run(tokens, store.header["n_recurrences"], start)
            maps = torch.cat(seen.maps[before:len(seen.maps) - after])
            n = len(store.header["attention"]["layers"])
            assert len(maps) % n == 0
            found[key] = maps.unflatten(0, (-1, n)).transpose(0, 1)
    return found


def assert_right(looped, store, before=0, after=0):
    """Every number of the store, at its labels, is that of the map written out."""
    layers = store.header["attention"]["layers"]
    positions = {prompt: batch["positions"] for batch in store.inputs() for prompt in batch["prompts"]}
    n = store.header["n_recurrences"]
    for (prompt, start), of_layers in maps_of(looped, store, before, after).items():
        for layer, maps in zip(layers, of_layers, strict=True):
            per_map, per_token = numbers_of(maps)
            found = attention_of(store, prompt=prompt, start=start, layer=layer)
            assert found["head"].values.tolist() == list(range(maps.shape[1]))
            for name, values in per_map.items():
                got = found[name].values
                assert np.isnan(got[:, len(maps):]).all()
                np.testing.assert_allclose(got[:, :len(maps)], values, rtol=1e-4, atol=2e-5, err_msg=f"{layer} {name}")
            found = attention_of(store, per="token", prompt=prompt, start=start, layer=layer)
            for name, values in per_token.items():
                kept = values[:, [p + looped.prefix for p in positions[prompt]]]
                got = found[name].values.reshape(*kept.shape[:2], n)
                assert np.isnan(got[..., len(maps):]).all()
                np.testing.assert_allclose(got[..., :len(maps)], kept, rtol=1e-4, atol=2e-5, err_msg=f"{layer} {name}")


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("device", ["cpu", cuda])
def test_statistics_are_those_of_the_maps_written_out(tmp_path, device):
    looped = nano(NanoModel(TINY).to(device))
    store = capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=6, tokens=[0, -1], attention=True)
    assert store.header["attention"] == {
        "layers": ["block.0.attention", "block.1.attention"], "heads": [2, 2],
        "outside": ["prelude.0.attention", "coda.0.attention"], "symbols": []}
    assert_right(looped, store, before=1, after=1)


def test_of_several_starts_selected_states_and_another_dtype_too(tmp_path):
    looped = nano(NanoModel(TINY))
    store = capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=5, n_starts=2, layers=[2], recurrences=[-1],
                    dtype=torch.bfloat16, attention=True)
    assert_right(looped, store, before=1, after=1)
    found = attention_of(store)
    assert found.sizes == {"row": 3 * 2 * 2 * 2, "recurrence": 5}
    assert found.entropy.dtype == np.float32


def test_a_model_in_double_precision_has_statistics_in_double_precision(tmp_path):
    looped = nano(NanoModel(TINY).double())
    store = capture(looped, PROMPTS[:1], out=tmp_path / "s", n_recurrences=3, dtype=torch.float64, attention=True)
    found = attention_of(store, layer="block.1.attention")
    (maps,) = maps_of(looped, store, 1, 1).values()
    assert found.entropy.dtype == np.float64
    for name, values in numbers_of(maps[1])[0].items():
        np.testing.assert_allclose(found[name].values, values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list(HOMES))
def test_every_pattern_of_calls_has_its_maps_in_their_layer_and_recurrence(tmp_path, name):
    looped = HOMES[name].looped()
    n = 3 if name == "tied_copies" else 5
    store = capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=n, attention=True)
    assert len(store.header["attention"]["layers"]) == A_RECURRENCE.get(name, 2)
    assert len(store.header["attention"]["outside"]) == sum(OUTSIDE.get(name, (0, 0)))
    assert_right(looped, store, *OUTSIDE.get(name, (0, 0)))


def test_calls_of_an_inner_loop_are_numbered(tmp_path):
    store = capture(two_stacks.looped(), PROMPTS[:1], out=tmp_path / "s", n_recurrences=2, attention=True)
    assert store.header["attention"]["layers"] == [
        *(f"L_module.layers.{i}#{k}" for k in (1, 2, 3) for i in (0, 1)), "H_module.layers.0", "H_module.layers.1"]


def test_a_single_recurrence_is_told_from_the_layers_around_the_loop(tmp_path):
    looped = nano(NanoModel(TINY))
    store = capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=1, attention=True)
    assert_right(looped, store, before=1, after=1)
    assert np.isnan(attention_of(store).distance.values).all()


def test_states_logits_and_step_statistics_are_the_same_bits_and_other_stores_hold_nothing_new(tmp_path):
    for number, looped in enumerate([nano(NanoModel(TINY)), inject_and_norm.looped(), early_exit.looped()]):
        plain = capture(looped, PROMPTS, out=tmp_path / f"{number}-plain", n_recurrences=5)
        with_maps = capture(looped, PROMPTS, out=tmp_path / f"{number}-maps", n_recurrences=5, attention=True)
        assert "attention" not in plain.header
        before, after = tree(plain.folder), tree(with_maps.folder)
        assert before.keys() == after.keys()
        shards = [name for name in before if "-states-" in name]
        assert shards
        assert all(before[name] == after[name] for name in shards)
        for old, new in zip(plain.inputs(), with_maps.inputs(), strict=True):
            added = {key for key in new if key.startswith("attention_")}
            assert len(added) == 10
            assert new.keys() - old.keys() == added
            assert all(torch.equal(old[key].nan_to_num(), new[key].nan_to_num()) for key in old
                       if isinstance(old[key], torch.Tensor))
        step_statistics(with_maps)
        with pytest.raises(ValueError, match=r"holds no statistics of attention: capture again with attention=True"):
            attention_of(plain)


def test_the_model_comes_back_as_it_was(tmp_path):
    model = NanoModel(TINY).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    seed = torch.get_rng_state()
    capture(nano(model), PROMPTS, out=tmp_path / "s", n_recurrences=3, attention=True)
    assert all(part.training and not part._forward_hooks and not part._forward_pre_hooks for part in model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seed)


def test_a_capture_stopped_at_any_write_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    def go(out):
        return capture(NanoModel(TINY), PROMPTS, out=out, n_recurrences=3, attention=True)

    expected = tree(go(tmp_path / "whole").folder)
    for call in range(1, 30):
        made, real = [], os.replace
        with monkeypatch.context() as patch:
            def stop(*given, made=made, call=call, real=real):
                made.append(given)
                if len(made) == call:
                    raise KeyboardInterrupt
                return real(*given)
            patch.setattr(os, "replace", stop)
            with contextlib.suppress(KeyboardInterrupt):
                go(tmp_path / str(call))
        stopped = len(made) == call
        assert go(tmp_path / str(call)).complete
        assert tree(tmp_path / str(call)) == expected, call
        if not stopped:
            break
    assert call == 5  # states and inputs of two batches


def test_a_store_with_statistics_does_not_go_on_without_them(tmp_path):
    model = NanoModel(TINY)
    capture(model, PROMPTS, out=tmp_path / "s", n_recurrences=3, attention=True)
    with pytest.raises(ValueError, match=r"other settings \(they differ in attention"):
        capture(model, PROMPTS, out=tmp_path / "s", n_recurrences=3)


def test_rows_are_chosen_by_their_labels(tmp_path):
    store = capture(nano(NanoModel(TINY)), PROMPTS, out=tmp_path / "s", n_recurrences=3, attention=True)
    every = attention_of(store, per="token")
    some = attention_of(store, per="token", prompt=[0, 2], head=1, token=1, layer="block.1.attention")
    assert some.sizes["row"] == 2
    chosen = (np.isin(every["prompt"], [0, 2]) & (every["head"] == 1) & (every["token"] == 1)
              & (every["layer"] == "block.1.attention")).values
    np.testing.assert_array_equal(some.column_sum.values, every.column_sum.values[chosen])
    with pytest.raises(ValueError, match=r"no label 'token' among those of attention per map"):
        attention_of(store, token=1)
    with pytest.raises(ValueError, match=r"has layer='block\.7'\. Layers are block\.0\.attention"):
        attention_of(open_store(tmp_path / "s"), layer="block.7")
    with pytest.raises(ValueError, match=r"per must be one of map, token, pair; got 'head'"):
        attention_of(store, per="head")


def test_from_the_command_line(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("import os\nimport sys\n")
    assert main(["capture", "nano-settles", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "s"),
                 "--recurrences", "3", "--attention"]) == 0
    assert attention_of(open_store(tmp_path / "s")).sizes == {"row": 16, "recurrence": 3}


# ---- what cannot be recorded is refused

class Without(Traced):
    """A loop that attends in its prelude at most."""

    def __init__(self, prelude):
        super().__init__()
        self.wte, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.prelude, self.mlp = Layer() if prelude else nn.Identity(), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens, n=2):
        e = x = self.prelude(self.wte(tokens))
        for _ in range(n):
            x = torch.tanh(self.mlp(x)) + e
        return self.head(x)


class Twice(Without):
    """One layer attends before the loop and in it."""

    def forward(self, tokens, n=2):
        x = self.prelude(self.wte(tokens))
        for _ in range(n):
            x = self.mlp(self.prelude(x))
        return self.head(x)


class Sometimes(Without):
    """A layer attends in every second recurrence."""

    def forward(self, tokens, n=2):
        x = self.wte(tokens)
        for r in range(n):
            x = self.mlp(self.prelude(x) if r % 2 == 0 else x)
        return self.head(x)


def described(kind, prelude):
    model = initialised(kind, prelude)
    return hooked_block(model, ["mlp"], run=lambda tokens, n, state: model(tokens, n))


@pytest.mark.parametrize(("kind", "prelude", "words"), [
    (Without, False, "shows no attention: there are no statistics to take"),
    (Without, True, r"attends outside of its loop alone \(prelude\)"),
    (Twice, True, "prelude attends inside the loop of .* and outside of it"),
    (Sometimes, True, "prelude does not attend in every recurrence of Sometimes: its maps have no place")])
def test_what_has_no_maps_of_its_loop_is_refused(tmp_path, kind, prelude, words):
    looped = described(kind, prelude)
    with pytest.raises((ValueError, RuntimeError), match=words):
        capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=4, attention=True)
    assert not (tmp_path / "s").exists()
    capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=4)


def test_generated_tokens_and_other_settings_are_refused(tmp_path):
    looped = HOMES["whole_stack"].looped()
    with pytest.raises(ValueError, match=r"statistics of attention are of prompts.*Use n_new_tokens=0"):
        capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=2, n_new_tokens=2, attention=True)
    for wrong in ("flash_attn.flash_attn_func", 1, [2]):
        with pytest.raises(ValueError, match="attention must be True, False or a list of dotted paths"):
            capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=2, attention=wrong)
    with pytest.raises(ValueError, match="symbols must be dotted paths of names in modules"):
        capture(looped, PROMPTS, out=tmp_path / "s", n_recurrences=2, attention=["nowhere.flash"])


def test_a_loop_that_always_ends_at_once_is_refused(tmp_path):
    model = initialised(early_exit.Model)
    with torch.no_grad():
        model.halt.bias.fill_(50.0)
    model.forward = lambda tokens, n_loops=4, state=None: early_exit.Model.forward(model, tokens, 1, state)
    with pytest.raises(ValueError, match="ended after one recurrence; what attends in it cannot be told"):
        capture(early_exit.looped(model), PROMPTS, out=tmp_path / "s", n_recurrences=4, attention=True)


def flash(q, k, v, causal=False):
    """Stands for a compiled kernel: nothing that it calls can be seen."""
    with torch._C.DisableTorchFunction():
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


class Flashed(Layer):
    def attend(self, x, mask, cache, slot):
        q, k, v = (part.unflatten(-1, (2, -1)) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(flash(q, k, v, causal=True).flatten(2))


def test_flash_attention_functions_are_seen_by_their_names(tmp_path):
    model, plain = inject_and_norm.looped().module, inject_and_norm.looped()
    expected = attention_of(capture(plain, PROMPTS, out=tmp_path / "plain", n_recurrences=3, attention=True))
    for part in model.modules():
        if type(part) is Layer:
            part.__class__ = Flashed
    store = capture(inject_and_norm.looped(model), PROMPTS, out=tmp_path / "flash", n_recurrences=3,
                    attention=[f"{__name__}.flash"])
    found = attention_of(store)
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shows no attention"):
        capture(inject_and_norm.looped(model), PROMPTS, out=tmp_path / "s", n_recurrences=3, attention=True)


# ---- the families that transformers ships

def albert(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(
        vocab_size=31, embedding_size=6, hidden_size=8, num_hidden_layers=4, num_attention_heads=2,
        intermediate_size=16, inner_group_num=2, max_position_embeddings=32, attn_implementation=attention)
    return transformers.AlbertForMaskedLM(config), 2, 0


def hrm_text(attention):
    transformers = pytest.importorskip("transformers", minversion="5.9")
    config = transformers.HrmTextConfig(
        vocab_size=31, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=4,
        H_cycles=2, L_cycles=3, max_position_embeddings=32, attn_implementation=attention)
    return transformers.HrmTextForCausalLM(config), 8, 0


@pytest.mark.parametrize("make", [albert, hrm_text], ids=lambda make: make.__name__)
def test_families_of_transformers_have_the_same_maps_written_out_and_in_one_kernel(tmp_path, make):
    stores = {}
    for attention in ("sdpa", "eager"):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model, n_layers, _ = make(attention)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.add_(0.5 * torch.randn_like(weight) * weight.shape[-1] ** -0.5)
        looped = load(model)
        stores[attention] = capture(looped, PROMPTS, out=tmp_path / attention, n_recurrences=4, attention=True)
        assert len(stores[attention].header["attention"]["layers"]) == n_layers
        if attention == "sdpa":
            assert_right(looped, stores[attention])
    one, other = (attention_of(store) for store in stores.values())
    for name in one.data_vars:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-3, atol=1e-4, err_msg=name)
