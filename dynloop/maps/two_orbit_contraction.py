"""How fast do orbits of one context, from different starts, come together?"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.maps.arguments import check_loop_map, check_repeats, check_rows
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

ESTIMATORS = ("slowest mode", "late line")
_FORMAT_FLOOR = 0.3  # as in `contraction_rate`
_BENT = 0.05  # from step to step the slope varies by this share: there is no line

if TYPE_CHECKING:
    import torch

    from dynloop.maps.loop_map import LoopMap


def two_orbit_contraction(loop: LoopMap, starts: Any, *, n_steps: int = 128, contexts: Any = None,
                          perturbation: float | None = None, n_starts: int = 2, each_token: bool = False,
                          floor_factor: float = 3.0, min_points: int = 5, confidence_level: float = 0.95,
                          rng: Any = 0) -> Measurement:
    r"""Rate at which orbits of the same context, from different starts, approach each other before the floor.

        e[t] = ||x[t] - x'[t]||  ~  rate^t,   x' the mean of the other orbits of the context

    No limit has to be known, and what the orbits have in common (a drift, a cycle in step) drops out: of all recordings
    these tell the rate best. The rate, its interval and the floor are those of `contraction_rate` for the differences:
    of their slowest mode. But where the distance itself falls more slowly in the late half of the regime, beyond doubt
    (the multipliers are too many to be told apart), the line through ln e[t] there gives rate and interval.

    Args:
        loop: the map.
        starts: states (m, n, *state_shape): m starts, at least two, in each of n contexts. With `perturbation`, states
            (n, *state_shape) about which the starts are drawn.
        n_steps: steps of each orbit; n_steps + 1 states are compared.
        contexts: (n,) contexts of the columns, as `LoopMap` takes them.
        perturbation: for loops without injection, whose limit remembers the start: the distance between start and
            perturbed start, over the norm of the start (of each token with `each_token`). One of the `n_starts` orbits
            is unperturbed.
        n_starts: how many orbits a context, with `perturbation`.
        each_token: compare the orbits token by token (the first axis of a state): a row a token.
        floor_factor, min_points, confidence_level: as in `contraction_rate`.
        rng: seed or generator of the perturbation.

    Returns:
        The measurement of `contraction_rate`, a row an orbit, labelled with `context`, `column` (of `starts`), `start`
        and, with `each_token`, `token`: starts of one column change places the fastest, tokens in between. With two
        starts both rows say the same. Added are `initial_distance`, from the mean of the partners, in state units, and
        `estimator`, "slowest mode" or "late line".
        `NOT_FOUND`: the orbits do not come together (several attractors, chaos, no contraction). The other outcomes
        are those of `contraction_rate`.

    Misleads:
        The rows of one column are not independent: resample contexts. Starts must lie in one basin. Far from the limit
        the rate is that of the way, not the spectral radius of the Jacobian at the limit: the fit finds the slowest
        mode, and the start has to excite it. In a narrow number format two orbits may meet exactly, which counts as
        the floor. A small `perturbation` leaves few steps before the floor: choose 1000 spacings or more.

    Source:
        Own; the two-orbit distance is in third parties' audits of Huginn (.84 to .90 a recurrence, from 32 starts).

    Example:
        >>> import torch
        >>> from dynloop.maps import LoopMap
        >>> from dynloop.maps.two_orbit_contraction import two_orbit_contraction
        >>> f = LoopMap(lambda x, contexts: 0.8 * x + 1, (16,))
        >>> rate = two_orbit_contraction(f, torch.eye(2, 16)[:, None])
        >>> rate.values.round(3)
        array([0.8, 0.8])
    """
    import torch

    from dynloop.analyzers.contraction_rate import contraction_rate
    from dynloop.trajectories import Trajectories

    check_loop_map("loop", loop)
    check_whole("n_steps", n_steps, 1, "a whole number of at least 1 (the default is 128)")
    states = torch.as_tensor(starts, device=loop.device).detach()
    rank = len(loop.state_shape)
    if each_token and rank < 2:
        raise ValueError(f"each_token needs states (tokens, features); those of {loop.name} are {loop.state_shape}.")
    if perturbation is None:
        if states.ndim != rank + 2 or tuple(states.shape[2:]) != loop.state_shape or len(states) < 2:
            raise ValueError(f"starts must have shape (m, n, {', '.join(map(str, loop.state_shape))}) with m of at "
                             f"least 2; got {tuple(states.shape)}. One start a context? Give a perturbation.")
    else:
        check_number("perturbation", perturbation, lambda v: 0 < v < np.inf, "a positive number, the distance over the "
                                                                            "norm of the start")
        check_whole("n_starts", n_starts, 2, "a whole number of at least 2 (the default)")
        if states.ndim != rank + 1 or tuple(states.shape[1:]) != loop.state_shape:
            raise ValueError(f"with a perturbation, starts must have shape (n, {', '.join(map(str, loop.state_shape))})"
                             f"; got {tuple(states.shape)}. Several starts a context? Leave perturbation out.")
        states = _perturbed(states, perturbation, n_starts, each_token, np.random.default_rng(rng))
    m, n = states.shape[:2]
    contexts = torch.arange(n) % loop.n_contexts if contexts is None else torch.as_tensor(contexts)
    if tuple(contexts.shape) != (n,):
        raise ValueError(f"contexts must hold one number for each of {n} columns; got {tuple(contexts.shape)}.")
    now, place = states.flatten(0, 1), contexts.repeat(m)
    orbits = [now.to(loop.device, loop.dtype)]
    check_rows("starts", orbits[0])
    check_repeats(loop, orbits[0], place)
    for _ in range(n_steps):
        orbits.append(loop(orbits[-1], place))
    recorded = torch.stack(orbits, dim=1)  # (m n, n_steps + 1, *state_shape)
    labels = {"context": place.cpu().numpy(), "column": np.tile(np.arange(n), m), "start": np.arange(m).repeat(n)}
    if each_token:
        tokens = recorded.shape[2]
        recorded = recorded.movedim(2, 1).flatten(0, 1)
        labels = {name: values.repeat(tokens) for name, values in labels.items()}
        labels["token"] = np.tile(np.arange(tokens), m * n)
    recorded = recorded.flatten(2)
    orbits_of_one = Trajectories(recorded, labels=labels)
    with np.errstate(over="ignore", invalid="ignore"):  # of orbits on their way to infinity
        fitted = contraction_rate(orbits_of_one, floor_factor=floor_factor, min_points=min_points,
                                  confidence_level=confidence_level)
    alone = fitted.found & (fitted["starts"] < 2)  # judged by its own way to its own limit
    outcomes = [Outcome.NOT_FOUND if own else said for own, said in zip(alone, fitted.outcomes, strict=True)]
    variables = {name: np.where(alone, np.nan, values) for name, values in fitted.variables.items() if name != "starts"}
    away, grain = _distances(recorded, m, orbits_of_one.resolution)
    together = fitted.found & ~alone
    lines = _lines(away[together], grain[together], floor_factor, min_points, confidence_level)
    slower = np.zeros(len(alone), dtype=bool)
    slower[together] = lines[:, 1] > variables["rate_high"][together]
    for name, line in zip(("rate", "rate_low", "rate_high"), lines.T, strict=True):
        variables[name][slower] = line[slower[together]]
    return dataclasses.replace(
        fitted, name="two_orbit_contraction", outcomes=outcomes,
        variables={**variables, "initial_distance": away[:, 0], "estimator": np.where(
            together, np.where(slower, ESTIMATORS[1], ESTIMATORS[0]), "")},
        units={name: unit for name, unit in fitted.units.items() if name != "starts"}
        | {"initial_distance": "state units"}, categories={"estimator": ESTIMATORS},
        settings={**fitted.settings, "n_steps": n_steps, "perturbation": perturbation, "n_starts": m,
                  "each_token": each_token})


def _distances(recorded: torch.Tensor, m: int, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """Distances (m n, T) of each orbit from the mean of its partners, and by how much one spacing moves them."""
    import torch

    states = recorded.unflatten(0, (m, -1))
    exact = torch.float64 if states.dtype == torch.float64 else torch.float32
    total = states.sum(0, dtype=exact)
    away = torch.stack([((own.to(exact) * m - total) / (m - 1)).norm(dim=-1) for own in states]).flatten(0, 1)
    size = states[:, :, -1].to(exact).norm(dim=-1).flatten()
    return away.double().cpu().numpy(), (resolution * (1 + 1 / (m - 1)) ** 0.5 * size).double().cpu().numpy()


def _lines(away: np.ndarray, grain: np.ndarray, floor_factor: float, min_points: int,
           confidence_level: float) -> np.ndarray:
    """Rate, low and high (n, 3) by the lines through ln e[t] in the late half of the regime, or all of a short one."""
    from scipy.special import stdtrit

    from dynloop.kernels.contraction import contraction_regime, line, line_doubt

    found = np.full((len(away), 3), np.nan)
    if not len(away):
        return found
    lengths = np.full(len(away), away.shape[1])
    _, _, regime, _ = contraction_regime(away, lengths, _FORMAT_FLOOR * grain, floor_factor, min_points)
    for o, stop in enumerate(regime.tolist()):
        first = stop // 2 if stop - stop // 2 >= min_points else 0
        slope, _, points = line(away[o], first, stop)
        if points >= min_points:
            error, freedom = line_doubt(away[o], first, stop, slope)
            reach = stdtrit(freedom, 0.5 + 0.5 * confidence_level) * error
            seen = away[o, first:stop]
            local = np.diff(np.log(seen[seen > 0])).std()
            if local > _BENT * abs(slope):  # no line: modes that beat against each other, for longer than is seen
                reach = max(reach, 2 * local)
            found[o] = np.exp([slope, slope - reach, min(slope + reach, 0.0)])
    return found


def _perturbed(states: Any, perturbation: float, n_starts: int, each_token: bool, rng: np.random.Generator) -> Any:
    """The states, and n_starts - 1 copies of each at a relative distance from it: (n_starts, n, *state_shape)."""
    import torch

    noise = torch.from_numpy(rng.standard_normal((n_starts - 1, *states.shape))).to(states.device)
    axes = tuple(range(3 if each_token else 2, noise.ndim))
    size = torch.linalg.vector_norm(states.double(), dim=[axis - 1 for axis in axes], keepdim=True)
    if not (size > 0).all():
        raise ValueError("a relative perturbation of a start that is 0 is 0; give starts (m, n, ...) yourself.")
    noise *= perturbation * size / torch.linalg.vector_norm(noise, dim=axes, keepdim=True)
    return torch.cat([states[None].double(), states.double() + noise])
