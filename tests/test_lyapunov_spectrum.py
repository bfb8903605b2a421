"""Lyapunov spectra: closed forms, a slow oracle, both paths alike, intervals that cover, and no answer that is none."""

import functools
import math

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma

from dynloop.kernels.tangent import follower
from dynloop.maps import LoopMap
from dynloop.maps.lyapunov_spectrum import lyapunov_spectrum
from dynloop.outcome import Outcome
from synthetic import cat_map, coupled_maps, flows, linear, logistic

# torch.func.vmap loads decompositions that PyTorch itself still scripts
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
HENON = (0.41922, -1.62319)  # Sprott 2003
double = functools.partial(torch.tensor, dtype=torch.float64)


def henon_map(device="cpu", dtype=torch.float64):
    return LoopMap(lambda x, c: torch.stack([1 - 1.4 * x[:, 0]**2 + x[:, 1], 0.3 * x[:, 0]], 1), (2,), device=device,
                   dtype=dtype)


def henon(x):
    return 1 - 1.4 * x[0] * x[0] + x[1], 0.3 * x[0]


def henon_jacobian(x):
    return (-2.8 * x[0], 1.0), (0.3, 0.0)


def logistic_map(r):
    return LoopMap(lambda x, c: r * x * (1 - x), (1,))


def diagonal_map(multipliers, device="cpu"):
    own = double(multipliers).to(device)
    return LoopMap(lambda x, c: own * x, own.shape, device=device)


def network(dim, gain, seed):
    weights = gain * torch.from_numpy(np.random.default_rng(seed).normal(size=(dim, dim))) / dim**0.5
    return weights, LoopMap(lambda x, c: torch.tanh(x @ weights.T), (dim,))


def starts(n, dim, seed=0, size=1.0):
    return size * torch.from_numpy(np.random.default_rng(seed).normal(size=(n, dim)))


def oracle(step, jacobian, x, tangents, n_steps):
    """Log stretches (n_steps, k), one state, one step at a time."""
    rows = []
    for _ in range(n_steps):
        tangents, r = np.linalg.qr(np.asarray(jacobian(x)) @ tangents)
        x = np.asarray(step(x))
        rows.append(np.log(np.abs(np.diag(r))))
    return np.array(rows)


def covers(spectrum, truth, slack=1e-9):
    truth = np.asarray(truth)[:spectrum.exponents.shape[1]]
    return (spectrum.low - slack <= truth) & (truth <= spectrum.high + slack)


# known answers ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("device", DEVICES)
def test_the_exponents_of_henon_lie_in_their_intervals_and_sum_to_ln_b(device):
    s = lyapunov_spectrum(henon_map(device), starts(40, 2, size=0.05), n_steps=500)
    assert covers(s, HENON).mean() >= 0.85
    np.testing.assert_allclose(s.measurement["sum"], math.log(0.3), atol=1e-9)
    middle, low, high = s.over_orbits(0.99)
    assert (low < HENON).all()
    assert (high > HENON).all()
    np.testing.assert_allclose(middle, HENON, atol=6e-3)


def test_the_exponents_of_henon_from_its_compiled_map_lie_in_their_intervals():
    s = lyapunov_spectrum(henon, starts(8, 2, size=0.05), jacobian=henon_jacobian, n_steps=400_000)
    assert covers(s, HENON, 2e-5).mean() >= 0.7  # the truth is known to 2e-5
    np.testing.assert_allclose(s.measurement["sum"], math.log(0.3), atol=1e-9)
    np.testing.assert_allclose(s.exponents, np.tile(HENON, (8, 1)), atol=3e-3)
    assert set(s.measurement["horizon"]) == {"asymptotic"}


