"""How often do the intervals hold the truth? Studies of 5 seeds x 64 prompts x 128 tokens, simulated.

    python benchmarks/interval_coverage.py --save benchmarks/results/coverage.json

Every interval is made by `dynloop.estimate` itself. Prompts hold equally many tokens, so that the mean of their means
is the mean of all tokens: means are estimated from one row a prompt and seed, shares from all 40,960 rows. Beside them
stands the naive interval, which takes tokens as independent (that of the token bootstrap, in the limit of many
resamples). Nominal coverage is 95 %; with 2000 studies it is known within 1 % (two standard errors).

Token variance is 1. A0 independent tokens; A1 tokens follow each other (AR(1), 0.8); A2 and prompts differ (variance
0.10); A3 and seeds (0.01); A4 and seeds (0.05); A5 as A4, but seeds differ by an exponential variable; A6 as A4, but
prompts do. X1 the same prompts under every seed (seeds 0.01, prompts 0.20, both together 0.02); X2 as X1 with
exponential seeds of variance 0.05. R: events in a share p of the tokens, in runs of three on average (R0: single ones);
rates differ between seeds and prompts by gamma variables of the given coefficient of variation. R0 p = 2e-4; R1 and
runs; R2 and seeds 0.3, prompts 1; R3 seeds 0.5, prompts 2; R4 as R3 with 5 x 512 x 512 tokens; R5 p = 2e-5 with runs;
R6 p = 0.05, seeds 0.3, prompts 1; R7 as R4 with seeds 1.
"""

import dataclasses
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import side_by_side
from scipy import signal, stats

from dynloop import Measurement, Outcome, estimate

SEEDS, PROMPTS, TOKENS = 5, 64, 128
GOAL, RARE_GOAL = (0.93, 0.97), 0.94


@dataclasses.dataclass(frozen=True)
class Means:
    """Variances of a continuous outcome."""

    tokens_follow: bool = True
    prompt: float = 0.0
    seed: float = 0.0
    both: float = 0.0
    crossed: bool = False
    skewed_seeds: bool = False
    skewed_prompts: bool = False


@dataclasses.dataclass(frozen=True)
class Shares:
    """A share of events, their runs, and how rates differ."""

    p: float
    run: float = 3.0
    seed: float = 0.0
    prompt: float = 0.0
    prompts: int = PROMPTS
    tokens: int = TOKENS


MEANS = {"A0": Means(tokens_follow=False), "A1": Means(), "A2": Means(prompt=0.10), "A3": Means(prompt=0.10, seed=0.01),
         "A4": Means(prompt=0.10, seed=0.05), "A5": Means(prompt=0.10, seed=0.05, skewed_seeds=True),
         "A6": Means(prompt=0.10, seed=0.05, skewed_prompts=True),
         "X1": Means(prompt=0.20, seed=0.01, both=0.02, crossed=True),
         "X2": Means(prompt=0.20, seed=0.05, both=0.02, crossed=True, skewed_seeds=True)}
SHARES = {"R0": Shares(2e-4, run=1.0), "R1": Shares(2e-4), "R2": Shares(2e-4, seed=0.3, prompt=1.0),
          "R3": Shares(2e-4, seed=0.5, prompt=2.0), "R4": Shares(2e-4, seed=0.5, prompt=2.0, prompts=512, tokens=512),
          "R5": Shares(2e-5), "R6": Shares(0.05, seed=0.3, prompt=1.0),
          "R7": Shares(2e-4, seed=1.0, prompt=2.0, prompts=512, tokens=512)}
# what is asked of a design, and with which method besides the automatic one; the truth by its name
NESTED = [("seed > prompt", None, "auto"), ("seed > prompt", None, "t"), ("seed > prompt", None, "hierarchical t"),
          ("seed > prompt", None, "percentile"), ("seed", None, "BCa"), ("seed", None, "studentised"),
          ("prompt", None, "auto"), ("prompt", None, "BCa"), ("seed > prompt", "these models", "auto")]
CROSSED = [("seed × prompt", None, "auto"), ("seed × prompt", None, "t"), ("seed × prompt", None, "two-way t"),
           ("seed × prompt", None, "hierarchical t"), ("seed × prompt", None, "percentile"),
           ("seed × prompt", "new seeds", "auto"), ("prompt", None, "auto")]
