"""What the measures of attention read: maps themselves, or the numbers that a capture took of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import torch

from dynloop.outcome import Outcome

if TYPE_CHECKING:
    import xarray

    Source: TypeAlias = torch.Tensor | xarray.Dataset

DIMS = ("prompt", "recurrence", "layer", "head")
_SUM = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}  # of a row, off 1
_NUMBERS = 1 << 22  # of maps in double precision at a time


@dataclasses.dataclass(frozen=True)
class Rows:
    """A row a map: labels, positions, an outcome, and numbers (NaN where the outcome is not `FOUND`)."""

    labels: Mapping[str, np.ndarray]
    n_tokens: np.ndarray
    outcomes: np.ndarray
    numbers: Mapping[str, np.ndarray]
    causal: bool

    @property
    def found(self) -> np.ndarray:
        return np.array([o is Outcome.FOUND for o in self.outcomes], dtype=bool)

    def nulls(self, function: Callable[..., float], **how: Any) -> np.ndarray:
        """A closed form for the length of every map; NaN where there is no answer."""
        lengths, of = np.unique(self.n_tokens, return_inverse=True)
        values = np.array([function(int(n), causal=self.causal, **how) if n > 1 else np.nan for n in lengths])[of]
        values[~self.found] = np.nan
        return values


def of_maps(maps: Any, dims: Sequence[str] | None, causal: bool,
            numbers: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]) -> Rows:
    """Numbers of maps (..., T, T); `numbers` takes (n, T, T) in double precision and gives (n,) each."""
    names = check_maps(maps, dims, causal)
    n_tokens = maps.shape[-1]
    flat = maps.detach().reshape(-1, n_tokens, n_tokens)
    size = max(1, _NUMBERS // n_tokens**2)
    finite, parts = [], []
    for chunk in flat.split(size):
        chunk = chunk.double()
        finite.append(check_rows(chunk, causal, _SUM[maps.dtype]))
        parts.append({name: values.cpu().numpy() for name, values in numbers(chunk).items()})
    good = torch.cat(finite).cpu().numpy()
    nowhere = np.zeros(len(good))
    outcomes = outcomes_of(good, nowhere, nowhere, nowhere + n_tokens)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for values in found.values():
        values[outcomes != Outcome.FOUND] = np.nan
    places = np.unravel_index(np.arange(len(good)), maps.shape[:-2]) if names else ()
    labels = {name: at + (name == "recurrence") for name, at in zip(names, places, strict=True)}
    return Rows(labels, np.full(len(good), n_tokens), outcomes, found, causal)


def check_maps(maps: Any, dims: Sequence[str] | None, causal: bool) -> tuple[str, ...]:
    """Names of the leading axes of maps (..., T, T).

    Raises:
        TypeError: no tensor and no recording.
        ValueError: shapes or names that do not fit.
    """
    if not isinstance(maps, torch.Tensor):
        raise TypeError("attention must be maps, a torch tensor (..., T, T), or what attention_of(store) gives; got "
                        f"{type(maps).__name__}. A store? Pass attention_of(store). An array? torch.as_tensor(it).")
    if not isinstance(causal, bool | np.bool_):
        raise ValueError(f"causal must be True or False; got {causal!r}.")
    if maps.ndim < 2 or maps.shape[-1] != maps.shape[-2] or not maps.numel() or maps.dtype not in _SUM:
        raise ValueError("maps must be numbers (..., T, T), queries before keys, of at least one position; got "
                         f"{tuple(maps.shape)}, {str(maps.dtype).removeprefix('torch.')}.")
    n = maps.ndim - 2
    if dims is None and n > len(DIMS):
        raise ValueError(f"maps with {n} leading axes need dims=, their names; got shape {tuple(maps.shape)}.")
    names = DIMS[len(DIMS) - n:] if dims is None else tuple(dims)
    if isinstance(dims, str) or len(names) != n or len(set(names)) != n or not all(isinstance(d, str) for d in names):
        raise ValueError(f"dims must name the {n} leading axes of maps {tuple(maps.shape)}, each once; got {dims!r}.")
    return names


def check_rows(maps: torch.Tensor, causal: bool, tolerance: float) -> torch.Tensor:
    """Which maps (n, T, T) are finite, (n,).

    Raises:
        ValueError: the finite ones are no attention maps.
    """
    finite = maps.isfinite().flatten(1).all(1)
    known = maps[finite]
    sums = known.sum(-1)
    if (known < -tolerance).any() or (((sums - 1).abs() > tolerance) & (sums.abs() > tolerance)).any():
        raise ValueError("maps must hold weights of at least 0, each row (query) of which adds up to 1, or to 0 where "
                         f"it sees nothing; got rows that add up to {float(sums.min()):.3g} to {float(sums.max()):.3g} "
                         "and a smallest weight of "
                         f"{float(known.min()):.3g}. Scores? Take their softmax. Keys by queries? Transpose.")
    if causal and (known.triu(1) > tolerance).any():
        raise ValueError("causal maps have no weight on later keys; these have. Pass causal=False, or, if these are "
                         "keys by queries, transpose them.")
    return finite


def is_recording(source: Any) -> TypeGuard[xarray.Dataset]:
    """Whether this is an xarray dataset, without loading xarray for tensors."""
    if isinstance(source, torch.Tensor):
        return False
    import xarray

    return isinstance(source, xarray.Dataset)


def check_recording(source: xarray.Dataset, per: str, dims: Any, causal: Any) -> None:
    """Refuse what `attention_of(store, per=per)` did not give, and settings that belong to maps.

    Raises:
        ValueError: what came, what to do.
    """
    if dims is not None or causal is not None:
        raise ValueError("dims and causal belong to maps; a recording knows its own. Leave them out.")
    if source.attrs.get("per") != per:
        raise ValueError(f"a dataset of attention per {per} is needed; got one of variables "
                         f"{', '.join(map(str, source.data_vars)) or 'none'}. Pass attention_of(store"
                         f"{'' if per == 'map' else f', per={per!r}'}).")
    if "n_positions" not in source.coords:
        raise ValueError("the recording does not say how many positions its maps have: it is of an older version. "
                         "Capture again.")


def of_recording(source: xarray.Dataset, names: Sequence[str]) -> Rows:
    """Numbers of a dataset per map, a row a map; recurrences vary fastest."""
    n_rows, n = source.sizes["row"], source.sizes["recurrence"]
    labels = {name: np.repeat(source[name].values, n) for name in ("prompt", "start", "layer", "head")}
    labels["recurrence"] = np.tile(source["recurrence"].values, n_rows)
    n_tokens = np.repeat(source["n_positions"].values, n)
    numbers = {name: source[name].values.astype(np.float64).ravel() for name in names}
    outcomes = outcomes_of(np.logical_and.reduce([np.isfinite(x) for x in numbers.values()]), labels["recurrence"],
                           np.repeat(source["n_recurrences"].values, n), n_tokens)
    for values in numbers.values():
        values[outcomes != Outcome.FOUND] = np.nan
    return Rows(labels, n_tokens, outcomes, numbers, bool(source.attrs["causal"]))


def outcomes_of(finite: np.ndarray, recurrence: np.ndarray, n_run: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """`TOO_SHORT` after the end of a loop, or for one position; `NOT_FINITE`; else `FOUND`."""
    found = np.full(len(finite), Outcome.FOUND, dtype=object)
    found[~finite] = Outcome.NOT_FINITE
    found[(recurrence > n_run) | ((n_tokens < 2) & finite)] = Outcome.TOO_SHORT
    return found
