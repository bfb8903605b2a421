"""How fast does the orbit contract, before rounding takes over?"""

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

_FORMAT_FLOOR = 0.3  # rounding a state moves it by about this many spacings, relative to its norm
_AT_FLOOR = 8.0  # a floor of up to this many spacings is the number format's; above, the orbit itself moves
_STILL_MOVING = 8.0  # a floor of noise keeps the states within this many steps of the last one


@analyzer
def contraction_rate(trajectories: Trajectories, *, floor_factor: float = 3.0, min_points: int = 5) -> Measurement:
    """Factor by which a recurrence shrinks the step, fitted before the precision floor.

    rho = exp(slope of ln delta[t]), with delta[t] = ||x[t+1] - x[t]||:

    * floor = median of the last quarter of the steps, and at least 0.3 spacings of the number format times the norm
      of the last state (a floor of 0 means "frozen on the number grid", not super-contraction);
    * the regime ends with the last step above `floor_factor` floors before the steps come to lie mostly (in the median
      of eight) below: a late outlier does not prolong it;
    * rho comes from the least-squares line through ln delta[t] over the regime; steps of exactly 0 are left out.

    A last quarter that still falls, beyond six standard errors of its own line, is no floor. If it and the last eighth
    fall at least half as fast as the record before, the whole record is the regime and the floor is NaN (not reached);
    where only the last eighth has levelled, the floor was met late, and is the median of that eighth (of the last
    sixteenth, where the quarter as a whole falls as before). The line must shrink the step by `floor_factor` in all,
    and fall by more than four standard errors of its slope.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        floor_factor: steps above this many floors belong to the regime.
        min_points: fewest points to fit.

    Returns:
        `rate` (n_orbits,), per recurrence; `floor` (n_orbits,), in state units; `relative_floor`, over the norm of the
        last state; `regime_length`, in steps. Where the steps level off, floor and length are given without a rate,
        too. Outcomes:
        `AT_PRECISION_FLOOR`: fewer than `min_points` steps before the floor of the number format. `NOT_CONVERGED`: no
        regime, and the orbit still moves (drift, a lasting orbit), or its steps shrink, but too little or not
        geometrically.
        `NOT_FOUND`: the steps do not shrink beyond doubt. `NOT_FINITE`, `TOO_SHORT`.

    Misleads:
        Step norms measure the slowest mode that is excited, and oscillate when it is a complex pair. In bfloat16 the
        regime is short and the rate biased low (a true .83 reads .77 to .80); a fit over the whole window, as is
        common, would read .987. The steps of an orbit that contracts onto a cycle are fitted before they level off:
        look at `relative_floor`, which then lies far above the format's spacing.

    Source:
        The floor: a third party's audit of Huginn (floor = median of the last quarter, factor 3), whose full-window
        fit gave .924 where the regime gave .841. There the regime ends with the last step above 3 floors, wherever it
        lies; one outlier at the floor then makes the whole record the regime (.97 for a true .2 on a shipped model).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, contraction_rate
        >>> decay = 0.8 ** np.arange(60)[None, :, None] * np.ones((1, 1, 16))
        >>> rate = contraction_rate(Trajectories(1 + decay.astype("float32")))
        >>> round(float(rate.values[0]), 3)
        0.8
    """
    check_number("floor_factor", floor_factor, lambda v: 1 <= v < np.inf, "at least 1 (the default is 3)")
    check_whole("min_points", min_points, 3, "a whole number of at least 3: a line needs three points to be judged "
                                             "(the default is 5)")
    from dynloop.kernels.contraction import (  # numba loads on first use
        NOT_SHRINKING,
        STILL_FALLING,
        TOO_FEW,
        contraction_regime,
    )

    found = distances(trajectories)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    steps, away = found.successive(), found.from_last()
    n_steps = np.where(diverged, 0, np.maximum(lengths - 1, 0))
    end = np.take_along_axis(found.norms, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    least = np.nan_to_num(_FORMAT_FLOOR * spacing * end)
    slopes, floors, regime, state = contraction_regime(steps, n_steps, least, float(floor_factor), int(min_points))
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = np.where(floors == 0, 0.0, floors / end)  # frozen in 0
    rates = np.exp(slopes)
    outcomes = []
    for o, m in enumerate(n_steps):
        if diverged[o]:
            outcomes.append(Outcome.NOT_FINITE)
        elif m < min_points:
            outcomes.append(Outcome.TOO_SHORT)
        elif state[o] == STILL_FALLING or (relative[o] > _AT_FLOOR * spacing and (
                state[o] == TOO_FEW or np.median(away[o, m - m // 4:m]) > _STILL_MOVING * floors[o])):
            outcomes.append(Outcome.NOT_CONVERGED)
        elif state[o] == NOT_SHRINKING:
            outcomes.append(Outcome.NOT_FOUND)
        elif state[o] == TOO_FEW:
            outcomes.append(Outcome.AT_PRECISION_FLOOR)
        else:
            outcomes.append(Outcome.FOUND)
    moving = np.array([outcome is Outcome.NOT_CONVERGED for outcome in outcomes])
    floors[moving], relative[moving] = np.nan, np.nan  # the typical step of a moving orbit is no floor
    rates[[outcome is not Outcome.FOUND for outcome in outcomes]] = np.nan
    return Measurement(
        "contraction_rate",
        {"rate": rates, "floor": floors, "relative_floor": relative, "regime_length": regime.astype(np.float64)},
        outcomes, units={"rate": "per recurrence", "floor": "state units", "regime_length": "steps"},
        settings={"floor_factor": floor_factor, "min_points": min_points}, labels=trajectories.labels)
