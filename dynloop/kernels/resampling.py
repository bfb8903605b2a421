"""Weights of resamples, counter-based: replicate b of a seed is the same whoever draws it, and in whatever order."""

import math

import numpy as np

from dynloop.kernels import kernel, vector_kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32, _S16 = (np.uint64(s) for s in (30, 27, 31, 32, 16))
_LOW32, _LOW16 = np.uint64(0xFFFFFFFF), np.uint64(0xFFFF)


def _poisson_table() -> np.ndarray:
    """Poisson(1) for each of 2^16 equally likely words; variance right to 1e-4."""
    share = np.array([math.exp(-1) / math.factorial(k) for k in range(10)])
    return np.searchsorted(np.cumsum(share), (np.arange(65536) + 0.5) / 65536).astype(np.uint8)


POISSON = _poisson_table()


@kernel
def mix(word):
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the word matters to every bit."""
    word = (word ^ (word >> _S30)) * _MIX1
    word = (word ^ (word >> _S27)) * _MIX2
    return word ^ (word >> _S31)


@kernel
def _scatter(state, n_draws, low, n, out):
    """Draw n_draws of n units with replacement and count them in out[low:low + n]; the next state."""
    size = np.uint64(n)
    for _ in range(n_draws // 2):  # two draws a word; n < 2^32, so the bias is below n / 2^32
        state += _GOLDEN
        word = mix(state)
        out[low + np.int64(((word & _LOW32) * size) >> _S32)] += 1.0
        out[low + np.int64(((word >> _S32) * size) >> _S32)] += 1.0
    if n_draws % 2:
        state += _GOLDEN
        out[low + np.int64(((mix(state) >> _S32) * size) >> _S32)] += 1.0
    return state


@kernel
def nested_weights(seed, first, starts, widths, fixed, out):
    """How often each innermost unit is drawn when units are drawn within units, from the outermost level inwards.

    Args:
        seed: uint64.
        first: number of the first replicate of `out`.
        starts: (n_levels, most units + 1) where the children of unit u of the level above begin; level 0 has one
            parent.
        widths: (n_levels + 1,) units at the level above each level, then innermost units.
        fixed: so many outer levels are kept as they are.
        out: (replicates, innermost units) float64, written.
    """
    n_levels = len(starts)
    most = widths.max()
    above, below = np.empty(most), np.empty(most)
    for b in range(len(out)):
        state = mix(np.uint64(seed) + _GOLDEN * np.uint64(first + b + 1))
        above[0] = 1.0
        for level in range(n_levels):
            last = level == n_levels - 1
            target = out[b] if last else below
            target[:widths[level + 1]] = 0.0
            for unit in range(widths[level]):
                times = int(above[unit])
                if times == 0:
                    continue
                low = starts[level, unit]
                n = starts[level, unit + 1] - low
                if level < fixed:
                    target[low:low + n] = times
                else:
                    state = _scatter(state, times * n, low, n, target)
            if not last:
                above[:widths[level + 1]] = below[:widths[level + 1]]


@kernel
def crossed_weights(seed, first, rows, columns, n_rows, n_columns, out):
    """Products of the counts of two levels that are drawn each for itself (Owen 2007's pigeonhole bootstrap).

    Args:
        seed, first: as above.
        rows, columns: (cells,) the unit of each cell at the two levels.
        n_rows, n_columns: units of the two.
        out: (replicates, cells) float64, written.
    """
    row_counts, column_counts = np.empty(n_rows), np.empty(n_columns)
    for b in range(len(out)):
        state = mix(np.uint64(seed) + _GOLDEN * np.uint64(first + b + 1))
        row_counts[:] = 0.0
        column_counts[:] = 0.0
        state = _scatter(state, n_rows, 0, n_rows, row_counts)
        state = _scatter(state, n_columns, 0, n_columns, column_counts)
        for c in range(len(rows)):
            out[b, c] = row_counts[rows[c]] * column_counts[columns[c]]


@kernel
def poisson_weights(seed, first, keys, table, out):
    """Independent Poisson(1) weights that depend on nothing but seed, replicate and the unit's key.

    Args:
        seed: uint64.
        first: number of the first replicate, a multiple of four: one word holds the weights of four replicates.
        keys: (units,) uint64, well mixed.
        table: `POISSON`.
        out: (replicates, units) float64, written.
    """
    for b in range(0, len(out), 4):
        of_four = mix(np.uint64(seed) + _GOLDEN * np.uint64((first + b) // 4 + 1))
        rest = min(4, len(out) - b)
        for u in range(len(keys)):
            word = mix(of_four ^ keys[u])
            for r in range(rest):
                out[b + r, u] = table[np.int64(word & _LOW16)]
                word >>= _S16


@vector_kernel
def weighted_sums(weights, columns, out):
    """Sums of columns (k, units) under weights (replicates, units); out (replicates, k)."""
    for b in range(len(weights)):
        for k in range(len(columns)):
            total = 0.0
            for u in range(weights.shape[1]):
                total += weights[b, u] * columns[k, u]
            out[b, k] = total


@vector_kernel
def _weighted_sum(weights, column):
    total = 0.0
    for u in range(len(weights)):
        total += weights[u] * column[u]
    return total


@kernel
def weighted_quantiles(weights, values, unit_of, sizes, upto, starts, q, out):
    """Quantiles (linear between order statistics, as numpy's) of values that are repeated by their unit's weight.

    Args:
        weights: (replicates, units) whole numbers.
        values: (n,) sorted.
        unit_of: (n,) of each of these.
        sizes: (units,) values of each unit.
        upto: (n_cells + 1, units) how many values of a unit come before a place among the sorted ones.
        starts: (n_cells + 1,) these places.
        q: which quantile.
        out: (replicates,); NaN where nothing is drawn.
    """
    for b in range(len(weights)):
        total = _weighted_sum(weights[b], sizes)
        if total == 0:
            out[b] = np.nan
            continue
        place = q * (total - 1)
        lower = math.floor(place)
        before, cell, above_it = 0.0, 0, len(upto) - 1
        while above_it - cell > 1:  # the run that holds the lower order statistic
            middle = (cell + above_it) // 2
            drawn = _weighted_sum(weights[b], upto[middle])
            if drawn > lower:
                above_it = middle
            else:
                cell, before = middle, drawn
        i = starts[cell]
        while before + weights[b, unit_of[i]] <= lower:
            before += weights[b, unit_of[i]]
            i += 1
        below = values[i]
        before += weights[b, unit_of[i]]
        while before <= lower + 1 and i < len(values) - 1 and place > lower:
            i += 1
            before += weights[b, unit_of[i]]
        above = values[i] if place > lower else below
        out[b] = below + (above - below) * (place - lower)


@kernel
def block_indices(seed, first, n, length, stationary, out):
    """Steps of resampled series, in blocks that wrap around the end (Politis and Romano 1992, 1994).

    Args:
        seed, first: as above.
        n: steps of the series.
        length: of the blocks, or their mean length where these are geometric.
        stationary: geometric lengths.
        out: (replicates, n) whole numbers, written.
    """
    new = 1.0 / length
    for b in range(len(out)):
        state = mix(np.uint64(seed) + _GOLDEN * np.uint64(first + b + 1))
        at, left = 0, 0.0
        for i in range(n):
            if stationary:
                state += _GOLDEN
                start = i == 0 or (mix(state) >> np.uint64(11)) * 2.0**-53 < new
            else:
                start = left < 1.0
                left = (length if start else left) - 1.0
            if start:
                state += _GOLDEN
                at = np.int64(((mix(state) >> _S32) * np.uint64(n)) >> _S32)
            out[b, i] = at
            at = at + 1 if at + 1 < n else 0


@kernel
def lowest_and_highest(values, unit_of, out):
    """Exponents of two that bound all values: out[0] of the last set bit, out[1] of the largest value.

    Args:
        values: (n,) finite.
        unit_of: not used; the same arguments as `add_digits`.
        out: (2,) whole numbers, start at (2000, -2000).
    """
    for i in range(len(values)):
        if values[i] != 0.0:
            part, exponent = math.frexp(values[i])
            whole = np.int64(part * 2.0**53)
            last = math.frexp(np.float64(whole & -whole))[1] - 1
            out[0] = min(out[0], exponent - 53 + last)
            out[1] = max(out[1], exponent)


@kernel
def add_digits(values, unit_of, lowest, width, out):
    """Add values to their units without rounding: digits of `width` bits, whole numbers.

    Args:
        values: (n,) finite.
        unit_of: (n,) whole numbers.
        lowest: index of the first digit: digit j of `out` counts 2^(width (lowest + j)).
        width: bits of a digit.
        out: (units, digits) int64, added to.
    """
    for i in range(len(values)):
        rest = values[i]
        if rest == 0.0:
            continue
        j = (math.frexp(rest)[1] - 1) // width - lowest
        while rest != 0.0:
            place = width * (lowest + j)
            digit = np.rint(math.ldexp(rest, -place))
            out[unit_of[i], j] += np.int64(digit)
            rest -= math.ldexp(digit, place)
            j -= 1
