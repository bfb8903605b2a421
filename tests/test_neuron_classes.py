"""Prediction and suppression neurons against planted ones, closed forms and scipy; norms are folded as documented."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from dynloop import Outcome
from dynloop.models import Unembedding, feed_forward, hooked_block, load, nano
from dynloop.models.mlp_outputs import mlp_outputs
from dynloop.models.unembedding import gain_of
from dynloop.nano import NanoConfig, NanoModel
from dynloop.stages.neuron_classes import neuron_classes


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosines(weights, tokens):
    weights, tokens = (np.asarray(x, dtype=float) for x in (weights, tokens))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)) @ (
        tokens / np.linalg.norm(tokens, axis=1, keepdims=True)).T


def by_scipy(weights, tokens):
    c = cosines(weights, tokens)
    return {"kurtosis": stats.kurtosis(c, axis=1, fisher=False), "skew": stats.skew(c, axis=1), "mean": c.mean(1),
            "variance": c.var(1)}


def with_gains(model, seed=5):
    """Every norm with a gain of its own; what a norm of gain one hides."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.RMSNorm | nn.LayerNorm):
                part.weight.copy_(0.2 + torch.rand(part.weight.shape, generator=generator) * 2)
    return model


# ---- closed forms

def test_a_neuron_that_writes_one_token_predicts_it_and_its_negative_suppresses_it():
    n = 128
    tokens = torch.eye(n)
    m = neuron_classes(w_out=torch.stack((2 * tokens[3], -0.1 * tokens[7])), unembedding=5 * tokens)
    assert m.counts() == {Outcome.FOUND: 1}
    assert (m["n_prediction"][0], m["n_suppression"][0], m["n_neurons"][0]) == (1, 1, 2)
    assert (m["share_prediction"][0], m["share_suppression"][0]) == (0.5, 0.5)
    np.testing.assert_allclose(m["kurtosis"][0], n - 2 + 1 / (n - 1), rtol=1e-5)  # the largest that n values can have
    np.testing.assert_allclose(m["skew"][0], np.array([1, -1]) * (n - 2) / np.sqrt(n - 1), rtol=1e-5)
    np.testing.assert_allclose(m["mean"][0], [1 / n, -1 / n], rtol=1e-5)
    np.testing.assert_allclose(m["variance"][0], (1 - 1 / n) / n, rtol=1e-5)


def test_among_random_tokens_planted_neurons_are_found_and_gaussian_ones_are_neither():
    tokens = drawn(2000, 256)
    weights = torch.cat((tokens[:20], -tokens[20:50], drawn(100, 256, seed=1)))
    m = neuron_classes(w_out=weights, unembedding=tokens)
    assert (m["n_prediction"][0], m["n_suppression"][0]) == (20, 30)
    gaussian = m["kurtosis"][0, 50:]
    assert abs(gaussian.mean() - 3) < 0.1  # not the excess
    assert gaussian.max() < 4


def test_the_threshold_is_of_the_plain_kurtosis():
    tokens = torch.eye(12, dtype=torch.float64)
    one = neuron_classes(w_out=tokens[:1], unembedding=tokens)
    assert one["kurtosis"][0, 0] == pytest.approx(10 + 1 / 11)
    assert one["n_prediction"][0] == 1
    few = torch.eye(11, dtype=torch.float64)
    assert neuron_classes(w_out=few[:1], unembedding=few)["n_prediction"][0] == 0
    assert neuron_classes(w_out=few[:1], unembedding=few, kurtosis_threshold=9)["n_prediction"][0] == 1


@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(2, 9), st.integers(3, 40), st.integers(1, 200))
@settings(max_examples=30, deadline=None)
def test_moments_are_scipys_whatever_the_chunks(seed, n_neurons, width, n_tokens, chunk):
    draw = np.random.default_rng(seed)
    weights, tokens = draw.normal(size=(n_neurons, width)), draw.standard_t(3, size=(n_tokens, width))
    m = neuron_classes(w_out=torch.tensor(weights), unembedding=torch.tensor(tokens), chunk=chunk)
    for name, due in by_scipy(weights, tokens).items():
        np.testing.assert_allclose(m[name][0], due, rtol=1e-7, atol=1e-9)


def test_single_precision_is_enough():
    tokens, weights = drawn(3000, 64), drawn(50, 64, seed=1)
    wide = neuron_classes(w_out=weights, unembedding=tokens)
    for dtype, error in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        narrow = neuron_classes(w_out=weights.to(dtype), unembedding=tokens.to(dtype))
        np.testing.assert_allclose(narrow["kurtosis"], wide["kurtosis"], rtol=error)


