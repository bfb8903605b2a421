"""Training records: one line a training, instead of its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conditions import Condition
from training import DIVERGED, folder_of

_POINTS = 10  # of the log of each training


def record_of(out: Path, condition: Condition, seed: int) -> dict[str, Any] | None:
    """What was trained, how it went, and the hash of its weights; None where it has not ended."""
    folder = folder_of(out, condition, seed)
    about: dict[str, Any] = {"condition": condition.name, "seed": seed}
    failed = folder.parent / f"seed-{seed}-{DIVERGED}"
    if failed.exists():
        return {**about, "outcome": "diverged", "error": json.loads(failed.read_text())["error"]}
    if not (folder / "model.json").exists():
        return None
    kept = json.loads((folder / "model.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    step = max(1, len(log) // _POINTS)
    return {**about, "outcome": "trained", "sha256": kept["sha256"], "model": kept["model"],
            "training": kept["training"], "corpus": kept["corpus"]["sha256"], "held_out_loss": kept["held_out_loss"],
            "seconds": kept["seconds"], "device": kept["device"], "torch": kept["torch"], "python": kept["python"],
            "log": [[line["step"], round(line["loss"], 4)] for line in log[step - 1::step]]}


def write_records(out: Path, path: Path, cells: Sequence[Condition], seeds: Sequence[int]) -> int:
    """All records of trainings that have ended, one a line; returns how many."""
    found = [record for condition in cells for seed in seeds
             if (record := record_of(out, condition, seed)) is not None]
    path.write_text("".join(json.dumps(record) + "\n" for record in found))
    return len(found)
