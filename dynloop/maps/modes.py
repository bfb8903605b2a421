"""What surrounds a model's own code while it serves as a map: attention that can be differentiated, precision that hard
coded casts do not lower, and weights that are lent to the module and taken back.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ATTENTION = ("kernel", "explicit", "own token")
_CACHED, _SCORES, _QUERIES = 2**17, 2**24, 64  # attention scores that are held at once: at least, at most; queries

_WIDER: dict[torch.dtype, dict[torch.dtype, torch.dtype]] = {
    torch.float64: {torch.float32: torch.float64, torch.bfloat16: torch.float64, torch.float16: torch.float64,
                    torch.complex64: torch.complex128},
    torch.float32: {torch.bfloat16: torch.float32, torch.float16: torch.float32}}
_CASTS = {torch.Tensor.float: torch.float32, torch.Tensor.half: torch.float16, torch.Tensor.bfloat16: torch.bfloat16}
_SUMS = (torch.baddbmm, torch.Tensor.baddbmm)
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm, *_SUMS)
_LINEAR: dict[Any, tuple[int, ...]] = {  # in each of these arguments, while all others stay
    F.linear: (0, 1), torch.addmm: (1, 2), torch.einsum: (1, 2, 3),
    **dict.fromkeys((torch.div, torch.Tensor.div, torch.Tensor.__truediv__), (0,)),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.__rmatmul__, torch.mm,
                     torch.Tensor.mm, torch.bmm, torch.Tensor.bmm, torch.mul, torch.Tensor.mul, torch.Tensor.__mul__,
                     torch.Tensor.__rmul__), (0, 1))}
_SIGNS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), (1, 1)),
    **dict.fromkeys((torch.sub, torch.Tensor.sub, torch.Tensor.__sub__), (1, -1))}

try:  # no public function says which transform is the innermost, or which tensors are in its hands
    from torch._C._functorch import TransformType, get_unwrapped, is_functorch_wrapped_tensor, peek_interpreter_stack
except ImportError:  # torch's own derivatives are as right, and slower
    def _pushing() -> bool:
        return False

    def is_functorch_wrapped_tensor(tensor: torch.Tensor) -> bool:
        return True

    def get_unwrapped(tensor: torch.Tensor) -> torch.Tensor:
        return tensor
else:
    def _pushing() -> bool:
        """Whether operations are differentiated forwards now, and by no other transform within that."""
        innermost = peek_interpreter_stack()
        return innermost is not None and innermost.key() == TransformType.Jvp


def _itself(tensor: torch.Tensor, *_: Any) -> torch.Tensor:
    return tensor


def _set_data(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """`tensor.data = value`, as `module.double()` does it. torch would copy the face of a tensor in the hands of a
    transform into one that is in none's, and crash when it is next used."""
    if not is_functorch_wrapped_tensor(tensor):
        shape = value.shape
        while isinstance(value, torch.Tensor) and is_functorch_wrapped_tensor(value):
            if _pushing() and forward_ad.unpack_dual(value).tangent is not None:
                raise ValueError("the map's code writes what depends on its state to a weight (weight.data = ...), so "
                                 "that it is no map. Take that out of its code.")
            inner = get_unwrapped(value)
            if inner is value:
                break
            value = inner
        if value.shape != shape:
            raise ValueError("the map's code writes what depends on its state to a weight (weight.data = ...), so "
                             "that it is no map. Take that out of its code.")
    torch.Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]


def _never(*_: Any) -> bool:
    return False


_open_multi_head = types.FunctionType(  # asks nobody: with a mode at work, the original hands itself over whole
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": _never, "has_torch_function_unary": _never,
     "has_torch_function_variadic": _never},
    argdefs=F.multi_head_attention_forward.__defaults__)
_open_multi_head.__kwdefaults__ = F.multi_head_attention_forward.__kwdefaults__


