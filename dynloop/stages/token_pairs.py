"""Dependence of the states at all pairs of depths, over tokens of distinct prompts, from products of Gram matrices.

The sums that `HsicSums` takes over features, for one pair of depths, are taken here over pairs of tokens, for all
pairs of depths at once: the Gram matrix of two prompts is made once for every depth, and one matrix product multiplies
those of all depths with each other. With few tokens for the width that is far less work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Join = Callable[[np.ndarray, np.ndarray], np.ndarray]
Read = Callable[[int], np.ndarray]
_BYTES = 512 * 2**20  # of states in memory


def every(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Inner products of (depths, ...) and (other depths, ...), each with each."""
    return one.reshape(len(one), -1) @ two.reshape(len(two), -1).T


def each(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Inner products of (depths, ...) and (depths, ...), each with its own."""
    return np.einsum("ij,ij->i", one.reshape(len(one), -1), two.reshape(len(two), -1))


def dependences(read: Read, n: int, join: Join, other: Read | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`HsicSums.dependence` of the depths of a recording and of another, and the same without each prompt.

    Args:
        read: the states of a prompt, by its number, (depths, tokens, dim) in float64, less their mean over all.
        n: prompts, of equal weight.
        join: `every` for all pairs of depths, `each` for a depth with itself.
        other: as `read`, of the same tokens; by default the same one.

    Returns:
        What `join` returns, and the same with a leading axis of prompts left out; NaN below 4 prompts.
    """
    pairs, pairs_of = _pairs(read, other, n, join)
    three, three_of, shares = _triples(read, other, n, join)
    four, four_of = _quadruples(*shares, join)

    def value(pairs: np.ndarray, three: np.ndarray, four: np.ndarray, n: int) -> np.ndarray:
        if n < 4:
            return np.full(pairs.shape, np.nan)
        return pairs / (n * (n - 1)) - 2 * three / (n * (n - 1) * (n - 2)) + four / (n * (n - 1) * (n - 2) * (n - 3))

    return value(pairs, three, four, n), value(pairs - pairs_of, three - three_of, four - four_of, n - 1)


def _blocks(read: Read, other: Read | None, n: int) -> Iterator[tuple[list[int], Callable[[], list]]]:
    """Numbers of prompts that fit in memory together, and how to read their states in both recordings."""
    first = read(0)
    size = max(1, _BYTES // (first.nbytes * (2 if other is None else 4)))
    for start in range(0, n, size):
        numbers = list(range(start, min(start + size, n)))

        def load(numbers: list[int] = numbers) -> list:
            mine = [read(i) for i in numbers]
            return list(zip(mine, mine if other is None else map(other, numbers), strict=True))

        yield numbers, load


def _pairs(read: Read, other: Read | None, n: int, join: Join) -> tuple[np.ndarray, np.ndarray]:
    """Sum over ordered pairs of prompts g, h of mean_st K_st L_st, and the part of it that each prompt has."""
    total = parts = np.zeros(0)
    blocks = list(_blocks(read, other, n))
    for b, (rows, load) in enumerate(blocks):
        left = load()
        for columns, load_more in blocks[b:]:
            right = left if columns is rows else load_more()
            for g, (x, y) in zip(rows, left, strict=True):
                for h, (v, w) in zip(columns, right, strict=True):
                    if h <= g:
                        continue
                    found = 2 * _product(x, v, y, w, join, same=other is None)
                    if not len(parts):
                        total, parts = np.zeros_like(found), np.zeros((n, *found.shape))
                    total += found
                    parts[g] += found
                    parts[h] += found
    return total, parts


def _product(x: np.ndarray, v: np.ndarray, y: np.ndarray, w: np.ndarray, join: Join, *, same: bool) -> np.ndarray:
    """mean_st K_st L_st for K = x v' and L = y w', a few tokens s at a time where Gram matrices of all are large."""
    n_one, n_two = x.shape[1], v.shape[1]
    step = max(1, _BYTES // (8 * n_two * (len(x) + len(y))))
    found = np.zeros(0)
    for first in range(0, n_one, step):
        gram = x[:, first:first + step] @ v.swapaxes(-1, -2)
        part = join(gram, gram if same else y[:, first:first + step] @ w.swapaxes(-1, -2))
        found = found + part if len(found) else part
    return found / (n_one * n_two)


def _triples(read: Read, other: Read | None, n: int,
             join: Join) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Sum over distinct g, h, q of mean_s K_sh L_sq, what falls away without each prompt, and the means of K and L."""
    means = [np.stack([of(i).mean(-2) for i in range(n)], -1) for of in (read, *([] if other is None else [other]))]
    total = parts = np.zeros(0)
    shares: list[list[np.ndarray]] = [[], []]
    for g in range(n):
        near = []  # of each token, with the mean of each other prompt: (depths, prompts, tokens)
        for of, mean in zip((read, *([] if other is None else [other])), means, strict=True):
            k = (of(g) @ mean).swapaxes(-1, -2)
            k[:, g] = 0
            near.append(k)
        one, two = near[0], near[-1]
        n_tokens = one.shape[-1]
        u, v = one.sum(1), two.sum(1)
        whole = (join(u, v) - join(one, two)) / n_tokens
        if not len(parts):
            total, parts = np.zeros_like(whole), np.zeros((n, *whole.shape))
        total += whole
        parts[g] += whole
        for p in range(n):
            if p != g:
                a, b = one[:, p], two[:, p]
                parts[p] += (join(u, b) + join(a, v) - 2 * join(a, b)) / n_tokens
        for k, kept in zip((one, two), shares, strict=True):
            kept.append(k.mean(-1))
    return total, parts, (np.stack(shares[0], 1), np.stack(shares[1], 1))


def _quadruples(a: np.ndarray, b: np.ndarray, join: Join) -> tuple[np.ndarray, np.ndarray]:
    """Sum over distinct g, h, q, r of A_gh B_qr, for A and B (depths, prompts, prompts), and what each prompt has."""
    r, s = a.sum(2), b.sum(2)
    n = r.shape[1]
    sums, shared, squares = join(r.sum(1), s.sum(1)), join(r, s), join(a, b)
    total = sums - 4 * shared + 2 * squares
    parts = []
    for p in range(n):
        ap, bp = a[:, :, p], b[:, :, p]
        squared = join(ap, bp)
        left = join(r.sum(1) - 2 * r[:, p], s.sum(1) - 2 * s[:, p]) \
            - 4 * (shared - join(r[:, p], s[:, p]) - join(r, bp) - join(ap, s) + squared) + 2 * (squares - 2 * squared)
        parts.append(total - left)
    return total, np.stack(parts)
