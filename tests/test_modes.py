"""Blocks as people write them - casts, fused kernels, odd layouts - differentiated against differences and by hand."""

import contextlib
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

import dynloop.maps.modes as modes
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.modes import Snapshot, Surroundings, attend

N, T, WIDTH, HEADS = 2, 5, 12, 3
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


def normal(*shape, seed=0, device="cpu"):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(device)


# ---- blocks


class CastNorm(nn.Module):
    """As in Llama: computes in float32, whatever comes in."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(WIDTH))

    def forward(self, x):
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class TypeAsNorm(nn.Module):
    def forward(self, x):
        return F.rms_norm(x.float(), (WIDTH,)).type_as(x)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); subclasses attend."""

    def __init__(self, norm=CastNorm, kv_heads=HEADS):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList([norm(), norm()])
        self.qkv = nn.Linear(WIDTH, WIDTH + 2 * kv_heads * WIDTH // HEADS, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.SiLU(), nn.Linear(2 * WIDTH, WIDTH))
        self.kv_heads = kv_heads
        self.register_buffer("mask", torch.full((T, T), -math.inf).triu(1), persistent=False)
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.7 * weight.shape[1] ** -0.5)

    def split(self, x):
        n, t, _ = x.shape
        q, k, v = self.qkv(x).split([WIDTH, *[self.kv_heads * WIDTH // HEADS] * 2], dim=-1)
        return (part.view(n, t, -1, WIDTH // HEADS).transpose(1, 2) for part in (q, k, v))

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def forward(self, x):
        n, t, _ = x.shape
        mixed = self.attend(*self.split(self.norms[0](x)))
        x = x + self.out(mixed.transpose(1, 2).view(n, t, WIDTH))  # a view, not a reshape: the layout matters
        return x + self.mlp(self.norms[1](x))


class KeywordsOnly(Block):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=None, dropout_p=0.0, is_causal=True,
                                              scale=0.3)


class AdditiveMask(Block):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[None, None].expand(q.shape[0], 1, T, T))


class BoolMask(Block):
    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask == 0)


class Grouped(Block):
    def __init__(self):
        super().__init__(norm=TypeAsNorm, kv_heads=1)

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class WrittenOut(Block):
    """Attention by hand, softmax in float32, as in transformers' eager functions."""

    def attend(self, q, k, v):
        scores = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5
        scores = scores + self.mask[:q.shape[2], :q.shape[2]]
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return torch.matmul(F.dropout(weights, 0.1, training=self.training), v).transpose(1, 2).contiguous() \
            .transpose(1, 2)


class BatchedProducts(Block):
    """The same with heads and batch in one axis."""

    def attend(self, q, k, v):
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        weights = (torch.bmm(q, k.transpose(1, 2)) + self.mask).softmax(-1)
        return torch.bmm(weights, v).unflatten(0, (-1, HEADS)).transpose(1, 2).contiguous().transpose(1, 2)


class Flex(Block):
    """With a distance penalty and a causal block mask."""

    def attend(self, q, k, v):
        mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=q.device)
        return flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: torch.tanh(s) - 0.1 * (i - j) * (h + 1),
                              block_mask=mask)


class Rotary(Block):
    """Complex tables in single precision, one of them no buffer."""

    def __init__(self):
        super().__init__()
        angle = torch.outer(torch.arange(T).float(), 10.0 ** -torch.arange(WIDTH // HEADS // 2).float())
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle))
        self.table = torch.eye(WIDTH // HEADS)

    def attend(self, q, k, v):
        def turned(x):
            pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * self.turn).flatten(-2).type_as(x)

        return super().attend(turned(q) @ self.table, turned(k), v)


def flash_attn_func(q, k, v, **settings):
    raise AssertionError("a compiled kernel that knows no double precision")


