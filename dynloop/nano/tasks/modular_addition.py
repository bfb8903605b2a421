"""Modular addition: how many summands?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.nano.task import BY_HASH, NEW_COMBINATION, Drawn, Task, held_out_pairs
from dynloop.settings import check_whole

NUMBERS = 128  # the byte of 0
_PLUS = ord("+")


def modular_addition(*, modulus: int = 23, difficulties: Sequence[int] = (2, 3, 4), harder: Sequence[int] = (5, 6),
                     held_out: float = 0.1, pair_share: float = 0.1, seed: int = 0) -> Task:
    """The sum of some numbers modulo another: a+b+c=s.

        s = (x_1 + ... + x_k) mod m

    A number is one byte, 128 and above, so that each of them is an entity. The dial is k, the number of summands; the
    modulus sets how much there is to learn. Questions with the same summands in another order lie in the same split.

    Args:
        modulus: from 3 to 128.
        difficulties: numbers of summands in training, from 2.
        harder: numbers of summands that are never trained.
        held_out: as in `Task`.
        pair_share: share of the pairs (a, b) that are never summed together in training, wherever they stand.
        seed: decides which pairs.

    Raises:
        ValueError: settings.

    Source:
        Power et al. 2022 (arXiv 2201.02177), section 2, for two summands.
    """
    check_whole("modulus", modulus, 3, "a whole number from 3 to 128 (default 23)")
    if modulus > 256 - NUMBERS:
        raise ValueError(f"modulus must be a whole number from 3 to 128 (a number is one byte); got {modulus}.")
    for k in (*difficulties, *harder):
        check_whole("a number of summands", k, 2, "a whole number of at least 2")
    pairs = held_out_pairs(modulus, modulus, pair_share, f"modular_addition {seed}", symmetric=True)

    def generate(rng: np.random.Generator, difficulty: int, n: int) -> Drawn:
        x = rng.integers(0, modulus, (n, difficulty))
        question = np.full((n, 2 * difficulty - 1), _PLUS, dtype=np.uint8)
        question[:, ::2] = NUMBERS + x
        sums = x.cumsum(1) % modulus
        entity = np.full((n, 2 * difficulty), -1)
        entity[:, :-1:2], entity[:, -1] = sums, sums[:, -1]
        first, second = np.triu_indices(difficulty, 1)
        kind = np.where(pairs[x[:, first], x[:, second]].any(1), NEW_COMBINATION, BY_HASH)
        return Drawn(question, (NUMBERS + sums[:, -1:]).astype(np.uint8), entity, kind,
                     np.sort(x, axis=1).astype(np.uint8))

    settings = {"modulus": modulus, "difficulties": list(difficulties), "harder": list(harder), "held_out": held_out,
                "pair_share": pair_share, "seed": seed}
    return Task("modular_addition", settings, tuple(difficulties), tuple(harder), generate,
                lambda k: 2 * k + 1, modulus, held_out)
