"""Statistics of attention while the model runs: against closed forms, and against maps built in full."""

import functools
import math
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from dynloop.attention import attention_statistics, scores
from dynloop.nano import NanoConfig, NanoModel

# said by torch about its own code
pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in (
    ".*torch.jit.script", "flex_attention called without", "The PyTorch API of nested tensors")]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


class Attention(nn.Module):
    """Calls what it is given: a module to hang attention calls on."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, *args, **kwargs):
        return self.attend(*args, **kwargs)


def slow_map(q, k, *, scale=None, mask=None, after=None, before=None, change=None):
    """A (B, H, T, S) in float64, built in full; rows that attend to nothing are 0."""
    q, k = q.double(), k.double()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    s = q @ k.transpose(2, 3) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if change is not None:
        s = change(s)
    t, j = torch.arange(s.shape[2], device=s.device)[:, None], torch.arange(s.shape[3], device=s.device)
    if after is not None:
        s = s.masked_fill(j > t + after, -torch.inf)
    if before is not None:
        s = s.masked_fill(j < t - before, -torch.inf)
    if mask is not None:
        s = s.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else s + mask.double()
    return torch.softmax(s, -1).nan_to_num()


def check(call, a, before=None, *, tolerance=2e-5):
    """A call's numbers against its map, and against the map before it."""
    def near(x, y):
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)

    n = (a.sum(-1) > 0.5).sum(-1)
    near(call.column_sums, a.sum(2))
    near(call.entropies, torch.special.entr(a).sum(-1))
    near(call.maxima, a.amax(-1))
    near(call.sink_scores, a.sum(2) / n[..., None])
    near(call.entropy, torch.special.entr(a).sum((-1, -2)) / n)
    near(call.maximum, a.amax(-1).sum(-1) / n)
    if before is None:
        assert call.distance.isnan().all()
        assert call.note
    else:
        near(call.distance, torch.linalg.norm(a - before, dim=(2, 3)))
        assert call.note == ""


def recorded(module, *runs, **kwargs):
    with torch.no_grad(), attention_statistics(module, continues=True, **kwargs) as seen:
        results = [module(*args, **options) for args, options in runs]
    return seen.calls, results


def draw(*shape, seed=0, **how):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**how)


@pytest.fixture(params=[None, (64, 3), (1 << 20, 7)], ids=["usual blocks", "a head at a time", "all heads"])
def block_size(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(scores, "_BLOCK", {"cpu": request.param})


@pytest.fixture
def qkv():
    return [draw(2, 4, 23, 8, seed=s) for s in range(3)]


# closed forms

def test_the_identity_has_no_entropy_and_a_sum_of_one_on_every_column():
    q = 100 * torch.eye(40)[None, None]
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, q, q), {"scale": 1.0}))
    assert torch.equal(calls[0].entropies, torch.zeros(1, 1, 40))
    assert torch.equal(calls[0].column_sums, torch.ones(1, 1, 40))
    assert torch.equal(calls[0].maxima, torch.ones(1, 1, 40))


def test_a_full_sink_has_score_one_on_its_key_and_no_entropy():
    q, k = torch.ones(1, 2, 30, 1), torch.zeros(1, 2, 30, 1)
    k[:, :, 0] = 200.0
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k, k), {"scale": 1.0, "is_causal": True}))
    assert torch.equal(calls[0].sink_scores[..., 0], torch.ones(1, 2))
    assert torch.equal(calls[0].entropy, torch.zeros(1, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("n", "concentration"), [(8, 0.151), (14, 0.134), (16, 0.131), (32, 0.112), (64, 0.097),
                                                  (128, 0.085), (256, 0.075), (512, 0.067), (1024, 0.061)])
def test_uniform_causal_attention_has_its_closed_forms(n, concentration, device):
    zero = torch.zeros(1, 1, n, 4, device=device)
    (call,), _ = recorded(Attention(F.scaled_dot_product_attention), ((zero,) * 3, {"is_causal": True}))
    harmonic = np.cumsum(1 / np.arange(1, n + 1))
    np.testing.assert_allclose(call.sink_scores[0, 0, 0].item(), harmonic[-1] / n, rtol=1e-6)
    np.testing.assert_allclose(call.entropy.item(), math.lgamma(n + 1) / n, rtol=1e-5)
    np.testing.assert_allclose(call.maximum.item(), harmonic[-1] / n, rtol=1e-6)
    share = call.sink_scores[0, 0].double()
    assert 1 - torch.special.entr(share).sum().item() / math.log(n) == pytest.approx(concentration, abs=6e-4)


def test_the_distance_between_a_sink_and_another_sink_is_the_largest_there_is():
    q, k = torch.ones(1, 1, 50, 2), torch.zeros(2, 1, 1, 50, 2)
    k[0, :, :, 0], k[1, :, :, 1] = 200.0, 200.0
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k[0], q), {}), ((q, k[1], q), {}),
                        ((q, k[1], q), {}))
    assert calls[1].distance.item() == pytest.approx(math.sqrt(2 * 50), rel=1e-6)
    assert calls[2].distance.item() == 0.0


