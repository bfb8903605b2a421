"""One shard: a safetensors file, written whole or not at all, checked before it is believed, read by memory map."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from dynloop.trajectories import from_numpy

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
TEMPORARY = ".tmp"
PREFIX = "xxh3-128:"  # of checksums
_REMEDY = "Restore it from a copy, or delete the store and capture again."


class DamagedShardError(ValueError):
    """A shard is missing, cut short or changed since it was committed."""


def damaged(path: Path, how: str) -> DamagedShardError:
    """The error that names a shard and says what is wrong with it."""
    return DamagedShardError(f"shard {path.name} is damaged: {how}. {_REMEDY}")


def map_file(path: Path) -> mmap.mmap:
    """Memory-map a whole file for reading."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)  # the disk starts now and does not stop
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def checksum(memory: mmap.mmap) -> str:
    """xxh3-128 of a mapped file: as fast as the disk, and it brings the pages in that the analysis reads next."""
    return PREFIX + xxhash.xxh3_128(memory).hexdigest()


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write tensors to a temporary file, flush it to disk, put it in place; returns what the manifest says of it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        save_file(tensors, temporary)
    except SafetensorError as error:  # a full disk comes as this
        raise OSError(errno.ENOSPC, str(error), str(temporary)) from error
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)  # the library writes for its owner alone
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    line = {"bytes": temporary.stat().st_size, "checksum": checksum(map_file(temporary)),
            "tensors": {name: {"dtype": NAMES[t.dtype], "shape": list(t.shape)} for name, t in tensors.items()}}
    os.replace(temporary, path)
    sync_folder(path.parent)
    return line


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_size(path: Path, line: dict[str, Any]) -> None:
    """Refuse a shard that is not there or not as long as the manifest says."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise damaged(path, f"it is missing from {path.parent}") from None
    if size != line["bytes"]:
        raise damaged(path, f"it has {size} bytes where the manifest says {line['bytes']}")


def verified_map(path: Path, line: dict[str, Any]) -> mmap.mmap:
    """Memory-map a shard; refuse one whose bytes are not those that were committed."""
    check_size(path, line)
    memory = map_file(path)
    if checksum(memory) != line["checksum"]:
        raise damaged(path, "it does not have the checksum that the manifest says")
    return memory


def _places(memory: mmap.mmap) -> dict[str, tuple[torch.dtype, list[int], int, int]]:
    """Dtype, shape, first and last byte of every tensor of a safetensors file whose dtype is in `DTYPES`.

    Raises:
        ValueError: not a whole safetensors file.
    """
    size = int.from_bytes(memory[:8], "little")
    if len(memory) < 8 or size > len(memory) - 8:
        raise ValueError("it is cut short, or no safetensors file")
    header = json.loads(memory[8:8 + size])
    if not isinstance(header, dict):
        raise ValueError("it is no safetensors file")
    places = {}
    for name, entry in header.items():
        if name != "__metadata__" and \
                not (isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= set(entry)):
            raise ValueError(f"its header does not describe {name!r}")
        if name == "__metadata__" or entry["dtype"] not in DTYPES:
            continue
        dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
        if end - begin != math.prod(entry["shape"]) * dtype.itemsize or 8 + size + end > len(memory):
            raise ValueError(f"it is cut short at {name!r}")
        places[name] = (dtype, entry["shape"], 8 + size + begin, 8 + size + end)
    return places


def read_safetensors(memory: mmap.mmap) -> dict[str, torch.Tensor]:
    """The tensors of a mapped safetensors file whose dtype is in `DTYPES`, without copying.

    The library's own reader copies, or takes 30 ms to slice a 128 MiB tensor; this takes 0.1 ms.

    Raises:
        ValueError: not a whole safetensors file.
    """
    return {name: from_numpy(np.frombuffer(memory, dtype=np.uint8, count=end - begin, offset=begin))
            .view(dtype).view(shape) for name, (dtype, shape, begin, end) in _places(memory).items()}


def tensor_places(path: Path, line: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """First and last byte of every tensor of a shard; dtypes and shapes must be the manifest's."""
    try:
        places = _places(map_file(path))
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, str(error)) from error
    held = {name: {"dtype": NAMES[dtype], "shape": shape} for name, (dtype, shape, _, _) in places.items()}
    if held != line["tensors"]:
        raise damaged(path, f"it holds {held} where the manifest says {line['tensors']}")
    return {name: (begin, end) for name, (_, _, begin, end) in places.items()}


def map_tensors(path: Path, line: dict[str, Any], *, trusted: bool = False) -> dict[str, torch.Tensor]:
    """Memory-map every tensor of a shard; its bytes (unless trusted), shapes and dtypes must be the manifest's."""
    if trusted:
        check_size(path, line)
    memory = map_file(path) if trusted else verified_map(path, line)
    tensor_places(path, line)
    return read_safetensors(memory)
