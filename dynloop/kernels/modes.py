"""Sums of decaying modes, fitted to a stretch of an orbit that is known by its Gram matrix alone.

The states of the stretch are x[t] = limit + sum over k of Re(c[k] lambda[k]^t) + noise. A mode is one multiplier
lambda with an imaginary part >= 0; a complex one stands for its conjugate, too, and counts twice.

Small loops instead of array expressions: they compile in a third of the time.
"""

import numpy as np

from dynloop.kernels import kernel

LARGEST = 1.15  # of a multiplier: beyond, powers of it swamp everything else
_PRECISE = 1e-10  # a row that keeps less of its length than this beside the others is one of them


@kernel
def products_from_last(squared):
    """Products of states less the last one, from their squared distances: both (T, T)."""
    n = len(squared)
    products = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            products[i, j] = 0.5 * (squared[i, n - 1] + squared[j, n - 1] - squared[i, j])
    return products


@kernel
def square_sum(values):
    """Sum of the squares of an array (m, n)."""
    total = 0.0
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            total += values[i, j] * values[i, j]
    return total


@kernel
def solved(matrix, right):
    """Solution x (n, m) of matrix (n, n) x = right (n, m), by elimination with row pivots."""
    n, m = right.shape
    a, x = matrix.copy(), right.copy()
    for k in range(n):
        pivot = k
        for i in range(k + 1, n):
            if np.abs(a[i, k]) > np.abs(a[pivot, k]):
                pivot = i
        for j in range(n):
            a[k, j], a[pivot, j] = a[pivot, j], a[k, j]
        for j in range(m):
            x[k, j], x[pivot, j] = x[pivot, j], x[k, j]
        for i in range(k + 1, n):
            factor = a[i, k] / a[k, k]
            for j in range(k + 1, n):
                a[i, j] -= factor * a[k, j]
            for j in range(m):
                x[i, j] -= factor * x[k, j]
    for k in range(n - 1, -1, -1):
        for j in range(m):
            for i in range(k + 1, n):
                x[k, j] -= a[k, i] * x[i, j]
            x[k, j] /= a[k, k]
    return x


@kernel
def orthonormal(rows):
    """Rows q (m, L) and lower triangle l (m, m) with rows = l q; one that depends on those before it becomes 0."""
    q, lower = rows.copy(), np.zeros((len(rows), len(rows)))
    for k in range(len(q)):
        size = np.sqrt(np.dot(q[k], q[k]))
        for _ in range(2):  # twice is enough
            for j in range(k):
                along = np.dot(q[j], q[k])
                lower[k, j] += along
                for t in range(q.shape[1]):
                    q[k, t] -= along * q[j, t]
        left = np.sqrt(np.dot(q[k], q[k]))
        lower[k, k] = 1.0 if left <= _PRECISE * size else left
        for t in range(q.shape[1]):
            q[k, t] = 0.0 if left <= _PRECISE * size else q[k, t] / left
    return q, lower


@kernel
def principal_scores(gram, n_scores):
    """Leading principal components of a centred Gram matrix (L, L): their courses over time and their energies.

    A pivoted Cholesky decomposition, two steps of subspace iteration, and a small eigenvalue problem: as good as the
    full one where a component stands out, and some twenty times faster.

    Returns:
        courses (n, L), orthonormal rows, largest energy first; energies (n,), the squared singular values; n is at
        most n_scores, and the rank of the matrix.
    """
    length = len(gram)
    rest, rows, total, n = np.empty(length), np.zeros((min(n_scores, length), length)), 0.0, 0
    for t in range(length):
        rest[t] = gram[t, t]
        total += rest[t]
    while n < len(rows):
        pivot = 0
        for t in range(length):
            if rest[t] > rest[pivot]:
                pivot = t
        if not rest[pivot] > 1e-16 * total:
            break
        size = 1.0 / np.sqrt(rest[pivot])
        for t in range(length):
            value = gram[pivot, t]
            for k in range(n):
                value -= rows[k, pivot] * rows[k, t]
            rows[n, t] = value * size
            rest[t] -= rows[n, t] ** 2
        rest[pivot] = 0.0
        n += 1
    if n == 0:
        return np.zeros((0, length)), np.zeros(0)
    rows = orthonormal(rows[:n])[0]
    for _ in range(2):
        rows = orthonormal(np.dot(rows, gram))[0]
    values, turn = np.linalg.eigh(np.dot(np.dot(rows, gram), rows.T))
    courses, energies = np.zeros((n, length)), np.zeros(n)
    for k in range(n):
        energies[k] = max(values[n - 1 - k], 0.0)
        for j in range(n):
            for t in range(length):
                courses[k, t] += turn[j, n - 1 - k] * rows[j, t]
    return courses, energies


