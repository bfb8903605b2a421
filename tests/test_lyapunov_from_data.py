"""Lyapunov exponents from recordings: known ones without settings, and none where there is none to know."""

import math

import numpy as np
import oracles
import pytest

from dynloop import Outcome, Trajectories
from dynloop.analyzers.lyapunov_from_data import lyapunov_from_data
from dynloop.kernels import divergence as kernels

LN2, HENON, LORENZ = math.log(2), 0.41922, 0.9056


def iterate(rule, start, n_steps, burn=500):
    """Orbits (n, n_steps, dim) of a rule on states (n, dim)."""
    states = np.empty((len(start), n_steps, start.shape[1]))
    for t in range(-burn, n_steps):
        if t >= 0:
            states[:, t] = start
        start = rule(start)
    return states


def logistic(rng, n, n_steps, r=4.0):
    return iterate(lambda x: r * x * (1 - x), rng.uniform(0.1, 0.9, (n, 1)), n_steps)


def henon(rng, n, n_steps):
    return iterate(lambda x: np.stack([1 - 1.4 * x[:, 0] ** 2 + x[:, 1], 0.3 * x[:, 0]], 1),
                   rng.uniform(-0.1, 0.1, (n, 2)), n_steps)


def lorenz(rng, n, n_steps, dt=0.05):
    sub = max(1, round(dt / 0.01))
    h = dt / sub

    def flow(x):
        return np.stack([10 * (x[:, 1] - x[:, 0]), x[:, 0] * (28 - x[:, 2]) - x[:, 1],
                         x[:, 0] * x[:, 1] - 8 / 3 * x[:, 2]], 1)

    def rule(x):
        for _ in range(sub):
            a = flow(x)
            b = flow(x + h / 2 * a)
            c = flow(x + h / 2 * b)
            x = x + h / 6 * (a + 2 * b + 2 * c + flow(x + h * c))
        return x

    return iterate(rule, rng.normal([1, 1, 20], size=(n, 3)), n_steps, round(20 / dt))


def beta_pair(rng, n, n_steps, slope=1.9, coupling=0.2):
    """Two coupled maps x -> slope x mod 1: exponents ln slope and ln slope + ln(1 - 2 coupling)."""
    def rule(x):
        y = slope * x % 1
        return (1 - coupling) * y + coupling * y[:, ::-1]

    return iterate(rule, rng.uniform(size=(n, 2)), n_steps)


def walk_to(phi, rng, n, n_steps, dim=2):
    """AR(1) of coefficient phi, stationary from the start."""
    noise = rng.normal(size=(n, n_steps, dim))
    noise[:, 0] /= math.sqrt(1 - phi**2)
    for t in range(1, n_steps):
        noise[:, t] += phi * noise[:, t - 1]
    return noise


def torus(turns, n_steps, noise=0.0, rng=None, n=1):
    angle = 2 * np.pi * (np.arange(n_steps)[:, None] * np.array(turns))
    states = np.repeat(np.concatenate([np.cos(angle), np.sin(angle)], axis=1)[None], n, axis=0)
    return states + (noise * rng.normal(size=states.shape) if noise else 0.0)


def embedded(states, dim, rng):
    frame = np.linalg.qr(rng.normal(size=(dim, states.shape[2])))[0]
    return states @ frame.T


def noisy(states, share, rng):
    """With noise of that share of the standard deviation, in every feature."""
    return states + share * states.std(axis=(0, 1)).mean() * rng.normal(size=states.shape)


def near(m, truth, tolerance):
    """Found everywhere, right on the median and nearly everywhere, and covered."""
    assert m.outcomes.tolist() == [Outcome.FOUND] * m.n_orbits
    error = np.abs(m.values / truth - 1)
    assert np.median(m.values) == pytest.approx(truth, rel=tolerance)
    assert (error < tolerance).mean() >= 0.75, m.values / truth
    assert ((m["low"] < truth) & (truth < m["high"])).mean() >= 0.8


def test_the_logistic_map_gives_ln_2(rng):
    for n_steps in (1000, 2000):
        near(lyapunov_from_data(Trajectories(logistic(rng, 4, n_steps))), LN2, 0.05)


def test_the_henon_map_gives_its_exponent(rng):
    near(lyapunov_from_data(Trajectories(henon(rng, 5, 2000))), HENON, 0.05)


