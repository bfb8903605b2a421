"""The kernels behind the contraction rate, held to plain linear algebra: every fast loop equals its slow twin."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop.kernels import decay_modes as dm
from dynloop.kernels import dense
from dynloop.kernels import mode_evidence as me
from dynloop.kernels import slowest_mode as sm

N_STEPS, DIM = 60, 24


def mode_columns(kinds, rates, n_steps):
    """Columns (T, c) of modes: exp(-decay t), alternating (kind 1), or times cos and sin of angle t (kind 2)."""
    t, columns = np.arange(n_steps), []
    for kind, (decay, angle) in zip(kinds, rates, strict=True):
        size = np.exp(-decay * t)
        columns += [size * np.cos(angle * t), size * np.sin(angle * t)] if kind == 2 else [size * (-1.0) ** (kind * t)]
    return np.stack(columns, axis=1)


def modes_rest(kinds, rates, states):
    """What is left of states (T, dim) when a limit and these modes are fitted by least squares."""
    design = np.column_stack([np.ones(len(states)), mode_columns(kinds, rates, len(states))])
    return states - design @ np.linalg.lstsq(design, states, rcond=None)[0]


def modes_left(kinds, rates, states):
    """Sum of squares of `modes_rest`."""
    return float((modes_rest(kinds, rates, states) ** 2).sum())


def odds_inside(states, multipliers):
    """Log odds of errors in the loop against errors on the record, for the coordinate of the first of real modes.

    Restricted likelihoods of that coordinate (of its own coefficient vector) as limit and modes in white noise, and in
    the noise n[t + 1] = lambda n[t] + error, variances profiled out.
    """
    n = len(states)
    design = np.column_stack([np.ones(n), *(m ** np.arange(n) for m in multipliers)])
    along = np.linalg.pinv(design)[1] @ (states - states.mean(0))
    y = (states - states.mean(0)) @ along / (along @ along)
    whiten = np.eye(n) - multipliers[0] * np.eye(n, k=-1)
    q = np.linalg.qr(design)[0]
    found = []
    for law in (np.eye(n), whiten):
        x, z = law @ q, law @ y
        rest = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
        found.append(-0.5 * (n - q.shape[1]) * math.log(rest @ rest) - 0.5 * np.linalg.slogdet(x.T @ x)[1])
    return found[1] - found[0]


def orbit(rng, *, noise=1e-3, n_steps=N_STEPS, dim=DIM, kinds=(dm.REAL, dm.PAIR, dm.ALTERNATING)):
    """States of a few modes in noise, their kinds, and their rates: decay, angle."""
    rates = np.array([[rng.uniform(0.05, 1.0), rng.uniform(0.3, 2.8) if kind == dm.PAIR else 0.0] for kind in kinds])
    columns = mode_columns(kinds, rates, n_steps)
    states = 3 + columns @ rng.normal(size=(columns.shape[1], dim)) + noise * rng.normal(size=(n_steps, dim))
    return states, np.array(kinds, dtype=np.int64), rates


def squares(states):
    return ((states[:, None] - states) ** 2).sum(-1)


def fitted(states, kinds, rates, free=1):
    """Buffers after a fit of given rates to all features."""
    products = dm.centred_products(squares(states), 0, len(states)) if free else states @ states.T
    rows, small = np.zeros((3, dm.MOST_COLUMNS, len(states))), np.zeros((3, dm.MOST_COLUMNS, dm.MOST_COLUMNS))
    scores = (states - states.mean(0)).T if free else states.T
    wide = np.zeros((3, max(dm.MOST_COLUMNS, states.shape[1]), max(dm.MOST_COLUMNS, states.shape[1])))
    c, left = dm.project(kinds, rates, free, np.ascontiguousarray(scores), rows, wide)
    small[:, :, :] = wide[:, :dm.MOST_COLUMNS, :dm.MOST_COLUMNS]
    return products, np.ascontiguousarray(scores), rows, wide, small, c, left


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_eigenvalues_are_those_of_the_library(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    matrix = rng.normal(size=(n, n)) * 10.0 ** rng.uniform(-3, 3)
    got, wanted = dense.eigenvalues(matrix), list(np.linalg.eigvals(matrix))
    for value in got:  # as sets
        nearest = int(np.argmin(np.abs(np.array(wanted) - value)))
        assert abs(wanted.pop(nearest) - value) < 1e-5 * np.linalg.norm(matrix)
    symmetric = matrix @ matrix.T
    values, vectors = dense.symmetric_eigen(symmetric)
    np.testing.assert_allclose(values, np.linalg.eigvalsh(symmetric)[::-1], atol=1e-12 * values[0])
    np.testing.assert_allclose(vectors.T @ (values[:, None] * vectors), symmetric, atol=1e-12 * values[0])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_the_inverse_is_the_librarys_and_never_an_error(seed):
    matrix = np.random.default_rng(seed).normal(size=(5, 5))
    np.testing.assert_allclose(dense.inverse(matrix) @ matrix, np.eye(5), atol=1e-7)
    matrix[3] = matrix[1]
    assert np.isfinite(dense.inverse(matrix)).all()
    assert np.isfinite(dense.inverse(np.zeros((2, 2)))).all()


def test_products_of_distances_are_those_of_the_states(rng):
    states = rng.normal(size=(30, 7))
    centred = states[4:25] - states[4:25].mean(0)
    np.testing.assert_allclose(dm.centred_products(squares(states), 4, 25), centred @ centred.T, atol=1e-12)
    norms = np.linalg.norm(states, axis=1)
    np.testing.assert_allclose(dm.products_from(squares(states), norms, 4, 25), states[4:25] @ states[4:25].T,
                               atol=1e-12)


@pytest.mark.parametrize("delays", [1, 2, 9])
def test_delayed_products_are_those_of_stretches(delays, rng):
    states = rng.normal(size=(30, 3))
    stretches = np.stack([states[t:t + delays].ravel() for t in range(31 - delays)])
    stretches -= stretches.mean(0)
    got = dm.delayed_products(np.ascontiguousarray(states @ states.T), delays)
    np.testing.assert_allclose(got, stretches @ stretches.T, atol=1e-11)


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_leading_eigenpairs_are_the_librarys(dim, rng):
    states = rng.normal(size=(50, dim)) * 0.3 ** np.arange(dim)
    products = np.ascontiguousarray(states @ states.T)
    values, vectors = dense.leading(products, 6, 6)
    wanted = np.linalg.eigvalsh(products)[::-1][:6]
    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-12 * wanted[0])
    known = min(dim, 6)
    np.testing.assert_allclose(np.abs(np.einsum("it,ts,is->i", vectors[:known], products, vectors[:known])),
                               wanted[:known], rtol=1e-6)
    np.testing.assert_allclose(vectors[dim:], 0, atol=1e-6)


def test_multipliers_of_a_noiseless_orbit_are_found_exactly_in_any_dimension(rng):
    for dim in (1, 2, 24):
        states, kinds, rates = orbit(rng, noise=0.0, dim=dim)
        products = dm.delayed_products(dm.centred_products(squares(states), 0, N_STEPS), 20)
        _, vectors = dense.leading(products, 4, 8)
        found_kinds, found = dm.modes_of(dm.shift_multipliers(vectors, 4), 1e-6, 10.0)
        assert sorted(found_kinds) == sorted(kinds)
        np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(rates[:, 0]), rtol=1e-3)
        np.testing.assert_allclose(np.sort(found[:, 1]), np.sort(rates[:, 1]), atol=1e-3)


@pytest.mark.parametrize("free", [1, 0])
@pytest.mark.parametrize("seed", range(5))
def test_a_projection_is_least_squares(seed, free):
    states, kinds, rates = orbit(np.random.default_rng(seed), noise=0.1)
    _, scores, rows, wide, _, c, left = fitted(states, kinds, rates, free)
    design = mode_columns(kinds, rates, N_STEPS)
    if free:
        design = np.column_stack([np.ones(N_STEPS), design])
    coefficients, *_ = np.linalg.lstsq(design, scores.T, rcond=None)
    assert c == 4
    assert left == pytest.approx(((scores.T - design @ coefficients) ** 2).sum(), rel=1e-9)
    np.testing.assert_allclose(wide[dm.COEFFICIENTS, :4, :DIM], coefficients[free:], rtol=1e-7)
    q = rows[dm.Q, :5]
    np.testing.assert_allclose(q @ q.T, np.diag([free, 1, 1, 1, 1]), atol=1e-10)
    assert rows[dm.SLOPES, 0, 7] == pytest.approx(7 * np.exp(-7 * rates[0, 0]))


@pytest.mark.parametrize("seed", range(5))
def test_gradient_and_curvature_are_those_of_small_moves(seed):
    rng = np.random.default_rng(seed)
    states, kinds, rates = orbit(rng, noise=1e-4)
    rates = rates + 0.01 * rng.normal(size=rates.shape) * (rates > 0)
    _, scores, rows, wide, _, c, _ = fitted(states, kinds, rates)
    terms, signs = np.zeros((9, 2, 2), dtype=np.int64), np.zeros((9, 2))
    normal, gradient = np.zeros((9, 9)), np.zeros(9)
    p, _, _ = dm.curvature(kinds, c, scores, rows, wide, terms, signs, normal, gradient)
    assert p == 4
    for k, (mode, which) in enumerate([(0, 0), (1, 0), (1, 1), (2, 0)]):
        ends = []
        for move in (-1e-6, 1e-6):
            moved = rates.copy()
            moved[mode, which] += move
            ends.append(fitted(states, kinds, moved)[-1])
        assert 2 * gradient[k] == pytest.approx((ends[1] - ends[0]) / 2e-6, rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(normal[:p, :p], normal[:p, :p].T)
    assert (np.linalg.eigvalsh(normal[:p, :p]) > 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_fit_is_the_best_there_is_nearby(seed):
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    states, kinds, rates = orbit(rng, noise=0.01)
    _, scores, rows, wide, _, _, _ = fitted(states, kinds, rates)
    start = rates * np.exp(0.05 * rng.normal(size=rates.shape))
    found = dm.fit(kinds, start, 1, scores, 1e-4, 5.0, 30, 0.0, rows, wide)
    free = rates.ravel() > 0

    def left(values):
        moved = rates.ravel().copy()
        moved[free] = values
        return modes_left(kinds, moved.reshape(-1, 2), scores.T)

    best = minimize(left, found.ravel()[free], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    np.testing.assert_allclose(found.ravel()[free], best.x, rtol=2e-3)
    assert left(found.ravel()[free]) <= best.fun * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_what_the_fit_leaves_is_the_residuals_products(seed):
    states, kinds, rates = orbit(np.random.default_rng(seed), noise=0.1)
    products, _, rows, _, small, c, left = fitted(states, kinds, rates)
    assert me.fitted_part(products, c, rows, small) == pytest.approx(left, rel=1e-9)
    rest = modes_rest(kinds, rates, states)
    for s, t in ((0, 0), (3, 17), (59, 2)):
        assert me.left_product(products, c, rows, small, s, t) == pytest.approx(rest[s] @ rest[t], abs=1e-9)


@pytest.mark.parametrize("dim", [1, 3, 24, 200, 3000])
def test_the_directions_of_noise_are_counted(dim, rng):
    found = []
    for _ in range(10):
        states, kinds, rates = orbit(rng, noise=0.1, dim=dim, n_steps=128)
        products = dm.centred_products(squares(states), 0, 128)
        rows, small = np.zeros((3, dm.MOST_COLUMNS, 128)), np.zeros((3, dm.MOST_COLUMNS, dm.MOST_COLUMNS))
        c, _ = dm.project(kinds, rates, 1, np.zeros((1, 128)), rows, small)
        me.fitted_part(products, c, rows, small)
        found.append(me.noise_channels(products, c, rows, small))
    assert np.median(found) == pytest.approx(dim, rel=0.1)


def test_deviates_are_those_of_the_chi_squared_law():
    from scipy import stats

    for freedom in (2, 5, 257):
        for p in (0.5, 0.1, 1e-2, 1e-3):
            assert me.deviate(stats.chi2.isf(p, freedom), freedom) == pytest.approx(stats.norm.isf(p), abs=0.12)


def test_noise_has_no_energy_and_modes_have(rng):
    """Added modes that are not there rise above noise as often as normal deviates do."""
    false, true = [], []
    for _ in range(200):
        states, kinds, rates = orbit(rng, noise=0.05, kinds=(dm.REAL, dm.REAL), dim=6)
        rates[:] = [[0.1, 0], [0.8, 0]]
        states = 3 + mode_columns(kinds, rates, N_STEPS)[:, :1] @ rng.normal(size=(1, 6)) \
            + 0.05 * rng.normal(size=(N_STEPS, 6))
        products, scores, rows, _, small, c, left = fitted(states, kinds, rates)
        law = np.array([left / (6 * (N_STEPS - 3)), 6.0, 1e-30, 1e-30, 1.0, 0.5])
        found = np.zeros(dm.MOST_COLUMNS)
        me.fitted_part(products, c, rows, small)
        me.energies(kinds, scores, np.zeros((1, N_STEPS)), c, rows, small, np.ones(N_STEPS), law, found)
        true.append(found[0])
        false.append(found[1])
    assert np.mean(np.array(false) > 2) < 0.06
    assert np.min(true) > 5


def test_where_errors_are_made_is_seen_in_the_residuals(rng):
    """The same noise, on the record or in the loop, of a slow mode."""
    odds = {}
    t = np.arange(128)
    for where in ("record", "loop"):
        odds[where] = []
        for _ in range(30):
            away, noise = rng.normal(size=DIM), 1e-2 * rng.normal(size=(128, DIM))
            states = away * 0.95**t[:, None] + noise
            if where == "loop":
                for k in range(1, 128):
                    states[k] = 0.95 * states[k - 1] + noise[k]
            kinds, rates = np.zeros(1, dtype=np.int64), np.array([[-np.log(0.95), 0.0]])
            products, _, rows, _, small, c, left = fitted(states, kinds, rates)
            me.fitted_part(products, c, rows, small)
            law = np.array([left / (DIM * 126), float(DIM), 1e-30, 1e-30, 1.0, 0.5])
            got = sm.inside_loop(products, kinds, rates, 1, c, np.ones(128), rows, small, law)
            assert got[0] == pytest.approx(odds_inside(states, np.array([0.95])), abs=1e-6)
            odds[where].append(got[0])
    assert np.mean(np.array(odds["record"]) < -3) > 0.95
    assert np.mean(np.array(odds["loop"]) > 3) > 0.95


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("noise", [1e-3, 3e-2])
def test_the_error_is_the_scatter_of_the_estimates(noise, free):
    """One mode in white noise, the limit known or not: errors and coverage over many orbits."""
    rng = np.random.default_rng(5)
    t, decay = np.arange(N_STEPS), 0.12
    squared, norms = [], []
    for _ in range(300):
        states = np.exp(-decay * t)[:, None] * rng.normal(size=DIM) + noise * rng.normal(size=(N_STEPS, DIM))
        squared.append(squares(states))
        norms.append(np.linalg.norm(states, axis=1))
    found, _ = sm.slowest_modes(np.array(squared), np.array(norms), np.full(300, N_STEPS), not free,
                                np.full(300, 1e-30), 1e-15, np.full(300, 0.02))
    off = (found[:, 0, me.DECAY] - decay) / found[:, 0, me.ERROR]
    assert 1.4826 * np.median(np.abs(off)) == pytest.approx(1, abs=0.15)
    assert 0.9 < np.mean(np.abs(off) < 2) < 0.98  # a mode that is not there is added once in a hundred
    assert abs(np.median(off)) < 0.2
    assert (found[:, 0, me.FREEDOM] > 40).all()
    assert (found[:, 0, me.ODDS] == 1).all()


def test_a_known_limit_makes_a_slow_rate_surer(rng):
    t = np.arange(40)
    states = 0.99**t[:, None] * rng.normal(size=DIM) + 1e-3 * rng.normal(size=(40, DIM))
    errors = [sm.slowest_modes(squares(states)[None], np.linalg.norm(states, axis=1)[None], np.array([40]), zero,
                               np.array([1e-30]), 1e-15, np.array([0.02]))[0][0, 0, me.ERROR] for zero in (False, True)]
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_the_middle_is_the_median(n, rng):
    values = rng.normal(size=n)
    assert sm.middle(values) == pytest.approx(np.median(values), abs=1e-15)


def test_an_orbit_that_is_too_short_is_left_out():
    found, about = sm.slowest_modes(np.zeros((1, 5, 5)), np.zeros((1, 5)), np.array([5]), False, np.array([1e-30]),
                                    1e-15, np.array([0.5]))
    assert not found.any()
    assert not about.any()


@pytest.mark.parametrize("states", [np.zeros((30, 4)), np.ones((30, 4)), np.tile([[1.0], [-1.0]], (15, 1)),
                                    np.eye(30), np.repeat(np.eye(10), 3, axis=0)], ids=str)
def test_what_is_no_decay_gives_numbers_and_no_error(states):
    found, _ = sm.slowest_modes(squares(states)[None], np.linalg.norm(states, axis=1)[None], np.array([30]), False,
                                np.array([1e-30]), 1e-15, np.array([0.5]))
    assert np.isfinite(found[0, 0, me.DECAY])


KINDS = {"one": (dm.REAL,), "pair": (dm.PAIR,), "alternating": (dm.ALTERNATING,), "three": (dm.REAL, dm.REAL, dm.REAL),
         "all": (dm.REAL, dm.PAIR, dm.ALTERNATING), "two pairs": (dm.PAIR, dm.PAIR, dm.REAL)}


class Fit:
    """A fit of modes to an orbit, by the kernels and by plain linear algebra, for the twins below to share."""

    def __init__(self, seed, kinds, *, free=1, dim=DIM, n_steps=N_STEPS, noise=0.02, scale=1.0, n_scores=3):
        rng = np.random.default_rng(seed)
        states, self.kinds, self.rates = orbit(rng, kinds=kinds, dim=dim, n_steps=n_steps, noise=noise)
        self.free, self.n = free, n_steps
        self.states = scale * (states - states.mean(0) if free else states - 3)
        self.products = np.ascontiguousarray(self.states @ self.states.T)
        self.strong = np.ascontiguousarray((self.states @ np.linalg.svd(self.states)[2][:n_scores].T).T)
        self.rows = np.zeros((3, dm.MOST_COLUMNS, n_steps))
        self.small = np.zeros((3, dm.MOST_COLUMNS, dm.MOST_COLUMNS))
        self.fitted = self.rows, self.small
        self.shared = 1 + rng.random(n_steps)
        self.away = rng.random(n_steps) * (self.states**2).sum(1)
        self.law = np.array([(noise * scale) ** 2, float(dim), 1e-12 * scale**2, 1e-12 * scale**2,
                             (self.states[0] ** 2).sum(), 0.3])
        self.c, _ = dm.project(self.kinds, self.rates, free, self.strong, *self.fitted)
        me.fitted_part(self.products, self.c, *self.fitted)
        self.columns = mode_columns(kinds, self.rates, n_steps)
        constant = np.ones((n_steps, 1))
        self.design = np.hstack([constant, self.columns]) if free else self.columns
        self.hat = self.design @ np.linalg.pinv(self.design)
        self.rest = self.states - self.hat @ self.states
        self.finder = np.linalg.pinv(self.design)[free:]  # gives the coefficients of the columns

    def moves(self):
        """Change (n, c) of the columns with every parameter, by small differences."""
        found = []
        for k, kind in enumerate(self.kinds):
            for which in range(2 if kind == dm.PAIR else 1):
                ends = []
                for move in (-1e-5, 1e-5):
                    rates = self.rates.copy()
                    rates[k, which] += move
                    ends.append(mode_columns(self.kinds, rates, self.n))
                found.append((ends[1] - ends[0]) / 2e-5)
        return found

    def turns(self, scores):
        """Change (n, m) of what is left of scores (m, n) with every parameter, but for the part in the fit."""
        return [(np.eye(self.n) - self.hat) @ move @ self.finder @ scores.T for move in self.moves()]


def noise_variance(unit, shared, law):
    """Of a channel along a unit vector."""
    return max(law[me.NOISE], law[me.ROUNDING] / law[me.CHANNELS] * (unit**2 * shared).sum()) \
        + law[me.BLUR] / law[me.CHANNELS]


def chi_deviate(value, freedom):
    spread = 2 / (9 * freedom)
    return ((max(value, 0) / freedom) ** (1 / 3) - 1 + spread) / math.sqrt(spread)


CASES = [pytest.param(kinds, kw, id=f"{name} {kw}") for name, kinds in KINDS.items()
         for kw in ({}, {"free": 0}, {"dim": 5, "n_steps": 21}, {"scale": 1e-6}, {"scale": 1e6, "dim": 60})]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_small_products_are_the_librarys(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    a, b, share = rng.normal(size=n), rng.normal(size=n), rng.normal()
    assert dense.dot(a, b) == pytest.approx(a @ b, abs=1e-12)
    wanted = b + share * a
    dense.add(share, a, b)
    np.testing.assert_allclose(b, wanted, atol=1e-14)
    np.testing.assert_allclose(dense.times(np.outer(a, b), np.outer(b, a)), np.outer(a, b) @ np.outer(b, a), atol=1e-9)
    away = rng.random(n)
    assert sm.weighted(a, away) == pytest.approx((a**2 * away).sum())


def test_a_rotation_keeps_eigenvalues_and_makes_a_zero(rng):
    a = rng.normal(size=(4, 4)) + 1j * rng.normal(size=(4, 4))
    before = np.linalg.eigvals(a)
    dense.rotate(a, 1, 3, 0, 4)
    assert abs(a[3, 0]) < 1e-14
    assert np.abs(before[:, None] - np.linalg.eigvals(a)).min(0).max() < 1e-10


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_powers_are_columns_and_multipliers_are_modes(kinds, rng):
    rates = np.array([[rng.uniform(0.05, 1.0), rng.uniform(0.3, 2.8) if kind == dm.PAIR else 0.0] for kind in kinds])
    wanted, rows = mode_columns(kinds, rates, 30), np.zeros((8, 30))
    assert dm.powers(np.array(kinds), rates, rows) == dm.n_columns(np.array(kinds)) == wanted.shape[1]
    np.testing.assert_allclose(rows[:wanted.shape[1]].T, wanted, atol=1e-12)
    values = []
    for kind, (decay, angle) in zip(kinds, rates, strict=True):
        value = np.exp(-decay + 1j * angle) * (-1 if kind == dm.ALTERNATING else 1)
        values += [value, value.conjugate()] if kind == dm.PAIR else [value]
    got_kinds, got = dm.modes_of(np.array(values, dtype=complex), 0.1, 0.5)
    assert got_kinds.tolist() == list(kinds)
    np.testing.assert_allclose(got, np.column_stack([rates[:, 0].clip(0.1, 0.5), rates[:, 1]]), atol=1e-12)


def test_a_map_fitted_to_scores_is_least_squares(rng):
    vectors = rng.normal(size=(5, 40)).cumsum(1)
    now, after = (x - x.mean(1, keepdims=True) for x in (vectors[:3, :-1], vectors[:3, 1:]))
    wanted = np.linalg.eigvals(np.linalg.lstsq(now.T, after.T, rcond=None)[0])
    assert np.abs(wanted[:, None] - dm.shift_multipliers(vectors, 3)).min(0).max() < 1e-8


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_normal_matrix_and_gradient_are_products_of_turns(kinds, kw):
    f = Fit(1, kinds, **kw)
    terms, signs = np.zeros((9, 2, 2), dtype=np.int64), np.zeros((9, 2))
    normal, gradient = np.zeros((9, 9)), np.zeros(9)
    p, own, size = dm.curvature(f.kinds, f.c, f.strong, *f.fitted, terms, signs, normal, gradient)
    turns = f.turns(f.strong)
    assert p == len(turns)
    wanted = np.array([[(a * b).sum() for b in turns] for a in turns])
    np.testing.assert_allclose(normal[:p, :p], wanted, rtol=1e-5, atol=1e-6 * wanted.max())
    rest = f.strong.T - f.hat @ f.strong.T
    found = np.array([-(a * rest).sum() for a in turns])
    np.testing.assert_allclose(gradient[:p], found, rtol=1e-4, atol=1e-6 * math.sqrt(wanted.max() * (rest**2).sum()))
    slopes = (np.eye(f.n) - f.hat) @ (np.arange(f.n)[:, None] * f.columns)
    np.testing.assert_allclose(own, slopes.T @ slopes, rtol=1e-6, atol=1e-9 * own.max())
    coefficients = f.finder @ f.strong.T
    np.testing.assert_allclose(size, coefficients @ coefficients.T, rtol=1e-6, atol=1e-9 * size.max())


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_rows_and_residuals_of_a_fit_equal_the_oracle(kinds, kw):
    f = Fit(2, kinds, **kw)
    found, sizes, _ = me.mode_rows(f.c, *f.fitted)
    np.testing.assert_allclose(found[1:], f.finder, atol=1e-8 * np.abs(f.finder).max())
    np.testing.assert_allclose(sizes[1:, 1:], f.finder @ f.finder.T, rtol=1e-6, atol=1e-9 * sizes.max())
    energies = (f.rest**2).sum(1)
    assert me.fitted_part(f.products, f.c, *f.fitted) == pytest.approx(energies.sum(), rel=1e-6)
    np.testing.assert_allclose(sm.noise_profile(f.products, f.c, *f.fitted), energies / energies.mean(), rtol=1e-5,
                               atol=1e-6)
    about = np.zeros(8)
    sm.describe_rest(f.products, f.free, f.c, *f.fitted, about)
    third = f.n // 3
    assert about[sm.EARLY] == pytest.approx(energies[:third].sum() / energies[-third:].sum(), rel=1e-5)
    successive = (f.rest[1:] * f.rest[:-1]).sum() / energies.sum()
    taken = -np.trace(f.hat, offset=1) / (f.n - f.free - f.c)  # white noise has this much, once something was fitted
    assert about[sm.AUTOCORRELATION] == pytest.approx(successive - taken, abs=1e-5)


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_channels_are_counted_as_the_oracle_counts_them(kinds, kw):
    f = Fit(3, kinds, **kw)
    first = f.n // 3 if f.n >= 24 else 0
    states = np.arange(first, f.n, max(1, (f.n - first) // 32))
    apart = 8 if f.n - first >= 64 else 2 if f.n - first >= 16 else 1
    s, t = np.array([(s, t) for s in states for t in states if s - t >= apart]).T
    own, kept = (f.rest**2).sum(1), 1 - np.diag(f.hat)
    ratio = ((f.rest[s] * f.rest[t]).sum(1) ** 2).sum() / (own[s] * own[t]).sum()
    both, fitted_share = (kept[s] * kept[t]).sum(), (f.hat[s, t] ** 2).sum()
    wanted = (both + fitted_share - 2 * ratio * fitted_share) / (ratio * both - fitted_share)
    assert me.noise_channels(f.products, f.c, *f.fitted) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("dim", [2, 24, 500])
@pytest.mark.parametrize("delays", [0, 7])
def test_the_edge_of_noise_is_that_of_the_eigenvalues_beyond(dim, delays, rng):
    states = rng.normal(size=(50, dim))
    products = np.ascontiguousarray(states @ states.T)
    values = np.linalg.eigvalsh(products)[::-1]
    beyond = values[5:49]  # the mean takes one
    if dim < 6:
        assert me.noise_edge(values[:5], products, delays) == (0, 0)
        return
    beyond = np.append(beyond[:-1], values[48:].sum())
    mean, ratio = values[5:].sum() / 44, (values[5:] ** 2).sum() / values[5:].sum() ** 2
    channels = (45 - 2 * ratio) / max(ratio * 44 - 1, 1e-6) if ratio * 44 > 1 else 1e6
    got = me.noise_edge(values[:5], products, delays)
    np.testing.assert_allclose(got, [mean, mean * (1 + math.sqrt((50 + delays) / channels)) ** 2], rtol=1e-9)
    assert me.rank_above(values, values[3], 8) == 3
    assert me.rank_above(values, 0.0, 2) == 2
    assert me.rank_above(values, np.inf, 8) == 1


def test_states_that_hardly_move_share_their_rounding(rng):
    states = np.repeat(rng.normal(size=(5, 3)), 4, axis=0)
    states[:10] += 0.1 * rng.normal(size=(10, 3))
    near = np.exp(-squares(states[2:]) / (4 * 0.01))
    near[near <= np.exp(-12)] = 0
    np.testing.assert_allclose(me.shared_rounding(squares(states), 2, 20, 0.01), 1.3 * near.sum(1), rtol=1e-9)
    np.testing.assert_array_equal(me.shared_rounding(squares(states), 2, 20, 0.0), 1.3)


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_the_best_addition_equals_the_oracle(kinds, kw):
    f = Fit(4, kinds, **kw)
    wanted = []
    for rate in me.CANDIDATES:
        unit = rate ** np.arange(f.n)
        unit = unit - f.hat @ unit
        unit /= np.linalg.norm(unit)
        along = noise_variance(unit, f.shared, f.law)
        wanted.append(max(chi_deviate(((unit @ x) ** 2).sum() / along, freedom + 1)
                          for x, freedom in ((f.states, f.law[me.CHANNELS]), (f.strong.T, len(f.strong)))))
    at, best = me.best_addition(f.products, f.strong, f.c, f.rows, f.shared, f.law)
    assert best == pytest.approx(max(wanted), abs=1e-4)
    assert wanted[at] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_energies_of_modes_equal_the_oracle(kinds, kw):
    f = Fit(5, kinds, **kw)
    law, turns = f.law, f.turns(f.strong)
    normal = np.array([[(a * b).sum() for b in turns] for a in turns])
    root = np.linalg.cholesky(normal + 1e-12 * np.diag(np.diag(normal))).T
    coefficients = f.finder @ f.strong.T
    wanted, column = [], 0
    for kind in f.kinds:
        m = 2 if kind == dm.PAIR else 1
        finder = f.finder[column:column + m]
        own = np.linalg.inv(finder @ finder.T)
        half = np.linalg.cholesky(own).T
        power, strongly = (np.trace(own @ (finder @ x) @ (finder @ x).T) for x in (f.states, f.strong.T))
        # what moves of all rates take over, at their price: least squares
        left = np.concatenate([(half @ finder @ f.strong.T).ravel(), np.zeros(len(turns))])
        moved = np.array([(half @ finder @ move @ coefficients).ravel() for move in f.moves()]).T
        stacked = np.vstack([moved, root])
        rest = left - stacked @ np.linalg.lstsq(stacked, left, rcond=None)[0]
        taken = strongly - rest @ rest
        along = np.mean([noise_variance(row / np.linalg.norm(row), f.shared, law) for row in finder])
        value = max(chi_deviate((power - taken) / along, m * law[me.CHANNELS] + 1),
                    chi_deviate((strongly - taken) / along, m * len(f.strong) + 1))
        state = law[me.CHANNELS] * law[me.NOISE]
        strength = ((finder @ f.states) ** 2).sum() - (finder**2).sum() * state
        state += law[me.ROUNDING] + law[me.BLUR]
        if state < me.FORMAT_NOISE * law[me.ROUNDING] and strength < max(me.SEEN**2 * state,
                                                                         me.SHARE**2 * law[me.BEGIN]):
            value = min(value, 0)
        wanted.append(value)
        column += m
    found = np.zeros(dm.MOST_COLUMNS)
    low, at = me.energies(f.kinds, f.strong, f.strong, f.c, *f.fitted, f.shared, law, found)
    np.testing.assert_allclose(found[:len(wanted)], wanted, rtol=1e-3, atol=1e-3)
    assert low == pytest.approx(min(wanted), rel=1e-3, abs=1e-3)
    assert found[at] == low


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_evidence_and_odds_equal_the_oracle(kinds, kw):
    from scipy import stats

    f = Fit(6, kinds, **kw)
    law, gained = f.law, 30 * f.law[me.NOISE]
    level = max(law[me.NOISE], law[me.ROUNDING] / law[me.CHANNELS]) + law[me.BLUR] / law[me.CHANNELS]
    signal = law[me.BEGIN] / law[me.CHANNELS] / (level * (f.finder**2).sum(1).max())
    wanted = 0.5 * gained / level * signal / (1 + signal) - 0.5 * law[me.CHANNELS] * math.log1p(signal)
    got = me.log_evidence(f.c - 1, f.c, gained, law[me.NOISE], *f.fitted, law)
    assert got == pytest.approx(wanted, rel=1e-6)
    alike, other = np.array([0.1, 0.01, 9, 0, 0]), np.array([0.05, 0.01, 9, 0, 0])
    for z in (-2.0, 0.0, 1.5, 4.0):
        assert me.odds_of(got, z, other, 0.1) == pytest.approx(min(3 * math.exp(min(wanted, 50)), 1), rel=1e-4)
        view = me.UNSEEN / (1 - stats.norm.cdf(z) ** 3)
        assert me.odds_of(got, z, alike, 0.1) == pytest.approx(min(max(3 * math.exp(min(wanted, 50)), view), 1),
                                                                rel=0.05)


def test_models_are_changed_and_split(rng):
    kinds, rates = np.array([dm.REAL, dm.PAIR, dm.ALTERNATING]), np.array([[0.5, 0], [0.2, 1.1], [0.9, 0]])
    assert sm.slowest(kinds, rates) == (1, 1, 1)
    assert sm.slowest(kinds[::-1], rates[::-1]) == (1, 1, 1)
    assert sm.slowest(kinds, rates[[1, 0, 2]]) == (0, 0, 0)
    got_kinds, got = sm.changed(kinds, rates, 1, 3)
    assert got_kinds.tolist() == [dm.REAL, dm.ALTERNATING, dm.REAL]
    np.testing.assert_allclose(got, [[0.5, 0], [0.9, 0], [-math.log(me.CANDIDATES[3]), 0]])
    got_kinds, got = sm.split(kinds, rates)
    assert got_kinds.tolist() == [*kinds, dm.PAIR]
    np.testing.assert_allclose(got, [[0.5, 0], [0.2 / sm.SPLIT, 1.1], [0.9, 0], [0.2 * sm.SPLIT, 1.1]])
    for decays in ([1.0], [1.0, 1.4], [1.0, 1.6], [2.0, 1.0, 3.0], [3.0, 1.3, 1.0]):
        first, *others = sorted(decays)
        assert sm.crowded(np.array([[d, 0.0] for d in decays])) == bool(others and others[0] - first < sm.CROWDED)


def slow_inside_loop(f, profile):
    """As `inside_loop`: both laws as whitening matrices of the mode's coordinates, one after the other (m n,)."""
    at = int(np.argmin(f.rates[:, 0]))
    column = sum(2 if kind == dm.PAIR else 1 for kind in f.kinds[:at])
    m = 2 if f.kinds[at] == dm.PAIR else 1
    value = np.exp(-f.rates[at, 0] + 1j * f.rates[at, 1]) * (-1 if f.kinds[at] == dm.ALTERNATING else 1)
    turn = np.array([[value.real, -value.imag], [value.imag, value.real]])[:m, :m]
    own = f.finder[column:column + m] @ f.states
    y = (np.linalg.inv(own @ own.T) @ own @ f.states.T).ravel()
    regressors = np.kron(np.eye(m), np.linalg.qr(f.design)[0])
    sums, volumes = [], []
    for law in (np.eye(m * f.n), np.eye(m * f.n) - np.kron(turn, np.eye(f.n, k=-1))):
        x, z = law @ regressors, law @ y
        rest = z - x @ np.linalg.lstsq(x, z, rcond=None)[0]
        sums.append(rest @ rest)
        volumes.append(np.linalg.slogdet(x.T @ x)[1])
    freedom = m * (f.n - f.free - f.c)
    odds = 0.5 * freedom * math.log(sums[0] / sums[1]) - 0.5 * volumes[1]
    scale, prior = (own**2).sum() / m, sm.PRIOR_FREEDOM * f.law[me.NOISE]
    slopes = (np.eye(f.n) - f.hat) @ (np.arange(f.n)[:, None] * f.columns[:, column:column + m])
    slopes = slopes[:, 0] - (1j * slopes[:, 1] if m == 2 else 0)
    carried = sum(abs(sum(value ** (s - t) * slopes[s] for s in range(t, f.n))) ** 2 * profile[t] for t in range(f.n))
    alone = max(freedom - m, 1.0)
    return (odds, (sums[0] * scale + prior) / (alone + sm.PRIOR_FREEDOM),
            (sums[1] * scale + prior) / (freedom + sm.PRIOR_FREEDOM) * carried, alone)


