"""The correlation sum, on a logarithmic grid of distances, and the stretch of it that is a power law.

Edge k of the grid, 0 to BINS, lies at the largest distance times 2^((k - BINS) / OCTAVE). Sums are kept for all pairs,
and for those that have a state in each of BLOCKS stretches of time, which are left out in turn for the error.
"""

import math

import numpy as np

from dynloop.kernels import kernel, vector_kernel

BINS = 128
OCTAVE = 8  # bins to a factor of 2
BLOCKS = 8  # of time, for the interval
QUANTILE = 2.3646  # 97.5 % of t with BLOCKS - 1 degrees of freedom


@vector_kernel
def mean_and_largest(squared, row, stop, column, end):
    """Mean and largest squared distance of the states row ... stop - 1 to the states column ... end - 1 after them."""
    total, largest, n = 0.0, 0.0, 0
    for i in range(row, stop):
        first = max(i + 1, column)
        n += max(end - first, 0)
        for j in range(first, end):
            total += squared[i, j]
            largest = max(largest, squared[i, j])
    return total / max(n, 1), largest


@kernel
def decorrelation(squared, start, stop, grown, most):
    """First lag whose mean squared distance reaches `grown`; 0 where none up to `most` does."""
    for lag in range(1, most + 1):
        total = 0.0
        for i in range(start, stop - lag):
            total += squared[i, i + lag]
        if total >= grown * (stop - lag - start):
            return lag
    return 0


@kernel
def correlation_sum(squared, start, stop, window, largest):
    """Number of pairs more than `window` steps apart that are no farther apart than each edge: (1 + BLOCKS, BINS + 1).

    Row 0 counts all, row b those that have no state in the b-th block of time.
    """
    sums = np.zeros((1 + BLOCKS, BINS + 1))
    for i in range(start, stop):
        own = 1 + (i - start) * BLOCKS // (stop - start)
        for j in range(i + window + 1, stop):
            value = squared[i, j]
            edge = 0
            if value > 0.0:
                edge = max(min(BINS + math.ceil(0.5 * OCTAVE * math.log2(value / largest)), BINS), 0)
            other = 1 + (j - start) * BLOCKS // (stop - start)
            sums[0, edge] += 1.0
            sums[own, edge] += 1.0
            if other != own:
                sums[other, edge] += 1.0
    for row in range(1 + BLOCKS):
        for edge in range(1, BINS + 1):
            sums[row, edge] += sums[row, edge - 1]
    for row in range(1, 1 + BLOCKS):
        for edge in range(BINS + 1):
            sums[row, edge] = sums[0, edge] - sums[row, edge]
    return sums


@kernel
def areas(roots):
    """Integral of each row over ln r, from the first edge to each: the shape of `roots`."""
    found, half_bin = np.zeros(roots.shape), 0.5 * math.log(2) / OCTAVE
    for row in range(len(roots)):
        for edge in range(1, roots.shape[1]):
            found[row, edge] = found[row, edge - 1] + half_bin * (roots[row, edge - 1] + roots[row, edge])
    return found


@kernel
def slope(roots, area, row, low, high):
    """Slope of ln C over ln r between two edges, with weights sqrt C: 2 [sqrt C] / integral of sqrt C over ln r."""
    return 2.0 * (roots[row, high] - roots[row, low]) / max(area[row, high] - area[row, low], 1e-300)


@kernel
def power_law(sums, bottom, first, last, least, tolerance, loosest, unseen):
    """The longest stretch between edges `first` and `last`, of `least` bins or more, whose two halves have one slope.

    They may differ by `tolerance`, relative, or by two standard errors, up to `loosest`. Of stretches of one length
    the one with the narrower interval counts. A stretch above a plateau is none: down to a quarter of its
    shortest distance, and down to edge `bottom`, ln C must fall at half its slope or more.

    Returns:
        slope, half width of its interval (t times the standard error, the difference of the halves, and `unseen`,
        relative), edges.
    """
    best = np.full(4, np.nan)
    roots = np.sqrt(sums)
    area = areas(roots)
    for length in range(last - first, least - 1, -1):
        narrowest = np.inf
        for low in range(first, last - length + 1):
            high, middle = low + length, low + length // 2
            whole = slope(roots, area, 0, low, high)
            apart = slope(roots, area, 0, middle, high) - slope(roots, area, 0, low, middle)
            if not whole > 0.0 or abs(apart) > loosest * whole:
                continue
            level = False
            for edge in (min(bottom, low), max(low - 2 * OCTAVE, 0)):
                left = sums[0, low] * 2.0 ** (-0.5 * whole * (low - edge) / OCTAVE)
                level |= sums[0, edge] > left + 2.0 * math.sqrt(sums[0, edge])
            if level:
                continue
            error, doubt = 0.0, 0.0
            for block in range(1, BLOCKS + 1):
                own = slope(roots, area, block, low, high)
                error += (own - whole) ** 2
                doubt += (slope(roots, area, block, middle, high) - slope(roots, area, block, low, middle) - apart) ** 2
            error, doubt = math.sqrt(error * (BLOCKS - 1) / BLOCKS), math.sqrt(doubt * (BLOCKS - 1) / BLOCKS)
            if abs(apart) > max(tolerance * whole, 2.0 * doubt):
                continue
            width = math.sqrt((QUANTILE * error) ** 2 + apart**2 + (unseen * whole) ** 2)
            if width < narrowest:
                narrowest = width
                best[0], best[1], best[2], best[3] = whole, width, low, high
        if narrowest < np.inf:
            break
    return best
