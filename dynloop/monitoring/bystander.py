"""Run a model in the middle of its training, and leave nothing behind."""

from __future__ import annotations

import collections
import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from dynloop.models import undisturbed
from dynloop.models.looped_model import unwrapped

_SHARDED = {"FullyShardedDataParallel", "FSDPModule"}
_PARALLEL = {"DataParallel", "DistributedDataParallel"}
_CONTAINERS = (list, dict, set, collections.deque, collections.OrderedDict, collections.defaultdict)


def bare(module: nn.Module) -> nn.Module:
    """The module inside `DataParallel`, `DistributedDataParallel` and `torch.compile`, in whatever order.

    Raises:
        ValueError: its weights are sharded over processes, of which each would have to run the probe.
    """
    while True:
        inner = unwrapped(module)
        if type(inner).__name__ in _PARALLEL and isinstance(getattr(inner, "module", None), nn.Module):
            inner = inner.module  # type: ignore[assignment]
        if inner is module:
            break
        module = inner
    if _SHARDED & {known.__name__ for part in module.modules() for known in type(part).__mro__}:
        raise ValueError("the weights of this model are sharded over processes, so that no single one can run the "
                         "probe. Monitor an unsharded copy, or save checkpoints and capture these.")
    return module


@contextlib.contextmanager
def bystander(module: nn.Module, autocast: torch.dtype | None) -> Iterator[None]:
    """Within it `module` may run; afterwards it, its gradients and all random states are what they were.

    To what `undisturbed` restores (training modes, contents of buffers, random states of torch, CUDA, NumPy and Python)
    this adds the attributes of every part (counters, caches, buffers that are replaced), the contents of its plain
    containers, of those within them and of tensors that are no buffers, and the generators that it holds. The cache of
    autocast is passed over: it may hold weights as they were before the last step, and would keep for the training what
    is cast here, without gradients.

    Args:
        module: the bare module.
        autocast: the dtype in which to compute; None for what is on around the call.
    """
    device = next((weight.device.type for weight in module.parameters()), "cpu")
    kept = [(part, dict(vars(part)), _contents(part)) for part in module.modules()]
    draws = [(one, _drawn(one)) for _, held, _ in kept for one in held.values() if _drawn(one) is not None]
    on = autocast is not None or torch.is_autocast_enabled(device)
    dtype = autocast or torch.get_autocast_dtype(device)
    try:
        with undisturbed(module), torch.autocast(device, dtype=dtype if on else None, enabled=on, cache_enabled=False):
            yield
    finally:
        for part, held, contents in kept:
            now = vars(part)
            for name in [name for name in now if name not in held]:
                del now[name]
            now.update((name, value) for name, value in held.items() if now.get(name) is not value)
            for container, was in contents:
                _refill(container, was)
        for one, state in draws:
            _rewind(one, state)


def _contents(part: nn.Module) -> list[tuple[Any, Any]]:
    """Containers and plain tensors among the attributes of a part, and those in containers, each with a copy."""
    found: dict[int, tuple[Any, Any]] = {}
    buffers = {id(buffer) for buffer in part._buffers.values()}  # `undisturbed` keeps these

    def visit(value: Any) -> None:  # tensors of other layouts cannot be compared
        if isinstance(value, torch.Tensor):
            plain = value.layout is torch.strided and not (value.is_meta or value.is_nested)
            if plain and not isinstance(value, nn.Parameter) and id(value) not in buffers:
                found[id(value)] = value, value.detach().clone()
        elif type(value) in _CONTAINERS and id(value) not in found:
            found[id(value)] = value, value.copy()
            for own in value.values() if isinstance(value, dict) else value:
                visit(own)
        elif type(value) is tuple:
            for own in value:
                visit(own)

    for value in vars(part).values():
        visit(value)
    return list(found.values())


def _refill(container: Any, was: Any) -> None:
    if isinstance(container, torch.Tensor):
        with torch.no_grad():
            if not torch.equal(container, was):
                container.copy_(was)
        return
    if type(container) is set:
        same = container == was
    elif isinstance(container, dict):
        same = list(container) == list(was) and all(a is b for a, b in zip(container.values(), was.values(),
                                                                          strict=True))
    else:
        same = len(container) == len(was) and all(a is b for a, b in zip(container, was, strict=True))
    if same:
        return
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(was)


def _drawn(one: Any) -> Any:
    """State of a generator of random numbers; None of anything else."""
    if isinstance(one, torch.Generator):
        return one.get_state()
    if isinstance(one, np.random.Generator):
        return one.bit_generator.state
    if isinstance(one, np.random.RandomState):
        return one.get_state()
    return one.getstate() if isinstance(one, random.Random) else None


def _rewind(one: Any, state: Any) -> None:
    if isinstance(one, np.random.Generator):
        one.bit_generator.state = state
    elif isinstance(one, random.Random):
        one.setstate(state)
    else:
        one.set_state(state)
