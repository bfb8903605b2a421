"""A report: findings, tables, figures and estimates, rendered to HTML, Markdown, CSV and JSON of the same numbers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynloop.report.figures import Drawing
from dynloop.statistics import Estimate

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts with its caption and a note below."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def check_report_folder(folder: str | Path) -> None:
    """Refuse a file, or a folder with other things than a report.

    Raises:
        FileExistsError: it is one of these.
    """
    folder, own = Path(folder), {"report.html", "report.md", "report.json", "estimates.csv", "figures"}
    if folder.is_file() or \
            (folder.is_dir() and any(p.name.removesuffix(".tmp") not in own for p in folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else than a report. Name a new folder.")


def significant(value: float, digits: int = 3) -> str:
    """A number in `digits` significant digits, without an exponent where that is short."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.{digits - 1}e}"


def interval(estimate: Estimate, scale: float = 1.0) -> str:
    """The interval of an estimate, in brackets."""
    return f"[{significant(scale * estimate.low)}, {significant(scale * estimate.high)}]"


def number(estimate: Estimate) -> str:
    """An estimate with its interval."""
    return f"{significant(estimate.value)} {interval(estimate)}"


def percent(estimate: Estimate) -> str:
    """A share with its interval, in percent."""
    return f"{significant(100 * estimate.value)} {interval(estimate, 100)} %"


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found, ready to be read and cited.

    Attributes:
        title: heading.
        findings: sentences with their numbers and intervals.
        tables, drawings, appendix: in the order of the page; the appendix holds tables, too.
        estimates: every number with its interval, unrounded.
        provenance: which models, data, seeds, dtypes and settings.
    """

    title: str
    findings: tuple[str, ...]
    tables: tuple[Table, ...]
    drawings: tuple[Drawing, ...]
    appendix: tuple[Table, ...]
    estimates: tuple[Estimate, ...]
    provenance: Mapping[str, Any]

    def save(self, folder: str | Path) -> Path:
        """Write report.html, report.md, report.json, estimates.csv and figures/ into a folder; returns report.html.

        Files of an earlier report there are replaced, each whole or not at all; report.html is written last.

        Raises:
            FileExistsError: the path is a file, or a folder with other things than a report.
        """
        folder = Path(folder)
        check_report_folder(folder)
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for drawing in self.drawings:
            _replace(folder / "figures" / f"{drawing.name}.svg", drawing.svg.encode())
            _replace(folder / "figures" / f"{drawing.name}.png", drawing.png)
        _replace(folder / "report.json", self.to_json().encode())
        _replace(folder / "estimates.csv", self.to_csv().encode())
        _replace(folder / "report.md", self.to_markdown().encode())
        _replace(folder / "report.html", self.to_html().encode())
        return folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {"schema": SCHEMA, "title": self.title, "findings": list(self.findings),
                "estimates": [e.to_dict() for e in self.estimates],
                "tables": [dataclasses.asdict(t) for t in self.tables + self.appendix],
                "figures": [{"name": d.name, "caption": d.caption, "alt": d.alt} for d in self.drawings],
                "provenance": dict(self.provenance)}

    def to_json(self) -> str:
        """JSON with a schema number."""
        return json.dumps(self.to_dict(), indent=1, default=str) + "\n"

    def to_csv(self) -> str:
        """One line an estimate, unrounded."""
        rows = [{**e.to_dict(), "excluded": json.dumps(dict(e.excluded)), "settings": json.dumps(dict(e.settings)),
                 "labels": json.dumps(dict(e.labels), default=str)} for e in self.estimates]
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Estimate)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """Markdown, with the figures beside it."""
        lines = [f"# {_plain(self.title)}", "", *[f"- {_plain(finding)}" for finding in self.findings], ""]
        for table in self.tables:
            lines += _markdown(table)
        lines += ["## Figures", ""]
        for drawing in self.drawings:
            lines += [f"![{_plain(drawing.alt)}](figures/{drawing.name}.png)", "", _plain(drawing.caption), ""]
        for table in self.appendix:
            lines += _markdown(table)
        return "\n".join(lines)

    def to_html(self) -> str:
        """One page that needs nothing else: no network, no scripts, figures inside."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(loader=PackageLoader("dynloop.report", "."), autoescape=True,
                                  undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        return environment.get_template("template.html").render(report=self)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, whatever a model is called."""
    return re.sub(r"([\\`*<|&])", r"\\\1", text)


def _markdown(table: Table) -> list[str]:
    cells = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    rows = ["| " + " | ".join(_plain(cell) for cell in row) + " |" for row in cells]
    return [f"## {table.caption}", "", *rows, "", _plain(table.note), ""]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
