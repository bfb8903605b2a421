"""How many directions a prompt's states take: entropy and largest share of the squared singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dynloop.trajectories import as_tensor


def spectrum_shares(states: Any) -> np.ndarray:
    """Squared singular values of each (tokens, dim) matrix over their sum, ascending; NaN where not finite or nought.

    From the smaller of the two Gram matrices in float64, so that one huge row does not hide the others.
    """
    x = as_tensor(states).to("cpu", torch.float64).numpy()
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"states must have shape (..., tokens, dim) with at least one token; got {x.shape}.")
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        x = x / np.abs(x).max((-2, -1), keepdims=True)  # the result does not depend on scale; squares may overflow
    good = np.isfinite(x).all((-2, -1))
    y = x[good]
    gram = y @ y.swapaxes(-1, -2) if x.shape[-2] <= x.shape[-1] else y.swapaxes(-1, -2) @ y
    values = np.linalg.eigvalsh(gram).clip(min=0)
    found = np.full((*good.shape, gram.shape[-1]), np.nan)
    found[good] = values / values.sum(-1, keepdims=True)
    return found


def entropy_of(shares: np.ndarray) -> np.ndarray:
    """-sum p ln p over the last axis."""
    return -np.where(shares > 0, shares * np.log(np.where(shares > 0, shares, 1.0)), shares).sum(-1)


def matrix_entropy(states: Any, *, normalized: bool = False) -> np.ndarray:
    """Entropy of the squared singular values of a prompt's states.

        H = -sum_j p_j ln p_j,  p_j = sigma_j^2 / ||X||_F^2

    Args:
        states: (..., tokens, dim), torch tensor or NumPy array: X of each prompt, depth, ...
        normalized: divide by ln min(tokens, dim), the largest value that it can have.

    Returns:
        (...), in nats: 0 where all tokens lie on one line through the origin. NaN where a state is not finite, or all
        are nought.

    Raises:
        ValueError: no such shape; a normalised entropy of a single token or dimension.

    Misleads:
        States are not centred: what all tokens have in common is one direction, and lowers the entropy. One token of
        huge norm (often the first) does so too: leave it out to see the others. It grows with the number of tokens:
        compare prompts of one length, or normalise.

    Source:
        Skean et al. 2025 (arXiv 2502.02013); Queipo-de-Llano et al. 2025 (arXiv 2510.06477).

    Example:
        >>> import numpy as np
        >>> from dynloop.stages import matrix_entropy
        >>> matrix_entropy(np.eye(4)).round(4), matrix_entropy(np.eye(4), normalized=True).round(4)
        (np.float64(1.3863), np.float64(1.0))
    """
    shares = spectrum_shares(states)
    if not normalized:
        return entropy_of(shares)
    if shares.shape[-1] == 1:
        raise ValueError("the entropy of one token, or of one dimension, is always 0 and cannot be normalised. Give "
                         "more tokens, or normalized=False.")
    return entropy_of(shares) / np.log(shares.shape[-1])


def anisotropy(states: Any) -> np.ndarray:
    """The share of the largest squared singular value of a prompt's states, p_1 = sigma_1^2 / ||X||_F^2.

    Args:
        states: (..., tokens, dim), as in `matrix_entropy`.

    Returns:
        (...), from 1 / min(tokens, dim) to 1; NaN where a state is not finite, or all are nought.

    Raises:
        ValueError: no such shape.

    Misleads:
        As `matrix_entropy`. With M the squared norm of the first token over that of all others (c = M / R) and alpha
        the mean squared cosine of the others to it, weighted by squared norms, p_1 >= (c + alpha) / (c + 1): one
        massive token is enough.

    Source:
        Queipo-de-Llano et al. 2025 (arXiv 2510.06477).

    Example:
        >>> import numpy as np
        >>> from dynloop.stages import anisotropy
        >>> float(anisotropy(np.diag([2.0, 1.0, 1.0])).round(4))
        0.6667
    """
    return spectrum_shares(states)[..., -1]
