"""After how many recurrences does the orbit repeat itself?"""

import numpy as np

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

_LEAST_CONFIDENCE = 0.8  # less than a regime needs: a period has its p-value beside it
_MOVING = ("converging", "slider", "diverging")


@analyzer
def minimal_period(trajectories: Trajectories, *, max_period: int | None = None,
                   significance: float = 0.001) -> Measurement:
    """Smallest p with x[t + p] = x[t] as closely as the noise allows, and with a p-value.

    For every lag p up to a third of the record, over its last max(3 p, T / 2) steps:

    * return(p) = mean ||x[t + p] - x[t]||^2; the candidate is the smallest p at which the larger of return(p) and
      return(2 p) lies within the accuracy of the means of the smallest such value;
    * it holds if states 2 p and many p apart, across half the record where no transient is left, are no farther
      apart than states p apart, and nearest neighbours no closer (the trees of `limit_regime` weigh these ratios; .8
      of their probability is enough here, where a p-value stands beside the answer);
    * p-value: how improbable so close a return is when the same states come in any other order. The mean and the
      variance over all T! orders are exact (quadratic assignment), the tail is that of a normal distribution; times
      the number of lags tried.

    An orbit at rest, at its floor of noise or of the number format, has period 1. Its p-value compares the states of
    the late half with those of the whole record.

    Args:
        trajectories: orbits; their `resolution` must be that of the dtype in which the model computed.
        max_period: longest period to look for; by default a third of the record, and never more.
        significance: largest p-value at which a period above 1 is named.

    Returns:
        `period` (n_orbits,), in recurrences; `p_value`; `return_distance`, rms distance of states a period apart, over
        that of all late pairs. `NOT_FOUND`: no period up to `max_period` (chaos, quasi-periodicity, noise, or a longer
        period). `NOT_CONVERGED`: still converging, drifting or growing. `TOO_SHORT`: fewer than 16 steps.
        `NOT_FINITE`.

    Misleads:
        Three repetitions are the least that can be told from chance, and a transient must have died before them.
        Rotation numbers near q/p return almost exactly after p steps: golden-mean returns at 34 and 55 are told apart
        at 128 and 256 steps up to noise of 20 % in many dimensions, not in few. A multiple of a period whose halves
        differ by less than the noise is reported as the half. The p-value speaks against states in random order, not
        against noise with memory; that is what the returns at 2 p and many p are for.

    Source:
        Own, by recurrence in state space (Blayney et al. 2026 take a Fourier peak). Null: quadratic assignment (Mantel
        1967, Cancer Research 27, 209).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, minimal_period
        >>> rng = np.random.default_rng(0)
        >>> cycle = rng.normal(size=(5, 16))[np.arange(96) % 5] + 0.05 * rng.normal(size=(96, 16))
        >>> minimal_period(Trajectories(cycle[None])).values
        array([5.])
    """
    if max_period is not None:
        check_whole("max_period", max_period, 1, "a whole number of recurrences, or None for a third of the record")
    check_number("significance", significance, lambda v: 0 < v < 1, "a p-value above 0 and below 1 (the default is "
                                                                    "0.001)")
    from dynloop.kernels.regime import NAMES  # numba loads on first use
    from dynloop.regime_model import LONGEST_WINDOW, SHORTEST, orbit_numbers, verdicts

    lengths, diverged, n = trajectories.lengths, trajectories.diverged, trajectories.n_orbits
    longest = max_period
    if max_period is None and trajectories.n_steps > LONGEST_WINDOW:
        longest = trajectories.n_steps // 3  # the regime looks no farther back than its window, a period may
    regime, _ = verdicts(trajectories, _LEAST_CONFIDENCE, from_afar=_LEAST_CONFIDENCE, longest_period=longest)
    candidates = orbit_numbers(trajectories, longest_period=longest)[:, NAMES.index("period")].astype(int)
    period, p_value, distance = (np.full(n, np.nan) for _ in range(3))
    outcomes = np.where(diverged, Outcome.NOT_FINITE, np.where(  # type: ignore[call-overload]
        lengths < SHORTEST, Outcome.TOO_SHORT, np.where(  # type: ignore[call-overload]
            np.isin(regime, _MOVING), Outcome.NOT_CONVERGED, Outcome.NOT_FOUND)))
    for o in np.flatnonzero(np.isin(regime, ("fixed point", "orbit")) & ~diverged):
        own = distances(trajectories).squared[o, :lengths[o], :lengths[o]]
        t, late = np.arange(lengths[o]), lengths[o] // 2
        if regime[o] == "fixed point":
            p, tried = 1, 1
            found = own[late:, late:].sum() / ((lengths[o] - late) * (lengths[o] - late - 1))
            degrees = np.where(t < late, 0, lengths[o] - late - 1)
            limit = 1.0
        else:
            p, first = candidates[o], min(lengths[o] - 3 * candidates[o], late)
            tried = min(longest or lengths[o], lengths[o] // 3)
            own, t = own[first:, first:], t[first:] - first
            found, degrees, limit = own.diagonal(p).mean(), 1 * (t >= p) + (t < len(t) - p), significance
        chance = min(1.0, tried * _p_value(own, found, degrees))
        if chance <= limit:
            period[o], p_value[o], outcomes[o] = p, chance, Outcome.FOUND
            distance[o] = 1.0 if p == 1 else np.sqrt(found / (own.sum() / (len(t) * (len(t) - 1))))
    return Measurement("minimal_period", {"period": period, "p_value": p_value, "return_distance": distance}, outcomes,
                       units={"period": "recurrences"},
                       settings={"max_period": max_period, "significance": significance}, labels=trajectories.labels)


def _p_value(squared: np.ndarray, found: float, degrees: np.ndarray) -> float:
    """How improbable a mean squared distance as small as that found is when the states change places."""
    from scipy.special import ndtr

    from dynloop.kernels.returns import shuffled_mean

    scale = squared.max()
    if scale == 0:
        return 1.0
    expected, spread = shuffled_mean(squared / scale, degrees.sum() / 2, degrees.astype(np.float64))
    return float(ndtr((found / scale - expected) / spread)) if spread > 0 else 1.0
