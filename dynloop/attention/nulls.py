"""What uniform attention scores: every query's weight spread evenly over the keys that it may see."""

from __future__ import annotations

import functools
import math

import numpy as np

_LEAST = 2  # positions: a map of one is always the same


@functools.cache
def _harmonic(n: int) -> float:
    return math.fsum(1.0 / i for i in range(1, n + 1))


def uniform_sink_score(n_tokens: int, *, position: int = 0, causal: bool = True) -> float:
    """Sink score of uniform attention: (H_T - H_k) / T for key k of a causal map (H_T / T for the first), else 1 / T.

    Args:
        n_tokens: T, positions of the map.
        position: k, counted from 0.
        causal: whether query t sees keys up to t only.

    Returns:
        The score.

    Example:
        >>> from dynloop.attention.nulls import uniform_sink_score
        >>> round(uniform_sink_score(64), 3)
        0.074
    """
    if not causal:
        return 1.0 / n_tokens
    return (_harmonic(n_tokens) - _harmonic(position)) / n_tokens


def uniform_mixing(n_tokens: int, *, causal: bool = True) -> float:
    """Mean entropy of the rows of uniform attention, in nats: ln(T!) / T of a causal map, else ln T; the largest.

    Args:
        n_tokens: T, positions of the map.
        causal: whether query t sees keys up to t only.

    Returns:
        The entropy.

    Example:
        >>> from dynloop.attention.nulls import uniform_mixing
        >>> round(uniform_mixing(64), 3)
        3.206
    """
    return math.lgamma(n_tokens + 1) / n_tokens if causal else math.log(n_tokens)


@functools.cache
def uniform_concentration(n_tokens: int, *, causal: bool = True) -> float:
    """Column concentration of uniform attention: with c_k = (H_T - H_k) / T for a causal map, else 0.

    Args:
        n_tokens: T, positions of the map; at least 2.
        causal: whether query t sees keys up to t only.

    Returns:
        1 + sum_k c_k ln c_k / ln T.

    Example:
        >>> from dynloop.attention.nulls import uniform_concentration
        >>> round(uniform_concentration(64), 3)
        0.097
    """
    if not causal:
        return 0.0
    share = np.cumsum(1.0 / np.arange(n_tokens, 0, -1.0)) / n_tokens
    return 1.0 + float((share * np.log(share)).sum()) / math.log(n_tokens)


def uniform_distance(n_tokens: int, *, causal: bool = True) -> float:
    """Frobenius distance of uniform attention from any map that lays each query's weight on a single key.

    sqrt(T - H_T) for a causal map (its identity, a full sink, ...), else sqrt(T - 1).

    Args:
        n_tokens: T, positions of the map.
        causal: whether query t sees keys up to t only.

    Returns:
        The distance.

    Example:
        >>> from dynloop.attention.nulls import uniform_distance
        >>> round(uniform_distance(64), 2)
        7.7
    """
    return math.sqrt(n_tokens - (_harmonic(n_tokens) if causal else 1.0))


def largest_distance(n_tokens: int, *, causal: bool = True) -> float:
    """The largest Frobenius distance of two maps: sqrt(2 (T - 1)) of causal ones (equal first rows), else sqrt(2 T).

    Args:
        n_tokens: T, positions of the map.
        causal: whether query t sees keys up to t only.

    Returns:
        The distance.

    Example:
        >>> from dynloop.attention.nulls import largest_distance
        >>> largest_distance(9)
        4.0
    """
    return math.sqrt(2.0 * (n_tokens - causal))
