"""Pieces of a study that are computed once: an interrupted run goes on with the next one."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

Make = Callable[[], Any]


def fingerprint(part: ModuleType, *settings: Any) -> str:
    """What the pieces of a part depend on: the functions that it names in COMPUTE, and settings.

    Sentences, tables and figures may change without a new computation.
    """
    code = [inspect.getsource(getattr(part, name)) for name in part.COMPUTE]
    return hashlib.sha256("".join([*code, repr(settings)]).encode()).hexdigest()[:16]


def computed(folder: Path, made_by: str, makes: Mapping[str, Make], *, label: str) -> dict[str, Any]:
    """All pieces by name: those that are kept in the folder as they are, the others made and kept.

    Args:
        folder: where they are kept, a JSON file each.
        made_by: of the code and settings; pieces made by others are made again.
        makes: name -> function that makes plain values.
        label: of the progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, make in tqdm(makes.items(), desc=label, unit="piece", disable=None):
        file = folder / f"{name}.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if kept.get("made_by") != made_by:
            kept = {"made_by": made_by, "piece": make()}
            part = file.with_name(file.name + ".part")
            part.write_text(json.dumps(kept), encoding="utf-8")
            part.replace(file)
        found[name] = json.loads(json.dumps(kept["piece"]))  # fresh or kept, the same plain values
    return found
