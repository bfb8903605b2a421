"""The one heavy pass over a recording: all distances within each orbit, by one batched matrix product."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import torch

from dynloop.buffers import Buffers
from dynloop.trajectories import Trajectories

METRICS = ("euclidean", "relative", "cosine")  # ||a - b||; ||a - b|| / ||b||; 1 - cos(a, b)
_UNRESOLVED = 2.0**-7  # a squared distance below this share of the two centred squared norms is computed directly
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
        tiny = float(spacing.tiny) / float(spacing.eps) ** 2
        large_enough = tiny / float(spacing.eps) ** 2
        unresolved, self._awkward = neighbours(self._gram, lengths, _UNRESOLVED, tiny, large_enough, self.norms,
                                               self.norm_gaps, self._steps, self._from_last)
        for o in np.flatnonzero(unresolved | self._awkward):
            fill_neighbours(self._direct(int(o)), lengths[o], self._awkward[o], self.norms[o], self.norm_gaps[o],
                            self._steps[o], self._from_last[o])

    def _direct(self, orbit: int) -> np.ndarray:
        """The states of one orbit, (n_steps, dim), for what the product could not resolve."""
        own = self._states[orbit].to("cpu")
        return (own if own.dtype in (torch.float32, torch.float64) else own.float()).numpy()

    @functools.cached_property
    def squared(self) -> np.ndarray:
        from dynloop.kernels.distances import all_pairs, fill_pairs

        n, n_steps = self.norms.shape
        squared = _buffers.tensor((n, n_steps, n_steps), torch.float64, torch.device("cpu")).numpy()
        unresolved = all_pairs(self._gram, self.lengths, _UNRESOLVED, squared)
        for o in np.flatnonzero(unresolved | self._awkward):
            fill_pairs(self._direct(int(o)), self.lengths[o], self._awkward[o], squared[o])
        return squared

    def successive(self, *, metric: str = "euclidean") -> np.ndarray:
        """Distance from each state to the next, (n_orbits, n_steps - 1), in one of `METRICS`.

        Cosines are computed from the states directly: they are differences that no product resolves.
        """
        if metric == "cosine":
            from dynloop.kernels.distances import cosine_distances

            cosines = np.full(self._steps.shape, np.nan)
            for o, length in enumerate(self.lengths):
                own = self._direct(o)[:length]
                cosine_distances(own[:-1], own[1:], cosines[o])
            return cosines
        with np.errstate(invalid="ignore"):  # beyond 1e154 squares are infinite
            gaps = np.diff(self.norm_gaps, axis=1)
        return _distance(metric, self._steps, self.norms[:, :-1], self.norms[:, 1:], gaps)

    def from_last(self, *, metric: str = "euclidean") -> np.ndarray:
        """Distance of each state from the last finite one, (n_orbits, n_steps); that state's own entry is 0."""
        last = np.maximum(self.lengths - 1, 0)[:, None]
        end = np.take_along_axis(self.norms, last, axis=1)
        found = _distance(metric, self._from_last, self.norms, end, self.norm_gaps)
        if metric == "cosine":
            from dynloop.kernels.distances import cosine_distances

            for o in np.flatnonzero((self.norms < end / 8).any(1)):  # short states drown beside a long last one
                own = self._direct(int(o))[:self.lengths[o]]
                cosine_distances(own, own[-1:], found[o])
        return found


def _distance(metric: str, squared: np.ndarray, start: np.ndarray, end: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Distances between states of norms `start` and `end` that differ by `gap`; `METRICS` says which."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}. Choose one of these.")
    if metric == "euclidean":
        return np.sqrt(squared)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "relative":
            return np.where(squared == 0, 0.0, np.sqrt(squared) / end)  # at rest in 0 is at rest
        return np.maximum(squared - gap**2, 0.0) / (2 * start * end)


def distances(trajectories: Trajectories) -> Distances:
    """All distances between the states of each orbit, read once and shared by every analyzer of these trajectories.

    States are centred on the orbit's last finite state, which keeps distances near the limit from drowning in
    cancellation, and turned into Gram matrices by one batched matrix product on the device where they lie, in float32
    (float64 for float64 states). A pair whose squared distance is below 1/128 of the two centred squared norms is not
    resolved well by the product and is computed directly, in float64; so is every pair of an orbit whose squares leave
    the range of the format, and a norm that is small beside the last one. Every distance is therefore good to 1e-3
    relative, whatever its size, and to 1e-9 for float64 states (tests hold it against differences taken one by one).

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
        with _full_precision():
            torch.bmm(centred, centred.transpose(1, 2), out=gram[first:first + block])
    return gram.cpu().numpy()


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Float32 products in float32, whatever a training script has allowed (TF32, bfloat16)."""
    allowed = torch.get_float32_matmul_precision()
    if allowed == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)
