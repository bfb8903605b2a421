"""Intervals from resamples and from units: against scipy, arch, statsmodels, R's published values and enumeration."""

import arch.bootstrap
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats

from dynloop import Measurement, Outcome, estimate
from dynloop.statistics import intervals
from dynloop.statistics.nesting import Nesting
from dynloop.statistics.resampling import AnyFunction, Ratio, nested_plan, replicates, without
from dynloop.statistics.units import group

# scipy's test suite (test_resampling.py, test_bootstrap_against_R), from R 4.1 and boot 1.3.28, a million resamples:
#   x <- c(10, 12, 12.5, 12.5, 13.9, 15, 21, 22, 23, 34, 50, 81, 89, 121, 134, 213)
#   stat <- function(x, i) mean(x[i]); boot.ci(boot(x, stat, R = 1000000), conf = .95, type = ...)
SAMPLE = np.array([10, 12, 12.5, 12.5, 13.9, 15, 21, 22, 23, 34, 50, 81, 89, 121, 134, 213])
FROM_R = {"basic": (23.77, 79.12), "percentile": (28.86, 84.21), "BCa": (32.31, 91.43)}


def rows(x):
    """Rows that are their own units."""
    return group(np.arange(len(x))[None], Nesting(("orbit",)))


@pytest.mark.filterwarnings("ignore:16 orbits are few")
@pytest.mark.parametrize("method", FROM_R)
def test_the_intervals_of_sixteen_numbers_are_rs(method):
    m = Measurement("x", {"x": SAMPLE}, [Outcome.FOUND] * 16)
    e = estimate(m, statistic="mean", resample="orbit", method=method, n_resamples=1_000_000)
    assert (e.low, e.high) == pytest.approx(FROM_R[method], rel=0.005)


@pytest.mark.parametrize(("method", "own"), [
    ("percentile", lambda v, d, j: intervals.percentile(d, 0.9)),
    ("basic", lambda v, d, j: intervals.basic(v, d, 0.9)), ("BCa", lambda v, d, j: intervals.bca(v, d, j, 0.9))])
@pytest.mark.parametrize("statistic", [np.mean, np.std])
def test_from_the_same_resamples_the_interval_is_scipys(rng, method, own, statistic):
    x = rng.exponential(size=60)
    held = rows(x)
    at = AnyFunction(x, held, statistic)
    resampled = replicates(nested_plan(held), at, 2000, 0)
    seen = stats._resampling.BootstrapResult(None, resampled, None)
    theirs = stats.bootstrap((x,), statistic, n_resamples=0, bootstrap_result=seen, method=method, confidence_level=0.9)
    found = own(at.value, resampled, without(at, held, 0))
    assert found == pytest.approx(tuple(theirs.confidence_interval), rel=1e-10)


