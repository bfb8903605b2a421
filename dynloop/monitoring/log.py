"""Where the numbers of a training go: JSON lines, that can be appended to after any interruption, or TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
FILE = "monitor.jsonl"
FORMATS = ("jsonl", "tensorboard")


def strict(value: Any) -> Any:
    """The same for JSON: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): strict(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [strict(own) for own in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


class JsonLines:
    """Appends records to a file, a line each; what a killed process left half written is closed by a new line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            with open(path, "rb") as file:
                first = file.readline(2**20)
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            if not first.startswith(b'{"kind":'):
                raise FileExistsError(f"{path} is no log of a LoopMonitor. Name another file or folder.")
            if torn:
                with open(path, "ab") as file:
                    file.write(b"\n")

    def write(self, record: Mapping[str, Any]) -> None:
        line = json.dumps(strict(record), allow_nan=False) + "\n"
        with open(self.path, "ab", buffering=0) as file:  # one write, whole or not at all
            file.write(line.encode())


class TensorBoard:
    """Numbers as scalars under dynloop/, outcomes as counts, sentences as text."""

    def __init__(self, folder: Path) -> None:
        try:
            import torch.utils.tensorboard as board
        except ImportError as error:
            raise ImportError("TensorBoard is not installed: pip install 'dynloop[tensorboard]', or use "
                              "format='jsonl'.") from error
        self.folder, self._made = folder, board.SummaryWriter
        self._writer: Any = None

    def write(self, record: Mapping[str, Any]) -> None:
        step = record.get("step", 0)
        if record["kind"] == "run":
            return  # the first step of this run is not known yet
        if self._writer is None:  # what an interrupted run wrote after its last checkpoint is written again
            self._writer = self._made(str(self.folder), purge_step=step)
        if record["kind"] == "error":
            self._writer.add_text("dynloop/error", record["error"], step)
        for name, value in record.items():
            if name == "outcomes":
                for analyzer, counts in value.items():
                    for outcome, n in counts.items():
                        self._writer.add_scalar(f"dynloop/outcomes/{analyzer}/{outcome.replace(' ', '_')}", n, step)
            elif isinstance(value, int | float) and name not in ("step", "time") and math.isfinite(value):
                self._writer.add_scalar(f"dynloop/{name}", value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _is_record(line: Any) -> bool:
    """Whether this is what a monitor writes, as far as reading it asks."""
    if not isinstance(line, dict):
        return False
    needed = {"run": "schema", "step": "step"}.get(str(line.get("kind")))
    return "kind" in line and (needed is None or isinstance(line.get(needed), int))


def read_log(path: str | Path, *, all_lines: bool = False) -> pandas.DataFrame:
    """The numbers that a `LoopMonitor` wrote as JSON lines, a row a measured step.

    A training run that goes on from a checkpoint repeats some steps: of these, what was written last counts, and what
    an abandoned stretch wrote at later steps is left out. A line that was torn by an interruption is left out.

    Args:
        path: the file, or the folder that holds it.
        all_lines: every line as it is, those of abandoned stretches, errors and beginnings of runs included.

    Returns:
        A frame with the columns of the records; counts of outcomes as "outcomes.ANALYZER.OUTCOME" (0 where none).
        `attrs` hold "runs", the records that began them, "errors" and "torn_lines". null is NaN.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no log of a monitor, or one of a newer schema.

    Example:
        >>> import tempfile
        >>> from dynloop.monitoring import LoopMonitor, read_log
        >>> from dynloop.nano import NanoConfig, NanoModel
        >>> model = NanoModel(NanoConfig(width=16, n_heads=2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     monitor = LoopMonitor(model, [list(b"import os")], every=2, log=folder)
        ...     for step in range(1, 6):  # the training would be here
        ...         _ = monitor.step(step)
        ...     list(read_log(folder).step)
        [2, 4]
    """
    import pandas as pd

    path = Path(path)
    if path.is_dir():
        path /= FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {path}. Name the folder or file that was given to LoopMonitor as log=.")
    records, torn = [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            torn += bool(line.strip())
            continue
        if not _is_record(record):
            raise ValueError(f"{path} is no log of a LoopMonitor: {line[:60]!r} is none of its records.")
        records.append(record)
    runs = [record for record in records if record["kind"] == "run"]
    if not runs or any(run["schema"] > SCHEMA for run in runs):
        raise ValueError(f"{path} is no log that this version reads (schema {SCHEMA}): "
                         + (f"it says schema {max(run['schema'] for run in runs)}. Update dynloop." if runs
                            else "it does not begin with a run."))
    kept: list[dict] = []
    for record in records:
        if not all_lines:
            if record["kind"] != "step":
                continue
            while kept and kept[-1]["step"] >= record["step"]:
                kept.pop()
        kept.append(record)
    # the analyzers of a run count what they see: an outcome that is not named did not occur
    frame = pd.json_normalize([{key: value for key, value in record.items() if key != "kind" or all_lines}
                               for record in kept])
    counts = [name for name in map(str, frame) if name.startswith("outcomes.")]
    if not all_lines:
        frame = frame.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))
    frame.attrs.update(runs=runs, errors=[record for record in records if record["kind"] == "error"], torn_lines=torn)
    return frame
