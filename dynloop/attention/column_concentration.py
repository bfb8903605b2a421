"""Does attention as a whole gather on few keys?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dynloop.attention.calls import concentration
from dynloop.attention.maps import check_recording, is_recording, of_maps, of_recording
from dynloop.attention.nulls import uniform_concentration
from dynloop.measurement import Measurement

if TYPE_CHECKING:
    from dynloop.attention.maps import Source

FORMULAS = ("corrected", "printed")


def column_concentration(attention: Source, *, formula: str = "corrected", dims: Sequence[str] | None = None,
                         causal: bool | None = None) -> Measurement:
    """How far the attention of all queries gathers on few keys: 0 for keys that share evenly, 1 for a single key.

        c_k = (1 / T) sum_t A[t, k],    concentration = 1 + sum_k c_k ln c_k / ln T   (0 ln 0 = 0)

    Uniform causal attention is not at 0, because early keys are seen by more queries: .134 for 14 tokens, .097 for 64.

    Args:
        attention: maps (..., T, T), or `attention_of(store)`.
        formula: "corrected"; or "printed", as in the paper, with the sums T c_k in place of their shares c_k. That is
            1 + T times the corrected one, as a line of algebra shows: from 1 to T + 1, and no concentration.
        dims: names of the leading axes of maps, which label the rows; by default the last of prompt, recurrence,
            layer, head.
        causal: of maps: whether query t sees keys up to t only (default True); it sets the null.

    Returns:
        A row a map: `concentration`; `null`, that of uniform attention over as many tokens; `excess`, concentration -
        null. `NOT_FINITE`: a map with NaN. `TOO_SHORT`: one position; or the loop had ended before this recurrence.

    Raises:
        ValueError: another formula, rows that do not add up to 1, or weight on later keys of causal maps.

    Misleads:
        The null falls slowly with the length (.061 for 1024 tokens): compare `excess` between lengths. Attention to
        oneself (identity) has 0, less than uniform attention.

    Source:
        arXiv 2604.11791, appendix; its formula has sums where shares are meant.

    Example:
        >>> import torch
        >>> from dynloop.attention import column_concentration
        >>> even = torch.ones(64, 64).tril() / torch.arange(1, 65)[:, None]
        >>> m = column_concentration(torch.stack((torch.eye(64), even)))
        >>> m.values.round(3) + 0.0, m["excess"].round(3) + 0.0
        (array([0.   , 0.097]), array([-0.097,  0.   ]))
    """
    if formula not in FORMULAS:
        raise ValueError(f"formula must be one of {', '.join(FORMULAS)}; got {formula!r}. Choose one.")
    if is_recording(attention):
        check_recording(attention, "map", dims, causal)
        if "concentration" not in attention:
            raise ValueError("the recording holds no column concentration: it is of an older version. Capture again.")
        rows = of_recording(attention, ["concentration"])
    else:
        rows = of_maps(attention, dims, True if causal is None else causal, _concentration)
    found, null = rows.numbers["concentration"], rows.nulls(uniform_concentration)
    if formula == "printed":
        found, null = 1 + rows.n_tokens * found, 1 + rows.n_tokens * null
    return Measurement("column_concentration", {"concentration": found, "null": null, "excess": found - null},
                       rows.outcomes, settings={"formula": formula, "causal": rows.causal}, labels=rows.labels)


def _concentration(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    sums = maps.clamp(min=0).sum(-2)
    return {"concentration": concentration(sums) if maps.shape[-1] > 1 else torch.full_like(sums[:, 0], math.nan)}
