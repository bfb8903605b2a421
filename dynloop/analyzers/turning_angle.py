"""By how much does the orbit turn from one step to the next?"""

import numpy as np
import torch

from dynloop.analyzers.contraction_rate import contraction_rate
from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.trajectories import Trajectories

_UNRESOLVED = 2.0**-7  # steps whose squared difference is below this share of their squares are compared directly
_STRAIGHT = 1e-9  # a cosine this close to 1 or -1 is a straight line: no distance resolves its angle


@analyzer
def turning_angle(trajectories: Trajectories, *, floor_factor: float = 3.0) -> Measurement:
    """Cosine of, and angle between, each step and the one before, while the orbit converges and late.

    With D[k] = x[k+1] - x[k], and from distances alone:

        cos(D[k+1], D[k]) = (||x[k+2] - x[k]||^2 - ||D[k+1]||^2 - ||D[k]||^2) / (2 ||D[k+1]|| ||D[k]||)

    Where it is known what to expect: 1 a straight path, damped or not; cos(phi) a spiral that turns by phi a
    recurrence; 0 a random walk in many dimensions; -1/2 white noise about a point; -(1 - rho)/2 a contraction by rho
    that is kicked by noise (AR(1)), as rounding does at the precision floor; -1 period 2. A late cosine that has turned
    negative therefore tells "at the floor" from "still moving".

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        floor_factor: as in `contraction_rate`, which says where the floor begins.

    Returns:
        `cosine` (n_orbits,), mean over the steps before the floor (over all steps where no floor was reached); `angle`,
        the mean of their angles, in degrees; `late_cosine`, mean over the last quarter of the steps, whatever they are
        (NaN where they are all 0); `step_cosine` (n_orbits, n_steps - 2), the cosine between steps k and k+1, NaN where
        one of them is 0 and has no direction; `acceleration` (n_orbits, n_steps - 2), ||D[k+1] - D[k]||, in state
        units. Outcomes: `AT_PRECISION_FLOOR`: no two steps in a row before the floor, or none that is not 0.
        `TOO_SHORT`: fewer than three states. `NOT_FINITE`. What is known of the three other variables is given all the
        same.

    Misleads:
        A negative late cosine says "floor" only beside a higher `cosine`: a loop whose multipliers are spread over all
        phases (a random map) turns back while it converges, too (-rho / (1 + rho^2), near -1/2), and a cycle has a
        cosine of its own (period 3: -1/2, as noise; a long period: near 1). A mean over several modes, or over a
        transient and a tail, describes neither: look at `step_cosine`. In one dimension a cosine is 1 or -1, and white
        noise gives -1/3. Float32 cosines are good to 1e-3, and an angle below .003 degrees is given as 0.

    Source:
        Pappone et al. 2025 (arXiv 2509.23314): cosines of .5 to .65 in small looped models, and acceleration as a
        criterion to stop. A third party's audit of Huginn: .084 while converging, -.33 at the floor.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, turning_angle
        >>> phase = 2 * np.pi * np.arange(60) / 12
        >>> spiral = 1 + 0.8 ** np.arange(60)[:, None] * np.stack([np.cos(phase), np.sin(phase)], axis=1)
        >>> turning_angle(Trajectories(spiral[None]))["angle"].round(3)
        array([30.])
    """
    check_number("floor_factor", floor_factor, lambda v: 1 <= v < np.inf, "at least 1 (the default is 3)")
    from dynloop.kernels.turning import fill_turns, turns  # numba loads on first use

    lengths, diverged = trajectories.lengths, trajectories.diverged
    n = trajectories.n_orbits
    cosines, accelerations = (np.empty((n, max(trajectories.n_steps - 2, 0))) for _ in range(2))
    unresolved = turns(distances(trajectories).squared, lengths, _UNRESOLVED, cosines, accelerations)
    for row in np.flatnonzero(unresolved):
        fill_turns(trajectories.states[row].to("cpu", torch.float64).numpy(), cosines[row], accelerations[row])
    level = contraction_rate(trajectories, floor_factor=floor_factor)
    cosine, angle, late = (np.full(n, np.nan) for _ in range(3))
    outcomes = np.full(n, Outcome.FOUND, dtype=object)
    for o, m in enumerate((lengths - 1).tolist()):
        late[o] = _mean(cosines[o, max(m - max(m // 4, 2), 0):max(m - 1, 0)])
        if diverged[o]:
            outcomes[o] = Outcome.NOT_FINITE
        elif m < 2:
            outcomes[o] = Outcome.TOO_SHORT
        else:
            moving = m if np.isnan(level["floor"][o]) else int(level["regime_length"][o])
            own = cosines[o, :max(moving - 1, 0)]
            own = np.where(1 - np.abs(own) < _STRAIGHT, np.sign(own), own)
            cosine[o], angle[o] = _mean(own), _mean(np.degrees(np.arccos(own)))
            if np.isnan(cosine[o]):
                outcomes[o] = Outcome.AT_PRECISION_FLOOR
    return Measurement("turning_angle", {"cosine": cosine, "angle": angle, "late_cosine": late, "step_cosine": cosines,
                                         "acceleration": accelerations}, outcomes,
                       units={"angle": "degrees", "acceleration": "state units"},
                       settings={"floor_factor": floor_factor}, labels=trajectories.labels)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan
