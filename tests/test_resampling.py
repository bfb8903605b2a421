"""Weights, plans and exact sums: against enumeration, numpy and slow twins; the same bits for any thread and shard."""

import math

import numba
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dynloop import Measurement, Outcome, estimate
from dynloop.kernels.resampling import POISSON, block_indices
from dynloop.statistics.exact_sums import exact_sums, weighted
from dynloop.statistics.nesting import Nesting, ranks
from dynloop.statistics.poisson_sums import poisson_sums, unit_keys
from dynloop.statistics.resampling import (
    AnyFunction,
    Quantile,
    Ratio,
    crossed_plan,
    nested_plan,
    poisson_plan,
    replicates,
    without,
)
from dynloop.statistics.units import group


def units(*codes, crossed=False):
    """Leaves of rows with these codes at each level."""
    names = tuple("abcde"[:len(codes)])
    return group(np.array(codes), Nesting(names, crossed))


def drawn(plan, n=4000, seed=1):
    weights = np.empty((n, plan.n_leaves))
    plan.fill(np.uint64(seed), 0, weights)
    return weights


def test_a_cluster_resample_draws_as_many_units_as_there_are_with_multinomial_counts():
    weights = drawn(nested_plan(units(np.arange(7))), 20_000)
    assert (weights.sum(1) == 7).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=4 * math.sqrt(6 / 7 / 20_000))
    expected = np.eye(7) - 1 / 7  # covariance of multinomial counts
    np.testing.assert_allclose(np.cov(weights.T, bias=True), expected, atol=0.05)


def test_five_units_give_the_distribution_of_all_3125_resamples():
    x = np.array([0.3, 1.1, 1.9, 2.2, 5.0])
    every = np.sort([x[list(i)].mean() for i in np.ndindex(5, 5, 5, 5, 5)])
    own = replicates(nested_plan(units(np.arange(5))), Ratio(x, np.ones(5)), 200_000, 0)
    for q in (0.025, 0.1, 0.5, 0.9, 0.975):
        at = np.quantile(every, q)
        assert (own <= at + 1e-9).mean() == pytest.approx((every <= at + 1e-9).mean(), abs=0.004)
    assert own.std() == pytest.approx(x.std() / math.sqrt(5), rel=0.01)


def test_nested_units_are_drawn_within_each_drawn_unit():
    outer, inner = [0, 0, 0, 1, 1, 2], np.arange(6)
    weights = drawn(nested_plan(units(outer, inner)), 30_000)
    of_outer = np.stack([weights[:, :3].sum(1) / 3, weights[:, 3:5].sum(1) / 2, weights[:, 5]], axis=1)
    assert (of_outer == of_outer.astype(int)).all()
    assert (of_outer.sum(1) == 3).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.03)
    # within m draws of a unit its n parts get multinomial counts of m n draws
    twice = weights[of_outer[:, 0] == 2][:, :3]
    np.testing.assert_allclose(twice.var(0), 6 * (1 / 3) * (2 / 3), atol=0.08)


def test_strata_keep_their_sizes():
    weights = drawn(nested_plan(units([0, 0, 0, 1, 1], np.arange(5)), fixed=1))
    assert (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:].sum(1) == 2).all()
    assert weights[:, 0].var() == pytest.approx(2 / 3, rel=0.1)


def test_crossed_weights_are_products_and_a_missing_cell_stays_missing():
    held = units([0, 0, 1, 1, 2], [0, 1, 0, 1, 0], crossed=True)
    weights = drawn(crossed_plan(held), 20_000)
    full = weights[(weights[:, [0, 2, 4]] > 0).all(1)]
    np.testing.assert_array_equal(full[:, 0] * full[:, 3], full[:, 1] * full[:, 2])  # rank one
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.05)
    assert weights.shape[1] == 5


