"""How far are the attention maps of all depths from one another?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynloop.attention.maps import (
    _SUM,
    Rows,
    check_maps,
    check_recording,
    check_rows,
    is_recording,
    outcomes_of,
)
from dynloop.attention.nulls import largest_distance, uniform_distance
from dynloop.attention.pairs import between
from dynloop.measurement import Measurement

if TYPE_CHECKING:
    import xarray

    from dynloop.attention.maps import Source


def attention_distance(attention: Source, *, dims: Sequence[str] | None = None,
                       causal: bool | None = None) -> Measurement:
    """Frobenius distance of every attention map from those at all other depths, head by head.

        distance[i, j] = ||A_i - A_j||_F,   i and j over all recurrences and layers (depth = recurrence, then layer)

    Causal maps of T tokens are at most sqrt(2 (T - 1)) apart. Uniform attention is sqrt(T - H_T) from any map that lays
    each query's weight on a single key, whichever that is.

    Args:
        attention: maps (..., T, T) with an axis "recurrence" or "layer" or both; or `attention_of(store, per="pair")`.
        dims: names of the leading axes of maps; by default the last of prompt, recurrence, layer, head.
        causal: of maps: whether query t sees keys up to t only (default True); it sets the null.

    Returns:
        A row a map, ordered by prompt, start, head, recurrence and layer (layer before recurrence where a recording
        compares within layers), so that `m["distance"].reshape(-1, n, n)` are the matrices of each prompt and head.
        `distance` (n_maps, n_depths), in the order of the rows; `relative`, distance over the largest there can be;
        `null` (n_maps,), the distance of uniform attention from one-hot attention, which says what is large. Where a
        pair has no distance (the other map is not finite, or the loop had ended), NaN. `NOT_FINITE`: the row's own map
        is not. `TOO_SHORT`: one position; or the loop had ended before.

    Raises:
        ValueError: no depths; rows that do not add up to 1; weight on later keys of causal maps.

    Misleads:
        Head h of one layer has nothing to do with head h of another: between layers the distances speak of the order of
        heads, too. Distances grow with the length of the prompt; compare `relative`.

    Source:
        arXiv 2604.11791, figures 2 and 21 (mean over prompts and heads), where distances are not divided.

    Example:
        >>> import torch
        >>> from dynloop.attention import attention_distance
        >>> maps = torch.stack((torch.eye(9), torch.eye(9), torch.eye(9)[:, :1].T.repeat(9, 9)[:, :9] * 0))
        >>> maps[2, :, 0] = 1
        >>> attention_distance(maps, dims=["recurrence"]).values
        array([[0., 0., 4.],
               [0., 0., 4.],
               [4., 4., 0.]])
    """
    rows = _recorded(attention, dims, causal) if is_recording(attention) else \
        _of_maps(attention, dims, True if causal is None else causal)
    distance, null, largest = rows.numbers["distance"], rows.nulls(uniform_distance), rows.nulls(largest_distance)
    distance[~rows.found] = np.nan
    return Measurement("attention_distance", {"distance": distance, "relative": distance / largest[:, None],
                                              "null": null}, rows.outcomes,
                       settings={"causal": rows.causal}, labels=rows.labels)


def _of_maps(maps: Any, dims: Sequence[str] | None, causal: bool) -> Rows:
    names = list(check_maps(maps, dims, causal))
    depths = [name for name in ("recurrence", "layer") if name in names]
    if not depths:
        raise ValueError(f"distances are between maps along an axis recurrence or layer; the axes are "
                         f"{', '.join(names) or 'none'}. Name them by dims=.")
    ordered = [name for name in names if name not in depths] + depths
    n_tokens = maps.shape[-1]
    maps = maps.detach().permute(*(names.index(name) for name in ordered), -2, -1)
    sizes = maps.shape[:-2]
    n = int(np.prod([maps.shape[ordered.index(name)] for name in depths]))
    finite, distances = [], []
    for group in maps.reshape(-1, n, n_tokens, n_tokens):
        finite.append(check_rows(group.double(), causal, _SUM[maps.dtype]))
        distances.append(between(group)[0])
    good = torch.cat(finite).cpu().numpy()
    places = np.unravel_index(np.arange(len(good)), sizes)
    return Rows({name: at + (name == "recurrence") for name, at in zip(ordered, places, strict=True)},
                np.full(len(good), n_tokens),
                outcomes_of(good, np.zeros(len(good)), np.zeros(len(good)), np.full(len(good), n_tokens)),
                {"distance": torch.cat(distances).cpu().numpy()}, causal)


def _recorded(source: xarray.Dataset, dims: Any, causal: Any) -> Rows:
    check_recording(source, "pair", dims, causal)
    n_rows, n = source.sizes["row"], source.sizes["recurrence"]
    labels = {name: np.repeat(source[name].values, n) for name in ("prompt", "start", "layer", "head")}
    labels["recurrence"] = np.tile(source["recurrence"].values, n_rows)
    across = bool((source["other_layer"].values != "").any())
    layers = list(dict.fromkeys(source["other_layer"].values.tolist() if across else source["layer"].values.tolist()))
    place = np.array([layers.index(name) for name in source["layer"].values.tolist()]).repeat(n)
    order = np.lexsort((*([place, labels["recurrence"]] if across else [labels["recurrence"]]), labels["head"],
                        *([] if across else [place]), labels["start"], labels["prompt"]))
    labels = {name: values[order] for name, values in labels.items()}
    n_tokens = np.repeat(source["n_positions"].values, n)[order]
    finite = np.isfinite(source["norm"].values).ravel()[order]
    distance = source["distance"].values.reshape(n_rows * n, -1)[order].astype(np.float64)
    outcomes = outcomes_of(finite, labels["recurrence"], np.repeat(source["n_recurrences"].values, n)[order], n_tokens)
    return Rows(labels, n_tokens, outcomes, {"distance": distance}, bool(source.attrs["causal"]))


def along_the_loop(attention: Source, dims: Sequence[str] | None,
                   causal: bool | None) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray, int, float]]:
    """Of every layer and head: labels, distances (R, R), norms (R,), recurrences that were run, relative spacing."""
    if is_recording(attention):
        check_recording(attention, "pair", dims, causal)
        spacing = max(float(attention.attrs["spacing"]), float(np.finfo(np.float32).eps))
        own = attention["other_layer"].values
        for row in range(attention.sizes["row"]):
            labels = {name: attention[name].values[row] for name in ("prompt", "start", "layer", "head")}
            of_layer = (own == "") | (own == labels["layer"])
            yield (labels, attention["distance"].values[row][:, of_layer].astype(np.float64),
                   attention["norm"].values[row].astype(np.float64), int(attention["n_recurrences"].values[row]),
                   spacing)
        return
    names = list(check_maps(attention, dims, True if causal is None else causal))
    if "recurrence" not in names:
        raise ValueError(f"maps along the loop need an axis recurrence; the axes are {', '.join(names) or 'none'}. "
                         "Name them by dims=.")
    others = [name for name in names if name != "recurrence"]
    at = names.index("recurrence")
    maps = attention.detach().movedim(at, -3)
    for place in np.ndindex(*maps.shape[:-3]):
        group = maps[place]
        check_rows(group.double(), True if causal is None else causal, _SUM[maps.dtype])
        distances, norms = between(group)
        yield (dict(zip(others, place, strict=True)), distances.cpu().numpy(), norms.cpu().numpy(), len(group),
               max(torch.finfo(maps.dtype).eps, float(np.finfo(np.float32).eps)))
