"""Measure one model: what its loop does over many recurrences, how it attends, what it predicts. One file a model."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import Condition, Tier
from torch.nn import functional as F
from training import folder_of

from dynloop import (
    Measurement,
    Outcome,
    Trajectories,
    attention_lag,
    attention_of,
    attention_stabilisation,
    capture,
    contraction_rate,
    convergence_time,
    cyclic_fixed_points,
    limit_regime,
    prompt_states,
)
from dynloop.models import nano
from dynloop.nano import Corpus, NanoModel, load_corpus, load_model, model_hash

VERSION = 1  # of the files; others are measured again
WEIGHTS = ("trained", "untrained")
COSINE_AT_REST = 0.999  # own cosine at three quarters of the record, from which on a reader of cosines says "settled"
COSINE_ALIKE = 0.99  # lowest cosine between layers, from which on such a reader says "degenerate"


def measured_file(out: Path, condition: Condition, seed: int, weights: str) -> Path:
    """Where the measurements of a model are kept."""
    return out / "measured" / condition.name / f"seed-{seed}-{weights}.json"


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all; numbers that JSON does not know become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(plain(content), allow_nan=False) + "\n")
    os.replace(temporary, path)


def plain(value: Any) -> Any:
    """Lists, dictionaries, texts and numbers of six digits."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.6g}") if math.isfinite(value) else None
    if isinstance(value, np.generic):
        return value.item()
    return value.value if isinstance(value, Outcome) else value