@kernel
def one_step_products(courses):
    """Products of scores with themselves and with those one step later, each over its own mean: (n, n), (n, n)."""
    n, length = courses.shape
    now, later = np.empty((n, length - 1)), np.empty((n, length - 1))
    for k in range(n):
        mean = 0.0
        for t in range(length):
            mean += courses[k, t]
        for t in range(length - 1):
            now[k, t] = courses[k, t] - (mean - courses[k, length - 1]) / (length - 1)
            later[k, t] = courses[k, t + 1] - (mean - courses[k, 0]) / (length - 1)
    return np.dot(now, now.T), np.dot(later, now.T)


@kernel
def one_step_modes(same, later, rank):
    """Multipliers of the affine map y[t + 1] = Phi y[t] + b that least squares fit to the first `rank` scores."""
    ridge, right = np.empty((rank, rank)), np.empty((rank, rank))
    for i in range(rank):
        for j in range(rank):
            ridge[i, j] = same[i, j] + (1e-15 if i == j else 0.0)
            right[i, j] = later[j, i]
    values = np.linalg.eigvals(solved(ridge, right).astype(np.complex128))
    modes, n = np.empty(rank, dtype=np.complex128), 0
    for value in values:
        size = np.abs(value)
        shrink = LARGEST / size if size > LARGEST else 1.0
        if np.abs(value.imag) <= 1e-9 * size or size < 1e-9:
            modes[n] = complex(value.real * shrink, 0.0)
            n += 1
        elif value.imag > 0.0:
            modes[n] = value * shrink
            n += 1
    return modes[:n]


@kernel
def nearest_modulus(modes, mode):
    """Modulus of the one of `modes` that is nearest to `mode`."""
    nearest = 0
    for k in range(len(modes)):
        if np.abs(modes[k] - mode) < np.abs(modes[nearest] - mode):
            nearest = k
    return np.abs(modes[nearest])


@kernel
def powers(modes, length):
    """Rows of the fit: 1, then Re lambda^t and, where it is complex, Im lambda^t; and the first row of each mode."""
    rows, first = 1, np.empty(len(modes), dtype=np.int64)
    for k in range(len(modes)):
        first[k] = rows
        rows += 1 if modes[k].imag == 0.0 else 2
    basis = np.empty((rows, length))
    for t in range(length):
        basis[0, t] = 1.0
    for k in range(len(modes)):
        power = complex(1.0, 0.0)
        for t in range(length):
            basis[first[k], t] = power.real
            if modes[k].imag != 0.0:
                basis[first[k] + 1, t] = power.imag
            power *= modes[k]
    return basis, first


@kernel
def fit(modes, scores):
    """Least squares of scores (n, L) on the powers of modes.

    Returns:
        basis (m, L), first, q, lower: see above; amplitudes (m, n); left (n, L), what is not explained.
    """
    basis, first = powers(modes, scores.shape[1])
    q, lower = orthonormal(basis)
    amplitudes, left = np.dot(q, scores.T), scores.copy()
    m, n = amplitudes.shape
    for i in range(n):
        for k in range(m):
            for t in range(scores.shape[1]):
                left[i, t] -= amplitudes[k, i] * q[k, t]
    for k in range(m - 1, -1, -1):
        for i in range(n):
            for j in range(k + 1, m):
                amplitudes[k, i] -= lower[j, k] * amplitudes[j, i]
            amplitudes[k, i] /= lower[k, k]
    return basis, first, q, lower, amplitudes, left


