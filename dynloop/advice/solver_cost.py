"""How many evaluations of the block does an accelerated solver need, where the loop itself needs so many?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dynloop.maps import LoopMap, find_fixed_points
from dynloop.maps.fixed_point import METHODS
from dynloop.measurement import Measurement

_SAME = 1e-3  # of the norm: solvers that end so close together have found one point


def solver_cost(map: LoopMap, starts: torch.Tensor, *, methods: Sequence[str] = ("anderson", "newton_krylov"),
                tolerance: float | None = None, max_evaluations: int = 1000, contexts: Any = None) -> Measurement:
    """Evaluations of the block until a fixed point is found, measured: plain iteration beside accelerated solvers.

    Args:
        map: the rule (`LoopMap.of(model, tokens)`).
        starts: (n_starts, *state_shape), such as `map.initial_states()`.
        methods: accelerated ones, as in `find_fixed_points`.
        tolerance: largest residual ||F(x) - x||, as in `find_fixed_points`.
        max_evaluations: for each start and method.
        contexts: as the map takes them.

    Returns:
        A row a start, labelled `start` and `context`: `iteration` evaluations; of every method its evaluations, NaN
        where it found nothing; `METHOD_same`, 1 where it found the point to which the loop itself goes, else 0, NaN
        where one of the two found nothing; `saved_share`, 1 - (fewest evaluations of a method that found the same
        point) / iteration, NaN where there is none. The outcome is that of plain iteration in `find_fixed_points`:
        where it is not `FOUND` the loop does not settle within `max_evaluations`, and there is nothing to accelerate.

    Raises:
        ValueError: settings; no `LoopMap`.

    Misleads:
        A Jacobian-vector product counts as two evaluations, but in practice may take more time. The evaluations are
        those of whole sequences. One of the starts that lead to a point pays for certifying it, with 5 to 40
        evaluations by any method: give several starts a context and look at the median. In float64 the tolerance is
        tighter than any use of the model needs: give the one that matters (`exit_rule` tells what it costs).

    Source:
        As `find_fixed_points`.

    Example:
        >>> import torch
        >>> from dynloop.advice import solver_cost
        >>> from dynloop.maps import LoopMap
        >>> f = LoopMap(lambda x, contexts: 0.9 * x + 1, (2,))
        >>> m = solver_cost(f, torch.zeros(1, 2, dtype=torch.float64))
        >>> m["iteration"] > 20 * m["anderson"], m["anderson_same"]
        (array([ True]), array([1.]))
    """
    wanted = [methods] if isinstance(methods, str) else list(methods)
    if not wanted or not set(wanted) <= set(METHODS) - {"iteration"}:
        raise ValueError(f"methods must be some of {', '.join(sorted(set(METHODS) - {'iteration'}))}; got {methods!r}.")
    settings = {"tolerance": tolerance, "max_evaluations": max_evaluations, "contexts": contexts}
    plain = find_fixed_points(map, starts, method="iteration", **settings)
    settled = plain.measurement.found
    variables: dict[str, np.ndarray] = {"iteration": np.where(settled, plain.measurement["evaluations"], np.nan)}
    best = np.full(len(settled), np.nan)
    ends = plain.states.flatten(1).double()
    for name in wanted:
        found = find_fixed_points(map, starts, method=name, **settings)
        arrived = found.measurement.found
        variables[name] = np.where(arrived, found.measurement["evaluations"], np.nan)
        apart = (found.states.flatten(1).double() - ends).norm(dim=1)
        same = (apart <= _SAME * ends.norm(dim=1).clamp(min=_SAME)).cpu().numpy()
        variables[f"{name}_same"] = np.where(arrived & settled, same.astype(float), np.nan)
        best = np.fmin(best, np.where(arrived & settled & same, variables[name], np.nan))
    variables["saved_share"] = 1 - best / variables["iteration"]
    return dataclasses.replace(plain.measurement, name="solver_cost", variables=variables,
                               units=dict.fromkeys(("iteration", *wanted), "evaluations"),
                               settings={**plain.measurement.settings, "methods": tuple(wanted)})
