"""The report as Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dynloop.report.cells import Table

if TYPE_CHECKING:
    from dynloop.report.report import Report


def plain(text: str) -> str:
    """Text that Markdown shows as it is, whatever a model is called."""
    text = re.sub(r"([\\`*<|&]|(?<!\w)_|_(?!\w))", r"\\\1", text)
    return text.replace("](", "]\\(")


def table_lines(table: Table) -> list[str]:
    """Caption, cells and note of a table."""
    aligned = ["---", *("---:" if all(row[c].value is not None or not row[c].text for row in table.rows) else "---"
                        for c in range(1, len(table.columns)))]
    rows = ["| " + " | ".join(cells) + " |" for cells in
            (map(plain, table.columns), aligned, *(map(plain, row) for row in table.texts))]
    return [f"**{plain(table.caption)}**", "", *rows, "", *([plain(table.note), ""] if table.note else [])]


def page(report: Report) -> str:
    """Markdown, with the figures beside it."""
    lines = [f"# {plain(report.title)}", "", *[f"- {plain(finding)}" for finding in report.findings], ""]
    for section in report.sections:
        lines += [f"## {plain(section.title)}", ""]
        for text in section.text:
            lines += [plain(text), ""]
        if section.points:
            lines += [*[f"- {plain(point)}" for point in section.points], ""]
        for table in section.tables:
            lines += table_lines(table)
        for drawing in section.drawings:
            lines += [f"![{plain(drawing.alt)}](figures/{drawing.name}.png)", "", plain(drawing.caption), ""]
    return "\n".join(lines)