def _apart(value: Any) -> tuple[Any, torch.Tensor | None]:
    """A tensor and its tangent."""
    if isinstance(value, torch.Tensor) and is_functorch_wrapped_tensor(value):
        return forward_ad.unpack_dual(value)
    return value, None


def _pushed(run: Callable, func: Any, args: tuple) -> torch.Tensor | None:
    """An operation that is linear in its one argument with a tangent; None for any other.

    torch gives the other arguments tangents of zeros, and computes with these: a product by a weight costs twice as
    much so, and one by a number or a vector up to a hundred times.
    """
    parts = [_apart(value) for value in args]
    moving = [i for i, (_, tangent) in enumerate(parts) if tangent is not None]
    if len(moving) != 1 or len(args) < 2:
        return None
    which, plain = moving[0], [value for value, _ in parts]
    tangent: Any = parts[which][1]
    if func in _SIGNS:
        if len(args) > 2:
            return None
        out = run(func, *plain)
        tangent = tangent if _SIGNS[func][which] > 0 else -tangent
        if tangent.shape != out.shape or tangent.dtype != out.dtype:
            tangent = tangent.to(out.dtype).expand(out.shape)
        return forward_ad.make_dual(out, tangent.clone())  # one of its own, that may be written to
    if which not in _LINEAR[func]:
        return None
    out, plain[which] = run(func, *plain), tangent
    if func is torch.addmm:  # a tangent does without what is added
        return forward_ad.make_dual(out, run(torch.mm, *plain[1:]))
    return forward_ad.make_dual(out, run(func, *(plain[:2] if func is F.linear else plain)))


