"""Train every condition and seed, each into a folder of its own; what is finished is never trained again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from conditions import Condition, Tier
from pool import run_all

from dynloop.nano import load_corpus, train

DIVERGED = "diverged.json"


def folder_of(out: Path, condition: Condition, seed: int) -> Path:
    """Where a seed of a condition is trained."""
    return out / "models" / condition.name / f"seed-{seed}"


def train_one(out: Path, tier: Tier, condition: Condition, seed: int, device: str) -> str:
    """Train one model; a loss that leaves the finite numbers is an outcome, kept beside the log."""
    torch.set_num_threads(1)
    folder = folder_of(out, condition, seed)
    failed = folder.parent / f"seed-{seed}-{DIVERGED}"
    if failed.exists():
        return "diverged"
    try:
        train(condition.model(tier), condition.training(tier, seed), load_corpus(), folder, device=device,
              name=f"{condition.name}-seed-{seed}")
    except FloatingPointError as error:
        failed.write_text(json.dumps({"condition": condition.name, "seed": seed, "error": str(error)}) + "\n")
        return "diverged"
    return "trained"


def train_all(out: Path, tier: Tier, models: Sequence[tuple[Condition, int]], *, workers: int = 1,
              device: str = "cpu") -> dict[tuple[str, int], str]:
    """Train all (condition, seed) that are not trained yet; ended by an interruption, the same call goes on."""
    return run_all(train_one, {(condition.name, seed): (out, tier, condition, seed, device)
                               for condition, seed in models}, workers=workers, title="trainings")
