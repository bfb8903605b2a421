"""Numbers that tell regimes apart, each from the squared distances within one orbit.

Every number is dimensionless: unchanged by rotation, shift and scale of the states, and by noise that is the same in
all directions as far as that can be. `NAMES` lists them in the order in which `regime_numbers` fills them.
"""

import numpy as np

from dynloop.kernels import kernel, vector_kernel
from dynloop.kernels.returns import closest_return, mean_return

BLOCKS = 8  # of equal length; the late half is the last four
LAGS = np.array([1, 2, 3, 4, 6, 8, 12, 16])
LINES = 5
NEIGHBOUR_STEPS = 5
FREQUENCIES_A_STEP = 2  # the spectrum's grid: this many frequencies a step of the window, between 0 and 1/2
SHIFTS = 24
NAMES = (
    "late_over_spacing",  # rms distance from the late centre, over the number format's spacing times the norm
    "start", "farthest",  # mean squared distance of the first two states, of the farthest early one; over the late one
    *(f"energy_{b}" for b in range(BLOCKS)),  # mean squared distance of each block from the late centre
    *(f"step_{b}" for b in range(BLOCKS)),  # mean squared step of each block, over that of the last
    "late_step", "turn_5", "turn_7",  # late squared step over late energy; cosine of adjacent steps
    "late_drift", "late_drift_decay", "late_straightness", "drift", "drift_decay",  # of the centres of blocks
    "spread_decay", "spread_decay_before",  # of the variance within blocks
    *(f"lag_{k}" for k in LAGS),  # mean squared distance at a lag, over that of all late pairs
    "period", "return_1", "return_2", "return_last", "step_return", "shorter_return", "return_trend",
    "far_return",
    "dimension", "memory_1", "memory_2",  # effective dimension of the late half, its autocorrelation
    "frequency", "peak",  # of the strongest line, and its share of the spectrum
    *(f"rest_{k + 1}" for k in range(LINES)),  # share of the variance that k lines leave
    "rest_dimension_2", "rest_memory_2", "rest_dimension_5", "rest_memory_5", "return_over_rest",
    *(f"neighbours_{k}" for k in range(NEIGHBOUR_STEPS)),  # mean squared distance of nearest neighbours, k steps later
    *(f"neighbours_before_{k}" for k in (1, 2)), "determinism", "theiler_window",
    "return_2_rise", "return_last_rise", "far_return_rise", "neighbours_below_return",  # differences of the above
)
_AT = {name: i for i, name in enumerate(NAMES)}
(_ENERGY, _STEP, _LATE_STEP, _DRIFT, _SPREAD, _LAG, _PERIOD, _SHAPE, _FREQUENCY, _REST, _REST_SHAPE, _NEIGHBOURS,
 _BEFORE) = (_AT[name] for name in ("energy_0", "step_0", "late_step", "late_drift", "spread_decay", "lag_1", "period",
                                    "dimension", "frequency", "rest_1", "rest_dimension_2", "neighbours_0",
                                    "neighbours_before_1"))
_RISE = _AT["return_2_rise"]
_RETURNS = (_AT["return_2"], _AT["return_last"], _AT["far_return"])
_LEAST = 1e-12


@vector_kernel
def _log(x):
    return np.log10(max(x, _LEAST))


@vector_kernel
def _row_sums(squared, edges, sums):
    """Sums of each row over each block: sums (T, BLOCKS)."""
    for i in range(len(squared)):
        for b in range(BLOCKS):
            s = 0.0
            for j in range(edges[b], edges[b + 1]):
                s += squared[i, j]
            sums[i, b] = s


@vector_kernel
def centred_gram(squared, gram):
    """Gram matrix of states centred on their mean, from their squared distances."""
    w = len(squared)
    mean = np.empty(w)
    total = 0.0
    for i in range(w):
        s = 0.0
        for j in range(w):
            s += squared[i, j]
        mean[i] = s / w
        total += mean[i]
    total /= w
    for i in range(w):
        for j in range(w):
            gram[i, j] = 0.5 * (mean[i] + mean[j] - squared[i, j] - total)


