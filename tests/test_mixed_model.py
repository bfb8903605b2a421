"""The mixed model beside the t test that it has to equal, and its notes."""

import numpy as np
import pandas as pd
import pytest

from dynloop.statistics.compare import compare
from dynloop.statistics.mixed_model import mixed_model

SEED, PROMPT = (v.ravel() for v in np.indices((5, 8)))


def run(rng, shift=0.0, *, between=1.0, prompts=0.0):
    value = shift + prompts + between * rng.normal(size=5)[SEED] + 0.3 * rng.normal(size=40)
    return pd.DataFrame({"value": value, "seed": SEED, "prompt": PROMPT})


def test_of_balanced_seeds_it_is_the_pooled_t_test_of_their_means(rng):
    two = {"a": run(rng), "b": run(rng, 1.5)}
    fit = mixed_model(two, resample="seed > prompt", variable="value")
    one = compare(two, resample="seed", variable="value")[0]
    standard_error = (one.high - one.low) / 2
    assert fit.value == pytest.approx(one.value, rel=1e-6)
    assert fit.degrees == 8
    assert 0.7 * standard_error < (fit.high - fit.low) / 2 <= standard_error * 1.001  # Welch's t has 8 or fewer
    assert fit.low < fit.z_low < fit.z_high < fit.high
    assert fit.components["seed"] == pytest.approx(1.0, rel=0.7)
    assert fit.components["residual"] == pytest.approx(0.3, rel=0.3)
    assert any("covers 84 % for 95 % with 5 seeds" in note for note in fit.notes)
    assert "mixed model (REML), t with 8 degrees of freedom" in str(fit)
    assert fit.to_dict()["notes"] == list(fit.notes)


def test_crossed_prompts_are_an_effect_of_their_own(rng):
    prompts = 5 * rng.normal(size=8)[PROMPT]
    two = {"a": run(rng, prompts=prompts), "b": run(rng, 1.5, prompts=prompts)}
    fit = mixed_model(two, resample="seed × prompt", variable="value", baseline="b")
    assert (fit.condition, fit.baseline) == ("a", "b")
    assert fit.components["prompt"] == pytest.approx(5, rel=0.6)
    assert fit.n["a"] == {"seed": 5, "prompt": 8, "orbit": 40}


def test_paired_seeds_have_n_minus_one_degrees_of_freedom(rng):
    common = 3 * rng.normal(size=5)[SEED]
    two = {n: f.assign(value=f["value"] + common) for n, f in (("a", run(rng, between=0.3)),
                                                               ("b", run(rng, 1.5, between=0.3)))}
    fit = mixed_model(two, resample="seed > prompt", variable="value", paired="seed")
    one = compare(two, resample="seed", variable="value", paired="seed")[0]
    assert fit.degrees == 4
    assert (fit.low, fit.high) == pytest.approx((one.low, one.high), rel=0.02)


def test_warnings_of_the_fit_become_notes(rng):
    two = {n: run(rng, between=0.0) for n in "ab"}
    two["b"]["value"] = two["a"]["value"] + 1e-9
    fit = mixed_model(two, resample="seed > prompt", variable="value")
    assert any(note.startswith("statsmodels: ") for note in fit.notes)


@pytest.mark.parametrize(("how", "words"), [
    ({"resample": "seed"}, "needs two levels"),
    ({"statistic": "median"}, "needs two levels"),
    ({"paired": "prompt"}, "paired must be 'seed' or None here"),
    ({"confidence_level": 2}, "confidence_level must be")])
def test_settings_that_cannot_be_are_refused(rng, how, words):
    with pytest.raises(ValueError, match=words):
        mixed_model({"a": run(rng), "b": run(rng)}, **{"resample": "seed > prompt", "variable": "value", **how})


def test_data_that_cannot_be_are_refused(rng):
    frame = run(rng)
    large = pd.DataFrame({"value": np.arange(4002.0), "seed": np.arange(4002) % 3, "prompt": np.arange(4002)})
    for conditions, words in ((dict.fromkeys("abc", frame), "compares two conditions; got a, b, c"),
                              ({"a": frame, "b": frame[SEED < 2]}, "b has 2"),
                              ({"a": large, "b": large}, "at most 4000")):
        with pytest.raises(ValueError, match=words):
            mixed_model(conditions, resample="seed > prompt", variable="value")
