"""One measurement as labelled arrays, and back, in every bit."""

from __future__ import annotations

import itertools
import json
import math
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome

_MOST_DIMS = 12  # labels looked at for a full product
_TUPLE = "__tuple__"


def key_of(name: str) -> str:
    """A name that a group or an array can have: without "/" and what else netCDF4 forbids; `name_of` gives it back."""
    return re.sub(r"[%/\x00-\x1f\x7f]|^[ .]|[ .]$", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), name)


def name_of(key: str) -> str:
    """The name that `key_of` escaped."""
    return urllib.parse.unquote(key)


def _tagged(value: Any) -> Any:
    """`value` as JSON holds it, tuples marked; NumPy scalars become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        return {_TUPLE: [_tagged(v) for v in value]}
    if isinstance(value, list):
        return [_tagged(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value) and _TUPLE not in value:
        return {k: _tagged(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} of {type(value).__name__}")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return tuple(_plain(value[_TUPLE])) if _TUPLE in value else {k: _plain(v) for k, v in value.items()}
    return value


def from_text(text: str) -> Any:
    """What `as_text` wrote."""
    return _plain(json.loads(text))


def as_text(value: Any, whose: str) -> str:
    """Settings or provenance as JSON.

    Raises:
        TypeError: what JSON and tuples cannot say; `whose` begins the sentence.
    """
    try:
        return json.dumps(_tagged(value))
    except TypeError as error:
        raise TypeError(f"{whose} holds {error}, which a study cannot keep: use numbers, texts, None, True or False, "
                        "and lists, tuples and dictionaries of them.") from None


def to_dataset(measurement: Measurement) -> xr.Dataset:
    """Labelled arrays of one measurement."""
    n = measurement.n_orbits
    arrays = {**{key_of(k): _kept(v, k, measurement) for k, v in measurement.variables.items()},
              "outcome": np.array([o.value for o in measurement.outcomes], dtype=_OUTCOME)}
    labels = {key_of(k): _kept(v, k, measurement) for k, v in measurement.labels.items()}
    curves = {key: values.shape[1] for key, values in arrays.items() if values.ndim == 2}
    steps = {key: "step" if len(set(curves.values())) == 1 else f"{key}_step" for key in curves}
    if clash := sorted(set(labels) & {*arrays, *steps.values()} | set(arrays) & {*steps.values(), "orbit", "place"}
                       | {"outcome"} & {key_of(k) for k in measurement.variables} | {"place"} & set(labels)):
        raise ValueError(f"{', '.join(clash)} of {measurement.name} is the name of two things, or of one that a study "
                         "gives itself; rename the label or variable.")
    dims, place = _product(labels, n)
    sizes = {name: labels[name][np.sort(np.unique(labels[name], return_index=True)[1])] for name in dims}
    shape = tuple(map(len, sizes.values())) if dims else (n,)
    names = tuple(dims) or ("orbit",)
    coordinates: dict[str, Any] = {name: (name, values) for name, values in sizes.items()}
    if place is not None:
        coordinates["place"] = (names, place.reshape(shape))

    def whole(values: np.ndarray) -> np.ndarray:
        return (values if place is None else values[place]).reshape(*shape, *values.shape[1:])

    for name, values in labels.items():
        if name not in dims:
            coordinates[name] = (names, values) if name in names else _along(whole(values), names)
    data = {key: ((*names, steps[key]) if key in steps else names, whole(values),
                  {} if key == "outcome" else {"unit": measurement.units[name_of(key)]})
            for key, values in arrays.items()}
    what = f"{measurement.name!r}"
    return xr.Dataset(data, coords=coordinates, attrs={
        "analyzer": measurement.name, "settings": as_text(dict(measurement.settings), f"the settings of {what}"),
        "categories": as_text(dict(measurement.categories), f"the categories of {what}"),
        "variables": json.dumps({k: v.dtype.str for k, v in measurement.variables.items()}),
        "labels": json.dumps({k: v.dtype.str for k, v in measurement.labels.items()})})


_OUTCOME = f"U{max(len(o.value) for o in Outcome)}"
_BY_VALUE = {o.value: o for o in Outcome}


def _kept(values: np.ndarray, name: str, measurement: Measurement) -> np.ndarray:
    """`values` as a dtype that netCDF4 has; `to_measurement` gives back the dtype that came."""
    if values.dtype.kind == "O" and all(isinstance(v, str) for v in values.ravel()):
        return values.astype(str)
    if values.dtype.kind in "biuU" or (values.dtype.kind == "f" and values.dtype.itemsize in (4, 8)):
        return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind == "f" and values.dtype.itemsize == 2:
        return values.astype(np.float32)
    raise TypeError(f"{name!r} of {measurement.name!r} holds {values.dtype}, which a study cannot keep: use numbers, "
                    "texts or True and False (a complex number as its real and imaginary part).")


def _product(labels: Mapping[str, np.ndarray], n: int) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Labels whose full product the orbits are, outermost first, as many as there can be; and for each cell of the
    product the number of its orbit, or None where the orbits come in that order."""
    codes: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for name, values in labels.items():
        distinct, first, code = np.unique(values, return_index=True, return_inverse=True)
        exact = np.asarray(distinct[code]).tobytes() == values.tobytes()  # not so with NaN, or 0.0 and -0.0
        if len(distinct) > 1 and n % len(distinct) == 0 and exact and len(codes) < _MOST_DIMS:
            appearance = np.empty(len(distinct), dtype=np.int64)
            appearance[np.argsort(first)] = np.arange(len(distinct))
            codes[name], sizes[name] = appearance[code], len(distinct)
    for count in range(len(codes), 0, -1):
        for chosen in itertools.combinations(codes, count):
            if math.prod(sizes[name] for name in chosen) != n:
                continue
            runs = {name: int(np.argmax(codes[name] != 0)) for name in chosen}  # orbits before it first changes
            dims = tuple(sorted(chosen, key=lambda name: -runs[name]))
            cell = np.ravel_multi_index([codes[name] for name in dims], [sizes[name] for name in dims])
            if (cell == np.arange(n)).all():
                return dims, None
            place = np.full(n, -1, dtype=np.int64)
            place[cell] = np.arange(n)
            if place.min() >= 0:
                return dims, place
    return (), None