def orthogonal_slopes(f):
    size = 2 * len(f.kinds) + 1
    dm.curvature(f.kinds, f.c, f.strong, *f.fitted, np.zeros((size, 2, 2), dtype=np.int64), np.zeros((size, 2)),
                 np.zeros((size, size)), np.zeros(size))


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_where_errors_are_made_equals_the_oracle(kinds, kw):
    f = Fit(7, kinds, **kw)
    profile = np.random.default_rng(1).random(f.n)
    orthogonal_slopes(f)
    got = sm.inside_loop(f.products, f.kinds, f.rates, f.free, f.c, profile, *f.fitted, f.law)
    np.testing.assert_allclose(got, slow_inside_loop(f, profile), rtol=1e-4)


@pytest.mark.parametrize("larger", [(0.0, 0.0), (0.6, 0.8), (40.0, 1.0)])
@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_the_error_of_the_slowest_decay_equals_the_oracle(kinds, kw, larger):
    f = Fit(8, kinds, **kw)
    law, n, p = f.law.copy(), f.n, dm.n_columns(f.kinds)
    law[me.BLUR] = 1e-9 * f.law[me.BEGIN]
    at = int(np.argmin(f.rates[:, 0]))
    parameter = sum(2 if kind == dm.PAIR else 1 for kind in f.kinds[:at])
    profile = (f.rest**2).sum(1) / (f.rest**2).sum(1).mean()
    left = (f.rest**2).sum()
    f.law[me.NOISE] = left / max(law[me.CHANNELS] * (n - f.free - f.c) - p, 1)
    odds, own_noise, carried, freedom = slow_inside_loop(f, profile)
    freedom *= min((1 + 2 / law[me.CHANNELS]) * n / (profile**2).sum(), 1)
    slopes = (np.eye(n) - f.hat) @ (np.arange(n)[:, None] * f.columns)
    mine, seen, level = slopes[:, parameter], max(law[me.CHANNELS] - f.c, 0), left / (n - f.free - f.c)
    blurred = law[me.BLUR] / f.away.max()
    trust = level * mine @ mine / (level * mine @ mine + blurred * (mine**2 * f.away).sum())
    noise = own_noise / (seen + sm.PRIOR_CHANNELS) * (
        trust * seen * f.products / level + (sm.PRIOR_CHANNELS + (1 - trust) * seen) * np.eye(n))  # over time (n, n)
    turns = f.turns(f.strong)
    back = np.linalg.inv([[(a * b).sum() for b in turns] for a in turns])[parameter]
    direction = sum(share * turn for share, turn in zip(back, turns, strict=True))
    variance, white = np.trace(direction.T @ noise @ direction), own_noise * back[parameter]
    excess = max(variance / white, sm.LEAST_SHARE)
    if larger[0]:
        excess *= min(larger[0] / excess, 1) ** (sm.EXPLAINED * larger[1])
    plain = sum(slopes[:, k] @ noise @ slopes[:, k] for k in range(parameter, parameter + 1 + (kinds[at] == dm.PAIR)))
    inside = law[me.INSIDE] / (law[me.INSIDE] + (1 - law[me.INSIDE]) * math.exp(-min(max(odds, -50), 50)))
    factor = 1 + (max(carried / plain, 1) - 1) * inside
    size = ((f.finder @ f.strong.T)[parameter] ** 2).sum()
    exact = (sm.PRODUCT_ERROR * blurred) ** 2 * (mine**2 * f.away).sum() * (f.finder[parameter] ** 2 * f.away).sum() \
        * back[parameter] / (mine @ mine * size)
    found = np.zeros(5)
    c, got_left = sm.estimate(f.products, f.kinds, f.rates, f.free, f.strong, *f.fitted, f.away,
                              np.array([0, 0, 0, larger[1], larger[0]]), law, found)
    assert (c, got_left) == (f.c, pytest.approx(left, rel=1e-6))
    assert found[me.DECAY] == f.rates[at, 0]
    assert found[me.ERROR] == pytest.approx(math.sqrt(white * excess * factor + exact), rel=1e-3)
    assert found[me.FREEDOM] == pytest.approx(freedom + sm.PRIOR_FREEDOM / 2, rel=1e-4)
    assert found[me.EXCESS] == pytest.approx(excess, rel=1e-3)


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_leading_scores_are_weighted_principal_components(kinds, kw):
    f = Fit(9, kinds, **kw)
    scores, strong, _ = sm.leading_scores(f.products)
    values, vectors = np.linalg.eigh(f.products)
    values, vectors = values[::-1], vectors.T[::-1]
    mean, edge = me.noise_edge(values[:sm.SCORES], f.products, 0)
    for got, cut, weights in ((scores, 1.05, (values - mean).clip(0) / np.sqrt(np.abs(values))),
                              (strong, 2.0, np.sqrt(np.abs(values)))):
        rank = max(int(((values[:sm.SCORES] > cut * edge) & (values[:sm.SCORES] > 1e-14 * values[0])).sum()), 1)
        clear = int((values[:sm.SCORES] > 3 * edge).sum())  # within the noise, iteration has not ended
        assert abs(len(got) - rank) <= (rank > clear)
        for k in range(min(clear, len(got))):
            np.testing.assert_allclose(np.abs(got[k]), np.abs(weights[k] * vectors[k]),
                                       atol=2e-2 * math.sqrt(values[k]))


