"""What does the loop do in the end: rest, orbit, drift, wander?"""

import numpy as np

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.trajectories import Trajectories

REGIMES = ("fixed point", "converging", "orbit", "quasi-periodic", "slider", "chaotic", "diverging", "undetermined")
_CONTRACTS = (0, 1)  # fixed point, converging
_ALARMS = ("orbit", "quasi-periodic", "slider", "chaotic")
_TRENDS = ("converging", "slider", "diverging")
_ROUNDING = -0.5  # log10 of late amplitude over the format's spacing: what rounding alone may do to a state at rest
_OVERFLOWED = 1e3  # growth of the norm before an infinity that counts as divergence
# log10 of what energy and steps may both lose within the late half: a spiral at .99 a step loses .28 in 128 steps
_MOST_FADING = {**dict.fromkeys(REGIMES, np.inf), "orbit": 0.25, "quasi-periodic": 0.25, "chaotic": 0.5}
_CAME_FROM_AFAR = 0.7  # log10 of start over late squared amplitude
_NEAR_SPACING = 0.5  # log10 of late amplitude over the format's spacing


@analyzer
def limit_regime(trajectories: Trajectories, *, least_confidence: float = 0.98) -> Measurement:
    """Fixed point, converging, orbit, quasi-periodic, slider, chaotic or diverging, or undetermined.

    Some seventy dimensionless numbers of the T x T squared distances (energy, steps and centres of eight blocks; the
    profile of returns at every lag; what is left when lines are taken out of the spectrum; how nearest neighbours
    move apart; effective dimension) go into boosted trees that were calibrated on synthetic orbits of known regime:

    * kind of movement: at rest, converging, drifting, growing, recurrent, or noise without structure;
    * recurrent movement has a period p when states p, 2 p and many p apart stay as close as the noise allows;
    * without a period it is quasi-periodic (few lines, neighbours keep their distance) or chaotic.

    An orbit whose late amplitude is below the spacing of the number format (times the norm) is a fixed point whatever
    it flickers, unless it has a trend above a third of a spacing. Up to 3 spacings, rounding alone may move an orbit
    that came from afar: no regime that lasts is named. Nor is it where energy and steps both fade. Less
    than `least_confidence`: undetermined. Of more than 256 steps the last 256 are judged, and all for their returns.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        least_confidence: probability that a regime must have to be named.

    Returns:
        `regime` (n_orbits,), one of "fixed point" (at rest, or at its floor of noise) and "converging" (a tenth or more
        of its way to go; the likelier of these two is named, with the confidence of both), "orbit", "quasi-periodic",
        "slider" (steady drift), "chaotic", "diverging" (grows geometrically), "undetermined"; `confidence`, the
        calibrated probability of that regime (for "undetermined", that of the likeliest one, which was too low);
        `period`, in recurrences, of orbits, else NaN. `TOO_SHORT`: fewer than 16 steps. `NOT_FINITE`: an infinity or
        NaN; the regime is then "diverging" if the norm had grown a thousandfold, else empty.

    Misleads:
        Calibrated on synthetic orbits; real states may differ in ways nobody drew. Error rates by noise, length and
        format stand in benchmarks/results/confusion.md: correct a prevalence with `proportion`. Chaos in many
        dimensions looks like coloured noise within 128 steps: undetermined. Rotation numbers very close to p/q look
        like period q, slow spirals whose decay is below what the noise lets through like orbits, in few dimensions and
        at high noise above all. Thresholds between "fixed point" and "converging" are a convention.

    Source:
        Own. What it must avoid is in Blayney et al. 2026 (arXiv 2604.11791), Algorithm 1: noise called orbit, walks
        and slow convergence called slider, small orbits missed (`limit_regime_blayney`).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, limit_regime
        >>> t = np.arange(128)[:, None]
        >>> circle = np.hstack([np.cos(2 * np.pi * t / 7), np.sin(2 * np.pi * t / 7)])
        >>> spiral = 0.96**t * np.hstack([np.cos(t), np.sin(t)])
        >>> m = limit_regime(Trajectories(np.stack([circle, spiral, 0.1 * t * np.ones((1, 2))])))
        >>> print(*m.values, sep=", ")
        orbit, fixed point, slider
        >>> m["period"]
        array([ 7., nan, nan])
    """
    check_number("least_confidence", least_confidence, lambda v: 0 < v < 1,
                 "a probability above 0 and below 1 (the default is 0.98)")
    from dynloop.kernels.regime import NAMES  # numba loads on first use
    from dynloop.regime_model import SHORTEST, orbit_numbers, regime_probabilities

    lengths, diverged, n = trajectories.lengths, trajectories.diverged, trajectories.n_orbits
    regime, period = np.full(n, "", dtype=f"<U{max(map(len, REGIMES))}"), np.full(n, np.nan)
    confidence = np.full(n, np.nan)
    outcomes = np.full(n, Outcome.TOO_SHORT, dtype=object)
    outcomes[diverged] = Outcome.NOT_FINITE
    rows = np.flatnonzero((lengths >= SHORTEST) & ~diverged)
    if len(rows):
        outcomes[rows] = Outcome.FOUND
        numbers = orbit_numbers(trajectories)[rows]
        likely = regime_probabilities(trajectories)[rows]
        best = likely.argmax(1)
        confidence[rows] = likely.max(1)
        rests = np.isin(best, _CONTRACTS)  # which of the two is a convention, and no reason for doubt
        confidence[rows[rests]] = likely[rests][:, _CONTRACTS].sum(1)
        late, start = numbers[:, NAMES.index("late_over_spacing")], numbers[:, NAMES.index("start")]
        named = np.array(REGIMES)[best]
        unsure = (confidence[rows] < least_confidence) | (_fading(numbers) > [_MOST_FADING[r] for r in named]) | \
            (np.isin(named, _ALARMS) & (late < _NEAR_SPACING) & (start > _CAME_FROM_AFAR))
        named[unsure] = "undetermined"
        resting = (late < _ROUNDING) | ((late < 0) & ~np.isin(named, _TRENDS))
        named[resting] = "fixed point"
        confidence[rows[resting]] = 1.0
        regime[rows] = named
        orbits = rows[named == "orbit"]
        period[orbits] = numbers[named == "orbit", NAMES.index("period")]
    for o in np.flatnonzero(diverged & (lengths > 1)):
        grown = distances(trajectories).norms[o, :lengths[o]]
        if grown[-1] > _OVERFLOWED * max(grown[0], np.median(grown[:len(grown) // 2 + 1])):
            regime[o] = "diverging"
    return Measurement("limit_regime", {"regime": regime, "confidence": confidence, "period": period}, outcomes,
                       units={"period": "recurrences"}, settings={"least_confidence": least_confidence},
                       labels=trajectories.labels, categories={"regime": REGIMES})


def _fading(numbers: np.ndarray) -> np.ndarray:
    """By how many powers of ten energy and squared steps both fall from the third to the last quarter, (n,)."""
    from dynloop.kernels.regime import NAMES

    falls = []
    for kind in ("energy", "step"):
        blocks = numbers[:, [NAMES.index(f"{kind}_{b}") for b in range(4, 8)]]
        falls.append((blocks[:, :2].sum(1) - blocks[:, 2:].sum(1)) / 2)
    return np.minimum(*falls)
