"""What a report can be made of, by path."""

from __future__ import annotations

from pathlib import Path

from dynloop.store import Store
from dynloop.study import Study


def open_run(path: str | Path) -> Store | Study:
    """A store, a saved study, or the study beside a report.

    Raises:
        FileNotFoundError: nothing there, or a folder that holds neither.
        ValueError: a file of another kind.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "study.nc").is_file():
            return Study.load(path / "study.nc")
        if (path / "manifest.jsonl").is_file():
            return Store(path)
        raise FileNotFoundError(f"{path} holds neither a store (manifest.jsonl) nor the study of a report (study.nc). "
                                "Name a folder that `dynloop capture` or `dynloop analyze` wrote.")
    if not path.exists():
        raise FileNotFoundError(f"no run {path}. Name a store, a study (.nc) or the folder of a report.")
    if path.suffix != ".nc":
        raise ValueError(f"{path} is no study (.nc). Tensor files are read by `dynloop analyze --axes ...`, which "
                         "leaves a study in the folder of its report.")
    return Study.load(path)
