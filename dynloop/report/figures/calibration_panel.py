"""What the classifier says of systems whose regime is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dynloop.measurement import Measurement
from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import Row, draw_rows, estimated, height_of, kinds, part_of, told
from dynloop.report.figures.style import new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, excluded, plural, settings_of
from dynloop.settings import check_number
from dynloop.statistics.share import clopper_pearson

_ABSTENTIONS = ("undetermined", "unknown")  # the classifier names no regime: neither found nor a false alarm


@styled
def calibration_panel(regime: Measurement | Mapping[str, Sequence[int]], *, truth: str = "truth",
                      resample: str = "orbit", confidence_level: float = 0.95, n_steps: int | None = None) -> Figure:
    """Power and false alarms of a classifier on planted systems, with exact intervals.

    Args:
        regime: of `limit_regime` (or another classifier) on systems whose regime is known; an orbit with a truth that
            is none of the classifier's regimes, such as a surrogate, counts for false alarms alone. Or counts that
            were made before: for each regime (called so, of how many that are it, called so, of how many that are not).
        truth: the label that holds the true regime.
        resample: "orbit" where the planted orbits are independent, else the label that is ("system").
        confidence_level: of the intervals.
        n_steps: recurrences of the planted orbits, for the caption.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a measurement.
        ValueError: a measurement of another kind, no label of true regimes, a level that is none.

    Misleads:
        Power and false alarms hold for orbits like the planted ones: of their length, noise and number format.

    Example:
        >>> from dynloop.report.figures import calibration_panel, caption_of
        >>> figure = calibration_panel({"orbit": (38, 40, 1, 160), "slider": (40, 40, 0, 160)}, n_steps=128)
        >>> caption_of(figure)[:66]
        'Calibration on planted orbits of 128 recurrences, true regime know'
    """
    if isinstance(regime, Mapping):
        return _panel(*_counted(regime, confidence_level), n_steps, "Calibration on planted orbits",
                      f", true regime known; shares are of these orbits ({_tried(regime)}).", "")
    values = check_measurement(regime, "limit_regime(...)")
    if truth not in regime.labels:
        raise ValueError(f"calibration needs a label {truth!r} with the true regime of every orbit; there are "
                         f"{', '.join(regime.labels) or 'no labels'}.")
    true = regime.labels[truth].astype(str)
    named = regime.categories.get(next(iter(regime.variables))) or tuple(sorted(set(values[regime.found].tolist())))
    abstained = [r for r in named if r in _ABSTENTIONS]
    named = tuple(r for r in named if r not in abstained and (r in true or (regime.found & (values == r)).any()))
    power: list[Row] = []
    alarms: list[Row] = []
    for name in named:
        for rows, mask in ((power, true == name), (alarms, true != name)):
            question: dict[str, Any] = {"statistic": "share", "of": name, "resample": resample,
                                        "confidence_level": confidence_level}
            row = estimated(part_of(regime, mask), name, **question) if mask.any() else None
            rows.append(row or Row(name, np.nan, np.nan, np.nan, kind="not planted"))
    counts = ", ".join(f"{name} {int((true == name).sum()):,}" for name in dict.fromkeys(sorted(true.tolist())))
    silent = "".join(f" Called {r}, which is no alarm: {100 * (values[regime.found] == r).mean():.3g} %."
                     for r in abstained if regime.found.any())
    return _panel(power, alarms, n_steps, f"Calibration on {plural(regime.n_orbits, 'planted orbit')}",
                  f", true regime known ({counts}){excluded(regime)}; shares are of the orbits that got an answer.",
                  silent + settings_of(regime.settings))


def _counted(counts: Mapping[str, Sequence[int]], confidence_level: float) -> tuple[list[Row], list[Row]]:
    """Rows of power and of false alarms."""
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    panels: tuple[list[Row], list[Row]] = ([], [])
    for name, four in counts.items():
        if len(four) != 4 or not (0 <= four[0] <= four[1] and 0 <= four[2] <= four[3]):
            raise ValueError(f"the counts of {name!r} must be (called, of so many that are it, called, of so many that "
                             f"are not); got {tuple(four)}.")
        if name in _ABSTENTIONS:
            continue
        for rows, (called, tried) in zip(panels, (four[:2], four[2:]), strict=True):
            low, high = clopper_pearson(called, tried, confidence_level) if tried else (np.nan, np.nan)
            kind = f"{100 * confidence_level:g} % Clopper-Pearson over orbits" if tried else "not planted"
            rows.append(Row(str(name), called / tried if tried else np.nan, low, high, kind=kind))
    return panels


def _tried(counts: Mapping[str, Sequence[int]]) -> str:
    return "n = " + ", ".join(f"{name} {four[1]:,}" for name, four in counts.items()) if counts else "n = 0 orbits"


def _panel(power: list[Row], alarms: list[Row], n_steps: int | None, what: str, shares: str, more: str) -> Figure:
    if not power:
        figure, axes = new_axes()
        nothing(axes, "no planted systems to draw")
    else:
        figure = Figure(figsize=(7.2, height_of(power) + 0.15))
        for i, (rows, title) in enumerate(((power, "power: called so when it is (%)"),
                                           (alarms, "false alarms: called so when it is not (%)"))):
            axes = figure.add_subplot(1, 2, i + 1)
            draw_rows(axes, rows, scale=100, names=i == 0)
            axes.set_xlabel(title)
            if i == 0:
                axes.set_xlim(-4, 104)
            else:
                highs = [row.high for row in rows if np.isfinite(row.high)]
                axes.set_xlim(-4 * max([0.01, *highs]), 104 * max([0.01, *highs]))
    steps = f" of {n_steps} recurrences" if n_steps else ""
    seen = [row for row in (*power, *alarms) if np.isfinite(row.value)]
    return described(
        figure, caption=f"{what}{steps}{shares}{kinds(seen)}{more}",
        alt="Two panels of dots with intervals. " + (
            f"Power: {told([r for r in power if np.isfinite(r.value)], 100)}. False alarms: {told(alarms, 100)}."
            if power else "There are no planted systems to draw."))
