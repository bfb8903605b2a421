"""Power and detectable effects: published figures, statsmodels, simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from dynloop import Measurement, Outcome
from dynloop.statistics.power import VarianceComponents, detectable_effect, power, power_table


@pytest.mark.parametrize(("seeds", "expected"), [(3, 3.07), (5, 2.02), (6, 1.80), (8, 1.51), (10, 1.32), (20, 0.91)])
def test_what_seeds_can_see_in_sds_between_them(seeds, expected):
    found = detectable_effect(seeds=seeds, components=1.0)
    assert found == pytest.approx(expected, abs=0.005)
    assert TTestIndPower().power(found, seeds, 0.05) == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize(("seeds", "expected"), [(5, 1.68), (10, 1.00)])
def test_what_paired_seeds_can_see_in_sds_of_their_differences(seeds, expected):
    found = detectable_effect(seeds=seeds, components=math.sqrt(0.5), paired=True)
    assert found == pytest.approx(expected, abs=0.005)
    assert TTestPower().power(found, seeds, 0.05) == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize(("seeds", "margin", "expected"), [
    (5, 1, 0.07), (5, 1.5, 0.42), (5, 2, 0.78), (5, 3, 0.99), (10, 1, 0.40), (10, 1.5, 0.88), (10, 2, 0.99),
    (20, 1, 0.85)])
def test_the_chance_to_show_equivalence_is_the_measured_one(seeds, margin, expected):
    assert power(0, seeds=seeds, components=1.0, margin=margin) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize("effect", [0.0, 0.7])
def test_the_chance_to_show_equivalence_is_that_of_a_simulation(rng, effect):
    a, b = rng.normal(size=(2, 40_000, 5))
    gap, error = b.mean(1) + effect - a.mean(1), np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 5)
    t = stats.t.ppf(0.95, 8)
    seen = int(((gap - 2 < -t * error) & (gap + 2 > t * error)).sum())
    assert stats.binomtest(seen, 40_000, power(effect, seeds=5, components=1.0, margin=2.0)).pvalue > 0.01


def test_pairs_that_are_alike_and_more_prompts_help_as_far_as_they_go():
    parts = VarianceComponents(seed=1.0, cell=2.0)
    assert parts.of_seed_mean(16) == pytest.approx(math.hypot(1, 0.5))
    at = [detectable_effect(seeds=5, components=parts, prompts=m) for m in (1, 16, 10**6, None)]
    assert at == sorted(at, reverse=True)
    assert at[-1] == pytest.approx(detectable_effect(seeds=5, components=1.0))
    assert detectable_effect(seeds=5, components=1.0, paired=True, correlation=0.75) == pytest.approx(
        detectable_effect(seeds=5, components=0.5, paired=True))
    assert power(0.0, seeds=5, components=1.0) == pytest.approx(0.05)


def pilot(rng, seed, prompt, cell, shape=(400, 60), tokens=3):
    s, p, _ = (v.ravel() for v in np.indices((*shape, tokens)))
    value = (seed * rng.normal(size=shape[0])[s] + prompt * rng.normal(size=shape[1])[p]
             + cell * rng.normal(size=shape)[s, p])
    return Measurement("rate", {"rate": value}, [Outcome.FOUND] * len(s), units={"rate": "per recurrence"},
                       labels={"seed": s, "prompt": p})


def test_components_of_a_pilot_are_those_that_made_it(rng):
    found = VarianceComponents.of(pilot(rng, 1.0, 0.5, 2.0), resample="seed × prompt")
    assert (found.seed, found.prompt, found.cell) == pytest.approx((1.0, 0.5, 2.0), rel=0.15)
    assert found.unit == "per recurrence"
    nested = VarianceComponents.of(pilot(rng, 1.0, 0.0, 2.0).to_frame(), resample="seed > prompt", variable="rate")
    assert (nested.seed, nested.prompt, nested.cell) == pytest.approx((1.0, 0.0, 2.0), rel=0.1)


def test_a_component_that_is_not_there_is_nought_and_not_negative(rng):
    frame = pd.DataFrame({"v": np.tile([0.0, 1, 2, 3], 4), "seed": np.repeat(range(4), 4), "prompt": [*range(4)] * 4})
    frame["v"] += rng.normal(size=16) * 1e-3
    frame["v"] -= frame.groupby("seed")["v"].transform("mean")
    assert VarianceComponents.of(frame, resample="seed > prompt", variable="v").seed == 0
    assert VarianceComponents.of(frame, resample="seed × prompt", variable="v").seed == 0


def test_a_table_of_plans_holds_what_each_could_see():
    table = power_table(VarianceComponents(1.0, cell=2.0), seeds=(5, 10), prompts=(64, 1024), margin=2.0)
    assert list(table.columns) == ["seeds", "prompts", "standard_error", "detectable_effect", "equivalence_power"]
    assert table["detectable_effect"][3] == detectable_effect(seeds=10, prompts=1024,
                                                              components=VarianceComponents(1.0, cell=2.0))
    assert "equivalence_power" not in power_table(1.0)


@pytest.mark.parametrize(("ask", "words"), [
    (lambda: power(math.inf, seeds=5, components=1.0), "effect must be a finite number"),
    (lambda: power(1, seeds=1, components=1.0), "seeds must be a whole number of at least 2"),
    (lambda: power(1, seeds=5, components=0), "components must be VarianceComponents, or one positive"),
    (lambda: power(1, seeds=5, components=Measurement("r", {"r": np.zeros(1)}, [Outcome.FOUND])),
     "VarianceComponents.of"),
    (lambda: power(1, seeds=5, components=1.0, prompts=0), "prompts must be a whole number"),
    (lambda: power(1, seeds=5, components=1.0, paired=1), "paired must be True or False"),
    (lambda: power(1, seeds=5, components=1.0, paired=True, correlation=1), "correlation must be a number from -1"),
    (lambda: power(1, seeds=5, components=1.0, correlation=0.5), "correlation goes with paired=True"),
    (lambda: power(1, seeds=5, components=1.0, confidence_level=0.2), "confidence_level must be"),
    (lambda: power(1, seeds=5, components=1.0, margin=0), "margin must be a positive number"),
    (lambda: power(1, seeds=5, components=VarianceComponents(0.0, cell=1.0)), "leave no variance"),
    (lambda: detectable_effect(seeds=5, components=1.0, power=1), "power must be a number between 0 and 1"),
    (lambda: detectable_effect(seeds=5, components=1.0, power=0.04), "power must exceed the level"),
    (lambda: power_table(1.0, seeds=()), "at least one number"),
    (lambda: VarianceComponents(0.0), "nothing varies"),
    (lambda: VarianceComponents(-1.0), "seed must be a standard deviation"),
    (lambda: VarianceComponents.of(pd.DataFrame(), resample="seed"), "components need two levels"),
    (lambda: VarianceComponents.of(pd.DataFrame({"v": [1.0, 2], "s": [0, 1], "p": [0, 0]}), resample="s × p",
                                   variable="v"), "at least 2 ss and 2 ps; got 2 and 1"),
    (lambda: VarianceComponents.of(pd.DataFrame({"v": [1.0, 2], "s": [0, 1], "p": [0, 0]}), resample="s > p",
                                   variable="v"), "each with 2 ps; got 2 with 1"),
])
def test_plans_that_cannot_be_are_refused(ask, words):
    with pytest.raises(ValueError, match=words):
        ask()
