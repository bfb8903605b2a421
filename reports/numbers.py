"""The numbers of a study: kept with interval, n and unit in numbers.json, and shown in sentences and tables by key.

A study adds `Estimate`s under keys, saves them, and renders its report from the saved file alone, so that no number of
a page was typed by hand. Import it as `reports.numbers` with the root of the repository on the path, never with this
folder on it: Python has a module `numbers` of its own.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynloop.report.cells import Cell, number, percent, plain
from dynloop.report.data import json_of
from dynloop.statistics import Estimate
from dynloop.statistics.share import clopper_pearson

SCHEMA, SCHEMA_VERSION = "dynloop numbers", "1.0"  # the first number changes when a reader of the old one would err
_PLACE = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")


class Numbers:
    """Estimates by key, and what figures draw beside them.

    Attributes:
        provenance: which code, models, data, seeds and settings.
        series: curves and lists that figures draw, by key: plain values, as JSON has them.

    Example:
        >>> from reports.numbers import Numbers
        >>> found = Numbers({"study": "an example"})
        >>> found.share("alarms", 3, 1000, name="rule", of="orbit")
        >>> found.text("called an orbit: {alarms:%} of {alarms:n} orbits")
        'called an orbit: 0.300 [0.0619, 0.874] % of 1,000 orbits'
    """

    def __init__(self, provenance: Mapping[str, Any] | None = None) -> None:
        self.provenance: dict[str, Any] = dict(provenance or {})
        self.series: dict[str, Any] = {}
        self._estimates: dict[str, Estimate] = {}

    def add(self, key: str, estimate: Estimate) -> None:
        """Keep an estimate.

        Raises:
            ValueError: the key is taken, or cannot stand in a template.
        """
        if key in self._estimates or not key or set(key) & set("{}:"):
            raise ValueError(f"a key must be new and free of braces and colons; got {key!r}.")
        self._estimates[key] = estimate

    def share(self, key: str, events: int, n: int, *, name: str, of: str, resample: str = "orbit",
              confidence_level: float = 0.95, notes: tuple[str, ...] = ()) -> None:
        """Keep a share of independent things, with its exact interval (Clopper-Pearson); nothing of none.

        Args:
            key: see `add`.
            events, n: of how many of them it is so, and how many there are.
            name: who says so.
            of: what is so.
            resample: what the things are.
            confidence_level: of the interval.
            notes: what a reader must know besides.
        """
        low, high = clopper_pearson(events, n, confidence_level) if n else (math.nan, math.nan)
        self.add(key, _estimate(name, f"share of {of}", events / n if n else math.nan, low, high, "share",
                                "Clopper-Pearson", resample, n, confidence_level, notes))

    def value(self, key: str, value: float, *, name: str, what: str, unit: str = "", n: int = 1,
              low: float = math.nan, high: float = math.nan, method: str = "no interval", resample: str = "",
              notes: tuple[str, ...] = ()) -> None:
        """Keep a number that is no share: with the interval that is given, or none."""
        self.add(key, _estimate(name, what, value, low, high, unit, method, resample, n, 0.95, notes))

    def __getitem__(self, key: str) -> Estimate:
        if key not in self._estimates:
            raise KeyError(f"no number is called {key!r}; there are {', '.join(self._estimates) or 'none'}.")
        return self._estimates[key]

    def __contains__(self, key: object) -> bool:
        return key in self._estimates

    def __len__(self) -> int:
        return len(self._estimates)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, in the order in which they were added."""
        return tuple(self._estimates)

    @property
    def estimates(self) -> tuple[Estimate, ...]:
        """All estimates in that order, each labelled with its key."""
        return tuple(_labelled(estimate, key) for key, estimate in self._estimates.items())

    def cell(self, key: str, form: str = "") -> Cell:
        """A number as a table shows it; an empty cell where there is none of that key, or it is NaN.

        Args:
            key: of the number.
            form: "" for the number and its interval, "%" the same in percent, "value" and "value%" without interval,
                "given" and "given%" for settings, as they are, "count" for a whole number, "low", "low%", "high",
                "high%" for one limit, "n" for the orbits that entered, "units" for what was resampled.
        """
        if key not in self._estimates or math.isnan(self[key].value):
            return Cell("")
        return _FORMS[form](self[key])

    def text(self, template: str) -> str:
        """A sentence with its places filled: {key}, {key:%}, {key:value%}, {key:n}, ... as in `cell`.

        Raises:
            KeyError: no number of that key, or no such form.
        """
        def fill(place: re.Match[str]) -> str:
            form = place[2] or ""
            if form not in _FORMS:
                raise KeyError(f"{place[0]}: a form is one of {', '.join(_FORMS)}; got {form!r}.")
            return _FORMS[form](self[place[1]]).text

        return _PLACE.sub(fill, template)

    def to_json(self) -> str:
        """Everything, with a schema version; numbers that are NaN become null, empty lists are left out."""
        told = {key: {name: value for name, value in e.to_dict().items()
                      if value is not None and not (isinstance(value, dict | list) and not value)}
                for key, e in self._estimates.items()}
        return json_of({"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "provenance": self.provenance,
                        "numbers": told, "series": self.series})

    def save(self, file: str | Path) -> Path:
        """Write numbers.json, whole or not at all."""
        file = Path(file)
        part = file.with_name(file.name + ".part")
        part.write_text(self.to_json(), encoding="utf-8")
        return part.replace(file)

    @classmethod
    def read(cls, file: str | Path) -> Numbers:
        """Numbers as they were saved.

        Raises:
            ValueError: another kind of file, or of another version.
        """
        found = json.loads(Path(file).read_text(encoding="utf-8"))
        version = str(found.get("schema_version", "")).split(".")[0] if isinstance(found, dict) else ""
        if not version or found.get("schema") != SCHEMA or version != SCHEMA_VERSION.split(".")[0]:
            raise ValueError(f"{file} does not hold numbers of a study, version {SCHEMA_VERSION}. Make it again with "
                             "the study that wrote it.")
        own = cls(found["provenance"])
        own.series = found["series"]
        for key, e in found["numbers"].items():
            e = {"excluded": {}, "settings": {}, "labels": {}} | e
            e |= {k: math.nan for k in ("value", "low", "high") if e[k] is None}
            own.add(key, Estimate(**(e | {"notes": tuple(e.get("notes", ()))})))
        return own


