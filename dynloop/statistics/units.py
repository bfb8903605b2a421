"""What enters a statistic: the rows of a measurement or a frame, what was left out, and the units they belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.statistics.nesting import Nesting, check_counted, flat, n_missing, ranks, shared

if TYPE_CHECKING:
    import pandas

Source = Any  # Measurement or pandas.DataFrame; pandas is loaded only where it is used


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The rows that enter, with all that the estimate says of them.

    Attributes:
        name: of the measurement and variable.
        x: (n,) or, one value a step, (n, steps): the values; 0 and 1 for a share.
        y: (n,) denominators of a ratio.
        used: which rows of the source these are, (rows of the source,) bool.
        labels: of all rows of the source.
        excluded: rows that did not enter, by outcome.
        unit: of the values.
        settings: of the analyzer.
    """

    name: str
    x: np.ndarray
    y: np.ndarray | None
    used: np.ndarray
    labels: Mapping[str, np.ndarray]
    excluded: Mapping[str, int]
    unit: str
    settings: Mapping[str, Any]

    def shared_labels(self) -> dict[str, Any]:
        """Labels that all rows of the source share."""
        return shared(self.labels)


def read(source: Source, variable: str | Sequence[str] | None, of: Any, *, counts: bool = False,
         curves: bool = False) -> Rows:
    """The rows of a source that a statistic takes.

    Args:
        source: a measurement, or a frame with a column of outcomes or without.
        variable: one name, or numerator and denominator of a ratio; None for the main variable of a measurement.
        of: with `counts`, the value or `Outcome` that is counted.
        counts: a share is asked for.
        curves: one value a step is wanted, (n, steps).

    Raises:
        ValueError: a variable that is not there or does not fit, nothing answered, or numbers that are none.
    """
    pair = tuple(variable) if isinstance(variable, tuple | list) else (variable,)
    if isinstance(source, Measurement):
        name = pair[0] or next(iter(source.variables))
        columns = [source[v or name] for v in pair]
        outcomes, labels, unit = source.outcomes, source.labels, source.units[name]
        main = isinstance(of, Outcome) or name == next(iter(source.variables))
        title, known = source.name if main else f"{source.name}.{name}", source.categories.get(name)
        settings = dict(source.settings)
        found = source.found
    else:
        columns, outcomes, labels, found = _of_frame(source, pair, of)
        name, unit, known, settings = pair[0] or "outcome", "", None, {}
        title = name
    if len(pair) == 2:
        title, unit = f"{title} / {pair[1]}", ""
    values = columns[0]
    of_outcome = isinstance(of, Outcome)
    if not of_outcome and (values.ndim == 2) != curves:
        raise ValueError(
            f"variable {name!r} has one value an orbit; blocks of steps need one value a step. Choose another "
            "variable, or resample='prompt'." if curves else
            f"variable {name!r} has {values.shape[1]} values an orbit; an estimate needs one. Choose another variable, "
            "reduce it first, or resample its steps with resample='block'.")
    used = np.ones(len(values if outcomes is None else outcomes), bool) if of_outcome or found is None else found
    excluded: dict[str, int] = {}
    if not used.all():
        left_out = np.array([str(getattr(o, "value", o)) for o in outcomes[~used]])
        words = [o.value for o in Outcome]
        excluded = dict(sorted(zip(*(a.tolist() for a in np.unique(left_out, return_counts=True)), strict=True),
                               key=lambda item: words.index(item[0]) if item[0] in words else len(words)))
    if not used.any():
        raise ValueError(f"no orbit of {source.name if isinstance(source, Measurement) else name} has an answer "
                         f"({', '.join(f'{n} {o}' for o, n in excluded.items())}); nothing can be estimated.")
    y = None
    if of_outcome:
        x = np.array([o is of or o == of.value for o in outcomes], dtype=float)
    elif counts:
        check_counted(of)
        if known is not None and of not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}; got of={of!r}. Choose one of these.")
        texts = values.dtype.kind in "US" or (values.dtype.kind == "O" and isinstance(values[0], str))
        if texts != isinstance(of, str):
            raise ValueError(f"{name} holds values of dtype {values.dtype}; of={of!r} can never be one of them.")
        answered = values if used.all() else values[used]
        if bad := 0 if known is not None else n_missing(answered) - int((np.isinf(answered)).sum()
                                                                        if answered.dtype.kind == "f" else 0):
            raise ValueError(f"{name!r} is NaN or missing for {bad} of {len(answered)} orbits that were answered: they "
                             "are neither of it nor not. Select the others, or give these an outcome of their own.")
        x = answered == of
    else:
        numbers = [_numbers(v, used, n or name) for v, n in zip(columns, pair, strict=True)]
        x, y = numbers[0], (numbers[1] if len(pair) == 2 else None)
    return Rows(title, x, y, used, labels, excluded, "" if counts else unit, settings)


