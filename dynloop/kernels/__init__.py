"""Numba loops: arrays in, arrays out, no policy. The slow, obvious twin of each stands in tests/oracles.py."""

from collections.abc import Callable
from typing import Any

import numba
from numba.core import types


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop: cached on disk, free of the interpreter's lock, NaN respected."""
    # fastmath stays off: kernels test for NaN, and fastmath lets the compiler assume that there is none
    return _compiled(function, fastmath=False)


def vector_kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for loops that are mostly sums: these may be taken in any order, which lets the compiler use vectors."""
    # reassociation alone: unlike full fastmath it leaves NaN and infinity what they are
    return _compiled(function, fastmath={"reassoc", "contract", "nsz"})


def _compiled(function: Callable[..., Any], fastmath: Any) -> Callable[..., Any]:
    made = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=fastmath)(function)
    asked = made.get_call_template

    # A number that stands in a call is to Numba a type of its own, for which it compiles the kernel once more, with all
    # that it calls: a fifth of all the time that `contraction_rate` takes to compile.
    def called(args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return asked(tuple(map(types.unliteral, args)), {name: types.unliteral(of) for name, of in named.items()})

    made.get_call_template = called
    return made