def test_the_exponents_of_the_cat_map_are_exact():
    system = cat_map.cat()
    f = LoopMap(lambda x, c: torch.remainder(torch.stack([2 * x[:, 0] + x[:, 1], x[:, 0] + x[:, 1]], 1), 1), (2,))
    s = lyapunov_spectrum(f, torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    np.testing.assert_allclose(s.exponents, np.tile(system.exact["lyapunov"], (5, 1)), atol=1e-11)
    np.testing.assert_allclose(s.measurement["sum"], 0, atol=1e-12)
    assert set(s.measurement["horizon"]) == {"asymptotic"}


@pytest.mark.parametrize("size", [8, 64])
def test_all_exponents_of_coupled_maps_lie_in_their_intervals(size):
    system = coupled_maps.ring(size, 1.9, 0.3)

    def step(x, contexts):
        y = torch.remainder(1.9 * x, 1)
        return 0.7 * y + 0.15 * (y.roll(1, 1) + y.roll(-1, 1))

    s = lyapunov_spectrum(LoopMap(step, (size,)), torch.from_numpy(system.start(np.random.default_rng(0), 3)),
                          n_exponents=size, n_steps=400)
    exact = np.array(system.exact["lyapunov"])
    assert covers(s, exact).mean() >= 0.95
    np.testing.assert_allclose(s.exponents, np.tile(exact, (3, 1)), atol=0.01)
    np.testing.assert_allclose(s.measurement["sum"], system.exact["lyapunov_sum"], atol=1e-9)


def test_random_products_have_the_exponents_of_newman():
    dim, n, n_steps = 16, 30, 300
    rng = np.random.default_rng(3)
    matrices = iter([torch.from_numpy(rng.normal(size=(n, dim, dim)) / dim**0.5) for _ in range(n_steps)])
    f = LoopMap(lambda x, c: (next(matrices) @ x[:, :, None])[:, :, 0], (dim,))  # one call a step, for all tangents
    s = lyapunov_spectrum(f, torch.zeros(n, dim), n_exponents=dim, n_steps=n_steps)
    exact = 0.5 * (math.log(2 / dim) + digamma((dim - np.arange(dim)) / 2))
    assert 0.9 <= covers(s, exact).mean() <= 0.99
    np.testing.assert_allclose(s.exponents.mean(0), exact, atol=0.03)
    assert set(s.measurement["realigned"]) == {0}


@pytest.mark.parametrize("system", linear.SYSTEMS, ids=lambda s: s.name)
def test_linear_loops_have_the_logarithms_of_their_multipliers(system):
    rest = system.exact.get("fixed_point", np.zeros(system.dim))
    a = torch.from_numpy(system.step(rest + np.eye(system.dim), None) - system.step(rest[None], None))
    s = lyapunov_spectrum(LoopMap(lambda x, c: x @ a, (system.dim,)), starts(4, system.dim), n_exponents=2)
    assert covers(s, system.exact["lyapunov"]).all()
    np.testing.assert_allclose(s.exponents, np.tile(system.exact["lyapunov"][:2], (4, 1)), atol=1e-3)


@pytest.mark.parametrize("angle", [0.05, 0.4, 1.0, 2.6])
def test_a_complex_pair_shares_its_exponent_however_skewed_its_plane(angle):
    rng = np.random.default_rng(6)
    diagonal = np.diag(np.r_[0.0, 0.0, np.linspace(0.7, 0.1, 14)])
    diagonal[:2, :2] = 0.9 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    base = rng.normal(size=(16, 16))
    base[:, 1] = base[:, 0] + 0.3 * base[:, 1]
    a = torch.from_numpy(base @ diagonal @ np.linalg.inv(base))
    s = lyapunov_spectrum(LoopMap(lambda x, c: x @ a.T, (16,)), starts(3, 16), n_exponents=3)
    np.testing.assert_allclose(s.exponents, np.tile(np.log([0.9, 0.9, 0.7]), (3, 1)), atol=1e-9)
    assert covers(s, np.log([0.9, 0.9, 0.7])).all()


@pytest.mark.parametrize("r", [2.5, 2.8, 3.2, 3.4, 3.829, 3.83, 3.84])
def test_logistic_fixed_points_and_windows_have_exact_exponents(r):
    system = (logistic.at_rest if r < 3 else logistic.period_two if r < 3.45 else logistic.period_three)(r)
    begin = torch.from_numpy(system.start(np.random.default_rng(0), 12))
    s = lyapunov_spectrum(logistic_map(r), begin, n_steps=512)
    assert covers(s, system.exact["lyapunov"]).all()
    np.testing.assert_allclose(s.exponents[:, 0], system.exact["lyapunov"][0], atol=1e-4)
    assert set(s.measurement["n_positive"]) == {0}


def test_the_logistic_map_at_4_has_ln_2():
    s = lyapunov_spectrum(logistic_map(4.0), torch.linspace(0.11, 0.87, 40, dtype=torch.float64)[:, None], n_steps=500)
    assert covers(s, [math.log(2)]).mean() > 0.9
    np.testing.assert_allclose(s.over_orbits()[0], math.log(2), atol=2e-3)
    assert (s.measurement["n_positive"] == 1).all()


def test_the_lorenz_flow_as_a_map_of_a_tenth_of_time():
    def field(s):
        x, y, z = s.unbind(1)
        return torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1)

    def step(s, contexts, h=0.025):
        for _ in range(4):
            a = field(s)
            b = field(s + h / 2 * a)
            c = field(s + h / 2 * b)
            s = s + h / 6 * (a + 2 * b + 2 * c + field(s + h * c))
        return s

    system = flows.lorenz(0.1)
    begin = system.start(np.random.default_rng(0), 64)
    np.testing.assert_allclose(step(torch.from_numpy(begin), None), system.step(begin, None), rtol=1e-3, atol=1e-3)
    s = lyapunov_spectrum(LoopMap(step, (3,)), torch.from_numpy(begin), n_steps=160)
    truth = np.array(system.reported["lyapunov"][0])
    middle, low, high = s.over_orbits(0.99)
    assert (low - 1e-3 < truth).all()
    assert (truth < high + 1e-3).all()
    np.testing.assert_allclose(middle, truth, atol=6e-3)
    assert covers(s, truth, 1e-3).mean() > 0.85


