"""The nano family: `dynloop.nano` models, by shipped name, by folder, or as objects."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from dynloop.models.looped_model import LoopedModel, StatePoint
from dynloop.models.unembedding import Unembedding
from dynloop.nano import RECIPES, NanoModel, load_checkpoint, load_model, model_hash
from dynloop.nano.model import VOCABULARY


def recognises(module: nn.Module) -> bool:
    """Whether a module is of this family."""
    return isinstance(module, NanoModel)


def nano(model: NanoModel | str | Path, *, name: str | None = None) -> LoopedModel:
    """A nano model behind the protocol.

    The feed-forward control of equal depth (`NanoConfig(looped=False)`) is one recurrence of all its layers, the only
    one that it has: a reference that `mirroring` takes. Record it with n_recurrences=1; any other number is refused.

    Args:
        model: the name of a shipped checkpoint, a folder that `dynloop train` wrote, or a model.
        name: its label; by default the checkpoint's or folder's name, "nano" for a bare model.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint or folder, or it is damaged.
    """
    record: dict[str, Any] = {}
    if isinstance(model, NanoModel):
        label = name or "nano"
    elif str(model) in RECIPES:
        label, (model, record) = name or str(model), load_checkpoint(str(model))
    elif Path(model).is_dir():
        label, (model, record) = name or Path(model).resolve().name, load_model(model)
    else:
        raise FileNotFoundError(f"no model {str(model)!r}: it is neither a shipped checkpoint ({', '.join(RECIPES)}) "
                                "nor a folder that `dynloop train` wrote.")
    config = model.config
    loops = str(model.n_recurrences) if config.looped else "1 (feed-forward)"
    if config.looped and record.get("training", {}).get("recurrences") == "uniform":
        loops = f"uniform on 1 to {2 * config.n_recurrences}"
    provenance: dict[str, Any] = {"family": "nano", "sha256": model_hash(model), "model": dataclasses.asdict(config),
                  **{key: value for key, value in record.items() if key in ("training", "corpus", "held_out_loss")}}
    return LoopedModel(
        name=label, module=model, width=config.width,
        points=[StatePoint((part,)) for part in (*model.block[:-1], model.loop_norm)],
        training_recurrences=loops, vocabulary=VOCABULARY,
        encode=lambda text: list(text.encode()), embed=model.embed,
        initial_state=model.initial_state, step=model.step, readout=model.readout,
        random_start=config.initial_state == "random", most_recurrences=None if config.looped else 1,
        provenance=provenance, run=lambda tokens, n, state: model(tokens, n_recurrences=n, initial_state=state),
        layers={"prelude": list(model.prelude), "block": list(model.block), "coda": list(model.coda)},
        unembed=Unembedding(model.head, model.final_norm))