def test_replicates_do_not_depend_on_where_a_batch_begins():
    for plan in (nested_plan(units(np.arange(9))), poisson_plan(unit_keys(np.arange(9))),
                 crossed_plan(units([0, 0, 1, 1], [0, 1, 0, 1], crossed=True))):
        whole = drawn(plan, 40, seed=3)
        tail = np.empty((12, plan.n_leaves))
        plan.fill(np.uint64(3), 28, tail)
        np.testing.assert_array_equal(tail, whole[28:])


@pytest.mark.parametrize("kind", ["cluster", "poisson", "nested", "crossed"])
def test_every_kind_of_weight_gives_the_standard_error_of_the_theory(rng, kind):
    # a hash that is cut to 32 bits once gave constant weights: the ratio of standard errors was 0
    n = 400
    x = rng.normal(size=n)
    plan = {"cluster": lambda: nested_plan(units(np.arange(n))),
            "poisson": lambda: poisson_plan(unit_keys(np.arange(n))),
            "nested": lambda: nested_plan(units(np.arange(n), np.arange(n))),
            "crossed": lambda: crossed_plan(units(np.arange(n), np.zeros(n, int), crossed=True))}[kind]()
    own = replicates(plan, Ratio(x, np.ones(n)), 20_000, 0)
    assert own.std() / (x.std() / math.sqrt(n)) == pytest.approx(1, abs=0.03)
    assert stats.kstest((own - x.mean()) / own.std(), "norm").statistic < 0.02


def test_poisson_weights_have_the_frequencies_of_poisson_and_no_memory():
    share = np.bincount(POISSON, minlength=9) / 65536
    np.testing.assert_allclose(share, stats.poisson.pmf(np.arange(9), 1), atol=2e-5)
    assert (share * np.arange(9)).sum() == pytest.approx(1, abs=1e-4)
    weights = drawn(poisson_plan(unit_keys(np.arange(300))), 4000)
    assert weights.mean() == pytest.approx(1, abs=0.004)
    assert weights.var() == pytest.approx(1, abs=0.01)
    by_unit = np.corrcoef(weights.T) - np.eye(300)
    assert np.abs(by_unit).max() < 5.5 / math.sqrt(4000)
    by_replicate = np.corrcoef(weights[:300]) - np.eye(300)
    assert np.abs(by_replicate).max() < 5.5 / math.sqrt(300)


