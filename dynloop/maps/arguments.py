"""What every analysis of a rule asks of its arguments: a map, tensors, and the same answer to the same question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from dynloop.maps.loop_map import LoopMap

_ALIKE = 1e3  # spacings of the number format by which two answers may differ: sums on a GPU come in any order


def check_loop_map(name: str, value: Any) -> None:
    """Refuse what is no `LoopMap`.

    Raises:
        TypeError: what came, what to do.
    """
    from dynloop.maps.loop_map import LoopMap  # which asks for tensors itself

    if not isinstance(value, LoopMap):
        raise TypeError(f"{name} must be a LoopMap; got {_kind(value)}. Wrap a function (states, contexts) -> states "
                        "as LoopMap(function, state_shape), a torch module with LoopMap.from_module, a looped model "
                        "with LoopMap.of.")


def check_tensor(name: str, value: Any) -> None:
    """Refuse what is no tensor.

    Raises:
        TypeError: what came, what to do.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor; got {_kind(value)}. Pass torch.as_tensor({name}).")


def check_rows(name: str, states: Any) -> None:
    """Refuse a batch without a row.

    Raises:
        ValueError: what came.
    """
    if not len(states):
        raise ValueError(f"{name} must hold at least one state; got {tuple(states.shape)}.")


def check_repeats(loop_map: LoopMap, states: torch.Tensor, contexts: Any = None) -> None:
    """Refuse a rule that answers differently when it is asked again; the first state is tried, once a map.

    Args:
        loop_map: the map.
        states: (n, *state_shape).
        contexts: (n,), or None.

    Raises:
        ValueError: what to do.
    """
    if loop_map.repeats or not len(states) or not states[0].isfinite().all():
        return
    which = loop_map._contexts(len(states), contexts)[:1]
    first, second = (loop_map(states[:1], which).double() for _ in range(2))
    both = first.isfinite() & second.isfinite()
    apart = torch.where(both, first - second, 0.0).norm()
    size = torch.where(both, first, 0.0).norm()
    if apart > _ALIKE * torch.finfo(loop_map.dtype).eps * size or not torch.equal(first.isfinite(), second.isfinite()):
        raise ValueError(f"{loop_map.name} answers differently when it is asked twice with the same state: it draws "
                         "random numbers, or remembers its calls. No fixed points, cycles, Jacobians or basins are "
                         "those of one map then. Switch its noise off, or make what it remembers part of the state; "
                         "orbits and Lyapunov exponents of a random sequence of maps are for trajectory and "
                         "lyapunov_spectrum.")
    loop_map.repeats = True


def _kind(value: Any) -> str:
    kind = type(value)
    own = getattr(value, "__name__", "") if callable(value) else ""
    return f"the function {own}" if own and not isinstance(value, type) else \
        kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
