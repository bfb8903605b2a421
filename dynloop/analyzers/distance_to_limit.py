"""How far is each state from where the orbit ended?"""

import numpy as np

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.trajectories import Trajectories


@analyzer
def distance_to_limit(trajectories: Trajectories, *, metric: str = "euclidean",
                      tolerance: float = 1e-3) -> Measurement:
    """Distance of each state to the last one, the approximate fixed point: d[t] = ||x[t] - x[T-1]||.

    Args:
        trajectories: orbits, long enough that their last state may stand for the limit (128 recurrences in the
            source).
        metric: "euclidean", "relative" (d[t] / ||x[T-1]||) or "cosine" (1 - cos(x[t], x[T-1])).
        tolerance: the largest last step, relative to the last state's norm, at which that state counts as a limit.

    Returns:
        `distance` (n_orbits, n_steps), in state units (a pure number for "relative" and "cosine"), and `last_step`
        (n_orbits,), relative. `NOT_CONVERGED`: the last step is larger than the tolerance, so that the distance is one
        to an arbitrary state of a moving orbit; it is given all the same. `NOT_FINITE` and `TOO_SHORT` (fewer than two
        steps) give NaN.

    Misleads:
        The reference is the last iterate: d is forced to 0 there, and the last stretch of the curve falls whatever
        the orbit does. A small last step is necessary for a fixed point, not sufficient: check by recording twice as
        many recurrences. For rates use `contraction_rate`, which needs no reference.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), figures 4 and 22; Geiping et al. 2025 (arXiv 2502.05171).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, distance_to_limit
        >>> distance_to_limit(Trajectories(np.array([[[4.0], [2.0], [1.0], [1.0]]]))).values
        array([[3., 1., 0., 0.]])
    """
    if not 0 < tolerance < np.inf:
        raise ValueError(f"tolerance must be a positive number; got {tolerance!r}. The default is 1e-3.")
    found = distances(trajectories)
    d = found.from_last(metric=metric)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    last_step = np.full(len(d), np.nan)
    enough = lengths >= 2
    last_step[enough] = found.successive(metric="relative")[enough, lengths[enough] - 2]
    unusable = diverged | ~enough
    d[unusable], last_step[unusable] = np.nan, np.nan
    outcomes = [Outcome.NOT_FINITE if gone else Outcome.TOO_SHORT if not long else
                Outcome.FOUND if step <= tolerance else Outcome.NOT_CONVERGED
                for gone, long, step in zip(diverged, enough, last_step, strict=True)]
    return Measurement("distance_to_limit", {"distance": d, "last_step": last_step}, outcomes,
                       units={"distance": "state units" if metric == "euclidean" else ""},
                       settings={"metric": metric, "tolerance": tolerance}, labels=trajectories.labels)
