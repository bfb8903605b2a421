"""How good is the answer after more, or fewer, recurrences than in training?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.statistics import estimate

if TYPE_CHECKING:
    import xarray


def depth_extrapolation(lens: Measurement, *, trained: int | None = None, variable: str = "loss",
                        resample: str = "prompt", confidence_level: float = 0.95,
                        method: str = "t") -> xarray.Dataset:
    """Loss, or another number of the coda lens, against the number of recurrences, with an interval at each.

    What the coda lens reads after r recurrences is what the model answers when it is run r times: one run gives the
    whole curve. With `trained`, the change from that number on, paired token by token, says whether more recurrences
    help or harm.

    Args:
        lens: from `coda_lens`; or one layer of `logit_lens`. Of several seeds, joined.
        trained: the number of recurrences in training, to be marked.
        variable: "loss", "correct" (top-1 accuracy), "rank_true", "kl_final", ...
        resample, confidence_level, method: as in `estimate`; "seed > prompt" where seeds were joined.

    Returns:
        `mean`, `low`, `high` and `n` (tokens that entered) over `recurrence`, and with `trained` the mean `change`
        since then with `change_low` and `change_high`; NaN (n = 0) where no token has an answer. The attribute
        `trained`.

    Raises:
        KeyError: no such variable.
        ValueError: several layers; a trained number that was not read out; what `estimate` refuses.

    Misleads:
        Intervals are of each number by itself. A model trained on one fixed number was never asked to answer after
        others; a flat curve beyond may be a fixed point, or answers that no longer depend on the state. Tokens whose
        loop had ended, or whose logits are not finite, are left out: look at `n` before a curve that levels off.

    Source:
        Geiping et al. 2025 (arXiv 2502.05171); Zhu et al. 2025 (arXiv 2510.25741), table 10: benchmarks fall beyond the
        four loops of training.

    Example:
        >>> from dynloop.recording.lenses import coda_lens
        >>> from dynloop.stages.depth_extrapolation import depth_extrapolation
        >>> prompts = ["import os", "def f(x):", "return x"]
        >>> curve = depth_extrapolation(coda_lens("nano-settles", prompts, n_recurrences=6), trained=4)
        >>> dict(curve.sizes), float(curve.change.sel(recurrence=4))
        ({'recurrence': 6}, 0.0)
    """
    import xarray

    values, labels = lens[variable], dict(lens.labels)
    if "recurrence" not in labels:
        raise ValueError(f"{lens.name} has no label 'recurrence'. Give what coda_lens or logit_lens found.")
    for name in ("layer", "depth", "percent"):
        if len(np.unique(labels.pop(name, 0))) > 1 and name == "layer":
            raise ValueError("the curve is of one reading: lens has several layers. Select one: "
                             "lens.select(layer=...).")
    number = labels.pop("recurrence")
    recurrences = np.unique(number)
    if trained is not None and trained not in recurrences:
        raise ValueError(f"trained={trained!r} is not among the recurrences that were read out ({recurrences[0]} to "
                         f"{recurrences[-1]}). Read it out, too, or leave trained out.")
    # tokens in one order in every recurrence
    order = np.lexsort((*labels.values(), number)) if labels else np.argsort(number, kind="stable")
    n = len(order) // len(recurrences)
    rows = order.reshape(len(recurrences), n) if len(order) == n * len(recurrences) else None
    if rows is None or any((v[rows] != v[rows[0]]).any() for v in labels.values()) or \
            (number[rows] != recurrences[:, None]).any():
        raise ValueError("every token must be there once in every recurrence. Join whole measurements.")
    good = (lens.found & np.isfinite(values))[rows]
    base = None if trained is None else int(np.flatnonzero(recurrences == trained)[0])
    columns: dict[str, np.ndarray] = {name: np.full(len(recurrences), np.nan) for name in ("mean", "low", "high")}
    if base is not None:
        columns |= {name: np.full(len(recurrences), np.nan) for name in ("change", "change_low", "change_high")}

    def found(numbers: np.ndarray, at: np.ndarray, kept: np.ndarray) -> Any:
        part = Measurement(lens.name, {variable: numbers[kept]}, lens.outcomes[at[kept]],
                           labels={name: v[at[kept]] for name, v in labels.items()})
        return estimate(part, statistic="mean", resample=resample, confidence_level=confidence_level, method=method)

    for r, at in enumerate(rows):
        if good[r].any():
            own = found(values[at], at, good[r])
            columns["mean"][r], columns["low"][r], columns["high"][r] = own.value, own.low, own.high
        if base is None or not (both := good[r] & good[base]).any():
            continue
        if r == base:
            own = (0.0, 0.0, 0.0)
        else:
            change = found(values[at] - values[rows[base]], at, both)
            own = (change.value, change.low, change.high)
        columns["change"][r], columns["change_low"][r], columns["change_high"][r] = own
    data = {name: (("recurrence",), column, {"unit": lens.units[variable]}) for name, column in columns.items()}
    return xarray.Dataset({**data, "n": (("recurrence",), good.sum(1))}, coords={"recurrence": recurrences},
                          attrs={"variable": variable, "resample": resample, "confidence_level": confidence_level,
                                 "method": method, **({} if trained is None else {"trained": int(trained)})})
