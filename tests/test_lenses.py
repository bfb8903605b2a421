"""What every recurrence already knows: coda lens, logit lens, and the curve over depth, against the model itself."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from test_models import MODELS

from dynloop import Measurement, Outcome, capture, estimate
from dynloop.models import Unembedding, feed_forward, hooked_block, load, nano, undisturbed, untrained
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording.lenses import UNITS, coda_lens, logit_lens
from dynloop.stages import profile_by
from dynloop.stages.depth_extrapolation import depth_extrapolation

TINY = NanoConfig(width=16, n_heads=2, n_recurrences=3)
PROMPTS = torch.randint(256, (5, 7), generator=torch.Generator().manual_seed(0)).tolist()
RAGGED = [PROMPTS[0], PROMPTS[1][:4], PROMPTS[2]]


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return NanoModel(TINY, seed=1)


@pytest.fixture(scope="module")
def lens(model):
    return coda_lens(model, PROMPTS, n_recurrences=5)


def shaped(m, name, *shape):
    return m[name].reshape(shape)


def slow(logits, final, previous, target):
    """The numbers of one token, as they are defined."""
    p, last = log_softmax(logits), log_softmax(final)
    answer = last.argmax()
    found = {"loss": -p[target], "rank_true": 1 + (p > p[target]).sum(), "rank_final": 1 + (p > p[answer]).sum(),
             "kl_final": rel_entr(np.exp(last), np.exp(p)).sum(), "entropy": -(np.exp(p) * p).sum(),
             "agrees": float(p.argmax() == answer), "correct": float(p.argmax() == target),
             "kl_successive": np.nan if previous is None else
             rel_entr(np.exp(p), np.exp(log_softmax(previous))).sum()}
    assert set(found) == set(UNITS)
    return found


# ---- the coda lens

def test_every_number_is_that_of_the_models_own_run_of_as_many_recurrences(model, lens):
    tokens = torch.tensor(PROMPTS)
    with torch.no_grad():
        runs = [model(tokens, n_recurrences=r).double().numpy() for r in range(1, 6)]
    assert lens.counts() == {Outcome.FOUND: 5 * 7 * 5}
    for i in range(5):
        for t in range(6):
            for r in range(5):
                due = slow(runs[r][i, t], runs[4][i, t], runs[r - 1][i, t] if r else None, PROMPTS[i][t + 1])
                for name, value in due.items():
                    assert shaped(lens, name, 5, 7, 5)[i, t, r] == pytest.approx(value, rel=1e-4, abs=1e-9, nan_ok=True)


def test_the_last_recurrence_gives_the_models_own_logits_exactly(model, lens):
    last = lens.select(recurrence=5)
    assert (last["kl_final"] == 0).all()
    assert (last["rank_final"] == 1).all()
    assert (last["agrees"] == 1).all()
    with torch.no_grad():
        own = model(torch.tensor(PROMPTS), n_recurrences=5).double().log_softmax(-1)
    due = -own[:, :-1].gather(-1, torch.tensor(PROMPTS)[:, 1:, None])[..., 0]
    assert (shaped(last, "loss", 5, 7)[:, :-1] == due.numpy()).all()


@pytest.mark.parametrize("name", list(MODELS))
def test_every_family_reads_its_last_state_as_its_own_answer(name):
    looped = MODELS[name]()
    n = looped.most_recurrences or 2 * looped.multiple
    length = looped.n_tokens or 5
    prompts = np.random.default_rng(3).integers(1, looped.vocabulary - 1, (3, length)).tolist()
    m = coda_lens(looped, prompts, n_recurrences=n)
    ended = m.outcomes == Outcome.TOO_SHORT
    assert looped.ragged or not ended.any()
    for prompt in range(3):
        own = m.select(prompt=prompt)
        r = own.labels["recurrence"]
        last = own.select(recurrence=r[own.found].max())
        assert (last["kl_final"] <= 1e-9).all()
        assert (last["agrees"] == 1).all()
        if not looped.causal:
            assert not m.labels["has_target"].any()
            assert np.isnan(m["loss"]).all()


def test_labels_are_those_of_prompts_and_the_last_token_has_no_target(lens):
    assert lens.labels["prompt"].tolist() == np.repeat(np.arange(5), 35).tolist()
    assert shaped(lens, "loss", 5, 7, 5).shape == (5, 7, 5)
    known = lens.labels["has_target"].reshape(5, 7, 5)
    assert known[:, :-1].all()
    assert not known[:, -1].any()
    assert (np.isnan(lens["loss"]) == ~lens.labels["has_target"]).all()
    found = estimate(lens.select(has_target=True, recurrence=3), statistic="mean", resample="prompt", variable="loss")
    assert found.low < found.value < found.high
    assert found.n_units == 5


def test_batches_lengths_and_selections_change_nothing(model):
    whole = coda_lens(model, RAGGED, n_recurrences=4)
    ones = coda_lens(model, RAGGED, n_recurrences=4, batch_size=1)
    some = coda_lens(model, RAGGED, n_recurrences=4, tokens=[0, -1], recurrences=[2, -1])
    for name in UNITS:
        np.testing.assert_allclose(whole[name], ones[name], rtol=1e-4, atol=1e-6)
    chosen = np.isin(whole.labels["recurrence"], [2, 4]) & (
        (whole.labels["token"] == 0) | (whole.labels["token"] == np.array([6, 3, 6])[whole.labels["prompt"]]))
    for name in UNITS:
        np.testing.assert_allclose(some[name], whole[name][chosen], rtol=1e-4, atol=1e-6)


def test_random_starts_are_those_of_the_prompts_seeds():
    model = NanoModel(dataclasses.replace(TINY, initial_state="random"), seed=1)
    m = coda_lens(model, PROMPTS[:2], n_recurrences=2, seed=5)
    assert sorted(set(m.labels["seed"])) == [5, 6]
    with torch.no_grad():
        own = model(torch.tensor(PROMPTS[:2]), n_recurrences=2, seeds=[5, 6]).double().log_softmax(-1)
    entropy = -(own.exp() * own).sum(-1)
    np.testing.assert_allclose(m.select(recurrence=2)["entropy"].reshape(2, 7), entropy, rtol=1e-5)


def test_targets_may_be_given(model):
    mine = torch.full((5, 7), -100)
    mine[:, 3] = 9
    m = coda_lens(model, PROMPTS, n_recurrences=2, targets=mine.tolist())
    assert (m.labels["has_target"] == (m.labels["token"] == 3)).all()
    with torch.no_grad():
        own = model(torch.tensor(PROMPTS), n_recurrences=2).double().log_softmax(-1)[:, 3, 9]
    np.testing.assert_allclose(m.select(recurrence=2, token=3)["loss"], -own, rtol=1e-6)


def test_a_store_is_read_as_the_model_itself_is(model, tmp_path):
    store = capture(model, RAGGED, out=tmp_path / "s", n_recurrences=4)
    for one, other in ((coda_lens(model, store), coda_lens(model, RAGGED, n_recurrences=4)),
                       (logit_lens(model, store, layers=[2], tokens=[1]),
                        logit_lens(model, RAGGED, n_recurrences=4, layers=[2], tokens=[1]))):
        assert one.counts() == other.counts()
        for name, values in other.labels.items():
            assert (one.labels[name] == values).all()
        for name in UNITS:
            np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)


def test_logits_that_left_the_finite_numbers_are_told():
    model = NanoModel(dataclasses.replace(TINY, norm="pre", injection="none", loop_norm=False), seed=0)
    looped = nano(model)
    wild = dataclasses.replace(looped, unembed=Unembedding(torch.nn.Linear(16, 256)))
    with torch.no_grad():
        wild.unembed.head.weight.fill_(torch.inf)
    m = logit_lens(wild, PROMPTS[:1], n_recurrences=2)
    assert m.counts() == {Outcome.NOT_FINITE: 7 * 2 * 2}
    assert all(np.isnan(m[name]).all() for name in UNITS)


def test_a_final_answer_that_is_not_finite_leaves_the_earlier_losses():
    class Growing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.block = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4, bias=False)
            with torch.no_grad():
                self.block.weight.copy_(1e15 * torch.eye(4))

        def forward(self, tokens, n=1):
            h = self.embedding(tokens)
            for _ in range(n):
                h = self.block(h)
            return h @ self.embedding.weight.T

    growing = Growing()
    own = hooked_block(growing, ["block"], loops="n", embed=growing.embedding, initial_state=lambda c, seeds: c,
                       step=lambda h, c: growing.block(h), readout=lambda h, c: h @ growing.embedding.weight.T)
    m = coda_lens(own, [[1, 2, 3], [4, 5, 6]], n_recurrences=3)  # 1e45 is too large
    assert (m.outcomes[m.labels["recurrence"] < 3] == Outcome.FOUND).all()
    assert (m.outcomes[m.labels["recurrence"] == 3] == Outcome.NOT_FINITE).all()
    early = m.select(recurrence=[1, 2], has_target=True)
    assert np.isfinite(early["loss"]).all()
    for name in ("kl_final", "rank_final", "agrees"):
        assert np.isnan(m[name]).all()
    curve = depth_extrapolation(m)
    assert curve["n"].values.tolist() == [4, 4, 0]
    assert np.isnan(curve["mean"][2])


# ---- the logit lens

def test_the_logit_lens_is_norm_and_head_of_every_layer(model):
    m = logit_lens(model, PROMPTS, n_recurrences=3)
    seen = []
    hooks = [part.register_forward_hook(lambda _, __, out: seen.append(out))
             for part in (*model.block[:-1], model.loop_norm)]
    with torch.no_grad():
        final = model(torch.tensor(PROMPTS), n_recurrences=3).double()
        logits = [model.head(model.final_norm(state)).double() for state in seen]
    for hook in hooks:
        hook.remove()
    assert m.n_orbits == 5 * 7 * 3 * 2
    p, last = [x.log_softmax(-1) for x in logits], final.log_softmax(-1)
    for r in range(3):
        for layer in range(2):
            own = m.select(recurrence=r + 1, layer=layer + 1)
            now = p[2 * r + layer]
            due = (last.exp() * (last - now)).sum(-1)
            np.testing.assert_allclose(own["kl_final"].reshape(5, 7), due, rtol=1e-4, atol=1e-9)
            assert (own.labels["depth"] == 2 * r + layer + 1).all()
            assert (own.labels["percent"] == 25 + 50 * layer).all()
            if r:
                step = (now.exp() * (now - p[2 * r + layer - 2])).sum(-1)
                np.testing.assert_allclose(own["kl_successive"].reshape(5, 7), step, rtol=1e-4, atol=1e-9)


def test_without_a_coda_both_lenses_agree_at_the_loop_state(model):
    bare = NanoModel(dataclasses.replace(TINY, n_coda=0), seed=2)
    coda = coda_lens(bare, PROMPTS, n_recurrences=4)
    logit = logit_lens(bare, PROMPTS, n_recurrences=4, layers=[2])
    for name in UNITS:
        np.testing.assert_allclose(coda[name], logit[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["ouro", "huginn", "retrofit", "looped_nanochat", "hrm", "trm"])
def test_norm_and_head_of_a_family_without_coda_give_its_readout(name):
    import test_families
    module, _ = test_families.built(name)
    for key in ("coda",):
        if hasattr(module, "transformer") and key in module.transformer:
            module.transformer[key] = torch.nn.ModuleList()
    looped = load(module)
    tokens = test_families.tokens_of(looped)
    with undisturbed(module):
        context = looped.embed(tokens)
        state = looped.step(looped.initial_state(context, seeds=[0] * len(tokens)), context)
        due = looped.readout(state, context)
        own = looped.unembed(state[..., -looped.width:], point=looped.state_points[-1] % len(looped.points))
    if name == "huginn":  # its norm stands before the coda, too
        own = looped.unembed(module.transformer["ln_f"](state))
    torch.testing.assert_close(own[:, looped.prefix:], due, rtol=1e-5, atol=1e-6)


def test_profiles_over_depth_take_what_the_logit_lens_gives(model):
    m = logit_lens(model, PROMPTS, n_recurrences=3)
    curves = profile_by(m, "recurrence", variable="kl_final")
    assert dict(curves.sizes) == {"recurrence": 3, "percent": 2}
    cell = m.select(recurrence=2, layer=1)["kl_final"]
    assert float(curves["mean"].sel(recurrence=2, percent=25)) == pytest.approx(cell.reshape(5, 7).mean())


def test_a_feed_forward_decoder_is_read_layer_by_layer():
    transformers = pytest.importorskip("transformers")
    with torch.random.fork_rng():
        whole = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2)).eval()
    prompts = [[1, 5, 9, 3], [4, 4, 2, 8]]
    m = logit_lens(feed_forward(whole), prompts)
    last = m.select(layer=3)
    assert m.settings["n_recurrences"] == 1
    np.testing.assert_allclose(last["kl_final"], 0, atol=1e-9)
    assert (m.select(layer=1)["kl_final"] > 0).all()


# ---- depth

def test_the_curve_over_depth_is_the_mean_over_prompts_and_the_change_is_paired(lens):
    curve = depth_extrapolation(lens, trained=3)
    known = lens.select(has_target=True)
    loss = known["loss"].reshape(5, 6, 5)
    np.testing.assert_allclose(curve["mean"], loss.mean((0, 1)))
    np.testing.assert_allclose(curve["change"], (loss - loss[..., 2:3]).mean((0, 1)), atol=1e-12)
    assert curve.attrs["trained"] == 3
    assert (curve["n"] == 30).all()
    assert float(curve.change_low.sel(recurrence=3)) == 0
    inside = (curve["low"] <= curve["mean"]) & (curve["mean"] <= curve["high"])
    assert inside.all()
    shares = depth_extrapolation(lens, variable="correct")
    assert "change" not in shares
    assert ((shares["mean"] >= 0) & (shares["mean"] <= 1)).all()


def test_a_planted_optimum_is_found_and_what_overflowed_is_left_out():
    rng, n = np.random.default_rng(0), 20
    prompt, recurrence = (i.ravel() for i in np.indices((n, 8)))
    loss = 1 + 0.1 * (recurrence - 3) ** 2 + rng.normal(0, .2, n)[prompt] + rng.normal(0, .01, 8 * n)
    outcomes = np.where((prompt == 4) & (recurrence == 7), Outcome.NOT_FINITE, Outcome.FOUND)
    m = Measurement("coda_lens", {"loss": np.where(outcomes == Outcome.FOUND, loss, np.nan)}, outcomes,
                    labels={"prompt": prompt, "recurrence": recurrence + 1})
    curve = depth_extrapolation(m, trained=4)
    assert int(curve.recurrence[int(curve["mean"].values.argmin())]) == 4
    later = curve.sel(recurrence=slice(5, 8))
    assert (later.change_low > 0).all()
    assert ((later.change_low < 0.1 * (later.recurrence - 4) ** 2) & (
        later.change_high > 0.1 * (later.recurrence - 4) ** 2)).all()
    assert int(curve.n[-1]) == n - 1


def test_an_untrained_copy_is_read_beside_the_trained_model():
    prompts = ["import os\nimport sys", "def f(x):\n    return"]
    both = [coda_lens(own, prompts, n_recurrences=8).select(has_target=True, recurrence=8)["loss"].mean()
            for own in ("nano-settles", untrained("nano-settles"))]
    assert both[0] < 2.5 < both[1]


# ---- refusals

@pytest.mark.parametrize(("change", "words"), [
    ({"n_recurrences": 0}, "n_recurrences must be a whole number of at least 1"),
    ({"recurrences": [6]}, "recurrences must be among 1 to 3"),
    ({"recurrences": ["a"]}, "recurrences must be a list of whole numbers"),
    ({"tokens": [9]}, r"tokens \[9\] do not all exist in prompt 0"),
    ({"targets": [[1, 2]]}, "targets must be, for each prompt, as many whole numbers"),
    ({"batch_size": 0}, "batch_size must be a whole number"),
    ({"seed": -1}, "seed must be a whole number from 0"),
    ({"inputs": []}, "with at least one; got none"),
])
@pytest.mark.parametrize("lens", [coda_lens, logit_lens])
def test_what_does_not_exist_is_refused(model, lens, change, words):
    with pytest.raises(ValueError, match=words):
        lens(**{"model": model, "inputs": PROMPTS, "n_recurrences": 3, **change})


def test_models_that_cannot_be_read_are_refused(model):
    bare = hooked_block(model, ["block.0", "loop_norm"], loops="n_recurrences")
    with pytest.raises(ValueError, match="the coda lens needs what `embed` and `readout` give"):
        coda_lens(bare, PROMPTS)
    with pytest.raises(ValueError, match="does not name its final norm and head"):
        logit_lens(bare, PROMPTS)
    wrong = dataclasses.replace(nano(model), readout=lambda state, context: model.readout(2 - state, context))
    with pytest.raises(RuntimeError, match="the readout of the last state of nano differs"):
        coda_lens(wrong, PROMPTS, n_recurrences=2)
    with pytest.raises(ValueError, match="has 1 recurrences at most"):
        coda_lens(NanoModel(NanoConfig(width=16, n_heads=2, injection="none", looped=False)), PROMPTS, n_recurrences=2)


def test_stores_that_cannot_be_read_out_are_refused(model, tmp_path):
    def store(name, **settings):
        return capture(model, PROMPTS[:2], out=tmp_path / name, **{"n_recurrences": 3, **settings})

    with pytest.raises(ValueError, match="no recording of nano with these weights"):
        coda_lens(NanoModel(TINY, seed=9), store("a"))
    with pytest.raises(ValueError, match="Leave n_recurrences out"):
        coda_lens(model, store("a"), n_recurrences=3)
    with pytest.raises(ValueError, match="The coda sees all tokens"):
        coda_lens(model, store("b", tokens=[-1]))
    with pytest.raises(ValueError, match="layers 2 are needed"):
        coda_lens(model, store("c", layers=[1]))
    with pytest.raises(ValueError, match="stored in BF16 and were computed in F32"):
        coda_lens(model, store("d", dtype=torch.bfloat16))
    some = store("e", recurrences=[1, 3])
    with pytest.raises(ValueError, match="holds no states of recurrences 2"):
        coda_lens(model, some)
    assert np.isnan(coda_lens(model, some, recurrences=[3])["kl_successive"]).all()


def test_curves_of_several_layers_or_without_the_trained_number_are_refused(model, lens):
    with pytest.raises(ValueError, match="several layers"):
        depth_extrapolation(logit_lens(model, PROMPTS, n_recurrences=2))
    with pytest.raises(ValueError, match="trained=9 is not among"):
        depth_extrapolation(lens, trained=9)
    with pytest.raises(KeyError, match="has no variable 'los'"):
        depth_extrapolation(lens, variable="los")
    with pytest.raises(ValueError, match="every token must be there once"):
        depth_extrapolation(Measurement.concatenate([lens.select(recurrence=[1, 2]), lens.select(recurrence=1)]))
    with pytest.raises(ValueError, match="has no label 'recurrence'"):
        depth_extrapolation(Measurement("x", {"loss": np.ones(2)}, [Outcome.FOUND] * 2))
