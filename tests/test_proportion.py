"""Prevalence corrected for a classifier's errors: against closed forms, a Monte Carlo oracle, and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from dynloop import Estimate, Measurement, Outcome, estimate, proportion
from dynloop.statistics.nesting import Nesting
from dynloop.statistics.proportion import prevalence
from dynloop.statistics.share import clopper_pearson, effective_counts
from dynloop.statistics.units import group

PERFECT = {"false_alarms": (0, 10**9)}


def counts(called, unit_of):
    """Effective events and number of rows within units of one level."""
    own = effective_counts(called, group(np.asarray(unit_of)[None], Nesting(("prompt",))), 0.95)
    return own.events, own.n


def regimes(counts, n_tokens=20):
    """A measurement with so many orbits called 'orbit' in each prompt."""
    called = np.where(np.arange(n_tokens) < np.asarray(counts)[:, None], "orbit", "fixed point").ravel()
    labels = {"prompt": np.arange(len(counts)).repeat(n_tokens), "model": np.full(called.size, "nano")}
    return Measurement("regime", {"regime": called}, [Outcome.FOUND] * called.size, settings={"max_period": 16},
                       labels=labels, categories={"regime": ("orbit", "fixed point")})


def melded_by_draws(events, n, power, false_alarms, level, n_draws=2_000_000):
    """Bayer, Fay and Graubard's interval as they compute it: quantiles of draws from the confidence distributions."""
    rng = np.random.default_rng(0)

    def draw(x, tried, upper):
        if x == (tried if upper else 0):
            return np.full(n_draws, float(upper))
        return rng.beta(x + upper, tried - x + (not upper), n_draws)

    def limit(upper):
        p, s, a = draw(events, n, upper), draw(*power, not upper), draw(*false_alarms, not upper)
        q = np.clip((p - a) / np.where(s > a, s - a, np.nan), 0, 1)
        q[s <= a] = upper
        return np.quantile(q, (1 + level) / 2 if upper else (1 - level) / 2)

    return limit(False), limit(True)


@pytest.mark.parametrize(("events", "n", "power", "false_alarms", "level"), [
    (40, 8000, (180, 200), (20, 10_000), 0.95),
    (40.7, 1600.3, (180, 200), (20, 10_000), 0.95),  # effective numbers
    (4, 20_480, (95, 100), (1, 10**6), 0.95),
    (25, 20_480, (980, 1000), (1000, 10**6), 0.9),
    (0, 320, (60, 100), (0, 10_000), 0.95),
    (0, 320, (60, 100), (3, 10_000), 0.95),
    (320, 320, (60, 60), (3, 100), 0.99),
    (50, 100, (5, 6), (2, 6), 0.95),  # the power may well lie below the false-alarm rate
    (900, 1000, (90, 100), (30, 1000), 0.95),
    (3, 1000, (20, 20), (0, 50), 0.95),
])
def test_the_interval_is_that_of_melding_by_monte_carlo(events, n, power, false_alarms, level):
    _, low, high = prevalence(events, n, power, false_alarms, level)
    assert (low, high) == pytest.approx(melded_by_draws(events, n, power, false_alarms, level), rel=0.012, abs=2e-6)


@pytest.mark.parametrize(("events", "n", "level"), [(0, 20, 0.95), (1, 1319, 0.95), (37, 1319, 0.9), (20, 20, 0.99)])
def test_without_errors_the_interval_is_clopper_and_pearsons(events, n, level):
    assert prevalence(events, n, None, None, level)[1:] == pytest.approx(clopper_pearson(events, n, level), rel=1e-8)


