"""The protocol behind which every looped-model family stands."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class LoopedModel:
    """What capture needs to know of a looped model: its parts, not its code.

    Attributes:
        name: how the model is called in labels and reports.
        module: the whole model.
        recorded: one submodule a recorded layer, each called once a recurrence, in order. The last one's output is
            the loop state itself, after the norm that closes the recurrence where there is one.
        width: features of a state.
        training_recurrences: how the loop ran in training, in words.
        vocabulary: token numbers are below this.
        encode: text -> token numbers.
        embed: tokens (batch, tokens) -> the context that stays fixed while the loop runs.
        initial_state: (context, seeds=one number a prompt) -> state (batch, tokens, width).
        run: (tokens, n_recurrences, initial_state) -> logits, the model's own forward pass.
        random_start: whether `seeds` matter.
        provenance: what a report should say of the model: hash, configuration, training record.
    """

    name: str
    module: nn.Module
    recorded: Sequence[nn.Module]
    width: int
    training_recurrences: str
    vocabulary: int
    encode: Callable[[str], list[int]]
    embed: Callable[[torch.Tensor], Any]
    initial_state: Callable[..., torch.Tensor]
    run: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
    random_start: bool
    provenance: dict[str, Any]


@contextlib.contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluate `module` without gradients, then restore every submodule's training mode."""
    was = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in was.items():
            part.training = training
