"""How often does `compare` see a difference that is not there, and how often one that is?

    python benchmarks/comparisons.py --save benchmarks/results/comparisons.json     # about 8 minutes on one free core
    python benchmarks/comparisons.py --tiny

Two conditions of 5 seeds x 64 prompts x 128 tokens each; the same prompts under every seed. Tokens follow an AR(1)
process (coefficient .8, variance 1); prompts, seeds and their interaction add variance as each design says. Every
number is a rejection rate at the 5 % level through the public function, over as many studies as `--studies` says, with
its exact 95 % interval; beside it, what a test that takes tokens as independent does with the same data. The table
goes to comparisons.md beside the JSON file.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import side_by_side
from scipy import signal, stats

from dynloop.statistics.compare import compare
from dynloop.statistics.share import clopper_pearson

SEEDS, PROMPTS, TOKENS, AR = 5, 64, 128, 0.8
LEVEL = 0.05


def design(seed_var=0.05, prompt_var=0.1, interaction_var=0.0, together=0.0, skewed=False, prompt_by_condition=0.0,
           share=None, effect=2.0):
    """What a study is drawn from; `together` is the correlation of seeds that share their initialisation."""
    return {"seed_var": seed_var, "prompt_var": prompt_var, "interaction_var": interaction_var, "together": together,
            "skewed": skewed, "prompt_by_condition": prompt_by_condition, "share": share, "effect": effect}


# name: (design, call of compare)
DESIGNS = {
    "seeds": (design(), {"resample": "seed", "paired": "prompt"}),
    "seeds, nested prompts": (design(), {"resample": "seed > prompt"}),
    "seeds, little between them": (design(seed_var=0.01), {"resample": "seed", "paired": "prompt"}),
    "seeds, exact permutation": (design(), {"resample": "seed", "paired": "prompt", "test": "permutation"}),
    "seeds, Webb bootstrap": (design(), {"resample": "seed", "paired": "prompt", "test": "webb", "n_resamples": 999}),
    "seeds, ratio": (design(), {"resample": "seed", "paired": "prompt", "difference": "ratio"}),
    "paired seeds (r = .7)": (design(together=0.7), {"resample": "seed", "paired": ("seed", "prompt")}),
    "paired seeds (r = .7), signs flipped": (design(together=0.7), {"resample": "seed", "paired": ("seed", "prompt"),
                                                                    "test": "permutation"}),
    "skewed seeds": (design(skewed=True), {"resample": "seed", "paired": "prompt"}),
    "new seeds and new prompts": (design(seed_var=0.01, prompt_var=0.2, interaction_var=0.02, prompt_by_condition=0.02),
                                  {"resample": "seed × prompt", "paired": "prompt"}),
    "these models, new prompts": (design(seed_var=0.0, prompt_by_condition=0.05, effect=0.15),
                                  {"resample": "prompt", "paired": "prompt"}),
    "rare share (2 %), seeds": (design(share=0.02, effect=0.8), {"resample": "seed", "paired": "prompt"}),
    "rare share (0.2 %), seeds": (design(share=0.002, effect=1.5), {"resample": "seed", "paired": "prompt"}),
    "rare share (0.2 %), t": (design(share=0.002, effect=1.5), {"resample": "seed", "paired": "prompt", "test": "t"}),
    "rare share (0.2 %), these models": (design(share=0.002, effect=1.5, seed_var=0.0, prompt_by_condition=0.5),
                                         {"resample": "prompt", "paired": "prompt"}),
}
INDEX = [np.ascontiguousarray(i.ravel()) for i in np.indices((SEEDS, PROMPTS, TOKENS))]


def effects(rng, d):
    """What seeds, prompts and their interactions add, for each condition, (2, seeds, prompts)."""
    normal = rng.normal if not d["skewed"] else lambda size: rng.exponential(size=size) - 1
    own, common = normal(size=(2, SEEDS, 1)), normal(size=(1, SEEDS, 1))
    r = d["together"]
    return (np.sqrt(d["seed_var"]) * (np.sqrt(r) * common + np.sqrt(1 - r) * own)
            + np.sqrt(d["prompt_var"]) * rng.normal(size=(1, 1, PROMPTS))
            + np.sqrt(d["interaction_var"]) * rng.normal(size=(2, SEEDS, PROMPTS))
            + np.sqrt(d["prompt_by_condition"]) * rng.normal(size=(2, 1, PROMPTS)))


def study(rng, d, shift):
    """Token values of two conditions, (2, n); the second is higher by `shift`."""
    cells = effects(rng, d)
    if d["share"] is None:
        noise = rng.normal(size=(2, SEEDS, PROMPTS, TOKENS))
        noise[..., 1:] *= np.sqrt(1 - AR**2)
        x = signal.lfilter([1], [1, -AR], noise) + cells[..., None]
        x[1] += shift
        return (10 + x).reshape(2, -1)  # far from 0, so that ratios mean something
    # runs of three tokens on average, started at a rate that seeds and prompts multiply; `shift` is on the log scale
    spread = np.sqrt(d["seed_var"] + d["prompt_var"] + d["interaction_var"] + d["prompt_by_condition"])
    rate = d["share"] * np.exp(2 * cells - 2 * spread**2)
    rate[1] *= np.exp(shift)
    started = rng.random((2, SEEDS, PROMPTS, TOKENS)) < (rate / 3)[..., None]
    x = np.zeros(started.shape)
    at = np.nonzero(started)
    length = rng.geometric(1 / 3, len(at[0]))
    for back in range(int(length.max(initial=1))):
        on = (length > back) & (at[3] + back < TOKENS)
        x[at[0][on], at[1][on], at[2][on], at[3][on] + back] = 1
    return x.reshape(2, -1)


def naive(x):
    """P-value of a test that takes tokens as independent."""
    error = np.sqrt(x.var(axis=1).sum() / x.shape[1])
    return 2 * stats.norm.sf(abs(x[1].mean() - x[0].mean()) / error) if error > 0 else 1.0


def rejected(rng, d, how, shift, n_studies):
    """Of how many studies `compare` and the naive test call the conditions different."""
    ours = theirs = 0
    for _ in range(n_studies):
        x = study(rng, d, shift)
        frames = {name: pd.DataFrame({"value": values, "seed": INDEX[0], "prompt": INDEX[1]})
                  for name, values in zip(("a", "b"), x, strict=True)}
        of = {} if d["share"] is None else {"statistic": "share", "of": 1.0}
        p = compare(frames, variable="value", rng=rng, **of, **how)[0].p_value
        ours += p <= LEVEL
        theirs += naive(x) <= LEVEL
    return int(ours), int(theirs)


def unit_of_effect(d):
    """One step of the effect: an SD between seeds, or 1 where seeds do not differ or shares are taken."""
    return np.sqrt(d["seed_var"]) if d["share"] is None and d["seed_var"] else 1.0


def cell(count, n):
    low, high = clopper_pearson(count, n, 0.95)
    return f"{100 * count / n:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def row(name, figure):
    """A line of the table: what a design's counts say."""
    d = figure["design"]
    step = "log share" if d["share"] else "seed SDs" if d["seed_var"] else "token SDs"
    n = figure["studies"]
    return [name, cell(figure["false_alarms"], n), cell(figure["naive_false_alarms"], n),
            f"{d['effect']:g} {step}", cell(figure["seen"], figure["power_studies"])]


