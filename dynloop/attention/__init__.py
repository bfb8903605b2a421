"""Attention while the model runs: statistics of every call, without keeping the maps."""

from dynloop.attention.calls import AttentionCall, AttentionStatistics
from dynloop.attention.statistics import attention_statistics

__all__ = ["AttentionCall", "AttentionStatistics", "attention_statistics"]
