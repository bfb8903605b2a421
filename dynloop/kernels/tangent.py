"""An orbit of a compiled map with its tangents, stretched and made orthogonal again, all in one loop."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numba

# not cached on disk: each process hands in functions of its own. Sums may be taken in any order: unlike full fastmath
# that leaves NaN and infinity what they are
_compiled = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
MOST_PRODUCTS = 512  # in one step: dim^2 k


@functools.lru_cache(maxsize=64)
def compiled(function: Callable[..., Any]) -> Any:
    """The function as Numba compiles it, once; one that is compiled already stays as it is."""
    return function if isinstance(function, numba.core.dispatcher.Dispatcher) else _compiled(function)


@functools.lru_cache(maxsize=16)
def follower(dim: int, k: int) -> Callable[..., Any]:
    r"""The loop for k tangents in `dim` dimensions, compiled: follow(step, jacobian, x, tangents, lengths, ...).

    Arguments of the loop:
        step: compiled x -> next x; x is a tuple of `dim` numbers, or an array.
        jacobian: compiled x -> its Jacobian there, `dim` rows of `dim` numbers.
        x: first state.
        tangents: (k, dim), orthonormal; overwritten by the last ones.
        lengths: (n,) steps of each part of the orbit.
        apart: steps after which tangents are made orthogonal. Until then tangent k falls towards tangent 1.
        normal: steps after which they are brought to length 1. Until then they must not leave the number format.
        sums: (n, k) output, log stretch of each part; -inf where a tangent was mapped to 0.

    Returns:
        The last state, and the number of parts that it stayed finite for.
    """
    # written out number by number: with arrays in the innermost loop it takes twice as long, and four times to compile
    names = [[f"v{i}_{r}" for r in range(dim)] for i in range(k)]

    def dot(i: int, j: int) -> str:
        return " + ".join(f"{a} * {b}" for a, b in zip(names[i], names[j], strict=True))

    lines = ["def follow(step, jacobian, x, tangents, lengths, apart, normal, sums):"]
    lines += [f"    {name} = tangents[{i}, {r}]" for i, own in enumerate(names) for r, name in enumerate(own)]
    lines += ["    for part in range(len(lengths)):",
              "        left = lengths[part]",
              "        while left > 0:",
              "            long = min(normal, left)",
              "            left -= long",
              "            while long > 0:",
              "                short = min(apart, long)",
              "                long -= short",
              "                for _ in range(short):",
              "                    j = jacobian(x)"]
    for own in names:
        images = (" + ".join(f"j[{r}][{c}] * {name}" for c, name in enumerate(own)) for r in range(dim))
        lines.append(f"                    {', '.join(own)}, = {', '.join(images)},")
    lines.append("                    x = step(x)")
    for i in range(k):
        for j in range(i):
            lines.append(f"                share = ({dot(i, j)}) / s{j} if s{j} > 0.0 else 0.0")
            lines += [f"                {a} -= share * {b}" for a, b in zip(names[i], names[j], strict=True)]
        lines.append(f"                s{i} = {dot(i, i)}")
    for i, own in enumerate(names):
        lines += [f"            sums[part, {i}] += 0.5 * log(s{i})", f"            if s{i} > 0.0:",
                  f"                share = 1.0 / sqrt(s{i})"]
        lines += [f"                {name} *= share" for name in own]
        lines.append("            else:")  # any direction will do: the next steps make it orthogonal to the others
        lines += [f"                {name} = {float(r == i)}" for r, name in enumerate(own)]
    finite = " and ".join(f"isfinite(x[{r}])" for r in range(dim))
    lines += [f"        if not ({finite}):", "            return x, part"]
    lines += [f"    tangents[{i}, {r}] = {name}" for i, own in enumerate(names) for r, name in enumerate(own)]
    lines.append("    return x, len(lengths)")
    scope: dict[str, Any] = {"log": math.log, "sqrt": math.sqrt, "isfinite": math.isfinite}
    exec("\n".join(lines), scope)
    return _compiled(scope["follow"])