def page(figures):
    """The table of all designs, in Markdown."""
    text = side_by_side.table(["design", "false alarms, % [95 %]", "of a test of tokens, %", "a difference of",
                               "is seen, %"], [row(name, figure) for name, figure in figures.items()])
    least = min(figure["studies"] for figure in figures.values())
    return (f"False alarms and power of `compare` at the 5 % level: {least} studies or more of {SEEDS} seeds x "
            f"{PROMPTS} prompts x {TOKENS} tokens\nin each of two conditions (`python benchmarks/comparisons.py`)."
            f"\n\n{text}\n")


def main():
    options = side_by_side.arguments(__doc__, studies=(2000, 20, "studies of each null"),
                                     power_studies=(400, 10, "studies of each difference"))
    side_by_side.one_thread()
    figures = {}
    for i, (name, (d, how)) in enumerate(DESIGNS.items()):
        rng = np.random.default_rng([20260222, i])
        alarms, naive_alarms = rejected(rng, d, how, 0.0, options.studies)
        shift = d["effect"] * unit_of_effect(d)
        seen, _ = rejected(rng, d, how, shift, options.power_studies)
        figures[name] = {"design": d, "call": {k: list(v) if isinstance(v, tuple) else v for k, v in how.items()},
                         "studies": options.studies, "false_alarms": alarms, "naive_false_alarms": naive_alarms,
                         "power_studies": options.power_studies, "seen": seen, "shift": float(shift)}
        print(row(name, figures[name]), flush=True)
        assert naive_alarms > alarms or options.tiny, name
        side_by_side.save({"machine": side_by_side.machine(), "designs": figures}, options.save)
    print(page(figures))
    if options.save:
        Path(options.save).with_suffix(".md").write_text(page(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