def test_a_map_that_comes_again_is_at_distance_zero_exactly(qkv, block_size):
    for options in ({"is_causal": True}, {"attn_mask": draw(23, 23)}):
        calls, _ = recorded(Attention(F.scaled_dot_product_attention), *[(qkv, options)] * 2)
        assert torch.equal(calls[1].distance, torch.zeros(2, 4))


# against the map in full

MASKS = {
    "no mask": ({}, {}),
    "causal": ({"is_causal": True}, {"after": 0}),
    "scale": ({"scale": 0.7}, {"scale": 0.7}),
    "booleans": ({"attn_mask": draw(23, 23) > -0.5}, {"mask": draw(23, 23) > -0.5}),
    "booleans, some rows empty": ({"attn_mask": (draw(2, 1, 23, 23) > 0) & (torch.arange(23)[:, None] > 3)},
                                  {"mask": (draw(2, 1, 23, 23) > 0) & (torch.arange(23)[:, None] > 3)}),
    "numbers": ({"attn_mask": draw(1, 4, 23, 23)}, {"mask": draw(1, 4, 23, 23)}),
    "one row of numbers": ({"attn_mask": draw(2, 1, 1, 23)}, {"mask": draw(2, 1, 1, 23)}),
    "infinities": ({"attn_mask": torch.full((23, 23), -torch.inf).triu(1)}, {"after": 0}),
    "least finite numbers, a row of them": (
        {"attn_mask": torch.full((23, 23), torch.finfo().min).masked_fill(torch.arange(23)[:, None] > 2, 0)},
        {"mask": torch.full((23, 23), torch.finfo().min).masked_fill(torch.arange(23)[:, None] > 2, 0)}),
    "causal from the last": ({"attn_mask": causal_lower_right(23, 23)}, {"after": 0}),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MASKS)
def test_scaled_dot_product_attention_is_seen_under_every_mask(name, qkv, block_size, device):
    def there(x):
        return x.to(device) if isinstance(x, torch.Tensor) else x

    options, how = [{key: there(x) for key, x in d.items()} for d in MASKS[name]]
    q, k, v = (x.to(device) for x in qkv)
    later = q + 0.1
    plain = F.scaled_dot_product_attention(later, k, v, **options)
    calls, results = recorded(Attention(F.scaled_dot_product_attention), ((q, k, v), options), ((later, k, v), options))
    assert [c.kind for c in calls] == ["sdpa"] * 2
    torch.testing.assert_close(results[1], plain, rtol=0, atol=0, equal_nan=True)
    check(calls[0], slow_map(q, k, **how))
    check(calls[1], slow_map(later, k, **how), slow_map(q, k, **how))


def test_fewer_queries_than_keys_and_more():
    for n_queries, n_keys in ((5, 9), (9, 5), (1, 6)):
        q, k = draw(2, 3, n_queries, 4), draw(2, 3, n_keys, 4, seed=1)
        runs = ((q, k, k), {"is_causal": True}), ((q, k, k), {})
        calls, _ = recorded(Attention(F.scaled_dot_product_attention), *runs)
        check(calls[0], slow_map(q, k, after=0))
        check(calls[1], slow_map(q, k), slow_map(q, k, after=0))
    q, k = draw(2, 3, 5, 4), draw(2, 3, 9, 4)
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k, k), {"attn_mask": causal_lower_right(5, 9)}))
    check(calls[0], slow_map(q, k, after=4))


