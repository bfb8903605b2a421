"""Analyzers over recordings: one chunk in memory, each state read once, however large the recording."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json
import marshal
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
import xxhash
from tqdm import tqdm

from dynloop.measurement import Measurement
from dynloop.settings import check_whole
from dynloop.store import Store
from dynloop.tasks import Kept, Task, run_tasks, typed_in
from dynloop.trajectories import CHUNK_BYTES, Trajectories, orbits_a_chunk
from dynloop.version import __version__

Analyzer = Callable[..., Measurement]
HELD_BYTES = 256 * 2**20  # of states in float32 that may wait for the rest of their groups while a store is streamed
TASK_BYTES = (64 * 2**20, 256 * 2**20)  # of shards a task: least (0.25 seconds of work, or more) and most
TASKS = 64  # wanted at least, where they do not become too small: so that workers end at about the same time
RETRIES = 2


@overload
def analyzer(function: Analyzer) -> Analyzer: ...
@overload
def analyzer(*, together: tuple[str, ...]) -> Callable[[Analyzer], Analyzer]: ...
def analyzer(function: Analyzer | None = None, *, together: tuple[str, ...] = ()) -> Any:
    """Make an analyzer of a function f(trajectories, *, ...) -> Measurement that looks at one chunk.

    The result takes trajectories of any size: it hands them on in chunks and joins the answers, so that memory does
    not grow with the recording.

    Args:
        function: the function; with `together` write `@analyzer(together=...)` above it.
        together: labels over which the function compares orbits, for example ("layer",): orbits that agree in all
            other labels come in one chunk, whole, in the order of the recording (whole groups are gathered across the
            shards of a store, too). A chunk may hold several groups; `groups` tells them apart.

    Raises:
        TypeError: the function's settings are not keyword-only, or lack defaults.
    """
    if not isinstance(together, tuple) or not all(isinstance(name, str) for name in together):
        raise TypeError(f'together must be a tuple of label names, for example ("layer",); got {together!r}.')
    if function is None:
        return functools.partial(analyzer, together=together)
    if not inspect.signature(function).parameters or next(iter(inspect.signature(function).parameters.values())).kind \
            is inspect.Parameter.KEYWORD_ONLY:
        raise TypeError(f"analyzer {function.__name__} must take trajectories as its first argument.")
    for setting in list(inspect.signature(function).parameters.values())[1:]:
        if setting.kind is not inspect.Parameter.KEYWORD_ONLY or setting.default is inspect.Parameter.empty:
            raise TypeError(f"setting {setting.name!r} of analyzer {function.__name__} must be keyword-only and have a "
                            "default: write f(trajectories, *, setting=value).")

    @functools.wraps(function)
    def run(trajectories: Trajectories, **settings: Any) -> Measurement:
        if not isinstance(trajectories, Trajectories):
            raise TypeError(f"{function.__name__} needs Trajectories; got {type(trajectories).__name__}. An array? "
                            "Pass Trajectories(array). A store? Use measure(store, [...]).")
        places, parts = [], []
        for at, chunk in _whole_groups(trajectories, together):
            places.append(at)
            parts.append(function(chunk, **settings))
        return _in_order(parts, places)

    run.together = together  # type: ignore[attr-defined]
    return run


def groups(labels: Mapping[str, np.ndarray], n_orbits: int, together: Iterable[str]) -> np.ndarray:
    """Which orbits agree in all labels but those of `together`: the number of each orbit's group, (n_orbits,).

    Groups are counted in the order of their first orbits. Where the labels have no name of `together`, every orbit is
    a group of its own.
    """
    names = set(together)
    if not names & set(labels):
        return np.arange(n_orbits)
    others = [values.tolist() for name, values in labels.items() if name not in names]
    numbers: dict[Any, int] = {}
    rows = zip(*others, strict=True) if others else itertools.repeat((), n_orbits)
    return np.fromiter((numbers.setdefault(row, len(numbers)) for row in rows), dtype=np.int64, count=n_orbits)


def _whole_places(trajectories: Trajectories, together: Iterable[str]) -> Iterator[np.ndarray]:
    """Places of the orbits of each chunk: whole groups; a larger group is a chunk of its own."""
    number = groups(trajectories.labels, trajectories.n_orbits, together)
    block = next(trajectories.chunks()).n_orbits
    if (number == np.arange(len(number))).all():
        for first in range(0, trajectories.n_orbits, block):
            yield np.arange(first, min(first + block, trajectories.n_orbits))
    else:
        yield from _runs(number, block)


def _picked(trajectories: Trajectories, at: np.ndarray) -> Trajectories:
    """The orbits at these ascending places."""
    if len(at) == trajectories.n_orbits:  # with what was derived from it
        return trajectories
    return trajectories[at[0]:at[-1] + 1] if at[-1] - at[0] == len(at) - 1 else trajectories[at]


def _whole_groups(trajectories: Trajectories, together: Iterable[str]) -> Iterator[tuple[np.ndarray, Trajectories]]:
    """Chunks that hold whole groups, each with the places of its orbits."""
    for at in _whole_places(trajectories, together):
        yield at, _picked(trajectories, at)


def _runs(number: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Places of whole groups, at most `most` orbits at a time, or one larger group."""
    order = np.argsort(number, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(number[order])) + 1, len(order))
    first = 0
    while first < len(order):
        fitting = np.searchsorted(ends, first + most, side="right") - 1
        end = ends[max(fitting, np.searchsorted(ends, first, side="right"))]
        yield np.sort(order[first:end])
        first = end