RARE = [("seed > prompt", None, "auto"), ("seed > prompt", None, "Wilson"), ("seed > prompt", None, "t"),
        ("prompt", None, "auto"), ("seed > prompt", "these models", "auto")]


def standard(rng, shape, skewed):
    """Mean 0, variance 1."""
    return rng.exponential(size=shape) - 1 if skewed else rng.normal(size=shape)


def means(design, n, rng):
    """Cell means (n, seeds, prompts), naive errors (n,), and the truth of each target (n,)."""
    seed = math.sqrt(design.seed) * standard(rng, (n, SEEDS, 1), design.skewed_seeds)
    prompt = math.sqrt(design.prompt) * standard(rng, (n, 1 if design.crossed else SEEDS, PROMPTS),
                                                 design.skewed_prompts)
    cell = math.sqrt(design.both) * rng.normal(size=(n, SEEDS, PROMPTS))
    effect = seed + prompt + cell
    noise = rng.normal(size=(n, SEEDS, PROMPTS, TOKENS))
    if design.tokens_follow:
        noise[..., 1:] *= 0.6  # sqrt(1 - 0.8^2)
        noise = signal.lfilter([1.0], [1.0, -0.8], noise, axis=-1)
    cells = effect + noise.mean(-1)
    size = SEEDS * PROMPTS * TOKENS
    spread = ((noise + effect[..., None] - cells.mean((1, 2))[:, None, None, None]) ** 2).sum((1, 2, 3)) / size
    truth = {"new seeds": prompt.mean((1, 2)) if design.crossed else np.zeros(n), "new seeds and prompts": np.zeros(n),
             "these models": seed.mean((1, 2))}
    return cells, np.sqrt(spread / size), truth


def shares(design, n, rng):
    """Events (n, seeds * prompts * tokens) bool, and the truth of each target (n,)."""
    def gamma(variation, shape):
        return rng.gamma(variation**-2, variation**2, shape) if variation else np.ones(shape)

    seed = gamma(design.seed, (n, SEEDS, 1))
    rate = np.minimum(design.p * seed * gamma(design.prompt, (n, SEEDS, design.prompts)), 0.9).astype(np.float32)
    events = np.empty((design.tokens, *rate.shape), dtype=bool)
    on = rng.random(rate.shape, dtype=np.float32) < rate
    events[0] = on
    stay = np.float32(1 - 1 / design.run)
    enter = rate if design.run == 1 else np.minimum(rate / (1 - rate) / np.float32(design.run), 1)
    for t in range(1, design.tokens):  # a chain whose share of events is the rate, exactly
        on = rng.random(rate.shape, dtype=np.float32) < (np.where(on, stay, enter) if design.run > 1 else enter)
        events[t] = on
    truth = {"new seeds": np.full(n, design.p), "these models": design.p * seed.mean((1, 2))}
    return np.moveaxis(events, 0, -1).reshape(n, -1), truth


def hits(found, low, high, truth):
    """Add up: covered, wholly below the truth, wholly above, width."""
    found += (low <= truth <= high, high < truth, low > truth, high - low)


