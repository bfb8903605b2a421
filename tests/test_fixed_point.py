"""Fixed points of live maps: known ones are all found, and nothing that merely stands still passes for one."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import root

from dynloop import Outcome
from dynloop.maps.fixed_point import METHODS, find_fixed_points
from dynloop.maps.fixed_point_search import Search, solve
from dynloop.maps.loop_map import LoopMap
from dynloop.models import nano

# the first forward-mode derivative of a process loads torch's own scripts
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


def scalar(function, **options):
    return LoopMap(lambda x, contexts: function(x), (1,), **options)


def column(*numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype)[:, None]


def affine(rho, dim=48, seed=0, device="cpu", symmetric=False):
    """x -> A x + b with spectral radius rho, and its only fixed point."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(dim, dim))
    a = a + a.T if symmetric else a
    a *= rho / np.abs(np.linalg.eigvals(a)).max()
    b = rng.normal(size=dim)
    weight, bias = torch.as_tensor(a, device=device), torch.as_tensor(b, device=device)
    return LoopMap(lambda x, contexts: x @ weight.T + bias, (dim,), device=device), np.linalg.solve(np.eye(dim) - a, b)


def network(weight, bias):
    w, b = torch.as_tensor(weight), torch.as_tensor(bias)
    return LoopMap(lambda x, contexts: torch.tanh(x @ w.T + b), (len(bias),))


def memories(n_points, dim, seed):
    """A tanh network that has the returned points, and their opposites, as fixed points: W p = artanh p."""
    rng = np.random.default_rng(seed)
    points = np.tanh(1.5) * np.sign(rng.normal(size=(n_points, dim))) * rng.uniform(0.97, 1.0, size=(n_points, dim))
    weight = np.arctanh(points).T @ np.linalg.pinv(points).T
    return weight, points


def all_roots(weight, bias, n=400):
    """Fixed points of tanh(W x + b) by brute force: Powell's hybrid method from many starts."""
    rng, found = np.random.default_rng(1), []
    for start in rng.uniform(-1, 1, size=(n, len(bias))):
        at = root(lambda x: np.tanh(weight @ x + bias) - x, start, tol=1e-13,
                  jac=lambda x: (1 - np.tanh(weight @ x + bias) ** 2)[:, None] * weight - np.eye(len(bias))).x
        if np.linalg.norm(np.tanh(weight @ at + bias) - at) < 1e-11 and all(np.linalg.norm(p - at) > 1e-6
                                                                            for p in found):
            found.append(at)
    return np.array(found)


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def residuals(f, states):
    return torch.linalg.vector_norm((f(states) - states).flatten(1), dim=1).cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
def test_the_point_of_an_affine_contraction_is_found_from_64_starts(method, device):
    f, truth = affine(0.9, device=device)
    found = find_fixed_points(f, normal(64, 48), method=method)
    assert found.n_points == 1
    assert found.counts.tolist() == [64]
    assert found.measurement.found.all()
    assert np.linalg.norm(found.points[0].cpu().numpy() - truth) < 1e-11
    away = np.linalg.norm(found.states.cpu().numpy() - truth, axis=1)
    assert (away < 3 * found.measurement["distance"] + 1e-13).all()
    assert (found.measurement["residual"] <= 1e-10).all()
    assert set(found.measurement["point"]) == {0.0}


@pytest.mark.parametrize("method", METHODS)
def test_residuals_are_those_of_the_returned_states(method):
    f = network(*(1.2 * np.random.default_rng(0).normal(size=s) / 5 for s in ((25, 25), 25)))
    found = find_fixed_points(f, normal(16, 25), method=method, max_evaluations=30)
    np.testing.assert_allclose(found.measurement["residual"], residuals(f, found.states), rtol=1e-3, atol=1e-15)
    np.testing.assert_allclose(found.residuals, residuals(f, found.points), rtol=1e-2, atol=1e-15)
    norms = torch.linalg.vector_norm(found.states, dim=1).numpy()
    np.testing.assert_allclose(found.measurement["relative_residual"], found.measurement["residual"] / norms)