def test_layers_of_different_size_stand_side_by_side():
    tokens = drawn(50, 8)
    m = neuron_classes(w_out=[drawn(3, 8), drawn(5, 8, seed=2)], unembedding=tokens)
    assert m.labels["layer"].tolist() == [1, 2]
    assert m["n_neurons"].tolist() == [3, 5]
    assert np.isnan(m["kurtosis"]).tolist() == [[False] * 3 + [True] * 2, [False] * 5]


def test_what_writes_nothing_is_in_neither_class_and_what_is_not_finite_says_so():
    tokens = torch.eye(20)
    silent, broken = torch.stack((tokens[0], torch.zeros(20))), torch.full((2, 20), torch.nan)
    m = neuron_classes(w_out=[silent, torch.zeros(2, 20), broken], unembedding=torch.cat((tokens, torch.zeros(3, 20))))
    assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.NOT_FOUND, Outcome.NOT_FINITE]
    assert (m["n_prediction"][0], m["n_neurons"][0]) == (1, 2)
    assert np.isnan(m["kurtosis"][0]).tolist() == [False, True]
    assert all(np.isnan(m[name][1:]).all() for name in m.variables)
    assert m.settings["n_tokens"] == 20  # those of padding have no direction
    same = neuron_classes(w_out=tokens[:1], unembedding=torch.ones(5, 20))
    assert same.outcomes.tolist() == [Outcome.NOT_FOUND]


# ---- models

@pytest.mark.parametrize("norm", ["pre", "sandwich", "residual"])
def test_gains_of_the_final_norm_and_of_the_branch_or_stream_are_folded(norm):
    model = with_gains(NanoModel(NanoConfig(width=16, n_heads=2, norm=norm), seed=1))
    m = neuron_classes(model)
    assert m.labels["part"].tolist() == ["prelude", "block", "block", "coda"]
    assert m.labels["layer"].tolist() == [1, 1, 2, 1]
    kind = {"pre": "", "sandwich": "branch", "residual": "stream"}[norm]
    assert set(m.labels["norm"]) == {kind}
    tokens = model.head.weight * model.final_norm.weight
    for row, layer in enumerate((*model.prelude, *model.block, *model.coda)):
        gain = 1 if norm == "pre" else layer.norms[3].weight
        due = by_scipy((layer.mlp[2].weight.T * gain).detach(), tokens.detach())
        for name, values in due.items():
            np.testing.assert_allclose(m[name][row], values, rtol=2e-3, atol=1e-5)
    plain = by_scipy(model.block[0].mlp[2].weight.T.detach(), model.head.weight.detach())
    np.testing.assert_allclose(neuron_classes(model, fold=False)["kurtosis"][1], plain["kurtosis"], rtol=1e-3)
    assert not np.allclose(m["kurtosis"][1], plain["kurtosis"], rtol=1e-2)


def test_the_folded_direction_is_what_the_logits_feel():
    model = with_gains(NanoModel(NanoConfig(width=16, n_heads=2, norm="sandwich", n_coda=0, loop_norm=False), seed=1))
    out = mlp_outputs(nano(model))[2]
    assert (out.part, out.layer, out.path, out.norm) == ("block", 2, "block.1.mlp.2", "branch")
    # the derivative of the last layer's stream with respect to a neuron, past its own norm, up to the norm's projection
    layer, h = model.block[1], torch.randn(1, 16)
    branch = torch.randn(1, 16)

    def stream(a):
        return h + layer.norms[3](branch + a * out.weight[:, 4])

    found = torch.autograd.functional.jacobian(stream, torch.zeros(()))[0]
    unit = branch[0] / branch[0].norm()
    due = out.gain.float() * (out.weight[:, 4] - unit * (unit @ out.weight[:, 4]))
    assert torch.nn.functional.cosine_similarity(found, due, dim=0) == pytest.approx(1, abs=1e-5)


def test_a_planted_neuron_of_a_model_is_found_by_its_layer():
    model = with_gains(NanoModel(NanoConfig(width=64, n_heads=2, norm="sandwich"), seed=1))
    with torch.no_grad():
        model.head.weight[:64] = torch.eye(64)
        model.head.weight[64:] = 1e-3 * torch.eye(64).repeat(3, 1)  # four tokens a direction: kurtosis 62
        toward = (model.head.weight[9] * model.final_norm.weight) / model.block[1].norms[3].weight
        model.block[1].mlp[2].weight[:, 0], model.block[1].mlp[2].weight[:, 1] = toward, -3 * toward
    m = neuron_classes(model, kurtosis_threshold=40)  # directions of 64 features: chance alone reaches 10
    row = int(np.flatnonzero((m.labels["part"] == "block") & (m.labels["layer"] == 2))[0])
    np.testing.assert_allclose(m["kurtosis"][row, :2], 62 + 1 / 63, rtol=1e-4)
    assert m["skew"][row, 0] == pytest.approx(-m["skew"][row, 1], rel=1e-4)
    assert (m["n_prediction"][row], m["n_suppression"][row]) == (1, 1)
    assert not m["n_prediction"][[i for i in range(4) if i != row]].any()


