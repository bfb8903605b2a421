"""Sums of decaying modes fitted to a stretch of an orbit that is known by its squared distances alone.

The states of the stretch are x[t] = limit + sum over modes of c lambda^t + noise. A mode is one real multiplier, or a
complex pair rho e^(+-i angle), whose two columns are rho^t cos(angle t) and rho^t sin(angle t). Whatever the rates,
limit and coefficients follow by least squares, so that only the rates are searched (variable projection). Vectors over
time are rows, so that they are contiguous.
"""

import numpy as np

from dynloop.kernels import kernel
from dynloop.kernels.dense import add, dot, eigenvalues, inverse

REAL, ALTERNATING, PAIR = 0, 1, 2  # lambda > 0, lambda < 0, a complex pair
MOST_COLUMNS = 10  # of buffers: a fit of 6 columns, two more, the constant, and room
Q, SLOPES, MOVED = 0, 1, 2  # rows over time that a fit leaves, see `project`
R, COEFFICIENTS, INNER = 0, 1, 2  # and small matrices


@kernel
def centred_products(squared, first, stop):
    """Products (n, n) of the states first to stop (T, T), less their mean, from squared distances."""
    n = stop - first
    products, rows = np.empty((n, n)), np.zeros(n)
    total = 0.0
    for i in range(n):
        for j in range(n):
            rows[i] += squared[first + i, first + j]
        rows[i] /= n
        total += rows[i] / n
    for i in range(n):
        for j in range(n):
            products[i, j] = -0.5 * (squared[first + i, first + j] - rows[i] - rows[j] + total)
    return products


@kernel
def products_from(squared, norms, first, stop):
    """Products (n, n) of the states first to stop, from squared distances (T, T) and the states' norms (T,)."""
    n = stop - first
    products = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            products[i, j] = 0.5 * (norms[first + i] ** 2 + norms[first + j] ** 2 - squared[first + i, first + j])
    return products


@kernel
def delayed_products(products, delays):
    """Products of the stretches of `delays` successive states, one after the other: (n - delays + 1,) squared, centred.

    Every mode of the orbit is a mode of these, in any dimension, one included.
    """
    n = len(products) - delays + 1
    found, rows = np.empty((n, n)), np.zeros(n)
    for lag in range(n):
        total = 0.0
        for k in range(delays):
            total += products[k, k + lag]
        found[0, lag], found[lag, 0] = total, total
        for i in range(1, n - lag):
            total += products[i + delays - 1, i + delays - 1 + lag] - products[i - 1, i - 1 + lag]
            found[i, i + lag], found[i + lag, i] = total, total
    mean = 0.0
    for i in range(n):
        for j in range(n):
            rows[i] += found[i, j] / n
        mean += rows[i] / n
    for i in range(n):
        for j in range(n):
            found[i, j] -= rows[i] + rows[j] - mean
    return found


@kernel
def shift_multipliers(vectors, rank):
    """Eigenvalues (rank,) of the map y[t + 1] = Z y[t] + b fitted to the first `rank` rows of vectors (m, n)."""
    n = vectors.shape[1]
    now, after = np.empty((rank, n - 1)), np.empty((rank, n - 1))
    for i in range(rank):
        a, b = 0.0, 0.0
        for t in range(n - 1):
            a += vectors[i, t] / (n - 1)
            b += vectors[i, t + 1] / (n - 1)
        for t in range(n - 1):
            now[i, t], after[i, t] = vectors[i, t] - a, vectors[i, t + 1] - b
    own, across = np.empty((rank, rank)), np.empty((rank, rank))
    for i in range(rank):
        for j in range(rank):
            own[i, j], across[i, j] = dot(now[i], now[j]), dot(now[i], after[j])
        own[i, i] += 1e-14 * own[i, i] + 1e-300
    back = inverse(own)
    z = np.zeros((rank, rank))
    for i in range(rank):
        for j in range(rank):
            for k in range(rank):
                z[i, j] += back[i, k] * across[k, j]
    return eigenvalues(z)


