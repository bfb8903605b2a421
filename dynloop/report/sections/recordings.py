"""What was run, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynloop.report.cells import Cell, Table, plain
from dynloop.report.runs import Run
from dynloop.report.sections.section import Section

_MODEL = (("weights", "weights"), ("injection", "injection"), ("norm placement", "norm"),
          ("norm at loop end", "loop_norm"), ("initial state", "initial_state"),
          ("prelude layers", "n_prelude"), ("block layers", "n_block"),
          ("coda layers", "n_coda"), ("width", "width"))


def section(runs: Sequence[Run]) -> Section:
    """A column a run, a row a fact; facts that no run has are left out."""
    rows: list[tuple[Any, ...]] = []

    def put(name: str, values: Sequence[Any]) -> None:
        if any(value not in (None, "") for value in values):
            rows.append((name, *("" if value is None else value for value in values)))

    def header(*path: str) -> list[Any]:
        return [_at(run.provenance, *path) for run in runs]

    put("untrained control of", [None if run.control_of is None else run.control_of or "yes" for run in runs])
    put("seed of its weights", [_at(run.provenance, "model", "untrained", "seed") for run in runs])
    put("family", header("model", "family"))
    for name, key in _MODEL:
        put(name, header("model", "model", key))
    put("recurrences in training", header("training_recurrences"))
    put("recurrences recorded", [run.n_steps for run in runs])
    put("orbits", [run.n_orbits for run in runs])
    for level, name in enumerate(runs[0].nesting.levels):
        if name != "orbit":
            put(f"{name}s", [run.n_units[level] for run in runs])
    if "prompt" not in runs[0].nesting.levels:
        put("prompts", [_distinct(run, "prompt") for run in runs])
    if "seed" not in runs[0].nesting.levels:
        put("start seeds", [_span(run, "seed") for run in runs])
    put("tokens a layer", [run.part(next(iter(run.measurements)), layer=run.last_layer).n_orbits for run in runs])
    put("layers of the loop", [", ".join(map(str, run.layers)) if run.layers != [None] else None for run in runs])
    put("prompt sets", [", ".join(map(str, run.sets)) if run.sets != [None] else None for run in runs])
    put("features", header("recording", "dim"))
    put("initial state from", [{"model": "the model", "random": "a random direction"}.get(v, v)
                               for v in header("start")])
    put("computed in", [v and _DTYPES.get(v, v) for v in header("dtype")])
    put("stored in", [v and _DTYPES.get(v, v) for v in (_at(run.provenance, "stored_dtype") or _at(
        run.provenance, "recording", "dtype") for run in runs)])
    put("spacing of its numbers", [v and plain(v) for v in header("recording", "resolution")])
    put("device", header("device"))
    put("attention kernel", header("attention_kernel"))
    put("model hash (SHA-256)", [_short(v) for v in header("model", "sha256")])
    put("prompts' hash (SHA-256)", [_short(v) for v in header("prompts_sha256")])
    put("corpus", header("model", "corpus", "name"))
    put("torch", header("versions", "torch"))
    put("recorded with dynloop", header("versions", "dynloop"))
    settings = [(name, ", ".join(f"{k} = {_shown(v)}" for k, v in run.measurements[name].settings.items()))
                for name in dict.fromkeys(n for run in runs for n in run.measurements)
                for run in runs if run.has(name)]
    differing = {name for name, text in settings if (name, text) != next(s for s in settings if s[0] == name)}
    thresholds = [(name, text if name not in differing else f"{text} (the first; runs differ)")
                  for name, text in dict(reversed(settings)).items()][::-1]
    return Section("recordings", "What was run, and on what", tables=(
        Table("recordings", "Models, data and formats", ("", *[run.name for run in runs]), rows,
              "Hashes are shortened to 16 digits; report.json has them whole."),
        Table("settings", "Analyzers and their thresholds", ("analyzer", "settings"), thresholds,
              "What is not named here has no setting. What each number means and when it misleads stands in its "
              "docstring.")))


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def _at(value: Any, *path: str) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return Cell(str(value)) if isinstance(value, list | dict) else value


def _short(value: str | None) -> str | None:
    return value and value[:16]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "default" if value is None else str(value)


def _distinct(run: Run, label: str) -> int | None:
    return len(set(run.labels[label].tolist())) if label in run.labels else None


def _span(run: Run, label: str) -> str | None:
    if label not in run.labels:
        return None
    values = sorted(set(run.labels[label].tolist()))
    whole = len(values) > 2 and all(isinstance(v, int) for v in values) and values[-1] - values[0] == len(values) - 1
    text = f"{values[0]} to {values[-1]}" if whole else ", ".join(map(str, values[:6]))
    return text + (" ..." if len(values) > 6 and not whole else "")
