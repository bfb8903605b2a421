"""Stages found by clustering, and whether every loop goes through them in the same order."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_whole
from dynloop.stages.profile import curves, stage_profile
from dynloop.stages.runs import Runs

OF = ("profile", "states")
_MOST = 5040  # orders of layers that are listed one by one: seven layers


@dataclasses.dataclass(frozen=True, eq=False)
class StageClusters:
    """Stages of inference, and how they agree from loop to loop.

    Attributes:
        n_clusters: k.
        assignments: the stage of every prompt, recurrence and layer, counted from 1 in the order of depth.
        sequences: (recurrences, layers) the stage that most prompts have there.
        recurrences, layers: of these.
        agreement: (recurrences, recurrences) adjusted Rand index of two loops over layers, mean over prompts.
        by_prompt: of each prompt, over pairs of loops: mean `agreement`, and `same_stage`, the share of layers that
            have the same stage.
        mean_agreement, same_stage: means over prompts.
        null_mean, null_same: the same when the layers of each loop are permuted, on average.
        p_value, same_p_value: how often they are then at least as large.
        smallest_p: the smallest p-value that could come out.
        stability: k -> adjusted Rand index of the clusterings that two random halves of the prompts give.
        note: how p was found, and what k was chosen by.
    """

    n_clusters: int
    assignments: Measurement
    sequences: np.ndarray
    recurrences: np.ndarray
    layers: np.ndarray
    agreement: np.ndarray
    by_prompt: Measurement
    mean_agreement: float
    same_stage: float
    null_mean: float
    null_same: float
    p_value: float
    same_p_value: float
    smallest_p: float
    stability: dict[int, float]
    note: str

    def __str__(self) -> str:
        lines = [f"{self.n_clusters} stages; loops agree at {self.mean_agreement:.3f} (adjusted Rand index; layers "
                 f"permuted: {self.null_mean:.3f}, p = {self.p_value:.3g}), {100 * self.same_stage:.0f} % of layers "
                 f"have the same stage ({100 * self.null_same:.0f} %, p = {self.same_p_value:.3g})   ({self.note})"]
        lines += [f"recurrence {r}: {' '.join(map(str, row))}"
                  for r, row in zip(self.recurrences, self.sequences, strict=True)]
        return "\n".join(lines)


def adjusted_rand(one: np.ndarray, two: np.ndarray, k: int) -> np.ndarray:
    """Adjusted Rand index of labels 0 ... k - 1 along the last axis, over leading axes that agree; 1 where both are one
    cluster, as scikit-learn's."""
    shape = np.broadcast_shapes(one.shape, two.shape)
    one, two = np.broadcast_to(one, shape).reshape(-1, shape[-1]), np.broadcast_to(two, shape).reshape(-1, shape[-1])
    n = shape[-1]
    code = (np.arange(len(one))[:, None] * k + one) * k + two
    table = np.bincount(code.ravel(), minlength=len(one) * k * k).reshape(-1, k, k).astype(float)

    def pairs(counts: np.ndarray) -> np.ndarray:
        return counts * (counts - 1) / 2

    both = pairs(table).sum((1, 2))
    a, b = pairs(table.sum(2)).sum(1), pairs(table.sum(1)).sum(1)
    expected = a * b / pairs(np.array(float(n)))
    top = (a + b) / 2 - expected
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(np.abs(top) > 1e-12 * np.maximum(a + b, 1), (both - expected) / top, 1.0)
    return found.reshape(shape[:-1])