@pytest.mark.parametrize("dt", [0.05, 0.1])
def test_the_lorenz_system_gives_its_exponent_at_any_sampling(dt, rng):
    near(lyapunov_from_data(Trajectories(lorenz(rng, 4, 3000, dt))), LORENZ * dt, 0.1)


@pytest.mark.slow
def test_the_lorenz_system_gives_its_exponent_when_sampled_often(rng):
    near(lyapunov_from_data(Trajectories(lorenz(rng, 8, 5000, 0.02))), LORENZ * 0.02, 0.1)


def test_coupled_maps_give_an_interval_that_holds_their_exponent(rng):
    near(lyapunov_from_data(Trajectories(beta_pair(rng, 6, 2000))), math.log(1.9), 0.08)


def test_high_dimension_single_precision_and_a_little_noise_do_not_matter(rng):
    states = noisy(embedded(logistic(rng, 3, 1500), 256, rng), 0.01, rng)
    near(lyapunov_from_data(Trajectories(states.astype("float32"))), LN2, 0.08)
    near(lyapunov_from_data(Trajectories(noisy(henon(rng, 4, 2000), 0.005, rng))), HENON, 0.08)


def test_short_records_of_a_simple_map_are_answered_and_covered(rng):
    for n_steps, tolerance in ((128, 0.2), (256, 0.1)):
        m = lyapunov_from_data(Trajectories(logistic(rng, 40, n_steps)))
        assert m.found.mean() > 0.9
        assert (np.abs(m.values[m.found] / LN2 - 1) < tolerance).mean() > 0.9
        assert ((m["low"] < LN2) & (m["high"] > LN2))[m.found].mean() > 0.9


@pytest.mark.parametrize("n_steps", [128, 400])
def test_short_records_of_a_flow_are_refused(n_steps, rng):
    m = lyapunov_from_data(Trajectories(lorenz(rng, 10, n_steps)))
    assert not m.found.any()
    assert Outcome.TOO_SHORT in m.counts()


UNDETERMINED = {
    "white noise": lambda rng, t: rng.normal(size=(6, t, 1)),
    "white noise in 3": lambda rng, t: rng.normal(size=(6, t, 3)),
    "white noise in 64": lambda rng, t: rng.normal(size=(2, t, 64)),
    "heavy tails": lambda rng, t: rng.standard_t(2, size=(4, t, 2)),
    "random walk": lambda rng, t: rng.normal(size=(4, t, 3)).cumsum(1),
    "AR .5": lambda rng, t: walk_to(0.5, rng, 4, t),
    "AR .9": lambda rng, t: walk_to(0.9, rng, 4, t),
    "AR .9 in one dimension": lambda rng, t: walk_to(0.9, rng, 4, t, 1),
    "AR .99": lambda rng, t: walk_to(0.99, rng, 4, t),
    "walk on a circle": lambda rng, t: np.stack([f(0.3 * rng.normal(size=(4, t)).cumsum(1)) for f in (np.cos, np.sin)],
                                                axis=2),
    "rest": lambda rng, t: np.ones((2, t, 3)) * rng.normal(size=3),
    "rest in 0": lambda rng, t: np.zeros((1, t, 2)),
    "cycle": lambda rng, t: rng.normal(size=(3, 7, 3))[:, np.arange(t) % 7],
    "noisy cycle": lambda rng, t: rng.normal(size=(3, 7, 3))[:, np.arange(t) % 7] + 0.01 * rng.normal(size=(3, t, 3)),
    "period 3": lambda rng, t: logistic(rng, 4, t, 3.83),
    "onset of chaos": lambda rng, t: logistic(rng, 3, t, 3.569945671870945),
    "circle": lambda rng, t: torus([0.618034], t),
    "slow circle": lambda rng, t: torus([0.0123], t),
    "noisy circle": lambda rng, t: torus([0.618034], t, 0.01, rng, 3),
    "torus": lambda rng, t: torus([0.618034, 0.414214], t),
    "slow noisy torus": lambda rng, t: torus([0.0123, 0.0345], t, 0.01, rng, 3),
    "drift": lambda rng, t: np.arange(t)[:, None] * rng.normal(size=(3, 1, 3)),
    "accelerated drift": lambda rng, t: np.arange(t)[:, None] ** 2 * rng.normal(size=(3, 1, 3)),
    "noisy drift": lambda rng, t: np.arange(t)[:, None] * rng.normal(size=(3, 1, 3)) + rng.normal(size=(3, t, 3)),
    "growth": lambda rng, t: np.exp(0.02 * np.arange(t))[:, None] * rng.normal(size=(3, 1, 3)),
    "contraction": lambda rng, t: 1 + 0.9 ** np.arange(t)[:, None] * rng.normal(size=(3, 1, 3)),
    "slow contraction": lambda rng, t: 1 + 0.995 ** np.arange(t)[:, None] * rng.normal(size=(3, 1, 3)),
    "contraction to noise": lambda rng, t: (0.9 ** np.arange(t)[:, None] * rng.normal(size=(3, 1, 3))
                                            + 1e-3 * rng.normal(size=(3, t, 3))),
    "damped turns": lambda rng, t: 0.99 ** np.arange(t)[:, None] * torus([0.1], t),
    "jumps between places": lambda rng, t: rng.normal(size=(6, 3))[rng.integers(0, 6, size=(3, t))],
    "chaos in many dimensions": lambda rng, t: np.concatenate([logistic(rng, 20, t)[None, :, :, 0]], 0).swapaxes(1, 2),
    "shuffled chaos": lambda rng, t: rng.permuted(logistic(rng, 3, t), axis=1),
}


