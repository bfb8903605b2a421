"""What a model in training has learnt of a task: accuracy by split, and how its states cluster by entity."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynloop.models import LoopedModel
from dynloop.models.looped_model import Missing
from dynloop.monitoring.bystander import bystander
from dynloop.monitoring.clustering import cosine_clustering
from dynloop.nano.answers import check_reader, right_answers
from dynloop.nano.task import Questions, Task

_SEED = 20260222  # of the questions that are asked
_CURVE = 8  # recurrences of which the clustering is logged


class TaskProbe:
    """Questions of a task, the same ones every time.

    Args:
        looped: the model in training.
        task: their origin.
        n: questions a split, at most.
        n_recurrences: after which answers are read out.
        autocast: as in `Probe`.

    Raises:
        ValueError: a model without readout, whose tokens are no bytes, or that is not causal.
    """

    def __init__(self, looped: LoopedModel, task: Task, *, n: int, n_recurrences: int,
                 autocast: torch.dtype | None) -> None:
        if not looped.is_map or isinstance(looped.readout, Missing):
            raise ValueError(f"{looped.name} cannot be stepped and read out, which answers to a task need. Leave task "
                             "out, or give hooked_block embed=, initial_state=, step= and readout=.")
        check_reader(looped)
        self.looped, self.n_recurrences, self.autocast, self.splits = looped, n_recurrences, autocast, task.splits
        self.questions = Questions.concatenate([task.questions(_SEED, n, split=split) for split in task.splits])
        self.at = sorted(set(np.unique(np.linspace(1, n_recurrences, _CURVE).round().astype(int)).tolist()))
        self.answer_at = self.questions.asked.argmax(1) - 1  # where "=" stands
        self._partial_rows, self._partial_at, self._partial_entity = _partial_results(self.questions)

    def measure(self) -> dict[str, Any]:
        """Accuracy by split, clustering by split and by recurrence."""
        asked = self.questions
        n, width = len(asked), None
        answers: dict[int, np.ndarray] = {}
        partial = np.empty(0)

        def watch(done: int, rows: np.ndarray, state: torch.Tensor) -> None:
            nonlocal partial, width
            if done not in self.at:
                return
            if width is None:
                width = state.shape[-1]
                partial = np.full((len(self._partial_rows), width), np.nan)
            where = torch.as_tensor(self.answer_at[rows], device=state.device)
            own = answers.setdefault(done, np.full((n, width), np.nan))
            own[rows] = state[torch.arange(len(rows), device=state.device), where].double().cpu().numpy()
            if done == self.n_recurrences and len(partial):
                here = np.flatnonzero((self._partial_rows >= rows[0]) & (self._partial_rows <= rows[-1]))
                row, at = (torch.as_tensor(own[here], device=state.device)
                           for own in (self._partial_rows - rows[0], self._partial_at))
                partial[here] = state[row, at].double().cpu().numpy()

        with bystander(self.looped.module, self.autocast):
            right, _ = right_answers(self.looped, asked, [self.n_recurrences], watch=watch)
        numbers: dict[str, Any] = {f"accuracy_{split}": float(right[asked.split == split].mean())
                                   for split in self.splits}
        entity = asked.entity[np.arange(n), self.answer_at]
        for split in self.splits:
            own = asked.split == split
            numbers |= _clustering(f"_{split}", answers[self.n_recurrences][own], entity[own], null=True)
        for done in self.at:
            numbers |= _clustering(f"_{done}_recurrences", answers[done], entity, null=done == self.n_recurrences)
        if len(partial):
            numbers |= _clustering("_partial_results", partial, self._partial_entity, null=True)
        return numbers


def _partial_results(questions: Questions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, places and entities of results on the way, before "="; each context once, and none where an entity has but
    one of them."""
    known, rows, places, entities = set(), [], [], []
    ends = questions.asked.argmax(1) - 1
    for row, at in zip(*np.nonzero(questions.entity >= 0), strict=True):
        context = questions.text[row, :at + 1].tobytes()
        if 0 < at < ends[row] and context not in known:
            known.add(context)
            rows.append(row)
            places.append(at)
            entities.append(questions.entity[row, at])
    return np.array(rows, dtype=int), np.array(places, dtype=int), np.array(entities, dtype=int)


def _clustering(name: str, states: np.ndarray, entity: np.ndarray, *, null: bool) -> dict[str, float]:
    finite = np.isfinite(states).all(1)
    found = cosine_clustering(states[finite], entity[finite], n_shuffles=199 if null else 1)
    return {f"clustering{name}": found.value, **({f"clustering{name}_null": found.null} if null else {})}
