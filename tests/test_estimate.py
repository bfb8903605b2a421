"""Intervals that hold for tokens within prompts: against scipy, closed forms, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dynloop import Estimate, Measurement, Outcome, compare, estimate
from dynloop.statistics.share import clopper_pearson, runs


def measured(values, prompts, outcomes=None, **variables):
    values = np.asarray(values)
    return Measurement("rate", {"rate": values, **variables}, outcomes or [Outcome.FOUND] * len(values),
                       units={"rate": "per recurrence"}, settings={"factor": 3.0},
                       labels={"prompt": np.asarray(prompts)})


def nested(rng, n_prompts=40, n_tokens=20, between=1.0, within=1.0):
    """Tokens that share their prompt's effect: values and prompts."""
    values = between * rng.normal(size=(n_prompts, 1)) + within * rng.normal(size=(n_prompts, n_tokens))
    return values.ravel(), np.arange(n_prompts).repeat(n_tokens)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_the_fast_mean_is_the_general_path(seed):
    rng = np.random.default_rng(seed)
    prompts = np.sort(rng.integers(0, 25, size=200))
    m = measured(rng.normal(size=200), prompts)
    fast = estimate(m, statistic="mean", resample="prompt", n_resamples=200, method="percentile")
    slow = estimate(m, statistic=lambda x: float(np.mean(x)), resample="prompt", n_resamples=200, method="percentile")
    assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high), rel=1e-9, abs=1e-12)


def test_the_order_of_orbits_and_the_names_of_prompts_change_nothing(rng):
    values, prompts = nested(rng)
    shuffle = rng.permutation(len(values))
    one = estimate(measured(values, prompts), statistic="median", resample="prompt")
    names = np.array([f"p{p:03d}" for p in prompts])
    other = estimate(measured(values[shuffle], names[shuffle]), statistic="median", resample="prompt")
    assert (one.value, one.low, one.high) == (other.value, other.low, other.high)


def test_doubling_every_token_does_not_shrink_the_interval(rng):
    values, prompts = nested(rng)
    one = estimate(measured(values, prompts), statistic="mean", resample="prompt")
    two = estimate(measured(np.tile(values, 2), np.tile(prompts, 2)), statistic="mean", resample="prompt")
    assert (two.low, two.high) == pytest.approx((one.low, one.high), rel=1e-9)


def test_the_same_rng_gives_the_same_interval_and_another_does_not(rng):
    m = measured(*nested(rng))
    a, b, c = (estimate(m, statistic="mean", resample="prompt", rng=seed) for seed in (1, 1, 2))
    assert a == b
    assert a.low != c.low


def test_only_answered_orbits_enter_and_the_others_are_counted():
    values = np.r_[np.linspace(0.1, 0.9, 40), [np.nan] * 5]
    outcomes = [Outcome.FOUND] * 40 + [Outcome.TOO_SHORT] * 3 + [Outcome.NOT_FINITE] * 2
    e = estimate(measured(values, np.arange(45), outcomes), statistic="mean", resample="prompt")
    assert (e.n, e.excluded, e.value) == (40, {"too short": 3, "not finite": 2}, pytest.approx(0.5))
    assert "40 of 45 orbits; 3 too short; 2 not finite" in str(e)
    assert e.settings == {"factor": 3.0}
    assert e.unit == "per recurrence"


def test_labels_that_all_orbits_share_travel_with_the_estimate(rng):
    values, prompts = nested(rng)
    m = Measurement("rate", {"rate": values}, [Outcome.FOUND] * 800,
                    labels={"prompt": prompts, "layer": np.full(800, 2)})
    assert estimate(m, statistic="mean", resample="prompt").labels == {"layer": 2}
    assert estimate(m, statistic="mean", resample="prompt").to_dict()["labels"] == {"layer": 2}


