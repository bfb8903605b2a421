"""Small dense linear algebra in loops: no call leaves the kernel, and no singular matrix is an error.

Small loops instead of array expressions: they compile faster.
"""

import numpy as np

from dynloop.kernels import kernel


@kernel
def dot(a, b):
    """Product of two vectors (n,); eight sums, so that one addition need not wait for the other."""
    s0, s1, s2, s3, s4, s5, s6, s7 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    whole = len(a) - len(a) % 8
    for k in range(0, whole, 8):
        s0 += a[k] * b[k]
        s1 += a[k + 1] * b[k + 1]
        s2 += a[k + 2] * b[k + 2]
        s3 += a[k + 3] * b[k + 3]
        s4 += a[k + 4] * b[k + 4]
        s5 += a[k + 5] * b[k + 5]
        s6 += a[k + 6] * b[k + 6]
        s7 += a[k + 7] * b[k + 7]
    for k in range(whole, len(a)):
        s0 += a[k] * b[k]
    return ((s0 + s4) + (s1 + s5)) + ((s2 + s6) + (s3 + s7))


@kernel
def add(share, a, b):
    """Add share * a to b, in place."""
    for k in range(len(a)):
        b[k] += share * a[k]


@kernel
def times(a, b):
    """Matrix product of contiguous arrays."""
    return np.dot(a, b)


@kernel
def inverse(matrix):
    """Inverse (n, n) by elimination; of a singular matrix something large, never an error."""
    n = len(matrix)
    m = np.zeros((n, 2 * n))
    largest = 0.0
    for i in range(n):
        m[i, n + i] = 1.0
        for j in range(n):
            m[i, j] = matrix[i, j]
            largest = max(largest, abs(matrix[i, j]))
    tiny = 1e-15 * largest + 1e-300
    for i in range(n):
        pivot = i
        for k in range(i + 1, n):
            if abs(m[k, i]) > abs(m[pivot, i]):
                pivot = k
        for j in range(2 * n):
            m[i, j], m[pivot, j] = m[pivot, j], m[i, j]
        own = m[i, i] if abs(m[i, i]) > tiny else tiny
        for j in range(2 * n):
            m[i, j] /= own
        for k in range(n):
            if k != i and m[k, i] != 0.0:
                share = m[k, i]
                for j in range(2 * n):
                    m[k, j] -= share * m[i, j]
    found = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            found[i, j] = m[i, n + j]
    return found


@kernel
def symmetric_eigen(matrix):
    """Eigenvalues (n,), largest first, and eigenvectors, as rows (n, n), of a small symmetric matrix, by rotations."""
    n = len(matrix)
    a, v = matrix.copy(), np.zeros((n, n))
    for i in range(n):
        v[i, i] = 1.0
    for _ in range(30):
        off, whole = 0.0, 0.0
        for i in range(n):
            whole += a[i, i] * a[i, i]
            for j in range(i):
                off += a[i, j] * a[i, j]
        if off <= 1e-32 * whole:
            break
        for i in range(n):
            for j in range(i):
                if a[i, j] == 0.0:
                    continue
                half = 0.5 * (a[j, j] - a[i, i]) / a[i, j]
                t = (1.0 if half >= 0.0 else -1.0) / (abs(half) + np.sqrt(half * half + 1.0))
                c = 1.0 / np.sqrt(t * t + 1.0)
                s = t * c
                for k in range(n):
                    a[i, k], a[j, k] = c * a[i, k] - s * a[j, k], s * a[i, k] + c * a[j, k]
                    v[i, k], v[j, k] = c * v[i, k] - s * v[j, k], s * v[i, k] + c * v[j, k]
                for k in range(n):
                    a[k, i], a[k, j] = c * a[k, i] - s * a[k, j], s * a[k, i] + c * a[k, j]
    values, rows = np.empty(n), np.empty((n, n))
    for i in range(n):
        best = -1
        for j in range(n):
            if not np.isnan(a[j, j]) and (best < 0 or a[j, j] > a[best, best]):
                best = j
        best = max(best, 0)
        values[i] = a[best, best]
        for k in range(n):
            rows[i, k] = v[best, k]
        a[best, best] = np.nan  # taken
    return values, rows


