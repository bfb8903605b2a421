"""Parity: how many bits?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.nano.task import BY_HASH, NEW_COMBINATION, Drawn, Task, held_out_pairs
from dynloop.settings import check_whole

_BLOCK = 3  # bits at each end whose combinations are held out


def parity(*, difficulties: Sequence[int] = tuple(range(5, 11)), harder: Sequence[int] = (12, 14, 16),
           held_out: float = 0.1, pair_share: float = 0.1, seed: int = 0) -> Task:
    """Whether the number of ones is odd: 0111=1.

        (x_1 + ... + x_n) mod 2

    The dial is n, the length. There are few short texts: the 32 of length 5 are soon known by heart.

    Args:
        difficulties: lengths in training, from 1.
        harder: lengths that are never trained.
        held_out: as in `Task`.
        pair_share: share of the pairs (first three bits, last three bits) that training never combines.
        seed: decides which pairs.

    Raises:
        ValueError: settings.

    Misleads:
        Guessing is right half of the time: hold every share against that.

    Source:
        Minsky and Papert 1969; as a task for looped models, own.
    """
    for length in (*difficulties, *harder):
        check_whole("a length", length, 1, "a whole number of at least 1 bit")
    pairs = held_out_pairs(2**_BLOCK, 2**_BLOCK, pair_share, f"parity {seed}")
    weights = 2 ** np.arange(_BLOCK)

    def generate(rng: np.random.Generator, difficulty: int, n: int) -> Drawn:
        x = rng.integers(0, 2, (n, difficulty))
        running = x.cumsum(1) % 2
        block = min(_BLOCK, difficulty)
        ends = x[:, :block] @ weights[:block], x[:, -block:] @ weights[:block]
        return Drawn((ord("0") + x).astype(np.uint8), (ord("0") + running[:, -1:]).astype(np.uint8),
                     np.c_[running, running[:, -1:]], np.where(pairs[ends], NEW_COMBINATION, BY_HASH))

    settings = {"difficulties": list(difficulties), "harder": list(harder), "held_out": held_out,
                "pair_share": pair_share, "seed": seed}
    return Task("parity", settings, tuple(difficulties), tuple(harder), generate, lambda k: k + 2, 2, held_out)
