"""One run, measured once: what the sections of a report are made of."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynloop.analyzers import (
    contraction_rate,
    convergence_time,
    distance_to_limit,
    limit_regime,
    limit_regime_blayney,
    minimal_period,
)
from dynloop.measurement import Measurement
from dynloop.measuring import Analyzer, measure
from dynloop.outcome import Outcome
from dynloop.report.calibration import MOST_FEATURES, calibrate
from dynloop.statistics import Estimate, estimate
from dynloop.statistics.nesting import ORBIT, Nesting
from dynloop.store import Store
from dynloop.trajectories import Trajectories

ANALYZERS: tuple[Analyzer, ...] = (
    functools.partial(distance_to_limit, metric="relative"), contraction_rate, limit_regime, limit_regime_blayney,
    minimal_period, convergence_time)
_SAMPLE = 32  # orbits whose states are put out of order for the calibration panel
_CONTROL = re.compile(r"\b(untrained|control)\b")


class Run:
    """Measurements of one run, with the estimates that a report shows of them; each is made once.

    Attributes:
        name: as it is called in the report.
        measurements: by analyzer.
        provenance: which model, data, seed, dtype, settings; and what `measured` found out about the recording.
        resample: what is independent.
        source: the recording, where there is one: for figures of single orbits.
    """

    def __init__(self, name: str, measurements: Iterable[Measurement], provenance: Mapping[str, Any], *,
                 resample: str, n_resamples: int, source: Store | Trajectories | None = None) -> None:
        self.name = name
        self.measurements = {m.name: m for m in measurements}
        self.provenance = dict(provenance)
        self.resample, self.n_resamples, self.source = resample, n_resamples, source
        self.nesting = Nesting.parse(resample)
        self._estimates: dict[tuple[Any, ...], Estimate | None] = {}
        self._parts: dict[tuple[str, tuple[tuple[str, Any], ...]], Measurement] = {}
        first = next(iter(self.measurements.values()))
        self.labels = first.labels
        for level in self.nesting.levels:
            if level != ORBIT and level not in self.labels:
                raise ValueError(f"this recording has no label {level!r} to resample; it has "
                                 f"{', '.join(self.labels) or 'no labels'}. Name one of these with --resample.")
        self.layers = np.unique(self.labels["layer"]).tolist() if "layer" in self.labels else [None]
        self.sets = np.unique(self.labels["prompt_set"]).tolist() if "prompt_set" in self.labels else [None]

    # ---- what there is

    def part(self, analyzer: str, **where: Any) -> Measurement:
        """The orbits of a measurement with these labels; None stands for no choice."""
        wanted = {name: value for name, value in where.items() if value is not None}
        key = analyzer, tuple(sorted(wanted.items()))
        if key not in self._parts:
            whole = self.measurements[analyzer]
            self._parts[key] = whole.select(**wanted) if wanted else whole
        return self._parts[key]

    def has(self, *analyzers: str) -> bool:
        return all(name in self.measurements for name in analyzers)

    @property
    def last_layer(self) -> Any:
        return self.layers[-1]

    @property
    def n_orbits(self) -> int:
        return next(iter(self.measurements.values())).n_orbits

    @functools.cached_property
    def n_units(self) -> tuple[int, ...]:
        """How many units there are at each level of what is resampled."""
        rows = np.arange(self.n_orbits) if self.last_layer is None else \
            np.flatnonzero(self.labels["layer"] == self.last_layer)
        return tuple(int(codes.max()) + 1 for codes in self.nesting.codes(self.labels, rows))

    @property
    def n_steps(self) -> int | None:
        """Recurrences that were recorded."""
        known = self.provenance.get("recording", {}).get("n_steps", self.provenance.get("n_recurrences"))
        if known is None and self.has("distance_to_limit"):
            known = self.measurements["distance_to_limit"].values.shape[1]
        return known

    @property
    def units(self) -> str:
        """What is resampled, in the plural: "prompts", "orbits", "seeds × prompts"."""
        return (" × " if self.nesting.crossed else " > ").join(f"{level}s" for level in self.nesting.levels)

    @property
    def of_units(self) -> str:
        """How many orbits of how many units: "60 tokens of 12 prompts", "60 orbits"."""
        n = self.part(next(iter(self.measurements)), layer=self.last_layer).n_orbits
        what = "tokens" if "prompt" in self.nesting.levels else "orbits"
        if self.nesting.levels == (ORBIT,):
            return f"{n:,} {what}"
        each = [f"{count:,} {level}s" for count, level in zip(self.n_units, self.nesting.levels, strict=True)]
        return f"{n:,} {what} of {' in '.join(reversed(each)) if not self.nesting.crossed else ' × '.join(each)}"

    @property
    def control_of(self) -> str | None:
        """The run that this one is the untrained control of; "" where that is not said; None: it is no control."""
        known = self.provenance.get("model")
        model: Mapping[str, Any] = known if isinstance(known, Mapping) else {}
        for said in (self.provenance.get("untrained"), model.get("untrained"), self.provenance.get("control")):
            if said:
                return str(said.get("of", "")) if isinstance(said, Mapping) else ""
        name = re.sub(r" \(\d+\)$", "", self.name)  # runs of one name are numbered
        if found := _CONTROL.search(name.lower()):
            return re.sub(r"[\s_()-]+$|^[\s_()-]+", "", name[:found.start()] + name[found.end():])
        return None

    # ---- numbers with intervals

    def ask(self, analyzer: str, statistic: str, *, of: Any = None, variable: str | None = None,
            **where: Any) -> Estimate | None:
        """An estimate, made once; None where there is nothing to estimate it from."""
        key = analyzer, statistic, of, variable, *sorted((k, v) for k, v in where.items() if v is not None)
        if key not in self._estimates:
            self._estimates[key] = self._asked(self.part(analyzer, **where), statistic, of, variable)
        return self._estimates[key]

    def _asked(self, part: Measurement, statistic: str, of: Any, variable: str | None) -> Estimate | None:
        found = np.ones(part.n_orbits, bool) if isinstance(of, Outcome) else part.found
        if not found.any():
            return None
        if of is None and not np.isfinite((part[variable] if variable else part.values)[found]).all():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # few units are said in the report itself
                return estimate(part, statistic=statistic, of=of, variable=variable, resample=self.resample,
                                n_resamples=self.n_resamples)
        except ValueError:
            if found.all():  # the recording itself does not allow an interval: that must be said
                raise
            return None  # too few units have an answer: stated without an interval

    def told(self, part: Measurement, statistic: str, *, variable: str, of: Any = None) -> Estimate | None:
        """An estimate of a measurement that is not among the run's, over prompts (t for means), kept with the others;
        None where there is nothing to estimate it from."""
        where = {name: values[0].item() if isinstance(values[0], np.generic) else values[0]
                 for name, values in part.labels.items() if name in ("layer", "recurrence") and len(set(values)) == 1}
        key = part.name, statistic, of, variable, *sorted(where.items())
        if key not in self._estimates:
            known = part.found.any() and (of is not None or np.isfinite(part[variable][part.found]).all())
            several = known and "prompt" in part.labels and len(np.unique(part.labels["prompt"][part.found])) > 1
            found = None
            if several:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # few units are said in the report itself
                    found = estimate(part, statistic=statistic, of=of, variable=variable, resample="prompt",
                                     method="t" if of is None else "auto")
            self._estimates[key] = found
        return self._estimates[key]

    @property
    def affected(self) -> bool:
        """Whether shares of affected units can be told: units at one level that hold several orbits."""
        return len(self.nesting.levels) == 1 and self.nesting.levels != (ORBIT,)

    @property
    def estimates(self) -> list[Estimate]:
        """Every estimate that was asked for, in the order of asking, with the run's name as its model."""
        return [dataclasses.replace(e, labels={"model": self.name, **{k: v for k, v in e.labels.items()
                                                                      if k != "model"}})
                for e in self._estimates.values() if e is not None]

    @property
    def confidence_level(self) -> float:
        return next((e.confidence_level for e in self._estimates.values() if e is not None), 0.95)


