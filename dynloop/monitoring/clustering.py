"""Do states that stand for the same entity lie closer together than states that do not?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dynloop.settings import check_number, check_whole


@dataclasses.dataclass(frozen=True)
class Clustering:
    """Clustering of states by label.

    Attributes:
        value: mean cosine of two states with one label, less that of two states with different labels.
        null: what `value` stays below when labels are shuffled, in the share `level` of shuffles; its mean is 0.
        p_value: share of shuffles, the labels themselves counted among them, in which it is at least as large.
        within, between: the two means.
        n_within: pairs with one label.
    """

    value: float
    null: float
    p_value: float
    within: float
    between: float
    n_within: int


def cosine_clustering(states: Any, labels: Any, *, n_shuffles: int = 199, level: float = 0.95,
                      rng: Any = 0) -> Clustering:
    """How much more alike are states with the same label, by cosine, and how much would they be by chance?

        value = mean { cos(x_i, x_j) : i < j, l_i = l_j } - mean { cos(x_i, x_j) : i < j, l_i != l_j }

    Every pair counts alike. Under shuffled labels both means are the mean over all pairs, so that 0 is expected
    whatever the states have in common.

    Args:
        states: (n, features) finite numbers, each another context.
        labels: (n,) the entity of each.
        n_shuffles: shuffles of the labels.
        level: of `null`.
        rng: seed or generator of the shuffles.

    Returns:
        `Clustering`; all NaN where no two states share a label, or all do.

    Raises:
        ValueError: shapes or settings.

    Misleads:
        States that are one and the same (one token, with nothing before it to tell contexts apart) have a cosine of 1
        and would pose as a cluster: give each context once. States that share a large common part have all cosines near
        1, and a small value may still be far above the null: look at both.

    Source:
        Own; entity representations were so compared by Wang et al. 2024 (arXiv 2405.15071), section 4, by logit lens.

    Example:
        >>> import numpy as np
        >>> from dynloop.monitoring import cosine_clustering
        >>> found = cosine_clustering(np.repeat(np.eye(3), 4, axis=0), np.repeat([0, 1, 2], 4))
        >>> found.value, found.p_value
        (1.0, 0.005)
    """
    check_whole("n_shuffles", n_shuffles, 1, "a whole number of at least 1 (default 199)")
    check_number("level", level, lambda v: 0 < v < 1, "between 0 and 1 (default 0.95)")
    x, own = np.asarray(states, dtype=float), np.unique(np.asarray(labels), return_inverse=True)[1]
    if x.ndim != 2 or own.shape != (len(x),) or not np.isfinite(x).all():
        raise ValueError("states must be finite numbers of shape (n, features) with one label each; got shape "
                         f"{x.shape} and labels of shape {np.shape(labels)}. Leave out states that are not finite.")
    n, counts = len(x), np.bincount(own)
    n_within = int((counts * (counts - 1) // 2).sum())
    n_between = n * (n - 1) // 2 - n_within
    if not n_within or not n_between:
        return Clustering(np.nan, np.nan, np.nan, np.nan, np.nan, n_within)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    unit = x / np.where(norm > 0, norm, 1)
    everything = float(((unit.sum(0) ** 2).sum() - (unit**2).sum()) / 2)
    rng = np.random.default_rng(rng)
    shuffled = np.stack([own, *rng.permuted(np.tile(own, (n_shuffles, 1)), axis=1)])
    # the sum of cosines over the pairs of a label is that of the squared length of the sum of its unit vectors
    starts = np.cumsum(counts) - counts
    lengths = [(np.add.reduceat(unit[np.argsort(row, kind="stable")], starts) ** 2).sum() for row in shuffled]
    within = (np.array(lengths) - (unit**2).sum()) / 2
    values = within / n_within - (everything - within) / n_between
    value, null = float(values[0]), values[1:]
    reached = int((null >= value - 1e-12 * max(1.0, abs(value))).sum())
    return Clustering(value, float(np.quantile(null, level)), (1 + reached) / (n_shuffles + 1),
                      float(within[0] / n_within), float((everything - within[0]) / n_between), n_within)