@kernel
def supports(modes, first, lower, amplitudes, length):
    """Energy that each mode explains beyond what all others do, per row of the fit, (n,); and the square of its largest
    contribution to a state, to within a factor of two, (n,)."""
    inverse = solved(lower, np.eye(len(lower)))
    covariance = np.dot(inverse.T, inverse)
    energies, shares = np.empty(len(modes)), np.empty(len(modes))
    for k in range(len(modes)):
        i = first[k]
        aa = np.dot(amplitudes[i], amplitudes[i])
        energies[k], shares[k] = aa / covariance[i, i], aa
        if modes[k].imag != 0.0:
            a, b, c = covariance[i, i], covariance[i, i + 1], covariance[i + 1, i + 1]
            bb, ab = np.dot(amplitudes[i + 1], amplitudes[i + 1]), np.dot(amplitudes[i], amplitudes[i + 1])
            energies[k] = 0.5 * (c * aa - 2.0 * b * ab + a * bb) / (a * c - b * b)
            shares[k] += bb
        shares[k] *= max(1.0, np.abs(modes[k]) ** (2 * (length - 1)))
    return energies, shares


@kernel
def slopes_of_fit(modes, first, basis, q, amplitudes):
    """Change of the fit to all scores with each parameter, less what the powers take up: (m, n * L).

    A real mode has one parameter; a complex one two, its real and imaginary part.
    """
    m, length, n = len(basis) - 1, basis.shape[1], amplitudes.shape[1]
    rows = np.empty((m, length))  # d Re lambda^t = t Re lambda^(t - 1), and the same for Im
    for i in range(m):
        rows[i, 0] = 0.0
        for t in range(1, length):
            rows[i, t] = t * basis[i + 1, t - 1]
        for j in range(len(q)):
            along = np.dot(q[j], rows[i])
            for t in range(length):
                rows[i, t] -= along * q[j, t]
    slopes = np.empty((m, n * length))
    for k in range(len(modes)):
        i = first[k] - 1
        for s in range(n):
            a = amplitudes[i + 1, s]
            if modes[k].imag == 0.0:
                for t in range(length):
                    slopes[i, s * length + t] = a * rows[i, t]
            else:
                b = amplitudes[i + 2, s]
                for t in range(length):
                    slopes[i, s * length + t] = a * rows[i, t] + b * rows[i + 1, t]
                    slopes[i + 1, s * length + t] = b * rows[i, t] - a * rows[i + 1, t]
    return slopes


