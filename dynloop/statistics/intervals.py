"""Intervals: from resamples, and from the spread between units."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Spread:
    """How well a statistic is known from the spread between units.

    Attributes:
        error: standard error.
        freedom: degrees of freedom.
        skewness: third cumulant of the statistic over its standard error cubed.
    """

    error: float
    freedom: float
    skewness: float


def spread(left_out: np.ndarray, sizes: np.ndarray, strata: np.ndarray | None = None) -> Spread:
    """Standard error from the statistic without each unit (jackknife; for a mean of equal units the usual one).

    Args:
        left_out: (n,) the statistic without each unit.
        sizes: (n,) rows of each unit: where few hold most rows the degrees of freedom are fewer.
        strata: (n,) whole numbers: units vary within strata only.
    """
    strata = np.zeros(len(left_out), dtype=int) if strata is None else strata
    n = np.bincount(strata)[strata]
    center = np.bincount(strata, left_out)[strata] / n
    off = np.where(n > 1, n - 1, 0) * (center - left_out)  # deviation of each unit's own value
    variance = float((off**2 / np.where(n > 1, n * (n - 1), 1)).sum())
    with np.errstate(divide="ignore", invalid="ignore"):  # third cumulants, unbiased within strata
        third = float((off**3 / np.where(n > 2, n * (n - 1.0) * (n - 2), np.inf)).sum())
    share = (sizes / np.bincount(strata, sizes)[strata]) ** 2 * np.where(n > 1, n / np.maximum(n - 1, 1), 0)
    freedom = float((n > 1).sum() - len(np.unique(strata[n > 1])))
    if len(set(strata)) == 1:  # Satterthwaite, as if units of all sizes varied alike
        freedom = min(freedom, share.sum() ** 2 / (share**2).sum())
    return Spread(math.sqrt(variance), freedom, third / variance**1.5 if variance > 0 else 0.0)


def both(first: Spread, second: Spread) -> Spread:
    """Two crossed levels: variances add, and so do degrees of freedom after Satterthwaite (1946).

    The variance between cells is in both parts and not taken off, which errs on the wide side.
    """
    a, b = first.error**2, second.error**2
    if a + b == 0:
        return Spread(0.0, min(first.freedom, second.freedom), 0.0)
    freedom = (a + b) ** 2 / (a**2 / first.freedom + b**2 / second.freedom)
    third = first.skewness * first.error**3 + second.skewness * second.error**3
    return Spread(math.sqrt(a + b), freedom, third / (a + b) ** 1.5)


def two_way(first: Spread, second: Spread, cells: Spread) -> Spread:
    """Cameron, Gelbach and Miller (2011): V_1 + V_2 - V_cells, never below either, with min(n_1, n_2) - 1 freedom."""
    a, b = first.error**2, second.error**2
    variance = max(a + b - cells.error**2, a, b)
    return Spread(math.sqrt(variance), min(first.freedom, second.freedom), 0.0)


def student(value: float, known: Spread, level: float) -> tuple[float, float]:
    """The t interval."""
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, known.freedom)) * known.error
    return value - half, value + half


def skewed_student(value: float, known: Spread, level: float) -> tuple[float, float]:
    """The t interval, made longer on the side of the long tail.

    The first term of Johnson's (1978) expansion, (2 t^2 + 1) / 6 times the skewness of the mean, is added on that side
    and taken off nowhere. A sample skewness falls short of the true one, the more the fewer the units, hence the factor
    1 + 7 / (freedom + 1), chosen so that five units of an exponential variable and of a normal one are both covered in
    93 to 97 % of studies (300,000 of them: normal 96.8, exponential 93.6, lognormal of sigma 0.6 94.0 %; t's: 95.0,
    88.4, 90.1 %). The price is length: 1.4 times t's for five normal units, 1.1 times for ten.
    """
    from scipy import stats

    t = float(stats.t.ppf((1 + level) / 2, known.freedom))
    more = (2 * t**2 + 1) / 6 * known.skewness * (1 + 7 / (known.freedom + 1))
    return value - (t + max(-more, 0.0)) * known.error, value + (t + max(more, 0.0)) * known.error


def woodruff(x: np.ndarray, q: float, variance: float, known: Spread, level: float) -> tuple[float, float] | None:
    """Interval of a quantile: the values at the exact limits of a share of q (Woodruff 1952).

    The share of values below the quantile is known as well as one of n independent values, n the variance of one value
    over that of the share, degrees of freedom taken into account (Korn and Graubard 1998). No spread of the quantile
    itself is needed, which few units do not tell: without one of eight seeds a median jumps or stays.

    Args:
        x: the values.
        q: which quantile.
        variance: of one value's being below it.
        known: the spread of the share of values below it, between units.
        level: confidence level.

    Returns:
        None where the quantile lies so far out that its limits may lie beyond all values.
    """
    from scipy import stats

    from dynloop.statistics.share import clopper_pearson

    n = variance / known.error**2 if known.error > 0 else float(len(x))
    tail = (1 + level) / 2
    n = max(min(n * float(stats.t.ppf(tail, max(n - 1, 1)) / stats.t.ppf(tail, known.freedom)) ** 2, len(x)), 1.0)
    if max(q, 1 - q) ** n > 1 - level:
        return None
    low, high = np.quantile(x, clopper_pearson(q * n, n, level), method="weibull")  # where X_k is on average
    return float(low), float(high)


def percentile(resampled: np.ndarray, level: float) -> tuple[float, float]:
    """The middle of the resampled values."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def basic(value: float, resampled: np.ndarray, level: float) -> tuple[float, float]:
    """The percentile interval, mirrored at the value."""
    low, high = percentile(resampled, level)
    return 2 * value - high, 2 * value - low


def bca(value: float, resampled: np.ndarray, left_out: np.ndarray, level: float,
        strata: np.ndarray | None = None) -> tuple[float, float]:
    """Bias-corrected and accelerated (Efron 1987); NaN where it is undefined."""
    from scipy import special

    below = ((resampled < value).mean() + (resampled <= value).mean()) / 2
    strata = np.zeros(len(left_out), dtype=int) if strata is None else strata
    n = np.bincount(strata)[strata]
    off = (np.bincount(strata, left_out)[strata] / n - left_out) * (n - 1) / n
    # differences of rounding are none
    if not 0 < below < 1 or np.abs(off).max() <= 1e-13 * max(abs(value), np.abs(left_out).max()):
        return np.nan, np.nan
    bias = special.ndtri(below)
    speed = (off**3).sum() / (6 * (off**2).sum() ** 1.5)
    z = bias + special.ndtri([(1 - level) / 2, (1 + level) / 2])
    at = special.ndtr(bias + z / (1 - speed * z))
    low, high = np.quantile(resampled, at)
    return float(low), float(high)


def studentised(value: float, error: float, deviations: np.ndarray, level: float) -> tuple[float, float]:
    """Bootstrap-t: quantiles of (resampled - value) / its own error, in units of the error; may be infinite."""
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return value - float(high) * error, value - float(low) * error


def bootstrap_coverage(n_units: int, level: float) -> float:
    """What a percentile interval over few units of a normal quantity really covers.

    The resampled spread is sqrt((n - 1) / n) of the true one, and its tails are normal where they should be t's:
    P(|t_(n-1)| < z sqrt((n - 1) / n)); 84.6 % for 95 % with five units, 84.6 % by enumeration of all 3125 resamples.
    """
    from scipy import stats

    z = stats.norm.ppf((1 + level) / 2) * math.sqrt((n_units - 1) / n_units)
    return float(1 - 2 * stats.t.sf(z, n_units - 1))