@pytest.mark.parametrize("method", METHODS)
def test_no_evaluated_state_had_a_lower_residual_than_the_one_returned(method, monkeypatch):
    lowest, image = [], Search.image

    def watched(search, states, contexts):
        following = image(search, states, contexts)
        lowest.append(float(torch.linalg.vector_norm(following - states)))
        return following

    monkeypatch.setattr(Search, "image", watched)
    f = network(2.0 * np.random.default_rng(3).normal(size=(6, 6)) / math.sqrt(6), np.full(6, 0.1))
    found = find_fixed_points(f, normal(1, 6), method=method, max_evaluations=60, tolerance=1e-14)
    assert found.measurement["residual"][0] <= min(lowest) * (1 + 1e-9) + 1e-15


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", METHODS)
def test_planted_points_of_a_tanh_network_are_all_found_and_no_others_invented(method, seed):
    weight, points = memories(4, 60, seed)
    f = network(weight, np.zeros(60))
    known = np.concatenate([points, -points])
    near = known[np.arange(64) % 8] + 0.05 * np.random.default_rng(seed).normal(size=(64, 60))
    found = find_fixed_points(f, torch.as_tensor(near), method=method)
    assert (residuals(f, found.points) <= 1e-10).all()
    reached = found.points.numpy()
    apart = np.linalg.norm(known[:, None] - reached, axis=-1)
    for p, multiplier in enumerate(np.abs(np.linalg.eigvals((1 - known[:, :, None] ** 2) * weight)).max(-1)):
        assert apart[p].min() < 1e-9 or multiplier > 1
    for own in reached:  # an independent solver stays where we are
        again = root(lambda x: np.tanh(weight @ x) - x, own, tol=1e-14).x
        assert np.linalg.norm(again - own) < 1e-7


@pytest.mark.parametrize(("dim", "seed"), [(1, 0), (2, 0), (2, 1), (3, 3), (5, 0), (5, 3)])
def test_newton_finds_every_point_that_brute_force_finds_stable_or_not(dim, seed):
    rng = np.random.default_rng(seed)
    weight, bias = 2.5 * rng.normal(size=(dim, dim)) / math.sqrt(dim) + 1.5 * np.eye(dim), 0.1 * rng.normal(size=dim)
    truth = all_roots(weight, bias)
    found = find_fixed_points(network(weight, bias), torch.as_tensor(rng.uniform(-1, 1, size=(64, dim))),
                              method="newton_krylov")
    assert found.n_points == len(truth)
    assert np.linalg.norm(truth[:, None] - found.points.numpy(), axis=-1).min(0).max() < 1e-10
    assert found.counts.sum() == found.measurement.found.sum()


def test_an_unstable_point_is_found_by_newton_and_left_by_iteration():
    f, starts = scalar(lambda x: 3.2 * x * (1 - x)), column(0.6, 0.65, 0.7)
    assert find_fixed_points(f, starts, method="newton_krylov").points.item() == pytest.approx(1 - 1 / 3.2, abs=1e-14)
    assert find_fixed_points(f, starts, method="iteration").measurement.counts() == {Outcome.NOT_CONVERGED: 3}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("rho", [0.8, 0.9, 0.98, 0.995])
def test_anderson_takes_fewer_evaluations_than_iteration_from_a_radius_of_08_on(rho, symmetric):
    f, _ = affine(rho, symmetric=symmetric)
    starts = normal(8, 48)
    fast, plain = (find_fixed_points(f, starts, method=m, max_evaluations=20_000) for m in ("anderson", "iteration"))
    assert fast.measurement.found.all()
    assert (fast.measurement["evaluations"] < plain.measurement["evaluations"]).all()


def test_anderson_is_not_much_slower_where_it_cannot_help():
    upper = np.triu(0.3 * np.random.default_rng(0).normal(size=(48, 48)), 1) + np.diag(np.linspace(0.25, 0.5, 48))
    weight = torch.as_tensor(upper)
    f = LoopMap(lambda x, contexts: x @ weight.T + 1, (48,))
    fast, plain = (find_fixed_points(f, normal(8, 48), method=m).measurement for m in ("anderson", "iteration"))
    assert fast.found.all()
    assert (fast["evaluations"] <= 2.5 * plain["evaluations"]).all()


def test_evaluations_are_the_states_that_the_block_saw():
    seen = [0]

    def step(x, contexts):
        seen[0] += len(x)
        return torch.tanh(x @ weight.T)

    weight = torch.as_tensor(0.9 * np.random.default_rng(0).normal(size=(20, 20)) / math.sqrt(20))
    for method in ("iteration", "anderson"):
        seen[0] = 0
        found = find_fixed_points(LoopMap(step, (20,)), normal(16, 20, scale=torch.logspace(-8, 0, 16)[:, None]),
                                  method=method)
        total = found.measurement["evaluations"].sum()
        assert seen[0] <= total <= seen[0] + 2 * found.n_points  # a Jacobian-vector product counts twice
        assert len(set(found.measurement["evaluations"])) > 4  # done rows left the batch


