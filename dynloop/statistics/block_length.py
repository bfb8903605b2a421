"""How long must the blocks of a block bootstrap be?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

KINDS = ("stationary", "circular")


def optimal_block_length(series: Any, *, kind: str = "stationary") -> float:
    """Block length that minimises the mean squared error of the bootstrap variance of a mean (Politis and White 2004).

    With autocovariances R(k) and the flat-top window w (1 up to M/2, then down to 0 at M),

        g = 2 sum_k w(k/M) k R(k),   s = R(0) + 2 sum_k w(k/M) R(k),   b = (2 g^2 / d)^(1/3) N^(1/3)

    with d = 2 s^2 for the stationary and 4/3 s^2 for the circular bootstrap (Patton, Politis and White 2009). M is
    twice the lag after which max(5, log10 N) autocorrelations lie within +-2 sqrt(log10 N / N).

    Args:
        series: (n,) numbers in order, or (n_series, n): series of one process, whose autocovariances are pooled (each
            about its own mean, which is corrected for), so that N is the number of all values.
        kind: "stationary" (blocks of geometric length, for which b is the mean) or "circular" (fixed length; also for
            moving blocks).

    Returns:
        The length, not rounded; between 0 (no correlation was seen: take 1) and min(3 sqrt N, N/3), and never more
        than n.

    Raises:
        ValueError: fewer than 10 values in a series, values that are not finite or all the same, an unknown kind.

    Misleads:
        One short series cannot tell: of 128 values of an AR(1) process with coefficient .8 it finds 9 (mean), of 8,192
        values 47. Where sequences are short, resample sequences instead (`estimate(resample="prompt")`). Each series is
        centred on its own mean, so that what differs between series is not seen.

    Source:
        Politis and White 2004, Econometric Reviews 23, 53; Patton, Politis and White 2009, Econometric Reviews 28, 372.
        Equals `arch.bootstrap.optimal_block_length` for one series.

    Example:
        >>> import numpy as np
        >>> from dynloop.statistics.block_length import optimal_block_length
        >>> x = np.zeros(4000)
        >>> for t, e in enumerate(np.random.default_rng(0).normal(size=3999), start=1):
        ...     x[t] = 0.8 * x[t - 1] + e
        >>> print(round(optimal_block_length(x), 1))
        41.2
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}. Choose one of these.")
    x = np.asarray(series, dtype=float)
    if x.ndim not in (1, 2) or x.shape[-1] < 10 or x.size == 0:
        raise ValueError("series must have shape (n,) or (n_series, n) with at least 10 values each; got "
                         f"{x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError("series must be finite numbers; got NaN or infinity. Cut each where it left them.")
    x = np.atleast_2d(x)
    n, total = x.shape[1], x.size
    away = x - x.mean(axis=1, keepdims=True)
    if not away.any():
        raise ValueError("series are constant: there is no correlation to see. Any block length will do.")
    run = max(5, int(math.log10(total)))
    most = min(math.ceil(math.sqrt(total)) + run, n - 2)
    covariance, scale = np.zeros(most + 1), np.zeros(most + 1)
    for lag in range(most + 1):
        covariance[lag] = np.vdot(away[:, lag:], away[:, :n - lag]) / total
        ends = np.vdot(away[:, lag + 1:], away[:, lag + 1:]) * np.vdot(away[:, :n - lag - 1], away[:, :n - lag - 1])
        scale[lag] = math.sqrt(ends) / total
    raw, judged = covariance, n
    if len(x) > 1:  # centring each series took s / n from all autocovariances: with many series that is no noise
        for judged in (n, n, total):
            s, _ = _window_sums(covariance, scale, judged, run)
            covariance = raw + (1 - np.arange(most + 1) / n) * s / n
    s, g = _window_sums(covariance, scale, judged, run)
    d = (2 if kind == "stationary" else 4 / 3) * s**2
    length = (2 * g**2 / d) ** (1 / 3) * total ** (1 / 3) if d > 0 else math.inf
    return float(min(length, math.ceil(min(3 * math.sqrt(total), total / 3)), n))


def _window_sums(covariance: np.ndarray, scale: np.ndarray, n: int, run: int) -> tuple[float, float]:
    """Both sums, s and g, of the flat-top window whose reach follows from where autocorrelations of n values vanish."""
    most = len(covariance) - 1
    quiet = np.abs(covariance) < 2 * math.sqrt(math.log10(n) / n) * scale
    first = next((lag for lag in range(most - run + 1) if quiet[lag:lag + run].all()), None)
    reach = most if first is None else min(2 * max(first, 1), most)
    k = np.arange(1, reach + 1)
    window = np.where(k <= reach / 2, 1.0, 2 * (1 - k / reach))
    s = covariance[0] + 2 * float((window * covariance[1:reach + 1]).sum())
    return float(s), 2 * float((window * k * covariance[1:reach + 1]).sum())
