"""What does the loop do in the end: rest, orbit, drift, wander?"""

import numpy as np

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.trajectories import Trajectories

REGIMES = ("fixed point", "converging", "orbit", "quasi-periodic", "slider", "chaotic", "diverging", "undetermined")
_OVERFLOWED = 1e3  # growth of the norm before an infinity that counts as divergence


@analyzer
def limit_regime(trajectories: Trajectories, *, least_confidence: float = 0.95) -> Measurement:
    """Fixed point, converging, orbit, quasi-periodic, slider, chaotic or diverging, or undetermined.

    Some seventy dimensionless numbers of the T x T squared distances (energy, steps and centres of eight blocks; the
    profile of returns at every lag; what is left when lines are taken out of the spectrum; how nearest neighbours
    move apart; effective dimension) go into boosted trees that were calibrated on synthetic orbits of known regime:

    * kind of movement: at rest, converging, drifting, growing, recurrent, or noise without structure;
    * recurrent movement has a period p when states p, 2 p and many p apart stay as close as the noise allows;
    * without a period it is quasi-periodic (few lines, neighbours keep their distance) or chaotic.

    An orbit whose late amplitude is below the spacing of the number format (times the norm) is a fixed point whatever
    it flickers, unless it has a trend above a third of a spacing. After a start from afar (more than twice the late
    amplitude), as contractions have it, a regime that lasts needs a confidence of .98 and, since rounding within the
    loop may move the orbit, an amplitude of 8 spacings (a slider 3) and 1e-12 of the start. No such regime is named
    where energy and steps both fade. Less than `least_confidence`: undetermined. Of more than 256 steps the last 256
    are judged.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        least_confidence: probability that a regime must have to be named.

    Returns:
        `regime` (n_orbits,), one of "fixed point" (at rest, or at its floor of noise), "converging" (a tenth or more
        of its way to go), "orbit", "quasi-periodic", "slider" (steady drift), "chaotic", "diverging" (grows
        geometrically), "undetermined"; `confidence`, the calibrated probability of that regime (for "undetermined",
        that of the likeliest one, which was not named); `period`, in recurrences, of orbits, else NaN. `TOO_SHORT`:
        fewer than 16 steps. `NOT_FINITE`: an infinity or NaN; the regime is then "diverging" if the norm had grown a
        thousandfold, else empty.

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
                 "a probability above 0 and below 1 (the default is 0.95)")
    from dynloop.kernels.regime import NAMES  # numba loads on first use
    from dynloop.regime_model import SHORTEST, orbit_numbers, verdicts

    lengths, diverged = trajectories.lengths, trajectories.diverged
    regime, confidence = verdicts(trajectories, least_confidence)
    regime[diverged], confidence[diverged] = "", np.nan
    period = np.where(regime == "orbit", orbit_numbers(trajectories)[:, NAMES.index("period")], np.nan)
    outcomes = np.where(diverged, Outcome.NOT_FINITE,  # type: ignore[call-overload]
                        np.where(lengths < SHORTEST, Outcome.TOO_SHORT, Outcome.FOUND))  # type: ignore[call-overload]
    for o in np.flatnonzero(diverged & (lengths > 1)):
        grown = distances(trajectories).norms[o, :lengths[o]]
        if grown[-1] > _OVERFLOWED * max(grown[0], np.median(grown[:len(grown) // 2 + 1])):
            regime[o] = "diverging"
    return Measurement("limit_regime", {"regime": regime, "confidence": confidence, "period": period}, outcomes,
                       units={"period": "recurrences"}, settings={"least_confidence": least_confidence},
                       labels=trajectories.labels, categories={"regime": REGIMES})

