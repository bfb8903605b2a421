"""Tasks on workers: each answer counted exactly once, failures named and tried again, finished ones never run again."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import re
import signal
import sys
import threading
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import TMonitor, tqdm

from dynloop.measurement import Measurement

_IMPORTED = uuid.uuid4().hex  # process numbers repeat on other machines
_UNDER_WAY = 4096  # tasks handed to a cluster at a time
_RUN = "answers"
Answers = list[Measurement]


class MeasureError(RuntimeError):
    """Tasks failed for good: the message names each with its shards, its analyzer and its error."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One call: its name for messages, its arguments, how much it brings further, the key of its answer on disk."""

    name: str
    arguments: tuple
    size: int
    key: str = ""


@dataclasses.dataclass(frozen=True)
class _Failure:
    error: str
    details: str = ""

    @staticmethod
    def of(error: BaseException) -> _Failure:
        notes = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        return _Failure(f"{notes}{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def _here() -> str:
    """This process, among those of all machines."""
    return f"{_IMPORTED} {os.getpid()}"


def _guarded(home: str, function: Callable[..., Answers], arguments: tuple) -> Answers | _Failure:
    """What a worker runs: the answers, or what went wrong, in words that any process can read."""
    if home != _here():
        _one_thread()
    try:
        return function(*arguments)
    except Exception as error:
        return _Failure.of(error)


def _one_thread() -> None:
    """There are as many workers as cores: threads of their own would only be in each other's way."""
    import torch

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts is the one who waits for the answers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _one_thread()


def _end_with_parent() -> None:
    """A fork holds both ends of the pipe from which its tasks come, and would wait there for ever for a parent that was
    killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _main_as_it_is() -> Iterator[None]:
    """A program that is read from standard input has a file by name alone, for which fresh processes would look."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if typed_in(main) and file is not None:
        del main.__file__
    try:
        yield
    finally:
        if file is not None:
            main.__file__ = file


def typed_in(module: ModuleType) -> bool:
    """Whether a module has no file that another process could import."""
    file = getattr(module, "__file__", None)
    return file is None or not os.path.exists(file)


def _may_fork() -> bool:
    """Whether a fork of this process finds no lock held: Linux, no other Python thread (that of a progress bar only
    sleeps), no CUDA. Threads of BLAS and OpenMP do not matter: the former mind forks, the latter are not used there."""
    import torch

    threads = [t for t in threading.enumerate() if not isinstance(t, TMonitor)]
    return sys.platform == "linux" and threads == [threading.main_thread()] and not torch.cuda.is_initialized()


def _processes(workers: int, modules: Iterable[str]) -> ProcessPoolExecutor:
    """A pool of processes.

    They are forks of this one where that is safe: imports would cost each of them two seconds of work. Otherwise they
    are forks of a process that has imported the modules and done nothing else, or start afresh where there are none.
    """
    if _may_fork():
        context: Any = multiprocessing.get_context("fork")
    elif "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(modules))
    else:
        context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    with warnings.catch_warnings():  # Python warns of threads of any kind; see above
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        with contextlib.suppress(BrokenExecutor):  # whoever submits next hears of it
            pool.submit(int).result()  # starts them all
    return pool


class _Here(Executor):
    """Runs a task at once, in this thread."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments, **named))
        return future


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads of a pool share one setting of torch."""
    import torch

    before = torch.get_num_threads()
    _one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Crew:
    """Where tasks run, how many may be under way, and whether the workers can be replaced."""

    def __init__(self, *, workers: int | None, client: Any, threads: bool, modules: Sequence[str]) -> None:
        self._stack = contextlib.ExitStack()
        self._make: Callable[[], Executor] | None = None
        if client is not None:
            self.most = _UNDER_WAY
            self.executor: Executor = client if isinstance(client, Executor) else \
                self._stack.enter_context(client.get_executor(pure=False))  # the same task again is to run again
        elif workers is None:
            self.most, self.executor = 1, _Here()
        elif threads:
            self._stack.enter_context(_one_thread_each())
            self.most, self.executor = 2 * workers, self._stack.enter_context(ThreadPoolExecutor(workers))
        else:
            self.most = 2 * workers
            self._stack.enter_context(_main_as_it_is())
            self._make = lambda: _processes(workers, modules)
            self.executor = self._make()

    def replace(self) -> bool:
        """New workers for those that are gone; False where that is somebody else's business."""
        if self._make is None:
            return False
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.executor = self._make()
        return True

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: object) -> None:
        if self._make is not None:
            self.executor.shutdown(wait=True, cancel_futures=True)
        self._stack.close()


