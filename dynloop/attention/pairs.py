"""Distances between many attention maps, in blocks of queries: no map is whole in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dynloop.attention.scores import blocks
from dynloop.attention.summary import Kept, again
from dynloop.buffers import Buffers

_NUMBERS, _QUERIES = 1 << 23, 32  # in the blocks of all maps together; few queries, so that a causal half is not taken


def distances_of(kept: Sequence[Kept], buffers: Buffers) -> tuple[torch.Tensor, torch.Tensor]:
    """||A_i - A_j||_F (batch, heads, n, n) and ||A_i||_F (batch, heads, n) of n maps of one shape."""
    n, (n_batch, n_heads, _, n_keys) = len(kept), kept[0].shape
    device, dtype = kept[0].top.device, kept[0].top.dtype
    products = torch.zeros(n_batch * n_heads, n, n, dtype=torch.float64, device=device)
    for block in blocks(kept[0].shape, device, (max(1, _NUMBERS // n), _QUERIES)):
        ranges = [one.source.keys(block) for one in kept if one.source is not None] or [slice(0, n_keys)]
        keys = slice(min(r.start for r in ranges), max(r.stop for r in ranges))
        if any(one.source is None for one in kept):
            keys = slice(0, n_keys)
        shape = (block.n_rows, block.last - block.first, keys.stop - keys.start)
        weights = torch.empty(block.n_rows, n, shape[1] * shape[2], dtype=torch.float64, device=device)
        scratch = buffers.tensor(shape, dtype, device)
        for i, one in enumerate(kept):
            weights[:, i] = again(one, block, keys, scratch).flatten(1)
        products[block.rows] += weights @ weights.mT
    return _distances(products.unflatten(0, (n_batch, n_heads)))


def between(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """||A_i - A_j||_F (..., n, n) and ||A_i||_F (..., n) of maps (..., n, T, T)."""
    weights = maps.double().flatten(-2)
    return _distances(weights @ weights.mT)


def _distances(products: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    own = products.diagonal(dim1=-2, dim2=-1)
    squared = (own[..., :, None] + own[..., None, :] - products - products.mT).clamp_(min=0)
    squared.diagonal(dim1=-2, dim2=-1).masked_fill_(own.isfinite(), 0.0)
    return squared.sqrt(), own.sqrt()
