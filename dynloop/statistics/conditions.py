"""Conditions side by side, reduced to the values of their independent units."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.statistics.nesting import ORBIT, Nesting, check_counted, flat, n_missing, one_number, ranks, shared

if TYPE_CHECKING:
    import pandas

STATISTICS = ("mean", "median", "share")
_MISSING = "missing"  # a row without an outcome whose value is not finite


@dataclasses.dataclass(frozen=True)
class Answers:
    """The rows of one measurement or frame that enter a statistic.

    Attributes:
        name, unit: of the variable.
        x: (n,) values, or 0 and 1 for a share.
        labels: of these rows.
        excluded: the other rows, by outcome.
        settings: of the analyzer.
        shared: labels that all rows share.
    """

    name: str
    unit: str
    x: np.ndarray
    labels: Mapping[str, np.ndarray]
    excluded: Mapping[str, int]
    settings: Mapping[str, Any]
    shared: Mapping[str, Any]

    def rows(self, which: np.ndarray) -> Answers:
        """Some of the rows; exclusions stay as they are."""
        return dataclasses.replace(self, x=self.x[which], labels={n: v[which] for n, v in self.labels.items()})


@dataclasses.dataclass(frozen=True)
class Units:
    """Conditions as tables of the values of their units.

    Attributes:
        tables: for each condition (n_units, n_inner): one value a unit and, where the levels are crossed, inner unit;
            otherwise n_inner is 1. Where units are paired, row i is the same unit in every condition.
        n: for each condition, counts by level.
        notes: what was left out, and what to look at.
    """

    tables: Mapping[str, np.ndarray]
    n: Mapping[str, Mapping[str, int]]
    notes: tuple[str, ...]


def answers(source: Measurement | pandas.DataFrame, *, statistic: str | Callable, variable: str | None, of: Any,
            needed: Sequence[str]) -> Answers:
    """What enters a statistic: the answered orbits of one variable, and what was left out.

    Args:
        source: a measurement, or a frame as `Measurement.to_frame` makes it (a column `outcome` is read where there is
            one; without it, numbers that are not finite are left out as missing).
        statistic: "mean", "median", "share", or a function of a one-dimensional array.
        variable: which; by default the main one. A frame has no main one.
        of: for a share, a value of the variable or an `Outcome`.
        needed: labels that are used.

    Raises:
        ValueError: a setting that does not fit, no such variable or label, or no orbit with an answer.
        TypeError: neither a measurement nor a frame.
    """
    if not callable(statistic) and statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)} or a function; got {statistic!r}.")
    if (statistic == "share") != (of is not None):
        raise ValueError("a share needs of=..., the value or outcome that is counted." if statistic == "share" else
                         f"of goes with statistic='share', not with {statistic!r}. Leave it out.")
    name, unit, values, outcomes, labels, settings, categories = (
        _of_measurement(source, variable, of) if isinstance(source, Measurement) else
        _of_frame(source, variable, of, needed))
    of_outcome = isinstance(of, Outcome)
    used = np.ones(len(outcomes), bool) if of_outcome else outcomes == Outcome.FOUND.value
    if of_outcome:
        x, unit = (outcomes == of.value).astype(float), ""
    elif statistic == "share":
        check_counted(of)
        if categories is not None and of not in categories:
            raise ValueError(f"{name} is one of {', '.join(categories)}; got of={of!r}. Choose one of these.")
        if (values.dtype.kind in "OUST") != isinstance(of, str):
            raise ValueError(f"{name} holds values of dtype {values.dtype}; of={of!r} can never be one of them.")
        x, unit = (values == of).astype(float), ""
    elif values.dtype.kind not in "bifu":
        raise ValueError(f"{name} holds texts, of which there is no {statistic}. Use statistic='share', of=...")
    else:
        x = np.asarray(values, dtype=float)
    excluded = {} if used.all() else {str(o): int(n) for o, n in
                                      zip(*np.unique(outcomes[~used], return_counts=True), strict=True)}
    holes = used & ~np.isfinite(x)
    if holes.any():
        excluded[_MISSING] = excluded.get(_MISSING, 0) + int(holes.sum())
        used &= ~holes
    if not used.any():
        raise ValueError(f"no orbit of {name} has an answer ({', '.join(f'{n} {o}' for o, n in excluded.items())}); "
                         "nothing can be compared.")
    whole = used.all()
    missing = [level for level in needed if level not in labels]
    if missing:
        raise ValueError(f"no label {missing[0]!r}; {name} has {', '.join(labels) or 'no labels'}. Name labels of the "
                         f"orbits, or {ORBIT!r}.")
    kept = {level: labels[level] if whole else labels[level][used] for level in needed}
    return Answers(name, unit, x if whole else x[used], kept, excluded, settings, shared(labels))


def _of_measurement(m: Measurement, variable: str | None, of: Any) -> tuple:
    name = variable or next(iter(m.variables))
    values = m[name]
    if values.ndim != 1 and not isinstance(of, Outcome):
        raise ValueError(f"variable {name!r} has {values.shape[1]} values an orbit; a comparison needs one. Choose "
                         "another variable, or reduce it first.")
    main = name == next(iter(m.variables)) or isinstance(of, Outcome)
    found = m.found
    if found.all():
        outcomes = np.broadcast_to(np.array(Outcome.FOUND.value), len(found))
    else:
        outcomes = np.array([o.value for o in m.outcomes])
    return (m.name if main else f"{m.name}.{name}", m.units[name], values, outcomes, m.labels, dict(m.settings),
            m.categories.get(name))


def _of_frame(frame: Any, variable: str | None, of: Any, needed: Sequence[str]) -> tuple:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"a condition must be a Measurement or a pandas frame; got {type(frame).__name__}.")
    if len(frame) == 0:
        raise ValueError("a frame without rows has nothing to compare. Check how it was selected.")
    frame = flat(frame)
    columns = [str(c) for c in frame.columns]
    if variable is None and not isinstance(of, Outcome):
        raise ValueError(f"a frame needs variable=..., the column that is compared; it has {', '.join(columns)}.")
    name = variable or "outcome"
    if name not in frame.columns:
        raise ValueError(f"no column {name!r}; the frame has {', '.join(columns)}.")
    values = frame[name].to_numpy()
    if "outcome" in frame.columns:
        outcomes = np.array([o.value if isinstance(o, Outcome) else str(o) for o in frame["outcome"]])
    elif values.dtype.kind in "bifu":
        outcomes = np.where(np.isfinite(values), Outcome.FOUND.value, _MISSING)
    else:
        outcomes = np.where(frame[name].isna(), _MISSING, Outcome.FOUND.value)
    labels = {level: frame[level].to_numpy() for level in needed if level in frame.columns}
    for level, v in labels.items():
        if v.dtype.kind == "O":
            if bad := n_missing(v):
                raise ValueError(f"label {level!r} is missing for {bad} of {len(v)} orbits: they belong to no {level}. "
                                 "Give every orbit a value.")
            labels[level] = v.astype(str)
    return name, "", values, outcomes, labels, {}, None


def read(conditions: Any, *, by: str | None, **how: Any) -> dict[str, Answers]:
    """Name -> answers of two or more conditions: a mapping, or one source that the label `by` divides.

    Raises:
        ValueError: fewer than two conditions, or what `answers` refuses.
    """
    if isinstance(conditions, Mapping):
        if by is not None:
            raise ValueError("by names the label that divides one measurement; the conditions given are a mapping, "
                             "divided already. Leave by out.")
        if len({str(name) for name in conditions}) < len(conditions):
            raise ValueError(f"conditions must have names that differ; got {', '.join(map(repr, conditions))}.")
        found = {str(name): answers(source, **how) for name, source in conditions.items()}
    elif by is None:
        raise ValueError("conditions must be a mapping of names to measurements, or one measurement and by=..., the "
                         f"label that tells the conditions apart; got {type(conditions).__name__} without by.")
    else:
        needed = tuple(dict.fromkeys((by, *how.pop("needed"))))
        # exclusions belong to a condition: divide before anything is left out
        if isinstance(conditions, Measurement):
            if by not in conditions.labels:
                raise ValueError(f"by={by!r} is no label; {conditions.name} has "
                                 f"{', '.join(conditions.labels) or 'no labels'}.")
            keys = conditions.labels[by]
            parts: dict[Any, Any] = {key: conditions.select(**{by: key}) for key in _in_order(keys)}
        else:
            import pandas as pd

            if not isinstance(conditions, pd.DataFrame):
                raise TypeError("conditions must be a mapping, a Measurement or a pandas frame; got "
                                f"{type(conditions).__name__}.")
            conditions = flat(conditions)
            if by not in conditions.columns:
                raise ValueError(f"by={by!r} is no column; the frame has {', '.join(map(str, conditions.columns))}.")
            keys = conditions[by].to_numpy()
            if bad := n_missing(keys):
                raise ValueError(f"by={by!r} is missing for {bad} of {len(keys)} rows: they belong to no condition. "
                                 "Select the others, or name theirs.")
            parts = {key: conditions[keys == key] for key in _in_order(keys)}
        found = {str(key): answers(part, needed=needed, **how) for key, part in parts.items()}
    if len(found) < 2:
        raise ValueError(f"a comparison needs at least two conditions; got {', '.join(found) or 'none'}. For one "
                         "number with its interval use estimate.")
    names = {(a.name, a.unit) for a in found.values()}
    if len(names) > 1:
        raise ValueError("conditions must hold the same variable in the same unit; got "
                         f"{', '.join(sorted(' in '.join(filter(None, n)) for n in names))}.")
    return found


def _in_order(keys: np.ndarray) -> list:
    """Distinct values in the order in which they first occur."""
    values, first = np.unique(keys, return_index=True)
    return [values[i].item() if isinstance(values[i], np.generic) else values[i] for i in np.argsort(first)]


def reduce(found: Mapping[str, Answers], nesting: Nesting, paired: Sequence[str],
           statistic: str | Callable) -> Units:
    """The value of every outermost unit (and crossed inner unit) of every condition.

    A mean or share is taken level by level: of the orbits of an innermost unit, then of the units, each counted once.
    Other statistics are taken of all orbits of an outermost unit. An outermost level in `paired` keeps the units that
    every condition has; another label in `paired` keeps the values that occur under every unit of every condition and
    counts each once, so that its own effects cancel.

    Raises:
        ValueError: no complete cells, or a function that gives no finite number.
    """
    names = list(found)
    inner = [label for label in paired if label != nesting.levels[0]]
    levels = [*nesting.levels, *(label for label in inner if label not in nesting.levels)]
    x = np.concatenate([a.x for a in found.values()])
    condition = np.repeat(np.arange(len(names)), [len(a.x) for a in found.values()])
    codes, sizes = [], []
    for level in levels:
        if level == ORBIT:
            code = np.arange(len(x))
        else:
            kinds = {a.labels[level].dtype.kind in "OUST" for a in found.values()}
            if len(kinds) > 1:
                raise ValueError(f"label {level!r} holds texts in one condition and numbers in another; units cannot "
                                 "be matched. Make them alike.")
            values = np.concatenate([a.labels[level] for a in found.values()])
            code = Nesting((level,)).codes({level: values}, np.ones(len(x), bool))[0]
        codes.append(code)
        sizes.append(int(code.max()) + 1)
    present, member = _compress(condition, codes, sizes)
    where = np.stack(np.unravel_index(present, (len(names), *sizes)))  # of each cell: condition, unit, inner units
    keep = np.ones(len(present), bool)
    notes: list[str] = []
    if nesting.levels[0] in paired:
        keep &= _everywhere(where[1], where[0], len(names), nesting.levels[0], notes)
    for label in inner:
        groups = np.unique(where[0] * sizes[0] + where[1], return_inverse=True)[1]
        n_groups = len(np.unique(groups[keep]))
        keep &= _everywhere(where[levels.index(label) + 1], np.where(keep, groups, -1), n_groups, label, notes)
    if nesting.crossed and nesting.levels[1] not in inner:
        for c, name in enumerate(names):
            own = keep & (where[0] == c)
            groups = np.where(own, where[1], -1)
            complete = _everywhere(where[2], groups, len(np.unique(where[1][own])), nesting.levels[1], notes, name)
            keep &= complete | (where[0] != c)
    if not keep.any():
        raise ValueError(f"no {' and '.join(paired or nesting.levels)} is there in every condition"
                         f"{f' under every {levels[0]}' if len(levels) > 1 else ''}; nothing is left to compare. Check "
                         "the labels, or leave paired out.")
    if callable(statistic) or statistic == "median":
        if nesting.crossed:
            raise ValueError(f"crossed units need a mean or a share; got {statistic!r}. Name the outer level alone, "
                             f"resample={nesting.levels[0]!r}.")
        function: Callable = statistic if callable(statistic) else np.median
        # rows of kept cells, by outermost unit
        outer = where[0] * sizes[0] + where[1]
        rows = np.flatnonzero(keep[member])
        of_row = outer[member[rows]]
        order = np.argsort(of_row, kind="stable")
        at, first = np.unique(of_row[order], return_index=True)
        parts = np.split(x[rows[order]], first[1:])
        values = np.array([one_number(function, part) for part in parts])
        if not np.isfinite(values).all():
            raise ValueError("the statistic of a unit is not a finite number. Check the function and the values.")
        tables = {name: values[at // sizes[0] == c][:, None] for c, name in enumerate(names)}
    else:
        counts = np.bincount(member, minlength=len(present))
        cells = np.bincount(member, x, len(present)) / counts
        tables = _tables(cells[keep], present[keep], names, sizes, nesting.crossed)
    n = _counts(names, where[:, keep], levels, sizes, nesting, inner,
                np.bincount(member, minlength=len(present))[keep])
    return Units(tables, n, tuple(notes))


def _compress(condition: np.ndarray, codes: list[np.ndarray], sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cells that occur, as flat numbers in ascending order, and the cell of each row."""
    key, total = condition.astype(np.int64), int(condition.max()) + 1
    for code, size in zip(codes, sizes, strict=True):
        key, total = key * size + code, total * size
    if total <= 4 * len(key) + 10**6:  # a table of all cells is faster than sorting
        present = np.flatnonzero(np.bincount(key, minlength=total))
        number = np.zeros(total, dtype=np.int64)
        number[present] = np.arange(len(present))
        return present, number[key]
    present, member = np.unique(key, return_inverse=True)
    return present, member.reshape(-1)


