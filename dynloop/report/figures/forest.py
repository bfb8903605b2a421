"""Estimates or contrasts, one a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import draw_rows, height_of, kinds, row_of, told
from dynloop.report.figures.style import new_axes, nothing, styled
from dynloop.report.figures.words import plural


@styled
def forest(estimates: Sequence[Any], *, labels: Sequence[str] | None = None, reference: float | None = None,
           log: bool = False) -> Figure:
    """Estimates or contrasts with their intervals, one a row, in digits beside them.

    Args:
        estimates: of `estimate`, `proportion` or `compare`: whatever has name, value, low and high. Draw together what
            has one unit.
        labels: of the rows; by default what tells the estimates apart.
        reference: where a line is drawn; by default at 0 for differences of `compare` and at 1 for its ratios.
        log: a logarithmic axis, for ratios; all values must be positive.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: something that is no estimate.
        ValueError: another number of labels, or numbers that a log axis has no place for.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome, estimate
        >>> from dynloop.report.figures import alt_of, forest
        >>> x = np.random.default_rng(0).normal(0.8, 0.1, (40, 20)).ravel()
        >>> m = Measurement("rate", {"rate": x}, [Outcome.FOUND] * 800, labels={"prompt": np.arange(800) // 20})
        >>> alt_of(forest([estimate(m, statistic="mean", resample="prompt")]))
        'Dots with intervals, one a row. rate: 0.797 [0.790, 0.804].'
    """
    found = list(estimates)
    names = list(labels) if labels is not None else names_of(found)
    if len(names) != len(found):
        raise ValueError(f"labels must be one for each of {len(found)} estimates; got {len(names)}.")
    rows = [row_of(e, name) for e, name in zip(found, unique(names), strict=True)]
    if log and any(row.value <= 0 for row in rows):
        raise ValueError("a log axis needs positive values; got "
                         f"{min(row.value for row in rows):.3g}. Use log=False.")
    figure, axes = new_axes(width=6.2, height=height_of(rows))
    asked = {str(getattr(e, "difference", "")) for e in found}
    if reference is None and asked in ({"difference"}, {"ratio"}):
        reference = float(asked == {"ratio"})
    units = list(dict.fromkeys(str(getattr(e, "unit", "")) for e in found))
    what = list(dict.fromkeys(str(getattr(e, "statistic", "")) for e in found))
    if reference == 1 and asked == {"ratio"}:
        what = [f"ratio of the {word}s" for word in what]
    if rows:
        draw_rows(axes, rows, log=log)
        axes.set_xlabel(", ".join(filter(None, [what[0] if len(what) == 1 else "", *units[:1]])) or "value")
        if reference is not None:
            axes.axvline(reference, color="#555555", linewidth=0.9, linestyle=(0, (4, 2)), zorder=0)
    else:
        nothing(axes, "no estimates to draw")
    mixed = f" Units differ between rows: {', '.join(u or 'none' for u in units)}." if len(units) > 1 else ""
    line = f" Dashed line: {reference:g}." if reference is not None else ""
    return described(
        figure, caption=f"{_subject(found)}Dots: estimates; lines: their intervals; n = {_counts(found)}."
                        f"{kinds(rows)}{line}{mixed}",
        alt="Dots with intervals, one a row. " + (f"{told(rows)}." if rows else "There are no estimates to draw."))


def _subject(found: Sequence[Any]) -> str:
    names = list(dict.fromkeys(str(getattr(e, "name", "")) for e in found))
    return f"{names[0].capitalize() if names[0].islower() else names[0]}: ".replace("_", " ") \
        if len(names) == 1 and names[0] else ""


def _counts(found: Sequence[Any]) -> str:
    by_condition = {str(name): n for e in found if isinstance(getattr(e, "n", None), Mapping)
                    for name, n in e.n.items()}
    if by_condition:
        return "; ".join(f"{name}: " + (", ".join(plural(count, unit) for unit, count in n.items())
                                        if isinstance(n, Mapping) else plural(n, "orbit"))
                         for name, n in by_condition.items())
    counts = sorted({int(e.n) for e in found if isinstance(getattr(e, "n", None), int)})
    if not counts:
        return "as given with the estimates"
    return f"{counts[0]:,} orbits" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} orbits a row"


def names_of(found: Sequence[Any]) -> list[str]:
    """What tells estimates apart: name, statistic, and the labels in which they differ."""
    parts = [[_contrast(e) for e in found], [str(getattr(e, "name", "")).replace("_", " ") for e in found],
             [str(getattr(e, "statistic", "")) for e in found]]
    keys = list(dict.fromkeys(key for e in found for key in dict(getattr(e, "labels", {}) or {})))
    parts += [[_told(key, dict(getattr(e, "labels", {}) or {}).get(key)) for e in found] for key in keys]
    if not found:
        return []
    differ = [part for part in parts if len(set(part)) > 1] or [next((part for part in parts if any(part)), parts[0])]
    return [", ".join(filter(None, names)) for names in zip(*differ, strict=True)]


def _contrast(found: Any) -> str:
    """"trained - untrained" of a comparison; nothing of an estimate."""
    if not hasattr(found, "condition"):
        return ""
    return f"{found.condition} {'/' if getattr(found, 'difference', '') == 'ratio' else '-'} {found.baseline}"


def _told(key: str, value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{key} {value}"


def unique(names: Sequence[str]) -> list[str]:
    """Rows of one name would stand together; a number tells them apart."""
    seen: dict[str, int] = {}
    fresh = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        fresh.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return fresh


