"""The recording: orbits of one length in one state space, with labels, finite lengths and numerical resolution."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from dynloop.settings import check_number

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
CHUNK_BYTES = 16 * 2**20  # of states in float32: small enough to stay in cache, large enough for the matrix product
_UNSET: Any = object()


def as_tensor(states: Any) -> torch.Tensor:
    """A torch tensor over the same memory where possible; NumPy arrays (bfloat16 by ml_dtypes included) are welcome.

    Raises:
        TypeError: not an array of one of the four floating dtypes.
    """
    if isinstance(states, np.ndarray):
        if states.dtype.name == "bfloat16":
            states = from_numpy(states.view(np.uint16)).view(torch.bfloat16)
        elif states.dtype.kind == "f" and states.dtype.itemsize <= 8:
            states = from_numpy(states)
        else:
            raise TypeError(f"states must be floating-point numbers (float64, float32, float16 or bfloat16); got an "
                            f"array of {states.dtype}. Convert it first, for example with states.astype('float32').")
    if not isinstance(states, torch.Tensor):
        raise TypeError(f"states must be a torch tensor or a NumPy array; got {type(states).__name__}. "
                        "Convert it first, for example with numpy.asarray(states, dtype='float32').")
    if states.dtype not in DTYPES:
        raise TypeError(f"states must be floating-point numbers (float64, float32, float16 or bfloat16); got "
                        f"{states.dtype}. Convert them first, for example with states.float().")
    return states.detach()


def orbits_a_chunk(n_steps: int, dim: int, *, max_bytes: int = CHUNK_BYTES) -> int:
    """Orbits whose states and distances each take at most about `max_bytes` as float32; at least one."""
    return max(1, max_bytes // (4 * n_steps * max(dim, n_steps)))


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """torch.from_numpy for arrays that are read-only, byte-swapped or backwards, without its warning."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


