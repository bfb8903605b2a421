"""HRM: the hierarchical reasoning model on puzzles, a fast and a slow network (Wang et al. 2025)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import bears, described, encoder, opened
from dynloop.models.looped_model import LoopedModel, StatePoint, temporarily
from dynloop.models.unembedding import Unembedding
from dynloop.settings import check_number

SIGNS = ("inner.L_level.layers", "inner.H_level.layers", "inner.L_init", "inner.H_init", "initial_carry")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def hrm(model: nn.Module | str | Path, *, puzzle: int = 0, name: str | None = None,
        tokenizer: Any = None) -> LoopedModel:
    """An HRM behind the protocol.

    One recurrence is one slow cycle: `L_cycles` times z_L <- L(z_L + z_H + x), then z_H <- H(z_H + z_L), with x the
    embedded puzzle. The loop state is z_L and z_H side by side, so that it has twice the model's width.

    Args:
        model: a `HierarchicalReasoningModel_ACTV1`.
        puzzle: number of the puzzle (`puzzle_identifiers`) whose embedding stands before the tokens, for all prompts.
        name: its label, by default "hrm".
        tokenizer: text -> token numbers, or an object with `.encode`.

    Returns:
        The specification. The puzzle's embedding takes the first `prefix` states; logits are those of the tokens.
        Running goes on over as many of the model's outer steps as it takes, with the states carried from one to the
        next and no halting.

    Raises:
        ValueError: no such model; a path (these checkpoints open with the family's own repository alone); a puzzle
            or tokens that the model was not built for.

    Misleads:
        Every token sees every other: tokens of one puzzle are not separate orbits. Beyond `halt_max_steps` times
        `H_cycles` recurrences the model is outside what training showed it.

    Source:
        Wang et al. 2025, Hierarchical Reasoning Model; github.com/sapientinc/HRM.
    """
    return two_timescales(model, "hrm", SIGNS, puzzle, name, tokenizer)


def two_timescales(model: nn.Module | str | Path, family: str, signs: Sequence[str], puzzle: int, name: str | None,
                   tokenizer: Any) -> LoopedModel:
    """HRM, with a network for each state, and TRM, with one for both."""
    whole: Any = opened(model, family, signs)
    inner, config = whole.inner, whole.config
    low = inner.L_level
    high = inner.H_level if family == "hrm" else low
    extra = inner.puzzle_emb_len if config.puzzle_emb_ndim > 0 else 0
    needed = f"a whole number from 0 to {config.num_puzzle_identifiers - 1}, which is the model's last puzzle"
    check_number("puzzle", puzzle, lambda n: n in range(config.num_puzzle_identifiers), needed)
    called = name or family
    points = [*[StatePoint((layer,), "L") for layer in low.layers] * config.L_cycles,
              *[StatePoint((layer,), "H") for layer in high.layers]]

    def given(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        if tokens.shape[1] != config.seq_len:
            raise ValueError(f"{called} takes {config.seq_len} tokens; got {tokens.shape[1]}. Pad or cut the puzzle as "
                             "in training.")
        return {"inputs": tokens.to(torch.int32), "puzzle_identifiers": torch.full_like(tokens[:, 0], puzzle)}

    def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = given(tokens)
        return {"embedded": inner._input_embeddings(batch["inputs"], batch["puzzle_identifiers"])}

    def initial_state(context: dict[str, torch.Tensor], *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        x = context["embedded"]
        return torch.cat((inner.L_init.to(x).expand_as(x), inner.H_init.to(x).expand_as(x)), dim=-1)

    def step(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        fast, slow = state.chunk(2, dim=-1)
        rotary = inner.rotary_emb() if hasattr(inner, "rotary_emb") else None
        for _ in range(config.L_cycles):
            fast = low(fast, slow + context["embedded"], cos_sin=rotary)
        return torch.cat((fast, high(slow, fast, cos_sin=rotary)), dim=-1)

    def readout(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        return inner.lm_head(state.chunk(2, dim=-1)[1])[:, extra:]

    def run(tokens: torch.Tensor, n_recurrences: int, state: torch.Tensor) -> torch.Tensor:
        batch = given(tokens)
        fast, slow = (half.contiguous() for half in state.chunk(2, dim=-1))
        with torch.device(tokens.device):
            carry = whole.initial_carry(batch)
            going = torch.zeros(len(tokens), dtype=torch.bool)
        carry = dataclasses.replace(carry, current_data=batch,
                                    inner_carry=dataclasses.replace(carry.inner_carry, z_L=fast, z_H=slow))
        left = n_recurrences
        while left:
            cycles = min(left, config.H_cycles)
            # halted rows would start again; the count of steps would halt them
            carry = dataclasses.replace(carry, halted=going, steps=torch.zeros_like(carry.steps))
            with temporarily(inner.config, H_cycles=cycles):
                carry, outputs = whole(carry, batch)
            left -= cycles
        return outputs["logits"]

    return LoopedModel(
        name=called, module=whole, points=points, state_points=(len(points) - len(high.layers) - 1, len(points) - 1),
        width=config.hidden_size, random_start=False, causal=False, mask="ignored", forwards="recurrences",
        training_recurrences=f"{config.H_cycles} of {config.L_cycles} fast cycles each, up to {config.halt_max_steps} "
                             "times",
        vocabulary=config.vocab_size, n_tokens=config.seq_len, prefix=extra, dtype=inner.forward_dtype,
        encode=encoder(whole, tokenizer, called), embed=embed, initial_state=initial_state, step=step, readout=readout,
        run=run, unembed=Unembedding(inner.lm_head), provenance={**described(whole, family, model), "puzzle": puzzle})
