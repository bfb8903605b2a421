"""Attention maps whose numbers are known, and random ones."""

import math

import torch


def even(n):
    """Uniform causal attention."""
    return torch.ones(n, n, dtype=torch.float64).tril() / torch.arange(1, n + 1)[:, None]


def sink(n):
    maps = torch.zeros(n, n, dtype=torch.float64)
    maps[:, 0] = 1
    return maps


def drawn(*shape, seed=0, causal=True):
    """Random softmax maps."""
    scores = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if causal:
        scores = scores.masked_fill(torch.ones(shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)