def _everywhere(values: np.ndarray, groups: np.ndarray, n_groups: int, label: str, notes: list[str],
                name: str = "") -> np.ndarray:
    """Which cells hold a value that occurs in all groups (-1 is none); the others are noted."""
    pairs = np.unique(np.stack([values, groups])[:, groups >= 0], axis=1)
    common = np.bincount(pairs[0], minlength=int(values.max()) + 1) == n_groups
    seen = np.unique(pairs[0])
    if lost := int((~common[seen]).sum()):
        notes.append(f"{lost} of {len(seen)} {label}s{f' of {name}' if name else ''} left out: not answered everywhere")
    return common[values]


def _tables(cells: np.ndarray, keys: np.ndarray, names: list[str], sizes: list[int],
            crossed: bool) -> dict[str, np.ndarray]:
    """Means level by level, inwards to outwards."""
    for size in reversed(sizes[2 if crossed else 1:]):
        keys, member = np.unique(keys // size, return_inverse=True)
        cells = np.bincount(member, cells) / np.bincount(member)
    depth = int(np.prod(sizes[:2 if crossed else 1]))
    tables = {}
    for c, name in enumerate(names):
        own = cells[keys // depth == c]
        n_units = len(np.unique(keys[keys // depth == c] // (sizes[1] if crossed else 1)))
        tables[name] = own.reshape(n_units, -1)
    return tables


def _counts(names: list[str], where: np.ndarray, levels: list[str], sizes: list[int], nesting: Nesting,
            inner: list[str], orbits: np.ndarray) -> dict[str, dict[str, int]]:
    """Units of each level and orbits, by condition; nested units are counted within their own."""
    n: dict[str, dict[str, int]] = {}
    for c, name in enumerate(names):
        own, counted = where[0] == c, {}
        for i, level in enumerate(levels):
            alone = (nesting.crossed and i == 1) or level in inner
            chosen = where[i + 1:i + 2, own] if alone else where[1:i + 2, own]
            counted[level] = len(np.unique(np.ravel_multi_index(
                tuple(chosen), sizes[i:i + 1] if alone else sizes[:i + 1])))
        n[name] = {**counted, ORBIT: int(orbits[own].sum())}
    return n


def repeats(found: Mapping[str, Answers], nesting: Nesting, names: Sequence[str]) -> bool:
    """Whether values of the second nested level lie under several units of the first: they may be the same units."""
    if nesting.crossed or len(nesting.levels) < 2:
        return False
    for name in names:
        outer, inner = (ranks(found[name].labels[level]) for level in nesting.levels[:2])
        if len(np.unique(outer * (int(inner.max()) + 1) + inner)) > int(inner.max()) + 1:
            return True
    return False


def shared_units(found: Mapping[str, Answers], level: str, a: str, b: str) -> bool:
    """Whether two conditions have the same values of a label."""
    return level != ORBIT and np.array_equal(np.unique(found[a].labels[level]), np.unique(found[b].labels[level]))


def contrasts(names: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Pairs (condition, baseline): each against the baseline, or every later one against every earlier one.

    Raises:
        ValueError: an unknown baseline.
    """
    if baseline is None:
        return [(b, a) for a, b in itertools.combinations(names, 2)]
    if baseline not in names:
        raise ValueError(f"baseline must be one of the conditions {', '.join(names)}; got {baseline!r}.")
    return [(name, baseline) for name in names if name != baseline]