def labels(prompts, tokens):
    rows = np.arange(SEEDS * prompts * tokens)
    return {"seed": rows // (prompts * tokens), "prompt": rows // tokens % prompts, "token": rows % tokens}


def cover_means(design, n_studies, rng, n_resamples, batch=50):
    """(asked, target): counts of `hits`, of every interval and of the naive one."""
    ask = CROSSED if design.crossed else NESTED
    found = {key: np.zeros(4) for key in [*ask, "naive"]}
    own = labels(PROMPTS, 1)
    targets = {}
    for first in range(0, n_studies, batch):
        cells, error, truth = means(design, min(batch, n_studies - first), rng)
        for i, values in enumerate(cells.reshape(len(cells), -1)):
            m = Measurement("rate", {"rate": values}, [Outcome.FOUND] * values.size, labels=own)
            for key in ask:
                e = estimate(m, statistic="mean", resample=key[0], target=key[1], method=key[2],
                             n_resamples=n_resamples)
                targets[key] = e.target
                hits(found[key], e.low, e.high, truth[e.target][i])
            half = stats.norm.ppf(0.975) * error[i]
            hits(found["naive"], values.mean() - half, values.mean() + half,
                 truth["new seeds and prompts" if design.crossed else "new seeds"][i])
    return found, targets


def cover_shares(design, n_studies, rng, batch=50):
    """The same for shares."""
    found = {key: np.zeros(4) for key in [*RARE, "naive"]}
    frame = pd.DataFrame(labels(design.prompts, design.tokens))
    batch = max(1, batch * PROMPTS * TOKENS // (design.prompts * design.tokens))
    targets = {}
    for first in range(0, n_studies, batch):
        events, truth = shares(design, min(batch, n_studies - first), rng)
        for i, happened in enumerate(events):
            m = frame.assign(event=happened)
            for key in RARE:
                e = estimate(m, variable="event", statistic="share", of=True, resample=key[0], target=key[1],
                             method=key[2], n_resamples=1000)
                targets[key] = e.target
                hits(found[key], e.low, e.high, truth[e.target][i])
            low, high = stats.binomtest(int(happened.sum()), len(happened)).proportion_ci(0.95, "wilson")
            hits(found["naive"], low, high, design.p)
    return found, targets


def main():
    options = side_by_side.arguments(__doc__, studies=(2000, 6, "studies of every design"),
                                     resamples=(2000, 200, "bootstrap resamples of an interval"),
                                     only=("", "", "designs, such as A4,R3; a saved file keeps its others"))
    warnings.simplefilter("ignore", UserWarning)  # few units are what is measured here
    wanted = [name for name in options.only.split(",") if name]
    figures = []
    for number, (name, design) in enumerate({**MEANS, **SHARES}.items()):
        if wanted and name not in wanted:
            continue
        rng = np.random.default_rng([5, number])
        rare = isinstance(design, Shares)
        n = options.studies
        if rare and design.prompts > PROMPTS:
            n = max(2, n // 8)  # 1.3 million tokens a study
        found, targets = cover_shares(design, n, rng) if rare else cover_means(design, n, rng, options.resamples)
        for key, counts in found.items():
            covered, below, above, width = (counts / n).tolist()
            resample, _, method = ("token", None, "naive") if key == "naive" else key
            figures.append({"design": name, "resample": resample, "target": targets.get(key, ""), "method": method,
                            "coverage": covered, "missed_high": below, "missed_low": above, "width": width,
                            "studies": n, "recommended": method == "auto"})
            print(name, resample, targets.get(key, ""), method, f"{covered:.4f} ({width:.3g})", flush=True)
    bad = [f for f in figures if f["recommended"] and f["studies"] >= 500 and
           (f["coverage"] < RARE_GOAL if f["design"][0] == "R" else not GOAL[0] <= f["coverage"] <= GOAL[1])]
    for f in bad:
        print("outside the goal:", f["design"], f["resample"], f["target"], f["coverage"])
    if options.save and wanted and Path(options.save).exists():
        kept = json.loads(Path(options.save).read_text(encoding="utf-8"))["figures"]
        figures = [f for f in kept if f["design"] not in wanted] + figures
    side_by_side.save({"machine": side_by_side.machine(), "goal": {"means": GOAL, "shares": RARE_GOAL},
                       "studies": options.studies, "resamples": options.resamples, "figures": figures}, options.save)
    if options.save:
        Path(options.save).with_suffix(".md").write_text(page(figures), encoding="utf-8")


def page(figures):
    """The figures as a page of tables, one design a column."""
    parts = ["# Coverage of 95 % intervals", "",
             "Made by `benchmarks/interval_coverage.py`, whose first lines say what the designs are. Coverage (mean "
             "width); the intervals that `estimate` takes by itself are marked with *. Studies: "
             + ", ".join(f"{name} {n}" for name, n in {f["design"]: f["studies"] for f in figures}.items()) + ".", ""]
    for kind in "AXR":
        names = sorted({f["design"] for f in figures if f["design"][0] == kind})
        asked = list(dict.fromkeys((f["resample"], f["target"], f["method"]) for f in figures if f["design"] in names))
        cells = {(f["design"], f["resample"], f["target"], f["method"]): f"{f['coverage']:.3f} ({f['width']:.2g})"
                 for f in figures}
        rows = [[f"{key[0]}{', for ' + key[1] if key[1] else ''}", key[2] + "*" * (key[2] == "auto"),
                 *(cells.get((name, *key)) for name in names)] for key in asked]
        if rows:
            parts += [side_by_side.table(["resampled", "method", *names], rows), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
