"""How small differences grow or shrink once round a cycle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dynloop.maps.arguments import check_loop_map, check_tensor
from dynloop.maps.jacobian_spectrum import (
    JacobianChain,
    check_spectrum,
    default_tolerance,
    dense_eigenvalues,
    is_dense,
)
from dynloop.maps.krylov import chunks, leading_eigenvalues
from dynloop.maps.loop_map import LoopMap
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number


def cycle_multipliers(loop_map: LoopMap | Sequence[LoopMap], states: torch.Tensor,
                      contexts: torch.Tensor | None = None, *, n_multipliers: int | None = None,
                      cycle_tolerance: float | None = None, tolerance: float | None = None, dense_up_to: int = 256,
                      max_products: int = 2000, rng: int | np.random.Generator = 0,
                      labels: Mapping[str, Any] | None = None) -> Measurement:
    """Multipliers of cycles: the leading eigenvalues of the product of the Jacobians along each.

    With x_1 -> x_2 -> ... -> x_q -> x_1 and J_j = dF/dx at x_j they are the eigenvalues of J_q ... J_2 J_1, the same
    from whichever state the product starts. The cycle attracts where all are below 1 in modulus. A fixed point is a
    cycle of 1. The layers of one block are maps of their own, f_1 to f_k, and the states after each of them a cycle of
    the layers: all layers share the nonzero multipliers.

    Args:
        loop_map: the map; or the layers f_1 ... f_k of one block in their order, of which f_j (then f_1 again) takes
            states[j - 1] to states[j].
        states: (period, n, *state_shape), n cycles; the last state of each goes to the first.
        contexts: (n,) context of each cycle; by default cycle i is in context i modulo `n_contexts`.
        n_multipliers: how many, the largest in modulus; by default 4, or the dimension where that is less.
        cycle_tolerance: largest ||F(x_j) - x_{j+1}|| over the largest ||x_j|| that counts as a cycle; by default 1e-6
            in float64, 1e-4 in float32.
        tolerance, dense_up_to, max_products, rng: as in `jacobian_spectrum`.
        labels: of the cycles.

    Returns:
        A row a cycle: `multiplier`, the largest modulus; `multipliers_real` and `multipliers_imag` (n, n_multipliers);
        `rate`, the modulus a step; `prime_period`, the steps after which the states repeat already (multipliers are
        those of this shorter cycle); `residuals` (n, n_multipliers), ||J v - m v|| / |m|, 0 where the product is built;
        `cycle_residual`, what `cycle_tolerance` bounds (kept where not found); `n_products` of the whole cycle with a
        vector. `NOT_CONVERGED`: the states are no cycle, or a multiplier missed the tolerance. `NOT_FINITE`: a state, a
        next state or a product.

    Raises:
        ValueError: shapes or settings that do not fit.

    Misleads:
        A multiplier is off by about the distance to the cycle: bring states to rest first. Multipliers below 1e-16 of
        the product of the operator norms drown in rounding. Of a slow loop (a multiplier near 1) the states may
        approach a fixed point so slowly that they pass for a cycle. `prime_period` is decided at ten times
        `cycle_tolerance`: just after a doubling of the period, the two halves of the cycle count as one.

    Source:
        Kuznetsov 2004, Elements of Applied Bifurcation Theory, section 1.5; for layers, Blayney et al. 2026 (arXiv
        2604.11791), proposition 4.1.

    Example:
        >>> import torch
        >>> from dynloop.maps.cycle_multipliers import cycle_multipliers
        >>> from dynloop.maps.loop_map import LoopMap
        >>> logistic = LoopMap(lambda x, contexts: 3.2 * x * (1 - x), (1,))
        >>> x = torch.full((1, 1), 0.3, dtype=torch.float64)
        >>> for _ in range(200):
        ...     x = logistic(x)
        >>> m = cycle_multipliers(logistic, torch.stack([x, logistic(x)]))
        >>> print(m["multipliers_real"].round(6), m["prime_period"])  # 4 + 2 r - r^2
        [[0.16]] [2.]
    """
    maps: list[Any] = list(loop_map) if isinstance(loop_map, list | tuple) else [loop_map]
    for one in maps:
        check_loop_map("loop_map", one)
    check_tensor("states", states)
    if not maps or any(m.state_shape != maps[0].state_shape for m in maps):
        raise ValueError("loop_map must be a map, or the layers of one block with states of one shape; got shapes "
                         f"{', '.join(str(m.state_shape) for m in maps) or 'of no map'}.")
    if states.ndim != 2 + len(maps[0].state_shape) or len(states) % len(maps) or not len(states):
        raise ValueError(f"states must have shape (period, n, {', '.join(map(str, maps[0].state_shape))}) with a "
                         f"period that is a multiple of {len(maps)}; got {tuple(states.shape)}. One cycle? Pass "
                         "states[:, None].")
    n_multipliers = check_spectrum(maps[0].dim, n_multipliers, dense_up_to, max_products, "n_multipliers", 4)
    tolerance = default_tolerance(maps[0], tolerance)
    if cycle_tolerance is None:
        cycle_tolerance = 1e-6 if maps[0].dtype == torch.float64 else 1e-4
    check_number("cycle_tolerance", cycle_tolerance, lambda v: 0 < v < 1, "a number between 0 and 1, or None (1e-6)")
    seed = int(np.random.default_rng(rng).integers(2**31))
    cycle = JacobianChain(maps, states, contexts)
    n, dim = cycle.n, cycle.dim
    off = closing(cycle)
    period = _prime_period(cycle, 10 * cycle_tolerance, len(maps))
    values = np.full((n, n_multipliers), complex(np.nan, np.nan))
    residuals, spent = np.full((n, n_multipliers), np.nan), np.zeros(n)
    outcomes = np.full(n, Outcome.NOT_CONVERGED, dtype=object)
    outcomes[~np.isfinite(off)] = Outcome.NOT_FINITE
    dense = is_dense(dim, dense_up_to)
    with cycle.held():
        for q in np.unique(period[off <= cycle_tolerance]):
            same = np.flatnonzero((off <= cycle_tolerance) & (period == q))
            for part in chunks(len(same), cycle.row_bytes(dim if dense else 48)):
                rows, index = same[part], torch.as_tensor(same[part])
                own = JacobianChain(maps, cycle.states[:q, index.to(cycle.states.device)], cycle.contexts[index])
                values[rows], residuals[rows], spent[rows], outcomes[rows] = \
                    _from_product(own, n_multipliers) if dense else _by_products(own, n_multipliers, tolerance,
                                                                                 max_products, seed)
    missing = outcomes != Outcome.FOUND
    values[missing] = complex(np.nan, np.nan)
    size = np.abs(values[:, 0])
    return Measurement(
        "cycle_multipliers",
        {"multiplier": size, "multipliers_real": values.real, "multipliers_imag": values.imag,
         "rate": size ** (1 / period), "prime_period": np.where(missing, np.nan, period), "residuals": residuals,
         "cycle_residual": off, "n_products": spent},
        outcomes, units={"rate": "per step", "prime_period": "steps"}, labels=labels or {},
        settings={"n_multipliers": n_multipliers, "cycle_tolerance": cycle_tolerance, "tolerance": tolerance,
                  "dense_up_to": dense_up_to, "max_products": max_products})


def _from_product(cycle: JacobianChain, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Multipliers, residuals, products spent and outcomes, from the product of the Jacobians."""
    values = np.full((cycle.n, count), complex(np.nan, np.nan))
    outcomes = np.full(cycle.n, Outcome.NOT_FINITE, dtype=object)
    for row, product in enumerate(cycle.dense(np.arange(cycle.n))):
        if np.isfinite(product).all():
            values[row], outcomes[row] = dense_eigenvalues(product, count), Outcome.FOUND
    return values, np.where(np.isnan(values), np.nan, 0.0), np.full(cycle.n, cycle.dim), outcomes


