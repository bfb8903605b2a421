"""What the package ships: three trained checkpoints and the prompts that they are analysed on."""

from __future__ import annotations

import json
from pathlib import Path

from dynloop.nano.config import RECIPES
from dynloop.nano.model import NanoModel
from dynloop.nano.training import load_model

_HERE = Path(__file__).parent


def load_checkpoint(name: str) -> tuple[NanoModel, dict]:
    """A shipped model and its training record, by name.

    Raises:
        ValueError: no such checkpoint.

    Example:
        >>> from dynloop.nano import load_checkpoint
        >>> model, record = load_checkpoint("nano-settles")
        >>> model.config.injection, record["training"]["recurrences"]
        ('linear', 'uniform')
    """
    if name not in RECIPES:
        raise ValueError(f"no shipped checkpoint is called {name!r}; there are {', '.join(RECIPES)}. "
                         "A model of your own is read with load_model(folder).")
    return load_model(_HERE / "checkpoints" / name)


def shipped_prompts() -> list[str]:
    """64 prompts of 96 bytes from the held-out files of the standard library, the same on every machine."""
    return [prompt["text"] for prompt in json.loads((_HERE / "prompts.json").read_text())["prompts"]]
