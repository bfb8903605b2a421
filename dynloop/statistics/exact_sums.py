"""Sums without rounding: the same bits whatever the order, the number of threads and the split into shards."""

from __future__ import annotations

import dataclasses

import numpy as np

WIDTH = 32  # bits of a digit: 2^20 units with weights of a few stay exact in a float64 product


@dataclasses.dataclass(frozen=True, eq=False)
class Digits:
    """Exact numbers: digit j of the last axis counts 2^(32 (lowest + j)).

    Attributes:
        lowest: index of the first digit.
        parts: (..., n_digits) int64, in [-2^31, 2^31).
    """

    lowest: int
    parts: np.ndarray

    def __add__(self, other: Digits) -> Digits:
        low = min(self.lowest, other.lowest)
        high = max(d.lowest + d.parts.shape[-1] for d in (self, other))
        return carried(low, self.over(low, high) + other.over(low, high))

    def over(self, low: int, high: int) -> np.ndarray:
        """The digits from index low up to high, zeros where there are none."""
        before, after = self.lowest - low, high - self.lowest - self.parts.shape[-1]
        return np.pad(self.parts, [(0, 0)] * (self.parts.ndim - 1) + [(before, after)])

    def rounded(self) -> np.ndarray:
        """The numbers as float64."""
        total = np.zeros(self.parts.shape[:-1])
        for j in reversed(range(self.parts.shape[-1])):
            total += np.ldexp(self.parts[..., j].astype(float), WIDTH * (self.lowest + j))
        return total


def carried(lowest: int, parts: np.ndarray) -> Digits:
    """Digits in their one normal form: no zeros at either end, each in [-2^31, 2^31)."""
    parts = np.concatenate([parts, np.zeros_like(parts[..., :1])], axis=-1)
    half = 1 << (WIDTH - 1)
    for j in range(parts.shape[-1] - 1):
        carry = (parts[..., j] + half) >> WIDTH
        parts[..., j] -= carry << WIDTH
        parts[..., j + 1] += carry
    there = np.flatnonzero(parts.reshape(-1, parts.shape[-1]).any(0))
    first, last = (there[0], there[-1]) if len(there) else (0, 0)
    return Digits(lowest + int(first) if len(there) else 0, np.ascontiguousarray(parts[..., first:last + 1]))


def exact_sums(values: np.ndarray, unit_of: np.ndarray, n_units: int) -> Digits:
    """Sum of the values of each unit, (n_units,), without rounding."""
    from dynloop.kernels.resampling import add_digits, lowest_and_highest

    bounds = np.array([2000, -2000])
    lowest_and_highest(values, unit_of, bounds)
    if bounds[0] == 2000:  # nothing but zeros
        return Digits(0, np.zeros((n_units, 1), dtype=np.int64))
    low, high = int(bounds[0]) // WIDTH, (int(bounds[1]) - 1) // WIDTH
    parts = np.zeros((n_units, high - low + 1), dtype=np.int64)
    add_digits(values, unit_of, low, WIDTH, parts)
    return carried(low, parts)


def weighted(weights: np.ndarray, digits: Digits) -> np.ndarray:
    """Weights (replicates, units), whole, times digits (units, n_digits): int64 (replicates, n_digits), exact."""
    out = np.zeros((len(weights), digits.parts.shape[-1]), dtype=np.int64)
    for begin in range(0, weights.shape[1], 1 << 18):  # whole numbers below 2^53 add up exactly in any order
        part = slice(begin, begin + (1 << 18))
        out += (weights[:, part] @ digits.parts[part].astype(float)).astype(np.int64)
    return out
