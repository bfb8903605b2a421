"""Intervals that hold for tokens within prompts: against scipy, closed forms, and by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dynloop import Estimate, Measurement, Outcome, estimate
from dynloop.statistics.estimate import clopper_pearson


def measured(values, prompts, outcomes=None, **variables):
    values = np.asarray(values)
    return Measurement("rate", {"rate": values, **variables}, outcomes or [Outcome.FOUND] * len(values),
                       units={"rate": "per recurrence"}, settings={"factor": 3.0},
                       labels={"prompt": np.asarray(prompts)})


def nested(rng, n_prompts=40, n_tokens=20, between=1.0, within=1.0):
    """Tokens that share their prompt's effect: values and prompts."""
    values = between * rng.normal(size=(n_prompts, 1)) + within * rng.normal(size=(n_prompts, n_tokens))
    return values.ravel(), np.arange(n_prompts).repeat(n_tokens)


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_resampling_orbits_is_scipys_bootstrap(rng, method):
    x = rng.exponential(size=50)
    own = estimate(measured(x, range(50)), statistic="mean", resample="orbit", method=method, n_resamples=2000, rng=7)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=2000, method=method, rng=np.random.default_rng(7))
    assert (own.low, own.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)
    assert own.value == pytest.approx(x.mean(), rel=1e-15)


def test_equal_prompts_give_the_bootstrap_of_prompt_means(rng):
    values, prompts = nested(rng)
    own = estimate(measured(values, prompts), statistic="mean", resample="prompt", rng=1)
    means = values.reshape(40, 20).mean(1)
    theirs = stats.bootstrap((means,), np.mean, n_resamples=1000, method="BCa", rng=np.random.default_rng(1))
    assert (own.low, own.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-9)


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
    e = estimate(measured(values, np.arange(60)), statistic="median", resample="prompt")
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
    ({"method": "normal"}, "method must be one of"),
    ({"confidence_level": 95}, "between 0 and 1"),
    ({"n_resamples": 10}, "at least 100"),
    ({"n_resamples": True}, "at least 100"),
    ({"resample": "token"}, "one of the labels prompt"),
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


def test_few_units_bring_a_warning():
    with pytest.warns(UserWarning, match="5 prompts are few"):
        estimate(measured(np.arange(10.0), np.arange(10) // 2), statistic="mean", resample="prompt")


def test_an_estimate_is_frozen():
    e = estimate(measured(np.arange(30.0), np.arange(30)), statistic="mean", resample="prompt")
    assert isinstance(e, Estimate)
    with pytest.raises(AttributeError):
        e.value = 3.0


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
