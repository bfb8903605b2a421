"""Analyzers over recordings: one chunk in memory, each state read once, however large the recording."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast, overload

import numpy as np
import torch
from tqdm import tqdm

from dynloop.measurement import Measurement
from dynloop.store import Store
from dynloop.trajectories import Trajectories, orbits_a_chunk

Analyzer = Callable[..., Measurement]
HELD_BYTES = 256 * 2**20  # of states in float32 that may wait for the rest of their groups while a store is streamed


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


def _whole_groups(trajectories: Trajectories, together: Iterable[str]) -> Iterator[tuple[np.ndarray, Trajectories]]:
    """Chunks that hold whole groups, each with the places of its orbits; a larger group is a chunk of its own."""
    number = groups(trajectories.labels, trajectories.n_orbits, together)
    chunks = trajectories.chunks()
    if (number == np.arange(len(number))).all():
        first = 0
        for chunk in chunks:
            yield np.arange(first, first + chunk.n_orbits), chunk
            first += chunk.n_orbits
        return
    for at in _runs(number, next(chunks).n_orbits):
        if len(at) == trajectories.n_orbits:  # with what was derived from it
            yield at, trajectories
        else:
            yield at, trajectories[at[0]:at[-1] + 1] if at[-1] - at[0] == len(at) - 1 else trajectories[at]


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


def _from_store(store: Store, wanted: dict[str, Any], together: Iterable[str]) \
        -> Iterator[tuple[np.ndarray, Trajectories]]:
    """The wanted orbits of a store in chunks of whole groups, each with the places of its orbits among the wanted.

    Orbits wait in memory until their groups are whole, where that takes less than `HELD_BYTES`. Where it would take
    more, groups are gathered one after the other from the memory-mapped shards.
    """
    labels = store.labels
    mask = np.ones(store.n_orbits, dtype=bool)
    for name in wanted:
        if name not in labels:
            raise ValueError(f"no label {name!r} in this store; it has {', '.join(labels)}.")
        mask &= np.isin(labels[name], np.atleast_1d(wanted[name]))
    number = groups({name: values[mask] for name, values in labels.items()}, int(mask.sum()), together)
    last = np.zeros(len(number), dtype=np.int64)
    last[number] = np.arange(len(number))  # the last place of each group, by its number
    cuts = np.flatnonzero(np.maximum.accumulate(last[number]) == np.arange(len(number))) + 1  # no group lies across
    longest = np.diff(cuts, prepend=0).max(initial=0)
    if longest > 1 and longest * store.n_steps * store.dim * 4 > HELD_BYTES:
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
    ends: list[int] = []  # of shards, as far as they are known

    def pick(wanted: np.ndarray) -> Iterator[Trajectories]:
        for shard in itertools.count():
            if shard == len(ends):
                ends.append((ends[-1] if ends else 0) + mapped(shard).n_orbits)
            begin = ends[shard - 1] if shard else 0
            own = wanted[(wanted >= begin) & (wanted < ends[shard])]
            if len(own):
                yield mapped(shard)[own - begin]
            if wanted[-1] < ends[shard]:
                return

    for at in _runs(number, orbits_a_chunk(store.n_steps, store.dim)):
        yield at, _joined(list(pick(rows[at])))


def _together(one: Analyzer) -> tuple[str, ...]:
    """Labels over which an analyzer compares orbits, under any number of `functools.partial`."""
    while isinstance(one, functools.partial):
        one = one.func
    return getattr(one, "together", ())


def _chunks(source: Trajectories | Store, wanted: dict[str, Any], together: Iterable[str]) \
        -> Iterator[tuple[np.ndarray, Trajectories]]:
    """The recording chunk by chunk; a store's next chunk is read and checked while this one is analysed."""
    if isinstance(source, Trajectories):
        yield from _whole_groups(source.select(**wanted) if wanted else source, together)
        return
    chunks = _from_store(source, wanted, together)
    with ThreadPoolExecutor(max_workers=1) as ahead:
        ready = ahead.submit(next, chunks, None)
        while (found := ready.result()) is not None:
            ready = ahead.submit(next, chunks, None)
            yield found


def measure(source: Trajectories | Store, analyzers: Iterable[Analyzer], *,
            select: Mapping[str, Any] | None = None) -> list[Measurement]:
    """Run several analyzers over a recording in one pass: every state is read once, one chunk is held in memory.

    Args:
        source: trajectories or a store. A store's shards are held against their checksums on the way; an unfinished
            store is refused.
        analyzers: functions f(trajectories) -> Measurement; set their settings with `functools.partial`.
        select: labels to select, for example {"layer": 2, "prompt": [0, 3]}; by default everything.

    Returns:
        One measurement an analyzer, in their order, orbits in the order of the source.

    Raises:
        ValueError: an unfinished or damaged store, or no such orbit.

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
    wanted = dict(select or {})
    together = {name for one in analyzers for name in _together(one)}
    answers: list[list[Measurement]] = [[] for _ in analyzers]
    places: list[np.ndarray] = []
    total = source.n_orbits if isinstance(source, Store) and not wanted else None
    with tqdm(total=total, desc="measure", unit="orbit", disable=None) as progress:
        for at, chunk in _chunks(source, wanted, together):
            places.append(at)
            for answer, one in zip(answers, analyzers, strict=True):
                answer.append(one(chunk))
            progress.update(chunk.n_orbits)
    if not answers[0]:
        raise ValueError("no orbit has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items()) + ".")
    return [_in_order(parts, places) for parts in answers]
