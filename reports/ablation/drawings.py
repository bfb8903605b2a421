"""Figures of the study that the package has no function for: grids of conditions, and curves over recurrences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dynloop.report.figures.style import COLOURS, powers_of_ten, styled

INJECTIONS = ("none", "additive", "linear")
NORMS = ("pre", "sandwich", "residual")
_HATCH_ALPHA = 0.18


@styled
def grid(conditions: dict[str, Any], *, weights: str) -> Figure:
    """Percent of prompts at rest in every looped condition, in digits on a shade."""
    cells = {(c["block"], c["injection"], c["norm"], c["loop_norm"]): c[weights]["rest"]["value"]
             for c in conditions.values() if c["kind"] == "looped" and weights in c and "rest" in c[weights]}
    blocks = sorted({key[0] for key in cells})
    columns = [i for i in INJECTIONS if any(key[1] == i for key in cells)]
    rows = [(n, end) for n in NORMS for end in (True, False) if any(key[2:] == (n, end) for key in cells)]
    figure = Figure(figsize=(1.3 + 1.75 * len(blocks), 0.9 + 0.32 * len(rows)))
    panels = np.atleast_1d(figure.subplots(1, len(blocks), sharey=True))
    for panel, block in zip(panels, blocks, strict=True):
        values = np.array([[cells.get((block, i, n, end), np.nan) for i in columns] for n, end in rows])
        panel.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for y, x in np.ndindex(*values.shape):
            if np.isfinite(values[y, x]):
                panel.text(x, y, f"{100 * values[y, x]:.0f}", ha="center", va="center",
                           color="white" if values[y, x] > 0.6 else "black", fontsize=8)
        panel.set(title=f"block of {block}", xticks=range(len(columns)), xticklabels=columns)
        panel.grid(visible=False)
        panel.tick_params(length=0)
    panels[0].set(yticks=range(len(rows)),
                  yticklabels=[f"{n}, {'norm at end' if end else 'no norm at end'}" for n, end in rows])
    return figure


@styled
def curves(told: Sequence[dict[str, Any]], *, quantity: str, label: str, trained_at: int, log: bool = False,
           less: int | None = None) -> Figure:
    """Mean curves over recurrences with their intervals over seeds: a panel a norm, a colour an injection."""
    own = [c for c in told if c["quantity"] == quantity and c["kind"] == "looped"]
    norms = [n for n in NORMS if any(c["norm"] == n for c in own)]
    figure = Figure(figsize=(1.0 + 2.3 * max(len(norms), 1), 3.2))
    panels = np.atleast_1d(figure.subplots(1, max(len(norms), 1), sharey=True))
    for panel, norm in zip(panels, norms, strict=False):
        for c in own:
            if c["norm"] != norm:
                continue
            x = np.array(c["recurrence"])
            mean, low, high = (np.array([np.nan if v is None else v for v in c[k]], dtype=float)
                               for k in ("mean", "low", "high"))
            if log:
                mean, low, high = np.exp(mean), np.exp(low), np.exp(high)
            shift = 0.0 if less is None else float(mean[x == less][0])
            colour = COLOURS[INJECTIONS.index(c["injection"])]
            panel.plot(x, mean - shift, color=colour, linestyle="-" if c["loop_norm"] else "--", linewidth=1.4)
            if less is None:
                panel.fill_between(x, low, high, color=colour, alpha=_HATCH_ALPHA, linewidth=0)
        panel.axvline(trained_at, color="#777777", linewidth=0.8, linestyle=":")
        panel.set_xscale("log", base=2)
        panel.set(title=f"{norm} norm", xlabel="recurrence")
        panel.set_xticks([1, 4, 16, 64], ["1", "4", "16", "64"])
        panel.xaxis.set_minor_formatter(lambda *_: "")
        if log:
            panel.set_yscale("log")
            powers_of_ten(panel.yaxis)
    panels[0].set_ylabel(label)
    handles = [Line2D([], [], color=COLOURS[INJECTIONS.index(i)], label=f"injection: {i}") for i in INJECTIONS
               if any(c["injection"] == i for c in own)]
    handles += [Line2D([], [], color="#444444", linestyle=style, label=text) for style, text in
                (("-", "norm at the loop's end"), ("--", "no norm there"))]
    handles.append(Line2D([], [], color="#777777", linestyle=":", label="trained with"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
