"""Saved tensors from elsewhere: .pt/.pth, .npy, .npz and .safetensors, with the axes named by the user."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynloop.store.shards import map_file, read_safetensors
from dynloop.trajectories import Trajectories, as_tensor

TIME, SPACE = "recurrence", "feature"
ENDINGS = (".pt", ".pth", ".npy", ".npz", ".safetensors")


def load(path: str | Path, *, axes: Sequence[str] | str, key: str | None = None,
         labels: Mapping[str, Any] | None = None, resolution: float | None = None) -> Trajectories:
    """Read orbits from a tensor file that somebody else saved.

    `.npy` and `.safetensors` are memory-mapped; `.pt` and `.pth` are read with `weights_only=True`, so that no code
    in them ever runs; pickled arrays in `.npy` and `.npz` are refused.

    Args:
        path: the file.
        axes: one name an axis, as a sequence or a text with commas. "recurrence" and "feature" must be among them;
            every other axis becomes a label (0, 1, 2, ...), for example "prompt,token,recurrence,feature".
        key: which tensor, where the file holds several.
        labels: values in place of 0, 1, 2, ... along an axis, or a single value for all orbits.
        resolution: relative spacing of the dtype in which the model computed, where the file's dtype is another one.

    Raises:
        FileNotFoundError, ValueError, TypeError: what came, what is needed and what to do.

    Example:
        >>> import numpy as np, tempfile, pathlib
        >>> from dynloop import load
        >>> path = pathlib.Path(tempfile.mkdtemp(), "states.npy")
        >>> np.save(path, np.zeros((2, 5, 9, 4), dtype="float32"))
        >>> load(path, axes="prompt,token,recurrence,feature")
        Trajectories(10 orbits of 9 steps in 4 dimensions, float32; labels: prompt, token)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}. Name a tensor file ({', '.join(ENDINGS)}).")
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path.name} ends in {path.suffix!r}; tensors are read from {', '.join(ENDINGS)}. "
                         "Save the states in one of these.")
    names = tuple(name.strip() for name in (axes.split(",") if isinstance(axes, str) else axes))
    states = as_tensor(_read(path, key))
    if len(names) != states.ndim:
        raise ValueError(f"{path.name} has {states.ndim} axes, shape {tuple(states.shape)}; got {len(names)} axis "
                         f"names ({', '.join(names)}). Name each axis once.")
    if len(set(names)) != len(names) or TIME not in names or SPACE not in names:
        raise ValueError(f"axes must be distinct names with {TIME!r} and {SPACE!r} among them; got "
                         f"{', '.join(names)}. For example: prompt,token,{TIME},{SPACE}.")
    lead = [i for i, name in enumerate(names) if name not in (TIME, SPACE)]
    shape = [states.shape[i] for i in lead]
    states = states.permute(*lead, names.index(TIME), names.index(SPACE))
    found = {}
    for along, axis in enumerate(lead):
        values = np.asarray((labels or {}).get(names[axis], np.arange(states.shape[along])))
        if values.shape != (shape[along],):
            raise ValueError(f"labels for axis {names[axis]!r} must be {shape[along]} values; got shape "
                             f"{values.shape}.")
        found[names[axis]] = np.broadcast_to(values.reshape([-1] + [1] * (len(lead) - along - 1)), shape).reshape(-1)
    for name, value in (labels or {}).items():
        if name not in found:
            if np.ndim(value):
                raise ValueError(f"label {name!r} is no axis of {path.name} ({', '.join(names)}); a label that is not "
                                 "an axis takes a single value.")
            found[name] = value
    return Trajectories(states.reshape(-1, *states.shape[-2:]), labels=found, resolution=resolution)


class _Chosen(Exception):
    """The file is readable, but the key does not fit it."""


def _choose(path: Path, keys: list[str], key: str | None) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    if key not in keys:
        shown = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
        came = "none was named" if key is None else f"got {key!r}"
        raise _Chosen(f"{path.name} holds the tensors {shown or '(none)'}; {came}. Choose one with key=...")
    return key


def _read(path: Path, key: str | None) -> Any:
    try:
        if path.suffix == ".npy":
            if key is not None:
                raise _Chosen(f"{path.name} holds one array; leave key out.")
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return arrays[_choose(path, list(arrays), key)]
        if path.suffix == ".safetensors":
            tensors = read_safetensors(map_file(path))
            return tensors[_choose(path, list(tensors), key)]
        zipped = zipfile.is_zipfile(path)  # what torch.save has written since 1.6; only that can be memory-mapped
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path.name} holds more than tensors, and dynloop never runs pickled code: "
                         f"{str(error).splitlines()[0]} Save the tensor alone, for example as .safetensors.") from error
    except _Chosen as error:
        raise ValueError(str(error)) from None
    except (ValueError, OSError, EOFError, RuntimeError, LookupError, AssertionError, AttributeError, TypeError,
            struct.error, zipfile.BadZipFile) as error:
        if "pickle" in str(error) or "memory-mapped" in str(error):
            raise ValueError(f"{path.name} holds pickled objects, and dynloop never runs pickled code. Save a plain "
                             "floating-point array.") from error
        raise ValueError(f"{path.name} cannot be read as {path.suffix}: {error}. Is it whole?") from error
    if isinstance(held, torch.Tensor):
        if key is not None:
            raise ValueError(f"{path.name} holds one tensor; leave key out.")
        return held
    if not isinstance(held, dict):
        raise ValueError(f"{path.name} holds a {type(held).__name__}; a tensor or a dictionary of tensors is needed.")
    try:
        return held[_choose(path, [k for k, v in held.items() if isinstance(v, torch.Tensor)], key)]
    except _Chosen as error:
        raise ValueError(str(error)) from None
