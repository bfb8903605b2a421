"""The untrained control: the same architecture with new random weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from dynloop.models.load import load
from dynloop.models.looped_model import LoopedModel, unwrapped
from dynloop.nano import NanoModel
from dynloop.settings import check_whole


def untrained(model: LoopedModel | nn.Module | str, *, seed: int = 0, name: str | None = None) -> LoopedModel:
    """A copy of a looped model with the weights that its architecture begins training with.

    Nano models and models of transformers are made anew from their configuration, which draws weights as they were
    drawn before training; of others every module that holds weights must have `reset_parameters`, as torch's own
    layers do.

    Args:
        model: what `load` takes.
        seed: of the weights.
        name: of the copy; by default the model's, with "-untrained".

    Returns:
        The model behind the protocol; its provenance says under "untrained" of which model it is a copy, and the seed.

    Raises:
        ValueError: weights that nothing can draw anew.

    Misleads:
        Weights as torch draws them are not always those that a training run began with: a training code may scale them
        by itself.

    Example:
        >>> from dynloop.models.untrained import untrained
        >>> copy = untrained("nano-settles", seed=3)
        >>> copy.name, copy.provenance["untrained"]["seed"]
        ('nano-settles-untrained', 3)
    """
    check_whole("seed", seed, 0, "a whole number from 0 (the seed of the weights)")
    trained = load(model)
    label = name or f"{trained.name}-untrained"
    fresh = load(_anew(unwrapped(trained.module), trained.name, int(seed)), name=label)
    said = {"untrained": {"of": trained.name, "seed": int(seed), "sha256": trained.provenance.get("sha256")}}
    return dataclasses.replace(fresh, encode=trained.encode, training_recurrences=trained.training_recurrences,
                               provenance={**fresh.provenance, **said})


def _anew(module: nn.Module, name: str, seed: int) -> nn.Module:
    """A module of the same kind with new weights, on the same device and in the same dtype."""
    if isinstance(module, NanoModel):
        return NanoModel(module.config, seed=seed).to(module.embedding.weight)
    some = next(module.parameters())
    kind: Any = type(module)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if hasattr(module, "config") and hasattr(module, "_init_weights"):  # of transformers
            return kind(copy.deepcopy(module.config)).to(device=some.device, dtype=some.dtype)
        holders = [(path, part) for path, part in module.named_modules() if part._parameters]
        if without := [path or name for path, part in holders if not hasattr(part, "reset_parameters")]:
            more = f" and {len(without) - 3} more" if len(without) > 3 else ""
            raise ValueError(f"the weights of {', '.join(without[:3])}{more} in {name} cannot be drawn anew: "
                             f"{kind.__name__} has no configuration that dynloop knows and these modules no "
                             "reset_parameters. Build the untrained model with its own code, and capture that.")
        fresh = copy.deepcopy(module).cpu()
        for part in fresh.modules():
            if part._parameters:
                part.reset_parameters()  # type: ignore[operator]
    return fresh.to(device=some.device, dtype=some.dtype)
