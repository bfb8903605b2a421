"""Orthonormal frames: how a small system is laid into a large space without changing a distance."""

import numpy as np


def frame(rng: np.random.Generator, dim: int, n: int | None = None) -> np.ndarray:
    """Random orthonormal columns (dim, n), uniform over all such frames; n is dim unless given."""
    found, scale = np.linalg.qr(rng.normal(size=(dim, dim if n is None else n)))
    return found * np.sign(np.diag(scale))
