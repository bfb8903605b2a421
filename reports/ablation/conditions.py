"""What the ablation trains: conditions, seeds and sizes of each tier. Plain data."""

from __future__ import annotations

import dataclasses
import itertools

from dynloop.nano import NanoConfig, TrainingConfig

BLOCKS = (1, 2, 4)
INJECTIONS = ("none", "additive", "linear")
NORMS = ("pre", "sandwich", "residual")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """How large and how long; the same conditions in every tier unless `blocks`, `injections` or `norms` say fewer."""

    name: str
    width: int
    n_heads: int
    n_recurrences: int  # in training, a power of 2
    steps: int
    batch_size: int
    length: int
    learning_rate: float
    warmup: int
    n_prompts: int  # held-out prompts whose states are recorded
    n_tokens: int  # of each
    n_windows: int  # held-out windows of `length` bytes whose loss is taken
    long_run: int  # recurrences of the recording, a power of 2
    blocks: tuple[int, ...] = BLOCKS
    injections: tuple[str, ...] = INJECTIONS
    norms: tuple[str, ...] = NORMS
    sampled: bool = True  # the subset with recurrences drawn anew


TIERS = {tier.name: tier for tier in (
    Tier(name="smoke", width=16, n_heads=1, n_recurrences=4, steps=12, batch_size=4, length=32, learning_rate=3e-3,
         warmup=2, n_prompts=5, n_tokens=16, n_windows=4, long_run=16, blocks=(1,), injections=("none", "linear"),
         norms=("pre", "residual"), sampled=False),
    Tier(name="cpu", width=32, n_heads=2, n_recurrences=4, steps=400, batch_size=8, length=64, learning_rate=3e-3,
         warmup=40, n_prompts=8, n_tokens=32, n_windows=16, long_run=128),
    Tier(name="gpu", width=256, n_heads=8, n_recurrences=8, steps=3000, batch_size=64, length=256, learning_rate=1e-3,
         warmup=100, n_prompts=16, n_tokens=64, n_windows=64, long_run=128),
)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Condition:
    """One cell of the design; every seed of it is one training."""

    kind: str  # "looped", "sampled" (recurrences drawn anew each step) or "feed-forward" (equal depth, no loop)
    block: int
    injection: str
    norm: str
    loop_norm: bool

    @property
    def name(self) -> str:
        if self.kind == "feed-forward":
            return f"feed-forward-b{self.block}-{self.norm}"
        end = "end-norm" if self.loop_norm else "no-end-norm"
        return f"{self.kind}-b{self.block}-{self.injection}-{self.norm}-{end}"

    def model(self, tier: Tier) -> NanoConfig:
        """Its architecture."""
        return NanoConfig(width=tier.width, n_heads=tier.n_heads, n_block=self.block, n_recurrences=tier.n_recurrences,
                          injection=self.injection, norm=self.norm, loop_norm=self.loop_norm,
                          looped=self.kind != "feed-forward")

    def training(self, tier: Tier, seed: int) -> TrainingConfig:
        """How a seed of it is trained."""
        return TrainingConfig(steps=tier.steps, batch_size=tier.batch_size, length=tier.length, seed=seed,
                              learning_rate=tier.learning_rate, warmup=tier.warmup,
                              recurrences="uniform" if self.kind == "sampled" else "fixed",
                              log_every=max(1, tier.steps // 40), evaluate_every=max(1, tier.steps // 4),
                              checkpoint_every=max(1, tier.steps // 2))


def conditions(tier: Tier) -> list[Condition]:
    """All conditions of a tier, in the order of their training: every block size is whole before the next begins."""
    found = []
    for block in sorted(tier.blocks, key=lambda b: (b != 2, b)):  # the middle one first, then 1 and 4
        cells = list(itertools.product(tier.injections, tier.norms))
        found += [Condition(kind="looped", block=block, injection=i, norm=n, loop_norm=end)
                  for i, n in cells for end in (True, False)]
        found += [Condition(kind="feed-forward", block=block, injection="none", norm=n, loop_norm=False)
                  for n in tier.norms]
    subset = sorted(tier.blocks)[len(tier.blocks) // 2]
    found += [Condition(kind="sampled", block=subset, injection=i, norm=n, loop_norm=True)
              for i in tier.injections if i != "additive" and tier.sampled for n in tier.norms]
    return found
