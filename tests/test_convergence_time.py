"""When an orbit has arrived: closed forms, censoring, and drifts whose end is no limit."""

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome, Trajectories, contraction_rate, convergence_time
from dynloop.kernels.arrival import arrivals, travels_ahead

T = np.arange(128)[:, None]


def units(rng, *shape):
    way = rng.normal(size=shape)
    return way / np.linalg.norm(way, axis=-1, keepdims=True)


def decay(rng, rate, *, n=6, dim=32, n_steps=128):
    """From distance 1, to limits of norm 1."""
    return units(rng, n, 1, dim) + units(rng, n, 1, dim) * rate ** np.arange(n_steps)[:, None]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7, 0.83, 0.9])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_geometric_decay_arrives_after_the_logarithm_of_the_tolerance(rate, tolerance, dtype, rng):
    m = convergence_time(Trajectories(decay(rng, rate * 1.0001).astype(dtype)), tolerance=tolerance)
    assert m.found.all()
    assert (m.values == np.ceil(np.log(tolerance) / np.log(rate * 1.0001))).all()
    np.testing.assert_allclose(m["radius"], tolerance, rtol=1e-3)
    assert (m["n_recorded"] == 128).all()


@pytest.mark.parametrize("rate", [0.95, 0.97, 0.99, 0.999])
def test_an_orbit_that_would_arrive_after_the_end_is_censored_and_not_said_to_arrive_at_the_end(rate, rng):
    states = decay(rng, rate)
    m = convergence_time(Trajectories(states))
    assert m.outcomes.tolist() == [Outcome.NOT_CONVERGED] * 6
    assert np.isnan(m.values).all()
    assert (m["n_recorded"] == 128).all()
    longer = convergence_time(Trajectories(decay(rng, 0.95, n_steps=256)))
    assert (longer.values == 135).all()


def test_the_time_does_not_depend_on_the_length_of_the_record(rng):
    states = decay(rng, 0.8, n_steps=400)
    for n_steps in (64, 100, 400):
        assert (convergence_time(Trajectories(states[:, :n_steps])).values == 31).all()


@pytest.mark.parametrize("dim", [1, 2, 64])
@pytest.mark.parametrize("speed", [1e-5, 2e-5, 1e-4, 1e-2])
def test_a_slow_drift_is_no_arrival(dim, speed, rng):
    """At 1e-5 a step, the last 100 states lie within 1e-3 of the last one, whatever the length."""
    for n_steps in (128, 256):
        t = np.arange(n_steps)[:, None]
        states = units(rng, 50, 1, dim) + units(rng, 50, 1, dim) * (speed * t + 0.3**t)
        m = convergence_time(Trajectories(states))
        assert m.outcomes.tolist() == [Outcome.NOT_CONVERGED] * 50


def test_a_drift_that_stays_within_the_tolerance_for_the_whole_record_passes(rng):
    states = units(rng, 50, 1, 64) + units(rng, 50, 1, 64) * (2e-6 * T + 0.3**T)
    m = convergence_time(Trajectories(states))
    assert (m.values == 6).all()


@pytest.mark.parametrize(("dim", "wander"), [(512, 2e-3), (16, 3.5e-3), (4, 5e-3), (1, 6e-3)])
def test_a_walk_that_leaves_the_tolerance_is_hardly_ever_an_arrival(dim, wander, rng):
    walk = wander / np.sqrt(128) * rng.normal(size=(200, 128, dim)).cumsum(1) / np.sqrt(dim)
    states = units(rng, 200, 1, dim) + walk + units(rng, 200, 1, dim) * 0.3**T
    assert convergence_time(Trajectories(states)).found.mean() <= 0.02


@pytest.mark.parametrize(("dim", "least"), [(1, 0.97), (2, 0.99), (64, 1.0)])
@pytest.mark.parametrize("n_steps", [16, 32, 128])
def test_noise_within_the_tolerance_is_rest(dim, least, n_steps, rng):
    t = np.arange(n_steps)[:, None]
    noise = 1e-4 * rng.normal(size=(400, n_steps, dim)) / np.sqrt(dim)
    states = units(rng, 400, 1, dim) + units(rng, 400, 1, dim) * 0.3**t + noise
    m = convergence_time(Trajectories(states))
    assert m.found.mean() >= least
    assert np.abs(np.nanmedian(m.values) - 6) <= 1


