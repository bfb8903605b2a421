"""Make the model behind `limit_regime` again.

    python benchmarks/calibrate_limit_regime.py --out dynloop/regime_model.npz --batches 250
    python benchmarks/calibrate_limit_regime.py --tiny      # a few orbits, a few trees, nothing kept

Draws orbits of every family of synthetic/bank.py under random recording conditions, computes the numbers of their
distance matrices, fits three sets of boosted trees (seeds fixed), and writes them as plain arrays. Batches are kept in
--work, so that an interrupted run goes on. The seeds used here (below 1,000) are used by no test and no benchmark.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from dynloop.kernels.regime import NAMES
from dynloop.kernels.trees import probabilities, tree_sums
from dynloop.regime_model import CHAOS_NUMBERS, PERIOD_NUMBERS, orbit_numbers
from synthetic import bank

RECURRENT = ("orbit", "quasi-periodic", "chaotic")
LENGTHS = {128: 1.0, 32: 0.15, 48: 0.15, 64: 0.25, 96: 0.25, 160: 0.15, 192: 0.15, 256: 0.35}


def condition(rng):
    """How a batch is recorded."""
    dtype = str(rng.choice(["float32", "bfloat16"], p=[0.7, 0.3]))
    return {"noise": float(rng.choice([0, 0, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.2])), "dtype": dtype,
            "offset": float(rng.choice([0, 1, 3, 10, 20] if dtype == "float32" else [0, 1, 3, 10])),
            "dim": int(rng.choice([256, 64, 16, 4], p=[0.7, 0.1, 0.1, 0.1])),
            "massive": float(rng.choice([1, 1, 1, 10])), "uneven": float(rng.choice([0, 0, 0, 1, 2]))}


def rows_of(family, n_steps, n_batches, batch, seed, work):
    file = work / f"{family}-{n_steps}-{n_batches}x{batch}-{seed}.npy"
    if not file.exists():
        rng = np.random.default_rng([seed, n_steps, *family.encode()])
        x = np.concatenate([orbit_numbers(bank.record(family, batch, n_steps, rng, **condition(rng))[0])
                            for _ in range(n_batches)])
        np.save(file, x.astype(np.float32))
    return np.load(file).astype(np.float64)


def fit(x, y, columns, trees):
    model = HistGradientBoostingClassifier(max_iter=trees, learning_rate=0.1, max_leaf_nodes=15, l2_regularization=1.0,
                                           min_samples_leaf=20, early_stopping=False, random_state=0)
    return model.fit(x[:, columns], y)


def arrays(stage, model, columns):
    """The trees of a fitted model as flat arrays."""
    parts = {"feature": [], "threshold": [], "left": [], "right": [], "value": [], "roots": []}
    base = 0
    for trees in model._predictors:
        for tree in trees:
            node = tree.nodes
            leaf = node["is_leaf"].astype(bool)
            parts["roots"].append(base)
            parts["feature"].append(np.where(leaf, -1, node["feature_idx"]).astype(np.int16))
            parts["threshold"].append(np.where(leaf, 0, node["num_threshold"]).astype(np.float32))
            for side in ("left", "right"):
                parts[side].append(np.where(leaf, 0, node[side].astype(np.int64) + base).astype(np.int32))
            parts["value"].append(np.where(leaf, node["value"], 0).astype(np.float32))
            base += len(node)
    flat = {k: np.array(v, np.int32) if k == "roots" else np.concatenate(v) for k, v in parts.items()}
    flat["columns"] = np.array(columns, np.int16)
    flat["base"] = model._baseline_prediction.ravel().astype(np.float64)
    return {f"{stage}_{k}": v for k, v in flat.items()}


def check(stage, model, columns, stored, x):
    """The flat arrays say what the fitted model says."""
    names = ("columns", "feature", "threshold", "left", "right", "value", "roots")
    part = [stored[f"{stage}_{what}"] for what in names]
    base = stored[f"{stage}_base"]
    sums = np.repeat(base[None], len(x), axis=0)
    tree_sums(x, *part, len(base), sums)
    np.testing.assert_allclose(probabilities(sums), model.predict_proba(x[:, columns]), atol=1e-5)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="file of the model")
    parser.add_argument("--tiny", action="store_true", help="try everything on a few orbits, keep nothing")
    parser.add_argument("--work", help="folder of finished batches; by default a temporary one")
    parser.add_argument("--batches", type=int, default=80, help="of each family at 128 steps")
    parser.add_argument("--batch", type=int, default=12, help="orbits a batch; a batch shares its recording condition")
    parser.add_argument("--trees", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only-draw", metavar="I/N", help="draw every N-th family from the I-th on, and stop")
    options = parser.parse_args()
    lengths = LENGTHS
    with tempfile.TemporaryDirectory() as scratch:
        if options.tiny:
            options.batches, options.batch, options.trees, lengths = 1, 6, 3, {32: 1.0}
            options.out = f"{scratch}/model.npz"
        elif not options.out:
            parser.error("--out says where the model goes")
        make(options, lengths, Path(options.work or scratch))


def make(options, lengths, work):
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    first, every = map(int, (options.only_draw or "0/1").split("/"))
    x, y = [], []
    for family in tqdm(list(bank.FAMILIES)[first::every], disable=None):
        for n_steps, share in lengths.items():
            own = rows_of(family, n_steps, max(1, int(share * options.batches)), options.batch, options.seed, work)
            x.append(own)
            y += [bank.FAMILIES[family][0]] * len(own)
    if options.only_draw:
        return
    x, y = np.concatenate(x).astype(np.float32).astype(np.float64), np.array(y)
    recurrent, aperiodic = np.isin(y, RECURRENT), np.isin(y, ("quasi-periodic", "chaotic"))
    everything = list(range(len(NAMES)))
    of_period, of_chaos = ([NAMES.index(n) for n in names] for names in (PERIOD_NUMBERS, CHAOS_NUMBERS))
    stages = (("kind", everything, slice(None), np.where(recurrent, "recurrent", y), options.trees),
              ("period", of_period, recurrent, np.where(y == "orbit", "yes", "no"), options.trees),
              ("chaos", of_chaos, aperiodic, y, options.trees))
    stored = {}
    for stage, columns, chosen, target, trees in stages:
        model = fit(x[chosen], target[chosen], columns, trees)
        print(stage, dict(zip(*np.unique(target[chosen], return_counts=True), strict=True)),
              "right on its own rows", round(model.score(x[chosen][:, columns], target[chosen]), 5))
        stored.update(arrays(stage, model, columns))
        check(stage, model, columns, stored, x[chosen][:500])
    stored["made_by"] = np.array(json.dumps({k: v for k, v in vars(options).items() if k not in ("out", "work", "tiny")}
                                            | {"rows": len(x), "families": len(bank.FAMILIES)}))
    np.savez_compressed(options.out, **stored)
    print(f"{options.out}: {Path(options.out).stat().st_size / 1e3:.0f} kB from {len(x):,} orbits")


if __name__ == "__main__":
    main()