def stage_clusters(source: Any, *, of: str = "profile", n_clusters: int | None = None,
                   candidates: Sequence[int] = (2, 3, 4, 5, 6),
                   quantities: Sequence[str] = ("matrix_entropy", "anisotropy", "residual_norm"), n_splits: int = 10,
                   n_loops: int = 16, n_permutations: int = 1000, rng: Any = 0) -> StageClusters:
    """Clusters of depths by what they do to a prompt, and whether every loop runs through them alike.

    Each prompt, recurrence and layer is a point: its standardised profile, or the mean direction of its tokens' states.
    k-means gives it a stage; a loop is the sequence of its layers' stages. Two loops agree by the adjusted Rand index
    of these sequences, which sees which layers go together and not what their stage is called, and by the share of
    layers in the same stage; both are held against permutations of each loop's layers (the same for all prompts).

    Args:
        source: a recording, labelled `prompt`, `layer` and `token`, or a profile from `stage_profile` (of="profile").
        of: "profile" or "states".
        n_clusters: k; by default the most stable of the candidates: the one for which k-means on two random halves of
            the prompts gives the clusterings of all points that agree best; of equal ones the largest.
        candidates: those; of each, the stability is reported.
        quantities: of the profile.
        n_splits: pairs of halves.
        n_loops: how many loops enter the mean agreement and its null: all, or of more this many, from the first to the
            last at equal ratios (a loop that has settled tells nothing new). The matrix is of all.
        n_permutations: random ones, where the orders of the layers are too many to list.
        rng: seed or generator.

    Returns:
        The stages; recurrences where some prompt's loop had ended or left the finite numbers are left out, and their
        rows in `assignments` keep their outcome.

    Raises:
        TypeError: neither a recording nor a profile.
        ValueError: fewer than 2 whole recurrences, 2 layers or 4 prompts; a k of more than the points of half the
            prompts; a quantity that is not there.

    Misleads:
        k-means finds k clusters in anything: believe them where stability is high and agreement beats its null. Where
        states drift, the loops themselves may be the clusters: each loop is then one stage, and any two agree (1, and
        p = 1). As many stages as layers agree in any order by the adjusted Rand index: look at `same_stage`. With L
        layers two loops have L! orders: of two or three layers no p-value says much (`smallest_p`).

    Source:
        Hubert and Arabie 1985, J. Classification 2, 193 (adjusted Rand index); Ben-Hur, Elisseeff and Guyon 2002, Pac.
        Symp. Biocomput. 7, 6 (stability).

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.stages import stage_clusters
        >>> rng = np.random.default_rng(0)
        >>> states = rng.normal(size=(8, 6, 5, 3, 4))  # prompt, layer, token, recurrence, dim
        >>> states[:, 3:] *= 10  # two stages
        >>> prompt, layer, token = (i.ravel() for i in np.indices((8, 6, 5)))
        >>> orbits = Trajectories(states.reshape(240, 3, 4), labels={"prompt": prompt, "layer": layer, "token": token})
        >>> stage_clusters(orbits, quantities=["residual_norm"], n_clusters=2).sequences[0]
        array([1, 1, 1, 2, 2, 2])
    """
    if of not in OF:
        raise ValueError(f"of must be one of {', '.join(OF)}; got {of!r}. Choose one.")
    check_whole("n_splits", n_splits, 1, "a whole number of at least 1 (default 10)")
    check_whole("n_loops", n_loops, 2, "a whole number of at least 2 (default 16)")
    check_whole("n_permutations", n_permutations, 100, "a whole number of at least 100 (default 1000)")
    for k in (*candidates, *(() if n_clusters is None else (n_clusters,))):
        check_whole("n_clusters", k, 2, "a whole number of at least 2, as each of candidates")
    rng = np.random.default_rng(rng)
    points, outcomes, axes = _of_profile(source, list(quantities)) if of == "profile" else _of_states(source)
    n_prompts, _, n_layers, _ = points.shape
    whole = (outcomes == Outcome.FOUND).all((0, 2)) & np.isfinite(points).all((0, 2, 3))
    if n_prompts < 4 or n_layers < 2 or whole.sum() < 2:
        raise ValueError(f"stages are compared over at least 4 prompts, 2 layers and 2 recurrences that all prompts "
                         f"finish; got {n_prompts}, {n_layers} and {int(whole.sum())}. Record more.")
    kept = points[:, whole]
    if of == "profile":
        flat = kept.reshape(-1, kept.shape[-1])
        size = flat.std(0)
        kept = (kept - flat.mean(0)) / np.where(size > 1e-12 * np.abs(flat).max(0), size, 1)
    least = (n_prompts // 2) * kept.shape[1] * n_layers
    asked = sorted(set(candidates) | ({n_clusters} if n_clusters is not None else set()))
    tried = [k for k in asked if k < least]
    if not tried or (n_clusters is not None and n_clusters >= least):
        raise ValueError(f"half of the prompts give {least} points; k must be smaller, got {asked}. Choose fewer.")
    stability = _stability(kept, tried, n_splits, rng)
    how = "k given"
    if n_clusters is None:
        top = max(stability.values())
        n_clusters = max(k for k, value in stability.items() if value >= top - 1e-9)
        how = f"k most stable of {', '.join(map(str, tried))}"
    stages = _ordered(_k_means(kept.reshape(-1, kept.shape[-1]), n_clusters, rng).labels_.reshape(kept.shape[:-1]))
    by_loop = stages.transpose(1, 0, 2)  # (recurrence, prompt, layer)
    agreement = np.array([[adjusted_rand(a, b, n_clusters).mean() for b in by_loop] for a in by_loop])
    if len(by_loop) > n_loops:
        at = np.unique(np.geomspace(1, len(by_loop), n_loops).round().astype(np.int64)) - 1
        by_loop, how = by_loop[at], f"{how}; {len(at)} of {len(by_loop)} loops"
    own = _of_pairs(by_loop[None], n_clusters)[:, 0]  # (2, prompts)
    null, smallest, words = _permuted(by_loop, n_clusters, n_permutations, rng)
    value = own.mean(1)
    hits = (null >= value - 1e-12).sum(0)
    p = hits / len(null) if words.startswith("all") else (1 + hits) / (1 + len(null))
    counts = np.stack([(stages == k).sum(0) for k in range(n_clusters)])
    all_stages = np.full(outcomes.shape, np.nan)
    all_stages[:, whole] = stages + 1
    ends = outcomes.copy()
    out = ~whole & (outcomes == Outcome.FOUND).all((0, 2))
    ends[:, out] = Outcome.NOT_FOUND
    all_stages[ends != Outcome.FOUND] = np.nan
    partly = np.isnan(all_stages) & (ends == Outcome.FOUND)
    ends[partly] = Outcome.NOT_FOUND
    place = np.indices(outcomes.shape).reshape(3, -1)
    labels = {name: axes[name][at] for name, at in zip(("prompt", "recurrence", "layer"), place, strict=True)}
    assignments = Measurement("stage_clusters", {"stage": all_stages.ravel()}, ends.ravel(), labels=labels,
                              settings={"of": of, "n_clusters": n_clusters})
    by_prompt = Measurement("loop_agreement", {"agreement": own[0], "same_stage": own[1]},
                            [Outcome.FOUND] * n_prompts, labels={"prompt": axes["prompt"]},
                            settings={"of": of, "n_clusters": n_clusters})
    return StageClusters(n_clusters, assignments, 1 + counts.argmax(0), axes["recurrence"][whole], axes["layer"],
                         agreement, by_prompt, float(value[0]), float(value[1]), float(null[:, 0].mean()),
                         float(null[:, 1].mean()), float(p[0]), float(p[1]), smallest, stability, f"{how}; {words}")


def _k_means(points: np.ndarray, k: int, rng: np.random.Generator) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=10, random_state=int(rng.integers(2**31 - 1))).fit(points)