def test_grouped_queries_share_their_keys(qkv, block_size):
    q, k, v = qkv[0], qkv[1][:, :2], qkv[2][:, :2]
    runs = [((x, k, v), {"enable_gqa": True, "is_causal": True}) for x in (q, 2 * q)]
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), *runs)
    check(calls[1], slow_map(2 * q, k, after=0), slow_map(q, k, after=0))


def test_three_axes_are_batches_of_one_head():
    q, mask = draw(3, 7, 4), draw(3, 7, 7) > -1
    (call,), _ = recorded(Attention(F.scaled_dot_product_attention), ((q, q, q), {"attn_mask": mask}))
    check(call, slow_map(q[:, None], q[:, None], mask=mask[:, None]))


def test_more_than_four_axes_are_batches_of_batches():
    q, k = draw(2, 3, 4, 7, 4), draw(3, 4, 7, 4, seed=1)
    for mask in (None, draw(7, 7), draw(2, 3, 1, 7, 7)):
        calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k, k), {"attn_mask": mask}))
        check(calls[0], slow_map(q.flatten(0, 1), k.expand(2, -1, -1, -1, -1).flatten(0, 1), mask=(
            mask.flatten(0, 1) if mask is not None and mask.ndim == 5 else mask)))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 2), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.floats(0, 30),
       st.booleans(), st.integers(0, 10**6))
def test_any_shape_and_any_peak_agree_with_the_map_in_full(n_batch, n_heads, n_queries, n_keys, peak, causal, seed):
    q, k = peak * draw(n_batch, n_heads, n_queries, 4, seed=seed), draw(n_batch, n_heads, n_keys, 4, seed=seed + 1)
    before = draw(n_batch, n_heads, n_queries, 4, seed=seed + 2)
    runs = [((x, k, k), {"is_causal": causal}) for x in (before, q)]
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), *runs)
    after = 0 if causal else None
    check(calls[1], slow_map(q, k, after=after), slow_map(before, k, after=after), tolerance=2e-4)


def test_half_precision_is_computed_in_single_precision(qkv):
    q, k, v = (x.bfloat16() for x in qkv)
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k, v), {}), ((2 * q, k, v), {}))
    assert calls[1].entropies.dtype == torch.float32
    check(calls[1], slow_map(2 * q, k), slow_map(q, k))


def test_autocast_and_reduced_precision_products_do_not_reach_the_statistics(qkv):
    q, k, v = qkv
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k, v), {}), ((2 * q, k, v), {}))
    check(calls[1], slow_map(2 * q, k), slow_map(q, k))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k, v), {}), ((2 * q, k, v), {}))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    check(calls[1], slow_map(2 * q, k), slow_map(q, k))


def test_double_precision_on_request(qkv):
    q, k, v = (x.double() for x in qkv)
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), ((q, k, v), {}), ((q + 1e-7 * v, k, v), {}),
                        dtype=torch.float64)
    check(calls[1], slow_map(q + 1e-7 * v, k), slow_map(q, k), tolerance=1e-14)


def test_scores_that_are_not_finite_give_numbers_that_are_not():
    q = torch.full((1, 1, 3, 2), torch.nan)
    (call,), _ = recorded(Attention(F.scaled_dot_product_attention), ((q, q, q), {}))
    assert call.entropies.isnan().all()
    assert call.column_sums.isnan().all()


def test_keys_that_the_model_writes_over_are_still_known():
    q, cache = draw(1, 2, 9, 4), draw(1, 2, 9, 4, seed=1)
    first = slow_map(q, cache)

    def attend(new):
        cache.copy_(new)
        return F.scaled_dot_product_attention(q, cache, cache)

    calls, _ = recorded(Attention(attend), ((cache.clone(),), {}), ((draw(1, 2, 9, 4, seed=2),), {}))
    check(calls[1], slow_map(q, cache), first)


# flex attention

def causal_mod(b, h, i, j):
    return i >= j


