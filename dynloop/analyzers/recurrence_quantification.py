"""When does the orbit come back to where it has been, and does it then repeat what it did?"""

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

SCALES = ("rms", "absolute", "rate")
_DIRECT = 16  # up to this many dimensions a distance costs no more from the states than from a stored matrix
_SPACINGS = 2.0  # states this many spacings of their number format apart, relative to their norm, may be the same
_TIE = 1e-6  # relative; distances that are equal in exact arithmetic differ by less


@analyzer
def recurrence_quantification(trajectories: Trajectories, *, threshold: float = 0.1, scale: str = "rms",
                              theiler_window: int = 1, min_diagonal: int = 2, min_vertical: int = 2) -> Measurement:
    """Recurrences of an orbit, and the lines that they form in the recurrence plot R[i, j] = ||x[i] - x[j]|| < epsilon.

    A diagonal line says that a stretch of the orbit runs along an earlier one; a vertical line, that the orbit stays
    near an earlier state. With H(l) lines of length l, each as long as it can be:

    * recurrence_rate = share of the pairs (i, j) that are recurrent;
    * determinism = sum of l H(l) over diagonals of at least `min_diagonal`, over the same sum of all diagonals;
    * mean_diagonal = mean length of the diagonals of at least `min_diagonal`; longest_diagonal, of any length;
    * diagonal_entropy = -sum of p(l) ln p(l) over the same diagonals, p(l) their share of length l;
    * laminarity, trapping_time, longest_vertical: the first, mean and longest of verticals, with `min_vertical`.

    Pairs fewer than `theiler_window` steps apart are left out of the plot, and cut the verticals that would cross them;
    the main diagonal is no diagonal line. Where there is no recurrence, or no line, the value is 0.

    Up to 16 dimensions distances are taken from the states one by one, with memory for two rows of the plot; above,
    from the shared matrix of distances, 8 n_steps^2 bytes an orbit, which in float32 leaves pairs within about 1e-5 of
    the threshold on either side of it. Time grows with n_steps^2, for "rate" about tenfold.

    Args:
        trajectories: orbits.
        threshold: the distance below which two states are recurrent, in units of `scale`.
        scale: "rms": a share of the orbit's own root-mean-square distance between its states; "absolute": in state
            units; "rate": the recurrence rate to reach, by the smallest threshold that reaches it. With "rms" and
            "rate" the threshold is widened by a millionth, so that equal distances fall on the same side of it; a
            "rate" is exceeded where more distances are equal than it asks for.
        theiler_window: pairs fewer than this many steps apart do not count; 1 leaves out the main diagonal, 0 nothing.
        min_diagonal: length from which diagonals count as lines, in steps.
        min_vertical: the same for verticals.

    Returns:
        `recurrence_rate` (n_orbits,) and, each (n_orbits,), `determinism`, `laminarity`, `diagonal_entropy` (nats),
        `mean_diagonal`, `longest_diagonal`, `trapping_time`, `longest_vertical` (steps) and `threshold`, as used, in
        state units. Outcomes: `AT_PRECISION_FLOOR`: the threshold (given all the same) is not above two spacings of the
        number format, so that rounding decides what recurs: the orbit hardly moves. `TOO_SHORT`: no room for a line of
        the least length. `NOT_FINITE`.

    Misleads:
        Read every number beside the recurrence rate: with few recurrences the others are left to chance, and with many
        (threshold too large) everything looks deterministic. Smooth motion and slow drift make both diagonals and
        verticals out of states that are merely neighbours in time; a `theiler_window` of the time that the orbit needs
        to leave the neighbourhood removes these. An orbit that settles is recurrent because it has stopped. Noise in
        many dimensions has no recurrences at all, for all its distances are nearly equal.

    Source:
        Webber and Zbilut 1994; Marwan et al. 2007 (Physics Reports 438, section 3.5). With `scale="absolute"` and
        `theiler_window=0` the numbers are those of pyunicorn 1.0 in the Euclidean metric, which adds 1e-8 to its
        denominators and reads states in float32.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, recurrence_quantification
        >>> cycle = np.random.default_rng(0).normal(size=(3, 8))[np.arange(12) % 3]
        >>> m = recurrence_quantification(Trajectories(cycle[None]))
        >>> {name: round(float(m[name][0]), 3) for name in ("recurrence_rate", "determinism", "longest_diagonal")}
        {'recurrence_rate': 0.273, 'determinism': 1.0, 'longest_diagonal': 9.0}
    """
    check_number("threshold", threshold, lambda v: 0 < v < np.inf, "a positive number (the default is 0.1)")
    if not isinstance(scale, str) or scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}; got {scale!r}. Choose one of these.")
    if scale == "rate":
        check_number("threshold", threshold, lambda v: v < 1, "below 1 as a recurrence rate, for example 0.05")
    check_whole("theiler_window", theiler_window, 0, "a whole number of steps from 0 (the default is 1)")
    for name, value in (("min_diagonal", min_diagonal), ("min_vertical", min_vertical)):
        check_whole(name, value, 1, "a whole number of steps of at least 1 (the default is 2)")
    from dynloop.kernels.recurrence import (  # numba loads on first use
        line_lengths,
        line_statistics,
        mean_square,
        ranked_square,
    )

    n, lengths, diverged = trajectories.n_orbits, trajectories.lengths, trajectories.diverged
    apart = int(theiler_window)
    least_steps = max(apart, 1) + max(int(min_diagonal), int(min_vertical))
    spacing = _SPACINGS * max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    direct = trajectories.dim <= _DIRECT
    found = np.zeros((n, 9))
    outcomes = [Outcome.FOUND] * n
    for o, m in enumerate(lengths):
        if diverged[o] or m < least_steps:
            outcomes[o] = Outcome.NOT_FINITE if diverged[o] else Outcome.TOO_SHORT
            found[o] = np.nan
            continue
        if direct:
            states = trajectories.states[o, :m].T.to("cpu", torch.float64).contiguous().numpy()
            with np.errstate(over="ignore"):
                squared, norm = np.empty((0, 0)), np.sqrt((states**2).sum(0)).mean()
        else:
            states, squared = np.empty((0, m)), distances(trajectories).squared[o, :m, :m]
            norm = distances(trajectories).norms[o, :m].mean()
        resolved = spacing * norm
        if scale == "absolute":
            epsilon = float(threshold)
        elif scale == "rms":
            epsilon = (1 + _TIE) * threshold * np.sqrt(mean_square(states, squared))
        else:
            later = m - max(apart, 1)
            pairs, selves = later * (later + 1), 0 if apart else m  # each pair twice
            rank = max(-(-int(np.ceil(threshold * (pairs + selves) - selves)) // 2) - 1, 0)
            epsilon = (1 + _TIE) * max(np.sqrt(ranked_square(states, squared, max(apart, 1), rank)), resolved)
        found[o, -1] = epsilon
        if not np.isfinite(resolved + epsilon):  # squares leave the numbers where states do not
            outcomes[o], found[o] = Outcome.NOT_FINITE, np.nan
            continue
        if epsilon <= resolved:
            outcomes[o], found[o, :-1] = Outcome.AT_PRECISION_FLOOR, np.nan
            continue
        diagonal, vertical = np.zeros((2, m + 1), dtype=np.int64)
        line_lengths(states, squared, _square_that_reaches(epsilon), apart, diagonal, vertical)
        points, on_lines, lines, entropy, longest = line_statistics(diagonal, int(min_diagonal))
        all_points, on_verticals, verticals, _, longest_vertical = line_statistics(vertical, int(min_vertical))
        counted = (m - apart) * (m - apart + 1) if apart else m * m
        found[o, :-1] = (all_points / counted, on_lines / max(points, 1), on_verticals / max(all_points, 1), entropy,
                         on_lines / max(lines, 1), longest, on_verticals / max(verticals, 1), longest_vertical)
    names = ("recurrence_rate", "determinism", "laminarity", "diagonal_entropy", "mean_diagonal", "longest_diagonal",
             "trapping_time", "longest_vertical", "threshold")
    return Measurement(
        "recurrence_quantification", dict(zip(names, np.ascontiguousarray(found.T), strict=True)), outcomes,
        units={"diagonal_entropy": "nats", "mean_diagonal": "steps", "longest_diagonal": "steps",
               "trapping_time": "steps", "longest_vertical": "steps", "threshold": "state units"},
        settings={"threshold": threshold, "scale": scale, "theiler_window": theiler_window,
                  "min_diagonal": min_diagonal, "min_vertical": min_vertical}, labels=trajectories.labels)


def _square_that_reaches(epsilon: float) -> float:
    """The smallest number whose root is not below epsilon: for d < epsilon, squared distances lie below it."""
    square = epsilon * epsilon
    while np.sqrt(square) >= epsilon > 0:
        square = np.nextafter(square, -np.inf)
    while np.sqrt(square) < epsilon:
        square = np.nextafter(square, np.inf)
    return float(square)