def _stability(points: np.ndarray, tried: Sequence[int], n_splits: int, rng: np.random.Generator) -> dict[int, float]:
    n = len(points)
    flat = points.reshape(-1, points.shape[-1])
    found: dict[int, list[float]] = {k: [] for k in tried}
    for _ in range(n_splits):
        order = rng.permutation(n)
        halves = [points[order[at]].reshape(-1, points.shape[-1]) for at in (slice(n // 2), slice(n // 2, n))]
        for k in tried:
            one, two = (_k_means(half, k, rng).predict(flat) for half in halves)
            found[k].append(float(adjusted_rand(one, two, k)))
    return {k: float(np.mean(values)) for k, values in found.items()}


def _ordered(stages: np.ndarray) -> np.ndarray:
    """Clusters numbered by the mean layer of their points; (prompts, recurrences, layers)."""
    k = int(stages.max()) + 1
    layer = np.broadcast_to(np.arange(stages.shape[-1]), stages.shape).ravel()
    counts = np.maximum(np.bincount(stages.ravel(), minlength=k), 1)
    mean = np.bincount(stages.ravel(), layer, minlength=k) / counts
    rank = np.empty(k, dtype=np.int64)
    rank[np.argsort(mean, kind="stable")] = np.arange(k)
    return rank[stages]


def _of_pairs(loops: np.ndarray, k: int) -> np.ndarray:
    """Agreement and share of equal stages, mean over pairs of loops: loops (m, n_loops, prompts, layers) -> (2, m,
    prompts).
    """
    pairs = list(itertools.combinations(range(loops.shape[1]), 2))
    total = np.zeros((2, loops.shape[0], loops.shape[2]))
    for a, b in pairs:
        one, two = loops[:, a], loops[:, b]
        total += np.stack([adjusted_rand(one, two, k), (one == two).mean(-1)])
    return total / len(pairs)


def _permuted(by_loop: np.ndarray, k: int, n_permutations: int,
              rng: np.random.Generator) -> tuple[np.ndarray, float, str]:
    """Agreement and share of equal stages when each loop's layers are permuted, (orders, 2); the smallest p."""
    n_loops, _, n_layers = by_loop.shape
    few = n_layers < 8 and n_loops < 8 and math.factorial(n_layers) ** (n_loops - 1) <= _MOST
    if few:  # the first loop may stay as it is
        listed = np.array(list(itertools.permutations(range(n_layers))))
        which = np.array(list(itertools.product(range(len(listed)), repeat=n_loops - 1)))
        orders = listed[np.insert(which, 0, 0, axis=1)]
    else:
        orders = rng.permuted(np.broadcast_to(np.arange(n_layers), (n_permutations, n_loops, n_layers)), axis=-1)
    block = max(1, 2**22 // (by_loop.size * k))
    loops = np.arange(n_loops)[None, :, None, None]
    prompts = np.arange(by_loop.shape[1])[None, None, :, None]
    null = np.concatenate([_of_pairs(by_loop[loops, prompts, orders[first:first + block, :, None]], k).mean(-1).T
                           for first in range(0, len(orders), block)])
    if few:
        return null, 1 / len(null), f"all {len(null)} orders"
    return null, 1 / (1 + len(null)), f"{len(null)} random orders"


def _of_profile(source: Any, quantities: list[str]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    profile = source if isinstance(source, Measurement) else stage_profile(source)
    found, axes = curves(profile, quantities, "profile")
    order = np.lexsort((profile.labels["depth"], profile.labels["prompt"]))
    outcomes = profile.outcomes[order].reshape(found.shape[0], *found.shape[2:])
    return found.transpose(0, 2, 3, 1), outcomes, axes


def _of_states(source: Any) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    if isinstance(source, Measurement):
        raise TypeError("of='states' clusters states; got a measurement. Give the recording.")
    runs = Runs(source)
    numbers = runs.by_prompt("recording")
    points, outcomes = [], []
    run = None
    for number in numbers.values():
        run = runs.load(number)
        with np.errstate(invalid="ignore", divide="ignore"):
            points.append((run.states / np.linalg.norm(run.states, axis=-1, keepdims=True)).mean(2))
        outcomes.append(run.outcomes)
        if points[-1].shape != points[0].shape:
            raise ValueError(f"prompts differ in recurrences, layers or width: {points[-1].shape} and "
                             f"{points[0].shape}. Record all prompts alike.")
    assert run is not None
    return np.stack(points), np.stack(outcomes), {"prompt": np.array(list(numbers)), "recurrence": run.recurrences,
                                                  "layer": run.layers}
