"""The one heavy pass over a recording: all distances within each orbit, by one batched matrix product."""

from __future__ import annotations

import functools

import numpy as np
import torch

from dynloop.buffers import Buffers
from dynloop.trajectories import Trajectories

METRICS = ("euclidean", "relative", "cosine")  # ||a - b||; ||a - b|| / ||b||; 1 - cos(a, b)
_UNRESOLVED = 4096  # times the spacing of the product's dtype: below, a squared distance is computed directly
_BLOCK_BYTES = 16 * 2**20  # of centred states: few products, and a buffer that is small beside the recording
_buffers = Buffers()


class Distances:
    """What the analyzers work on, independent of the dimension. NaN stands at and beyond an orbit's length.

    Attributes:
        lengths: (n_orbits,), finite steps.
        norms: (n_orbits, n_steps), norms of the states.
        norm_gaps: (n_orbits, n_steps), norm of each state minus that of the orbit's last finite one.
        squared: (n_orbits, n_steps, n_steps), squared Euclidean distances between all states, float64; filled from
            the matrix product when first asked for.
    """

    def __init__(self, states: torch.Tensor, lengths: np.ndarray) -> None:
        from dynloop.kernels.distances import fill_neighbours, neighbours  # numba loads on first use

        n, n_steps = states.shape[:2]
        self.lengths = lengths
        self.norms, self.norm_gaps = np.empty((n, n_steps)), np.empty((n, n_steps))
        self._steps, self._from_last = np.empty((n, n_steps - 1)), np.empty((n, n_steps))
        self._states = states
        self._gram = _centred_gram(states, lengths)
        spacing = np.finfo(self._gram.dtype)
        self._limit = _UNRESOLVED * float(spacing.eps)
        tiny = float(spacing.tiny) / float(spacing.eps) ** 2
        unresolved, self._awkward = neighbours(self._gram, lengths, self._limit, tiny, self.norms, self.norm_gaps,
                                               self._steps, self._from_last)
        for o in np.flatnonzero(unresolved | self._awkward):
            own, length = self._direct(o), lengths[o]
            fill_neighbours(own, length, self._awkward[o], self._steps[o], self._from_last[o])
            if self._awkward[o]:
                with np.errstate(over="ignore"):
                    self.norms[o, :length] = np.linalg.norm(own[:length].astype(np.float64), axis=1)
                    # (|a| - |b|) (|a| + |b|) = (a - b).(a + b)
                    end = own[length - 1].astype(np.float64)
                    gap = (own[:length] - end) * ((own[:length] + end) / (self.norms[o, :length, None] + 1e-300
                                                                         + self.norms[o, length - 1]))
                    self.norm_gaps[o, :length] = gap.sum(1)

    def _direct(self, orbit: int) -> np.ndarray:
        """The states of one orbit, (n_steps, dim), for what the product could not resolve."""
        own = self._states[orbit].to("cpu")
        return (own if own.dtype in (torch.float32, torch.float64) else own.float()).numpy()

    @functools.cached_property
    def squared(self) -> np.ndarray:
        from dynloop.kernels.distances import all_pairs, fill_pairs

        n, n_steps = self.norms.shape
        squared = np.empty((n, n_steps, n_steps))
        unresolved = all_pairs(self._gram, self.lengths, self._limit, squared)
        for o in np.flatnonzero(unresolved | self._awkward):
            fill_pairs(self._direct(o), self.lengths[o], self._awkward[o], squared[o])
        return squared

    def successive(self, *, metric: str = "euclidean") -> np.ndarray:
        """Distance from each state to the next, (n_orbits, n_steps - 1), in one of `METRICS`."""
        return _distance(metric, self._steps, self.norms[:, :-1], self.norms[:, 1:], np.diff(self.norm_gaps, axis=1))

    def from_last(self, *, metric: str = "euclidean") -> np.ndarray:
        """Distance of each state from the last finite one, (n_orbits, n_steps); that state's own entry is 0."""
        last = np.maximum(self.lengths - 1, 0)[:, None]
        return _distance(metric, self._from_last, self.norms, np.take_along_axis(self.norms, last, axis=1),
                         self.norm_gaps)


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
    two centred squared norms, cannot be resolved by the product and is computed directly, as is every pair of an orbit
    whose squares leave the range of the format. Every distance is therefore good to about 1e-3 relative, whatever its
    size (a test holds it against float64).

    The result takes 4 to 12 n_steps^2 bytes an orbit: pass chunks, as `measure` does.
    """
    if "distances" not in trajectories.derived:
        trajectories.derived["distances"] = Distances(trajectories.states, trajectories.lengths)
    return trajectories.derived["distances"]


def _centred_gram(states: torch.Tensor, lengths: np.ndarray) -> np.ndarray:
    """Gram matrices (n, T, T) of states minus each orbit's last finite state, that state itself in its own row."""
    n, n_steps, dim = states.shape
    dtype = torch.float64 if states.dtype == torch.float64 else torch.float32
    gram = _buffers.tensor((n, n_steps, n_steps), dtype, states.device)
    block = max(1, _BLOCK_BYTES // (dtype.itemsize * n_steps * dim))
    for first in range(0, n, block):
        part = states[first:first + block]
        last = np.maximum(lengths[first:first + block] - 1, 0)
        at: tuple = (slice(None), int(last[0])) if (last == last[0]).all() else \
            (torch.arange(len(part), device=part.device), torch.as_tensor(last, device=part.device))
        ends = part[at].to(dtype)
        centred = _buffers.tensor(tuple(part.shape), dtype, part.device)
        if part.dtype == dtype:
            torch.sub(part, ends[:, None], out=centred)
        else:
            centred.copy_(part).sub_(ends[:, None])
        centred[at] = ends
        torch.bmm(centred, centred.transpose(1, 2), out=gram[first:first + block])
    return gram.cpu().numpy()