def test_the_answer_is_of_weights_alone_and_leaves_the_model_as_it_was():
    model = NanoModel(NanoConfig(width=16, n_heads=2), seed=1).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    one, two = neuron_classes(model), neuron_classes(nano(model))
    for name in one.variables:
        np.testing.assert_array_equal(one[name], two[name])
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def decoder(kind):
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        if kind == "gpt2":
            model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2,
                                                                         n_positions=32))
        else:
            names = {"llama": "Llama", "olmo2": "Olmo2", "gemma2": "Gemma2"}
            config = getattr(transformers, f"{names[kind]}Config")(
                vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, head_dim=8, pad_token_id=None)
            model = getattr(transformers, f"{names[kind]}ForCausalLM")(config)
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and ("norm" in name or "ln_" in name):
                weight.add_(torch.rand_like(weight))
        return model.eval()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "olmo2", "gemma2"])
def test_decoders_of_transformers_are_read_whatever_their_norms_are(kind):
    model = decoder(kind)
    m = neuron_classes(feed_forward(model))
    if kind == "gpt2":
        stack, final, outs, gains = model.transformer.h, model.transformer.ln_f.weight, "c_proj", [1, 1]
        weights = [layer.mlp.c_proj.weight for layer in stack]
        weights = [w - w.mean(1, keepdim=True) for w in weights]  # LayerNorm
    else:
        stack, final, outs = model.model.layers, model.model.norm.weight, "down_proj"
        one = 1 if kind == "gemma2" else 0
        final = final + one
        gains = [1 if kind == "llama" else one + layer.post_feedforward_layernorm.weight for layer in stack]
        weights = [layer.mlp.down_proj.weight.T for layer in stack]
    assert set(m.labels["norm"]) == {"branch" if kind in ("olmo2", "gemma2") else ""}
    assert all(path.endswith(outs) for path in m.labels["path"])
    assert m.settings["centred"] == (kind == "gpt2")
    for row in range(2):
        due = by_scipy((weights[row] * gains[row]).detach(), (model.lm_head.weight * final).detach())
        np.testing.assert_allclose(m["kurtosis"][row], due["kurtosis"], rtol=5e-3)
        np.testing.assert_allclose(m["skew"][row], due["skew"], rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["huginn", "retrofit", "ouro", "looped_nanochat", "trm"])
def test_looped_families_are_read(name):
    import test_families
    model, _ = test_families.built(name)
    looped = load(model)
    m = neuron_classes(looped)
    n = {"huginn": 6, "retrofit": 6, "ouro": 3, "looped_nanochat": 4, "trm": 2}[name]
    assert m.n_orbits == n
    assert (m["n_neurons"] == 16).all()
    assert all(path.endswith("net.2") for path in m.labels["path"])
    kinds = {"huginn": "stream", "retrofit": "stream", "trm": "stream", "ouro": "", "looped_nanochat": ""}
    assert set(m.labels["norm"]) == {kinds[name]}
    own = mlp_outputs(looped)[-1]
    gain = own.gain if kinds[name] == "stream" else 1
    tokens = looped.unembed.head.weight * (1 if looped.unembed.norm is None else looped.unembed.norm.weight)
    due = by_scipy((own.weight.T * gain).detach(), tokens.detach())
    np.testing.assert_allclose(m["kurtosis"][-1], due["kurtosis"], rtol=5e-3)


# ---- norms

@pytest.mark.parametrize("width", [2, 7, 16])
@pytest.mark.parametrize("kind", [nn.RMSNorm, nn.LayerNorm])
def test_the_gain_of_a_norm_is_read_off_what_it_gives(kind, width):
    norm = kind(width)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, width))
        if kind is nn.LayerNorm:
            norm.bias.copy_(torch.linspace(3, 1, width))
    gain, centred = gain_of(norm, width, torch.zeros(1))
    torch.testing.assert_close(gain, norm.weight.double(), rtol=1e-4, atol=1e-5)
    assert centred == (kind is nn.LayerNorm)


