"""p-hop induction: how many times must the text be searched?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.nano.task import BY_HASH, NEW_COMBINATION, NOWHERE, Drawn, Task, held_out_pairs
from dynloop.settings import check_whole


def p_hop(*, alphabet: int = 4, text: int = 32, difficulties: Sequence[int] = (1, 2, 3), harder: Sequence[int] = (4, 5),
          held_out: float = 0.1, pair_share: float = 0.1, seed: int = 0) -> Task:
    """What stands behind the last occurrence of the last letter, and so on, p times: 2bcabda=c.

        find(i) = max { j <= i : w[j - 1] = w[i] };   i_0 = last,   i_k = find(i_(k-1)),   answer w[i_p]

    Here w = bcabda: its last letter a stood before a b, and the b before that stood before c. The dial is p, the first
    byte of the question ("1", "2", ...). Texts in which a hop finds nothing are not used.

    Args:
        alphabet: letters, from 2 to 26.
        text: letters of a text: a hop leads back by about `alphabet` letters.
        difficulties: numbers of hops in training, from 1.
        harder: numbers of hops that are never trained.
        held_out: as in `Task`.
        pair_share: share of the pairs (last letter, answer) that never occur in training.
        seed: decides which pairs.

    Raises:
        ValueError: settings, or a text too short for the hops.

    Source:
        Sanford, Hsu and Telgarsky 2024 (arXiv 2402.09268), definition of hop_k; Saunshi et al. 2025 (arXiv 2502.17416)
        for looped models.
    """
    check_whole("alphabet", alphabet, 2, "a whole number from 2 to 26 (default 4)")
    check_whole("text", text, 2, "a whole number of at least 2 letters (default 32)")
    if alphabet > 26:
        raise ValueError(f"alphabet must be a whole number from 2 to 26 letters; got {alphabet}.")
    for p in (*difficulties, *harder):
        check_whole("a number of hops", p, 1, "a whole number of at least 1")
        if p > 60 or (p + 1) * alphabet > text:
            raise ValueError(f"{p} hops among {alphabet} letters need a text of at least {(p + 1) * alphabet} letters, "
                             f"and 60 hops are the most; got text={text}. Give a longer text, or fewer hops.")
    pairs = held_out_pairs(alphabet, alphabet, pair_share, f"p_hop {seed}")

    def generate(rng: np.random.Generator, difficulty: int, n: int) -> Drawn:
        w, at = rng.integers(0, alphabet, (n, text)), np.full(n, text - 1)
        rows, place = np.arange(n), np.arange(1, text)
        lost = np.zeros(n, dtype=bool)
        for _ in range(difficulty):
            fits = (w[:, :-1] == w[rows, at][:, None]) & (place <= at[:, None])
            lost |= ~fits.any(1)
            at = np.where(fits, place, 0).max(1)
        answer = w[rows, at]
        entity = np.full((n, text + 2), -1)
        entity[:, -1] = answer
        kind = np.where(pairs[w[:, -1], answer], NEW_COMBINATION, BY_HASH)
        kind[lost] = NOWHERE
        question = np.c_[np.full(n, ord("0") + difficulty), ord("a") + w].astype(np.uint8)
        return Drawn(question, (ord("a") + answer[:, None]).astype(np.uint8), entity, kind)

    settings = {"alphabet": alphabet, "text": text, "difficulties": list(difficulties), "harder": list(harder),
                "held_out": held_out, "pair_share": pair_share, "seed": seed}
    return Task("p_hop", settings, tuple(difficulties), tuple(harder), generate, lambda p: text + 3, alphabet, held_out)
