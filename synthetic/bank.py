"""Random orbits of every regime by the million: parameters are drawn orbit by orbit, whole batches are stepped at once.

`draw(family, n, n_steps, rng)` gives latent orbits (n, n_steps, d) in float64; `FAMILIES` says which regime each family
shows. They calibrate `limit_regime` (some seeds) and measure its error rates (others). The families of named systems
with exact answers stand in the other files of this folder; here only the regime, and a planted period, are known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FAMILIES: dict[str, tuple[str, Callable[[int, int, np.random.Generator], Any]]] = {}


def _family(regime: str) -> Callable:
    def enter(function: Callable) -> Callable:
        FAMILIES[function.__name__] = (regime, function)
        return function
    return enter


def draw(family: str, n: int, n_steps: int, rng: Any = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latent orbits (n, n_steps, d), float64, and the planted period of each (0 where there is none)."""
    found = FAMILIES[family][1](n, n_steps, np.random.default_rng(rng))
    return found if isinstance(found, tuple) else (found, np.zeros(n, dtype=np.int64))


def _frames(n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Random orthogonal matrices (n, dim, dim)."""
    return np.linalg.qr(rng.normal(size=(n, dim, dim)))[0]


def _linear(blocks: np.ndarray, n_steps: int, rng: np.random.Generator, *, shear: np.ndarray | None = None,
            start: np.ndarray | None = None) -> np.ndarray:
    """Orbits of x' = A x, A block-diagonal with complex eigenvalues `blocks` (n, k) in k planes, sheared or not."""
    n, k = blocks.shape
    t = np.arange(n_steps)
    z = (rng.normal(size=(n, k)) + 1j * rng.normal(size=(n, k))) if start is None else start
    waves = z[:, None] * blocks[:, None] ** t[None, :, None]
    x = np.concatenate([waves.real, waves.imag], axis=2)
    return x if shear is None else x @ shear


def _spectrum(n: int, k: int, rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Eigenvalues (n, k), the first of modulus rho; real and complex, the others inside."""
    inside = rho[:, None] * rng.uniform(0.2, 1, (n, k)) ** rng.choice([0.3, 1, 2], (n, 1))
    inside[:, 0] = rho
    angle = np.where(rng.random((n, k)) < 0.5, 0, rng.uniform(0, np.pi, (n, k)))
    return inside * np.exp(1j * angle) * np.where(rng.random((n, k)) < 0.1, -1, 1)


@_family("fixed point")
def contraction(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    return _linear(_spectrum(n, 4, 0.01 ** (1 / (n_steps * rng.uniform(0.02, 0.85, n))), rng), n_steps, rng)


@_family("fixed point")
def damped_spiral(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    rho = 0.01 ** (1 / (n_steps * rng.uniform(0.05, 0.85, n)))
    return _linear((rho * np.exp(1j * rng.uniform(0.02, np.pi, n)))[:, None], n_steps, rng)


@_family("fixed point")
def non_normal(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Chains x_k' = rho x_k + c x_(k+1), turned by an angle in half of the cases: growth before decay."""
    k = 4
    rho = 0.01 ** (1 / (n_steps * rng.uniform(0.02, 0.35, n)))
    multiplier = rho * np.exp(1j * np.where(rng.random(n) < 0.5, 0, rng.uniform(0, np.pi, n)))
    couple = rng.uniform(0.1, 2, n)
    z = rng.normal(size=(n, k)) + 1j * rng.normal(size=(n, k))
    states = np.empty((n, n_steps, 2 * k))
    for t in range(n_steps):
        states[:, t, :k], states[:, t, k:] = z.real, z.imag
        z = multiplier[:, None] * z + couple[:, None] * np.concatenate([z[:, 1:], 0 * z[:, :1]], axis=1)
    return states


@_family("fixed point")
def tanh_contraction(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    return _tanh(n, n_steps, rng, rng.uniform(0.2, 0.8, n), dim=24)


@_family("converging")
def slow_contraction(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    rho = rng.uniform(0.08, 0.6, n) ** (1 / n_steps)
    return _linear(_spectrum(n, 3, rho, rng), n_steps, rng)


@_family("converging")
def slow_mode(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Fast modes die, one slow real mode is left."""
    blocks = _spectrum(n, 4, rng.uniform(0.2, 0.8, n), rng)
    blocks[:, 0] = rng.uniform(0.08, 0.6, n) ** (1 / n_steps)
    return _linear(blocks, n_steps, rng)


@_family("converging")
def slow_real_modes(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Nothing but slow decay, along one to three directions."""
    d = int(rng.integers(1, 4))
    rho = rng.uniform(0.08, 0.6, n) ** (1 / n_steps)
    rates = rho[:, None] ** np.concatenate([np.ones((n, 1)), rng.uniform(1, 4, (n, d - 1))], axis=1)
    return rng.normal(size=(n, 1, d)) * rates[:, None] ** np.arange(n_steps)[None, :, None]


@_family("converging")
def slow_spiral(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    rho = rng.uniform(0.08, 0.95, n) ** (1 / n_steps)
    angle = np.where(rng.random(n) < 0.2, np.pi, rng.uniform(0.02, np.pi, n))
    return _linear((rho * np.exp(1j * angle))[:, None], n_steps, rng)


def _onto(limit: np.ndarray, rng: np.random.Generator, period: Any = 0) -> np.ndarray:
    """Add a transient, in directions of its own, to 3 of 4 orbits; three periods, or half the record, are left."""
    n, n_steps, d = limit.shape
    scale = np.sqrt(((limit - limit.mean(1, keepdims=True)) ** 2).sum(2).mean(1))
    size = scale * rng.choice([0, 0.5, 3, 10, 100, 1000], n, p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1])
    room = np.minimum(0.45, 1 - 3 * np.broadcast_to(period, n) / n_steps)
    size[room < 0.03] = 0
    time = n_steps * np.maximum(rng.uniform(0.07, 1, n) * room, 0.01)  # until a fiftieth of the limit's extent is left
    rho = (0.02 * scale / np.maximum(size, scale)) ** (1 / time)
    away = rng.normal(size=(n, 1, d + 2))
    away *= (size / np.linalg.norm(away, axis=2)[:, 0])[:, None, None]
    return np.concatenate([limit, np.zeros((n, n_steps, 2))], axis=2) + away * rho[:, None, None] ** \
        np.arange(n_steps)[:, None]


@_family("orbit")
def random_cycle(n: int, n_steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random points, visited in turn."""
    period = rng.integers(2, n_steps // 3 + 1, n)
    short = rng.random(n) < 0.5
    period[short] = rng.integers(2, min(9, n_steps // 3 + 1), short.sum())
    points = rng.normal(size=(n, period.max(), 12))
    at = (rng.integers(0, 1000, (n, 1)) + np.arange(n_steps)) % period[:, None]
    return _onto(np.take_along_axis(points, at[:, :, None], axis=1), rng, period), period


@_family("orbit")
def smooth_cycle(n: int, n_steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points on a closed curve with harmonics, visited q apart."""
    period = rng.integers(2, n_steps // 3 + 1, n)
    short = rng.random(n) < 0.5
    period[short] = rng.integers(2, min(13, n_steps // 3 + 1), short.sum())
    around = np.array([rng.choice([q for q in range(1, max(2, p)) if np.gcd(q, p) == 1]) for p in period])
    around = np.where(rng.random(n) < 0.5, 1, around)
    phase = 2 * np.pi * (rng.random((n, 1)) + np.arange(n_steps) * (around / period)[:, None])
    return _onto(_curve(phase, rng), rng, period), period


def _curve(phase: np.ndarray, rng: np.random.Generator, *, n_harmonics: int = 3) -> np.ndarray:
    """A closed curve through 2 n_harmonics dimensions; the first harmonic is the largest."""
    n = len(phase)
    size = rng.exponential(1, (n, n_harmonics)) * np.array([1, 0.3, 0.1][:n_harmonics]) * rng.choice([0.02, 1], (n, 1))
    size[:, 0] = 1
    waves = [size[:, h, None] * f((h + 1) * phase + rng.random((n, 1)) * 6.283) for h in range(n_harmonics)
             for f in (np.cos, np.sin)]
    return np.stack(waves, axis=2)


@_family("orbit")
def logistic_window(n: int, n_steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Period 2, 3 and 4 of the logistic map, well inside their windows."""
    which = rng.integers(0, 3, n)
    r = np.select([which == 0, which == 1], [rng.uniform(3.08, 3.4, n), rng.uniform(3.8295, 3.838, n)],
                  rng.uniform(3.47, 3.53, n))
    x = rng.uniform(0.1, 0.9, n)
    for _ in range(3000):
        x = r * x * (1 - x)
    return _stack(x, n_steps, lambda y: r * y * (1 - y)), np.select([which == 0, which == 1], [2, 3], 4)


def _stack(x: np.ndarray, n_steps: int, step: Callable) -> np.ndarray:
    states = np.empty((len(x), n_steps, *x.shape[1:])) if x.ndim > 1 else np.empty((len(x), n_steps, 1))
    for t in range(n_steps):
        states[:, t] = x if x.ndim > 1 else x[:, None]
        x = step(x)
    return states


def _irrational(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Rotation numbers that keep away from q/p: no return at p <= n_steps / 3 stays near until the record's end."""
    omega = np.empty(0)
    while len(omega) < n:
        new = rng.uniform(1.5 / n_steps, 0.5, 4 * n)
        new = np.concatenate([new, (np.sqrt(5) - 1) / 2 * np.ones(n // 20 + 1), np.sqrt(2) - np.ones(n // 20 + 1)])
        omega = np.concatenate([omega, rng.permutation(new[_keeps_away(new, n_steps)])])
    return omega[:n]


def _keeps_away(rotation: np.ndarray, n_steps: int) -> np.ndarray:
    """Whether near returns at p <= n_steps / 3 have gone by .024 turns (golden mean: .03) before the record ends."""
    p = np.arange(1, n_steps // 3 + 1)
    return (np.abs(rotation[:, None] * p - np.round(rotation[:, None] * p)) * (n_steps // p)).min(1) > 0.024


def _birkhoff_weights(n: int) -> np.ndarray:
    """Weights of a time average that converges faster than any power (Das, Saiki, Sander and Yorke 2017).

    The plain mean of n steps knows a rotation number to 1 / n only: orbits locked to q/p would pass for irrational.
    """
    u = (np.arange(n) + 0.5) / n
    weights = np.exp(-1 / (u * (1 - u)))
    return weights / weights.sum()


@_family("quasi-periodic")
def rotation(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    omega = _irrational(n, n_steps, rng)
    return _onto(_curve(2 * np.pi * (rng.random((n, 1)) + omega[:, None] * np.arange(n_steps)), rng), rng)


@_family("quasi-periodic")
def torus(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Two incommensurate frequencies."""
    t = np.arange(n_steps)
    a, b = (2 * np.pi * (rng.random((n, 1)) + _irrational(n, n_steps, rng)[:, None] * t) for _ in range(2))
    second = rng.uniform(0.3, 1, (n, 1))
    waves = [np.cos(a), np.sin(a), second * np.cos(b), second * np.sin(b)]
    mixed = rng.choice([0, 0.3], (n, 1))
    return _onto(np.stack([*waves, mixed * np.cos(a + b), mixed * np.cos(a - b)], axis=2), rng)


@_family("quasi-periodic")
def invariant_circle(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Delayed logistic map past its Neimark-Sacker bifurcation."""
    a = rng.uniform(2.02, 2.15, 8 * n)
    x, y = rng.uniform(0.4, 0.6, (2, 8 * n))
    rotation = np.zeros(8 * n)
    weights = np.concatenate([np.zeros(1500), _birkhoff_weights(1000)])
    for weight in weights:
        centre = 1 - 1 / a
        before = np.arctan2(y - centre, x - centre)
        x, y = a * x * (1 - y), x
        rotation += weight * ((np.arctan2(y - centre, x - centre) - before) / (2 * np.pi) % 1)
    good = rng.choice(np.flatnonzero(_keeps_away(rotation, n_steps)), n)
    a = a[good]
    return _stack(np.stack([x, y], 1)[good], n_steps,
                  lambda s: np.stack([a * s[:, 0] * (1 - s[:, 1]), s[:, 0]], 1))


@_family("slider")
def drift(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A constant step, beside a decay that dies in the first half."""
    t = np.arange(n_steps)
    away = _linear(_spectrum(n, 2, 0.003 ** (1 / (n_steps * rng.uniform(0.05, 0.4, n))), rng), n_steps, rng)
    away *= rng.choice([0, 0.1, 0.5], n)[:, None, None] * n_steps * 0.1
    return np.concatenate([away, (0.1 * t * np.ones((n, 1)))[:, :, None]], axis=2)


@_family("slider")
def ballistic(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Growth along a direction whose relative step falls like 1/t, with a bend that dies out."""
    t = np.arange(n_steps) + rng.uniform(0, 10, (n, 1))
    bend = rng.uniform(-0.3, 0.3, (n, 1)) * n_steps * np.exp(-t / (n_steps * rng.uniform(0.05, 0.2, (n, 1))))
    return np.stack([t, bend], axis=2)


@_family("slider")
def wobbling_drift(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A constant drift with a cycle on top, as large as the drift is long at most."""
    t = np.arange(n_steps)
    turns = np.where(rng.random((n, 1)) < 0.5, rng.uniform(0.03, 0.5, (n, 1)), 1 / rng.integers(2, 13, (n, 1)))
    phase = 2 * np.pi * (rng.random((n, 1)) + turns * t)
    size = rng.uniform(0, 1, (n, 1)) ** 2 * n_steps
    return np.stack([t * np.ones((n, 1)), size * np.cos(phase), size * np.sin(phase)], axis=2)


def _settled(x: np.ndarray, n_steps: int, step: Callable, *, transient: int = 200) -> np.ndarray:
    for _ in range(transient):
        x = step(x)
    return _stack(x, n_steps, step)


@_family("chaotic")
def logistic_chaos(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    r = rng.choice([4, 3.99, 3.95, 3.9, 3.8], n)
    return _settled(rng.uniform(0.1, 0.9, n), n_steps, lambda x: r * x * (1 - x))


@_family("chaotic")
def tent(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    s = rng.uniform(1.6, 1.99, n)
    return _settled(rng.random(n), n_steps, lambda x: s * np.minimum(x, 1 - x))


@_family("chaotic")
def henon(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    a = rng.choice([1.4, 1.38, 1.36], n)
    return _settled(rng.uniform(-0.1, 0.1, (n, 2)), n_steps,
                    lambda s: np.stack([1 - a * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], 1))


@_family("chaotic")
def ikeda(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    def step(s: np.ndarray) -> np.ndarray:
        z = s[:, 0] + 1j * s[:, 1]
        z = 1 + 0.9 * z * np.exp(1j * (0.4 - 6 / (1 + np.abs(z) ** 2)))
        return np.stack([z.real, z.imag], 1)
    return _settled(rng.uniform(0, 0.5, (n, 2)), n_steps, step)


@_family("chaotic")
def delayed_chaos(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    a = rng.choice([2.2575, 2.262, 2.265, 2.2675, 2.2695], n)  # beside periodic windows, which are everywhere
    return _settled(rng.uniform(0.4, 0.6, (n, 2)), n_steps,
                    lambda s: np.stack([a * s[:, 0] * (1 - s[:, 1]), s[:, 0]], 1), transient=600)


@_family("chaotic")
def lozi(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    return _settled(rng.uniform(-0.1, 0.1, (n, 2)), n_steps,
                    lambda s: np.stack([1 - 1.7 * np.abs(s[:, 0]) + s[:, 1], 0.5 * s[:, 0]], 1))


def _runge_kutta(field: Callable, h: float, n_sub: int) -> Callable:
    def step(s: np.ndarray) -> np.ndarray:
        for _ in range(n_sub):
            a = field(s)
            b = field(s + h / 2 * a)
            c = field(s + h / 2 * b)
            s = s + h / 6 * (a + 2 * b + 2 * c + field(s + h * c))
        return s
    return step


@_family("chaotic")
def lorenz(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    def field(s: np.ndarray) -> np.ndarray:
        x, y, z = s.T
        return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)
    return _settled(rng.normal((0, 0, 25), 1, (n, 3)), n_steps,
                    _runge_kutta(field, 0.02, int(rng.choice([6, 8, 12]))), transient=60)


@_family("chaotic")
def roessler(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    def field(s: np.ndarray) -> np.ndarray:
        x, y, z = s.T
        return np.stack([-y - z, x + 0.2 * y, 0.2 + z * (x - 5.7)], 1)
    return _settled(rng.normal(size=(n, 3)), n_steps, _runge_kutta(field, 0.05, int(rng.choice([24, 40, 56]))),
                    transient=60)


@_family("chaotic")
def coupled_maps(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Three logistic maps on a ring; couplings between these two ranges give periods and tori."""
    c = np.where(rng.random((n, 1)) < 0.4, rng.uniform(0.055, 0.1, (n, 1)), rng.uniform(0.2, 0.3, (n, 1)))

    def step(x: np.ndarray) -> np.ndarray:
        f = 3.9 * x * (1 - x)
        return (1 - c) * f + c / 2 * (np.roll(f, 1, 1) + np.roll(f, -1, 1))
    return _settled(rng.uniform(0.2, 0.8, (n, 3)), n_steps, step)


@_family("diverging")
def expansion(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    blocks = _spectrum(n, 3, rng.uniform(0.3, 0.9, n), rng)
    blocks[:, 0] = rng.uniform(4, 1e4, n) ** (1 / n_steps)
    return _linear(blocks, n_steps, rng)


@_family("diverging")
def growing_spiral(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    blocks = _spectrum(n, 2, rng.uniform(0.3, 0.9, n), rng)
    blocks[:, 0] = rng.uniform(4, 1e4, n) ** (1 / n_steps) * np.exp(1j * rng.uniform(0.05, np.pi, n))
    return _linear(blocks, n_steps, rng)


@_family("undetermined")
def white_noise(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(n, n_steps, int(rng.choice([1, 2, 4, 16, 64]))))


@_family("undetermined")
def random_walk(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(n, n_steps, int(rng.choice([1, 2, 4, 16, 64])))).cumsum(1)


@_family("undetermined")
def autoregressive(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """AR(1), real or turning: a noisy relaxation, or a noise-driven spiral."""
    d = int(rng.choice([1, 2, 8, 32]))
    rho = np.where(rng.random(n) < 0.5, rng.uniform(0.3, 0.95, n), rng.uniform(0.95, 0.995, n))
    rho = rho * np.exp(1j * rng.choice([0, np.pi, 1], n, p=[0.45, 0.1, 0.45]) * rng.uniform(0.1, 1, n))
    e = rng.normal(size=(n, n_steps + 200, d)) + 1j * rng.normal(size=(n, n_steps + 200, d))
    z = np.zeros((n, d), complex)
    states = np.empty((n, n_steps, d))
    for t in range(n_steps + 200):
        z = rho[:, None] * z + e[:, t]
        if t >= 200:
            states[:, t - 200] = z.real
    return states


def _dense(n: int, d: int, rho: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random matrices (n, d, d) of spectral radius rho: full, triangular with large entries, or planes sheared."""
    kind = rng.integers(3)
    if kind == 0:
        a = rng.normal(size=(n, d, d))
        return a * (rho / np.abs(np.linalg.eigvals(a)).max(1))[:, None, None]
    if kind == 1:
        a = np.triu(rng.normal(size=(n, d, d)), 1) * rng.uniform(0.02, 0.6, (n, 1, 1))
        a[:, np.arange(d), np.arange(d)] = rho[:, None] * rng.uniform(0.2, 1, (n, d)) * rng.choice([1, 1, -1], (n, d))
        a[:, 0, 0] = rho
        return a
    a = np.zeros((n, d, d))
    modulus = rho[:, None] * rng.uniform(0.5, 1, (n, d // 2))
    modulus[:, 0] = rho
    z = modulus * np.exp(1j * rng.uniform(0, np.pi, (n, d // 2)))
    for k in range(d // 2):
        a[:, 2 * k, 2 * k] = a[:, 2 * k + 1, 2 * k + 1] = z[:, k].real
        a[:, 2 * k, 2 * k + 1], a[:, 2 * k + 1, 2 * k] = -z[:, k].imag, z[:, k].imag
    basis = np.linalg.qr(rng.normal(size=(n, d, d)))[0] * rng.uniform(0.3, 1, (n, 1, d))
    return basis @ a @ np.linalg.inv(basis)


def _iterated(a: np.ndarray, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(len(a), a.shape[1], 1))
    states = np.empty((len(a), n_steps, a.shape[1]))
    for t in range(n_steps):
        states[:, t] = x[:, :, 0]
        x = a @ x
    return states


@_family("fixed point")
def dense_contraction(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    rho = 0.01 ** (1 / (n_steps * rng.uniform(0.03, 0.6, n)))
    return _iterated(_dense(n, int(rng.choice([2, 4, 8, 16])), rho, rng), n_steps, rng)


@_family("fixed point")
def rounded_contraction(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Contractions and spirals computed in bfloat16: every step is rounded, so that rounding acts inside the loop."""
    import torch

    d, dim = int(rng.choice([2, 4, 8])), 256
    a = torch.from_numpy(_dense(n, d, 0.01 ** (1 / (n_steps * rng.uniform(0.05, 0.85, n))), rng))
    frame = torch.from_numpy(np.linalg.qr(rng.normal(size=(dim, d)))[0])
    centre = torch.from_numpy(rng.normal(size=(n, dim)) * rng.choice([0, 1, 3, 6], (n, 1)) / np.sqrt(dim))
    centre[:, :3] *= rng.choice([1, 8])  # massive activations
    x = (centre + torch.from_numpy(rng.normal(size=(n, d))) @ frame.T / np.sqrt(d)).bfloat16()
    states = np.empty((n, n_steps, dim))
    for t in range(n_steps):
        states[:, t] = x.double()
        z = ((x.double() - centre) @ frame)[:, :, None]
        x = (centre + (a @ z)[:, :, 0] @ frame.T).bfloat16()
    return states


def _tanh(n: int, n_steps: int, rng: np.random.Generator, gain: np.ndarray, *, dim: int,
          transient: int = 0) -> np.ndarray:
    """Orbits of x' = tanh(g J x + b), J with entries of variance 1/dim."""
    weights = rng.normal(size=(n, dim, dim)) / np.sqrt(dim) * gain[:, None, None]
    bias = 0.3 * rng.normal(size=(n, dim))
    x = rng.normal(size=(n, dim))
    states = np.empty((n, n_steps, dim))
    for t in range(-transient, n_steps):
        if t >= 0:
            states[:, t] = x
        x = np.tanh((weights @ x[:, :, None])[:, :, 0] + bias)
    return states


@_family("fixed point")
def noisy_contraction(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A contraction or spiral from afar that dynamical noise keeps moving about the fixed point."""
    rho = 0.02 ** (1 / (n_steps * rng.uniform(0.05, 0.5, n)))
    multiplier = rho * np.exp(1j * np.where(rng.random(n) < 0.5, 0, rng.uniform(0.05, np.pi, n)))
    d = int(rng.choice([2, 8, 32]))
    z = rng.normal(size=(n, d)) + 1j * rng.normal(size=(n, d))
    size = (rng.choice([0.003, 0.01, 0.03], n) * np.sqrt(1 - rho**2))[:, None]
    states = np.empty((n, n_steps, 2 * d))
    for t in range(n_steps):
        states[:, t, :d], states[:, t, d:] = z.real, z.imag
        z = multiplier[:, None] * z + size * (rng.normal(size=(n, d)) + 1j * rng.normal(size=(n, d)))
    return states


@_family("fixed point")
def many_modes(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A crowded spectrum: 24 modes of moduli up to rho."""
    return _linear(_spectrum(n, 24, 0.01 ** (1 / (n_steps * rng.uniform(0.05, 0.8, n))), rng), n_steps, rng)


@_family("fixed point")
def late_fall(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Wandering on a chaotic map at first, then a contraction takes over."""
    wander = logistic_chaos(n, n_steps, rng)
    t0 = n_steps * rng.uniform(0.05, 0.35, (n, 1))
    fall = np.minimum(1, 0.01 ** ((np.arange(n_steps) - t0) / (0.3 * n_steps)))
    return np.concatenate([(wander[:, :, 0] - 0.5) * fall, fall], 1).reshape(n, 2, n_steps).transpose(0, 2, 1)


@_family("quasi-periodic")
def relaxation(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A limit cycle with steep flanks, sampled at an irrational rate."""
    omega = _irrational(4 * n, n_steps, rng)
    omega = omega[np.minimum(omega, 0.5 - omega) < 0.25][:n]
    phase = 2 * np.pi * (rng.random((len(omega), 1)) + omega[:, None] * np.arange(n_steps))
    steep = rng.uniform(0.5, 3, (len(omega), 1))
    return np.stack([np.tanh(steep * np.cos(phase)) / np.tanh(steep), np.sin(phase - 0.3 * np.sin(phase))], axis=2)


@_family("quasi-periodic")
def circle_map(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Circle map below its critical coupling, at rotation numbers that keep away from returns."""
    k = rng.uniform(0.1, 0.9, 20 * n)
    bare = rng.uniform(0.05, 0.95, 20 * n)
    theta, rotation = rng.random(20 * n), np.zeros(20 * n)
    for weight in np.concatenate([np.zeros(1000), _birkhoff_weights(1000)]):
        step = bare - k / (2 * np.pi) * np.sin(2 * np.pi * theta)
        theta, rotation = theta + step, rotation + weight * step
    good = np.flatnonzero(_keeps_away(rotation, n_steps) & (np.minimum(rotation, 1 - rotation) > 1.5 / n_steps))
    good = rng.choice(good, n)
    k, bare, theta = k[good], bare[good], theta[good] % 1
    angles = _stack(theta, n_steps, lambda x: x + bare - k / (2 * np.pi) * np.sin(2 * np.pi * x))[:, :, 0]
    return np.stack([np.cos(2 * np.pi * angles), np.sin(2 * np.pi * angles)], axis=2)


@_family("slider")
def turning_drift(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A steady drift along an arc of at most half a radian."""
    angle = rng.uniform(0, 0.5, (n, 1)) * np.arange(n_steps) / n_steps
    radius = n_steps / np.maximum(angle[:, -1:], 1e-3)
    return np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle))], axis=2)


@_family("chaotic")
def standard_map(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    k = rng.uniform(7, 9, n)

    def step(s: np.ndarray) -> np.ndarray:
        momentum = s[:, 0] + k * np.sin(s[:, 1])
        return np.stack([momentum, s[:, 1] + momentum], 1) % (2 * np.pi)
    angles = _settled(rng.uniform(0, 2 * np.pi, (n, 2)), n_steps, step, transient=20)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=2)


@_family("chaotic")
def cat_map(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    cells = rng.integers(0, 2**31 - 1, (n, 2))  # on a lattice of prime size, whose cycles are long
    states = np.empty((n, n_steps, 2))
    for t in range(n_steps):
        states[:, t] = cells / (2**31 - 1)
        cells = np.stack([2 * cells[:, 0] + cells[:, 1], cells[:, 0] + cells[:, 1]], 1) % (2**31 - 1)
    return np.concatenate([np.cos(2 * np.pi * states), np.sin(2 * np.pi * states)], axis=2)


@_family("undetermined")
def coloured_noise(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with a power law or a broad bump in its spectrum."""
    d = int(rng.choice([1, 2, 8, 32]))
    f = np.fft.rfftfreq(2 * n_steps)[1:]
    power = np.where(rng.random((n, 1)) < 0.5, f ** -rng.uniform(0.5, 2.5, (n, 1)),
                     np.exp(-((f - rng.uniform(0.05, 0.45, (n, 1))) / rng.uniform(0.03, 0.2, (n, 1))) ** 2) + 0.05)
    waves = rng.normal(size=(n, d, len(f))) + 1j * rng.normal(size=(n, d, len(f)))
    waves *= np.sqrt(power)[:, None]
    noise = np.fft.irfft(np.concatenate([np.zeros((n, d, 1)), waves], 2), axis=2)
    return noise[:, :, :n_steps].transpose(0, 2, 1)


@_family("undetermined")
def slow_approach(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Towards a cycle or a rotation, not there yet: 5 to 40 % of its extent are left to go at the end."""
    turns = np.where(rng.random((n, 1)) < 0.5, 1 / rng.integers(2, 13, (n, 1)), rng.uniform(0.05, 0.5, (n, 1)))
    limit = _curve(2 * np.pi * (rng.random((n, 1)) + turns * np.arange(n_steps)), rng, n_harmonics=2)
    left, start = rng.uniform(0.05, 0.4, (n, 1)), 10 ** rng.uniform(0.3, 1.5, (n, 1))
    away = start * (left / start) ** (np.arange(n_steps) / n_steps)
    return np.concatenate([limit, away[:, :, None]], axis=2)


@_family("undetermined")
def wandering_clock(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """A closed curve whose phase diffuses, or whose frequency slides."""
    t = np.arange(n_steps)
    diffusion = rng.uniform(0.01, 0.06, (n, 1)) * rng.normal(size=(n, n_steps)).cumsum(1)
    chirp = rng.uniform(1, 8, (n, 1)) * (t / n_steps) ** 2
    turns = rng.uniform(0.03, 0.4, (n, 1)) * t + np.where(rng.random((n, 1)) < 0.5, diffusion, chirp)
    return _curve(2 * np.pi * turns, rng, n_harmonics=2)


@_family("undetermined")
def short_arc(n: int, n_steps: int, rng: np.random.Generator) -> np.ndarray:
    """Less than about one turn of a circle: a drift, a period, who knows."""
    turns = rng.uniform(0.25, 1.1, (n, 1))
    return _curve(2 * np.pi * (rng.random((n, 1)) + turns * np.arange(n_steps) / n_steps), rng, n_harmonics=1)


def record(family: str, n: int, n_steps: int, rng: Any = 0, *, dim: int = 256, noise: float = 0.0,
           offset: float = 3.0, massive: float = 1.0, uneven: float = 0.0,
           dtype: str = "float32") -> tuple[Any, np.ndarray]:
    """`Trajectories` of n orbits of a family as a model would leave them, and their planted periods.

    Unit amplitude in a random frame of `dim` dimensions, an offset of that many amplitudes in a direction of its own
    for each orbit, three of its coordinates `massive` times larger, noise whose rms norm is that share of the
    amplitude, alike in all coordinates unless `uneven` (the spread of the logarithms of its scales), and rounding. The
    amplitude is the rms distance from the mean over the second half of the record; in families that do not recur, half
    the distance of the first state from the last where that is larger.
    """
    import torch

    from dynloop import Trajectories

    rng = np.random.default_rng(rng)
    latent, period = draw(family, n, n_steps, rng)
    if family == "rounded_contraction":  # already wide, and rounded inside its loop
        return Trajectories(torch.from_numpy(latent).bfloat16()), period
    d = latent.shape[2]
    dim = max(dim, d)
    late = latent[:, n_steps // 2:]
    size = np.sqrt(((late - late.mean(1, keepdims=True)) ** 2).sum(2).mean(1))
    if FAMILIES[family][0] not in ("orbit", "quasi-periodic", "chaotic"):
        size = np.maximum(size, np.sqrt(((latent[:, 0] - latent[:, -1]) ** 2).sum(1)) / 2)
    latent = (latent - late.mean(1, keepdims=True)) / np.maximum(size, 1e-300)[:, None, None]
    frame = np.linalg.qr(rng.normal(size=(dim, d)))[0].T
    wide = np.float64 if dtype == "float64" else np.float32
    states = latent.astype(wide) @ frame.astype(wide)
    shift = rng.standard_normal((n, 1, dim), dtype=wide)
    shift /= np.linalg.norm(shift, axis=2, keepdims=True)
    shift[:, :, :3] *= wide(massive)
    states += wide(offset) * shift
    if noise:
        scales = np.exp(uneven * rng.normal(size=dim)) if uneven else np.ones(dim)
        scales *= noise / np.sqrt((scales**2).sum())
        states += rng.standard_normal(states.shape, dtype=wide) * scales.astype(wide)
    return Trajectories(torch.from_numpy(states).to(getattr(torch, dtype))), period