@kernel
def modes_of(multipliers, least, most):
    """Kinds (k,) and rates (k, 2), decay -ln rho within [least, most] and angle, of multipliers; one for each pair."""
    kinds, rates = np.zeros(len(multipliers), dtype=np.int64), np.zeros((len(multipliers), 2))
    k = 0
    for value in multipliers:
        if value.imag < -1e-6 * abs(value):
            continue  # the other one of its pair
        decay = min(max(-np.log(max(abs(value), 1e-300)), least), most)
        if value.imag > 1e-6 * abs(value):
            kinds[k], rates[k, 0], rates[k, 1] = PAIR, decay, np.angle(value)
        else:
            kinds[k], rates[k, 0] = (REAL if value.real > 0.0 else ALTERNATING), decay
        k += 1
    return kinds[:k].copy(), rates[:k].copy()


@kernel
def n_columns(kinds):
    """Columns of these modes: two for a pair."""
    n = 0
    for kind in kinds:
        n += 2 if kind == PAIR else 1
    return n


@kernel
def powers(kinds, rates, rows):
    """Write the columns of the modes, as rows (m, n) of powers; returns how many."""
    n, c = rows.shape[1], 0
    for k in range(len(kinds)):
        rho = np.exp(-rates[k, 0])
        if kinds[k] == PAIR:
            a, b = rho * np.cos(rates[k, 1]), rho * np.sin(rates[k, 1])
            re, im = 1.0, 0.0
            for t in range(n):
                rows[c, t], rows[c + 1, t] = re, im
                re, im = re * a - im * b, re * b + im * a
            c += 2
        else:
            if kinds[k] == ALTERNATING:
                rho = -rho
            value = 1.0
            for t in range(n):
                rows[c, t] = value
                value *= rho
            c += 1
    return c


@kernel
def project(kinds, rates, free, scores, rows, small):
    """Fit limit and coefficients for given rates.

    Args:
        kinds, rates: the modes, c columns in all.
        free: 1 if the limit is to be fitted, 0 if it is 0 (the constant's row is then 0).
        scores: (m, n) what is fitted, each row a series.
        rows: (3, >= c + 1, n) output: in Q orthonormal rows that span the constant and the columns, in SLOPES the
            columns times t.
        small: (3, >= c + 1, >= c + 1) output: in R the upper triangle of that orthogonalisation, in COEFFICIENTS those
            of the columns (c, m).

    Returns:
        c, and the sum of squares left.
    """
    n = scores.shape[1]
    q, slopes, r, coefficients = rows[Q], rows[SLOPES], small[R], small[COEFFICIENTS]
    c = powers(kinds, rates, q[1:])
    for t in range(n):
        q[0, t] = float(free)
    for i in range(c):
        for t in range(n):
            slopes[i, t] = t * q[i + 1, t]
    for i in range(c + 1):
        before = dot(q[i], q[i])
        for j in range(i):
            r[j, i] = 0.0
        for sweep in range(2):
            for j in range(i):
                share = dot(q[j], q[i])
                r[j, i] += share
                add(-share, q[j], q[i])
            if sweep == 0 and dot(q[i], q[i]) > 1e-4 * before:
                break
        r[i, i] = max(np.sqrt(dot(q[i], q[i])), 1e-10 * np.sqrt(before)) if before > 0.0 else 1.0
        for t in range(n):
            q[i, t] /= r[i, i]
    left = 0.0
    along = np.empty(c + 1)
    for s in range(len(scores)):
        left += dot(scores[s], scores[s])
        for j in range(c + 1):
            along[j] = dot(q[j], scores[s])
            left -= along[j] * along[j]
        for j in range(c, 0, -1):
            value = along[j]
            for k in range(j + 1, c + 1):
                value -= r[j, k] * coefficients[k - 1, s]
            coefficients[j - 1, s] = value / r[j, j]
    return c, left