@pytest.mark.parametrize("method", ["BCa", "percentile", "basic"])
def test_the_cluster_bootstrap_is_scipys_and_archs_of_unit_means(rng, method):
    values = (rng.exponential(size=(50, 1)) + rng.normal(size=(50, 20))).ravel()
    frame = pd.DataFrame({"prompt": np.arange(1000) // 20, "x": values})
    e = estimate(frame, variable="x", statistic="mean", resample="prompt", method=method, n_resamples=40_000)
    means = values.reshape(50, 20).mean(1)
    theirs = stats.bootstrap((means,), np.mean, n_resamples=40_000, method=method, rng=np.random.default_rng(1))
    width = e.high - e.low
    assert (e.low, e.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02 * width)
    archs = arch.bootstrap.IIDBootstrap(means, seed=np.random.default_rng(2)).conf_int(
        np.mean, 20_000, method=method.lower()).ravel()
    assert (e.low, e.high) == pytest.approx(tuple(archs), abs=0.025 * width)


def test_the_studentised_interval_is_archs(rng):
    x = rng.exponential(size=45)

    def error(mean, x):
        return x.std(ddof=1) / np.sqrt(len(x))

    frame = pd.DataFrame({"prompt": np.arange(45), "x": x})
    e = estimate(frame, variable="x", statistic="mean", resample="prompt", method="studentised", n_resamples=40_000)
    theirs = arch.bootstrap.IIDBootstrap(x, seed=np.random.default_rng(2)).conf_int(
        lambda x: x.mean(), 20_000, method="studentized", std_err_func=error).ravel()
    assert (e.low, e.high) == pytest.approx(tuple(theirs), abs=0.04 * (e.high - e.low))


def test_the_t_interval_is_statsmodels_cluster_robust_one(rng):
    values = (rng.normal(size=(6, 1)) + rng.normal(size=(6, 30))).ravel()
    seed = np.arange(180) // 30
    fit = sm.OLS(values, np.ones((180, 1))).fit(cov_type="cluster", cov_kwds={"groups": seed}, use_t=True)
    frame = pd.DataFrame({"seed": seed, "x": values})
    e = estimate(frame, variable="x", statistic="mean", resample="seed", method="t")
    # its factor G / (G - 1) (n - 1) / (n - k) is G / (G - 1) for a mean: for equal units the same number
    assert (e.low, e.high) == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-10)


def test_two_way_intervals_are_statsmodels(rng):
    values = rng.normal(size=(6, 1, 1)) + rng.normal(size=(1, 9, 1)) + rng.normal(size=(6, 9, 4))
    s, p, _ = (i.ravel() for i in np.indices(values.shape))
    fit = sm.OLS(values.ravel(), np.ones((s.size, 1))).fit(
        cov_type="cluster", cov_kwds={"groups": np.stack([s, p], axis=1)}, use_t=True)
    frame = pd.DataFrame({"seed": s, "prompt": p, "x": values.ravel()})
    e = estimate(frame, variable="x", statistic="mean", resample="seed × prompt", method="two-way t")
    half = stats.t.ppf(0.975, 5) * fit.bse[0]
    assert (e.high - e.low) / 2 == pytest.approx(half, rel=1e-8)


def test_a_hierarchical_standard_error_is_that_of_the_theory(rng):
    # Var* = between seeds (G - 1) / G + within, of a balanced two-level bootstrap
    values = rng.normal(size=(6, 1)) + 2 * rng.normal(size=(6, 40))
    s, p = (i.ravel() for i in np.indices(values.shape))
    frame = pd.DataFrame({"seed": s, "prompt": p, "x": values.ravel()})
    e = estimate(frame, variable="x", statistic="mean", resample="seed > prompt", method="hierarchical t",
                 n_resamples=100_000)
    variance = values.mean(1).var() / 6 + values.var(1).mean() / 240
    half = stats.t.ppf(0.975, 5) * np.sqrt(variance * 6 / 5)
    assert (e.high - e.low) / 2 == pytest.approx(half, rel=0.01)


def test_with_equal_units_the_spread_is_that_of_their_means(rng):
    x = rng.exponential(size=(7, 12))
    held = group(np.repeat(np.arange(7), 12)[None], Nesting(("seed",)))
    known = intervals.spread(without(Ratio(x.sum(1), held.sizes), held, 0), held.sizes)
    means = x.mean(1)
    assert known.error == pytest.approx(means.std(ddof=1) / np.sqrt(7), rel=1e-12)
    assert known.freedom == 6
    assert known.skewness == pytest.approx(stats.skew(means, bias=False) / np.sqrt(7), rel=1e-10)


def test_units_of_very_different_sizes_bring_fewer_degrees_of_freedom():
    left_out = np.linspace(0.9, 1.1, 10)
    assert intervals.spread(left_out, np.full(10, 5.0)).freedom == 9
    assert intervals.spread(left_out, np.r_[1000.0, np.full(9, 5.0)]).freedom < 1.3


@pytest.mark.parametrize("n", [5, 10, 20])
def test_a_percentile_interval_covers_what_is_said_of_it(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(4000, n))
    weights = np.empty((2000, n))
    nested_plan(rows(range(n))).fill(np.uint64(n), 0, weights)
    limits = (intervals.percentile(weights @ own / n, 0.95) for own in x)
    hit = np.mean([low <= 0 <= high for low, high in limits])
    assert hit == pytest.approx(intervals.bootstrap_coverage(n, 0.95), abs=0.02)
    assert intervals.bootstrap_coverage(5, 0.95) == pytest.approx(0.846, abs=1e-3)


def test_the_skewed_t_covers_where_the_t_does_not():
    rng = np.random.default_rng(0)
    for draw, least, most in ((rng.normal, 0.96, 0.975), (rng.exponential, 0.93, 0.945),
                              (lambda size: -rng.exponential(size=size), 0.93, 0.945)):
        x = draw(size=(40_000, 5))
        truth = {rng.normal: 0.0, rng.exponential: 1.0}.get(draw, -1.0)
        errors, skews = x.std(1, ddof=1) / np.sqrt(5), stats.skew(x, axis=1, bias=False) / np.sqrt(5)
        t = stats.t.ppf(0.975, 4)
        far = (truth - x.mean(1)) / errors
        low, high = np.array([intervals.skewed_student(0.0, intervals.Spread(1.0, 4, skew), 0.95)
                              for skew in np.linspace(-2, 2, 401)]).T  # on a grid: it is all in units of the error
        at = np.rint((np.clip(skews, -2, 2) + 2) * 100).astype(int)
        covered = ((low[at] <= far) & (far <= high[at])).mean()
        assert least < covered < most
        assert covered > (np.abs(far) <= t).mean()


def test_bca_is_undefined_where_no_unit_matters():
    assert np.isnan(intervals.bca(1.0, np.linspace(0, 2, 100), np.ones(20), 0.95)).all()
    assert np.isnan(intervals.bca(3.0, np.linspace(0, 2, 100), np.linspace(0, 1, 20), 0.95)).all()
