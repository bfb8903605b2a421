"""Translation variables of the 0-1 test, from squared distances alone."""

import numpy as np

from dynloop.kernels import kernel


@kernel
def lagged_products(squared, first, stride, n, lags):
    """Running sums of the products of states `lag` apart, centred on their mean.

    Args:
        squared: (T, T) squared distances.
        first, stride, n: the states used are first, first + stride, ..., n of them.
        lags: number of lags, from 0.

    Returns:
        (lags, n + 1): entry [d, m] is the sum over i < m, i + d < n of x[i] . x[i + d].
    """
    means = np.zeros(n)
    for i in range(n):
        for j in range(n):
            means[i] += squared[first + stride * i, first + stride * j]
        means[i] /= n
    overall = means.mean()
    sums = np.zeros((lags, n + 1))
    for i in range(n):
        for d in range(lags):
            product = 0.0
            if i + d < n:
                product = 0.5 * (means[i] + means[i + d] - overall
                                 - squared[first + stride * i, first + stride * (i + d)])
            sums[d, i + 1] = sums[d, i] + product
    return sums


@kernel
def displacements(sums, longest, angles):
    """Mean squared displacement of the sums of states turned by `angle` a step, over windows of 1 ... longest.

    Args:
        sums: from `lagged_products`, with at least `longest` lags.
        longest: the longest window; the mean is over the windows that fit into the record with it.
        angles: (n_angles,).

    Returns:
        (n_angles, longest).
    """
    windows = sums.shape[1] - 1 - longest
    moved = np.zeros((len(angles), longest))
    turns = np.empty(len(angles))
    for d in range(longest):
        for c in range(len(angles)):
            turns[c] = np.cos(d * angles[c]) * (1.0 if d == 0 else 2.0) / windows
        within = 0.0  # over the first n - d starts within a window, and all windows
        for n in range(d + 1, longest + 1):
            a = n - d - 1
            within += sums[d, windows + a] - sums[d, a]
            for c in range(len(angles)):
                moved[c, n - 1] += turns[c] * within
    return moved
