"""Hooks that read the states of a looped model while it runs, and know where in the loop every call stands."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from dynloop.models.looped_model import LoopedModel, arguments_of, unwrapped

OnState = Callable[[int, int, int, torch.Tensor], None]


class Calls:
    """Counts the calls of a looped model's points, and knows which of them each call is.

    Attributes:
        forwards: forward passes of the whole model so far.
        masks: the attention mask (batch, tokens) that each was given, or None.
        recurrences: whole recurrences of each forward pass; of all together where the passes go on with one loop.
        error: the first thing that was not as the specification says, in words; None so far.
    """

    def __init__(self, looped: LoopedModel) -> None:
        self.looped = looped
        self.copies = len(looped.points[0].modules) > 1
        # (module, what is read of it) -> its places in a recurrence; of a tied copy (recurrence, place)
        self.places: dict[tuple[nn.Module, str], list[tuple[int, int]]] = {}
        for number, point in enumerate(looped.points):
            for copy, module in enumerate(point.modules):
                self.places.setdefault((unwrapped(module), point.reads), []).append((copy, number))
        for places in self.places.values():
            places.sort()
        self.forwards, self.depth = 0, 0
        self.masks: list[torch.Tensor | None] = []
        self.recurrences: list[int] = []
        self.totals = [0] * len(looped.points)
        self.error: str | None = None
        self._reset()

    def _reset(self) -> None:
        self.made = dict.fromkeys(self.places, 0)
        self.next = 0  # calls so far in the order of the points

    def begin(self, mask: Any = None) -> None:
        """A forward pass of the whole model begins.

        Raises:
            ValueError: it was given a mask that leaves tokens out, which the model does not see.
        """
        self.depth += 1
        if self.depth > 1:
            return
        mask = mask if isinstance(mask, torch.Tensor) and mask.ndim == 2 and not bool(mask.all()) else None
        if mask is not None and self.looped.mask == "ignored":
            raise ValueError(f"{self.looped.name} ignores its attention mask: in a padded batch the states of real "
                             "tokens depend on the padding. Run prompts of one length together, or one by one.")
        self.masks.append(mask)
        if self.looped.forwards == "decoding" or not self.forwards:
            self._reset()
            self.recurrences.append(0)
        self.forwards += 1

    def end(self) -> None:
        """It ends."""
        self.depth -= 1

    def place(self, module: nn.Module, reads: str) -> tuple[int, int]:
        """(recurrence, point) of the call that is being made."""
        key = (module, reads)
        k, places = self.made[key], self.places[key]
        self.made[key] += 1
        if self.copies:
            recurrence, point = places[k] if k < len(places) else (len(places), places[-1][1])
        else:
            recurrence, point = k // len(places), places[k % len(places)][1]
        self.totals[point] += 1
        n_points = len(self.looped.points)
        if (recurrence, point) != divmod(self.next, n_points) and self.error is None:
            due = divmod(self.next, n_points)
            self.error = (f"its point {point + 1} was called for recurrence {recurrence + 1} when point {due[1] + 1} "
                          f"of recurrence {due[0] + 1} was due")
        self.next += 1
        self.recurrences[-1] = self.next // n_points
        return recurrence, point

    def check_whole(self) -> None:
        """Refuse a run that did not consist of whole recurrences, however many.

        Raises:
            RuntimeError: as `check`.
        """
        most = max(self.recurrences, default=0) or 1
        if self.error or self.next % len(self.looped.points) or not all(self.recurrences) or not self.recurrences:
            self.check(most, None)
            raise RuntimeError(f"the recorded layers of {self.looped.name} were called {self.totals} times; each must "
                               "be called once a recurrence, in order. The last recurrence was not whole.")

    def check(self, n_recurrences: int, n_forwards: int | None = 1) -> None:
        """Refuse a run whose calls were not those of `n_recurrences` in each forward pass.

        Raises:
            RuntimeError: what was called how often, and what to do.
        """
        name, n_points = self.looped.name, len(self.looped.points)
        if not self.forwards:
            raise RuntimeError(f"the forward pass of {name} was never called: `run` of its specification goes past "
                               "`module`, or calls module.forward(...) without the module. Nothing can be recorded.")
        if n_forwards is not None and self.looped.forwards == "decoding" and self.forwards != n_forwards:
            raise RuntimeError(f"{name} made {self.forwards} forward passes where {n_forwards} were due: the tokens of "
                               "one would pass for those of another. Ask capture for n_new_tokens, or set "
                               "forwards='recurrences' if the passes go on with one loop.")
        if not any(self.totals):
            raise RuntimeError(f"no recorded module of {name} was ever called: [{', '.join('0' * n_points)}] calls in "
                               f"{n_recurrences} recurrences. They lie inside a scripted or exported graph, are called "
                               "as module.forward(...), or are not the ones that run. Nothing can be recorded.")
        whole = n_recurrences * len(self.recurrences)
        if self.looped.ragged:
            if self.error is None and self.next % n_points == 0 and all(0 < n <= n_recurrences
                                                                        for n in self.recurrences):
                return
        elif self.error is None and self.totals == [whole] * n_points:
            return
        detail = f" ({self.error})" if self.error else ""
        raise RuntimeError(f"the recorded layers of {name} were called {self.totals} times in {whole} recurrences; "
                           f"each must be called once a recurrence, in order{detail}. The model's specification is "
                           "wrong.")


class _Wrapped:
    """Reads the calls of a part of a `torch.nn.TransformerEncoderLayer` around its forward: where a hook is set, that
    layer takes another kernel, which gives other bits."""

    def __init__(self, module: nn.Module, reads: str, see: Callable[..., None]) -> None:
        self.module, self.was, inner = module, vars(module).get("forward"), module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.reads_input:
                see(module, "input", args, kwargs)
            output = inner(*args, **kwargs)
            if not self.reads_input:
                see(module, "output", output, None)
            return output

        self.reads_input = reads == "input"
        module.forward = forward

    def remove(self) -> None:
        del self.module.forward
        if self.was is not None:
            self.module.forward = self.was


@contextlib.contextmanager
def recording(looped: LoopedModel, on_state: OnState) -> Iterator[Calls]:
    """While it is open, `on_state(forward pass, recurrence, point, state)` sees every state, all counted from 0.

    The state is the model's own tensor: copy what shall last. Outputs are not changed, and the hooks go away even if
    the model fails. A call that is not where the specification says is not shown; `Calls.check` then refuses.
    """
    calls = Calls(looped)
    handles: list[Any] = []

    def see(module: nn.Module, reads: str, value: Any, kwargs: dict[str, Any] | None) -> None:
        if not calls.depth:
            return  # not in a forward pass: recomputation by gradient checkpointing, or somebody else
        recurrence, number = calls.place(module, reads)
        if calls.error is None:
            state = looped.points[number].state(value, kwargs)
            if state is None:
                calls.error = f"the {reads} of point {number + 1} holds no state"
                return
            on_state(len(calls.recurrences) - 1, recurrence, number, state)

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        see(module, "input", args, kwargs)

    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        see(module, "output", output, None)

    root = unwrapped(looped.module)
    names = arguments_of(root)
    place = names.index("attention_mask") if "attention_mask" in names else None

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = args[place] if place is not None and place < len(args) else None
        calls.begin(kwargs.get("attention_mask", given))

    for module in (root, *(module for module, _ in calls.places)):
        if isinstance(module, torch.jit.ScriptModule):
            raise RuntimeError(f"{looped.name} is scripted: its graph calls no hooks, and nothing can be recorded. "
                               "Use the module that was scripted.")
    try:
        handles.append(root.register_forward_pre_hook(begin, prepend=True, with_kwargs=True))
        fused = {part for layer in root.modules() if isinstance(layer, nn.TransformerEncoderLayer)
                 and not any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())
                 for part in layer.modules()}
        for module, reads in calls.places:
            if module in fused:
                handles.append(_Wrapped(module, reads, see))
                continue
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True) if reads == "input" else
                           module.register_forward_hook(after, with_kwargs=True))
        handles.append(root.register_forward_hook(lambda *_: calls.end(), always_call=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()
