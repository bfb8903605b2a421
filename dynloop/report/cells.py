"""Numbers as a report shows them, and the tables that hold them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

from dynloop.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Cell:
    """What stands in one place of a table: a text, and the unrounded numbers behind it.

    Attributes:
        text: as every format shows it.
        value, low, high: the number in the text and its interval, unrounded and in the text's own unit (percent where
            the text says %); None where there is none.
    """

    text: str
    value: float | None = None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with its caption and a note below; the first column names the row.

    Attributes:
        name: short and unique in the report; files and anchors are called so.
        caption: what is in it.
        columns: headings.
        rows: cells; texts and whole numbers given here become cells.
        note: how the numbers were made.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    def __post_init__(self) -> None:
        rows = tuple(tuple(_cell(value) for value in row) for row in self.rows)
        if wrong := {len(row) for row in rows} - {len(self.columns)}:
            raise ValueError(f"table {self.name!r} has {len(self.columns)} columns; got rows of {sorted(wrong)} cells.")
        object.__setattr__(self, "columns", tuple(self.columns))
        object.__setattr__(self, "rows", rows)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The cells as every format shows them."""
        return tuple(tuple(cell.text for cell in row) for row in self.rows)

    def without_empty_columns(self) -> Table:
        """The table without columns (but the first) in which every cell is empty."""
        kept = [c for c in range(len(self.columns)) if c == 0 or any(row[c].text for row in self.rows)]
        return dataclasses.replace(self, columns=tuple(self.columns[c] for c in kept),
                                   rows=tuple(tuple(row[c] for c in kept) for row in self.rows))


def _cell(value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    if isinstance(value, bool) or value is None:
        return Cell({True: "yes", False: "no", None: ""}[value])
    if isinstance(value, int):
        return Cell(f"{value:,}", float(value))
    return Cell(str(value))


def significant(value: float, digits: int = 3) -> str:
    """A number in `digits` significant digits, without an exponent where that is short.

    Example:
        >>> from dynloop.report.cells import significant
        >>> significant(0.40449), significant(99.96), significant(1.19e-07), significant(0.0)
        ('0.404', '100', '1.19e-7', '0')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    if 1e-3 <= abs(rounded) < 1e5:
        return f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def plain(value: float, unit: str = "") -> Cell:
    """A number without an interval."""
    return Cell(significant(value) + unit, float(value))


def number(estimate: Estimate) -> Cell:
    """An estimate with its interval."""
    value, low, high = estimate.value, estimate.low, estimate.high
    return Cell(f"{significant(value)} [{significant(low)}, {significant(high)}]", value, low, high)


def percent(estimate: Estimate) -> Cell:
    """A share with its interval, in percent."""
    value, low, high = 100 * estimate.value, 100 * estimate.low, 100 * estimate.high
    return Cell(f"{significant(value)} [{significant(low)}, {significant(high)}] %", value, low, high)


def slug(text: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"-+", "-", "".join(c if c.isascii() and c.isalnum() else "-" for c in text)).strip("-").lower()


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words as a list in a sentence.

    Example:
        >>> from dynloop.report.cells import listed
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return "".join(words[:1]) if len(words) < 2 else f"{', '.join(words[:-1])} {last} {words[-1]}"