def test_an_answer_is_the_same_alone_and_in_a_batch():
    rng = np.random.default_rng(5)
    f = network(1.8 * rng.normal(size=(12, 12)) / math.sqrt(12) + np.eye(12), 0.2 * rng.normal(size=12))
    starts = normal(10, 12, seed=1)
    for method in METHODS:
        together = find_fixed_points(f, starts, method=method, max_evaluations=300)
        alone = [find_fixed_points(f, s[None], method=method, max_evaluations=300) for s in starts[:4]]
        assert [o.measurement.outcomes[0] for o in alone] == list(together.measurement.outcomes[:4])
        for i, one in enumerate(alone):
            torch.testing.assert_close(one.states[0], together.states[i], rtol=0, atol=1e-8)


DRIFTS = {
    "logarithmic": lambda x: x + 1 / (1 + x.abs()),
    "exponential": lambda x: x + torch.exp(-x),
    "gaussian": lambda x: x + torch.exp(-x * x),
    "constant and tiny": lambda x: x + 1e-12,
    "constant and at the rounding": lambda x: x + 3e-16,
    "ghost of a saddle-node": lambda x: x + x * x + 1e-12,
    "ghost, narrower": lambda x: x + x * x + 1e-14,
    "wide ghost": lambda x: x + x * x + 1e-9,
    "identity": lambda x: x.clone(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", DRIFTS)
def test_drifts_ghosts_and_stillness_are_no_fixed_points(name, method):
    found = find_fixed_points(scalar(DRIFTS[name]), column(-1.0, -1e-5, 1e-6, 0.5, 1.0, 7.0), method=method)
    assert found.n_points == 0
    assert not found.measurement.found.any()


@pytest.mark.parametrize("method", METHODS)
def test_a_slow_drift_behind_a_fast_contraction_is_no_fixed_point(method):
    def step(x, contexts):
        return torch.stack((0.5 * x[:, 0] + 1, x[:, 1] + 1e-12), 1)

    found = find_fixed_points(LoopMap(step, (2,)), normal(8, 2), method=method)
    assert set(found.measurement.outcomes) <= {Outcome.NOT_FOUND, Outcome.AT_PRECISION_FLOOR, Outcome.NOT_CONVERGED}


def test_a_marginal_point_is_found_by_its_distance_and_not_by_its_residual():
    f = scalar(lambda x: x - x**3)  # steps of x^3, distance x
    found = find_fixed_points(f, column(0.5, 4e-4), method="iteration", max_evaluations=300)
    m = found.measurement
    assert m["residual"][1] <= 1e-10  # small from the start
    known = m.found
    assert (np.abs(found.states[known, 0].numpy()) < 1e-4).all()
    near_one = scalar(lambda x: (1 - 1e-6) * x + 1e-6)  # rest at 1; residual 1e-10 is a distance of 1e-4
    found = find_fixed_points(near_one, column(1 - 9e-5, 1.0), method="iteration")
    assert abs(found.points.item() - 1) < 1e-8
    assert (np.abs(found.states[found.measurement.found, 0].numpy() - 1) <= 1e-5).all()


def test_cycles_and_chaos_do_not_converge():
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)

    def circle(x, contexts):  # radius 1 is stable, every point of it moves on
        return 1.5 * x @ turn / (0.5 + torch.linalg.vector_norm(x, dim=1, keepdim=True))

    found = find_fixed_points(LoopMap(circle, (2,)), normal(6, 2), method="iteration")
    assert found.measurement.counts() == {Outcome.NOT_CONVERGED: 6}
    for r in (3.3, 4.0):
        m = find_fixed_points(scalar(lambda x, r=r: r * x * (1 - x)), column(0.21, 0.37, 0.83), method="iteration")
        assert m.measurement.counts() == {Outcome.NOT_CONVERGED: 3}


def test_a_residual_at_the_rounding_floor_is_no_convergence():
    weight, bias = torch.full((64, 64), 0.9 / 64), torch.linspace(0, 10, 64)
    f = LoopMap(lambda x, contexts: x @ weight.T + bias, (64,), dtype=torch.float32)
    starts = normal(4, 64).float()
    for method in METHODS:
        floor = find_fixed_points(f, starts, method=method, tolerance=1e-9)
        assert floor.measurement.counts() == {Outcome.AT_PRECISION_FLOOR: 4}
        assert floor.n_points == 0
        assert (floor.measurement["evaluations"] < 500).all()
        assert find_fixed_points(f, starts, method=method, tolerance=1e-3).measurement.found.all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_that_its_number_format_holds_still_is_no_fixed_point(dtype):
    f = scalar(lambda x: x + 1e-9, dtype=dtype)
    found = find_fixed_points(f, column(1.0, 3.0, dtype=dtype), method="iteration", tolerance=0.05)
    assert found.measurement.counts() == {Outcome.AT_PRECISION_FLOOR: 2}


@pytest.mark.parametrize("method", METHODS)
def test_a_block_that_computes_in_less_precision_than_its_states_is_certified_by_the_exact_jacobian(method):
    weight, bias = torch.linspace(-0.8, 0.8, 256).view(16, 16) / 8, torch.linspace(0, 1, 16)
    f = LoopMap(lambda x, contexts: (x.float() @ weight.T + bias).double(), (16,))
    found = find_fixed_points(f, normal(4, 16), method=method, tolerance=1e-5)
    assert found.counts.tolist() == [4]
    truth = torch.linalg.solve(torch.eye(16) - weight, bias)
    torch.testing.assert_close(found.points[0].float(), truth, rtol=1e-5, atol=1e-5)


def test_what_overflows_is_not_finite():
    f = scalar(lambda x: x * x + 2)
    found = find_fixed_points(f, column(1.0, 2.0), method="iteration")
    assert found.measurement.counts() == {Outcome.NOT_FINITE: 2}
    assert np.isnan(found.measurement["point"]).all()
    assert np.isnan(found.measurement["distance"]).all()
    start = torch.tensor([[math.nan], [0.5]], dtype=torch.float64)
    for method in METHODS:
        m = find_fixed_points(scalar(lambda x: 0.5 * x), start, method=method).measurement
        assert list(m.outcomes) == [Outcome.NOT_FINITE, Outcome.FOUND]


def test_points_of_different_contexts_are_kept_apart():
    shift = torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    f = LoopMap(lambda x, contexts: 0.5 * x + shift[contexts][:, None], (2,), n_contexts=3)
    found = find_fixed_points(f, normal(6, 2))
    assert found.contexts.tolist() == [0, 1, 2]
    assert found.counts.tolist() == [2, 2, 2]
    np.testing.assert_allclose(found.points.numpy(), [[2, 2], [2, 2], [4, 4]])
    assert found.measurement["point"].tolist() == [0, 1, 2, 0, 1, 2]
    chosen = find_fixed_points(f, normal(4, 2), contexts=torch.tensor([2, 2, 0, 2]))
    assert chosen.contexts.tolist() == [2, 0]
    assert chosen.counts.tolist() == [3, 1]


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_merging_follows_the_scale_of_the_states(scale):
    f = scalar(lambda x: scale * torch.tanh(2 * x / scale))
    starts = scale * column(-2.0, -1.0, 1.0, 1.5)
    found = find_fixed_points(f, starts, tolerance=1e-12 * scale)
    assert found.counts.tolist() == [2, 2]
    assert found.points[1].item() == pytest.approx(0.9575040240772687 * scale)
    assert find_fixed_points(f, starts, tolerance=1e-12 * scale, merge_distance=1 - 1e-9).n_points == 2


def test_the_merge_distance_decides_what_counts_as_one():
    f = scalar(lambda x: x - 0.5 * (x - 1) * (x - 1.001) * (x - 1.002) * 1e5)  # 1 and 1.002 attract
    starts = column(0.9999, 1.0021)
    assert find_fixed_points(f, starts, method="iteration").n_points == 2
    assert find_fixed_points(f, starts, method="iteration", merge_distance=0.01).counts.tolist() == [2]


def test_a_point_at_zero_is_one_point():
    f = LoopMap(lambda x, contexts: 0.7 * torch.sin(x), (5,))
    for method in METHODS:
        assert find_fixed_points(f, normal(32, 5), method=method).counts.tolist() == [32]


@given(st.integers(1, 6), st.integers(0, 10_000), st.floats(0.05, 1.5))
@settings(max_examples=40, deadline=None)
def test_the_linear_solve_agrees_with_a_dense_one(dim, seed, scale):
    rng = np.random.default_rng(seed)
    a, b = scale * rng.normal(size=(dim, dim)), rng.normal(size=(3, dim))
    weight = torch.as_tensor(a)
    f = LoopMap(lambda x, contexts: x @ weight.T, (dim,))
    search = Search(f, torch.zeros(3, dtype=torch.int64), 1e-10, 2.2e-16, torch.zeros(3, dim, dtype=torch.float64))
    step, left, least = solve(search, torch.zeros(3, dim, dtype=torch.float64), torch.as_tensor(b), torch.arange(3),
                               torch.full((3,), 1e-13), torch.full((3,), 40))
    matrix = np.eye(dim) - a
    singular = np.linalg.svd(matrix, compute_uv=False)
    if singular[-1] > 1e-3 * singular[0]:
        np.testing.assert_allclose(step.numpy(), np.linalg.solve(matrix, b.T).T, atol=1e-8 * np.abs(b).max())
        assert (left < 1e-10).all()
    assert (least >= min(1.0, singular[-1]) * (1 - 1e-8)).all()


@pytest.mark.parametrize("name", ["nano-settles", "nano-random-start", "nano-drifts"])
def test_shipped_models_settle_or_drift(name):
    model = nano(name)
    block = model.module.double().requires_grad_(False)
    tokens = torch.tensor([model.encode("for i in"), model.encode("x = [1, ")])
    context = block.embed(tokens)

    def step(x, contexts):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return model.step(x, dataclasses.replace(context, embedded=context.embedded[contexts]))

    f = LoopMap(step, (tokens.shape[1], model.width), n_contexts=2)
    found = find_fixed_points(f, normal(4, *f.state_shape), max_evaluations=60)
    if name == "nano-drifts":
        assert found.n_points == 0
        return
    assert found.counts.tolist() == [2, 2]
    assert (residuals(f, found.states) <= 1e-10).all()
    run = torch.as_tensor(found.points)
    for _ in range(3):  # the loop itself stays there
        run = f(run)
    torch.testing.assert_close(run, found.points, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("change", "words"), [
    ({"map": 3}, "LoopMap"),
    ({"method": "broyden"}, "anderson, iteration, newton_krylov"),
    ({"starts": torch.zeros(2, 3)}, "starts must have shape"),
    ({"starts": torch.zeros(0, 1)}, "at least one start"),
    ({"tolerance": 0.0}, "tolerance must be a positive"),
    ({"merge_distance": 2.0}, "between 0 and 1"),
    ({"max_evaluations": 0}, "at least 1"),
    ({"memory": 0.5}, "memory must be"),
    ({"contexts": torch.tensor([0, 1, 2])}, "one whole number from 0 to 0"),
    ({"contexts": torch.tensor([0.0, 0.0])}, "one whole number"),
    ({"map": scalar(torch.tanh, dtype=torch.bfloat16)}, "tolerance has a default"),
])
def test_bad_settings_are_refused_with_what_to_do(change, words):
    with pytest.raises(ValueError, match=words):
        find_fixed_points(**{"map": scalar(torch.tanh), "starts": column(0.1, 0.2), **change})


@pytest.mark.parametrize("method", ["anderson", "iteration", "newton_krylov"])
@pytest.mark.parametrize("name", ["zero", "relu", "tiny"])
def test_the_origin_is_one_point_however_many_starts_reach_it(name, method):
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 4
    step = {"zero": lambda x, contexts: 0 * x, "tiny": lambda x, contexts: 1e-20 * x,
            "relu": lambda x, contexts: torch.relu(x @ weight.T - 0.5)}[name]
    starts = torch.randn(32, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = find_fixed_points(LoopMap(step, (6,)), starts, method=method)
    assert found.measurement.found.all()
    assert len(found.points) == 1
    assert float(found.points.abs().max()) < 1e-9


def test_a_block_that_writes_to_its_input_is_the_same_map():
    def step(x, contexts):
        x *= 0.5
        x += 1
        return x

    starts = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = starts.clone()
    found = find_fixed_points(LoopMap(step, (3,)), starts)
    assert torch.equal(starts, kept)
    assert len(found.points) == 1
    torch.testing.assert_close(found.points[0], torch.full((3,), 2.0, dtype=torch.float64))
