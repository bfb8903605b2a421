"""Addition: how far does a carry run?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.nano.task import BY_HASH, NEW_COMBINATION, NOWHERE, Drawn, Task, held_out_pairs
from dynloop.settings import check_whole

DIALS = ("carries", "digits")
_PLUS = ord("+")
_BELOW, _NINE, _ABOVE = range(3)  # what two digits add up to: no carry, a carry passed on, a carry begun
_CHANCES = (0.45, 0.1, 0.45)  # of two random digits


def addition(*, dial: str = "carries", digits: int = 4, difficulties: Sequence[int] | None = None,
             harder: Sequence[int] | None = None, held_out: float = 0.1, pair_share: float = 0.05,
             seed: int = 0) -> Task:
    """Two numbers of equally many digits and their sum, the most significant digit first: 0127+0375=00502.

    The first digits of the answer depend on a carry that may come from far to the right. A carry begins in a column
    whose two digits add up to more than 9 and is passed on by columns that add up to 9; the longest run of such columns
    is the longest carry chain.

    Args:
        dial: "carries": the difficulty is the longest carry chain, in columns (0: no carry at all), of numbers of
            `digits` digits; "digits": it is the number of digits, carries being those of random digits.
        digits: of both numbers with the dial "carries", from 1 to 9.
        difficulties: in training; by default 0 to 2 columns, or 2 to 4 digits.
        harder: never trained; by default all longer chains, or one and two digits more than in training.
        held_out: as in `Task`.
        pair_share: share of the pairs of digits that never stand in one column in training.
        seed: decides which pairs.

    Raises:
        ValueError: settings.

    Source:
        Own; chains after Burks, Goldstine and von Neumann 1946, section 5.6.
    """
    if dial not in DIALS:
        raise ValueError(f"dial must be one of {', '.join(DIALS)}; got {dial!r}.")
    by_carries = dial == "carries"
    check_whole("digits", digits, 1, "a whole number from 1 to 9 (default 4)")
    if difficulties is None:
        difficulties = [c for c in (0, 1, 2) if c <= digits] if by_carries else (2, 3, 4)
    if harder is None:
        most = max(difficulties, default=0)
        harder = range(most + 1, digits + 1) if by_carries else range(most + 1, min(most + 2, 9) + 1)
    for level in (*difficulties, *harder):
        check_whole("a difficulty", level, 0 if by_carries else 1, "a whole number of columns or digits")
        if level > (digits if by_carries else 9) or digits > 9:
            raise ValueError(f"a difficulty of addition must be at most {digits} columns (with the dial 'carries') or "
                             f"9 digits; got {level} of {digits} digits. Give more digits, or a smaller difficulty.")
    pairs = held_out_pairs(10, 10, pair_share, f"addition {seed}", symmetric=True)
    of_sum = [np.array([(a, b) for a in range(10) for b in range(10) if np.sign(a + b - 9) == sign])
              for sign in (-1, 0, 1)]

    def generate(rng: np.random.Generator, difficulty: int, n: int) -> Drawn:
        width = digits if by_carries else difficulty
        column = rng.choice(3, (n, width), p=_CHANCES)
        if by_carries and difficulty == 0:
            column[column == _ABOVE] = _BELOW
        elif by_carries:  # plant one chain; a longer one that arises elsewhere is thrown away below
            first = rng.integers(0, width - difficulty + 1, n)[:, None] + np.arange(difficulty)
            np.put_along_axis(column, first, _NINE, 1)
            np.put_along_axis(column, first[:, -1:], _ABOVE, 1)
        x = np.zeros((n, width, 2), dtype=int)
        for sums, known in enumerate(of_sum):
            there = column == sums
            x[there] = known[rng.integers(0, len(known), there.sum())]
        longest = _longest_chain(column)
        place = 10 ** np.arange(width)[::-1]
        numbers = x.transpose(0, 2, 1) @ place
        answer = numbers.sum(1)[:, None] // 10 ** np.arange(width + 1)[::-1] % 10
        question = np.full((n, 2 * width + 1), _PLUS, dtype=np.uint8)
        question[:, :width], question[:, width + 1:] = ord("0") + x[..., 0], ord("0") + x[..., 1]
        entity = np.full((n, 2 * width + 2), -1)
        entity[:, -1] = answer[:, 0]
        kind = np.where(pairs[x[..., 0], x[..., 1]].any(1), NEW_COMBINATION, BY_HASH)
        if by_carries:
            kind[longest != difficulty] = NOWHERE
        return Drawn(question, (ord("0") + answer).astype(np.uint8), entity, kind,
                     np.c_[np.full(n, width), np.sort(numbers, axis=1)])

    settings = {"dial": dial, "digits": digits, "difficulties": list(difficulties), "harder": list(harder),
                "held_out": held_out, "pair_share": pair_share, "seed": seed}
    return Task("addition", settings, tuple(difficulties), tuple(harder), generate,
                lambda level: 3 * (digits if by_carries else level) + 3,
                10 ** (digits if by_carries else min((*difficulties, *harder), default=1)), held_out)


def _longest_chain(column: np.ndarray) -> np.ndarray:
    """Longest carry chain of each row, (n,)."""
    longest = run = np.zeros(len(column), dtype=int)
    for own in column.T[::-1]:
        run = np.where(own == _ABOVE, 1, np.where((own == _NINE) & (run > 0), run + 1, 0))
        longest = np.maximum(longest, run)
    return longest