def test_known_rates_shift_and_stretch_clopper_and_pearsons_interval():
    n = 10**10  # as good as known
    value, low, high = prevalence(30, 1000, (8 * n // 10, n), (n // 100, n), 0.95)
    assert value == pytest.approx((0.03 - 0.01) / 0.79)
    exact = [(limit - 0.01) / 0.79 for limit in clopper_pearson(30, 1000, 0.95)]
    assert (low, high) == pytest.approx(exact, rel=1e-3)


def test_the_estimate_inverts_the_classifier_exactly():
    q, s, a = 0.3, 0.8, 0.1
    called = s * q + a * (1 - q)
    assert prevalence(called * 1000, 1000, (80, 100), (10, 100), 0.95)[0] == pytest.approx(q, rel=1e-12)


def test_less_known_rates_widen_the_interval_and_do_not_move_the_estimate():
    widths, values = [], []
    for tries in (10, 100, 1000, 10**5):
        value, low, high = prevalence(300, 1000, (8 * tries // 10, tries), (tries // 10, tries), 0.95)
        widths.append(high - low)
        values.append(value)
    assert np.all(np.diff(widths) < 0)
    np.testing.assert_allclose(values, values[0], rtol=1e-12)


def test_a_higher_level_gives_a_wider_interval_around_it():
    m = regimes([2] * 30 + [0] * 70)
    wide, narrow = (proportion(m, of="orbit", resample="prompt", power=(90, 100), false_alarms=(5, 1000),
                               confidence_level=level) for level in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    assert wide.confidence_level == 0.99


def test_no_event_gets_the_exact_upper_bound_of_its_units():
    e = proportion(regimes([0] * 50), of="orbit", resample="prompt", false_alarms=(0, 1000))
    assert (e.value, e.low) == (0, 0)
    assert e.high == pytest.approx(1 - 0.025 ** (1 / 50), rel=1e-9)
    assert "each unit counts once" in e.method
    weak = proportion(regimes([0] * 50), of="orbit", resample="prompt", power=(50, 100))
    assert weak.high > 1.8 * e.high  # half of them would not be seen
    everything = proportion(regimes([20] * 50), of="orbit", resample="prompt", power=(100, 100))
    assert everything.high == 1
    assert everything.low == pytest.approx(0.025 ** (1 / 50), rel=1e-9)  # a power that may be lower lifts no limit


def test_as_many_calls_as_false_alarms_are_no_evidence():
    e = proportion(regimes([1] * 20 + [0] * 80), of="orbit", resample="orbit", false_alarms=(100, 10_000))
    assert (e.value, e.low) == (0, 0)
    assert 0 < e.high < 0.01


def test_calls_far_beyond_the_power_are_truncated_at_one():
    e = proportion(regimes([20] * 90 + [0] * 10), of="orbit", resample="orbit", power=(50, 100))
    assert (e.value, e.high) == (1, 1)


@pytest.mark.parametrize("counts", [[12] + [0] * 49, [1] * 9 + [3] + [0] * 40])
def test_few_clustered_events_get_the_interval_that_estimate_gives(counts):
    own = proportion(regimes(counts), of="orbit", resample="prompt", **PERFECT)
    theirs = estimate(regimes(counts), statistic="share", of="orbit", resample="prompt")
    assert (own.value, own.low, own.high) == pytest.approx((theirs.value, theirs.low, theirs.high), rel=1e-5)


def test_events_within_prompts_count_less_than_events_apart():
    together = proportion(regimes([20] * 60 + [0] * 140), of="orbit", resample="prompt", power=(95, 100))
    apart = proportion(regimes([6] * 200), of="orbit", resample="orbit", power=(95, 100))
    assert together.value == apart.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert "design effect 20" in together.method
    assert "orbits independent" in apart.method


def test_the_design_effect_is_the_variance_between_prompts_over_the_binomial_one(rng):
    called = np.repeat(rng.random(400) < 0.4, 25)
    events, n = counts(called, np.arange(10_000) // 25)
    assert n == pytest.approx(400, rel=0.03)  # 25 tokens that agree are one
    assert events / n == called.mean()
    mixed = rng.permutation(called)
    assert counts(mixed, np.arange(10_000) // 25)[1] > 7000


def test_order_and_names_change_nothing(rng):
    m = regimes(rng.integers(0, 4, 60))
    shuffle = rng.permutation(m.n_orbits)
    other = Measurement("regime", {"regime": m.values[shuffle]}, m.outcomes,
                        labels={"prompt": np.char.add("p", m.labels["prompt"][shuffle].astype(str))})
    one, two = (proportion(x, of="orbit", resample="prompt", power=(90, 100), false_alarms=(1, 100))
                for x in (m, other))
    assert (one.value, one.low, one.high) == (two.value, two.low, two.high)


def test_the_estimate_says_what_was_corrected_and_by_what():
    m = regimes([1] * 40 + [0] * 360)
    e = proportion(m, of="orbit", resample="prompt", power=(180, 200), false_alarms=(20, 10_000))
    assert isinstance(e, Estimate)
    assert e.statistic == "prevalence of orbit"
    for words in ("Rogan-Gladen", "melded", "share 0.005", "power 180 of 200", "false alarms 20 of 10000",
                  "design effect 5"):
        assert words in e.method
    assert (e.name, e.n, e.n_units, e.resample, e.unit) == ("regime", 8000, 400, "prompt", "")
    assert (e.settings, e.labels) == ({"max_period": 16}, {"model": "nano"})
    assert "power taken as 1" in proportion(m, of="orbit", resample="prompt", false_alarms=(20, 10_000)).method
    assert "false alarms taken as none" in proportion(m, of="orbit", resample="prompt", power=(180, 200)).method


def test_only_answered_orbits_enter_but_an_outcome_counts_among_all():
    values = np.array(["orbit"] * 10 + ["fixed point"] * 20 + [""] * 10)
    outcomes = [Outcome.FOUND] * 30 + [Outcome.TOO_SHORT] * 10
    m = Measurement("regime", {"curve": np.zeros((40, 3)), "regime": values}, outcomes,
                    labels={"prompt": np.arange(40)})
    e = proportion(m, of="orbit", variable="regime", resample="prompt", power=(100, 100))
    assert (e.value, e.n, e.excluded) == (pytest.approx(1 / 3), 30, {"too short": 10})
    e = proportion(m, of=Outcome.TOO_SHORT, resample="orbit", power=(100, 100), false_alarms=(0, 100))
    assert (e.value, e.n, e.statistic) == (0.25, 40, "prevalence of too short")


def test_fewer_calls_than_false_alarms_alone_would_be_is_warned_of():
    with pytest.warns(UserWarning, match="fewer than the false alarms alone would be \\(0.05\\)"):
        e = proportion(regimes([1] * 5 + [0] * 195), of="orbit", resample="orbit", false_alarms=(500, 10_000))
    assert (e.value, e.low, e.high) == (0, 0, 0)


def test_few_prompts_bring_no_word_about_a_bootstrap_that_is_not_used():
    e = proportion(regimes([10] * 6 + [0] * 6), of="orbit", resample="prompt", power=(90, 100))  # warnings are errors
    assert e.low < 0.5 < e.high


@pytest.mark.parametrize(("change", "words"), [
    ({"power": None}, "needs power=\\(called, tried\\), false_alarms=\\(called, tried\\) or both; got neither"),
    ({"power": 0.9}, "power must be \\(called, tried\\).*got 0.9. A rate alone"),
    ({"power": (11, 10)}, "power must be"),
    ({"power": (0, 0)}, "power must be"),
    ({"power": (-1, 5)}, "power must be"),
    ({"power": (True, 5)}, "power must be"),
    ({"power": (4.5, 5)}, "power must be"),
    ({"power": (1, 2, 3)}, "power must be"),
    ({"false_alarms": "1 of 5"}, "false_alarms must be"),
    ({"false_alarms": (95, 100)}, "the power must exceed the false-alarm rate; got 0.9 and 0.95"),
    ({"power": (0, 10)}, "the power must exceed the false-alarm rate; got 0 and 0"),
    ({"of": "orbits"}, "one of orbit, fixed point; got of='orbits'"),
    ({"of": None}, "needs of="),
    ({"resample": "token"}, "or the labels prompt, model"),
    ({"confidence_level": 95}, "between 0 and 1"),
    ({"resample": "model"}, "1 model cannot say how models differ"),
])
def test_what_cannot_be_done_is_refused_with_words(change, words):
    with pytest.raises(ValueError, match=words):
        proportion(regimes([1] * 20 + [0] * 20), **{"of": "orbit", "resample": "prompt", "power": (9, 10), **change})


@pytest.mark.parametrize("left_out", ["of", "resample"])
def test_what_has_no_default_must_be_said(left_out):
    said = {"of": "orbit", "resample": "prompt", "power": (9, 10)}
    del said[left_out]
    with pytest.raises(TypeError, match=left_out):
        proportion(regimes([1, 0]), **said)


def study(rng, q, a, s, n_false, n_power, n_prompts, n_tokens, run, concentration):
    """Runs of `run` tokens in prompts of beta-distributed prevalence, a classifier, and its two rates measured."""
    of_prompt = rng.beta(q * concentration, (1 - q) * concentration, n_prompts) if concentration else q
    true = rng.random((n_prompts, n_tokens // run)) < np.reshape(of_prompt, (-1, 1))
    true = np.repeat(true, run, axis=1)
    called = np.where(true, rng.random(true.shape) < s, rng.random(true.shape) < a)
    return called, (rng.binomial(n_power, s), n_power), (rng.binomial(n_false, a), n_false)


def coverage(rng, n_studies, q, *setting):
    """Share of studies whose interval holds q, of the corrected and of the plain exact interval."""
    hits = np.zeros(2)
    for _ in range(n_studies):
        called, power, false_alarms = study(rng, q, *setting)
        events, n = counts(called.ravel(), np.arange(called.size) // called.shape[1])
        _, low, high = prevalence(events, n, power, false_alarms, 0.95)
        plain = clopper_pearson(events, n, 0.95)
        hits += low <= q <= high, plain[0] <= q <= plain[1]
    return hits / n_studies


def test_a_prevalence_below_the_false_alarm_rate_is_covered_and_the_plain_share_is_not(rng):
    corrected, plain = coverage(rng, 60, 2e-4, 1e-3, 0.9, 10**6, 1000, 1319, 64, 4, 0)
    assert corrected >= 0.9  # 60 studies; the slow test has thousands
    assert plain < 0.5


def test_clustered_regimes_are_covered_whatever_the_rates(rng):
    corrected, plain = coverage(rng, 60, 0.3, 0.05, 0.8, 500, 200, 80, 16, 1, 4)
    assert corrected >= 0.88
    assert plain < corrected


WIDE = [(q, a, s, n_false, n_power, *design)
        for q in (0.0, 2e-4, 2e-3, 0.03, 0.3)
        for a, n_false in ((1e-6, 10**6), (1e-4, 10**5), (1e-3, 10**6), (1e-3, 10**4), (0.03, 1000))
        for s, n_power in ((0.6, 100), (0.98, 1000))
        for design in ((320, 64, 4, 0 if q < 1e-3 else 8), (40, 20, 1, 0 if q < 1e-3 else 4), (1319, 16, 1, 0))]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(10))
def test_coverage_is_nominal_from_a_prevalence_of_nought_to_a_third(part):
    """150 settings of 200 studies: 30,000 intervals, each setting at least 90 %, all together at least 95 %."""
    rng = np.random.default_rng(part)
    settings = WIDE[part::10]
    found = np.array([coverage(rng, 200, *setting)[0] for setting in settings])
    worst = int(found.argmin())
    assert found.min() >= 0.95 - 3.3 * math.sqrt(0.95 * 0.05 / 200), (settings[worst], found[worst])
    assert stats.binomtest(int(found.sum() * 200), 200 * len(settings), 0.95, "less").pvalue > 0.01


def test_rates_that_do_not_fit_are_told_beside_the_number():
    m = Measurement("regime", {"regime": np.where(np.arange(800) % 4, "fixed point", "orbit")}, [Outcome.FOUND] * 800,
                    labels={"prompt": np.arange(800) // 20})
    with pytest.warns(UserWarning, match="fewer than the false alarms"):
        e = proportion(m, of="orbit", resample="prompt", false_alarms=(900, 1000))
    assert any("the rates were not measured on orbits like these" in note for note in e.notes)
