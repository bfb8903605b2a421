"""Do orbits of one prompt from several starts come together, and on how many limits?"""

from __future__ import annotations

import numpy as np
import torch

from dynloop.maps.basin_fractions import _APART, _PERIODS, _ROUNDING, _merged, _settled, _shortest
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.store import Store
from dynloop.trajectories import Trajectories

UNITS = {"n_limits": "limits", "least_limits": "limits", "spread": "state units", "final_spread": "state units",
         "n_starts": "starts"}
_OF_STARTS = ("start", "seed")
_CHUNK_BYTES = 128 * 2**20


def start_spread(source: Trajectories | Store, *, max_period: int = 16, tolerance: float | None = None) -> Measurement:
    r"""Width beside depth: how far orbits of one context, from different starts, are apart at every recurrence.

        spread[r] = sqrt(sum_s |h_s[r] - m[r]|^2 / (S - 1)),   m the mean of the S orbits
        relative_spread[r] = spread[r] / sqrt(mean_s |h_s[r]|^2),   remaining_spread[r] = spread[r] / spread[first]

    and on how many limits they end. The spread is the root mean square distance of two orbits / sqrt 2, whatever S is.
    Limits are those of `basin_fractions`: fixed points and cycles on which an orbit
    has settled, one and the same where they are within 10 radii.

    Args:
        source: orbits with the label `start` (`capture(..., n_starts=8)`, `trajectory`, `noisy_trajectory`,
            `prompt_states`): those that agree in all other labels but `seed` belong together.
        max_period: longest period of a limit.
        tolerance: radius within which an orbit has settled, relative to the size of the states; by default the square
            root of the spacing of the number format in which the model computed.

    Returns:
        A row a group, with its labels. `n_limits`, distinct limits; `largest_share`, of the starts, in the largest;
        these two only if every start has settled. Whatever the outcome, as long as there are finite numbers:
        `spread`, `relative_spread`, `remaining_spread`, one value a recorded state (the last is NaN where the orbits
        begin at one point); `final_spread`, `final_relative_spread`, of the last state; `settled_share` of the starts;
        `least_limits`, distinct limits of those; `n_starts`.
        `NOT_CONVERGED`: some start has not settled, so that limits cannot be counted. `TOO_SHORT`: fewer states than it
        takes to see a period, 3 max_period + 1 and at least 9. `NOT_FINITE`: some orbit left the finite numbers; the
        curves are given up to there.

    Raises:
        ValueError: no label `start`; a group with one start alone.

    Misleads:
        One limit of S starts does not say that there is no other: a basin with share p is missed with (1 - p)^S.
        Tokens of one prompt share their starts: resample prompts. `remaining_spread` counts from the first recorded
        state, which in a capture comes after the first recurrence. Spread at rest near the spacing of the number
        format times the size of the states is rounding. In bfloat16 the default radii are wide: limits less than .9 of
        the size of the states apart count as one.

    Source:
        Own; limits as in `basin_fractions` (Menck et al. 2013).

    Example:
        >>> import torch
        >>> from dynloop.maps import LoopMap, trajectory
        >>> from dynloop.maps.start_spread import start_spread
        >>> two_wells = LoopMap(lambda x, contexts: torch.tanh(2 * x), (1,))
        >>> m = start_spread(trajectory(two_wells, torch.tensor([[-1.0], [0.1], [0.5], [2.0]]), 100))
        >>> m["n_limits"].tolist(), m["largest_share"].tolist()
        ([2.0], [0.75])
    """
    if not isinstance(source, Trajectories | Store):
        raise ValueError(f"orbits from several starts are needed, as Trajectories or a store; got "
                         f"{type(source).__name__}. Use capture(..., n_starts=8), or trajectory.")
    check_limits(max_period, tolerance)
    if isinstance(source, Trajectories):
        return _of_orbits(source, max_period, tolerance)
    if "prompt" not in source.labels:
        return _of_orbits(source.trajectories(), max_period, tolerance)
    prompts = np.unique(np.asarray(source.labels["prompt"])).tolist()
    return Measurement.concatenate([_of_orbits(source.trajectories(prompt=prompt), max_period, tolerance)
                                    for prompt in prompts])