@pytest.mark.slow
@pytest.mark.parametrize(("f", "begin", "truth"), [
    (henon_map(), lambda seed: starts(400, 2, seed, 0.05), HENON),
    (logistic_map(4.0), lambda seed: torch.rand(400, 1, dtype=torch.float64,
                                                generator=torch.Generator().manual_seed(seed)), (math.log(2),)),
], ids=["henon", "logistic"])
@pytest.mark.parametrize("n_steps", [128, 512, 4000])
def test_intervals_cover_as_often_as_they_say(f, begin, truth, n_steps):
    s = lyapunov_spectrum(f, begin(n_steps), n_steps=n_steps)
    assert covers(s, truth).mean() >= 0.93


@pytest.mark.slow
def test_intervals_of_random_products_cover_as_often_as_they_say():
    dim, n, n_steps = 8, 400, 500
    rng = np.random.default_rng(4)
    matrices = iter([torch.from_numpy(rng.normal(size=(n, dim, dim)) / dim**0.5) for _ in range(n_steps)])
    f = LoopMap(lambda x, c: (next(matrices)[c] @ x[:, :, None])[:, :, 0], (dim,), n_contexts=n)
    s = lyapunov_spectrum(f, torch.zeros(n, dim), n_steps=n_steps)
    exact = 0.5 * (math.log(2 / dim) + digamma((dim - np.arange(dim)) / 2))
    np.testing.assert_allclose(covers(s, exact).mean(0), 0.95, atol=0.035)


