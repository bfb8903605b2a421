"""From which recurrence on does a head attend as it will at the end, and does that follow the state?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dynloop.attention.attention_distance import along_the_loop
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number

if TYPE_CHECKING:
    from dynloop.attention.maps import Source

ORDERS = ("attention first", "together", "state first")
_LEAST = 8  # maps, as many as `convergence_time` wants states
_SPACINGS = 4.0


def attention_stabilisation(attention: Source, *, tolerance: float = 1e-3, dims: Sequence[str] | None = None,
                            causal: bool | None = None) -> Measurement:
    """First recurrence from which each head's attention map stays near its last one, as `convergence_time` says it.

        time = min { t : ||A[s] - A[R-1]||_F <= radius for all s >= t },   radius = tolerance ||A[0] - A[R-1]||_F

    The end of every record looks like an arrival. It counts as one if the map has been within the radius for at least
    the last quarter of the record, and would travel at most one radius more if the record went on as long again.

    Args:
        attention: maps (..., T, T) with an axis "recurrence", or `attention_of(store, per="pair")`.
        tolerance: radius, as a share of the distance of the first map from the last. The radius is never below four
            spacings of the number format in which the model computed, times the norm of the last map.
        dims: names of the leading axes of maps; by default the last of prompt, recurrence, layer, head.
        causal: of maps: whether query t sees keys up to t only (default True).

    Returns:
        A row a prompt, layer and head. `time`, in recurrences: the index, counted from 0, of the first map that has
        arrived, as of states in `convergence_time`; `radius`; `n_recorded`, recurrences (a head that did not arrive is
        censored there, and its time is NaN). `NOT_CONVERGED`: did not arrive, arrived in the last quarter, or still
        travels. `TOO_SHORT`: fewer than 8 maps. `NOT_FINITE`.

    Raises:
        ValueError: a tolerance that is not positive; maps without an axis "recurrence".

    Misleads:
        A map may be constant while the state moves in directions that it does not see, and the other way round: a sink
        is constant from the start. A mean over heads that arrived is biased low when others are censored.

    Source:
        arXiv 2604.11791, figures 23 and 25 (distance to the last map, and between successive ones).

    Example:
        >>> import torch
        >>> from dynloop.attention import attention_stabilisation
        >>> away = 0.5 ** torch.arange(64, dtype=torch.float64)[:, None, None]
        >>> even = torch.ones(16, 16).tril() / torch.arange(1, 17)[:, None]
        >>> maps = (1 - away / 2) * torch.eye(16) + away / 2 * even
        >>> attention_stabilisation(maps, dims=["recurrence"]).values  # 0.5^10 < 1e-3
        array([10.])
    """
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-3)")
    from dynloop.kernels.arrival import arrivals, travels_ahead  # numba loads on first use

    rows: list[tuple[float, float, float, Outcome]] = []
    labels: dict[str, list] = {}
    for of, distances, norms, n_run, spacing in along_the_loop(attention, dims, causal):
        for name, value in of.items():
            labels.setdefault(name, []).append(value)
        finite = np.isfinite(norms[:n_run])
        m = n_run if finite.all() else int(finite.argmin())
        if m < n_run or m < _LEAST:
            rows.append((np.nan, np.nan, m, Outcome.NOT_FINITE if m < n_run else Outcome.TOO_SHORT))
            continue
        lengths = np.array([m])
        away = distances[None, :m, m - 1]
        radius = max(tolerance * away[0, 0], _SPACINGS * spacing * norms[m - 1])
        time = int(arrivals(np.ascontiguousarray(away), lengths, np.array([radius]))[0])
        there = time <= m - 1 - m // 4 and \
            travels_ahead(np.ascontiguousarray(distances[None, :m, :m] ** 2), lengths)[0] <= radius
        rows.append((time if there else np.nan, radius, m, Outcome.FOUND if there else Outcome.NOT_CONVERGED))
    numbers = np.array([row[:3] for row in rows], dtype=np.float64).reshape(-1, 3)
    return Measurement("attention_stabilisation",
                       {"time": numbers[:, 0], "radius": numbers[:, 1], "n_recorded": numbers[:, 2]},
                       [row[3] for row in rows], units={"time": "recurrences", "n_recorded": "recurrences"},
                       settings={"tolerance": tolerance}, labels={name: np.array(of) for name, of in labels.items()})


def attention_lag(attention: Measurement, state: Measurement) -> Measurement:
    """By how many recurrences each head's attention settles after the state of its prompt does.

        lag = time of the head's attention - time of the state,   both indices counted from 0

    Args:
        attention: from `attention_stabilisation`.
        state: from `convergence_time`, of the loop state, with the label "prompt" (and "start"): of the prompt as a
            whole (`dynloop.recording.prompt_states`). Where it has a row a token, the last to arrive counts.

    Returns:
        A row a row of `attention`: `lag` in recurrences, above 0 where attention is later; `order`, "attention first",
        "together" or "state first"; `state_time` and `attention_time`. Its mean with an interval is
        `estimate(lag.select(layer=..., head=...), statistic="mean", resample="prompt")`, the share of an order
        `estimate(lag, statistic="share", variable="order", of="state first", resample="prompt")`. Outcomes other than
        `FOUND`: those of the attention, or of the first token of the state that has another.

    Raises:
        ValueError: other measurements; a prompt whose state was not measured, states of several layers, or times
            measured by other tolerances.

    Misleads:
        The map of recurrence t is computed from the state before it: in the first layer of the block a lag of 1 is what
        a map makes that follows the state at once. Times at one tolerance have another meaning for maps than for
        states: both are shares of the way from first to last. Pairs of which one did not arrive are left out.

    Source:
        The order in time that proposition 4.2 of arXiv 2604.11791 implies.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome
        >>> from dynloop.attention import attention_lag
        >>> heads = Measurement("attention_stabilisation", {"time": np.array([6.0, 9.0])}, [Outcome.FOUND] * 2,
        ...                     labels={"prompt": [0, 0], "head": [0, 1]}, settings={"tolerance": 1e-3})
        >>> state = Measurement("convergence_time", {"time": np.array([7.0, 8.0])}, [Outcome.FOUND] * 2,
        ...                     labels={"prompt": [0, 0], "token": [0, 1]}, settings={"tolerance": 1e-3})
        >>> attention_lag(heads, state).values
        array([-2.,  1.])
    """
    for what, measurement, name in (("attention", attention, "attention_stabilisation"),
                                    ("state", state, "convergence_time")):
        if not isinstance(measurement, Measurement) or measurement.name != name:
            came = measurement.name if isinstance(measurement, Measurement) else type(measurement).__name__
            raise ValueError(f"{what} must be the measurement of {name}; got {came}.")
        if "prompt" not in measurement.labels:
            raise ValueError(f"{what} needs the label prompt; it has {', '.join(measurement.labels) or 'none'}.")
    own, other = attention.settings["tolerance"], state.settings["tolerance"]
    if own != other or state.settings.get("relative_to", "start") != "start":
        raise ValueError(f"both times must be measured by one tolerance relative to the start; got {own} and {other} "
                         f"relative to the {state.settings.get('relative_to', 'start')}. Measure again.")
    if len(np.unique(state.labels.get("layer", [0]))) > 1:
        raise ValueError("the state has several layers: which of them does attention follow? Select one, such as the "
                         "last: state.select(layer=...).")
    keys = ["prompt", *(["start"] if "start" in state.labels and "start" in attention.labels else [])]
    slowest: dict[tuple, tuple[float, Outcome]] = {}
    for key, time, outcome in zip(_keys(state, keys), state["time"], state.outcomes, strict=True):
        now, was = slowest.get(key, (-np.inf, Outcome.FOUND))
        slowest[key] = (max(now, time) if outcome is Outcome.FOUND else now, outcome if was is Outcome.FOUND else was)
    if missing := [key for key in _keys(attention, keys) if key not in slowest]:
        raise ValueError(f"the state of {', '.join(keys)} {missing[0]} was not measured. Measure all prompts.")
    of = [slowest[key] for key in _keys(attention, keys)]
    outcomes = [one if one is not Outcome.FOUND else two for one, (_, two) in zip(attention.outcomes, of, strict=True)]
    found = np.array([o is Outcome.FOUND for o in outcomes], dtype=bool)
    state_time, attention_time = (np.where(found, x, np.nan) for x in (np.array([t for t, _ in of]), attention["time"]))
    lag = attention_time - state_time
    order = np.where(found, np.array(ORDERS)[np.sign(np.where(found, lag, 0)).astype(int) + 1], "")
    return Measurement("attention_lag", {"lag": lag, "order": order, "state_time": state_time,
                                         "attention_time": attention_time}, outcomes,
                       units=dict.fromkeys(("lag", "state_time", "attention_time"), "recurrences"),
                       settings={"tolerance": own}, labels=attention.labels, categories={"order": ORDERS})


def _keys(measurement: Measurement, names: Sequence[str]) -> list[tuple]:
    return list(zip(*(np.asarray(measurement.labels[name]).tolist() for name in names), strict=True))
