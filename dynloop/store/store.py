"""The activation store: shards and an append-only manifest whose lines are the commit."""

from __future__ import annotations

import copy
import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

from dynloop.store.shards import DTYPES, TEMPORARY, check_size, map_tensors, sync_folder, verified_map, write_shard
from dynloop.store.stream import stream_states
from dynloop.trajectories import CHUNK_BYTES, Trajectories

MANIFEST, SHARDS = "manifest.jsonl", "shards"
FORMAT, VERSION = "dynloop activation store", 1
SHARD_BYTES = 256 * 2**20
_BEGINNING = json.dumps({"format": FORMAT}, separators=(",", ":")).encode()[:-1]


def orbits_a_shard(orbit_bytes: int, limit: int) -> int:
    """How many orbits fit into a shard of `limit` bytes, its header and their lengths included; at least one."""
    return max(1, (limit - min(2**16, limit // 64)) // (orbit_bytes + 9))


class StoreError(ValueError):
    """The folder is not a store that can be used as asked."""


def _read_manifest(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of the manifest and how many bytes they take: a torn last line was never committed."""
    path = folder / MANIFEST
    raw = path.read_bytes()
    whole = raw[:raw.rfind(b"\n") + 1]
    lines: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            line = json.loads(text)
            if not isinstance(line, dict) or (lines and line.get("kind") not in ("shard", "complete")) or (
                    line.get("kind") == "shard" and not {"file", "bytes", "checksum", "tensors"} <= set(line)):
                raise ValueError("not a line of a manifest")
        except ValueError as error:
            raise StoreError(f"line {number} of {path} is not JSON of a store ({error}): the manifest was changed by "
                             "hand or damaged. Restore it from a copy, or capture again.") from error
        if line.get("file") in seen:
            raise StoreError(f"line {number} of {path} commits {line['file']} a second time: two processes wrote this "
                             "store at once. Capture again.")
        seen |= {line["file"]} if "file" in line else set()
        lines.append(line)
    if lines and (lines[0].get("format") != FORMAT):
        raise StoreError(f"{folder} is not a dynloop store: its manifest does not begin with a header. "
                         "Name the folder that `dynloop capture` wrote.")
    if lines and lines[0].get("version") != VERSION:
        raise StoreError(f"{folder} has store version {lines[0].get('version')}; this dynloop reads version "
                         f"{VERSION}. Use the dynloop that wrote it, or capture again.")
    return lines, len(whole)


class StoreWriter:
    """Writes a store shard by shard, or goes on where an interrupted run stopped.

    A shard is on disk, flushed, before its manifest line is appended and flushed: that line is the commit. After a
    kill at any moment the manifest names whole shards only, and the same sequence of `write` calls completes the
    store to the same bytes.

    Use it in a `with` statement: one process at a time may write a store.

    Args:
        folder: where the store is or shall be.
        header: everything that decides the bytes; must be JSON. A store with another header is refused.

    Raises:
        StoreError: the folder holds another store, or something else, or another process is writing it.
    """

    def __init__(self, folder: str | Path, header: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        header = json.loads(json.dumps({"format": FORMAT, "version": VERSION,
                                        **{k: v for k, v in header.items() if k not in ("format", "version")}}))
        manifest = self.folder / MANIFEST
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file; a store is a folder. Name another path.")
        if self.folder.exists() and not manifest.exists() and any(self.folder.iterdir()):
            raise StoreError(f"{self.folder} is not empty and holds no dynloop store. Name a new folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(manifest, os.O_RDWR | os.O_CREAT, 0o666)
        self._unlock = weakref.finalize(self, os.close, descriptor)  # held as long as the writer lives
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._unlock()
            raise StoreError(f"another process is writing {self.folder}. Wait for it, or name another folder.") \
                from None
        try:
            lines, size = _read_manifest(self.folder)
            begun = manifest.read_bytes()[:len(_BEGINNING)]
            if not lines and begun != _BEGINNING[:len(begun)]:
                raise StoreError(f"{manifest} was not written by dynloop. Name a new folder.")
        except StoreError:
            self._unlock()
            raise
        os.ftruncate(descriptor, size)  # a torn last line was never committed
        if lines:
            if lines[0] != header:
                self._unlock()
                differs = sorted(k for k in {*lines[0], *header} if lines[0].get(k) != header.get(k))
                raise StoreError(f"{self.folder} holds a store made with other settings (they differ in "
                                 f"{', '.join(differs)}). Name another folder, or use the same settings to resume.")
        else:
            self._commit(header)
        self.lines = {line["file"]: line for line in lines[1:] if line["kind"] == "shard"}
        self.complete = any(line["kind"] == "complete" for line in lines[1:])
        for stale in (self.folder / SHARDS).glob("*" + TEMPORARY):
            stale.unlink()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._unlock()

    def _commit(self, line: Mapping[str, Any]) -> None:
        with open(self.folder / MANIFEST, "ab") as file:
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)

    def has(self, name: str) -> bool:
        """Whether a shard is committed."""
        return f"{SHARDS}/{name}.safetensors" in self.lines

    def write(self, name: str, tensors: Mapping[str, torch.Tensor], **about: Any) -> None:
        """Write and commit one shard; a committed one is left as it is."""
        if self.has(name):
            return
        file = f"{SHARDS}/{name}.safetensors"
        line = {"kind": "shard", "file": file, **write_shard(self.folder / file, dict(tensors)), **about}
        self._commit(line)
        self.lines[file] = line

    def write_states(self, name: str, states: torch.Tensor, labels: Mapping[str, tuple[int, Any]], *,
                     lengths: np.ndarray | None = None) -> None:
        """Write and commit a shard of states (..., recurrence, feature), with the finite length of every orbit.

        `labels` gives for each label the leading axis that it runs along and its values; `lengths` (orbits,) cuts
        ragged orbits.
        """
        if self.has(name):
            return
        if states.numel() * states.element_size() > SHARD_BYTES:
            raise StoreError(f"a shard of {states.numel() * states.element_size()} bytes is larger than "
                             f"{SHARD_BYTES}; split it.")
        orbits = Trajectories(states.reshape(-1, *states.shape[-2:]), lengths=lengths)
        self.write(name, {"states": states, "lengths": torch.from_numpy(orbits.lengths).view(states.shape[:-2]),
                          "diverged": torch.from_numpy(orbits.diverged).view(states.shape[:-2])},
                   labels={label: {"axis": axis, "values": np.asarray(values).tolist()}
                           for label, (axis, values) in labels.items()})

    def finish(self) -> Store:
        """Commit that the caller has written every shard; until then readers call the store unfinished."""
        if not self.complete:
            self._commit({"kind": "complete", "shards": len(self.lines)})
            self.complete = True
        self._unlock()
        return Store(self.folder)


class Store:
    """A recording on disk, read by memory map; only what the manifest commits exists.

    Iterate with `parts`, or hand the store to `measure`, which holds one chunk in memory. Every shard is held against
    its checksum before its first use.

    Attributes:
        folder: where it lies.
        header: provenance: model, prompts, seeds, dtype, device, recurrences, ...
        complete: False while a capture is unfinished.

    Raises:
        FileNotFoundError: no store there.
        StoreError: not a store, or of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise FileNotFoundError(f"no dynloop store at {self.folder}: there is no {MANIFEST}. Name the folder that "
                                    "`dynloop capture` wrote.")
        lines, _ = _read_manifest(self.folder)
        if not lines:
            raise StoreError(f"the store at {self.folder} is empty: its capture was stopped at once. "
                             "Run the same capture again.")
        self.header: dict[str, Any] = lines[0]
        shards = [line for line in lines[1:] if line["kind"] == "shard"]
        self.complete = any(line["kind"] == "complete" for line in lines[1:])
        self._states = [line for line in shards if "states" in line["tensors"]]
        self._others = [line for line in shards if "states" not in line["tensors"]]
        self._verified: set[str] = set()
        if not self._states:
            raise StoreError(f"the store at {self.folder} holds no states yet: its capture was stopped early. "
                             "Run the same capture again to go on.")
        widths = {tuple(line["tensors"]["states"]["shape"][-2:]) for line in self._states}
        if len(widths) != 1:
            raise StoreError(f"the shards of {self.folder} differ in recurrences or features: {sorted(widths)}.")
        self.n_steps, self.dim = widths.pop()
        self.n_orbits = sum(math.prod(line["tensors"]["states"]["shape"][:-2]) for line in self._states)
        self.n_bytes = sum(line["bytes"] for line in shards)
        self.dtype = self._states[0]["tensors"]["states"]["dtype"]
        self._itemsize = DTYPES[self.dtype].itemsize

    def __repr__(self) -> str:
        state = "" if self.complete else ", unfinished"
        return (f"Store({str(self.folder)!r}: {self.n_orbits} orbits of {self.n_steps} steps in {self.dim} dimensions, "
                f"{len(self._states)} shards, {self.n_bytes / 2**20:.0f} MiB{state})")

    @property
    def n_shards(self) -> int:
        """Shards that hold states."""
        return len(self._states)

    @property
    def shards(self) -> tuple[dict[str, Any], ...]:
        """What the manifest says of each shard of states: file, bytes, checksum, tensors, labels."""
        return tuple(self._states)

    @property
    def orbits_of_shards(self) -> np.ndarray:
        """Orbits of each shard of states, (n_shards,)."""
        return np.array([math.prod(line["tensors"]["states"]["shape"][:-2]) for line in self._states])

    def only(self, shards: slice) -> Store:
        """The store as if it held these shards of states alone: a piece of work, small to send to another process."""
        part = copy.copy(self)
        part._states, part._others, part._verified = self._states[shards], [], set(self._verified)
        part.n_orbits = int(part.orbits_of_shards.sum())
        part.n_bytes = sum(line["bytes"] for line in part._states)
        return part

    def _labels(self, line: dict[str, Any]) -> dict[str, np.ndarray]:
        lead = line["tensors"]["states"]["shape"][:-2]
        labels = {name: np.full(math.prod(lead), value) for name, value in self.header.get("labels", {}).items()}
        for name, along in line["labels"].items():
            shape = [1] * len(lead)
            shape[along["axis"]] = -1
            labels[name] = np.broadcast_to(np.asarray(along["values"]).reshape(shape), lead).reshape(-1)
        return labels

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """Labels of all orbits, in the order in which `parts` gives them."""
        parts = [self._labels(line) for line in self._states]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def verify(self, index: int | None = None) -> None:
        """Hold one shard of states, or by default every shard of the store, against its checksum.

        Raises:
            DamagedShardError: names the shard that is missing, cut short or changed.
        """
        for line in self._states + self._others if index is None else [self._states[index]]:
            verified_map(self.folder / line["file"], line)
            self._verified.add(line["file"])

    def _map(self, line: dict[str, Any]) -> dict[str, torch.Tensor]:
        """A shard's tensors; its checksum is computed the first time."""
        found = map_tensors(self.folder / line["file"], line, trusted=line["file"] in self._verified)
        self._verified.add(line["file"])
        return found

    def part(self, index: int, **wanted: Any) -> Trajectories | None:
        """Orbits of one shard, memory-mapped; None where none is wanted. See `Trajectories.select` for `wanted`."""
        line = self._states[index]
        labels = self._labels(line)
        mask = np.ones(math.prod(line["tensors"]["states"]["shape"][:-2]), dtype=bool)
        for name, values in wanted.items():
            if name not in labels:
                raise ValueError(f"no label {name!r} in this store; it has {', '.join(labels)}.")
            mask &= np.isin(labels[name], np.atleast_1d(values))
        if not mask.any():
            return None
        found = self._map(line)
        orbits = Trajectories(found["states"].flatten(0, -3), labels=labels,
                              lengths=found["lengths"].flatten().numpy(), diverged=found["diverged"].flatten().numpy(),
                              resolution=self.header.get("resolution"))
        return orbits if mask.all() else orbits[mask]

    def parts(self, **wanted: Any) -> Iterator[Trajectories]:
        """The orbits, one shard after the other, memory-mapped; `layer=1, prompt=[0, 3]` selects by label."""
        for index in range(self.n_shards):
            part = self.part(index, **wanted)
            if part is not None:
                yield part

    def stream(self, *, piece_bytes: int = CHUNK_BYTES) -> Iterator[Trajectories]:
        """Every orbit once, in pieces of at most about `piece_bytes` in float32, read past the page cache.

        For passes over recordings larger than memory; `parts` is for looking here and there. A damaged shard is
        named, at the latest after its last piece: use nothing of a stream that did not end well.
        """
        shards = [(self.folder / line["file"], line) for line in self._states]
        known = -1
        for shard, rows, states in stream_states(shards, piece_bytes=piece_bytes * self._itemsize // 4):
            if shard != known:
                path, line = shards[shard]
                labels, small, known = self._labels(line), map_tensors(path, line, trusted=True), shard
            yield Trajectories(states, labels={name: values[rows] for name, values in labels.items()},
                               lengths=small["lengths"].flatten()[rows].numpy(),
                               diverged=small["diverged"].flatten()[rows].numpy(),
                               resolution=self.header.get("resolution"))

    def trajectories(self, **wanted: Any) -> Trajectories:
        """The wanted orbits as one: memory-mapped when they lie in one shard, otherwise gathered in memory.

        Raises:
            ValueError: an unknown label, or no such orbit.
        """
        parts = list(self.parts(**wanted))
        if not parts:
            raise ValueError("no orbit of this store has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items()) + ".")
        if len(parts) == 1:
            return parts[0]
        return Trajectories(torch.cat([part.states for part in parts]),
                            labels={n: np.concatenate([p.labels[n] for p in parts]) for n in parts[0].labels},
                            lengths=np.concatenate([p.lengths for p in parts]),
                            diverged=np.concatenate([p.diverged for p in parts]), resolution=parts[0].resolution)

    def inputs(self) -> Iterator[dict[str, Any]]:
        """What the loop started from, batch by batch: `sequences`, `tokens`, `initial_states`, `logits`, ..."""
        for line in self._others:
            about = {k: v for k, v in line.items() if k not in ("kind", "file", "bytes", "checksum", "tensors")}
            yield {**about, **self._map(line)}

    def check(self) -> None:
        """Refuse a store with a shard missing or cut short (cheap: sizes only)."""
        for line in self._states + self._others:
            check_size(self.folder / line["file"], line)


def open_store(folder: str | Path) -> Store:
    """Open a store that `capture` or `save` wrote. See `Store`."""
    return Store(folder)


def save(trajectories: Trajectories, folder: str | Path, *, provenance: Mapping[str, Any] | None = None) -> Store:
    """Save orbits as a store: shards of at most 256 MiB, checksummed, labels and resolution included.

    Raises:
        StoreError: the folder holds something else; a finished store of the same header is not written again.
    """
    states = trajectories.states
    per_orbit = states[0].numel() * states.element_size()
    if per_orbit > SHARD_BYTES:
        raise StoreError(f"one orbit takes {per_orbit} bytes; a shard holds {SHARD_BYTES}. Save fewer steps.")
    header = {**{k: v for k, v in (provenance or {}).items() if k != "labels"},
              "resolution": trajectories.resolution, "n_orbits": trajectories.n_orbits}
    for name, values in trajectories.labels.items():
        try:
            json.dumps(values.tolist())
        except TypeError:
            raise ValueError(f"label {name!r} holds {values.dtype}, which a store cannot keep. Convert it to numbers "
                             "or texts.") from None
    if (Path(folder) / MANIFEST).exists():
        raise StoreError(f"{folder} holds a store already. Name another folder.")
    block = orbits_a_shard(per_orbit, SHARD_BYTES)
    with StoreWriter(folder, header) as writer:
        for number, first in enumerate(range(0, trajectories.n_orbits, block)):
            part = trajectories[first:first + block]
            cut = np.where(part.diverged, part.n_steps, part.lengths)  # where it diverged is found again
            writer.write_states(f"states-{number:05d}", part.states, {n: (0, v) for n, v in part.labels.items()},
                                lengths=cut)
        return writer.finish()
