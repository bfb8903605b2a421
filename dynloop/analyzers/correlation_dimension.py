"""How many dimensions does the set have that the orbit keeps visiting?"""

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_whole
from dynloop.trajectories import Trajectories

_LEAST_STEPS = 40
_DECORRELATED = 0.7  # of the mean squared distance
_RECURRENT = 12  # decorrelation times that the orbit must last
_SPREAD = 2.0  # factor between the mean squared distances in the two halves of an orbit that has settled
_SPACINGS = 8.0  # distances of fewer spacings of the number format are rounded
_LEAST_PAIRS = 10  # closer than the smallest scale
_LEAST_SHARE = 0.25  # of the states, the same
_SATURATION = 0.25  # share of the pairs beyond which the size of the set enters
_OCTAVES = 2  # least range of scales: a factor of 4
_TOLERANCE = 0.05  # relative difference that the slopes of the two halves may always have
_LOOSEST = 0.35  # the most that chance may excuse
_UNSEEN = 0.1  # relative error that a bend too slight to be seen may leave
_LEAST_DIMENSION = 0.3  # steps of the correlation sum of a cycle pass for less
_WIDEST = 0.5  # relative half width of an interval above which there is no answer


@analyzer
def correlation_dimension(trajectories: Trajectories, *, theiler_window: int | None = None) -> Measurement:
    """Correlation dimension: the power of the distance with which the number of closer pairs grows.

    C(r) = share of the pairs x[i], x[j], |i - j| > w, with ||x[i] - x[j]|| <= r; the dimension is d ln C / d ln r:

    * the first quarter of the steps is left out as a transient;
    * w, the Theiler window, is by default the first lag at which the mean squared distance reaches .7 of that of all
      pairs. An orbit whose window exceeds a twelfth of the rest does not return, and one whose states spread twice as
      far in one half of the rest as in the other has not settled;
    * C is counted on a grid of eight distances to a factor of 2. Scales lie above eight spacings of the number format,
      with at least ten pairs and a pair for four states closer than the smallest, and a quarter of all pairs closer
      than the largest;
    * the scaling region is the longest range of scales, of a factor of 4 at least whatever the length of the record,
      whose two halves have slopes that agree within 5 % (or two standard errors, and 35 %). No plateau may lie below;
    * the slope over it has weights sqrt C: 2 [sqrt C] / integral of sqrt C d ln r;
    * the interval combines the standard error (jackknife over eighths of the record, t with 7 degrees of freedom), the
      difference of the two halves, and 10 % for a bend that cannot be seen.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        theiler_window: pairs up to this many steps apart do not count; None to find it.

    Returns:
        `dimension` (n_orbits,); `low`, `high`, its 95 % interval; `smallest_scale`, `largest_scale`, the ends of the
        scaling region, which grow with the states; `theiler_window`, as used. Outcomes: `NOT_FOUND`: no scaling region
        (noise in many dimensions, whose distances are nearly equal; an exact cycle, of dimension 0, whose distances
        are finitely many), a dimension below .3, which steps of C pass for, or an interval wider than half the
        dimension to either side (records too short, too).
        `NOT_CONVERGED`: contraction, drift, walks. `AT_PRECISION_FLOOR`: at rest. `TOO_SHORT`: fewer than 40 steps,
        or than four windows. `NOT_FINITE`.

    Misleads:
        A low dimension does not show chaos or even dynamics: noise in two dimensions has dimension 2, and a noisy cycle
        that of its noise. A range of a factor of 4 with enough pairs limits what can be found: about 1.7 at 64 steps,
        2.3 at 128, 4 at 1000; more is refused or reads low. Edges of the set lower the slope: uniform noise in
        two dimensions reads 1.81 at 128 steps and 1.88 at 1000, in three 2.74 at 1000. Regular rotations fill their
        torus more evenly than chance, which raises it: 1.17 and 1.06 for 1, 2.30 (1000 steps) for 2. The logistic map
        at r = 4, of dimension 1 with logarithmic corrections, reads .82 to .88, outside most of its intervals from 256
        steps on; the Henon map 1.22, the Lorenz system 1.93 (2.00 at 2000 steps). One component of a state may have
        a lower dimension than the state. A walk in one dimension can pass for a line (of 1300 walks 6 %; in two
        dimensions 3 %, in three .1 %), and a slow spiral for a circle. Memory: 8 n_steps^2 bytes an orbit.

    Source:
        Grassberger & Procaccia 1983 (Physica D 9, 189); Theiler 1986 (Phys. Rev. A 34, 2427), the window. They leave
        the scaling region to the reader. With weights C in place of sqrt C the slope would be the estimator of Takens
        1985, between two scales (Theiler 1988, Phys. Lett. A 133, 195), which hears most of the largest scale.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, correlation_dimension
        >>> angle = np.pi * (5**0.5 - 1) * np.arange(500)  # turns by the golden ratio
        >>> m = correlation_dimension(Trajectories(np.stack([np.cos(angle), np.sin(angle)], axis=1)[None]))
        >>> round(float(m.values[0]), 1), bool(m["low"][0] < 1 < m["high"][0])
        (1.1, True)
    """
    if theiler_window is not None:
        check_whole("theiler_window", theiler_window, 1, "a positive whole number of steps, or None to find it")
    found = distances(trajectories)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    numbers = np.full((trajectories.n_orbits, 5), np.nan)
    outcomes = np.full(trajectories.n_orbits, Outcome.TOO_SHORT, dtype=object)
    outcomes[diverged] = Outcome.NOT_FINITE
    for o in np.flatnonzero(~diverged & (lengths >= _LEAST_STEPS)):
        with np.errstate(over="ignore"):
            floor = (_SPACINGS * spacing) ** 2 * np.mean(found.norms[o, :lengths[o]] ** 2)
        outcomes[o], numbers[o] = _dimension(found.squared[o], int(lengths[o]), float(floor), theiler_window)
    dimension, half = numbers[:, 0], numbers[:, 1]
    return Measurement(
        "correlation_dimension",
        {"dimension": dimension, "low": np.maximum(dimension - half, 0.0), "high": dimension + half,
         "smallest_scale": numbers[:, 2], "largest_scale": numbers[:, 3], "theiler_window": numbers[:, 4]}, outcomes,
        units={"smallest_scale": "state units", "largest_scale": "state units", "theiler_window": "steps"},
        settings={"theiler_window": theiler_window}, labels=trajectories.labels)


