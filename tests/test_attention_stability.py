"""Change of attention over its bound: never above 1 in the valid norms, and the norm in which it would be."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome
from dynloop.maps.attention_stability import attention_stability
from dynloop.models import nano

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


def drawn(rng, *shape):
    return torch.as_tensor(rng.normal(size=shape))


def rotary(rows):
    """Rotary positions on (..., tokens, d), d even."""
    half = rows.shape[-1] // 2
    angle = torch.arange(rows.shape[-2])[:, None] * 100.0 ** -(torch.arange(half) / half)
    first, second = rows.chunk(2, dim=-1)
    return torch.cat((first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1)


def attention(x, query, key, causal):
    logits = (x @ query) @ (x @ key).T / math.sqrt(query.shape[1])
    if causal:
        logits = logits.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf)
    return logits.softmax(-1)


@pytest.mark.parametrize("causal", [True, False])
def test_every_number_is_that_of_its_definition(rng, causal):
    x, query, key = drawn(rng, 2, 3, 7, 10), drawn(rng, 2, 10, 4) / 3, drawn(rng, 2, 10, 4) / 3
    m = attention_stability(x, query, key, causal=causal, labels={"prompt": ["a", "b"]})
    assert m.labels["prompt"].tolist() == ["a", "a", "b", "b"]
    assert m.labels["orbit"].tolist() == [0, 0, 1, 1]
    assert m.labels["head"].tolist() == [0, 1, 0, 1]
    for row in range(4):
        o, h = divmod(row, 2)
        product = (query[h] @ key[h].T).numpy()
        for t in range(2):
            a, b = x[o, t], x[o, t + 1]
            change = float((attention(b, query[h], key[h], causal) - attention(a, query[h], key[h], causal)).norm())
            step, root = float((b - a).norm()), math.sqrt(4)
            spectral = np.linalg.norm(product, 2) * (np.linalg.norm(a, 2) + np.linalg.norm(b, 2)) / root * step / 2
            whole = np.linalg.norm(product) * max(np.linalg.norm(a), np.linalg.norm(b)) / root * step
            for name, expected in (("change", change), ("bound_mixed", spectral), ("bound_frobenius", whole),
                                   ("ratio_mixed", change / spectral), ("ratio_frobenius", change / whole)):
                np.testing.assert_allclose(m[name][row, t], expected, rtol=1e-9, err_msg=name)


@given(seed=st.integers(0, 10_000), n_tokens=st.integers(1, 12), size=st.floats(0.01, 30), step=st.floats(1e-6, 3),
       causal=st.booleans(), turned=st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_change_exceeds_the_bounds(seed, n_tokens, size, step, causal, turned):
    rng = np.random.default_rng(seed)
    x = size * drawn(rng, 1, 1, n_tokens, 6)
    x = torch.cat([x, x * (1 + step * drawn(rng, *x.shape))], dim=1)
    m = attention_stability(x, drawn(rng, 2, 6, 4) / 2, drawn(rng, 2, 6, 4) / 2, causal=causal,
                            rotate=rotary if turned else None)
    assert m.found.all()
    for name in ("ratio_mixed", "ratio_frobenius"):
        ratio = m[name][~np.isnan(m[name])]
        assert (ratio <= 1 + 1e-9).all()
        assert (ratio >= 0).all()
    assert (m["bound_mixed"] <= m["bound_frobenius"] * (1 + 1e-9)).all()


def spread_logits(n_tokens):
    """Attention that is half on one key and half on another in every row, and the change that favours one of them."""
    logits = torch.full((n_tokens, n_tokens), -40.0, dtype=torch.float64)
    logits[:, :2] = 0
    change = torch.zeros_like(logits)
    change[:, 0], change[:, 1] = 1, -1
    return logits, 1e-6 * change


def test_one_half_is_the_constant_of_the_softmax_in_the_frobenius_norm():
    """Half and half: the constant is attained, so that no smaller one would do."""
    for n_tokens in (3, 8, 16):
        logits, change = spread_logits(n_tokens)
        moved = (logits + change).softmax(-1) - logits.softmax(-1)
        assert float(moved.norm() / change.norm()) == pytest.approx(0.5, rel=1e-6)


def test_one_half_is_not_the_constant_of_the_softmax_in_the_spectral_norm():
    """Each row moves between keys of its own: in the spectral norm the rows add up for the softmax alone."""
    worst = {}
    for n_tokens in (4, 16):
        rng = np.random.default_rng(0)
        logits = torch.full((n_tokens, n_tokens), -40.0, dtype=torch.float64)
        best = 0.0
        for row in range(n_tokens):  # half on key 0, which all rows share, and half on one of its own
            logits[row, 0] = logits[row, max(row, 1)] = 0.0
        slope = torch.stack([torch.diag(p) - torch.outer(p, p) for p in logits.softmax(-1)])
        change = drawn(rng, n_tokens, n_tokens)
        for _ in range(500):  # ascent of ||dS||_2 / ||dM||_2 over dM with all singular values 1
            moved = torch.einsum("rij,rj->ri", slope, change)
            best = max(best, float(torch.linalg.matrix_norm(moved, 2) / torch.linalg.matrix_norm(change, 2)))
            left, _, right = torch.linalg.svd(moved)
            gradient = torch.einsum("rij,r,i->rj", slope, left[:, 0], right[0])
            u, _, v = torch.linalg.svd(gradient)
            change = u @ v
        worst[n_tokens] = best
    assert worst[4] == pytest.approx(2 / 3, rel=1e-3)  # a bound with 1/2 in the spectral norm would be broken
    assert worst[16] > 1.1
    assert worst[16] <= math.sqrt(16) / 2


def test_the_size_of_the_ratios_on_random_inputs(rng):
    """The bound gives the direction, not the size: medians that were published with the proposition's check."""
    x, query, key = drawn(rng, 20, 2, 16, 64), drawn(rng, 64, 16) / 8, drawn(rng, 64, 16) / 8
    m = attention_stability(x, query, key, causal=False)
    assert 5e-4 < np.median(m["ratio_frobenius"]) < 5e-3
    assert 4e-3 < np.median(m["ratio_mixed"]) < 4e-2


