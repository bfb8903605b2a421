"""How many dimensions has the attractor, by its Lyapunov exponents?"""

from __future__ import annotations

from typing import Any

import numpy as np

from dynloop.maps.log_stretches import quantile
from dynloop.maps.lyapunov_spectrum import LyapunovSpectrum
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole


def kaplan_yorke_dimension(spectrum: LyapunovSpectrum | Any, *, dim: int | None = None,
                           confidence_level: float = 0.95) -> Measurement:
    r"""Kaplan-Yorke (Lyapunov) dimension: how many dimensions a volume may have that the map does not shrink.

        D = j + (lambda[1] + ... + lambda[j]) / |lambda[j+1]|,   j the largest with lambda[1] + ... + lambda[j] >= 0

    0 where even the largest exponent is negative, `dim` where the sum of all is not. The interval is that of the means
    over the blocks of the orbit, with D made linear in them; it moves one exponent with the others.

    Args:
        spectrum: what `lyapunov_spectrum` gives, or exponents (n, k), largest first, without intervals.
        dim: numbers in a state, where `spectrum` is an array of exponents: k by default.
        confidence_level: probability with which the interval shall cover the dimension.

    Returns:
        A row an orbit: `dimension`, `low`, `high` (NaN for an array; both the value where it is 0 or `dim`), and
        `n_exponents`, how many were used. Outcomes: `NOT_FOUND`: the exponents given never sum to less than 0, so that
        more of them are needed. Otherwise those of the spectrum, which are NOT_FINITE for NaN in an array.

    Misleads:
        It bounds the dimension of the attractor and equals it for almost no system by theorem. Two sums at which j may
        change lie within the noise near whole numbers: the interval is then too narrow. Of a finite time it is as much
        a property of that stretch of the orbit as the exponents are, and where `lyapunov_spectrum` calls the orbit a
        fixed point with rounding, it is 0. Off the attractor (a loop still on its way) it means nothing.

    Source:
        Kaplan and Yorke 1979 (Springer Lecture Notes in Mathematics 730, 204). The interval is ours.

    Example:
        >>> from dynloop.maps.kaplan_yorke_dimension import kaplan_yorke_dimension
        >>> kaplan_yorke_dimension([[0.41922, -1.62319]]).values.round(4)  # of the Henon map
        array([1.2583])
    """
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1, both excluded (the "
                                                                           "default is 0.95)")
    ours = spectrum if isinstance(spectrum, LyapunovSpectrum) else None
    exponents = np.array(spectrum if ours is None else ours.exponents, dtype=np.float64)
    if exponents.ndim != 2 or exponents.shape[1] == 0:
        raise ValueError(f"exponents must have shape (n, k); got {exponents.shape}. One orbit? Pass [exponents].")
    n, k = exponents.shape
    if ours is not None and dim is not None:
        raise ValueError(f"the spectrum says that a state has {ours.dim} numbers; leave dim out.")
    dim = ours.dim if ours is not None else k if dim is None else dim
    check_whole("dim", dim, k, f"a whole number of at least the {k} exponents that were given")
    value, low, high, used = (np.full(n, np.nan) for _ in range(4))
    outcomes = []
    for o, own in enumerate(exponents):
        if np.isnan(own).any():
            outcomes.append(Outcome.NOT_FINITE if ours is None else ours.measurement.outcomes[o])
            continue
        sums = np.cumsum(own)
        j = k if (sums >= 0).all() else int(np.argmax(sums < 0))
        if j == k < dim:
            outcomes.append(Outcome.NOT_FOUND)
            continue
        outcomes.append(Outcome.FOUND)
        used[o] = min(j + 1, k)
        value[o] = j if j in (0, dim) or np.isneginf(own[j]) else j - sums[j - 1] / own[j]
        if ours is not None:
            reach = 0.0
            if 0 < j < dim and np.isfinite(own[j]):
                blocks = ours.blocks(o)[:, :j + 1]
                moved = blocks[:, j] * sums[j - 1] / own[j] ** 2 - blocks[:, :j].sum(1) / own[j]  # to first order
                reach = quantile(len(moved) - 1, 0.5 + 0.5 * confidence_level) * moved.std(ddof=1) / len(moved) ** 0.5
            low[o], high[o] = value[o] - reach, value[o] + reach
    return Measurement("kaplan_yorke_dimension", {"dimension": value, "low": low, "high": high, "n_exponents": used},
                       outcomes, settings={"dim": dim, "confidence_level": confidence_level},
                       labels={} if ours is None else ours.measurement.labels)
