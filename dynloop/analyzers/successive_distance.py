"""How far does each recurrence move the state?"""

import numpy as np

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.trajectories import Trajectories


@analyzer
def successive_distance(trajectories: Trajectories, *, metric: str = "euclidean") -> Measurement:
    """Distance from each state to the next: delta[t] = ||x[t+1] - x[t]||.

    Args:
        trajectories: orbits of one layer or several; steps are recurrences, never layers.
        metric: "euclidean", "relative" (delta[t] / ||x[t+1]||) or "cosine" (1 - cos(x[t], x[t+1])).

    Returns:
        `distance` (n_orbits, n_steps - 1), in state units (a pure number for "relative" and "cosine"). An orbit that
        left the finite numbers is `NOT_FINITE`, and one of fewer than two steps `TOO_SHORT`; the distances before
        that are given all the same, NaN after. A state of 0 has no direction: with "cosine" such an orbit is
        `NOT_FOUND` and the distances concerned NaN.

    Misleads:
        A small step does not mean that a fixed point is near: a drift with a slowly turning direction takes small
        steps for ever, and at the precision floor of bfloat16 the relative step stalls near 5e-3 although the state
        has settled. Read it beside `contraction_rate`.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), figures 3 and 24.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, successive_distance
        >>> successive_distance(Trajectories(np.array([[[0.0], [1.0], [3.0]]]))).values
        array([[1., 2.]])
    """
    delta = distances(trajectories).successive(metric=metric)
    outcomes = [Outcome.NOT_FINITE if gone else Outcome.TOO_SHORT if n < 2 else
                Outcome.FOUND if np.isfinite(d[:n - 1]).all() else Outcome.NOT_FOUND
                for n, gone, d in zip(trajectories.lengths, trajectories.diverged, delta, strict=True)]
    return Measurement("successive_distance", {"distance": delta}, outcomes,
                       units={"distance": "state units" if metric == "euclidean" else ""},
                       settings={"metric": metric}, labels=trajectories.labels)
