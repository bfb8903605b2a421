"""What each realised depth does to a prompt: the stages of inference as numbers, in the three groupings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.attention.nulls import uniform_concentration, uniform_mixing, uniform_sink_score
from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.recording import attention_of
from dynloop.settings import check_number
from dynloop.stages.matrix_entropy import entropy_of, spectrum_shares
from dynloop.stages.runs import Run, Runs
from dynloop.statistics import estimate
from dynloop.store import Store
from dynloop.trajectories import Trajectories

if TYPE_CHECKING:
    import xarray

STATES = ("matrix_entropy", "anisotropy", "residual_norm", "first_token_norm", "layer_step", "loop_step")
ATTENTION = ("sink_score", "sink_rate", "mixing", "concentration", "sink_excess", "mixing_share",
             "concentration_excess")
GROUPINGS = ("depth", "recurrence", "layer")


def stage_profile(source: Store | Trajectories, *, of: str = "states", sink_threshold: float = 0.3) -> Measurement:
    """What each recurrence and layer does, prompt by prompt: one row for every prompt and realised depth.

    of="states", from the states X (tokens, dim) of a prompt at a depth:

        matrix_entropy = -sum_j p_j ln p_j,  anisotropy = p_1,  p_j = sigma_j(X)^2 / ||X||_F^2
        residual_norm = mean_t |X_t|;  first_token_norm = |X_0|, of the first recorded token
        layer_step = mean_t |X_t - X'_t|, X' one depth before;  loop_step the same, X' one recurrence before

    of="attention", from the statistics that `capture(..., attention=True)` took of each layer's maps A (T, T), averaged
    over heads:

        sink_score = mean_t A[t, 0],  sink_rate = share of heads with sink_score >= sink_threshold
        mixing = mean_t H(A[t, :]), in nats
        concentration = 1 + sum_k c_k ln c_k / ln T,  c_k = sum_t A[t, k] / T

    and what uniform causal attention over T positions does not explain: `sink_excess` over H_T / T (H_T the harmonic
    number), `mixing_share`, mixing over its largest value ln(T!) / T, and `concentration_excess`.

    Args:
        source: a store that `capture` wrote, or orbits labelled `prompt`, `layer` and `token` (without one of the
            last two there is one of it).
        of: "states" or "attention", which takes a store.
        sink_threshold: from which score on a head counts as one with a sink.

    Returns:
        A row a run (prompt, start, ...), recurrence and layer, in the order of depth, with the labels of the run and
        `recurrence`, `layer` (as recorded), `depth` (from 1) and `percent`, the depth within the recurrence in percent:
        100 (l - 1/2) / L. `layer_step` is NaN at the first depth, `loop_step` in the first recurrence, and
        `concentration` where not every position was recorded. A row is `TOO_SHORT` where the loop of a token had ended
        by then, `NOT_FINITE` where a token had left the finite numbers. `profile_by` groups the rows.

    Raises:
        TypeError: not a recording.
        ValueError: a run that is not whole, no statistics of attention, or a threshold outside of 0 to 1.

    Misleads:
        A layer of attention is not a layer of states: rows of the two differ in `layer`, and where a layer attends
        twice in number, too. Up to 9 positions uniform attention alone has a sink score of .3. The formula printed for
        the concentration in the source has column sums in place of c; taken literally it gives 2 to 63 for uniform
        attention. Only the recorded tokens count in states: record all (`tokens=None`). Where recurrences were left
        out of the recording, steps are between those that were kept.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), figures 7 to 12; Gu et al. 2024 (arXiv 2410.10781); Queipo-de-Llano et
        al. 2025 (arXiv 2510.06477).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.stages import stage_profile
        >>> states = np.random.default_rng(0).normal(size=(2, 3, 5, 4, 8))  # prompt, layer, token, recurrence, dim
        >>> prompt, layer, token = (i.ravel() for i in np.indices((2, 3, 5)))
        >>> orbits = Trajectories(states.reshape(30, 4, 8), labels={"prompt": prompt, "layer": layer, "token": token})
        >>> stage_profile(orbits)
        Measurement(stage_profile of 24 orbits: 24 found)
    """
    if of not in ("states", "attention"):
        raise ValueError(f"of must be one of states, attention; got {of!r}. Choose one.")
    check_number("sink_threshold", sink_threshold, lambda v: 0 < v <= 1, "above 0, at most 1 (default 0.3)")
    if of == "attention":
        return _of_attention(source, sink_threshold)
    parts = [_of_run(run) for run in Runs(source)]
    return Measurement.concatenate(parts)


def _of_run(run: Run) -> Measurement:
    n_recurrences, n_layers = run.outcomes.shape
    outcomes = run.outcomes.reshape(-1)
    x = run.depths
    with np.errstate(invalid="ignore", over="ignore"):
        shares = spectrum_shares(x)
        norms = np.linalg.norm(x, axis=-1)
        layer, loop = np.full((2, len(x)), np.nan)
        layer[1:] = np.linalg.norm(x[1:] - x[:-1], axis=-1).mean(-1)
        loop[n_layers:] = np.linalg.norm(x[n_layers:] - x[:-n_layers], axis=-1).mean(-1) if n_recurrences > 1 else []
    found = {"matrix_entropy": entropy_of(shares), "anisotropy": shares[:, -1], "residual_norm": norms.mean(-1),
             "first_token_norm": norms[:, 0], "layer_step": layer, "loop_step": loop}
    return _rows(found, outcomes, run.labels, run.recurrences, run.layers, {"of": "states"},
                 {"matrix_entropy": "nats"})


def _rows(found: dict[str, np.ndarray], outcomes: np.ndarray, own: dict[str, Any], recurrences: np.ndarray,
          layers: np.ndarray, settings: dict[str, Any], units: dict[str, str]) -> Measurement:
    n, n_layers = len(outcomes), len(layers)
    bad = np.array([o is not Outcome.FOUND for o in outcomes])
    for values in found.values():
        values[bad] = np.nan
    labels = {name: np.full(n, value) for name, value in own.items()}
    labels |= {"recurrence": np.repeat(recurrences, n_layers), "layer": np.tile(layers, n // n_layers),
               "depth": 1 + np.arange(n), "percent": np.tile(100 * (np.arange(n_layers) + 0.5) / n_layers,
                                                             n // n_layers)}
    return Measurement("stage_profile", found, outcomes, units=units, settings=settings, labels=labels)


def _of_attention(source: Any, threshold: float) -> Measurement:
    if not isinstance(source, Store):
        raise TypeError(f"of='attention' reads a store that capture(..., attention=True) wrote; got "
                        f"{type(source).__name__}. Give the store.")
    maps, tokens = attention_of(source), attention_of(source, per="token")
    places = {(p, s): (batch["tokens"].shape[1], len(batch["positions"]))
              for batch in source.inputs() for p, s in zip(batch["prompts"], batch["starts"], strict=True)}
    names = source.header["attention"]["layers"]
    heads = source.header["attention"]["heads"]
    layer_of_row = np.repeat(np.arange(len(names)), heads)
    n_heads = sum(heads)
    keys = list(zip(maps["prompt"].values.tolist(), maps["start"].values.tolist(), strict=True))
    sink, entropy = maps["sink_score"].values.astype(float), maps["entropy"].values.astype(float)
    columns, at_token = tokens["column_sum"].values.astype(float), 0
    others = {k: v for k, v in source.header.get("labels", {}).items() if k not in ("layer", "token")}
    parts = []
    for first in range(0, len(keys), n_heads):
        prompt, start = keys[first]
        n, kept = places[prompt, start]
        share = columns[at_token:at_token + n_heads * kept].reshape(n_heads, kept, -1) / n
        at_token += n_heads * kept
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = np.abs(share.sum(1) - 1) < 1e-3
            own = 1 - entropy_of(share.swapaxes(1, 2)) / math.log(n) if n > 1 else np.full(whole.shape, np.nan)
        concentration = np.where(whole, own, np.nan)
        rows = slice(first, first + n_heads)
        numbers = {"sink_score": sink[rows], "sink_rate": np.where(np.isnan(sink[rows]), np.nan,
                                                                   sink[rows] >= threshold),
                   "mixing": entropy[rows], "concentration": concentration}
        per = {name: np.stack([values[layer_of_row == la].mean(0) for la in range(len(names))], 1).ravel()
               for name, values in numbers.items()}  # in the order (recurrence, layer)
        per["sink_excess"] = per["sink_score"] - uniform_sink_score(n)
        per["mixing_share"] = per["mixing"] / uniform_mixing(n) if n > 1 else np.full(len(per["mixing"]), np.nan)
        per["concentration_excess"] = per["concentration"] - (uniform_concentration(n) if n > 1 else 0.0)
        bad = ~np.isfinite(per["sink_score"])
        outcomes = np.full(len(bad), Outcome.FOUND, dtype=object)
        outcomes[bad] = Outcome.TOO_SHORT
        parts.append(_rows(per, outcomes, {**others, "prompt": prompt, "start": start}, maps["recurrence"].values,
                           np.array(names), {"of": "attention", "sink_threshold": threshold}, {"mixing": "nats"}))
    return Measurement.concatenate(parts)


def profile_by(profile: Measurement, grouping: str, *, variable: str | None = None, resample: str = "prompt",
               confidence_level: float = 0.95, method: str = "t") -> xarray.Dataset:
    """A profile in one of the paper's three groupings, with an interval at every depth.

    Args:
        profile: from `stage_profile`; of several seeds, joined.
        grouping: "depth" (all realised depths in order), "recurrence" (a curve a recurrence, over the percent of the
            block) or "layer" (a curve a layer, over recurrences).
        variable: which quantity; by default the first.
        resample, confidence_level, method: as in `estimate`; "seed > prompt" where seeds were joined.

    Returns:
        `mean`, `low`, `high` and `n` (rows that entered) over (depth,), (recurrence, percent) or (layer, recurrence),
        NaN (n = 0) where no row has an answer.

    Raises:
        ValueError: an unknown grouping or variable, or what `estimate` refuses.

    Misleads:
        Intervals are of each depth by itself: some of many miss.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.stages import profile_by, stage_profile
        >>> states = np.random.default_rng(0).normal(size=(6, 3, 5, 4, 8))  # prompt, layer, token, recurrence, dim
        >>> prompt, layer, token = (i.ravel() for i in np.indices((6, 3, 5)))
        >>> orbits = Trajectories(states.reshape(90, 4, 8), labels={"prompt": prompt, "layer": layer, "token": token})
        >>> dict(profile_by(stage_profile(orbits), "layer", variable="residual_norm").sizes)
        {'layer': 3, 'recurrence': 4}
    """
    import xarray

    if grouping not in GROUPINGS:
        raise ValueError(f"grouping must be one of {', '.join(GROUPINGS)}; got {grouping!r}. Choose one.")
    variable = variable or next(iter(profile.variables))
    values, labels = profile[variable], profile.labels
    if missing := [name for name in ("depth", "recurrence", "layer", "percent") if name not in labels]:
        raise ValueError(f"a stage profile is needed; {profile.name} has no label {missing[0]}.")
    axes = {"depth": ("depth",), "recurrence": ("recurrence", "percent"), "layer": ("layer", "recurrence")}[grouping]
    # layers in their order within the block, whatever they are called
    first = np.sort([np.flatnonzero(labels["layer"] == name)[0] for name in np.unique(labels["layer"])])
    coordinates = {name: labels["layer"][first] if name == "layer" else np.unique(labels[name]) for name in axes}
    shape = tuple(len(v) for v in coordinates.values())
    mean, low, high = np.full((3, *shape), np.nan)
    n = np.zeros(shape, dtype=int)
    good = profile.found & np.isfinite(values)
    for cell in np.ndindex(*shape):
        rows = good.copy()
        for name, i in zip(axes, cell, strict=True):
            rows &= labels[name] == coordinates[name][i]
        if not rows.any():
            continue
        part = Measurement(profile.name, {variable: values[rows]}, profile.outcomes[rows],
                           labels={k: v[rows] for k, v in labels.items()})
        found = estimate(part, statistic="mean", resample=resample, confidence_level=confidence_level, method=method)
        mean[cell], low[cell], high[cell], n[cell] = found.value, found.low, found.high, found.n
    data = {name: (axes, values, {"unit": profile.units[variable]})
            for name, values in (("mean", mean), ("low", low), ("high", high))}
    return xarray.Dataset({**data, "n": (axes, n)}, coords=coordinates,
                          attrs={"variable": variable, "resample": resample, "confidence_level": confidence_level})


def curves(profile: Measurement, quantities: Sequence[str], which: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Values of a profile as (prompts, quantities, recurrences, layers), with the labels of the four axes.

    Raises:
        ValueError: a quantity that is not there, no label `prompt`, or several runs of one prompt.
    """
    labels = profile.labels
    for name in ("prompt", "recurrence", "layer", "depth"):
        if name not in labels:
            raise ValueError(f"a stage profile with the label {name!r} is needed; the {which} has "
                             f"{', '.join(labels) or 'none'}.")
    for name in quantities:
        if profile[name].ndim != 1:
            raise ValueError(f"{name!r} is no quantity of a stage profile.")
    prompts, recurrences = np.unique(labels["prompt"]), np.unique(labels["recurrence"])
    n = len(labels["depth"])
    n_depths = int(labels["depth"].max())
    if n != len(prompts) * n_depths or n_depths % len(recurrences):
        raise ValueError(f"the {which} must have one run a prompt, all of the same depths; got {n} rows for "
                         f"{len(prompts)} prompts and {n_depths} depths. Select one start, seed, ...")
    order = np.lexsort((labels["depth"], labels["prompt"]))
    shape = (len(prompts), len(recurrences), n_depths // len(recurrences))
    found = np.stack([profile[name][order].reshape(shape) for name in quantities], 1)
    return found, {"prompt": prompts, "recurrence": recurrences,
                   "layer": labels["layer"][order][:shape[2]], "quantity": np.array(quantities)}
