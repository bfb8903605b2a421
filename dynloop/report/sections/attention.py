"""Attention of the loop: sinks, mixing and concentration beside uniform attention, and when it becomes constant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynloop.analyzers import convergence_time
from dynloop.attention import (
    attention_distance,
    attention_lag,
    attention_stabilisation,
    column_concentration,
    mixing_score,
    sink_rate,
)
from dynloop.measurement import Measurement
from dynloop.recording import attention_of, prompt_states
from dynloop.report.cells import Cell, Table, percent, plain
from dynloop.report.figures import Drawing, attention_curves, attention_settling, depth_matrix
from dynloop.report.figures.stage_curves import spaced
from dynloop.report.runs import Run
from dynloop.report.sections.pictures import MOST, named
from dynloop.report.sections.section import Section
from dynloop.report.sections.stages import PROMPTS, cell_of
from dynloop.store import Store

RECURRENCES = 16  # in the matrix of distances
_LAYERS = 12  # with rows of their own
_CURVES = ("sink_score", "entropy", "concentration", "distance")
_STATES = 1 << 28  # numbers of states that are read for the time of the state, all prompts together


def section(runs: Sequence[Run]) -> Section | None:
    """Statistics of the maps, and their time order with the state where distances were recorded."""
    rows: list[tuple[Any, ...]] = []
    settling: list[tuple[Any, ...]] = []
    drawings: list[Drawing] = []
    for i, run in enumerate(runs, start=1):
        if not isinstance(run.source, Store) or run.source.header.get("attention") is None:
            continue
        store, about = run.source, run.source.header["attention"]
        prompts = spaced(np.unique(np.concatenate([batch["prompts"] for batch in store.inputs()])), by_ratio=False,
                         most=PROMPTS)
        maps = attention_of(store, prompt=prompts.tolist())
        rows += _rows(run, maps)
        draw_it = len(runs) <= MOST
        if draw_it:
            drawings.append(named(f"{i}-attention", attention_curves(
                maps, variables=[name for name in _CURVES if name in maps], resample="prompt"), run))
        if about.get("pairs") is None:
            continue
        pairs = attention_of(store, per="pair", prompt=prompts.tolist())
        settled = attention_stabilisation(pairs)
        state = _state(run, store, prompts, maps.sizes["recurrence"], settled)
        settling += _settling(run, settled, state)
        if draw_it:
            drawings.append(named(f"{i}-attention-settling", attention_settling(settled, state), run))
            drawings.append(named(f"{i}-attention-distance", depth_matrix(attention_distance(_first(pairs))), run))
    if not rows:
        return None
    tables = [Table(
        "attention", "Attention of the loop",
        ("model", "layer", "recurrence", "sink score", "uniform's", "sink rate", "mixing (nats)", "its largest",
         "concentration", "uniform's concentration"), rows,
        f"Means over heads and at most {PROMPTS} prompts at the first and the last recurrence, brackets: 95 % "
        "intervals over prompts (Student's t; of the rate exact, with the design effect). Sink score: share of all "
        "attention on the first position; sink rate: heads with .3 or more; mixing: entropy of a query's weights; "
        "concentration: of what keys receive. Beside each its value for uniform causal attention of the same length."
        ).without_empty_columns()]
    if settling:
        tables.append(Table(
            "attention-settling", "When attention becomes constant",
            ("model", "layer", "maps that do", "recurrences", "state's recurrences", "attention less state",
             "attention first", "state first"), settling,
            "First recurrence (counted from 0) from which a head's map, and the state of the prompt, stays within a "
            "thousandth of the first one's distance from the last. Means over heads and prompts; shares of the maps; "
            "brackets: 95 % intervals over prompts.").without_empty_columns())
    return Section("attention", "Attention", text=(
        "Statistics of the attention maps within the loop, taken while the model ran. Uniform attention has a sink "
        "score, a mixing and a concentration of its own: what counts is the difference from it.",), tables=tables,
        drawings=drawings)


def _rows(run: Run, maps: Any) -> list[tuple[Any, ...]]:
    """The first and the last recurrence that every prompt ran, layer by layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the null stands beside the score
        found = {"sink": sink_rate(maps), "mixing": mixing_score(maps), "concentration": column_concentration(maps)}
    last = int(maps["n_recurrences"].values.min()) if "n_recurrences" in maps.coords else maps.sizes["recurrence"]
    names = list(dict.fromkeys(maps["layer"].values.tolist()))
    made = []
    for layer in spaced(np.array(names), by_ratio=False, most=_LAYERS).tolist():
        for recurrence in dict.fromkeys((1, last)):
            part = {name: m.select(layer=layer, recurrence=recurrence) for name, m in found.items()}
            rate = run.told(part["sink"], "share", variable="sink", of=1.0)
            made.append((run.name, layer, str(recurrence), cell_of(run, part["sink"], "score"), _null(part["sink"]),
                         Cell("none") if rate is None else percent(rate), cell_of(run, part["mixing"], "mixing"),
                         _null(part["mixing"]), cell_of(run, part["concentration"], "concentration"),
                         _null(part["concentration"])))
    return made


def _null(part: Measurement) -> Cell:
    known = part["null"][np.isfinite(part["null"])]
    return plain(float(known.mean())) if len(known) else Cell("none")


def _state(run: Run, store: Store, prompts: np.ndarray, n_recurrences: int, settled: Measurement) -> Measurement | None:
    """When the state of each prompt arrives; None where not every recurrence was stored, or it would take long."""
    if "token" not in store.labels or store.n_steps != n_recurrences or "decoding" in store.labels:
        return None
    tokens = len(np.unique(store.labels["token"]))
    if len(prompts) * tokens * store.n_steps * store.dim > _STATES:
        return None
    where = {} if run.last_layer is None else {"layer": run.last_layer}
    return Measurement.concatenate([
        convergence_time(orbit, tolerance=settled.settings["tolerance"])
        for orbit in prompt_states(store, prompt=prompts.tolist(), **where)])


def _settling(run: Run, settled: Measurement, state: Measurement | None) -> list[tuple[Any, ...]]:
    lag = None if state is None else attention_lag(settled, state)
    names = list(dict.fromkeys(settled.labels["layer"].tolist()))
    made = []
    for layer in spaced(np.array(names), by_ratio=False, most=_LAYERS).tolist():
        own = settled.select(layer=layer)
        cells: list[Any] = [f"{int(own.found.sum()):,} of {own.n_orbits:,}", cell_of(run, own, "time")]
        part = None if lag is None else lag.select(layer=layer)
        if part is None or not part.found.any():
            made.append((run.name, layer, *cells, "", "", "", ""))
            continue
        shares = [run.told(part, "share", variable="order", of=order) for order in ("attention first", "state first")]
        made.append((run.name, layer, *cells, cell_of(run, part, "state_time"), cell_of(run, part, "lag"),
                     *("" if share is None else percent(share) for share in shares)))
    return made


def _first(pairs: Any) -> Any:
    """Some recurrences, at equal ratios, of the distances between maps."""
    steps = spaced(pairs["recurrence"].values, by_ratio=True, most=RECURRENCES)
    return pairs.isel(recurrence=np.flatnonzero(np.isin(pairs["recurrence"].values, steps)),
                      other=np.flatnonzero(np.isin(pairs["other_recurrence"].values, steps)))
