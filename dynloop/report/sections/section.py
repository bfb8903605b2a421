"""A part of a report under one heading."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dynloop.report.cells import Table
from dynloop.report.figures import Drawing


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, sentences, tables and figures, in this order.

    Attributes:
        name: short and unique in the report: its anchor.
        title: heading.
        text: paragraphs.
        points: a list of sentences below them.
        tables, drawings: what it shows.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[Drawing] = ()
