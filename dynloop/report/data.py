"""The report as data: JSON, CSV and Parquet, with every number unrounded."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dynloop.report.cells import Cell, Table
from dynloop.statistics import Estimate

if TYPE_CHECKING:
    from dynloop.report.report import Report

SCHEMA, SCHEMA_VERSION = "dynloop report", "2.0"  # the first number changes when a reader of the old one would err


def report_dict(report: Report) -> dict[str, Any]:
    """Everything but the pictures."""
    return {
        "schema": SCHEMA, "schema_version": SCHEMA_VERSION, "title": report.title, "findings": list(report.findings),
        "sections": [{
            "name": section.name, "title": section.title, "text": list(section.text), "points": list(section.points),
            "tables": [{"name": t.name, "caption": t.caption, "columns": list(t.columns),
                        "rows": [[_cell(cell) for cell in row] for row in t.rows], "note": t.note}
                       for t in section.tables],
            "figures": [{"name": d.name, "caption": d.caption, "alt": d.alt} for d in section.drawings],
        } for section in report.sections],
        "estimates": [e.to_dict() for e in report.estimates], "provenance": dict(report.provenance)}


def _cell(cell: Cell) -> dict[str, Any]:
    """The text, and the numbers behind it where there are any."""
    numbers = {"value": cell.value, "low": cell.low, "high": cell.high}
    return {"text": cell.text, **{name: number for name, number in numbers.items() if number is not None}}


def _finite(value: Any) -> Any:
    """Plain values; what JSON has no number for (NaN, infinities) becomes null."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def json_of(value: Any) -> str:
    """JSON, one value a line."""
    return json.dumps(_finite(value), indent=1, default=_plain, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else str(value)


def rows_of(table: Table) -> list[dict[str, Any]]:
    """A row a row of the table: a column with its texts and, where it has numbers, three more with these unrounded."""
    found: list[dict[str, Any]] = []
    kinds = {c: [kind for kind in ("value", "low", "high") if any(getattr(row[c], kind) is not None
                                                                  for row in table.rows)]
             for c in range(len(table.columns))}
    for row in table.rows:
        values: dict[str, Any] = {}
        for c, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            values[column or table.name] = cell.text
            values |= {f"{column or table.name} ({kind})": getattr(cell, kind) for kind in kinds[c]}
        found.append(values)
    return found


def estimate_rows(estimates: Sequence[Estimate]) -> list[dict[str, Any]]:
    """A row an estimate; what is not one number or text is JSON."""
    return [{name: json.dumps(_finite(value), default=_plain, ensure_ascii=False)
             if isinstance(value, dict | list | tuple) else value
             for name, value in e.to_dict().items()} for e in estimates]


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    """Comma-separated values with a line of names; None is empty."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parquet_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """The same as Parquet."""
    import pyarrow
    import pyarrow.parquet

    names = list(dict.fromkeys(name for row in rows for name in row))
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({name: [row.get(name) for row in rows] for name in names}), sink)
    return sink.getvalue()