@pytest.mark.parametrize("compiled", [False, True])
def test_flex_attention_is_seen_with_its_mask_and_its_change_of_scores(compiled, block_size):
    slope = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def alibi(score, b, h, i, j):
        return score - slope[h] * (i - j) + b

    q, k, v = (draw(2, h, 40, 16, seed=h) for h in (4, 2, 2))
    mask = create_block_mask(causal_mod, None, None, 40, 40, device="cpu")
    attend = torch.compile(flex_attention) if compiled else flex_attention
    module = Attention(functools.partial(attend, score_mod=alibi, block_mask=mask, enable_gqa=True, scale=0.3))
    with torch.compiler.set_stance("force_eager"):
        plain = module(q, k, v)
    calls, results = recorded(module, ((q, k, v), {}), ((2 * q, k, v), {}))
    assert torch.equal(results[0], plain)
    t, j = torch.arange(40)[:, None], torch.arange(40)
    batch = torch.arange(2)[:, None, None, None]
    how = {"scale": 0.3, "after": 0, "change": lambda s: s - slope[:, None, None] * (t - j) + batch}
    assert calls[0].kind == "flex"
    check(calls[1], slow_map(2 * q, k, **how), slow_map(q, k, **how))


# attention written out

def written_out(q, k, v, *, mask=None, how="matmul"):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = torch.einsum("bhid,bhjd->bhij", q, k) if how == "einsum" else q @ k.transpose(-1, -2)
    if how == "in place":
        s *= 0.5
        s += mask
        return s.softmax(-1) @ v
    s = s / 2
    if how == "capped":
        s = 3 * torch.tanh(s / 3)
    s = s + mask if mask.dtype != torch.bool else s.masked_fill(~mask, torch.finfo(s.dtype).min)
    if how == "lost":
        s = torch.roll(torch.roll(s, 1, -1), -1, -1)
    return F.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype) @ v


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["matmul", "einsum", "in place", "capped", "booleans"])
def test_softmax_attention_is_seen_and_its_previous_map_computed_again(how, qkv, block_size, device):
    q, k, v = (x.to(device) for x in qkv)
    mask = torch.ones(23, 23, dtype=torch.bool, device=device).tril()
    numbers = mask if how == "booleans" else torch.zeros(2, 1, 23, 23, device=device).masked_fill(~mask, -torch.inf)
    run = functools.partial(written_out, mask=numbers, how=how)
    plain = run(q, k, v)
    calls, results = recorded(Attention(run), ((q, k, v), {}), ((q + 0.1, k, v), {}))
    assert torch.equal(results[0], plain)
    change = (lambda s: 3 * torch.tanh(s / 3)) if how == "capped" else None
    old, new = (slow_map(x, k, scale=0.5, mask=mask, change=change) for x in (q, q + 0.1))
    assert [c.kind for c in calls] == ["softmax"] * 2
    check(calls[0], old)
    check(calls[1], new, old)


