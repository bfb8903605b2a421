"""Turns of an orbit: cosines between adjacent steps, from the distances between three states in a row."""

import numpy as np

from dynloop.kernels import kernel


@kernel
def turns(squared, lengths, unresolved_below, cosines, accelerations):
    """Cosine of, and distance between, each step and the next.

    Args:
        squared: (n, T, T) squared distances between the states of each orbit.
        lengths: (n,) finite steps.
        unresolved_below: a squared distance between two steps below this share of their squared norms is not resolved,
            and where one squared step is below this share of the other, neither is the cosine.
        cosines: (n, T - 2) output, NaN where one of the two steps is 0.
        accelerations: (n, T - 2) output, norm of the difference of the two steps, -1 where unresolved.

    Returns:
        (n,) bool: there is a -1.
    """
    n, n_turns = cosines.shape
    unresolved = np.zeros(n, dtype=np.bool_)
    for o in range(n):
        for k in range(n_turns):
            cosines[o, k], accelerations[o, k] = np.nan, np.nan
            if k + 2 >= lengths[o]:
                continue
            a, b, two = squared[o, k, k + 1], squared[o, k + 1, k + 2], squared[o, k, k + 2]
            if a > 0.0 and b > 0.0:
                cosines[o, k] = min(max((two - a - b) / (2.0 * np.sqrt(a) * np.sqrt(b)), -1.0), 1.0)
            apart = 2.0 * a + 2.0 * b - two
            if not apart >= unresolved_below * (a + b) or 0.0 < min(a, b) < unresolved_below * max(a, b):
                accelerations[o, k] = -1.0
                unresolved[o] = True
            else:
                accelerations[o, k] = np.sqrt(apart)
    return unresolved


@kernel
def fill_turns(states, cosines, accelerations):
    """Compute directly what is marked -1: states (T, dim) in float64, cosines and accelerations changed in place."""
    for k in range(len(accelerations)):
        if accelerations[k] != -1.0:
            continue
        a, b, product, apart = 0.0, 0.0, 0.0, 0.0
        for i in range(states.shape[1]):
            u, v = states[k + 1, i] - states[k, i], states[k + 2, i] - states[k + 1, i]
            a += u * u
            b += v * v
            product += u * v
            apart += (v - u) * (v - u)
        accelerations[k] = np.sqrt(apart)
        if a > 0.0 and b > 0.0:
            cosines[k] = min(max(product / (np.sqrt(a) * np.sqrt(b)), -1.0), 1.0)