def test_rotary_positions_change_attention_and_its_bound(rng):
    x, query, key = drawn(rng, 1, 2, 5, 8), drawn(rng, 8, 4), drawn(rng, 8, 4)
    plain, turned = (attention_stability(x, query, key, rotate=r) for r in (None, rotary))
    assert turned["change"] != pytest.approx(plain["change"])
    assert turned["bound_mixed"][0, 0] > plain["bound_mixed"][0, 0]
    a, b = ((rotary(x[0, t] @ query) @ rotary(x[0, t] @ key).T / 2).masked_fill(
        torch.ones(5, 5).triu(1).bool(), -torch.inf).softmax(-1) for t in (0, 1))
    np.testing.assert_allclose(turned["change"], float((b - a).norm()), rtol=1e-12)


def test_grouped_queries_share_their_keys(rng):
    x, query, key = drawn(rng, 1, 2, 5, 8), drawn(rng, 4, 8, 4), drawn(rng, 2, 8, 4)
    grouped = attention_stability(x, query, key)
    for head in range(4):
        single = attention_stability(x, query[head], key[head // 2])
        np.testing.assert_allclose(grouped["ratio_mixed"][head], single["ratio_mixed"][0])


def test_inputs_that_do_not_change_have_no_ratio(rng):
    x = drawn(rng, 1, 1, 5, 8).expand(1, 3, 5, 8)
    m = attention_stability(x, drawn(rng, 8, 4), drawn(rng, 8, 4))
    assert m.found.all()
    assert (m["change"] == 0).all()
    assert np.isnan(m["ratio_mixed"]).all()


@pytest.mark.parametrize("device", ["cpu", cuda])
def test_low_precision_is_compared_in_float64(rng, device):
    x, query, key = (w.to(device, torch.bfloat16) for w in (drawn(rng, 1, 3, 5, 8), drawn(rng, 8, 4), drawn(rng, 8, 4)))
    low, high = attention_stability(x, query, key), attention_stability(x.double(), query.double(), key.double())
    np.testing.assert_allclose(low["ratio_mixed"], high["ratio_mixed"], rtol=1e-12)


def test_short_and_broken_orbits_are_no_answer(rng):
    query, key = drawn(rng, 2, 8, 4), drawn(rng, 2, 8, 4)
    m = attention_stability(drawn(rng, 3, 1, 5, 8), query, key)
    assert set(m.outcomes) == {Outcome.TOO_SHORT}
    x = drawn(rng, 2, 3, 5, 8)
    x[1, 2, 0, 0] = torch.inf
    m = attention_stability(x, query, key)
    assert m.outcomes.tolist() == [Outcome.FOUND] * 2 + [Outcome.NOT_FINITE] * 2
    assert np.isnan(m["change"][2:]).all()


def test_what_does_not_fit_is_refused(rng):
    x, query, key = drawn(rng, 1, 2, 5, 8), drawn(rng, 2, 8, 4), drawn(rng, 2, 8, 4)
    for wrong in ((x[0], query, key), (x, query[:, :5], key), (x, query, drawn(rng, 3, 8, 4)),
                  (x, query, drawn(rng, 2, 8, 5)), (x, query, key[:0])):
        with pytest.raises(ValueError, match="with the heads of the query a multiple of those of the key; got"):
            attention_stability(*wrong)
    with pytest.raises(ValueError, match="keep its length"):
        attention_stability(x, query, key, rotate=lambda rows: 2 * rows)
    with pytest.raises(ValueError, match="must not be called head"):
        attention_stability(x, query, key, labels={"head": [1]})


def test_a_looped_model_keeps_the_bound_while_it_settles():
    model = nano("nano-settles").module.double()
    attention_layer, inputs = model.block[0].attention, []
    hook = attention_layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    tokens = torch.tensor([list(b"for name in names")])
    with torch.no_grad():
        context = model.embed(tokens)
        state = model.initial_state(context)
        for _ in range(12):
            state = model.step(state, context)
    hook.remove()
    width, heads = model.config.width, model.config.n_heads
    query, key, _ = attention_layer.qkv.weight.detach().reshape(3, heads, width // heads, width).transpose(2, 3)

    def rotate(rows):
        first, second = rows.chunk(2, dim=-1)
        cosine, sine = context.cosine, context.sine
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)

    m = attention_stability(torch.stack(inputs, dim=1), query, key, rotate=rotate)
    assert m.found.all()
    assert m.n_orbits == heads
    assert (m["ratio_mixed"] <= 1).all()
    assert (m["ratio_frobenius"] <= 1).all()
    assert (m["change"][:, -1] < 1e-3 * m["change"][:, 0]).all()  # the state settles, and attention with it
    assert np.median(m["ratio_mixed"]) > 1e-6