# short horizons ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("second", "k"), [(0.85, 1), (0.94, 1), (0.9, 3)])
def test_128_steps_in_2048_dimensions_are_biased_by_less_than_a_thousandth(second, k):
    multipliers = np.append(0.95, np.linspace(second, 0.05, 2047))
    f, begin = diagonal_map(multipliers), starts(3, 2048)
    s = lyapunov_spectrum(f, begin, n_exponents=k)
    exact = np.log(multipliers[:k])
    np.testing.assert_allclose(s.exponents.mean(0), exact, atol=1e-3)
    assert covers(s, exact).mean() >= 0.8
    from_the_start = lyapunov_spectrum(f, begin, n_exponents=k, discard=0)
    assert (from_the_start.exponents[:, 0] < exact[0] - 0.02).all()  # (ln 2048) / (2 x 128) = .03
    assert (from_the_start.measurement["averaged"] == 128).all()
    assert (s.measurement["discarded"] >= 32).all()
    assert (s.measurement["realigned"] >= 3).all()


def test_a_cluster_that_128_steps_cannot_resolve_makes_the_interval_wider():
    multipliers = np.linspace(0.95, 0.05, 2048)
    s = lyapunov_spectrum(diagonal_map(multipliers), starts(10, 2048), n_exponents=1)
    assert covers(s, [math.log(0.95)]).mean() >= 0.8
    assert (s.high - s.low > 1e-5).all()
    np.testing.assert_allclose(s.exponents, math.log(0.95), atol=3e-3)


@pytest.mark.parametrize(("dim", "n_steps", "k"), [(64, 128, 3), (256, 128, 3), (256, 512, 3), (256, 512, 1)])
def test_gaps_that_a_skewed_map_does_not_resolve_get_intervals_that_cover(dim, n_steps, k):
    rng = np.random.default_rng(1)
    a = torch.from_numpy(0.6 * np.triu(rng.standard_normal((dim, dim)), 1) / dim**0.5
                         + np.diag(np.linspace(0.95, 0.1, dim)))
    s = lyapunov_spectrum(LoopMap(lambda x, c: x @ a.T, (dim,)), starts(3, dim), n_exponents=k, n_steps=n_steps)
    exact = a.diagonal().log().numpy()[:k]
    assert (np.abs(s.exponents - exact).max(1) > 1e-3).all()
    assert covers(s, exact).all()
    if k == 3:
        assert set(s.measurement["horizon"]) == {"finite time"}


def test_a_stretch_that_falls_as_one_over_the_time_gets_an_interval_that_reaches_its_limit():
    f = LoopMap(lambda x, c: torch.stack([x[:, 0] + 1, 0.9 * (1 + 1 / x[:, 0]) * x[:, 1]], 1), (2,))
    s = lyapunov_spectrum(f, double([[1.0, 1.0]]), n_exponents=2, n_steps=512)
    assert s.exponents[0, 1] - math.log(0.9) > 1e-3
    assert covers(s, [0, math.log(0.9)], 1e-6).all()


def test_tangents_are_not_realigned_where_no_linear_map_explains_them():
    _, f = network(64, 3.0, seed=1)
    s = lyapunov_spectrum(f, starts(4, 64), n_exponents=4, n_steps=200)
    assert (s.measurement["realigned"] == 0).all()
    assert (s.exponents[:, 0] > 0.1).all()
    assert set(s.measurement["horizon"]) == {"finite time"}


def test_a_short_chaotic_orbit_has_finite_time_exponents_and_a_long_one_asymptotic_ones():
    for n_steps, horizon in ((128, "finite time"), (60_000, "asymptotic")):
        s = lyapunov_spectrum(henon, [[0.1, 0.1]], jacobian=henon_jacobian, n_steps=n_steps)
        assert s.measurement["horizon"].tolist() == [horizon]
    loose = lyapunov_spectrum(henon, [[0.1, 0.1]], jacobian=henon_jacobian, n_steps=128, tolerance=0.9)
    assert loose.measurement["horizon"].tolist() == ["asymptotic"]


