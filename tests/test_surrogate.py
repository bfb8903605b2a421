"""Surrogates keep what they promise; tests by them have their size on linear noise and power on chaos."""

import functools

import numpy as np
import pytest
from scipy import signal, stats

from dynloop import Measurement, Outcome, Trajectories, recurrence_quantification, turning_angle
from dynloop.statistics import surrogate
from dynloop.statistics.surrogate import surrogate_test
from dynloop.statistics.surrogates import surrogates


def autoregression(rng, coefficient, n, n_steps=128):
    return signal.lfilter([1], [1, -coefficient], rng.normal(size=(n, n_steps + 100)))[:, 100:]


def logistic(rng, n, n_steps=128):
    x = np.empty((n, n_steps))
    x[:, 0] = rng.uniform(0.1, 0.9, n)
    for t in range(1, n_steps):
        x[:, t] = 4 * x[:, t - 1] * (1 - x[:, t - 1])
    return x


def asymmetry(x):
    """Skewness of the steps: 0 for whatever looks the same backwards."""
    d = np.diff(x[..., 0], axis=1)
    return (d**3).mean(1) / (d**2).mean(1) ** 1.5


def lag_one(x):
    away = x[..., 0] - x[..., 0].mean(1, keepdims=True)
    return (away[:, 1:] * away[:, :-1]).sum(1) / (away**2).sum(1)


def surprise(x):
    """Error of the next value when it is taken from the nearest value elsewhere."""
    x = x[..., 0]
    gaps = np.abs(x[:, :-1, None] - x[:, None, :-1])
    gaps[:, np.arange(gaps.shape[1]), np.arange(gaps.shape[1])] = np.inf
    return np.abs(np.take_along_axis(x[:, 1:], gaps.argmin(2), 1) - x[:, 1:]).mean(1)


@pytest.mark.parametrize("n_steps", [64, 65])
def test_phase_surrogates_keep_spectra_and_cross_spectra(rng, n_steps):
    x = rng.normal(size=(3, n_steps, 4)).cumsum(axis=1)
    made = surrogates(x, kind="phase", n_surrogates=6)
    assert made.shape == (6, 3, n_steps, 4)
    own, theirs = np.fft.rfft(x, axis=1), np.fft.rfft(made, axis=2)
    cross = own[..., :, None] * own[..., None, :].conj()
    assert np.abs(theirs[..., :, None] * theirs[..., None, :].conj() - cross).max() < 1e-10 * np.abs(cross).max()
    assert np.abs(made - x).max() > 1
    np.testing.assert_allclose(made.mean(2), np.broadcast_to(x.mean(1), (6, 3, 4)), atol=1e-12)


@pytest.mark.parametrize("coefficient", [-0.6, 0.0, 0.5, 0.9])
def test_ar1_surrogates_keep_the_lag_one_autocorrelation_and_the_variance(rng, coefficient):
    x = 5 + autoregression(rng, coefficient, 150)[..., None]
    made = surrogates(x, kind="ar1", n_surrogates=20)
    ours = np.mean([lag_one(one) for one in made])
    assert ours == pytest.approx(lag_one(x).mean(), abs=0.02)
    assert made.var(axis=2).mean() == pytest.approx(x.var(axis=1).mean(), rel=0.2)
    assert made.mean() == pytest.approx(x.mean(), abs=0.2)


@pytest.mark.parametrize("dim", [3, 200])
def test_ar1_surrogates_keep_the_covariance_of_features_with_few_and_many(rng, dim):
    mixing = rng.normal(size=(2, dim))
    x = (rng.normal(size=(1, 100, 2)) @ mixing)
    made = surrogates(x, kind="ar1", n_surrogates=200)[:, 0]
    np.testing.assert_allclose(np.mean([np.cov(one.T) for one in made], axis=0), np.cov(x[0].T),
                               atol=0.15 * np.cov(x[0].T).diagonal().max())


def test_shuffled_steps_are_the_same_steps(rng):
    x = rng.normal(size=(2, 40, 3))
    made = surrogates(x, kind="shuffle", n_surrogates=3)
    np.testing.assert_array_equal(np.sort(made, axis=2), np.sort(np.broadcast_to(x, made.shape), axis=2))
    first = made[1, 1]
    where = [int(np.flatnonzero((x[1] == state).all(1))[0]) for state in first]  # whole states moved
    assert sorted(where) == list(range(40))


