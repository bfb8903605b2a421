"""The rate of contraction: known rates, known floors, and no rate for what does not contract."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome, Trajectories, contraction_rate, successive_distance
from dynloop.analyzers.contraction_rate import _interval
from dynloop.kernels.contraction import FITTED, NOT_SHRINKING, STILL_FALLING, TOO_FEW, contraction_regime, line

T = np.arange(128)
STATE = {FITTED: "fitted", TOO_FEW: "too few", STILL_FALLING: "still falling", NOT_SHRINKING: "not shrinking"}


def geometric(rng, rate, n_steps=128, n=10, dim=64, offset=1.0):
    ends, away = rng.normal(size=(2, n, 1, dim))
    return offset * ends + away * rate ** np.arange(n_steps)[:, None]


def along(steps, rng, n=5, dim=16):
    """Orbits that move along one direction by `steps`."""
    start, way = rng.normal(size=(2, n, 1, dim))
    return start + way / np.linalg.norm(way, axis=-1, keepdims=True) * np.cumsum(steps)[:, None]


def linear_map(rng, rate, dtype, n=6, n_steps=128, dim=256, turning=True):
    """h <- rate Q h + b with orthogonal Q (or the identity), every step computed in `dtype`."""
    orbits = []
    for _ in range(n):
        q = np.linalg.qr(rng.normal(size=(dim, dim)))[0] if turning else np.eye(dim)
        a, b, h = (torch.tensor(v).to(dtype) for v in (rate * q, rng.normal(size=dim), 5 * rng.normal(size=dim)))
        states = [h]
        for _ in range(n_steps - 1):
            states.append(a @ states[-1] + b)
        orbits.append(torch.stack(states))
    return Trajectories(torch.stack(orbits))


def all_are(m, outcome):
    assert m.outcomes.tolist() == [outcome] * m.n_orbits
    assert np.isnan(m.values).all() or outcome is Outcome.FOUND


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_geometric_decay_gives_its_rate(rate, dtype, rng):
    m = contraction_rate(Trajectories(geometric(rng, rate).astype(dtype)))
    all_are(m, Outcome.FOUND)
    if dtype == "float64":
        np.testing.assert_allclose(m.values, rate, rtol=1e-3 if rate < 0.8 else 1e-6)  # the last points touch the floor
    else:
        np.testing.assert_allclose(m.values, rate, atol=2e-3)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3])
def test_a_large_common_offset_shortens_the_regime_and_keeps_the_rate(offset, rng):
    m = contraction_rate(Trajectories(geometric(rng, 0.8, offset=offset).astype("float32")))
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m.values, 0.8, atol=2e-3)
    assert (np.abs(m["regime_length"] - {0.0: 127, 1.0: 66, 1e3: 35}[offset]) <= 3).all()


def test_a_complex_pair_gives_its_modulus():
    angle = 2 * np.pi * T / 6
    spiral = 0.83**T[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1) + 1
    m = contraction_rate(Trajectories(spiral[None]))
    assert m.values[0] == pytest.approx(0.83, abs=1e-4)


def test_the_floor_is_not_reported_where_it_was_not_reached(rng):
    m = contraction_rate(Trajectories(geometric(rng, 0.97)))
    assert np.isnan(m["floor"]).all()
    assert np.isnan(m["relative_floor"]).all()
    assert (m["regime_length"] == 127).all()


def test_a_floor_of_noise_is_its_median_step_and_ends_the_regime(rng):
    states = geometric(rng, 0.8) + 1e-4 * rng.normal(size=(10, 128, 64))
    m = contraction_rate(Trajectories(states))
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m.values, 0.8, atol=0.005)
    np.testing.assert_allclose(m["floor"], 1e-4 * math.sqrt(2 * 64), rtol=0.1)
    np.testing.assert_allclose(m["relative_floor"], m["floor"] / np.linalg.norm(states[:, -1], axis=1), rtol=1e-12)
    last = 1 + math.log(3e-4 * math.sqrt(2) / 0.2) / math.log(0.8)  # |away| .2 .8^t = 3 floors, and one more
    assert (np.abs(m["regime_length"] - last) < 3).all()


def test_bfloat16_has_a_floor_and_a_rate_where_a_fit_over_everything_fails(rng):
    orbits = linear_map(rng, 0.83, torch.bfloat16)
    m = contraction_rate(orbits)
    all_are(m, Outcome.FOUND)
    assert (m.values > 0.7).all()
    assert (m.values < 0.9).all()
    assert (m["relative_floor"] > 1e-3).all()
    assert (m["regime_length"] < 40).all()
    steps = successive_distance(orbits).values
    assert (np.exp(np.polyfit(np.arange(127), np.log(steps).T, 1)[0]) > 0.95).all()


@pytest.mark.parametrize("dim", [16, 64, 400])
@pytest.mark.parametrize("rate", [0.5, 0.6, 0.7, 0.8, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rotation_in_many_dimensions_has_the_modulus_of_all_its_modes(dim, rate, dtype, rng):
    """As many modes as dimensions, equally fast: what is left before the floor must not pass for a faster few."""
    n = 4
    turn = rate * np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    away, limit = 5 * rng.normal(size=(n, dim)), rng.normal(size=dim)
    states = torch.tensor(np.stack([limit + away @ np.linalg.matrix_power(turn.T, t) for t in T], 1), dtype=dtype)
    for orbits in (Trajectories(states), Trajectories(states, labels={"start": np.arange(n)})):
        m = contraction_rate(orbits)
        all_are(m, Outcome.FOUND)
        np.testing.assert_allclose(np.log(m.values), np.log(rate), rtol=0.05)


def test_a_floor_of_exactly_0_is_the_grid_and_not_contraction(rng):
    orbits = linear_map(rng, 0.83, torch.bfloat16, turning=False)
    steps = successive_distance(orbits).values
    assert (steps[:, -32:] == 0).all()
    m = contraction_rate(orbits)
    all_are(m, Outcome.FOUND)
    assert (m.values > 0.8).all()
    end = orbits.states[:, -1].double().norm(dim=1).numpy()
    np.testing.assert_allclose(m["floor"], 0.3 * 2**-7 * end, rtol=1e-6)


def test_the_resolution_of_the_computation_counts_not_that_of_the_cast(rng):
    orbits = linear_map(rng, 0.83, torch.bfloat16, turning=False)
    cast = orbits.states.float()
    kept, lost = contraction_rate(orbits.replace(states=cast)), contraction_rate(Trajectories(cast))
    assert kept.values.tolist() == pytest.approx(contraction_rate(orbits).values.tolist(), rel=1e-6)
    assert (lost.values < kept.values).all()  # steps on the bfloat16 grid count as contraction
    assert (lost["floor"] < kept["floor"]).all()


def test_a_state_finer_than_its_dtype_cannot_be_claimed(rng):
    states = geometric(rng, 0.5).astype("float32")
    fine = contraction_rate(Trajectories(states, resolution=2**-52))
    assert fine["floor"].tolist() == contraction_rate(Trajectories(states))["floor"].tolist()


NEVER = {
    "ballistic drift": (lambda rng: along(np.full(128, 0.01), rng), Outcome.NOT_CONVERGED),
    "drift that grows": (lambda rng: along(0.01 * T, rng), Outcome.NOT_CONVERGED),
    "drift in norm": (lambda rng: rng.normal(size=(5, 1, 16)) * (1 + T[:, None]), Outcome.NOT_CONVERGED),
    "1 / t": (lambda rng: along(1 / (1 + T), rng), Outcome.NOT_CONVERGED),
    "1 / t^2": (lambda rng: along(1 / (1 + T) ** 2, rng), Outcome.NOT_CONVERGED),
    "1 / sqrt t": (lambda rng: along((1 + T) ** -0.5, rng), Outcome.NOT_CONVERGED),
    "slow drift that shrinks by .999": (lambda rng: along(0.999**T, rng), Outcome.NOT_CONVERGED),
    "random walk": (lambda rng: rng.normal(size=(40, 128, 64)).cumsum(1), Outcome.NOT_CONVERGED),
    "noise": (lambda rng: 10 + rng.normal(size=(40, 128, 64)), Outcome.NOT_CONVERGED),
    "period 2": (lambda rng: rng.normal(size=(5, 2, 16))[:, T % 2], Outcome.NOT_CONVERGED),
    "period 2 in one dimension": (lambda rng: 1 + (-1.0) ** T[None, :, None], Outcome.NOT_CONVERGED),
    "period 5": (lambda rng: rng.normal(size=(5, 5, 16))[:, T % 5], Outcome.NOT_CONVERGED),
    "circle": (lambda rng: np.stack([np.cos(T / 7), np.sin(T / 7), 0 * T + 1], 1)[None], Outcome.NOT_CONVERGED),
    "contraction onto a circle": (lambda rng: (np.stack([np.cos(T / 2), np.sin(T / 2)], 1)
                                               * (1 + 3 * 0.8**T[:, None]))[None], Outcome.NOT_CONVERGED),
    "growth": (lambda rng: along(1.05**T, rng), Outcome.NOT_CONVERGED),
    "fast growth": (lambda rng: along(1.3**T, rng), Outcome.NOT_CONVERGED),
    "frozen from the start": (lambda rng: np.repeat(rng.normal(size=(5, 1, 16)), 128, axis=1),
                              Outcome.AT_PRECISION_FLOOR),
    "at 0 for ever": (lambda rng: np.zeros((2, 128, 3)), Outcome.AT_PRECISION_FLOOR),
    "four steps, then frozen": (lambda rng: geometric(rng, 0.5)[:, np.minimum(T, 4)], Outcome.AT_PRECISION_FLOOR),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NEVER)
def test_what_does_not_contract_has_no_rate(name, dtype, rng):
    make, outcome = NEVER[name]
    m = contraction_rate(Trajectories(make(rng).astype(dtype)))
    assert m.outcomes.tolist() == [outcome] * m.n_orbits
    assert np.isnan(m.values).all()


def test_five_steps_before_the_floor_are_enough_and_four_are_not(rng):
    for stop, outcome in ((4, Outcome.AT_PRECISION_FLOOR), (5, Outcome.FOUND)):
        m = contraction_rate(Trajectories(geometric(rng, 0.5)[:, np.minimum(T, stop)]))
        all_are(m, outcome)
        assert (m["regime_length"] == stop).all()
        assert np.isfinite(m["floor"]).all()  # given wherever it could be measured


def test_a_logistic_map_in_many_dimensions_has_no_rate(rng):
    x = rng.random((20, 64))
    orbit = []
    for _ in range(128):
        orbit.append(x)
        x = 4 * x * (1 - x)
    all_are(contraction_rate(Trajectories(np.stack(orbit, axis=1))), Outcome.NOT_CONVERGED)


def test_steps_that_grow_into_a_plateau_are_not_found(rng):
    """A regime whose steps grow before they level off at once: rho >= 1."""
    steps = np.where(T < 40, 1.1 ** (T - 40.0), 1e-3)
    m = contraction_rate(Trajectories(along(steps * np.where(T < 40, 1, (-1.0) ** T), rng)))
    all_are(m, Outcome.NOT_FOUND)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_orbit_that_leaves_the_finite_numbers_has_no_rate(bad, rng):
    states = geometric(rng, 0.8)
    states[3, 100, 5] = bad
    m = contraction_rate(Trajectories(states))
    assert m.outcomes.tolist() == [Outcome.NOT_FINITE if o == 3 else Outcome.FOUND for o in range(10)]
    assert np.isnan(m.values[3])


@pytest.mark.parametrize(("n_steps", "min_points", "long_enough"), [(5, 5, False), (6, 5, True), (1, 5, False),
                                                                    (9, 9, False), (10, 9, True), (4, 3, True)])
def test_an_orbit_is_too_short_below_min_points_steps(n_steps, min_points, long_enough, rng):
    for orbits in (Trajectories(geometric(rng, 0.1, n_steps=n_steps)),
                   Trajectories(geometric(rng, 0.1), lengths=[n_steps] * 10)):
        m = contraction_rate(orbits, min_points=min_points)
        assert all((outcome is not Outcome.TOO_SHORT) == long_enough for outcome in m.outcomes)


def test_a_higher_floor_factor_shortens_the_regime(rng):
    states = geometric(rng, 0.8) + 1e-4 * rng.normal(size=(10, 128, 64))
    lengths = [contraction_rate(Trajectories(states), floor_factor=f)["regime_length"].mean() for f in (2, 3, 10, 100)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[1] - lengths[2] == pytest.approx(math.log(3 / 10) / math.log(0.8), abs=1.5)


@given(st.integers(0, 2**32 - 1), st.integers(2, 160), st.sampled_from(["float64", "float32", "bfloat16"]))
@settings(max_examples=60, deadline=None)
def test_floors_and_regimes_of_random_decays_with_noise_equal_the_oracle(seed, n_steps, dtype):
    rng = np.random.default_rng(seed)
    rate, noise = rng.uniform(0.3, 1.02), 10.0 ** rng.uniform(-9, 0)
    states = geometric(rng, rate, n_steps, n=4, dim=24) + noise * rng.normal(size=(4, n_steps, 24))
    states = torch.as_tensor(states).to(getattr(torch, dtype))
    factor, points = rng.choice([1.5, 3.0, 8.0]), int(rng.integers(3, 9))
    m = contraction_rate(Trajectories(states), floor_factor=factor, min_points=points)
    for o, orbit in enumerate(states.double().numpy()):
        outcome, _, floor, length = oracles.contraction_rate(orbit, torch.finfo(states.dtype).eps, factor, points)
        assert m.outcomes[o].value in (outcome, "found")  # a slow mode may be seen that the steps hide
        if m.outcomes[o].value == outcome:
            assert m["floor"][o] == pytest.approx(floor, rel=2e-3, nan_ok=True)
        assert m["regime_length"][o] == length


MIXTURES = {  # rate, ratio of the next mode's, noise over the slowest mode's amplitude, complex pair first, dtype
    "separated .7": (0.7, 0.5, 1e-2, False, "float32"), "separated .9": (0.9, 0.5, 1e-2, False, "float32"),
    "separated .98": (0.98, 0.5, 1e-2, False, "float32"), "crowded .9": (0.9, 0.85, 1e-2, False, "float32"),
    "complex .7": (0.7, 0.6, 1e-3, True, "float32"), "complex .95": (0.95, 0.6, 1e-2, True, "float32"),
    "bfloat16 .9": (0.9, 0.5, 0.0, False, "bfloat16")}


def mixture(rng, rate, ratio, noise, turning, dtype, n, n_steps=128, dim=256, n_modes=12):
    """Decays of twelve modes in an offset space, as a model would leave them."""
    modes = rate * ratio ** np.arange(n_modes) * np.ones((n, 1), complex)
    if turning:
        modes[:, 0] *= np.exp(1j * rng.uniform(0.2, 2.5, n))
    size = rng.normal(size=(n, n_modes)) + 1j * turning * rng.normal(size=(n, n_modes))
    waves = size[:, None] * modes[:, None] ** np.arange(n_steps)[:, None]
    states = np.concatenate([waves.real, waves.imag], 2) @ np.linalg.qr(rng.normal(size=(dim, 2 * n_modes)))[0].T
    states += 10 / np.sqrt(dim) * rng.normal(size=(n, 1, dim))
    states += noise / np.sqrt(dim) * np.abs(size[:, :1, None]) * rng.normal(size=states.shape)
    return Trajectories(torch.from_numpy(states).to(getattr(torch, dtype)))


@pytest.mark.parametrize("name", MIXTURES)
def test_the_interval_covers_the_rate_and_the_rate_is_near(rng, name):
    rate = MIXTURES[name][0]
    m = contraction_rate(mixture(rng, *MIXTURES[name], n=60))
    low, high = m["rate_low"][m.found], m["rate_high"][m.found]
    assert m.found.mean() > (0.5 if "bfloat16" in name else 0.95)
    assert ((low <= rate) & (rate <= high)).mean() >= 0.87  # of 60; 95 % is nominal
    assert np.median(np.abs(np.log(m.values[m.found]) / np.log(rate) - 1)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXTURES)
def test_of_many_intervals_nineteen_in_twenty_cover(name):
    rate = MIXTURES[name][0]
    m = contraction_rate(mixture(np.random.default_rng(2027), *MIXTURES[name], n=1000))
    covers = ((m["rate_low"] <= rate) & (rate <= m["rate_high"]))[m.found].mean()
    assert 0.93 < covers < 0.995


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_interval_is_that_of_a_mixture_of_t_laws(level):
    from scipy import stats

    one = np.array([[0.3, 0.02, 7, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    two = np.array([[0.3, 0.02, 7, 1, 0], [0.2, 0.05, 3, 0.5, 0], [0, 0, 0, 0, 0]])
    blind = np.array([[0.3, np.inf, 7, 1, 0], [0.2, np.nan, 3, 0.5, 0], [0, 0, 0, 0, 0]])
    sharp = np.array([[0.3, 1e-9, 7, 1, 0], [0.3, 1e130, 3, 1e-9, 0], [0, 0, 0, 0, 0]])
    low, high = _interval(np.array([one, two, blind, sharp]), level)
    shares = np.array([0.5 - 0.5 * level, 0.5 + 0.5 * level])
    np.testing.assert_allclose([low[0], high[0]], 0.3 + 0.02 * stats.t(7).ppf(shares), rtol=1e-9)
    found = [(stats.t(7).cdf((x - 0.3) / 0.02) + 0.5 * stats.t(3).cdf((x - 0.2) / 0.05)) / 1.5
             for x in (low[1], high[1])]
    np.testing.assert_allclose(found, shares, atol=1e-9)
    assert low[2] < 0
    assert high[2] > 20
    np.testing.assert_allclose([low[3], high[3]], 0.3 + 1e-9 * stats.t(7).ppf(shares), atol=1e-10)


def test_a_wider_confidence_gives_a_wider_interval(rng):
    orbits = mixture(rng, *MIXTURES["separated .9"], n=5)
    narrow, wide = (contraction_rate(orbits, confidence_level=level) for level in (0.5, 0.99))
    assert (narrow["rate_high"] - narrow["rate_low"] < wide["rate_high"] - wide["rate_low"]).all()
    np.testing.assert_array_equal(narrow.values, wide.values)


def test_orbits_from_several_starts_are_compared_with_each_other(rng):
    """One limit for each prompt; three starts: their difference needs no limit, and knows no drift of it."""
    limit = rng.normal(size=(4, 1, 1, 64)) + 0.002 * np.arange(128)[:, None] * rng.normal(size=(4, 1, 1, 64))
    away = rng.normal(size=(4, 3, 1, 64)) * 0.85 ** np.arange(128)[:, None]
    states = (limit + away + 1e-4 * rng.normal(size=(4, 3, 128, 64))).reshape(12, 128, 64)
    labels = {"prompt": np.repeat(range(4), 3), "start": np.tile(range(3), 4)}
    together, alone = contraction_rate(Trajectories(states, labels=labels)), contraction_rate(Trajectories(states))
    all_are(together, Outcome.FOUND)
    assert (together["starts"] == 3).all()
    np.testing.assert_allclose(together.values, 0.85, rtol=0.01)
    assert (alone["starts"] == 1).all()
    assert not alone.found.any()


def series(rng, m):
    """Step norms of many kinds: decays to floors of noise, exact zeros, plateaus, growth."""
    y = np.exp(-rng.uniform(-0.05, 0.6) * np.arange(m)) + 10.0 ** rng.uniform(-12, 0)
    y *= np.exp(rng.choice([0, 0.01, 0.5]) * rng.normal(size=m))
    y[rng.random(m) < rng.choice([0, 0.2])] = 0
    return y * 10.0 ** rng.uniform(-30, 30)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_the_kernel_equals_the_oracle(seed):
    rng = np.random.default_rng(seed)
    total = int(rng.integers(1, 120))
    y = np.stack([series(rng, total) for _ in range(4)])
    n_steps = rng.integers(0, total + 1, size=4)
    least = 10.0 ** rng.uniform(-16, -2, size=4) * y.max(1)
    factor, points = rng.choice([1.0, 3.0, 10.0]), int(rng.integers(3, 9))
    found = contraction_regime(y, n_steps, least, factor, points)
    for o, m in enumerate(n_steps):
        slope, floor, length, state = oracles.contraction_regime(y[o, :m], least[o], factor, points)
        assert STATE[found[3][o]] == state
        assert found[2][o] == length
        assert found[1][o] == pytest.approx(floor, rel=1e-12, nan_ok=True)
        assert found[0][o] == pytest.approx(slope, rel=1e-6, abs=1e-9, nan_ok=True)


def test_the_line_equals_the_oracle_and_leaves_out_zeros(rng):
    y = np.exp(rng.normal(size=40))
    y[::7] = 0
    for first, stop in ((0, 40), (3, 9), (0, 3), (0, 2), (5, 5)):
        got, wanted = line(y, first, stop), oracles.line(y, first, stop)
        assert got == pytest.approx(wanted, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize(("setting", "words"), [
    ({"floor_factor": 0.99}, "floor_factor must be at least 1 .*got 0.99"),
    ({"floor_factor": np.inf}, "floor_factor must be at least 1 .*got inf"),
    ({"min_points": 2}, "min_points must be a whole number of at least 3"),
    ({"min_points": 5.0}, "min_points must be a whole number"),
    ({"min_points": True}, "min_points must be a whole number"),
])
def test_settings_out_of_range_are_refused(setting, words, decaying):
    with pytest.raises(ValueError, match=words):
        contraction_rate(decaying, **setting)


def test_decays_in_one_recording_have_each_their_own_rate(decaying):
    m = contraction_rate(decaying)
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m.values, m.labels["true"], rtol=2e-3)
    assert m.units == {"rate": "per recurrence", "rate_low": "per recurrence", "rate_high": "per recurrence",
                       "floor": "state units", "relative_floor": "", "regime_length": "steps", "starts": "orbits"}


def test_an_orbit_that_explodes_has_no_rate_and_warns_of_nothing(rng):
    orbits = Trajectories(torch.tensor(rng.normal(size=(2, 1, 8)) * 100.0 ** np.arange(128)[:, None]))
    assert np.isnan(contraction_rate(orbits).values).all()