class Surroundings(TorchFunctionMode):
    """Within it, the block of a model can be differentiated, and computes in one dtype throughout.

    * Attention. "kernel" leaves it to torch. "explicit" computes scaled-dot-product and flex attention by products and
      a softmax, in blocks of queries: fused kernels have no forward-mode derivative. The result lies in memory as
      (batch, tokens, heads, features), so that a view of it works as after a fused kernel. "own token" gives the same
      values, but a derivative to which token i contributes by its own query, key and value alone: of a causal map, the
      derivative is then the block diagonal of the Jacobian. Products of (tokens x features) by (features x tokens) and
      of (tokens x tokens) by (tokens x features) are taken for attention that is written out.
    * Precision. No cast, argument `dtype=` or mixed product lowers a number below `dtype`.
    * Derivatives are not cut: `detach`, `.data` and `no_grad` do nothing.
    * Forward derivatives do not compute with weights' tangents, which are zero.

    Args:
        dtype: in which the block computes; None leaves casts alone.
        attention: kernel, explicit or own token.
        tokens: tokens of a state, for attention that is written out.
    """

    def __init__(self, dtype: torch.dtype | None = None, *, attention: str = "explicit",
                 tokens: int | None = None) -> None:
        super().__init__()
        if attention not in ATTENTION:
            raise ValueError(f"attention must be one of {', '.join(ATTENTION)}; got {attention!r}. Choose one.")
        self.wider = _WIDER.get(dtype, {}) if dtype is not None else {}
        self.dtype, self.attention, self.tokens = dtype, attention, tokens
        self.instead: dict[Any, Any] = {torch.Tensor.view: self._view}
        data: Any = torch.Tensor.data
        if self.wider:
            self.instead |= dict.fromkeys((torch.Tensor.to, torch.Tensor.type_as), self._to)
            self.instead |= {cast: functools.partial(self._cast, dtype=low) for cast, low in _CASTS.items()}
        if attention != "kernel":
            self.instead[F.scaled_dot_product_attention] = self._attend
            self.instead[F.multi_head_attention_forward] = self._multi_head
            self.instead[F.layer_norm] = self._layer_norm
            self.instead[F.rms_norm] = self._rms_norm
            self.instead[torch._C._set_grad_enabled] = self._set_grad_enabled
            self.instead |= dict.fromkeys((torch.Tensor.detach, torch.detach, data.__get__), _itself)
            self.instead[data.__set__] = _set_data
        if attention == "own token":
            self.instead |= {product: functools.partial(self._product, product) for product in _PRODUCTS}

    def __enter__(self) -> Surroundings:
        self.scored = False  # whether the weights of attention that is written out come next
        return super().__enter__()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if (other := self.instead.get(func)) is not None:
            return other(*args, **kwargs)
        if self.attention != "kernel" and getattr(func, "_name", "") == "flex_attention":
            return _attend_flexibly(*self._widened(args), own_token=self.attention == "own token", **kwargs)
        return self._run(func, args, kwargs)

    def _run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """What is not replaced."""
        if self.attention != "kernel" and not kwargs and (func in _LINEAR or func in _SIGNS) and _pushing() and \
                (pushed := _pushed(self._plain, func, args)) is not None:
            return pushed
        return self._wide(func, args, kwargs) if self.wider else func(*args, **kwargs)

    def _plain(self, func: Callable, *args: Any) -> torch.Tensor:
        return self._wide(func, args, {}) if self.wider else func(*args)

    def _layer_norm(self, input: torch.Tensor, normalized_shape: Any, weight: torch.Tensor | None = None,
                    bias: torch.Tensor | None = None, eps: float = 1e-5) -> torch.Tensor:
        return self._norm(F.layer_norm, input, normalized_shape, weight, bias, eps=eps)

    def _rms_norm(self, input: torch.Tensor, normalized_shape: Any, weight: torch.Tensor | None = None,
                  eps: float | None = None) -> torch.Tensor:
        dims = tuple(range(-len(normalized_shape), 0))
        x, tangent = _apart(input) if _pushing() else (input, None)
        if tangent is None or x.dtype not in (torch.float32, torch.float64) or \
                tuple(x.shape[-len(dims):]) != tuple(normalized_shape):
            return self._norm(F.rms_norm, input, normalized_shape, weight, eps=eps)
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        inverse = (x.square().mean(dims, keepdim=True) + eps).rsqrt()
        x = x * inverse
        tangent = (tangent - x * (x * tangent).mean(dims, keepdim=True)) * inverse
        if weight is not None and _apart(weight)[1] is None:
            x, tangent, weight = self._plain(torch.mul, x, weight), self._plain(torch.mul, tangent, weight), None
        out = forward_ad.make_dual(x, tangent)
        return out if weight is None else self._run(torch.mul, (out, weight), {})

    def _norm(self, func: Callable, x: torch.Tensor, shape: Any, *weights: torch.Tensor | None,
              eps: float | None) -> torch.Tensor:
        """Its weight and bias, which have no tangent, are applied apart."""
        if not _pushing() or any(w is not None and w.dtype != x.dtype for w in weights):
            return self._run(func, (x, shape, *weights), {"eps": eps})
        out = self._run(func, (x, shape), {"eps": eps})
        for apply, w in zip((torch.mul, torch.add), weights, strict=False):
            out = out if w is None else self._run(apply, (out, w), {})
        tangent = _apart(out)[1]
        if tangent is None or x.dtype in (torch.float32, torch.float64) or \
                any(_apart(w)[1] is not None for w in weights):
            return out
        once = self._run(func, (_apart(x)[0], shape, *weights), {"eps": eps})  # the state in half precision rounds once
        return forward_ad.make_dual(once, tangent)

    def _wide(self, func: Callable, args: tuple, kwargs: dict) -> Any:
        if torch.dtype in map(type, args):
            args = tuple(self.wider.get(a, a) if type(a) is torch.dtype else a for a in args)
        if "dtype" in kwargs:
            kwargs = {**kwargs, "dtype": self.wider.get(kwargs["dtype"], kwargs["dtype"])}
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            wide, wide_kwargs = self._widened(args), {k: self._widened(v) for k, v in kwargs.items()}
            if _same(wide, args) and all(_same(v, kwargs[k]) for k, v in wide_kwargs.items()):
                raise
            return func(*wide, **wide_kwargs)  # a product of two dtypes: a table that is no buffer, say

    def _view(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if any(isinstance(a, torch.dtype) for a in (*args, *kwargs.values())):  # which reads bits
            return torch.Tensor.view(*args, **kwargs)
        return torch.Tensor.reshape(*args, **kwargs)  # batched tangents, and other kernels, lie otherwise in memory

    def _cast(self, tensor: torch.Tensor, *, dtype: torch.dtype, **kwargs: Any) -> torch.Tensor:
        return tensor.to(self.wider.get(dtype, dtype), **kwargs)

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        like = args[0] if args else kwargs.get("other")
        if isinstance(like, torch.Tensor):
            kwargs.pop("other", None)
            return tensor.to(like.device, self.wider.get(like.dtype, like.dtype), *args[1:], **kwargs)
        return self._wide(torch.Tensor.to, (tensor, *args), kwargs)

    def _attend(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        wide = {name: self._widened(value) for name, value in kwargs.items()}
        return attend(*self._widened(args), own_token=self.attention == "own token", **wide)

    def _multi_head(self, *args: Any, **kwargs: Any) -> Any:
        with self:
            return _open_multi_head(*args, **kwargs)

    def _set_grad_enabled(self, enabled: bool) -> None:
        if enabled:
            torch._C._set_grad_enabled(True)

    def _product(self, func: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
        own = self._own_product(func, *args, **kwargs)
        return self._run(func, args, kwargs) if own is None else own

    def _own_product(self, func: Callable, *args: Any, **kwargs: Any) -> torch.Tensor | None:
        """A product of attention that is written out; None for any other."""
        if func in _SUMS and len(args) == 3 and not kwargs:
            own = self._own_product(torch.bmm, *args[1:])
            return None if own is None else args[0] + own
        if len(args) != 2 or min(args[0].ndim, args[1].ndim) < 3 or args[0].shape[-2] != self.tokens:
            return None
        left, right = args
        held = right.detach()
        square = left.shape[-1] == right.shape[-1] == self.tokens
        self.scored ^= square  # as many features as tokens: scores and weights come in turn
        if left.shape[-1] == self.tokens and not (square and self.scored):  # weights by values
            return left @ held + left.diagonal(dim1=-2, dim2=-1)[..., None] * (right - held)
        if right.shape[-1] == self.tokens:  # queries by keys
            return left @ held + torch.diag_embed((left * (right - held).transpose(-2, -1)).sum(-1))
        return None

    def _widened(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype in self.wider:
            return value.to(self.wider[value.dtype])
        if type(value) in (tuple, list):
            return type(value)(self._widened(v) for v in value)
        return value


def _same(a: Any, b: Any) -> bool:
    if type(a) in (tuple, list):
        return all(_same(x, y) for x, y in zip(a, b, strict=True))
    return a is b


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
           dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False, *,
           own_token: bool = False) -> torch.Tensor:
    """`scaled_dot_product_attention`, by products and a softmax in blocks of queries; see `Surroundings`."""
    if dropout_p:
        raise ValueError(f"attention with dropout is no map; got dropout_p={dropout_p}. Put the model in evaluation "
                         "mode, or look for a dropout that does not ask for the mode.")
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device).masked_fill(~attn_mask,
                                                                                                     -math.inf)

    def scored(scores: torch.Tensor, first: int, last: int) -> torch.Tensor:
        if is_causal:  # what is added costs the tangents nothing
            ahead = torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype, device=scores.device)
            scores = scores + ahead.triu(first + 1)
        if attn_mask is None:
            return scores
        own = attn_mask[..., first:last, :] if attn_mask.shape[-2] > 1 else attn_mask
        return scores + own[..., :scores.shape[-1]]

    return _attend(query, key, value, scored, scale, enable_gqa, own_token, blind=attn_mask is not None,
                   causal=is_causal, added=True)


def flash_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0,
                    softmax_scale: float | None = None, causal: bool = False, window_size: tuple[int, int] = (-1, -1),
                    **more: Any) -> torch.Tensor:
    """`flash_attn_func` of the flash-attn package, (batch, tokens, heads, features), by torch's own attention.

    Those kernels know half precision alone, and no forward derivative.

    Raises:
        ValueError: an argument that changes the result and has no counterpart.
    """
    if used := sorted(name for name, value in more.items()
                      if name != "deterministic" and (isinstance(value, torch.Tensor) or value)):
        raise ValueError(f"flash attention with {', '.join(used)} has no counterpart that can be differentiated. "
                         "Let the model attend by scaled_dot_product_attention.")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    ahead = torch.arange(k.shape[-2], device=q.device) - torch.arange(q.shape[-2], device=q.device)[:, None]
    ahead = ahead - (k.shape[-2] - q.shape[-2])  # the last query sees the last key
    left, right = window_size[0], 0 if causal else window_size[1]
    mask = None
    if left >= 0 or right >= 0:
        mask = (ahead >= (-left if left >= 0 else -math.inf)) & (ahead <= (right if right >= 0 else math.inf))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=softmax_scale,
                                          enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def _attend_flexibly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score_mod: Callable,
                     block_mask: tuple, scale: float | None, kernel_options: Any = None, score_buffers: tuple = (),
                     mask_buffers: tuple = (), *, own_token: bool = False) -> tuple:
    """Flex attention: `score_mod` and the mask function of `block_mask` are applied to every score."""
    n_batch, n_heads = query.shape[:2]
    n_keys = key.shape[-2]

    def scored(scores: torch.Tensor, first: int, last: int) -> torch.Tensor:
        where = [torch.arange(n, device=scores.device) for n in (n_batch, n_heads)]
        where += [torch.arange(first, last, device=scores.device), torch.arange(n_keys, device=scores.device)]

        def over_all(function: Callable, with_scores: bool, n_buffers: int) -> Callable:
            for own in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)):
                function = torch.vmap(function, in_dims=((0,) if with_scores else ()) + own + (None,) * n_buffers)
            return function

        scores = over_all(score_mod, True, len(score_buffers))(scores, *where, *score_buffers)
        seen = over_all(block_mask[-1], False, len(mask_buffers))(*where, *mask_buffers)
        return scores.masked_fill(~seen, -math.inf)

    out = _attend(query, key, value, scored, scale, True, own_token, blind=True, causal=False, added=False)
    nothing = query.new_zeros(query.shape[:-1])
    return out, nothing, nothing


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scored: Callable, scale: float | None,
            grouped: bool, own_token: bool, *, blind: bool, causal: bool, added: bool) -> torch.Tensor:
    """`scored` masks and changes scores, `added`: by a sum; `blind`: whether it may leave a query without keys."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if grouped and key.shape[-3] != query.shape[-3]:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    if own_token and n_queries != n_keys:
        raise ValueError(f"own-token tangents need as many keys as queries; got {n_queries} queries and "
                         f"{n_keys} keys. Use jvps.")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    per_query = max(1, math.prod(query.shape[:-2]) * n_keys)
    block = max(1, _CACHED // per_query, min(_QUERIES, _SCORES // per_query))
    parts = [_apart(x) for x in (query, key, value)] if added and _pushing() else []
    pushed = any(tangent is not None for _, tangent in parts)
    blocks = []
    for first in range(0, n_queries, block):
        last = min(n_queries, first + block)
        where = scored, scale, own_token, blind, first, last, min(last, n_keys) if causal else n_keys
        blocks.append(_mixed_with_tangents(parts, *where) if pushed else (_mixed(query, key, value, *where),))
    out = [x[0] if len(x) == 1 else torch.cat(x, dim=-2) for x in zip(*blocks, strict=True)]
    out = [x.transpose(-3, -2).contiguous().transpose(-3, -2) if x.ndim > 3 else x for x in out]
    return forward_ad.make_dual(*out) if pushed else out[0]


def _sum(a: torch.Tensor | None, b: torch.Tensor) -> torch.Tensor:
    return b if a is None else a + b


def _weights(scores: torch.Tensor, blind: bool) -> torch.Tensor:
    if not blind:
        return scores.softmax(-1)
    unseeing = scores.detach().amax(-1, keepdim=True) == -math.inf  # a query without keys gets zeros, as in kernels
    return scores.masked_fill(unseeing, 0.0).softmax(-1).masked_fill(unseeing, 0.0)


def _mixed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scored: Callable, scale: float,
           own_token: bool, blind: bool, first: int, last: int, seen: int) -> torch.Tensor:
    """Values up to `seen` as queries from `first` to `last` mix them."""
    held_keys, held_values = (key.detach(), value.detach()) if own_token else (key, value)
    asking = query[..., first:last, :] * scale
    scores = asking @ held_keys[..., :seen, :].transpose(-2, -1)
    if own_token:  # adds 0, whose derivative is that of the token's own score
        own = (asking * (key - held_keys)[..., first:last, :]).sum(-1)
        own = own + scores.diagonal(first, -2, -1)
        scores = scores.diagonal_scatter(own, first, -2, -1)
    weights = _weights(scored(scores, first, last), blind)
    mixed = weights @ held_values[..., :seen, :]
    if own_token:
        mixed = mixed + weights.diagonal(first, -2, -1)[..., None] * (value - held_values)[..., first:last, :]
    return mixed


def _mixed_with_tangents(parts: list[tuple[torch.Tensor, torch.Tensor | None]], scored: Callable, scale: float,
                         own_token: bool, blind: bool, first: int, last: int,
                         seen: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same and its tangent: of weights w, whose scores have the tangent s, it is w s - w sum(w s)."""
    (query, pushed_query), (key, pushed_key), (value, pushed_value) = parts
    asking, keys, values = query[..., first:last, :] * scale, key[..., :seen, :], value[..., :seen, :]
    scores, pushed = _apart(scored(asking @ keys.transpose(-2, -1), first, last))
    if pushed_query is not None:
        pushed = _sum(pushed, pushed_query[..., first:last, :] * scale @ keys.transpose(-2, -1))
    if pushed_key is not None and own_token:
        own = (asking * pushed_key[..., first:last, :]).sum(-1)
        pushed = torch.zeros_like(scores) if pushed is None else pushed
        pushed = pushed.diagonal_scatter(pushed.diagonal(first, -2, -1) + own, first, -2, -1)
    elif pushed_key is not None:
        pushed = _sum(pushed, asking @ pushed_key[..., :seen, :].transpose(-2, -1))
    weights = _weights(scores, blind)
    mixed = weights @ values
    out: Any = None
    if pushed is not None:
        pushed = weights * pushed
        out = pushed @ values - pushed.sum(-1, keepdim=True) * mixed
    if pushed_value is not None and own_token:
        out = _sum(out, weights.diagonal(first, -2, -1)[..., None] * pushed_value[..., first:last, :])
    elif pushed_value is not None:
        out = _sum(out, weights @ pushed_value[..., :seen, :])
    return mixed, out


