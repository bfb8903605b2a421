"""How fast does the orbit contract, before rounding takes over?"""

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.trajectories import Trajectories

_FORMAT_FLOOR = 0.3  # rounding a state moves it by about this many spacings, relative to its norm
_AT_FLOOR = 8.0  # a floor of up to this many spacings is the number format's; above, the orbit itself moves
_STILL_MOVING = 3.0  # a floor of noise keeps the states within this many steps of the last one


@analyzer
def contraction_rate(trajectories: Trajectories, *, floor_factor: float = 3.0, min_points: int = 5) -> Measurement:
    """Factor by which a recurrence shrinks the step, fitted before the precision floor.

    rho = exp(slope of ln delta[t]), with delta[t] = ||x[t+1] - x[t]||:

    * floor = median of the last quarter of the steps, and at least 0.3 spacings of the number format times the norm
      of the last state (a floor of 0 means "frozen on the number grid", not super-contraction);
    * the regime ends with the last step above `floor_factor` floors;
    * rho comes from the least-squares line through ln delta[t] over the regime; steps of exactly 0 are left out.

    A last quarter that still falls, beyond six standard errors of its own line, is no floor: if it falls at least half
    as fast as the record before it, the whole record is the regime and the floor is reported as NaN (not reached);
    the line must then shrink the step by `floor_factor` in all.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        floor_factor: steps above this many floors belong to the regime.
        min_points: fewest points to fit.

    Returns:
        `rate` (n_orbits,), per recurrence; `floor` (n_orbits,), in state units; `relative_floor`, over the norm of the
        last state; `regime_length`, in steps. Floor and length are given wherever they could be measured. Outcomes:
        `AT_PRECISION_FLOOR`: fewer than `min_points` steps before the floor of the number format. `NOT_CONVERGED`: no
        regime, and the orbit still moves (drift, a lasting orbit), or its steps shrink, but too little or not
        geometrically.
        `NOT_FOUND`: the steps do not shrink (rho >= 1). `NOT_FINITE`, `TOO_SHORT`.

    Misleads:
        Step norms measure the slowest mode that is excited, and oscillate when it is a complex pair. In bfloat16 the
        regime is short and the rate biased low (a true .83 reads .77 to .80); a fit over the whole window, as is
        common, would read .987. The steps of an orbit that contracts onto a cycle are fitted before they level off:
        look at `relative_floor`, which then lies far above the format's spacing.

    Source:
        The floor: a third party's audit of Huginn (floor = median of the last quarter, factor 3), whose full-window
        fit gave .924 where the regime gave .841.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, contraction_rate
        >>> decay = 0.8 ** np.arange(60)[None, :, None] * np.ones((1, 1, 16))
        >>> rate = contraction_rate(Trajectories(1 + decay.astype("float32")))
        >>> round(float(rate.values[0]), 3)
        0.8
    """
    if not 1 <= floor_factor < np.inf:
        raise ValueError(f"floor_factor must be at least 1; got {floor_factor!r}. The default is 3.")
    if isinstance(min_points, bool) or not isinstance(min_points, int | np.integer) or min_points < 3:
        raise ValueError(f"min_points must be a whole number of at least 3 (a line needs three points to be judged); "
                         f"got {min_points!r}. The default is 5.")
    from dynloop.kernels.contraction import FITTED, STILL_FALLING, contraction_regime  # numba loads on first use

    found = distances(trajectories)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    steps, away = found.successive(), found.from_last()
    n_steps = np.where(diverged, 0, np.maximum(lengths - 1, 0))
    end = np.take_along_axis(found.norms, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    least = np.nan_to_num(_FORMAT_FLOOR * spacing * end)
    slopes, floors, regime, state = contraction_regime(steps, n_steps, least, float(floor_factor), int(min_points))
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = floors / end
    rates = np.exp(slopes)
    outcomes = []
    for o, m in enumerate(n_steps):
        if diverged[o]:
            outcomes.append(Outcome.NOT_FINITE)
        elif m < min_points:
            outcomes.append(Outcome.TOO_SHORT)
        elif state[o] == STILL_FALLING or (
                relative[o] > _AT_FLOOR * spacing
                and (state[o] != FITTED or np.median(away[o, m - m // 4:m]) > _STILL_MOVING * floors[o])):
            outcomes.append(Outcome.NOT_CONVERGED)
        elif state[o] != FITTED:
            outcomes.append(Outcome.AT_PRECISION_FLOOR)
        elif rates[o] >= 1:
            outcomes.append(Outcome.NOT_FOUND)
        else:
            outcomes.append(Outcome.FOUND)
    rates[[outcome is not Outcome.FOUND for outcome in outcomes]] = np.nan
    return Measurement(
        "contraction_rate",
        {"rate": rates, "floor": floors, "relative_floor": relative, "regime_length": regime.astype(np.float64)},
        outcomes, units={"rate": "per recurrence", "floor": "state units", "regime_length": "steps"},
        settings={"floor_factor": floor_factor, "min_points": min_points}, labels=trajectories.labels)
