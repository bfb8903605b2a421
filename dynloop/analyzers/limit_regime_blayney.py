"""Fixed point, orbit or slider, by the published algorithm."""

import numpy as np

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

METRICS = ("cosine", "euclidean")
REGIMES = ("fixed point", "orbit", "slider", "unknown")


@analyzer
def limit_regime_blayney(trajectories: Trajectories, *, n: int | None = None, tau: float = 0.05, rho: float = 0.9,
                         metric: str = "cosine") -> Measurement:
    """Algorithm 1 of Blayney et al. 2026, bit-faithful: fixed point, orbit, slider or unknown.

    s[i] = cosine similarity of the state after each of the last n recurrences to the final state, the final one left
    out. A least-squares line (slope a) is removed, the rest multiplied by a periodic Hann window, and the largest
    entry k* of M = |rFFT| without the constant gives frequency (k* + 1) / n (k* counted from 0) and amplitude
    4 M[k*] / n. The first that holds:

    1. fixed point: at least rho n of the s[i] are >= 1 - tau;
    2. orbit: amplitude >= tau / 2 and frequency >= 2 / n;
    3. slider: a > tau / n;
    4. unknown.

    Args:
        trajectories: orbits of the *last* layer of the block, 128 recurrences in the source.
        n: recurrences to look at; by default all but the last state (the source does not print it).
        tau: tolerance on the similarity.
        rho: share of the window that must lie within tau.
        metric: "cosine" as above, or "euclidean": s[i] is the distance to the final state, a fixed point has
            s[i] <= tau, a slider -a > tau / n.

    Returns:
        `regime` (n_orbits,), one of "fixed point", "orbit", "slider", "unknown"; `frequency`, per recurrence;
        `amplitude` and `slope`, of s. All four regimes are answers (`FOUND`). `TOO_SHORT`: fewer than n + 1 steps, or
        n < 8. `NOT_FINITE`.

    Misleads:
        Badly, and it is offered because published shares rest on it. On known maps it calls noise in s an orbit in 71
        to 99 % of cases and nearly every random walk a slider; slow convergence (rho .9 to .99, whole window, from a
        start two norms away) a slider; an orbit whose radius is below about .16 of its distance from the origin a
        fixed point; a period well above n/2 a slider or unknown. The amplitude of period 2 is doubled for even n. A
        drift whose direction settles is a fixed point or a slider to it. Where a state is 0 there is no cosine:
        `NOT_FOUND`.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), Algorithm 1 and tables 3 and 4 (tau .05, rho .9). The listing leaves
        open n and whether the Hann window is periodic.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, limit_regime_blayney
        >>> angle = 2 * np.pi * np.arange(128) / 7
        >>> circle = np.stack([np.ones(128), 0.5 * np.cos(angle), 0.5 * np.sin(angle)], axis=1)
        >>> print(limit_regime_blayney(Trajectories(circle[None])).values[0])
        orbit
    """
    if n is not None:
        check_whole("n", n, 1, "a positive whole number of recurrences, or None for all")
    check_number("tau", tau, lambda v: 0 < v < np.inf, "a positive number (the source uses 0.05)")
    check_number("rho", rho, lambda v: 0 < v <= 1, "a share above 0 and at most 1 (the source uses 0.9)")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}. Choose one of these.")
    away = distances(trajectories).from_last(metric=metric)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    regime = np.full(len(away), "", dtype="<U11")
    frequency, amplitude, slope = (np.full(len(away), np.nan) for _ in range(3))
    outcomes = np.full(len(away), Outcome.TOO_SHORT, dtype=object)
    outcomes[diverged] = Outcome.NOT_FINITE
    for length in np.unique(lengths[~diverged]):
        window = int(length) - 1 if n is None else int(n)
        if window < 8 or length < window + 1:
            continue
        rows = np.flatnonzero((lengths == length) & ~diverged)
        s = away[rows, length - 1 - window:length - 1]
        if metric == "cosine":
            s = 1 - s
        good = np.isfinite(s).all(1)  # a zero state has no cosine
        outcomes[rows[good]], outcomes[rows[~good]] = Outcome.FOUND, Outcome.NOT_FOUND
        for target, values in zip((regime, frequency, amplitude, slope), _algorithm_1(s[good], tau, rho, metric),
                                  strict=True):
            target[rows[good]] = values
    return Measurement("limit_regime_blayney",
                       {"regime": regime, "frequency": frequency, "amplitude": amplitude, "slope": slope}, outcomes,
                       units={"frequency": "per recurrence", "slope": "per recurrence"},
                       settings={"n": n, "tau": tau, "rho": rho, "metric": metric}, labels=trajectories.labels,
                       categories={"regime": REGIMES})


def _algorithm_1(s: np.ndarray, tau: float, rho: float, metric: str) -> tuple[np.ndarray, ...]:
    """Regime, frequency, amplitude and slope of each row of s (orbits, n)."""
    n = s.shape[1]
    t = np.arange(n) - (n - 1) / 2
    slope = s @ t / (t @ t)
    rest = s - s.mean(1, keepdims=True) - slope[:, None] * t
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n)
    spectrum = np.abs(np.fft.rfft(rest * hann, axis=1))[:, 1:]
    peak = spectrum.argmax(1)
    frequency = (peak + 1) / n
    amplitude = 4 * spectrum[np.arange(len(s)), peak] / n
    near = s >= 1 - tau if metric == "cosine" else s <= tau
    rising = slope if metric == "cosine" else -slope
    regime = np.select([near.sum(1) >= rho * n, (amplitude >= tau / 2) & (frequency >= 2 / n), rising > tau / n],
                       list(REGIMES[:3]), REGIMES[3])
    return regime, frequency, amplitude, slope
