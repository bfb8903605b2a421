"""A report: findings, sections and estimates, rendered to pages, tables and data of the same numbers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynloop.report.cells import Table
from dynloop.report.figures import Drawing
from dynloop.report.sections.section import Section
from dynloop.statistics import Estimate

if TYPE_CHECKING:
    from dynloop.study import Study

FORMATS = ("html", "md", "latex", "csv", "parquet", "json")
DEFAULT_FORMATS = ("html", "md", "latex", "csv", "json")
_FILES = {"html": "report.html", "md": "report.md", "json": "report.json"}
_FOLDERS = {"figures": (".svg", ".png", ".pdf"), "tables": (".tex", ".csv", ".parquet")}
_OWN = {*_FILES.values(), "estimates.csv", "estimates.parquet", "study.nc", *_FOLDERS}


def check_report_folder(folder: str | Path) -> None:
    """Refuse a file, or a folder with other things than a report.

    Raises:
        FileExistsError: it is one of these.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and not all(_is_own(path) for path in folder.iterdir())):
        raise FileExistsError(f"{folder} holds something else than a report. Name a new folder.")


def _is_own(path: Path) -> bool:
    if path.name in _FOLDERS and path.is_dir():
        return all(inner.name.removesuffix(".tmp").endswith(_FOLDERS[path.name]) for inner in path.iterdir())
    return path.name.removesuffix(".tmp") in _OWN or path.name.startswith("study.nc.")


def check_formats(formats: Collection[str]) -> tuple[str, ...]:
    """The formats of a report, in the order of `FORMATS`.

    Raises:
        ValueError: an unknown one, or none.
        ImportError: Parquet without pyarrow.
    """
    formats = [formats] if isinstance(formats, str) else list(formats)
    if not formats or set(formats) - set(FORMATS):
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}; got {', '.join(formats) or 'none'}.")
    if "parquet" in formats:
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise ImportError("Parquet needs pyarrow, which is not installed. Run `pip install dynloop[parquet]`, or "
                              "leave the format parquet out.") from None
    return tuple(f for f in FORMATS if f in formats)


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What was found, ready to be read and cited.

    Attributes:
        title: heading.
        findings: sentences with their numbers and intervals.
        sections: in the order of the page.
        estimates: every number with its interval, unrounded.
        provenance: which models, data, seeds, dtypes and settings.
        study: the measurements behind it, saved beside it; None for none.
    """

    title: str
    findings: tuple[str, ...]
    sections: tuple[Section, ...]
    estimates: tuple[Estimate, ...]
    provenance: Mapping[str, Any]
    study: Study | None = None

    @property
    def tables(self) -> tuple[Table, ...]:
        """Every table, in the order of the page."""
        return tuple(table for section in self.sections for table in section.tables)

    @property
    def drawings(self) -> tuple[Drawing, ...]:
        """Every figure, in the order of the page."""
        return tuple(drawing for section in self.sections for drawing in section.drawings)

    def save(self, folder: str | Path, *, formats: Collection[str] = DEFAULT_FORMATS) -> Path:
        """Write the report into a folder; returns the page, or the first file of other formats.

        `report.html` (one page that needs nothing else), `report.md`, `report.json`, `tables/` (a .tex and a .csv file
        a table), `estimates.csv`, `figures/`, and `study.nc`, the measurements, from which `dynloop report` makes the
        report again. Files of an earlier report there are replaced, each whole or not at all, or removed; the page is
        written last.

        Args:
            folder: a new or empty one, or one with an earlier report.
            formats: some of "html", "md", "latex", "csv", "parquet", "json".

        Raises:
            FileExistsError: the path is a file, or a folder with other things than a report.
            ValueError, ImportError: an unknown format; Parquet without pyarrow.
        """
        folder, formats = Path(folder), check_formats(formats)
        check_report_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for path, content in self._files(formats):
            path = folder / path
            path.parent.mkdir(exist_ok=True)
            _replace(path, content())
            written.append(path)
        if self.study is not None:
            written.append(self.study.save(folder / "study.nc"))
        self._clear(folder, set(written))
        named = [folder / _FILES[f] for f in formats if f in _FILES]
        return named[0] if named else written[0]

    def _files(self, formats: tuple[str, ...]) -> Iterator[tuple[Path, Callable[[], bytes]]]:
        """Path and content of every file, the page last; contents are made one after the other."""
        from dynloop.report import data, latex

        for drawing in self.drawings if set(formats) & {"html", "md", "latex"} else ():
            for kind in ("svg", "png", "pdf"):
                yield Path("figures", f"{drawing.name}.{kind}"), partial(_picture, drawing, kind)
        for table in self.tables:
            rows = data.rows_of(table)
            for kind, ending, text in (("latex", "tex", partial(latex.table, table)),
                                       ("csv", "csv", partial(data.csv_of, rows)),
                                       ("parquet", "parquet", partial(data.parquet_of, rows))):
                if kind in formats:
                    yield Path("tables", f"{table.name}.{ending}"), partial(_called, text)
        if "csv" in formats:
            yield Path("estimates.csv"), partial(_called, self.to_csv)
        if "parquet" in formats:
            yield Path("estimates.parquet"), partial(data.parquet_of, data.estimate_rows(self.estimates))
        for kind, page in (("json", self.to_json), ("md", self.to_markdown), ("html", self.to_html)):
            if kind in formats:
                yield Path(_FILES[kind]), partial(_called, page)

    def _clear(self, folder: Path, written: Collection[Path]) -> None:
        """Remove what an earlier report left and this one does not have."""
        for path in [*folder.iterdir(), *(p for name in _FOLDERS for p in (folder / name).glob("*"))]:
            if path.is_file() and path not in written:
                path.unlink()
        for name in _FOLDERS:
            if (folder / name).is_dir() and not any((folder / name).iterdir()):
                (folder / name).rmdir()

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values, with a schema version."""
        from dynloop.report.data import report_dict

        return report_dict(self)

    def to_json(self) -> str:
        """JSON with a schema version."""
        from dynloop.report.data import json_of

        return json_of(self.to_dict())

    def to_csv(self) -> str:
        """One line an estimate, unrounded."""
        from dynloop.report.data import csv_of, estimate_rows

        return csv_of(estimate_rows(self.estimates))

    def to_latex(self) -> str:
        """Every table, for booktabs."""
        from dynloop.report.latex import table

        return "\n".join(map(table, self.tables))

    def to_markdown(self) -> str:
        """Markdown, with the figures beside it."""
        from dynloop.report.markdown import page

        return page(self)

    def to_html(self) -> str:
        """One page that needs nothing else: no network, no scripts, figures inside."""
        from dynloop.report.html import page

        return page(self)


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def _picture(drawing: Drawing, kind: str) -> bytes:
    return _bytes(getattr(drawing, kind))


def _called(make: Callable[[], str | bytes]) -> bytes:
    return _bytes(make())


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)
