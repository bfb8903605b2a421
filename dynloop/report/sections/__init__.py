"""The sections of a report, one a file: each is a function `section(runs)` that gives a `Section`, or None."""

from dynloop.report.sections.section import Section

__all__ = ["Section"]
