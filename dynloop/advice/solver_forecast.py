"""From a recording alone: what would an accelerated solver need?"""

from __future__ import annotations

import numpy as np
import torch

from dynloop.analyzers import contraction_rate
from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

_ROUNDING = 0.3  # of a spacing, relative to the norm: by so much a recorded state is off
_SAFE = 4.0  # times that, over all steps: what is shorter is no direction
_AT_FLOOR = 8.0  # spacings: a step that stays below is one of rounding


@analyzer
def solver_forecast(trajectories: Trajectories, *, tolerance: float = 1e-3, max_vectors: int = 32) -> Measurement:
    r"""Forecast of the evaluations that Anderson acceleration and Newton's method would need for these orbits.

    Where the map is linear, the steps r[t] = x[t+1] - x[t] span the Krylov space in which both solvers work, and the
    best residual that k + 1 of them allow is known without running anything:

        residual(k) = min || sum_j c[j] r[j] ||  over c[0] + ... + c[k] = 1,   k = 0, 1, 2, ...

    which is that of reduced rank extrapolation, of GMRES, and of Anderson acceleration that forgets nothing. The
    rounding of the recorded steps, || c || times .3 spacings of the state, is added in quadrature. A solver has arrived
    when the residual is at most `tolerance` times the norm of the last state.

    Args:
        trajectories: orbits, recorded from early recurrences on, all of which are in it.
        tolerance: relative residual.
        max_vectors: steps that may be combined.

    Returns:
        All of them are forecasts, in evaluations of the block, the one that shows the residual included: `anderson`,
        k + 2 (1 where the first step is small enough); `newton`, 2 k + 2: one Newton step whose GMRES needs k products
        of two evaluations each, the least that is possible (`find_fixed_points` solves several steps less well, and
        needs up to twice as many); `iteration`, of the loop as it runs: counted where the recording arrives, else
        predicted from `contraction_rate` where that is found, else NaN; `iteration_counted`, 1 or 0; `saved_share`,
        1 - anderson / iteration. `NOT_CONVERGED`: no combination of the recorded steps is small enough.
        `AT_PRECISION_FLOOR`: one is, but not beyond the rounding that it magnifies; or the orbit came down to the floor
        of its number format without one. `TOO_SHORT`: fewer than 4 states.
        `NOT_FINITE`.

    Raises:
        ValueError: settings.

    Misleads:
        A forecast from a linear theory: far from the limit the block is not linear, and solvers need more. Solvers that
        keep few vectors need more, too. They also find points that the loop does not go to, the centre of a cycle or of
        a rotation: `iteration` is NaN there. One token's orbit follows the others' as well, so that its steps are not
        those of a map of its own: the forecast for whole sequences is that of their states in one vector. With a live
        model, measure (`solver_cost`).

    Source:
        Sidi 2017, Vector Extrapolation Methods with Applications, ch. 2; Walker and Ni, SIAM J. Numer. Anal. 49 (2011)
        1715 (Anderson acceleration and GMRES).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.advice import solver_forecast
        >>> t, (a, b) = np.arange(64)[:, None], np.random.default_rng(0).normal(size=(2, 16))
        >>> m = solver_forecast(Trajectories((1 + 0.9**t * a + 0.5**t * b)[None]))  # two modes
        >>> m["anderson"], m["newton"], m["iteration"] > 30
        (array([4.]), array([6.]), array([ True]))
    """
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-3)")
    check_whole("max_vectors", max_vectors, 2, "a whole number of at least 2 (the default is 32)")
    n, lengths, diverged = trajectories.n_orbits, trajectories.lengths, trajectories.diverged
    found = distances(trajectories)
    steps = found.successive()
    end = found.norms[np.arange(n), np.maximum(lengths - 1, 0)]
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    rates = contraction_rate(trajectories)
    variables = {name: np.full(n, np.nan) for name in ("anderson", "newton", "iteration", "iteration_counted",
                                                      "saved_share")}
    outcomes = []
    for o, m in enumerate(lengths):
        if diverged[o] or m < 4:
            outcomes.append(Outcome.NOT_FINITE if diverged[o] else Outcome.TOO_SHORT)
            continue
        wanted = tolerance * end[o]
        k, blurred = _vectors_needed(trajectories.states[o, :min(int(m), max_vectors + 1)], wanted,
                                     _ROUNDING * spacing * end[o] * np.sqrt(2))
        frozen = np.median(steps[o, m - 1 - max(1, m // 4):m - 1]) <= _AT_FLOOR * spacing * end[o]
        outcomes.append(Outcome.FOUND if k is not None else
                        Outcome.AT_PRECISION_FLOOR if blurred or frozen else Outcome.NOT_CONVERGED)
        if k is not None:
            variables["anderson"][o], variables["newton"][o] = (k + 2, 2 * k + 2) if k else (1, 1)
        small = np.flatnonzero(steps[o, :m - 1] <= wanted)
        if len(small):
            variables["iteration"][o], variables["iteration_counted"][o] = small[0] + 1, 1
        elif rates.found[o] and rates.values[o] < 1:
            last = min(int(m) - 2, max(int(rates["regime_length"][o]) - 1, 0))  # the last step before the floor
            more = np.log(wanted / steps[o, last]) / np.log(rates.values[o])
            variables["iteration"][o], variables["iteration_counted"][o] = last + 1 + np.ceil(more), 0
    variables["saved_share"] = 1 - variables["anderson"] / variables["iteration"]
    return Measurement("solver_forecast", variables, outcomes,
                       units=dict.fromkeys(("anderson", "newton", "iteration"), "evaluations"),
                       settings={"tolerance": tolerance, "max_vectors": max_vectors, "basis": "forecast"},
                       labels=trajectories.labels)


def _vectors_needed(states: torch.Tensor, wanted: float, noise: float) -> tuple[int | None, bool]:
    """The least k whose combination is small enough, None if there is none; whether one is but for its rounding."""
    steps: np.ndarray = states.double().diff(dim=0).mT.cpu().numpy()  # (dim, steps)
    steps = np.linalg.qr(steps).R  # lengths and angles, in as many numbers as there are steps
    blurred = False
    for k in range(steps.shape[1]):
        differences = np.diff(steps[:, :k + 1], axis=1)
        left, sizes, right = np.linalg.svd(differences, full_matrices=False)
        kept = sizes > _SAFE * noise * np.sqrt(k)
        weights = right[kept].T @ (left[:, kept].T @ -steps[:, 0] / sizes[kept])
        residual = float(np.linalg.norm(steps[:, 0] + differences @ weights))
        combination = -np.diff(np.concatenate([[1.0], weights, [0.0]]))
        if residual <= wanted:
            if np.hypot(residual, noise * np.linalg.norm(combination)) <= wanted:
                return k, False
            blurred = True
    return None, blurred