def test_orbits_that_all_agree_give_no_width_and_say_so():
    e = estimate(measured(np.full(60, 0.5), np.arange(60) // 2), statistic="median", resample="prompt")
    assert (e.value, e.low, e.high) == (0.5, 0.5, 0.5)
    assert "constant" in e.method


def test_bca_falls_back_to_percentiles_where_it_is_undefined():
    values = np.r_[np.zeros(59), 1.0]  # the median's jackknife is constant
    e = estimate(measured(values, np.arange(60)), statistic="median", resample="prompt", method="BCa")
    assert "percentile (BCa is undefined here)" in e.method
    assert e.low <= e.value <= e.high


@pytest.mark.parametrize(("events", "n", "level"), [(0, 20, 0.95), (1, 1319, 0.95), (37, 1319, 0.9), (20, 20, 0.99)])
def test_clopper_pearson_is_scipys(events, n, level):
    exact = stats.binomtest(events, n).proportion_ci(level, "exact")
    assert clopper_pearson(events, n, level) == pytest.approx((exact.low, exact.high), rel=1e-12)


def test_published_shares_get_their_published_intervals():
    # Huginn, long persona: 37 of 1319 prompts hold a token that reaches no fixed point
    events = np.zeros((1319, 4))
    events[:37, 0] = 1
    regime = np.where(events, "orbit", "fixed point").ravel()
    m = Measurement("regime", {"regime": regime}, [Outcome.FOUND] * regime.size,
                    labels={"prompt": np.arange(1319).repeat(4)})
    e = estimate(m, statistic="affected share", of="orbit", resample="prompt")
    assert (round(100 * e.value, 2), round(100 * e.low, 2), round(100 * e.high, 2)) == (2.81, 1.98, 3.85)


def shares(counts, n_tokens=20):
    """A measurement with so many orbits of regime 'orbit' in each prompt."""
    regime = np.where(np.arange(n_tokens) < np.asarray(counts)[:, None], "orbit", "fixed point").ravel()
    return Measurement("regime", {"regime": regime}, [Outcome.FOUND] * regime.size,
                       labels={"prompt": np.arange(len(counts)).repeat(n_tokens)})


def test_no_event_still_has_an_upper_limit_that_any_dependence_within_prompts_respects():
    e = estimate(shares([0] * 50), statistic="share", of="orbit", resample="prompt")
    assert (e.value, e.low) == (0, 0)
    assert e.high == pytest.approx(1 - 0.025 ** (1 / 50))
    everything = estimate(shares([20] * 50), statistic="share", of="orbit", resample="prompt")
    assert (everything.low, everything.high) == (pytest.approx(0.025 ** (1 / 50)), 1)


def test_few_events_in_one_prompt_are_one_event_not_many():
    together = estimate(shares([12] + [0] * 49), statistic="share", of="orbit", resample="prompt")
    apart = estimate(shares([1] * 9 + [3] + [0] * 40), statistic="share", of="orbit", resample="orbit")
    assert together.value == apart.value
    assert together.high > 2 * apart.high  # naive: 12 independent events
    assert "Korn-Graubard" in together.method
    assert "exact" in apart.method


def test_many_events_are_bootstrapped():
    assert "resamples" in estimate(shares([5] * 25 + [2] * 25), statistic="share", of="orbit", resample="prompt").method


def test_a_share_of_an_outcome_counts_all_orbits():
    outcomes = [Outcome.FOUND] * 30 + [Outcome.NOT_CONVERGED] * 10
    m = measured(np.r_[np.ones(30), [np.nan] * 10], np.arange(40), outcomes, curve=np.zeros((40, 3)))
    e = estimate(m, statistic="share", of=Outcome.NOT_CONVERGED, resample="orbit")
    assert (e.value, e.n, e.excluded) == (0.25, 40, {})
    assert e.statistic == "share of not converged"


@pytest.mark.parametrize(("change", "words"), [
    ({"statistic": "mode"}, "statistic must be one of"),
    ({"statistic": "quantile 1.5"}, "statistic must be one of"),
    ({"statistic": "ratio"}, "takes variable=\\(numerator, denominator\\)"),
    ({"variable": ("rate", "rate")}, "takes variable=\\(numerator, denominator\\)"),
    ({"method": "Wilson"}, "is for shares"),
    ({"method": "two-way t"}, "is for crossed units"),
    ({"target": "all models"}, "target must be one of"),
    ({"target": "new seeds"}, "can speak of 'these models', not of 'new seeds'"),
    ({"block_length": 4}, "block_length goes with resample='block'"),
    ({"resample": "prompt > "}, "name what is independent"),
    ({"resample": "prompt × rate × layer"}, "crossed resampling knows two levels"),
    ({"method": "normal"}, "method must be one of"),
    ({"confidence_level": 95}, "between 0 and 1"),
    ({"n_resamples": 10}, "at least 100"),
    ({"n_resamples": True}, "at least 100"),
    ({"resample": "token"}, "or the labels prompt"),
    ({"of": "orbit"}, "of goes with a share"),
    ({"statistic": "share"}, "needs of="),
    ({"statistic": "affected share", "of": 1.0, "resample": "orbit"}, "units that hold several orbits"),
    ({"variable": "curve"}, "3 values an orbit"),
    ({"statistic": lambda x: np.nan}, "must be a finite number"),
])
def test_what_cannot_be_done_is_refused_with_words(change, words):
    m = measured(np.linspace(0, 1, 40), np.arange(40), curve=np.zeros((40, 3)))
    with pytest.raises(ValueError, match=words):
        estimate(m, **{"statistic": "mean", "resample": "prompt", **change})


def test_resample_has_no_default():
    with pytest.raises(TypeError, match="resample"):
        estimate(measured([1.0, 2.0], [0, 1]), statistic="mean")


def test_one_prompt_and_no_answer_are_refused():
    with pytest.raises(ValueError, match="at least two prompts; got 1"):
        estimate(measured([1.0, 2.0], [0, 0]), statistic="mean", resample="prompt")
    with pytest.raises(ValueError, match="no orbit of rate has an answer \\(2 too short\\)"):
        estimate(measured([np.nan] * 2, [0, 1], [Outcome.TOO_SHORT] * 2), statistic="mean", resample="prompt")


@pytest.mark.parametrize("method", ["BCa", "percentile", "basic"])
def test_a_bootstrap_over_few_units_brings_a_warning_with_its_real_coverage(method):
    m = measured(np.arange(10.0) ** 2, np.arange(10) // 2)
    with pytest.warns(UserWarning, match="5 prompts are few for a bootstrap: its 95 % interval covers 85 %"):
        e = estimate(m, statistic="mean", resample="prompt", method=method)
    assert "covers 85 %" in str(e)  # and the warning stays with the number
    assert "t(4)" in estimate(m, statistic="mean", resample="prompt").method  # warnings are errors: none here


def test_an_estimate_is_frozen():
    e = estimate(measured(np.arange(30.0), np.arange(30)), statistic="mean", resample="prompt")
    assert isinstance(e, Estimate)
    with pytest.raises(AttributeError):
        e.value = 3.0


def five_seeds(rng, *, seed=0.2, n_seeds=5, n_prompts=16, n_tokens=4, skewed=False):
    """A measurement with seeds, the same prompts under each, and tokens."""
    shape = (n_seeds, n_prompts, n_tokens)
    values = rng.normal(size=shape) + seed * (rng.exponential(size=(n_seeds, 1, 1)) if skewed else
                                              rng.normal(size=(n_seeds, 1, 1)))
    s, p, t = (i.ravel() for i in np.indices(shape))
    return Measurement("rate", {"rate": values.ravel(), "size": rng.random(values.size) + 1},
                       [Outcome.FOUND] * values.size, labels={"seed": s, "prompt": p, "token": t})


def test_seeds_above_prompts_give_the_t_interval_of_seed_means(rng):
    m = five_seeds(rng)
    e = estimate(m, statistic="mean", resample="seed > prompt", method="t")
    means = m.values.reshape(5, -1).mean(1)
    low, high = stats.ttest_1samp(means, 0).confidence_interval()
    assert (e.low, e.high) == pytest.approx((low, high), rel=1e-12)
    assert (e.target, e.units, e.n_units) == ("new seeds", {"seed": 5, "prompt": 80}, 5)
    assert "5 seeds > 80 prompts, for new seeds" in str(e)
    assert estimate(m, statistic="mean", resample="seed", method="t").low == pytest.approx(low)


def test_the_automatic_interval_contains_the_t_interval_and_is_longer_on_the_long_tail_only(rng):
    values = np.repeat([0.0, 0.1, 0.2, 0.3, 2.0], 4)
    m = Measurement("rate", {"rate": values}, [Outcome.FOUND] * 20, labels={"seed": np.arange(20) // 4})
    plain, auto = (estimate(m, statistic="mean", resample="seed", method=how) for how in ("t", "auto"))
    assert auto.low == pytest.approx(plain.low)
    assert auto.high > plain.high + 0.5 * (plain.high - plain.value)
    mirrored = Measurement("rate", {"rate": -values}, m.outcomes, labels=m.labels)
    other = estimate(mirrored, statistic="mean", resample="seed")
    assert (other.low, other.high) == pytest.approx((-auto.high, -auto.low))


@pytest.mark.parametrize(("resample", "target", "level"), [
    ("prompt", None, "these models"), ("seed", None, "new seeds"), ("seed > prompt", None, "new seeds"),
    ("seed > prompt", "these models", "these models"), ("seed × prompt", None, "new seeds and prompts"),
    ("seed x prompt", "new seeds", "new seeds"), ("prompt × seed", "these models", "these models"),
    ("seed > prompt", "new seeds and prompts", "new seeds and prompts"), ("orbit", None, "these models")])
def test_the_target_follows_from_what_is_resampled_and_is_printed(rng, resample, target, level):
    e = estimate(five_seeds(rng), statistic="mean", resample=resample, target=target)
    assert e.target == level
    assert f"for {level}" in str(e)
    assert e.to_dict()["target"] == level


def test_two_seeds_cannot_speak_of_new_ones_and_the_message_says_what_to_do(rng):
    m = five_seeds(rng, n_seeds=2)
    for resample in ("seed", "seed > prompt", "seed × prompt"):
        with pytest.raises(ValueError, match=r"2 seeds cannot say how seeds differ.*resample='prompt'.*these models"):
            estimate(m, statistic="mean", resample=resample)
    assert estimate(m, statistic="mean", resample="prompt").target == "these models"
    assert estimate(m, statistic="mean", resample="seed > prompt", target="these models").n_units == 2


def test_these_models_are_not_blurred_by_how_seeds_differ(rng):
    m = five_seeds(rng, seed=10.0)
    kept, pooled, new = (estimate(m, statistic="mean", resample=r, target=t) for r, t in (
        ("seed > prompt", "these models"), ("prompt", None), ("seed > prompt", None)))
    assert kept.high - kept.low == pytest.approx(pooled.high - pooled.low, rel=0.5)
    assert new.high - new.low > 10 * (kept.high - kept.low)


def test_crossed_levels_add_their_variances(rng):
    m = five_seeds(rng, n_tokens=1)
    cells = m.values.reshape(5, 16)
    seeds, prompts = (np.var(cells.mean(axis), ddof=1) / n for axis, n in ((1, 5), (0, 16)))
    e = estimate(m, statistic="mean", resample="seed × prompt", method="t")
    freedom = (seeds + prompts) ** 2 / (seeds**2 / 4 + prompts**2 / 15)
    assert (e.high - e.low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * np.sqrt(seeds + prompts), rel=1e-10)
    classic = estimate(m, statistic="mean", resample="seed × prompt", method="two-way t")
    both = max(seeds + prompts - cells.var(ddof=1) / 80, seeds, prompts)
    assert (classic.high - classic.low) / 2 == pytest.approx(stats.t.ppf(0.975, 4) * np.sqrt(both), rel=1e-10)
    assert e.units == {"seed": 5, "prompt": 16}


def test_a_median_over_seeds_is_the_jackknife(rng):
    m = five_seeds(rng, n_prompts=7, n_tokens=3)
    values = m.values.reshape(5, -1)
    without = np.array([np.median(np.delete(values, i, 0)) for i in range(5)])
    error = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    e = estimate(m, statistic="median", resample="seed > prompt", method="t")
    assert (e.low, e.high) == pytest.approx(stats.t.interval(0.95, 4, np.median(values), error), rel=1e-10)
    own = estimate(m, statistic=lambda x: float(np.median(x)), resample="seed > prompt", method="t")
    assert (own.low, own.high) == pytest.approx((e.low, e.high), rel=1e-12)


def test_a_quantile_and_a_ratio_are_what_they_say(rng):
    m = five_seeds(rng)
    assert estimate(m, statistic="quantile 0.9", resample="prompt", n_resamples=200).value == \
        pytest.approx(np.quantile(m.values, 0.9), rel=1e-12)
    e = estimate(m, statistic="ratio", variable=("rate", "size"), resample="prompt", n_resamples=200)
    assert e.value == pytest.approx(m.values.sum() / m["size"].sum(), rel=1e-12)
    assert e.name == "rate / size"
    nought = Measurement("rate", {"a": [1.0, 2.0, 3.0], "b": np.zeros(3)}, [Outcome.FOUND] * 3)
    with pytest.raises(ValueError, match="adds up to nought"):
        estimate(nought, statistic="ratio", variable=("a", "b"), resample="orbit")


@pytest.mark.parametrize("asked", [
    {"statistic": "mean", "resample": "seed > prompt"}, {"statistic": "median", "resample": "prompt"},
    {"statistic": "ratio", "variable": ("rate", "size"), "resample": "seed × prompt"},
    {"statistic": "share", "of": Outcome.FOUND, "resample": "prompt"}])
def test_a_frame_says_what_its_measurement_says(rng, asked):
    m = five_seeds(rng)
    frame = m.to_frame()
    one = estimate(m, n_resamples=300, **asked)
    two = estimate(frame, n_resamples=300, **{"variable": None if "of" in asked else "rate", **asked})
    assert (one.value, one.low, one.high, one.units) == (two.value, two.low, two.high, two.units)


def test_a_frame_keeps_count_of_what_was_left_out():
    frame = pd.DataFrame({"prompt": np.arange(8), "rate": [1.0, 2, 3, 4, 5, 6, np.nan, np.nan],
                          "outcome": ["found"] * 6 + ["too short", "lost"]})
    e = estimate(frame, variable="rate", statistic="mean", resample="prompt")
    assert (e.n, e.excluded, e.value) == (6, {"too short": 1, "lost": 1}, 3.5)


@pytest.mark.parametrize(("frame", "asked", "words"), [
    (pd.DataFrame({"p": [1, 2], "x": [1.0, np.nan]}), {"variable": "x"}, "NaN or infinite for 1 of 2 orbits"),
    (pd.DataFrame({"p": [1, 2], "x": [1.0, np.inf]}), {"variable": "x"}, "NaN or infinite for 1 of 2 orbits"),
    (pd.DataFrame({"p": [1, 2], "x": ["a", "b"]}), {"variable": "x"}, "needs numbers"),
    (pd.DataFrame({"p": [1, 2]}), {"variable": "x"}, "no column 'x'; it has p"),
    (pd.DataFrame({"p": [1, 2]}), {}, "a frame needs variable"),
    (pd.DataFrame({"p": [], "x": []}), {"variable": "x"}, "no rows"),
    (np.zeros(5), {}, "a Measurement or a pandas frame; got ndarray"),
    (pd.DataFrame({"p": [1, 2], "x": [1.0, 2]}), {"statistic": "share", "of": Outcome.TOO_SHORT},
     "no column 'outcome'"),
])
def test_a_frame_that_does_not_fit_is_refused_with_words(frame, asked, words):
    with pytest.raises(ValueError, match=words):
        estimate(frame, **{"statistic": "mean", "resample": "p", **asked})


def test_numbers_that_are_none_are_refused_and_not_dropped():
    with pytest.raises(ValueError, match=r"'rate' is NaN or infinite for 2 of 40 orbits.*Nothing is dropped"):
        estimate(measured(np.r_[np.ones(38), np.nan, np.inf], np.arange(40)), statistic="mean", resample="prompt")


def test_shares_over_seeds_count_seeds(rng):
    shape = (5, 30, 20)
    rate = np.array([0.1, 0.2, 0.3, 0.4, 0.5])[:, None, None]
    s, p, t = (i.ravel() for i in np.indices(shape))
    m = Measurement("regime", {"regime": np.where(rng.random(shape) < rate, "orbit", "rest").ravel()},
                    [Outcome.FOUND] * s.size, labels={"seed": s, "prompt": p, "token": t})
    few, many = (estimate(m, statistic="share", of="orbit", resample=r) for r in ("seed > prompt", "prompt"))
    assert few.high - few.low > 5 * (many.high - many.low)
    assert few.design_effect > 50
    t_interval = estimate(m, statistic="share", of="orbit", resample="seed > prompt", method="t")
    assert (few.low, few.high) == pytest.approx((t_interval.low, t_interval.high), abs=0.06)
    assert few.low > 0 == estimate(m, statistic="share", of="orbit", resample="seed", method="t",
                                  confidence_level=0.99).low
    wilson = estimate(m, statistic="share", of="orbit", resample="seed > prompt", method="Wilson")
    assert few.low < wilson.low < wilson.high < few.high + 0.01


def test_runs_of_tokens_set_the_floor_of_the_design_effect():
    events = np.zeros((40, 60), bool)
    for i, length in enumerate([6] * 12):  # twelve runs of six, each in a prompt of its own
        events[i, 5:5 + length] = True
    p, t = (i.ravel() for i in np.indices(events.shape))
    labels = {"prompt": p, "token": t}
    frame = pd.DataFrame({**labels, "event": events.ravel()})
    found = runs(events.ravel(), labels)
    assert (found.n, found.inflation) == (12, pytest.approx(6))
    e = estimate(frame, variable="event", statistic="share", of=True, resample="prompt")
    assert e.design_effect >= 6
    shuffled = frame.sample(frac=1, random_state=0)
    assert estimate(shuffled, variable="event", statistic="share", of=True, resample="prompt").high == e.high
    lengths = np.array([1, 2, 3, 10])
    row = np.concatenate([np.r_[np.ones(n), 0] for n in lengths])
    mixed = runs(row, {"token": np.arange(len(row))})
    assert (mixed.n, mixed.inflation) == (4, pytest.approx((lengths**2).sum() / lengths.sum()))
    assert runs(row, {"prompt": np.arange(len(row))}) is None


def test_no_event_under_five_seeds_has_a_finite_bound_and_the_assumption_free_one_beside_it():
    s, p, t = (i.ravel() for i in np.indices((5, 64, 16)))
    frame = pd.DataFrame({"seed": s, "prompt": p, "token": t, "event": np.zeros(s.size, bool)})
    e = estimate(frame, variable="event", statistic="share", of=True, resample="seed > prompt")
    assert e.low == e.value == 0 < e.high < 0.03
    assert f"below {1 - 0.05 ** (1 / 320):.2g} " in str(e)


def test_an_affected_share_over_seeds_counts_prompts_within_them(rng):
    m = five_seeds(rng, n_prompts=40)
    hit = np.where((m.labels["prompt"] % 8 == m.labels["seed"]) & (m.labels["token"] == 1), "orbit", "rest")
    m = Measurement("regime", {"regime": hit}, m.outcomes, labels=m.labels)
    e = estimate(m, statistic="affected share", of="orbit", resample="seed > prompt")
    assert e.value == pytest.approx(1 / 8)
    assert e.n == 800
    assert e.low < 1 / 8 < e.high


def test_labels_of_texts_and_of_numbers_are_the_same_units(rng):
    m = five_seeds(rng)
    texts = Measurement("rate", dict(m.variables), m.outcomes, labels={
        "seed": np.array([f"s{i}" for i in m.labels["seed"]]), "prompt": m.labels["prompt"].astype(float) * 3 - 7})
    for resample in ("seed > prompt", "seed × prompt", "prompt"):
        one, two = (estimate(x, statistic="mean", resample=resample) for x in (m, texts))
        assert (one.low, one.high) == (two.low, two.high)


@pytest.mark.parametrize("levels", [("model > seed > prompt > token", {"model": 4, "seed": 12, "prompt": 60,
                                                                        "token": 240})])
def test_nesting_may_have_any_depth(rng, levels):
    resample, units = levels
    at = np.indices((4, 3, 5, 4))
    labels = dict(zip(("model", "seed", "prompt", "token"), (i.ravel() for i in at), strict=True))
    values = (rng.normal(size=(4, 1, 1, 1)) + rng.normal(size=at.shape[1:])).ravel()
    m = Measurement("rate", {"rate": values}, [Outcome.FOUND] * values.size, labels=labels)
    e = estimate(m, statistic="mean", resample=resample, method="hierarchical t")
    assert e.units == units
    plain = estimate(m, statistic="mean", resample=resample, method="t")
    assert plain.high - plain.low < e.high - e.low < 2 * (plain.high - plain.low)


def test_a_unit_that_holds_most_orbits_costs_degrees_of_freedom(rng):
    prompts = np.r_[np.zeros(200, int), 1 + np.arange(190) // 10]
    e = estimate(measured(rng.normal(size=390), prompts), statistic="mean", resample="prompt", method="t")
    assert float(e.method.split("(")[1].rstrip(")")) < 3


def coverage(rng, resample, n_studies, **how):
    hits = 0
    for _ in range(n_studies):
        values, prompts = nested(rng, between=0.7)
        e = estimate(measured(values, prompts), statistic="mean", resample=resample, n_resamples=400, rng=rng, **how)
        hits += e.low <= 0 <= e.high
    return hits


def test_resampling_prompts_covers_and_resampling_tokens_does_not(rng):
    assert stats.binomtest(coverage(rng, "prompt", 300), 300, 0.94).pvalue > 0.01
    assert coverage(rng, "orbit", 100) < 65


@pytest.mark.slow
@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_coverage_over_prompts_is_near_nominal_in_2000_studies(rng, method):
    hits = coverage(rng, "prompt", 2000, method=method)
    assert 0.925 <= hits / 2000 <= 0.96, hits / 2000


@pytest.mark.slow
@pytest.mark.parametrize(("p", "clump"), [(2e-3, 1), (2e-3, 3), (2e-4, 3), (2e-4, 12)])
def test_rare_shares_are_covered_in_2000_studies(rng, p, clump):
    hits = 0
    for _ in range(2000):
        counts = np.minimum(rng.binomial(64 // clump, p, size=320) * clump, 64)
        e = estimate(shares(counts, 64), statistic="share", of="orbit", resample="prompt", n_resamples=400)
        hits += e.low <= p * (64 // clump * clump) / 64 <= e.high
    assert hits / 2000 >= 0.94, hits / 2000


def of_seeds(rng, n_seeds=8, n_prompts=8, n_tokens=3, **sd):
    """A frame of seeds far apart whose tokens hardly vary."""
    sd = {"seed": 1.0, "prompt": 0.03, "token": 0.03} | sd
    s, p, _ = (i.ravel() for i in np.indices((n_seeds, n_prompts, n_tokens)))
    x = (sd["seed"] * rng.normal(size=n_seeds)[s] + sd["prompt"] * rng.normal(size=(n_seeds, n_prompts))[s, p]
         + sd["token"] * rng.normal(size=s.size))
    return pd.DataFrame({"x": x, "seed": s, "prompt": p})


@pytest.mark.parametrize(("resample", "n_seeds", "statistic", "truth", "sd"), [
    ("seed > prompt", 8, "median", 0.0, {}),  # the jackknife covers 77 %
    ("prompt", 20, "quantile 0.9", 1.2816 * np.hypot(0.4, 1.0),  # BCa: 90 %
     {"seed": 0.0, "prompt": 0.4, "token": 1.0}),
])
def test_medians_and_quantiles_of_few_units_are_covered(rng, resample, n_seeds, statistic, truth, sd):
    held, n = 0, 400
    for _ in range(n):
        frame = of_seeds(rng, 1, n_seeds, 5, **sd) if resample == "prompt" else of_seeds(rng, n_seeds, **sd)
        e = estimate(frame, statistic=statistic, variable="x", resample=resample)
        held += e.low <= truth <= e.high
    assert e.method == "Woodruff"
    assert stats.binomtest(held, n, 0.95).pvalue > 1e-3


def test_a_median_of_independent_orbits_has_the_interval_of_order_statistics(rng):
    x = np.sort(rng.normal(size=200))
    e = estimate(pd.DataFrame({"x": x}), statistic="median", variable="x", resample="orbit")
    k = int(stats.binom.ppf(0.025, 200, 0.5))
    assert x[k - 2] < e.low < x[k + 1]
    assert x[200 - k - 2] < e.high < x[200 - k + 1]
    assert e == estimate(pd.DataFrame({"x": x}), statistic=np.median, variable="x", resample="orbit")


def test_a_quantile_too_far_out_for_its_units_says_so(rng):
    e = estimate(of_seeds(rng), statistic="quantile 0.99", variable="x", resample="seed > prompt")
    assert any("do not bound a quantile that far out" in note for note in e.notes)


@pytest.mark.parametrize("resample", ["seed × prompt", "seed×prompt", "seed x prompt"])
def test_crossed_units_are_printed_as_crossed(rng, resample):
    assert "8 seeds × 8 prompts" in str(estimate(of_seeds(rng), statistic="mean", variable="x", resample=resample))


@pytest.mark.parametrize("missing", [None, np.nan, pd.NaT, pd.NA])
def test_missing_labels_are_refused_not_counted_as_a_unit(rng, missing):
    frame = of_seeds(rng)
    days = pd.Series(pd.to_datetime("2026-01-01") + pd.to_timedelta(frame.seed, "D"))
    labels = days.where(frame.seed > 0) if missing is pd.NaT else \
        pd.Series([missing if s == 0 else f"s{s}" for s in frame.seed], dtype=object)
    with pytest.raises(ValueError, match="label 'seed' is NaN, infinite or missing for 24 of 192 orbits"):
        estimate(frame.assign(seed=labels), statistic="mean", variable="x", resample="seed > prompt")
    with pytest.raises(ValueError, match=r"label 'seed' is .*missing for \d+ of"):
        compare({"a": frame.assign(seed=labels), "b": frame.assign(seed=labels)}, variable="x", resample="seed")


def test_labels_in_the_index_count_and_a_name_that_occurs_twice_does_not(rng):
    frame = of_seeds(rng)
    ask = {"statistic": "mean", "variable": "x", "resample": "seed > prompt"}
    assert estimate(frame.set_index(["seed", "prompt"]), **ask) == estimate(frame, **ask)
    with pytest.raises(ValueError, match="several columns 'seed'"):
        estimate(pd.concat([frame, frame[["seed"]]], axis=1), **ask)


def test_shares_of_what_no_orbit_can_be_are_refused(rng):
    frame = of_seeds(rng)
    ask = {"statistic": "share", "resample": "seed > prompt"}
    for of in (np.nan, [1], np.ones(3)):
        with pytest.raises(ValueError, match="of must be one value or an Outcome"):
            estimate(frame, variable="prompt", of=of, **ask)
        with pytest.raises(ValueError, match="of must be one value or an Outcome"):
            compare({"a": frame, "b": frame}, variable="prompt", of=of, **ask)
    with pytest.raises(ValueError, match="NaN or missing for 24 of 192 orbits that were answered"):
        estimate(frame.assign(kind=np.where(frame.seed, 1.0, np.nan)), variable="kind", of=1.0, **ask)


def test_functions_that_give_no_number_are_refused(rng):
    for function in (lambda x: x, lambda x: "much", lambda x: 1j):
        with pytest.raises(ValueError, match="gives one number"):
            estimate(of_seeds(rng), statistic=function, variable="x", resample="seed > prompt")
        with pytest.raises(ValueError, match="gives one number"):
            compare({"a": of_seeds(rng), "b": of_seeds(rng)}, statistic=function, variable="x", resample="seed")


def test_shared_prompts_are_pointed_at_where_new_ones_are_meant(rng):
    ask = {"statistic": "mean", "variable": "x", "resample": "seed > prompt"}
    e = estimate(of_seeds(rng), target="new seeds and prompts", **ask)
    assert any("resample='seed × prompt'" in note for note in e.notes)
    assert not estimate(of_seeds(rng), **ask).notes
    own = of_seeds(rng)
    assert not estimate(own.assign(prompt=own.seed * 100 + own.prompt), target="new seeds and prompts", **ask).notes


def test_a_share_stays_between_0_and_1(rng):
    frame = of_seeds(rng).assign(x=lambda d: d.seed > 0)
    e = estimate(frame, statistic="share", variable="x", of=True, resample="seed > prompt", method="t")
    assert 0 <= e.low < e.value < e.high == 1


def test_what_is_refused_is_not_warned_of_first(rng):
    with pytest.raises(ValueError, match="resamples units of one level"):  # a warning would be an error of its own
        estimate(of_seeds(rng), statistic="mean", variable="x", resample="seed > prompt", method="BCa")
