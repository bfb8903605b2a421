"""Block lengths: arch's, and what pooling series gives."""

import numpy as np
import pytest
from arch import bootstrap
from scipy import signal

from dynloop.statistics.block_length import optimal_block_length


def autoregression(rng, coefficient, *shape):
    return signal.lfilter([1], [1, -coefficient], rng.normal(size=(*shape[:-1], shape[-1] + 100)))[..., 100:]


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # in arch, for short series
@pytest.mark.parametrize("n", [10, 20, 50, 128, 1000, 8192])
@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 0.5, 0.8, 0.95])
def test_of_one_series_it_is_archs(rng, n, coefficient):
    x = 3 + autoregression(rng, coefficient, n)
    theirs = bootstrap.optimal_block_length(x)
    assert optimal_block_length(x) == pytest.approx(theirs["stationary"].iloc[0], rel=1e-12, abs=1e-12)
    assert optimal_block_length(x[None], kind="circular") == pytest.approx(theirs["circular"].iloc[0], rel=1e-12,
                                                                           abs=1e-12)


def test_many_short_series_say_what_one_long_one_says(rng):
    short = np.median([optimal_block_length(autoregression(rng, 0.8, 64, 128)) for _ in range(9)])
    alone = np.median([optimal_block_length(autoregression(rng, 0.8, 128)) for _ in range(30)])
    long = np.median([optimal_block_length(autoregression(rng, 0.8, 64 * 128)) for _ in range(9)])
    assert short == pytest.approx(long, rel=0.25)
    assert alone < 0.4 * long


def test_means_that_differ_between_series_do_not_count(rng):
    x = autoregression(rng, 0.5, 64, 128)
    assert optimal_block_length(x + 100 * rng.normal(size=(64, 1))) == pytest.approx(optimal_block_length(x), rel=1e-6)


@pytest.mark.parametrize(("series", "how", "words"), [
    (np.arange(9.0), {}, "at least 10 values"), (np.zeros((2, 2, 20)), {}, "at least 10 values"),
    (np.zeros(20), {}, "constant"), (np.r_[np.arange(20.0), np.nan], {}, "must be finite"),
    (np.arange(20.0), {"kind": "moving"}, "kind must be one of stationary, circular; got 'moving'")])
def test_series_that_tell_nothing_are_refused(series, how, words):
    with pytest.raises(ValueError, match=words):
        optimal_block_length(series, **how)