@kernel
def polished(modes, scores, n_steps):
    """Multipliers moved to where they fit the orbit itself best (variable projection, Levenberg-Marquardt).

    Returns:
        modes; the standard error of the modulus of each, for white noise.
    """
    n_scores, length = scores.shape
    damping, errors = 1e-3, np.zeros(len(modes))
    basis, first, q, _, amplitudes, left = fit(modes, scores)
    square = square_sum(left)
    for _ in range(n_steps):
        slopes = slopes_of_fit(modes, first, basis, q, amplitudes)
        m = len(slopes)
        normal, right, scale = np.dot(slopes, slopes.T), np.zeros((m, 1)), np.empty(m)
        for i in range(m):
            scale[i] = np.sqrt(normal[i, i]) + 1e-300
            right[i, 0] = np.dot(slopes[i], left.reshape(-1)) / scale[i]
        for i in range(m):
            for j in range(m):
                normal[i, j] /= scale[i] * scale[j]
            normal[i, i] += 1e-14
        inverse = solved(normal, np.eye(m))
        noise = square / max(n_scores * (length - m - 1) - m, 1)
        for k in range(len(modes)):
            i, size = first[k] - 1, max(np.abs(modes[k]), 1e-300)
            u = modes[k].real / size / scale[i]
            errors[k] = u * u * inverse[i, i]
            if modes[k].imag != 0.0:
                v = modes[k].imag / size / scale[i + 1]
                errors[k] += 2.0 * u * v * inverse[i, i + 1] + v * v * inverse[i + 1, i + 1]
            errors[k] = np.sqrt(noise * max(errors[k], 0.0))
        furthest, better = 0.0, False
        for _ in range(4):
            damped = normal.copy()
            for i in range(m):
                damped[i, i] += damping
            step = solved(damped, right)
            moved, furthest = modes.copy(), 0.0  # of its own standard error
            for k in range(len(modes)):
                i = first[k] - 1
                pair = modes[k].imag != 0.0
                moved[k] += complex(step[i, 0] / scale[i], step[i + 1, 0] / scale[i + 1] if pair else 0.0)
                size = np.abs(moved[k])
                if size > LARGEST:
                    moved[k] *= LARGEST / size
                if moved[k].imag < 0.0:
                    moved[k] = moved[k].conjugate()
                furthest = max(furthest, np.abs(moved[k] - modes[k]) / (errors[k] + 1e-14))
            trial = fit(moved, scores)
            better = square_sum(trial[5]) < square
            if better:
                break
            damping = 10.0 * damping + 1e-6
        if not better:
            break
        modes = moved
        basis, first, q, _, amplitudes, left = trial
        square = square_sum(left)
        damping *= 0.1
        if furthest < 0.01:
            break
    return modes, errors


@kernel
def enough(dimensions):
    """How many times the energy of noise a mode must explain, noise of so many dimensions: one in 30,000 does.

    The upper quantile of chi-squared over its degrees of freedom (Wilson and Hilferty 1931), at 4 standard deviations.
    """
    width = 2.0 / (9.0 * dimensions)
    return (1.0 - width + 4.0 * np.sqrt(width)) ** 3


@kernel
def centred(gram):
    """Gram matrix (L, L) of the states less their mean."""
    length, grand = len(gram), 0.0
    means, found = np.zeros(length), np.empty((length, length))
    for s in range(length):
        for t in range(length):
            means[s] += gram[s, t] / length
        grand += means[s] / length
    for s in range(length):
        for t in range(length):
            found[s, t] = gram[s, t] - means[s] - means[t] + grand
    return found


