"""The bank of random orbits: shapes, planted periods, and that each family does what its regime says."""

import numpy as np
import oracles
import pytest

from dynloop.analyzers.limit_regime import REGIMES
from synthetic import bank

FAMILIES = list(bank.FAMILIES)
OF = {regime: [f for f in FAMILIES if bank.FAMILIES[f][0] == regime] for regime in REGIMES}


def amplitude(states):
    """Rms distance of states (n, T, d) from their mean."""
    return np.sqrt(((states - states.mean(1, keepdims=True)) ** 2).sum(2).mean(1))


def test_there_is_a_family_for_every_regime():
    assert all(OF.values())
    assert {regime for regime, _ in bank.FAMILIES.values()} == set(REGIMES)


@pytest.mark.parametrize("n_steps", [32, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_orbits_are_finite_differ_from_each_other_and_come_again_from_the_same_seed(family, n_steps):
    states, period = bank.draw(family, 7, n_steps, 7003)
    assert states.shape[:2] == (7, n_steps)
    assert states.ndim == 3
    assert np.isfinite(states).all()
    assert period.shape == (7,)
    assert (period > 0).all() == (bank.FAMILIES[family][0] == "orbit")
    assert not all(np.array_equal(states[0], other) for other in states[1:])
    again, _ = bank.draw(family, 7, n_steps, 7003)
    np.testing.assert_array_equal(again, states)
    other, _ = bank.draw(family, 7, n_steps, 7004)
    assert other.shape != states.shape or not np.array_equal(other, states)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_orbit_can_be_drawn(family):
    assert bank.draw(family, 1, 64, 7003)[0].shape[:2] == (1, 64)


@pytest.mark.parametrize("n_steps", [32, 128, 256])
@pytest.mark.parametrize("family", OF["orbit"])
def test_planted_periods_are_the_smallest(family, n_steps):
    states, period = bank.draw(family, 40, n_steps, 7003)
    for own, p in zip(states, period, strict=True):
        assert 3 * p <= n_steps
        late = own[n_steps - max(2 * p, n_steps // 4):]
        size = oracles.variance(late)
        returns = [oracles.squared_return(late, k).mean() / size for k in range(1, p + 1)]
        assert returns[-1] < 1e-2
        assert min(returns[:-1]) > 4 * returns[-1]


@pytest.mark.parametrize("family", OF["fixed point"])
def test_a_fixed_point_is_reached_within_the_record(family):
    states, _ = bank.draw(family, 60, 128, 7003)
    late = amplitude(states[:, 120:])
    start = np.linalg.norm(states - states[:, -1:], axis=2).max(1)
    assert np.median(late / start) < 0.02
    assert (late / start).max() < 0.1


@pytest.mark.parametrize("family", OF["converging"])
def test_what_converges_is_not_there_yet_and_comes_closer(family):
    states, _ = bank.draw(family, 60, 128, 7003)
    away = np.linalg.norm(states, axis=2)  # the limit is 0
    left = away[:, 112:].mean(1) / away[:, :16].mean(1)
    assert (left < 0.97).all()
    assert np.median(left) > 0.1


@pytest.mark.parametrize("family", OF["slider"])
def test_a_slider_goes_on_at_a_steady_pace(family):
    states, _ = bank.draw(family, 60, 128, 7003)
    blocks = states.reshape(60, 4, 32, -1).mean(2)
    pace = np.linalg.norm(np.diff(blocks, axis=1), axis=2)
    assert (pace[:, 2] / pace[:, 1] > 0.7).all()
    assert (pace[:, 2] / pace[:, 1] < 1.4).all()


@pytest.mark.parametrize("family", OF["diverging"])
def test_what_diverges_grows_by_a_factor(family):
    states, _ = bank.draw(family, 60, 128, 7003)
    size = np.linalg.norm(states, axis=2)
    growth = size[:, 124:].mean(1) / size[:, 60:64].mean(1)
    assert (growth > 1.5).all()


@pytest.mark.parametrize("family", [*OF["quasi-periodic"], *OF["chaotic"]])
def test_what_recurs_without_a_period_stays_in_its_bounds_and_never_returns_exactly(family):
    states, _ = bank.draw(family, 30, 128, 7003)
    early, late = amplitude(states[:, 64:96]), amplitude(states[:, 96:])
    assert np.median(late / early) == pytest.approx(1, abs=0.35)
    for own in states:
        d = oracles.squares(own[64:])
        apart = np.abs(np.subtract.outer(np.arange(64), np.arange(64))) > 1
        assert d[apart].min() > 0


def test_a_rotation_keeps_away_from_every_period_up_to_a_third():
    for n_steps in (64, 128, 256):
        omega = bank._irrational(300, n_steps, np.random.default_rng(7003))
        for p in range(1, n_steps // 3 + 1):
            gone = np.abs(omega * p - np.round(omega * p)) * (n_steps // p)
            assert (gone > 0.02).all()


@pytest.mark.parametrize(("family", "dim", "offset", "noise"), [
    ("random_cycle", 256, 3.0, 0.05), ("rotation", 64, 0, 0), ("contraction", 256, 10.0, 0.2), ("drift", 32, 1.0, 0)])
def test_a_record_has_the_amplitude_the_offset_and_the_noise_that_were_asked_for(family, dim, offset, noise):
    orbits, _ = bank.record(family, 50, 128, 7003, dim=dim, offset=offset, noise=noise)
    clean, _ = bank.record(family, 50, 128, 7003, dim=dim, offset=offset)
    assert orbits.states.shape == (50, 128, dim)
    x, bare = orbits.states.numpy(), clean.states.numpy()
    assert np.sqrt(((x - bare) ** 2).sum(2).mean()) == pytest.approx(noise, abs=0.003)
    late = bare[:, 64:]
    size = amplitude(late)
    if bank.FAMILIES[family][0] not in ("orbit", "quasi-periodic", "chaotic"):
        size = np.maximum(size, np.linalg.norm(bare[:, 0] - bare[:, -1], axis=1) / 2)
    np.testing.assert_allclose(size, 1, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(late.mean(1), axis=1), offset, atol=1e-3)


def test_massive_coordinates_and_formats(rng):
    usual, massive = (bank.record("rotation", 20, 64, 7003, massive=m)[0].states[:, 32:].mean(1) for m in (1, 10))
    np.testing.assert_allclose(massive[:, :3], 10 * usual[:, :3], atol=0.05 * 10)
    np.testing.assert_allclose(massive[:, 3:], usual[:, 3:], atol=1e-5)
    for dtype in ("float64", "float32", "bfloat16", "float16"):
        assert str(bank.record("rotation", 2, 32, 7003, dtype=dtype)[0].states.dtype) == f"torch.{dtype}"


def test_a_record_is_never_narrower_than_its_orbit():
    orbits, _ = bank.record("many_modes", 3, 64, 7003, dim=4)
    assert orbits.dim == 48


def test_no_orbit_of_the_circle_families_is_locked():
    """A locked orbit would repeat exactly, and count as a false period."""
    for family in ("circle_map", "invariant_circle"):
        states, _ = bank.draw(family, 400, 256, 7003)
        away = np.linalg.norm(states[:, -1:] - states[:, -86:-1], axis=2).min(1)
        assert (away > 1e-4 * amplitude(states)).all()


def test_weights_of_the_rotation_number_beat_a_plain_mean():
    golden = (np.sqrt(5) - 1) / 2
    t = np.arange(1000)
    steps = golden + 0.3 * (np.sin(2 * np.pi * golden * (t + 1)) - np.sin(2 * np.pi * golden * t))
    assert abs(steps @ bank._birkhoff_weights(1000) - golden) < 1e-9
    assert abs(steps.mean() - golden) > 1e-5


@pytest.mark.parametrize("family", OF["chaotic"])
def test_no_chaotic_orbit_sits_in_a_periodic_window(family):
    states, _ = bank.draw(family, 100, 256, 7003)
    away = np.linalg.norm(states[:, -1:] - states[:, -86:-1], axis=2).min(1)
    assert (away > 1e-9 * amplitude(states)).all()
