"""Numba loops: arrays in, arrays out, no policy. The slow, obvious twin of each stands in tests/oracles.py."""

import functools

import numba

kernel = functools.partial(numba.njit, cache=True, nogil=True, error_model="numpy", fastmath=False)
# fastmath stays off: kernels test for NaN, and fastmath lets the compiler assume that there is none.