def test_twins_go_on_from_one_another(rng):
    x = np.tile(np.repeat(np.arange(4.0), 2).reshape(4, 2), (20, 1))[None]  # a cycle of 4: all its visits are twins
    made = surrogates(x, kind="twin", n_surrogates=30)[:, 0, :, 0]
    steps = np.diff(made, axis=1) % 4
    assert (steps == 1).mean() > 0.95  # but where the last state, which has no successor, was reached
    assert len(np.unique(made[:, 0])) == 4
    m = surrogate_test(logistic(rng, 3, 400), statistic=surprise, kind="twin", n_surrogates=39)
    assert set(m.outcomes) == {Outcome.FOUND}
    assert (m["p_value"] > 0.05).all()  # such an orbit is what twin surrogates are
    assert m.settings["recurrence_rate"] == 0.1


def test_an_orbit_without_twins_gets_no_answer(rng):
    x = np.arange(30.0)[None]
    m = surrogate_test(np.concatenate([x, np.sin(np.arange(30.0))[None] > 0]), statistic=asymmetry, kind="twin",
                       n_surrogates=19, recurrence_rate=0.05)
    assert m.outcomes[0] is Outcome.NOT_FOUND
    assert np.isnan(m["p_value"][0])
    assert m.outcomes[1] is Outcome.FOUND


@pytest.mark.parametrize(("kind", "coefficient"), [("phase", 0.0), ("phase", 0.8), ("ar1", 0.8), ("shuffle", 0.0)])
def test_linear_noise_is_denied_in_five_of_a_hundred_orbits(rng, kind, coefficient):
    m = surrogate_test(autoregression(rng, coefficient, 500), statistic=asymmetry, kind=kind, n_surrogates=39)
    assert stats.binomtest(int((m["p_value"] <= 0.05).sum()), 500, 0.05).pvalue > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "coefficients"), [("phase", (0.0, 0.5, 0.9)), ("ar1", (0.0, 0.5, 0.9)),
                                                    ("shuffle", (0.0,))])
def test_linear_noise_is_denied_at_the_nominal_rate(kind, coefficients):
    rng = np.random.default_rng(3)
    for coefficient in coefficients:
        m = surrogate_test(autoregression(rng, coefficient, 5000), statistic=asymmetry, kind=kind, n_surrogates=39)
        rate = (m["p_value"] <= 0.05).mean()
        assert 0.035 < rate < 0.065, (kind, coefficient, rate)


@pytest.mark.parametrize("kind", ["phase", "ar1", "shuffle"])
def test_chaos_is_no_linear_noise(rng, kind):
    m = surrogate_test(logistic(rng, 20), statistic=surprise, kind=kind, n_surrogates=39, alternative="less")
    assert (m["p_value"] == 1 / 40).mean() > 0.95
    noise = surrogate_test(rng.normal(size=(20, 128)), statistic=surprise, kind=kind, n_surrogates=39,
                           alternative="less")
    assert (noise["p_value"] <= 0.05).mean() < 0.3


def test_p_values_are_counts_of_surrogates_with_their_error():
    drawn, observed = np.arange(1.0, 20.0)[:, None], np.array([17.5])
    for alternative, p in (("greater", 3 / 20), ("less", 18 / 20), ("two-sided", 6 / 20)):
        found = surrogate.p_values(observed, drawn, alternative)
        assert found["p_value"] == pytest.approx(p)
    assert found["p_error"] == pytest.approx(2 * np.sqrt(3 / 20 * 17 / 20 / 20))
    assert (found["surrogate_mean"], found["surrogate_sd"]) == pytest.approx((10, drawn.std(ddof=1)))
    assert surrogate.p_values(np.array([10.0]), drawn, "two-sided")["p_value"] == 1.0


def test_surrogates_without_an_answer_count_against_the_orbit():
    drawn = np.r_[np.zeros(15), [np.nan] * 4][:, None]
    found = surrogate.p_values(np.array([1.0]), drawn, "greater")
    assert (found["p_value"][0], found["unanswered"][0]) == (5 / 20, 4)
    assert np.isnan(surrogate.p_values(np.array([1.0]), np.full((19, 1), np.nan), "greater")["surrogate_mean"][0])


def test_what_shuffling_cannot_change_is_never_denied(rng):
    m = surrogate_test(rng.normal(size=(20, 50)), statistic=lambda x: x.mean((1, 2)), kind="shuffle", n_surrogates=19)
    assert (m["p_value"] == 1).all()


