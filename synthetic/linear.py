"""Affine maps x' = x* + A (x - x*) with a chosen spectrum: every rate and every exponent is known."""

import numpy as np

from synthetic.frames import frame
from synthetic.system import System


def linear(name: str, spectrum, *, shear: float = 0.0, seed: int = 0) -> System:
    """An affine map with these eigenvalues, in a random frame, about a random fixed point.

    Args:
        name: its name.
        spectrum: eigenvalues; a complex one stands for itself and its conjugate, and takes two dimensions.
        shear: entries of this size above the diagonal (normal, independent): A is no longer normal, and grows before it
            shrinks, though its eigenvalues stay as they are.
        seed: of frame, shear and fixed point.
    """
    rng = np.random.default_rng([2701, seed])
    blocks = [np.array([[v.real, -v.imag], [v.imag, v.real]]) if np.imag(v) else np.array([[np.real(v)]])
              for v in spectrum]
    dim = sum(map(len, blocks))
    a = np.zeros((dim, dim))
    first = 0
    for block in blocks:
        stop = first + len(block)
        a[first:stop, first:stop] = block
        a[first:stop, stop:] = shear * rng.normal(size=(len(block), dim - stop))  # block triangular: same eigenvalues
        first = stop
    turn = frame(rng, dim)
    a = turn @ a @ turn.T
    rest = 2 * rng.normal(size=dim)
    both = np.concatenate([[v, np.conj(v)] if np.imag(v) else [v] for v in spectrum])
    multipliers = both[np.argsort(-np.abs(both), kind="stable")]
    radius = float(np.abs(multipliers[0]))
    exact = {"multipliers": tuple(multipliers.tolist()), "lyapunov": tuple(np.log(np.abs(multipliers)).tolist()),
             "spectral_radius": radius}
    if radius < 1:
        exact |= {"regime": "fixed point" if radius**128 <= 0.01 else "converging", "rate": radius, "fixed_point": rest}
    else:
        exact |= {"regime": "diverging"}
    return System(name, dim, lambda rng, n: rest + rng.normal(size=(n, dim)),
                  lambda x, rng: rest + (x - rest) @ a.T, exact=exact)


SYSTEMS = (
    linear("linear 2d .6 .3", (0.6, 0.3), seed=1),
    linear("linear 8d real", 0.9 * 0.8 ** np.arange(8), seed=2),
    linear("linear 64d real", np.linspace(0.95, 0.05, 64), seed=3),
    linear("linear 4d alternating", (-0.85, 0.5, 0.3, -0.2), seed=4),  # lambda = -.85: damped, and no cycle of 2
    linear("linear 2d spiral", (0.9 * np.exp(0.7j),), seed=5),
    linear("linear 16d spirals", 0.93 * 0.9 ** np.arange(8) * np.exp(1j * np.linspace(0.2, 2.8, 8)), seed=6),
    linear("linear 64d crowded", np.linspace(0.9, 0.8, 64), seed=7),
    linear("linear 32d crowded spirals", np.linspace(0.9, 0.85, 16) * np.exp(1j * np.linspace(0.1, 3.0, 16)), seed=8),
    linear("linear 16d slow", np.linspace(0.985, 0.4, 16), seed=9),
    linear("linear 8d slow spiral", (0.99 * np.exp(0.4j), 0.8, 0.7, 0.6, 0.5, 0.4, 0.3), seed=10),
    linear("linear 64d slow", np.linspace(0.995, 0.2, 64), seed=11),
    linear("linear 2d sheared", (0.9, 0.8), shear=8.0, seed=12),
    linear("linear 12d sheared", np.linspace(0.85, -0.3, 12), shear=1.0, seed=13),
    linear("linear 2d expanding", (1.04, 0.7), seed=14),
    linear("linear 16d expanding spiral", (1.03 * np.exp(0.5j), *np.linspace(0.9, 0.1, 14)), seed=15),
)