def _of_frame(frame: pandas.DataFrame, pair: Sequence[str | None], of: Any) -> tuple:
    """Columns, outcomes, labels and answered rows of a frame."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"source must be a Measurement or a pandas frame; got {type(frame).__name__}. A bare array "
                         "does not say what is independent of what.")
    if not len(frame):
        raise ValueError("the frame has no rows; nothing can be estimated.")
    frame = flat(frame)
    if pair[0] is None and not isinstance(of, Outcome):
        raise ValueError(f"a frame needs variable=..., one of its columns {', '.join(map(str, frame.columns))}.")
    for name in pair:
        if name is not None and name not in frame:
            raise ValueError(f"the frame has no column {name!r}; it has {', '.join(map(str, frame.columns))}.")
    outcomes = frame["outcome"].to_numpy(dtype=object) if "outcome" in frame else None
    if isinstance(of, Outcome) and outcomes is None:
        raise ValueError(f"of={of!s} counts outcomes, and the frame has no column 'outcome'. Add it, or count a value.")
    labels = {str(c): frame[c].to_numpy() for c in frame.columns if c not in ("outcome", *pair)}
    found = None if outcomes is None else np.array([o is Outcome.FOUND or o == Outcome.FOUND.value for o in outcomes])
    columns = [(outcomes if name is None else frame[name].to_numpy()) for name in pair]
    return columns, outcomes, labels, found


def _numbers(values: np.ndarray, used: np.ndarray, name: str) -> np.ndarray:
    """The used values as finite numbers."""
    if values.dtype.kind not in "fiub":
        raise ValueError(f"variable {name!r} holds values of dtype {values.dtype}; this statistic needs numbers. "
                         "Convert them first; for texts ask for statistic='share', of=...")
    x = np.asarray(values if used.all() else values[used], dtype=float)
    if not np.isfinite(x.sum()) and (bad := int((~np.isfinite(x)).any(tuple(range(1, x.ndim))).sum())):
        raise ValueError(f"{name!r} is NaN or infinite for {bad} of {len(x)} orbits that were answered. Nothing is "
                         "dropped in silence: select the others, or give these an outcome of their own.")
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Leaves:
    """The innermost units, and where each lies at every level.

    Attributes:
        nesting: names of the levels.
        codes: (n_levels, n_leaves) the unit of each leaf at each level; nested leaves are sorted by their path.
        of_row: (n,) the leaf of each row.
        sizes: (n_leaves,) rows of each leaf.
    """

    nesting: Nesting
    codes: np.ndarray
    of_row: np.ndarray
    sizes: np.ndarray

    @property
    def n_leaves(self) -> int:
        return len(self.sizes)

    def n_units(self, level: int) -> int:
        """Units at a level."""
        return int(self.codes[level].max()) + 1

    def units(self) -> dict[str, int]:
        """Units by the name of their level."""
        return {name: self.n_units(i) for i, name in enumerate(self.nesting.levels)}

    def of_units(self, level: int, columns: np.ndarray) -> np.ndarray:
        """Sums over the leaves of each unit: columns (k, n_leaves) to (k, units of the level)."""
        if self.n_leaves == self.n_units(level):
            return columns[:, np.argsort(self.codes[level])]
        return np.stack([np.bincount(self.codes[level], c, self.n_units(level)) for c in columns])


def leaves(rows: Rows, nesting: Nesting) -> Leaves:
    """Group rows to units.

    Raises:
        ValueError: labels that are not there, or NaN.
    """
    return group(nesting.codes(rows.labels, rows.used), nesting)


def group(codes: np.ndarray, nesting: Nesting) -> Leaves:
    """Group rows by their codes (n_levels, n)."""
    if nesting.crossed:
        n_columns = int(codes[1].max()) + 1
        of_row = ranks(codes[0] * n_columns + codes[1])
    else:
        of_row = codes[-1]
    n_leaves = int(of_row.max()) + 1
    own = np.zeros((len(codes), n_leaves), dtype=np.int64)
    own[:, of_row] = codes
    return Leaves(nesting, own, of_row, np.bincount(of_row, minlength=n_leaves).astype(float))
