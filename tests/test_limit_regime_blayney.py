"""Algorithm 1 of Blayney et al. as published: what it says of known maps, right or wrong, row by row."""

import collections

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome, Trajectories, limit_regime_blayney
from dynloop.analyzers.limit_regime_blayney import _algorithm_1

T = np.arange(128)


def circle(radius, period, n_steps=128, phase=0.0):
    """A circle about a centre of norm 1 that stands perpendicular on its plane: (n_steps, 3)."""
    angle = phase + 2 * np.pi * np.arange(n_steps) / period
    return np.stack([np.ones(n_steps), radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def off_centre(distance):
    """States at `distance` (n_steps,) from a centre of norm 1, along one direction."""
    return np.stack([np.ones(len(distance)), distance], axis=1)


def regimes(states, **settings):
    """How many orbits of each regime."""
    return collections.Counter(limit_regime_blayney(Trajectories(states), **settings).values.tolist())


def regime(states, **settings):
    (only, count), = regimes(states[None], **settings).items()
    assert count == 1
    return only


def on_series(s, tau=0.05, rho=0.9, metric="cosine"):
    return [values[0] for values in _algorithm_1(s[None], tau, rho, metric)]


@pytest.mark.parametrize("n", [None, 64])
@pytest.mark.parametrize("phase", [0.0, 1.0, 2.5])
def test_a_circle_is_an_orbit_from_a_radius_of_a_sixth_on(n, phase):
    assert [regime(circle(r, 7, phase=phase), n=n) for r in (0.05, 0.16, 0.17, 0.5, 1.0)] == \
        ["fixed point"] * 2 + ["orbit"] * 3


def test_an_orbits_frequency_and_amplitude_are_those_of_the_similarity():
    m = limit_regime_blayney(Trajectories(circle(0.5, 8)[None]), n=64)
    assert m.values[0] == "orbit"
    assert m["frequency"][0] == pytest.approx(1 / 8)
    assert m["amplitude"][0] == pytest.approx(0.25 / 1.25, rel=1e-2)  # s = (1 + r^2 cos) / (1 + r^2)


@pytest.mark.parametrize("period", [100, 110, 127])
def test_a_period_close_to_the_window_is_unknown(period):
    assert regime(circle(0.5, period)) == "unknown"
    assert regime(circle(0.5, period / 2)) == "orbit"


@pytest.mark.parametrize(("n", "amplitude"), [(64, 0.2), (126, 0.2), (128, 0.2), (127, 0.17), (65, 0.17)])
def test_the_amplitude_of_period_2_is_doubled_where_n_is_even(n, amplitude):
    s = 1 - 0.1 * (1 + (-1.0) ** np.arange(n))  # a true amplitude of .1
    verdict, frequency, found, _ = on_series(s)
    assert verdict == "orbit"
    assert frequency == pytest.approx(n // 2 / n)
    assert found == pytest.approx(amplitude, abs=0.005)


def test_a_damped_spiral_is_a_fixed_point():
    states = circle(0.83**T, 6)
    assert regime(states) == "fixed point"
    assert regime(states, n=64) == "fixed point"


@pytest.mark.parametrize("rate", [0.9, 0.92, 0.95, 0.97, 0.99])
def test_slow_convergence_is_a_slider_until_the_transient_is_left_out(rate):
    states = off_centre(2 * rate**T)
    assert regime(states) == "slider"
    assert regime(states, n=64) == "fixed point"


@pytest.mark.parametrize(("speed", "verdict"), [(0.002, "fixed point"), (0.005, "slider")])
def test_constant_drift_is_a_fixed_point_or_a_slider(speed, verdict):
    assert regime(off_centre(speed * T)) == verdict


def test_a_random_walk_is_a_slider(rng):
    walks = rng.normal(size=(300, 128, 200)).cumsum(1)
    assert regimes(walks)["slider"] >= 290
    assert regimes(walks, n=64)["slider"] >= 295


def test_chaos_is_an_orbit(rng):
    x, orbit = rng.random(300), []
    for _ in range(128):
        orbit.append(2 * x - 1)
        x = 4 * x * (1 - x)
    chaos = np.stack(orbit, axis=1)
    assert regimes(np.stack([np.ones_like(chaos), chaos], axis=2))["orbit"] >= 290

    def share_in_peak(s):
        power = np.abs(np.fft.rfft((s - s.mean(-1, keepdims=True)) * np.hanning(128)[:-1])[..., 1:]) ** 2
        return float((power.max(-1) / power.sum(-1)).mean())

    assert share_in_peak(chaos[:, :127]) < 0.1  # a gate on this would tell them apart
    assert share_in_peak(np.cos(2 * np.pi * T[:127] / 7)) > 0.6
    assert share_in_peak((-1.0) ** T[:127]) > 0.9


@pytest.mark.parametrize(("sd", "share"), [(0.1, 0.71), (0.2, 0.99)])
def test_noise_is_an_orbit(sd, share, rng):
    s = 1 - np.abs(rng.normal(scale=sd, size=(4000, 127)))  # a similarity does not exceed 1
    assert (_algorithm_1(s, 0.05, 0.9, "cosine")[0] == "orbit").mean() == pytest.approx(share, abs=0.025)


def test_noise_on_both_sides_of_1_is_always_an_orbit(rng):
    for sd in (0.1, 0.2):
        s = 1 + rng.normal(scale=sd, size=(1000, 127))
        assert (_algorithm_1(s, 0.05, 0.9, "cosine")[0] == "orbit").mean() > 0.98


@given(st.integers(0, 2**32 - 1), st.sampled_from(["cosine", "euclidean"]))
@settings(max_examples=60, deadline=None)
def test_random_series_equal_the_oracle(seed, metric):
    rng = np.random.default_rng(seed)
    n, tau, rho = int(rng.integers(8, 90)), rng.uniform(0.001, 0.4), rng.uniform(0.05, 1)
    t = np.arange(n)
    s = np.stack([rng.choice([0, 1]) + 10.0 ** rng.uniform(-3, 0) * rng.normal(size=n)
                  + 10.0 ** rng.uniform(-3, 0) * np.cos(rng.uniform(0, np.pi) * t)
                  + rng.uniform(-2, 2) * tau / n * t for _ in range(5)])
    got = _algorithm_1(s, tau, rho, metric)
    for o in range(5):
        wanted = oracles.algorithm_1(s[o], tau, rho, metric)
        assert got[0][o] == wanted[0]
        assert [values[o] for values in got[1:]] == pytest.approx(wanted[1:], rel=1e-9, abs=1e-12)


def test_the_analyzer_is_the_oracle_on_similarities_to_the_last_state(rng):
    states = np.concatenate([circle(0.3, 7)[None], off_centre(2 * 0.95**T)[None] @ np.eye(2, 3),
                             1 + rng.normal(size=(20, 128, 3)).cumsum(1) * 0.2])
    for metric, n in (("cosine", None), ("cosine", 64), ("euclidean", None), ("euclidean", 33)):
        m = limit_regime_blayney(Trajectories(states), n=n, metric=metric)
        for o, orbit in enumerate(states):
            s = oracles.from_last(orbit, metric)[:-1][-(n or 127):]
            wanted = oracles.algorithm_1(1 - s if metric == "cosine" else s, metric=metric)
            assert (m.values[o], *(m[v][o] for v in ("frequency", "amplitude", "slope"))) == \
                (wanted[0], *(pytest.approx(v, rel=1e-9, abs=1e-12) for v in wanted[1:]))


@pytest.mark.parametrize(("distance", "verdict"), [(0.5**T, "fixed point"), (3 * 0.97**T, "slider"),
                                                   (1 - T / 127, "slider"), (0.0003 * (127 - T), "fixed point")])
def test_the_euclidean_version_measures_distance(distance, verdict):
    assert regime(1e4 + off_centre(distance), metric="euclidean") == verdict


def test_the_euclidean_version_sees_the_orbits_that_the_cosine_misses():
    small = circle(0.1, 7)
    assert (regime(small), regime(small, metric="euclidean")) == ("fixed point", "orbit")
    # and depends on the unit of the states, as the published tolerance does
    assert regime(small / 10, metric="euclidean") == "fixed point"


def test_tolerance_and_share_decide_what_a_fixed_point_is():
    states = circle(0.1, 7)
    assert regime(states, tau=0.005) == "orbit"
    s = np.where(np.arange(100) < 85, 1.0, 0.9)  # 85 % within .05
    assert [on_series(s, rho=rho)[0] for rho in (0.85, 0.86)] == ["fixed point", "unknown"]


def test_a_falling_similarity_is_no_slider():
    s = np.linspace(0.9, 0.5, 127)
    assert on_series(s)[0] == "unknown"
    assert on_series(s[::-1])[0] == "slider"
    assert on_series(s, metric="euclidean")[0] == "slider"


@pytest.mark.parametrize(("n_steps", "n", "long_enough"), [(9, None, True), (8, None, False), (65, 64, True),
                                                           (64, 64, False), (128, 7, False), (128, 8, True)])
def test_a_window_needs_eight_states_and_one_more(n_steps, n, long_enough):
    for orbits in (Trajectories(circle(0.5, 3, n_steps)[None]), Trajectories(circle(0.5, 3)[None], lengths=[n_steps])):
        m = limit_regime_blayney(orbits, n=n)
        assert m.outcomes[0] is (Outcome.FOUND if long_enough else Outcome.TOO_SHORT)
        assert m.values[0] == ("orbit" if long_enough else "")


def test_ragged_orbits_have_each_their_own_window():
    orbits = Trajectories(np.stack([circle(0.5, 7)] * 3), lengths=[128, 50, 5])
    m = limit_regime_blayney(orbits)
    assert m.values.tolist() == ["orbit", "orbit", ""]
    alone = limit_regime_blayney(Trajectories(circle(0.5, 7, 50)[None]))
    assert m["frequency"][1] == alone["frequency"][0]
    assert m["amplitude"][1] == pytest.approx(alone["amplitude"][0])


@pytest.mark.parametrize(("setting", "words"), [
    ({"n": 0}, "n must be a positive whole number"), ({"n": 64.0}, "n must be"), ({"n": True}, "n must be"),
    ({"tau": 0}, "tau must be a positive number"), ({"tau": np.inf}, "tau must be"),
    ({"rho": 0}, "rho must be a share"), ({"rho": 1.01}, "rho must be a share"),
    ({"metric": "relative"}, "metric must be one of cosine, euclidean; got 'relative'"),
])
def test_settings_out_of_range_are_refused(setting, words, decaying):
    with pytest.raises(ValueError, match=words):
        limit_regime_blayney(decaying, **setting)
