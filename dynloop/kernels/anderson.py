"""One step of Anderson acceleration with an orthonormal memory, each row by itself while it is in the cache."""

import numpy as np

from dynloop.kernels import vector_kernel


@vector_kernel
def _norm(a):
    square = 0.0
    for d in range(len(a)):
        square += np.float64(a[d]) * np.float64(a[d])
    return np.sqrt(square)


@vector_kernel
def _dot(a, b):
    total = a.dtype.type(0)
    for d in range(len(a)):
        total += a[d] * b[d]
    return total


@vector_kernel
def _difference(a, b, out):
    for d in range(len(out)):
        out[d] = a[d] - b[d]


@vector_kernel
def _take_off(share, b, a):
    for d in range(len(a)):
        a[d] -= share * b[d]


@vector_kernel
def _scale(share, a):
    for d in range(len(a)):
        a[d] *= share


@vector_kernel
def _copy(a, out):
    for d in range(len(out)):
        out[d] = a[d]


@vector_kernel
def combine(x, g, kept, left, used, slot, smallest, following, sizes):
    """Next states; `dynloop.maps.anderson_memory.combine` is the same in plain torch.

    Args:
        x: states (n, dim).
        g: their images (n, dim).
        kept: (n, 2, size, dim), differences of residuals, orthonormal or zeros, and those of images combined alike; one
            slot is overwritten.
        left: (n, 2, dim), residual and image of the step before, less what the memory explained of the residual;
            overwritten by those of this step.
        used: slots that may hold something.
        slot: that of the new difference.
        smallest: a new difference shorter than this, over the residual, says nothing.
        following: output (n, dim), next states.
        sizes: output (n,), norms of the residuals g - x.
    """
    n, dim = x.shape
    shares = np.empty(used, x.dtype)
    f, image, new_f, new_image = np.empty(dim, x.dtype), np.empty(dim, x.dtype), np.empty(dim, x.dtype), \
        np.empty(dim, x.dtype)
    # a loop for each small task: where one loop writes to many arrays, the compiler uses no vectors
    for i in range(n):
        _difference(g[i], x[i], f)
        _copy(g[i], image)
        sizes[i] = size = _norm(f)
        for j in range(used):
            shares[j] = _dot(kept[i, 0, j], f)
        for j in range(used):
            _take_off(shares[j], kept[i, 0, j], f)
            _take_off(shares[j], kept[i, 1, j], image)
        _difference(f, left[i, 0], new_f)
        _difference(image, left[i, 1], new_image)
        height = _norm(new_f)
        shrink = x.dtype.type(0.0 if height <= smallest * size else 1.0 / height)
        _scale(shrink, new_f)
        _scale(shrink, new_image)
        share = _dot(new_f, f)
        _take_off(share, new_f, f)
        _take_off(share, new_image, image)
        _copy(new_f, kept[i, 0, slot])
        _copy(new_image, kept[i, 1, slot])
        _copy(f, left[i, 0])
        _copy(image, left[i, 1])
        _copy(image, following[i])
