"""Ouro: the whole stack of layers looped a few times, with a norm inside the loop (Zhu et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import bears, described, encoder, label, masks, opened, pretrained, run_and_generate
from dynloop.models.looped_model import LoopedModel, StatePoint, temporarily
from dynloop.models.unembedding import Unembedding

KINDS = {"full_attention": "causal", "sliding_attention": "sliding_window_causal"}

MODEL_TYPES = ("ouro",)
SIGNS = ("model.layers", "model.norm", "model.early_exit_gate", "model.total_ut_steps", "lm_head")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def ouro(model: nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None,
         trust_remote_code: bool = False) -> LoopedModel:
    """An Ouro model behind the protocol.

    One recurrence is h <- norm(layers(h)); the input enters as the initial state alone. Logits are those of the last
    recurrence, whatever exit the checkpoint's settings would choose.

    Args:
        model: an `OuroForCausalLM`, a local folder, or a checkpoint name such as "ByteDance/Ouro-1.4B".
        name: its label; by default the folder's or checkpoint's.
        tokenizer: text -> token numbers, or an object with `.encode`; by default the one beside the checkpoint.
        trust_remote_code: whether the code that comes with a checkpoint may run.

    Returns:
        The specification. Layer k is the k-th layer's output; of the last one, that of the norm after it.

    Raises:
        ValueError: no Ouro model, or an attention implementation without a mask of numbers.

    Misleads:
        Every recurrence of every token is run: the exit gate selects logits and saves no work.

    Source:
        Zhu et al. 2025, Scaling Latent Reasoning via Looped Language Models.
    """
    whole: Any = opened(model, "ouro", SIGNS, lambda source: pretrained(source, trust_remote_code=trust_remote_code))
    inner, config = whole.model, whole.config
    layers = inner.layers[:config.num_hidden_layers]
    called = label(whole, "ouro", name)
    kinds = {kind: KINDS[kind] for kind in sorted({layer.attention_type for layer in layers})}

    def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = inner.embed_tokens(tokens)
        made = {kind: masks(how, config, x) for kind, how in kinds.items()}
        return {"embedded": x, **{kind: mask for kind, mask in made.items() if mask is not None}}

    def initial_state(context: dict[str, torch.Tensor], *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        return context["embedded"]

    def step(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        positions = torch.arange(state.shape[1], device=state.device)
        rotary = inner.rotary_emb(state, positions[None])
        for layer in layers:
            out = layer(state, attention_mask=context.get(layer.attention_type), position_ids=positions[None],
                        cache_position=positions, position_embeddings=rotary, use_cache=False, current_ut=0)
            state = out[0] if isinstance(out, tuple) else out
        return inner.norm(state)

    def readout(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        return whole.lm_head(state)

    def once(tokens: torch.Tensor, state: torch.Tensor, n_recurrences: int, first: int, **settings: Any) -> Any:
        mapping = {kind: masks(how, config, state) if state.shape[1] > 1 else None for kind, how in kinds.items()}
        with temporarily(inner, total_ut_steps=n_recurrences), temporarily(config, total_ut_steps=n_recurrences):
            return whole(inputs_embeds=state, attention_mask=mapping, exit_at_step=n_recurrences - 1, **settings)

    run, generate = run_and_generate(once, inner.embed_tokens)
    return LoopedModel(
        name=called, module=whole, points=[StatePoint((part,)) for part in (*layers[:-1], inner.norm)],
        width=config.hidden_size, training_recurrences=str(inner.total_ut_steps), vocabulary=config.vocab_size,
        encode=encoder(whole, tokenizer, called), embed=embed, initial_state=initial_state, step=step, readout=readout,
        run=run, random_start=False, causal=True, mask="honoured",
        generate=generate if set(kinds) == {"full_attention"} else None, provenance=described(whole, "ouro", model),
        layers={"block": list(layers)}, unembed=Unembedding(whole.lm_head, inner.norm, closed=(len(layers) - 1,)))