class Block(nn.Module):
    """Neither an attention module nor a router by its name."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, *args):
        return self.attend(*args)


def one_head(q, k, v, *, how):
    s = torch.einsum("btd,bsd->bts", q, k) if how == "einsum" else \
        torch.bmm(q, k.transpose(1, 2)) if how == "bmm" else q @ k.mT
    s = s / 2
    mask = torch.ones(s.shape[-2:], dtype=torch.bool, device=q.device).tril(s.shape[-1] - s.shape[-2])
    s = s + torch.zeros(len(q), *mask.shape, device=q.device).masked_fill(~mask, -torch.inf) if how == "added" else \
        s.masked_fill(~mask, -torch.inf)
    return s.softmax(2 if how == "added" else -1) @ v


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("how", ["matmul", "bmm", "einsum", "added"])
@pytest.mark.parametrize("module", [Attention, Block])
def test_softmax_attention_of_one_head_without_an_axis_is_seen(module, how, block_size, device):
    q, k, v = (draw(3, 23, 8, seed=s, device=device) for s in range(3))
    run = functools.partial(one_head, how=how)
    calls, results = recorded(module(run), ((q, k, v), {}), ((q + 0.1, k, v), {}))
    assert torch.equal(results[0], run(q, k, v))
    old, new = (slow_map(x[:, None], k[:, None], scale=0.5, after=0) for x in (q, q + 0.1))
    check(calls[0], old)
    check(calls[1], new, old)


def test_one_head_with_more_keys_than_queries_is_seen_in_an_attention_module_alone():
    q, k, v = draw(2, 5, 8), draw(2, 9, 8, seed=1), draw(2, 9, 8, seed=2)
    run = functools.partial(one_head, how="matmul")
    calls, _ = recorded(Attention(run), ((q, k, v), {}))
    check(calls[0], slow_map(q[:, None], k[:, None], scale=0.5, after=4))
    with pytest.raises(RuntimeError, match="no attention"):
        recorded(Block(run), ((q, k, v), {}))


class Gate(nn.Module):
    """Tokens by as many experts, from a product of three axes."""

    def forward(self, x, experts):
        return (x @ experts.expand(len(x), -1, -1).mT).softmax(-1)


def test_a_gate_of_three_axes_is_not_attention():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.attention = Gate(), Attention(F.scaled_dot_product_attention)

        def forward(self, x):
            self.gate(x[:, 0], x[0, :1])
            F.softmax(F.linear(x[:, 0], x[0, 0]), -1)
            F.softmax(x[:, 0] @ x[0, 0].T, -1)
            return self.attention(x, x, x)

    calls, _ = recorded(Mixture(), ((draw(2, 2, 6, 6),), {}))
    assert [c.kind for c in calls] == ["sdpa"]


def test_softmax_attention_in_bfloat16_that_comes_again_is_at_distance_zero(qkv):
    q, k, v = (x.bfloat16() for x in qkv)
    run = functools.partial(written_out, mask=torch.zeros(23, 23, dtype=torch.bfloat16))
    calls, _ = recorded(Attention(run), ((q, k, v), {}), ((q, k, v), {}))
    check(calls[0], slow_map(q, k, scale=0.5))
    assert torch.equal(calls[1].distance, torch.zeros(2, 4))


def test_scores_that_cannot_be_traced_back_have_numbers_but_a_distance_only_between_kept_maps(qkv):
    run = functools.partial(written_out, mask=torch.zeros(23, 23), how="lost")
    q, k, v = qkv
    old, new = (slow_map(x, k, scale=0.5) for x in (q, 2 * q))
    calls, _ = recorded(Attention(run), ((q, k, v), {}), ((2 * q, k, v), {}))
    check(calls[1], new)
    assert "traced back" in calls[1].note
    calls, _ = recorded(Attention(run), ((q, k, v), {}), ((2 * q, k, v), {}), keep_maps=True)
    check(calls[1], new, old)


def test_scores_changed_behind_our_back_are_found_out(qkv):
    q, k, v = qkv

    def attend(q, k, v):
        s = q @ k.transpose(2, 3)
        s.numpy()[:] *= 0.3
        return s.softmax(-1) @ v

    calls, _ = recorded(Attention(attend), ((q, k, v), {}), ((2 * q, k, v), {}))
    check(calls[1], slow_map(2 * q, k, scale=0.3))


class Router(nn.Module):
    def forward(self, x):
        return torch.softmax(x, -1)


class MixtureOfAttention(nn.Module):
    """A router of 4-dimensional logits inside an attention module, and one beside it."""

    def __init__(self):
        super().__init__()
        self.router, self.attention = Router(), Attention(F.scaled_dot_product_attention)

    def forward(self, q):
        self.router(q)
        F.softmax(q[:, 0], dim=-1)
        F.softmax(q, dim=1)
        return self.attention(q, q, q)


def test_the_softmax_of_a_router_is_not_attention():
    calls, _ = recorded(MixtureOfAttention(), ((draw(1, 2, 6, 4),), {}))
    assert [(c.module, c.kind) for c in calls] == [("attention", "sdpa")]


# flash-attention symbols

def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None):
    """(batch, tokens, heads, width), as the flash-attn package; the last query stands beside the last key."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    shift = k.shape[2] - q.shape[2]
    left, right = window_size
    t, j = torch.arange(q.shape[2])[:, None] + shift, torch.arange(k.shape[2])
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
    if causal or right >= 0:
        mask &= j <= t + (0 if causal else right)
    if left >= 0:
        mask &= j >= t - left
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


def untold(*args, **kwargs):
    return flash_attn_func(*args, **kwargs)


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("flash_stand_in")
    module.flash_attn_func, module.untold = flash_attn_func, untold
    module.kernels = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setitem(sys.modules, "flash_stand_in", module)
    return module


@pytest.mark.parametrize("shape", [(12, 12), (5, 12), (12, 5)])
@pytest.mark.parametrize(("options", "how"), [
    ({}, {}), ({"causal": True}, {"after": 0}), ({"window_size": (3, 2)}, {"before": 3, "after": 2}),
    ({"window_size": (4, -1)}, {"before": 4}), ({"causal": True, "window_size": (2, 5), "softmax_scale": 0.3},
                                                {"before": 2, "after": 0, "scale": 0.3})])