@pytest.mark.parametrize(("kinds", "kw"), CASES)
def test_first_modes_are_near_and_a_refit_is_least_squares(kinds, kw):
    from scipy.optimize import least_squares

    f = Fit(10, kinds, noise=1e-4, **kw)
    scores, _, vectors = sm.leading_scores(f.products)
    guess_kinds, guess = sm.first_modes(f.products, scores, vectors, 6, f.free, *f.fitted)
    at = int(np.argmin(f.rates[:, 0]))
    assert np.abs(guess[:, 0] - f.rates[at, 0]).min() < 0.2 * f.rates[at, 0]
    assert len(guess_kinds) == len(guess)
    law, found = f.law.copy(), np.zeros(dm.MOST_COLUMNS)
    law[me.CHANNELS] = law[me.NOISE] = 0
    rates, c, left, low, weak = sm.refit(f.products, f.kinds, f.rates, f.free, f.strong, f.strong, f.shared, *f.fitted,
                                         law, found)
    used = np.flatnonzero(f.rates.ravel() > 0)

    def rest(values):
        moved = f.rates.ravel().copy()
        moved[used] = values
        design = mode_columns(f.kinds, moved.reshape(-1, 2), f.n)
        design = np.hstack([np.ones((f.n, 1)), design]) if f.free else design
        return (f.strong.T - design @ np.linalg.lstsq(design, f.strong.T, rcond=None)[0]).ravel() / f.law[me.NOISE]**0.5

    best = least_squares(rest, f.rates.ravel()[used], xtol=1e-12, ftol=1e-12)
    spread = np.sqrt(np.diag(np.linalg.inv(best.jac.T @ best.jac)))
    assert (np.abs(rates.ravel()[used] - best.x) < 0.05 * spread).all()
    assert c == f.c
    assert low == found[weak] == found[:len(f.kinds)].min()
    assert law[me.NOISE] == pytest.approx(left / max(law[me.CHANNELS] * (f.n - f.free - c) - c, 1))