def _in_order(parts: list[Measurement], places: list[np.ndarray]) -> Measurement:
    """Answers to chunks as one, orbits in the order of their places."""
    whole, at = Measurement.concatenate(parts), np.concatenate(places)
    if (at[1:] > at[:-1]).all():
        return whole
    back = np.argsort(at)
    return dataclasses.replace(whole, outcomes=whole.outcomes[back],
                               variables={name: values[back] for name, values in whole.variables.items()},
                               labels={name: values[back] for name, values in whole.labels.items()})


def _joined(parts: list[Trajectories]) -> Trajectories:
    """Parts of one recording as one, in memory."""
    if len(parts) == 1:
        return parts[0]
    return Trajectories(torch.cat([part.states for part in parts]),
                        labels={n: np.concatenate([p.labels[n] for p in parts]) for n in parts[0].labels},
                        lengths=np.concatenate([p.lengths for p in parts]),
                        diverged=np.concatenate([p.diverged for p in parts]), resolution=parts[0].resolution)


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Consecutive shards of a store across whose ends no group lies, and the places of their wanted orbits."""

    shards: slice
    first: int
    n_orbits: int
    n_bytes: int
    gathered: bool  # groups lie so far apart that their orbits cannot all wait in memory

    def joined(self, other: _Stretch) -> _Stretch:
        return _Stretch(slice(self.shards.start, other.shards.stop), self.first, self.n_orbits + other.n_orbits,
                        self.n_bytes + other.n_bytes, self.gathered)


def _wanted(store: Store, wanted: dict[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The labels of the wanted orbits of a store, and which of all they are."""
    labels = store.labels
    mask = np.ones(store.n_orbits, dtype=bool)
    for name in wanted:
        if name not in labels:
            raise ValueError(f"no label {name!r} in this store; it has {', '.join(labels)}.")
        mask &= np.isin(labels[name], np.atleast_1d(wanted[name]))
    return {name: values[mask] for name, values in labels.items()}, mask


def _cuts(number: np.ndarray) -> np.ndarray:
    """Places across which no group lies, ascending; the end is the last of them."""
    last = np.zeros(len(number), dtype=np.int64)
    last[number] = np.arange(len(number))  # the last place of each group, by its number
    return np.flatnonzero(np.maximum.accumulate(last[number]) == np.arange(len(number))) + 1


def _too_far(spans: np.ndarray, store: Store) -> bool:
    longest = spans.max(initial=0)
    return bool(longest > 1 and longest * store.n_steps * store.dim * 4 > HELD_BYTES)