class Trajectories:
    """Orbits of a map: frozen, checked at the door, so that nothing downstream checks again.

    Args:
        states: (n_orbits, n_steps, dim), torch tensor or NumPy array, float64, float32, float16 or bfloat16, on any
            device; memory-mapped arrays stay on disk until they are used. The memory is shared, not copied: do not
            write to it afterwards.
        labels: for each name one value an orbit (or one for all): model, seed, prompt, token, layer, start, ...
        lengths: finite steps of each orbit, (n_orbits,). By default every orbit is read up to its first NaN or
            infinity; shorter lengths may be given for ragged recordings.
        resolution: relative spacing of the dtype in which the *model computed*; the spacing of the states' own dtype
            by default. Give it when states were cast after the computation: it decides where the precision floor lies.
        diverged: whether a NaN or an infinity ended the orbit, (n_orbits,). Whoever gives it together with `lengths`
            vouches for both, and the states are not scanned (a store does so).

    Raises:
        ValueError: wrong shape, labels or lengths that do not fit.
        TypeError: not floating-point numbers.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> orbits = Trajectories(np.cumsum(np.ones((3, 10, 4)), axis=1), labels={"prompt": [0, 0, 1]})
        >>> orbits
        Trajectories(3 orbits of 10 steps in 4 dimensions, float64; labels: prompt)
        >>> orbits.select(prompt=1).n_orbits
        1
    """

    __slots__ = ("_diverged", "_given", "_labels", "_lengths", "_resolution", "_states", "derived")

    _states: torch.Tensor
    _labels: Mapping[str, np.ndarray]
    _given: Any  # lengths that somebody gave, not measured here
    _lengths: Any  # None until they are needed
    _diverged: Any
    _resolution: float
    derived: dict[str, Any]  # what was computed from these states once and is shared by all analyzers

    def __init__(self, states: Any, *, labels: Mapping[str, Any] | None = None, lengths: Any = None,
                 resolution: float | None = None, diverged: Any = None) -> None:
        states = as_tensor(states)
        if states.ndim != 3:
            raise ValueError(f"states must have shape (n_orbits, n_steps, dim); got {tuple(states.shape)}. "
                             "One orbit? Pass states[None].")
        if 0 in states.shape:
            raise ValueError(f"states must hold at least one orbit, one step and one dimension; got "
                             f"{tuple(states.shape)}.")
        n_orbits, n_steps = states.shape[:2]
        clean: dict[str, np.ndarray] = {}
        for name, given in (labels or {}).items():
            values = np.array(given)
            if values.ndim == 0:
                values = np.repeat(values, n_orbits)
            if values.shape != (n_orbits,):
                raise ValueError(f"label {name!r} must hold one value for each of {n_orbits} orbits; got shape "
                                 f"{values.shape}.")
            values.flags.writeable = False
            clean[str(name)] = values
        if lengths is not None:
            given = np.asarray(lengths)
            if given.shape != (n_orbits,) or given.dtype.kind not in "iu" or \
                    given.min() < 0 or given.max() > n_steps:
                raise ValueError(f"lengths must be whole numbers from 0 to {n_steps}, one for each of {n_orbits} "
                                 f"orbits; got {given.dtype} of shape {given.shape}. Leave it out to have it measured.")
            lengths = given.astype(np.int64)
        if diverged is not None:
            diverged = np.asarray(diverged, dtype=bool)
            if lengths is None or diverged.shape != (n_orbits,):
                raise ValueError(f"diverged goes with lengths, one value for each of {n_orbits} orbits. "
                                 "Leave both out to have them measured.")
        spacing = torch.finfo(states.dtype).eps
        if resolution is None:
            resolution = spacing
        check_number("resolution", resolution, lambda v: 0 < v < 1, "the relative spacing of a number format, between "
                                                                    f"0 and 1 (float32: {2.0**-23:.3g})")
        given = None if diverged is not None else lengths
        for name, value in (("_given", given), ("_states", states), ("_labels", types.MappingProxyType(clean)),
                            ("_lengths", lengths),
                            ("_diverged", diverged), ("_resolution", float(resolution)), ("derived", {})):
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Trajectories are frozen; to change {name.lstrip('_')}, make new ones with "
                             f"replace({name.lstrip('_')}=...).")

    @property
    def states(self) -> torch.Tensor:
        """States (n_orbits, n_steps, dim)."""
        return self._states

    @property
    def labels(self) -> Mapping[str, np.ndarray]:
        """Labels, each (n_orbits,)."""
        return self._labels

    @property
    def resolution(self) -> float:
        """Relative spacing of the dtype in which the model computed."""
        return self._resolution

    @property
    def lengths(self) -> np.ndarray:
        """Finite steps of each orbit, (n_orbits,)."""
        self._scan()
        return self._lengths

    @property
    def diverged(self) -> np.ndarray:
        """Whether a NaN or an infinity ended the orbit, (n_orbits,)."""
        self._scan()
        return self._diverged

    def _scan(self) -> None:
        if self._diverged is not None:
            return
        n_orbits, n_steps, dim = self.states.shape
        finite_steps = np.empty(n_orbits, dtype=np.int64)
        block = max(1, CHUNK_BYTES // (4 * n_steps * dim))
        for first in range(0, n_orbits, block):
            part = self.states[first:first + block]
            bad = ~part.sum(-1).isfinite()  # one read; a sum may overflow where no state does
            if bad.any():
                bad[bad.clone()] = ~part[bad].isfinite().all(-1)
            first_bad = torch.where(bad.any(-1), bad.int().argmax(-1), n_steps)
            finite_steps[first:first + block] = first_bad.cpu().numpy()
        given = np.full(n_orbits, n_steps, dtype=np.int64) if self._lengths is None else self._lengths
        object.__setattr__(self, "_lengths", np.minimum(given, finite_steps))
        object.__setattr__(self, "_diverged", finite_steps < given)

    @property
    def n_orbits(self) -> int:
        return self.states.shape[0]

    @property
    def n_steps(self) -> int:
        return self.states.shape[1]

    @property
    def dim(self) -> int:
        return self.states.shape[2]

    def __len__(self) -> int:
        return self.n_orbits

    def __repr__(self) -> str:
        labels = f"; labels: {', '.join(self.labels)}" if self.labels else ""
        return (f"Trajectories({self.n_orbits} orbits of {self.n_steps} steps in {self.dim} dimensions, "
                f"{str(self.states.dtype).removeprefix('torch.')}{labels})")

    def replace(self, *, states: Any = _UNSET, labels: Any = _UNSET, lengths: Any = _UNSET,
                resolution: Any = _UNSET) -> Trajectories:
        """A copy with something changed. Casting states keeps the resolution of the computation, and given lengths."""
        keep = states is _UNSET and lengths is _UNSET  # then what is known of the lengths stays true
        if lengths is _UNSET:
            lengths = self._lengths if keep or self._given is None else self._given
            if not keep and (self._given is None or np.shape(states)[:2] != self.states.shape[:2]):
                lengths = None
        return Trajectories(self.states if states is _UNSET else states,
                            labels=self.labels if labels is _UNSET else labels, lengths=lengths,
                            diverged=self._diverged if keep else None,
                            resolution=self.resolution if resolution is _UNSET else resolution)

    def __reduce__(self) -> tuple:
        return _rebuild, (self.states, dict(self.labels), self._lengths, self._diverged, self.resolution)

    def __getitem__(self, orbits: Any) -> Trajectories:
        """Some orbits, by slice, indices or mask. A slice shares memory; one index keeps the orbit axis."""
        index: Any = orbits
        if isinstance(orbits, int | np.integer) and not isinstance(orbits, bool):
            if not -self.n_orbits <= orbits < self.n_orbits:
                raise IndexError(f"orbit {orbits} of {self.n_orbits}.")
            index = slice(int(orbits) % self.n_orbits, int(orbits) % self.n_orbits + 1)
        elif isinstance(orbits, slice):
            if orbits.step not in (None, 1):
                index = np.arange(self.n_orbits)[orbits]
        else:
            index = np.asarray(orbits)
            if isinstance(orbits, tuple) or index.ndim != 1 or index.dtype.kind not in "iub" or \
                    (index.dtype.kind == "b" and len(index) != self.n_orbits):
                raise TypeError(f"orbits are chosen by a slice, a number, a list of numbers or a mask of "
                                f"{self.n_orbits}; got {orbits!r}.")
            if index.dtype.kind != "b":
                index = index.astype(np.int64)
        rows = index if isinstance(index, slice) else torch.as_tensor(index, device=self.states.device)
        return Trajectories(self.states[rows], labels={name: values[index] for name, values in self.labels.items()},
                            lengths=None if self._lengths is None else self._lengths[index],
                            diverged=None if self._diverged is None else self._diverged[index],
                            resolution=self.resolution)

    def select(self, **wanted: Any) -> Trajectories:
        """The orbits whose labels have the wanted value, or one of the wanted values.

        Raises:
            ValueError: an unknown label, or no such orbit.
        """
        mask = np.ones(self.n_orbits, dtype=bool)
        for name, values in wanted.items():
            if name not in self.labels:
                raise ValueError(f"no label {name!r}; these orbits have {', '.join(self.labels) or 'no labels'}.")
            mask &= np.isin(self.labels[name], np.atleast_1d(values))
        if not mask.any():
            raise ValueError("no orbit has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items()) + "; there are "
                             + "; ".join(f"{n}: {_some(self.labels[n])}" for n in wanted) + ".")
        return self[mask]

    def chunks(self, *, max_bytes: int = CHUNK_BYTES) -> Iterator[Trajectories]:
        """Consecutive parts whose states and distances each take at most about `max_bytes` as float32."""
        block = orbits_a_chunk(self.n_steps, self.dim, max_bytes=max_bytes)
        if block >= self.n_orbits:
            yield self
            return
        for first in range(0, self.n_orbits, block):
            yield self[first:first + block]


def _rebuild(states: torch.Tensor, labels: dict, lengths: Any, diverged: Any, resolution: float) -> Trajectories:
    return Trajectories(states, labels=labels, lengths=lengths, diverged=diverged, resolution=resolution)


def _some(values: np.ndarray, *, most: int = 8) -> str:
    distinct = np.unique(values)
    return ", ".join(map(str, distinct[:most])) + (f", ... ({len(distinct)})" if len(distinct) > most else "")