@pytest.mark.parametrize(("statistic", "variables"), [("mean", 1), ("median", 1), ("studentised", 1), ("ratio", 2)])
def test_one_thread_and_two_give_the_same_bits(rng, statistic, variables):
    n = 20_000
    m = Measurement("rate", {"rate": rng.normal(size=n), "size": rng.random(n) + 1}, [Outcome.FOUND] * n,
                    labels={"prompt": rng.integers(0, 2000, n)})
    found = []
    threads = numba.get_num_threads()
    for count in {1, threads}:
        numba.set_num_threads(count)
        found.append(estimate(m, statistic="mean" if statistic == "studentised" else statistic, resample="prompt",
                              variable=("rate", "size") if variables == 2 else None,
                              method="studentised" if statistic == "studentised" else "percentile"))
    numba.set_num_threads(threads)
    assert all(e == found[0] for e in found)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_weighted_quantile_is_numpys_of_the_repeated_values(seed):
    rng = np.random.default_rng(seed)
    n, n_units = int(rng.integers(2, 200)), int(rng.integers(1, 20))
    x = np.round(rng.normal(size=n), int(rng.integers(0, 3)))  # ties
    held = units(np.unique(np.r_[np.arange(min(n, n_units)), rng.integers(0, n_units, max(n - n_units, 0))],
                           return_inverse=True)[1])
    q = float(rng.choice([0.0, 0.1, 0.5, 0.77, 1.0]))
    statistic = Quantile(x, held, q)
    weights = drawn(nested_plan(held), 20, seed=seed % 1000)
    slow = [np.quantile(np.repeat(x, w[held.of_row].astype(int)), q) for w in weights]
    np.testing.assert_allclose(statistic(weights), slow, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(AnyFunction(x, held, lambda v: np.quantile(v, q))(weights), slow, rtol=1e-13)


def test_leaving_out_a_unit_leaves_out_its_rows(rng):
    x, code = rng.normal(size=60), np.arange(60) // 12
    held = units(code, np.arange(60) // 4)
    sums = np.bincount(held.of_row, x)
    slow = [x[code != u].mean() for u in range(5)]
    np.testing.assert_allclose(without(Ratio(sums, held.sizes), held, 0), slow, rtol=1e-12)
    np.testing.assert_allclose(without(AnyFunction(x, held, np.mean), held, 0), slow, rtol=1e-12)
    np.testing.assert_allclose(without(Quantile(x, held, 0.5), held, 0), [np.median(x[code != u]) for u in range(5)])


@pytest.mark.parametrize("stationary", [True, False])
def test_blocks_follow_the_series_and_wrap_around_its_end(stationary):
    out = np.empty((500, 200), dtype=np.int64)
    block_indices(np.uint64(1), 0, 200, 8.0, stationary, out)
    assert (np.bincount(out.ravel(), minlength=200) > 0).all()
    follows = np.diff(out, axis=1) % 200 == 1
    new = 1 - follows.mean()
    # a new block begins where the last one ended in one of 200 cases: then it follows after all
    assert new == pytest.approx((1 / 8 if stationary else 24 / 199) * (1 - 1 / 200), rel=0.03)
    if not stationary:
        assert follows[:, np.arange(199) % 8 != 7].all()


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(numbers, st.integers(0, 3)), max_size=60), st.randoms())
@settings(max_examples=150, deadline=None)
def test_exact_sums_are_fsum_in_any_order_and_any_split(pairs, random):
    if sum(abs(x) for x, _ in pairs) > 1e308:
        return
    x, unit = np.array([p[0] for p in pairs], dtype=float), np.array([p[1] for p in pairs], dtype=np.int64)
    whole = exact_sums(x, unit, 4)
    np.testing.assert_allclose(whole.rounded(), [math.fsum(x[unit == u]) for u in range(4)], rtol=3e-16, atol=5e-324)
    order = list(range(len(x)))
    random.shuffle(order)
    cut = random.randint(0, len(x))
    parts = exact_sums(x[order][:cut], unit[order][:cut], 4) + exact_sums(x[order][cut:], unit[order][cut:], 4)
    assert parts.lowest == whole.lowest
    np.testing.assert_array_equal(parts.parts, whole.parts)


def test_weighted_exact_sums_are_whole_numbers_times_sums(rng):
    x = rng.normal(size=500) * 10.0 ** rng.integers(-12, 12, 500)
    sums = exact_sums(x, np.arange(500), 500)
    weights = rng.poisson(1, size=(20, 500)).astype(float)
    own = weighted(weights, sums)
    places = [2.0 ** (32 * (sums.lowest + j)) for j in range(own.shape[1])]
    np.testing.assert_allclose((own * places).sum(1), [math.fsum(np.repeat(x, w.astype(int))) for w in weights],
                               rtol=1e-15)


def shard_frame(rng, n=6000, n_prompts=120):
    return pd.DataFrame({"prompt": rng.integers(0, n_prompts, n), **{
        f"v{k}": rng.normal(size=n) * 10.0 ** (3 * k - 12) for k in range(8)}})


