"""Study: the measurements of many runs as labelled arrays, in memory an xarray.DataTree, on disk one netCDF4 file."""

from __future__ import annotations

import dataclasses
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5netcdf
import h5py
import xarray as xr
import xxhash

from dynloop.measurement import Measurement
from dynloop.study.layout import as_text, from_text, key_of, name_of, to_dataset, to_measurement
from dynloop.study.netcdf import loaded, read_group, stored, write_group
from dynloop.version import __version__

if TYPE_CHECKING:
    import pandas

FORMAT, VERSION = "dynloop study", "1.0"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Study:
    """The measurements of many runs: one group a run, below it one group a measurement, in each labelled arrays.

    Where the orbits of a measurement are a full product of labels, such as prompt x token x layer, these labels are
    the dimensions of its arrays; otherwise there is one dimension, `orbit`, and labels are coordinates along it.
    Labels with one value are scalar coordinates. Make one with `Study.of` or `Study.load`.

    Args:
        tree: what `Study.of` made; its arrays are not written to.

    Raises:
        ValueError: a tree of another kind.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome
        >>> from dynloop.study import Study
        >>> rate = Measurement("rate", {"rate": np.array([0.8, 0.9, 0.7, 0.6])}, [Outcome.FOUND] * 4,
        ...                    labels={"prompt": [0, 0, 1, 1], "token": [3, 7, 3, 7]})
        >>> study = Study.of({"seed 0": [rate], "seed 1": [rate]}, provenance={"seed 0": {"model": "nano"}})
        >>> study
        Study(2 runs, 2 measurements, 8 rows)
        >>> dict(study.tree["seed 0/rate"].sizes)
        {'prompt': 2, 'token': 2}
        >>> study.tree["seed 0/rate"]["rate"].mean("token").values
        array([0.85, 0.65])
    """

    tree: xr.DataTree

    def __post_init__(self) -> None:
        if not isinstance(self.tree, xr.DataTree) or self.tree.attrs.get("format") != FORMAT:
            raise ValueError("this is no tree of a study. Make one with Study.of({run: [measurement, ...]}) or "
                             "Study.load(path).")

    @staticmethod
    def of(measurements: Mapping[str, Iterable[Measurement]], *,
           provenance: Mapping[str, Mapping[str, Any]] | None = None) -> Study:
        """A study of the measurements of each run, with what is known of the run.

        Args:
            measurements: for each run its measurements, in order. The same analyzer may come several times, with
                different settings: its groups are then called "name", "name (2)", ...
            provenance: for each run anything that JSON can hold (and tuples): the header of its store, for example.

        Raises:
            TypeError: something else than measurements, or a setting that JSON cannot hold.
            ValueError: no run, provenance of an unknown run, or labels and variables that clash in name.
        """
        if not isinstance(measurements, Mapping) or not measurements:
            raise TypeError("a study is made of {run name: [measurement, ...]}, at least one run; got "
                            f"{measurements!r}.")
        known = dict(provenance or {})
        if unknown := [name for name in known if name not in measurements]:
            raise ValueError(f"provenance is given for {', '.join(map(str, unknown))}, which is no run of this study.")
        nodes: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs={"format": FORMAT, "version": VERSION,
                                                               "dynloop": __version__})}
        for run, own in measurements.items():
            if not isinstance(run, str) or not run:
                raise TypeError(f"a run is called by a text; got {run!r}.")
            place = key_of(run)
            nodes[place] = xr.Dataset(attrs={"run": run, "provenance": as_text(
                dict(known.get(run, {})), f"the provenance of {run!r}")})
            for measurement in [own] if isinstance(own, Measurement) else own:
                if not isinstance(measurement, Measurement):
                    raise TypeError(f"run {run!r} must hold measurements; got {type(measurement).__name__}.")
                key, again = key_of(measurement.name), 1
                while f"{place}/{key}" in nodes:
                    again += 1
                    key = f"{key_of(measurement.name)} ({again})"
                nodes[f"{place}/{key}"] = to_dataset(measurement)
        return Study(xr.DataTree.from_dict(nodes))

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of the runs, in the order in which they were given."""
        return tuple(node.attrs["run"] for node in self.tree.children.values())

    def _run(self, run: str) -> xr.DataTree:
        if key_of(run) not in self.tree.children:
            raise KeyError(f"no run {run!r}; this study has {', '.join(self.runs)}.")
        return self.tree.children[key_of(run)]

    def measurements(self, run: str) -> tuple[Measurement, ...]:
        """The measurements of a run, as they were given: values, outcomes, units, settings, labels, categories.

        Raises:
            KeyError: no such run.
        """
        return tuple(to_measurement(node.dataset) for node in self._run(run).children.values())

    def provenance(self, run: str) -> dict[str, Any]:
        """What is known of a run.

        Raises:
            KeyError: no such run.
        """
        return from_text(self._run(run).attrs["provenance"])

    def to_frame(self, analyzer: str) -> pandas.DataFrame:
        """One analyzer over all runs as a pandas frame: a column `run`, then what `Measurement.to_frame` gives.

        A frame of all labels takes some 60 times the memory of the tree: for means over groups use `tree`.

        Args:
            analyzer: name of a measurement's group: "contraction_rate", or "contraction_rate (2)" for the second one
                of a run.

        Raises:
            KeyError: no run has it.
            ValueError: runs whose settings or units differ, or a label that is called "run".
        """
        import pandas as pd

        found = {node.attrs["run"]: to_measurement(node.children[key_of(analyzer)].dataset)
                 for node in self.tree.children.values() if key_of(analyzer) in node.children}
        if not found:
            names = dict.fromkeys(key for node in self.tree.children.values() for key in node.children)
            raise KeyError(f"no run has a measurement {analyzer!r}; there are {', '.join(map(name_of, names))}.")
        (one, first), *others = found.items()
        for run, other in others:
            for what in ("settings", "units"):
                if getattr(first, what) != getattr(other, what):
                    raise ValueError(f"{analyzer} of {one!r} and of {run!r} differ in their {what} "
                                     f"({dict(getattr(first, what))} and {dict(getattr(other, what))}), so that they "
                                     "do not belong into one table. Measure again with the same settings, or take "
                                     "each run by itself with measurements(run).")
        frames = []
        for run, measurement in found.items():
            frame = measurement.to_frame()
            if "run" in frame:
                raise ValueError(f"{measurement.name} of {run!r} has a label or variable 'run', which is the name of "
                                 "the column that tells runs apart; rename it.")
            frame.insert(0, "run", run)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        groups = [node for run in self.tree.children.values() for node in run.children.values()]
        n_rows = sum(node["outcome"].size for node in groups)
        return f"Study({len(self.tree.children)} runs, {len(groups)} measurements, {n_rows:,} rows)"

    def save(self, path: str | Path) -> Path:
        """Write the study as one netCDF4 file, whole or not at all; the same study gives the same bytes.

        Arrays keep their names and dimensions; texts of many rows are kept as numbers of a table beside them.

        Raises:
            FileExistsError: there is something else than a study.
            ValueError: a text with a NUL character or half of a surrogate pair, which HDF5 cannot hold.
        """
        path = Path(path)
        if path.exists() and not _is_study(path):
            raise FileExistsError(f"{path} is there already and is no study. Name another file, or remove it.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # of this call: other threads save, too
        try:
            with h5netcdf.File(temporary, "w") as file:
                for name, value in self.tree.attrs.items():
                    file.attrs[name] = value
                digest = xxhash.xxh3_128()
                for run, node in self.tree.children.items():
                    group = write_group(file.create_group(run), node.attrs, (), digest)
                    for name, leaf in node.children.items():
                        write_group(group.create_group(name), leaf.attrs, stored(leaf.dataset), digest)
                file.attrs["checksum"] = digest.hexdigest()
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @staticmethod
    def load(path: str | Path) -> Study:
        """Read what `save` wrote, every value held against the checksum of the file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a study, a damaged one, or one of a newer major version.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no study at {path}. Name a file that Study.save wrote.")
        try:
            with h5py.File(path, "r") as opened:  # h5netcdf cannot close what it could not open to the end
                about = dict(opened.attrs)
                _check_version(path, about)
                digest = xxhash.xxh3_128()
                nodes = {"/": xr.Dataset(attrs={k: about[k] for k in ("format", "version", "dynloop")})}
                with h5netcdf.File(opened, "r") as file:
                    for run, group in file.groups.items():
                        nodes[run] = xr.Dataset(attrs=read_group(group, digest)[1])
                        for name, leaf in group.groups.items():
                            nodes[f"{run}/{name}"] = loaded(*read_group(leaf, digest))
        except _Refused as refused:
            raise ValueError(str(refused)) from None
        except Exception as error:  # a damaged file comes as almost any error of h5py, NumPy or json
            raise ValueError(f"{path} cannot be read as a study: {_words(error)}. Is it whole, and netCDF4? Restore "
                             "it from a copy, or make it again.") from error
        if digest.hexdigest() != about.get("checksum"):
            raise ValueError(f"the study at {path} is damaged: its values do not have the checksum that was saved with "
                             "them. Restore it from a copy, or make it again.")
        return Study(xr.DataTree.from_dict(nodes))


class _Refused(Exception):
    """A file that is whole, but not for us."""


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__


def _check_version(path: Path, about: Mapping[str, Any]) -> None:
    if about.get("format") != FORMAT:
        raise _Refused(f"{path} is not a study: it has no root attribute format = {FORMAT!r}. Name a file that "
                       "Study.save wrote.")
    if not re.fullmatch(r"\d+\.\d+", str(about.get("version"))):
        raise _Refused(f"the study at {path} is damaged: its version is {about.get('version')!r}.")
    own = VERSION.split(".")[0]
    if int(str(about["version"]).split(".")[0]) > int(own):
        raise _Refused(f"{path} has study version {about['version']}, and this dynloop ({__version__}) reads versions "
                       f"{own}.x. Update dynloop (the file was written by {about.get('dynloop')}).")


def _is_study(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get("format") == FORMAT
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return False


