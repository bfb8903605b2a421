"""`minimal_period`: exact periods at any noise it promises, none where there is none, and a p-value that holds."""

import numpy as np
import pytest
import torch

from dynloop import Outcome, Trajectories, limit_regime, minimal_period
from dynloop.analyzers.minimal_period import _p_value
from synthetic import bank

GOLDEN = (np.sqrt(5) - 1) / 2
T = np.arange(128)


def wide(states, rng, *, dim=256, noise=0.0, dtype="float32"):
    """States (n, T, d) at unit rms amplitude, in `dim` dimensions about a centre of norm 3, with isotropic noise."""
    states = states / np.sqrt(states.var(1).sum(1))[:, None, None]
    states = states @ np.linalg.qr(rng.normal(size=(dim, states.shape[2])))[0].T
    states = states + 3 / np.sqrt(dim) + noise * rng.normal(size=states.shape) / np.sqrt(dim)
    return Trajectories(torch.from_numpy(states).to(getattr(torch, dtype)))


def circles(turns, rng, n_steps=128):
    phase = 2 * np.pi * (rng.random((len(turns), 1)) + np.asarray(turns)[:, None] * np.arange(n_steps))
    return np.stack([np.cos(phase), np.sin(phase)], axis=2)


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_period_up_to_a_third_of_the_record_is_exact(noise, dtype, rng):
    periods = np.arange(2, 128 // 3 + 1)
    points = rng.normal(size=(len(periods), 42, 16))
    m = minimal_period(wide(points[np.arange(len(periods))[:, None], T % periods[:, None]], rng, noise=noise,
                            dtype=dtype))
    wrong = m.found & (m.values != periods)
    assert not wrong.any(), periods[wrong]
    assert m.found.sum() >= len(periods) - (2 if noise < 0.2 else 4)
    assert (m["p_value"][m.found] <= 0.001).all()
    np.testing.assert_allclose(m["return_distance"][m.found], noise if noise else 0, rtol=0.2,
                               atol=0.02 if dtype == "bfloat16" else 1e-6)


@pytest.mark.parametrize("n_steps", [64, 129, 256])
def test_periods_are_exact_at_other_lengths(n_steps, rng):
    periods = np.array([2, 3, 5, 7, 12, n_steps // 5, n_steps // 4])
    points = rng.normal(size=(len(periods), periods.max(), 16))
    states = points[np.arange(len(periods))[:, None], np.arange(n_steps) % periods[:, None]]
    assert minimal_period(wide(states, rng, noise=0.05)).values.tolist() == periods.tolist()


def test_a_period_on_a_smooth_curve_is_not_confused_with_the_steps_along_it(rng):
    """A circle of 31 points: neighbours in time are neighbours in space."""
    m = minimal_period(wide(circles(np.array([1 / 31, 2 / 31, 1 / 9, 4 / 9]), rng), rng, noise=0.02))
    assert m.values.tolist() == [31, 31, 9, 9]


@pytest.mark.parametrize("n_steps", [128, 256])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_near_returns_of_the_golden_rotation_are_no_period(n_steps, noise, rng):
    m = minimal_period(wide(circles([GOLDEN] * 100, rng, n_steps), rng, noise=noise))
    assert m.found.sum() == 0
    assert set(m.outcomes) == {Outcome.NOT_FOUND}


@pytest.mark.parametrize(("r", "period"), [(3.2, 2), (3.5, 4), (3.55, 8), (3.83, 3), (3.74, 5), (3.845, 6)])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_windows_of_the_logistic_map(r, period, noise, rng):
    x = rng.uniform(0.2, 0.8, 20)
    for _ in range(3000):
        x = r * x * (1 - x)
    orbit = []
    for _ in range(128):
        orbit.append(x)
        x = r * x * (1 - x)
    m = minimal_period(wide(np.stack(orbit, 1)[:, :, None], rng, noise=noise))
    assert m.values.tolist() == [period] * 20


def test_a_period_whose_halves_differ_by_less_than_the_noise_is_the_half(rng):
    halves = np.repeat(rng.normal(size=(20, 1, 4, 8)), 2, axis=1).reshape(20, 8, 8)
    coarse, fine = (halves + size * rng.normal(size=(20, 8, 8)) for size in (0.3, 0.003))
    assert minimal_period(wide(coarse[:, T % 8], rng, noise=0.05)).values.tolist() == [8] * 20
    assert minimal_period(wide(fine[:, T % 8], rng, noise=0.05)).values.tolist() == [4] * 20


def test_at_rest_the_period_is_1(rng):
    for way, noise in ((0.5, 0), (0.8, 0), (0.8, 1e-3), (0.0, 0)):
        states = 3 + rng.normal(size=(20, 1, 16)) * way ** T[:, None] + noise * rng.normal(size=(20, 128, 16))
        m = minimal_period(Trajectories(states.astype("float32")))
        assert m.values.tolist() == [1] * 20
        assert (m["return_distance"] == 1).all()
    still = minimal_period(Trajectories(np.ones((2, 64, 4))))
    assert still.values.tolist() == [1, 1]
    assert still["p_value"].tolist() == [1, 1]  # any order of equal states is as good


def test_the_p_value_at_rest_says_whether_the_late_half_is_closer_than_chance(rng):
    settled = 3 + rng.normal(size=(20, 1, 16)) * 0.8 ** T[:, None] + 0.01 * rng.normal(size=(20, 128, 16))
    p = minimal_period(Trajectories(settled))["p_value"]
    assert (p > 1e-4).all()  # the few far states make the true tail lighter than a normal one
    assert (p < 0.05).all()


@pytest.mark.parametrize("left", [0.003, 0.1, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("n_steps", [64, 128])
def test_a_spiral_is_at_rest_or_on_its_way_and_has_no_period(left, noise, n_steps, rng):
    turns = np.concatenate([1 / rng.integers(2, 20, 40), rng.uniform(0.02, 0.5, 40)])
    decay = left ** (np.arange(n_steps) / n_steps)
    orbits = wide(circles(turns, rng, n_steps) * decay[:, None], rng, noise=noise)
    m = minimal_period(orbits)
    assert not (m.values >= 2).any()
    expected = Outcome.FOUND if left < 0.01 else Outcome.NOT_CONVERGED
    assert np.mean([outcome is expected for outcome in m.outcomes]) >= 0.9


def test_a_drift_and_a_growth_have_no_period(rng):
    drift, growth = bank.record("drift", 20, 128, 7001)[0], bank.record("growing_spiral", 20, 128, 7001)[0]
    for orbits in (drift, growth):
        assert set(minimal_period(orbits).outcomes) == {Outcome.NOT_CONVERGED}


@pytest.mark.parametrize("family", ["white_noise", "random_walk", "autoregressive", "logistic_chaos", "henon", "torus"])
def test_noise_chaos_and_tori_have_none(family):
    orbits = bank.record(family, 200, 128, 7001, noise=0.02)[0]
    assert (minimal_period(orbits).values >= 2).sum() <= 2


@pytest.mark.parametrize("dim", [1, 4, 64])
@pytest.mark.parametrize("lag", [1, 5, 20, 42])
def test_the_p_value_holds_for_states_in_random_order(dim, lag, rng):
    """At one lag, as many below alpha as there should be, or fewer, down to 1/1,000."""
    t, p = np.arange(128), []
    for states in rng.normal(size=(1500, 128, dim)):
        square = (states**2).sum(1)
        squared = np.maximum(square[:, None] + square - 2 * states @ states.T, 0)
        p.append(_p_value(squared, squared.diagonal(lag).mean(), 1 * (t >= lag) + (t < 128 - lag)))
    p = np.array(p)
    for alpha in (0.5, 0.1, 0.01):
        assert (p <= alpha).mean() <= alpha + 3.5 * np.sqrt(alpha * (1 - alpha) / len(p))
    assert (p <= 0.001).sum() <= 8
    assert (p <= 0.5).mean() == pytest.approx(0.5, abs=0.06)


def test_of_states_in_random_order_hardly_one_in_a_thousand_has_a_period(rng):
    for dim in (1, 8):
        states = rng.permuted(np.repeat(rng.normal(size=(500, 8, dim)), 16, axis=1), axis=1)  # eight values, shuffled
        assert minimal_period(Trajectories(states + 0.01 * rng.normal(size=states.shape))).found.sum() <= 1


@pytest.mark.parametrize("longest", [1, 4, 6, 7, 30, 1000])
def test_no_period_beyond_the_longest_is_named(longest, rng):
    m = minimal_period(wide(rng.normal(size=(20, 7, 12))[:, T % 7], rng, noise=0.02), max_period=longest)
    assert m.settings["max_period"] == longest
    assert (np.nan_to_num(m.values) <= longest).all()
    if longest >= 7:
        assert m.values.tolist() == [7] * 20
    else:
        assert not m.found.any()


def test_fewer_lags_tried_make_the_same_return_less_likely(rng):
    orbits = wide(rng.normal(size=(5, 3, 12))[:, T[:24] % 3], rng, noise=0.2)
    some, all_of_them = minimal_period(orbits, max_period=3, significance=0.5), minimal_period(orbits, significance=0.5)
    both = some.found & all_of_them.found
    assert both.any()
    assert (some["p_value"][both] < all_of_them["p_value"][both]).all()


def test_significance_decides():
    orbits = bank.record("random_cycle", 40, 32, 7001, noise=0.1)[0]
    usual, strict = minimal_period(orbits), minimal_period(orbits, significance=1e-12)
    assert strict.found.sum() < usual.found.sum()
    assert (usual["p_value"][usual.found] <= 0.001).all()
    assert (strict["p_value"][strict.found] <= 1e-12).all()
    assert np.isnan(strict.values[~strict.found]).all()
    assert np.isnan(strict["p_value"][~strict.found]).all()


@pytest.mark.parametrize("wrong", [{"max_period": 0}, {"max_period": 2.5}, {"max_period": True}, {"max_period": "3"},
                                   {"significance": 0}, {"significance": 1}, {"significance": None},
                                   {"significance": False}], ids=str)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        minimal_period(Trajectories(np.ones((1, 20, 2))), **wrong)


def test_the_outcomes(rng):
    states = rng.normal(size=(6, 64, 8))
    states[0] = rng.normal(size=(4, 8))[np.arange(64) % 4]
    states[1, 40, 2] = np.nan
    states[3] = np.arange(64)[:, None]
    states[4] = states[0]
    m = minimal_period(Trajectories(states, lengths=[64, 64, 15, 64, 50, 64]))
    assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.NOT_FINITE, Outcome.TOO_SHORT, Outcome.NOT_CONVERGED,
                                   Outcome.FOUND, Outcome.NOT_FOUND]
    np.testing.assert_array_equal(m.values, [4, np.nan, np.nan, np.nan, 4, np.nan])


def test_it_agrees_with_the_regime(rng):
    orbits = bank.record("smooth_cycle", 60, 128, 7001, noise=0.05)[0]
    regime, period = limit_regime(orbits), minimal_period(orbits)
    both = (regime.values == "orbit") & period.found
    assert both.sum() >= 55
    np.testing.assert_array_equal(regime["period"][both], period.values[both])


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e140])
def test_the_scale_does_not_matter(scale, rng):
    states = rng.normal(size=(5, 6, 8))[:, T % 6] + 0.02 * rng.normal(size=(5, 128, 8))
    m, wanted = minimal_period(Trajectories(scale * states)), minimal_period(Trajectories(states))
    assert m.values.tolist() == [6] * 5
    np.testing.assert_allclose(m["p_value"], wanted["p_value"], rtol=1e-4)


def test_last_bits_that_flicker_after_a_fall_are_no_orbit(rng):
    """Between one and three spacings: what rounding alone may do to an orbit that came from afar."""
    for period in (2, 3, 5):
        base = np.abs(rng.normal(size=(20, 1, 64))) + 1
        raw = torch.from_numpy(base + 2 * 0.6 ** T[:, None]).bfloat16().view(torch.int16).clone()
        raw[:, ::period] += 2
        orbits = Trajectories(raw.view(torch.bfloat16))
        assert not np.isin(limit_regime(orbits).values, ["orbit", "quasi-periodic", "chaotic"]).any()
        assert not (minimal_period(orbits).values >= 2).any()
