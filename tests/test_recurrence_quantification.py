"""Recurrence plots: a drawn one counted by hand, orbits whose plot is known, and the slow twin on everything else."""

import math

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome, Trajectories, recurrence_quantification
from dynloop.kernels.recurrence import line_lengths, line_statistics, mean_square, ranked_square

# Above the main diagonal there are lines of length 2, 1 (lag 1), 1, 3 (lag 2), 4 (lag 4), 1 (lag 5) and 1 (lag 6).
DRAWN = np.array([[c == "#" for c in row] for row in (
    "###.#...",
    "###..###",
    "###...#.",
    "...#.#.#",
    "#...###.",
    ".#.###.#",
    ".##.#.#.",
    ".#.#.#.#")])
BY_HAND = {  # theiler_window, min_diagonal, min_vertical -> the eight numbers
    (0, 2, 2): (34 / 64, 9 / 13, 20 / 34, math.log(3), 9 / 3, 4, 20 / 7, 3),
    (1, 2, 2): (26 / 56, 9 / 13, 13 / 26, math.log(3), 9 / 3, 4, 13 / 6, 3),
    (2, 2, 2): (20 / 42, 7 / 10, 5 / 20, math.log(2), 7 / 2, 4, 5 / 2, 3),
    (1, 3, 3): (26 / 56, 7 / 13, 3 / 26, math.log(2), 7 / 2, 4, 3, 3),
    (1, 1, 1): (26 / 56, 1, 1, -4 / 7 * math.log(4 / 7) + 3 / 7 * math.log(7), 13 / 7, 4, 26 / 19, 3),
    (0, 5, 4): (34 / 64, 0, 0, 0, 0, 4, 0, 3),
    (5, 1, 1): (4 / 12, 1, 1, 0, 1, 1, 4 / 3, 2),
}
NAMES = ("recurrence_rate", "determinism", "laminarity", "diagonal_entropy", "mean_diagonal", "longest_diagonal",
         "trapping_time", "longest_vertical")
WIDE = 20  # dimensions: more than are computed directly


def realised(plot, dim):
    """States at distance sqrt(3.8) where the plot has a point, and at 2 elsewhere."""
    points = np.linalg.cholesky(np.where(np.eye(len(plot)), 2.0, 0.1 * plot))
    return np.pad(points, ((0, 0), (0, dim - len(plot))))


def quantities(m, orbit=0):
    return tuple(float(m[name][orbit]) for name in NAMES)


@pytest.mark.parametrize("dim", [8, WIDE])
@pytest.mark.parametrize("case", BY_HAND)
def test_a_drawn_plot_gives_the_fractions_counted_by_hand(case, dim):
    window, diagonal, vertical = case
    m = recurrence_quantification(Trajectories(realised(DRAWN, dim)[None]), threshold=math.sqrt(3.9), scale="absolute",
                                  theiler_window=window, min_diagonal=diagonal, min_vertical=vertical)
    assert m.outcomes.tolist() == [Outcome.FOUND]
    assert quantities(m) == pytest.approx(BY_HAND[case], rel=1e-14)


def test_the_oracle_counts_the_drawn_plot_as_well():
    for (window, diagonal, vertical), wanted in BY_HAND.items():
        found = oracles.recurrence_quantification(realised(DRAWN, 8), math.sqrt(3.9), window, diagonal, vertical)
        assert tuple(found[name] for name in NAMES) == pytest.approx(wanted, rel=1e-14)


def test_the_lines_of_the_drawn_plot_are_those_one_sees():
    diagonal, vertical = np.zeros((2, 9), dtype=np.int64)
    line_lengths(np.empty((0, 8)), 1.0 - DRAWN, 0.5, 0, diagonal, vertical)
    assert diagonal.tolist() == [0, 4, 1, 1, 1, 0, 0, 0, 0]
    assert vertical.tolist() == [0, 14, 1, 6, 0, 0, 0, 0, 0]