def _stretches(store: Store, wanted: dict[str, Any], together: Iterable[str]) -> list[_Stretch]:
    """The shards with wanted orbits in pieces as small as their groups allow."""
    labels, mask = _wanted(store, wanted)
    cuts = _cuts(groups(labels, int(mask.sum()), together))
    spans = np.diff(cuts, prepend=0)
    sizes = store.orbits_of_shards
    ends = np.cumsum(np.add.reduceat(mask, np.cumsum(sizes) - sizes, dtype=np.int64))
    found: list[_Stretch] = []
    begin, first = 0, 0
    for shard in np.flatnonzero(np.isin(ends, cuts)):
        end = int(ends[shard])
        if end > first:
            inside = (cuts > first) & (cuts <= end) if len(cuts) < len(mask) else slice(first, end)
            found.append(_Stretch(slice(begin, int(shard) + 1), first, end - first,
                                  sum(line["bytes"] for line in store.shards[begin:shard + 1]),
                                  _too_far(spans[inside], store)))
            begin, first = int(shard) + 1, end
    return found


def _joined_stretches(stretches: Iterable[_Stretch], most_bytes: float) -> list[_Stretch]:
    """Stretches that can be streamed one after the other, as one up to so many bytes."""
    found: list[_Stretch] = []
    for own in stretches:
        if found and not (own.gathered or found[-1].gathered) and found[-1].n_bytes + own.n_bytes <= most_bytes \
                and found[-1].shards.stop == own.shards.start:
            found[-1] = found[-1].joined(own)
        else:
            found.append(own)
    return found


def _from_stretch(store: Store, wanted: dict[str, Any], together: Iterable[str]) \
        -> Iterator[tuple[np.ndarray, Trajectories]]:
    """The wanted orbits of a stretch's shards in chunks of whole groups, with the places of its orbits among them.

    Orbits wait in memory until their groups are whole, where that takes less than `HELD_BYTES`. Where it would take
    more, groups are gathered one after the other from the memory-mapped shards.
    """
    labels, mask = _wanted(store, wanted)
    number = groups(labels, int(mask.sum()), together)
    cuts = _cuts(number)
    if _too_far(np.diff(cuts, prepend=0), store):
        yield from _gathered(store, np.flatnonzero(mask), number)
        return
    first, held = 0, []
    for part in store.parts(**wanted) if wanted else store.stream():
        held.append(part)
        end = first + sum(p.n_orbits for p in held)
        cut = int(cuts[np.searchsorted(cuts, end, side="right") - 1]) if end >= cuts[0] else first
        if cut > first:
            whole = _joined(held)
            ready = whole if cut == end else whole[:cut - first]
            for at, chunk in _whole_groups(ready, together):
                yield first + at, chunk
            held = [] if cut == end else [whole[cut - first:]]
            first = cut


def _gathered(store: Store, rows: np.ndarray, number: np.ndarray) -> Iterator[tuple[np.ndarray, Trajectories]]:
    """Chunks of whole groups, picked from memory-mapped shards: `rows` of the store, each with its group's number."""
    mapped = functools.lru_cache(64)(lambda shard: cast(Trajectories, store.part(shard)))
    ends = np.cumsum(store.orbits_of_shards)

    def pick(wanted: np.ndarray) -> Iterator[Trajectories]:
        of = np.searchsorted(ends, wanted, side="right")
        for shard in np.unique(of):
            yield mapped(int(shard))[wanted[of == shard] - (ends[shard - 1] if shard else 0)]

    for at in _runs(number, orbits_a_chunk(store.n_steps, store.dim)):
        yield at, _joined(list(pick(rows[at])))


def _function(one: Analyzer) -> Any:
    """An analyzer under any number of `functools.partial`."""
    while isinstance(one, functools.partial):
        one = one.func
    return one


def _all_together(analyzers: Iterable[Analyzer]) -> set[str]:
    return {name for one in analyzers for name in getattr(_function(one), "together", ())}


def _name_of(one: Analyzer) -> str:
    return getattr(_function(one), "__name__", type(one).__name__)


