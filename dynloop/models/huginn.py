"""Huginn: recurrent-pretraining's depth-recurrent models (Geiping et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynloop.models.family import bears, described, drawn, encoder, label, opened, pretrained, run_and_generate
from dynloop.models.looped_model import LoopedModel, StatePoint
from dynloop.models.unembedding import Unembedding

MODEL_TYPES = ("huginn_raven",)
SIGNS = ("transformer.core_block", "transformer.adapter", "iterate_forward", "freqs_cis", "not transformer.C")


def recognises(module: nn.Module) -> bool:
    """Whether a model is of this family, by its attributes alone."""
    return bears(module, SIGNS)


def huginn(model: nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None,
           trust_remote_code: bool = False) -> LoopedModel:
    """A Huginn model behind the protocol.

    One recurrence is h <- core(adapter([h, e])), with e the prelude's output; the state is what the last core layer
    returns. The model's `latent_states` is not that state but its final norm.

    Args:
        model: a `RavenForCausalLM`, a local folder, or a checkpoint name such as "tomg-group-umd/huginn-0125".
        name: its label; by default the folder's or checkpoint's.
        tokenizer: text -> token numbers, or an object with `.encode`; by default the one beside the checkpoint.
        trust_remote_code: whether the code that comes with a checkpoint may run.

    Returns:
        The specification. Initial states are drawn by the model's own `initialize_state` after seeding with the
        prompt's seed, on the CPU and in float32.

    Raises:
        ValueError: no Huginn model; or it adds noise while it runs, so that there is no map.

    Misleads:
        The model ignores attention masks: padding changes the states of real tokens. Do not pad. Generated tokens start
        from states of their own, drawn anew; with a cache, they attend to what earlier tokens were in the same
        recurrence.

    Source:
        Geiping et al. 2025, Scaling up Test-Time Compute with Latent Reasoning: A Recurrent Depth Approach;
        github.com/seal-rg/recurrent-pretraining.
    """
    return raven(model, "huginn", SIGNS, name=name, tokenizer=tokenizer, trust_remote_code=trust_remote_code)


def raven(model: nn.Module | str | Path, family: str, signs: Sequence[str], *, name: str | None, tokenizer: Any,
          trust_remote_code: bool) -> LoopedModel:
    """Huginn and what was retrofitted in its image: they differ in rotary positions and in the norm before the coda."""
    raven: Any = opened(model, family, signs,
                        lambda source: pretrained(source, trust_remote_code=trust_remote_code))
    config, parts = raven.config, raven.transformer
    if getattr(config, "test_time_noise", 0):
        raise ValueError(f"the model adds noise at every recurrence (test_time_noise={config.test_time_noise}), so "
                         "that its loop is no map. Set model.config.test_time_noise = 0.")
    start = getattr(config, "initial_state_mode", "random")  # of the fork that starts from the prelude
    skips = start == "skip-adapter"
    called = label(raven, family, name)
    pad = getattr(config, "pad_token_id", None)

    def positions(x: torch.Tensor) -> Any:
        if family == "huginn":
            return raven.freqs_cis[:, :x.shape[1]]
        return raven.rotary_emb(x, torch.arange(x.shape[1], device=x.device)[None])

    def embed(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        x = parts.wte(tokens)
        if raven.emb_scale != 1:
            x = x * raven.emb_scale
        rotary = positions(x)
        for number, block in enumerate(parts.prelude):
            x = block(x, rotary, torch.tensor(number), None, None)
        return {"embedded": x}

    def initial_state(context: dict[str, torch.Tensor], *, seeds: Sequence[int] | None = None) -> torch.Tensor:
        if start in ("embed-init", "skip-adapter"):
            return context["embedded"]
        return drawn(context["embedded"], seeds, raven.initialize_state)

    def step(state: torch.Tensor, context: dict[str, torch.Tensor], *, recurrence: int = 0) -> torch.Tensor:
        return raven.core_block_forward(state, context["embedded"], positions(state), None, None, torch.tensor(1),
                                        recurrence)[0]

    def readout(state: torch.Tensor, context: dict[str, torch.Tensor]) -> torch.Tensor:
        x, rotary = parts.ln_f(state) if family == "huginn" else state, positions(state)
        for number, block in enumerate(parts.coda):
            x = block(x, rotary, torch.tensor(-1 - number), None, None)
        logits = raven.lm_head(parts.ln_f(x))
        return logits.float() if family == "huginn" else logits

    def once(tokens: torch.Tensor, state: torch.Tensor | None, n_recurrences: int, first: int, **settings: Any) -> Any:
        where = {"cache_position": torch.arange(first, first + tokens.shape[1], device=tokens.device)} if first else {}
        return raven(input_ids=tokens, input_states=state, num_steps=n_recurrences, **where, **settings)

    def begin(tokens: torch.Tensor) -> torch.Tensor | None:
        """A new token's start; one number of torch's own random state decides which, so that a seed repeats it."""
        if start != "random":
            return None
        seeds = torch.randint(2**31, (len(tokens),), device="cpu").tolist()
        return drawn(parts.wte(tokens), seeds, raven.initialize_state)

    run, generate = run_and_generate(once, begin)
    return LoopedModel(
        name=called, module=raven, points=[StatePoint((block,)) for block in parts.core_block], width=config.n_embd,
        training_recurrences=f"{getattr(config, 'sampling_scheme', 'random')}, mean {config.mean_recurrence}",
        vocabulary=parts.wte.num_embeddings, encode=encoder(raven, tokenizer, called), embed=embed,
        initial_state=initial_state, step=step, readout=readout, run=run, generate=generate,
        random_start=start == "random",
        autonomous=not skips, causal=True, mask="ignored",
        padding=None if pad in (getattr(config, "bos_token_id", None), getattr(config, "eos_token_id", None)) else pad,
        layers={part: list(parts[name]) for part, name in (("prelude", "prelude"), ("block", "core_block"),
                                                           ("coda", "coda"))},
        unembed=Unembedding(raven.lm_head, parts.ln_f,
                            after=(lambda logits: logits.float()) if family == "huginn" else None),
        provenance=described(raven, family, model))