def kinds(rng, n_steps, dim):
    """One orbit of a random kind: noise, a walk, cycles, a grid full of equal distances, rest, a spiral."""
    t = np.arange(n_steps)[:, None]
    return [lambda: rng.normal(size=(n_steps, dim)),
            lambda: rng.normal(size=(n_steps, dim)).cumsum(0),
            lambda: rng.normal(size=(5, dim))[np.arange(n_steps) % 5] + 0.01 * rng.normal(size=(n_steps, dim)),
            lambda: rng.integers(0, 3, size=(n_steps, dim)).astype(float),
            lambda: np.minimum(t, n_steps // 2) * np.ones(dim),
            lambda: 0.95**t * np.cos(t / 3 + np.arange(dim))][rng.integers(6)]()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_fast_equals_slow(seed):
    rng = np.random.default_rng(seed)
    n_steps, dim = int(rng.integers(2, 70)), int(rng.choice([1, 2, 3, 16, 17, 24]))
    states = kinds(rng, n_steps, dim)
    epsilon = 0.001 + float(np.quantile(oracles.pairwise(states), rng.choice([0.01, 0.1, 0.5, 1.0])))
    window, diagonal, vertical = (int(v) for v in rng.integers([0, 1, 1], [8, 6, 6]))
    m = recurrence_quantification(Trajectories(states[None]), threshold=epsilon, scale="absolute",
                                  theiler_window=window, min_diagonal=diagonal, min_vertical=vertical)
    if n_steps < max(window, 1) + max(diagonal, vertical):
        assert m.outcomes.tolist() == [Outcome.TOO_SHORT]
        return
    wanted = oracles.recurrence_quantification(states, epsilon, window, diagonal, vertical)
    assert m.outcomes.tolist() == [Outcome.FOUND]
    assert m["threshold"][0] == epsilon
    assert dict(zip(NAMES, quantities(m), strict=True)) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("window", [0, 1, 3, 9])
def test_plots_of_any_density_are_counted_as_one_sees_them(window, rng):
    for density in (0.0, 0.02, 0.3, 0.7, 0.98, 1.0):
        for n in (1, 2, 7, 8, 9, 31, 64, 65):
            half = np.triu(rng.random((n, n)) < density, 1)
            plot = half | half.T | np.eye(n, dtype=bool)
            diagonal, vertical = np.zeros((2, n + 1), dtype=np.int64)
            line_lengths(np.empty((0, n)), 1.0 - plot, 0.5, window, diagonal, vertical)
            apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) >= window
            diagonals, verticals = oracles.recurrence_lines(plot & apart)
            assert (2 * diagonal).tolist() == np.bincount(diagonals, minlength=n + 1).tolist()
            assert vertical.tolist() == np.bincount(verticals, minlength=n + 1).tolist()


@pytest.mark.parametrize(("n_steps", "period"), [(64, 2), (64, 3), (65, 7), (40, 19), (128, 16)])
def test_a_cycle_repeats_itself_for_ever(n_steps, period, rng):
    cycle = rng.normal(size=(period, 24))[np.arange(n_steps) % period]
    m = recurrence_quantification(Trajectories(cycle[None]))
    lines = [n_steps - lag for lag in range(period, n_steps, period)]
    on_lines = [v for v in lines if v >= 2]
    assert quantities(m) == pytest.approx(
        (2 * sum(lines) / n_steps / (n_steps - 1), sum(on_lines) / sum(lines), 0, math.log(len(on_lines)),
         np.mean(on_lines), n_steps - period, 0, 1), abs=1e-12)


@pytest.mark.parametrize("dim", [3, WIDE])
def test_a_drift_recurs_as_long_as_its_neighbours_in_time_are_near(dim):
    n, reach = 50, 4  # 4 steps are nearer than the threshold, 5 are not
    drift = np.arange(n)[:, None] * np.ones(dim) / math.sqrt(dim)
    settings = {"threshold": reach + 0.5, "scale": "absolute"}
    m = recurrence_quantification(Trajectories(drift[None]), **settings)
    lines = [n - lag for lag in range(1, reach + 1)]
    above_and_below = [min(reach, room) for t in range(n) for room in (t, n - 1 - t)]
    tall = [v for v in above_and_below if v >= 2]
    assert quantities(m) == pytest.approx(
        (2 * sum(lines) / n / (n - 1), 1, sum(tall) / sum(above_and_below), math.log(reach), np.mean(lines), n - 1,
         np.mean(tall), reach), rel=1e-12)
    apart = recurrence_quantification(Trajectories(drift[None]), theiler_window=reach + 1, **settings)
    assert quantities(apart) == (0,) * 8


