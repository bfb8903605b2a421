"""The calibration panel: the same analyzers on orbits whose answer is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dynloop.report.calibration import MOST_FEATURES, MOST_STEPS, power_and_false_alarms
from dynloop.report.cells import Cell, Table, listed, plain, significant
from dynloop.report.figures import calibration_panel, caption_of, draw
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section
from dynloop.statistics.estimate import clopper_pearson

_LEVEL = 0.95


def section(runs: Sequence[Run]) -> Section | None:
    """One panel for every shape and number format that was recorded."""
    panels: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for run in runs:
        if panel := run.provenance.get("calibration"):
            planted = [row for row in panel["systems"] if row["kind"] == "planted"]
            key = json.dumps([planted, {k: v for k, v in panel.items() if k != "systems"}], sort_keys=True)
            panels.setdefault(key, (panel, []))[1].append(run.name)
    if not panels:
        return None
    tables, drawings = [], []
    for number, (panel, names) in enumerate(panels.values(), start=1):
        tag, of = ("", "") if len(panels) == 1 else (f"-{number}", f", {listed(names)}")
        shape = (f"{panel['n_steps']} recurrences, {panel['dim']} features, {panel['dtype']}, noise that makes steps "
                 f"of {significant(panel['floor'], 2)} of the norm")
        figure = calibration_panel(power_and_false_alarms(panel), confidence_level=_LEVEL, n_steps=panel["n_steps"])
        drawings.append(draw(f"calibration{tag}", figure, caption=f"{', '.join(names)}. {caption_of(figure)}"))
        tables += [_power(f"power{tag}", f"Power and false alarms{of}", panel, shape),
                   _systems(f"planted{tag}", f"Planted systems{of}",
                            [row for row in panel["systems"] if row["kind"] == "planted"], shape)]
    surrogates = [(run.name, row) for run in runs for row in run.provenance.get("calibration", {}).get("systems", ())
                  if row["kind"] == "surrogate"]
    if surrogates:
        tables.append(_surrogates(surrogates))
    return Section("calibration", "Calibration panel", text=(
        "The analyzers of this report on systems in closed form, of the same length and number format and with noise "
        f"at the recording's floor (up to {MOST_STEPS} recurrences and {MOST_FEATURES} features), and on this "
        "recording's own orbits out of order. What they get wrong here they may get wrong above.",),
        tables=tables, drawings=drawings)


def _rate(called: int, tried: int) -> Cell:
    if not tried:
        return Cell("not tried")
    low, high = (100 * limit for limit in clopper_pearson(called, tried, _LEVEL))
    value = 100 * called / tried
    return Cell(f"{significant(value)} [{significant(low)}, {significant(high)}] %", value, low, high)


def _power(name: str, caption: str, panel: dict[str, Any], shape: str) -> Table:
    rows = [(regime, called, tried, _rate(called, tried), alarms, other, _rate(alarms, other))
            for regime, (called, tried, alarms, other) in power_and_false_alarms(panel).items()]
    return Table(name, caption,
                 ("regime", "called", "of", "power", "called wrongly", "of others", "false alarms"), rows,
                 f"limit_regime on planted systems: {shape}. Brackets: {100 * _LEVEL:g} % Clopper-Pearson intervals "
                 "over orbits. They speak of these systems alone.")


def _systems(name: str, caption: str, systems: list[dict[str, Any]], shape: str) -> Table:
    rows = []
    for row in systems:
        right = sum(row["regimes"].get(regime, 0) for regime in row["right"])
        rows.append((row["system"], " or ".join(row["right"]), f"{right} of {row['n']}", _said(row["regimes"]),
                     _said(row["published"]),
                     "" if row["period"] is None else f"{row['periods'].get(str(row['period']), 0)} of {row['n']}",
                     sum(n for p, n in row["periods"].items() if float(p) > 1 and float(p) != row["period"]),
                     "" if row["rate"] is None else plain(row["rate"]),
                     "none" if row["median_rate"] is None else plain(row["median_rate"]), row["rates"]))
    return Table(name, caption,
                 ("system", "should be called", "right", "limit_regime says", "published algorithm says",
                  "period right", "other periods", "true rate", "median rate", "orbits with a rate"), rows,
                 f"{systems[0]['n']} orbits each: {shape}. Starts decay at 0.8 a step; the slow spiral has a "
                 "thousandth of its start left at the end. Other periods: above 1, and not the planted one. A rate "
                 "on a system that does not settle is that of its transient.")


def _surrogates(rows: list[tuple[str, dict[str, Any]]]) -> Table:
    made = []
    for name, row in rows:
        alarms = sum(n for regime, n in row["regimes"].items() if regime not in row["right"])
        made.append((name, row["system"], row["n"], _said(row["regimes"]), alarms,
                     _rate(alarms, row["n"]), sum(n for p, n in row["periods"].items() if float(p) > 1)))
    return Table("surrogates", "This recording out of order",
                 ("model", "surrogate", "orbits", "limit_regime says", "lasting regimes", "false alarms",
                  "periods above 1"), made,
                 "Orbits of the last layer from all over the recording. States in random order, and steps as long as "
                 "the recorded ones with random signs, neither repeat nor turn nor drift: every lasting regime (orbit, "
                 "quasi-periodic, slider, chaotic, diverging) and every period above 1 is a false alarm. Brackets: "
                 f"{100 * _LEVEL:g} % Clopper-Pearson intervals over orbits.")


def _said(counts: dict[str, int]) -> str:
    return ", ".join(f"{word} {n}" for word, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