def test_the_way_to_the_attractor_is_left_out():
    shift = LoopMap(lambda x, c: torch.where(x > 4, x - 1, 4 * (x % 1) * (1 - x % 1)), (1,))  # 200 neutral steps first
    s = lyapunov_spectrum(shift, 200 + torch.linspace(0.11, 0.87, 20, dtype=torch.float64)[:, None], n_steps=800)
    assert (s.measurement["discarded"] > 150).all()
    np.testing.assert_allclose(s.over_orbits()[0], math.log(2), atol=0.02)


# the arithmetic ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n_exponents", [1, 3, 5])
def test_log_stretches_equal_the_oracle(n_exponents):
    weights, f = network(5, 1.6, seed=2)
    w, begin = weights.numpy(), starts(3, 5)
    s = lyapunov_spectrum(f, begin, n_exponents=n_exponents, n_steps=30, discard=0, rng=7)
    tangents = np.linalg.qr(np.random.default_rng(7).standard_normal((3, 5, n_exponents)))[0]
    for o in range(3):
        wanted = oracle(lambda x: np.tanh(w @ x), lambda x: (1 - np.tanh(w @ x)**2)[:, None] * w, begin[o].numpy(),
                        tangents[o], 30)
        np.testing.assert_allclose(s.log_stretches[o], wanted, atol=1e-9)
        np.testing.assert_allclose(s.exponents[o], wanted.mean(0), atol=1e-10)


@pytest.mark.parametrize("discard", [0, 40, None])
def test_all_exponents_sum_to_the_mean_log_determinant(discard):
    weights, f = network(6, 1.8, seed=5)
    x = starts(1, 6)
    s = lyapunov_spectrum(f, x, n_exponents=6, n_steps=160, discard=discard)
    logs = []
    for _ in range(160):
        jacobian = torch.func.jacrev(lambda y: torch.tanh(weights @ y))(x[0])
        logs.append(torch.linalg.slogdet(jacobian)[1].item())
        x = f(x)
    first = int(s.measurement["discarded"][0])
    assert discard is None or first == discard
    assert s.measurement["sum"][0] == pytest.approx(np.mean(logs[first:]), abs=1e-9)
    assert s.exponents[0].sum() == pytest.approx(np.mean(logs[first:]), abs=1e-9)


@pytest.mark.parametrize(("step", "jacobian", "dim"), [
    (henon, henon_jacobian, 2),
    (lambda x: (3.9 * x[0] * (1 - x[0]),), lambda x: ((3.9 - 7.8 * x[0],),), 1),
    (lambda x: (0.9 * x[0] + 0.1 * x[1], 0.5 * math.sin(x[2]), 0.7 * x[0] + 0.2 * x[2]),
     lambda x: ((0.9, 0.1, 0.0), (0.0, 0.0, 0.5 * math.cos(x[2])), (0.7, 0.0, 0.2)), 3),
], ids=["henon", "logistic", "three"])
def test_a_compiled_map_gives_what_the_same_loop_map_gives(step, jacobian, dim):
    def batched(x, contexts):
        return torch.stack([v if torch.is_tensor(v) else torch.full_like(x[:, 0], v) for v in lifted(x.unbind(1))], 1)

    def lifted(x):
        return (0.9 * x[0] + 0.1 * x[1], 0.5 * torch.sin(x[2]), 0.7 * x[0] + 0.2 * x[2]) if dim == 3 else step(x)

    begin = 0.1 + starts(4, dim, size=0.01).abs()
    for options in ({"discard": 0, "n_steps": 40}, {"discard": 11, "n_steps": 48}):
        ours, theirs = (lyapunov_spectrum(f, begin, rng=3, **more, **options)
                        for f, more in ((step, {"jacobian": jacobian}), (LoopMap(batched, (dim,)), {})))
        np.testing.assert_allclose(ours.exponents, theirs.exponents, atol=1e-7)
        np.testing.assert_allclose(ours.states, theirs.states, atol=1e-5)
        np.testing.assert_allclose(np.abs(ours.tangents), theirs.tangents.abs(), atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 8), st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_fewer_orthonormalisations_change_nothing_and_all_equal_the_oracle(seed, k, apart, normal):
    rng = np.random.default_rng(seed)
    tangents, x = np.linalg.qr(rng.normal(size=(3, k)))[0].T.copy(), tuple(rng.uniform(-1, 1, size=3).tolist())
    stretches = oracle(_rotating.py_func, _rotating_jacobian.py_func, x, tangents.T, 29)
    sums, lengths = np.zeros((4, k)), np.array([7, 12, 1, 9])
    follower(3, k)(_rotating, _rotating_jacobian, x, tangents, lengths, apart, normal, sums)
    np.testing.assert_allclose(sums, np.add.reduceat(stretches, [0, 7, 19, 20]), atol=1e-8)
    np.testing.assert_allclose(tangents @ tangents.T, np.eye(k), atol=1e-7)


