"""Scores of one attention call, recomputed block by block from its queries and keys."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import torch

from dynloop.buffers import Buffers

LOG2E = math.log2(math.e)
LOWEST = -1e38  # stands for minus infinity: its power of two is 0, and 0 times it is 0, not NaN
_BLOCK = {"cpu": (1 << 18, 128)}  # numbers in a block of scores, so that it stays in cache; queries in it at most
_BLOCK_ELSEWHERE = (1 << 26, 1024)  # where each launch costs more than the part of a block that is hidden

# (scores (batch, heads, queries, keys) in natural units, and the ranges of the four) -> scores
Finish = Callable[[torch.Tensor, tuple[slice, slice, slice, slice]], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Block:
    """Queries `first` to `last` of some heads: `batch` and `heads` as slices, and as `rows` of (batch x heads)."""

    batch: slice
    heads: slice
    rows: slice
    first: int
    last: int

    @property
    def n_rows(self) -> int:
        return self.rows.stop - self.rows.start


def blocks(shape: tuple[int, int, int, int], device: torch.device,
           limits: tuple[int, int] | None = None) -> Iterator[Block]:
    """Cut maps of `shape` (batch, heads, queries, keys): whole heads of several prompts, or some heads of one.

    `limits`: numbers in a block and queries in it at most, if not those that suit the device.
    """
    n_batch, n_heads, n_queries, n_keys = shape
    numbers, most = limits or _BLOCK.get(device.type, _BLOCK_ELSEWHERE)
    n = min(n_queries, most, max(16, numbers // max(n_keys, 1)))
    together = max(1, numbers // (n * max(n_keys, 1)))
    step_batch, step_heads = max(1, together // n_heads), min(together, n_heads)
    for b in range(0, n_batch, step_batch):
        batch = slice(b, min(b + step_batch, n_batch))
        for h in range(0, n_heads, step_heads):
            heads = slice(h, min(h + step_heads, n_heads))
            rows = slice(batch.start * n_heads + heads.start, (batch.stop - 1) * n_heads + heads.stop)
            for first in range(0, n_queries, n):
                yield Block(batch, heads, rows, first, min(first + n, n_queries))


def part(x: torch.Tensor, where: tuple[slice, slice, slice, slice]) -> torch.Tensor:
    """The part of a tensor that broadcasts to (batch, heads, queries, keys), which is not spread out for that."""
    return x[tuple(slice(None) if n == 1 else w for n, w in zip(x.shape, where[4 - x.ndim:], strict=True))]


class Products:
    """scale * Q K^T with a mask; times `factor` these are base-2 logarithms: softmax(x) = 2^(x factor) / sum.

    Args:
        query: (batch, heads, queries, width); copied.
        key: (batch, heads or a divisor of it, keys, width); copied.
        scale: of the products.
        before, after: query t sees keys t - before to t + after; None for no limit. Causal is `after=0`.
        mask: booleans (true may attend) or numbers to add, broadcastable to (batch, heads, queries, keys). Kept by
            reference.
        finish: what else is done to the scores before the softmax.
        dtype: to compute in.
        buffers: where memory comes from.
    """

    def __init__(self, query: torch.Tensor, key: torch.Tensor, *, scale: float, before: int | None = None,
                 after: int | None = None, mask: torch.Tensor | None = None, finish: Finish | None = None,
                 dtype: torch.dtype = torch.float32, buffers: Buffers) -> None:
        n_batch, n_heads, n_queries, width = query.shape
        n_keys = key.shape[-2]
        if key.shape[1] != n_heads and n_heads % key.shape[1] == 0:
            key = key.repeat_interleave(n_heads // key.shape[1], dim=1)
        self.shape = (n_batch, n_heads, n_queries, n_keys)
        self.device, self.dtype = query.device, dtype
        # a plain causal band leaves no query without a key, and is a small triangle of each block
        self._plain_band = before is None and (after is None or after >= 0) and mask is None and finish is None
        self.may_be_empty = not self._plain_band
        self.factor = 1.0 if self._plain_band else LOG2E
        # own copies: a model may write new keys over old ones
        self._query = buffers.tensor((n_batch, n_heads, n_queries, width), dtype, query.device).copy_(query)
        self._query = self._query.mul_(scale * LOG2E / self.factor).flatten(0, 1)
        self._key = buffers.tensor((n_batch, n_heads, width, n_keys), dtype, query.device).copy_(key.transpose(2, 3))
        self._key = self._key.flatten(0, 1)
        self.before, self.after, self._finish = before, after, finish
        self._mask = None if mask is None else mask.detach()
        self._triangle: torch.Tensor | None = None

    def keys(self, block: Block) -> slice:
        """The range of keys that any query of the block may see."""
        n_keys = self.shape[-1]
        low = 0 if self.before is None else min(max(block.first - self.before, 0), n_keys - 1)
        high = n_keys if self.after is None else min(block.last + self.after, n_keys)
        return slice(low, max(high, low + 1))

    def scores(self, block: Block, keys: slice, out: torch.Tensor) -> torch.Tensor:
        """Scores (rows, queries, keys) of one block, perhaps in `out`; at or below `LOWEST` where nothing is seen."""
        query, key = self._query[block.rows, block.first:block.last], self._key[block.rows, :, keys]
        scores = torch.bmm(query, key, out=out)
        if self._finish is not None:
            split = scores.unflatten(0, (-1, block.heads.stop - block.heads.start))
            where = (block.batch, block.heads, slice(block.first, block.last), keys)
            scores = self._finish(split, where).flatten(0, 1).to(self.dtype)
        if self._mask is not None:
            self._apply_mask(scores.unflatten(0, (-1, block.heads.stop - block.heads.start)), block, keys)
        if self._plain_band and self.after is not None:
            start = max(block.first + self.after + 1, keys.start)
            if start < keys.stop:
                self._hide_later(scores[..., start - keys.start:], start - block.first - self.after - 1)
        elif not self._plain_band:
            column = torch.arange(keys.start, keys.stop, device=self.device)
            row = torch.arange(block.first, block.last, device=self.device)[:, None]
            hidden = torch.zeros((), dtype=torch.bool, device=self.device)
            if self.after is not None:
                hidden = hidden | (column > row + self.after)
            if self.before is not None:
                hidden = hidden | (column < row - self.before)
            scores.masked_fill_(hidden, -math.inf)
        return scores

    def _apply_mask(self, scores: torch.Tensor, block: Block, keys: slice) -> None:
        assert self._mask is not None
        mask = part(self._mask, (block.batch, block.heads, slice(block.first, block.last), keys))
        if mask.dtype == torch.bool:
            scores.masked_fill_(~mask, -math.inf)
        else:
            scores.add_(mask)

    def _hide_later(self, scores: torch.Tensor, offset: int) -> None:
        """Add `LOWEST` to column j of row i where j + offset >= i."""
        n, m = scores.shape[-2:]
        if offset or m >= n:
            triangle = scores.new_full((n, m), LOWEST).triu(-offset)
        else:
            if self._triangle is None or self._triangle.shape[0] < n:
                self._triangle = scores.new_full((n, n), LOWEST).triu()
            triangle = self._triangle[:n, :m]
        scores.add_(triangle)


class Given:
    """Scores that the model computed itself, of which no queries and keys are known."""

    may_be_empty, factor = True, LOG2E

    def __init__(self, scores: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> None:
        self._scores = scores.detach()
        n_batch, n_heads, n_queries, n_keys = scores.shape
        self.shape = (n_batch, n_heads, n_queries, n_keys)
        self.device, self.dtype = scores.device, dtype

    def keys(self, block: Block) -> slice:
        return slice(0, self.shape[-1])

    def scores(self, block: Block, keys: slice, out: torch.Tensor) -> torch.Tensor:
        """Scores (rows, queries, keys) of one block, in `out`."""
        given = self._scores[block.batch, block.heads, block.first:block.last, keys]
        return out.copy_(given.reshape(out.shape))
