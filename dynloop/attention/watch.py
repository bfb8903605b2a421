"""The mode that sees attention calls while a model runs."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention.bias import CausalBias, CausalVariant
from torch.overrides import TorchFunctionMode

from dynloop.attention.calls import AttentionCall, AttentionStatistics, MapDistances
from dynloop.attention.eager import Chain, chained, of_heads, softmax_arguments
from dynloop.attention.pairs import distances_of
from dynloop.attention.scores import Given, Products
from dynloop.attention.summary import Kept, summary
from dynloop.buffers import Buffers

_SDPA = F.scaled_dot_product_attention
_SOFTMAX = {torch.softmax, torch.Tensor.softmax, F.softmax, torch.special.softmax}
# arguments of flash-attention functions that change nothing in the map, or are read
_FLASH_KNOWN = {"softmax_scale", "causal", "window_size", "softcap", "dropout_p", "deterministic", "return_attn_probs",
                "return_softmax", "num_splits", "pack_gqa", "sm_margin"}
_FLASH_ORDER = ("q", "k", "v", "dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes",
                "deterministic", "return_attn_probs")  # of flash-attn 2, for functions that do not tell
_ROUTERS = ("router", "gate", "gating", "expert", "moe")


class Watch(TorchFunctionMode):
    """Sees torch functions, calls them as they are, and records attention."""

    def __init__(self, layer: Callable[[str, int], Hashable] | None, distance: bool, keep_maps: bool, continues: bool,
                 dtype: torch.dtype, pairs: str | None = None) -> None:
        super().__init__()
        self.seen = AttentionStatistics()
        self.ran = self.left_out = self.inside = False
        self._layer, self._distance, self._keep_maps = layer, distance, keep_maps
        self._continues, self._dtype, self._pairs = continues, dtype, pairs
        self._running: list[tuple[str, str]] = []
        self._forward = -1
        self._calls: Counter[str] = Counter()
        self._recurrences: Counter[Hashable] = Counter()
        self._kept: dict[Hashable, Kept] = {}
        self._all: list[tuple[Hashable, int, Kept]] = []  # of this forward, where all pairs are asked for
        self._buffers = Buffers()

    def __exit__(self, *error: Any) -> None:
        self._kept.clear()
        self._all.clear()
        self._running.clear()
        super().__exit__(*error)

    def enter(self, name: str, kind: str) -> None:
        """A module begins; the whole model's outermost call begins a forward."""
        self.ran = True
        if not name and not any(not running for running, _ in self._running):
            if not self._continues:
                self.compare()
            self._forward += 1
            if not self._continues:
                self._calls.clear()
                self._recurrences.clear()
                self._kept.clear()
        self._running.append((name, kind))

    def leave(self) -> None:
        """A module has ended, with a result or an exception."""
        if self._running:
            self._running.pop()

    def compare(self) -> None:
        """Compute the distances between all pairs of the maps that were seen since the last time."""
        together: dict[Hashable, list[tuple[Hashable, int, Kept]]] = {}
        for layer, recurrence, kept in self._all:
            together.setdefault(layer if self._pairs == "layer" else None, []).append((layer, recurrence, kept))
        self._all = []
        for members in together.values():
            with _exact(members[0][2].top.device):
                distances, norms = distances_of([kept for *_, kept in members], self._buffers)
            self.seen.pairs.append(MapDistances(self._forward, tuple(layer for layer, *_ in members),
                                                tuple(recurrence for _, recurrence, _ in members), distances, norms))

    @contextlib.contextmanager
    def once(self) -> Iterator[None]:
        """What is called inside belongs to one attention call and is not recorded by itself."""
        was, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = was

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (),
                           kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.inside:
            return func(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            raise ValueError(
                "torch.nn.MultiheadAttention computes its attention where it cannot be seen. Replace it by a module "
                "that calls scaled_dot_product_attention, or record without attention statistics.")
        result = func(*args, **kwargs)
        if func is _SDPA:
            self._sdpa(*args, **kwargs)
        elif func in _SOFTMAX:
            self._softmax(func, args, kwargs)
        elif getattr(func, "__name__", "") == "flex_attention":
            self._flex(*args, **kwargs)
        else:
            chained(func, args, kwargs, result)
        return result

    def _sdpa(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
              dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
              enable_gqa: bool = False) -> None:
        after = 0 if is_causal else None
        if isinstance(attn_mask, CausalBias):
            lower_right = attn_mask.variant == CausalVariant.LOWER_RIGHT
            after, attn_mask = (key.shape[-2] - query.shape[-2] if lower_right else 0), None
        self._record("sdpa", query, key, scale=scale, after=after, mask=attn_mask)

    def _flex(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, score_mod: Callable[..., Any],
              block_mask: tuple[Any, ...], scale: float | None, *rest: Any, **kwargs: Any) -> None:
        mask_mod = block_mask[-1]

        def finish(scores: torch.Tensor, where: tuple[slice, slice, slice, slice]) -> torch.Tensor:
            index = [torch.arange(w.start, w.stop, device=scores.device) for w in where]
            scores = _over_all(score_mod, with_score=True)(scores, *index)
            seen = _over_all(mask_mod, with_score=False)(*index)
            return torch.where(seen, scores, -math.inf)

        self._record("flex", query, key, scale=scale, finish=finish)

    def flash(self, path: str, original: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Record a call of a flash-attention function: (batch, tokens, heads, width)."""
        given, defaults = _arguments(original, args, kwargs)
        query, key, _ = (given.pop(name) for name in list(given)[:3])
        for name, value in given.items():
            default = defaults.get(name)
            if name not in _FLASH_KNOWN and value is not default and value != default:
                raise ValueError(f"{path} was called with {name}={value!r}, of which we do not know what it "
                                          f"does to the map. Known are {', '.join(sorted(_FLASH_KNOWN))}.")
        if query.ndim != 4:
            raise ValueError(f"{path} was called with queries of shape {tuple(query.shape)}; "
                                      "(batch, tokens, heads, width) is needed.")
        before, after = (None if n < 0 else int(n) for n in given.get("window_size") or (-1, -1))
        if given.get("causal", False):
            after = 0
        shift = key.shape[1] - query.shape[1]  # the last query stands beside the last key
        cap = given.get("softcap") or 0.0
        self._record(path, query.transpose(1, 2), key.transpose(1, 2), scale=given.get("softmax_scale"),
                     before=None if before is None else before - shift, after=None if after is None else after + shift,
                     finish=(lambda scores, where: scores.div_(cap).tanh_().mul_(cap)) if cap else None)

    def _softmax(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        scores, dim = softmax_arguments(func, args, kwargs)
        if scores.ndim not in (3, 4) or dim not in (-1, scores.ndim - 1):
            return
        chain: Chain | None = getattr(scores, "_dynloop_chain", None)
        kind = self._kind()
        if kind == "router" or (chain is None and (kind != "attention" or scores.ndim == 3)):
            return
        if scores.ndim == 3 and kind != "attention" and scores.shape[-1] != scores.shape[-2]:
            return  # tokens by experts, as likely as queries by keys
        self._guard(scores)
        with _exact(scores.device):
            source = chain.products(scores, self._dtype, self._buffers) if chain is not None else None
        if source is not None:
            # what the model has in our precision need not be computed again; what it has rounded must, as it will be
            own = Given(of_heads(scores), dtype=self._dtype) if scores.dtype == self._dtype else source
            self._finish("softmax", own, source, "")
        else:
            self._finish("softmax", Given(of_heads(scores), dtype=self._dtype), None,
                         "the scores cannot be traced back to queries and keys, or were not what these give")

    def _kind(self) -> str:
        """"router" or "attention": what the innermost module that says what it is, is; "" where none does."""
        for name, kind in reversed(self._running):
            own = f"{name.rpartition('.')[2]} {kind}".lower()
            if any(word in own for word in _ROUTERS):
                return "router"
            if "attn" in own or "attention" in own or own.split()[-1].startswith("att"):
                return "attention"
        return ""

    def _guard(self, x: torch.Tensor) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            raise ValueError("attention statistics are of plain forwards; got a call inside torch.func.jvp, "
                                      "vjp or vmap. Run the model by itself.")
        if x.is_nested:
            raise ValueError("attention statistics need tensors of one length; got nested ones. "
                                      "Run prompts of one length together.")

    def _record(self, kind: str, query: torch.Tensor, key: torch.Tensor, *, scale: float | None, **how: Any) -> None:
        self._guard(query)
        leading = query.shape[:-3]
        if (mask := how.get("mask")) is not None and (query.ndim == 3 or mask.ndim > 4):
            how["mask"] = mask[:, None] if mask.ndim == 3 else (
                mask.expand(*leading, *mask.shape[-3:]).flatten(0, -4) if mask.ndim > 4 else mask)
        if query.ndim > 4 and key.shape[:-3] != leading:
            key = key.expand(*leading, *key.shape[-3:])
        query, key = _of_four(query), _of_four(key)
        together = max(len(query), len(key))
        query, key = query.expand(together, -1, -1, -1), key.expand(together, -1, -1, -1)
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        with _exact(query.device):
            source = Products(query, key, scale=scale, dtype=self._dtype, buffers=self._buffers, **how)
        self._finish(kind, source, source, "")

    def _finish(self, kind: str, source: Products | Given, again: Products | None, why_not: str) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # a checkpointed forward, repeated in the backward pass
        module = self._running[-1][0] if self._running else ""
        call = self._calls[module]
        self._calls[module] += 1
        layer = module if self._layer is None else self._layer(module, call)
        if layer is None:
            self.left_out = True
            return
        recurrence = self._recurrences[layer]
        self._recurrences[layer] += 1
        previous, note = self._kept.pop(layer, None), ""
        if not self._distance:
            previous, note = None, "distances were not asked for"
        elif previous is None:
            note = "the first recurrence"
        elif previous.shape != source.shape:
            previous, note = None, "the previous map has another shape"
        elif previous.source is None and previous.map is None:
            note, previous = previous.why_not, None
        with _exact(source.device):
            numbers, kept = summary(source, previous, self._keep_maps, self._buffers)
        kept_now = dataclasses.replace(kept, source=again, why_not=why_not)
        if self._distance:
            self._kept[layer] = kept_now
        if self._pairs is not None:
            self._all.append((layer, recurrence, self._comparable(layer, kept_now)))
        self.seen.calls.append(AttentionCall(module, kind, self._forward, call, layer, recurrence, note=note,
                                             map=kept.map, **numbers))


    def _comparable(self, layer: Hashable, kept: Kept) -> Kept:
        """The same, if it can be compared with the maps before it."""
        if kept.source is None and kept.map is None:
            raise ValueError(f"pairs need maps that can be computed again; of {layer!r} {kept.why_not}. Pass "
                             "keep_maps=True, or leave pairs out.")
        first = next((one for name, _, one in self._all if self._pairs == "all" or name == layer), kept)
        if first.shape != kept.shape:
            raise ValueError(f"pairs need maps of one shape; got {first.shape} and {kept.shape} (prompts, heads, "
                             f"queries, keys) of {layer!r}. Layers with other heads? Use pairs='layer'. Tokens one by "
                             "one, with a cache? Run whole prompts.")
        return kept


def _arguments(function: Callable[..., Any], args: Sequence[Any],
               kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a flash-attention call by name, in order, and the defaults that are known."""
    try:
        parameters = dict(inspect.signature(function).parameters)
    except ValueError:  # a builtin that does not tell
        parameters = {}
    kinds = {parameter.kind for parameter in parameters.values()}
    if not parameters or inspect.Parameter.VAR_POSITIONAL in kinds:
        return dict(zip(_FLASH_ORDER, args, strict=False)) | kwargs, {}
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    rest = [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
    for name in rest:
        given.update(given.pop(name, {}))
    return dict(given), {name: parameter.default for name, parameter in parameters.items()}


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no modes of anybody, and products in full single precision."""
    homes: list[Any] = [backend.matmul for backend in (torch.backends.cuda, torch.backends.mkldnn)
                        if hasattr(getattr(backend, "matmul", None), "fp32_precision")]
    before = [home.fp32_precision for home in homes]
    with torch.no_grad(), torch.autocast(device.type, enabled=False), torch._C.DisableTorchFunction():
        try:
            for home in homes:
                home.fp32_precision = "ieee"
            yield
        finally:
            for home, precision in zip(homes, before, strict=True):
                home.fp32_precision = precision


def _of_four(x: torch.Tensor) -> torch.Tensor:
    """(..., heads, tokens, width) as (batch, heads, tokens, width); three axes are (batch, tokens, width)."""
    return x.flatten(0, -4) if x.ndim > 4 else of_heads(x)


def _over_all(function: Callable[..., Any], *, with_score: bool) -> Callable[..., Any]:
    """A function of one score and its four indices, over (batch, heads, queries, keys)."""
    for axis in range(3, -1, -1):
        dims: list[int | None] = [None] * 4
        dims[axis] = 0
        function = torch.vmap(function, in_dims=((0, *dims) if with_score else tuple(dims)))
    return function
