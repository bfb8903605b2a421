"""Read shards once from beginning to end, piece by piece: for passes over recordings larger than memory.

Pieces are read past the system's page cache where it allows that (Linux, most disks), a few at a time so that the disk
never waits. A cold memory map or an ordinary read costs 0.2 to 1.9 seconds of processor a gigabyte in page faults,
copies and the search for free pages, which the matrix product needs, and pushes everything else out of the cache. The
checksum is computed on the way, over every byte.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from dynloop.buffers import Buffers
from dynloop.store.shards import DTYPES, PREFIX, check_size, damaged, tensor_places
from dynloop.trajectories import from_numpy

_PAGE = 4096
_AHEAD = 3  # reads under way
_buffers = Buffers()  # of all streams: a pass over many small stores would otherwise fill fresh pages for each


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Rows of one shard, and the bytes of the file that bring them."""

    shard: int
    rows: slice
    begin: int  # a page boundary, at or before the first byte that no piece before has covered
    new: int  # the first byte that no piece before has covered
    until: int
    states: int  # first byte of the rows


def _pieces(shards: Sequence[tuple[Path, dict[str, Any]]], piece_bytes: int) -> Iterator[_Piece]:
    for shard, (path, line) in enumerate(shards):
        check_size(path, line)
        shape = line["tensors"]["states"]["shape"]
        row_bytes = math.prod(shape[-2:]) * DTYPES[line["tensors"]["states"]["dtype"]].itemsize
        start, _ = tensor_places(path, line)["states"]
        n_rows, block, new = math.prod(shape[:-2]), max(1, piece_bytes // row_bytes), 0
        for first in range(0, n_rows, block):
            last = min(n_rows, first + block)
            until = line["bytes"] if last == n_rows else start + last * row_bytes
            yield _Piece(shard, slice(first, last), new // _PAGE * _PAGE, new, until, start + first * row_bytes)
            new = until


def _read(path: Path, piece: _Piece) -> np.ndarray:
    """The bytes of a piece, from its page boundary on."""
    raw = _buffers.view(math.ceil((piece.until - piece.begin) / _PAGE) * _PAGE)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        descriptor = os.open(path, os.O_RDONLY)  # a file system without direct reads
    try:
        done = 0
        while piece.begin + done < piece.until:
            n = os.preadv(descriptor, [raw[done:].data], piece.begin + done)
            if n == 0:
                raise damaged(path, "it ends too early")
            done += n
    finally:
        os.close(descriptor)
    return raw


def stream_states(shards: Sequence[tuple[Path, dict[str, Any]]], *, piece_bytes: int) \
        -> Iterator[tuple[int, slice, torch.Tensor]]:
    """The `states` of shards as (shard, rows, tensor (rows, steps, dim)), in order; every row once.

    A tensor stays valid as long as something refers to it.

    Raises:
        DamagedShardError: a shard is not the one that was committed. It may come after its last piece: what was made
            of its pieces must then be thrown away.
    """
    pieces = _pieces(shards, piece_bytes)
    digest = xxhash.xxh3_128()
    with ThreadPoolExecutor(_AHEAD) as readers:
        def start(piece: _Piece) -> tuple[_Piece, Any]:
            return piece, readers.submit(_read, shards[piece.shard][0], piece)

        under_way = collections.deque(map(start, itertools.islice(pieces, _AHEAD)))
        while under_way:
            piece, reading = under_way.popleft()
            raw = reading.result()
            under_way.extend(map(start, itertools.islice(pieces, 1)))
            path, line = shards[piece.shard]
            digest.update(raw[piece.new - piece.begin:piece.until - piece.begin].data)
            n_steps, dim = line["tensors"]["states"]["shape"][-2:]
            n_rows, dtype = piece.rows.stop - piece.rows.start, DTYPES[line["tensors"]["states"]["dtype"]]
            offset = piece.states - piece.begin
            states = from_numpy(raw[offset:offset + n_rows * n_steps * dim * dtype.itemsize])
            del raw, reading
            yield piece.shard, piece.rows, states.view(dtype).view(n_rows, n_steps, dim)
            del states
            if piece.until == line["bytes"]:
                if PREFIX + digest.hexdigest() != line["checksum"]:
                    raise damaged(path, "it does not have the checksum that the manifest says")
                digest = xxhash.xxh3_128()
