"""What each layer does to a prompt, recurrence by recurrence, on a sample that bounds the time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dynloop.measurement import Measurement
from dynloop.report.cells import Cell, Table, number, plain
from dynloop.report.figures import Drawing, depth_matrix, stage_curves
from dynloop.report.figures.stage_curves import USUAL, WORDS, spaced
from dynloop.report.runs import Run
from dynloop.report.sections.pictures import MOST, named
from dynloop.report.sections.section import Section
from dynloop.stages import layer_cosine, mirroring, stage_profile
from dynloop.store import Store
from dynloop.trajectories import Trajectories

if TYPE_CHECKING:
    import xarray

PROMPTS, RECURRENCES, TOKENS = 16, 8, 32
_LAYERS = 12  # with a row of their own
_NUMBERS = 1 << 25  # of states that are held, all prompts together
_FEW_PROMPTS, _FEW_TOKENS = 4, 8
_MATRIX = 3  # layers from which on a matrix shows more than its two means
_QUANTITIES = USUAL["states"]


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """States of some prompts at some recurrences, at every layer.

    Attributes:
        orbits: labelled prompt, layer and token; a step is one of `recurrences`.
        recurrences: their numbers.
        n_prompts: how many prompts it holds.
    """

    orbits: Trajectories
    recurrences: np.ndarray
    n_prompts: int

    def profile(self) -> Measurement:
        """`stage_profile` with the numbers of the recurrences."""
        found = stage_profile(self.orbits)
        n_layers = len(np.unique(found.labels["layer"]))
        step = np.asarray(found.labels["recurrence"], dtype=int) - 1
        recurrence = self.recurrences[step]
        depth = (recurrence - 1) * n_layers + found.labels["depth"] - step * n_layers
        return dataclasses.replace(found, labels={**found.labels, "recurrence": recurrence, "depth": depth})

    def cosines(self) -> xarray.DataArray:
        """`layer_cosine` with the numbers of the recurrences."""
        found = layer_cosine(self.orbits)
        return found.assign_coords({name: (found[name].dims, self.recurrences[found[name].values - 1])
                                    for name in ("recurrence", "other_recurrence")})

    def mirrored(self) -> Measurement:
        """How far each recurrence repeats the first."""
        reference = self.orbits.replace(states=self.orbits.states[:, :1], lengths=np.minimum(self.orbits.lengths, 1))
        found = mirroring(self.orbits, reference, quantities=_QUANTITIES)
        step = np.asarray(found.labels["recurrence"], dtype=int) - 1
        return dataclasses.replace(found, labels={**found.labels, "recurrence": self.recurrences[step]})


def sampled(run: Run) -> Sample | None:
    """At most 16 prompts and 32 tokens of a recording, evenly spaced, and 8 recurrences at equal ratios; fewer of large
    models. None where there are no prompts or layers to speak of."""
    source = run.source
    if source is None or "prompt" not in source.labels or len([la for la in run.layers if la is not None]) < 2:
        return None
    labels = source.labels
    first = {name: labels[name][0] for name in ("start", "decoding", "model") if name in labels}
    known = np.logical_and.reduce([np.ones(source.n_orbits, dtype=bool),
                                   *(labels[name] == value for name, value in first.items())])
    prompts = np.unique(labels["prompt"][known])
    steps = source.header.get("recurrences") if isinstance(source, Store) else None
    numbers = np.array(steps if isinstance(steps, list | tuple) and len(steps) == source.n_steps else
                       range(1, source.n_steps + 1))
    at = spaced(np.arange(len(numbers)), by_ratio=True, most=RECURRENCES)
    n_prompts, n_tokens = PROMPTS, TOKENS
    each = len(run.layers) * len(at) * source.dim
    while n_prompts * n_tokens * each > _NUMBERS and (n_prompts > _FEW_PROMPTS or n_tokens > _FEW_TOKENS):
        if n_tokens > _FEW_TOKENS:
            n_tokens //= 2
        else:
            n_prompts //= 2
    chosen = spaced(prompts, by_ratio=False, most=n_prompts)
    parts = []
    for prompt in chosen.tolist():
        own = source.trajectories(prompt=prompt, **first) if isinstance(source, Store) else \
            source.select(prompt=prompt, **first)
        if "token" in own.labels:
            kept = np.isin(own.labels["token"], spaced(np.unique(own.labels["token"]), by_ratio=False, most=n_tokens))
            own = own[np.flatnonzero(kept)]
        parts.append(_part(own, at))
    orbits = Trajectories(
        torch.cat([part.states for part in parts]), resolution=parts[0].resolution,
        labels={name: np.concatenate([part.labels[name] for part in parts]) for name in parts[0].labels},
        lengths=np.concatenate([part.lengths for part in parts]),
        diverged=np.concatenate([part.diverged for part in parts]))
    return Sample(orbits, numbers[at], len(chosen))


def _part(own: Trajectories, at: np.ndarray) -> Trajectories:
    """Some steps of the orbits, labelled by what stages are of."""
    labels = {name: own.labels[name] for name in ("model", "prompt", "layer", "token") if name in own.labels}
    labels.setdefault("token", np.zeros(own.n_orbits, dtype=int))
    lengths = (at[None] < own.lengths[:, None]).sum(1)
    return Trajectories(own.states[:, torch.as_tensor(at, device=own.states.device)].cpu(), labels=labels,
                        lengths=lengths, diverged=own.diverged, resolution=own.resolution)


def section(runs: Sequence[Run]) -> Section | None:
    """Profiles of the sample, and how alike its depths are."""
    rows: list[tuple[Any, ...]] = []
    alike: list[tuple[Any, ...]] = []
    drawings: list[Drawing] = []
    told: list[str] = []
    for i, run in enumerate(runs, start=1):
        try:
            sample = sampled(run)
            if sample is None:
                continue
            profile, cosines = sample.profile(), sample.cosines()
            compared = _alike(run, cosines, sample)
        except ValueError as error:  # a recording that is not whole: every token at every layer, once
            told.append(f"{run.name}: no stages, because {_sentence(error)}")
            continue
        rows += _rows(run, profile, sample)
        alike.append(compared)
        if len(runs) <= MOST and profile.found.any():
            name = f"{i}-stages"
            drawings.append(named(name, stage_curves(profile, resample="prompt"), run))
            if len(run.layers) >= _MATRIX:
                drawings.append(named(f"{name}-cosine", depth_matrix(cosines), run,
                                      more=f" Of {sample.n_prompts} prompts."))
    if not rows:
        return Section("stages", "Stages of inference", text=tuple(told)) if told else None
    note = _ALIKE + (_MIRRORS if any(len(run.layers) >= _MATRIX for run in runs) else "")
    tables = (
        Table("stages", "Profile over depth",
              ("model", "layer", "recurrence", *(WORDS[name] for name in _QUANTITIES), "prompts"), rows, _PROFILE),
        Table("likeness", "How alike depths are",
              ("model", "one layer, other recurrences", "other layers", "mirrors its first recurrence",
               "shifts of its layers", "at recurrence"), alike, note).without_empty_columns())
    return Section("stages", "Stages of inference", text=(
        f"What each layer does to a prompt, on a sample: at most {PROMPTS} prompts and {TOKENS} tokens of each, evenly "
        f"spaced, at {RECURRENCES} recurrences at equal ratios. dynloop.stages has all depths, further quantities and "
        "a feed-forward reference.", *told), tables=tables, drawings=drawings)


_PROFILE = ("Means over prompts, brackets: 95 % intervals over prompts (Student's t), at the first and the last of the "
            "recurrences. Matrix entropy: of the squared singular values of a prompt's states, at most ln of the "
            "number of tokens; anisotropy: the largest one's share; norm: mean over tokens.")
_ALIKE = ("Mean cosine of a token's states at two depths, over tokens, prompts and pairs: near 1 between recurrences "
          "and lower between layers where the loop goes through the same states again and again, near 1 for both "
          "where it does nothing.")
_MIRRORS = (" Mirrors: correlation of the profiles of the last and the first recurrence over the layers, with its 95 % "
            "interval over prompts, beside the range of scores when the layers are shifted.")


def _sentence(error: ValueError) -> str:
    text = str(error).partition(". ")[0].rstrip(".")
    return f"{text}."


def _rows(run: Run, profile: Measurement, sample: Sample) -> list[tuple[Any, ...]]:
    """The first and the last recurrence of every layer."""
    found = []
    for layer in spaced(np.array(run.layers), by_ratio=False, most=_LAYERS).tolist():
        for recurrence in dict.fromkeys((int(sample.recurrences[0]), int(sample.recurrences[-1]))):
            part = profile.select(layer=layer, recurrence=recurrence)
            cells = [cell_of(run, part, name) for name in _QUANTITIES]
            found.append((run.name, str(layer), str(recurrence), *cells, int(part.found.sum())))
    return found


def cell_of(run: Run, part: Measurement, variable: str) -> Cell:
    """Mean over prompts with its interval, kept among the run's estimates; without one where there is one prompt."""
    if not part.found.any():
        return Cell("none")
    if (found := run.told(part, "mean", variable=variable)) is not None:
        return number(found)
    values = part[variable][part.found]
    return plain(float(values.mean())) if np.isfinite(values).all() else Cell("none")


def _alike(run: Run, cosines: xarray.DataArray, sample: Sample) -> tuple[Any, ...]:
    same = cosines["layer"].values[:, None] == cosines["other_layer"].values
    apart = cosines["recurrence"].values[:, None] != cosines["other_recurrence"].values
    known = np.isfinite(cosines.values)
    cells = [plain(float(cosines.values[mask & known].mean())) if (mask & known).any() else Cell("none")
             for mask in (same & apart, ~same)]
    if len(run.layers) < _MATRIX or len(sample.recurrences) < 2:
        return (run.name, *cells, "", "", "")
    mirrored = sample.mirrored()
    if not mirrored.found[1:].any():
        return (run.name, *cells, "none", "", "")
    last = int(np.flatnonzero(mirrored.found)[-1])
    score, low, high = (float(mirrored[name][last]) for name in ("score", "low", "high"))
    text = plain(score).text
    interval = Cell(f"{text} [{plain(low).text}, {plain(high).text}]", score, low, high) \
        if np.isfinite([low, high]).all() else plain(score)
    shifts = mirrored["null"][last, 1:]
    return (run.name, *cells, interval, f"{plain(float(shifts.min())).text} to {plain(float(shifts.max())).text}",
            str(mirrored.labels["recurrence"][last]))
