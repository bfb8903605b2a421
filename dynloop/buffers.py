"""Scratch memory that is used again as soon as nothing refers to it: fresh pages cost more than the work on them."""

from __future__ import annotations

import math
import mmap
import threading
import weakref

import numpy as np
import torch

from dynloop.trajectories import from_numpy

# Python's own choice is memory that a forked process shares: two of them would write into the same buffer
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}  # not on Windows


class Buffers:
    """A pool of anonymous, page-aligned memory.

    What it hands out stays valid as long as anything refers to it, however long that is; then it serves again.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def view(self, size: int) -> np.ndarray:
        """A writable array of `size` bytes."""
        with self._lock:
            fitting = [i for i, memory in enumerate(self._free) if size <= len(memory) <= 2 * size + mmap.PAGESIZE]
            memory = self._free.pop(fitting[-1]) if fitting else None
            if memory is None:
                del self._free[:-4]  # sizes have changed: keep little of what no longer fits
        memory = memory or mmap.mmap(-1, size, **_PRIVATE)
        array = np.frombuffer(memory, dtype=np.uint8, count=size)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """An uninitialised tensor; torch keeps a pool of its own for devices other than the processor."""
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        return from_numpy(self.view(math.prod(shape) * dtype.itemsize)).view(dtype).view(shape)
