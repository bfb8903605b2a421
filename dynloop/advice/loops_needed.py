"""After how many loops is each question of a task answered, and stays so?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dynloop.measurement import Measurement
from dynloop.models import LoopedModel, Missing, load, undisturbed
from dynloop.nano.answers import check_reader, right_answers
from dynloop.nano.task import Questions
from dynloop.outcome import Outcome
from dynloop.settings import check_whole


def loops_needed(model: LoopedModel | nn.Module | str | Path, questions: Questions, *, n_recurrences: int = 32,
                 stay: int = 2, seed: int = 0, labels: Mapping[str, Any] | None = None) -> Measurement:
    """The smallest number of loops from which the answer to a question stays right, for every question.

        loops = min { r : the answer read out after s loops is right for all s with r <= s <= n_recurrences }

    Args:
        model: as in `capture`; it must be a map with a readout, over bytes.
        questions: from a task of `dynloop.nano.tasks`: `make_task(name).questions(0, 200, split="in_distribution")`.
        n_recurrences: loops that are run.
        stay: an answer must be seen right so many times in a row, at the end.
        seed: question i starts from seed + i, where the initial state is random.
        labels: more labels for all questions, such as {"seed": 3} for the third of several trained models.

    Returns:
        `loops` (questions,), NaN where not `FOUND`; `first_right`, loops after which the answer was right for the first
        time, also where it did not stay right; NaN where it never was. `NOT_FOUND`: wrong at the end, right never or in
        passing; `TOO_SHORT`: right at the end, but fewer than `stay` times; `NOT_FINITE`: a logit left the finite
        numbers. Labels `prompt` (number of the question), `difficulty`, `split` and `chance`.

    Raises:
        ValueError: settings, or a model that cannot be stepped and read out, has fewer loops, whose tokens are no
            bytes, or that is not causal and would read the answer with the question.

    Misleads:
        A guess is right with `chance`, and a model that gives one answer whatever it is asked is right at once where
        that is the answer: hold the share that is found against chance (`loops_by_difficulty` does). What is not found
        within `n_recurrences` may need more loops or may never be answered; a mean over what was found alone is then
        too small. At the least one loop is counted: work done before and after the loop makes easy questions alike.
        A model that was trained with one number of recurrences may lose its answers beyond it, and then nothing is
        found however right it is there: run as many as it was trained with, and `stay` - 1 more, or train it with
        recurrences="uniform". This is about answers; when the state comes to rest is another question
        (`recurrences_needed`).

    Source:
        Own; answers and states settle at different times in Huginn and Ouro.

    Example:
        >>> from dynloop.advice import loops_needed
        >>> from dynloop.nano.tasks import make_task
        >>> loops_needed("nano-settles", make_task("modular_addition").questions(0, 20), n_recurrences=4)
        Measurement(loops_needed of 20 orbits: 20 not found)
    """
    check_whole("n_recurrences", n_recurrences, 1, "a whole number of at least 1 (the default is 32)")
    check_whole("stay", stay, 1, "a whole number of at least 1 (the default is 2)")
    if not isinstance(questions, Questions):
        raise ValueError("questions must come from a task, such as make_task('parity').questions(0, 200); got "
                         f"{type(questions).__name__}.")
    looped = load(model)
    for part in (looped.embed, looped.initial_state, looped.step, looped.readout):
        if isinstance(part, Missing):
            part()
    check_reader(looped)
    looped.check_recurrences(n_recurrences)
    if clash := sorted(set(labels or {}) & {"prompt", "difficulty", "split", "chance"}):
        raise ValueError(f"labels must not hold {', '.join(clash)}, which the questions have. Rename them.")
    n = len(questions)
    with undisturbed(looped.module):
        right, finite = right_answers(looped, questions, range(1, n_recurrences + 1), seed=seed)
    loops, first, outcomes = _settled(right, finite, stay)
    return Measurement(
        "loops_needed", {"loops": loops, "first_right": first}, outcomes,
        units={"loops": "loops", "first_right": "loops"},
        settings={"n_recurrences": n_recurrences, "stay": stay, "seed": seed},
        labels={"prompt": np.arange(n), "difficulty": questions.difficulty, "split": questions.split,
                "chance": questions.chance, **{name: np.full(n, own) for name, own in (labels or {}).items()}})


def _settled(right: np.ndarray, finite: np.ndarray, stay: int) -> tuple[np.ndarray, np.ndarray, list[Outcome]]:
    """Loops, loops until it was right for the first time, and outcomes, from right (n, loops) bool."""
    n_loops = right.shape[1]
    in_a_row = np.where(right.all(1), n_loops, right[:, ::-1].argmin(1))  # right ones at the end
    outcomes = [Outcome.NOT_FINITE if not known else Outcome.NOT_FOUND if not k else
                Outcome.TOO_SHORT if k < stay else Outcome.FOUND
                for k, known in zip(in_a_row.tolist(), map(all, finite), strict=True)]
    found = np.array([outcome is Outcome.FOUND for outcome in outcomes])
    return (np.where(found, n_loops - in_a_row + 1.0, np.nan),
            np.where(right.any(1), right.argmax(1) + 1.0, np.nan), outcomes)
