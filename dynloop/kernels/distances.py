"""From centred Gram matrices to squared distances.

A Gram matrix (T, T) here holds the products of an orbit's states centred on its last finite state; the last row and
column, which centring would make zero, hold the products with that last state itself, uncentred. `lengths` are finite
steps; NaN stands at and beyond them. A squared distance below `unresolved_below` times the two squared centred norms
cannot be resolved by the product and is marked -1; so is a norm that is small beside the last one.
"""

import numpy as np

from dynloop.kernels import kernel, vector_kernel


@kernel
def neighbours(gram, lengths, unresolved_below, tiny, large_enough, norms, norm_gaps, steps, from_last):
    """Norms, and squared distances to the next and to the last state.

    Args:
        gram: (n, T, T).
        lengths: (n,).
        unresolved_below: see above.
        tiny: a squared centred norm below this may have lost digits to underflow,
        large_enough: which matters only where the squared norm of the last state is below this.
        norms, norm_gaps: (n, T) output, norms of the states (-1 where unresolved) and the same minus the last one.
        steps: (n, T - 1) output, squared distances to the next state, -1 where unresolved.
        from_last: (n, T) output, squared distances to the last state.

    Returns:
        (n,) bool: there is a -1; (n,) bool: a square overflows or may have underflowed.
    """
    n, n_steps = norms.shape
    unresolved, awkward = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
    for o in range(n):
        last = lengths[o] - 1
        g = gram[o]
        for i in range(last + 1, n_steps):
            norms[o, i], norm_gaps[o, i], from_last[o, i] = np.nan, np.nan, np.nan
        for i in range(max(last, 0), n_steps - 1):
            steps[o, i] = np.nan
        if last < 0:
            continue
        own = np.float64(g[last, last])
        norms[o, last], norm_gaps[o, last], from_last[o, last] = np.sqrt(own), 0.0, 0.0
        small = own < large_enough  # else a distance whose square may underflow is no distance at this norm
        awkward[o] = not own < np.inf
        for i in range(last):
            square = np.float64(g[i, i])
            awkward[o] |= not square < np.inf or (small and square < tiny)
            excess = square + 2.0 * np.float64(g[i, last])
            if not excess + own >= unresolved_below * (square + own):
                norms[o, i] = -1.0
                unresolved[o] = True
            else:
                norms[o, i] = np.sqrt(excess + own)
            both = norms[o, i] + norms[o, last]
            norm_gaps[o, i] = excess / both if both > 0.0 else 0.0
            from_last[o, i] = square
            if i > 0:
                scale = square + np.float64(g[i - 1, i - 1])
                d = scale - 2.0 * np.float64(g[i - 1, i])
                if not d >= unresolved_below * scale:
                    d = np.float64(-1.0)
                    unresolved[o] = True
                steps[o, i - 1] = d
        if last > 0:
            steps[o, last - 1] = g[last - 1, last - 1]
    return unresolved, awkward


@vector_kernel
def all_pairs(gram, lengths, unresolved_below, squared):
    """Fill squared (n, T, T) for all pairs, -1 where unresolved; returns which orbits have such a pair, (n,) bool."""
    n, n_steps = squared.shape[:2]
    unresolved = np.zeros(n, dtype=np.bool_)
    own = np.empty(n_steps)
    for o in range(n):
        last = lengths[o] - 1
        g, filled = gram[o], squared[o]
        filled[:, last + 1:] = np.nan
        filled[last + 1:] = np.nan
        for i in range(last):
            own[i] = g[i, i]
        missed = 0
        for i in range(last):  # rows as a whole: that both triangles are computed costs less than to copy one
            row, products, mine = filled[i], g[i], own[i]
            for j in range(last):
                scale = mine + own[j]
                d = scale - 2.0 * np.float64(products[j])
                resolved = d >= unresolved_below * scale
                row[j] = d if resolved else -1.0
                missed += not resolved
            if row[i] == -1.0:
                missed -= 1
            row[i] = 0.0
            row[last] = mine
            filled[last, i] = mine
        if last >= 0:
            filled[last, last] = 0.0
        unresolved[o] = missed > 0
    return unresolved


@vector_kernel
def squared_distance(a, b):
    """Squared distance of two states (dim,), directly, in float64."""
    total = 0.0
    for k in range(len(a)):
        d = np.float64(a[k]) - np.float64(b[k])
        total += d * d
    return total


@vector_kernel
def norm(a):
    """Norm of a state (dim,), in float64."""
    total = 0.0
    for k in range(len(a)):
        total += np.float64(a[k]) * np.float64(a[k])
    return np.sqrt(total)


@kernel
def cosine_distances(states, others, cosines):
    """1 - cosine of states (n, dim) and others (n or 1, dim): half the squared distance of directions; NaN for 0."""
    for i in range(len(states)):
        other = others[i if len(others) > 1 else 0]
        a, b = norm(states[i]), norm(other)
        total = 0.0
        for k in range(states.shape[1]):
            difference = np.float64(states[i, k]) / a - np.float64(other[k]) / b
            total += difference * difference
        cosines[i] = 0.5 * total


@kernel
def fill_neighbours(states, length, everything, norms, norm_gaps, steps, from_last):
    """Compute directly what is marked -1, or everything: states (T, dim), the rest as in `neighbours`, in place."""
    end = norm(states[length - 1])
    for i in range(length):
        if everything or norms[i] == -1.0:
            norms[i] = norm(states[i])
            if norms[i] < 0.5 * end or norms[i] > 2.0 * end:
                norm_gaps[i] = norms[i] - end
            elif end > 0.0:  # (a - b).(a + b) / (|a| + |b|): no cancellation
                norm_gaps[i] = 0.0
                for k in range(states.shape[1]):
                    a, b = np.float64(states[i, k]), np.float64(states[length - 1, k])
                    norm_gaps[i] += (a - b) * ((a + b) / (norms[i] + end))
            else:
                norm_gaps[i] = norms[i]
    for i in range(length - 1):
        if everything or steps[i] == -1.0:
            steps[i] = squared_distance(states[i], states[i + 1])
        if everything:
            from_last[i] = squared_distance(states[i], states[length - 1])


@kernel
def fill_pairs(states, length, everything, squared):
    """Compute directly every pair marked -1, or all: states (T, dim), squared (T, T), changed in place."""
    for i in range(length):
        for j in range(i):
            if everything or squared[i, j] == -1.0 or squared[j, i] == -1.0:
                squared[i, j] = squared_distance(states[i], states[j])
                squared[j, i] = squared[i, j]
