"""Statistics of every attention map, computed while the model runs; no map is kept unless asked for."""

from __future__ import annotations

import contextlib
import functools
import pkgutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from dynloop.attention.calls import AttentionStatistics
from dynloop.attention.watch import Watch


@contextlib.contextmanager
def attention_statistics(model: nn.Module, *, layer: Callable[[str, int], Hashable] | None = None,
                         symbols: Sequence[str] = (), distance: bool = True, keep_maps: bool = False,
                         continues: bool = False, dtype: torch.dtype = torch.float32,
                         pairs: str | None = None) -> Iterator[AttentionStatistics]:
    """Compute statistics of every attention map while `model` runs inside the `with`.

    Seen are `scaled_dot_product_attention`, `flex_attention`, softmax over 4-dimensional scores that come from queries
    and keys or stand in an attention module, softmax over 3-dimensional scores (batch, queries, keys) that come from
    queries and keys and stand in an attention module or are square (one head), and the `symbols`; a router's softmax
    is not taken for attention. Each call is made as it is, so that the model's output keeps every bit; the map is then
    computed again from queries and keys in blocks of queries, as

        A = softmax(scale Q K^T + mask),   c_k = sum_t A[t, k],   H_t = -sum_k A[t, k] ln A[t, k]   (0 ln 0 = 0)
        distance = ||A - A'||_F,   A' the map of the same layer at the previous recurrence

    and A' from the queries and keys of that recurrence, which are kept instead of the map.

    Args:
        model: the module whose parts name the calls. Hooks are set, and removed at the end.
        layer: (module name, number of attention calls of this module before) -> the layer that is called; calls of one
            layer are its successive recurrences. None as an answer leaves the call out. By default the module itself,
            which is right where each module attends once a recurrence. For a module that updates two states in turn:
            `lambda module, call: (module, call % 2)`; for tied copies: the name without the copy's number.
        symbols: dotted paths of module-level names that hold flash-attention functions, as the model's code looks them
            up (`flash_attn.flash_attn_func`, or `models.layers.flash_attn_func` where it was imported from there):
            (batch, tokens, heads, width) first, then the arguments of the flash-attn package. Restored at the end.
        distance: whether to compute it; it costs as much as all else.
        keep_maps: keep every A (B, H, T, S) in `dtype`, for small models.
        continues: whether a forward of `model` goes on with the recurrences of the one before (an outer loop). If not,
            each forward starts to count anew and has no previous map.
        dtype: float32, whatever the model computes in, or float64.
        pairs: "layer" for the distances between all maps of one layer in a forward, "all" for those between the maps
            of all layers, head by head. When the forward has ended the maps are computed again in blocks of queries;
            until then the queries and keys of all its calls are kept, (2 x width of a head) numbers a token where a
            map has as many as there are tokens. Distances below 1e-7 of a map's norm are rounding.

    Yields:
        AttentionStatistics, whose `calls` fill while the model runs; tensors stay on the model's device. `pairs` of
        the last forward are there when the `with` has ended.

    Raises:
        RuntimeError: at the end, if the model ran and no attention was seen.
        ValueError: an attention call whose map is not known to us; a symbol that is not there; another bad setting.

    Misleads:
        Compiled parts run eagerly inside the `with`, which may differ from their compiled selves by rounding. Dropout
        is left out of the map. A model in low precision has rounded its own weights; these are not rounded. Masks and
        biases are kept by reference for the previous map. A softmax whose scores cannot be traced back to queries and
        keys has no distance, unless maps are kept; of three axes it is not seen. Heads that are laid into the batch,
        (batch x heads, queries, keys), are maps of prompts of their own. Means over queries are of queries that attend
        to anything.

    Source:
        Sink score and mixing: arXiv 2604.11791, section 5 and appendix; distances between attention maps: its Fig. 25.

    Example:
        >>> import torch
        >>> from dynloop.attention import attention_statistics
        >>> from dynloop.nano import NanoConfig, NanoModel
        >>> model = NanoModel(NanoConfig(width=16, n_heads=2), seed=0)
        >>> with torch.no_grad(), attention_statistics(model) as seen:
        ...     _ = model(torch.tensor([list(b"import os")]), n_recurrences=3)
        >>> [(call.module, call.recurrence) for call in seen.calls][1:4]
        [('block.0.attention', 0), ('block.1.attention', 0), ('block.0.attention', 1)]
        >>> seen.calls[3].entropy.shape, seen.calls[3].distance.shape
        (torch.Size([1, 2]), torch.Size([1, 2]))
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module; got {type(model).__name__}. Pass `looped.module`.")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 (the default) or torch.float64; got {dtype}.")
    if isinstance(symbols, str):
        raise ValueError(f"symbols must be a sequence of dotted paths; got the string {symbols!r}. Pass [{symbols!r}].")
    if pairs not in (None, "layer", "all"):
        raise ValueError(f"pairs must be None, 'layer' or 'all'; got {pairs!r}. Choose one.")
    watch = Watch(layer, distance, keep_maps, continues, dtype, pairs)
    with contextlib.ExitStack() as stack:
        # a compiled call passes over hooks and modes that came after its first run, in silence; an eager one does not
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_named(getattr(model, "_orig_mod", model), watch))
        for path in symbols:
            stack.enter_context(_replaced(path, watch))
        stack.enter_context(watch)
        yield watch.seen
        watch.compare()
    if watch.ran and not watch.seen.calls and not watch.left_out:
        raise RuntimeError("the model ran and no attention was seen. If it calls a compiled kernel such as "
                           "flash_attn_func, name it in symbols=; if it has no attention, leave this out.")


@contextlib.contextmanager
def _named(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Tell `watch` which module runs."""
    handles = []

    def entering(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            watch.enter(name, type(module).__name__)
        return hook

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        watch.leave()

    try:
        for path, part in model.named_modules():
            name = ".".join(piece for piece in path.split(".") if piece != "_orig_mod")
            handles += [part.register_forward_pre_hook(entering(name)),
                        part.register_forward_hook(leaving, always_call=True)]
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _replaced(path: str, watch: Watch) -> Iterator[None]:
    """Put a function that also records in the place of a module-level name."""
    home, _, name = path.rpartition(".")
    try:
        owner = pkgutil.resolve_name(home)  # a module, or an object in one
        original = getattr(owner, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"symbols must be dotted paths of names in modules; got {path!r}: {error}.") from error

    @functools.wraps(original)
    def recording(*args: Any, **kwargs: Any) -> Any:
        with watch.once():
            result = original(*args, **kwargs)
        if not watch.inside:
            watch.flash(path, original, args, kwargs)
        return result

    setattr(owner, name, recording)
    try:
        yield
    finally:
        setattr(owner, name, original)