def test_lines_in_noise_are_those_of_chance():
    """Points on a circle: pairs recur independently of each other, so that a neighbour on the diagonal is one in p."""
    rng = np.random.default_rng(5)
    angle = 2 * np.pi * rng.random((40, 400))
    orbits = Trajectories(np.stack([np.cos(angle), np.sin(angle)], axis=2))
    share = 0.1
    epsilon = 2 * math.sin(math.pi * share / 2)
    m = recurrence_quantification(orbits, threshold=epsilon, scale="absolute")
    assert m["recurrence_rate"].mean() == pytest.approx(share, rel=0.01)
    assert m["determinism"].mean() == pytest.approx(1 - (1 - share) ** 2, rel=0.01)
    assert m["mean_diagonal"].mean() == pytest.approx(2 + share / (1 - share), rel=0.01)
    assert m["trapping_time"].mean() == pytest.approx(2 + share / (1 - share), rel=0.01)


def test_noise_in_many_dimensions_never_returns_and_a_noisy_cycle_does(rng):
    noise = rng.normal(size=(3, 100, 256))
    cycle = rng.normal(size=(3, 4, 256))[:, np.arange(100) % 4] + 0.03 * noise
    m = recurrence_quantification(Trajectories(np.concatenate([noise, cycle])))
    assert m.outcomes.tolist() == [Outcome.FOUND] * 6
    assert [quantities(m, o) for o in range(3)] == [(0,) * 8] * 3
    assert m["recurrence_rate"][3:] == pytest.approx(2 * sum(range(4, 100, 4)) / 9900)
    assert (m["determinism"][3:] == 1).all()


@pytest.mark.parametrize("dim", [2, WIDE])
def test_thresholds_relative_to_the_orbit_do_not_see_its_size(dim, rng):
    states = rng.normal(size=(4, 60, dim)).cumsum(1)
    rms = [math.sqrt((oracles.pairwise(x) ** 2).sum() / (60 * 59)) for x in states]
    small, large = (recurrence_quantification(Trajectories(s * states), threshold=0.3) for s in (1, 1000))
    assert small["threshold"] == pytest.approx([0.3 * (1 + 1e-6) * v for v in rms], rel=1e-12)
    assert large["threshold"] == pytest.approx(1000 * small["threshold"], rel=1e-12)
    for o in range(4):
        assert quantities(large, o) == quantities(small, o)


@pytest.mark.parametrize("dim", [2, WIDE])
@pytest.mark.parametrize("window", [0, 1, 6])
@pytest.mark.parametrize("rate", [1e-4, 0.05, 0.3, 0.99])
def test_a_rate_is_reached_by_the_smallest_threshold_that_reaches_it(rate, window, dim, rng):
    states = rng.normal(size=(3, 57, dim)).cumsum(1)
    m = recurrence_quantification(Trajectories(states), threshold=rate, scale="rate", theiler_window=window)
    apart = np.abs(np.subtract.outer(np.arange(57), np.arange(57))) >= window
    for o, orbit in enumerate(states):
        every = np.sort(oracles.pairwise(orbit)[apart])
        at_least = max(every[math.ceil(rate * len(every)) - 1], every[every > 0][0])
        assert m["threshold"][o] == pytest.approx((1 + 1e-6) * at_least, rel=1e-9)
        assert rate <= m["recurrence_rate"][o] <= rate + 2 / len(every) + (every == 0).mean()


def test_a_cycle_exceeds_a_rate_for_its_repeats_are_equal(rng):
    cycle = rng.normal(size=(4, 5))[np.arange(80) % 4]
    turned = cycle @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    exact = 2 * sum(range(4, 80, 4)) / 80 / 79
    for states in (cycle, turned, turned + 1e-17 * rng.normal(size=(80, 5))):
        m = recurrence_quantification(Trajectories(states[None]), threshold=0.01, scale="rate")
        assert m["recurrence_rate"][0] == pytest.approx(exact)
        assert m["determinism"][0] == 1


def test_equal_distances_fall_on_one_side_of_a_relative_threshold(rng):
    """24 equal steps: the rms distance is exactly ten of them."""
    drift = np.arange(24)[:, None] * np.array([0.3, 0.4, 1.2]) / 1.3
    for _ in range(20):
        turned = drift @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + rng.normal(size=3)
        assert recurrence_quantification(Trajectories(turned[None]))["recurrence_rate"][0] == 1 / 12