def measured(source: Store | Trajectories, resample: str, *, workers: int | None = None,
             resume: str | Path | None = None) -> tuple[list[Measurement], dict[str, Any]]:
    """Measurements of a recording by all analyzers of a report, and its provenance with a calibration panel."""
    levels = Nesting.parse(resample).levels
    header = dict(source.header) if isinstance(source, Store) else {}
    found = measure(source, ANALYZERS, workers=workers, resume=resume if isinstance(source, Store) else None)
    for level in levels:  # before anything else costs time
        if level != ORBIT and level not in found[0].labels:
            raise ValueError(f"this recording has no label {level!r} to resample; it has "
                             f"{', '.join(found[0].labels) or 'no labels'}. Name one of these with --resample.")
    sample = _sample(source, found[0].labels)
    dtype = sample.states.dtype
    recording = {"n_orbits": found[0].n_orbits, "n_steps": source.n_steps, "dim": source.dim,
                 "dtype": str(dtype).removeprefix("torch."), "resolution": sample.resolution}
    floors = found[1]["relative_floor"]
    floors = floors[np.isfinite(floors)]
    floor = float(np.median(floors)) if len(floors) else max(sample.resolution, torch.finfo(dtype).eps)
    floor = 10.0 ** round(float(np.log10(floor))) if floor > 0 else sample.resolution
    panel = calibrate(n_steps=source.n_steps, dim=source.dim, dtype=dtype, floor=floor, resolution=sample.resolution,
                      sample=sample)
    return found, {**{k: v for k, v in header.items() if k not in ("format", "version", "labels")},
                   "recording": recording, "calibration": panel}


def _sample(source: Store | Trajectories, labels: Mapping[str, np.ndarray]) -> Trajectories:
    """Some orbits of the last layer, from all over the recording, at most 256 features wide."""
    rows = np.arange(len(next(iter(labels.values()))) if labels else source.n_orbits)
    if "layer" in labels:
        rows = np.flatnonzero(labels["layer"] == labels["layer"].max())
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int))]
    if isinstance(source, Store):
        parts, first = [], 0
        for part in source.parts():
            own = rows[(rows >= first) & (rows < first + part.n_orbits)] - first
            first += part.n_orbits
            if len(own):
                parts.append(part[own])
        states = torch.cat([p.states[..., :MOST_FEATURES] for p in parts])
        return Trajectories(states, lengths=np.concatenate([p.lengths for p in parts]),
                            resolution=parts[0].resolution)
    found = source[rows]
    return Trajectories(found.states[..., :MOST_FEATURES], lengths=found.lengths, resolution=found.resolution)


def runs_of(named: Sequence[tuple[str, Sequence[Measurement], Mapping[str, Any], Store | Trajectories | None]], *,
            resample: str, n_resamples: int) -> list[Run]:
    """Runs with names that differ: those of one name are numbered."""
    names = [name for name, *_ in named]
    return [Run(f"{name} ({names[:i].count(name)})" if names.count(name) > 1 else name, measurements, provenance,
                resample=resample, n_resamples=n_resamples, source=source)
            for i, (name, measurements, provenance, source) in enumerate(named, start=1)]
