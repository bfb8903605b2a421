"""The families that there are."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any


def families() -> Iterator[tuple[str, Any]]:
    """(name, Python module) of every family: the files beside this one that hold a function of their own name and say
    what they recognise.
    """
    package = importlib.import_module("dynloop.models")
    for info in pkgutil.iter_modules(package.__path__):
        home = importlib.import_module(f"dynloop.models.{info.name}")
        if hasattr(home, "MODEL_TYPES") or hasattr(home, "recognises"):
            yield info.name, home