def _along(values: np.ndarray, names: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """A label over as few of the dimensions as say all of it: none, one, or all."""
    if values.size:
        raw = np.ascontiguousarray(values).view(f"V{values.dtype.itemsize}")  # bytes: NaN is NaN, -0.0 is not 0.0
        if (raw == raw.flat[0]).all():
            return (), values.flat[0]
        for axis, name in enumerate(names):
            others = tuple(0 if i != axis else slice(None) for i in range(values.ndim))
            lined = [-1 if i == axis else 1 for i in range(values.ndim)]
            if values.ndim > 1 and (raw == raw[others].reshape(lined)).all():
                return (name,), values[others]
    return names, values


def to_measurement(dataset: xr.Dataset) -> Measurement:
    """What `to_dataset` was made from."""
    dims = [str(d) for d in dataset["outcome"].dims]
    shape = dataset["outcome"].shape
    n = math.prod(shape)
    order = np.argsort(dataset["place"].values.reshape(-1)) if "place" in dataset.coords else None

    def rows(key: str, dtype: str) -> np.ndarray:
        found = dataset[key].variable
        values = np.asarray(found.values)
        if set(found.dims) != set(dims) and not set(dims) < set(found.dims):
            values = np.broadcast_to(values.reshape([shape[i] if d in found.dims else 1 for i, d in enumerate(dims)]),
                                     shape)
        values = values.reshape(n, *values.shape[len(dims):])
        return (values if order is None else values[order]).astype(np.dtype(dtype), copy=False)

    variables = json.loads(dataset.attrs["variables"])
    return Measurement(
        dataset.attrs["analyzer"], {name: rows(key_of(name), dtype) for name, dtype in variables.items()},
        [_BY_VALUE[text] for text in rows("outcome", _OUTCOME).tolist()],
        units={name: dataset[key_of(name)].attrs["unit"] for name in variables},
        settings=from_text(dataset.attrs["settings"]),
        labels={name: rows(key_of(name), dtype) for name, dtype in json.loads(dataset.attrs["labels"]).items()},
        categories=from_text(dataset.attrs["categories"]))


