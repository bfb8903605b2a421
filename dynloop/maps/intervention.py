"""Interfere with a running loop: put another state in place and go on, or push a state and watch it come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dynloop.analyzers.contraction_rate import contraction_rate
from dynloop.maps.arguments import check_loop_map, check_rows, check_tensor
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.trajectory import orbits_of, trajectory
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories


def intervene(loop_map: LoopMap, start: torch.Tensor, n_steps: int, *, at: int, state: torch.Tensor | Trajectories,
              state_at: int | None = None, tokens: Sequence[int] | None = None, n_held: int = 1, contexts: Any = None,
              per: str = "state") -> Trajectories:
    """The orbits of a map in which a state, or some of its tokens, is replaced at one recurrence, and the loop goes on.

        h[t+1] = F(h[t]),   then   h[t][tokens] <- state[tokens]   for t = at, ..., at + n_held - 1

    Args:
        loop_map: the map.
        start: (n, *state_shape), one row an orbit.
        n_steps: applications of the map.
        at: recurrence whose state is replaced; 0 is the start.
        state: what takes its place: states (n, *state_shape), or (1, *state_shape) for all rows; or another run, as
            `trajectory` and this function return it with per="state", row by row.
        state_at: recurrence of the other run that is taken; by default the same, `at`. With n_held > 1 the other run's
            recurrences follow one another.
        tokens: positions that are replaced, negative ones from the end; by default the whole state.
        n_held: recurrences at which the replacement is made; the loop runs free afterwards.
        contexts: of the rows, as in a call of the map.
        per: "state" or "token", as in `trajectory`.

    Returns:
        As `trajectory`; the state of a recurrence at which was replaced is the one after the replacement.

    Raises:
        ValueError: recurrences, tokens or shapes that do not fit; another run that left the finite numbers before the
            recurrence that is asked for.

    Misleads:
        A state of another prompt carries that prompt's positions and length, and lies off what this loop would ever
        reach; compare with a state of the same norm that carries nothing. With a causal map, tokens before the first
        one that is replaced cannot change.

    Source:
        Activation patching (Meng et al. 2022, arXiv 2202.05262; Zhang and Nanda 2023, arXiv 2309.16042), here along
        the loop.

    Example:
        >>> import torch
        >>> from dynloop.maps.intervention import intervene
        >>> from dynloop.maps.loop_map import LoopMap
        >>> f = LoopMap(lambda x, contexts: 0.5 * x, (1,))
        >>> intervene(f, torch.ones(1, 1), 4, at=2, state=torch.full((1, 1), 8.0)).states[0, :, 0].tolist()
        [1.0, 0.5, 8.0, 4.0, 2.0]
    """
    check_whole("n_steps", n_steps, 1, "a whole number of at least 1 application")
    check_whole("n_held", n_held, 1, "a whole number of at least 1 recurrence")
    check_whole("at", at, 0, f"a recurrence from 0 (the start) to {n_steps}")
    if at + n_held - 1 > n_steps:
        raise ValueError(f"recurrences {at} to {at + n_held - 1} are to be replaced, and the run ends with {n_steps}. "
                         "Give a larger n_steps, or an earlier one.")
    check_loop_map("loop_map", loop_map)
    check_tensor("start", start)
    check_rows("start", start)
    if not isinstance(state, Trajectories):
        check_tensor("state", state)
    chosen = _positions(loop_map, tokens)
    held = _replacements(loop_map, state, len(start), at if state_at is None else state_at, n_held,
                         timed=state_at is not None)

    def change(t: int, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        if not at <= t < at + n_held:
            return states
        new = held[t - at][rows.to(states.device)]
        if chosen is None:
            return new
        mixed = states.clone()
        mixed[:, chosen] = new[:, chosen]
        return mixed

    return orbits_of(loop_map, start, n_steps, contexts=contexts, per=per, change=change)


def recovery(loop_map: LoopMap, start: torch.Tensor, *, at: int, size: float = 1e-3, n_steps: int = 64,
             tokens: Sequence[int] | None = None, contexts: Any = None, rng: Any = 0,
             confidence_level: float = 0.95) -> Measurement:
    """Does a pushed state come back, and how fast: the distance to the undisturbed run after a push at one recurrence.

        h'[at] = h[at] + push,   |push| = size |h[at]|,   e[t] = |h'[at + t] - h[at + t]|,   rate: e[t] ~ rate^t

    Args:
        loop_map: the map.
        start: (n, *state_shape).
        at: recurrence at which the state is pushed, in a direction drawn evenly; 0 is the start.
        size: length of the push over the norm of what is pushed.
        n_steps: recurrences that are watched after the push.
        tokens: positions that are pushed, negative ones from the end; by default the whole state. The distance is that
            of the whole state in any case.
        contexts: of the rows, as in a call of the map.
        rng: seed or generator of the directions.
        confidence_level: of the rate's interval.

    Returns:
        One row a row of the start. `rate` per recurrence with `rate_low`, `rate_high`, and its outcome: those of
        `contraction_rate` for the pair of runs, before rounding takes over; `NOT_FOUND` where the two do not come
        closer. Whatever the outcome, as long as there are
        finite states: `distance` (n, n_steps + 1), e[t] / e[0]; `largest`, the largest of them (above 1: the map
        amplified the push before it forgot it, or did not forget it); `last`, the last one.

    Misleads:
        Where the orbit has not settled at `at`, the rate is that along the way. A push that is not small meets more
        than the linear map; one that is too small meets rounding: in single precision take 1e-3 or more. `last` well
        above 0 with a rate found: the push led to another limit that is as stable, or n_steps is too small.

    Source:
        Two-orbit contraction with a chosen offset; the rate's estimator is that of `contraction_rate`.

    Example:
        >>> import torch
        >>> from dynloop.maps.intervention import recovery
        >>> from dynloop.maps.loop_map import LoopMap
        >>> f = LoopMap(lambda x, contexts: torch.stack((0.8 * x[:, 0] + 1, 0.5 * x[:, 1]), -1), (2,))
        >>> m = recovery(f, torch.zeros(1, 2), at=100)
        >>> round(float(m.values[0]), 6)
        0.8
    """
    check_whole("at", at, 0, "a recurrence, 0 being the start")
    check_whole("n_steps", n_steps, 1, "a whole number of at least 1 recurrence (the default is 64)")
    check_number("size", size, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-3)")
    check_loop_map("loop_map", loop_map)
    check_tensor("start", start)
    chosen = _positions(loop_map, tokens)
    state, which = loop_map._checked(start, contexts)
    with loop_map.held():
        for _ in range(at):
            state = loop_map(state, which)
    numbers = np.random.default_rng(rng).normal(size=state.shape)
    where = torch.ones(loop_map.state_shape, dtype=torch.float64, device=state.device)
    if chosen is not None:
        where.zero_()[chosen] = 1
    push, whole = where * torch.as_tensor(numbers).to(where), state.double()
    length = size * (where * whole).flatten(1).norm(dim=1) / push.flatten(1).norm(dim=1)
    if (nothing := (length == 0).cpu()).any():
        raise ValueError(f"row {int(nothing.int().argmax())} of the state that is to be pushed is 0, and so is a push "
                         "relative to it. Start elsewhere, or push later.")
    push = push * length.reshape(-1, *[1] * len(loop_map.state_shape))
    n = len(state)
    pushed = (whole + push).to(state.dtype)
    if (lost := ((pushed == state) & state.isfinite()).flatten(1).all(1).cpu()).any():
        raise ValueError(f"a push of size={size!r} is lost in the rounding of {state.dtype} in row "
                         f"{int(lost.int().argmax())}. Push harder, or use a map in float64.")
    runs = trajectory(loop_map, torch.cat((state, pushed)), n_steps, contexts=torch.cat((which, which)))
    pair = runs.replace(labels={"row": np.tile(np.arange(n), 2), "start": np.repeat([0, 1], n)})
    with np.errstate(over="ignore", invalid="ignore"):  # runs on their way out of the finite numbers
        fit = contraction_rate(pair, confidence_level=confidence_level)
    outcomes = fit.outcomes[n:].copy()
    outcomes[fit.found[n:] & (fit["starts"][n:] < 2)] = Outcome.NOT_FOUND  # its own limit, not the undisturbed run
    rates = {name: np.where(outcomes == Outcome.FOUND, fit[name][n:], np.nan)
             for name in ("rate", "rate_low", "rate_high")}
    distance, last = np.full((n, n_steps + 1), np.nan), np.full(n, np.nan)
    for i in range(n):
        if both := min(runs.lengths[i], runs.lengths[n + i]):
            apart = (runs.states[i, :both].double() - runs.states[n + i, :both].double()).norm(dim=-1).cpu().numpy()
            distance[i, :both] = apart / apart[0]
            last[i] = distance[i, both - 1]
    return Measurement(
        "recovery", {**rates, "distance": distance, "largest": np.fmax.reduce(distance, axis=1), "last": last},
        outcomes, units=dict.fromkeys(rates, "per recurrence"),
        settings={"at": at, "size": size, "n_steps": n_steps, "tokens": None if tokens is None else tuple(tokens),
                  "confidence_level": confidence_level},
        labels={name: runs.labels[name][:n] for name in ("context", "start")})


def _positions(loop_map: LoopMap, tokens: Sequence[int] | None) -> list[int] | None:
    if tokens is None:
        return None
    shape = loop_map.state_shape
    if len(shape) != 2:
        raise ValueError(f"tokens belong to states (tokens, features); {loop_map.name} has states {shape}. "
                         "Leave them out.")
    chosen = [int(t) for t in tokens]
    if not chosen or any(not -shape[0] <= t < shape[0] for t in chosen):
        raise ValueError(f"tokens must be at least one position from {-shape[0]} to {shape[0] - 1}; got "
                         f"{list(tokens)!r}.")
    return chosen


def _replacements(loop_map: LoopMap, state: torch.Tensor | Trajectories, n: int, first: int, n_held: int, *,
                  timed: bool) -> list[torch.Tensor]:
    """What is put in place, one (n, *state_shape) for each recurrence."""
    shape = loop_map.state_shape
    if isinstance(state, Trajectories):
        check_whole("state_at", first, 0, "a recurrence of the other run, 0 being its start")
        if (state.n_orbits, state.dim) != (n, loop_map.dim) or first + n_held > state.n_steps:
            raise ValueError(f"the other run must have {n} orbits in {loop_map.dim} dimensions (per='state') and "
                             f"recurrence {first + n_held - 1}; got {state!r}, with recurrences 0 to "
                             f"{state.n_steps - 1}.")
        if (state.lengths < first + n_held).any():
            raise ValueError(f"the other run left the finite numbers after {int(state.lengths.min())} states; "
                             f"recurrence {first + n_held - 1} is asked for. Take an earlier one.")
        return [state.states[:, first + j].reshape(n, *shape).to(loop_map.device, loop_map.dtype)
                for j in range(n_held)]
    if timed:
        raise ValueError("state_at belongs to another run; got states without recurrences. Leave it out.")
    if tuple(state.shape[1:]) != shape or state.ndim != 1 + len(shape) or len(state) not in (1, n):
        raise ValueError(f"state must be ({n}, {', '.join(map(str, shape))}), or 1 row for all; got "
                         f"{tuple(state.shape)}.")
    return [state.to(loop_map.device, loop_map.dtype).expand(n, *shape)] * n_held
