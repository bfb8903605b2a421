"""Turning angles: closed forms, nulls, the sign at the floor, and cosines from distances against those of steps."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome, Trajectories, turning_angle
from dynloop.kernels.turning import fill_turns, turns

T = np.arange(128)[:, None]


def spiral(angle, rate, dim=16, rng=None):
    """Orbits that turn by `angle` and shrink by `rate` a step, in one plane of `dim` dimensions."""
    plane = np.linalg.qr(rng.normal(size=(dim, 2)))[0].T
    return 3 + rate**T * np.concatenate([np.cos(angle * T), np.sin(angle * T)], axis=1) @ plane


@pytest.mark.parametrize("degrees", [0.5, 30, 60, 90, 144, 179])
@pytest.mark.parametrize("rate", [0.8, 0.97, 1.0])
def test_a_spiral_turns_by_its_angle_at_every_step(degrees, rate, rng):
    m = turning_angle(Trajectories(spiral(np.radians(degrees), rate, rng=rng)[None]))
    assert m.outcomes.tolist() == [Outcome.FOUND]
    assert m.values[0] == pytest.approx(np.cos(np.radians(degrees)), abs=1e-5)  # the last steps are near the floor
    assert m["angle"][0] == pytest.approx(degrees, rel=0.02)
    steps = 60 if rate == 0.8 else 126
    np.testing.assert_allclose(m["step_cosine"][0, :steps], np.cos(np.radians(degrees)), atol=1e-6)


@pytest.mark.parametrize("rate", [0.3, 0.8, 0.99, 1.0, 1.03])
def test_a_straight_path_does_not_turn_however_fast(rate, rng):
    start, way = rng.normal(size=(2, 4, 1, 16))
    m = turning_angle(Trajectories(start + way * np.cumsum(rate**T, axis=0)))
    np.testing.assert_allclose(m.values, 1, atol=5e-3)  # the last of 30 steps at .3 are near the floor
    assert (m["angle"] < 2).all()


def test_period_2_turns_back_at_every_step(rng):
    m = turning_angle(Trajectories(rng.normal(size=(4, 1, 16)) * (-1.0) ** T))
    np.testing.assert_allclose(m.values, -1, atol=1e-12)
    np.testing.assert_allclose(m["angle"], 180)
    np.testing.assert_allclose(m["late_cosine"], -1, atol=1e-12)


NULLS = {
    "white noise": (lambda g, rng: g, -0.5),
    "random walk": (lambda g, rng: g.cumsum(1), 0.0),
    "period 3": (lambda g, rng: g[:, np.arange(128) % 3], -0.5),
    "AR(1) .5": (lambda g, rng: ar(g, 0.5), -0.25),
    "AR(1) .83": (lambda g, rng: ar(g, 0.83), -0.085),
    "AR(1) -.5": (lambda g, rng: ar(g, -0.5), -0.75),
}


def ar(noise, rho):
    states = noise.copy()
    for t in range(1, noise.shape[1]):
        states[:, t] += rho * states[:, t - 1]
    return states


@pytest.mark.parametrize("name", NULLS)
def test_the_nulls_have_the_cosines_that_are_stated(name, rng):
    make, expected = NULLS[name]
    m = turning_angle(Trajectories(make(rng.normal(size=(60, 128, 256)), rng)))
    assert m.found.all()
    assert m.values.mean() == pytest.approx(expected, abs=0.01)
    assert m["late_cosine"].mean() == pytest.approx(expected, abs=0.02)


def test_white_noise_in_one_dimension_has_a_third(rng):
    m = turning_angle(Trajectories(rng.normal(size=(400, 128, 1))))
    assert m["late_cosine"].mean() == pytest.approx(-1 / 3, abs=0.03)
    np.testing.assert_allclose(np.abs(m["step_cosine"]), 1, atol=1e-9)


def test_states_thrown_about_by_a_random_map_turn_back_while_they_converge(rng):
    a = rng.normal(size=(800, 800)) / np.sqrt(800) * 0.83
    states = [rng.normal(size=800)]
    for _ in range(12):
        states.append(a @ states[-1])
    m = turning_angle(Trajectories(np.array(states)[None]))
    assert m["step_cosine"][0, :8].mean() == pytest.approx(-0.83 / (1 + 0.83**2), abs=0.05)


@pytest.mark.parametrize("rho", [0.5, 0.8, 0.9])
def test_the_late_cosine_is_negative_at_a_floor_of_noise_and_the_early_one_is_not(rho, rng):
    states = np.empty((20, 128, 200))
    states[:, 0] = 100 * rng.normal(size=(20, 200))
    for t in range(1, 128):
        states[:, t] = rho * states[:, t - 1] + 1e-3 * rng.normal(size=(20, 200))
    m = turning_angle(Trajectories(50 + states))
    assert m.found.all()
    assert (m.values > 0.9).all()
    np.testing.assert_allclose(m["late_cosine"], -(1 - rho) / 2, atol=0.05)


def test_a_slow_drift_moves_to_the_end_and_rounding_noise_does_not(rng):
    drift = 100 + 1e-3 * T * rng.normal(size=(10, 1, 64))
    a, b, h = rng.normal(size=(64, 64)) / 8 * 0.7, rng.normal(size=64), 5 * rng.normal(size=(10, 64))
    a, b, h = (torch.tensor(v).bfloat16() for v in (a, b, h))
    states = [h]
    for _ in range(127):
        states.append(states[-1] @ a + b)
    moving, settled = turning_angle(Trajectories(drift)), turning_angle(Trajectories(torch.stack(states, 1)))
    assert (moving["late_cosine"] > 0.999).all()
    assert (settled["late_cosine"] < -0.2).all()


def test_a_step_of_0_has_no_direction_and_a_frozen_orbit_keeps_its_early_cosine(rng):
    states = spiral(1.0, 0.5, rng=rng)[None].repeat(3, axis=0)
    states[1, 12:] = states[1, 12]
    states[2] = states[2, 0]
    m = turning_angle(Trajectories(states.astype("float32")))
    assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.FOUND, Outcome.AT_PRECISION_FLOOR]
    np.testing.assert_allclose(m.values[:2], np.cos(1), atol=0.02)
    assert np.isnan(m["step_cosine"][1, 11:]).all()
    assert np.isfinite(m["step_cosine"][1, :11]).all()
    assert (m["acceleration"][1, 12:] == 0).all()
    assert np.isnan(m["late_cosine"][1:]).all()
    assert np.isnan(m["step_cosine"][2]).all()
    assert np.isnan(m.values[2])
    assert np.isnan(m["angle"][2])


def test_what_lies_before_the_end_of_the_finite_numbers_is_given(rng):
    states = rng.normal(size=(2, 40, 8))
    states[0, 20, 3] = np.inf
    m = turning_angle(Trajectories(states))
    assert m.outcomes.tolist() == [Outcome.NOT_FINITE, Outcome.FOUND]
    assert np.isfinite(m["step_cosine"][0, :18]).all()
    assert np.isnan(m["step_cosine"][0, 18:]).all()
    assert np.isnan(m.values[0])


@pytest.mark.parametrize(("n_steps", "outcome"), [(1, Outcome.TOO_SHORT), (2, Outcome.TOO_SHORT), (3, Outcome.FOUND)])
def test_three_states_make_a_turn(n_steps, outcome, rng):
    states = rng.normal(size=(2, 6, 4))
    for orbits in (Trajectories(states[:, :n_steps]), Trajectories(states, lengths=[n_steps] * 2)):
        m = turning_angle(orbits)
        assert m.outcomes.tolist() == [outcome] * 2
        if outcome is Outcome.FOUND:
            assert m.values.tolist() == m["late_cosine"].tolist() == m["step_cosine"][:, 0].tolist()


def test_a_shift_changes_no_turn(rng):
    states = rng.normal(size=(5, 60, 8)).cumsum(1)
    here, there = turning_angle(Trajectories(states)), turning_angle(Trajectories(states + 7))
    for name in ("cosine", "step_cosine", "acceleration"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-8, atol=1e-10)


def test_a_higher_floor_factor_ends_the_converging_stretch_sooner(rng):
    states = spiral(0.5, 0.8, dim=64, rng=rng) + 1e-4 * rng.normal(size=(20, 128, 64))
    found = [turning_angle(Trajectories(states), floor_factor=factor).values for factor in (3, 10, 50)]
    near = [np.abs(cosines - np.cos(0.5)).mean() for cosines in found]
    assert near == sorted(near, reverse=True)
    assert near[-1] < 0.01
    with pytest.raises(ValueError, match=r"floor_factor must be at least 1 .*got 0\.5"):
        turning_angle(Trajectories(states), floor_factor=0.5)


def awkward(rng, dim):
    """Orbits on which one way or the other to a cosine loses digits."""
    end, away, more = rng.normal(size=(3, 4, 1, dim))
    g = rng.normal(size=(4, 128, dim))
    frozen = end + away * 0.7 ** np.minimum(T, 20)
    return {"decay": end + away * 0.8**T, "fast decay": end + away * 1e-3**T, "noise": g, "tiny noise": end + 1e-5 * g,
            "walk": g.cumsum(1), "slow drift": 100 * end + 1e-3 * away * T, "line": end + away * T, "frozen": frozen,
            "slow turn": 10 * end + np.cos(0.01 * T) * away + np.sin(0.01 * T) * more,
            "period 2": end + away * (-1.0)**T, "jumps": end + away * (T // 2) + 1e-6 * g,
            "burst": end + 1e-4 * g + 1e3 * away * (T == 50),
            "spiral": end + 0.9**T * (np.cos(T) * away + np.sin(T) * more), "still": end + 0 * T, "zero": 0 * g,
            "growth": end + away * 1.3**T}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("dim", [1, 2, 48])
def test_cosines_from_distances_equal_cosines_of_steps(dtype, dim, rng):
    for name, states in awkward(rng, dim).items():
        orbits = Trajectories(torch.as_tensor(states).to(getattr(torch, dtype)))
        m = turning_angle(orbits)
        for o, orbit in enumerate(orbits.states.double().numpy()):
            cosines, apart = oracles.turns(orbit)
            tight = 1e-9 if dtype == "float64" else 1e-3
            np.testing.assert_allclose(m["step_cosine"][o], cosines, atol=tight, err_msg=name)
            np.testing.assert_allclose(m["acceleration"][o], apart, rtol=10 * tight, err_msg=name)


@given(st.integers(0, 2**32 - 1), st.integers(3, 140))
@settings(max_examples=50, deadline=None)
def test_the_means_equal_the_oracle(seed, n_steps):
    rng = np.random.default_rng(seed)
    end, a, b = rng.normal(size=(3, 3, 1, 24))
    t = np.arange(n_steps)[:, None]
    states = end + rng.uniform(0.3, 1.02)**t * (a * np.cos(rng.uniform(0, 3) * t) + b * np.sin(rng.uniform(0, 3) * t)) \
        + 10.0 ** rng.uniform(-9, 0) * rng.normal(size=(3, n_steps, 24))
    if rng.random() < 0.3:
        states[:, n_steps // 2:] = states[:, n_steps // 2:n_steps // 2 + 1]
    m = turning_angle(Trajectories(states), floor_factor=(factor := rng.choice([1.5, 3.0, 8.0])))
    for o in range(3):
        cosine, angle, late = oracles.turning_angle(states[o], 2.0**-52, factor)
        assert m.values[o] == pytest.approx(cosine, abs=1e-8, nan_ok=True)
        assert m["angle"][o] == pytest.approx(angle, abs=0.01, nan_ok=True)
        assert m["late_cosine"][o] == pytest.approx(late, abs=1e-8, nan_ok=True)
        assert (m.outcomes[o] is Outcome.FOUND) == np.isfinite(cosine)


def test_the_kernels_mark_and_fill_what_distances_cannot_resolve(rng):
    x = rng.normal(size=(6, 5))
    x[2] = x[1] + 1e-9 * rng.normal(size=5)  # a tiny step after a long one
    x[5] = 2 * x[4] - x[3]  # the same step again
    squared = oracles.pairwise(x)[None] ** 2
    cosines, apart = np.empty((1, 4)), np.empty((1, 4))
    assert turns(squared, np.array([6]), 2.0**-7, cosines, apart).tolist() == [True]
    assert (apart[0] == -1).tolist() == [True, True, False, True]
    fill_turns(x, cosines[0], apart[0])
    wanted, between = oracles.turns(x)
    np.testing.assert_allclose(cosines[0], wanted, atol=1e-12)
    np.testing.assert_allclose(apart[0], between, atol=1e-12)
    assert turns(squared, np.array([0]), 2.0**-7, cosines, apart).tolist() == [False]
    assert np.isnan(cosines).all()
