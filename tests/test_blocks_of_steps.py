"""Steps of an orbit in blocks: the mean of a dependent series, by simulation and against theory."""

import arch.bootstrap
import numpy as np
import pandas as pd
import pytest
from scipy import signal

from dynloop import Measurement, Outcome, estimate


def series(rng, n_steps, memory=0.7, n=1):
    """AR(1) series of variance 1, (n, n_steps)."""
    noise = rng.normal(size=(n, n_steps + 100)) * np.sqrt(1 - memory**2)
    return signal.lfilter([1.0], [1.0, -memory], noise, axis=1)[:, 100:]


def curve(x, outcomes=None):
    return Measurement("step_norm", {"norm": x[:, 0], "curve": x}, outcomes or [Outcome.FOUND] * len(x))


def ask(x, **how):
    return estimate(curve(x), variable="curve", **{"statistic": "mean", "resample": "block", **how})


def test_the_standard_error_of_a_dependent_mean_is_archs(rng):
    x = series(rng, 500)
    theirs = arch.bootstrap.StationaryBootstrap(12, x[0], seed=np.random.default_rng(1)).apply(np.mean, 4000).std()
    low, high = (getattr(ask(x, block_length=12, method="percentile", confidence_level=0.6827), side)
                 for side in ("low", "high"))
    assert (high - low) / 2 == pytest.approx(theirs, rel=0.06)
    moving = arch.bootstrap.CircularBlockBootstrap(12, x[0], seed=np.random.default_rng(1)).apply(np.mean, 4000).std()
    e = ask(x, resample="moving block", block_length=12, method="percentile", confidence_level=0.6827)
    assert (e.high - e.low) / 2 == pytest.approx(moving, rel=0.06)


def test_blocks_cover_a_dependent_mean_and_single_steps_do_not(rng):
    hits = np.zeros(2)
    for x in series(rng, 400, n=200):
        e = ask(x[None], block_length=16, n_resamples=300)
        naive = estimate(pd.DataFrame({"x": x}), variable="x", statistic="mean", resample="orbit", method="t")
        hits += e.low <= 0 <= e.high, naive.low <= 0 <= naive.high
    assert hits[0] / 200 > 0.88
    assert hits[1] / 200 < 0.75


def test_the_block_length_is_found_from_the_data(rng):
    short, long = (ask(series(rng, 1000, memory=memory), n_resamples=100).method for memory in (0.0, 0.95))
    steps = [float(how.split("blocks of ")[1].split(" steps")[0]) for how in (short, long)]
    assert steps[0] < 5 < 15 < steps[1]


def test_several_orbits_are_resampled_each_within_itself(rng):
    x = series(rng, 100, n=4) + 100 * np.arange(4)[:, None]
    e = ask(x, block_length=5)
    assert e.high - e.low < 2  # between orbits there are hundreds
    assert (e.units, e.n_units, e.n) == ({"orbit": 4, "block": 80}, 80, 4)


def test_medians_and_functions_of_steps_agree(rng):
    x = series(rng, 200)
    median = ask(x, statistic="median", block_length=8, n_resamples=200)
    own = ask(x, statistic=lambda v: float(np.median(v)), block_length=8, n_resamples=200)
    assert (median.value, median.low, median.high) == (own.value, own.low, own.high)
    assert median.value == np.median(x)


def test_orbits_that_were_not_answered_are_counted(rng):
    x = series(rng, 60, n=3)
    x[2] = np.nan
    m = curve(x, [Outcome.FOUND, Outcome.FOUND, Outcome.TOO_SHORT])
    e = estimate(m, variable="curve", statistic="mean", resample="block", block_length=4)
    assert (e.n, e.excluded) == (2, {"too short": 1})


def test_few_blocks_are_said_and_fewer_refused(rng):
    assert "6 blocks are few" in str(ask(series(rng, 60), block_length=10))
    with pytest.raises(ValueError, match="block_length must be a number of steps from 1 to half of the 60"):
        ask(series(rng, 60), block_length=40)
    with pytest.raises(ValueError, match="too few for an interval"):
        ask(series(rng, 60), block_length=30)
    assert "all steps agree" in ask(np.ones((1, 50)), block_length=5).method


@pytest.mark.parametrize(("change", "words"), [
    ({"variable": "norm"}, "has one value an orbit; blocks of steps need"), ({"method": "BCa"}, "know the methods"),
    ({"target": "new seeds"}, "takes a mean, quantile or function of the steps of these models"),
    ({"statistic": "share", "of": 1.0}, "takes a mean, quantile or function of the steps"),
])
def test_what_blocks_cannot_do_is_refused_with_words(rng, change, words):
    with pytest.raises(ValueError, match=words):
        estimate(curve(series(rng, 60)), **{"variable": "curve", "statistic": "mean", "resample": "block", **change})