@vector_kernel
def gram_shape(gram):
    """Trace, effective dimension and autocorrelation at lags 1 and 2 of centred states."""
    w = len(gram)
    trace, off, one, two = 0.0, 0.0, 0.0, 0.0
    for i in range(w):
        trace += gram[i, i]
        s = 0.0
        for j in range(i):
            s += gram[i, j] * gram[i, j]
        off += 2.0 * s
    for i in range(w - 1):
        one += gram[i, i + 1]
    for i in range(w - 2):
        two += gram[i, i + 2]
    scale = max(trace, 1e-300)
    return trace, (trace / w) ** 2 / max(off / (w * (w - 1)), 1e-300), one / scale, two / scale


@vector_kernel
def strongest_line(gram, window, cosines):
    """Frequency (turns a step) of the largest entry of the multivariate periodogram, and its share of all of it."""
    w = len(gram)
    lags = np.zeros(w)
    for i in range(w):
        for k in range(w - i):
            lags[k] += window[i] * window[i + k] * gram[i, i + k]
    n = len(cosines)
    power = np.empty(n)
    total = 0.0
    for f in range(n):
        s = 0.0
        for k in range(1, w):
            s += lags[k] * cosines[f, k]
        power[f] = max(lags[0] + 2.0 * s, 0.0)
        total += power[f]
    f = np.argmax(power)  # type: ignore[assignment]
    shift = 0.0
    if 0 < f < n - 1:
        bend = power[f - 1] - 2.0 * power[f] + power[f + 1]
        if bend < 0.0:
            shift = 0.5 * (power[f - 1] - power[f + 1]) / bend
    return (f + 1 + shift) / (2.0 * n), power[f] / max(total, 1e-300)


