"""Spectral radius, operator norm, rms gain, non-normality: exact on the traps, and products against dense matrices."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome
from dynloop.maps.jacobian_spectrum import jacobian_spectrum
from dynloop.maps.krylov import by_modulus, leading_eigenvalues
from dynloop.maps.loop_map import LoopMap
from dynloop.models import nano

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
devices = pytest.mark.parametrize("device", ["cpu", cuda])
NUMBERS = ("spectral_radius", "operator_norm", "rms_gain", "transient_growth", "transient_step")


def linear(matrix, *, dtype=torch.float64, device="cpu"):
    matrix = torch.as_tensor(matrix, dtype=dtype, device=device)
    return LoopMap(lambda x, contexts: x @ matrix.T, (len(matrix),), dtype=dtype, device=device, name="linear")


def at_zero(f, n=1):
    return torch.zeros(n, *f.state_shape, dtype=f.dtype)


def turned(matrix, rng):
    """The same matrix in a random orthonormal frame."""
    frame = np.linalg.qr(rng.normal(size=matrix.shape))[0]
    return frame @ matrix @ frame.T


def turn(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def dense(matrix):
    values = np.linalg.eigvals(matrix)
    return values[by_modulus(values)]


def found(m, row=0):
    return m["eigenvalues_real"][row] + 1j * m["eigenvalues_imag"][row]


def oracle(matrix, n_powers=32):
    """Every number from its definition."""
    growth = [np.linalg.norm(np.linalg.matrix_power(matrix, k), 2) for k in range(1, n_powers + 1)]
    square = np.linalg.norm(matrix) ** 2
    return {"spectral_radius": np.abs(np.linalg.eigvals(matrix)).max(), "operator_norm": np.linalg.norm(matrix, 2),
            "rms_gain": math.sqrt(square / len(matrix)), "transient_growth": max(growth),
            "transient_step": 1 + int(np.argmax(growth)),
            "departure": math.sqrt(max(square - (np.abs(np.linalg.eigvals(matrix)) ** 2).sum(), 0))}


KINDS = {
    "symmetric": lambda rng, d: turned(np.diag(np.linspace(0.95, -0.5, d)), rng),
    "a dominant pair": lambda rng, d: turned(scipy.linalg.block_diag(0.95 * turn(0.7), np.diag(
        rng.uniform(-0.7, 0.7, d - 2))), rng),
    "a dominant pair of period 6": lambda rng, d: turned(scipy.linalg.block_diag(0.83 * turn(math.pi / 3), np.diag(
        rng.uniform(-0.7, 0.7, d - 2))), rng),
    "plus and minus": lambda rng, d: turned(np.diag([0.95, -0.95, *rng.uniform(-0.7, 0.7, d - 2)]), rng),
    "non-normal": lambda rng, d: turned(np.diag([0.95, 0.9, 0.85, 0.8, *rng.uniform(-0.6, 0.6, d - 4)])
                                        + np.triu(rng.normal(size=(d, d)), 2) * 1.5 / d, rng),
    "Ginibre": lambda rng, d: 0.8 * rng.normal(size=(d, d)) / math.sqrt(d),
    "one unstable mode": lambda rng, d: turned(np.diag([1.5, *[0.3] * (d - 1)]), rng),
    "a triple eigenvalue": lambda rng, d: turned(np.diag([0.9, 0.9, 0.9, 0.5, *rng.uniform(-0.4, 0.4, d - 4)]), rng),
    "a double pair": lambda rng, d: turned(scipy.linalg.block_diag(0.9 * turn(1.0), 0.9 * turn(1.0), np.diag(
        rng.uniform(-0.4, 0.4, d - 4))), rng),
    "rank one": lambda rng, d: np.outer(rng.normal(size=d), rng.normal(size=d)) / d,
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def test_the_sheared_plane_grows_before_it_shrinks():
    m = jacobian_spectrum(f := linear([[0.8, 20.0], [0.0, 0.8]]), at_zero(f))
    assert m["spectral_radius"][0] == 0.8
    np.testing.assert_allclose(m["operator_norm"], 20.0319, atol=1e-4)
    np.testing.assert_allclose(m["transient_growth"], 40.96, rtol=1e-3)
    assert m["transient_step"][0] == 4
    np.testing.assert_allclose([m["departure_low"][0], m["departure_high"][0]], 20, rtol=1e-14)


def test_one_unstable_mode_among_400_is_seen_by_the_radius_and_not_by_the_rms_gain(rng):
    m = jacobian_spectrum(f := linear(turned(np.diag([1.5, *[0.3] * 399]), rng)), at_zero(f))
    np.testing.assert_allclose([m["spectral_radius"][0], m["operator_norm"][0]], 1.5, rtol=1e-10)
    exact = math.sqrt((1.5**2 + 399 * 0.09) / 400)  # .312
    assert abs(m["rms_gain"][0] - exact) < max(4 * m["rms_gain_error"][0], 1e-9)


def test_a_sheared_plane_within_400_dimensions_is_found_by_products(rng):
    matrix = 0.3 * rng.normal(size=(400, 400)) / 20
    matrix[:, :2] = 0
    matrix[:2, :2] = [[0.8, 20.0], [0.0, 0.8]]
    m = jacobian_spectrum(f := linear(turned(matrix, rng)), at_zero(f), n_eigenvalues=2)
    expected = oracle(matrix)
    np.testing.assert_allclose(found(m), 0.8, atol=1e-6)  # a double eigenvalue with one eigenvector
    np.testing.assert_allclose(m["operator_norm"], expected["operator_norm"], rtol=1e-9)
    np.testing.assert_allclose(m["transient_growth"], expected["transient_growth"], rtol=1e-4)
    assert m["transient_step"][0] == expected["transient_step"]


@each_kind
def test_all_numbers_are_those_of_the_dense_matrix(kind, rng):
    matrix = KINDS[kind](rng, 60)
    m = jacobian_spectrum(f := linear(matrix), at_zero(f), n_eigenvalues=60)
    expected = oracle(matrix)
    for name in NUMBERS:
        np.testing.assert_allclose(m[name], expected[name], rtol=1e-9, err_msg=name)
    np.testing.assert_allclose(m["departure_low"], expected["departure"], atol=1e-6)
    np.testing.assert_array_equal(m["departure_low"], m["departure_high"])
    np.testing.assert_allclose(found(m), dense(matrix), atol=1e-9)
    assert m["n_products"][0] == 60


def upper(values):
    """In order, each with its conjugate's upper half: of two equal pairs, either half may come first."""
    return np.sort_complex(values.real + 1j * np.abs(values.imag))


