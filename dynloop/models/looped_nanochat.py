"""Looped nanochat: prelude, recurrent block and coda in nanochat's style (kschwethelm/looped_nanochat)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import bears, described, drawn, encoder, opened
from dynloop.models.looped_model import LoopedModel, StatePoint
from dynloop.models.unembedding import Unembedding

SIGNS = ("transformer.recur", "transformer.coda", "norm_recur", "_state_transfer", "_predict")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def looped_nanochat(model: nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None) -> LoopedModel:
    """A looped nanochat model behind the protocol.

    One recurrence is s <- norm_recur(recur(inject([e, s]))), with e the prelude's output; without the injection where
    the model was trained so.

    Args:
        model: a `GPT` of looped_nanochat, or a checkpoint folder (its last step), which needs the repository's package
            `nanochat` on the path.
        name: its label; by default "looped_nanochat" or the folder's name.
        tokenizer: text -> token numbers, or an object with `.encode`.

    Returns:
        The specification. Layer k is the k-th layer's output; of the last one, that of the norm after it.

    Raises:
        ValueError: no looped nanochat model.

    Misleads:
        On recent GPUs attention runs in flash-attention kernels that can be neither seen nor differentiated forward:
        set `nanochat.flash_attention._override_impl = "sdpa"` first.

    Source:
        github.com/kschwethelm/looped_nanochat.
    """
    gpt: Any = opened(model, "looped_nanochat", SIGNS, _bring)
    config, parts = gpt.config, gpt.transformer
    called = name or (Path(model).resolve().name if isinstance(model, str | Path) else "looped_nanochat")
    mode = config.input_injection
    loops = getattr(config, "train_recur_mean", None)

    def positions(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return gpt.cos[:, :x.shape[1]], gpt.sin[:, :x.shape[1]]

    def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = gpt.norm_emb(parts.wte(tokens))
        for block, window in zip(parts.prelude, gpt.window_sizes, strict=False):
            x = block(x, positions(x), window, None, None)
        return {"embedded": x}

    def initial_state(context: dict[str, torch.Tensor], *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        if mode != "inject_init_random":
            return context["embedded"]
        return drawn(context["embedded"], seeds, lambda like: torch.randn_like(like) * config.n_embd ** -0.5)

    def step(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        x = gpt._state_transfer(context["embedded"], s=state)
        for block, window in zip(parts.recur, gpt.window_sizes[config.n_prelude:], strict=False):
            x = block(x, positions(x), window, None, None)
        return gpt.norm_recur(x)

    def readout(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        return gpt._predict(state, positions(state))

    def capped(logits: torch.Tensor) -> torch.Tensor:
        cap = getattr(config, "logit_softcap", 15)
        return cap * torch.tanh(logits[..., :config.vocab_size].float() / cap)

    def run(tokens: torch.Tensor, n_recurrences: int, state: torch.Tensor) -> torch.Tensor:
        return gpt(tokens, num_recur=n_recurrences, warm_start_state=state)[0]

    return LoopedModel(
        name=called, module=gpt, points=[StatePoint((part,)) for part in (*parts.recur[:-1], gpt.norm_recur)],
        width=config.n_embd, training_recurrences=f"random, mean {loops:g}, at most {config.train_recur_max}",
        vocabulary=config.vocab_size, encode=encoder(gpt, tokenizer, called), embed=embed, initial_state=initial_state,
        step=step, readout=readout, run=run, random_start=mode == "inject_init_random", causal=True, mask="ignored",
        layers={"prelude": list(parts.prelude), "block": list(parts.recur), "coda": list(parts.coda)},
        unembed=Unembedding(gpt.lm_head, gpt.norm_final, after=capped),
        provenance=described(gpt, "looped_nanochat", model))


def _bring(source: str) -> nn.Module:
    try:
        from nanochat.gpt import GPT, GPTConfig
    except ImportError as error:
        raise ImportError(f"{source} opens with looped_nanochat's own package ({error}). Clone github.com/kschwethelm/"
                          "looped_nanochat, put it on PYTHONPATH, or pass the model object.") from None
    records = sorted(Path(source).glob("meta_*.json"))
    if not records:
        raise FileNotFoundError(f"no meta_*.json in {source}. Name the folder of a checkpoint, beside its model_*.pt.")
    step = records[-1].stem.removeprefix("meta_")
    weights = torch.load(Path(source) / f"model_{step}.pt", map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**json.loads(records[-1].read_text())["model_config"]))
    model.init_weights()  # which makes the rotary tables, too
    model.load_state_dict({key.removeprefix("_orig_mod."): value for key, value in weights.items()})
    return model.eval()
