"""Over how many keys does a query spread its attention?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dynloop.attention.maps import check_recording, is_recording, of_maps, of_recording
from dynloop.attention.nulls import uniform_mixing
from dynloop.measurement import Measurement

if TYPE_CHECKING:
    from dynloop.attention.maps import Source


def mixing_score(attention: Source, *, dims: Sequence[str] | None = None, causal: bool | None = None) -> Measurement:
    """Mean entropy of the rows of each attention map, and its share of the largest that there can be.

        mixing = (1 / T) sum_t H(A[t]),    H(a) = -sum_k a_k ln a_k   (0 ln 0 = 0)

    Uniform causal attention has ln(T!) / T, the largest: 3.206 for 64 tokens.

    Args:
        attention: maps (..., T, T), or `attention_of(store)`.
        dims: names of the leading axes of maps, which label the rows; by default the last of prompt, recurrence,
            layer, head.
        causal: of maps: whether query t sees keys up to t only (default True); it sets the null.

    Returns:
        A row a map: `mixing` in nats; `null`, that of uniform attention over as many tokens; `relative`, mixing over
        null, from 0 to 1. `NOT_FINITE`: a map with NaN. `TOO_SHORT`: one position; or the loop had ended before this
        recurrence.

    Raises:
        ValueError: rows that do not add up to 1, or weight on later keys of causal maps.

    Misleads:
        It grows with the length of the prompt; compare `relative` between lengths. Where a window limits attention the
        null is out of reach. Queries that see nothing are left out.

    Source:
        arXiv 2604.11791, appendix, after Queipo-de-Llano et al. 2025, arXiv 2510.06477.

    Example:
        >>> import torch
        >>> from dynloop.attention import mixing_score
        >>> even = torch.ones(64, 64).tril() / torch.arange(1, 65)[:, None]
        >>> m = mixing_score(torch.stack((torch.eye(64), even)))
        >>> m.values.round(3) + 0.0, m["relative"].round(3) + 0.0
        (array([0.   , 3.206]), array([0., 1.]))
    """
    if is_recording(attention):
        check_recording(attention, "map", dims, causal)
        rows = of_recording(attention, ["entropy"])
    else:
        rows = of_maps(attention, dims, True if causal is None else causal, _entropy)
    mixing, null = rows.numbers["entropy"], rows.nulls(uniform_mixing)
    return Measurement("mixing_score", {"mixing": mixing, "null": null, "relative": mixing / null}, rows.outcomes,
                       units={"mixing": "nats", "null": "nats"}, settings={"causal": rows.causal},
                       labels=rows.labels)


def _entropy(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    maps = maps.clamp(min=0)  # what rounding leaves below
    return {"entropy": -torch.special.xlogy(maps, maps).sum((-2, -1)) / (maps.sum(-1) > 0.5).sum(-1)}
