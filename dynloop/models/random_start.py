"""Start any looped model in a random place of the right size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from dynloop.models.looped_model import LoopedModel, Missing


def random_start(looped: LoopedModel) -> LoopedModel:
    """The same model with an initial state as long as its own, token by token, in a direction drawn on the CPU.

    Args:
        looped: a model whose loop can be stepped by hand.

    Returns:
        The specification with `random_start` and the new `initial_state`; where its own state is 0, the new one has
        the root of the number of features as length.

    Raises:
        ValueError: a model that is no map.

    Example:
        >>> import torch
        >>> from dynloop.models import load
        >>> from dynloop.models.random_start import random_start
        >>> looped = load("nano-settles")
        >>> context = looped.embed(torch.tensor([[1, 2]] * 2))
        >>> own, other = looped.initial_state(context), random_start(looped).initial_state(context, seeds=[0, 1])
        >>> bool(torch.allclose(own.norm(dim=-1), other.norm(dim=-1))), bool(torch.equal(other[0], other[1]))
        (True, False)
    """
    for part in (looped.embed, looped.initial_state, looped.step):
        if isinstance(part, Missing):
            part()  # says what is missing

    def initial_state(context: Any, *, seeds: Sequence[int]) -> torch.Tensor:
        own = looped.initial_state(context, seeds=seeds)
        drawn = torch.stack([torch.randn(own.shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds])
        length = own.float().norm(dim=-1, keepdim=True)
        length = torch.where(length > 0, length, own.shape[-1] ** 0.5)
        return (drawn.to(own.device) / drawn.norm(dim=-1, keepdim=True).to(own.device) * length).to(own)

    return dataclasses.replace(looped, random_start=True, initial_state=initial_state)
