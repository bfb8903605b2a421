"""Settings of a nano model and of its training: plain data, so that the command line knows them without torch."""

from __future__ import annotations

import dataclasses
import math

INJECTIONS = ("none", "additive", "linear")
NORMS = ("pre", "sandwich", "residual")
STARTS = ("input", "random")
SAMPLING = ("fixed", "uniform")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NanoConfig:
    """Shape and switches of a nano model.

    Args:
        width: model width D.
        n_heads: attention heads; `width / n_heads` must be even (rotary positions).
        n_prelude: layers before the loop.
        n_block: layers inside the loop, each with its own weights.
        n_coda: layers after the loop.
        n_recurrences: how often the block is applied in training and by default.
        injection: how the prelude's output e enters each recurrence: "none", "additive" (h + e) or
            "linear" (W [h, e], as Huginn).
        norm: "pre" (x + f(n(x))), "sandwich" (x + n(f(n(x))), as Ouro) or "residual" (n(x + f(n(x))), as Huginn).
        loop_norm: whether an RMS norm closes each recurrence.
        initial_state: "input" (h0 = e) or "random" (independent standard normal numbers).
        looped: False gives the feed-forward control of equal depth: `n_block * n_recurrences` distinct layers,
            applied once.

    Raises:
        ValueError: for a combination that cannot work, with what to change.
    """

    width: int = 128
    n_heads: int = 4
    n_prelude: int = 1
    n_block: int = 2
    n_coda: int = 1
    n_recurrences: int = 4
    injection: str = "linear"
    norm: str = "residual"
    loop_norm: bool = True
    initial_state: str = "input"
    looped: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("injection", INJECTIONS), ("norm", NORMS), ("initial_state", STARTS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}. Choose one of these.")
        for name, least in (("width", 2), ("n_heads", 1), ("n_prelude", 0), ("n_block", 1), ("n_coda", 0),
                            ("n_recurrences", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        for name in ("loop_norm", "looped"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false; got {getattr(self, name)!r}.")
        if self.width % (2 * self.n_heads):
            raise ValueError(f"width must be a multiple of 2 * n_heads = {2 * self.n_heads} (rotary positions need an "
                             f"even head width); got {self.width}. Change width or n_heads.")
        if self.initial_state == "random" and self.injection == "none":
            raise ValueError("a random initial state without injection never sees the input. "
                             "Set injection='linear' or initial_state='input'.")
        if not self.looped and (self.injection != "none" or self.initial_state != "input"):
            raise ValueError("the feed-forward control has no recurrence to inject into: it needs injection='none' "
                             f"and initial_state='input'; got {self.injection!r} and {self.initial_state!r}.")

    @classmethod
    def from_dict(cls, settings: dict) -> NanoConfig:
        """Make a configuration from a plain dictionary; unknown names are refused."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"unknown model setting {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
        return cls(**settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a nano model is trained.

    Args:
        steps: optimiser steps.
        batch_size: windows a step.
        length: bytes a window.
        learning_rate: peak of AdamW's rate; linear warm-up, then a cosine down to a tenth.
        warmup: steps of warm-up.
        weight_decay: AdamW's decay of matrices.
        recurrences: "fixed" (always the model's `n_recurrences`) or "uniform" (each step draws from
            1 ... 2 * n_recurrences).
        seed: decides initial weights, batches, recurrences and random starts.
        log_every, evaluate_every, checkpoint_every: steps between log lines, held-out losses and checkpoints.
    """

    steps: int = 1200
    batch_size: int = 8
    length: int = 96
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.1
    recurrences: str = "fixed"
    seed: int = 0
    log_every: int = 10
    evaluate_every: int = 200
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        if self.recurrences not in SAMPLING:
            raise ValueError(f"recurrences must be one of {', '.join(SAMPLING)}; got {self.recurrences!r}.")
        for name in ("steps", "batch_size", "length", "log_every", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise ValueError(f"learning_rate must be a positive number; got {self.learning_rate!r}.")
        if self.warmup < 0 or self.weight_decay < 0 or self.seed < 0:
            raise ValueError("warmup, weight_decay and seed must not be negative; got "
                             f"{self.warmup}, {self.weight_decay}, {self.seed}.")

    def rate(self, step: int) -> float:
        """Learning rate at a step (0-based)."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


RECIPES: dict[str, tuple[NanoConfig, TrainingConfig]] = {
    # the norm around the residual, linear injection, sampled recurrences: settles on fixed points
    "nano-settles": (NanoConfig(norm="residual", injection="linear", loop_norm=True, initial_state="input"),
                     TrainingConfig(steps=2400, recurrences="uniform")),
    # the same block, always four recurrences, from a random start
    "nano-random-start": (NanoConfig(norm="residual", injection="linear", loop_norm=True, initial_state="random"),
                          TrainingConfig(steps=2400, recurrences="fixed")),
    # pre-norm, no injection, no norm at the end of the loop: grows for ever
    "nano-drifts": (NanoConfig(norm="pre", injection="none", loop_norm=False, initial_state="input"),
                    TrainingConfig(steps=2400, recurrences="fixed")),
}
"""The shipped checkpoints: how each was made, to the letter (`dynloop train --recipe NAME --out FOLDER`)."""
