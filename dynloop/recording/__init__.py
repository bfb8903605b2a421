"""Run a live model and record its states. (The room is not called `capture`: the function is, and Python binds a
submodule's name on its package.)"""

from dynloop.recording.attention import attention_of
from dynloop.recording.capture import capture
from dynloop.recording.lenses import coda_lens, logit_lens
from dynloop.recording.prompt_states import prompt_states
from dynloop.recording.record import record
from dynloop.recording.span_attention import span_attention
from dynloop.recording.span_removal import span_importance, span_removal
from dynloop.recording.statistics import step_statistics

__all__ = [
           "attention_of",
           "capture",
           "coda_lens",
           "logit_lens",
           "prompt_states",
           "record",
           "span_attention",
           "span_importance",
           "span_removal",
           "step_statistics",
]
