"""HRM-Text as in transformers: two stacks of layers, a fast and a slow one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import bears, described, encoder, label, masks, opened, pretrained, run_and_generate
from dynloop.models.looped_model import LoopedModel, StatePoint, temporarily
from dynloop.models.unembedding import Unembedding

MODEL_TYPES = ("hrm_text",)
SIGNS = ("model.L_module.layers", "model.H_module.layers", "model.z_L_init", "lm_head")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def hrm_text(model: nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None) -> LoopedModel:
    """An HRM-Text model behind the protocol.

    One recurrence is one slow cycle: `L_cycles` times z_L <- L(z_L + z_H), then z_H <- H(z_H + z_L). The loop state is
    z_L and z_H side by side, so that it has twice the model's width. The input enters as the initial z_H alone.

    Args:
        model: an `HrmTextForCausalLM`, a local folder, or a checkpoint name such as "sapientinc/HRM-Text-1B".
        name: its label; by default the folder's or checkpoint's.
        tokenizer: text -> token numbers, or an object with `.encode`; by default the one beside the checkpoint.

    Returns:
        The specification. Within a recurrence every layer of stack "L" is recorded `L_cycles` times, then those of "H";
        of the last layer of a stack what is recorded is the stack's output, after its final norm.

    Raises:
        ValueError: no HRM-Text model, or an attention implementation without a mask of numbers.

    Misleads:
        Prompts run causally. In training the instruction's tokens attended to one another both ways (prefix-LM).

    Source:
        sapientinc/HRM-Text-1B; `hrm_text` in transformers from 5.9.
    """
    whole: Any = opened(model, "hrm_text", SIGNS, pretrained)
    inner, config = whole.model, whole.config
    low, high = inner.L_module, inner.H_module
    called = label(whole, "hrm_text", name)

    def stack(module: Any, called: str) -> list[StatePoint]:
        return [StatePoint((part,), called) for part in (*module.layers[:-1], module)]

    points = [*stack(low, "L") * config.L_cycles, *stack(high, "H")]

    def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = inner.embed_tokens(tokens) * inner.embedding_scale
        mask = masks("causal", config, x)
        return {"embedded": x} if mask is None else {"embedded": x, "mask": mask}

    def initial_state(context: dict[str, torch.Tensor], *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        x = context["embedded"]
        return torch.cat((inner.z_L_init.to(x).expand_as(x), x), dim=-1)

    def step(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        fast, slow = state.chunk(2, dim=-1)
        positions = torch.arange(state.shape[1], device=state.device)[None]
        fixed = {"attention_mask": context.get("mask"), "position_ids": positions,
                 "position_embeddings": inner.rotary_emb(slow, positions)}
        for _ in range(config.L_cycles):
            fast = low(fast + slow, **fixed)
        return torch.cat((fast, high(slow + fast, **fixed)), dim=-1)

    def readout(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        return whole.lm_head(state.chunk(2, dim=-1)[1])

    def once(tokens: torch.Tensor, state: torch.Tensor, n_recurrences: int, first: int, **settings: Any) -> Any:
        fast, slow = state.chunk(2, dim=-1)
        own = inner.z_L_init
        calls = len(high.layers) * n_recurrences * (config.L_cycles + 1)
        try:
            # z_H enters where the embeddings do, unscaled; z_L where the model keeps its own start, one a token
            inner.z_L_init = nn.Parameter(fast, requires_grad=False)
            with temporarily(inner, embedding_scale=1.0), \
                    temporarily(config, H_cycles=n_recurrences, num_hidden_layers=calls):
                return whole(inputs_embeds=slow, **settings)
        finally:
            inner.z_L_init = own

    run, generate = run_and_generate(once, lambda tokens: initial_state(embed(tokens)))
    return LoopedModel(
        name=called, module=whole, points=points, state_points=(len(points) - len(high.layers) - 1, len(points) - 1),
        width=config.hidden_size, training_recurrences=f"{config.H_cycles} of {config.L_cycles} fast cycles each",
        vocabulary=config.vocab_size, encode=encoder(whole, tokenizer, called), embed=embed,
        initial_state=initial_state, step=step, readout=readout, run=run, generate=generate, random_start=False,
        causal=True, mask="honoured", provenance=described(whole, "hrm_text", model),
        layers={"block": [*low.layers, *high.layers]},
        unembed=Unembedding(whole.lm_head, high.final_norm,
                            closed=[n for n, point in enumerate(points) if point.modules[0] in (low, high)]))