def _chunks(source: Trajectories | Store, wanted: dict[str, Any], together: Iterable[str]) \
        -> Iterator[tuple[np.ndarray, Trajectories]]:
    """The recording chunk by chunk; a store's next chunk is read and checked while this one is analysed."""
    if isinstance(source, Trajectories):
        yield from _whole_groups(source.select(**wanted) if wanted else source, together)
        return
    for stretch in _joined_stretches(_stretches(source, wanted, together), np.inf):
        chunks = _from_stretch(source.only(stretch.shards), wanted, together)
        with ThreadPoolExecutor(max_workers=1) as ahead:
            ready = ahead.submit(next, chunks, None)
            while (found := ready.result()) is not None:
                ready = ahead.submit(next, chunks, None)
                yield stretch.first + found[0], found[1]


def _answer(one: Analyzer, trajectories: Trajectories) -> Measurement:
    found = one(trajectories)
    if not isinstance(found, Measurement):
        raise TypeError(f"analyzer {_name_of(one)} must return a Measurement; got {type(found).__name__}.")
    return found


def _loop(chunks: Iterable[tuple[np.ndarray, Trajectories]], analyzers: list[Analyzer],
          advance: Callable[[int], Any] = lambda n: None, *, where: Callable[[np.ndarray], str] | None = None) \
        -> list[Measurement]:
    """The analyzers' answers to all chunks, orbits in the order of their places."""
    answers: list[list[Measurement]] = [[] for _ in analyzers]
    places: list[np.ndarray] = []
    for at, chunk in chunks:
        places.append(at)
        for answer, one in zip(answers, analyzers, strict=True):
            try:
                answer.append(_answer(one, chunk))
            except Exception as error:
                if where is not None:
                    error.add_note(f"{where(at)}: analyzer {_name_of(one)}")
                raise
        advance(chunk.n_orbits)
    return [_in_order(parts, places) for parts in answers] if places else []


def _measure_shards(store: Store, analyzers: list[Analyzer], wanted: dict[str, Any]) -> list[Measurement]:
    """One task: some shards of a store, from a worker's point of view."""
    def where(at: np.ndarray) -> str:
        rows = np.flatnonzero(_wanted(store, wanted)[1])[at]
        hit = np.unique(np.searchsorted(np.cumsum(store.orbits_of_shards), rows, side="right"))
        names = [Path(store.shards[shard]["file"]).stem for shard in hit[:4]]
        return ", ".join(names + ["..."] * (len(hit) > 4))

    return _loop(_chunks(store, wanted, _all_together(analyzers)), analyzers, where=where)


def _measure_places(trajectories: Trajectories, at: np.ndarray, analyzers: list[Analyzer]) -> list[Measurement]:
    """One task: some orbits in memory, for a thread."""
    found = []
    for one in analyzers:
        try:
            found.append(_answer(one, _picked(trajectories, at)))
        except Exception as error:
            error.add_note(f"analyzer {_name_of(one)}")
            raise
    return found


def _tasks(store: Store, analyzers: list[Analyzer], wanted: dict[str, Any], *, keyed: bool) -> list[Task]:
    """Shards in tasks that depend on the store alone, never on the workers: so any number of them can go on."""
    stretches = _stretches(store, wanted, _all_together(analyzers))
    most = min(max(sum(own.n_bytes for own in stretches) / TASKS, TASK_BYTES[0]), TASK_BYTES[1])
    same = json.dumps([__version__, CHUNK_BYTES, HELD_BYTES, [_identity(one) for one in analyzers] if keyed else [],
                       {name: np.atleast_1d(values).tolist() for name, values in sorted(wanted.items())},
                       {name: store.header.get(name) for name in ("labels", "resolution")}], sort_keys=True)
    tasks = []
    for own in _joined_stretches(stretches, most):
        part = store.only(own.shards)
        files = [Path(line["file"]).stem for line in part.shards]
        lines = json.dumps([same, *part.shards], sort_keys=True)
        tasks.append(Task(files[0] if len(files) == 1 else f"{files[0]} to {files[-1]}", (part, analyzers, wanted),
                          own.n_orbits, xxhash.xxh3_128(lines.encode()).hexdigest()))
    return tasks


