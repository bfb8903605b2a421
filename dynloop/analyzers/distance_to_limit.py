"""How far is each state from where the orbit ended?"""

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.trajectories import Trajectories

_SPACINGS = 4.0  # a settled state still moves by this many spacings of its number format


@analyzer
def distance_to_limit(trajectories: Trajectories, *, metric: str = "euclidean",
                      tolerance: float = 1e-3) -> Measurement:
    """Distance of each state to the last one, the approximate fixed point: d[t] = ||x[t] - x[T-1]||.

    Args:
        trajectories: orbits, long enough that their last state may stand for the limit (128 recurrences in the
            source).
        metric: "euclidean", "relative" (d[t] / ||x[T-1]||) or "cosine" (1 - cos(x[t], x[T-1])).
        tolerance: an orbit is at rest when its last step, and the median of its distances from the last state over
            the last quarter, are at most this share of that state's norm, or four spacings of the number format, where
            that is more (the settings of the result hold the larger one).

    Returns:
        `distance` (n_orbits, n_steps), in state units (a pure number for "relative" and "cosine"); `last_step` and
        `late_distance` (n_orbits,), the two numbers that are held against the tolerance. `NOT_CONVERGED`: not at rest,
        so that the distance is one to an arbitrary state of a moving orbit; it is given all the same. `NOT_FINITE` and
        `TOO_SHORT` (fewer than two steps) give NaN.

    Misleads:
        The reference is the last iterate: d is forced to 0 there, and the last stretch of the curve falls whatever
        the orbit does. To have moved little for a quarter of the record is necessary for a fixed point, not
        sufficient: check by recording twice as many recurrences. For rates use `contraction_rate`, which needs no
        reference.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), figures 4 and 22; Geiping et al. 2025 (arXiv 2502.05171).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, distance_to_limit
        >>> distance_to_limit(Trajectories(np.array([[[4.0], [2.0], [1.0], [1.0]]]))).values
        array([[3., 1., 0., 0.]])
    """
    check_number("tolerance", tolerance, lambda v: 0 < v < np.inf, "a positive number (the default is 1e-3)")
    found = distances(trajectories)
    d, away = found.from_last(metric=metric), found.from_last(metric="relative")
    lengths, diverged = trajectories.lengths, trajectories.diverged
    last_step, late = np.full(len(d), np.nan), np.full(len(d), np.nan)
    enough = lengths >= 2
    usable = enough & ~diverged
    last_step[usable] = found.successive(metric="relative")[usable, lengths[usable] - 2]
    for length in np.unique(lengths[usable]):
        rows = usable & (lengths == length)
        late[rows] = np.median(away[rows, length - 1 - max(length // 4, 1):length - 1], axis=1)
    d[~usable] = np.nan
    tolerance = max(float(tolerance),
                    _SPACINGS * max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps))
    with np.errstate(invalid="ignore"):
        at_rest = np.maximum(last_step, late) <= tolerance
    outcomes = [Outcome.NOT_FINITE if gone else Outcome.TOO_SHORT if not long else
                Outcome.FOUND if rest else Outcome.NOT_CONVERGED
                for gone, long, rest in zip(diverged, enough, at_rest, strict=True)]
    return Measurement("distance_to_limit", {"distance": d, "last_step": last_step, "late_distance": late}, outcomes,
                       units={"distance": "state units" if metric == "euclidean" else ""},
                       settings={"metric": metric, "tolerance": tolerance}, labels=trajectories.labels)
