"""Modes of linear maps with known spectra, exact and through noise; and none where there are none."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from dynloop import Outcome, Trajectories, contraction_rate, dominant_modes
from dynloop.kernels.modes import (
    centred,
    enough,
    fit,
    one_step_modes,
    one_step_products,
    orthonormal,
    polished,
    principal_scores,
    products_from_last,
    solved,
    supports,
    window_modes,
)

T = np.arange(128)


def pair(modulus, angle):
    return modulus * complex(math.cos(angle), math.sin(angle))


def stepped(rng, multipliers, *, dim=64, n=6, n_steps=128, skew=0.0, fast=0.0, dtype=torch.float64):
    """Orbits of x <- A x + b in a random frame: A has the multipliers (a complex one stands for its pair), and beside
    them nothing, or a random matrix of spectral radius about `fast`; `skew` couples each mode to the next."""
    blocks = [np.array([[v.real, -v.imag], [v.imag, v.real]]) if np.imag(v) else np.array([[v]]) for v in multipliers]
    orbits = []
    for _ in range(n):
        a, i = np.zeros((dim, dim)), 0
        for block in blocks:
            a[i:i + len(block), i:i + len(block)] = block
            i += len(block)
        a += skew * np.diag(np.r_[np.ones(i - 1), np.zeros(dim - i)], 1)
        a[i:, i:] = fast / math.sqrt(max(dim - i, 1)) * rng.normal(size=(dim - i, dim - i))
        frame = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        a, limit = frame @ a @ frame.T, rng.normal(size=dim)
        away = np.r_[rng.uniform(0.5, 1.5, i) * rng.choice([-1, 1], i), (fast > 0) * rng.normal(size=dim - i)]
        x = limit + frame @ away
        a, b, x = (torch.tensor(v).to(dtype) for v in (a, limit - a @ limit, x))
        states = [x]
        for _ in range(n_steps - 1):
            states.append(a @ states[-1] + b)
        orbits.append(torch.stack(states))
    return Trajectories(torch.stack(orbits))


def summed(rng, multipliers, noise, *, dim=256, n=12, n_steps=128):
    """Sums of modes in random directions of one length, and noise of a share of the length of the start."""
    t, states = np.arange(n_steps)[:, None], 0.0
    for value in multipliers:
        u, v = rng.normal(size=(2, n, 1, dim)) / math.sqrt(dim)
        states = states + np.real(value**t) * u - np.imag(value**t) * v
    size = np.linalg.norm(states[:, 0], axis=-1)[:, None, None] / math.sqrt(dim)
    return states + noise * size * rng.normal(size=states.shape) + 5 * rng.normal(size=(n, 1, dim))


def all_are(m, outcome):
    assert m.outcomes.tolist() == [outcome] * m.n_orbits


SPECTRA = {
    "one": [0.8],
    "two": [0.9, 0.5],
    "a pair": [pair(0.9, 0.7)],
    "a fast pair": [pair(0.5, 2.5)],
    "a pair and two more": [pair(0.95, 0.3), 0.8, 0.6],
    "two pairs": [pair(0.95, 0.3), pair(0.9, 1.9)],
    "two pairs of one modulus": [pair(0.93, 0.4), pair(0.93, 1.9)],
    "alternating": [-0.9, 0.7],
    "plus and minus": [0.9, -0.9],
    "slow": [0.99, 0.7],
    "crowded": [0.9, 0.87, 0.84],
    "eight": [0.97, 0.9, pair(0.8, 1), 0.7, pair(0.6, 2), 0.4],
}


@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_spectrum_of_a_linear_map_is_found_to_a_millionth(name, dim, rng):
    m = dominant_modes(stepped(rng, SPECTRA[name], dim=dim), n_modes=3)
    all_are(m, Outcome.FOUND)
    wanted = sorted(SPECTRA[name], key=lambda v: (-round(abs(v), 9), abs(np.angle(v))))[:3]
    np.testing.assert_allclose(m["rho"][:, :len(wanted)], [np.abs(wanted)] * 6, rtol=1e-6)
    np.testing.assert_allclose(m["angle"][:, :len(wanted)], [np.abs(np.angle(wanted))] * 6, atol=1e-6)
    assert m["slowest"].tolist() == m["rho"][:, 0].tolist()
    assert (m["residual"] < 1e-6).all()


def test_what_dies_at_once_has_a_multiplier_of_0(rng):
    states = 1 + 0.7 ** T[:, None] * rng.normal(size=(4, 1, 16)) + (T[:, None] == 0) * rng.normal(size=(4, 1, 16))
    m = dominant_modes(Trajectories(states))
    assert (m["rank"] == 2).all()
    np.testing.assert_allclose(m["rho"][:, :2], [[0.7, 0]] * 4, atol=1e-9)


@pytest.mark.parametrize("skew", [1.0, 20.0])
def test_a_non_normal_map_gives_its_multipliers_and_not_its_gains(skew, rng):
    m = dominant_modes(stepped(rng, [0.8, 0.65, 0.5], skew=skew, dim=16))
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m["rho"][:, :3], [[0.8, 0.65, 0.5]] * 6, rtol=1e-6)


@pytest.mark.parametrize("slow", [[0.9], [pair(0.9, 0.7)], [0.95, 0.9], [pair(0.9, 0.7), 0.85]], ids=str)
def test_more_fast_modes_than_can_be_fitted_are_waited_out(slow, rng):
    m = dominant_modes(stepped(rng, slow, dim=128, fast=0.45))
    all_are(m, Outcome.FOUND)
    assert (m["first_step"] > 0).all()
    np.testing.assert_allclose(m["rho"][:, :len(slow)], [np.abs(slow)] * 6, rtol=1e-6)
    np.testing.assert_allclose(m["angle"][:, :len(slow)], [np.angle(slow)] * 6, atol=1e-6)


@pytest.mark.parametrize("slow", [[0.9], [pair(0.9, 0.7)], [0.95, 0.8]], ids=str)
def test_float32_leaves_four_digits(slow, rng):
    m = dominant_modes(stepped(rng, slow, dim=128, fast=0.45, dtype=torch.float32))
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m["slowest"], abs(slow[0]), rtol=1e-4)
    np.testing.assert_allclose(m["angle"][:, 0], np.angle(slow[0]), atol=1e-4)


NOISY = {
    "fast": [0.7 * 0.5**k for k in range(12)],
    "slow": [0.9 * 0.5**k for k in range(12)],
    "very slow": [0.98 * 0.5**k for k in range(12)],
    "crowded": [0.9 * 0.85**k for k in range(12)],
    "a pair": [pair(0.95, 0.8), *(0.7 * 0.5**k for k in range(8))],
    "a slow pair": [pair(0.98, 0.3), *(0.9 * 0.5**k for k in range(8))],
    "alternating": [-0.9, 0.5],
}


@pytest.mark.parametrize(("noise", "largest", "typical"), [(1e-3, 0.004, 1e-3), (1e-2, 0.02, 0.006)])
@pytest.mark.parametrize("name", NOISY)
def test_noise_moves_the_slowest_multiplier_by_little(name, noise, largest, typical, rng):
    value = NOISY[name][0]
    m = dominant_modes(Trajectories(summed(rng, NOISY[name], noise)))
    assert m.found.sum() >= 11
    error = np.abs(m["slowest"][m.found] / abs(value) - 1)
    assert error.max() < largest
    assert np.median(error) < typical
    np.testing.assert_allclose(m["angle"][m.found, 0], np.angle(value), atol=10 * largest)
    assert (m["residual"][m.found] > noise / 4).all()


@pytest.mark.parametrize("name", ["fast", "slow", "a pair"])
def test_noise_does_not_bias_as_it_does_the_decomposition_of_differences(name, rng):
    states = summed(rng, NOISY[name], 1e-2)
    ours = np.abs(dominant_modes(Trajectories(states))["slowest"] - abs(NOISY[name][0]))
    theirs = [min(abs(abs(oracles.difference_modes(x, rank)[0]) - abs(NOISY[name][0])) for rank in (3, 4, 5, 6))
              for x in states]
    assert np.nanmedian(ours) < np.median(theirs) / 4  # even where somebody chose the best rank for each orbit


@pytest.mark.parametrize("max_rank", [8, 16])
@pytest.mark.parametrize("dim", [2, 8, 256])
def test_noise_never_passes_for_the_slowest_mode(dim, max_rank, rng):
    """One fast mode: of the multipliers that noise would fill a higher rank with, most are larger."""
    m = dominant_modes(Trajectories(summed(rng, [0.5], 2e-3, dim=dim, n=60)), max_rank=max_rank)
    assert m.found.mean() > 0.9
    np.testing.assert_allclose(m["slowest"][m.found], 0.5, atol=0.04)
    assert (m["rank"][m.found] == 1).mean() > 0.9


def test_the_standard_error_is_that_of_repeated_recordings(rng):
    for values in ([0.9], [pair(0.9, 0.7)], [0.95, 0.6]):
        m = dominant_modes(Trajectories(summed(rng, values, 0.01, n=200, dim=32)))
        right = m.found & (m["rank"] == sum(1 + (np.imag(v) != 0) for v in values))
        assert right.mean() > 0.8
        standard = (m["slowest"] - abs(values[0]))[right] / m["error"][right]
        assert 0.85 < np.sqrt((standard**2).mean()) < 1.25


def test_ranks_agree_where_modes_stand_out_and_not_where_they_are_crowded(rng):
    apart, crowded = (dominant_modes(Trajectories(summed(rng, NOISY[name], 1e-2))) for name in ("slow", "crowded"))
    assert np.nanmedian(apart["spread"]) < np.nanmedian(crowded["spread"])
    error = np.abs(apart["slowest"] - 0.9)
    assert (error < 4 * np.maximum(apart["spread"], apart["error"])).mean() > 0.9


def along(steps, rng, n=5, dim=16):
    start, way = rng.normal(size=(2, n, 1, dim))
    return start + way / np.linalg.norm(way, axis=-1, keepdims=True) * np.cumsum(steps)[:, None]


def driven(rng, phi, dim, n=40):
    """Noise that forgets by phi a step, in its stationary state."""
    x, states = rng.normal(size=(n, dim)) / math.sqrt(1 - phi**2), []
    for _ in T:
        states.append(x)
        x = phi * x + rng.normal(size=(n, dim))
    return np.stack(states, axis=1)


def logistic(rng, dim):
    x, states = rng.random((20, dim)), []
    for _ in T:
        states.append(x)
        x = 4 * x * (1 - x)
    return np.stack(states, axis=1)


MOVING, NONE = {Outcome.NOT_CONVERGED}, {Outcome.NOT_CONVERGED, Outcome.NOT_FOUND}
NEVER = {
    "ballistic drift": (lambda rng: along(np.full(128, 0.01), rng), MOVING),
    "drift that grows": (lambda rng: along(0.01 * T, rng), MOVING),
    "drift through noise": (lambda rng: along(np.full(128, 0.01), rng) + 0.01 * rng.normal(size=(5, 128, 16)), MOVING),
    "1 / t": (lambda rng: along(1 / (1 + T), rng), NONE),
    "1 / t^2": (lambda rng: along(1 / (1 + T) ** 2, rng), NONE),
    "1 / sqrt t": (lambda rng: along((1 + T) ** -0.5, rng), NONE),
    "slow drift that shrinks by .999": (lambda rng: along(0.999**T, rng), MOVING),
    "random walk": (lambda rng: rng.normal(size=(60, 128, 64)).cumsum(1), NONE),
    "random walk in four dimensions": (lambda rng: rng.normal(size=(60, 128, 4)).cumsum(1), NONE),
    "noise": (lambda rng: 10 + rng.normal(size=(60, 128, 64)), MOVING),
    "noise in two dimensions": (lambda rng: rng.normal(size=(60, 128, 2)), NONE),
    "noise with a memory": (lambda rng: driven(rng, 0.9, 64), NONE),
    "noise with a memory in three dimensions": (lambda rng: driven(rng, 0.9, 3), NONE),
    "period 2": (lambda rng: rng.normal(size=(5, 2, 16))[:, T % 2], MOVING),
    "period 5": (lambda rng: rng.normal(size=(5, 5, 16))[:, T % 5], MOVING),
    "period 7 through noise": (lambda rng: rng.normal(size=(9, 7, 16))[:, T % 7] + 0.05 * rng.normal(size=(9, 128, 16)),
                               MOVING),
    "circle": (lambda rng: np.stack([np.cos(T / 7), np.sin(T / 7), 0 * T + 1], 1)[None], MOVING),
    "contraction onto a circle": (lambda rng: (np.stack([np.cos(T / 2), np.sin(T / 2)], 1)
                                               * (1 + 3 * 0.8**T[:, None]))[None], MOVING),
    "contraction onto period 3": (lambda rng: rng.normal(size=(5, 3, 16))[:, T % 3] + 0.8**T[:, None], MOVING),
    "growth": (lambda rng: along(1.05**T, rng), MOVING),
    "chaos": (lambda rng: logistic(rng, 64), MOVING),
    "chaos in one dimension": (lambda rng: logistic(rng, 1), NONE),
    "frozen from the start": (lambda rng: np.repeat(rng.normal(size=(5, 1, 16)), 128, axis=1),
                              {Outcome.AT_PRECISION_FLOOR}),
    "at 0 for ever": (lambda rng: np.zeros((2, 128, 3)), {Outcome.AT_PRECISION_FLOOR}),
    "four steps, then frozen": (lambda rng: (1 + 0.5 ** np.minimum(T, 4)[:, None] * rng.normal(size=(5, 1, 16))),
                                {Outcome.AT_PRECISION_FLOOR}),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NEVER)
def test_what_does_not_decay_has_no_modes(name, dtype, rng):
    make, outcomes = NEVER[name]
    m = dominant_modes(Trajectories(make(rng).astype(dtype)))
    assert set(m.outcomes) <= outcomes
    assert all(np.isnan(values).all() for values in m.variables.values())


def test_an_orbit_of_more_modes_than_fit_at_any_time_is_not_described(rng):
    """x <- .83 Q x + b: all multipliers on one circle, so that none of the 64 dies out before the others."""
    orbits = []
    for _ in range(6):
        q, x = np.linalg.qr(rng.normal(size=(64, 64)))[0], rng.normal(size=64)
        orbits.append([x := 0.83 * q @ x for _ in T])
    all_are(dominant_modes(Trajectories(np.array(orbits))), Outcome.NOT_FOUND)


def test_a_slow_spiral_that_has_not_arrived_has_its_modulus():
    spiral = 0.99 ** T[:64, None] * np.stack([np.cos(0.4 * T[:64]), np.sin(0.4 * T[:64])], axis=1) + 3
    m = dominant_modes(Trajectories(spiral[None]))
    assert m["slowest"][0] == pytest.approx(0.99, abs=1e-9)
    assert m["angle"][0, 0] == pytest.approx(0.4, abs=1e-9)
    assert m["rank"][0] == 2


def test_a_frozen_tail_has_no_modes_of_its_own(rng):
    away = rng.normal(size=(2, 8, 1, 32))
    moving = 0.8 ** np.minimum(T, 30)[:, None] * away[0] + 0.5 ** np.minimum(T, 30)[:, None] * away[1] + 1
    m = dominant_modes(Trajectories(moving))
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m["rho"][:, :2], [[0.8, 0.5]] * 8, rtol=1e-6)  # frozen a thousandth off the limit
    assert (m["first_step"] + m["n_steps"] <= 30).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounding_at_every_step_leaves_the_multiplier(dtype, rng):
    """h <- .83 h + b, coordinate by coordinate: it freezes on the grid of the format, off its limit."""
    h, b = (torch.tensor(rng.normal(size=(8, 256)) * size).to(dtype) for size in (5, 1))
    states = [h]
    for _ in range(127):
        states.append((states[-1].float() * torch.tensor(0.83)).to(dtype) + b)
    orbits = Trajectories(torch.stack(states, dim=1))
    m = dominant_modes(orbits)
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m["slowest"], 0.83, atol=0.01 if dtype == torch.bfloat16 else 1e-4)
    cast = dominant_modes(orbits.replace(states=orbits.states.float()))
    np.testing.assert_allclose(cast["slowest"], m["slowest"], rtol=1e-6)


def test_the_slowest_mode_is_the_rate_of_contraction_where_one_mode_is_left(decaying):
    m, rate = dominant_modes(decaying), contraction_rate(decaying)
    all_are(m, Outcome.FOUND)
    np.testing.assert_allclose(m["slowest"], decaying.labels["true"], rtol=1e-6)
    np.testing.assert_allclose(m["slowest"], rate.values, rtol=2e-3)


def test_modes_beyond_the_last_are_not_filled_in(rng):
    orbits = stepped(rng, [pair(0.9, 0.7), 0.6], dim=8)
    for n_modes in (1, 2, 5):
        m = dominant_modes(orbits, n_modes=n_modes)
        assert m["rho"].shape == m["angle"].shape == (6, n_modes)
        assert np.isfinite(m["rho"]).sum(axis=1).tolist() == [min(n_modes, 2)] * 6
        assert (np.isnan(m["angle"]) == np.isnan(m["rho"])).all()
        assert (m["rank"] == 3).all()


def test_a_small_rank_waits_for_the_modes_that_it_can_hold(rng):
    m = dominant_modes(stepped(rng, [0.9, 0.6, 0.4, 0.3], dim=16), max_rank=2)
    all_are(m, Outcome.FOUND)
    assert (m["rank"] <= 2).all()
    assert (m["first_step"] > 0).all()
    np.testing.assert_allclose(m["slowest"], 0.9, rtol=1e-6)


@pytest.mark.parametrize(("n_steps", "min_points", "long_enough"), [(9, 5, False), (10, 5, True), (6, 3, True),
                                                                    (5, 3, False), (23, 12, False)])
def test_an_orbit_is_too_short_below_twice_min_points(n_steps, min_points, long_enough, rng):
    states = summed(rng, [0.6], 0.0, n_steps=n_steps)
    m = dominant_modes(Trajectories(states), min_points=min_points)
    assert m.outcomes.tolist() == [Outcome.FOUND if long_enough else Outcome.TOO_SHORT] * 12


def test_squares_beyond_the_numbers_are_not_finite(rng):
    states = summed(rng, [0.8], 0.0, n=3, dim=8)
    states[1] *= 1e200
    m = dominant_modes(Trajectories(states))
    assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.NOT_FINITE, Outcome.FOUND]


def some_modes(rng, most=3):
    """Multipliers well apart from each other: real ones, and the upper of each pair."""
    kinds = [rng.uniform(0.3, 0.97), -rng.uniform(0.3, 0.9), pair(rng.uniform(0.5, 0.97), rng.uniform(0.4, 2.7))]
    return np.array([kinds[k] for k in rng.permutation(3)[:rng.integers(1, most + 1)]], dtype=complex)


def noisy_scores(rng, modes, length, n, noise):
    design = oracles.mode_design(modes, range(length))
    return (design @ rng.normal(size=(design.shape[1], n))).T + noise * rng.normal(size=(n, length))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_fits_of_powers_equal_least_squares_on_the_states(seed):
    rng = np.random.default_rng(seed)
    modes, length, n = some_modes(rng), int(rng.integers(12, 60)), int(rng.integers(1, 6))
    scores = noisy_scores(rng, modes, length, n, 0.1)
    basis, first, q, lower, amplitudes, left = fit(modes, scores)
    wanted = oracles.mode_fit(scores.T, modes)
    np.testing.assert_allclose(left, wanted.T, atol=1e-9)
    np.testing.assert_allclose(basis.T, oracles.mode_design(modes, range(length)), atol=1e-12)
    np.testing.assert_allclose(lower @ q, basis, atol=1e-12)
    energies, _ = supports(modes, first, lower, amplitudes, length)
    np.testing.assert_allclose(energies, oracles.mode_support(scores.T, list(modes)), rtol=1e-5, atol=1e-9)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_one_step_maps_equal_least_squares_on_the_scores(seed):
    rng = np.random.default_rng(seed)
    modes, length = some_modes(rng), int(rng.integers(15, 60))
    scores = noisy_scores(rng, modes, length, 5, 0.05)
    same, later = one_step_products(scores)
    for rank in range(1, 6):
        found = one_step_modes(same, later, rank)
        whole = np.concatenate([found, found[found.imag != 0].conj()])
        wanted = oracles.one_step_modes(scores[:rank])
        wanted *= np.minimum(1, 1.15 / abs(wanted))
        np.testing.assert_allclose(np.sort_complex(whole), np.sort_complex(wanted), atol=1e-5)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_polished_multipliers_are_where_a_general_optimiser_ends(seed):
    rng = np.random.default_rng(seed)
    modes = some_modes(rng, most=2)
    scores = noisy_scores(rng, modes, 50, 3, 1e-3)
    found, errors = polished(modes * rng.uniform(0.99, 1.01), scores, 10)

    def free(p):
        values, p = [], list(p)
        for m in modes:
            values.append(complex(p.pop(0), p.pop(0) if m.imag else 0.0))
        return np.array(values)

    start = np.concatenate([[m.real, m.imag] if m.imag else [m.real] for m in modes])
    best = optimize.least_squares(lambda p: oracles.mode_fit(scores.T, free(p)).ravel(), start, xtol=1e-12)
    np.testing.assert_array_less(abs(found - free(best.x)), 0.05 * errors.max() + 1e-9)
    freedom = 3 * (50 - 1 - len(start)) - len(start)
    covariance = np.linalg.inv(best.jac.T @ best.jac) * (best.fun**2).sum() / freedom
    along, k = [], 0
    for m in free(best.x):
        way = np.zeros(len(start))
        way[k:k + (2 if m.imag else 1)] = [m.real / abs(m), m.imag / abs(m)][:2 if m.imag else 1]
        along.append(math.sqrt(way @ covariance @ way))
        k += 2 if m.imag else 1
    np.testing.assert_allclose(errors, along, rtol=0.05)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_what_is_said_of_a_stretch_equals_what_its_states_say(seed):
    rng = np.random.default_rng(seed)
    modes, length = some_modes(rng), int(rng.integers(24, 60))
    states = noisy_scores(rng, modes, length, 6, 1e-2).T
    found, _, about = window_modes(products_from_last(oracles.pairwise(states) ** 2), 8, 2e-16, 1e-20)
    if len(found) == 0:
        return
    left = oracles.mode_fit(states, found)
    power, third = (left**2).sum(1), length // 3
    wanted = [((states - states.mean(0)) ** 2).sum(), power.sum(), power[:third].sum(), power[-third:].sum(),
              (left[1:] * left[:-1]).sum() / power.sum()]
    np.testing.assert_allclose(about[2:7], wanted, rtol=1e-6, atol=1e-9)
    assert about[0] == sum(1 + (v.imag != 0) for v in found)
    assert (np.diff(abs(found)) <= 1e-9).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_small_linear_algebra_equals_numpy(seed):
    rng = np.random.default_rng(seed)
    n, m, length = (int(v) for v in rng.integers([1, 1, 8], [9, 4, 40]))
    a, b = rng.normal(size=(n, n)), rng.normal(size=(n, m))
    np.testing.assert_allclose(a @ solved(a, b), b, atol=1e-7)
    rows = rng.normal(size=(min(n, length), length))
    q, lower = orthonormal(np.vstack([rows, rows[:1]]))
    np.testing.assert_allclose(q[:-1] @ q[:-1].T, np.eye(len(rows)), atol=1e-12)
    np.testing.assert_allclose((lower @ q)[:-1], rows, atol=1e-12)
    assert (q[-1] == 0).all()  # it depends on the first
    states = rng.normal(size=(length, 30))
    np.testing.assert_allclose(centred(states @ states.T), (states - states.mean(0)) @ (states - states.mean(0)).T,
                               atol=1e-10)


def test_leading_components_are_those_of_the_whole_decomposition(rng):
    for noise in (0.0, 0.05):
        states = summed(rng, [0.9, 0.6, pair(0.8, 1.0)], noise, n=1, dim=48, n_steps=60)[0]
        gram = centred(states @ states.T)
        courses, energies = principal_scores(gram, 8)
        values, vectors = np.linalg.eigh(gram)
        assert (energies[4:] > 1e-9).tolist() == ([True] * 4 if noise else [False] * (len(energies) - 4))
        np.testing.assert_allclose(energies[:4], values[::-1][:4], rtol=1e-3)
        np.testing.assert_allclose(courses @ courses.T, np.eye(len(courses)), atol=1e-9)
        np.testing.assert_allclose(abs(np.sum(courses[:2] * vectors[:, ::-1][:, :2].T, axis=1)), 1, atol=1e-4)


def test_enough_is_the_tail_of_chi_squared():
    for dimensions in (1, 2, 5, 30, 256, 4096):
        wanted = stats.chi2.isf(stats.norm.sf(4), dimensions) / dimensions
        assert enough(float(dimensions)) == pytest.approx(wanted, rel=0.25 if dimensions == 1 else 0.07)


@pytest.mark.parametrize(("setting", "words"), [
    ({"n_modes": 0}, "n_modes must be a whole number of at least 1 .*got 0"),
    ({"max_rank": 0}, "max_rank must be a whole number of at least 1 .*got 0"),
    ({"max_rank": 2.0}, "max_rank must be a whole number"),
    ({"floor_factor": 0.5}, "floor_factor must be at least 1 .*got 0.5"),
    ({"min_points": 2}, "min_points must be a whole number of at least 3"),
    ({"min_points": True}, "min_points must be a whole number"),
])
def test_settings_out_of_range_are_refused(setting, words, decaying):
    with pytest.raises(ValueError, match=words):
        dominant_modes(decaying, **setting)