@devices
@each_kind
def test_products_give_what_the_dense_matrix_gives(kind, rng, device):
    matrix = KINDS[kind](rng, 256)
    m = jacobian_spectrum(f := linear(matrix, device=device), at_zero(f), dense_up_to=0, n_eigenvalues=4)
    expected = oracle(matrix)
    assert m.found.all()
    scale = expected["spectral_radius"]
    np.testing.assert_allclose(np.abs(found(m)), np.abs(dense(matrix)[:4]), atol=1e-6 * scale)
    np.testing.assert_allclose(upper(found(m)[:2]), upper(dense(matrix)[:2]), atol=1e-6 * scale)
    np.testing.assert_allclose(m["operator_norm"], expected["operator_norm"], rtol=1e-8)
    np.testing.assert_allclose(m["transient_growth"], expected["transient_growth"], rtol=1e-4)
    assert abs(m["rms_gain"][0] - expected["rms_gain"]) <= max(4 * m["rms_gain_error"][0], 1e-9)
    slack = 8 * 256 * m["rms_gain_error"][0] * m["rms_gain"][0]  # of the squares, from the probes
    assert m["departure_low"][0] ** 2 - slack <= expected["departure"] ** 2 + 1e-6
    assert m["departure_high"][0] ** 2 + slack >= expected["departure"] ** 2 - 1e-6
    assert (m["residuals"] <= 1e-12).all()


@given(seed=st.integers(0, 10_000), dim=st.integers(42, 70), k=st.integers(1, 6), pairs=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_leading_eigenvalues_are_those_of_any_well_conditioned_matrix(seed, dim, k, pairs):
    rng = np.random.default_rng(seed)
    blocks = [rng.uniform(0.1, 1) * turn(rng.uniform(0, math.pi)) for _ in range(pairs)]
    blocks.append(np.diag(rng.uniform(-1, 1, dim - 2 * pairs)))
    frame = np.eye(dim) + 0.3 * rng.normal(size=(dim, dim)) / math.sqrt(dim)
    matrix = frame @ scipy.linalg.block_diag(*blocks) @ np.linalg.inv(frame)
    m = jacobian_spectrum(f := linear(matrix), at_zero(f), n_eigenvalues=k, dense_up_to=0, n_powers=1)
    np.testing.assert_allclose(np.abs(found(m)), np.abs(dense(matrix)[:k]), rtol=1e-7)


def test_residuals_are_true_ones(rng):
    """Against eigenvectors of the dense matrix, with a tolerance so wide that the residual is no rounding."""
    matrix = torch.as_tensor(KINDS["Ginibre"](rng, 100))
    pairs = leading_eigenvalues(lambda rows, v: v @ matrix.T, 1, 100, k=1, tolerance=1e-2, seed=0, dtype=torch.float64,
                                device=torch.device("cpu"))
    assert pairs.converged.all()
    assert 1e-9 < pairs.residuals.max() <= 1e-2
    off = np.abs(np.linalg.eigvals(matrix.numpy()) - pairs.values[0, 0]).min()
    assert off <= 10 * pairs.residuals[0, 0]


def test_a_row_does_not_depend_on_the_rows_beside_it(rng):
    weights = torch.as_tensor(rng.normal(size=(64, 64)) / 8)
    f = LoopMap(lambda x, contexts: torch.tanh(x @ weights.T), (64,))
    states = torch.as_tensor(rng.normal(size=(5, 64)))
    together = jacobian_spectrum(f, states, dense_up_to=0)
    for i, state in enumerate(states):
        alone = jacobian_spectrum(f, state[None], dense_up_to=0)
        for name in together.variables:
            if name != "residuals":
                np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-6, atol=1e-9, err_msg=name)
        jacobian = (1 - torch.tanh(weights @ state) ** 2)[:, None] * weights
        np.testing.assert_allclose(together["spectral_radius"][i], np.abs(dense(jacobian.numpy()))[0], rtol=1e-9)


