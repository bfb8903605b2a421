"""Correlation dimensions: known ones without settings, and none where there is none to know."""

import numpy as np
import oracles
import pytest
import torch

from dynloop import Outcome, Trajectories
from dynloop.analyzers.correlation_dimension import correlation_dimension
from dynloop.kernels import correlation_sum as kernels

GOLDEN = (5**0.5 - 1) / 2


def torus(rng, n, n_steps, *frequencies):
    """Orbits on a torus, each angle turning by its own frequency from a random start."""
    angles = 2 * np.pi * (rng.uniform(size=(n, 1, len(frequencies)))
                          + np.arange(n_steps)[:, None] * np.array(frequencies))
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=2)


def henon(rng, n, n_steps):
    x, y = rng.uniform(-0.1, 0.1, (2, n))
    states = np.empty((n, n_steps, 2))
    for t in range(-100, n_steps):
        x, y = 1 - 1.4 * x**2 + y, 0.3 * x
        if t >= 0:
            states[:, t, 0], states[:, t, 1] = x, y
    return states


def cycle(rng, n, n_steps, period):
    return rng.normal(size=(n, period, 4))[:, np.arange(n_steps) % period]


def walk(rng, n, n_steps, dim):
    return rng.normal(size=(n, n_steps, dim)).cumsum(1)


def test_fast_equals_slow(rng):
    decay = 0.97 ** np.arange(100)[:, None] * rng.normal(size=4)
    recordings = [torus(rng, 1, 100, GOLDEN)[0], torus(rng, 1, 64, GOLDEN / 10)[0], henon(rng, 1, 150)[0],
                  rng.uniform(size=(90, 2)), rng.normal(size=(100, 6)), cycle(rng, 1, 100, 5)[0],
                  cycle(rng, 1, 100, 13)[0], walk(rng, 1, 100, 3)[0], decay, np.ones((60, 3)),
                  1e6 + 1e-11 * rng.normal(size=(60, 3)), rng.uniform(size=(39, 1)), rng.uniform(size=(41, 1)),
                  np.repeat(rng.uniform(size=(30, 2)), 3, axis=0), np.arange(80.0)[:, None]]
    seen = set()
    for states in recordings:
        for window in (None, 20):
            m = correlation_dimension(Trajectories(states[None]), theiler_window=window)
            outcome, *numbers = oracles.correlation_dimension(states, np.finfo(float).eps, window)
            assert m.outcomes[0].value == outcome
            seen.add(m.outcomes[0])
            if numbers:
                half = (m["high"] - m["dimension"])[0]
                got = [m["dimension"][0], half, m["smallest_scale"][0], m["largest_scale"][0], m["theiler_window"][0]]
                np.testing.assert_allclose(got, numbers, rtol=1e-9)
    assert seen == {Outcome.FOUND, Outcome.NOT_FOUND, Outcome.TOO_SHORT, Outcome.NOT_CONVERGED,
                    Outcome.AT_PRECISION_FLOOR}