def _identity(one: Analyzer, *, within: tuple[Any, ...] = ()) -> list[Any]:
    """What decides an analyzer's answers, as far as it can be known: its name, its settings and defaults, its own
    source, and what it closes over.

    Raises:
        TypeError: it is no function, or holds something that cannot be told from another.
    """
    settings: dict[str, Any] = {}
    places: tuple[Any, ...] = ()
    while isinstance(one, functools.partial):
        settings, places = {**one.keywords, **settings}, (*one.args, *places)
        one = one.func
    if not inspect.isfunction(one):
        raise TypeError(f"resume needs analyzers that are functions, with settings by functools.partial; got {one!r}.")
    within, own = (*within, one), inspect.unwrap(one)
    try:
        source = inspect.getsource(own)
    except (OSError, TypeError):  # typed in somewhere
        source = marshal.dumps(own.__code__.replace(co_filename="", co_firstlineno=0)).hex()
    held = [cell.cell_contents for function in dict.fromkeys((one, own)) for cell in function.__closure__ or ()]
    return [own.__module__, own.__qualname__, source,
            *(_known(value, one, within) for value in (places, settings, own.__defaults__, own.__kwdefaults__, held))]


def _known(value: Any, whose: Analyzer, within: tuple[Any, ...]) -> Any:
    """A value that decides answers, whole: `repr` shortens arrays, and says of a function where in memory it lies."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(_known(own, whose, within) for own in value)]
    if isinstance(value, dict):
        return [[_known(own, whose, within) for own in pair] for pair in sorted(value.items(), key=repr)]
    if any(value is own for own in within):
        return "itself"
    if inspect.isfunction(value) or isinstance(value, functools.partial):
        return _identity(value, within=within)
    try:
        return [type(value).__qualname__, xxhash.xxh3_128(pickle.dumps(value)).hexdigest()]
    except Exception as error:
        raise TypeError(f"analyzer {_name_of(whose)} holds {value!r}, of which resume cannot know whether it is that "
                        f"of the answers in its folder ({error}). Measure without resume, or give it as numbers, texts "
                        "or arrays.") from None


def _check_by_name(analyzers: list[Analyzer]) -> None:
    """Refuse analyzers that another process cannot import."""
    for one in analyzers:
        try:
            pickle.dumps(one)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(f"analyzer {_name_of(one)} cannot be sent to other processes ({error}): define it at the "
                            "top of a module, and set its settings with functools.partial.") from None
        if _home(one) == "__main__" and typed_in(sys.modules["__main__"]):
            raise TypeError(f"analyzer {_name_of(one)} was typed in here, and other processes cannot import it: put "
                            "it into a file of its own and import it from there.")


def measure(source: Trajectories | Store, analyzers: Iterable[Analyzer], *, select: Mapping[str, Any] | None = None,
            workers: int | None = None, client: Any = None, resume: str | Path | None = None,
            retries: int | None = None) -> list[Measurement]:
    """Run several analyzers over a recording in one pass: every state is read once, one chunk is held in memory.

    With `workers`, `client` or `resume` the shards of a store are measured in tasks of 64 to 256 MiB, each with all
    analyzers, and the answers are joined in the order of the shards: they are those of the plain loop, bit for bit,
    whoever computes them and whoever is first. Shards whose orbits an analyzer compares come in one task.

    Args:
        source: trajectories or a store. A store's shards are held against their checksums on the way; an unfinished
            store is refused.
        analyzers: functions f(trajectories) -> Measurement; set their settings with `functools.partial`. Where other
            processes run them, they must be defined at the top of a module.
        select: labels to select, for example {"layer": 2, "prompt": [0, 3]}; by default everything.
        workers: processes on this machine, each with one thread, for a store; threads for trajectories. By default
            everything happens in this process.
        client: a `dask.distributed.Client` (dynloop[dask]) whose workers see the store under the same path, or any
            `concurrent.futures.Executor`, instead of `workers`.
        resume: a folder that keeps the answer of every finished task: the same call goes on where it was interrupted,
            whatever the workers. An answer is used again where dynloop's version, shards, checksums, labels,
            selection, analyzers, settings and the analyzers' own source are the same; what these call may have
            changed unseen, so delete the folder after such a change.
        retries: how often a failed task is tried again, by default 2 times.

    Returns:
        One measurement an analyzer, in their order, orbits in the order of the source.

    Raises:
        ValueError: an unfinished or damaged store, no such orbit, or settings that do not go together.
        TypeError: analyzers that other processes cannot import, or a source or client of another kind.
        MeasureError: tasks that failed again and again (with workers, client or resume), each with its shards, its
            analyzer and its error.
        FileExistsError: `resume` is no folder of answers.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, contraction_rate, measure, successive_distance
        >>> decay = 0.5 ** np.arange(40)[None, :, None] * np.ones((3, 1, 8))
        >>> steps, rates = measure(Trajectories(1 + decay), [successive_distance, contraction_rate])
        >>> rates.values.round(3)
        array([0.5, 0.5, 0.5])
    """
    if not isinstance(source, Trajectories | Store):
        raise TypeError(f"measure needs Trajectories or a Store; got {type(source).__name__}. Open a folder with "
                        "open_store(folder), a tensor file with load(path, axes=...).")
    analyzers = list(analyzers) if isinstance(analyzers, Iterable) else []
    if not analyzers or not all(map(callable, analyzers)):
        raise TypeError("measure needs a list of analyzers, for example [dynloop.contraction_rate].")
    if isinstance(source, Store) and not source.complete:
        raise ValueError(f"the store at {source.folder} is unfinished: its capture was interrupted. Run the same "
                         "capture again to finish it, or measure what there is part by part (Store.parts).")
    in_tasks = workers is not None or client is not None or resume is not None
    _check_workers(source, workers, client, resume, retries, in_tasks)
    wanted = dict(select or {})
    if isinstance(source, Trajectories) and wanted:
        source, wanted = source.select(**wanted), {}
    if isinstance(source, Store) and not _wanted(source, wanted)[1].any():
        raise ValueError("no orbit has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items()) + ".")
    if not in_tasks:
        total = source.n_orbits if not wanted else int(_wanted(cast(Store, source), wanted)[1].sum())
        with tqdm(total=total, desc="measure", unit="orbit", disable=None) as progress:
            return _loop(_chunks(source, wanted, _all_together(analyzers)), analyzers, progress.update)
    options: dict[str, Any] = {"retries": RETRIES if retries is None else retries, "workers": workers, "unit": "orbit"}
    if isinstance(source, Trajectories):
        places = list(_whole_places(source, _all_together(analyzers)))
        parts = run_tasks(_measure_places, [Task(f"orbits {at[0]} to {at[-1]}", (source, at, analyzers), len(at))
                                            for at in places], threads=True, **options)
        return [_in_order(list(own), places) for own in zip(*parts, strict=True)]
    if workers is not None or isinstance(client, ProcessPoolExecutor):
        _check_by_name(analyzers)
    parts = run_tasks(_measure_shards, _tasks(source, analyzers, wanted, keyed=resume is not None), client=client,
                      kept=None if resume is None else Kept(resume),
                      modules=["dynloop.measuring", "dynloop.kernels.distances", *map(_home, analyzers)], **options)
    return [Measurement.concatenate(own) for own in zip(*parts, strict=True)]


def _home(one: Analyzer) -> str:
    return getattr(_function(one), "__module__", __name__)


def _check_workers(source: Trajectories | Store, workers: int | None, client: Any, resume: Any, retries: int | None,
                   in_tasks: bool) -> None:
    if workers is not None:
        check_whole("workers", workers, 1, "how many processes run on this machine, at least 1")
        if client is not None:
            raise ValueError("workers are processes of this machine, client brings workers of its own; give one of "
                             "them.")
    if client is not None and not (isinstance(client, Executor) or hasattr(client, "get_executor")):
        raise TypeError("client must be a dask.distributed.Client or a concurrent.futures.Executor; got "
                        f"{type(client).__name__}. Processes on this machine? Give workers=N.")
    if retries is not None:
        check_whole("retries", retries, 0, "how often a failed task is tried again, 0 or more")
        if not in_tasks:
            raise ValueError("retries go with workers, client or resume; the plain loop stops at the first error.")
    if isinstance(source, Trajectories) and (client is not None or resume is not None):
        raise TypeError("client and resume need a store, whose shards have checksums and can be read from elsewhere: "
                        "save the trajectories with save(trajectories, folder). Threads in this process? Give "
                        "workers=N.")
