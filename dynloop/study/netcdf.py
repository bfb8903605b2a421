"""Labelled arrays as a group of a netCDF4 file, and back: h5netcdf itself, because xarray's own writer drops or
renames what CF has no word for.

Texts of many rows are numbers of a table beside them; everything goes into one checksum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr
import xxhash

_COMPRESSED = 2**14  # bytes from which an array is worth compressing
_TABLE = "%texts"  # "%" is escaped in names, so that no label or variable can be called so
_Stored = tuple[str, tuple[str, ...], np.ndarray, dict[str, Any]]  # name, dimensions, values, attributes


def stored(dataset: xr.Dataset) -> Iterator[_Stored]:
    """The arrays of a dataset as a file holds them; coordinates first, those of dimensions before all others."""
    plain = [name for name in dataset.coords if name in dataset.dims]
    others = [name for name in dataset.coords if name not in dataset.dims]
    for name in [*plain, *others, *dataset.data_vars]:
        found = dataset[name].variable
        values, dims, about = np.asarray(found.values), tuple(map(str, found.dims)), dict(found.attrs)
        if name in others:
            about["role"] = "label"
        if values.dtype == bool:
            yield str(name), dims, values.astype(np.int8), {**about, "dtype": "bool"}
        elif values.dtype.kind not in "UO" or name in plain or not dims:
            yield str(name), dims, values, about
        else:
            import pandas as pd

            numbers, table = pd.factorize(values.ravel())
            smallest = np.min_scalar_type(max(len(table) - 1, 0)) if len(table) else np.dtype(np.uint8)
            yield f"{name}{_TABLE}", (f"{name}{_TABLE}",), np.asarray(table, dtype=object), {}
            yield str(name), dims, numbers.astype(smallest).reshape(values.shape), {**about, "texts": f"{name}{_TABLE}"}


def write_group(group: Any, about: Mapping[Any, Any], arrays: Iterable[_Stored], digest: xxhash.xxh3_128) -> Any:
    """Write attributes and arrays into a new group, which it gives back.

    Raises:
        ValueError: a text with a NUL character, or half of a surrogate pair.
    """
    for name, value in about.items():
        group.attrs[name] = value
    held = list(arrays)
    for _, dims, values, _ in held:
        for dim, size in zip(dims, values.shape, strict=True):
            if dim not in group.dimensions:
                group.dimensions[dim] = size
    for name, dims, values, own in held:
        if values.dtype.kind in "UO":
            texts = values.astype(object)
            if any("\x00" in text for text in texts.ravel()):
                raise ValueError(f"{name.removesuffix(_TABLE)!r} holds a text with a NUL character, which HDF5 cannot "
                                 "hold; replace it.")
            if bad := next((text for text in texts.ravel() if text != text.encode(errors="replace").decode()), None):
                raise ValueError(f"{name.removesuffix(_TABLE)!r} holds {bad!r}, which is no Unicode text (half of a "
                                 "surrogate pair, from bytes that were not UTF-8?); replace it.")
            made = group.create_variable(name, dims, h5py.string_dtype(), data=texts)
        else:
            packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} \
                if values.nbytes >= _COMPRESSED else {}
            made = group.create_variable(name, dims, values.dtype, data=values, **packed)
        for key, value in own.items():
            made.attrs[key] = value
    _feed(digest, about, {name: (dims, values, own) for name, dims, values, own in held})
    return group


def _feed(digest: xxhash.xxh3_128, about: Mapping[Any, Any],
          arrays: Mapping[str, tuple[tuple[str, ...], np.ndarray, Mapping[str, Any]]]) -> None:
    """Every name, attribute and value of a group into the checksum."""
    digest.update(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(arrays):
        dims, values, own = arrays[name]
        texts = values.dtype.kind in "UO"
        digest.update(json.dumps([name, dims, values.shape, "" if texts else values.dtype.str, dict(own)],
                                 sort_keys=True).encode())
        digest.update(json.dumps(values.tolist()).encode() if texts else np.ascontiguousarray(values).data.cast("B")
                      if values.size else b"")


def read_group(group: Any, digest: xxhash.xxh3_128) \
        -> tuple[dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]], dict[str, Any]]:
    """The arrays and the attributes of a group."""
    about = dict(group.attrs.items())
    arrays = {}
    for name, found in group.variables.items():
        values = np.asarray(found[...])
        if values.dtype.kind == "O":
            values = np.array([v if isinstance(v, str) else v.decode() for v in values.ravel()],
                              dtype=object).reshape(values.shape)
        arrays[name] = (tuple(found.dimensions), values, dict(found.attrs.items()))
    _feed(digest, about, arrays)
    return arrays, about


def loaded(arrays: Mapping[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]],
            about: dict[str, Any]) -> xr.Dataset:
    """What `stored` took apart."""
    data: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    for name, (dims, values, own) in arrays.items():
        if name.endswith(_TABLE):
            continue
        own = dict(own)
        role, kind, table = own.pop("role", None), own.pop("dtype", None), own.pop("texts", None)
        if kind == "bool":
            values = values.astype(bool)
        elif table is not None:
            texts = arrays[table][1].astype(str)
            values = texts[values] if texts.size else np.zeros(values.shape, dtype="U1")
        elif values.dtype.kind == "O":
            values = values.astype(str)
        values.flags.writeable = False
        (coordinates if role == "label" or dims == (name,) else data)[name] = (dims, values, own)
    return xr.Dataset(data, coords=coordinates, attrs=about)
