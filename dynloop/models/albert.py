"""ALBERT as in transformers: one group of layers applied again and again, attending both ways (Lan et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import bears, described, encoder, label, opened, pretrained
from dynloop.models.looped_model import LoopedModel, StatePoint, temporarily
from dynloop.models.unembedding import Unembedding

MODEL_TYPES = ("albert",)
SIGNS = ("albert.encoder.albert_layer_groups", "albert.encoder.embedding_hidden_mapping_in", "predictions")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def albert(model: nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None) -> LoopedModel:
    """An ALBERT model behind the protocol.

    One recurrence is one application of the group of layers that all depths share; the input enters as the initial
    state alone.

    Args:
        model: an `AlbertForMaskedLM` or `AlbertForPreTraining`, a local folder, or a checkpoint name such as
            "albert/albert-base-v2".
        name: its label; by default the folder's or checkpoint's.
        tokenizer: text -> token numbers, or an object with `.encode`; by default the one beside the checkpoint.

    Returns:
        The specification.

    Raises:
        ValueError: no ALBERT model with a language-model head, or one of several groups.

    Misleads:
        Every token sees every other: tokens of one prompt are not separate orbits, and per-token spectra do not exist.

    Source:
        Lan et al. 2020, ALBERT: A Lite BERT for Self-supervised Learning of Language Representations.
    """
    whole: Any = opened(model, "albert", SIGNS, lambda source: pretrained(source, head="AutoModelForMaskedLM"))
    inner, config = whole.albert, whole.config
    encoded = inner.encoder
    if len(encoded.albert_layer_groups) != 1:
        raise ValueError(f"the model has {len(encoded.albert_layer_groups)} groups of layers, each applied in a part "
                         "of the depth: there is no one map to iterate. Models of one group are served.")
    group = encoded.albert_layer_groups[0]
    called = label(whole, "albert", name)

    def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embedded": encoded.embedding_hidden_mapping_in(inner.embeddings(tokens))}

    def initial_state(context: dict[str, torch.Tensor], *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        return context["embedded"]

    def step(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        for layer in group.albert_layers:
            out = layer(state, None)  # without padding there is nothing to mask
            state = out[0] if isinstance(out, tuple) else out
        return state

    def readout(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        return whole.predictions(state)

    def run(tokens: torch.Tensor, n_recurrences: int, state: torch.Tensor) -> torch.Tensor:
        handle = encoded.embedding_hidden_mapping_in.register_forward_hook(lambda *_: state)
        try:
            with temporarily(encoded.config, num_hidden_layers=n_recurrences):
                out = whole(input_ids=tokens)
        finally:
            handle.remove()
        return out.logits if "logits" in out else out.prediction_logits

    return LoopedModel(
        name=called, module=whole, points=[StatePoint((layer,)) for layer in group.albert_layers],
        width=config.hidden_size, training_recurrences=str(config.num_hidden_layers), vocabulary=config.vocab_size,
        encode=encoder(whole, tokenizer, called), embed=embed, initial_state=initial_state, step=step, readout=readout,
        run=run, random_start=False, causal=False, mask="honoured", provenance=described(whole, "albert", model),
        unembed=Unembedding(whole.predictions))
