"""Recurrence in state space: how close an orbit comes to itself after p, 2 p, many p steps."""

import numpy as np

from dynloop.kernels import kernel, vector_kernel


@vector_kernel
def mean_return(squared, first, lag):
    """Mean squared distance of states `lag` apart, from `first` on, and the standard error of that mean."""
    n_steps = len(squared)
    s, ss, n = 0.0, 0.0, 0
    for i in range(first, n_steps - lag):
        s += squared[i, i + lag]
        ss += squared[i, i + lag] ** 2
        n += 1
    return s / n, np.sqrt(max(ss / n - (s / n) ** 2, 0.0) / n)


@vector_kernel
def returns(squared, longest, first_returns, second_returns, errors, typical):
    """Profile of returns: for every period p, how close states p and 2 p apart are in the last max(3 p, T / 2) steps.

    Args:
        squared: (T, T) squared distances.
        longest: longest period.
        first_returns, second_returns, errors, typical: (longest + 1,) output: mean squared distances at lags p and
            2 p, standard error of the first, and mean squared distance of all pairs in the same steps.
    """
    n_steps = len(squared)
    pairs = np.zeros(n_steps + 1)
    for w in range(2, n_steps + 1):
        s = 0.0
        for j in range(n_steps - w + 1, n_steps):
            s += squared[n_steps - w, j]
        pairs[w] = pairs[w - 1] + s
    for p in range(1, longest + 1):
        w = max(3 * p, n_steps // 2)
        first_returns[p], errors[p] = mean_return(squared, n_steps - w, p)
        second_returns[p], _ = mean_return(squared, n_steps - w, 2 * p)
        typical[p] = pairs[w] / (w * (w - 1) / 2)


@vector_kernel
def closest_return(squared, longest, out):
    """The smallest period whose returns are as close as the closest, to the accuracy of their means.

    Args:
        squared: (T, T).
        longest: longest period, at most T / 3.
        out: (8,) output: period; first and second return, return after the most periods that fit into two thirds of
            the window, return at lag 1, closest return at a shorter lag (all over the typical squared distance); how
            many standard errors the last return lies above the first; and the return after about half the record,
            from its first quarter on, where the orbit repeats as closely there as later (else the last return again).
    """
    n_steps = len(squared)
    one, two = np.empty(longest + 1), np.empty(longest + 1)
    error, typical = np.empty(longest + 1), np.empty(longest + 1)
    returns(squared, longest, one, two, error, typical)
    best, best_error = np.inf, 0.0
    for p in range(1, longest + 1):
        u = max(one[p], two[p]) / max(typical[p], 1e-300)
        if u < best:
            best, best_error = u, error[p] / max(typical[p], 1e-300)
    period, shorter = 1, np.inf
    for p in range(1, longest + 1):
        scale = max(typical[p], 1e-300)
        u = max(one[p], two[p]) / scale
        if u <= best * 1.02 + 4.0 * (error[p] / scale + best_error) + 1e-4:
            period = p
            break
        shorter = min(shorter, u)
    w = max(3 * period, n_steps // 2)
    many = max(2, (2 * w // 3) // period)
    scale = max(typical[period], 1e-300)
    last, last_error = mean_return(squared, n_steps - w, many * period)
    out[0] = period
    out[1] = one[period] / scale
    out[2] = two[period] / scale
    out[3] = last / scale
    out[4] = one[1] / max(typical[1], 1e-300)
    out[5] = min(shorter, 9.0)
    out[6] = (last - one[period]) / max(error[period] + last_error, 1e-9 * scale)
    out[7] = out[3]
    quarter, far = n_steps // 4, n_steps // 2 // period * period
    if far >= period * many and n_steps - quarter - far >= 4:
        early, n = 0.0, 0
        for i in range(quarter, n_steps // 2):
            early += squared[i, i + period]
            n += 1
        if early / n <= 1.2 * one[period] + 1e-4 * scale:  # no transient is left
            out[7] = max(out[3], mean_return(squared, quarter, far)[0] / scale)


@kernel
def shuffled_mean(squared, pairs, degrees):
    """Expectation and standard deviation of the mean squared distance over some pairs when states change places.

    Over all orders of the states, exactly (quadratic assignment: Mantel 1967), so that no order needs to be drawn.

    Args:
        squared: (n, n) squared distances of at least 4 states.
        pairs: how many unordered pairs the mean runs over.
        degrees: (n,) how many of these pairs each state belongs to.
    """
    n = len(squared)
    total, squares, rows = 0.0, 0.0, 0.0
    for i in range(n):
        own = 0.0
        for j in range(n):
            own += squared[i, j]
            squares += squared[i, j] ** 2
        total += own
        rows += own * own
    # both matrices are symmetric with an empty diagonal; sums run over ordered pairs
    a_total, a_rows = 2.0 * pairs, (degrees * degrees).sum()
    expected = a_total * total / (n * (n - 1))
    disjoint = (a_total**2 + 2 * a_total - 4 * a_rows) * (total**2 + 2 * squares - 4 * rows)
    second = 2 * a_total * squares / (n * (n - 1)) \
        + 4 * (a_rows - a_total) * (rows - squares) / (n * (n - 1) * (n - 2)) \
        + disjoint / (n * (n - 1) * (n - 2) * (n - 3))
    return expected / a_total, np.sqrt(max(second - expected**2, 0.0)) / a_total