class Snapshot:
    """A module as it stands now, in another dtype and in evaluation mode, that the module becomes while it is lent.

    Weights, buffers and settings are copied; whatever the module's code changes while it is lent is gone afterwards.
    Where that code calls a `flash_attn_func`, it gets `flash_attention`.
    The model's functions may refer to the module in any way, so that it is not copied itself. Not for several threads
    at once.

    Args:
        module: any module but a scripted one.
        dtype: of its floating-point weights and buffers; None keeps each.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # with the original, which keeps its number taken
        wide_complex = torch.complex128 if dtype == torch.float64 else torch.complex64

        def copied(tensor: Any) -> Any:
            if type(tensor) in (tuple, list):
                return type(tensor)(copied(each) for each in tensor)
            if type(tensor) in (collections.deque, set):
                return copy.copy(tensor)
            if type(tensor) is dict:
                return {name: copied(each) for name, each in tensor.items()}
            if not isinstance(tensor, torch.Tensor):
                return tensor
            if id(tensor) not in copies:
                with torch.inference_mode(False):  # of the caller
                    own = tensor.detach().clone()
                    if dtype is not None and (own.is_floating_point() or own.is_complex()):
                        own = own.to(wide_complex if own.is_complex() else dtype)
                    kind = nn.Parameter(own, requires_grad=False) if isinstance(tensor, nn.Parameter) else own
                copies[id(tensor)] = tensor, kind
            return copies[id(tensor)][1]

        self.parts: list[tuple[nn.Module, dict[str, Any]]] = []
        for part in module.modules():
            if isinstance(part, torch.jit.ScriptModule):
                raise TypeError(f"a scripted module ({type(part).__name__}) cannot be used as a map; "
                                "give the module from which it was made.")
            own = {name: copied(value) for name, value in part.__dict__.items()}
            own["training"] = False
            if "_compiled_call_impl" in own:
                own["_compiled_call_impl"] = None
            self.parts.append((part, own))
        self.buffers = [(own, own.clone()) for _, held in self.parts for own in held["_buffers"].values()
                        if own is not None]

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """The module is the snapshot, within.

        Raises:
            ValueError: its code has written to a buffer, so that it is no map.
        """
        versions = [own._version for own, _ in self.buffers]
        real = [part.__dict__ for part, _ in self.parts]
        homes = [home for home in {type(part).__module__ for part, _ in self.parts}
                 if hasattr(sys.modules.get(home), "flash_attn_func")]
        kernels = [sys.modules[home].flash_attn_func for home in homes]
        try:
            for home in homes:
                sys.modules[home].flash_attn_func = flash_attention  # type: ignore[attr-defined]
            for part, own in self.parts:
                object.__setattr__(part, "__dict__", {**own, "_buffers": own["_buffers"].copy()})
            yield
        finally:
            for (part, _), whole in zip(self.parts, real, strict=True):
                object.__setattr__(part, "__dict__", whole)
            for home, kernel in zip(homes, kernels, strict=True):
                sys.modules[home].flash_attn_func = kernel  # type: ignore[attr-defined]
            written = [pair for pair, was in zip(self.buffers, versions, strict=True) if pair[0]._version != was]
            with torch.no_grad():
                for own, kept in written:
                    own.copy_(kept)
        if written:
            raise ValueError(f"{type(self.parts[0][0]).__name__} writes to its own buffers in its step: applied twice, "
                             "it is not one map applied twice. Make what it remembers part of the state, or leave it "
                             "out.")


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled modules run eagerly, and flex attention without being compiled."""
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        flex: Any = sys.modules.get("torch.nn.attention.flex_attention")
        for name, value in (("_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
                            ("_validate_device", lambda *_: None)):  # of a kernel that is not used for derivatives
            if hasattr(flex, name):
                stack.callback(setattr, flex, name, getattr(flex, name))
                setattr(flex, name, value)
        yield


@contextlib.contextmanager
def same_random_numbers(name: str, device: torch.device) -> Iterator[None]:
    """Random state comes back as it was.

    Raises:
        ValueError: random numbers were drawn; no map does.
    """
    was = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
        drawn = not torch.equal(was, torch.get_rng_state()) or \
            (cuda is not None and not torch.equal(cuda, torch.cuda.get_rng_state(device)))
        if drawn:
            raise ValueError(f"{name} draws random numbers in its step, so that it is no map. Switch its noise off.")
    finally:
        torch.set_rng_state(was)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
