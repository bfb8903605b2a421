"""What is known of one attention call."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable

import torch


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


@dataclasses.dataclass
class AttentionStatistics:
    """What was seen: `calls` in the order in which they happened."""

    calls: list[AttentionCall] = dataclasses.field(default_factory=list)