@vector_kernel
def remove_line(gram, frequency):
    """Project the cosine and sine of a frequency out of the states behind a Gram matrix, in place."""
    w = len(gram)
    q = np.zeros((2, w))
    for t in range(w):
        angle = 2.0 * np.pi * frequency * (t - w // 2)  # whole steps: at frequency 1/2 the cosine is then 1 and -1
        q[0, t], q[1, t] = np.cos(angle), np.sin(angle)
    q[0] /= np.sqrt((q[0] * q[0]).sum())
    q[1] -= (q[0] * q[1]).sum() * q[0]
    length = np.sqrt((q[1] * q[1]).sum())
    if length > 1e-6:
        q[1] /= length
    else:  # at frequency 1/2 there is no sine
        q[1] = 0.0
    y = np.zeros((2, w))
    for i in range(w):
        s0, s1 = 0.0, 0.0
        for j in range(w):
            s0 += gram[i, j] * q[0, j]
            s1 += gram[i, j] * q[1, j]
        y[0, i], y[1, i] = s0, s1
    m00, m01, m11 = (q[0] * y[0]).sum(), (q[0] * y[1]).sum(), (q[1] * y[1]).sum()
    for i in range(w):
        a0 = q[0, i] * m00 + q[1, i] * m01 - y[0, i]
        a1 = q[0, i] * m01 + q[1, i] * m11 - y[1, i]
        for j in range(w):
            gram[i, j] += a0 * q[0, j] + a1 * q[1, j] - q[0, i] * y[0, j] - q[1, i] * y[1, j]


@vector_kernel
def _neighbours(squared, scale, f):
    """How the nearest neighbours of the last three quarters move on: the rows of `NAMES` from `neighbours_0`."""
    n_steps = len(squared)
    first, stop = n_steps // 4 + 2, n_steps - NEIGHBOUR_STEPS + 1
    theiler = 1
    for k in range(1, n_steps // 6):
        s = 0.0
        for i in range(first, n_steps - k):
            s += squared[i, i + k]
        theiler = k
        if s / (n_steps - k - first) > 0.7 * scale:
            break
    after, before, shifted = np.zeros(NEIGHBOUR_STEPS), np.zeros(2), np.zeros(SHIFTS)
    n, span = 0, stop - first
    for i in range(first, stop):
        nearest, least = -1, np.inf
        for j in range(first, stop):
            if abs(i - j) > theiler and squared[i, j] < least - 1e-9 * scale:
                nearest, least = j, squared[i, j]
        if nearest < 0:
            continue
        n += 1
        for k in range(NEIGHBOUR_STEPS):
            after[k] += squared[i + k, nearest + k]
        for k in range(2):
            before[k] += squared[i - k - 1, nearest - k - 1]
        for k in range(SHIFTS):  # neighbours of the same orbit, out of step
            shifted[k] += squared[i + 1, first + (nearest - first + 2 * k + 9) % span + 1]
    n = max(n, 1)
    for k in range(NEIGHBOUR_STEPS):
        f[_NEIGHBOURS + k] = _log(after[k] / n / scale)
    for k in range(2):
        f[_BEFORE + k] = _log(before[k] / n / scale)
    mean, spread = shifted.mean(), shifted.std()
    f[_BEFORE + 2] = (mean - after[1]) / max(spread, 1e-6 * mean + 1e-300)
    f[_BEFORE + 3] = theiler / n_steps


@vector_kernel
def _one_orbit(squared, whole, longest_period, hann, cosines, f):
    n_steps = len(squared)
    late = n_steps // 2
    edges = np.empty(BLOCKS + 1, dtype=np.int64)
    for b in range(BLOCKS + 1):
        edges[b] = b * n_steps // BLOCKS
    sums = np.empty((n_steps, BLOCKS))
    _row_sums(squared, edges, sums)
    between = np.zeros((BLOCKS, BLOCKS))
    for a in range(BLOCKS):
        for i in range(edges[a], edges[a + 1]):
            between[a] += sums[i]
        for b in range(BLOCKS):
            between[a, b] /= (edges[a + 1] - edges[a]) * (edges[b + 1] - edges[b])
    width = n_steps - edges[4]
    energy = np.empty(n_steps)
    own = 0.0
    for i in range(n_steps):
        energy[i] = (sums[i, 4] + sums[i, 5] + sums[i, 6] + sums[i, 7]) / width
        if i >= edges[4]:
            own += energy[i]
    own = max(0.5 * own / width, 1e-300)
    farthest = 0.0
    for i in range(n_steps):
        energy[i] = max(energy[i] - own, 0.0)
        if i < late:
            farthest = max(farthest, energy[i])
    f[0] = own
    f[1] = _log(0.5 * (energy[0] + energy[1]) / own)
    f[2] = _log(farthest / own)
    step, turn = np.empty(BLOCKS), np.empty(BLOCKS)
    for b in range(BLOCKS):
        f[_ENERGY + b] = _log(energy[edges[b]:edges[b + 1]].mean() / own)
        s, c, n = 0.0, 0.0, 0
        for i in range(min(edges[b], n_steps - 3), min(edges[b + 1], n_steps - 2)):
            s += squared[i, i + 1]
            c += 0.5 * (squared[i, i + 2] - squared[i, i + 1] - squared[i + 1, i + 2])
            n += 1
        step[b], turn[b] = s / n, c / max(s, 1e-300)
    for b in range(BLOCKS):
        f[_STEP + b] = _log(step[b] / max(step[7], 1e-300))
    f[_LATE_STEP] = _log(0.25 * step[4:].sum() / own)
    f[_LATE_STEP + 1], f[_LATE_STEP + 2] = 0.5 * (turn[4] + turn[5]), 0.5 * (turn[6] + turn[7])
    # centres of blocks: their squared distances, free of the noise within
    def_own = 1e-9 * own
    moved = np.empty(BLOCKS - 1)
    for b in range(BLOCKS - 1):
        moved[b] = max(between[b, b + 1] - 0.5 * (between[b, b] + between[b + 1, b + 1]), 0.0)
    late_drift = max(between[4, 7] - 0.5 * (between[4, 4] + between[7, 7]), 0.0)
    f[_DRIFT] = np.log10(late_drift / own + 1e-6)
    f[_DRIFT + 1] = np.log10((moved[6] + def_own) / (moved[4] + def_own))
    f[_DRIFT + 2] = late_drift / max(3 * (moved[4] + moved[5] + moved[6]), 1e-9 * own)
    f[_DRIFT + 3] = np.log10(max(between[0, 7] - 0.5 * (between[0, 0] + between[7, 7]), 0.0) / own + 1e-6)
    early = max(between[1, 3] - 0.5 * (between[1, 1] + between[3, 3]), 0.0)
    f[_DRIFT + 4] = np.log10((early + def_own) / (max(between[5, 7] - 0.5 * (between[5, 5] + between[7, 7]), 0.0)
                                                  + def_own))
    f[_SPREAD] = _log((between[6, 6] + between[7, 7]) / max(between[4, 4] + between[5, 5], 1e-300))
    f[_SPREAD + 1] = _log((between[4, 4] + between[5, 5]) / max(between[2, 2] + between[3, 3], 1e-300))
    for k in range(len(LAGS)):
        lag = min(LAGS[k], n_steps - late - 2)
        f[_LAG + k] = _log(mean_return(squared, late, lag)[0] / (2 * own))
    out = np.empty(8)
    closest_return(whole, longest_period, out)
    f[_PERIOD] = out[0]
    for k in range(1, 6):
        f[_PERIOD + k] = _log(out[k])
    f[_PERIOD + 6] = max(min(out[6], 99.0), -99.0)
    f[_PERIOD + 7] = _log(out[7])
    w = n_steps - late
    gram = np.empty((w, w))
    centred_gram(squared[late:, late:], gram)
    trace, dimension, one, two = gram_shape(gram)
    f[_SHAPE], f[_SHAPE + 1], f[_SHAPE + 2] = _log(dimension), one, two
    w = n_steps - n_steps // 4
    gram = np.empty((w, w))
    centred_gram(squared[n_steps // 4:, n_steps // 4:], gram)
    trace = 0.0
    for i in range(w):
        trace += gram[i, i]
    scale = max(2 * trace / w, 1e-300)
    rest = trace
    for k in range(LINES):
        frequency, peak = strongest_line(gram, hann, cosines)
        if k == 0:
            f[_FREQUENCY], f[_FREQUENCY + 1] = frequency, peak
        remove_line(gram, frequency)
        rest = 0.0
        for i in range(w):
            rest += gram[i, i]
        f[_REST + k] = np.log10(max(rest, 0.0) / max(trace, 1e-300) + 1e-9)
        if k == 1 or k == LINES - 1:
            at = _REST_SHAPE + (0 if k == 1 else 2)
            if rest > 1e-9 * trace:  # else it is rounding, which has no shape
                _, dimension, one, _ = gram_shape(gram)
                f[at], f[at + 1] = _log(dimension), one
            else:
                f[at], f[at + 1] = 0.0, 0.0
    f[_REST_SHAPE + 4] = np.log10((out[1] + 1e-6) / (rest / max(trace, 1e-300) / (1 - 2 * LINES / w) + 1e-6))
    _neighbours(squared, scale, f)
    for k in range(3):
        f[_RISE + k] = f[_RETURNS[k]] - f[_PERIOD + 1]
    f[_RISE + 3] = f[_NEIGHBOURS] - f[_PERIOD + 1]


@kernel
def regime_numbers(squared, lengths, longest_window, returns_window, longest_period, hann, cosines, numbers):
    """Fill the numbers of every orbit whose length is that of the window functions.

    Args:
        squared: (n, T, T) squared distances.
        lengths: (n,) finite steps.
        longest_window: only the last so many steps are looked at,
        returns_window: and so many for returns.
        longest_period: of returns, and at most a third of the steps.
        hann: (w,) window of the last three quarters of the steps looked at; orbits of other lengths are left out.
        cosines: (frequencies, w), cos(2 pi f k).
        numbers: (n, len(NAMES)) output.
    """
    for o in range(len(squared)):
        last = lengths[o]
        n_steps = min(last, longest_window)
        if n_steps - n_steps // 4 == len(hann):
            w = min(last, returns_window)
            _one_orbit(squared[o, last - n_steps:last, last - n_steps:last], squared[o, last - w:last, last - w:last],
                       min(longest_period, w // 3), hann, cosines, numbers[o])
