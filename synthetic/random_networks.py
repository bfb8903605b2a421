"""Networks x' = tanh(W x + b): at rest below the edge of chaos, chaotic above it, or with a cycle stored in W."""

import math

import numpy as np

from synthetic.frames import frame
from synthetic.system import System


def network(name: str, weights: np.ndarray, bias: np.ndarray, *, start=None, transient: int = 0, **exact) -> System:
    """The network with these weights (dim, dim) and biases (dim,); orbits start in normal states of size 1/2."""
    dim = len(weights)
    return System(name, dim, start or (lambda rng, n: 0.5 * rng.normal(size=(n, dim))),
                  lambda x, rng: np.tanh(x @ weights.T + bias), transient, exact=exact)


def at_rest(dim: int, gain: float, *, orthogonal: bool = False, seed: int = 0) -> System:
    """A planted fixed point: the bias is what puts it there, and its multipliers are eigenvalues of diag(1 - x^2) W.

    Args:
        dim: dimensions.
        gain: W is gain times a normal matrix of variance 1/dim (norm 2 gain), or times a rotation (norm gain): a gain
            below 1/2, or 1 for a rotation, contracts everywhere.
        orthogonal: a rotation.
        seed: of weights and fixed point.
    """
    rng = np.random.default_rng([2712, dim, seed])
    weights = gain * (frame(rng, dim) if orthogonal else rng.normal(size=(dim, dim)) / math.sqrt(dim))
    rest = np.tanh(0.5 * rng.normal(size=dim))
    values = np.linalg.eigvals((1 - rest**2)[:, None] * weights)
    values = values[np.argsort(-np.abs(values), kind="stable")]
    rate = float(np.abs(values[0]))
    kind = "rotation" if orthogonal else "normal"
    return network(f"tanh network {dim}d, {kind}, gain {gain:g}", weights, np.arctanh(rest) - weights @ rest,
                   regime="fixed point" if rate**128 <= 0.01 else "converging", rate=rate, fixed_point=rest,
                   multipliers=tuple(values.tolist()), lyapunov=tuple(np.log(np.abs(values)).tolist()))


def chaotic(dim: int, gain: float, *, seed: int = 0) -> System:
    """Without bias and far above the edge, gain 1 (Sompolinsky, Crisanti and Sommers, 1988); no exponent is exact."""
    rng = np.random.default_rng([2713, dim, seed])
    return network(f"tanh network {dim}d, chaotic, gain {gain:g}", gain * rng.normal(size=(dim, dim)) / math.sqrt(dim),
                   np.zeros(dim), transient=200, regime="chaotic")


def stored_cycle(dim: int, period: int, gain: float, *, seed: int = 0) -> System:
    """A sequence of orthogonal +-1 patterns, each of which calls the next: a cycle a * patterns, a = tanh(gain a).

    W = gain / dim sum next(pattern) pattern^T. On the cycle a step multiplies by gain (1 - a^2) within the span of the
    patterns and by 0 across it.

    Args:
        dim: dimensions, a power of 2.
        period: patterns, dim at most.
        gain: more than 1.
        seed: which patterns, and in which order.
    """
    rng = np.random.default_rng([2714, dim, period, seed])
    patterns = np.ones((1, 1))
    while len(patterns) < dim:
        patterns = np.block([[patterns, patterns], [patterns, -patterns]])
    patterns = (patterns * rng.choice([-1, 1], size=dim))[rng.permutation(dim)[:period]]
    size = 1.0
    for _ in range(10_000):
        size = math.tanh(gain * size)
    rate = gain * (1 - size**2)

    def start(rng: np.random.Generator, n: int) -> np.ndarray:
        return size * patterns[rng.integers(period, size=n)] + 0.3 * rng.normal(size=(n, dim))

    return network(f"tanh network {dim}d, cycle {period}", gain / dim * np.roll(patterns, -1, axis=0).T @ patterns,
                   np.zeros(dim), start=start, regime="orbit", period=period, rate=rate, cycle=size * patterns,
                   multipliers=(rate**period,) * period + (0.0,) * (dim - period),
                   lyapunov=(math.log(rate),) * period + (-math.inf,) * (dim - period))


SYSTEMS = (
    at_rest(16, 0.45), at_rest(64, 0.9), at_rest(128, 0.95, seed=1), at_rest(32, 0.98, orthogonal=True),
    chaotic(100, 3.0), chaotic(256, 2.0),
    stored_cycle(16, 3, 1.5), stored_cycle(64, 8, 2.0), stored_cycle(64, 24, 1.2),
)