@pytest.mark.parametrize("n_steps", [128, 1000])
@pytest.mark.parametrize("method", ["rosenstein", "kantz"])
@pytest.mark.parametrize("name", UNDETERMINED)
def test_no_exponent_is_given_where_nothing_parts_exponentially(name, method, n_steps, rng):
    m = lyapunov_from_data(Trajectories(UNDETERMINED[name](rng, n_steps)), method=method)
    assert not m.found.any(), m.values
    assert np.isnan(m.values).all()


@pytest.mark.slow
@pytest.mark.parametrize("n_steps", [128, 256, 512, 2000])
def test_false_exponents_are_rarer_than_one_in_two_hundred(n_steps):
    wrong = total = 0
    for seed in range(40 if n_steps < 2000 else 8):
        for make in UNDETERMINED.values():
            m = lyapunov_from_data(Trajectories(make(np.random.default_rng(seed), n_steps)))
            wrong, total = wrong + m.found.sum(), total + m.n_orbits
    assert wrong <= total / 200, (wrong, total)


@pytest.mark.slow
def test_intervals_cover(rng):
    for make, truth in ((logistic, LN2), (henon, HENON), (beta_pair, math.log(1.9)), (lorenz, 0.05 * LORENZ)):
        m = lyapunov_from_data(Trajectories(make(rng, 30, 1500)))
        assert m.found.mean() > 0.9
        assert ((m["low"] < truth) & (truth < m["high"]))[m.found].mean() > 0.9, make.__name__


def test_no_orbit_gives_an_infinity_or_an_exception(rng):
    states = logistic(rng, 12, 300)
    states[0, 100:] = states[0, 99]  # frozen
    states[1, ::2] = 0
    states[2] *= 1e-160
    states[3] *= 1e160
    states[4, 50:200] = states[4, 50:51]
    states[5] = np.round(states[5], 1)
    states[6] = states[6] + 1e9
    states[7, 299] = 1e12
    m = lyapunov_from_data(Trajectories(states))
    for values in m.variables.values():
        assert not np.isinf(values).any()
    assert m.found[8:].all()


def test_a_part_of_the_state_misleads_and_delays_mend_it(rng):
    part = Trajectories(henon(rng, 4, 2000)[:, :, :1])
    assert (lyapunov_from_data(part).values < 0.37).all()
    near(lyapunov_from_data(part, delays=1), HENON, 0.05)
    assert lyapunov_from_data(Trajectories(henon(rng, 2, 101)), delays=2).outcomes.tolist() == [Outcome.TOO_SHORT] * 2


def test_both_methods_find_the_exponents_of_maps_and_differ(rng):
    for make, truth in ((logistic, LN2), (henon, HENON)):
        orbits = Trajectories(make(rng, 4, 2000))
        one, several = lyapunov_from_data(orbits), lyapunov_from_data(orbits, method="kantz")
        near(several, truth, 0.08)
        assert (np.abs(one.values - several.values) > 1e-6).all()
    assert lyapunov_from_data(Trajectories(lorenz(rng, 3, 3000)), method="kantz").values == \
        pytest.approx(0.05 * LORENZ, rel=0.35)


