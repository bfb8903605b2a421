"""What is independent of what: the units that an interval resamples."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ORBIT = "orbit"


@dataclasses.dataclass(frozen=True)
class Nesting:
    """Labels whose values are independent units, the outermost first.

    Attributes:
        levels: label names; `("orbit",)` where every orbit stands for itself.
        crossed: the levels meet in every combination (the same prompts under every seed) instead of lying within each
            other.

    Example:
        >>> Nesting.parse("seed > prompt")
        Nesting(levels=('seed', 'prompt'), crossed=False)
        >>> str(Nesting.parse("seed x prompt"))
        'seed × prompt'
    """

    levels: tuple[str, ...]
    crossed: bool = False

    @classmethod
    def parse(cls, text: str) -> Nesting:
        """Read "prompt", "seed > prompt", "seed × prompt" (or "seed x prompt").

        Raises:
            ValueError: anything else, with what may be written.
        """
        help_ = ('name what is independent: a label such as "prompt", "seed > prompt" (prompts within seeds), '
                 '"seed × prompt" (the same prompts under every seed), or "orbit"')
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"resample must {help_}; got {text!r}.")
        crossed = re.split(r"\s*×\s*|\s+x\s+", text.strip())
        nested = re.split(r"\s*>\s*", text.strip())
        if len(crossed) > 1 and len(nested) > 1:
            raise ValueError(f"resample cannot be nested and crossed at once; got {text!r}. {help_.capitalize()}.")
        levels = crossed if len(crossed) > 1 else nested
        if not all(levels) or len(set(levels)) < len(levels) or (len(levels) > 1 and ORBIT in levels):
            raise ValueError(f"resample must {help_}; got {text!r}.")
        if len(crossed) > 2:
            raise ValueError(f"crossed resampling knows two levels; got {text!r}. Nest the others inside.")
        return cls(tuple(levels), len(crossed) > 1)

    def __str__(self) -> str:
        return (" × " if self.crossed else " > ").join(self.levels)

    def codes(self, labels: Mapping[str, np.ndarray], rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """The unit of each row at each level, (n_levels, n_rows), counted from 0 in the order of the labels' values.

        Nested units are told apart by the units around them: prompt 3 of seed 0 is not prompt 3 of seed 1. Crossed
        ones are not.

        Args:
            labels: one value an orbit, by name.
            rows: the orbits that are used: a mask, or indices.

        Raises:
            ValueError: a label that is not there, or NaN for some rows.
        """
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool and not rows.all() else rows
        chosen = slice(None) if rows.dtype == bool else rows
        if self.levels == (ORBIT,):
            if ORBIT in labels:
                raise ValueError("resample='orbit' means that every orbit stands for itself, but there is a label of "
                                 "that name. Rename the label.")
            return np.arange(len(rows))[None]
        found: list[np.ndarray] = []
        for name in self.levels:
            if name not in labels:
                raise ValueError(f"resample must name what is independent: {ORBIT!r} or the labels "
                                 f"{', '.join(labels) or '(none)'}; got {name!r}.")
            values = np.asarray(labels[name])[chosen]
            if bad := n_missing(values):
                raise ValueError(f"label {name!r} is NaN, infinite or missing for {bad} of {len(values)} orbits: they "
                                 f"belong to no {name}. Give every orbit a value.")
            code = ranks(values)
            if found and not self.crossed:
                code = ranks(found[-1] * (int(code.max(initial=0)) + 1) + code)
            found.append(code)
        return np.stack(found)


def n_missing(values: np.ndarray) -> int:
    """How many values are none: NaN, infinite, None, NA or NaT."""
    if values.dtype.kind == "f":
        return int((~np.isfinite(values)).sum())
    if values.dtype.kind in "OMm":
        import pandas as pd

        return int(pd.isna(values).sum())
    return 0


def shared(labels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Labels that all rows share."""
    found = {}
    for name, values in labels.items():
        first = values[0]
        same = all(other == first for other in values) if values.dtype.kind == "O" else bool((values == first).all())
        if same:
            found[name] = first.item() if isinstance(first, np.generic) else first
    return found


def flat(frame: Any) -> Any:
    """A frame with its named index levels as columns.

    Raises:
        ValueError: two columns of one name.
    """
    if names := [name for name in frame.index.names if name is not None and name not in frame.columns]:
        frame = frame.reset_index(level=names)
    if (twice := frame.columns[frame.columns.duplicated()]).size:
        raise ValueError(f"the frame has several columns {twice[0]!r}. Give every column a name of its own.")
    return frame


def one_number(function: Callable[[np.ndarray], float], x: np.ndarray) -> float:
    """What a statistic gives.

    Raises:
        ValueError: no single number.
    """
    value = function(x)
    if isinstance(value, complex) or np.ndim(value) or (isinstance(value, str) or not np.isreal(value)):
        raise ValueError(f"statistic must be a function of a one-dimensional array that gives one number; "
                         f"{getattr(function, '__name__', 'it')} gave {type(value).__name__} of shape "
                         f"{np.shape(value)}.")
    return float(value)


def check_counted(of: Any) -> None:
    """Refuse what no orbit can equal.

    Raises:
        ValueError: a list, an array, or NaN.
    """
    if not (isinstance(of, str | bool | int | float | np.generic)) or of != of:
        raise ValueError(f"of must be one value or an Outcome; got {of!r}, which no orbit can equal. For several "
                         "values make a variable that says whether an orbit has one of them.")


def ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value among the distinct ones, counted from 0."""
    if values.dtype.kind in "iu" and values.size:
        low = int(values.min())
        span = int(values.max()) - low + 1
        if span <= 4 * values.size + 1024 and low + span < 2**63:  # a table of all values is faster than to sort
            place = values if values.dtype.kind == "i" and low == 0 else values.astype(np.int64) - low
            there = np.zeros(span, dtype=bool)
            there[place] = True
            return (np.cumsum(there) - 1)[place]
    if values.dtype.kind in "OUS":
        import pandas as pd

        return pd.factorize(values.astype(object), sort=True)[0].astype(np.int64)
    return np.unique(values, return_inverse=True)[1].reshape(-1)