def test_contexts_belong_to_their_rows(rng):
    rates = torch.as_tensor(rng.uniform(0.2, 0.9, 3))
    f = LoopMap(lambda x, contexts: rates[contexts, None] * x, (50,), n_contexts=3)
    for dense_up_to in (0, 256):
        m = jacobian_spectrum(f, torch.zeros(4, 50), torch.tensor([2, 0, 0, 1]), dense_up_to=dense_up_to)
        np.testing.assert_allclose(m["spectral_radius"], rates[[2, 0, 0, 1]], rtol=1e-12)
        m = jacobian_spectrum(f, torch.zeros(4, 50), dense_up_to=dense_up_to)
        np.testing.assert_allclose(m["spectral_radius"], rates[[0, 1, 2, 0]], rtol=1e-12)


def test_states_may_have_any_shape(rng):
    matrix = KINDS["non-normal"](rng, 60)
    whole = torch.as_tensor(matrix)
    f = LoopMap(lambda x, contexts: (x.flatten(1) @ whole.T).reshape(x.shape), (5, 12))
    for dense_up_to in (0, 256):
        m = jacobian_spectrum(f, torch.zeros(2, 5, 12), dense_up_to=dense_up_to)
        np.testing.assert_allclose(found(m), dense(matrix)[:4], atol=1e-10)
        np.testing.assert_allclose(m["operator_norm"], np.linalg.norm(matrix, 2), rtol=1e-9)


@pytest.mark.parametrize("dense_up_to", [0, 256])
def test_a_map_that_forgets_its_state_has_radius_zero(dense_up_to):
    m = jacobian_spectrum(LoopMap(lambda x, contexts: 0 * x + 1, (50,)), torch.zeros(1, 50), dense_up_to=dense_up_to)
    assert m.found.all()
    for name in ("spectral_radius", "operator_norm", "rms_gain", "departure_low", "departure_high", "transient_growth"):
        assert m[name][0] == 0, name


def test_the_end_norm_of_a_loop_leaves_one_direction_with_eigenvalue_zero(rng):
    weights = torch.as_tensor(turned(np.diag(np.linspace(2, 1, 50)), rng))
    f = LoopMap(lambda x, contexts: torch.nn.functional.rms_norm(x @ weights.T, (50,), eps=0.0), (50,))
    x = torch.ones(1, 50, dtype=torch.float64)
    for _ in range(3000):
        x = f(x)
    values = found(jacobian_spectrum(f, x, n_eigenvalues=50))
    np.testing.assert_allclose(np.abs(values[-1]), 0, atol=1e-12)
    np.testing.assert_allclose(values[:-1].real, np.linspace(2, 1, 50)[1:] / 2, rtol=1e-6)  # power iteration, in effect


def test_float32_is_answered_to_its_precision(rng):
    matrix = KINDS["Ginibre"](rng, 100)
    for dense_up_to in (0, 256):
        m = jacobian_spectrum(f := linear(matrix, dtype=torch.float32), at_zero(f), dense_up_to=dense_up_to)
        assert m.found.all()
        np.testing.assert_allclose(np.abs(found(m)), np.abs(dense(matrix)[:4]), rtol=1e-4)


def test_what_does_not_converge_is_no_answer(rng):
    m = jacobian_spectrum(f := linear(KINDS["Ginibre"](rng, 200)), at_zero(f), dense_up_to=0, max_products=20)
    assert m.outcomes[0] is Outcome.NOT_CONVERGED
    for name, values in m.variables.items():
        assert name in ("residuals", "n_products") or np.isnan(values).all(), name
    assert 20 <= m["n_products"][0] < 100


