"""Is the motion regular or irregular? The 0-1 test."""

from __future__ import annotations

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

_LEAST_STEPS = 36  # after the transient
_RESOLVING = 40  # with shorter windows, lines of a cycle of 8 run together, and only a low K says something
_REGULAR = 0.3  # cycles and tori whose lines are told apart read less
_AT_FLOOR = 8.0  # a spread of up to this many spacings is the number format's
_UNEVEN = 4.0  # ratio of mean squared steps, one half to the other, from which the orbit shrinks or grows
_DRIFTING = 0.5  # squared distance between the means of the halves, over the variance: noise 4 / n, walks about 2
_OVERSAMPLED, _APART = 0.9, 0.2  # correlation of adjacent states above which to thin out, to this
_RETURN, _RETURNS = 0.8, 6  # correlation that makes a lag a possible period, and how many a window must hold


@analyzer
def chaos_01(trajectories: Trajectories, *, n_frequencies: int = 25, damping: float = 1.0,
             n_cut: int | None = None) -> Measurement:
    """0-1 test for chaos: K near 0 for regular motion (cycles, tori), near 1 for irregular motion (chaos, noise).

    The states, centred on their mean, are turned by an angle c each step and summed: p[n] = sum of x[j] cos(j c),
    q[n] likewise with sin. For regular motion (p, q) stays bounded, for irregular motion it walks:

    * M(n) = mean over j of ||p[j+n] - p[j]||^2 + ||q[j+n] - q[j]||^2, n = 1 .. `n_cut`; for centred states the
      oscillating term ||mean||^2 (1 - cos n c) / (1 - cos c) is 0;
    * K_c = correlation of n with M(n) + `damping` * variance * sin(sqrt(2) n), which hides weak noise;
    * K = median of K_c over `n_frequencies` angles from pi / 5 to 4 pi / 5, spread by the golden section.

    The first quarter is left out as a transient. Where adjacent states correlate by more than .9 (flows), only every
    s-th state is used, s the first lag at which they correlate by .2 at most.

    Args:
        trajectories: orbits of at least 48 steps; `resolution` must be that of the dtype in which the model computed.
        n_frequencies: number of angles; more cost more and vary less.
        damping: weight of the oscillation that hides weak noise; 0 is the undamped test.
        n_cut: longest window, in states used, at most half of them; it resolves frequencies 2 pi / n_cut apart. By
            default a tenth of the states used, and at least 100 or half of them, whichever is less.

    Returns:
        `K` (n_orbits,); `spread`, the interquartile range of K_c over the angles; `stride` between the states used, in
        steps. Outcomes: `TOO_SHORT`: fewer than 36 states after transient and thinning, or fewer than twice `n_cut`; a
        K above .3 that may be a regular orbit whose frequencies are not resolved: windows below 40 states (at 107
        steps they are long enough), or below six times a lag at which states return. `NOT_CONVERGED`: the two halves
        differ in their mean or their steps (drifts, walks, decays). `AT_PRECISION_FLOOR`: the second half lies within
        the number format's spacing, or at rest. `NOT_FOUND`: squared distances overflow. `NOT_FINITE`.

    Misleads:
        It does not separate chaos from noise: both give 1, and so does a fixed point in noise, since M depends on the
        states through their autocovariance alone. Chaos in bands (r = 3.6) and a cycle in noise lie between. Measured
        on cycles of period 2 to 12, rotations and 2-tori, with 0 to 5 % of noise: below .3 or no answer, from 48 to
        2000 steps. Chaos (logistic map at 3.9 and 4, Henon map, standard map) reads above .85 from 128 steps; of
        records below 107 steps nothing but regular motion can be said. Tori of more frequencies than the windows
        resolve read as irregular. Thinned flows of weak chaos (Rossler) may read 0.

    Source:
        Gottwald & Melbourne 2009 (SIAM J. Appl. Dyn. Syst. 8, 129) and 2016 (Lect. Notes Phys. 915, 221); damping:
        Dawes & Freeland 2008, there with the squared mean, here with the variance, as centred states have no mean.
        They take windows of a tenth of the record: too short below 1000 steps (128: a cycle of 5 reads .96).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories, chaos_01
        >>> x = [0.3]
        >>> for _ in range(199):
        ...     x.append(4 * x[-1] * (1 - x[-1]))
        >>> angle = 2.4 * np.arange(200)
        >>> states = np.stack([np.stack([x, np.zeros(200)], 1), np.stack([np.cos(angle), np.sin(angle)], 1)])
        >>> (chaos_01(Trajectories(states)).values > 0.5).tolist()
        [True, False]
    """
    check_whole("n_frequencies", n_frequencies, 3, "a whole number of angles, at least 3 (the default is 25)")
    check_number("damping", damping, lambda v: 0 <= v < np.inf, "a finite number of at least 0 (the default is 1)")
    if n_cut is not None:
        check_whole("n_cut", n_cut, 4, "a whole number of at least 4 steps, or None to choose by the record's length")
    found = distances(trajectories)
    lengths, diverged = trajectories.lengths, trajectories.diverged
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    golden = (np.sqrt(5.0) - 1) / 2
    angles = np.pi / 5 * (1 + 3 * (np.arange(1, n_frequencies + 1) * golden % 1))
    numbers = np.full((trajectories.n_orbits, 3), np.nan)
    outcomes = np.full(trajectories.n_orbits, Outcome.TOO_SHORT, dtype=object)
    outcomes[diverged] = Outcome.NOT_FINITE
    for o in np.flatnonzero(~diverged & (lengths - lengths // 4 >= _LEAST_STEPS)):
        first, stop = lengths[o] // 4, lengths[o]
        with np.errstate(over="ignore"):
            floor = float((_AT_FLOOR * spacing) ** 2 * np.mean(found.norms[o, first:stop] ** 2))
        outcomes[o], own = _growth(found.squared[o, first:stop, first:stop], floor, angles, damping, n_cut)
        if outcomes[o] is Outcome.FOUND:
            numbers[o] = own
    return Measurement(
        "chaos_01", {"K": numbers[:, 0], "spread": numbers[:, 1], "stride": numbers[:, 2]}, outcomes,
        units={"stride": "steps"}, settings={"n_frequencies": n_frequencies, "damping": damping, "n_cut": n_cut},
        labels=trajectories.labels)


def _growth(squared: np.ndarray, floor: float, angles: np.ndarray, damping: float,
            n_cut: int | None) -> tuple[Outcome, tuple[float, float, int] | None]:
    """Outcome, and K, its spread and the stride, from the squared distances after the transient."""
    from dynloop.kernels.translation import displacements, lagged_products  # numba loads on first use

    n, half = len(squared), len(squared) // 2
    early, late = squared[:half, :half].mean() / 2, squared[half:, half:].mean() / 2
    steps = np.diagonal(squared, 1)
    if not np.isfinite(squared).all():
        return Outcome.NOT_FOUND, None
    if late <= floor:
        return Outcome.AT_PRECISION_FLOOR, None
    before, after = steps[:half].mean(), steps[half:].mean()
    apart = squared[:half, half:].mean() - early - late
    if max(before, after) > _UNEVEN * min(before, after) or apart > _DRIFTING * squared.mean() / 2:
        return Outcome.NOT_CONVERGED, None

    stride, sums = 1, lagged_products(squared, 0, 1, n, n // 2)
    correlations = _correlations(sums)
    if correlations[1] > _OVERSAMPLED:
        low = np.flatnonzero(correlations <= _APART)
        stride = int(low[0]) if len(low) else n
        n //= stride
        if n < _LEAST_STEPS:
            return Outcome.TOO_SHORT, None
        sums = lagged_products(squared, (len(squared) - 1) % stride, stride, n, n // 2)
        correlations = _correlations(sums)
    longest = n_cut or min(n // 2, max(n // 10, 100))
    if 2 * longest > n:
        return Outcome.TOO_SHORT, None
    time = np.arange(1, longest + 1)
    moved = displacements(sums, longest, angles) + damping * sums[0, n] / n * np.sin(np.sqrt(2.0) * time)
    moved -= moved.mean(1, keepdims=True)
    away = time - time.mean()
    each = moved @ away / np.sqrt((moved**2).sum(1) * (away @ away))
    low_quarter, middle, high_quarter = np.quantile(each, [0.25, 0.5, 0.75])
    if middle > _REGULAR:
        returns = np.flatnonzero(correlations[1:] > _RETURN) + 1
        if longest < _RESOLVING or (len(returns) and longest < _RETURNS * returns[0]):
            return Outcome.TOO_SHORT, None
    return Outcome.FOUND, (middle, high_quarter - low_quarter, stride)


def _correlations(sums: np.ndarray) -> np.ndarray:
    """Correlation of states by their lag, from `lagged_products`."""
    n = sums.shape[1] - 1
    return sums[:, n] / (n - np.arange(len(sums))) * n / sums[0, n]
