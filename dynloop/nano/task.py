"""Questions with one right answer and a dial for their difficulty, split so that nothing leaks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dynloop.settings import check_number, check_whole

SPLITS = ("train", "in_distribution", "new_combinations", "harder")
BY_HASH, ALWAYS_TRAINED, NEW_COMBINATION, NOWHERE = range(4)
EQUALS, PADDING = ord("="), ord("\n")
_IDLE, _AT_ONCE = 48, 32  # rounds that bring nothing before a split counts as exhausted; questions a round at least
_HELD_OUT_SEED = 20260222  # of the questions that every held-out loss is taken of


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """What a task's generator makes: n questions of one difficulty, before they are split.

    Attributes:
        question: (n, q) uint8, without the closing "=".
        answer: (n, a) uint8.
        entity: (n, q + 1) the entity that solving it has led to after each byte of the question and after "=", where it
            is the answer's first byte; -1 where there is none.
        kind: (n,) BY_HASH, ALWAYS_TRAINED, NEW_COMBINATION (holds entities together that no trained question holds), or
            NOWHERE (no use).
        key: (n, k) what tells questions apart; twins such as a + b and b + a share it. By default the question.
    """

    question: np.ndarray
    answer: np.ndarray
    entity: np.ndarray
    kind: np.ndarray
    key: np.ndarray | None = None

    @property
    def keys(self) -> list[bytes]:
        """`key` of each question."""
        return [row.tobytes() for row in np.ascontiguousarray(self.question if self.key is None else self.key)]


Generator = Callable[[np.random.Generator, int, int], Drawn]  # (rng, difficulty, n)


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """Questions and answers, a row each: `question=answer`, then newlines.

    Attributes:
        text: (n, length) uint8.
        asked: (n, length) bool, the bytes of the answer.
        difficulty: (n,) whole numbers.
        split: (n,) one of `SPLITS`.
        entity: (n, length) as in `Drawn`; -1 behind "=".
        chance: share that is right by guessing an answer, of each (n,).
    """

    text: np.ndarray
    asked: np.ndarray
    difficulty: np.ndarray
    split: np.ndarray
    entity: np.ndarray
    chance: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    @property
    def prompts(self) -> list[bytes]:
        """Each question with its "="."""
        return [row[:at].tobytes() for row, at in zip(self.text, self.asked.argmax(1), strict=True)]

    @property
    def answers(self) -> list[bytes]:
        """Each answer."""
        return [row[own].tobytes() for row, own in zip(self.text, self.asked, strict=True)]

    def select(self, rows: np.ndarray) -> Questions:
        """Some of them: a mask, or numbers of rows."""
        return Questions(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    @staticmethod
    def concatenate(parts: Sequence[Questions]) -> Questions:
        """Many as one, in the given order."""
        return Questions(**{f.name: np.concatenate([getattr(part, f.name) for part in parts])
                            for f in dataclasses.fields(Questions)})


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A generator of questions, with its dial and its splits; a corpus for `train`.

    A question belongs to one split by what it is, whoever draws it:

    * "harder": its difficulty is one of `harder`;
    * "new_combinations": of a trained difficulty, and it holds entities together that no question of another split
      holds together (of every pair of entities, the share `pair_share` is kept for these);
    * "in_distribution" and "train": all others of a trained difficulty, by the hash of the question, the share
      `held_out` for the first.

    Attributes:
        name: of the function that made it.
        settings: all its settings, plain.
        difficulties: those that are trained.
        harder: those that never are.
        generate: (rng, difficulty, n) -> `Drawn`.
        length_of: difficulty -> bytes of a question with "=" and answer.
        n_answers: how many answers are equally likely: guessing is right in 1 of them.
        held_out: share of the ordinary questions that are kept for "in_distribution".

    Raises:
        ValueError: difficulties that are none, in both lists or harder in name alone, or shares that are none.
    """

    name: str
    settings: Mapping[str, Any]
    difficulties: tuple[int, ...]
    harder: tuple[int, ...]
    generate: Generator
    length_of: Callable[[int], int]
    n_answers: int
    held_out: float

    def __post_init__(self) -> None:
        if not self.difficulties:
            raise ValueError(f"{self.name} needs at least one difficulty to train; got none. Leave difficulties out.")
        for name in ("difficulties", "harder"):
            for own in getattr(self, name):
                check_whole(name, own, 0, "a list of whole numbers")
            object.__setattr__(self, name, tuple(int(own) for own in dict.fromkeys(getattr(self, name))))
        if both := sorted(set(self.difficulties) & set(self.harder)):
            raise ValueError(f"difficulty {', '.join(map(str, both))} of {self.name} is both trained and harder. "
                             "Keep it in one of the two.")
        if easier := [own for own in self.harder if own < max(self.difficulties)]:
            raise ValueError("harder must lie beyond the difficulties in training, of which "
                             f"{max(self.difficulties)} is the largest in {self.name}; got "
                             f"{', '.join(map(str, easier))}. Name others as harder.")
        for name in ("held_out", "pair_share"):
            if name in self.settings:
                check_number(name, self.settings[name], lambda v: 0 < v < 1, "above 0 and below 1")

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits that there are: without `harder` difficulties, the last is missing."""
        return SPLITS if self.harder else SPLITS[:-1]

    @property
    def length(self) -> int:
        """Bytes of the longest question with its answer, harder ones included."""
        return max(map(self.length_of, (*self.difficulties, *self.harder)))

    def describe(self) -> dict[str, Any]:
        """What a training record says of it; `make_task(record["task"], record["settings"])` makes it again."""
        about = {"task": self.name, "settings": json.loads(json.dumps(dict(self.settings)))}
        return {"name": f"task {self.name}", **about,
                "sha256": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()}

    def _levels(self, split: str, difficulty: int | None) -> tuple[int, ...]:
        if split not in self.splits:
            raise ValueError(f"split must be one of {', '.join(self.splits)}; got {split!r}.")
        levels = self.harder if split == "harder" else self.difficulties
        if difficulty is None:
            return levels
        if difficulty not in levels:
            raise ValueError(f"the split {split!r} of {self.name} has the difficulties "
                             f"{', '.join(map(str, levels))}; got {difficulty!r}.")
        return (difficulty,)

    def split_of(self, drawn: Drawn, difficulty: int) -> np.ndarray:
        """The split of each question, (n,) texts; empty where it is of no use."""
        kind = drawn.kind
        if difficulty in self.harder:
            return np.where((kind == BY_HASH) | (kind == ALWAYS_TRAINED), "harder", "").astype("U16")
        split = np.where(kind == ALWAYS_TRAINED, "train", np.where(kind == NEW_COMBINATION, "new_combinations", ""))
        split = split.astype("U16")
        keys = drawn.keys
        for i in np.flatnonzero(kind == BY_HASH):
            number = int.from_bytes(hashlib.sha256(self.name.encode() + keys[i]).digest()[:8], "big")
            split[i] = "in_distribution" if number < self.held_out * 2**64 else "train"
        return split

    def questions(self, rng: Any, n: int, *, split: str = "train", difficulty: int | None = None,
                  distinct: bool = True, length: int | None = None) -> Questions:
        """Random questions of a split.

        Args:
            rng: seed or generator.
            n: how many.
            split: one of `splits`.
            difficulty: one of the split's; by default each question's own, all equally likely.
            distinct: no question twice, nor its twin: fewer than `n` where the split holds fewer, as the hash may leave
                two questions of a difficulty to it. Training draws with repetition.
            length: bytes a row, at least `length`, which is the default.

        Raises:
            ValueError: no such split or difficulty, or the split holds no such question at all.
        """
        check_whole("n", n, 1, "a whole number of at least 1 question")
        length = self._length(length)
        levels, rng = np.array(self._levels(split, difficulty)), np.random.default_rng(rng)
        wanted = rng.choice(levels, n)
        text = np.full((n, length), PADDING, dtype=np.uint8)
        asked, entity = np.zeros((n, length), dtype=bool), np.full((n, length), -1)
        missing = np.arange(n)
        seen: set[tuple[int, bytes]] = set()
        idle = 0
        while len(missing) and idle < _IDLE:
            if idle % 8 == 7:  # a difficulty may have no question left in this split
                wanted[missing] = rng.choice(levels, len(missing))
            for level in np.unique(wanted[missing]):
                rows = missing[wanted[missing] == level]
                drawn = self.generate(rng, int(level), max(3 * len(rows) // 2, _AT_ONCE))
                good = np.flatnonzero(self.split_of(drawn, int(level)) == split)
                if distinct:
                    keys = drawn.keys
                    new = {keys[i]: i for i in good if (int(level), keys[i]) not in seen}
                    good = np.array(list(new.values())[:len(rows)], dtype=int)
                    seen.update((int(level), keys[i]) for i in good)
                good = good[:len(rows)]
                rows, q, a = rows[:len(good)], drawn.question.shape[1], drawn.answer.shape[1]
                text[rows, :q], text[rows, q] = drawn.question[good], EQUALS
                text[rows, q + 1:q + 1 + a], asked[rows, q + 1:q + 1 + a] = drawn.answer[good], True
                entity[rows, :q + 1] = drawn.entity[good]
            left = np.flatnonzero(~asked.any(1))
            idle = idle + 1 if len(left) == len(missing) else 0
            missing = left
        there = np.asarray(asked.any(1))
        if not there.any() or not (distinct or there.all()):
            which = "" if difficulty is None else f" of difficulty {difficulty}"
            raise ValueError(f"{self.name} has no question{which} in the split {split!r} (none in {_IDLE} draws): "
                             "there are too few of them. Widen the dial, or change the shares that are held out.")
        found = Questions(text, asked, wanted, np.full(n, split), entity, np.full(n, 1 / self.n_answers))
        return found if there.all() else found.select(there)

    def _length(self, length: int | None) -> int:
        if length is not None:
            check_whole("length", length, 1, "a whole number of bytes")
        if length is not None and length < self.length:
            raise ValueError(f"a question of {self.name} with its answer takes {self.length} bytes; got {length}. "
                             f"Train with length={self.length - 1} or more (the last byte is only predicted).")
        return self.length if length is None else length

    # ---- what `train` asks of a corpus

    def batch(self, rng: np.random.Generator, *, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Questions to train on, (n, length) uint8, and where their answers are, (n, length) bool."""
        drawn = self.questions(rng, n, distinct=False, length=length)
        return drawn.text, drawn.asked

    def held_out_batch(self, *, n: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Questions of "in_distribution" (at most n) and where their answers are: the same ones every time."""
        drawn = self.questions(_HELD_OUT_SEED, n, split="in_distribution", length=length)
        return drawn.text, drawn.asked

    def held_out_windows(self, *, n: int, length: int) -> np.ndarray:
        """Questions of "in_distribution", with their answers, (at most n, length) uint8: the same ones every time."""
        return self.held_out_batch(n=n, length=length)[0]


def held_out_pairs(n_first: int, n_second: int, share: float, salt: str, *, symmetric: bool = False) -> np.ndarray:
    """Which pairs of entities are kept for "new_combinations", (n_first, n_second) bool: the share, at least one pair.

    Args:
        n_first, n_second: entities.
        share: of the pairs.
        salt: decides which.
        symmetric: (a, b) goes with (b, a).
    """
    pairs = [(i, j) for i in range(n_first) for j in range(n_second) if not symmetric or i <= j]
    pairs.sort(key=lambda pair: hashlib.sha256(f"{salt} {pair}".encode()).digest())
    held = np.zeros((n_first, n_second), dtype=bool)
    for i, j in pairs[:max(1, round(share * len(pairs)))]:
        held[i, j] = True
        if symmetric:
            held[j, i] = True
    return held