def test_a_flash_attention_symbol_is_replaced_and_given_back(package, options, how, shape, block_size):
    n_queries, n_keys = shape
    q, k = draw(2, n_queries, 4, 8), draw(2, n_keys, 2, 8, seed=1)
    module = Attention(lambda q: package.flash_attn_func(q, k, k, **options))
    plain = module(q)
    calls, results = recorded(module, ((q,), {}), ((2 * q,), {}), symbols=["flash_stand_in.flash_attn_func"])
    assert package.flash_attn_func is flash_attn_func
    assert torch.equal(results[0].nan_to_num(), plain.nan_to_num())
    assert [c.kind for c in calls] == ["flash_stand_in.flash_attn_func"] * 2  # the call inside is not counted again
    shift = n_keys - n_queries
    how = {**how, **{key: how[key] + sign * shift for key, sign in (("after", 1), ("before", -1)) if key in how}}
    old, new = (slow_map(x.transpose(1, 2), k.transpose(1, 2), **how) for x in (q, 2 * q))
    empty = old.sum(-1) < 0.5
    assert torch.equal(calls[0].n_queries, (~empty).sum(-1).float())
    assert torch.equal(calls[0].maxima[empty], torch.zeros(int(empty.sum())))
    if not empty.all(-1).any():
        check(calls[1], new, old)


def test_a_symbol_may_stand_in_an_object_and_may_not_tell_its_arguments(package):
    q = draw(1, 6, 2, 4)
    for name, call in (("kernels.flash_attn_func", lambda q: package.kernels.flash_attn_func(q, q, q, causal=True)),
                       ("untold", lambda q: package.untold(q, q, q, 0.0, None, True))):
        (seen,), _ = recorded(Attention(call), ((q,), {}), symbols=[f"flash_stand_in.{name}"])
        check(seen, slow_map(q.transpose(1, 2), q.transpose(1, 2), after=0))


def test_a_capped_flash_attention(monkeypatch):
    module = types.ModuleType("flash_capped")
    module.attend = lambda q, k, v, softcap=0.0: q
    monkeypatch.setitem(sys.modules, "flash_capped", module)
    q = 3 * draw(1, 6, 2, 4)
    (seen,), _ = recorded(Attention(lambda q: module.attend(q, q, q, softcap=2.0)), ((q,), {}),
                          symbols=["flash_capped.attend"])
    check(seen, slow_map(q.transpose(1, 2), q.transpose(1, 2), change=lambda s: 2 * torch.tanh(s / 2)))


def test_a_flash_attention_argument_that_we_do_not_know_is_refused(package):
    q = draw(1, 6, 2, 4)
    module = Attention(lambda q: package.flash_attn_func(q, q, q, alibi_slopes=torch.ones(2)))
    with pytest.raises(ValueError, match="alibi_slopes"):
        recorded(module, ((q,), {}), symbols=["flash_stand_in.flash_attn_func"])
    assert package.flash_attn_func is flash_attn_func
    flat = Attention(lambda q: package.untold(q[0], q[0], q[0], 0.0))
    package.untold = lambda q, k, v, dropout_p: q
    with pytest.raises(ValueError, match="batch, tokens, heads, width"):
        recorded(flat, ((q,), {}), symbols=["flash_stand_in.untold"])


@pytest.mark.parametrize("path", ["no_such_module.f", "math.no_such_function", "noDots"])
def test_a_symbol_that_is_not_there_is_refused(path):
    with pytest.raises(ValueError, match="symbols must be dotted paths"), \
            attention_statistics(nn.Identity(), symbols=["torch.nn.functional.gelu", path]):
        pass
    assert F.gelu.__name__ == "gelu"
    assert not hasattr(F.gelu, "__wrapped__")


# which call is which

@pytest.fixture
def nano():
    return NanoModel(NanoConfig(width=16, n_heads=2, n_prelude=1, n_block=2, n_coda=1), seed=0)


TOKENS = torch.arange(24).view(2, 12) * 7


