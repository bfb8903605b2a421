"""Run a live map and keep every state: from a rule to a recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dynloop.maps.arguments import check_loop_map, check_rows, check_tensor
from dynloop.maps.loop_map import LoopMap
from dynloop.settings import check_whole
from dynloop.trajectories import Trajectories

PARTS = ("state", "token")


def trajectory(loop_map: LoopMap, start: torch.Tensor, n_steps: int, *, contexts: Any = None, per: str = "state",
               batch_size: int | None = None) -> Trajectories:
    """The orbits of a map, h[0] = start and h[t+1] = F(h[t]), as a recording for the analyzers.

    Args:
        loop_map: the map.
        start: (n, *state_shape), one row an orbit.
        n_steps: applications of the map.
        contexts: of the rows, as in a call of the map.
        per: "state": an orbit is that of the whole state, flattened. "token": each token of a state (tokens, features)
            is an orbit of its own; tokens vary fastest.
        batch_size: rows that run together; by default all.

    Returns:
        n orbits (n * tokens of them) of n_steps + 1 states, the start being the first, in the dtype of the map, whose
        spacing is their `resolution`. Labels: `context`; `start`, counting the rows of one context from 0; `token`. An
        orbit that leaves the finite numbers is cut there, and its row is not run any further.

    Raises:
        ValueError: a start of another shape; tokens of states that have none.

    Misleads:
        A recording by `capture` begins after the first recurrence, this one before it. In float64 orbits converge
        below the floor at which the model's own arithmetic stalls.

    Example:
        >>> import torch
        >>> from dynloop.maps.loop_map import LoopMap
        >>> from dynloop.maps.trajectory import trajectory
        >>> f = LoopMap(lambda x, contexts: 0.5 * x, (2,))
        >>> orbits = trajectory(f, torch.ones(3, 2), 4)
        >>> orbits
        Trajectories(3 orbits of 5 steps in 2 dimensions, float64; labels: context, start)
        >>> orbits.states[0, :, 0].tolist()
        [1.0, 0.5, 0.25, 0.125, 0.0625]
    """
    return orbits_of(loop_map, start, n_steps, contexts=contexts, per=per, batch_size=batch_size)


def orbits_of(loop_map: LoopMap, start: torch.Tensor, n_steps: int, *, contexts: Any = None, per: str = "state",
              batch_size: int | None = None,
              change: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor] | None = None) -> Trajectories:
    """As `trajectory`; `change` (recurrence, states, their rows) -> states sees every state before it is kept."""
    check_whole("n_steps", n_steps, 1, "a whole number of at least 1 application")
    check_loop_map("loop_map", loop_map)
    check_tensor("start", start)
    state, which = loop_map._checked(start, contexts)
    n, shape = len(state), loop_map.state_shape
    check_rows("start", state)
    if per not in PARTS:
        raise ValueError(f"per must be one of {', '.join(PARTS)}; got {per!r}. Choose one.")
    if per == "token" and len(shape) != 2:
        raise ValueError(f"orbits of single tokens need states (tokens, features); {loop_map.name} has states {shape}. "
                         "Use per='state'.")
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1, "a whole number of at least 1 row, or None for all")
    kept = state.new_full((n, n_steps + 1, *shape), float("nan"))
    with loop_map.held():
        for rows in torch.arange(n).split(batch_size or n):
            h = state[rows]
            for t in range(n_steps + 1):
                h = h if t == 0 else loop_map(h, which[rows])
                h = h if change is None else change(t, h, rows)
                kept[rows, t] = h
                if not (sums := h.flatten(1).sum(1).isfinite()).all():  # a sum may overflow where no number does
                    finite = h.isfinite().flatten(1).all(1) if per == "state" else h.isfinite().all(-1).any(-1)
                    goes_on = (sums | finite).cpu()
                    h, rows = h[goes_on.to(h.device)], rows[goes_on]
                    if not len(rows):
                        break
    context = which.numpy()
    number = np.zeros(n, dtype=np.int64)
    for c in np.unique(context):
        number[context == c] = np.arange((context == c).sum())
    labels = {"context": context, "start": number}
    if per == "state":
        return Trajectories(kept.flatten(2), labels=labels)
    tokens = shape[0]
    labels = {name: values.repeat(tokens) for name, values in labels.items()} | {"token": np.tile(np.arange(tokens), n)}
    return Trajectories(kept.transpose(1, 2).flatten(0, 1), labels=labels)
