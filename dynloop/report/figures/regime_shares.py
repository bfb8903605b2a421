"""How often each regime occurs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import (
    draw_rows,
    estimated,
    group_handles,
    height_of,
    kinds,
    need_resample,
    part_of,
    row_of,
    told,
)
from dynloop.report.figures.style import groups_of, new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, excluded, settings_of

_SHARE = "share of "


@styled
def regime_shares(source: Measurement | Sequence[Any], *, by: str = "model", resample: str | None = None,
                  confidence_level: float = 0.95, n_resamples: int = 1000,
                  among: Sequence[str] | None = None) -> Figure:
    """Share of every regime with its interval, by model, layer or set of prompts.

    Args:
        source: of `limit_regime` or `limit_regime_blayney`; or estimates of shares that were made before, so that the
            figure and a table hold the same numbers.
        by: the label that separates the colours; all orbits are one group where there is no model.
        resample: as in `estimate`; needed with a measurement, not with estimates.
        confidence_level: as in `estimate`.
        n_resamples: as in `estimate`.
        among: all names of a report in order, so that a group has one colour in all of its figures.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: neither a measurement nor estimates.
        ValueError: a measurement of another kind, an unknown label, or a measurement without `resample`.
    """
    if isinstance(source, Measurement):
        values = check_measurement(source, "limit_regime(...)")
        need_resample(resample)
        name = next(iter(source.variables))
        regimes = source.categories.get(name) or tuple(sorted(set(values[source.found].tolist())))
        found = [estimated(part_of(source, mask), str(regime), group=group, statistic="share", of=regime,
                           resample=resample, confidence_level=confidence_level, n_resamples=n_resamples)
                 for regime in regimes for group, mask in groups_of(source.labels, source.n_orbits, by, "model")]
        rows = [row for row in found if row is not None]
        n = counted(source.n_orbits, source.labels, resample) + excluded(source)
        settings = settings_of(source.settings)
    else:
        rows = [row_of(e, _regime(e), group=str(dict(e.labels).get(by, ""))) for e in source]
        rows = [row for label in dict.fromkeys(r.label for r in rows) for row in rows if row.label == label]
        n = f"{sum({str(dict(e.labels).get(by, '')): e.n for e in source}.values()):,} orbits"
        settings = settings_of(next((e.settings for e in source), {}))
    seen = {row.label for row in rows if row.value > 0}
    absent = {row.label: max(r.high for r in rows if r.label == row.label) for row in rows if row.label not in seen}
    rows = [row for row in rows if row.label in seen]
    figure, axes = new_axes(width=6.2, height=height_of(rows))
    if rows:
        draw_rows(axes, rows, scale=100, among=among)
        axes.set(xlabel="share of the orbits (%)", xlim=(-2, 102))
        if handles := group_handles(rows, among):
            figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    else:
        nothing(axes, "no regimes to draw")
    never = "; ".join(f"{label} (at most {100 * high:.3g} %)" for label, high in absent.items())
    return described(
        figure, caption=f"Share of each regime; n = {n}.{kinds(rows)}" + (f" Never seen: {never}." if never else "")
                        + settings,
        alt="Dots with intervals: the share of each regime in percent. "
            + (f"{told(rows, 100)}." if rows else "There are no regimes to draw."))


def _regime(found: Any) -> str:
    row_of(found, "")  # refuses what is no estimate
    statistic = str(getattr(found, "statistic", ""))
    for start in (_SHARE, "prevalence of "):
        if statistic.startswith(start):
            return statistic.removeprefix(start)
    raise ValueError(f"regime_shares draws shares and prevalences of a regime; got "
                     f"{statistic or type(found).__name__!r}. Draw others with forest.")