MOVING = {
    "noise": lambda rng: 1 + 0.1 * rng.normal(size=(20, 128, 8)),
    "walk": lambda rng: rng.normal(size=(20, 128, 8)).cumsum(1),
    "period 2": lambda rng: 1 + rng.normal(size=(20, 1, 8)) * (-1.0)**T,
    "period 7": lambda rng: rng.normal(size=(20, 7, 8))[:, np.arange(128) % 7],
    "circle": lambda rng: units(rng, 20, 1, 2) + np.concatenate([np.cos(T / 3), np.sin(T / 3)], axis=1),
    "growing norm": lambda rng: rng.normal(size=(20, 1, 8)) * (1.0 + T),
    "log drift": lambda rng: 10 + rng.normal(size=(20, 1, 8)) * np.log(1 + T),
    "1 / t": lambda rng: 1 + rng.normal(size=(20, 1, 8)) / (1 + T),
}


@pytest.mark.parametrize("name", MOVING)
def test_what_does_not_come_to_rest_does_not_converge(name, rng):
    m = convergence_time(Trajectories(MOVING[name](rng)))
    assert m.outcomes.tolist() == [Outcome.NOT_CONVERGED] * 20
    assert np.isnan(m.values).all()


def test_an_orbit_that_leaves_again_has_not_arrived_before_it_came_back(rng):
    states = decay(rng, 0.5)
    states[:, 40] += 0.1
    assert (convergence_time(Trajectories(states)).values == 41).all()
    states[:, 110] += 0.1
    assert (convergence_time(Trajectories(states)).outcomes == Outcome.NOT_CONVERGED).all()


def test_transient_growth_counts(rng):
    """x -> [[.8, 20], [0, .8]] x from (1e-4, 1e-4): within the tolerance at first, then far out, then back."""
    x, states = np.array([1e-4, 1e-4]), []
    for _ in range(128):
        states.append([1.0, *x])
        x = np.array([[0.8, 20.0], [0.0, 0.8]]) @ x
    m = convergence_time(Trajectories(np.array(states)[None]), relative_to="limit")
    assert np.linalg.norm(states[0] - np.array([1, 0, 0])) < 1e-3
    assert m.values[0] == next(t for t in range(128) if all(np.linalg.norm(s[1:]) <= 1e-3 for s in states[t:])) > 10


def test_the_floor_is_where_the_contraction_regime_ends(rng):
    states = decay(rng, 0.8) + 1e-6 * rng.normal(size=(6, 128, 32))
    m, rates = convergence_time(Trajectories(states)), contraction_rate(Trajectories(states))
    assert m.found.all()
    assert m["floor_time"].tolist() == rates["regime_length"].tolist()
    assert (m["floor_time"] > m.values + 8).all()
    noisy = convergence_time(Trajectories(decay(rng, 0.8) + 2e-3 * rng.normal(size=(6, 128, 32))))
    assert noisy.outcomes.tolist() == [Outcome.NOT_CONVERGED] * 6  # a floor above the tolerance
    assert (noisy["floor_time"] < 15).all()
    slow = convergence_time(Trajectories(decay(rng, 0.97)))
    assert np.isnan(slow["floor_time"]).all()


def test_a_settled_bfloat16_orbit_has_arrived_and_the_radius_says_within_what(rng):
    a, b, h = 0.7 * rng.normal(size=(64, 64)) / 8, rng.normal(size=64), rng.normal(size=(10, 64))
    a, b, h = (torch.tensor(v).bfloat16() for v in (a, b, h))
    states = [h]
    for _ in range(127):
        states.append(states[-1] @ a + b)
    states = torch.stack(states, 1)
    m = convergence_time(Trajectories(states))
    assert m.found.all()
    end = states[:, -1].double().norm(dim=1).numpy()
    np.testing.assert_allclose(m["radius"], 4 * 2**-7 * end, rtol=1e-6)
    wider = convergence_time(Trajectories(states.float(), resolution=2.0**-7))
    assert wider.values.tolist() == m.values.tolist()


