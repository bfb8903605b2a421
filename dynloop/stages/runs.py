"""States of one prompt at all depths, from a recording held in memory or on disk."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dynloop.measuring import groups
from dynloop.outcome import Outcome
from dynloop.store import Store
from dynloop.trajectories import Trajectories

WITHIN = ("layer", "token", "stack", "decoding")  # labels that differ within a run


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One prompt, from one start, under one model.

    Attributes:
        labels: all labels that its orbits share.
        layers, tokens, recurrences: labels along the axes.
        states: (recurrences, layers, tokens, dim), float64.
        outcomes: (recurrences, layers): whether all tokens are there.
    """

    labels: dict[str, Any]
    layers: np.ndarray
    tokens: np.ndarray
    recurrences: np.ndarray
    states: np.ndarray
    outcomes: np.ndarray

    @property
    def depths(self) -> np.ndarray:
        """States in the order in which the model makes them, (recurrences * layers, tokens, dim)."""
        return self.states.reshape(-1, *self.states.shape[2:])


class Runs:
    """The runs of a recording, read one at a time, at all recurrences or at some.

    Raises:
        TypeError: not a recording.
    """

    def __init__(self, source: Store | Trajectories, *, recurrences: Sequence[int] | None = None) -> None:
        if not isinstance(source, Store | Trajectories):
            raise TypeError(f"a recording is needed, Trajectories or a Store; got {type(source).__name__}. An array? "
                            "Pass Trajectories(array, labels={'prompt': ..., 'layer': ..., 'token': ...}).")
        self._source, labels = source, source.labels
        number = groups(labels, source.n_orbits, WITHIN)
        order = np.argsort(number, kind="stable")
        self._places = np.split(order, np.flatnonzero(np.diff(number[order])) + 1)
        self.labels: list[dict[str, Any]] = [{name: values[at[0]] for name, values in labels.items()
                                              if name not in WITHIN} for at in self._places]
        self._only = recurrences
        self._steps = source.header.get("recurrences") if isinstance(source, Store) else None

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, which: int) -> Run:
        """One run.

        Raises:
            ValueError: it lacks the state of a token at a layer, or has it twice.
        """
        own = self.labels[which]
        if isinstance(self._source, Store):
            orbits = self._source.trajectories(**own)
        else:
            orbits = self._source[self._places[which]]
        return _run(orbits, own, self._steps, self._only)

    def __iter__(self) -> Iterator[Run]:
        return (self.load(which) for which in range(len(self)))

    def by_prompt(self, which: str) -> dict[Any, int]:
        """The number of each prompt's run.

        Raises:
            ValueError: no label `prompt`, or two runs of one prompt.
        """
        found: dict[Any, int] = {}
        for number, labels in enumerate(self.labels):
            if "prompt" not in labels:
                raise ValueError(f"the orbits of the {which} have no label 'prompt': what is independent is not known. "
                                 "Add it.")
            key = labels["prompt"].item() if isinstance(labels["prompt"], np.generic) else labels["prompt"]
            if key in found:
                differ = [n for n, v in labels.items() if v != self.labels[found[key]][n]]
                raise ValueError(f"the {which} has prompt {key} more than once; its runs differ in "
                                 f"{', '.join(differ)}. Select one value of {differ[0]}, and join the measurements of "
                                 "several.")
            found[key] = number
        return found


def places_of(given: np.ndarray, wanted: Sequence[int] | None) -> np.ndarray:
    """Places of the wanted recurrences among those given; of all by default.

    Raises:
        ValueError: one that is not there.
    """
    if wanted is None:
        return np.arange(len(given))
    if missing := sorted(set(wanted) - set(given.tolist())):
        raise ValueError(f"recurrences must be among those recorded, {given[0]} to {given[-1]}; got "
                         f"{', '.join(map(str, missing))}. Choose others.")
    return np.flatnonzero(np.isin(given, wanted))


def _run(orbits: Trajectories, labels: dict[str, Any], steps: Any, only: Sequence[int] | None) -> Run:
    n = orbits.n_orbits
    layer, token = (np.asarray(orbits.labels.get(name, np.zeros(n, dtype=int))) for name in ("layer", "token"))
    layers, tokens = np.unique(layer), np.unique(token)
    order = np.lexsort((token, layer))
    if n != len(layers) * len(tokens) or (layer[order] != np.repeat(layers, len(tokens))).any() or \
            (token[order] != np.tile(tokens, len(layers))).any():
        where = ", ".join(f"{name} {value}" for name, value in labels.items()) or "the recording"
        raise ValueError(f"{where} must hold the state of every token at every layer, once; got {n} orbits for "
                         f"{len(layers)} layers and {len(tokens)} tokens. Label them layer and token, and runs that "
                         "differ (start, model, ...) by labels of their own.")
    n_steps = orbits.n_steps
    given = np.array(list(steps) if isinstance(steps, list | tuple) and len(steps) == n_steps else
                     range(1, n_steps + 1))
    chosen = places_of(given, only)
    own = orbits.states[torch.as_tensor(order, device=orbits.states.device)]
    if only is not None:
        own = own[:, torch.as_tensor(chosen, device=own.device)]
    states = own.to("cpu", torch.float64).numpy()
    shape = (len(layers), len(tokens))
    states = np.ascontiguousarray(states.reshape(*shape, *states.shape[1:]).transpose(2, 0, 1, 3))
    there = orbits.lengths[order].reshape(shape)
    diverged = orbits.diverged[order].reshape(shape)
    ended = there[None] <= chosen[:, None, None]  # (recurrence, layer, token)
    outcomes = np.full(ended.shape[:2], Outcome.FOUND, dtype=object)
    outcomes[ended.any(-1)] = Outcome.TOO_SHORT
    outcomes[(ended & diverged[None]).any(-1)] = Outcome.NOT_FINITE
    return Run(labels, layers, tokens, given[chosen], states, outcomes)