def read_json(path: Path) -> dict[str, Any] | None:
    """What was measured, or None where it was not, or by another version of this file."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    return found if found.get("version") == VERSION else None


def prompts_of(tier: Tier, corpus: Corpus) -> list[list[int]]:
    """Held-out prompts, the same for every model."""
    return corpus.held_out_windows(n=tier.n_prompts, length=tier.n_tokens).astype(int).tolist()


def depths_of(most: int) -> list[int]:
    """1, 2, 4, ... up to the length of the recording."""
    return [2**k for k in range(int(math.log2(most)) + 1)]


def measure_one(out: Path, tier: Tier, condition: Condition, seed: int, weights: str, device: str) -> str:
    """Measure one model that has not been measured yet."""
    path = measured_file(out, condition, seed, weights)
    if read_json(path) is not None:
        return "measured"
    torch.set_num_threads(1)
    if weights == "trained":
        model = load_model(folder_of(out, condition, seed))[0]
    else:
        model = NanoModel(condition.model(tier), seed=seed).eval()
    numbers = measure(model.to(device), tier, load_corpus())
    write_json(path, {"version": VERSION, "condition": condition.name, "seed": seed, "weights": weights,
                      "sha256": model_hash(model), **numbers})
    return "measured"


def measure(model: NanoModel, tier: Tier, corpus: Corpus) -> dict[str, Any]:
    """All numbers of one model."""
    found: dict[str, Any] = {"loss": losses(model, tier, corpus)}
    if not model.config.looped:
        return found
    with tempfile.TemporaryDirectory() as folder:
        store = capture(nano(model), prompts_of(tier, corpus), out=Path(folder, "states"), n_recurrences=tier.long_run,
                        batch_size=tier.n_prompts, attention=True, attention_pairs="layer")
        whole = list(prompt_states(store))
        tokens = store.trajectories(layer=len(store.header["layers"]), token=_positions(tier))
        maps, pairs = attention_of(store), attention_of(store, per="pair")
        logged = attention_stabilisation(pairs)
        prompts = Trajectories(torch.cat([o.states for o in whole]), lengths=np.concatenate([o.lengths for o in whole]),
                               diverged=np.concatenate([o.diverged for o in whole]), resolution=whole[0].resolution,
                               labels={name: np.concatenate([o.labels[name] for o in whole])
                                       for name in ("prompt", "layer")})
    return {**found, **of_states(prompts, tokens), **of_attention(logged, maps, prompts)}


def losses(model: NanoModel, tier: Tier, corpus: Corpus) -> dict[int, float]:
    """Held-out loss in nats per byte after 1, 2, 4, ... recurrences of one run (a feed-forward control has one)."""
    windows = torch.from_numpy(corpus.held_out_windows(n=tier.n_windows, length=tier.length + 1)).long()
    windows = windows.to(model.embedding.weight.device)
    depths = depths_of(tier.long_run) if model.config.looped else [1]
    found = dict.fromkeys(depths, 0.0)
    with torch.no_grad():
        for first in range(0, len(windows), 16):
            part = windows[first:first + 16]
            context = model.embed(part[:, :-1])
            state = model.initial_state(context, seeds=range(first, first + len(part)))
            for depth in range(1, depths[-1] + 1):
                state = model.step(state, context)
                if depth in found:
                    logits = model.readout(state, context)
                    found[depth] += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return {depth: total / windows[:, 1:].numel() for depth, total in found.items()}


def _positions(tier: Tier) -> list[int]:
    """Two tokens of each prompt: its middle and its last."""
    return [tier.n_tokens // 2, tier.n_tokens - 1]


def of_states(prompts: Trajectories, tokens: Trajectories) -> dict[str, Any]:
    """What the loop does in the end: of whole prompts (all layers), and of some tokens (the last layer)."""
    layer = prompts.labels["layer"]
    first, last = prompts[layer == layer.min()], prompts[layer == layer.max()]
    loop = cyclic_fixed_points(prompts)
    one, end = _of(loop, layer == layer.min()), _of(loop, layer == layer.max())
    step = 3 * prompts.n_steps // 4
    own = np.stack([_of(loop, layer == at)["own_cosine"][:, step] for at in np.unique(layer)])
    rate, time, regime, of_tokens = (contraction_rate(last), convergence_time(last), limit_regime(last),
                                     limit_regime(tokens))
    norm = tokens.states.double().norm(dim=-1).cpu().numpy()  # (orbits, recurrences)
    depths = np.array(depths_of(prompts.n_steps)) - 1
    away = last.states.double()
    away = ((away - away[:, -1:]).norm(dim=-1) / away[:, -1:].norm(dim=-1)).cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes = np.log(norm[:, depths]).mean(0)
    return {
        "n_prompts": first.n_orbits, "n_tokens": tokens.n_orbits,
        "loop": {"outcomes": _counts(loop.outcomes[layer == layer.max()]), "verdict": end["verdict"],
                 "separation": end["separation"], "rates_agree": Counter(end["rates_agree"].tolist()),
                 "late_distance": end["late_distance"], "own_cosine": own.min(0),
                 "lowest_cosine": one["lowest_cosine"][:, -1]},
        "rate": {"outcomes": _counts(rate.outcomes), "value": rate["rate"], "low": rate["rate_low"],
                 "high": rate["rate_high"]},
        "time": {"outcomes": _counts(time.outcomes), "value": time["time"]},
        "regime": {"outcomes": _counts(regime.outcomes), "names": Counter(regime.values.tolist()),
                   "periods": Counter(regime["period"][np.isfinite(regime["period"])].astype(int).tolist())},
        "token_regime": {"outcomes": _counts(of_tokens.outcomes), "names": Counter(of_tokens.values.tolist())},
        "log_norm": dict(zip((depths + 1).tolist(), sizes.tolist(), strict=True)),
        "distance": dict(zip((depths + 1).tolist(), np.median(away[:, depths], axis=0).tolist(), strict=True)),
    }


def of_attention(stabilised: Measurement, maps: Any, prompts: Trajectories) -> dict[str, Any]:
    """From when on heads attend as at the end, whether that follows the state, and how they attend."""
    layer = prompts.labels["layer"]
    lag = attention_lag(stabilised, convergence_time(prompts[layer == layer.max()]))
    depths = np.array(depths_of(prompts.n_steps))
    kept = {name: maps[name].values.astype(float)[:, depths - 1].mean(0)
            for name in ("sink_score", "entropy", "concentration")}
    heads = stabilised.labels["layer"].astype(str)
    return {"attention": {
        "n_maps": stabilised.n_orbits, "outcomes": _counts(stabilised.outcomes),
        "time_by_layer": {name: _mean(stabilised["time"][(heads == name) & stabilised.found])
                          for name in dict.fromkeys(heads.tolist())},
        "time": _mean(stabilised["time"][stabilised.found]), "lag": _mean(lag["lag"][lag.found]),
        "order": Counter(lag["order"][lag.found].tolist()), "lag_outcomes": _counts(lag.outcomes),
        **{name: dict(zip(depths.tolist(), values.tolist(), strict=True)) for name, values in kept.items()}}}


def _of(measurement: Measurement, mask: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[mask] for name, values in measurement.variables.items()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan


def _counts(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {o.value: n for o, n in Counter(outcomes).items()}