def test_an_analyzer_is_asked_about_each_surrogate_with_labels_and_lengths(rng):
    x = autoregression(rng, 0.5, 6, 40)[..., None] + np.zeros(2)
    x[..., 1] += rng.normal(size=(6, 40))
    x[1, 30:], x[2, 5:] = np.nan, np.nan
    orbits = Trajectories(x, labels={"prompt": np.arange(6)}, lengths=[40, 30, 5, 40, 40, 40])
    ask = functools.partial(recurrence_quantification, threshold=0.3)
    m = surrogate_test(orbits, statistic=ask, variable="determinism", kind="shuffle", n_surrogates=19)
    assert m.outcomes[2] is Outcome.TOO_SHORT
    assert m.found.sum() == 5
    alone = recurrence_quantification(orbits[[1]], threshold=0.3)
    assert m["statistic"][1] == pytest.approx(alone["determinism"][0])
    assert m.settings["statistic"] == "recurrence_quantification"
    assert list(m.labels["prompt"]) == list(range(6))


def test_outcomes_of_orbits_that_cannot_be_asked(rng):
    x = rng.normal(size=(3, 20))
    x[0, 9:] = np.inf
    m = surrogate_test(x, statistic=lambda v: np.where(v[:, 0, 0] == x[1, 0], np.nan, v[:, 0, 0]), n_surrogates=19,
                       kind="shuffle")
    assert [o.name for o in m.outcomes] == ["NOT_FINITE", "NOT_FOUND", "FOUND"]
    assert np.isfinite(m["p_value"]).tolist() == [False, False, True]
    assert isinstance(m, Measurement)
    none = surrogate_test(x[1], statistic=lambda v: v[:, 0, 0] * np.nan, n_surrogates=19)
    assert none.outcomes[0] is Outcome.NOT_FOUND


def test_batches_and_more_surrogates_change_no_surrogate(rng, monkeypatch):
    x = autoregression(rng, 0.5, 5, 40)
    few = [surrogates(x[..., None], kind=k, n_surrogates=3, rng=7) for k in surrogate.KINDS]
    more = [surrogates(x[..., None], kind=k, n_surrogates=5, rng=7)[:3] for k in surrogate.KINDS]
    for a, b in zip(few, more, strict=True):
        np.testing.assert_array_equal(a, b)
    whole = surrogate_test(x, statistic=asymmetry, n_surrogates=29)
    monkeypatch.setattr(surrogate, "_BATCH", 1)
    np.testing.assert_array_equal(surrogate_test(x, statistic=asymmetry, n_surrogates=29)["p_value"], whole["p_value"])


@pytest.mark.parametrize(("how", "words"), [
    ({"kind": "iaaft"}, "kind must be one of phase, ar1, shuffle, twin"),
    ({"alternative": "both"}, "alternative must be one of"),
    ({"n_surrogates": 9}, "n_surrogates must be a whole number of at least 19"),
    ({"recurrence_rate": 0}, "recurrence_rate must be a number between 0 and 1"),
    ({"statistic": "mean"}, "statistic must be a function or an analyzer"),
    ({"variable": "x"}, "variable goes with an analyzer"),
    ({"statistic": np.mean}, "one number for each of 2 orbits"),
    ({"statistic": turning_angle, "variable": "nonsense"}, "nonsense")])
def test_settings_that_cannot_be_are_refused(rng, how, words):
    with pytest.raises((ValueError, KeyError), match=words):
        surrogate_test(rng.normal(size=(2, 30)), **{"statistic": asymmetry, **how})


def test_orbits_of_no_shape_are_refused(rng):
    with pytest.raises(ValueError, match="orbits must be Trajectories or an array"):
        surrogate_test(np.zeros((1, 1, 30, 1)), statistic=asymmetry)
    orbits = Trajectories(rng.normal(size=(2, 30, 3)))
    with pytest.raises(ValueError, match="is not one number an orbit"):
        surrogate_test(orbits, statistic=turning_angle, n_surrogates=19, variable=_curve(turning_angle(orbits)))


def _curve(measurement):
    return next(name for name, values in measurement.variables.items() if values.ndim == 2)


def test_surrogates_of_what_is_no_orbit_are_refused(rng):
    x = rng.normal(size=(2, 20, 3))
    for states in (x[0], x[:, :5], np.where(x > 1, np.nan, x), x[:0]):
        with pytest.raises(ValueError, match="states must be finite numbers"):
            surrogates(states, kind="ar1", n_surrogates=2)
    with pytest.raises(ValueError, match="kind must be one of phase, ar1, shuffle, twin; got 'iaaft'"):
        surrogates(x, kind="iaaft", n_surrogates=2)
    with pytest.raises(ValueError, match="n_surrogates must be a whole number of at least 1"):
        surrogates(x, kind="phase", n_surrogates=0)