def test_pseudo_eigenvalues_of_a_map_far_from_normal_are_refused():
    """All eigenvalues of this are .9; in floating-point products it cannot be told from a map with 1.17."""
    matrix = np.diag([0.9] * 300) + np.diag([0.3] * 299, 1)
    m = jacobian_spectrum(f := linear(matrix), at_zero(f), n_eigenvalues=1)
    assert m.outcomes[0] is Outcome.NOT_CONVERGED
    m = jacobian_spectrum(f, at_zero(f), n_eigenvalues=1, dense_up_to=300)
    np.testing.assert_allclose(m["spectral_radius"], 0.9, rtol=1e-12)


@pytest.mark.parametrize("dense_up_to", [0, 256])
def test_states_and_jacobians_that_are_not_finite_are_said_to_be_so(dense_up_to):
    f = LoopMap(lambda x, contexts: torch.sqrt(9 - x), (50,))  # steep at 9
    states = torch.zeros(3, 50)
    states[0, 3], states[1, 7] = torch.nan, 9.0
    m = jacobian_spectrum(f, states, dense_up_to=dense_up_to)
    assert m.outcomes.tolist() == [Outcome.NOT_FINITE, Outcome.NOT_FINITE, Outcome.FOUND]
    np.testing.assert_allclose(m["spectral_radius"], [np.nan, np.nan, 1 / 6])


def test_a_loop_model_gives_what_its_dense_jacobian_gives():
    f = LoopMap.of(nano("nano-settles"), [list(b"try")])
    h = f.initial_states()
    for _ in range(20):
        h = f(h)
    matrix = f.jacobian(h)[0].numpy()  # 384 x 384
    m = jacobian_spectrum(f, h)
    np.testing.assert_allclose(np.abs(found(m)), np.abs(dense(matrix)[:4]), rtol=1e-8)
    np.testing.assert_allclose(m["operator_norm"], np.linalg.norm(matrix, 2), rtol=1e-9)
    np.testing.assert_allclose(m["rms_gain"], np.linalg.norm(matrix) / math.sqrt(384), atol=4 * m["rms_gain_error"][0])
    assert m["n_products"][0] < 600


def test_labels_and_settings_are_handed_on():
    m = jacobian_spectrum(f := linear(np.eye(2)), at_zero(f, 3), labels={"prompt": [4, 5, 6]})
    assert m.labels["prompt"].tolist() == [4, 5, 6]
    assert m.settings["n_eigenvalues"] == 2
    assert m.settings["tolerance"] == 1e-12


def test_a_map_whose_backward_pass_is_cut_is_refused(rng):
    matrix = torch.as_tensor(rng.normal(size=(60, 60)))

    class Cut(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x @ matrix.T

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, w):
            return 0 * w

        @staticmethod
        def jvp(ctx, v):
            return v @ matrix.T

    f = LoopMap(lambda x, contexts: Cut.apply(x), (60,), name="cut")
    with pytest.raises(ValueError, match=r"of cut is not the adjoint .* run without gradients"):
        jacobian_spectrum(f, torch.zeros(1, 60), dense_up_to=0)


@pytest.mark.parametrize(("wrong", "words"), [
    ({"n_eigenvalues": 0}, "from 1 to the dimension, 50; got 0"), ({"n_eigenvalues": 51}, "got 51"),
    ({"n_eigenvalues": 30, "dense_up_to": 0}, "pass dense_up_to=50"), ({"n_probes": 1}, "n_probes must be"),
    ({"n_powers": 0}, "n_powers must be"), ({"tolerance": 2}, "tolerance must be"),
    ({"dense_up_to": -1}, "dense_up_to must be"), ({"max_products": 0}, "max_products must be")])
def test_settings_that_make_no_sense_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        jacobian_spectrum(f := linear(np.eye(50)), at_zero(f), **wrong)


def test_shapes_and_formats_that_do_not_fit_are_refused():
    f = linear(np.eye(3))
    with pytest.raises(ValueError, match=r"needs states \(n, 3\).*got \(3,\)"):
        jacobian_spectrum(f, torch.zeros(3))
    with pytest.raises(ValueError, match=r"one number a state, \(2,\); got \(3,\)"):
        jacobian_spectrum(f, torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))
    f = linear(np.eye(3), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"float32 or float64; linear computes in torch\.bfloat16"):
        jacobian_spectrum(f, at_zero(f))


def test_rows_that_are_all_not_finite_are_said_so():
    f = LoopMap(lambda x, contexts: x / 2, (3,))
    m = jacobian_spectrum(f, torch.full((2, 3), torch.nan))
    assert m.outcomes.tolist() == [Outcome.NOT_FINITE] * 2
