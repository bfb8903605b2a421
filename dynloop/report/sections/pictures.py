"""Figures: rates and regimes of all runs; distance curves of all in one figure, or, of few, of each with a path."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.report.cells import slug
from dynloop.report.figures import (
    Drawing,
    alt_of,
    caption_of,
    distance_curves,
    distance_map,
    draw,
    pca_path,
    rates_by_layer,
    regime_shares,
)
from dynloop.report.figures.style import MOST_GROUPS
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section
from dynloop.statistics.nesting import ORBIT
from dynloop.store import Store

MOST = 4  # runs with figures of their own: a page stays below a megabyte


def section(runs: Sequence[Run]) -> Section | None:
    """The figures."""
    drawings = _of_all(runs)
    if len(runs) > MOST:
        drawings += _together(runs)
    else:
        drawings += [drawing for number, run in enumerate(runs, start=1) for drawing in _drawings(run, number)]
    return Section("figures", "Figures", drawings=drawings) if drawings else None


def _joined(runs: Sequence[Run], analyzer: str) -> Measurement | None:
    """The last layer of the runs that were measured alike, a value of the label `model` a run."""
    runs = [run for run in runs if run.has(analyzer)]
    if not runs:
        return None
    parts = [run.part(analyzer, layer=run.last_layer) for run in runs]
    alike = [(run, part) for run, part in zip(runs, parts, strict=True) if part.settings == parts[0].settings
             and part.values.shape[1:] == parts[0].values.shape[1:]]
    level = runs[0].nesting.levels[0]
    return Measurement.concatenate([dataclasses.replace(part, labels={
        **{name: part.labels[name] for name in (level,) if name in part.labels},
        "model": np.full(part.n_orbits, run.name, dtype=object)}) for run, part in alike])


def _together(runs: Sequence[Run]) -> list[Drawing]:
    """Distance curves of many runs in one figure, on the last layer."""
    joined = _joined(runs, "distance_to_limit")
    if joined is None:
        return []
    figure = distance_curves(joined, by="model", resample=_units(runs[0]), confidence_level=runs[0].confidence_level,
                             among=[run.name for run in runs])
    shown = len(set(joined.labels["model"].tolist()))
    left = "" if shown == len(runs) else f" {shown} of {len(runs)} runs: those recorded and measured like the first."
    some = f" Drawn are {MOST_GROUPS} of them, evenly spaced by name." if shown > MOST_GROUPS else ""
    return [draw("distance", figure, caption=f"Last layer of every run. {caption_of(figure)}{left}{some}")]


def _units(run: Run) -> str | None:
    return None if run.nesting.levels[0] == ORBIT else run.nesting.levels[0]


def _of_all(runs: Sequence[Run]) -> list[Drawing]:
    """Rates and regimes, from the estimates of the tables."""
    made, names = [], [run.name for run in runs]
    rates = [e for run in runs for e in run.estimates if e.name.partition(".")[0] == "contraction_rate"
             and e.statistic == "median" and "prompt_set" not in e.labels]
    if rates:
        made.append(draw("rates", rates_by_layer(rates, among=names)))
    shares = [e for run in runs for e in run.estimates
              if e.name == "limit_regime" and e.statistic.startswith("share of")
              and "prompt_set" not in e.labels and e.labels.get("layer", run.last_layer) == run.last_layer]
    if shares:
        made.append(draw("regime-shares", regime_shares(shares, among=names)))
    return made


def _drawings(run: Run, number: int) -> list[Drawing]:
    if not run.has("distance_to_limit", "contraction_rate"):
        return []
    name = f"{number}-{slug(run.name)}"
    distance, rate = run.measurements["distance_to_limit"], run.measurements["contraction_rate"]
    curves = distance_curves(distance, rate, resample=_units(run), confidence_level=run.confidence_level)
    made = [named(f"{name}-distance", curves, run)]
    chosen = _example(run)
    if run.source is not None:
        orbit = run.source.trajectories(**chosen) if isinstance(run.source, Store) else run.source.select(**chosen)
        made.append(named(f"{name}-path", pca_path(orbit[0:1]), run, more=" It is the one that settles last."
                           if rate.found.any() else " No orbit has a rate; it is the first one."))
    one = run.part("distance_to_limit", layer=run.last_layer).select(
        **{label: value for label, value in chosen.items() if label != "token"})
    return [*made, named(f"{name}-map", distance_map(one), run)]


def named(name: str, figure: Any, run: Run, *, more: str = "") -> Drawing:
    """A figure whose words name the run that it is of."""
    caption = caption_of(figure)
    of = "" if f"(model {run.name}" in caption else f"{run.name}: "
    return draw(name, figure, caption=f"{of}{caption}{more}", alt=f"{run.name}: {alt_of(figure)}")


def _example(run: Run) -> dict[str, Any]:
    """Labels of the orbit of the last layer that settles last: the most interesting one to draw."""
    rate = run.part("contraction_rate", layer=run.last_layer)
    length = np.where(rate.found, rate["regime_length"], -1)
    o = int(length.argmax())
    return {name: rate.labels[name][o] for name in (*run.nesting.levels, "prompt", "token", "layer")
            if name in rate.labels}
