"""How long do recording a nano model with its attention and all measures of attention and stages take?

    python benchmarks/stages.py --save benchmarks/results/stages.json

64 prompts of 96 tokens through 128 recurrences of a shipped model, every token, layer and recurrence kept, with the
distances between the attention maps of each layer; then each measure once, on as many threads as there are cores.
The goal is three minutes for everything on two cores. Its own checks: a map is at distance 0 from itself, and states
are as alike to themselves as can be.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import side_by_side

from dynloop.analyzers import convergence_time
from dynloop.attention import attention_distance, attention_lag, attention_stabilisation
from dynloop.measurement import Measurement
from dynloop.models import load
from dynloop.recording import attention_of, capture, prompt_states
from dynloop.stages import layer_cka, layer_cosine, mirroring, profile_by, stage_clusters, stage_profile


def main():
    options = side_by_side.arguments(
        __doc__, prompts=(64, 6, "prompts"), tokens=(96, 20, "of each"), recurrences=(128, 12, "of the loop"),
        model=("nano-settles", "nano-settles", "a model"))
    rng = np.random.default_rng(0)
    model = load(options.model)
    prompts = [rng.integers(97, 123, size=options.tokens).tolist() for _ in range(options.prompts)]
    seconds = {}

    def timed(name, task):
        began = time.perf_counter()
        answer = task()
        seconds[name] = time.perf_counter() - began
        print(f"{name}: {seconds[name]:.1f} s", flush=True)
        return answer

    with tempfile.TemporaryDirectory() as folder:
        store = timed("capture with attention", lambda: capture(
            model, prompts, out=Path(folder, "store"), n_recurrences=options.recurrences, attention=True,
            attention_pairs="layer"))
        maps = timed("attention_distance", lambda: attention_distance(attention_of(store, per="pair")))
        times = timed("attention_stabilisation", lambda: attention_stabilisation(attention_of(store, per="pair")))
        state = timed("convergence_time of prompts", lambda: Measurement.concatenate(
            [convergence_time(orbits) for orbits in prompt_states(store, layer=len(model.points))]))
        timed("attention_lag", lambda: attention_lag(times, state))
        profile = timed("stage_profile", lambda: stage_profile(store))
        timed("stage_profile of attention", lambda: stage_profile(store, of="attention"))
        for grouping in ("depth", "recurrence", "layer"):
            timed(f"profile_by {grouping}", lambda by=grouping: profile_by(profile, by, variable="matrix_entropy"))
        cosines = timed("layer_cosine", lambda: layer_cosine(store))
        alike = timed("layer_cka", lambda: layer_cka(store))
        timed("stage_clusters", lambda: stage_clusters(profile))
        timed("mirroring", lambda: mirroring(profile, profile))
    place = maps.labels["recurrence"] - 1
    assert np.all(maps["distance"][np.arange(len(place)), place] == 0), "a map is away from itself"
    for found in (cosines, alike):
        assert np.allclose(np.diagonal(np.asarray(found)), 1.0, atol=1e-5), "states are not like themselves"
    total = sum(seconds.values())
    print(side_by_side.table(["", "seconds"], [*map(list, seconds.items()), ["all", total]]))
    side_by_side.save({"machine": side_by_side.machine(), "prompts": options.prompts, "tokens": options.tokens,
                       "recurrences": options.recurrences, "model": options.model, "seconds": seconds, "total": total},
                      options.save)


if __name__ == "__main__":
    main()