@numba.njit
def _rotating(x):
    return x[1], x[2], math.sin(x[0]) + 0.2 * x[2]


@numba.njit
def _rotating_jacobian(x):
    return (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (math.cos(x[0]), 0.0, 0.2)


def test_compiled_maps_may_be_written_for_arrays():
    def step(x):
        return np.array([1 - 1.4 * x[0] * x[0] + x[1], 0.3 * x[0]])

    def jacobian(x):
        return np.array([[-2.8 * x[0], 1.0], [0.3, 0.0]])

    arrays, tuples = (lyapunov_spectrum(f, [[0.1, 0.1]], jacobian=j, n_steps=5000)
                      for f, j in ((step, jacobian), (numba.njit(henon), numba.njit(henon_jacobian))))
    np.testing.assert_allclose(arrays.exponents, tuples.exponents, atol=1e-2)
    np.testing.assert_allclose(arrays.measurement["sum"], math.log(0.3), atol=1e-9)


def test_many_orbits_are_what_each_is_alone():
    _, f = network(12, 1.5, seed=3)
    begin = starts(5, 12)
    together = lyapunov_spectrum(f, begin, n_exponents=3, discard=0)
    np.testing.assert_allclose(together.exponents[:1], lyapunov_spectrum(f, begin[:1], n_exponents=3, discard=0)
                               .exponents, atol=1e-9)
    assert together.tangents.shape == (3, 5, 12)
    np.testing.assert_allclose(torch.einsum("ind,jnd->nij", together.tangents, together.tangents),
                               np.tile(np.eye(3), (5, 1, 1)), atol=1e-12)


def test_the_block_runs_once_a_step_for_all_tangents():
    calls = []

    def step(x, contexts):
        calls.append(len(x))
        return torch.tanh(x)

    lyapunov_spectrum(LoopMap(step, (20,)), starts(3, 20), n_exponents=8, n_steps=50)
    assert calls == [3] * 50


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_formats_give_the_exponents_of_a_contraction(dtype, device):
    own = torch.tensor([0.9, 0.5, 0.25, 0.125], dtype=dtype, device=device)
    f = LoopMap(lambda x, c: own * x + 1, (4,), dtype=dtype, device=device)
    s = lyapunov_spectrum(f, starts(3, 4), n_exponents=2)
    exact = own.double().log().cpu().numpy()[:2]
    np.testing.assert_allclose(s.exponents, np.tile(exact, (3, 1)), atol=3e-6 if dtype == torch.float32 else 0.05)


def test_each_start_runs_in_its_context():
    rates = double([0.9, 0.5])
    f = LoopMap(lambda x, c: rates[c][:, None, None] * x, (3, 2), n_contexts=2)
    s = lyapunov_spectrum(f, torch.ones(4, 3, 2, requires_grad=True), n_exponents=1)
    np.testing.assert_allclose(s.exponents[:, 0], np.log([0.9, 0.5, 0.9, 0.5]), atol=1e-9)
    s = lyapunov_spectrum(f, torch.ones(2, 3, 2), n_exponents=1, contexts=torch.tensor([1, 1]))
    np.testing.assert_allclose(s.exponents[:, 0], np.log([0.5, 0.5]), atol=1e-9)


# directions that vanish, orbits that leave, orbits that are too short ------------------------------------------------

def test_the_radial_direction_of_a_normalised_state_has_the_exponent_minus_infinity():
    weights, _ = network(8, 1.0, seed=4)
    f = LoopMap(lambda x, c: torch.nn.functional.rms_norm(x + 0.5 * torch.tanh(x @ weights.T) + 0.3, (8,)), (8,))
    s = lyapunov_spectrum(f, starts(3, 8), n_exponents=8)
    assert (s.measurement["n_collapsed"] == 1).all()
    assert np.isneginf(s.exponents[:, 7]).all()
    assert np.isfinite(s.exponents[:, :7]).all()
    assert np.isneginf(s.measurement["sum"]).all()
    seven = lyapunov_spectrum(f, starts(3, 8), n_exponents=7)
    assert (seven.measurement["n_collapsed"] == 0).all()
    np.testing.assert_allclose(seven.measurement["sum"], s.exponents[:, :7].sum(1), atol=1e-3)


def test_a_superstable_fixed_point_has_minus_infinity_on_both_paths():
    begin = double([[0.3], [0.5], [0.71]])
    for s in (lyapunov_spectrum(logistic_map(2.0), begin),
              lyapunov_spectrum(lambda x: (2 * x[0] * (1 - x[0]),), begin, jacobian=lambda x: ((2 - 4 * x[0],),))):
        assert np.isneginf(s.exponents).all()
        assert np.isneginf(s.low).all()
        assert (s.measurement["n_collapsed"] == 1).all()
        assert s.measurement.found.all()


def test_a_rank_of_two_leaves_two_exponents():
    a = double([[0.9, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    s = lyapunov_spectrum(LoopMap(lambda x, c: x @ a, (4,)), starts(2, 4))
    np.testing.assert_allclose(s.exponents[:, :2], np.tile(np.log([0.9, 0.5]), (2, 1)), atol=1e-9)
    assert np.isneginf(s.exponents[:, 2:]).all()
    assert s.measurement["n_collapsed"].tolist() == [2, 2]


@pytest.mark.parametrize("device", DEVICES)
def test_an_orbit_that_leaves_the_finite_numbers_says_so_and_leaves_the_others_alone(device):
    f = henon_map(device)
    begin = double([[0.1, 0.1], [4.0, 0.5], [0.2, 0.0], [math.nan, 0.0]])
    s = lyapunov_spectrum(f, begin, discard=0)
    assert s.measurement.outcomes.tolist() == [Outcome.FOUND, Outcome.NOT_FINITE, Outcome.FOUND, Outcome.NOT_FINITE]
    assert np.isnan(s.exponents[[1, 3]]).all()
    for name, values in s.measurement.variables.items():
        assert (values[[1, 3]] == "").all() if name == "horizon" else np.isnan(values[[1, 3]]).all(), name
    np.testing.assert_allclose(s.exponents[0], lyapunov_spectrum(f, begin[:1], discard=0).exponents[0], atol=1e-9)
    compiled = lyapunov_spectrum(henon, begin, jacobian=henon_jacobian)
    assert compiled.measurement.outcomes.tolist() == s.measurement.outcomes.tolist()


@pytest.mark.parametrize(("n_steps", "discard"), [(15, None), (1, 0), (128, 125)])
def test_too_few_steps_are_no_answer(n_steps, discard):
    s = lyapunov_spectrum(henon_map(), starts(2, 2, size=0.05), n_steps=n_steps, discard=discard)
    assert set(s.measurement.outcomes) == {Outcome.TOO_SHORT}
    assert np.isnan(s.exponents).all()


def test_over_orbits_needs_two():
    s = lyapunov_spectrum(henon_map(), starts(1, 2, size=0.05))
    with pytest.raises(ValueError, match="at least two that were answered; got 1"):
        s.over_orbits()


@pytest.mark.parametrize(("change", "words"), [
    ({"n_steps": 0}, "n_steps must be a whole number"), ({"n_exponents": 3}, "at most the dimensions of a state, 2"),
    ({"n_exponents": 0}, "n_exponents must be a whole number"), ({"discard": 128}, "discard must be less than n_steps"),
    ({"discard": -1}, "discard must be a whole number"), ({"tolerance": 0}, "tolerance must be a positive number"),
    ({"confidence_level": 1}, "confidence_level must be between 0 and 1"),
    ({"jacobian": henon_jacobian}, "a LoopMap has its own Jacobian"),
])
def test_settings_that_make_no_sense_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        lyapunov_spectrum(henon_map(), starts(2, 2), **change)


@pytest.mark.parametrize(("step", "jacobian", "words"), [
    (henon, lambda x: ((-2.8 * x[0], 1.0),), "jacobian must give 2 rows of 2 numbers for a state of 2; got 1 x 2"),
    (henon, lambda x: ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0)), "for a state of 2; got 2 x 3"),
    (henon, lambda x: np.array([1.0, 2.0]), "for a state of 2; got 2. Give"),
    (henon, lambda x: 1.0, "got a single number"),
    (numba.njit(lambda x: (x[0], x[1], 0.0)), henon_jacobian, "the function must give 2 numbers for a state of 2; got"),
    (lambda x: (float(object() is x[0]), 0.0), henon_jacobian, "Numba cannot compile the function or its jacobian=: "),
])
def test_a_compiled_map_of_the_wrong_size_or_kind_is_refused_in_words(step, jacobian, words):
    with pytest.raises(ValueError, match=words):
        lyapunov_spectrum(step, [[0.1, 0.1]], jacobian=jacobian)


def test_a_jacobian_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="jacobian must be a function of one state; got list"):
        lyapunov_spectrum(henon, [[0.1, 0.1]], jacobian=[1.0])
    with pytest.raises(TypeError, match="loop must be a LoopMap; got list"):
        lyapunov_spectrum([1.0], [[0.1, 0.1]], jacobian=henon_jacobian)


def test_a_compiled_map_may_be_undefined_for_python_at_its_first_state():
    s = lyapunov_spectrum(lambda x: (0.5 / x[0],), [[0.0], [0.7]], jacobian=lambda x: ((-0.5 / x[0] ** 2,),))
    assert s.measurement.outcomes.tolist() == [Outcome.NOT_FINITE, Outcome.FOUND]


def test_a_function_needs_its_jacobian_a_state_each_and_no_contexts():
    with pytest.raises(ValueError, match="needs jacobian="):
        lyapunov_spectrum(henon, [[0.1, 0.1]])
    with pytest.raises(ValueError, match=r"starts must have shape \(n, dim\)"):
        lyapunov_spectrum(henon, [0.1, 0.1], jacobian=henon_jacobian)
    with pytest.raises(ValueError, match="9 exponents of a compiled map in 9 dimensions are too many"):
        lyapunov_spectrum(henon, np.zeros((1, 9)), jacobian=henon_jacobian, n_exponents=9)
    with pytest.raises(ValueError, match="at least one state"):
        lyapunov_spectrum(henon, np.zeros((0, 2)), jacobian=henon_jacobian)
    with pytest.raises(ValueError, match="no contexts"):
        lyapunov_spectrum(henon, [[0.1, 0.1]], jacobian=henon_jacobian, contexts=[0])
