"""How much attention goes to one key, and is it a sink?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from dynloop.attention.maps import check_maps, check_recording, is_recording, of_maps, of_recording
from dynloop.attention.nulls import uniform_sink_score
from dynloop.measurement import Measurement
from dynloop.settings import check_number, check_whole

if TYPE_CHECKING:
    from dynloop.attention.maps import Source


def sink_rate(attention: Source, *, threshold: float = 0.3, position: int = 0, dims: Sequence[str] | None = None,
              causal: bool | None = None) -> Measurement:
    """Whether each attention map has a sink: a key that gets a large share of all attention.

        score = (1 / T) sum_t A[t, k],    sink = [score >= threshold],    rate of a layer = mean of sink over its heads

    Uniform attention scores (H_T - H_k) / T, H the harmonic numbers: .340 for the first of 8 tokens, .074 of 64.

    Args:
        attention: maps (..., T, T), or `attention_of(store)`, which knows the first position alone.
        threshold: of the score.
        position: k, the key that is looked at.
        dims: names of the leading axes of maps, which label the rows; by default the last of prompt, recurrence,
            layer, head.
        causal: of maps: whether query t sees keys up to t only (default True); it sets the null.

    Returns:
        A row a map: `sink` (1 or 0, so that its mean over heads is the rate), `score`, `null` (the score of uniform
        attention over as many tokens) and `excess`, score - null. `NOT_FINITE`: a map with NaN. `TOO_SHORT`: one
        position; or the loop had ended before this recurrence.

    Raises:
        ValueError: rows that do not add up to 1, weight on later keys of causal maps, a position that is not there.

    Warns:
        UserWarning: uniform attention passes the threshold, as it does for .3 up to 9 tokens.

    Misleads:
        A rate depends on the threshold and on the length of the prompt: quote `excess` beside it. Where a window limits
        attention, uniform attention within it scores less than the null. Queries that see nothing are left out.

    Source:
        arXiv 2604.11791, section 5 (score over all T queries); Gu et al. 2024, arXiv 2410.10781 divide by T - k, which
        agrees for the first key alone.

    Example:
        >>> import torch
        >>> from dynloop.attention import sink_rate
        >>> sink = torch.zeros(1, 1, 16, 16)
        >>> sink[..., 0] = 1
        >>> m = sink_rate(sink)
        >>> m.values, m["score"], m["null"].round(3)
        (array([1.]), array([1.]), array([0.211]))
    """
    check_number("threshold", threshold, lambda v: 0 < v <= 1, "above 0 and at most 1 (the default is 0.3)")
    check_whole("position", position, 0, "a position counted from 0 (the default)")
    if is_recording(attention):
        check_recording(attention, "map", dims, causal)
        if position:
            raise ValueError(f"a recording keeps the score of position 0; got position={position}. Pass maps, or take "
                             "column_sum of attention_of(store, per='token').")
        rows = of_recording(attention, ["sink_score"])
    else:
        causal = True if causal is None else causal
        check_maps(attention, dims, causal)
        if position >= attention.shape[-1]:
            raise ValueError(f"position must be below {attention.shape[-1]}, the number of keys; got {position}.")

        def numbers(maps: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"sink_score": maps[..., position].sum(-1) / (maps.sum(-1) > 0.5).sum(-1)}

        rows = of_maps(attention, dims, causal, numbers)
    score, null = rows.numbers["sink_score"], rows.nulls(uniform_sink_score, position=position)
    if (high := null >= threshold).any():
        n = int(rows.n_tokens[high].max())
        warnings.warn(f"uniform attention over {n} tokens scores {null[high].min():.3g}, no less than the threshold of "
                      f"{threshold:g}: that a map has a sink says nothing there. Look at `excess`, or use longer "
                      "prompts.", UserWarning, stacklevel=2)
    sink = np.where(np.isnan(score), np.nan, score >= threshold)
    return Measurement("sink_rate", {"sink": sink, "score": score, "null": null, "excess": score - null}, rows.outcomes,
                       settings={"threshold": threshold, "position": position, "causal": rows.causal},
                       labels=rows.labels)
