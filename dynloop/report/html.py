"""The report as one page that needs nothing else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from dynloop.report.cells import Table

if TYPE_CHECKING:
    from dynloop.report.figures import Drawing
    from dynloop.report.report import Report

_INTERVAL = re.compile(r"(-?[\d.e-]+ \[-?[\d.e-]+, -?[\d.e-]+\](?: %)?)")
_WIDTH = re.compile(r'<svg[^>]*? width="([\d.]+)pt"')


def _numeric(table: Table, column: int) -> bool:
    """Whether a column holds nothing but numbers, which stand on the right."""
    cells = [row[column] for row in table.rows]
    return column > 0 and any(c.value is not None for c in cells) and all(c.value is not None or not c.text or
                                                                        c.text == "none" for c in cells)


def _held(text: str) -> Any:
    """Text in which a number and its interval stay on one line."""
    from markupsafe import Markup, escape

    return Markup(_INTERVAL.sub(r'<span class="i">\1</span>', str(escape(text))))


def _wide(drawing: Drawing) -> float:
    """Width in rem of a figure that would be too small to read in one of several columns; 0 of all others."""
    found = _WIDTH.search(drawing.svg)
    inches = float(found[1]) / 72 if found else 0.0
    return min(round(6.6 * inches, 1), 64.0) if inches > 5.5 else 0.0


def page(report: Report) -> str:
    """HTML: no network, no scripts, figures inside."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("dynloop.report", "."), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    environment.globals["numeric"] = _numeric
    environment.globals["wide"] = _wide
    environment.filters["held"] = _held
    return environment.get_template("template.html").render(report=report)