def test_the_sum_counts_the_pairs_it_says(rng):
    states = rng.normal(size=(50, 3))
    squared = oracles.pairwise(states) ** 2
    sums = kernels.correlation_sum(squared, 5, 45, 2, squared[5:45, 5:45].max())
    edges = squared[5:45, 5:45].max() * 2.0 ** (np.arange(-128, 1) / 4)
    pairs = [(i, j) for i in range(5, 45) for j in range(i + 3, 45)]
    for b in range(-1, 8):
        own = [squared[i, j] for i, j in pairs if b not in ((i - 5) // 5, (j - 5) // 5)]
        wanted = [sum(v <= edge * (1 + 1e-12) for v in own) for edge in edges]
        assert sums[b + 1].tolist() == wanted


@pytest.mark.parametrize(("make", "dimension", "n_steps", "within"), [
    (lambda rng, n, t: torus(rng, n, t, GOLDEN), 1, 1000, 0.1),
    (lambda rng, n, t: torus(rng, n, t, GOLDEN / 10), 1, 1000, 0.1),
    (henon, 1.22, 1000, 0.1),
    (lambda rng, n, t: rng.uniform(size=(n, t, 2)), 2, 1000, 0.1),
    (lambda rng, n, t: torus(rng, n, t, GOLDEN, 2**0.5 - 1), 2, 1000, 0.2),
    (lambda rng, n, t: torus(rng, n, t, GOLDEN), 1, 128, 0.25),
    (henon, 1.22, 128, 0.25),
    (lambda rng, n, t: rng.uniform(size=(n, t, 2)), 2, 128, 0.25),
    (lambda rng, n, t: torus(rng, n, t, GOLDEN, 2**0.5 - 1), 2, 256, 0.25),
    (lambda rng, n, t: torus(rng, n, t, GOLDEN), 1, 64, 0.3),
], ids=["circle", "slow circle", "henon", "square", "torus", "circle 128", "henon 128", "square 128", "torus 256",
        "circle 64"])
def test_known_dimensions_are_found(rng, make, dimension, n_steps, within):
    m = correlation_dimension(Trajectories(make(rng, 4 if n_steps > 256 else 12, n_steps)))
    assert m.found.mean() > 0.8
    np.testing.assert_allclose(m.values[m.found], dimension, rtol=within)
    assert ((m["low"] < dimension) & (dimension < m["high"]))[m.found].mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("make", "dimension"), [(henon, 1.22), (lambda rng, n, t: rng.uniform(size=(n, t, 2)), 2)],
                         ids=["henon", "square"])
@pytest.mark.parametrize("n_steps", [64, 128, 256])
def test_intervals_hold_the_dimension(rng, make, dimension, n_steps):
    m = correlation_dimension(Trajectories(make(rng, 300, n_steps)))
    assert m.found.mean() > 0.6
    assert ((m["low"] < dimension) & (dimension < m["high"]))[m.found].mean() > 0.92


@pytest.mark.parametrize("n_steps", [64, 128, 600])
def test_noise_in_many_dimensions_has_no_scaling_region(rng, n_steps):
    for dim in (6, 256):
        m = correlation_dimension(Trajectories(rng.normal(size=(10, n_steps, dim))))
        assert m.outcomes.tolist() == [Outcome.NOT_FOUND] * 10


@pytest.mark.parametrize("period", [1, 2, 3, 5, 13, 20])
def test_an_exact_cycle_has_no_dimension(rng, period):
    wanted = Outcome.AT_PRECISION_FLOOR if period == 1 else Outcome.NOT_FOUND
    m = correlation_dimension(Trajectories(cycle(rng, 50, 128, period)))
    assert m.outcomes.tolist() == [wanted] * 50


def test_what_does_not_return_has_no_dimension(rng):
    t = np.arange(128)[:, None]
    states = np.concatenate([walk(rng, 20, 128, 6), rng.normal(size=(3, 1, 6)) * 0.9**t,
                             rng.normal(size=(3, 1, 6)) * 0.99**t, rng.normal(size=(3, 1, 6)) * t])
    m = correlation_dimension(Trajectories(states))
    assert m.outcomes.tolist() == [Outcome.NOT_CONVERGED] * 29


def test_without_the_window_neighbours_in_time_would_count(rng):
    noise = rng.normal(size=(5, 1500, 10))
    for t in range(1, 1500):
        noise[:, t] += 0.97 * noise[:, t - 1]
    slow = Trajectories(noise)
    assert not correlation_dimension(slow).found.any()
    careless = correlation_dimension(slow, theiler_window=1)
    assert careless.found.any()
    assert (careless.values[careless.found] < 5).all()  # of 10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_sees_a_circle_above_its_floor(rng, dtype):
    states = torch.from_numpy(torus(rng, 5, 128, GOLDEN)).to(dtype)
    m = correlation_dimension(Trajectories(states))
    assert m.found.all()
    np.testing.assert_allclose(m.values, 1, atol=0.25)
    assert (m["smallest_scale"] >= 8 * torch.finfo(dtype).eps * 0.99).all()


def test_rotations_shifts_and_empty_features_change_nothing(rng):
    states = np.concatenate([henon(rng, 4, 128), rng.uniform(size=(4, 128, 2))])
    plain = correlation_dimension(Trajectories(states))
    assert plain.found.sum() >= 6
    q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    moved = correlation_dimension(Trajectories(np.pad(states, ((0, 0), (0, 0), (0, 3))) @ q + rng.normal(size=5)))
    assert moved.outcomes.tolist() == plain.outcomes.tolist()
    for name in plain.variables:
        np.testing.assert_allclose(moved[name], plain[name], rtol=1e-6)


def test_scales_grow_with_the_states_and_the_dimension_does_not(rng):
    states = henon(rng, 4, 256)
    small, large = (correlation_dimension(Trajectories(s)) for s in (states, 1024 * states))
    assert small.found.all()
    np.testing.assert_allclose(large.values, small.values, rtol=1e-9)
    for name in ("smallest_scale", "largest_scale"):
        np.testing.assert_allclose(large[name], 1024 * small[name], rtol=1e-9)


def test_states_whose_squares_overflow_are_not_finite(rng):
    m = correlation_dimension(Trajectories(1e200 * rng.normal(size=(1, 64, 2))))
    assert m.outcomes[0] is Outcome.NOT_FINITE
