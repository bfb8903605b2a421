"""When did a model memorise, when did it generalise in distribution, and when out of it?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.monitoring.log import read_log
from dynloop.nano.task import SPLITS
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole

if TYPE_CHECKING:
    import pandas

_PREFIX = "accuracy_"


def training_phases(logs: str | Path | pandas.DataFrame | Mapping[Any, Any], *, threshold: float = 0.9,
                    stay: int = 2) -> Measurement:
    """The step of training from which the accuracy on each split stays at or above a threshold.

        step = min { s : accuracy(t) >= threshold at all measured steps t >= s }

    Args:
        logs: what a `LoopMonitor` with a task wrote: its file or folder, or the frame that `read_log` gives; or of
            several trainings a mapping, seed -> one of these.
        threshold: accuracy that counts as learnt.
        stay: measured steps, at the end, at which it must hold.

    Returns:
        One row a training and split, in the order train, in_distribution, new_combinations, harder, with the labels
        `seed` and `split`: `step`, NaN where not `FOUND`; `after`, the measured step before, so that the threshold was
        passed between the two, NaN where there is none; `last`, the accuracy at the last measured step, always given.
        `NOT_FOUND`: below the threshold at the end; `NOT_CONVERGED`: above it at the end, but at fewer than `stay`
        measured steps; `TOO_SHORT`: fewer than `stay` measured steps; `NOT_FINITE`: an accuracy is missing, because
        measuring failed.

    Raises:
        ValueError: settings, or a log without accuracies.

    Misleads:
        An accuracy over 64 questions is known to .04 at .9: a single dip below the threshold moves the step to behind
        it. Ask more questions (`task_questions`), or lower the threshold. Where chance is high (parity: .5) a split
        reaches a low threshold by luck. Steps of two splits that lie within one measuring interval have no order.

    Source:
        Own; the phases are those of Wang et al. 2024 (arXiv 2405.15071), section 3.

    Example:
        >>> import pandas as pd
        >>> from dynloop.monitoring import training_phases
        >>> log = pd.DataFrame({"step": [100, 200, 300, 400], "accuracy_train": [0.5, 1, 1, 1],
        ...                     "accuracy_in_distribution": [0.1, 0.2, 0.95, 1], "accuracy_harder": [0, 0.1, 0, 0.1]})
        >>> training_phases(log).to_frame()[["split", "outcome", "step", "after", "last"]]
                     split    outcome   step  after  last
        0            train      found  200.0  100.0   1.0
        1  in_distribution      found  300.0  200.0   1.0
        2           harder  not found    NaN    NaN   0.1
    """
    import pandas as pd

    check_number("threshold", threshold, lambda v: 0 < v <= 1, "above 0 and at most 1 (the default is 0.9)")
    check_whole("stay", stay, 1, "a whole number of at least 1 (the default is 2)")
    many: Mapping[Any, Any] = logs if isinstance(logs, Mapping) else {0: logs}
    if not many:
        raise ValueError("no log given; name at least one.")
    rows = []
    for seed, log in many.items():
        frame = log if isinstance(log, pd.DataFrame) else read_log(log)
        splits = sorted((str(name).removeprefix(_PREFIX) for name in frame.columns if str(name).startswith(_PREFIX)),
                        key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))
        if "step" not in frame or not splits:
            raise ValueError("a log needs the columns step and accuracy_...; this one has "
                             f"{', '.join(map(str, frame.columns)) or 'none'}. Give LoopMonitor a task=.")
        frame = frame.sort_values("step", kind="stable")
        steps = frame["step"].to_numpy(dtype=float)
        rows += [(seed, split, *_crossing(steps, frame[_PREFIX + split].to_numpy(dtype=float), threshold, stay))
                 for split in splits]
    seeds, names, step, after, last, outcomes = zip(*rows, strict=True)
    return Measurement("training_phases", {"step": np.array(step), "after": np.array(after), "last": np.array(last)},
                       list(outcomes), units={"step": "steps", "after": "steps"},
                       settings={"threshold": threshold, "stay": stay},
                       labels={"seed": np.array(seeds), "split": np.array(names)})


def _crossing(steps: np.ndarray, accuracy: np.ndarray, threshold: float,
              stay: int) -> tuple[float, float, float, Outcome]:
    """Step of the crossing, the step before, the last accuracy and the outcome."""
    n, nan = len(steps), np.nan
    last = float(accuracy[-1]) if n else nan
    if n < stay:
        return nan, nan, last, Outcome.TOO_SHORT
    if not np.isfinite(accuracy).all():
        return nan, nan, last, Outcome.NOT_FINITE
    below = np.flatnonzero(accuracy < threshold)
    first = int(below[-1]) + 1 if len(below) else 0
    if first == n:
        return nan, nan, last, Outcome.NOT_FOUND
    if n - first < stay:
        return nan, nan, last, Outcome.NOT_CONVERGED
    return float(steps[first]), float(steps[first - 1]) if first else nan, last, Outcome.FOUND