@kernel
def rotate(a, i, j, column, n):
    """Rotate rows i and j of a (n, n), and columns i and j back, so that a[j, column] becomes 0; in place."""
    x, y = a[i, column], a[j, column]
    length = np.sqrt(abs(x) ** 2 + abs(y) ** 2)
    if length == 0.0 or abs(y) == 0.0:
        return
    c, s = x / length, y / length
    for k in range(n):
        x, y = a[i, k], a[j, k]
        a[i, k], a[j, k] = np.conj(c) * x + np.conj(s) * y, c * y - s * x
    for k in range(n):
        x, y = a[k, i], a[k, j]
        a[k, i], a[k, j] = c * x + s * y, np.conj(c) * y - np.conj(s) * x


@kernel
def eigenvalues(matrix):
    """Eigenvalues (n,), complex, of a small real matrix, by shifted QR steps with deflation."""
    n = len(matrix)
    a = np.zeros((n, n), dtype=np.complex128)
    for i in range(n):
        for j in range(n):
            a[i, j] = matrix[i, j]
    for column in range(n - 2):  # to Hessenberg form, by rotations of rows and columns
        for i in range(n - 1, column + 1, -1):
            rotate(a, i - 1, i, column, n)
    found = np.empty(n, dtype=np.complex128)
    last, steps = n - 1, 0
    while last > 0:
        steps += 1
        size = abs(a[last, last]) + abs(a[last - 1, last - 1])
        if abs(a[last, last - 1]) <= 1e-15 * size or steps > 60:
            found[last] = a[last, last]
            last, steps = last - 1, 0
            continue
        p, q = a[last - 1, last - 1], a[last, last]
        root = np.sqrt((p - q) ** 2 + 4.0 * a[last - 1, last] * a[last, last - 1])
        shift = 0.5 * (p + q + root)
        if abs(0.5 * (p + q - root) - q) < abs(shift - q):
            shift = 0.5 * (p + q - root)
        if steps % 11 == 10:
            shift += abs(a[last, last - 1])  # out of a cycle
        for i in range(last + 1):
            a[i, i] -= shift
        sines, cosines = np.empty(last, dtype=np.complex128), np.empty(last)
        for i in range(last):
            x, y = a[i, i], a[i + 1, i]
            length = np.sqrt(abs(x) ** 2 + abs(y) ** 2)
            if length == 0.0:
                cosines[i], sines[i] = 1.0, 0.0
                continue
            c = abs(x) / length
            phase = x / abs(x) if abs(x) > 0.0 else 1.0 + 0.0j
            s = phase * np.conj(y) / length
            cosines[i], sines[i] = c, s
            for k in range(i, last + 1):
                x, y = a[i, k], a[i + 1, k]
                a[i, k], a[i + 1, k] = c * x + s * y, c * y - np.conj(s) * x
        for i in range(last):
            c, s = cosines[i], sines[i]
            for k in range(min(i + 2, last + 1)):
                x, y = a[k, i], a[k, i + 1]
                a[k, i], a[k, i + 1] = c * x + np.conj(s) * y, c * y - s * x
        for i in range(last + 1):
            a[i, i] += shift
    found[0] = a[0, 0]
    return found


@kernel
def leading(products, rank, sweeps):
    """Leading eigenvalues (rank,), largest first, and eigenvectors (rank, n) of products (n, n), by subspace iteration.

    Directions that the products do not have come out as zeros.
    """
    n = len(products)
    q = np.empty((rank, n))
    for i in range(rank):
        for t in range(n):
            q[i, t] = np.cos((i + 1) * (t + 0.5) * np.pi / n) * np.exp(-t * (i + 1.0) / n)
    for _ in range(sweeps):
        q = times(q, products)
        for i in range(rank):
            before = dot(q[i], q[i])
            for _ in range(2):
                for j in range(i):
                    add(-dot(q[i], q[j]), q[j], q[i])
            own = dot(q[i], q[i])
            scale = 1.0 / np.sqrt(own) if own > 1e-24 * before and own > 0.0 else 0.0
            for t in range(n):
                q[i, t] *= scale
    moved = times(q, products)
    small = np.empty((rank, rank))
    for i in range(rank):
        for j in range(i + 1):
            small[i, j] = 0.5 * (dot(moved[i], q[j]) + dot(moved[j], q[i]))
            small[j, i] = small[i, j]
    values, turn = symmetric_eigen(small)
    vectors = np.zeros((rank, n))
    for i in range(rank):
        for j in range(rank):
            add(turn[i, j], q[j], vectors[i])
    return values, vectors
