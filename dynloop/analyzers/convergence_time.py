"""After how many recurrences has the orbit arrived?"""

import numpy as np
import torch

from dynloop.analyzers.contraction_rate import contraction_rate
from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.trajectories import Trajectories

RELATIVE_TO = ("limit", "start")
_SPACINGS = 4.0  # a settled state still moves by this many spacings of its number format
_LEAST = 8  # states: the last quarter, which must be rest, then holds two


@analyzer
def convergence_time(trajectories: Trajectories, *, tolerance: float = 1e-3, relative_to: str = "start",
                     floor_factor: float = 3.0) -> Measurement:
    """First recurrence from which the orbit stays near its limit to the end of the record.

        time = min { t : ||x[s] - x[T-1]|| <= radius for all s >= t },   radius = tolerance ||x[0] - x[T-1]||

    The last state stands for the limit, so the end of every record looks like an arrival. It counts as one if

    * the orbit has been within the radius for at least the last quarter of the record, and
    * it would stay: what moves on in one direction through the last three eighths of the record, and goes on for as
      long again (slowing down from eighth to eighth as it did), would travel at most one radius.

    Args:
        trajectories: orbits, long enough that their last state may stand for the limit.
        tolerance: radius, as a share of the distance that `relative_to` names.
        relative_to: "start", the distance of the first state from the last, which knows no origin; or "limit", the
            norm of the last state, as in `distance_to_limit`. The radius is never below four spacings of the number
            format at the last state.
        floor_factor: as in `contraction_rate`, which says where the floor begins.

    Returns:
        `time` (n_orbits,), in recurrences: the index of the first state that has arrived, 0 where the first has.
        `floor_time`, the index of the first state from which the steps are at the floor, NaN where none was reached;
        `radius`, in state units; `n_recorded`, finite states: an orbit that did not converge is censored there, and
        its time is NaN. Outcomes: `NOT_CONVERGED`: did not arrive, arrived in the last quarter, or still travels
        (`floor_time` is given all the same). `TOO_SHORT`: fewer than 8 states. `NOT_FINITE`.

    Misleads:
        A mean over the orbits that converged is biased low when others are censored: report the share that did not.
        An orbit that decays to 0 never comes near its last state by the measure "limit", and one that starts at its
        limit does so at its floor only by the measure "start". What passes for
        rest: a drift that covers less than the radius in a whole record; any drift in fewer than 16 states; half or
        more of the random walks that wander by one radius in a record (by two: a third in one dimension, 1 % in 256;
        by three: a tenth, none). What is called moving: in bfloat16 the slow modes of a settled loop wander at the
        floor (toy blocks of 32 features: up to 2 % of the orbits at a rate of .8, 21 % at .93; none of 512 features).
        The time grows with the logarithm of the tolerance and depends on where the orbit starts: it is no property of
        the map, as `contraction_rate` is.

    Source:
        Tolerance: the exit criteria of Geiping et al. 2025 (arXiv 2502.05171) look at one step at a time, and end a
        slow drift early; here the whole rest of the record counts. Floor: as in `contraction_rate`.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, convergence_time
        >>> orbits = Trajectories(1 + 0.5 ** np.arange(64)[None, :, None] * np.ones((1, 1, 16)))
        >>> convergence_time(orbits).values  # 0.5^10 < 1e-3
        array([10.])
    """
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-3)")
    if relative_to not in RELATIVE_TO:
        raise ValueError(f"relative_to must be one of {', '.join(RELATIVE_TO)}; got {relative_to!r}. "
                         "Choose one of these.")
    check_number("floor_factor", floor_factor, lambda v: 1 <= v < np.inf, "at least 1 (the default is 3)")
    from dynloop.kernels.arrival import arrivals, travels_ahead  # numba loads on first use

    found = distances(trajectories)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    away = found.from_last()
    end = np.take_along_axis(found.norms, np.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    radius = np.maximum(float(tolerance) * (end if relative_to == "limit" else away[:, 0]), _SPACINGS * spacing * end)
    time = arrivals(away, lengths, radius).astype(np.float64)
    arrived = (lengths >= _LEAST) & ~diverged & (time <= lengths - 1 - lengths // 4)
    if arrived.any():
        arrived &= travels_ahead(found.squared, lengths) <= radius
    level = contraction_rate(trajectories, floor_factor=floor_factor)
    floor_time = np.where(np.isnan(level["floor"]), np.nan, level["regime_length"])
    outcomes = [Outcome.NOT_FINITE if gone else Outcome.TOO_SHORT if m < _LEAST else
                Outcome.FOUND if there else Outcome.NOT_CONVERGED
                for gone, m, there in zip(diverged, lengths, arrived, strict=True)]
    time[~arrived] = np.nan
    unusable = diverged | (lengths < _LEAST)
    radius[unusable], floor_time[unusable] = np.nan, np.nan
    return Measurement("convergence_time", {"time": time, "floor_time": floor_time, "radius": radius,
                                            "n_recorded": lengths.astype(np.float64)}, outcomes,
                       units={"time": "recurrences", "floor_time": "recurrences", "radius": "state units",
                              "n_recorded": "recurrences"},
                       settings={"tolerance": tolerance, "relative_to": relative_to, "floor_factor": floor_factor},
                       labels=trajectories.labels)