@kernel
def window_modes(gram, max_rank, blur, rounding):
    """Modes of one stretch of an orbit.

    Args:
        gram: (L, L), products of its states less a common origin.
        max_rank: largest number of multipliers, conjugates counted.
        blur: relative error of the entries of `gram`.
        rounding: squared norm of the error of a state.

    Returns:
        modes, largest modulus first, none where none stands out from noise; their standard errors; and (8,): rank;
        spread of the slowest modulus across ranks; energy of the centred states; energy left; the same in the first and
        in the last third; correlation of what is left at one step with the next; dimensions that the noise seems to
        have.
    """
    length, about = len(gram), np.zeros(8)
    nothing = np.zeros(0, dtype=np.complex128), np.zeros(0), about
    products = centred(gram)
    total, size, n_first = 0.0, 0.0, length // 3
    for t in range(length):
        total += products[t, t]
        size = max(size, gram[t, t])
    about[2] = total
    if not total > length * rounding:
        return nothing
    courses, energies = principal_scores(products, min(max_rank + 2, length))
    scores, outside, spill = courses.copy(), np.empty(length), 0.0
    for k in range(len(scores)):
        for t in range(length):
            scores[k, t] *= np.sqrt(energies[k])
    for t in range(length):
        outside[t] = products[t, t]  # of the components
        for k in range(len(scores)):
            outside[t] -= scores[k, t] ** 2
        outside[t] = max(outside[t], 0.0)
        spill += outside[t]
    # the dimension of the noise: how evenly what the components leave over fills space
    unsure, dimensions = (4.0 * blur + 1e-14) * size, float(len(energies))
    if spill > length * unsure:
        even = square_sum(products)
        for k in range(len(energies)):
            even -= energies[k] ** 2
        dimensions = 1.0 / max(even / spill**2 - 1.0 / max(length - 1 - len(energies), 1), 1e-4)
    about[7] = min(max(dimensions, 1.0), 1e4)
    needed = enough(about[7])
    n_ranks = min(max_rank, len(energies), (length - 2) // 2)
    same, later = one_step_products(courses)
    best, rank, n_tried = length * np.log(total + length * rounding), 0, 0
    found, n_found = np.zeros((n_ranks + 1, n_ranks), dtype=np.complex128), np.zeros(n_ranks + 1, dtype=np.int64)
    for r in range(1, n_ranks + 1):
        modes = one_step_modes(same, later, r)
        for k in range(len(modes)):
            found[r, k] = modes[k]
        n_found[r], n_tried = len(modes), r
        square = square_sum(fit(modes, scores)[5]) + spill * (length - 1 - r) / length + length * rounding
        value = length * np.log(square) + (needed + 1.0) * r
        if value < best:
            best, rank = value, r
        elif r >= rank + 2:  # a pair needs two ranks to show
            break
    if rank == 0:
        return nothing
    modes, errors, n_steps = found[rank, :n_found[rank]].copy(), np.zeros(n_found[rank]), 0
    while True:
        basis, first, _, lower, amplitudes, left = fit(modes, scores)
        noise = max((square_sum(left) + spill) / max(length - len(basis), 1), rounding)
        explained, shares = supports(modes, first, lower, amplitudes, length)
        worst, least = 0, np.inf
        for k in range(len(modes)):
            support = min(explained[k] / max(needed * noise, 16.0 * blur * total), shares[k] / (16.0 * rounding))
            if support < least:
                worst, least = k, support
        if least < (0.5 if n_steps == 0 else 1.0):
            if len(modes) == 1:
                return nothing
            for k in range(worst, len(modes) - 1):
                modes[k] = modes[k + 1]
            modes, n_steps = modes[:len(modes) - 1].copy(), min(n_steps, 2)
        elif n_steps == 10:
            break
        else:
            n_steps = 2 if n_steps == 0 else 10  # near enough to see what has support; then to the end
            modes, errors = polished(modes, scores[:min(len(basis) - 1, len(scores))], n_steps)
    for k in range(1, len(modes)):  # by modulus, equal ones by angle
        for j in range(k, 0, -1):
            longer = np.abs(modes[j]) - np.abs(modes[j - 1])
            if longer > 1e-9 or (longer > -1e-9 and np.angle(modes[j]) < np.angle(modes[j - 1])):
                modes[j], modes[j - 1] = modes[j - 1], modes[j]
                errors[j], errors[j - 1] = errors[j - 1], errors[j]
    around = nearest_modulus(found[rank, :n_found[rank]], modes[0])
    about[0], about[1] = len(basis) - 1, np.abs(np.abs(modes[0]) - around)
    if len(energies) > rank:  # else there is nothing to add, and one mode fewer cannot do
        about[1] = 0.0
        for r in range(rank + 1 if rank < n_tried else max(rank - 1, 1), min(rank + 2, n_tried) + 1):
            about[1] = max(about[1], np.abs(nearest_modulus(found[r, :n_found[r]], modes[0]) - around))
    in_step, clear = 0.0, False
    for t in range(length):
        power = max(outside[t] - unsure, 0.0)
        clear |= power > 0.0
        for k in range(len(left)):
            power += left[k, t] ** 2
            if t > 0:
                in_step += left[k, t] * left[k, t - 1]
        about[3] += power
        about[4] += power if t < n_first else 0.0
        about[5] += power if t >= length - n_first else 0.0
    if clear:
        for t in range(1, length):
            in_step += products[t, t - 1]
            for k in range(len(scores)):
                in_step -= scores[k, t] * scores[k, t - 1]
    about[6] = in_step / max(about[3], 1e-300)
    return modes, errors, about
