"""What the benchmarks share: timing in turn, one thread, tables, files of figures. No benchmark itself.

Importing it also makes `synthetic/`, which is not in the wheel, importable from a script of this folder.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import threadpoolctl
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # for synthetic/


def arguments(doc, **settings):
    """The command line of a benchmark: --tiny, --save, and numbers `name=(default, tiny, help)`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="once, on small data: it runs and its answers are right")
    parser.add_argument("--save", metavar="FILE", help="write the figures as JSON")
    for name, (default, tiny, text) in settings.items():
        if default is False:
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default),
                                help=f"{text} (default {default}; tiny {tiny})")
    options = parser.parse_args()
    for name, (default, tiny, _) in settings.items():
        if getattr(options, name) is None:
            setattr(options, name, tiny if options.tiny else default)
    return options


def one_thread():
    """Ours and theirs alike: every pool of threads is cut to one."""
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
    import numba

    numba.set_num_threads(1)


def in_turn(tasks, repeats, *, warm=True):
    """Seconds (repeats,) of each task; the tasks take turns, so that a slow minute of the machine hits them all.

    `tasks` maps a name to a function; each runs once untimed before, which compiles what is compiled on first use.
    """
    if warm:
        for task in tasks.values():
            task()
    seconds = {name: np.empty(repeats) for name in tasks}
    for r in range(repeats):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            seconds[name][r] = time.perf_counter() - began
    return seconds


def times(theirs, ours):
    """How many times longer theirs takes: median, least and most over the rounds."""
    ratios = np.asarray(theirs) / np.asarray(ours)
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def table(head, rows):
    """A Markdown table; numbers with three significant digits, None as a dash."""
    cells = [[_cell(c) for c in row] for row in [head, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _cell(value):
    if value is None:
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.3g}" if np.isfinite(value) else str(float(value))
    return str(value)


def interval(measurement):
    """Low and high of the main variable, where a measurement has them, or None."""
    for low, high in ((f"{next(iter(measurement.variables))}_{side}" for side in ("low", "high")), ("low", "high")):
        if low in measurement.variables:
            return measurement[low], measurement[high]
    return None


def machine():
    """Where and with what it ran, and how busy the machine was."""
    import numba
    import scipy

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "scipy": scipy.__version__, "numba": numba.__version__, "processor": platform.machine(),
            "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None}


def save(figures, file, *, indent=1):
    """Figures as JSON, whole or not at all."""
    if not file:
        return
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(figures, indent=indent, default=_plain) + "\n", encoding="utf-8")
    part.replace(path)


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not go into JSON.")
