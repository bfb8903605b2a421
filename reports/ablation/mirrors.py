"""Hold the stages of one looped model against its feed-forward control, and its own controls against the same."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conditions import Condition, Tier
from measuring import VERSION, prompts_of, read_json, write_json
from torch import nn
from training import folder_of

from dynloop import Measurement, Outcome, mirroring, stage_profile
from dynloop.attention import attention_statistics
from dynloop.models import nano
from dynloop.nano import NanoModel, load_corpus, load_model
from dynloop.recording import record

QUANTITIES = {"states": ("matrix_entropy", "anisotropy", "residual_norm"),
              "attention": ("sink_score", "mixing", "concentration")}
N_UNTRAINED, N_SHUFFLED = 4, 3
_LEAST = 3  # layers of a loop that mirroring can compare

Profiles = dict[str, Measurement]


def mirrored_file(out: Path, condition: Condition, seed: int) -> Path:
    """Where the scores of a model are kept."""
    return out / "mirrored" / condition.name / f"seed-{seed}.json"


def control_of(condition: Condition) -> Condition:
    """The feed-forward control of equal depth and the same norm."""
    return Condition(kind="feed-forward", block=condition.block, injection="none", norm=condition.norm,
                     loop_norm=False)


def mirror_one(out: Path, tier: Tier, condition: Condition, seed: int, other: int, device: str) -> str:
    """Score one model that has no score yet. Of a feed-forward control: how the one of seed `other` mirrors it."""
    path = mirrored_file(out, condition, seed)
    if read_json(path) is not None:
        return "mirrored"
    torch.set_num_threads(1)
    prompts = prompts_of(tier, load_corpus())
    reference = profiles(load_model(folder_of(out, control_of(condition), seed))[0].to(device), prompts, 1)
    if condition.kind == "feed-forward":
        own = profiles(load_model(folder_of(out, condition, other))[0].to(device), prompts, 1)
        found: dict[str, Any] = {"other": other, "stack": scores(own, reference, []), "curves": means(reference)}
    else:
        found = mirror(load_model(folder_of(out, condition, seed))[0].to(device), reference, prompts, tier, seed)
    write_json(path, {"version": VERSION, "condition": condition.name, "seed": seed, **found})
    return "mirrored"


def mirror(model: NanoModel, reference: Profiles, prompts: list[list[int]], tier: Tier, seed: int) -> dict[str, Any]:
    """Scores of the realised depths of all trained recurrences as one stack, and, of long blocks, of each loop."""
    n = tier.n_recurrences
    device = model.embedding.weight.device
    own = profiles(model, prompts, n)
    controls = [profiles(NanoModel(model.config, seed=seed + 1000 * k).eval().to(device), prompts, n)
                for k in range(N_UNTRAINED)]
    controls += [profiles(shuffled(model, order), prompts, n) for order in orders(len(model.block), seed)]
    found = {"n_untrained": N_UNTRAINED, "n_shuffled": len(controls) - N_UNTRAINED, "curves": means(own),
             "stack": scores(stack(own), reference, [stack(control) for control in controls])}
    if len(model.block) >= _LEAST:
        found["loops"] = scores(own, reference, controls)
    return found


def orders(n_layers: int, seed: int) -> list[np.ndarray]:
    """Other orders of a block's layers, drawn without repetition: none of one layer, one of two."""
    rng, found = np.random.default_rng((seed, n_layers)), [np.arange(n_layers)]
    most = 1 + min(N_SHUFFLED, {1: 0, 2: 1}.get(n_layers, N_SHUFFLED))
    while len(found) < most:
        order = rng.permutation(n_layers)
        if not any((order == known).all() for known in found):
            found.append(order)
    return found[1:]


def shuffled(model: NanoModel, order: Sequence[int]) -> NanoModel:
    """The model with the layers of its block in another order."""
    other = copy.deepcopy(model)
    other.block = nn.ModuleList(other.block[int(i)] for i in order)
    return other


def profiles(model: NanoModel, prompts: list[list[int]], n_recurrences: int) -> Profiles:
    """What each realised depth does to states and how it attends, from one run."""
    tokens = torch.tensor(prompts, device=model.embedding.weight.device)
    with torch.no_grad(), attention_statistics(model, distance=False) as seen:
        orbits = record(nano(model), lambda: model(tokens, n_recurrences=n_recurrences))
    calls = [call for call in seen.calls if call.module.startswith("block.")]  # in the order of depth
    per = {"sink_score": [call.sink_scores[..., 0] for call in calls], "mixing": [call.entropy for call in calls],
           "concentration": [call.concentration for call in calls]}
    values = {name: torch.stack([heads.mean(1) for heads in of]).cpu().double().numpy().T.ravel()
              for name, of in per.items()}  # prompt by prompt
    depth = np.tile(1 + np.arange(len(calls)), len(prompts))
    n_layers = len(calls) // n_recurrences
    layer = (depth - 1) % n_layers
    good = np.isfinite(list(values.values())).all(0)
    attention = Measurement("stage_profile", values, [Outcome.FOUND if g else Outcome.NOT_FINITE for g in good],
                            labels={"prompt": np.repeat(np.arange(len(prompts)), len(calls)), "depth": depth,
                                    "recurrence": 1 + (depth - 1) // n_layers, "layer": 1 + layer,
                                    "percent": 100 * (layer + 0.5) / n_layers})
    return {"states": stage_profile(orbits), "attention": attention}


def stack(of: Profiles) -> Profiles:
    """All realised depths as the layers of one stack."""
    return {kind: Measurement(p.name, dict(p.variables), p.outcomes, labels={
        **p.labels, "recurrence": np.ones(p.n_orbits, dtype=int), "layer": p.labels["depth"]})
        for kind, p in of.items()}


def scores(own: Profiles, reference: Profiles, controls: list[Profiles]) -> dict[str, Any]:
    """Mirroring of states and of attention, the line over depth taken off, with the scores of all controls."""
    found: dict[str, Any] = {}
    for kind, quantities in QUANTITIES.items():
        m = mirroring(own[kind], reference[kind], quantities=quantities, detrend=True,
                      controls=[control[kind] for control in controls])
        found[kind] = {"outcomes": [o.value for o in m.outcomes], "score": m["score"], "low": m["low"],
                       "high": m["high"], "excess": m["excess"], "p_value": m["p_value"]}
        if controls:
            found[kind]["controls"] = m["control_scores"]
    return found


def means(of: Profiles) -> dict[str, list[float]]:
    """Every quantity at every depth, over prompts."""
    return {name: [float(p[name][p.labels["depth"] == depth].mean()) for depth in np.unique(p.labels["depth"])]
            for kind, p in of.items() for name in QUANTITIES[kind]}
