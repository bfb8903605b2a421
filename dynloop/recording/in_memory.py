"""Run a looped model on a few prompts and keep the states of its loop in memory: `capture` without a disk."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dynloop.models import LoopedModel
from dynloop.recording.attention import AttentionLayers
from dynloop.recording.capture import _Batch, _layers, _Plan, _run
from dynloop.trajectories import Trajectories


def in_memory(looped: LoopedModel, prompts: Sequence[Sequence[int]], *, n_recurrences: int,
              tokens: Sequence[int], attention: AttentionLayers | None = None,
              seed: int = 0) -> tuple[Trajectories, np.ndarray | None]:
    """The loop state of prompts of one length at some positions, as `capture(..., layers="state")` would store it.

    Args:
        looped: the model; it comes back as it was.
        prompts: token numbers, (prompts, tokens).
        n_recurrences: applications of the block.
        tokens: positions, counted from 0.
        attention: attention calls whose maps are compared with those of the recurrence before, from
            `dynloop.recording.attention.attention_layers`.
        seed: prompt i starts from seed + i, where the initial state is random.

    Returns:
        Orbits, prompt by prompt, labelled `prompt` and `token`; and the distances between successive attention maps,
        (prompts, heads of all layers, recurrences), or None.

    Raises:
        RuntimeError: as `capture`.
    """
    rows = [list(prompt) for prompt in prompts]
    batch = _Batch(0, list(range(len(rows))), 1, len(rows[0]), list(tokens), 0)
    plan = _Plan(n_recurrences, list(range(n_recurrences)), _layers(looped, "state"), looped.state_width, 1, seed,
                 len(rows), 0, looped.compute_dtype, attention)
    states, lengths, about = _run(looped, rows, batch, plan)
    orbits = Trajectories(states.flatten(0, 2), lengths=lengths.flatten().numpy(),
                          labels={"prompt": np.repeat(np.arange(len(rows)), len(tokens)),
                                  "token": np.tile(np.asarray(tokens), len(rows))},
                          resolution=torch.finfo(looped.compute_dtype).eps)
    distance = about.get("attention_map_distance")
    return orbits, None if distance is None else distance.numpy()
