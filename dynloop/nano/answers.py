"""Which questions of a task does a looped model answer rightly, after how many recurrences?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dynloop.nano.task import Questions, Task

Watch = Callable[[int, np.ndarray, torch.Tensor], None]  # (recurrence, numbers of rows, their loop states)


def check_reader(looped: Any) -> None:
    """Refuse a looped model that does not read questions byte by byte, or that would see the answer beforehand."""
    if looped.vocabulary < 256 or looped.prefix:
        raise ValueError(f"a task is made of bytes, the tokens 0 to 255; {looped.name} has {looped.vocabulary} tokens "
                         f"and {looped.prefix} positions before the prompt. Take a model of bytes, or leave the task "
                         "out.")
    if not looped.causal:
        raise ValueError(f"{looped.name} is not causal: it would read the answer with the question. Take a causal "
                         "model, or leave the task out.")


def right_answers(model: Any, questions: Questions, at: Sequence[int], *, seed: int = 0, batch_size: int = 256,
                  watch: Watch | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Whether the whole answer is right, read out after some numbers of recurrences of one run.

    Each byte of the answer is compared with the most likely byte after the question and the right bytes before it. All
    of them agree just where the model, left to itself, writes the answer.

    Args:
        model: what has the four parts `embed`, `initial_state`, `step` and `readout` of a nano model: one, or a
            `LoopedModel`. It runs as it is: in its training mode, with or without gradients.
        questions: as a task makes them.
        at: numbers of recurrences, from 1, ascending.
        seed: question i starts from seed + i where the initial state is random.
        batch_size: questions that run together.
        watch: is given the loop state (rows, tokens, features) after every recurrence, the last of `at` included.

    Returns:
        `right` (n, len(at)) bool, and `finite` (n, len(at)) bool: whether all logits of the answer were finite numbers;
        what is not is not right.
    """
    at = list(at)
    right, finite = np.zeros((2, len(questions), len(at)), dtype=bool)
    device = model.embedding.weight.device if hasattr(model, "embedding") else model.device
    for first in range(0, len(questions), batch_size):
        rows = np.arange(first, min(first + batch_size, len(questions)))
        text = torch.from_numpy(questions.text[rows]).long().to(device)
        asked = torch.from_numpy(questions.asked[rows])[:, 1:].to(device)
        context = model.embed(text[:, :-1])
        state = model.initial_state(context, seeds=[seed + int(i) for i in rows])
        for done in range(1, at[-1] + 1):
            state = model.step(state, context) if getattr(model, "autonomous", True) else \
                model.step(state, context, recurrence=done - 1)
            if watch is not None:
                watch(done, rows, state)
            if done in at:
                logits = model.readout(state, context)
                good = (logits.argmax(-1) == text[:, 1:]) | ~asked
                known = logits.isfinite().all(-1) | ~asked
                column = at.index(done)
                finite[rows, column] = known.all(1).cpu().numpy()
                right[rows, column] = (good & known).all(1).cpu().numpy()
    return right, finite


def accuracies(model: Any, task: Task, at: Sequence[int], *, n: int = 64, seed: int = 0) -> dict[str, dict[str, float]]:
    """Share of right answers by split and number of recurrences, over at most `n` distinct questions a split."""
    was_training = model.training
    model.eval()
    try:
        found = {}
        with torch.no_grad():
            for split in task.splits:
                right, _ = right_answers(model, task.questions(seed, n, split=split), at)
                found[split] = {str(r): round(float(share), 4) for r, share in zip(at, right.mean(0), strict=True)}
        return found
    finally:
        model.train(was_training)
