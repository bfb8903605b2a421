"""How neighbours on an orbit part: the curve of their mean log distance, and its linear region.

References are the states i < stop whose next `reach` steps are recorded; each is paired with its nearest neighbours
among them, more than a Theiler window away in time, and the pairs are followed. Where the orbit moves smoothly (a flow
sampled often), states are compared not with states but with the segments between them, so that the offset along the
orbit, which never grows, does not hide what does.
"""

import math

import numpy as np

from dynloop.kernels import kernel

PROBES = 64  # states that stand for all where time and length scales are asked for
BLOCKS = 8  # of time, for the interval
QUANTILE = 2.3646  # 97.5 % of t with BLOCKS - 1 degrees of freedom


@kernel
def select(values, k):
    """The k-th smallest value; `values` is rearranged, smaller ones before it. (NumPy's takes seconds to compile.)"""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        first, last = min(values[low], values[high]), max(values[low], values[high])
        pivot = min(max(values[middle], first), last)
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break
    return values[k]


@kernel
def median(values):
    """Median; `values` is rearranged."""
    n = len(values)
    upper = select(values, n // 2)
    if n % 2 == 1:
        return upper
    lower = values[0]
    for i in range(n // 2):
        lower = max(lower, values[i])
    return (lower + upper) / 2.0


@kernel
def middle_mean(values):
    """Mean of the values between their quartiles, and those quartiles; `values` is rearranged."""
    n = len(values)
    low = n // 4
    lower = select(values, low)
    upper = select(values[low:], n - 1 - 2 * low)
    total = 0.0
    for i in range(low, n - low):
        total += values[i]
    return total / (n - 2 * low), lower, upper


@kernel
def delayed(squared, length, delays):
    """Squared distances (m, m) of stacks of delays + 1 successive states; m = length - delays stacks."""
    m = length - delays
    stacked = np.zeros((m, m))
    for i in range(m):
        for j in range(m):
            for back in range(delays + 1):
                stacked[i, j] += squared[i + back, j + back]
    return stacked


@kernel
def lag_profile(squared, stop, reach):
    """Median squared distance at lag 0 ... reach, (reach + 1,), over some states below `stop`."""
    probes = min(PROBES, stop)
    profile, values = np.zeros(reach + 1), np.empty(probes)
    for lag in range(1, reach + 1):
        for a in range(probes):
            i = a * (stop - 1) // max(probes - 1, 1)
            values[a] = squared[i, i + lag]
        profile[lag] = median(values)
    return profile


@kernel
def sample(squared, length, window):
    """Squared distances of pairs more than `window` steps apart: some rows, some columns, evenly spaced."""
    rows, columns = min(PROBES // 2, length), min(PROBES, length)
    values = np.empty(rows * columns)
    m = 0
    for a in range(rows):
        i = a * (length - 1) // max(rows - 1, 1)
        for b in range(columns):
            j = b * (length - 1) // max(columns - 1, 1)
            if abs(i - j) > window:
                values[m] = squared[i, j]
                m += 1
    return values[:m]


@kernel
def typical(squared, length, window, floor):
    """Median squared distance, and middle mean of log distance, of pairs more than `window` steps apart."""
    values = sample(squared, length, window)
    middle = median(values)
    for i in range(len(values)):
        values[i] = 0.5 * math.log(max(values[i], floor))
    return middle, middle_mean(values)[0]


@kernel
def time_scales(profile, half):
    """Lag at which the profile first reaches `half` (0: never), and the lag of its first dip after that (0: none)."""
    decay, top = 0, 0.0
    for lag in range(1, len(profile)):
        if decay == 0 and profile[lag] >= half:
            decay = lag
        if decay > 0:
            top = max(top, profile[lag])
            if profile[lag] < 0.7 * top:
                while lag + 1 < len(profile) and profile[lag + 1] < profile[lag]:
                    lag += 1
                return decay, lag
    return decay, 0


@kernel
def turning(squared, length):
    """Median cosine between successive steps."""
    values = np.empty(length - 2)
    for i in range(1, length - 1):
        before, after = squared[i - 1, i], squared[i, i + 1]
        values[i - 1] = (squared[i - 1, i + 1] - before - after) / (2.0 * math.sqrt(before * after) + 1e-300)
    return median(values)


@kernel
def offer(best, neighbours, i, value, j, window):
    """Keep j among the nearest neighbours of i, if it is one; of several within the window only the nearest."""
    most = best.shape[1]
    at = most - 1
    for a in range(most):
        if neighbours[i, a] >= 0 and abs(neighbours[i, a] - j) <= window:
            if value >= best[i, a]:
                return
            at = a
            break
    while at > 0 and value < best[i, at - 1]:
        best[i, at], neighbours[i, at] = best[i, at - 1], neighbours[i, at - 1]
        at -= 1
    best[i, at], neighbours[i, at] = value, j


@kernel
def nearest(squared, stop, window, most):
    """Up to `most` nearest neighbours (stop, most) of each state below `stop`, nearest first; -1 where there is none.

    With several, only those within the median distance of nearest neighbours count: balls of one radius.
    """
    best, neighbours = np.full((stop, most), np.inf), np.full((stop, most), -1)
    worst = np.full(stop, np.inf)
    for i in range(stop):
        first = i + window + 1
        while first < stop:
            last = min(first + 32, stop)
            nearer = 0
            for j in range(first, last):  # without a branch: most stretches hold nothing nearer
                nearer += (squared[i, j] < worst[i]) | (squared[i, j] < worst[j])
            if nearer > 0:
                for j in range(first, last):
                    value = squared[i, j]
                    if value < worst[i]:
                        offer(best, neighbours, i, value, j, window)
                        worst[i] = best[i, most - 1]
                    if value < worst[j]:
                        offer(best, neighbours, j, value, i, window)
                        worst[j] = best[j, most - 1]
            first = last
    if most > 1:
        radius = median(best[:, 0].copy())
        for i in range(stop):
            for m in range(most):
                if best[i, m] > radius:
                    neighbours[i, m] = -1
    return neighbours


@kernel
def to_segment(squared, p, q):
    """Squared distance of state p to the segment from state q to state q + 1."""
    start, end, length = squared[p, q], squared[p, q + 1], squared[q, q + 1]
    if not length > 0.0:
        return min(start, end)
    share = (start + length - end) / (2.0 * length)
    if share <= 0.0:
        return start
    if share >= 1.0:
        return end
    return max(start - share * share * length, 0.0)


@kernel
def follow(squared, length, references, neighbours, ahead, most_shift, floor, logs):
    """Log distances (len(ahead), len(references)) of pairs after `ahead` steps.

    With most_shift > 0 the distance is that of the state to the orbit near its neighbour, which may run ahead or fall
    behind by up to that many steps. Of several neighbours the mean distance counts.
    """
    for r in range(len(references)):
        i = references[r]
        most = neighbours.shape[1]
        shifts = np.zeros(most, dtype=np.int64)
        for a in range(len(ahead)):
            total, used = 0.0, 0
            for m in range(most):
                if neighbours[i, m] < 0:
                    continue
                p, q = i + ahead[a], neighbours[i, m] + ahead[a]
                if most_shift == 0:
                    value = squared[p, q]
                else:
                    last = min(most_shift, length - 2 - q)
                    first = max(-most_shift, -q)
                    shift = min(max(shifts[m], first), last)
                    value = to_segment(squared, p, q + shift)
                    for way in (1, -1):
                        while first <= shift + way <= last:
                            other = to_segment(squared, p, q + shift + way)
                            if other > value:
                                break
                            value = other
                            shift += way
                    shifts[m] = shift
                total += math.sqrt(value) if most > 1 else value
                used += 1
            if most > 1:
                total = (total / used) ** 2
            logs[a, r] = 0.5 * math.log(max(total, floor))


@kernel
def saturation(curve, ahead, start):
    """First point from which half as many steps again gain less than .2, after a gain of 1; the level there.

    Returns:
        its index, -1 where there is none, and the mean of the curve over those steps.
    """
    lowest = np.inf
    for a in range(len(ahead)):
        if ahead[a] < start:
            continue
        lowest = min(lowest, curve[a])
        if curve[a] - lowest < 1.0:
            continue
        if ahead[-1] < 1.5 * ahead[a]:
            break
        top, total, n = curve[a], 0.0, 0
        for b in range(a, len(ahead)):
            if ahead[b] <= 1.5 * ahead[a] + 1:
                top = max(top, curve[b])
                total += curve[b]
                n += 1
        if top - curve[a] < 0.2:
            return a, total / n
    return -1, np.nan


@kernel
def middle_means(logs):
    """Middle mean of each row."""
    means = np.empty(len(logs))
    for a in range(len(logs)):
        means[a] = middle_mean(logs[a].copy())[0]
    return means


@kernel
def middle_curve(logs, references, neighbours):
    """Middle means (len(logs),) over references, and what each pair of time blocks adds to their error.

    The second result is (len(logs), BLOCKS, BLOCKS): sums of the influence of the pairs (i, j) with i in one block and
    j in the other.
    """
    n, used = logs.shape
    stop, most = neighbours.shape
    curve, blocks = np.empty(n), np.zeros((n, BLOCKS, BLOCKS))
    for a in range(n):
        curve[a], low, high = middle_mean(logs[a].copy())
        centre = 0.0
        for r in range(used):
            centre += min(max(logs[a, r], low), high) / used
        for r in range(used):
            i = references[r]
            influence = (min(max(logs[a, r], low), high) - centre) / (used - 2 * (used // 4))
            known = 0
            for m in range(most):
                known += neighbours[i, m] >= 0
            for m in range(known):
                blocks[a, i * BLOCKS // stop, neighbours[i, m] * BLOCKS // stop] += influence / known
    return curve, blocks


@kernel
def shared_variance(blocks):
    """Variance of a sum over pairs (i, j) of times, when two pairs that share a time block are dependent.

    blocks (BLOCKS * BLOCKS,) holds the sums over the pairs of each two blocks.
    """
    total, apart = 0.0, 0.0
    for b in range(BLOCKS):
        own = -blocks[b * BLOCKS + b]
        for c in range(BLOCKS):
            own += blocks[b * BLOCKS + c] + blocks[c * BLOCKS + b]
            if c < b:
                apart += (blocks[b * BLOCKS + c] + blocks[c * BLOCKS + b]) ** 2
        total += own * own
    within = 0.0
    for b in range(BLOCKS):
        within += blocks[b * BLOCKS + b] ** 2
    return max(total - apart, apart + within) * BLOCKS / (BLOCKS - 1.0)


@kernel
def slopes(sums, first, stop, out):
    """Least-squares slopes of all columns over points [first, stop); sums (n + 1, 2 + 2 m) are running sums."""
    m = len(out)
    n = stop - first
    x = sums[stop, 0] - sums[first, 0]
    xx = sums[stop, 1] - sums[first, 1] - x * x / n
    for c in range(m):
        y = sums[stop, 2 + c] - sums[first, 2 + c]
        xy = sums[stop, 2 + m + c] - sums[first, 2 + m + c]
        out[c] = (xy - x * y / n) / xx


@kernel
def plateau(curve, blocks, ahead, level, start, floor, slack, least_growth, tolerance):
    """The window of the curve with the narrowest interval for the slope, among those whose two halves agree.

    The curve is taken as 1/2 log(noise^2 + 1 / (1 / d^2 + 1 / level^2)), with ln d linear; points above the level
    minus .7 are left out, so that the correction for saturation stays below .15. noise^2 is 0, or a quarter or a half
    of the first squared distance of the window; what it changes in the slope widens the interval, which must then be a
    third narrower than any without.

    Returns:
        slope, half width of the interval, first and last step of the window, growth in e-folds; NaN where no window
        qualifies.
    """
    n = len(ahead)
    m = 2 + BLOCKS * BLOCKS
    values, sums = np.empty(m), np.zeros((n + 1, 2 + 2 * m))
    whole, early, late = np.empty(m), np.empty(m), np.empty(m)
    best = np.full(5, np.nan)
    narrowest = np.inf
    end = n
    for a in range(n):
        if ahead[a] >= start and curve[a] > level - 0.7:
            end = a
            break
    for first in range(end - 2):
        if ahead[first] < start or curve[first] < floor:
            continue
        for quarters in range(3):
            noise = 0.25 * quarters * math.exp(2.0 * curve[first])
            begin, growth, points = 0.0, 0.0, 0
            for b in range(first, end):
                seen = math.exp(2.0 * curve[b])
                if seen <= 1.2 * noise:
                    break
                left = 1.0 - math.exp(2.0 * (curve[b] - level))
                true = seen / left - noise
                values[0], values[1] = 0.5 * math.log(true), 0.5 * math.log(seen / left)
                for c in range(BLOCKS * BLOCKS):
                    values[2 + c] = blocks[b, c // BLOCKS, c % BLOCKS] * seen / (left * left * true)
                x = float(ahead[b] - ahead[first])
                points += 1
                sums[points, 0] = sums[points - 1, 0] + x
                sums[points, 1] = sums[points - 1, 1] + x * x
                for c in range(m):
                    sums[points, 2 + c] = sums[points - 1, 2 + c] + values[c]
                    sums[points, 2 + m + c] = sums[points - 1, 2 + m + c] + values[c] * x
                if points == 1:
                    begin = values[0]
                growth = values[0] - begin
                if points < 3 or growth < least_growth:
                    continue
                slopes(sums, 0, points, whole)
                half = (points + 1) // 2
                slopes(sums, 0, points - half + 1, early)
                slopes(sums, half - 1, points, late)
                if not whole[0] > 0.0:
                    continue
                apart = abs(early[0] - late[0])
                early -= late
                doubt = math.sqrt(shared_variance(early[2:]))
                if apart > max(tolerance * whole[0], min(2.0 * doubt, 0.35 * whole[0])):
                    continue
                error = QUANTILE * math.sqrt(shared_variance(whole[2:]))
                width = math.sqrt(error * error + apart * apart + (slack / x) ** 2 + (whole[0] - whole[1]) ** 2)
                if width * (1.5 if quarters else 1.0) < narrowest:
                    narrowest = width * (1.5 if quarters else 1.0)
                    best[0], best[1], best[2], best[3], best[4] = whole[0], width, ahead[first], ahead[b], growth
    return best