def _of_orbits(orbits: Trajectories, max_period: int, tolerance: float | None) -> Measurement:
    if "start" not in orbits.labels:
        raise ValueError(f"orbits need the label 'start'; they have {', '.join(orbits.labels) or 'none'}. Use "
                         "capture(..., n_starts=8), or label them.")
    names = [name for name in orbits.labels if name not in _OF_STARTS]
    codes = [np.unique(orbits.labels[name], return_inverse=True)[1] for name in names]
    together = np.unique(np.stack([*codes, np.zeros(orbits.n_orbits, dtype=int)], axis=1), axis=0,
                         return_inverse=True)[1].ravel()
    groups = [np.flatnonzero(together == g) for g in range(together.max() + 1)]
    groups.sort(key=lambda members: members[0])  # as they come
    if alone := [members for members in groups if len(members) < 2]:
        where = ", ".join(f"{name}={orbits.labels[name][alone[0][0]]}" for name in names)
        raise ValueError(f"{len(alone)} of {len(groups)} groups have one start alone ({where or 'the only one'}): "
                         "there is no spread. Record with n_starts of at least 2.")
    n_steps, window = orbits.states.shape[1], states_needed(max_period)
    relative = orbits.resolution**0.5 if tolerance is None else tolerance
    rows = []
    for members in groups:
        length = int(orbits.lengths[members].min())
        states = orbits.states[members]
        spread, size = np.full((2, n_steps), np.nan)
        at_once = max(1, _CHUNK_BYTES // (8 * states[:, 0].numel()))
        for begin in range(0, length, at_once):
            piece = slice(begin, min(begin + at_once, length))
            spread[piece], size[piece] = spread_of(states[:, piece])
        finite = length > 0 and not orbits.diverged[members].any()
        late = states[:, max(0, length - window):length]
        rows.append(row_of(curves_of(spread, size), late, states[:, 0], window, max_period, relative, orbits.resolution,
                           finite))
    first_of = np.array([members[0] for members in groups])
    return measured("start_spread", rows, {name: orbits.labels[name][first_of] for name in names},
                    {"max_period": max_period, "tolerance": tolerance})


def spread_of(states: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Spread and root mean square length (n,) of states (starts, n, features) over the starts."""
    exact = torch.float64 if states.dtype == torch.float64 else torch.float32
    wide = states.to(exact)
    apart = (wide - wide[:1]).double()  # from the first of them: what is equal has no spread, not that of rounding
    apart -= apart.mean(0)
    spread = (apart.square().sum((0, -1)) / (len(states) - 1)).sqrt()
    return spread.cpu().numpy(), wide.double().square().sum(-1).mean(0).sqrt().cpu().numpy()


def curves_of(spread: np.ndarray, size: np.ndarray) -> dict[str, np.ndarray]:
    """The curves of one group, of spread and size (n_steps,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(spread == 0, 0.0, spread / size)
        remaining = spread / spread[0] if spread[0] > 0 else np.full(len(spread), np.nan)
    return {"spread": spread, "relative_spread": relative, "remaining_spread": remaining}


def check_limits(max_period: int, tolerance: float | None) -> None:
    """Refuse settings of the limits that cannot be."""
    check_whole("max_period", max_period, 1, "a whole number of at least 1 (the default is 16)")
    if tolerance is not None:
        check_number("tolerance", tolerance, lambda v: 0 < v < 1, "between 0 and 1, or None for the square root of the "
                                                                  "spacing")


def states_needed(max_period: int) -> int:
    """As many states as it takes to see that an orbit has settled with a period up to this."""
    return max(_PERIODS * int(max_period), 8) + 1


def row_of(curves: dict[str, np.ndarray], late: torch.Tensor, first: torch.Tensor, window: int, max_period: int,
           tolerance: float, resolution: float, finite: bool) -> tuple[dict[str, np.ndarray | float], Outcome]:
    """The numbers of one group: late states (starts, at most `window`, features), the first ones (starts, features)."""
    n = len(late)
    spread, relative = curves["spread"], curves["relative_spread"]
    seen = np.isfinite(spread)
    last = int(np.flatnonzero(seen)[-1]) if seen.any() else -1
    found: dict[str, np.ndarray | float] = {
        "n_limits": np.nan, "largest_share": np.nan, **curves,
        "final_spread": spread[last] if finite and last >= 0 else np.nan,
        "final_relative_spread": relative[last] if finite and last >= 0 else np.nan,
        "settled_share": np.nan, "least_limits": np.nan, "n_starts": float(n)}
    if not finite:
        return found, Outcome.NOT_FINITE
    if late.shape[1] < window:
        return found, Outcome.TOO_SHORT
    exact = torch.float64 if late.dtype == torch.float64 else torch.float32
    late, first = late.to(exact), first.to(exact)
    size = max(float(late[:, -1].norm(dim=1).median()), float((late[:, -1] - first).norm(dim=1).median()))
    period, _ = _settled(late, int(max_period), tolerance * size, _ROUNDING * resolution * size)
    limits = _merged(late, np.arange(n), _shortest(late, period, tolerance * size), _APART * tolerance * size)
    found["settled_share"], found["least_limits"] = float((period > 0).mean()), float(len(limits))
    if not (period > 0).all():
        return found, Outcome.NOT_CONVERGED
    found["n_limits"] = float(len(limits))
    found["largest_share"] = max(len(members) for _, members in limits) / n
    return found, Outcome.FOUND


def measured(name: str, rows: list[tuple[dict[str, np.ndarray | float], Outcome]], labels: dict[str, np.ndarray],
             settings: dict[str, object]) -> Measurement:
    """The rows as a measurement."""
    variables = {key: np.stack([np.asarray(row[key]) for row, _ in rows]) for key in rows[0][0]}
    return Measurement(name, variables, [outcome for _, outcome in rows], units=UNITS, settings=settings, labels=labels)