def test_the_window_in_time_keeps_the_turn_of_a_flow_and_may_be_given(rng):
    orbits = Trajectories(lorenz(rng, 2, 2000))
    found = lyapunov_from_data(orbits)
    assert ((found["theiler_window"] > 10) & (found["theiler_window"] < 20)).all()  # a turn takes .65 to .75
    assert (lyapunov_from_data(orbits, theiler_window=40)["theiler_window"] == 40).all()
    assert not lyapunov_from_data(orbits, theiler_window=1000).found.any()
    assert lyapunov_from_data(orbits, theiler_window=1).values.tolist() != found.values.tolist()


def test_scale_and_place_do_not_matter_and_saturation_is_in_state_units(rng):
    states = henon(rng, 3, 300)
    m, moved = lyapunov_from_data(Trajectories(states)), lyapunov_from_data(Trajectories(8 * states + 3))
    np.testing.assert_allclose(moved.values, m.values, rtol=1e-6)
    np.testing.assert_allclose(moved["saturation"], 8 * m["saturation"], rtol=1e-6)
    typical = [np.median(np.linalg.norm(x[:, None] - x, axis=2)[np.triu_indices(300, 5)]) for x in states]
    np.testing.assert_allclose(m["saturation"], typical, rtol=0.25)


def test_the_plateau_is_a_straight_piece_of_the_curve_that_is_given(rng):
    m = lyapunov_from_data(Trajectories(logistic(rng, 3, 2000)))
    assert m["divergence"].shape == (3, 251)
    for o in range(3):
        first, last = int(m["plateau_start"][o]), int(m["plateau_stop"][o])
        piece = m["divergence"][o, first:last + 1]
        assert last - first >= 5
        assert np.polyfit(np.arange(len(piece)), piece, 1)[0] == pytest.approx(m.values[o], rel=0.05)
        assert piece[-1] - piece[0] == pytest.approx(m["growth"][o], abs=0.2)
        assert piece[-1] < math.log(m["saturation"][o]) - 0.7
    noise = lyapunov_from_data(Trajectories(rng.normal(size=(1, 500, 2))))
    assert np.isfinite(noise["divergence"][0, :2]).all()  # given without an exponent, too


def test_what_the_format_cannot_resolve_is_no_distance(rng):
    states = logistic(rng, 4, 1000)
    coarse = lyapunov_from_data(Trajectories(states, resolution=2.0**-8))  # computed in bfloat16, somebody says
    fine = lyapunov_from_data(Trajectories(states))
    assert (coarse["growth"][coarse.found] < fine["growth"][coarse.found] - 1).all()
    assert coarse["divergence"][:, 0].min() > math.log(2.0**-8 * 0.5)


def awkward(rng):
    """Orbits of up to 200 steps, with what the settings are."""
    yield logistic(rng, 1, 150)[0], {}
    yield logistic(rng, 1, 200)[0], {"method": "kantz"}
    yield henon(rng, 1, 150)[0], {"theiler_window": 9}
    yield henon(rng, 1, 160)[0][:, :1], {"delays": 2}
    yield henon(rng, 1, 200)[0][:, :1], {"delays": 1, "method": "kantz"}
    yield noisy(logistic(rng, 1, 200), 0.01, rng)[0], {}
    yield noisy(embedded(logistic(rng, 1, 200), 20, rng), 0.02, rng)[0], {}
    yield lorenz(rng, 1, 220, 0.1)[0], {}
    yield lorenz(rng, 1, 160, 0.1)[0], {"method": "kantz"}
    yield logistic(rng, 1, 150, 3.83)[0], {}
    yield logistic(rng, 1, 150, 3.6)[0], {}
    yield np.round(logistic(rng, 1, 150), 2)[0], {}
    yield walk_to(0.5, rng, 1, 150)[0], {}
    yield walk_to(0.9, rng, 1, 150, 1)[0], {}
    yield rng.normal(size=(150, 3)), {}
    yield rng.normal(size=(150, 3)).cumsum(0), {}
    yield rng.normal(size=(7, 3))[np.arange(120) % 7], {}
    yield torus([0.11], 150)[0], {}
    yield np.zeros((120, 2)), {}
    yield logistic(rng, 1, 99)[0], {}
    yield henon(rng, 1, 130)[0], {"theiler_window": 60}


