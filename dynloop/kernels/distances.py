"""From centred Gram matrices to squared distances."""

import numpy as np

from dynloop.kernels import kernel


@kernel
def squared_distances(gram, lengths, unresolved_below, squared, norms, norm_gaps):
    """Fill distances, norms and norm gaps; count pairs that the Gram matrix cannot resolve.

    Args:
        gram: (n, T, T), products of states centred on each orbit's last finite state; the last row, which centring
            would make zero, holds the last state itself.
        lengths: (n,) finite steps.
        unresolved_below: a squared distance below this share of the two squared centred norms is not resolved.
        squared: (n, T, T) output; NaN at and beyond the length; -1 where it must be computed directly.
        norms: (n, T) output, norms of the states themselves; NaN at and beyond the length.
        norm_gaps: (n, T) output, each norm minus that of the last state, without cancellation; NaN likewise.

    Returns:
        (n,) pairs to compute directly.
    """
    n, n_steps = norms.shape
    unresolved = np.zeros(n, dtype=np.int64)
    for o in range(n):
        last = lengths[o] - 1
        g = gram[o]
        for i in range(last + 1, n_steps):
            norms[o, i] = np.nan
            norm_gaps[o, i] = np.nan
            for j in range(n_steps):
                squared[o, i, j] = np.nan
                squared[o, j, i] = np.nan
        if last < 0:
            continue
        own = float(g[last, last])
        for i in range(last):
            excess = float(g[i, i]) + 2.0 * float(g[i, last])
            norms[o, i] = np.sqrt(max(excess + own, 0.0))
            both = norms[o, i] + np.sqrt(own)
            norm_gaps[o, i] = excess / both if both > 0.0 else 0.0
            squared[o, i, i] = 0.0
            d = float(g[i, i])
            if not d < np.inf:
                d = -1.0
                unresolved[o] += 1
            squared[o, i, last] = d
            squared[o, last, i] = d
            for j in range(i):
                scale = float(g[i, i]) + float(g[j, j])
                d = scale - 2.0 * float(g[i, j])
                if not d >= unresolved_below * scale:
                    d = -1.0
                    unresolved[o] += 1
                squared[o, i, j] = d
                squared[o, j, i] = d
        norms[o, last] = np.sqrt(own)
        norm_gaps[o, last] = 0.0
        squared[o, last, last] = 0.0
    return unresolved


@kernel
def fill_unresolved(states, squared):
    """Compute every pair marked -1 directly: states (T, dim), squared (T, T), changed in place."""
    n_steps, dim = states.shape
    for i in range(n_steps):
        for j in range(i):
            if squared[i, j] == -1.0:
                total = 0.0
                for k in range(dim):
                    difference = float(states[i, k]) - float(states[j, k])
                    total += difference * difference
                squared[i, j] = total
                squared[j, i] = total
