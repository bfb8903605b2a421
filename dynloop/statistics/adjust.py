"""P-values of a family of tests, adjusted for their number."""

from __future__ import annotations

from typing import Any

import numpy as np

METHODS = ("holm", "fdr_bh")
WORDS = {"holm": "Holm", "fdr_bh": "Benjamini-Hochberg"}


def adjust_pvalues(p: Any, *, method: str = "holm") -> np.ndarray:
    """P-values adjusted for how many there are, through `statsmodels.stats.multitest.multipletests`.

    With p_(1) <= ... <= p_(m):

    * holm: max over j <= i of (m - j + 1) p_(j). One false alarm or more in the whole family happens at most with
      probability alpha, whatever the dependence (Holm 1979). For families of up to some twenty tests of interest each.
    * fdr_bh: min over j >= i of m p_(j) / j. At most a share alpha of what is called different is so by chance, for
      independent or positively dependent tests (Benjamini and Hochberg 1995). For screens of many.

    Args:
        p: p-values of any shape; NaN is a test without an answer, and does not count.
        method: "holm" or "fdr_bh".

    Returns:
        Adjusted p-values of the same shape; NaN stays NaN.

    Raises:
        ValueError: an unknown method, or numbers that are no p-values.

    Misleads:
        The family is what is handed over. Contrasts that were looked at and then left out count, too.

    Source:
        Holm 1979, Scand. J. Statistics 6, 65; Benjamini and Hochberg 1995, J. Royal Statistical Society B 57, 289.

    Example:
        >>> from dynloop.statistics.adjust import adjust_pvalues
        >>> print(adjust_pvalues([0.01, 0.04, 0.03]), adjust_pvalues([0.01, 0.04, 0.03], method="fdr_bh"))
        [0.03 0.06 0.06] [0.03 0.04 0.04]
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}. Choose one of these.")
    values = np.asarray(p, dtype=float)
    known = np.isfinite(values)
    if (np.isinf(values) | (values < 0) | (values > 1)).any():
        raise ValueError(f"p-values lie between 0 and 1; got {np.nanmin(values):g} to {np.nanmax(values):g}.")
    adjusted = np.full(values.shape, np.nan)
    if known.any():
        from statsmodels.stats.multitest import multipletests

        adjusted[known] = multipletests(values[known], method=method)[1]
    return adjusted