class Flash(Block):
    """As in hierarchical reasoning models: the flash-attn package, imported by name, tokens before heads."""

    def attend(self, q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return flash_attn_func(q=q, k=k, v=v, causal=True, window_size=(3, -1)).transpose(1, 2)


class Autocast(Block):
    def forward(self, x):
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return super().forward(x)


class CutGraph(Block):
    """One cycle without gradients before the last, as in hierarchical reasoning models."""

    def forward(self, x):
        with torch.no_grad():
            x = super().forward(x)
        return super().forward(x.detach())


class MultiHead(nn.Module):
    """torch's own attention module, with and without weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True) for _ in "ab")

    def forward(self, x):
        mask = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        x = x + self.parts[0](x, x, x, need_weights=False, attn_mask=mask, is_causal=True)[0]
        return x + self.parts[1](x, x, x, need_weights=True, attn_mask=mask)[0]


class EncoderLayer(nn.Module):
    """A whole layer of torch's, not causal, with its fast path in evaluation mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, activation="gelu", batch_first=True)

    def forward(self, x):
        return self.layer(x)


CAUSAL = [Block, KeywordsOnly, AdditiveMask, BoolMask, Grouped, WrittenOut, BatchedProducts, Flex, Flash, Rotary,
          Autocast, CutGraph, MultiHead]


@pytest.fixture(params=[*CAUSAL, EncoderLayer], ids=lambda block: block.__name__)
def block(request):
    return request.param()


def map_of(block, device="cpu"):
    return LoopMap.from_module(block.to(device), (T, WIDTH), causal=True)


def differences(f, x, v, step=1e-3):
    """J v by central differences of sixth order."""
    return sum(c * (f(x + i * step * v) - f(x - i * step * v)) for i, c in ((1, 45), (2, -9), (3, 1))) / (60 * step)


# ---- derivatives


@pytest.mark.parametrize("device", DEVICES)
def test_a_jacobian_vector_product_is_that_of_central_differences(block, device):
    f, x, v = map_of(block, device), normal(N, T, WIDTH, device=device), normal(N, T, WIDTH, seed=1, device=device)
    following, pushed = f.jvp(x, v)
    assert following.dtype == torch.float64
    assert (pushed - differences(f, x, v)).norm() <= 1e-9 * pushed.norm()
    assert (following - f(x)).norm() <= 1e-14 * following.norm()


def test_the_adjoint_is_the_adjoint(block):
    f, x, v, w = map_of(block), *(normal(N, T, WIDTH, seed=s) for s in range(3))
    forward, back = f.jvp(x, v)[1], f.vjp(x, w)[1]
    assert abs((forward * w).sum() - (v * back).sum()) <= 1e-12 * forward.norm() * w.norm()


def test_many_tangents_are_as_one_by_one(block):
    f, x, v = map_of(block), normal(N, T, WIDTH), normal(4, N, T, WIDTH, seed=1)
    for many, one in ((f.jvps, f.jvp), (f.vjps, f.vjp)):
        torch.testing.assert_close(many(x, v)[1], torch.stack([one(x, each)[1] for each in v]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("causal", CAUSAL, ids=lambda block: block.__name__)
def test_own_token_tangents_are_the_diagonal_blocks_of_the_jacobian(causal):
    f, x, v = map_of(causal()), normal(N, T, WIDTH), normal(3, N, T, WIDTH, seed=1)
    blocks = f.jacobian(x).view(N, T, WIDTH, T, WIDTH).diagonal(dim1=1, dim2=3)  # (n, out, in, tokens)
    following, pushed = f.own_token_jvps(x, v)
    torch.testing.assert_close(pushed, torch.einsum("noit,knti->knto", blocks, v), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(following, f(x), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("causal", [Block, AdditiveMask, Grouped, Flex])
def test_blocks_of_queries_change_no_derivative(causal, monkeypatch):
    f, x, v = map_of(causal()), normal(N, T, WIDTH), normal(3, N, T, WIDTH, seed=1)
    expected = [product(x, v)[1] for product in (f.jvps, f.own_token_jvps, f.vjps)]
    monkeypatch.setattr(modes, "_CACHED", 0)
    monkeypatch.setattr(modes, "_QUERIES", 2)
    for product, whole in zip((f.jvps, f.own_token_jvps, f.vjps), expected, strict=True):
        torch.testing.assert_close(product(x, v)[1], whole, rtol=1e-11, atol=1e-12)


def test_attention_written_out_may_have_as_many_features_as_tokens():
    tokens = WIDTH // HEADS
    f = LoopMap.from_module(WrittenOut(), (tokens, WIDTH), causal=True)
    x, v = normal(N, tokens, WIDTH), normal(3, N, tokens, WIDTH, seed=1)
    blocks = f.jacobian(x).view(N, tokens, WIDTH, tokens, WIDTH).diagonal(dim1=1, dim2=3)
    torch.testing.assert_close(f.own_token_jvps(x, v)[1], torch.einsum("noit,knti->knto", blocks, v),
                               rtol=1e-11, atol=1e-12)


def test_own_token_tangents_are_refused_where_later_tokens_are_seen():
    with pytest.raises(ValueError, match="tangents reach earlier ones"):
        map_of(EncoderLayer()).own_token_jvps(normal(N, T, WIDTH), normal(1, N, T, WIDTH))


class Shifted(nn.Module):
    """Causal, but the tokens mix by a sum over the past."""

    def forward(self, x):
        return torch.tanh(x + x.cumsum(1))


class ByIndices(Block):
    def attend(self, q, k, v):
        weights = (torch.einsum("nhid,nhjd->nhij", q, k) + self.mask).softmax(-1)
        return torch.einsum("nhij,nhjd->nihd", weights, v).transpose(1, 2)


@pytest.mark.parametrize("mixing", [Shifted, ByIndices])
def test_own_token_tangents_are_refused_where_tokens_mix_unseen(mixing):
    with pytest.raises(ValueError, match=r"otherwise than by attention that is seen.*sdpa"):
        map_of(mixing()).own_token_jvps(normal(N, T, WIDTH), normal(1, N, T, WIDTH))


def test_without_the_mode_the_fused_kernel_has_no_forward_derivative():
    """The reason for all this; where torch learns it, the mode could go."""
    warnings.simplefilter("ignore")  # until the end of the test
    block, x = Block().double(), normal(N, T, WIDTH)
    with pytest.raises(NotImplementedError):
        torch.func.jvp(block, (x,), (x,))


# ---- what has no tangent


WEIGHT, ROW, BIAS = normal(4, 4, seed=5), normal(4, seed=6), normal(4, seed=7)
ROTATED = {"cosine": normal(5, 2, seed=8), "sine": normal(5, 2, seed=9)}


def like(tensor, x):
    return tensor.to(x.dtype) if tensor.is_floating_point() else tensor


def rotated(x):
    first, second = x.chunk(2, dim=-1)
    c, s = (like(table, x) for table in ROTATED.values())
    return torch.cat((first * c - second * s, second * c + first * s), dim=-1)


def written_to(x, combine):
    """In place, after the operation, on both sides of it."""
    before = x * 2
    after = combine(before)
    kept = before + after
    before.mul_(after)
    kept = kept + combine(after)
    return kept + after.mul_(before) + before


OPERATIONS = {  # of x (3, 5, 4) and the weights in the same dtype
    "linear": lambda x, w, b: F.linear(x, w), "linear with bias": lambda x, w, b: F.linear(x, w, b),
    "linear by name": lambda x, w, b: F.linear(x, weight=w, bias=b), "matmul": lambda x, w, b: torch.matmul(x, w),
    "@": lambda x, w, b: x @ w, "weight on the left": lambda x, w, b: w @ x.mT, "method": lambda x, w, b: x.matmul(w),
    "mm": lambda x, w, b: torch.mm(x[0], w), "bmm": lambda x, w, b: torch.bmm(x, w.expand(3, 4, 4)),
    "vector": lambda x, w, b: x @ b, "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w),
    "addmm scaled": lambda x, w, b: torch.addmm(b, x.flatten(0, 1), w, beta=2, alpha=0.3),
    "addmm to a state": lambda x, w, b: torch.addmm(x[0], x[1], w),
    "addmm of a weight to a state": lambda x, w, b: torch.addmm(x[0, :4], w, w),
    "einsum": lambda x, w, b: torch.einsum("nti,oi->nto", x, w),
    "einsum of three": lambda x, w, b: torch.einsum("nti,oi,o->nto", x, w, b),
    "times number": lambda x, w, b: 0.3 * x * 2, "times row": lambda x, w, b: x * b, "row times": lambda x, w, b: b * x,
    "grows": lambda x, w, b: x[:, 0] * w[:, :1, None] + x[:1, 0], "square": lambda x, w, b: x * x + x @ x.mT @ x,
    "plus": lambda x, w, b: 1 + x + b, "plus more": lambda x, w, b: torch.add(x, b, alpha=3),
    "minus": lambda x, w, b: x - b,
    "from": lambda x, w, b: 1 - (b - x), "grows by a sum": lambda x, w, b: x[0, 0] - w + (w - x[0, 0]).tanh(),
    "over": lambda x, w, b: x / 3 / b, "over state": lambda x, w, b: b / (2 + x * x) + 1 / (1 + x**2),
    "rounded": lambda x, w, b: torch.div(x, b, rounding_mode="floor") + x,
    "mask": lambda x, w, b: x * (x > 0) + (x < 1), "whole": lambda x, w, b: x * torch.arange(4) + torch.arange(4),
    "wider": lambda x, w, b: x * w.double()[0] + w.double()[1], "rotary": lambda x, w, b: rotated(x),
    "written to": lambda x, w, b: written_to(x, lambda y: y + b),
    "less": lambda x, w, b: written_to(x, lambda y: y - b),
    "less of it": lambda x, w, b: written_to(x, lambda y: b - y),
    "times, written to": lambda x, w, b: written_to(x, lambda y: y * b),
    "grown, written to": lambda x, w, b: (x[0, 0] + w).mul_(x[0, :4]), "product": lambda x, w, b: written_to(
        x, lambda y: F.linear(y, w, b)), "norm": lambda x, w, b: written_to(x, lambda y: F.rms_norm(y, (4,))),
    "in place": lambda x, w, b: (x * 2).mul_(b).add_(b).sub_(1), "one weight": lambda x, w, b: x + b @ w + b * b,
    "out of it": lambda x, w, b: (x @ w).detach() * b,
    "layer norm": lambda x, w, b: F.layer_norm(x, (4,), b, b, 1e-3), "bare": lambda x, w, b: F.layer_norm(x, (5, 4)),
    "bias alone": lambda x, w, b: F.layer_norm(x, (4,), bias=b), "rms norm": lambda x, w, b: F.rms_norm(x, (4,), b),
    "rms norm, two axes": lambda x, w, b: F.rms_norm(x, (5, 4), eps=0.1),
    "norm by the state": lambda x, w, b: F.rms_norm(x, (4,), x[0, 0] * b) + F.layer_norm(x, (4,), x[0, 0], x[0, 1])}
DTYPES = {torch.float64: (1e-13, 1e-13), torch.float32: (1e-5, 1e-5), torch.bfloat16: (0.03, 0.06)}


def with_tangents(function, x, v, many):
    warnings.simplefilter("ignore")  # torch, of itself
    if not many:
        return torch.func.jvp(function, (x,), (v[0],))
    return torch.func.vmap(lambda v: torch.func.jvp(function, (x,), (v,)), out_dims=(None, 0))(v)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_operations_with_weights_have_the_derivatives_of_torch(operation, dtype, many):
    x, v, w, b = (t.to(dtype) for t in (normal(3, 5, 4), normal(2, 3, 5, 4, seed=1), WEIGHT, BIAS))
    rtol, atol = DTYPES[dtype]
    with torch.no_grad():
        expected = with_tangents(lambda x: operation(x, w, b), x, v, many)
        if operation is OPERATIONS["out of it"]:
            expected = with_tangents(lambda x: (x @ w) * b, x, v, many)
        with Surroundings():
            found = with_tangents(lambda x: operation(x, w, b), x, v, many)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_a_weight_of_another_dtype_is_widened_with_the_tangent():
    x, v, w = normal(3, 4), normal(2, 3, 4, seed=1), WEIGHT.float()
    with torch.no_grad(), Surroundings(torch.float64):
        for operation in (lambda x: F.linear(x, w, w[0]), lambda x: x @ w, lambda x: F.layer_norm(x, (4,), w[0], w[1]),
                          lambda x: F.rms_norm(x, (4,), w[0])):
            found = with_tangents(operation, x, v, True)[1]
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, torch.stack([differences(operation, x, each) for each in v]),
                                       rtol=1e-8, atol=1e-9)


class Products(TorchDispatchMode):
    """Counts matrix products where they are computed, and copies of numbers as many as a weight has."""

    def __init__(self):
        super().__init__()
        self.products, self.zeros = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)
        self.zeros += func in (torch.ops.aten._efficientzerotensor.default,)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("k", [1, 3])
def test_a_product_by_a_weight_is_done_once_for_the_state_and_once_for_the_tangents(k):
    f = map_of(Block())
    x, v = normal(N, T, WIDTH), normal(k, N, T, WIDTH, seed=1)
    f.jvps(x, v)  # whose first call may look at the block
    with Products() as counted:
        f.jvps(x, v)
    assert counted.products == 2 * 4 + 2 + 4  # weights, scores and mixed values, and of these tangents by both factors
    assert counted.zeros == 0


def quadratic(x):
    return (F.rms_norm(F.linear(x, WEIGHT, BIAS), (4,), ROW) @ WEIGHT * 0.5 + 1).tanh().pow(2).sum()


def with_a_jvp(x):
    return torch.func.jvp(lambda y: F.linear(y * ROW, WEIGHT, BIAS).sin() @ WEIGHT, (x,), (x * x + 1,))[1] * BIAS


NESTED = {
    "a jvp": with_a_jvp, "the jvp of a weight": lambda x: torch.func.jvp(lambda w: F.linear(x, w, BIAS).sin(),
                                                                         (WEIGHT,), (WEIGHT + x[:, 0].sum(),))[1],
    "two jvps": lambda x: torch.func.jvp(with_a_jvp, (x,), (x @ WEIGHT,))[1], "grad": torch.func.grad(quadratic),
    "vjp": lambda x: torch.func.vjp(lambda y: (y @ WEIGHT + BIAS).sin(), x)[1](x * ROW)[0],
    "hessian": lambda x: torch.func.hessian(quadratic)(x[:1]), "jacrev": lambda x: torch.func.jacrev(with_a_jvp)(x[:1]),
    "vmap": lambda x: torch.func.vmap(lambda row: F.linear(row, WEIGHT, BIAS) * ROW - 1)(x),
    "vmapped weights": lambda x: torch.func.vmap(lambda w: F.linear(x, w, BIAS))(torch.stack([WEIGHT, WEIGHT.T])),
    "an update by gradients": lambda x: x - 0.1 * torch.func.grad(lambda y: quadratic(y + x * ROW))(x)}


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("function", NESTED.values(), ids=NESTED.keys())
def test_a_function_that_differentiates_within_itself_is_differentiated_as_by_torch(function, many):
    x, v = normal(3, 4), normal(2, 3, 4, seed=1)
    expected = with_tangents(function, x, v, many)
    with Surroundings():
        found = with_tangents(function, x, v, many)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


OUTER = {"hessian": torch.func.hessian(quadratic), "forwards twice": torch.func.jacfwd(torch.func.jacfwd(quadratic)),
         "back over forwards": torch.func.jacrev(torch.func.jacfwd(quadratic)), "grad": torch.func.grad(quadratic),
         "of another's weights": lambda x: torch.func.vmap(lambda w: torch.func.jacfwd(
             lambda y: (y @ w + w[0]) * w[1])(x))(torch.stack([WEIGHT, WEIGHT.T])),
         "back through tangents": lambda x: torch.autograd.grad(torch.func.jvp(with_a_jvp, (x,), (x,))[1].sum(), x)[0]}


@pytest.mark.parametrize("function", OUTER.values(), ids=OUTER.keys())
def test_derivatives_of_derivatives_are_those_of_torch(function):
    warnings.simplefilter("ignore")  # torch, of itself
    x = normal(2, 4).requires_grad_()
    expected = function(x)
    with Surroundings():
        torch.testing.assert_close(function(x), expected, rtol=1e-11, atol=1e-12)


def test_without_torch_s_word_on_transforms_derivatives_are_the_same(monkeypatch):
    x, v = normal(N, T, WIDTH), normal(3, N, T, WIDTH, seed=1)
    f = map_of(AdditiveMask())
    found = [product(x, v)[1] for product in (f.jvps, f.own_token_jvps, f.vjps)]
    monkeypatch.setattr(modes, "_pushing", lambda: False)
    for product, ours in zip((f.jvps, f.own_token_jvps, f.vjps), found, strict=True):
        torch.testing.assert_close(product(x, v)[1], ours, rtol=1e-11, atol=1e-12)


def test_derivatives_backwards_do_not_know_of_it(monkeypatch):
    def never(*_):
        raise AssertionError

    f, x = map_of(Block()), normal(N, T, WIDTH)
    f.vjp(x, x)  # compares with one tangent
    monkeypatch.setattr(modes, "_pushed", never)
    monkeypatch.setattr(modes, "_apart", never)
    f.vjps(x, x[None])
    f(x)


@pytest.mark.parametrize("own_token", [False, True])
@pytest.mark.parametrize("moving", ["q", "k", "v", "qk", "kv", "qv", "qkv", "mask", "q mask"])
def test_attention_takes_tangents_from_any_of_its_inputs(moving, own_token):
    x, table = normal(2, 3, 5, 4), normal(5, 5, seed=2)
    held = dict(zip("qkv", normal(3, 2, 3, 5, 4, seed=1), strict=True))

    def function(x):
        mask = table + x[0, 0, :, :1] if "mask" in moving else None
        return attend(*(x + held[c] if c in moving.split()[0] and moving != "mask" else held[c] for c in "qkv"), mask,
                      own_token=own_token)

    found = with_tangents(function, x, normal(2, *x.shape, seed=3), True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(modes, "_pushing", lambda: False)
        expected = with_tangents(function, x, normal(2, *x.shape, seed=3), True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


# ---- models as transformers ships them


class AlbertStep(nn.Module):
    def __init__(self, attention):
        super().__init__()
        hub = pytest.importorskip("transformers")
        torch.manual_seed(0)
        self.model = hub.AlbertModel(hub.AlbertConfig(
            vocab_size=50, embedding_size=8, hidden_size=WIDTH, num_attention_heads=HEADS, intermediate_size=16,
            attn_implementation=attention))
        for weight in self.model.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, h):
        found = self.model.encoder.albert_layer_groups[0](h, None)
        return found[0] if isinstance(found, tuple) else found


class HrmTextStep(nn.Module):
    """One slow cycle on z_L and z_H side by side."""

    def __init__(self, attention):
        super().__init__()
        hub = pytest.importorskip("transformers", minversion="5.9")
        torch.manual_seed(0)
        self.model = hub.HrmTextModel(hub.HrmTextConfig(
            vocab_size=50, hidden_size=WIDTH, intermediate_size=16, num_layers_per_stack=1, num_attention_heads=HEADS,
            num_key_value_heads=1, head_dim=4, attn_implementation=attention))
        for weight in self.model.parameters():
            nn.init.normal_(weight, std=0.3)

    def forward(self, h):
        fast, slow = h.chunk(2, dim=-1)
        fixed = {"attention_mask": torch.full((T, T), -math.inf).triu(1).to(h)[None, None],
                 "position_embeddings": self.model.rotary_emb(slow, torch.arange(T, device=h.device)[None])}
        for _ in range(2):
            fast = self.model.L_module(fast + slow, **fixed)
        return torch.cat((fast, self.model.H_module(slow + fast, **fixed)), dim=-1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("step", "width"), [(AlbertStep, WIDTH), (HrmTextStep, 2 * WIDTH)])
def test_blocks_of_transformers_are_differentiated_exactly(step, width, attention):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an optional package
        f = LoopMap.from_module(step(attention), (T, width), causal=step is HrmTextStep)
    x, v, w = (normal(N, T, width, seed=s) for s in range(3))
    following, pushed = f.jvp(x, v)
    back = f.vjp(x, w)[1]
    assert (pushed - differences(f, x, v)).norm() <= 1e-9 * pushed.norm()
    assert (following - f(x)).norm() <= 1e-14 * following.norm()
    assert abs((pushed * w).sum() - (v * back).sum()) <= 1e-12 * pushed.norm() * w.norm()
    if f.causal:
        blocks = f.jacobian(x).view(N, T, width, T, width).diagonal(dim1=1, dim2=3)
        torch.testing.assert_close(f.own_token_jvps(x, v[None])[1][0], torch.einsum("noit,nti->nto", blocks, v),
                                   rtol=1e-11, atol=1e-12)


# ---- attention itself


@pytest.mark.parametrize("block", [0, 3])
@pytest.mark.parametrize("scale", [None, 0.2])
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "additive", "one row"])
def test_attention_by_products_is_that_of_torch(mask, heads, scale, block, monkeypatch):
    q, k, v = normal(2, 4, 7, 6), normal(2, heads, 9, 6, seed=1), normal(2, heads, 9, 5, seed=2)
    given = {"none": None, "causal": None, "bool": normal(2, 1, 7, 9) > 0, "additive": normal(7, 9),
             "one row": normal(2, 1, 1, 9) > 0}[mask]
    if mask == "bool":
        given[0, :, 3] = False  # a query that sees nothing
    if block:
        monkeypatch.setattr(modes, "_CACHED", 0)
        monkeypatch.setattr(modes, "_QUERIES", block)
    settings = {"attn_mask": given, "is_causal": mask == "causal", "scale": scale, "enable_gqa": heads != 4}
    expected = F.scaled_dot_product_attention(q, k, v, **settings)
    torch.testing.assert_close(attend(q, k, v, **settings), expected, rtol=1e-14, atol=1e-15)


def test_attention_without_batch_works():
    q = normal(7, 6)
    torch.testing.assert_close(attend(q, q, q), F.scaled_dot_product_attention(q, q, q), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("settings", [{}, {"causal": True}, {"causal": True, "window_size": (2, 0)},
                                      {"window_size": (1, 2), "softmax_scale": 0.3, "deterministic": True}])
@pytest.mark.parametrize("n_keys", [6, 8])
def test_flash_attention_sees_what_the_package_lets_it_see(settings, n_keys):
    q, k = normal(2, 6, 4, 3), normal(2, n_keys, 2, 3, seed=1)
    left, right = settings.get("window_size", (-1, -1))
    scores = torch.einsum("nihd,njhd->nhij", q, k.repeat_interleave(2, 2)) * settings.get("softmax_scale", 3**-0.5)
    for i in range(6):
        for j in range(n_keys):
            at = i + n_keys - 6
            if (settings.get("causal") and j > at) or (left >= 0 and j < at - left) or (right >= 0 and j > at + right):
                scores[:, :, i, j] = -math.inf
    expected = torch.einsum("nhij,njhd->nihd", scores.softmax(-1), k.repeat_interleave(2, 2))
    torch.testing.assert_close(modes.flash_attention(q, k, k, **settings), expected)


def test_flash_attention_with_more_than_that_is_refused():
    q = normal(1, 3, 1, 2)
    with pytest.raises(ValueError, match="flash attention with alibi_slopes, softcap has no counterpart"):
        modes.flash_attention(q, q, q, softcap=1.0, alibi_slopes=(1,), deterministic=False)


def test_attention_with_dropout_is_no_map():
    q = normal(1, 1, 3, 2)
    with pytest.raises(ValueError, match=r"dropout is no map; got dropout_p=0.5"):
        attend(q, q, q, dropout_p=0.5)


def test_own_token_attention_needs_as_many_keys_as_queries():
    with pytest.raises(ValueError, match="got 3 queries and 4 keys"):
        attend(normal(1, 1, 3, 2), normal(1, 1, 4, 2), normal(1, 1, 4, 2), own_token=True)


def test_a_mode_of_attention_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="kernel, explicit, own token; got 'flash'"):
        Surroundings(attention="flash")


# ---- precision


CASTS = {
    "float": lambda x: x.float(), "half": lambda x: x.half(), "bfloat16": lambda x: x.bfloat16(),
    "to": lambda x: x.to(torch.float32), "to by name": lambda x: x.to(dtype=torch.bfloat16),
    "to device": lambda x: x.to("cpu", torch.float32), "to another's": lambda x: x.to(torch.zeros(1, dtype=torch.half)),
    "type": lambda x: x.type(torch.float32), "type as": lambda x: x.type_as(torch.zeros(1, dtype=torch.bfloat16)),
    "softmax": lambda x: x.softmax(-1, dtype=torch.float32),
    "functional softmax": lambda x: F.softmax(x, -1, dtype=torch.float32),
    "sum": lambda x: x.cumsum(-1, dtype=torch.float32), "product": lambda x: x @ torch.full((4, 4), 0.1),
    "linear": lambda x: F.linear(x, torch.full((4, 4), 0.1)),
    "new": lambda x: torch.zeros(3, 4, dtype=torch.float32).add_(x), "whole numbers": lambda x: (x > 0).float(),
    "autocast": lambda x: _autocast(x)}


def _autocast(x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return x @ x.T


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_no_cast_lowers_double_precision(cast):
    x = normal(3, 4)
    with Surroundings(torch.float64):
        kept = cast(x)
    assert kept.dtype == torch.float64
    if kept.shape == x.shape and not kept.eq(kept.round()).all():
        assert not torch.equal(kept, kept.float().double())


def test_single_precision_is_kept_against_halves_and_double_is_not_made():
    x = normal(3, 4).float()
    with Surroundings(torch.float32):
        assert x.bfloat16().dtype == x.half().dtype == x.float().dtype == torch.float32
        assert x.double().dtype == torch.float64


def test_bits_can_still_be_read():
    with Surroundings(torch.float64):
        assert normal(2, 2).view(torch.float32).shape == (2, 4)


def test_an_error_of_the_model_stays_its_error():
    with Surroundings(torch.float64), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        normal(2, 3) @ normal(2, 3)


def test_without_a_dtype_casts_stay():
    with Surroundings():
        assert normal(2, 2).float().dtype == torch.float32


# ---- lent weights


def test_a_lent_module_is_another_and_comes_back_the_same():
    model = Block().train()
    before = {part: dict(part.__dict__) for part in model.modules()}
    weights = {name: (id(w), w.clone()) for name, w in model.named_parameters()}
    snapshot = Snapshot(model, torch.float64)
    with contextlib.suppress(ZeroDivisionError), snapshot.lent():
        assert {w.dtype for w in (*model.parameters(), *model.buffers())} == {torch.float64}
        assert not any(part.training for part in model.modules())
        assert not any(w.requires_grad for w in model.parameters())
        model.left_behind = 1
        model.register_buffer("also", torch.zeros(1))
        assert flash_attn_func is modes.flash_attention
        raise ZeroDivisionError
    assert flash_attn_func is not modes.flash_attention
    assert {part: part.__dict__ for part in model.modules()} == before
    assert all(id(w) == weights[name][0] and torch.equal(w, weights[name][1]) for name, w in model.named_parameters())
    assert not hasattr(model, "left_behind")
    assert not hasattr(model, "also")


def test_a_snapshot_does_not_follow_the_model():
    model = nn.Linear(2, 2)
    f, x = LoopMap.from_module(model, (2,)), normal(1, 2)
    before = f(x)
    with torch.no_grad():
        model.weight.mul_(2)
    assert torch.equal(f(x), before)


def test_tied_weights_stay_tied():
    model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    model[1].weight = model[0].weight
    with Snapshot(model, torch.float64).lent():
        assert model[1].weight is model[0].weight
        assert model[0].weight.dtype == torch.float64


class Remembering(nn.Module):
    """Keeps what it saw in tensors that are neither weights nor buffers, and writes into them."""

    def __init__(self):
        super().__init__()
        self.seen, self.kept = torch.zeros(2, 3), {"before": [torch.ones(2, 3)]}

    def forward(self, x):
        self.seen.copy_(x.detach())
        self.kept["before"][0].add_(self.seen)
        return x + self.seen * 1e-9


def test_tensors_that_are_no_weights_are_not_written_to_either():
    model, x = Remembering(), normal(2, 3)
    torch.testing.assert_close(LoopMap.from_module(model, (3,))(x), x * (1 + 1e-9), rtol=1e-15, atol=0)
    assert model.seen.abs().max() == 0
    assert model.kept["before"][0].eq(1).all()


def test_a_recurrent_cell_uses_the_lent_weights():
    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRU(3, 3, batch_first=True)

        def forward(self, h):
            return self.cell(h)[0]

    model, h = Outputs(), normal(1, 4, 3)
    following = LoopMap.from_module(model, (4, 3))(h)
    assert following.dtype == torch.float64
    assert model.cell(torch.zeros(1, 4, 3))[0].dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(following, model.double()(h))
    with pytest.raises(ValueError, match="GRU gave tuple for states"):
        LoopMap.from_module(nn.GRU(3, 3, batch_first=True), (4, 3))(h)


def test_a_compiled_module_runs_eagerly():
    ran = []

    class Counting(nn.Module):
        def forward(self, x):
            ran.append(1)
            return x * 0.5

    model = Counting()
    model.compile(backend="eager")
    wrapped = torch.compile(Counting(), backend="eager")
    for each in (model, wrapped):
        f = LoopMap.from_module(each, (3,))
        ran.clear()
        f(normal(1, 3))
        f(normal(1, 3))
        assert len(ran) == 2


def test_a_scripted_module_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="scripted module"):
        LoopMap.from_module(scripted, (2,))
