"""From a state of the residual stream to logits: final norm and head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


@dataclasses.dataclass(frozen=True)
class Unembedding:
    """The final norm and the head of a model, without what stands between the loop and them.

    Attributes:
        head: state -> logits; a linear layer, where logits are a linear function of the normed state.
        norm: what is applied before it; None where there is none.
        closed: points of the recurrence, counted from 0, whose states have been through that norm.
        after: what is done to the head's output, such as a soft cap.
    """

    head: nn.Module
    norm: nn.Module | None = None
    closed: Sequence[int] = ()
    after: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __call__(self, state: torch.Tensor, *, point: int | None = None) -> torch.Tensor:
        """Logits (..., vocabulary) of states (..., features) that were read at a point, counted from 0."""
        normed = state if self.norm is None or point in self.closed else self.norm(state)
        logits = self.head(normed)
        return logits if self.after is None else self.after(logits)


def gain_of(norm: nn.Module, width: int, like: torch.Tensor) -> tuple[torch.Tensor, bool] | None:
    """The gain g (width,) of a norm and whether it centres: norm(x) = g * x / rms(x) + b, or the same of x - mean(x).

    Both are read off what the norm gives, so that it matters neither how a family writes its norms nor whether it calls
    the gain `weight`, or 1 + `weight`. None of what is no norm: anything that a change of scale changes,
    or that does not divide all features by one number.

    Args:
        norm: (..., width) -> (..., width).
        width: of its states.
        like: a tensor of the device and dtype in which it computes.
    """
    x = torch.ones(width, device=like.device, dtype=like.dtype)
    x[1::2] = -1
    if width % 2:
        x[-1] = 0  # the mean is zero
    other = x.roll(1)
    uneven = x * torch.linspace(0.25, 1, width, device=like.device, dtype=like.dtype)
    rows = torch.stack((x, -x, 2 * x, other, -other, x + 0.5, uneven)) * 1024
    try:
        with torch.no_grad():
            out: Any = norm(rows[None])
    except Exception:  # takes something else
        return None
    if not isinstance(out, torch.Tensor) or out.shape != (1, *rows.shape):
        return None
    out, rows = out[0].double(), rows.double()
    tolerance = 16 * torch.finfo(like.dtype).eps
    if not torch.allclose(out[0], out[2], rtol=tolerance, atol=tolerance * float(out.abs().max())):
        return None  # a change of scale changes it
    size = rows[0].square().mean().sqrt()
    first, second = (out[0] - out[1]) / 2, (out[3] - out[4]) / 2
    gain = torch.where(rows[0] != 0, first * rows[0].sign(), second * rows[3].sign()) * size / 1024
    centred = torch.allclose(out[0], out[5], rtol=tolerance, atol=tolerance * float(out.abs().max()))
    # what bounds each feature by itself (tanh, softmax), or group by group, does not divide all by their common size
    apart = rows[6] - rows[6].mean() if centred else rows[6]
    due = gain * apart / apart.square().mean().sqrt().clamp_min(1) + (out[0] + out[1]) / 2
    if not torch.allclose(out[6], due, rtol=tolerance, atol=tolerance * float(out.abs().max())):
        return None
    return gain, centred
