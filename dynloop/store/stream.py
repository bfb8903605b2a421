"""Read a shard once from beginning to end, piece by piece: for passes over recordings larger than memory.

Pieces are read past the system's page cache where it allows that (Linux, most disks): a cold memory map costs about
0.4 seconds of processor a gigabyte in page faults and copies, which the matrix product needs, and it pushes everything
else out of the cache. The checksum is computed on the way, over every byte.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from dynloop.store.shards import DTYPES, PREFIX, check_size, damaged, tensor_places
from dynloop.trajectories import as_tensor_bytes

_PAGE = 4096


class Buffers:
    """Anonymous memory for pieces, used again as soon as nothing refers to the piece any more."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def view(self, size: int) -> np.ndarray:
        """A writable array of `size` bytes, page-aligned."""
        while self._free:
            memory = self._free.pop()
            if len(memory) >= size:
                break
        else:
            memory = mmap.mmap(-1, math.ceil(size / _PAGE) * _PAGE)
        array = np.frombuffer(memory, dtype=np.uint8, count=size)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY)  # a file system without direct reads


def _read(descriptor: int, into: np.ndarray, begin: int, end: int) -> None:
    """Fill `into` with the file from `begin` (a page boundary) to `end`; it may hold up to a page more."""
    done = 0
    while begin + done < end:
        n = os.preadv(descriptor, [into[done:].data], begin + done)
        if n == 0:
            raise OSError(errno.EIO, "the file ends too early")
        done += n


def stream_states(path: Path, line: dict[str, Any], *, piece_bytes: int, buffers: Buffers) \
        -> Iterator[tuple[slice, torch.Tensor]]:
    """The `states` of a shard as (rows, tensor (rows, steps, dim)), in order; every row once.

    The tensors are valid as long as something refers to them.

    Raises:
        DamagedShardError: the shard is not the one that was committed. It may come after the last piece: what was
            made of the pieces must then be thrown away.
    """
    check_size(path, line)
    size, dtype = line["bytes"], DTYPES[line["tensors"]["states"]["dtype"]]
    steps, dim = line["tensors"]["states"]["shape"][-2:]
    rows = math.prod(line["tensors"]["states"]["shape"][:-2])
    row_bytes = steps * dim * dtype.itemsize
    block = max(1, piece_bytes // row_bytes)
    digest, hashed = xxhash.xxh3_128(), 0
    start, end = tensor_places(path, line)["states"]
    if end - start != rows * row_bytes:
        raise damaged(path, "its states do not have the shape that the manifest says")
    descriptor = _open(path)
    try:
        for first in range(0, rows, block):
            last = min(rows, first + block)
            until = size if last == rows else start + last * row_bytes
            begin = hashed // _PAGE * _PAGE
            raw = buffers.view(math.ceil((until - begin) / _PAGE) * _PAGE)
            _read(descriptor, raw, begin, until)
            digest.update(raw[hashed - begin:until - begin].data)
            offset = start + first * row_bytes - begin
            piece = as_tensor_bytes(raw[offset:offset + (last - first) * row_bytes])
            hashed = until
            yield slice(first, last), piece.view(dtype).view(last - first, steps, dim)
    finally:
        os.close(descriptor)
    if PREFIX + digest.hexdigest() != line["checksum"]:
        raise damaged(path, "it does not have the checksum that the manifest says")