def _estimate(name: str, statistic: str, value: float, low: float, high: float, unit: str, method: str, resample: str,
              n: int, confidence_level: float, notes: tuple[str, ...]) -> Estimate:
    return Estimate(name=name, statistic=statistic, value=float(value), low=float(low), high=float(high), unit=unit,
                    confidence_level=confidence_level, method=method, resample=resample, n_units=int(n), n=int(n),
                    excluded={}, settings={}, labels={}, units={resample: int(n)} if resample else {}, notes=notes)


def _labelled(estimate: Estimate, key: str) -> Estimate:
    return dataclasses.replace(estimate, labels={**estimate.labels, "key": key})


def _interval(estimate: Estimate, scale: float) -> Cell:
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return plain(scale * estimate.value, " %" if scale == 100 else "")
    return percent(estimate) if scale == 100 else number(estimate)


_FORMS: Mapping[str, Callable[[Estimate], Cell]] = {
    "": lambda e: _interval(e, 1),
    "%": lambda e: _interval(e, 100),
    "value": lambda e: plain(e.value),
    "value%": lambda e: plain(100 * e.value, " %"),
    "low": lambda e: plain(e.low),
    "low%": lambda e: plain(100 * e.low, " %"),
    "high": lambda e: plain(e.high),
    "high%": lambda e: plain(100 * e.high, " %"),
    "given": lambda e: Cell(f"{e.value:g}", e.value),
    "given%": lambda e: Cell(f"{100 * e.value:g} %", 100 * e.value),
    "count": lambda e: Cell(f"{e.value:,.0f}", e.value),
    "n": lambda e: Cell(f"{e.n:,}", float(e.n)),
    "units": lambda e: Cell(f"{e.n_units:,}", float(e.n_units)),
}
