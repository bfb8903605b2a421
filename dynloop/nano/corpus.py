"""Text to train on that every machine has: the Python standard library's own source, or any folder of text."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np

_NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
_HELD_OUT_PERCENT = 10


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Bytes for training and held-out bytes, split by whole files, with the hash of both together."""

    name: str
    train: np.ndarray
    held_out: np.ndarray
    n_files: int
    sha256: str
    held_out_files: tuple[tuple[str, int], ...]  # (path within the corpus, where it begins in held_out)

    def draw(self, rng: np.random.Generator, *, n: int, length: int) -> np.ndarray:
        """Random windows of the training bytes, (n, length) uint8."""
        return _windows(self.train, rng.integers(0, len(self.train) - length + 1, size=n), length)

    def held_out_windows(self, *, n: int, length: int) -> np.ndarray:
        """Evenly spaced windows of the held-out bytes, (n, length) uint8: the same ones every time."""
        return _windows(self.held_out, np.linspace(0, len(self.held_out) - length, n).astype(np.int64), length)


    # ---- what `train` asks of a corpus

    def describe(self) -> dict[str, Any]:
        """What a training record says of it."""
        return {"name": self.name, "sha256": self.sha256, "files": self.n_files,
                "bytes": len(self.train) + len(self.held_out), "held_out_bytes": len(self.held_out)}

    def batch(self, rng: np.random.Generator, *, n: int, length: int) -> tuple[np.ndarray, None]:
        """Windows to train on; None: every byte of them is asked for."""
        return self.draw(rng, n=n, length=length), None

    def held_out_batch(self, *, n: int, length: int) -> tuple[np.ndarray, None]:
        """As `held_out_windows`; None: every byte of them is asked for."""
        return self.held_out_windows(n=n, length=length), None


def _windows(text: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return text[starts[:, None] + np.arange(length)]


def load_corpus(folder: str | Path | None = None, *, least: int = 4096) -> Corpus:
    """Read the corpus: the standard library's `*.py` without its tests, or every file of `folder` that is UTF-8 text.

    Files whose path hashes into the last tenth are held out, so the split is the same on every machine and run.

    Args:
        folder: a folder of text files; None for the standard library of the running Python.
        least: the fewest bytes that training and held-out part must each have.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it holds too little text.
    """
    root = Path(sysconfig.get_path("stdlib") if folder is None else folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}. Name a folder of text files, or none for the standard library.")
    paths = []
    for parent, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not (f.startswith(".") or (folder is None and f in _NOT_SOURCE)))
        paths += [Path(parent, f) for f in files if not f.startswith(".") and (folder is not None or f.endswith(".py"))]
    kept: dict[bool, list[bytes]] = {True: [], False: []}
    held_out_files, begins, n_files, digest = [], 0, 0, hashlib.sha256()
    for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
        name, text = path.relative_to(root).as_posix(), path.read_bytes()
        try:
            text.decode()
        except UnicodeDecodeError:
            continue  # not text
        digest.update(f"{name} {len(text)}\n".encode() + text)
        held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT
        if held_out:
            held_out_files.append((name, begins))
            begins += len(text)
        kept[held_out].append(text)
        n_files += 1
    train, tail = (np.frombuffer(b"".join(kept[part]), dtype=np.uint8) for part in (False, True))
    if folder is not None and min(len(train), len(tail)) < least:
        # few or large files: hold out the last tenth of each instead
        cut = [len(t) - len(t) * _HELD_OUT_PERCENT // 100 for t in kept[False] + kept[True]]
        texts = kept[False] + kept[True]
        train = np.frombuffer(b"".join(t[:c] for t, c in zip(texts, cut, strict=True)), dtype=np.uint8)
        tail = np.frombuffer(b"".join(t[c:] for t, c in zip(texts, cut, strict=True)), dtype=np.uint8)
        held_out_files = []
    if min(len(train), len(tail)) < least:
        raise ValueError(f"{root} holds {len(train)} bytes of text to train on and {len(tail)} held out; at least "
                         f"{least} of each are needed. Add text, or use the standard library (no folder).")
    name = "Python standard library without tests" if folder is None else root.name
    return Corpus(name, train, tail, n_files, digest.hexdigest(), tuple(held_out_files))
