"""Comparisons between independent units: against scipy, statsmodels and full enumeration, and their false alarms."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal, special, stats
from statsmodels.stats import weightstats
from statsmodels.stats.meta_analysis import effectsize_smd

from dynloop import Measurement, Outcome
from dynloop.statistics import permutation, two_samples
from dynloop.statistics.compare import Comparison, Comparisons, compare
from dynloop.statistics.two_samples import TwoSamples

SEED, PROMPT, TOKEN = (v.ravel() for v in np.indices((5, 8, 6)))


def run(rng, shift=0.0, *, between=1.0, prompts=None):
    """A frame of 5 seeds x 8 prompts x 6 tokens."""
    value = shift + between * rng.normal(size=5)[SEED] + rng.normal(size=len(SEED))
    return pd.DataFrame({"value": value + (0 if prompts is None else prompts[PROMPT]), "seed": SEED, "prompt": PROMPT})


def measured(frame, **settings):
    return Measurement("rate", {"rate": frame["value"].to_numpy()}, [Outcome.FOUND] * len(frame),
                       units={"rate": "per recurrence"}, settings=settings,
                       labels={"seed": frame["seed"].to_numpy(), "prompt": frame["prompt"].to_numpy()})


def means(frame, by="seed"):
    return frame.groupby(by)["value"].mean().to_numpy()


@pytest.fixture
def two(rng):
    return {"plain": run(rng), "injected": run(rng, 1.0)}


def ask(conditions, **how):
    return compare(conditions, **{"resample": "seed", "variable": "value", **how})


def test_seeds_are_compared_by_welchs_t(two):
    one = ask(two)[0]
    a, b = map(means, two.values())
    theirs = stats.ttest_ind(b, a, equal_var=False)
    limits = theirs.confidence_interval(0.95)
    assert (one.value, one.low, one.high) == pytest.approx((b.mean() - a.mean(), limits.low, limits.high), rel=1e-12)
    assert (one.p_value, one.p_error) == pytest.approx((theirs.pvalue, 0), rel=1e-12)
    assert one.n == {"injected": {"seed": 5, "orbit": 240}, "plain": {"seed": 5, "orbit": 240}}
    assert (one.condition, one.baseline, one.test) == ("injected", "plain", "Welch t")


def test_paired_seeds_are_compared_by_the_paired_t_whatever_the_order_of_rows(two, rng):
    shuffled = {name: frame.sample(frac=1, random_state=3) for name, frame in two.items()}
    a, b = map(means, two.values())
    theirs = stats.ttest_rel(b, a)
    limits = theirs.confidence_interval(0.9)
    one = ask(shuffled, paired="seed", confidence_level=0.9)[0]
    assert (one.p_value, one.low, one.high) == pytest.approx((theirs.pvalue, limits.low, limits.high), rel=1e-12)


def test_prompts_of_these_models_are_paired(two):
    one = ask(two, resample="prompt", paired="prompt")[0]
    assert one.p_value == pytest.approx(stats.ttest_rel(means(two["injected"], "prompt"),
                                                        means(two["plain"], "prompt")).pvalue, rel=1e-12)
    assert one.target == "new prompts, these models"


def test_effects_of_shared_prompts_cancel_also_where_tokens_are_missing(rng):
    prompts = 100 * rng.normal(size=8)
    frames = {name: run(rng, between=0.1, prompts=prompts) for name in "ab"}
    frames["b"] = frames["b"][(PROMPT > 3) | (TOKEN == 0)]  # a condition that lost most tokens of some prompts
    assert abs(ask(frames)[0].value) > 3
    for how in ({"resample": "seed", "paired": "prompt"}, {"resample": "seed > prompt"},
                {"resample": "seed × prompt", "paired": "prompt"}):
        assert abs(ask(frames, **how)[0].value) < 1


def test_prompts_and_seeds_that_are_not_everywhere_are_left_out_and_noted(two):
    two["injected"] = two["injected"][~((PROMPT == 3) & (SEED == 1)) & (SEED != 4)]
    one = ask(two, paired=("seed", "prompt"))[0]
    assert one.notes[:2] == ("1 of 5 seeds left out: not answered everywhere",
                             "1 of 8 prompts left out: not answered everywhere")
    assert one.n["plain"] == {"seed": 4, "prompt": 7, "orbit": 4 * 7 * 6}
    kept = {name: f[(f["prompt"] != 3) & (f["seed"] != 4)] for name, f in two.items()}
    assert one.value == pytest.approx(means(kept["injected"]).mean() - means(kept["plain"]).mean(), rel=1e-12)


def test_crossed_units_add_the_interaction_of_prompts_with_the_condition(rng):
    a, b = rng.normal(size=(2, 5, 8)) * 0.01 + rng.normal(size=(2, 5, 1))
    moved = b + rng.normal(size=8)
    pair = TwoSamples(a, moved, crossed=True, columns_paired=True)
    by_seed = sum(x.mean(1).var(ddof=1) / 5 for x in (a, moved))
    # by hand: mean squares of the two-way layout of each condition
    noise = sum(sum((x[i, j] - x[i].mean() - x[:, j].mean() + x.mean()) ** 2 for i in range(5) for j in range(8))
                / (4 * 7) / 5 for x in (a, moved))
    by_prompt = ((moved.mean(0) - a.mean(0)).var(ddof=1) - noise) / 8
    assert pair.at()[1] ** 2 == pytest.approx(by_seed + by_prompt, rel=1e-9)
    apart = TwoSamples(a, b, crossed=True, columns_paired=True).at()[1] ** 2
    assert apart < 1.01 * sum(x.mean(1).var(ddof=1) / 5 for x in (a, b))
    seeds_alone = TwoSamples(a, moved)
    assert pair.at()[1] > seeds_alone.at()[1]


def test_a_permutation_of_labels_is_exact_and_scipys(two):
    one = ask(two, test="permutation")[0]
    a, b = map(means, two.values())
    theirs = stats.permutation_test((b, a), lambda x, y, axis=-1: x.mean(axis) - y.mean(axis), n_resamples=np.inf,
                                    vectorized=True)
    assert (one.p_value, one.p_error, one.smallest_p) == pytest.approx((theirs.pvalue, 0, 2 / 252), rel=1e-12)
    assert one.test == "exact label permutation (252)"


def test_flipped_signs_of_five_pairs_say_that_nothing_can_be_significant(two):
    one = ask(two, paired="seed", test="permutation")[0]
    a, b = map(means, two.values())
    theirs = stats.permutation_test((b, a), lambda x, y, axis=-1: (x - y).mean(axis), permutation_type="samples",
                                    n_resamples=np.inf, vectorized=True)
    assert one.p_value == pytest.approx(theirs.pvalue, rel=1e-12)
    assert one.smallest_p == 0.0625
    assert any("No p-value below 0.0625 can come out of 5 pairs" in note for note in one.notes)
    assert not any("No p-value" in note for note in ask(two, test="permutation")[0].notes)


def test_a_monte_carlo_permutation_is_near_the_exact_one_and_states_its_error(rng, monkeypatch):
    a, b = rng.normal(size=6), rng.normal(0.8, size=6)
    exact = [permutation.label_permutation(a, b, n_resamples=1, rng=0)[0],
             permutation.sign_flip(b - a, n_resamples=1, rng=0)[0]]
    monkeypatch.setattr(permutation, "_MOST", 1)
    tried = [permutation.label_permutation(a, b, n_resamples=9999, rng=rng),
             permutation.sign_flip(b - a, n_resamples=9999, rng=rng)]
    for right, (p, error, smallest, how) in zip(exact, tried, strict=True):
        assert abs(p - right) < 4 * error < 0.02
        assert smallest == 1e-4
        assert "(9999 random)" in how


def test_webbs_weights_give_what_all_7776_of_them_give(rng):
    d = rng.normal(0.7, 1, 5)
    weights = np.array(list(itertools.product(permutation._WEBB, repeat=5)))
    made = weights * d
    t = np.abs(made.mean(1)) / (made.std(1, ddof=1) / math.sqrt(5))
    exact = (t >= abs(d.mean()) / (d.std(ddof=1) / math.sqrt(5)) * (1 - 1e-12)).mean()
    p, error, _, how = permutation.webb_bootstrap(np.zeros(5), d, paired=True, n_resamples=9999, rng=rng)
    assert abs(p - exact) < 4 * error
    assert how.startswith("wild bootstrap, Webb")


def test_webbs_bootstrap_of_ten_seeds_is_near_the_t_test(two):
    one = ask(two, test="webb")[0]
    assert one.p_value == pytest.approx(ask(two)[0].p_value, abs=0.08)
    assert one.p_error > 0


def test_shares_are_permuted_by_default_and_means_are_not(two):
    for frame in two.values():
        frame["event"] = np.where(frame["value"] > 1, "orbit", "fixed point")
    share = compare(two, resample="seed", variable="event", statistic="share", of="orbit")[0]
    assert share.test == "exact label permutation (252)"
    assert share.value == pytest.approx((two["injected"]["event"] == "orbit").mean()
                                        - (two["plain"]["event"] == "orbit").mean())
    assert share.statistic == "share of orbit"
    paired = compare(two, resample="seed", variable="event", statistic="share", of="orbit", paired="seed")[0]
    assert paired.test == "paired t"  # 32 sign patterns cannot reach 5 %


def test_many_contrasts_need_smaller_p_values_than_a_permutation_of_five_seeds_gives(rng):
    frames = {name: run(rng).assign(event=rng.random(240) < 0.3) for name in "abcdefgh"}
    found = compare(frames, resample="seed", variable="event", statistic="share", of=True, baseline="a")
    assert {one.test for one in found} == {"Welch t"}


def test_equivalence_is_statsmodels_two_one_sided_tests(two):
    a, b = map(means, two.values())
    p, *_ = weightstats.ttost_ind(b, a, -3.0, 3.0, usevar="unequal")
    one = ask(two, margin=3.0)[0]
    assert one.p_equivalence == pytest.approx(p, rel=1e-10)
    assert one.equivalent == (p <= 0.05)
    p, *_ = weightstats.ttost_paired(b, a, -1.0, 5.0)
    assert ask(two, paired="seed", margin=(-1.0, 5.0))[0].p_equivalence == pytest.approx(p, rel=1e-10)


def test_a_small_difference_is_equivalent_and_a_large_one_is_not(rng):
    frames = {"a": run(rng, between=0.0), "b": run(rng, between=0.0)}
    assert ask(frames, margin=1.0)[0].equivalent is True
    assert ask({"a": frames["a"], "b": run(rng, 1.5, between=0.0)}, margin=1.0)[0].equivalent is False
    assert ask(frames)[0].equivalent is None


def test_hedges_g_is_statsmodels_and_its_interval_inverts_the_noncentral_t(two):
    one = ask(two)[0]
    a, b = map(means, two.values())
    d = (b.mean() - a.mean()) / math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    theirs, _ = effectsize_smd(b.mean(), b.std(ddof=1), 5, a.mean(), a.std(ddof=1), 5)
    assert one.effect_size == pytest.approx(theirs, rel=2e-3)  # statsmodels' correction is 1 - 3 / (4 n - 9)
    j = math.gamma(4) / (2 * math.gamma(3.5))  # exact for 8 degrees of freedom
    assert one.effect_size == pytest.approx(j * d, rel=1e-12)
    t = d / math.sqrt(2 / 5)
    for limit, tail in ((one.effect_low, 0.975), (one.effect_high, 0.025)):
        assert stats.nct.cdf(t, 8, limit / j / math.sqrt(2 / 5)) == pytest.approx(tail, abs=1e-5)


def test_the_interval_of_hedges_g_covers(rng):
    true, hits = 1.5, np.zeros(2)
    for _ in range(1500):
        a, b = rng.normal(size=(2, 5))
        common = rng.normal(size=5)
        for i, pair in enumerate((TwoSamples(a[:, None], b[:, None] + true),
                                  TwoSamples((a + common)[:, None] / math.sqrt(2),
                                             (b + common)[:, None] / math.sqrt(2) + true, paired=True))):
            _, low, high = two_samples.hedges_g(pair, 0.95)
            j = two_samples.bias_correction(4 if pair.paired else 8)
            hits[i] += low <= j * true <= high  # the limits are those of J times the effect
    assert stats.binomtest(int(hits[0]), 1500, 0.95).pvalue > 0.01
    assert 0.9 < hits[1] / 1500 < 0.98  # pairs: approximate


def test_a_ratios_interval_is_fiellers(rng):
    a, b = rng.normal(10, 1, 6), rng.normal(15, 1, 6)
    low, high = two_samples.ratio_interval(TwoSamples(a[:, None], b[:, None], paired=True), 0.95)
    # closed form: (b - rho a)^2 = t^2 var(b - rho a) / n
    t2 = stats.t.ppf(0.975, 5) ** 2 / 6
    (v_b, c), (_, v_a) = np.cov(b, a)
    roots = np.roots([a.mean() ** 2 - t2 * v_a, -2 * (a.mean() * b.mean() - t2 * c), b.mean() ** 2 - t2 * v_b])
    assert sorted(roots) == pytest.approx([low, high], rel=1e-9)


def test_a_ratio_and_a_difference_agree_on_whether_there_is_one(rng):
    for shift in (0.0, 0.5, 1.0, 2.0):
        frames = {"a": run(rng, 10), "b": run(rng, 10 + shift)}
        ratio, gap = ask(frames, difference="ratio")[0], ask(frames)[0]
        assert ratio.p_value == gap.p_value
        assert (ratio.low <= 1 <= ratio.high) == (gap.low <= 0 <= gap.high)
        assert ratio.low < ratio.value < ratio.high
        assert (ratio.unit, ratio.means) == ("", gap.means)


def test_a_ratio_to_what_may_be_nothing_is_unbounded_and_to_nothing_refused(rng):
    one = ask({"a": run(rng, 0.0), "b": run(rng, 1.0)}, difference="ratio")[0]
    assert (one.low, one.high) == (-math.inf, math.inf)
    assert any("cannot be told from 0" in note for note in one.notes)
    with pytest.raises(ValueError, match="there is no ratio to it"):
        ask({"a": run(rng).assign(value=0.0), "b": run(rng)}, difference="ratio")


@pytest.mark.parametrize("sign", [1, -1])
def test_a_ratio_can_be_equivalent_below_zero_too(rng, sign):
    frames = {n: run(rng, 10, between=0.01).assign(value=lambda f: sign * f["value"]) for n in "ab"}
    assert ask(frames, difference="ratio", margin=1.1)[0].equivalent is True
    assert ask(frames, difference="ratio", margin=(0.5, 0.9 + 0.2))[0].equivalent is True
    frames["b"]["value"] *= 1.3
    assert ask(frames, difference="ratio", margin=1.1)[0].equivalent is False


def test_units_that_all_agree_give_no_interval(rng):
    frames = {n: run(rng).assign(value=float(i)) for i, n in enumerate("ab")}
    one = ask(frames)[0]
    assert (one.value, one.p_value) == (1.0, pytest.approx(2 / 252))
    assert math.isnan(one.low)
    assert "no spread" in one.notes[0]
    same = ask(dict.fromkeys("ab", frames["a"]), test="webb", margin=1.0)[0]
    assert (same.value, same.p_value, same.equivalent) == (0.0, 1.0, False)
    assert same.to_dict()["low"] is None


def test_a_family_is_adjusted_by_holm_or_for_the_false_discovery_rate(rng):
    frames = {name: run(rng, shift) for name, shift in zip("abcd", (0, 0.5, 1.5, 3), strict=True)}
    found = ask(frames)
    assert [(c.condition, c.baseline) for c in found] == [("b", "a"), ("c", "a"), ("d", "a"), ("c", "b"), ("d", "b"),
                                                          ("d", "c")]
    p = np.array([c.p_value for c in found])
    order = np.argsort(p)
    holm = np.minimum(np.maximum.accumulate((6 - np.arange(6)) * p[order]), 1)
    assert [found[i].p_adjusted for i in order] == pytest.approx(holm)
    assert "Holm, 6 contrasts" in str(found[0])
    against = ask(frames, baseline="b", adjust="fdr_bh", margin=1.0)
    assert [c.condition for c in against] == ["a", "c", "d"]
    assert "Benjamini-Hochberg, 3 contrasts" in str(against)
    assert all(c.p_adjusted >= c.p_value for c in against)
    assert all(c.p_adjusted == c.p_value for c in ask(frames, adjust=None))


def test_one_measurement_is_divided_by_a_label(two):
    frame = pd.concat([f.assign(condition=name) for name, f in two.items()])
    m = Measurement("value", {"value": frame["value"].to_numpy()}, [Outcome.FOUND] * len(frame),
                    labels={n: frame[n].to_numpy() for n in ("seed", "prompt", "condition")})
    a, b, c = ask(two)[0], ask(frame, by="condition")[0], compare(m, resample="seed", by="condition")[0]
    assert a.p_value == b.p_value == c.p_value
    assert (b.condition, b.baseline) == (c.condition, c.baseline) == ("injected", "plain")


def test_a_measurement_and_its_frame_agree_and_exclusions_are_counted_by_condition(rng):
    frames = {"a": run(rng), "b": run(rng)}
    conditions = {}
    for i, (name, frame) in enumerate(frames.items()):
        outcomes = np.full(240, Outcome.FOUND, dtype=object)
        outcomes[:i + 2] = Outcome.TOO_SHORT
        values = np.where(outcomes == Outcome.FOUND, frame["value"], np.nan)
        conditions[name] = Measurement("rate", {"rate": values}, outcomes, units={"rate": "per recurrence"},
                                       labels={"seed": SEED, "prompt": PROMPT})
    one = compare(conditions, resample="seed")[0]
    other = compare({n: m.to_frame() for n, m in conditions.items()}, resample="seed", variable="rate")[0]
    assert one.excluded == other.excluded == {"a": {"too short": 2}, "b": {"too short": 3}}
    assert (one.p_value, one.unit) == (other.p_value, "per recurrence")
    of_all = compare(conditions, resample="seed", statistic="share", of=Outcome.TOO_SHORT)[0]
    assert of_all.value == pytest.approx(1 / 240)
    assert of_all.excluded == {"a": {}, "b": {}}


def test_numbers_that_are_not_finite_are_left_out_as_missing(two):
    two["plain"].loc[[0, 7], "value"] = [np.nan, np.inf]
    assert ask(two)[0].excluded == {"injected": {}, "plain": {"missing": 2}}


def test_medians_and_functions_are_taken_of_all_orbits_of_a_unit(two):
    a, b = (f.groupby("seed")["value"].median().to_numpy() for f in two.values())
    expected = stats.ttest_ind(b, a, equal_var=False).pvalue
    assert ask(two, statistic="median")[0].p_value == pytest.approx(expected, rel=1e-12)
    assert ask(two, statistic=np.median)[0].p_value == pytest.approx(expected, rel=1e-12)
    assert ask(two, statistic=np.median, paired="prompt")[0].statistic == "median"


def test_the_same_seeds_unpaired_bring_a_note(two):
    assert any("paired='seed'" in note for note in ask(two)[0].notes)
    assert not ask(two, paired="seed")[0].notes
    two["plain"]["seed"] += 10
    assert not ask(two)[0].notes


def test_results_are_plain_data_and_print(two):
    found = ask({n: measured(f, factor=3) for n, f in two.items()}, variable=None, margin=1.0, test="webb",
                n_resamples=99)
    assert isinstance(found, Comparisons)
    assert isinstance(found[0], Comparison)
    assert len(found) == len(list(found)) == 1
    assert json.loads(json.dumps(found.to_dict()))["contrasts"][0]["settings"] == {"factor": 3}
    frame = found.to_frame()
    assert frame.loc[0, "condition_n"] == "seed=5; orbit=240"
    assert frame.loc[0, "margin_low"] == -1.0
    text = str(found)
    assert "rate, injected - plain: mean" in text
    assert "for new seeds, all else as recorded" in text
    assert "±" in text
    with pytest.raises(AttributeError):
        found[0].value = 3


def test_the_same_seed_gives_the_same_p_value(two):
    assert ask(two, test="webb", rng=3)[0].p_value == ask(two, test="webb", rng=3)[0].p_value
    assert ask(two, test="webb", rng=3)[0].p_value != ask(two, test="webb", rng=4)[0].p_value


@settings(max_examples=25, deadline=None)
@given(st.floats(-5, 5), st.floats(0.1, 10), st.booleans())
def test_shifts_and_scales_change_nothing_that_matters(shift, scale, paired):
    rng = np.random.default_rng(5)
    frames = {"a": run(rng), "b": run(rng, 0.7)}
    moved = {n: f.assign(value=shift + scale * f["value"]) for n, f in frames.items()}
    how = {"paired": "seed"} if paired else {}
    one, other = ask(frames, **how)[0], ask(moved, **how)[0]
    assert other.value == pytest.approx(scale * one.value, rel=1e-6)
    assert (other.p_value, other.effect_size) == pytest.approx((one.p_value, one.effect_size), rel=1e-6)


def test_doubling_every_token_narrows_nothing(two):
    doubled = {n: pd.concat([f, f]) for n, f in two.items()}
    assert ask(doubled)[0].p_value == pytest.approx(ask(two)[0].p_value, rel=1e-9)


def test_units_with_labels_too_many_for_a_table_are_compared_alike(two):
    sparse = {n: f.assign(prompt=f["prompt"] * 40_000 + f["seed"], token=np.arange(240)) for n, f in two.items()}
    how = {"resample": "seed > prompt > token"}
    assert ask(sparse, **how)[0].p_value == pytest.approx(ask(two, resample="seed > prompt")[0].p_value, rel=1e-9)
    assert ask(sparse, **how)[0].n["plain"] == {"seed": 5, "prompt": 40, "token": 240, "orbit": 240}


@pytest.mark.parametrize(("how", "words"), [
    ({"resample": "seed", "test": "z"}, "test must be one of t, permutation, webb, None; got 'z'"),
    ({"difference": "odds"}, "difference must be one of difference, ratio; got 'odds'"),
    ({"adjust": "bonferroni"}, "adjust must be one of holm, fdr_bh, None"),
    ({"confidence_level": 1.0}, "confidence_level must be a number between 0.5 and 1"),
    ({"n_resamples": 5}, "n_resamples must be a whole number of at least 99"),
    ({"margin": -1}, "margin must be a number above 0"),
    ({"margin": (1, 2)}, "margin must be .low, high. on both sides of 0"),
    ({"margin": (-math.inf, 2)}, "margin must be .low, high., both finite"),
    ({"margin": 0.9, "difference": "ratio"}, "margin must be a number above 1"),
    ({"margin": (-0.1, 2), "difference": "ratio"}, "both finite and positive"),
    ({"paired": ()}, "paired must be a label, several, or None"),
    ({"paired": "orbit"}, "paired='orbit' says nothing"),
    ({"paired": "layer"}, "no label 'layer'"),
    ({"resample": "model"}, "no label 'model'"),
    ({"statistic": "mode"}, "statistic must be one of mean, median, share or a function"),
    ({"statistic": "share"}, "a share needs of="),
    ({"of": "orbit"}, "of goes with statistic='share'"),
    ({"statistic": "share", "of": "orbit"}, "of='orbit' can never be one of them"),
    ({"variable": None}, "a frame needs variable="),
    ({"variable": "rate"}, "no column 'rate'"),
    ({"baseline": "none"}, "baseline must be one of the conditions plain, injected; got 'none'"),
    ({"by": "seed"}, "divided already"),
    ({"resample": "seed × prompt", "statistic": "median"}, "crossed units need a mean or a share"),
    ({"statistic": lambda x: np.nan}, "the statistic of a unit is not a finite number"),
])
def test_settings_that_cannot_be_are_refused(two, how, words):
    with pytest.raises(ValueError, match=words):
        ask(two, **how)


def test_conditions_that_cannot_be_compared_are_refused(two, rng):
    frame = two["plain"]
    m = measured(frame)
    for conditions, how, words in (
            ({"a": frame}, {}, "at least two conditions; got a"),
            (frame, {}, "one measurement and by="),
            (frame, {"by": "model"}, "by='model' is no column"),
            (m, {"by": "model", "variable": None}, "by='model' is no label"),
            ({"a": m, "b": frame}, {"variable": "rate"}, "no column 'rate'"),
            ({"a": m, "b": frame.rename(columns={"value": "rate"})}, {"variable": "rate"}, "the same variable"),
            ({"a": frame, "b": frame[:0]}, {}, "without rows"),
            ({"a": frame, "b": frame.assign(value=np.nan)}, {}, "no orbit of value has an answer"),
            ({"a": frame, "b": frame.assign(value="x")}, {}, "holds texts"),
            ({"a": frame, "b": frame.assign(seed=frame["seed"].astype(str))}, {}, "texts in one condition"),
            ({"a": frame, "b": frame[SEED < 2]}, {}, "needs at least 3 seeds in every condition; b has 2"),
            ({"a": frame, "b": frame.assign(seed=frame["seed"] + 9)}, {"paired": "seed"}, "nothing is left to compare"),
            ({"a": frame[PROMPT < 2], "b": frame[PROMPT < 2]}, {"resample": "seed × prompt"},
             "new prompts needs at least 3; a has 2")):
        with pytest.raises(ValueError, match=words):
            ask(conditions, **how)
    for bad, how in (({"a": [1], "b": [2]}, {}), ([1, 2], {"by": "seed"})):
        with pytest.raises(TypeError, match="must be a"):
            ask(bad, **how)
    curves = Measurement("c", {"c": np.zeros((240, 3))}, [Outcome.FOUND] * 240, labels={"seed": SEED})
    with pytest.raises(ValueError, match="3 values an orbit"):
        ask({"a": curves, "b": curves}, variable=None)
    regime = Measurement("r", {"r": np.full(240, "x")}, [Outcome.FOUND] * 240, labels={"seed": SEED},
                         categories={"r": ("x", "y")})
    with pytest.raises(ValueError, match="r is one of x, y; got of='z'"):
        ask({"a": regime, "b": regime}, variable=None, statistic="share", of="z")


def study(rng, shape, *, between, prompts=0.1, together=0.0, interaction=0.0, exponential=False):
    """Two conditions without a difference, (2, seeds, prompts, tokens): AR(1) tokens, shared prompts."""
    draw = (lambda size: rng.exponential(size=size) - 1) if exponential else (lambda size: rng.normal(size=size))
    noise = rng.normal(size=(2, *shape))
    noise[..., 1:] *= 0.6
    x = signal.lfilter([1], [1, -0.8], noise)
    x += math.sqrt(prompts) * rng.normal(size=(shape[1], 1))
    x += math.sqrt(interaction) * rng.normal(size=(2, 1, shape[1], 1))
    return x + math.sqrt(between) * (math.sqrt(together) * draw((1, shape[0], 1, 1))
                                     + math.sqrt(1 - together) * draw((2, shape[0], 1, 1)))


def false_alarms(rng, n_studies, shape, how, *, share=None, **design):
    """Studies in which `compare`, and a test of tokens, reject at 5 %."""
    labels = dict(zip(("seed", "prompt"), (v.ravel() for v in np.indices(shape)), strict=False))
    ours = theirs = 0
    for _ in range(n_studies):
        x = study(rng, shape, **design).reshape(2, -1)
        if share is not None:
            x = (x > share).astype(float)
            how = {**how, "statistic": "share", "of": 1.0}
        frames = {name: pd.DataFrame({"value": v, **labels}) for name, v in zip("ab", x, strict=True)}
        ours += compare(frames, variable="value", rng=rng, **how)[0].p_value <= 0.05
        theirs += stats.ttest_ind(x[0], x[1]).pvalue <= 0.05
    return int(ours), int(theirs)


DESIGNS = [({"resample": "seed", "paired": "prompt"}, {"between": 0.05}),
           ({"resample": "seed", "paired": ("seed", "prompt")}, {"between": 0.05, "together": 0.7}),
           ({"resample": "prompt", "paired": "prompt"}, {"between": 0.0, "interaction": 0.05}),
           ({"resample": "seed", "paired": "prompt"}, {"between": 0.05, "share": 2.6}),
           ({"resample": "seed × prompt", "paired": "prompt"}, {"between": 0.02, "interaction": 0.02})]


@pytest.mark.parametrize(("how", "design"), DESIGNS[:3])
def test_false_alarms_are_few_where_a_test_of_tokens_has_many(rng, how, design):
    ours, theirs = false_alarms(rng, 150, (5, 16, 32), how, **design)
    assert stats.binomtest(ours, 150, 0.05).pvalue > 0.001
    assert theirs > 45


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("how", "design"), DESIGNS)
def test_false_alarms_are_four_to_six_in_a_hundred(how, design):
    """2,000 studies of 5 seeds x 64 shared prompts x 128 tokens; the bounds leave room for their own error of 0.5 %."""
    rng = np.random.default_rng(20260222)
    ours, theirs = false_alarms(rng, 2000, (5, 64, 128), how, **design)
    assert stats.binomtest(ours, 2000, 0.04, "less").pvalue > 0.01
    assert stats.binomtest(ours, 2000, 0.06, "greater").pvalue > 0.01
    assert theirs > 600


def test_a_ratios_interval_covers_also_where_spreads_differ(rng):
    hits = 0
    for _ in range(600):
        a, b = rng.normal(1, 0.1, (5, 1)), rng.normal(10, 0.1, (5, 1))
        low, high = two_samples.ratio_interval(TwoSamples(a, b), 0.95)
        hits += low <= 10 <= high
    assert stats.binomtest(hits, 600, 0.95).pvalue > 0.01


@pytest.mark.parametrize("df", [3, 14, 62, 1000])
@pytest.mark.parametrize("t", [30.0, -45.0, 100.0])
def test_far_noncentralities_are_those_of_the_exact_distribution(df, t):
    exact = [float(special.nctdtrinc(df, p, t)) for p in (0.975, 0.025)]
    np.testing.assert_allclose(two_samples._noncentralities(df, t, 0.025), exact, rtol=4e-3)


def test_units_that_hardly_vary_have_a_standardised_difference_at_once():
    rng = np.random.default_rng(0)
    a = 1 + 1e-12 * rng.normal(size=(8, 1))
    size, low, high = two_samples.hedges_g(two_samples.TwoSamples(a, 2 + 1e-12 * rng.normal(size=(8, 1))), 0.95)
    assert 0 < low < size < high < 1e14
    np.testing.assert_allclose(two_samples.hedges_g(two_samples.TwoSamples(a, a + 1, paired=True), 0.95)[1:], np.nan)


def shared_prompts(rng, interaction=0.6):
    """Two conditions, the same prompts for all seeds; each condition treats each prompt in its own way."""
    seed, prompt = (i.ravel() for i in np.indices((5, 16)))
    common = 0.4 * rng.normal(size=16)[prompt]
    return {name: pd.DataFrame({"x": 0.3 * rng.normal(size=5)[seed] + common + interaction * rng.normal(size=16)[prompt]
                                + 0.3 * rng.normal(size=80), "seed": seed, "prompt": prompt}) for name in "ab"}


def test_nested_seeds_do_not_speak_of_new_prompts_where_all_share_them(rng):
    found = shared_prompts(rng)
    nested, = compare(found, variable="x", resample="seed > prompt")
    assert nested.target == "new seeds, all else as recorded"
    assert any("resample='seed × prompt', paired='prompt'" in note for note in nested.notes)
    own = {name: frame.assign(prompt=frame.seed * 100 + frame.prompt) for name, frame in found.items()}
    assert compare(own, variable="x", resample="seed > prompt")[0].target == \
        "new seeds and new prompts, all else as recorded"
    crossed, = compare(found, variable="x", resample="seed × prompt")
    assert any("paired='prompt' takes out" in note for note in crossed.notes)


def test_pairs_without_spread_are_called_pairs(rng):
    frame = shared_prompts(rng)["a"]
    same, = compare({"a": frame, "b": frame}, variable="x", resample="seed", paired="seed")
    assert any("all pairs of seeds differ by the same" in note for note in same.notes)


def test_conditions_and_pairs_that_are_none_are_refused(rng):
    frame = shared_prompts(rng)["a"]
    with pytest.raises(ValueError, match="names that differ; got 1, '1'"):
        compare({1: frame, "1": frame}, variable="x", resample="seed")
    with pytest.raises(ValueError, match="paired must be a label, several, or None; got True"):
        compare({"a": frame, "b": frame}, variable="x", resample="seed", paired=True)
    with pytest.raises(ValueError, match="by='kind' is missing for 80 of 160 rows"):
        compare(pd.concat([frame.assign(kind="u"), frame.assign(kind=None)]), by="kind", variable="x", resample="seed")
