"""Run tasks in processes of their own; each says by itself whether it was done before."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm


def _quiet() -> None:
    os.environ["TQDM_DISABLE"] = "1"  # one bar for all tasks, not one each
    logging.getLogger().setLevel(logging.ERROR)


def run_all(function: Callable[..., Any], tasks: Mapping[Hashable, tuple], *, workers: int, title: str,
            unit: str = "model") -> dict[Hashable, Any]:
    """function(*arguments) of every task, in the order of the tasks; ended by an interruption, nothing new begins."""
    ended: dict[Hashable, Any] = {}
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(tasks), desc=title, unit=unit, disable=None))
        pool = stack.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _quiet))
        waiting = {pool.submit(function, *arguments): key for key, arguments in tasks.items()}
        try:
            for done in as_completed(waiting):
                ended[waiting[done]] = done.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {key: ended[key] for key in tasks}