def test_relative_to_the_start_knows_no_origin(rng):
    states = decay(rng, 0.8)
    here, there = (convergence_time(Trajectories(states + shift), relative_to="start") for shift in (0, 50))
    assert here.values.tolist() == there.values.tolist() == [31] * 6
    to_zero = units(rng, 6, 1, 32) * 0.8**T
    assert (convergence_time(Trajectories(to_zero), relative_to="start").values == 31).all()
    assert not convergence_time(Trajectories(to_zero), relative_to="limit").found.any()


def test_an_orbit_at_rest_from_the_start_arrives_at_0(rng):
    states = np.concatenate([np.repeat(rng.normal(size=(3, 1, 5)), 40, axis=1), np.zeros((1, 40, 5))])
    for relative_to in ("limit", "start"):
        m = convergence_time(Trajectories(states), relative_to=relative_to)
        assert m.values.tolist() == [0.0] * 4
        assert m["floor_time"].tolist() == [0.0] * 4


@pytest.mark.parametrize(("n_steps", "outcome"), [(7, Outcome.TOO_SHORT), (8, Outcome.FOUND)])
def test_eight_states_are_needed(n_steps, outcome, rng):
    states = decay(rng, 0.01, n_steps=20)
    for orbits in (Trajectories(states[:, :n_steps]), Trajectories(states, lengths=[n_steps] * 6)):
        m = convergence_time(orbits)
        assert m.outcomes.tolist() == [outcome] * 6
        assert (m["n_recorded"] == n_steps).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 140), st.sampled_from(["limit", "start"]))
@settings(max_examples=80, deadline=None)
def test_orbits_of_all_kinds_equal_the_oracle(seed, n_steps, relative_to):
    rng = np.random.default_rng(seed)
    t = np.arange(n_steps)[:, None]
    way, drift = units(rng, 4, 1, 12), units(rng, 4, 1, 12)
    states = units(rng, 4, 1, 12) + way * rng.uniform(0.3, 1.0)**t + drift * t * 10.0 ** rng.uniform(-7, -3) \
        + 10.0 ** rng.uniform(-8, -2) * rng.normal(size=(4, n_steps, 12))
    tolerance = 10.0 ** rng.uniform(-4, -0.5)
    m = convergence_time(Trajectories(states), tolerance=tolerance, relative_to=relative_to)
    for o in range(4):
        outcome, time, radius = oracles.convergence_time(states[o], 2.0**-52, tolerance, relative_to)
        assert m.outcomes[o].value == outcome
        assert m.values[o] == pytest.approx(time, nan_ok=True)
        assert m["radius"][o] == pytest.approx(radius, rel=1e-9, nan_ok=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 100))
@settings(max_examples=60, deadline=None)
def test_the_kernels_equal_their_oracles(seed, n_steps):
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(3, n_steps, 4)) * rng.choice([0, 0.01, 1]) + rng.normal(size=(3, 1, 4)) * \
        rng.uniform(0.5, 1.01)**np.arange(n_steps)[:, None] + rng.choice([0, 0.1]) * np.arange(n_steps)[:, None]
    lengths = rng.integers(1, n_steps + 1, size=3)
    squared = np.full((3, n_steps, n_steps), np.nan)
    away, radius = np.full((3, n_steps), np.nan), rng.uniform(0, 2, size=3)
    for o, m in enumerate(lengths):
        squared[o, :m, :m] = oracles.pairwise(states[o, :m])**2
        away[o, :m] = oracles.from_last(states[o, :m])
    ahead, first = travels_ahead(squared, lengths), arrivals(away, lengths, radius)
    for o, m in enumerate(lengths):
        assert ahead[o] == pytest.approx(oracles.travel_ahead(states[o, :m]), rel=1e-6, abs=1e-6)
        assert first[o] == next(t for t in range(m) if (away[o, t:m] <= radius[o]).all())


@pytest.mark.parametrize(("setting", "words"), [
    ({"tolerance": 0}, r"tolerance must be a positive number .*got 0"),
    ({"tolerance": True}, r"tolerance must be a positive number .*got True"),
    ({"relative_to": "norm"}, r"relative_to must be one of limit, start; got 'norm'"),
    ({"relative_to": None}, r"relative_to must be one of limit, start; got None"),
    ({"floor_factor": 0.9}, r"floor_factor must be at least 1"),
])
def test_settings_out_of_range_are_refused(setting, words, decaying):
    with pytest.raises(ValueError, match=words):
        convergence_time(decaying, **setting)
