"""The one heavy pass over a recording: all distances within each orbit, by one batched matrix product."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import torch

from dynloop.trajectories import Trajectories

METRICS = ("euclidean", "relative", "cosine")  # ||a - b||; ||a - b|| / ||b||; 1 - cos(a, b)
_UNRESOLVED = 4096  # times the spacing of the product's dtype: below, a squared distance is computed directly
_BLOCK_BYTES = 16 * 2**20  # of centred states: few products, and a buffer that is small beside the recording
_buffers = threading.local()


@dataclasses.dataclass(frozen=True)
class Distances:
    """What the analyzers work on, independent of the dimension. NaN stands at and beyond an orbit's length.

    Attributes:
        squared: (n_orbits, n_steps, n_steps), squared Euclidean distances between states, float64.
        norms: (n_orbits, n_steps), norms of the states.
        norm_gaps: (n_orbits, n_steps), norm of each state minus that of the orbit's last finite one.
        lengths: (n_orbits,), finite steps.
    """

    squared: np.ndarray
    norms: np.ndarray
    norm_gaps: np.ndarray
    lengths: np.ndarray

    def successive(self, *, metric: str = "euclidean") -> np.ndarray:
        """Distance from each state to the next, (n_orbits, n_steps - 1), in one of `METRICS`."""
        squared = np.diagonal(self.squared, offset=1, axis1=1, axis2=2)
        return _distance(metric, squared, self.norms[:, :-1], self.norms[:, 1:], np.diff(self.norm_gaps, axis=1))

    def from_last(self, *, metric: str = "euclidean") -> np.ndarray:
        """Distance of each state from the last finite one, (n_orbits, n_steps); that state's own entry is 0."""
        last = np.maximum(self.lengths - 1, 0)[:, None]
        squared = np.take_along_axis(self.squared, last[:, :, None], axis=2)[:, :, 0]
        return _distance(metric, squared, self.norms, np.take_along_axis(self.norms, last, axis=1), self.norm_gaps)


def _distance(metric: str, squared: np.ndarray, start: np.ndarray, end: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Distances between states of norms `start` and `end` that differ by `gap`; `METRICS` says which."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}. Choose one of these.")
    if metric == "euclidean":
        return np.sqrt(squared)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "relative":
            return np.sqrt(squared) / end
        return np.maximum(squared - gap**2, 0.0) / (2 * start * end)


def distances(trajectories: Trajectories) -> Distances:
    """All distances between the states of each orbit, read once and shared by every analyzer of these trajectories.

    States are centred on the orbit's last finite state, which keeps distances near the limit from drowning in
    cancellation, and turned into Gram matrices by one batched matrix product on the device where they lie, in float32
    (float64 for float64 states). A pair whose squared distance is below 4,096 spacings of that format, relative to the
    two centred squared norms, cannot be resolved by the product and is computed directly in float64; an orbit whose
    squares overflow or underflow is computed in float64 throughout. Every distance is therefore good to about 1e-3
    relative, whatever its size (a test holds it against float64).

    The result takes 8 n_steps^2 bytes an orbit: pass chunks, as `measure` does.
    """
    if "distances" not in trajectories.derived:
        trajectories.derived["distances"] = _distances(trajectories)
    return trajectories.derived["distances"]


def _distances(trajectories: Trajectories) -> Distances:
    from dynloop.kernels.distances import fill_unresolved, squared_distances  # numba loads on first use

    states, lengths = trajectories.states, trajectories.lengths
    n, n_steps, dim = states.shape
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    squared = np.empty((n, n_steps, n_steps))
    norms, norm_gaps = np.empty((n, n_steps)), np.empty((n, n_steps))
    block = max(1, _BLOCK_BYTES // (dtype.itemsize * n_steps * dim))
    for first in range(0, n, block):
        part = slice(first, min(n, first + block))
        gram, awkward = _centred_gram(states[part], lengths[part], dtype)
        limit = _UNRESOLVED * torch.finfo(dtype).eps
        unresolved = squared_distances(gram, lengths[part], limit, squared[part], norms[part], norm_gaps[part])
        for o in np.flatnonzero(awkward | (unresolved > 0)):
            own = states[first + o].to("cpu", torch.float64 if awkward[o] else dtype)
            one = slice(first + o, first + o + 1)
            if awkward[o] and dtype != torch.float64:
                gram, _ = _centred_gram(own[None], lengths[one], torch.float64)
                squared_distances(gram, lengths[one], _UNRESOLVED * torch.finfo(torch.float64).eps,
                                  squared[one], norms[one], norm_gaps[one])
            fill_unresolved(own.numpy(), squared[first + o])
    return Distances(squared, norms, norm_gaps, lengths)


def _centred_gram(states: torch.Tensor, lengths: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Gram matrices (n, T, T) of states minus each orbit's last finite state, that state itself in its own row.

    Also says which orbits' squares leave the range of `dtype`.
    """
    n, n_steps, dim = states.shape
    rows = torch.arange(n, device=states.device)
    last = torch.as_tensor(np.maximum(lengths - 1, 0), device=states.device)
    centred = _buffer("centred", (n, n_steps, dim), dtype, states.device)
    gram = _buffer("gram", (n, n_steps, n_steps), dtype, states.device)
    ends = states[rows, last].to(dtype)
    if states.dtype == dtype:
        torch.sub(states, ends[:, None], out=centred)
    else:
        centred.copy_(states)
        centred.sub_(ends[:, None])
    centred[rows, last] = ends
    torch.bmm(centred, centred.transpose(1, 2), out=gram)
    square = torch.diagonal(gram, dim1=1, dim2=2)
    inside = torch.arange(n_steps, device=states.device) < torch.as_tensor(lengths, device=states.device)[:, None]
    awkward = (~square.isfinite() & inside).any(1)
    tiny = (square < torch.finfo(dtype).tiny / torch.finfo(dtype).eps**2) & inside
    if tiny.any():  # identical to the last state, or so near that squares underflow?
        o, t = tiny.nonzero(as_tuple=True)
        awkward.index_put_((o,), (centred[o, t] != 0).any(-1), accumulate=True)
    return gram.cpu().numpy(), awkward.cpu().numpy()


def _buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Scratch memory of this thread, kept from block to block: fresh pages cost more than the product."""
    size = int(np.prod(shape))
    key = (name, dtype, device)
    kept = _buffers.__dict__.setdefault("kept", {})
    if key not in kept or kept[key].numel() < size:
        kept[key] = torch.empty(size, dtype=dtype, device=device)
    return kept[key][:size].view(shape)
