"""Tests that need no normal distribution: permuted labels, flipped signs, wild weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

_MOST = 20_000  # arrangements that are listed one by one
_WEBB = np.array([-math.sqrt(1.5), -1.0, -math.sqrt(0.5), math.sqrt(0.5), 1.0, math.sqrt(1.5)])

# a p-value, its Monte-Carlo standard error (0 if exact), the smallest that could come out, and how it was found
Test = tuple[float, float, float, str]


def label_permutation(a: np.ndarray, b: np.ndarray, *, n_resamples: int, rng: Any) -> Test:
    """Two-sided test of |mean b - mean a| when labels are exchanged between units: all ways, or random ones.

    p is the share of arrangements with a difference at least as large; for random ones (1 + count) / (1 + tried)
    (Phipson and Smyth 2010). 5 against 5 units have 252 arrangements.
    """
    pool, n_b = np.concatenate([a, b]), len(b)
    n = len(pool)
    observed = abs(b.mean() - a.mean())
    total = pool.sum()

    def difference(sums: np.ndarray) -> np.ndarray:
        return np.abs(sums / n_b - (total - sums) / (n - n_b))

    count = math.comb(n, n_b)
    slack = 1e-12 * max(np.abs(pool).max(), 1e-300)  # the same arrangement summed in another order is no smaller
    if count <= _MOST:
        sums = pool[np.array(list(itertools.combinations(range(n), n_b)))].sum(1)
        hits = int((difference(sums) >= observed - slack).sum())
        return hits / count, 0.0, (2 if n_b == n - n_b else 1) / count, f"exact label permutation ({count})"
    rng = np.random.default_rng(rng)
    hits = 0
    for size in _batches(n_resamples, n):
        chosen = rng.permuted(np.broadcast_to(pool, (size, n)), axis=1)[:, :n_b]
        hits += int((difference(chosen.sum(1)) >= observed - slack).sum())
    return _monte_carlo(hits, n_resamples, 1 / (1 + n_resamples), "label permutation")


def sign_flip(differences: np.ndarray, *, n_resamples: int, rng: Any) -> Test:
    """Two-sided test of |mean difference| when the two members of each pair change places: all 2^n ways, or random.

    5 pairs have 32 sign patterns: no p-value below .0625 can come out.
    """
    n = len(differences)
    observed = abs(differences.sum())
    slack = 1e-12 * n * max(np.abs(differences).max(), 1e-300)
    if 2**n <= _MOST:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        hits = int((np.abs(signs @ differences) >= observed - slack).sum())
        return hits / 2**n, 0.0, 2 / 2**n, f"exact sign flips ({2**n})"
    rng = np.random.default_rng(rng)
    hits = 0
    for size in _batches(n_resamples, n):
        signs = 1.0 - 2.0 * rng.integers(0, 2, (size, n), dtype=np.int8)
        hits += int((np.abs(signs @ differences) >= observed - slack).sum())
    return _monte_carlo(hits, n_resamples, 1 / (1 + n_resamples), "sign flips")


def webb_bootstrap(a: np.ndarray, b: np.ndarray, *, paired: bool, n_resamples: int, rng: Any) -> Test:
    """Two-sided wild cluster bootstrap of the t statistic under no difference, with Webb's six-point weights.

    Residuals from the common mean (differences as they are, where units are paired) are multiplied by weights drawn
    from +-sqrt(1/2), +-1, +-sqrt(3/2), and the t statistic is taken anew. Sign weights, with their 2^n values, give no
    p-value below .0625 for 5 clusters; Webb's do (Webb 2023, Canadian J. Economics 56, 839).
    """
    rng = np.random.default_rng(rng)
    if paired:
        residuals, n_b = b - a, len(b)
    else:
        pool = np.concatenate([b, a])
        residuals, n_b = pool - pool.mean(), len(b)

    def t(values: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            if paired:
                return np.abs(values.mean(-1)) / np.sqrt(values.var(-1, ddof=1) / n_b)
            own, other = values[..., :n_b], values[..., n_b:]
            error = own.var(-1, ddof=1) / n_b + other.var(-1, ddof=1) / other.shape[-1]
            return np.abs(own.mean(-1) - other.mean(-1)) / np.sqrt(error)

    observed = float(t(residuals))
    if not math.isfinite(observed):
        return math.nan, math.nan, 1 / (1 + n_resamples), "wild bootstrap undefined: no spread between units"
    hits = 0
    for size in _batches(n_resamples, len(residuals)):
        weights = _WEBB[rng.integers(0, 6, (size, len(residuals)))]
        hits += int((t(residuals * weights) >= observed * (1 - 1e-12)).sum())
    return _monte_carlo(hits, n_resamples, 1 / (1 + n_resamples), "wild bootstrap, Webb weights")


def _batches(n: int, width: int) -> list[int]:
    """Sizes of parts of at most some 32 MB."""
    most = max(1, 2**22 // width)
    return [min(most, n - start) for start in range(0, n, most)]


def _monte_carlo(hits: int, n: int, smallest: float, how: str) -> Test:
    p = (1 + hits) / (1 + n)
    return p, math.sqrt(p * (1 - p) / (1 + n)), smallest, f"{how} ({n} random)"