OUTCOMES = {"fitted": Outcome.FOUND, "at rest": Outcome.NOT_FOUND, "not recurrent": Outcome.NOT_FOUND,
            "no plateau": Outcome.NOT_FOUND}


def agree(states, settings):
    m = lyapunov_from_data(Trajectories(states[None]), **settings)
    state, *slow = oracles.lyapunov_from_data(states, 2.0**-52, **settings)
    expected = OUTCOMES.get(state, Outcome.TOO_SHORT)
    if state == "fitted" and slow[1] > 0.5 * slow[0]:
        expected = Outcome.TOO_SHORT
    assert m.outcomes[0] is expected
    if slow:
        for k, value in slow[-1].items():
            assert m["divergence"][0, k] == pytest.approx(value, rel=1e-9, abs=1e-9)
    if expected is Outcome.FOUND:
        fast = [m.values[0], (m["high"][0] - m["low"][0]) / 2, m["plateau_start"][0], m["plateau_stop"][0],
                m["growth"][0], m["theiler_window"][0], math.log(m["saturation"][0])]
        np.testing.assert_allclose(fast, np.array(slow[:7], dtype=float), rtol=1e-7, atol=1e-9)
    return state


def test_fast_equals_slow(rng):
    seen = {agree(states, settings) for states, settings in awkward(rng)}
    assert {"fitted", "at rest", "not recurrent", "no plateau", "too few steps"} <= seen


@pytest.mark.slow
def test_fast_equals_slow_on_a_flow_followed_by_segments(rng):
    assert agree(lorenz(rng, 1, 1000)[0], {}) == "fitted"
    agree(lorenz(rng, 1, 1000)[0], {"method": "kantz"})


def test_distances_to_segments_are_those_to_the_line_between_states(rng):
    states = rng.normal(size=(40, 3)).cumsum(0)
    states[21] = states[20]  # a segment without length
    squared = oracles.pairwise(states) ** 2
    for p in range(40):
        for q in range(39):
            fast = kernels.to_segment(squared, p, q)
            assert fast == pytest.approx(oracles.to_segment(squared, p, q), abs=1e-12)
            share = np.linspace(0, 1, 4001)[:, None]
            line = states[q] + share * (states[q + 1] - states[q])
            assert fast == pytest.approx(((states[p] - line) ** 2).sum(1).min(), abs=1e-5)
    neighbours = np.array([[(i + 13) % 30] for i in range(30)])
    ahead, references = np.arange(0, 9), np.arange(30)
    for shift in (0, 2, 5):
        logs = np.empty((9, 30))
        kernels.follow(squared, 40, references, neighbours, ahead, shift, 1e-9, logs)
        slow = [oracles.parted(squared, i, (i + 13) % 30, ahead, shift, 1e-9) for i in range(30)]
        np.testing.assert_allclose(logs.T, slow, rtol=1e-9, atol=1e-12)


def test_an_error_counts_pairs_that_share_a_time_as_dependent(rng):
    """Sums over pairs of values that belong to times: the variance is that of the sum over times."""
    estimates, sums = [], []
    for _ in range(400):
        of_times = np.repeat(rng.normal(size=8), 4) + 0.3 * rng.normal(size=32)
        i, j = rng.integers(0, 32, size=(2, 300))
        influence = (of_times[i] + of_times[j]) / 300
        blocks = np.zeros(64)
        np.add.at(blocks, i // 4 * 8 + j // 4, influence)
        variance = kernels.shared_variance(blocks)
        assert math.sqrt(variance) == pytest.approx(oracles.pair_error(influence, i, j, 32), rel=1e-9)
        estimates.append(variance)
        sums.append(influence.sum())
    assert np.mean(estimates) == pytest.approx(np.var(sums), rel=0.25)


@pytest.mark.parametrize(("settings", "words"), [
    ({"method": "wolf"}, "method must be one of rosenstein, kantz; got 'wolf'"),
    ({"delays": 1.0}, "delays must be a whole number"),
    ({"delays": True}, "delays must be a whole number"),
    ({"theiler_window": 0}, "theiler_window must be a positive whole number"),
])
def test_settings_that_make_no_sense_are_refused(settings, words, rng):
    with pytest.raises(ValueError, match=words):
        lyapunov_from_data(Trajectories(rng.normal(size=(1, 120, 2))), **settings)