class Groups(nn.Module):
    def forward(self, x):
        return nn.functional.rms_norm(x.unflatten(-1, (2, -1)), (x.shape[-1] // 2,)).flatten(-2)


@pytest.mark.parametrize("module", [nn.Identity(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3), nn.Embedding(3, 8),
                                    nn.Tanh(), nn.Sigmoid(), nn.Hardtanh(), nn.Softmax(-1), Groups()])
def test_what_is_no_norm_has_no_gain(module):
    assert gain_of(module, 8, torch.zeros(1)) is None


# ---- refusals

@pytest.mark.parametrize(("given", "words"), [
    ({}, "needs a model, or w_out"),
    ({"w_out": torch.ones(3, 4)}, "needs a model, or w_out"),
    ({"w_out": torch.ones(3, 4), "unembedding": torch.ones(9, 5)}, r"got \(3, 4\) and \(9, 5\)"),
    ({"w_out": torch.ones(3, 4), "unembedding": torch.ones(1, 4)}, "at least two tokens"),
    ({"w_out": [], "unembedding": torch.ones(9, 4)}, "got none and"),
    ({"w_out": torch.ones(3, 4), "unembedding": torch.ones(9, 4), "kurtosis_threshold": 0}, "kurtosis_threshold must"),
    ({"w_out": torch.ones(3, 4), "unembedding": torch.ones(9, 4), "chunk": 0}, "chunk must be a whole number"),
    ({"w_out": torch.ones(3, 4), "unembedding": torch.ones(9, 4), "fold": 1}, "fold must be one of True, False"),
    ({"w_out": torch.ones(3, 4), "unembedding": torch.ones(9, 4), "centre": "yes"}, "centre must be one of True"),
    ({"model": "nano-settles", "w_out": torch.ones(3, 4)}, "and so does the model"),
    ({"model": "nano-settles", "unembedding": torch.ones(9, 4)}, "the other way round"),
])
def test_what_does_not_fit_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        neuron_classes(**given)


def test_models_whose_weights_do_not_say_it_are_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.AlbertConfig(vocab_size=31, embedding_size=8, hidden_size=16, num_hidden_layers=2,
                                       num_attention_heads=2, intermediate_size=24, max_position_embeddings=32)
    albert = load(transformers.AlbertForMaskedLM(config).eval())
    with pytest.raises(ValueError, match=r"AlbertMLMHead\) is no matrix"):
        neuron_classes(albert)
    given = neuron_classes(albert, unembedding=torch.randn(31, 16))  # its layers are read all the same
    assert given.labels["path"].tolist() == ["albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output"]
    assert given.labels["norm"].tolist() == ["stream"]
    model = NanoModel(NanoConfig(width=16, n_heads=2))
    bare = hooked_block(model, ["block.0", "loop_norm"], loops="n_recurrences")
    with pytest.raises(ValueError, match="names no final norm and head"):
        neuron_classes(bare)
    with pytest.raises(ValueError, match="no module of loop_norm in NanoModel holds a matrix"):
        neuron_classes(bare, unembedding=model.head.weight)
    whole = dataclasses.replace(bare, layers={"block": list(model.block)},
                                unembed=Unembedding(model.head, model.final_norm))
    np.testing.assert_allclose(neuron_classes(whole)["kurtosis"], neuron_classes(model)["kurtosis"][1:3])
    odd = dataclasses.replace(whole, unembed=Unembedding(model.head, nn.GELU()))
    with pytest.raises(ValueError, match="the final norm of NanoModel, GELU, is no norm"):
        neuron_classes(odd)


@pytest.mark.parametrize("kind", ["Mixtral", "GptOss"])
def test_experts_that_are_one_module_are_not_taken_for_the_attention_before_them(kind):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, kind + "Config")(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, num_local_experts=3, num_experts_per_tok=2)
    model = feed_forward(getattr(transformers, kind + "ForCausalLM")(config).eval())
    with pytest.raises(ValueError, match=r"mlp.experts of .* writes by matrices of its own, such as those of experts"):
        neuron_classes(model)


def test_experts_that_take_turns_are_refused():
    transformers = pytest.importorskip("transformers")
    layer = nn.Module()
    layer.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    layer.forward = lambda h: h + layer.experts[0](h)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layer = nn.Embedding(9, 8), layer

        def forward(self, tokens, n=1):
            h = self.embedding(tokens)
            for _ in range(n):
                h = self.layer(h)
            return h @ self.embedding.weight.T

    assert transformers
    with pytest.raises(ValueError, match="one of several experts, which take turns"):
        neuron_classes(hooked_block(Model(), ["layer"], loops="n"), unembedding=torch.randn(9, 8))
