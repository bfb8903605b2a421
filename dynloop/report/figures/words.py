"""What captions say in the same words everywhere: of whom, how many, with what settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynloop.measurement import Measurement


def check_measurement(given: Any, needed: str, *, variable: str | None = None, dims: int = 1) -> np.ndarray:
    """One variable of a measurement, by default the main one, with one value an orbit (dims=1) or a step (2).

    Raises:
        TypeError: not a measurement.
        ValueError: a variable of the other kind.
    """
    if not isinstance(given, Measurement):
        raise TypeError(f"this figure is drawn from {needed}, a Measurement; got {type(given).__name__}. "
                        f"Measure first: measure(recording, [{needed.split('(')[0]}]).")
    name = variable or next(iter(given.variables))
    try:
        values = given[name]
    except KeyError as error:
        raise ValueError(f"this figure is drawn from {needed}: {error.args[0]}") from None
    if values.ndim != dims:
        has, wanted = ("one value a step", "one value an orbit")[::1 if values.ndim == 2 else -1]
        raise ValueError(f"this figure is drawn from {needed}; {given.name}.{name} has {has}, and {wanted} is needed.")
    return values


def subject_of(labels: Mapping[str, np.ndarray]) -> str:
    """" (model nano-settles)", where all orbits are of one model; else nothing."""
    models = set(map(str, labels.get("model", ())))
    return f" (model {models.pop()})" if len(models) == 1 else ""


def counted(n: int, labels: Mapping[str, np.ndarray], unit: str | None = "prompt", *, what: str = "orbit") -> str:
    """"576 orbits of 6 prompts"."""
    text = plural(n, what)
    if unit is not None and unit in labels and unit != what:
        text += f" of {plural(len(np.unique(labels[unit])), unit)}"
    return text


def plural(n: int, what: str) -> str:
    """"1 orbit", "1,200 orbits"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def place_of(labels: Mapping[str, np.ndarray], *, without: Sequence[str] = ("stack", "seed", "start")) -> str:
    """"model nano, prompt 0, layer 2": the labels that all orbits share."""
    shared = {name: values[0] for name, values in labels.items() if len(values) and (values == values[0]).all()}
    first = [name for name in ("model", "prompt", "token", "layer") if name in shared]
    return ", ".join(f"{name} {shared[name]}" for name in (*first, *(n for n in shared if n not in first))
                     if name not in without)


def excluded(measurement: Measurement) -> str:
    """"; 31 too short, 2 not finite", or nothing."""
    gone = [f"{n:,} {outcome.value}" for outcome, n in measurement.counts().items() if outcome.value != "found"]
    return f"; {', '.join(gone)}" if gone else ""


def settings_of(settings: Mapping[str, Any]) -> str:
    """" Settings: tolerance=0.001.", or nothing."""
    told = ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in settings.items() if value is not None)
    return f" Settings: {told}." if told else ""