def test_a_looped_model_gives_a_call_a_layer_and_recurrence_and_keeps_every_bit(nano):
    with torch.no_grad():
        plain = nano(TOKENS, n_recurrences=3)
        with attention_statistics(nano) as seen:
            assert torch.equal(nano(TOKENS, n_recurrences=3), plain)
            again = nano(TOKENS[:, :5], n_recurrences=2)
    first, second = ([c for c in seen.calls if c.forward == f] for f in (0, 1))
    assert [(c.module, c.recurrence) for c in first] == [
        ("prelude.0.attention", 0), *[(f"block.{i}.attention", r) for r in range(3) for i in range(2)],
        ("coda.0.attention", 0)]
    assert [c.recurrence for c in second] == [0, 0, 0, 1, 1, 0]
    assert [c.distance.isnan().any().item() for c in first] == [True, True, True, *[False] * 4, True]
    assert {c.note for c in second if c.recurrence == 0} == {"the first recurrence"}
    assert again.shape == (2, 5, 256)


def test_recurrences_may_go_on_in_the_next_forward(nano):
    with torch.no_grad(), attention_statistics(nano, continues=True) as seen:
        nano(TOKENS, n_recurrences=1)
        nano(TOKENS, n_recurrences=1)
        nano(TOKENS[:, :5], n_recurrences=1)
    block = [c for c in seen.calls if c.module == "block.1.attention"]
    assert [(c.forward, c.recurrence) for c in block] == [(0, 0), (1, 1), (2, 2)]
    assert [c.note for c in block] == ["the first recurrence", "", "the previous map has another shape"]


def test_the_caller_says_which_calls_belong_to_one_layer(qkv):
    q, k, v = qkv
    module = Attention(F.scaled_dot_product_attention)
    calls, _ = recorded(module, *[((x, k, v), {}) for x in (q, 5 * q, 2 * q, 3 * q)],
                        layer=lambda name, call: None if call == 3 else (name, call % 2))
    assert [(c.layer, c.call, c.recurrence) for c in calls] == [(("", 0), 0, 0), (("", 1), 1, 0), (("", 0), 2, 1)]
    check(calls[2], slow_map(2 * q, k), slow_map(q, k))


def test_parts_of_a_model_that_run_by_themselves_are_seen(nano):
    with torch.no_grad(), attention_statistics(nano) as seen:
        context = nano.embed(TOKENS)
        nano.step(nano.initial_state(context), context)
    assert [(c.module, c.forward) for c in seen.calls] == [
        (name, -1) for name in ("prelude.0.attention", "block.0.attention", "block.1.attention")]


def test_a_repeat_in_the_backward_pass_is_not_a_recurrence(nano):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nano

        def forward(self, tokens):
            context = self.inner.embed(tokens)
            return checkpoint(self.inner.step, context.embedded, context, use_reentrant=False)

    module = Checkpointed()
    with attention_statistics(module) as seen:
        module(TOKENS).sum().backward()
    assert [c.module for c in seen.calls] == ["inner.prelude.0.attention", "inner.block.0.attention",
                                              "inner.block.1.attention"]
    assert not any(c.entropies.requires_grad for c in seen.calls)
    assert nano.embedding.weight.grad.abs().sum() > 0


def test_a_compiled_model_is_seen_even_if_it_ran_before():
    nano = NanoModel(NanoConfig(width=16, n_heads=2, n_prelude=1, n_block=1, n_coda=0, n_recurrences=2), seed=0)
    compiled = torch.compile(nano, backend="eager")
    with torch.no_grad():
        plain = compiled(TOKENS)
        with attention_statistics(compiled) as seen:
            assert torch.equal(compiled(TOKENS), plain)
    assert [c.module for c in seen.calls][:2] == ["prelude.0.attention", "block.0.attention"]
    assert len(seen.calls) == 1 + 2
    assert seen.calls[0].forward == 0


def test_inference_mode(nano):
    with torch.inference_mode(), attention_statistics(nano) as seen:
        nano(TOKENS)
    with torch.no_grad(), attention_statistics(nano) as again:
        nano(TOKENS)
    assert torch.equal(seen.calls[5].distance, again.calls[5].distance)


# what is kept, what is left behind

