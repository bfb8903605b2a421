"""Logits of recorded states, through the model that they come from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynloop.models import LoopedModel, Missing, load, undisturbed
from dynloop.recording.prompts import encode_prompts

Readout = Callable[[torch.Tensor, Mapping[str, np.ndarray]], torch.Tensor]
_KEPT = 32  # contexts of prompts


def readout_of(model: LoopedModel | nn.Module | str | Path, inputs: Any) -> Readout:
    """The readout of a looped model for recorded loop states: coda, norm and head, in the context of their prompts.

    Args:
        model: as in `capture`.
        inputs: the prompts that were captured, in the same order.

    Returns:
        (states (n, features) of one recurrence, labels of their orbits) -> logits (n, vocabulary), for `exit_rule`.
        The coda attends over the whole prompt: states of all its tokens must be there, and those of one layer alone
        (`select={"layer": ...}`, the last one of the recurrence).

    Raises:
        ValueError: no readout; a model that puts positions of its own before the prompt; called with states of part of
            a prompt, or of several layers.

    Misleads:
        A rule that looks at outputs runs the coda and head after every recurrence, which these savings do not count.

    Source:
        As the model's own code; see `dynloop.models`.

    Example:
        >>> import torch
        >>> from dynloop.advice import readout_of
        >>> readout = readout_of("nano-settles", ["abc"])
        >>> readout(torch.zeros(3, 128), {"prompt": [0, 0, 0], "token": [0, 1, 2]}).shape
        torch.Size([3, 256])
    """
    looped = load(model)
    for part in (looped.embed, looped.readout):
        if isinstance(part, Missing):
            part()
    if looped.prefix:
        raise ValueError(f"{looped.name} puts {looped.prefix} positions before the prompt, whose states are not "
                         "recorded. Give a readout of your own.")
    prompts = encode_prompts(looped, inputs)
    contexts: OrderedDict[int, Any] = OrderedDict()
    weight = next(looped.module.parameters())

    def context_of(prompt: int) -> Any:
        if prompt not in contexts:
            contexts[prompt] = looped.embed(torch.tensor([prompts[prompt]], device=looped.device))
            if len(contexts) > _KEPT:
                contexts.popitem(last=False)
        contexts.move_to_end(prompt)
        return contexts[prompt]

    def readout(states: torch.Tensor, labels: Mapping[str, np.ndarray]) -> torch.Tensor:
        if "prompt" not in labels or "token" not in labels:
            raise ValueError("the orbits need the labels prompt and token, as capture gives them; they have "
                             f"{', '.join(labels) or 'none'}.")
        token = np.asarray(labels["token"])
        others = [np.asarray(labels[name]) for name in ("prompt", "start", "seed", "layer") if name in labels]
        keys = list(zip(*(own.tolist() for own in others), strict=True))
        logits = None
        with undisturbed(looped.module):
            for key in dict.fromkeys(keys):
                rows = np.array([i for i, own in enumerate(keys) if own == key])
                rows = rows[np.argsort(token[rows])]
                prompt = int(key[0])
                if not 0 <= prompt < len(prompts) or token[rows].tolist() != list(range(len(prompts[prompt]))):
                    raise ValueError(f"the readout of prompt {prompt} needs the states of all its tokens in order; got "
                                     f"{len(rows)} of them. Capture all tokens, and give the prompts that were "
                                     "captured.")
                whole = states[rows][None].to(weight.device, weight.dtype)
                own_logits = looped.readout(whole, context_of(prompt))[0].float().cpu()
                logits = own_logits.new_empty(len(states), own_logits.shape[-1]) if logits is None else logits
                logits[rows] = own_logits
        assert logits is not None  # there is an orbit
        return logits

    return readout
