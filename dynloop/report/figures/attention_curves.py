"""Attention statistics over recurrences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from dynloop.attention.nulls import uniform_concentration, uniform_mixing, uniform_sink_score
from dynloop.report.figures.curves import band_legend, band_words, draw_curves, from_to, usual_units
from dynloop.report.figures.drawing import described
from dynloop.report.figures.style import new_axes, nothing, powers_of_ten, styled, whole_numbers
from dynloop.report.figures.words import counted
from dynloop.settings import check_number

_WORDS = {"sink_score": "weight on the\nfirst position", "entropy": "entropy (nats)", "maximum": "largest weight",
          "distance": "distance from the\nprevious map", "column_sum": "attention received",
          "concentration": "column\nconcentration"}
_NULLS: dict[str, Callable[..., float]] = {
    "sink_score": uniform_sink_score, "entropy": uniform_mixing, "concentration": uniform_concentration}
_NULL_LINE: Any = {"color": "#666666", "linestyle": (0, (1, 1.6)), "linewidth": 1.3}


@styled
def attention_curves(attention: Any, *, by: str = "layer", variables: Sequence[str] | None = None,
                     resample: str | None = "prompt", confidence_level: float = 0.95) -> Figure:
    """Statistics of attention maps over recurrences, a panel a statistic, a line a layer, uniform attention dotted.

    Args:
        attention: of `attention_of` (or `step_statistics`): an xarray dataset whose variables run over rows and
            recurrences.
        by: the coordinate that separates the lines: "layer", "head", "prompt", ...
        variables: which; by default all, at most six.
        resample: the coordinate whose values are independent, for the interval of the median; None for no interval.
        confidence_level: of that interval.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not a dataset.
        ValueError: unknown variables or coordinates, a level that is none.

    Misleads:
        The dotted line is there for maps (per="map") of a recording that knows their length; what a recorded token
        gets depends on its place.
    """
    import xarray

    if not isinstance(attention, xarray.Dataset):
        raise TypeError(f"attention_curves needs the dataset of attention_of(store); got {type(attention).__name__}.")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    curves = [str(name) for name, data in attention.data_vars.items() if data.dims[-1:] == ("recurrence",)
              and data.ndim == 2]
    names = list(curves[:6] if variables is None else variables)
    if unknown := [name for name in names if name not in curves]:
        raise ValueError(f"no statistic {unknown[0]!r} over recurrences; there are {', '.join(curves) or 'none'}.")
    labels = {str(name): data.values for name, data in attention.coords.items() if data.dims != ("recurrence",)}
    resample = usual_units(labels, resample)
    rows = len(next(iter(labels.values()))) if labels else 0
    if not names or not rows:
        figure, axes = new_axes()
        nothing(axes, "no attention statistics to draw")
        return described(figure, caption="No attention statistics were recorded.",
                         alt="There are no attention statistics to draw.")
    across = 2 if len(names) > 1 else 1
    down = -(-len(names) // across)
    figure = Figure(figsize=(3.2 * across, 1.9 * down + 0.9))
    recurrence = attention["recurrence"].values
    texts, last, with_null = [], None, False
    for i, name in enumerate(names):
        axes = figure.add_subplot(down, across, i + 1)
        drawn = draw_curves(axes, recurrence, attention[name].values.astype(float), labels, by=by, usual="layer",
                            resample=resample, confidence_level=confidence_level)
        words = _WORDS.get(name, name.replace("_", " "))
        if drawn.groups:
            last = drawn
            axes.set(ylabel=words)
            axes.margins(x=0.01)
            if (null := _null(attention, name)) is not None:
                axes.axhline(null, **_NULL_LINE)
                with_null = True
            if min(drawn.last) > 0 and max(drawn.first + drawn.last) > 100 * min(drawn.first + drawn.last):
                axes.set_yscale("log")
                powers_of_ten(axes.yaxis)
            whole_numbers(axes.xaxis)
            if i + across >= len(names):
                axes.set_xlabel("recurrence")
            else:
                axes.xaxis.set_major_formatter(NullFormatter())
            texts.append(f"{words.replace(chr(10), ' ')}: {from_to(drawn)}"
                         + (f"; uniform attention {null:.2g}" if null is not None else ""))
        else:
            nothing(axes, f"no {words} to draw")
    if last is not None:
        handles: list[Any] = [line for line in figure.axes[0].lines if not str(line.get_label()).startswith("_")]
        handles += band_legend(last, resample, confidence_level, what="rows")
        handles += [Line2D([], [], label="uniform attention", **_NULL_LINE)] if with_null else []
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return described(
        figure, caption=f"Attention over {len(recurrence)} recurrences; "
                        f"n = {counted(rows, labels, resample, what='row')} (a row is a map, or a token of it). "
                        + (band_words(last, resample, confidence_level, what="rows") if last else "")
                        + (" Dotted: uniform attention over as many positions." if with_null else ""),
        alt="Line charts: statistics of attention over recurrences. "
            + (f"{'. '.join(texts)}." if texts else "There is nothing to draw."))


def _null(attention: Any, name: str) -> float | None:
    """What uniform attention over as many positions scores, mean over the maps; None where it is not known."""
    if name not in _NULLS or attention.attrs.get("per") != "map" or "n_positions" not in attention.coords:
        return None
    lengths, counts = np.unique(attention["n_positions"].values, return_counts=True)
    if lengths.min() < 2:
        return None
    null = [_NULLS[name](int(n), causal=bool(attention.attrs.get("causal", True))) for n in lengths]
    return float(np.average(null, weights=counts))
