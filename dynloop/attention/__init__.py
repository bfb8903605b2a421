"""Attention while the model runs, without keeping the maps, and the measures of it beside their closed-form nulls."""

from dynloop.attention.attention_distance import attention_distance
from dynloop.attention.attention_stabilisation import attention_lag, attention_stabilisation
from dynloop.attention.calls import AttentionCall, AttentionStatistics, MapDistances
from dynloop.attention.column_concentration import column_concentration
from dynloop.attention.mixing_score import mixing_score
from dynloop.attention.sink_rate import sink_rate
from dynloop.attention.spans import STEP_KINDS, Span, find_spans
from dynloop.attention.statistics import attention_statistics

__all__ = [
           "STEP_KINDS",
           "AttentionCall",
           "AttentionStatistics",
           "MapDistances",
           "Span",
           "attention_distance",
           "attention_lag",
           "attention_stabilisation",
           "attention_statistics",
           "column_concentration",
           "find_spans",
           "mixing_score",
           "sink_rate",
]