class Largest(TorchDispatchMode):
    """Sees the size of every tensor of numbers or truth values that is made or looked at (memory itself is bytes)."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor) and x.dtype != torch.uint8:
                self.numbers = max(self.numbers, x.numel())
        return result


@pytest.mark.parametrize("options", [{"is_causal": True}, {"attn_mask": torch.ones(1, 700, dtype=torch.bool)}])
def test_no_map_is_made_unless_asked_for(options):
    n = 700
    q = draw(1, 2, n, 4)
    with Largest() as largest:
        recorded(Attention(F.scaled_dot_product_attention), *[((q, q, q), options)] * 2)
        assert largest.numbers < n * n
        (call,), _ = recorded(Attention(F.scaled_dot_product_attention), ((q, q, q), options), keep_maps=True)
        assert largest.numbers == 2 * n * n
    torch.testing.assert_close(call.map.double(), slow_map(q, q, after=0 if "is_causal" in options else None),
                               atol=1e-6, rtol=1e-5)
    assert recorded(Attention(F.scaled_dot_product_attention), ((q, q, q), options))[0][0].map is None


def test_distances_are_left_out_on_request(qkv):
    calls, _ = recorded(Attention(F.scaled_dot_product_attention), (qkv, {}), (qkv, {}), distance=False)
    check(calls[1], slow_map(*qkv[:2]))


def left_behind(model):
    return [(name, len(part._forward_hooks), len(part._forward_pre_hooks), len(part._forward_hooks_always_called))
            for name, part in model.named_modules()]


def test_the_model_and_the_symbols_come_back_unchanged_after_an_exception(nano, package):
    before, state = left_behind(nano), torch.get_rng_state()

    def broken(*args):
        raise KeyError("inside the model")

    nano.block[1].mlp[1].forward = broken
    with pytest.raises(KeyError, match="inside the model"), \
            attention_statistics(nano, symbols=["flash_stand_in.flash_attn_func"]) as seen:
        nano(TOKENS)
    assert len(seen.calls) == 3
    assert left_behind(nano) == before
    assert package.flash_attn_func is flash_attn_func
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.overrides._get_current_function_mode_stack() == []
    del nano.block[1].mlp[1].forward
    with torch.no_grad(), attention_statistics(nano) as seen:
        nano(TOKENS)
    assert len(seen.calls) == 10


def test_an_exception_that_the_caller_catches_inside_does_not_shift_names(nano):
    def broken(*args):
        raise KeyError("inside the model")

    with torch.no_grad(), attention_statistics(nano) as seen:
        nano.block[1].attention.out.forward = broken
        with pytest.raises(KeyError):
            nano(TOKENS)
        del nano.block[1].attention.out.forward
        nano(TOKENS)
    assert [c.module for c in seen.calls if c.forward == 1][:3] == [
        "prelude.0.attention", "block.0.attention", "block.1.attention"]


# what is refused

def test_a_model_without_attention_is_refused_at_the_end():
    module = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match="no attention was seen"), attention_statistics(module):
        module(torch.ones(1, 3))
    with attention_statistics(module) as seen:
        pass
    assert seen.calls == []


def test_attention_that_hides_itself_is_refused():
    module = nn.MultiheadAttention(4, 2)
    with pytest.raises(ValueError, match="MultiheadAttention"), attention_statistics(module):
        module(*[torch.ones(3, 1, 4)] * 3)


def test_a_jacobian_vector_product_is_refused(qkv):
    module = Attention(functools.partial(written_out, mask=torch.zeros(23, 23)))
    with pytest.raises(ValueError, match=r"torch\.func"), attention_statistics(module):
        torch.func.jvp(lambda q: module(q, *qkv[1:]), (qkv[0],), (qkv[0],))


def test_nested_tensors_are_refused():
    x = torch.nested.nested_tensor([torch.ones(3, 2, 4), torch.ones(5, 2, 4)], layout=torch.jagged).transpose(1, 2)
    module = Attention(F.scaled_dot_product_attention)
    with pytest.raises(ValueError, match="one length"), attention_statistics(module):
        module(x, x, x)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"torch\.nn\.Module"), attention_statistics("huginn"):
        pass
    with pytest.raises(ValueError, match="a sequence of dotted paths"), \
            attention_statistics(nn.Identity(), symbols="flash_attn.flash_attn_func"):
        pass
    with pytest.raises(ValueError, match=r"torch\.float32"), \
            attention_statistics(nn.Identity(), dtype=torch.bfloat16):
        pass
