"""Lines in a recurrence plot, in one walk over the upper triangle with memory for one row.

Every function takes the squared distances of one orbit in either of two forms: `states` (dim, T), from which each is
computed directly, with `squared` empty; or `squared` (T, T), with `states` of no dimension. Entry (i, j) of the plot is
a recurrence when |i - j| >= `apart` and the squared distance of states i and j is below the cutoff.
"""

import numpy as np

from dynloop.kernels import kernel


# Small loops over whole arrays, each a function of its own: only so does the compiler make vector instructions of them.
@kernel
def _square(values, own, row):
    for j in range(len(row)):
        row[j] = (values[j] - own) * (values[j] - own)


@kernel
def _add_square(values, own, row):
    for j in range(len(row)):
        row[j] += (values[j] - own) * (values[j] - own)


@kernel
def _below(row, cutoff, now):
    for j in range(len(row)):
        now[j] = row[j] < cutoff


@kernel
def _changes(now, left, above, corner, changed):
    for j in range(len(changed)):
        changed[j] = (now[j] ^ left[j]) | (now[j] ^ above[j]) | (now[j] ^ corner[j])


@kernel
def _total(row):
    total = 0.0
    for j in range(len(row)):
        total += row[j]
    return total


@kernel
def _squares(states, squared, i, row):
    """Squared distances of state i to itself and all later ones, into row (T - i,)."""
    if len(states) == 0:
        row[:] = squared[i, i:]
        return
    _square(states[0, i:], states[0, i], row)
    for k in range(1, len(states)):
        _add_square(states[k, i:], states[k, i], row)


@kernel
def mean_square(states, squared):
    """Mean squared distance over all pairs of distinct states, T >= 2."""
    n_steps = max(states.shape[1], len(squared))
    row, total = np.empty(n_steps), 0.0
    for i in range(n_steps):
        _squares(states, squared, i, row[i:])
        total += _total(row[i:])
    return total / (n_steps * (n_steps - 1) / 2)


@kernel
def ranked_square(states, squared, apart, rank):
    """The squared distance of this rank, from 0, among pairs at least `apart` >= 1 steps apart: digit by digit."""
    n_steps = max(states.shape[1], len(squared))
    row, found = np.empty(n_steps), np.empty(1)
    bits = row.view(np.uint64)  # numbers that are not negative are in the order of their bits
    prefix = np.uint64(0)
    eight, low = np.uint64(8), np.uint64(255)
    for digit in range(8):
        shift = np.uint64(56 - 8 * digit)
        counts = np.zeros(256, dtype=np.int64)
        for i in range(n_steps - apart):
            _squares(states, squared, i, row[i:])
            for j in range(i + apart, n_steps):
                if bits[j] >> shift >> eight == prefix:
                    counts[bits[j] >> shift & low] += 1
        d = 0
        while rank >= counts[d]:
            rank -= counts[d]
            d += 1
        prefix = prefix << eight | np.uint64(d)
    found.view(np.uint64)[0] = prefix
    return found[0]


@kernel
def line_lengths(states, squared, cutoff, apart, diagonal, vertical):
    """Count the lines of one recurrence plot by their length.

    A line is as long as it can be: it ends at the border, at a point that is no recurrence, and at the main diagonal
    where that is left out. Diagonals are counted above the main one, which is no line; verticals in every column.

    Args:
        states, squared, cutoff: see above.
        apart: see above; with 0 the main diagonal belongs to the plot.
        diagonal: (T + 1,) int64, zeros; diagonal[l] becomes the number of diagonal lines of length l above the main
            diagonal. There are as many below.
        vertical: (T + 1,) int64, zeros; the same of vertical lines.
    """
    n_steps = max(states.shape[1], len(squared))
    row = np.empty(n_steps)
    now, before = np.zeros(n_steps, dtype=np.uint8), np.zeros(n_steps, dtype=np.uint8)
    changed = np.zeros(n_steps // 8 * 8 + 8, dtype=np.uint8)
    eights = changed.view(np.uint64)
    diagonal_start = np.zeros(n_steps, dtype=np.int64)  # by lag
    vertical_start = np.zeros(n_steps, dtype=np.int64)  # by column
    for i in range(n_steps):
        _squares(states, squared, i, row[i:])
        _below(row[i:], cutoff, now[i:])
        now[i:i + apart] = 0
        # column i comes down to the main diagonal, crosses it, and goes on along row i: the plot is symmetric
        start = vertical_start[i]
        if now[i] != before[i]:
            if before[i]:
                vertical[i - start] += 1
            start = i
        rest = n_steps - 1 - i
        _changes(now[i + 1:], now[i:n_steps - 1], before[i + 1:], before[i:n_steps - 1], changed[:rest])
        changed[rest] = 0  # left from the row before
        for e in range(rest // 8 + 1):
            if eights[e] == 0:
                continue
            for j in range(i + 1 + 8 * e, min(i + 9 + 8 * e, n_steps)):
                here = now[j]
                if here != before[j - 1]:
                    if here:
                        diagonal_start[j - i] = i
                    else:
                        diagonal[i - diagonal_start[j - i]] += 1
                if here != before[j]:
                    if here:
                        vertical_start[j] = i
                    else:
                        vertical[i - vertical_start[j]] += 1
                if here != now[j - 1]:
                    if here:
                        start = j
                    else:
                        vertical[j - start] += 1
        if now[n_steps - 1]:
            vertical[n_steps - start] += 1
            if rest > 0:
                diagonal[i + 1 - diagonal_start[rest]] += 1
        now, before = before, now


@kernel
def line_statistics(counts, least):
    """Of lines counted by length, (T + 1,): points on any line; on lines of at least `least`; the number of these
    lines; the entropy of their lengths, in nats; the length of the longest line of any length."""
    points, kept, lines, longest, entropy = 0, 0, 0, 0, 0.0
    for length in range(1, len(counts)):
        if counts[length] > 0:
            points += length * counts[length]
            longest = length
            if length >= least:
                kept += length * counts[length]
                lines += counts[length]
    for length in range(least, len(counts)):
        if counts[length] > 0:
            share = counts[length] / lines
            entropy -= share * np.log(share)
    return points, kept, lines, entropy, longest
