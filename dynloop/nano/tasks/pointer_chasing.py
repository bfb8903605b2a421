"""Pointer chasing: how long is the chain through pointers that the question itself lists?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.nano.task import BY_HASH, NEW_COMBINATION, Drawn, Task, held_out_pairs
from dynloop.settings import check_whole


def pointer_chasing(*, nodes: int = 8, difficulties: Sequence[int] = (1, 2, 3, 4), harder: Sequence[int] = (5, 6, 7),
                    held_out: float = 0.1, pair_share: float = 0.1, seed: int = 0) -> Task:
    """Where a chain of pointers ends: dbacbacd2b=c lists d to b, a to c, b to a, c to d, and asks for two steps from b.

        answer = f(f(... f(start)))

    The pointers are new in every question, in random order, and form one cycle through all nodes, so that no chain is
    shorter than it looks. The dial is the length of the chain, written before the start ("1", "2", ...). Questions with
    the same pointers in another order lie in the same split.

    Args:
        nodes: letters, from 3 to 26.
        difficulties: lengths of chains in training, from 1 to nodes - 1.
        harder: lengths that are never trained.
        held_out: as in `Task`.
        pair_share: share of the pairs (start, answer) that never occur in training.
        seed: decides which pairs.

    Raises:
        ValueError: settings.

    Source:
        Own; the problem is that of Nisan and Wigderson 1993.
    """
    check_whole("nodes", nodes, 3, "a whole number from 3 to 26 (default 8)")
    for length in (*difficulties, *harder):
        check_whole("a length of chains", length, 1, "a whole number of at least 1")
        if length >= nodes or nodes > 26:
            raise ValueError(f"a chain must have 1 to nodes - 1 steps, and 26 nodes are the most; got {length} steps "
                             f"among {nodes} nodes. Give more nodes, or shorter chains.")
    pairs = held_out_pairs(nodes, nodes, pair_share, f"pointer_chasing {seed}")
    np.fill_diagonal(pairs, False)  # no chain leads back
    if not pairs.any():
        pairs[0, 1] = True

    def generate(rng: np.random.Generator, difficulty: int, n: int) -> Drawn:
        cycle = rng.permuted(np.tile(np.arange(nodes), (n, 1)), axis=1)
        listed = rng.permuted(np.tile(np.arange(nodes), (n, 1)), axis=1)
        rows = np.arange(n)[:, None]
        start, answer = cycle[:, 0], cycle[:, difficulty]
        question = np.empty((n, 2 * nodes + 2), dtype=np.uint8)
        question[:, :-2:2] = ord("a") + cycle[rows, listed]
        question[:, 1:-2:2] = ord("a") + cycle[rows, (listed + 1) % nodes]
        question[:, -2], question[:, -1] = ord("0") + difficulty, ord("a") + start
        key = np.empty((n, nodes + 2), dtype=int)  # the same pointers listed in another order ask the same
        np.put_along_axis(key, cycle, np.roll(cycle, -1, axis=1), 1)
        key[:, -2], key[:, -1] = difficulty, start
        entity = np.full((n, 2 * nodes + 3), -1)
        entity[:, -1] = answer
        return Drawn(question, (ord("a") + answer[:, None]).astype(np.uint8), entity,
                     np.where(pairs[start, answer], NEW_COMBINATION, BY_HASH), key.astype(np.uint8))

    settings = {"nodes": nodes, "difficulties": list(difficulties), "harder": list(harder), "held_out": held_out,
                "pair_share": pair_share, "seed": seed}
    return Task("pointer_chasing", settings, tuple(difficulties), tuple(harder), generate, lambda k: 2 * nodes + 4,
                nodes - 1, held_out)
