"""The states of all tokens of a prompt as one orbit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dynloop.store import Store
from dynloop.trajectories import Trajectories


def prompt_states(store: Store, **wanted: Any) -> Iterator[Trajectories]:
    """The state of each prompt as a whole: the recorded tokens side by side, one orbit in (tokens x features).

    For what belongs to a prompt and not to a token, as an attention map does:
    `Measurement.concatenate([convergence_time(orbit) for orbit in prompt_states(store, layer=2)])`.

    Args:
        store: from `capture`.
        wanted: labels, such as layer=2; those of all layers, starts and decodings that are left are orbits of their
            own.

    Yields:
        The orbits of one prompt, with its labels but for the token; of prompts in the order of their numbers. An orbit
        is as long as the shortest of its tokens.

    Raises:
        ValueError: a store without the labels prompt and token; labels that are not there.

    Misleads:
        Distances are those of all tokens together: tokens with large states outweigh others.

    Example:
        >>> import tempfile
        >>> from dynloop import capture
        >>> from dynloop.recording.prompt_states import prompt_states
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = capture("nano-settles", ["import os", "abc"], out=folder + "/s", n_recurrences=4)
        ...     [(int(orbit.labels["prompt"][0]), orbit.dim) for orbit in prompt_states(store, layer=2)]
        [(0, 1152), (1, 384)]
    """
    labels = store.labels
    if missing := {"prompt", "token"} - set(labels):
        raise ValueError(f"prompts as a whole need the labels prompt and token; the store has no "
                         f"{' and no '.join(sorted(missing))}.")
    prompts = np.unique(np.asarray(labels["prompt"]))
    if "prompt" in wanted:
        prompts = np.atleast_1d(wanted.pop("prompt"))
    for prompt in prompts.tolist():
        orbits = store.trajectories(prompt=prompt, **wanted)
        others = [name for name in orbits.labels if name not in ("token", "decoding")]
        order = np.lexsort([orbits.labels["token"]] + [_codes(orbits.labels[name]) for name in others])
        tokens = len(np.unique(orbits.labels["token"]))
        if len(order) % tokens or (orbits.labels["token"][order].reshape(-1, tokens)
                                   != np.unique(orbits.labels["token"])).any():
            raise ValueError(f"the layers of prompt {prompt} hold different tokens. Select one layer.")
        states = orbits.states[order].unflatten(0, (-1, tokens)).transpose(1, 2).flatten(2)
        first = order[::tokens]
        yield Trajectories(states, labels={name: orbits.labels[name][first] for name in others},
                           lengths=orbits.lengths[order].reshape(-1, tokens).min(1),
                           diverged=orbits.diverged[order].reshape(-1, tokens).any(1), resolution=orbits.resolution)


def _codes(values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1]
