"""Regimes by model, layer and prompt set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynloop.report.cells import Table, listed, percent, significant
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section


def section(runs: Sequence[Run]) -> Section | None:
    """Shares of tokens and of affected prompts, with intervals; then what the published algorithm says."""
    tables = []
    own = [run for run in runs if run.has("limit_regime")]
    if own:
        tables.append(_table("regimes", "Regimes by model, layer and prompt set", own, "limit_regime", _note(own)))
    published = [run for run in runs if run.has("limit_regime_blayney")]
    if published:
        settings = published[0].measurements["limit_regime_blayney"].settings
        tables.append(_table(
            "published-regimes", "Regimes by the published algorithm", published, "limit_regime_blayney",
            f"Algorithm 1 of Blayney et al. 2026 on the last layer (n = {settings['n'] or 'all but the last state'}, "
            f"tau = {settings['tau']:g}, rho = {settings['rho']:g}, {settings['metric']}). The algorithm calls noise "
            "an orbit and slow convergence or drift a slider: it is here for comparison with published shares.",
            last_layer_alone=True))
    return Section("regimes", "Regimes", tables=tables) if tables else None


def _note(runs: Sequence[Run]) -> str:
    first = runs[0]
    steps = f"{first.n_steps}" if len({run.n_steps for run in runs}) == 1 else listed(
        [f"{run.n_steps} ({run.name})" for run in runs])
    units = first.nesting.levels[0]
    return (f"By limit_regime after {steps} recurrences; it was calibrated on synthetic orbits, names a regime from a "
            f"confidence of {first.measurements['limit_regime'].settings['least_confidence']:g} on and says "
            f"undetermined below. Brackets: {100 * first.confidence_level:g} % intervals over {first.units}. "
            + (f"A {units} counts when at least one of its tokens has the regime. " if first.affected else "")
            + "The intervals do not contain the errors of the classifier, which matter for rare regimes: see the "
              "calibration panel, and dynloop.proportion.")


def _table(name: str, caption: str, runs: Sequence[Run], analyzer: str, note: str, *,
           last_layer_alone: bool = False) -> Table:
    rows: list[tuple[Any, ...]] = []
    affected = runs[0].affected
    for run in runs:
        for layer in [run.last_layer] if last_layer_alone else run.layers:
            for chosen in run.sets:
                rows += [(run.name, _text(layer), _text(chosen), *row)
                         for row in _rows(run, analyzer, affected, layer=layer, prompt_set=chosen)]
    columns = ["model", "layer", "prompt set", "regime", "tokens", "share of tokens",
               f"share of {runs[0].nesting.levels[0]}s", "design effect"]
    return Table(name, caption, tuple(columns), rows, note).without_empty_columns()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _rows(run: Run, analyzer: str, affected: bool, **where: Any) -> list[tuple[Any, ...]]:
    """A row a regime that was seen, and one for all that were not."""
    part = run.part(analyzer, **where)
    found = part.found
    if not found.any():
        return [("none could be told", 0, "", "", "")]
    rows, unseen, bounds = [], [], set()
    values = part.values[found]
    for regime in part.categories["regime"]:
        share = run.ask(analyzer, "share", of=regime, **where)
        if share is None:
            continue
        units = run.ask(analyzer, "affected share", of=regime, **where) if affected else None
        count = int((values == regime).sum())
        if count:
            effect = getattr(share, "design_effect", None)
            rows.append((regime, count, percent(share), percent(units) if units else "",
                         significant(effect) if effect is not None else ""))
        else:
            unseen.append(regime)
            bounds.add((percent(share), percent(units) if units else ""))
    for share_of, units_of in sorted(bounds, key=str):
        rows.append((f"none: {', '.join(unseen)}", 0, share_of, units_of, ""))
    return rows
