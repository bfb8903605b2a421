"""A feed-forward model as one recurrence of its layers, recorded as the reference that loops are held against."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from dynloop import Outcome, capture
from dynloop.models import feed_forward, load, nano, untrained, verify
from dynloop.nano import NanoConfig, NanoModel
from dynloop.stages import mirroring, stage_profile
from dynloop.testing import check_looped_model

SHAPE = {"width": 16, "n_heads": 2, "injection": "none", "norm": "pre", "loop_norm": False, "n_block": 6}
PROMPTS = torch.randint(256, (8, 10), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def control():
    return NanoModel(NanoConfig(**SHAPE, n_recurrences=1, looped=False), seed=1)


@pytest.fixture(scope="module")
def reference(control, tmp_path_factory):
    return capture(control, PROMPTS, out=tmp_path_factory.mktemp("ff") / "reference", n_recurrences=1)


def llama(n_layers=4, seed=0):
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=n_layers, num_attention_heads=2,
            num_key_value_heads=2)).eval()


def gpt2():
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=3, n_head=2,
                                                                    n_positions=32)).eval()


# ---- nano

def test_the_control_is_recorded_as_one_recurrence_of_its_layers(control, reference):
    assert reference.header["n_recurrences"] == 1
    assert reference.header["layers"] == [1, 2, 3, 4, 5, 6]
    seen = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in control.block]
    with torch.no_grad():
        control(torch.tensor(PROMPTS))
    for hook in hooks:
        hook.remove()
    for layer, states in enumerate(seen, start=1):
        found = reference.trajectories(layer=layer).states.reshape(8, 10, 16)
        torch.testing.assert_close(found, states, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("by", ["profile", "cosine", "cka"])
def test_a_loop_whose_block_is_the_copied_stack_mirrors_the_recorded_control_at_one(control, reference, by, tmp_path):
    copied = NanoModel(NanoConfig(**SHAPE, n_recurrences=3))
    copied.load_state_dict(control.state_dict())
    m = mirroring(capture(copied, PROMPTS, out=tmp_path / "loop", n_recurrences=3), reference, by=by)
    assert m.counts() == {Outcome.FOUND: 3}
    assert m["score"][0] == pytest.approx(1, abs=1e-6)
    assert (m["score"][1:] < 1 - 1e-4).all()


def test_a_deeper_control_is_brought_to_equal_percent_of_depth(tmp_path):
    config = NanoConfig(**{**SHAPE, "n_block": 3}, n_recurrences=4)
    loop = capture(NanoModel(config), PROMPTS, out=tmp_path / "loop", n_recurrences=4)
    deep = capture(NanoModel(dataclasses.replace(config, looped=False)), PROMPTS, out=tmp_path / "deep",
                   n_recurrences=1)
    assert len(deep.header["layers"]) == 12
    m = mirroring(loop, deep)
    assert m["alignment"].shape == (4, 3)
    assert np.isfinite(m["score"]).all()


@pytest.mark.parametrize("n", [2, 128])
def test_a_control_runs_its_layers_once_and_says_so(control, n, tmp_path):
    with pytest.raises(ValueError, match=f"nano has 1 recurrences at most; got n_recurrences={n}"):
        capture(control, PROMPTS, out=tmp_path / "s", n_recurrences=n)
    with pytest.raises(ValueError, match="has 1 recurrences at most; got n_recurrences=128"):
        capture(control, PROMPTS, out=tmp_path / "s")
    with pytest.raises(ValueError, match="Pass n_recurrences=1"):
        nano(control).check_recurrences(n)
    with pytest.raises(ValueError, match="runs its layers once"):
        nano(control).run(torch.tensor(PROMPTS), n, None)


def test_the_control_keeps_the_contract_of_models_and_says_what_it_is(control):
    looped = load(control, name="control")
    check_looped_model(looped)
    assert verify(looped).n_recurrences == 1
    assert looped.training_recurrences == "1 (feed-forward)"
    assert not looped.provenance["model"]["looped"]
    assert untrained(looped).most_recurrences == 1
    assert nano(NanoModel(NanoConfig(width=16, n_heads=2))).most_recurrences is None


# ---- any decoder

@pytest.mark.parametrize("model", [llama, gpt2])
def test_a_decoder_of_transformers_is_recorded_as_it_says_itself(model, tmp_path):
    whole = model()
    prompts = [[1 + (i * k) % 30 for k in range(1, 8)] for i in range(1, 7)]
    store = capture(feed_forward(whole, name="plain"), prompts, out=tmp_path / "s", n_recurrences=1)
    with torch.no_grad():
        own = whole(torch.tensor(prompts), output_hidden_states=True)
    n = len(own.hidden_states) - 1
    assert store.header["layers"] == list(range(1, n + 1))
    for layer in range(1, n):  # the last one of transformers is after the final norm
        found = store.trajectories(layer=layer).states.reshape(6, 7, 16)
        torch.testing.assert_close(found, own.hidden_states[layer], rtol=1e-5, atol=1e-6)
    batch, = store.inputs()
    torch.testing.assert_close(batch["logits"], own.logits, rtol=1e-5, atol=1e-6)
    assert stage_profile(store).counts() == {Outcome.FOUND: 6 * n}


def test_norm_and_head_are_found_where_there_are_as_many_tokens_as_features():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    whole = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)).eval()
    unembed = feed_forward(whole).unembed
    assert unembed.head is whole.lm_head
    assert unembed.norm is whole.model.norm


def test_a_decoder_mirrors_itself_at_one_and_is_found_by_the_paths_of_its_layers(tmp_path):
    whole = llama()
    prompts = [[1 + (i * k) % 30 for k in range(1, 8)] for i in range(1, 7)]
    found = feed_forward(whole)
    named = feed_forward(whole, layers=[f"model.layers.{i}" for i in range(4)])
    assert [p.modules for p in found.points] == [p.modules for p in named.points] == [
        p.modules for p in feed_forward(whole, layers="model.layers").points]
    assert found.name == "LlamaForCausalLM"
    assert not found.is_map
    one = capture(found, prompts, out=tmp_path / "a", n_recurrences=1)
    two = capture(named, prompts, out=tmp_path / "b", n_recurrences=1)
    assert mirroring(one, two)["score"][0] == pytest.approx(1)


def test_what_is_no_stack_is_refused():
    with pytest.raises(ValueError, match="Linear has no list of layers"):
        feed_forward(nn.Linear(3, 3))
    two = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(3, 3)]), "b": nn.ModuleList([nn.Linear(3, 3)])})
    with pytest.raises(ValueError, match=r"several lists of layers of equal size \(a, b\)"):
        feed_forward(two)
    with pytest.raises(ValueError, match=r"'model\.layer' is no list of layers of LlamaForCausalLM"):
        feed_forward(llama(), layers="model.layer")
    with pytest.raises(ValueError, match="runs its layers once; got n_recurrences=2"):
        feed_forward(llama()).run(torch.tensor([[1, 2]]), 2, None)


# ---- attention

def test_the_controls_attention_is_recorded_layer_by_layer_and_mirrors_at_one(control, tmp_path):
    store = capture(control, PROMPTS, out=tmp_path / "control", n_recurrences=1, attention=True)
    assert store.header["attention"]["layers"] == [f"block.{i}.attention" for i in range(6)]
    assert store.header["attention"]["outside"] == ["prelude.0.attention", "coda.0.attention"]
    copied = NanoModel(NanoConfig(**SHAPE, n_recurrences=3))
    copied.load_state_dict(control.state_dict())
    loop = capture(copied, PROMPTS, out=tmp_path / "loop", n_recurrences=3, attention=True)
    quantities = ["sink_score", "mixing", "concentration"]
    m = mirroring(stage_profile(loop, of="attention"), stage_profile(store, of="attention"), quantities=quantities)
    assert m["score"][0] == pytest.approx(1, abs=1e-6)
    assert (m["score"][1:] < 1).all()


def test_the_attention_of_a_decoder_of_transformers_is_recorded(tmp_path):
    prompts = [[1 + (i * k) % 30 for k in range(1, 8)] for i in range(1, 7)]
    store = capture(feed_forward(llama()), prompts, out=tmp_path / "s", n_recurrences=1, attention=True)
    assert store.header["attention"]["layers"] == [f"model.layers.{i}.self_attn" for i in range(4)]
    assert store.header["attention"]["outside"] == []
    assert stage_profile(store, of="attention").counts() == {Outcome.FOUND: 24}
