"""Do neighbouring states of the recording part exponentially, and how fast?"""

from typing import Any

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_whole
from dynloop.trajectories import Trajectories

METHODS = ("rosenstein", "kantz")
_BALL = 5  # most neighbours in a neighbourhood of Kantz
_LEAST_STEPS = 100  # below, even the logistic map leaves too few references
_LEAST_TURNS = 60.0  # of a flow; with fewer, exponents of the Lorenz system came out up to twice too large
_LEAST_GROWTH = 1.2  # e-folds: noise grows as a power of time, whose slope falls by half or more over as much
_TOLERANCE = 0.1  # relative difference that the halves of a plateau may always have
_SLACK = 0.25  # e-folds by which alignment at its start and saturation at its end may bend a plateau unseen
_SMOOTH = 0.9  # cosine between successive steps from which the states pass for points of a smooth curve
_ON_A_LINE = -2.3  # segments a tenth as far as states: the orbit runs on a line, and its segments pass every state
_SCOUTS = 128  # references that look how long the curve must be
_POINTS = 40  # of the curve, about
_CLOSE = 2.0  # e-folds below saturation: neighbours farther apart than that are none
_WIDEST = 0.5  # relative half width of an interval above which there is no answer


@analyzer
def lyapunov_from_data(trajectories: Trajectories, *, method: str = "rosenstein", delays: int = 0,
                       theiler_window: int | None = None) -> Measurement:
    """Largest Lyapunov exponent from the recording: the rate at which neighbouring states part.

    E(k) = mean over i of ln ||x[i+k] - x[j(i)+k]||, j(i) the state nearest to x[i] among those that are not its
    neighbours in time; the exponent is the slope of E over the plateau of its slope:

    * the mean is that of the middle half (over the quarters, some pairs have saturated already);
    * where the orbit moves smoothly (a flow), distances are those to the segments between states, which the offset
      along the orbit does not enter, and the first half turn is left out, in which pairs align;
    * E levels off where it gains less than .2 over half as many steps again; the plateau ends .7 below that level, and
      E is taken as ln d with 1 / d^2 reduced by that of the level;
    * observational noise: a constant may be subtracted from d^2, up to half of it at the start of the plateau, where
      that narrows the interval by a third;
    * the plateau is the window with the narrowest interval among those over which E grows by 1.2 at least, and whose
      two halves agree within 10 % (or two standard errors, and 35 %);
    * the interval combines the standard error (pairs that share an eighth of the record are dependent; t with 7
      degrees of freedom), the difference of the two halves, what subtracted noise changes, and .25 in E at one end for
      a bend that cannot be seen.

    Noise parts at once, or as a power of time, and has no plateau.

    Args:
        trajectories: orbits after their transient; the whole state is recorded (see `delays`), and `resolution` is
            that of the dtype in which the model computed.
        method: "rosenstein" (the nearest neighbour) or "kantz" (the mean distance to all neighbours, five at most,
            within one radius, the median distance of nearest neighbours; states without any are left out).
        delays: number of earlier states to stack on each, where only a part of the state was recorded: at least one
            less than twice its dimension.
        theiler_window: neighbours are more than this many steps apart in time. By default the lag at which distances
            have grown to a typical one, and one turn of a flow.

    Returns:
        `exponent` (n_orbits,), nats per step; `low`, `high`, its 95 % interval; `plateau_start`, `plateau_stop`, in
        steps after the meeting; `growth` over it, in e-folds; `theiler_window`, in steps; `saturation`, the distance at
        which E levels off; `divergence` (n_orbits, n_steps // 8 + 1), E itself (NaN where it was not needed), given
        without an exponent, too. An exponent that is found is positive: `NOT_FOUND` is said of rest, cycles, tori,
        drifts, walks and noise. `TOO_SHORT`: fewer than 100 steps or 60 turns, no close neighbours (also of noise in
        many dimensions), or an interval wider than half the exponent to either side. `NOT_FINITE`.

    Misleads:
        It needs returns: chaos of more than about three dimensions is refused at thousands of steps. Part of a state
        misleads: the x of the Henon map alone reads .31 for .42 (`delays=1`: .42). A finite record has an exponent of
        its own: over 128 steps of the Henon map it differs from the limit by 8 %. Without settings the standard
        deviation over orbits is, at 1000 and 3000 steps, 1.2 and .5 % (logistic map), 3 and 1.3 % (Henon map), 8 and
        5 % (Lorenz system, steps of .05 and .1); with 1 % of noise, also in 256 dimensions, maps read 2 to 4 % low.
        The intervals hold the limit in more than 95 % of these orbits. The Rossler system reads 15 to 25 % low, outside
        the interval in a third of the orbits; very steep maps (Gauss, 2.4 nats a step) are refused or read 10 % low.
        The pairs of "kantz" start farther apart: on the Lorenz system it reads 4 to 11 % high. An orbit trapped in an
        island of regular motion has the exponent of the island. Memory: 8 n_steps^2 bytes an orbit (72 MB at 3000
        steps), as much again with `delays`.

    Source:
        Rosenstein, Collins & De Luca 1993 (Physica D 65, 117); Kantz 1994 (Phys. Lett. A 185, 77).
        They leave the window in time and the linear region to the reader; nolds' defaults give .0002 for the ln 2 of
        the logistic map. Errors of pairs: Aronow, Samii & Assenova 2015 (Political Analysis 23, 564).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, lyapunov_from_data
        >>> x = [0.3]
        >>> for _ in range(999):
        ...     x.append(4 * x[-1] * (1 - x[-1]))
        >>> m = lyapunov_from_data(Trajectories(np.array(x)[None, :, None]))
        >>> round(float(m.values[0]), 1), bool(m["low"][0] < np.log(2) < m["high"][0])
        (0.7, True)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}. Choose one of these.")
    check_whole("delays", delays, 0, "a whole number of earlier states to stack, 0 where the whole state is recorded "
                                     "(the default)")
    if theiler_window is not None:
        check_whole("theiler_window", theiler_window, 1, "a positive whole number of steps, or None to find it")
    from dynloop.kernels.divergence import delayed  # numba loads on first use

    found = distances(trajectories)
    n, n_steps = found.norms.shape
    lengths, diverged = trajectories.lengths, trajectories.diverged
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    numbers, curves = np.full((n, 7), np.nan), np.full((n, n_steps // 8 + 1), np.nan)
    outcomes = np.full(n, Outcome.TOO_SHORT, dtype=object)
    outcomes[diverged] = Outcome.NOT_FINITE
    for o in np.flatnonzero(~diverged & (lengths >= _LEAST_STEPS + delays)):
        with np.errstate(over="ignore"):
            floor = max(float(np.mean(found.norms[o, :lengths[o]] ** 2)) * spacing**2 * (delays + 1), 1e-300)
        squared, length = found.squared[o], int(lengths[o])
        if delays > 0:
            squared, length = delayed(squared, length, int(delays)), length - int(delays)
        outcomes[o], own = _parting(squared, length, floor, _BALL if method == "kantz" else 1, theiler_window,
                                    curves[o])
        if outcomes[o] is Outcome.FOUND:
            numbers[o] = own
    exponent, half = numbers[:, 0], numbers[:, 1]
    return Measurement(
        "lyapunov_from_data",
        {"exponent": exponent, "low": exponent - half, "high": exponent + half, "plateau_start": numbers[:, 2],
         "plateau_stop": numbers[:, 3], "growth": numbers[:, 4], "theiler_window": numbers[:, 5],
         "saturation": np.exp(numbers[:, 6]), "divergence": curves}, outcomes,
        units={"exponent": "nats per step", "low": "nats per step", "high": "nats per step", "plateau_start": "steps",
               "plateau_stop": "steps", "growth": "e-folds", "theiler_window": "steps", "saturation": "state units",
               "divergence": "ln of state units"},
        settings={"method": method, "delays": delays, "theiler_window": theiler_window}, labels=trajectories.labels)


def _parting(squared: np.ndarray, length: int, floor: float, most: int, theiler_window: int | None,
             everywhere: np.ndarray) -> tuple[Outcome, Any]:
    """Outcome, and slope, half width, first and last step of the plateau, growth, Theiler window, log saturation."""
    from dynloop.kernels.divergence import (
        follow,
        lag_profile,
        middle_curve,
        middle_means,
        nearest,
        plateau,
        saturation,
        time_scales,
        turning,
        typical,
    )

    reach = length // 8
    stop = length - reach
    scale, _ = typical(squared, length, 0, floor)
    if not 16 * floor < scale < np.inf:
        return Outcome.NOT_FOUND, None
    decay, period = time_scales(lag_profile(squared, stop, reach), scale / 2)
    if decay == 0 or decay > reach // 2:
        return Outcome.NOT_FOUND, None
    straight, turn = turning(squared, length), max(period, 2 * decay)
    flows = decay > 2 or straight > _SMOOTH
    if flows and length < _LEAST_TURNS * max(period, decay):
        return Outcome.TOO_SHORT, None
    window = theiler_window or max(2, decay, period if flows and period <= reach // 2 else 0)
    if stop <= 2 * window + 1:
        return Outcome.TOO_SHORT, None
    neighbours = nearest(squared, stop, int(window), most)
    references = np.flatnonzero(neighbours[:, 0] >= 0)
    start = max(1, turn // 2) if flows else 1

    def logs(some: np.ndarray, ahead: np.ndarray, shift: int) -> np.ndarray:
        found = np.empty((len(ahead), len(some)))
        follow(squared, length, some, neighbours, ahead, shift, floor, found)
        return found

    few = min(_SCOUTS, len(references))
    scouts = references[np.arange(few) * (len(references) - 1) // (few - 1)]
    now = np.zeros(1, dtype=np.int64)
    shift = max(2, turn // 2) if straight > _SMOOTH else 0
    if shift and np.median(logs(scouts, now, shift) - logs(scouts, now, 0)) <= _ON_A_LINE:
        shift = 0
    steps = [0]
    while (later := max(steps[-1] + 1, steps[-1] * 108 // 100)) <= reach:
        steps.append(later)
    ahead = np.array(steps)
    at, _ = saturation(middle_means(logs(scouts, ahead, shift)), ahead, start)
    last = reach if at < 0 else min(reach, 3 * int(ahead[at]) // 2 + 2)
    ahead = np.arange(0, last + 1, max(1, last // _POINTS))
    curve, blocks = middle_curve(logs(references, ahead, shift), references, neighbours)
    everywhere[ahead] = curve
    at, here = saturation(curve, ahead, start)
    _, level = typical(squared, length, int(window), floor)
    level = min(level, here) if at >= 0 else level
    slope, half, *rest = plateau(curve, blocks, ahead, level, start, np.log(16 * floor) / 2, _SLACK, _LEAST_GROWTH,
                                 _TOLERANCE)
    if np.isnan(slope):
        return Outcome.TOO_SHORT if curve[0] > level - _CLOSE else Outcome.NOT_FOUND, None
    if half > _WIDEST * slope:
        return Outcome.TOO_SHORT, None
    return Outcome.FOUND, (slope, half, *rest, window, level)
