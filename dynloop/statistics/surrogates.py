"""Orbits like the recorded ones but for what a null hypothesis denies: the makers behind `surrogate_test`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynloop.settings import check_whole

KINDS = ("phase", "ar1", "shuffle", "twin")
LEAST = 8  # steps
_AT_MOST = 0.999  # coefficient of an AR(1) null: beyond it the process is a random walk


def surrogates(states: Any, *, kind: str, n_surrogates: int, rng: Any = 0, recurrence_rate: float = 0.1) -> np.ndarray:
    """Surrogates of orbits of one length; see `surrogate_test` for the kinds.

    Args:
        states: (n_orbits, n_steps, dim), finite; at least 8 steps.
        kind: "phase", "ar1", "shuffle" or "twin".
        n_surrogates: of each orbit.
        rng: seed or generator; surrogate i is the same however many are asked for.
        recurrence_rate: for twins: the share of pairs of states that count as neighbours.

    Returns:
        (n_surrogates, n_orbits, n_steps, dim), float64. Twins: NaN for an orbit without any.

    Raises:
        ValueError: states of another shape, too few steps, numbers that are not finite, or an unknown kind.

    Example:
        >>> import numpy as np
        >>> from dynloop.statistics.surrogates import surrogates
        >>> x = np.random.default_rng(0).normal(size=(2, 64, 3)).cumsum(axis=1)
        >>> y = surrogates(x, kind="phase", n_surrogates=5)
        >>> spectrum = lambda z: np.abs(np.fft.rfft(z, axis=-2))
        >>> y.shape, bool(np.allclose(spectrum(y), spectrum(x)))
        ((5, 2, 64, 3), True)
    """
    check_whole("n_surrogates", n_surrogates, 1, "a whole number of at least 1")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}. Choose one of these.")
    x = np.asarray(states, dtype=float)
    if x.ndim != 3 or x.shape[1] < LEAST or not x.size or not np.isfinite(x).all():
        raise ValueError(f"states must be finite numbers (n_orbits, n_steps, dim) of at least {LEAST} steps; got shape "
                         f"{x.shape}{'' if np.isfinite(x).all() else ' with NaN or infinite ones'}. One orbit? Pass "
                         "states[None].")
    return Maker(x, kind, recurrence_rate).make(np.random.default_rng(rng).spawn(n_surrogates))


class Maker:
    """What surrogates of some orbits need to know of them, computed once."""

    def __init__(self, x: np.ndarray, kind: str, recurrence_rate: float) -> None:
        self.x, self.kind = x, kind
        if kind == "phase":
            self.spectrum = np.fft.rfft(x, axis=1)
        elif kind == "ar1":
            self.mean, self.coefficient, self.mix, self.start = _fitted(x)
        elif kind == "twin":
            self.twins = [_Twins(own, recurrence_rate) for own in x]

    def make(self, generators: list[np.random.Generator]) -> np.ndarray:
        """One surrogate of every orbit for each generator."""
        make = {"phase": self._phase, "ar1": self._ar1, "shuffle": self._shuffle, "twin": self._twin}[self.kind]
        return make(generators)

    def _phase(self, generators: list[np.random.Generator]) -> np.ndarray:
        n, n_steps, _ = self.x.shape
        n_free = (n_steps - 1) // 2  # frequencies between 0 and, for an even number of steps, the highest
        phases = np.stack([g.uniform(0, 2 * np.pi, (n, n_free)) for g in generators])
        turned = np.broadcast_to(self.spectrum, (len(generators), *self.spectrum.shape)).copy()
        turned[:, :, 1:n_free + 1] *= np.exp(1j * phases)[..., None]  # one phase for all features keeps cross-spectra
        return np.fft.irfft(turned, n=n_steps, axis=2)

    def _ar1(self, generators: list[np.random.Generator]) -> np.ndarray:
        n, n_steps, _ = self.x.shape
        normal = np.stack([g.normal(size=(n, n_steps, self.mix.shape[1])) for g in generators])
        made = normal @ self.mix
        made[:, :, 0] = (normal[:, :, :1] @ self.start)[:, :, 0]
        for t in range(1, n_steps):
            made[:, :, t] += self.coefficient * made[:, :, t - 1]
        return made + self.mean

    def _shuffle(self, generators: list[np.random.Generator]) -> np.ndarray:
        n, n_steps, _ = self.x.shape
        order = np.stack([g.permuted(np.broadcast_to(np.arange(n_steps), (n, n_steps)), axis=1) for g in generators])
        return self.x[np.arange(n)[:, None], order]

    def _twin(self, generators: list[np.random.Generator]) -> np.ndarray:
        n, n_steps, _ = self.x.shape
        uniform = np.stack([g.uniform(size=(n, n_steps, 2)) for g in generators])
        made = np.empty((len(generators), *self.x.shape))
        for o, own in enumerate(self.twins):
            made[:, o] = self.x[o][own.walk(uniform[:, o])] if own.share > 0 else np.nan
        return made


def _fitted(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One AR(1) process a feature: mean (n, 1, dim), coefficient (n, dim), and what makes of independent normal numbers
    the innovations and the first state, each (n, n_numbers, dim).

    The sample autocorrelation of an AR(1) process of n values is too low by (1 + 3 c) / n (Kendall 1954); the
    coefficient is raised by that, so that surrogates have the sample autocorrelation of the orbit, on average. With
    innovations of covariance C the stationary one is C_ij / (1 - c_i c_j). With more features than steps C has no root
    of full rank: combinations of the residuals have it, and the first state has the right variances.
    """
    n_steps, dim = x.shape[1:]
    mean = x.mean(axis=1, keepdims=True)
    away = x - mean
    power = (away**2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = np.where(power > 0, (away[:, 1:] * away[:, :-1]).sum(1) / power, 0.0)
    coefficient = np.where(power > 0, np.clip(raw + (1 + 3 * raw) / n_steps, -_AT_MOST, _AT_MOST), 0.0)
    residuals = away[:, 1:] - coefficient[:, None] * away[:, :-1]
    residuals = (residuals - residuals.mean(axis=1, keepdims=True)) / np.sqrt(n_steps - 2)
    if dim >= n_steps:
        return mean, coefficient, residuals, residuals / np.sqrt(1 - coefficient**2)[:, None]
    covariance = np.swapaxes(residuals, 1, 2) @ residuals
    stationary = covariance / (1 - coefficient[:, :, None] * coefficient[:, None])
    return mean, coefficient, _root(covariance), _root(stationary)


def _root(covariance: np.ndarray) -> np.ndarray:
    """R with R' R = covariance, also where that is singular."""
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(np.maximum(values, 0.0))[..., None] * np.swapaxes(vectors, -1, -2)


class _Twins:
    """States of one orbit that have the same neighbours (Thiel et al. 2006)."""

    def __init__(self, x: np.ndarray, recurrence_rate: float) -> None:
        from scipy.spatial import distance

        pairs = distance.pdist(x)
        near = distance.squareform(pairs) <= np.quantile(pairs, recurrence_rate)
        _, twin_of, sizes = np.unique(np.packbits(near, axis=1), axis=0, return_inverse=True, return_counts=True)
        self.twin_of = twin_of.reshape(-1)
        self.share = float((sizes[self.twin_of] > 1).mean())
        followed = self.twin_of[:-1]  # the last state has no successor
        self.order = np.argsort(followed, kind="stable")
        self.counts = np.bincount(followed, minlength=len(sizes))
        self.first = np.cumsum(self.counts) - self.counts

    def walk(self, uniform: np.ndarray) -> np.ndarray:
        """Indices of surrogates, (n, n_steps): from each state to the successor of one of its twins, drawn evenly."""
        n, n_steps, _ = uniform.shape
        path = np.empty((n, n_steps), dtype=np.int64)
        path[:, 0] = uniform[:, 0, 0] * n_steps
        for t in range(1, n_steps):
            own = self.twin_of[path[:, t - 1]]
            counts = self.counts[own]
            twin = self.order[np.minimum(self.first[own] + (uniform[:, t, 0] * counts).astype(np.int64), n_steps - 2)]
            # nothing follows the last state: where it has no twin, anew from anywhere
            path[:, t] = np.where(counts > 0, twin + 1, (uniform[:, t, 1] * n_steps).astype(np.int64))
        return path
