"""Coupled beta maps: chaos in many dimensions whose whole spectrum is known, as the slope is the same everywhere."""


import numpy as np

from synthetic.system import System


def _dimension(exponents: np.ndarray) -> float:
    """Dimension of Kaplan and Yorke from a whole spectrum, largest first."""
    total = np.cumsum(exponents)
    whole = int((total >= 0).sum())
    return float(whole if whole == len(exponents) else whole + total[whole - 1] / -exponents[whole])


def _beta_maps(name: str, size: int, slope: float, mix, eigenvalues: np.ndarray) -> System:
    exponents = np.sort(np.log(slope * np.abs(eigenvalues)))[::-1]
    return System(name, size, lambda rng, n: rng.uniform(size=(n, size)), lambda x, rng: mix(slope * x % 1), 200,
                  float64_only=True, exact={
                      "regime": "chaotic", "lyapunov": tuple(exponents.tolist()),
                      "lyapunov_sum": float(exponents.sum()), "kaplan_yorke": _dimension(exponents)})


def ring(size: int, slope: float, coupling: float) -> System:
    """Neighbours on a ring: x'[i] = (1 - c) f(x[i]) + c/2 (f(x[i-1]) + f(x[i+1])), f(x) = slope x mod 1.

    Exponents ln slope + ln |1 - c + c cos(2 pi k / size)|, k = 0..size-1.
    """
    def mix(y: np.ndarray) -> np.ndarray:
        return (1 - coupling) * y + coupling / 2 * (np.roll(y, 1, axis=1) + np.roll(y, -1, axis=1))

    eigenvalues = 1 - coupling + coupling * np.cos(2 * np.pi * np.arange(size) / size)
    return _beta_maps(f"ring of {size} beta maps, coupling {coupling:g}", size, slope, mix, eigenvalues)


def all_to_all(size: int, slope: float, coupling: float) -> System:
    """Each with the mean of all: x'[i] = (1 - c) f(x[i]) + c mean f(x), f(x) = slope x mod 1.

    One exponent ln slope along the diagonal, and size - 1 of ln slope + ln(1 - c) across; where these are negative all
    maps end up in the same state, and that one is chaotic.
    """
    def mix(y: np.ndarray) -> np.ndarray:
        return (1 - coupling) * y + coupling * y.mean(1, keepdims=True)

    eigenvalues = np.append(1.0, np.full(size - 1, 1 - coupling))
    return _beta_maps(f"{size} beta maps, coupling {coupling:g} to all", size, slope, mix, eigenvalues)


SYSTEMS = (ring(8, 1.9, 0.3), ring(32, 1.9, 0.3), ring(64, 1.5, 0.45), all_to_all(16, 1.9, 0.2),
           all_to_all(16, 1.9, 0.6))
