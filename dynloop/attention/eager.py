"""Attention written out: which product of queries and keys did these scores come from, and by which steps?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynloop.attention.scores import Products, blocks, part
from dynloop.buffers import Buffers

_PRODUCTS = {"matmul", "bmm", "einsum"}
# elementwise functions by name, without underscores, and how they work in place: fresh memory costs more than the work
_ELEMENTWISE = {"where": "", "rsub": "", "tanh": "tanh_", "masked_fill": "masked_fill_", "clamp": "clamp_",
                "clamp_min": "clamp_min_", "clamp_max": "clamp_max_",
                **dict.fromkeys(("add", "iadd", "radd"), "add_"), **dict.fromkeys(("sub", "isub"), "sub_"),
                **dict.fromkeys(("mul", "imul", "rmul", "multiply"), "mul_"),
                **dict.fromkeys(("div", "truediv", "itruediv", "true_divide", "divide"), "div_")}
_AS_THEY_ARE = {"to", "float", "double", "half", "bfloat16", "type", "type_as", "contiguous", "clone", "detach"}
_PLACE = object()  # stands for the scores in a step's arguments


@dataclasses.dataclass(frozen=True)
class Chain:
    """Queries (B, H, T, D), keys (B, H, S, D), the steps from their product to scores (None: unknown).

    Where a model has one head and no axis for it, H is 1, and so it is in whatever the steps add or multiply.
    """

    query: torch.Tensor
    key: torch.Tensor
    steps: tuple[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]], ...] | None = ()

    def products(self, scores: torch.Tensor, dtype: torch.dtype, buffers: Buffers) -> Products | None:
        """What gives these scores again in blocks; None if a step is unknown, or if it does not give these scores."""
        if self.steps is None:
            return None

        def finish(x: torch.Tensor, where: tuple[slice, slice, slice, slice]) -> torch.Tensor:
            def own(value: Any) -> Any:
                if value is _PLACE:
                    return x
                return part(value, where) if isinstance(value, torch.Tensor) and value.ndim else value

            for function, args, kwargs in self.steps or ():
                x = function(*map(own, args), **{name: own(value) for name, value in kwargs.items()})
            return x

        try:
            source = Products(self.query.detach(), self.key.detach(), scale=1.0, finish=finish, dtype=dtype,
                              buffers=buffers)
            # the last queries of the first heads must come out as they were
            block = list(blocks(source.shape, source.device))
            chosen = next(b for b in block if b.last == source.shape[2])
            keys = source.keys(chosen)
            shape = (chosen.n_rows, chosen.last - chosen.first, source.shape[-1])
            again = source.scores(chosen, keys, torch.empty(shape, dtype=dtype, device=scores.device))
        except (RuntimeError, ValueError, TypeError, IndexError):
            return None  # a step that does not work on a part: there is no distance, and a note says so
        seen = of_heads(scores.detach())[chosen.batch, chosen.heads, chosen.first:chosen.last].flatten(0, 1)
        tolerance = 1e-3 if scores.dtype in (torch.float32, torch.float64) else 0.1
        close = torch.allclose(torch.exp(again - again.amax(-1, keepdim=True)).nan_to_num(),
                               torch.exp(seen.to(dtype) - seen.to(dtype).amax(-1, keepdim=True)).nan_to_num(),
                               rtol=0, atol=tolerance)
        return source if close else None


def chained(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
    """Note on `result` how it came from queries and keys, if it did."""
    if not isinstance(result, torch.Tensor) or result.ndim not in (3, 4):
        return
    name = getattr(function, "__name__", "").strip("_")
    if name in _PRODUCTS:
        operands = _operands(name, args, kwargs, result)
        if operands is not None:
            result._dynloop_chain = Chain(*operands)  # type: ignore[attr-defined]
        return
    chain, replaced_args, replaced_kwargs = None, [], {}
    for i, value in enumerate([*args, *kwargs.values()]):
        own = getattr(value, "_dynloop_chain", None) if isinstance(value, torch.Tensor) else None
        if own is not None and value.shape == result.shape and chain is None:
            chain, value = own, _PLACE
        elif isinstance(value, torch.Tensor) and value.ndim == result.ndim:
            value = of_heads(value)
        if i < len(args):
            replaced_args.append(value)
        else:
            replaced_kwargs[list(kwargs)[i - len(args)]] = value
    if chain is None:
        return
    if name in _AS_THEY_ARE:
        steps = chain.steps
    elif name in _ELEMENTWISE and chain.steps is not None:
        in_place = _ELEMENTWISE[name] if replaced_args and replaced_args[0] is _PLACE else ""
        steps = (*chain.steps, (getattr(torch.Tensor, in_place, function), tuple(replaced_args), replaced_kwargs))
    else:
        steps = None
    result._dynloop_chain = dataclasses.replace(chain, steps=steps)  # type: ignore[attr-defined]


def _operands(name: str, args: Sequence[Any], kwargs: dict[str, Any],
              result: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Queries and keys as (batch, heads, tokens, width), if a product of two tensors was taken that both have these
    four axes, or these but for the heads."""
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)]
    if len(tensors) == 1 and len(args) > 1 and isinstance(args[1], list | tuple):
        tensors = list(args[1])
    if len(tensors) != 2 or any(x.ndim != result.ndim for x in tensors):
        return None
    left, right = tensors
    if name == "einsum":
        found = _einsum_operands(args[0], left, right) if args and isinstance(args[0], str) else None
    else:
        found = (left.expand(*result.shape[:-2], -1, -1), right.transpose(-1, -2).expand(*result.shape[:-2], -1, -1))
    return None if found is None else (of_heads(found[0]), of_heads(found[1]))


def of_heads(x: torch.Tensor) -> torch.Tensor:
    """(batch, ...) of three axes with one head between."""
    return x[:, None] if x.ndim == 3 else x


def _einsum_operands(equation: str, left: torch.Tensor,
                     right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    one, comma, two = inputs.partition(",")
    n = len(output)
    if not arrow or not comma or n not in (3, 4) or any(len(x) != n or len(set(x)) != n or "." in x
                                                        for x in (one, two, output)):
        return None
    if output[-2] in two:
        one, two, left, right = two, one, right, left
    summed = [letter for letter in one if letter in two and letter not in output]
    query, key = ({*output[:-2], output[-2], *summed}, {*output[:-2], output[-1], *summed})
    if len(summed) != 1 or set(one) != query or set(two) != key:
        return None
    return (left.permute([one.index(x) for x in (*output[:-1], *summed)]),
            right.permute([two.index(x) for x in (*output[:-2], output[-1], *summed)]))


def softmax_arguments(function: Callable[..., Any], args: Sequence[Any],
                      kwargs: dict[str, Any]) -> tuple[Any, int | None]:
    """The scores of a softmax call, and the axis."""
    scores = args[0] if args else kwargs.get("input", kwargs.get("self"))
    return scores, args[1] if len(args) > 1 else kwargs.get("dim")
