"""Numba loops: arrays in, arrays out, no policy. The slow, obvious twin of each stands in tests/oracles.py."""

from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop: cached on disk, free of the interpreter's lock, NaN respected."""
    # fastmath stays off: kernels test for NaN, and fastmath lets the compiler assume that there is none
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=False)(function)


def vector_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for loops that are mostly sums: these may be taken in any order, which lets the compiler use vectors."""
    # reassociation alone: unlike full fastmath it leaves NaN and infinity what they are
    return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})(function)