def _dimension(squared: np.ndarray, length: int, floor: float, theiler_window: int | None) \
        -> tuple[Outcome, list[float]]:
    """Outcome, and dimension, half width of its interval, the two scales, Theiler window."""
    from dynloop.kernels.correlation_sum import (  # numba loads on first use
        BINS,
        OCTAVE,
        correlation_sum,
        decorrelation,
        mean_and_largest,
        power_law,
    )

    nothing = [np.nan] * 5
    start, middle = length // 4, (length // 4 + length) // 2
    early, one = mean_and_largest(squared, start, middle, start, middle)
    late, two = mean_and_largest(squared, middle, length, middle, length)
    across, three = mean_and_largest(squared, start, middle, middle, length)
    largest = max(one, two, three)
    if not np.isfinite(largest + across + floor):  # squares leave the numbers where states do not
        return Outcome.NOT_FINITE, nothing
    if largest <= 4 * floor:
        return Outcome.AT_PRECISION_FLOOR, nothing
    if not 1 / _SPREAD < early / max(late, 1e-300) < _SPREAD:
        return Outcome.NOT_CONVERGED, nothing
    typical = (early + late) / 4 + across / 2
    lag = decorrelation(squared, start, length, _DECORRELATED * typical, (length - start) // _RECURRENT)
    if lag == 0:
        return Outcome.NOT_CONVERGED, nothing
    window = theiler_window or lag
    if length - start <= 4 * window:
        return Outcome.TOO_SHORT, nothing
    sums = correlation_sum(squared, start, length, int(window), largest)
    scales = np.sqrt(largest) * 2.0 ** ((np.arange(BINS + 1) - BINS) / OCTAVE)
    above = np.flatnonzero((sums[0] >= max(_LEAST_PAIRS, _LEAST_SHARE * (length - start))) & (scales >= np.sqrt(floor)))
    below = np.flatnonzero(sums[0] <= _SATURATION * sums[0, -1])
    if len(above) == 0 or len(below) == 0:
        return Outcome.NOT_FOUND, nothing
    bottom = min(int(np.searchsorted(scales, np.sqrt(floor))), BINS)
    slope, half, low, high = power_law(sums, bottom, above[0], below[-1], _OCTAVES * OCTAVE, _TOLERANCE, _LOOSEST,
                                       _UNSEEN)
    if not half <= _WIDEST * slope or slope < _LEAST_DIMENSION:
        return Outcome.NOT_FOUND, nothing
    return Outcome.FOUND, [slope, half, scales[int(low)], scales[int(high)], window]
