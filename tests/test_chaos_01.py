"""The 0-1 test: its displacements, what it says of known motion, and what it refuses."""

import numpy as np
import oracles
import pytest
import torch

from dynloop import Outcome, Trajectories, chaos_01
from dynloop.kernels.translation import displacements, lagged_products


def iterated(step, start, n_steps, transient=300):
    x, states = np.asarray(start, dtype=float), []
    for t in range(transient + n_steps):
        if t >= transient:
            states.append(x)
        x = step(x)
    return np.stack(states, axis=1)


def logistic(rng, n, n_steps, r=4.0):
    return iterated(lambda x: r * x * (1 - x), rng.uniform(0.1, 0.9, (n, 1)), n_steps)


def henon(rng, n, n_steps):
    return iterated(lambda s: np.stack([1 - 1.4 * s[:, 0] ** 2 + s[:, 1], 0.3 * s[:, 0]], 1),
                    rng.uniform(-0.1, 0.1, (n, 2)), n_steps)


def rotation(rng, n, n_steps, *turns):
    phase = 2 * np.pi * (rng.random((n, 1, len(turns))) + np.arange(n_steps)[:, None] * np.array(turns))
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=2)


def wide(latent, rng, noise=0.0, dim=64):
    """In more dimensions, with noise of that share of the amplitude."""
    scale = np.sqrt(latent.var(1).sum(1).mean())
    states = latent / scale @ np.linalg.qr(rng.normal(size=(dim, latent.shape[2])))[0].T
    return Trajectories(3 + states + noise / np.sqrt(dim) * rng.normal(size=states.shape))


@pytest.mark.parametrize(("n", "longest", "dim"), [(12, 3, 1), (40, 15, 2), (41, 20, 5)])
def test_the_displacements_are_those_of_the_turned_sums(rng, n, longest, dim):
    states, angles = rng.normal(size=(n, dim)), np.array([0.7, 1.9, 2.4])
    squared = ((states[:, None] - states) ** 2).sum(2)
    found = displacements(lagged_products(squared, 0, 1, n, n // 2), longest, angles)
    np.testing.assert_allclose(found, oracles.displacements(states, longest, angles), rtol=1e-9)


def test_a_stride_leaves_states_out(rng):
    states = rng.normal(size=(60, 3))
    squared = ((states[:, None] - states) ** 2).sum(2)
    kept = states[2::3]
    alone = ((kept[:, None] - kept) ** 2).sum(2)
    np.testing.assert_allclose(lagged_products(squared, 2, 3, 20, 10), lagged_products(alone, 0, 1, 20, 10), atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("n_steps", [128, 256, 1000])
def test_chaos_reads_one(rng, n_steps, noise):
    for latent in (logistic(rng, 20, n_steps), logistic(rng, 20, n_steps, r=3.9), henon(rng, 20, n_steps)):
        m = chaos_01(wide(latent, rng, noise))
        assert m.found.all()
        assert m.values.min() > 0.8


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("n_steps", [64, 128, 200, 256, 1000])
def test_regular_motion_reads_zero_or_gets_no_answer(rng, n_steps, noise):
    golden = (np.sqrt(5) - 1) / 2
    cycles = [rng.normal(size=(10, p, 3))[:, np.arange(n_steps) % p] for p in (2, 3, 5, 7, 8, 12)]
    for latent in (*cycles, rotation(rng, 10, n_steps, golden), rotation(rng, 10, n_steps, golden, np.sqrt(2) - 1)):
        m = chaos_01(wide(latent, rng, noise))
        assert (np.nan_to_num(m.values) < 0.35).all()
        assert {*m.outcomes} <= {Outcome.FOUND, Outcome.TOO_SHORT}
        assert m.found.all() or n_steps < 300


def test_noise_reads_one_as_the_docstring_warns(rng):
    assert chaos_01(Trajectories(rng.normal(size=(20, 256, 16)))).values.min() > 0.8


def test_what_does_not_stay_gets_no_answer(rng):
    t = np.arange(256)[None, :, None]
    away = rng.normal(size=(20, 1, 8))
    for states in (away * t, rng.normal(size=(20, 256, 8)).cumsum(1), away * 0.97**t):
        assert (chaos_01(Trajectories(states)).outcomes == Outcome.NOT_CONVERGED).mean() > 0.9
    settled = 1 + away * 0.5**t
    assert (chaos_01(Trajectories(settled)).outcomes == Outcome.AT_PRECISION_FLOOR).all()
    assert (chaos_01(Trajectories(np.ones((2, 256, 3)))).outcomes == Outcome.AT_PRECISION_FLOOR).all()
    huge = 1e200 * rng.normal(size=(2, 256, 3))
    assert (chaos_01(Trajectories(huge)).outcomes == Outcome.NOT_FOUND).all()


def test_what_flickers_in_the_last_bits_is_at_the_floor(rng):
    states = torch.ones(5, 256, 16).bfloat16() + 2.0**-7 * torch.from_numpy(rng.integers(0, 2, (5, 256, 16)))
    assert (chaos_01(Trajectories(states.bfloat16())).outcomes == Outcome.AT_PRECISION_FLOOR).all()


def test_a_flow_is_thinned_out(rng):
    def field(s):
        x, y, z = s.T
        return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)

    def step(s, h=0.02):
        a = field(s)
        b = field(s + h / 2 * a)
        c = field(s + h / 2 * b)
        return s + h / 6 * (a + 2 * b + 2 * c + field(s + h * c))

    lorenz = iterated(step, rng.normal((0, 0, 25), 1, (4, 3)), 3000, transient=1000)
    m = chaos_01(Trajectories(lorenz))
    assert (m["stride"] > 5).all()
    assert m.values.min() > 0.8
    assert (chaos_01(Trajectories(lorenz[:, :300])).outcomes != Outcome.FOUND).all()


def test_every_setting_matters(rng):
    orbits = wide(logistic(rng, 3, 256), rng, 0.05)
    usual = chaos_01(orbits).values
    for setting in ({"n_frequencies": 9}, {"damping": 0.0}, {"n_cut": 30}):
        assert not np.array_equal(chaos_01(orbits, **setting).values, usual)
    assert (chaos_01(orbits, n_cut=100).outcomes == Outcome.TOO_SHORT).all()


def test_many_angles_narrow_the_spread_down_to_what_it_is(rng):
    few, many = (chaos_01(wide(logistic(np.random.default_rng(1), 20, 256), np.random.default_rng(2)), n_frequencies=n)
                 for n in (25, 101))
    np.testing.assert_allclose(few.values, many.values, atol=0.05)
    assert (many["spread"] < 0.2).all()