@pytest.mark.parametrize("dim", [2, WIDE])
def test_an_absolute_threshold_is_strict_to_the_last_digit(dim):
    """0.24^2 + 0.32^2 is rounded to a number below 0.4^2; its root is 0.4."""
    states = np.zeros((1, 3, dim))
    states[0, 1, :2] = 0.24, 0.32
    for epsilon, rate in ((0.4, 1 / 3), (np.nextafter(0.4, 1), 1.0)):
        m = recurrence_quantification(Trajectories(states), threshold=epsilon, scale="absolute", min_diagonal=1)
        assert m["recurrence_rate"][0] == rate


def test_an_orbit_at_rest_recurs_by_rounding_only():
    rest = np.full((1, 30, 6), 3.0)
    rounded = torch.as_tensor(100 + 0.1 * np.random.default_rng(0).normal(size=(2, 30, 6))).bfloat16()
    for orbits in (Trajectories(rest), Trajectories(0 * rest), Trajectories(rounded),
                   Trajectories(rounded.float(), resolution=2**-7)):
        m = recurrence_quantification(orbits)
        assert set(m.outcomes) == {Outcome.AT_PRECISION_FLOOR}
        assert np.isnan(m.values).all()
        assert np.isfinite(m["threshold"]).all()
    m = recurrence_quantification(Trajectories(rounded), threshold=5.0, scale="absolute")
    assert m["recurrence_rate"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dim", [4, WIDE])
def test_squares_beyond_the_numbers_are_not_finite(dim):
    states = np.random.default_rng(0).normal(size=(2, 30, dim))
    states[1] *= 1e200
    m = recurrence_quantification(Trajectories(states))
    assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.NOT_FINITE]
    assert all(np.isnan(m[name][1]) for name in (*NAMES, "threshold"))


@pytest.mark.parametrize(("window", "diagonal", "vertical", "least"), [(1, 2, 2, 3), (0, 2, 2, 3), (4, 2, 5, 9),
                                                                       (1, 1, 1, 2)])
def test_an_orbit_is_too_short_without_room_for_a_line(window, diagonal, vertical, least, rng):
    for n_steps in (least - 1, least):
        m = recurrence_quantification(Trajectories(rng.normal(size=(1, n_steps, 4))), theiler_window=window,
                                      min_diagonal=diagonal, min_vertical=vertical)
        assert (m.outcomes[0] is Outcome.TOO_SHORT) == (n_steps < least)


def test_few_dimensions_need_no_matrix_of_distances(rng):
    for dim, needed in ((16, False), (17, True)):
        orbits = Trajectories(rng.normal(size=(2, 40, dim)))
        recurrence_quantification(orbits)
        assert ("distances" in orbits.derived) == needed


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_ranks_and_means_over_pairs_equal_those_of_the_sorted_distances(seed):
    rng = np.random.default_rng(seed)
    n, dim = int(rng.integers(2, 40)), int(rng.integers(1, 5))
    states = rng.choice([kinds(rng, n, dim), np.zeros((n, dim))]) * 10.0 ** rng.integers(-30, 30)
    squared = oracles.pairwise(states) ** 2
    apart = int(rng.integers(1, n))
    every = np.sort(squared[np.triu_indices(n, apart)])
    rank = int(rng.integers(len(every)))
    for form in ((np.ascontiguousarray(states.T), np.empty((0, 0))), (np.empty((0, n)), squared)):
        assert ranked_square(*form, apart, rank) == pytest.approx(every[rank], rel=1e-12, abs=0)
        assert mean_square(*form) == pytest.approx(squared.sum() / (n * (n - 1)), rel=1e-12, abs=0)


def test_no_lines_have_no_length():
    assert line_statistics(np.zeros(9, dtype=np.int64), 2) == (0, 0, 0, 0.0, 0)


@pytest.mark.parametrize(("setting", "words"), [
    ({"threshold": 0}, "threshold must be a positive number.*got 0"),
    ({"threshold": 1.0, "scale": "rate"}, "threshold must be below 1 as a recurrence rate.*got 1.0"),
    ({"scale": "std"}, "scale must be one of rms, absolute, rate; got 'std'"),
    ({"theiler_window": -1}, "theiler_window must be a whole number of steps from 0"),
    ({"theiler_window": True}, "theiler_window must be a whole number"),
    ({"min_diagonal": 0}, "min_diagonal must be a whole number of steps of at least 1"),
    ({"min_vertical": 2.0}, "min_vertical must be a whole number of steps of at least 1"),
])
def test_settings_out_of_range_are_refused(setting, words, decaying):
    with pytest.raises(ValueError, match=words):
        recurrence_quantification(decaying, **setting)
