"""The numbers of one attention map, block by block."""

from __future__ import annotations

import dataclasses
import math

import torch

from dynloop.attention.scores import LOWEST, Block, Given, Products, blocks
from dynloop.buffers import Buffers


@dataclasses.dataclass
class Kept:
    """What it takes to compute a map again: its scores, and each row's largest score and 1 / sum."""

    shape: tuple[int, int, int, int]
    source: Products | None
    top: torch.Tensor
    inverse: torch.Tensor
    map: torch.Tensor | None
    why_not: str


def summary(source: Products | Given, previous: Kept | None, keep_map: bool,
            buffers: Buffers) -> tuple[dict[str, torch.Tensor], Kept]:
    """The numbers of one map, block by block, and what it takes to compute the map again."""
    n_batch, n_heads, n_queries, n_keys = source.shape
    n_rows = n_batch * n_heads

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=source.dtype, device=source.device)

    columns, squared = empty(n_rows, n_keys).zero_(), empty(n_rows).zero_()
    top, inverse, total, weighted = (empty(n_rows, n_queries, 1) for _ in range(4))
    whole = empty(n_rows, n_queries, n_keys).zero_() if keep_map else None
    plan = list(blocks(source.shape, source.device))
    most = max((b.n_rows * (b.last - b.first) for b in plan), default=0) * n_keys
    scratch, weights_scratch = (buffers.tensor((most,), source.dtype, source.device) for _ in range(2))
    for block in plan:
        keys = source.keys(block)
        if previous is not None and previous.source is not None:
            other = previous.source.keys(block)
            keys = slice(min(keys.start, other.start), max(keys.stop, other.stop))
        shape = (block.n_rows, block.last - block.first, keys.stop - keys.start)
        size = math.prod(shape)
        at = (block.rows, slice(block.first, block.last))
        scores = source.scores(block, keys, scratch[:size].view(shape))
        top[at] = largest = torch.amax(scores, -1, keepdim=True)
        scores = _below(largest, scores, source)
        weights = torch.exp2(scores, out=weights_scratch[:size].view(shape))
        one_over = weights.sum(-1, keepdim=True)
        total[at] = one_over
        one_over.reciprocal_()
        if source.may_be_empty:
            one_over.masked_fill_(top[at] == -math.inf, 0.0)
        inverse[at] = one_over
        weighted[at] = scores.mul_(weights).sum(-1, keepdim=True)
        columns[block.rows, keys] += torch.bmm(one_over.mT, weights)[:, 0]
        if whole is None and previous is None:
            continue
        weights.mul_(one_over)
        if whole is not None:
            whole[(*at, keys)] = weights
        if previous is not None:
            weights.sub_(again(previous, block, keys, scratch[:size].view(shape)))
            squared[block.rows] += torch.linalg.vector_norm(weights, dim=(1, 2)).square_()
    # sum_k A ln A with A = 2^x / z: ln z - ln 2 * sum x 2^x / z, both parts of one sign
    entropies = (total.log2() - weighted * inverse).mul_(math.log(2.0))
    absent = top == -math.inf
    entropies.masked_fill_(absent, 0.0)
    split = (n_batch, n_heads)
    numbers = {"column_sums": columns.unflatten(0, split), "entropies": entropies[..., 0].unflatten(0, split),
               "maxima": inverse[..., 0].unflatten(0, split),
               "n_queries": (n_queries - absent.sum((1, 2))).to(source.dtype).unflatten(0, split),
               "distance": (squared.sqrt() if previous is not None else squared.fill_(math.nan)).unflatten(0, split)}
    kept_map = None if whole is None else whole.unflatten(0, split)
    return numbers, Kept(source.shape, None, top.unflatten(0, split)[..., 0], inverse.unflatten(0, split)[..., 0],
                         kept_map, "")


def again(previous: Kept, block: Block, keys: slice, out: torch.Tensor) -> torch.Tensor:
    """The previous map's weights in one block, by the same operations as when they were first computed."""
    at = (block.rows, slice(block.first, block.last))
    if previous.source is None:
        assert previous.map is not None
        return previous.map.flatten(0, 1)[(*at, keys)]
    scores = previous.source.scores(block, keys, out)
    scores = _below(previous.top.flatten(0, 1)[at][..., None], scores, previous.source)
    return scores.exp2_().mul_(previous.inverse.flatten(0, 1)[at][..., None])


def _below(largest: torch.Tensor, scores: torch.Tensor, source: Products | Given) -> torch.Tensor:
    """Base-2 scores less their row's largest, in place; finite."""
    if not source.may_be_empty:
        return scores.sub_(largest)
    # a row of the least finite numbers (how some models mask) attends evenly, a row of infinities to nothing
    scores.sub_(largest.clamp(min=torch.finfo(scores.dtype).min)).clamp_(min=LOWEST)
    return scores.mul_(source.factor)
