"""Analyzers over recordings: one chunk in memory, each state read once, however large the recording."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from dynloop.measurement import Measurement
from dynloop.store import Store
from dynloop.trajectories import Trajectories

Analyzer = Callable[..., Measurement]


def analyzer(function: Analyzer) -> Analyzer:
    """Make an analyzer of a function f(trajectories, *, ...) -> Measurement that looks at one chunk.

    The result takes trajectories of any size: it hands them on in chunks and joins the answers, so that memory does
    not grow with the recording.

    Raises:
        TypeError: the function's settings are not keyword-only, or lack defaults.
    """
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
        return Measurement.concatenate([function(chunk, **settings) for chunk in trajectories.chunks()])

    return run


def _chunks(source: Trajectories | Store, wanted: dict[str, Any]) -> Iterator[Trajectories]:
    """The recording chunk by chunk; a store's next chunk is read and checked while this one is analysed."""
    if isinstance(source, Trajectories):
        yield from (source.select(**wanted) if wanted else source).chunks()
        return
    chunks = (chunk for part in (source.parts(**wanted) if wanted else source.stream()) for chunk in part.chunks())
    with ThreadPoolExecutor(max_workers=1) as ahead:
        ready = ahead.submit(next, chunks, None)
        while (chunk := ready.result()) is not None:
            ready = ahead.submit(next, chunks, None)
            yield chunk


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
    answers: list[list[Measurement]] = [[] for _ in analyzers]
    total = source.n_orbits if isinstance(source, Store) and not wanted else None
    with tqdm(total=total, desc="measure", unit="orbit", disable=None) as progress:
        for chunk in _chunks(source, wanted):
            for answer, one in zip(answers, analyzers, strict=True):
                answer.append(one(chunk))
            progress.update(chunk.n_orbits)
    if not answers[0]:
        raise ValueError("no orbit has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items()) + ".")
    return [Measurement.concatenate(parts) for parts in answers]
