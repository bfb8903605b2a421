"""Record what a looped model does while somebody else runs it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynloop.models import LoopedModel, load, recording, undisturbed
from dynloop.trajectories import Trajectories


def record(model: LoopedModel | nn.Module | str | Path, call: Callable[[], Any], *,
           layers: Sequence[int] | None = None) -> Trajectories:
    """Run `call` and record every state that the model goes through, in memory.

    For what `capture` does not run by itself: the model's own generate, with its cache, its stopping rule and its
    sampling; a forward pass with arguments of its own; a padded batch of a model that honours its mask. Each forward
    pass is kept apart (label "decoding"), and recurrences count anew in each. The model runs eagerly, in evaluation and
    without gradients, and comes back as it was.

    Args:
        model: a looped model, or what `dynloop.models.load` takes.
        call: runs the model, any number of times: `lambda: module.generate(tokens, max_new_tokens=8)`.
        layers: places in the recurrence, counted from 1; by default all.

    Returns:
        One orbit for every forward pass, prompt, layer and token, in this order; orbits of fewer recurrences than
        others have their own length. Labels: model, prompt (row of the batch), layer, token (counted without padding,
        and on through the forward passes of a cache), stack, decoding. Tokens that the mask leaves out are not there.

    Misleads: where an outer loop calls the model again and again (`forwards` is "recurrences"), all passes of `call`
        are taken for one loop. With a cache a token sees what earlier ones computed in their own recurrences. Where the
        model draws its initial states itself, they are not known: seed torch in `call`.

    Raises:
        RuntimeError: the modules were not called as the specification says: the recording would be wrong.
        ValueError: a padded batch of a model that ignores its mask.

    Example:
        >>> import torch
        >>> from dynloop.models import load
        >>> from dynloop.recording.record import record
        >>> looped = load("nano-settles")
        >>> record(looped, lambda: looped.module(torch.tensor([[1, 2, 3]]), n_recurrences=5), layers=[2])
        Trajectories(3 orbits of 5 steps in 128 dimensions, float32;
                     labels: model, prompt, layer, token, stack, decoding)
    """
    looped = load(model)
    kept = layer_numbers(looped, layers)
    seen: dict[tuple[int, int, int], torch.Tensor] = {}

    def keep(forward: int, recurrence: int, point: int, state: torch.Tensor) -> None:
        if point + 1 not in kept:
            return
        if state.ndim != 3 or state.shape[2] != looped.width:
            raise RuntimeError(f"a state of {looped.name} has shape {tuple(state.shape)} where (prompts, tokens, "
                               f"{looped.width}) is due: another module than the specification means.")
        seen[forward, recurrence, point] = state.detach().to("cpu", copy=True)

    with undisturbed(looped.module), recording(looped, keep) as calls:
        call()
    calls.check_whole()
    most = max(calls.recurrences)
    states, lengths = [], []
    labels: dict[str, list[np.ndarray]] = {name: [] for name in ("prompt", "layer", "token", "decoding")}
    counted = 0  # tokens of the forward passes before, where a cache holds them
    for forward, n in enumerate(calls.recurrences):
        block = torch.stack([torch.stack([seen[forward, r, layer - 1] for r in range(n)], dim=2) for layer in kept],
                            dim=1)[:, :, looped.prefix:]
        rows, _, n_tokens = block.shape[:3]
        if forward and n_tokens > counted:
            counted = 0  # no cache: the whole text again
        real = np.ones((rows, counted + n_tokens), dtype=bool)
        mask = calls.masks[forward] if len(calls.masks) == len(calls.recurrences) else None
        if mask is not None and mask.shape[1] == real.shape[1]:
            real = mask.cpu().numpy().astype(bool)
        place = real.cumsum(axis=1)[:, -n_tokens:] - 1
        real = real[:, -n_tokens:]
        whole = np.broadcast_to(real[:, None], (rows, len(kept), n_tokens)).reshape(-1)
        if n < most:
            gap = torch.full((*block.shape[:3], most - n, looped.width), torch.nan, dtype=block.dtype)
            block = torch.cat((block, gap), dim=3)
        states.append(block.flatten(0, 2)[torch.from_numpy(whole.copy())])
        lengths.append(np.full(int(whole.sum()), n))
        at = {"prompt": np.arange(rows)[:, None, None], "layer": np.array(kept)[None, :, None],
              "token": place[:, None], "decoding": np.full((1, 1, 1), forward)}
        for name, values in at.items():
            labels[name].append(np.broadcast_to(values, (rows, len(kept), n_tokens)).reshape(-1)[whole])
        counted += n_tokens
    found = {name: np.concatenate(values) for name, values in labels.items()}
    stacks = np.array([point.stack for point in looped.points])
    return Trajectories(torch.cat(states), lengths=np.concatenate(lengths),
                        labels={"model": looped.name, "prompt": found["prompt"], "layer": found["layer"],
                                "token": found["token"], "stack": stacks[found["layer"] - 1],
                                "decoding": found["decoding"]},
                        resolution=max(torch.finfo(dtype).eps
                                       for dtype in (looped.compute_dtype, *(state.dtype for state in states))))


def layer_numbers(looped: LoopedModel, layers: Sequence[int] | None) -> list[int]:
    """The layers to record, counted from 1, in order; all by default.

    Raises:
        ValueError: some are not there, or are no list of whole numbers.
    """
    n_points = len(looped.points)
    if layers is None:
        return list(range(1, n_points + 1))
    try:
        kept = sorted({operator.index(layer) for layer in layers})
    except TypeError:
        kept = []
    if not kept or kept[0] < 1 or kept[-1] > n_points:
        raise ValueError(f"layers must be among 1 to {n_points}; got {layers!r}. Give a list such as [{n_points}], or "
                         "None for all.")
    return kept