@given(seed=st.integers(0, 2**32 - 1), n_parts=st.integers(2, 9))
@settings(max_examples=8, deadline=None)
def test_any_split_into_shards_merged_in_any_order_gives_the_same_bits(seed, n_parts):
    rng = np.random.default_rng(seed)
    frame = shard_frame(rng)
    names = [f"v{k}" for k in range(8)]
    ask = {"resample": "prompt", "variables": names, "n_resamples": 200}
    whole = poisson_sums(frame, **ask)
    of_row = rng.integers(0, n_parts, len(frame))  # prompts are split as well
    parts = [poisson_sums(frame[of_row == i], **ask) for i in rng.permutation(n_parts)]
    merged = sum(parts[1:], parts[0])
    left, right = sum(parts[1:n_parts // 2], parts[0]), sum(parts[n_parts // 2 + 1:], parts[n_parts // 2])
    for other in (merged, right + left if n_parts > 3 else merged):
        assert other.replicates.lowest == whole.replicates.lowest
        np.testing.assert_array_equal(other.replicates.parts, whole.replicates.parts)
        np.testing.assert_array_equal(other.keys, whole.keys)
        assert all(other.estimate(v) == whole.estimate(v) for v in names)


def test_eight_statistics_have_the_same_bits_for_one_thread_and_two(rng):
    frame = shard_frame(rng, 40_000, 8192)
    ask = {"resample": "prompt", "variables": [f"v{k}" for k in range(8)], "n_resamples": 3000}
    threads, found = numba.get_num_threads(), []
    for count in {1, threads}:
        numba.set_num_threads(count)
        found.append(poisson_sums(frame, **ask).replicates)
    numba.set_num_threads(threads)
    for other in found:
        np.testing.assert_array_equal(other.parts, found[0].parts)


def test_shards_say_what_the_whole_says(rng):
    frame = shard_frame(rng)
    e = poisson_sums(frame, resample="prompt", variables=["v4"]).estimate()
    whole = estimate(frame, variable="v4", statistic="mean", resample="prompt", method="percentile")
    assert (e.value, e.n, e.n_units, e.target) == (pytest.approx(whole.value), 6000, 120, "these models")
    assert (e.low, e.high) == pytest.approx((whole.low, whole.high), abs=0.15 * (whole.high - whole.low))


def test_the_weights_of_a_unit_do_not_depend_on_how_its_label_is_stored():
    keys = unit_keys(np.array([3, 8]))
    np.testing.assert_array_equal(unit_keys(np.array([3.0, 8.0])), keys)
    np.testing.assert_array_equal(unit_keys(np.array([3, 8], np.int16)), keys)
    assert unit_keys(np.array(["3"]))[0] != keys[0]


def test_shards_that_do_not_belong_together_are_refused(rng):
    frame = shard_frame(rng)
    one = poisson_sums(frame, resample="prompt", variables=["v1"], n_resamples=100)
    for change, words in (({"seed": 1}, "different seed"), ({"variables": ["v2"]}, "different variables"),
                          ({"n_resamples": 200}, "100 and 200 replicates")):
        with pytest.raises(ValueError, match=words):
            one + poisson_sums(frame, **{"resample": "prompt", "variables": ["v1"], "n_resamples": 100, **change})
    with pytest.raises(ValueError, match="no variable 'v2' was summed"):
        one.estimate("v2")
    with pytest.raises(ValueError, match="units of one label"):
        poisson_sums(frame, resample="prompt > v1", variables=["v1"])
    with pytest.raises(ValueError, match="at least 40 units; got 3 prompts"):
        poisson_sums(frame[frame.prompt < 3], resample="prompt", variables=["v1"], n_resamples=100).estimate()


def test_shards_count_what_they_leave_out(rng):
    def shard(n_bad):
        outcomes = [Outcome.FOUND] * 50 + [Outcome.TOO_SHORT] * n_bad
        values = np.r_[rng.normal(size=50), [np.nan] * n_bad]
        return poisson_sums(Measurement("rate", {"rate": values}, outcomes, labels={"prompt": np.arange(50 + n_bad)}),
                            resample="prompt", n_resamples=100)

    assert (shard(2) + shard(3)).estimate().excluded == {"too short": 5}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, float, str, object])
def test_ranks_are_those_of_sorted_labels_whatever_their_type(rng, dtype):
    values = rng.integers(-120 if np.dtype(dtype).kind in "if" else 0, 120, size=300).astype(dtype)
    np.testing.assert_array_equal(ranks(values), np.unique(values, return_inverse=True)[1])
    far = np.array([0, 2**62, 5, 2**62]) if dtype is np.int64 else values[:4]
    np.testing.assert_array_equal(ranks(far), np.unique(far, return_inverse=True)[1])
