"""From which recurrence on each head attends as it will at the end, beside the state."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynloop.attention.attention_stabilisation import ORDERS, attention_lag
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.report.cells import number, percent
from dynloop.report.figures.drawing import described
from dynloop.report.figures.rows import Row, draw_rows, height_of, kinds, part_of, row_of, told
from dynloop.report.figures.stage_curves import layer_name, spaced
from dynloop.report.figures.style import new_axes, nothing, styled
from dynloop.report.figures.words import check_measurement, counted, excluded, plural, settings_of, subject_of
from dynloop.settings import check_number
from dynloop.statistics import estimate

MOST = 32  # heads with a row of their own; of more each layer is one row


@styled
def attention_settling(attention: Measurement, state: Measurement | None = None, *, resample: str = "prompt",
                       confidence_level: float = 0.95) -> Figure:
    """When the attention of each head becomes constant, and when the state does, in recurrences.

    Args:
        attention: of `attention_stabilisation`.
        state: of `convergence_time`, as `attention_lag` wants it, for the line of the state and the order in time.
        resample: what is independent, for the intervals: a label of both.
        confidence_level: of these.

    Returns:
        The figure; `caption_of` and `alt_of` give its words.

    Raises:
        TypeError: not measurements.
        ValueError: measurements of another kind, or what `attention_lag` refuses.

    Misleads:
        Means are of the prompts on which a head settled; where others did not, they are biased low. The counts beside
        the names say how many.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), proposition 4.2 and figures 23 and 25.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome
        >>> from dynloop.report.figures import alt_of, attention_settling
        >>> time = np.array([6.0, 9.0, 7.0, 9.0])
        >>> heads = Measurement("attention_stabilisation", {"time": time}, [Outcome.FOUND] * 4,
        ...                     labels={"prompt": [0, 0, 1, 1], "layer": [0] * 4, "head": [0, 1, 0, 1]})
        >>> alt_of(attention_settling(heads))[:89]
        'Dots with intervals: recurrences until attention is constant. layer 0, head 0 (2/2): 6.50'
    """
    time = check_measurement(attention, "attention_stabilisation(...)", variable="time")
    if attention.name != "attention_stabilisation":
        raise ValueError(f"this figure is drawn from attention_stabilisation(...); got {attention.name}.")
    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (the default is 0.95)")
    if resample not in attention.labels:
        raise ValueError(f"resample must name a label of the measurement; got {resample!r}, and there are "
                         f"{', '.join(attention.labels) or 'none'}.")
    lag = None if state is None else attention_lag(attention, state)
    rows = []
    for label, mask in _places(attention):
        own = part_of(attention, mask)
        if own.found.any():
            rows.append(_row(own, "time", f"{label} ({int(own.found.sum())}/{own.n_orbits})", resample,
                             confidence_level))
    if not rows:
        figure, axes = new_axes()
        nothing(axes, "no attention that becomes constant to draw")
        return described(figure, caption="No head's attention becomes constant; n = "
                                         f"{counted(len(time), attention.labels, resample, what='map sequence')}"
                                         f"{excluded(attention)}.{settings_of(attention.settings)}",
                         alt="There is no attention that becomes constant to draw.")
    figure, axes = new_axes(width=6.2, height=height_of(rows) + (0.25 if lag is not None else 0.0))
    draw_rows(axes, rows)
    axes.set_xlabel("recurrences until constant (counted from 0)")
    words = ""
    if lag is not None and lag.found.any():
        words = _with_state(figure, axes, lag, resample, confidence_level)
    low, high = axes.get_xlim()
    axes.set_xlim(max(min(low, 0.9 * low), -0.5), high)
    return described(
        figure, caption="Recurrences until each head's attention map stays near its last one"
                        f"{subject_of(attention.labels)}: mean over the {resample}s on which it does (how many, beside "
                        f"the name); n = {counted(len(time), attention.labels, resample, what='map sequence')}"
                        f"{excluded(attention)}.{kinds(rows)}{words}{settings_of(attention.settings)}",
        alt=f"Dots with intervals: recurrences until attention is constant. {told(rows)}.{words}")


def _places(attention: Measurement) -> list[tuple[str, np.ndarray]]:
    """(label, mask) of every layer and head; of many, of evenly spaced layers as wholes."""
    n = attention.n_orbits
    layer = attention.labels.get("layer", np.zeros(n, dtype=int))
    head = attention.labels.get("head", np.zeros(n, dtype=int))
    names = layer[np.sort(np.unique(layer, return_index=True)[1])]
    pairs = [(la, he) for la in names for he in np.unique(head[layer == la])]
    if len(pairs) > MOST:
        return [(f"{layer_name(la)}, all heads", layer == la) for la in spaced(names, by_ratio=False, most=MOST)]
    return [(f"{layer_name(la)}, head {he}", (layer == la) & (head == he)) for la, he in pairs]


def _row(part: Measurement, variable: str, label: str, resample: str, level: float, **question: Any) -> Row:
    """A mean with its interval; without one where there is a single unit."""
    units = np.unique(part.labels[resample][part.found])
    if len(units) < 2:
        return Row(label, float(part[variable][part.found].mean()), np.nan, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few units: the caption gives their number
        return row_of(estimate(part, statistic="mean", variable=variable, resample=resample, confidence_level=level,
                               method="t", **question), label)


def _with_state(figure: Figure, axes: Any, lag: Measurement, resample: str, level: float) -> str:
    """The state's mean time as a line with its band; what the order in time is, in words."""
    keys = [name for name in ("prompt", "start") if name in lag.labels]
    first = np.unique(np.stack([np.unique(lag.labels[name], return_inverse=True)[1] for name in keys], 1)[lag.found],
                      axis=0, return_index=True)[1]
    at = np.flatnonzero(lag.found)[first]
    of_state = Measurement("convergence_time", {"time": lag["state_time"][at]}, [Outcome.FOUND] * len(at),
                           labels={name: lag.labels[name][at] for name in {*keys, resample} if name in lag.labels})
    state = _row(of_state, "time", "state", resample, level)
    axes.axvline(state.value, color="#D55E00", linewidth=1.3)
    handles: list[Any] = [Line2D([], [], color="#D55E00", linewidth=1.3, label="state, mean")]
    text = f"{state.value:.3g}"
    if np.isfinite([state.low, state.high]).all():
        axes.axvspan(state.low, state.high, color="#D55E00", alpha=0.2, linewidth=0)
        handles.append(Patch(color="#D55E00", alpha=0.2, linewidth=0, label=f"its {100 * level:g} % interval"))
        text += f" [{state.low:.3g}, {state.high:.3g}]"
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    words = f" The state of the prompt (line): {text} recurrences, over {plural(len(at), 'prompt')}."
    if len(np.unique(lag.labels[resample][lag.found])) < 2:
        return words
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        gap = estimate(lag, statistic="mean", resample=resample, confidence_level=level, method="t")
        shares = {order: percent(estimate(lag, statistic="share", variable="order", of=order, resample=resample,
                                          confidence_level=level)) for order in ORDERS}
    return f"{words} Attention less state: {number(gap)} recurrences; order: " \
           f"{', '.join(f'{order} {share}' for order, share in shares.items())}."
