"""Parcae: a loop with a stable diagonal injection (sandyresearch/parcae)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import bears, described, drawn, encoder, opened
from dynloop.models.looped_model import LoopedModel, StatePoint, temporarily

SIGNS = ("transformer.core_block", "transformer.adapter", "transformer.C", "iterate_forward")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def parcae(model: nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None) -> LoopedModel:
    """A Parcae model behind the protocol.

    One recurrence is h <- core(inject(h, e)), with e the prelude's output and an injection that is diagonal,
    h * decay + dt * (B e), or linear, or additive. The state has a width of its own.

    Args:
        model: a `Parcae`, a folder that `parcae_lm.save_pretrained` wrote, or a checkpoint name such as
            "SandyResearch/parcae-140m"; the last two need the package parcae-lm.
        name: its label; by default "parcae", or the folder's or checkpoint's name.
        tokenizer: text -> token numbers, or an object with `.encode`.

    Returns:
        The specification. Initial states are drawn by the model's own `initialize_state` after seeding with the
        prompt's seed, on the CPU and in float32.

    Raises:
        ValueError: no Parcae model. ImportError: no package parcae-lm.

    Misleads:
        The layers ignore attention masks. On recent GPUs attention runs in kernels that can be neither seen nor
        differentiated forward: build the model with attn_impl="sdpa".

    Source:
        github.com/sandyresearch/parcae.
    """
    whole: Any = opened(model, "parcae", SIGNS, _bring)
    config, parts = whole.config, whole.transformer
    called = name or (Path(model).name if isinstance(model, str | Path) else "parcae")

    def positions(x: torch.Tensor) -> torch.Tensor:
        return whole.freqs_cis[:, :x.shape[1]]

    def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = parts.wte(tokens)
        if whole.emb_scale != 1:
            x = x * whole.emb_scale
        for number, block in enumerate(parts.prelude):
            value = whole.value_embeds[str(number)](tokens) if str(number) in whole.value_embeds else None
            x = block(x, positions(x), None, ve=value)
        return {"embedded": parts.ln_prelude(x) if config.prelude_norm else x, "tokens": tokens}

    def initial_state(context: dict[str, torch.Tensor], *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        return drawn(context["embedded"], seeds, whole.initialize_state)

    def step(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        # the layers' value embeddings look the tokens up on the model itself
        with temporarily(whole, _current_input_ids=context["tokens"]):
            return whole.core_block_forward(state, context["embedded"], positions(state), None, torch.tensor(0),
                                            torch.tensor(1))

    def readout(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        # the model's own forward with its loop left out: its head comes in several forms
        count = torch.tensor(0)
        with temporarily(whole, iterate_forward=lambda *_: (state, count, count, state), _current_input_ids=None):
            return whole.forward(context["tokens"], return_logits=True)["logits"]

    def run(tokens: torch.Tensor, n_recurrences: int, state: torch.Tensor) -> torch.Tensor:
        with temporarily(whole, initialize_state=lambda embedded: state.clone(), _current_input_ids=None):
            return whole(tokens, num_steps_pair=torch.tensor([n_recurrences, 0]), return_logits=True)["logits"]

    return LoopedModel(
        name=called, module=whole, points=[StatePoint((block,)) for block in parts.core_block],
        width=config.recurrent_embedding_dimension,
        training_recurrences=f"{config.sampling_scheme}, mean {config.mean_recurrence}",
        vocabulary=parts.wte.num_embeddings, encode=encoder(whole, tokenizer, called), embed=embed,
        initial_state=initial_state, step=step, readout=readout, run=run, random_start=config.state_init != "zero",
        causal=True, mask="ignored", provenance=described(whole, "parcae", model))


def _bring(source: str) -> nn.Module:
    try:
        import parcae_lm
        from parcae_lm.models.parcae.config import ParcaeConfig
    except ImportError as error:
        raise ImportError(f"{source} opens with Parcae's own package ({error}). Run `pip install parcae-lm`, or "
                          "pass the model object.") from None
    folder = Path(source)
    if not folder.is_dir():
        return parcae_lm.from_pretrained(source)
    settings = json.loads((folder / "config.json").read_text())
    if settings.pop("_class_name", None) != "ParcaeConfig":
        raise ValueError(f"{folder / 'config.json'} describes no Parcae model. Name a folder that "
                         "parcae_lm.save_pretrained wrote of one.")
    model = ParcaeConfig(**settings).construct_model()
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    return model.eval()