@kernel
def curvature(kinds, c, scores, rows, small, terms, signs, normal, gradient):
    """Gauss-Newton normal matrix and gradient with respect to decay and angle of every mode.

    What is left changes with parameter p by the sum over k of signs[p, k] slopes[terms[p, k, 0]] coefficients[terms[p,
    k, 1]], with slopes orthogonal to the fit; they are made so here, in place. Returns the number of parameters, and
    the products (c, c) of slopes and of coefficients.
    """
    q, slopes, coefficients = rows[Q], rows[SLOPES], small[COEFFICIENTS]
    for i in range(c):
        for _ in range(2):
            for j in range(c + 1):
                add(-dot(q[j], slopes[i]), q[j], slopes[i])
    own, size, across = np.empty((c, c)), np.zeros((c, c)), np.zeros((c, c))
    for i in range(c):
        for j in range(i + 1):
            own[i, j] = dot(slopes[i], slopes[j])
            own[j, i] = own[i, j]
            for s in range(len(scores)):
                size[i, j] += coefficients[i, s] * coefficients[j, s]
            size[j, i] = size[i, j]
        for s in range(len(scores)):
            along = dot(slopes[i], scores[s])
            for j in range(c):
                across[i, j] += along * coefficients[j, s]
    p, column = 0, 0
    for kind in kinds:
        for k in range(2):
            at = column + k if kind == PAIR else column
            terms[p, k, 0], terms[p, k, 1], signs[p, k] = at, at, 1.0 if kind == PAIR or k == 0 else 0.0
            if kind == PAIR:
                terms[p + 1, k, 0], terms[p + 1, k, 1], signs[p + 1, k] = column + 1 - k, column + k, 1.0 - 2.0 * k
        p += 2 if kind == PAIR else 1
        column += 2 if kind == PAIR else 1
    for i in range(p):
        gradient[i] = 0.0
        for x in range(2):
            gradient[i] += signs[i, x] * across[terms[i, x, 0], terms[i, x, 1]]
        for j in range(i + 1):
            total = 0.0
            for x in range(2):
                for y in range(2):
                    total += (signs[i, x] * signs[j, y] * own[terms[i, x, 0], terms[j, y, 0]]
                              * size[terms[i, x, 1], terms[j, y, 1]])
            normal[i, j], normal[j, i] = total, total
    return p, own, size


@kernel
def fit(kinds, rates, free, scores, least, most, sweeps, enough, rows, small):
    """Rates (k, 2) that leave the least squares, from given ones, by damped Gauss-Newton steps.

    The last projection stays in rows and small (see `project`). Decays stay within [least, most]. It ends after so
    many sweeps, with a step of 1e-5, or where the squares fall by less than `enough`.
    """
    size = 2 * len(kinds) + 1
    terms, signs = np.zeros((size, 2, 2), dtype=np.int64), np.zeros((size, 2))
    normal, gradient = np.zeros((size, size)), np.zeros(size)
    rates = rates.copy()
    new = rates.copy()
    c, left = project(kinds, rates, free, scores, rows, small)
    damping = 1e-3
    for _ in range(sweeps):
        p, _, _ = curvature(kinds, c, scores, rows, small, terms, signs, normal, gradient)
        better = False
        largest, gain = 0.0, 0.0
        for _ in range(3):
            damped = np.empty((p, p))
            for i in range(p):
                for j in range(p):
                    damped[i, j] = normal[i, j]
                damped[i, i] = normal[i, i] * (1.0 + damping) + 1e-300
            back = inverse(damped)
            i, largest = 0, 0.0
            for k in range(len(kinds)):
                for j in range(2 if kinds[k] == PAIR else 1):
                    step = 0.0
                    for m in range(p):
                        step -= back[i, m] * gradient[m]
                    if j == 0:
                        step = min(max(step, -0.5 * rates[k, 0]), rates[k, 0])
                        new[k, 0] = min(max(rates[k, 0] + step, least), most)
                    else:
                        step = min(max(step, -0.2), 0.2)
                        new[k, 1] = min(max(rates[k, 1] + step, 1e-3), np.pi - 1e-3)
                    largest = max(largest, abs(step) / rates[k, 0])
                    i += 1
            c, now = project(kinds, new, free, scores, rows, small)
            if now <= left:
                better, gain, left = True, left - now, now
                break
            damping = max(10.0 * damping, 1e-2)
        if not better:
            project(kinds, rates, free, scores, rows, small)
            break
        rates[:] = new
        damping *= 0.1
        if largest < 1e-5 or gain <= max(enough, 1e-10 * left):
            break
    return rates
