"""What is known of one attention call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable

import torch


def concentration(column_sums: torch.Tensor) -> torch.Tensor:
    """1 + sum_k c_k ln c_k / ln S, c the shares of S keys in all attention (..., S): 1 for a single key, 0 if equal."""
    share = column_sums / column_sums.sum(-1, keepdim=True)
    n_keys = column_sums.shape[-1]
    return 1 + torch.special.xlogy(share, share).sum(-1) / (math.log(n_keys) if n_keys > 1 else math.nan)


@dataclasses.dataclass(frozen=True)
class AttentionCall:
    """One attention call: B prompts, H heads, T queries, S keys; numbers of the weights A (B, H, T, S).

    Attributes:
        module: dotted name of the innermost module in which attention was called; "" outside of all.
        kind: "sdpa", "flex", "softmax", or the symbol's dotted path.
        forward: how many forwards of the whole model had begun, less one; -1 outside of any.
        call: how many attention calls of this module came before.
        layer: which layer it belongs to; the module's name, unless `layer=` says otherwise.
        recurrence: how many calls of this layer came before.
        column_sums: (B, H, S), sum_t A[t, k].
        entropies: (B, H, T), -sum_k A[t, k] ln A[t, k], in nats.
        maxima: (B, H, T), max_k A[t, k].
        n_queries: (B, H), queries that attend to anything; rows of A for the others are 0.
        distance: (B, H), Frobenius norm of A less this layer's A at the previous recurrence; NaN where `note` says why.
        note: why there is no distance; "" where there is one.
        map: (B, H, T, S), if maps were asked for.
    """

    module: str
    kind: str
    forward: int
    call: int
    layer: Hashable
    recurrence: int
    column_sums: torch.Tensor
    entropies: torch.Tensor
    maxima: torch.Tensor
    n_queries: torch.Tensor
    distance: torch.Tensor
    note: str = ""
    map: torch.Tensor | None = None

    @property
    def sink_scores(self) -> torch.Tensor:
        """(B, H, S): mean over queries of the weight on each key; [..., 0] is the sink score of the first token."""
        return self.column_sums / self.n_queries[..., None]

    @property
    def entropy(self) -> torch.Tensor:
        """(B, H): mean over queries, in nats."""
        return self.entropies.sum(-1) / self.n_queries

    @property
    def maximum(self) -> torch.Tensor:
        """(B, H): mean over queries of the largest weight."""
        return self.maxima.sum(-1) / self.n_queries


    @property
    def concentration(self) -> torch.Tensor:
        """(B, H): from 0, all keys share evenly, to 1, all attention on one key; NaN for a single key."""
        return concentration(self.column_sums)


@dataclasses.dataclass(frozen=True)
class MapDistances:
    """Frobenius distances between all pairs of N maps of one forward.

    Attributes:
        forward: which forward of the whole model.
        layers: (N,), the layer of each map.
        recurrences: (N,), the recurrence of each map.
        distances: (B, H, N, N), ||A_i - A_j||_F of each prompt and head, in double precision.
        norms: (B, H, N), ||A_i||_F.
    """

    forward: int
    layers: tuple[Hashable, ...]
    recurrences: tuple[int, ...]
    distances: torch.Tensor
    norms: torch.Tensor


@dataclasses.dataclass
class AttentionStatistics:
    """What was seen: `calls` in the order in which they happened; `pairs` of every forward that has ended."""

    calls: list[AttentionCall] = dataclasses.field(default_factory=list)
    pairs: list[MapDistances] = dataclasses.field(default_factory=list)
