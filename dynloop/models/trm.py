"""TRM: the tiny recursive model on puzzles, one network for the fast and the slow state (Jolicoeur-Martineau 2025)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dynloop.models.family import bears
from dynloop.models.hrm import two_timescales
from dynloop.models.looped_model import LoopedModel

SIGNS = ("inner.L_level.layers", "not inner.H_level", "inner.L_init", "inner.H_init", "initial_carry")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def trm(model: nn.Module | str | Path, *, puzzle: int = 0, name: str | None = None,
        tokenizer: Any = None) -> LoopedModel:
    """A TRM behind the protocol.

    One recurrence is one slow cycle: `L_cycles` times z_L <- N(z_L + z_H + x), then z_H <- N(z_H + z_L), with one
    network N for both. Of every `L_cycles` + 1 calls of a layer the last belongs to stack "H". The loop state is z_L
    and z_H side by side.

    Args:
        model: a `TinyRecursiveReasoningModel_ACTV1`.
        puzzle: number of the puzzle (`puzzle_identifiers`) whose embedding stands before the tokens, for all prompts.
        name: its label, by default "trm".
        tokenizer: text -> token numbers, or an object with `.encode`.

    Returns:
        The specification; see `hrm`. Where attention is replaced by a network over the tokens (`mlp_t`) there is no
        attention to measure.

    Raises:
        ValueError: as `hrm`.

    Misleads:
        As `hrm`.

    Source:
        Jolicoeur-Martineau 2025, Less is More: Recursive Reasoning with Tiny Networks;
        github.com/SamsungSAILMontreal/TinyRecursiveModels.
    """
    return two_timescales(model, "trm", SIGNS, puzzle, name, tokenizer)
