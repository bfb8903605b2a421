"""Generated tasks with a dial, one a file: a new file here is found by itself.

A task's file is named after its one public function, whose settings all have defaults, `difficulties`, `harder`,
`held_out` and `seed` among them, and which returns a `dynloop.nano.task.Task`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dynloop.nano.task import Task
from dynloop.settings import check_whole


def task_names() -> list[str]:
    """Names of all tasks.

    Example:
        >>> from dynloop.nano.tasks import task_names
        >>> task_names()
        ['addition', 'knowledge_graph', 'modular_addition', 'p_hop', 'parity', 'pointer_chasing']
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def task_maker(name: str) -> Callable[..., Task]:
    """The function that makes a task.

    Raises:
        ValueError: no such task.
    """
    if name not in task_names():
        raise ValueError(f"no task is called {name!r}; there are {', '.join(task_names())}.")
    return getattr(importlib.import_module(f"{__name__}.{name}"), name)


def make_task(name: str, settings: Mapping[str, Any] | None = None) -> Task:
    """A task by name.

    Args:
        name: one of `task_names()`.
        settings: of the task, by name; by default its own.

    Raises:
        ValueError: no such task or setting, or a setting that does not fit.

    Example:
        >>> from dynloop.nano.tasks import make_task
        >>> task = make_task("parity", {"difficulties": [3, 4], "harder": [8]})
        >>> questions = task.questions(0, 3, split="harder")
        >>> questions.prompts, questions.answers
        ([b'11100000=', b'11110110=', b'01101110='], [b'1', b'0', b'1'])
    """
    maker = task_maker(name)
    if settings is not None and not isinstance(settings, Mapping):
        raise ValueError(f"settings of a task must be given by name, such as {{'difficulties': [1, 2]}}; got "
                         f"{settings!r}. Leave them out for its own.")
    given = dict(settings or {})
    known = inspect.signature(maker).parameters
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{name} has no setting {', '.join(unknown)}; it has {', '.join(known)}.")
    for setting, value in given.items():
        if setting in ("difficulties", "harder") and not (
                (isinstance(value, Sequence) and not isinstance(value, str))
                or (value is None and known[setting].default is None)):
            raise ValueError(f"{setting} of {name} must be a list of whole numbers; got {value!r}. One? Pass "
                             f"[{value!r}].")
        if setting == "seed":
            check_whole("seed", value, 0, "a whole number from 0")
    return maker(**given)