def _by_products(cycle: JacobianChain, count: int, tolerance: float, max_products: int,
                 seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The same from products with vectors."""
    found = leading_eigenvalues(cycle.forward, cycle.n, cycle.dim, k=count, tolerance=tolerance, seed=seed,
                                dtype=cycle.states.dtype, device=cycle.states.device, max_products=max_products)
    outcomes = np.full(cycle.n, Outcome.NOT_CONVERGED, dtype=object)
    outcomes[found.converged], outcomes[~found.finite] = Outcome.FOUND, Outcome.NOT_FINITE
    return found.values, found.residuals, found.products, outcomes


def closing(cycle: JacobianChain) -> np.ndarray:
    """Largest ||F(x_j) - x_{j+1}|| along each row, the last state going to the first, over its largest ||x_j||."""
    worst = torch.zeros(cycle.n, dtype=torch.float64, device=cycle.states.device)
    for j, (one, states) in enumerate(cycle.steps()):
        gap = one(states, cycle.contexts).double() - cycle.states[(j + 1) % len(cycle.states)].double()
        worst = torch.maximum(worst, gap.flatten(1).norm(dim=-1))  # NaN stays NaN
    return (worst / _sizes(cycle)).cpu().numpy()


def _sizes(cycle: JacobianChain) -> torch.Tensor:
    sizes = cycle.states.double().flatten(2).norm(dim=-1).amax(0)
    return torch.where(sizes > 0, sizes, 1.0)


def _prime_period(cycle: JacobianChain, tolerance: float, layers: int) -> np.ndarray:
    """The least divisor of the period, a multiple of the layers, after which every state comes again."""
    whole = len(cycle.states)
    period = np.full(cycle.n, whole)
    for q in range(whole - 1, 0, -1):
        if whole % q == 0 and q % layers == 0:
            gap = (cycle.states.roll(-q, 0) - cycle.states).double().flatten(2).norm(dim=-1).amax(0)
            period[(gap <= tolerance * _sizes(cycle)).cpu().numpy()] = q
    return period