class Kept:
    """Answers of finished tasks in a folder, one study a task, each written whole or not at all.

    Raises:
        FileExistsError: the folder is a file, or holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.is_file():
            raise FileExistsError(f"{self.folder} is a file; finished answers are kept in a folder. Name another path.")
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if not re.fullmatch(r"[0-9a-f]{32}\.nc(\.[0-9a-f]+\.tmp)?", path.name):
                    raise FileExistsError(f"{self.folder} holds something else than finished answers ({path.name}). "
                                          "Name a new folder.")

    def get(self, key: str) -> Answers | None:
        """The answers of a task; None where it is not finished, or its file is damaged."""
        from dynloop.study import Study  # xarray and h5py load for those who keep answers

        path = self.folder / f"{key}.nc"
        try:
            return list(Study.load(path).measurements(_RUN))
        except FileNotFoundError:
            return None
        except ValueError:
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, answers: Answers) -> None:
        """Keep the answers of a task."""
        from dynloop.study import Study

        Study.of({_RUN: answers}).save(self.folder / f"{key}.nc")


class _Run:
    """Tasks on a crew: what waits, what is under way, what failed."""

    def __init__(self, crew: _Crew, function: Callable[..., Answers], tasks: Sequence[Task], waiting: Iterable[int],
                 retries: int) -> None:
        self._crew, self._function, self._tasks, self._retries = crew, function, tasks, retries
        self._waiting = collections.deque(waiting)
        self._suspects: collections.deque[int] = collections.deque()  # under way when a worker was lost
        self._alone = False  # a suspect is under way, and nothing else: so it is known whether it is the reason
        self._under_way: dict[Future, int] = {}
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._lost: list[int] = []
        self.tried: collections.Counter[int] = collections.Counter()
        self.failures: dict[int, _Failure] = {}

    def __iter__(self) -> Iterator[tuple[int, Answers]]:
        """Numbers and answers of tasks, as they come."""
        try:
            while True:
                self._start()
                if self._under_way:
                    future = self._done.get()
                    i = self._under_way.pop(future)
                    try:
                        answer = future.result()
                    except (BrokenExecutor, CancelledError):
                        self._lost.append(i)
                    except Exception as error:  # a cluster that lost the task's worker again and again, say
                        self._failed(i, _Failure.of(error), self._waiting)
                    else:
                        if isinstance(answer, _Failure):
                            self._failed(i, answer, self._waiting)
                        else:
                            yield i, answer
                if not self._under_way:
                    if self._lost:
                        self._replace_workers()
                    elif self.failures or not (self._waiting or self._suspects):
                        return
                    self._alone = False
        finally:
            for future in self._under_way:
                future.cancel()

    def _start(self) -> None:
        """Start what may be started now; nothing new once a task failed for good."""
        while not (self.failures or self._lost or self._alone) and len(self._under_way) < self._crew.most:
            if self._suspects and self._under_way:
                return
            self._alone = bool(self._suspects)
            if not self._suspects and not self._waiting:
                return
            i = (self._suspects or self._waiting).popleft()
            try:
                future = self._crew.executor.submit(_guarded, _here(), self._function, self._tasks[i].arguments)
            except BrokenExecutor:
                self._lost.append(i)
                return
            self._under_way[future] = i
            future.add_done_callback(self._done.put)

    def _failed(self, i: int, failure: _Failure, again: collections.deque[int]) -> None:
        self.tried[i] += 1
        if self.tried[i] > self._retries:
            self.failures[i] = failure
        else:
            again.append(i)

    def _replace_workers(self) -> None:
        gone = _Failure("its worker ended abruptly: killed, or out of memory? (A script that asks for workers must do "
                        "so under `if __name__ == \"__main__\":`.)")
        if not self._crew.replace():
            self.failures.update(dict.fromkeys(self._lost, gone))
        elif self._alone:
            self._failed(self._lost[0], gone, self._suspects)
        else:
            self._suspects.extend(self._lost)
        self._lost = []


def run_tasks(function: Callable[..., Answers], tasks: Sequence[Task], *, workers: int | None = None,
              client: Any = None, threads: bool = False, retries: int = 0, kept: Kept | None = None,
              modules: Sequence[str] = (), unit: str = "task") -> list[Answers]:
    """The answers of all tasks, in their order, whatever the workers and whoever is first.

    Args:
        function: f(*task.arguments) -> list of measurements; importable by name where tasks run in other processes.
        tasks: what to do.
        workers: processes (or threads) on this machine; None runs the tasks here, one after the other.
        client: a `dask.distributed.Client` or an `Executor` instead.
        threads: threads instead of processes.
        retries: how often a failed task is tried again.
        kept: where finished answers are kept; what is there is not run again.
        modules: what workers import before they begin.
        unit: of the tasks' sizes, for the progress bar.

    Raises:
        MeasureError: tasks that failed for good. The others that were under way are finished (and kept) before.
    """
    answers: dict[int, Answers] = {}
    for i, task in enumerate(tasks):
        if kept and (found := kept.get(task.key)) is not None:
            answers[i] = found
    waiting = [i for i in range(len(tasks)) if i not in answers]
    if waiting:
        with _Crew(workers=workers, client=client, threads=threads, modules=modules) as crew, \
                tqdm(total=sum(task.size for task in tasks), initial=sum(tasks[i].size for i in answers),
                     desc="measure", unit=unit, disable=None) as progress:
            run = _Run(crew, function, tasks, waiting, retries)
            for i, own in run:
                if kept:
                    kept.put(tasks[i].key, own)
                answers[i] = own
                progress.update(tasks[i].size)
        if run.failures:
            raise _named(run.failures, tasks, run.tried, kept)
    return [answers[i] for i in range(len(tasks))]


def _named(failures: dict[int, _Failure], tasks: Sequence[Task], tried: collections.Counter[int],
           kept: Kept | None) -> MeasureError:
    lines = [f"  {tasks[i].name}: {failure.error}" for i, failure in sorted(failures.items())]
    left = f"What was finished is kept in {kept.folder}; the same call goes on from there." if kept else \
        "Give resume=FOLDER to keep what is finished." if any(task.key for task in tasks) else \
        "Of orbits in memory nothing is kept."
    times = max(tried[i] for i in failures)
    error = MeasureError(f"{len(failures)} of {len(tasks)} tasks failed" +
                         (f", tried {times} times" if times > 1 else "") + ":\n" + "\n".join(lines) + f"\n{left}")
    for failure in failures.values():
        if failure.details:
            error.add_note(failure.details)
            break
    return error
