"""One style for all figures, and the small things that several of them draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FALLBACKS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Source Han Sans",
             "Droid Sans Fallback", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Hiragino Sans", "PingFang SC",
             "Yu Gothic", "Microsoft YaHei", "MS Gothic", "SimHei", "Malgun Gothic", "Noto Sans KR",
             "Apple SD Gothic Neo", "Arial Unicode MS",
             "Unifont")  # of scripts that the first font lacks, such as Chinese, Japanese and Korean


def families(here: Iterable[str] | None = None) -> list[str]:
    """The font of all figures, and after it those of `FALLBACKS` that are here: a glyph comes from the first that has
    it. Fonts that are not here are not named, because matplotlib would complain of each in every text."""
    known = {font.name for font in font_manager.fontManager.ttflist} if here is None else set(here)
    return ["DejaVu Sans", *(name for name in FALLBACKS if name in known)]


STYLE: Any = {
    "font.size": 9, "font.family": families(), "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.titlelocation": "left", "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8, "figure.dpi": 100,
    "svg.fonttype": "path", "svg.hashsalt": "dynloop", "pdf.fonttype": 42, "figure.constrained_layout.use": True,
    "errorbar.capsize": 2.5, "hatch.linewidth": 0.6, "text.parse_math": False,  # a model's name may hold dollars
}
WIDTH, HEIGHT = 4.6, 3.5  # inches: one and a half columns of a paper, and half of a page on a screen
MOST_GROUPS = 8
MOST_POINTS = 5000  # more of them are drawn as pixels within a vector figure
styled = matplotlib.rc_context(STYLE)  # a decorator


def new_axes(*, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = Figure(figsize=(width, height))
    return figure, figure.add_subplot()


def nothing(axes: Axes, text: str) -> None:
    """Say in the figure that there is nothing to draw."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", wrap=True, transform=axes.transAxes)


def whole_numbers(axis: Any) -> None:
    """Ticks of counted things stand at whole numbers."""
    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def percents(axis: Any) -> None:
    """Ticks of shares read in percent."""
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _power(value: float, _: Any = None) -> str:
    """"10⁻³" of a whole power of ten, else nothing."""
    exponent = round(np.log10(value)) if value > 0 else 0
    return f"10{str(exponent).translate(_RAISED)}" if np.isclose(value, 10.0**exponent, rtol=1e-6, atol=0) else ""


def powers_of_ten(axis: Any) -> None:
    """Ticks of a log axis read 10⁻³; matplotlib's own are formulas, which take ten times as long to set."""
    axis.set_major_formatter(FuncFormatter(_power))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(axis: Any, least: float, most: float) -> None:
    """Ticks of a log axis that do not run into each other: some within a decade, else whole decades."""
    if most / least > 50:
        powers_of_ten(axis)
        return
    few, many = (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=few if most / least > 4 else many))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def groups_of(labels: Mapping[str, np.ndarray], n: int, by: str, usual: str) -> list[tuple[str, np.ndarray]]:
    """(name, mask) for every value of a label; all orbits as one group where the usual label is missing.

    Of more than `MOST_GROUPS` values as many are taken, evenly spaced, the first and the last among them.

    Raises:
        ValueError: an unknown label.
    """
    if by not in labels:
        if by != usual:
            raise ValueError(f"no label {by!r} to group by; there are {', '.join(labels) or 'none'}.")
        return [("all orbits", np.ones(n, dtype=bool))]
    values = np.unique(labels[by])
    if len(values) > MOST_GROUPS:
        values = values[np.unique(np.linspace(0, len(values) - 1, MOST_GROUPS).round().astype(int))]
    return [(str(value) if values.dtype.kind in "US" else f"{by} {value}", labels[by] == value) for value in values]


def looks_of(names: Iterable[str], among: Sequence[str] | None = None) -> dict[str, dict[str, Any]]:
    """The look of each name.

    Args:
        names: what this figure draws, in order.
        among: all names of a report in order: each keeps its look in every figure, whoever is missing there.
    """
    every = list(dict.fromkeys([*(among or ()), *names]))
    return dict(zip(every, looks(), strict=False))


def looks() -> Iterator[dict[str, Any]]:
    """Colour, dashes and marker of one group after the other; no two of the first 28 are the same."""
    for i in range(10**6):
        yield {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)],
               "marker": MARKERS[i % len(MARKERS)]}
