"""A looped model of any family, by name, folder or object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from dynloop.models.by_name import families
from dynloop.models.family import pretrained, transformers
from dynloop.models.looped_model import LoopedModel, unwrapped
from dynloop.models.nano import nano
from dynloop.models.verify import verify
from dynloop.nano import RECIPES, NanoModel

OWN_CODE = ("huginn", "retrofit", "ouro")  # that comes with the checkpoint


def load(model: LoopedModel | nn.Module | str | Path, *, name: str | None = None, tokenizer: Any = None,
         trust_remote_code: bool = False) -> LoopedModel:
    """Find the family of a looped model and put the model behind the protocol.

    Args:
        model: a shipped nano model's name; a folder that `dynloop train` wrote; a folder or name of a checkpoint as
            transformers knows them (Huginn, retrofitted models, Ouro, HRM-Text, ALBERT) or of Parcae or looped
            nanochat; or a model object of any family, recognised by its attributes.
        name: its label; by default the checkpoint's, the folder's or the family's.
        tokenizer: text -> token numbers, or an object with `.encode`; by default what lies beside the checkpoint.
        trust_remote_code: whether code that comes with a checkpoint may run (Huginn, retrofitted models, Ouro).

    Returns:
        The specification of the model's loop; of a checkpoint of another family than nano, verified (see `verify`).

    Raises:
        FileNotFoundError: no such name or folder.
        ImportError: the package that opens the checkpoint is missing.
        ValueError: a model of no known family.
        RuntimeError: the specification does not describe the checkpoint.

    Example:
        >>> from dynloop.models.load import load
        >>> load("nano-settles").width
        128
    """
    if isinstance(model, LoopedModel):
        return model
    if isinstance(model, NanoModel):
        return nano(model, name=name)
    homes = dict(families())
    by_name = not isinstance(model, nn.Module)
    if by_name:
        family = _family_at(str(model), homes)
        if family == "nano":
            return nano(str(model), name=name)
        if family in OWN_CODE:  # which of them shows in the module alone
            model = pretrained(str(model), trust_remote_code=trust_remote_code)
    if isinstance(model, nn.Module):
        family = next((known for known, home in homes.items()
                       if hasattr(home, "recognises") and home.recognises(unwrapped(model))), "")
        if not family:
            raise ValueError(f"{type(unwrapped(model)).__name__} is of no known family ({', '.join(homes)}). "
                             "Describe its loop with dynloop.models.hooked_block; `dynloop inspect` finds the paths.")
    looped = getattr(homes[family], family)(model, name=name, tokenizer=tokenizer)
    if by_name:
        verify(looped)
    return looped


def _family_at(source: str, homes: dict[str, Any]) -> str:
    """The family of what lies in a folder or under a name."""
    folder = Path(source)
    if source in RECIPES:
        return "nano"
    if folder.is_dir():
        if (folder / "config.json").is_file():
            settings = json.loads((folder / "config.json").read_text())
        elif any(folder.glob("meta_*.json")) and any(folder.glob("model_*.pt")):
            return "looped_nanochat"
        else:
            return "nano"
    elif folder.exists() or source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"no model {source!r}: it is neither a shipped one ({', '.join(RECIPES)}), nor a "
                                "folder, nor the name of a checkpoint (owner/name).")
    else:
        try:
            settings, _ = transformers().PretrainedConfig.get_config_dict(source)
        except OSError as error:
            raise FileNotFoundError(f"no folder and no checkpoint {source!r}: {error}") from None
    if settings.get("_class_name") == "ParcaeConfig":
        return "parcae"
    kind = settings.get("model_type")
    for family, home in homes.items():
        if kind in getattr(home, "MODEL_TYPES", ()):
            return family
    raise ValueError(f"{source} is a model of type {kind!r}, of no known family ({', '.join(homes)}). Load it "
                     "yourself and describe its loop with dynloop.models.hooked_block.")
