"""Retrofitted recurrence: pretrained Llama, OLMo and TinyLlama models made to loop (McLeish et al. 2025)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dynloop.models.family import bears
from dynloop.models.huginn import raven
from dynloop.models.looped_model import LoopedModel

SIGNS = ("transformer.core_block", "transformer.adapter", "iterate_forward", "rotary_emb")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def retrofit(model: nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None,
             trust_remote_code: bool = False) -> LoopedModel:
    """A retrofitted model behind the protocol.

    One recurrence is h <- core(adapter([h, e])) as in Huginn; no norm stands between the loop and the coda.

    Args:
        model: a `RavenForCausalLM` of the retrofitting code, a local folder, or a checkpoint name.
        name: its label; by default the folder's or checkpoint's.
        tokenizer: text -> token numbers, or an object with `.encode`; by default the one beside the checkpoint.
        trust_remote_code: whether the code that comes with a checkpoint may run.

    Returns:
        The specification. Where the configuration says so the loop starts from the prelude's output instead of noise.
        With initial_state_mode "skip-adapter" the first recurrence passes the adapter by: the loop is not autonomous,
        and `step` takes the number of the recurrence.

    Raises:
        ValueError: no such model; or it adds noise while it runs, so that there is no map.

    Misleads:
        The model ignores attention masks: padding changes the states of real tokens. Do not pad.

    Source:
        McLeish et al. 2025, Teaching Pretrained Language Models to Think Deeper with Retrofitted Recurrence;
        github.com/mcleish7/retrofitting-recurrence.
    """
    return raven(model, "retrofit", SIGNS, name=name, tokenizer=tokenizer, trust_remote_code=trust_remote_code)