@pytest.mark.parametrize("free", [1, 0])
@pytest.mark.parametrize(("decays", "noise"), [((0.1,), 1e-2), ((0.1, 0.5), 1e-3), ((0.03, 0.2, 0.9), 1e-4)])
def test_the_slowest_mode_is_that_of_least_squares_on_all_features(decays, noise, free, rng):
    from scipy.optimize import least_squares

    t = np.arange(80)
    for _ in range(5):
        columns = np.exp(-np.outer(t, decays))
        states = free + columns @ rng.normal(size=(len(decays), DIM)) + noise * rng.normal(size=(80, DIM))

        def rest(values, states=states):
            design = np.exp(-np.outer(t, values))
            design = np.column_stack([np.ones(80), design]) if free else design
            return (states - design @ np.linalg.lstsq(design, states, rcond=None)[0]).ravel()

        best = least_squares(rest, decays, xtol=1e-12, ftol=1e-12)
        found, _ = sm.slowest_modes(squares(states)[None], np.linalg.norm(states, axis=1)[None], np.array([80]),
                                    not free, np.array([1e-30]), 1e-15, np.array([0.02]))
        assert found[0, 0, me.DECAY] == pytest.approx(best.x.min(), abs=0.2 * found[0, 0, me.ERROR])
        spread = noise * math.sqrt(np.linalg.inv(best.jac.T @ best.jac)[0, 0])
        assert found[0, 0, me.ERROR] == pytest.approx(spread, rel=0.4)
