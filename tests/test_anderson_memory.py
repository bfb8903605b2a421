"""The memory of Anderson acceleration: the compiled step and its twin in plain torch, and what both promise."""

import numpy as np
import pytest
import torch

from dynloop.kernels import anderson
from dynloop.maps import anderson_memory
from dynloop.maps.anderson_memory import Memory
from dynloop.maps.fixed_point import find_fixed_points
from dynloop.maps.loop_map import LoopMap


def contraction(dim, dtype=torch.float64, seed=0, radius=0.9):
    a = torch.as_tensor(np.random.default_rng(seed).normal(size=(dim, dim)))
    a *= radius / torch.linalg.eigvals(a).abs().max()
    return lambda x: torch.tanh(x @ a.to(x).T + 0.1)


def starts(n, dim, dtype=torch.float64, seed=1):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=(n, dim))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "dim", "size"), [(1, 1, 1), (3, 2, 5), (7, 33, 1), (4, 64, 3), (2, 257, 5)])
def test_the_compiled_step_equals_plain_torch(n, dim, size, dtype):
    f = contraction(dim)
    x = starts(n, dim, dtype)
    ours, plain = Memory(x, size), Memory(x, size)
    assert ours.compiled
    plain.compiled = False
    rtol = 2e-4 if dtype == torch.float32 else 1e-9
    for step in range(2 * size + 3):
        g = f(x)
        if step > 0:  # each step from the same memory: rounding does not pile up
            ours.kept, ours.left = plain.kept.clone(), plain.left.clone()
        (y, r), (expected, sizes) = ours.step(x, g), plain.step(x, g)
        scale = float(expected.abs().max())
        torch.testing.assert_close(y, expected, rtol=0, atol=rtol * scale)
        np.testing.assert_allclose(r, sizes, rtol=1e-5)
        torch.testing.assert_close(ours.left, plain.left, rtol=0, atol=rtol * scale)
        if r.max() > 1e3 * torch.finfo(dtype).eps * scale:  # a difference of rounding errors is a random direction
            size_of_kept = max(1.0, float(plain.kept.abs().max()))
            torch.testing.assert_close(ours.kept, plain.kept, rtol=0, atol=rtol * size_of_kept)
        x = expected


@pytest.mark.parametrize("compiled", [True, False])
def test_differences_of_residuals_are_kept_orthonormal_and_the_next_residual_is_least(compiled):
    f = contraction(40)
    x = starts(5, 40)
    memory = Memory(x, 4)
    memory.compiled = compiled
    xs, fs = [], []
    for _ in range(5):
        g = f(x)
        xs.append(x)
        fs.append(g - x)
        x, _ = memory.step(x, g)
    kept = memory.kept[:, 0]
    torch.testing.assert_close(kept @ kept.mT, torch.eye(4).to(kept).expand(5, -1, -1), rtol=0, atol=1e-12)
    for i in range(5):  # least squares over all differences, by the book
        df = torch.stack([fs[k + 1][i] - fs[k][i] for k in range(4)], dim=1)
        dx = torch.stack([xs[k + 1][i] - xs[k][i] for k in range(4)], dim=1)
        gamma = torch.linalg.lstsq(df, fs[-1][i]).solution
        torch.testing.assert_close(x[i], xs[-1][i] + fs[-1][i] - (dx + df) @ gamma, rtol=0, atol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_difference_that_is_rounding_is_not_kept_and_one_that_is_not_finite_stays_in_its_row(compiled):
    x = starts(3, 6)
    memory = Memory(x, 2)
    memory.compiled = compiled
    g = x + 1
    memory.step(x, g)
    g[1] = np.nan
    x = x + 1e-18  # the residual of the first row does not change
    memory.step(x, g)
    assert (memory.kept[0] == 0).all()
    assert (memory.kept[2] == 0).all()
    assert memory.kept[1, :, 0].isnan().all()
    memory.forget(torch.tensor([False, True, False]), x, x + 1)
    assert (memory.kept == 0).all()
    assert (memory.left[1, 1] == x[1] + 1).all()


@pytest.mark.parametrize("layout", ["strided", "gradient", "wider"])
def test_images_may_come_in_any_layout_and_number_format(layout):
    a = torch.as_tensor(np.random.default_rng(0).normal(size=(8, 8))) / 8

    def step(x, contexts):
        if layout == "strided":
            return (a @ x.T).T + 1
        if layout == "wider":
            return x.double() @ a.T + 1
        with torch.enable_grad():
            return x @ a.clone().requires_grad_().T + 1

    dtype = torch.float32 if layout == "wider" else torch.float64
    f = LoopMap(step, (8,), dtype=dtype)
    if layout == "strided":
        assert not step(starts(4, 8), None).is_contiguous()
    found = find_fixed_points(f, starts(4, 8))
    truth = torch.linalg.solve(torch.eye(8).to(a) - a, torch.ones(8).to(a))
    assert found.counts.tolist() == [4]
    torch.testing.assert_close(found.points[0].double(), truth, rtol=0, atol=1e-5)


def test_the_search_is_the_same_with_either_step(monkeypatch):
    f = contraction(30, radius=1.5)
    fast = find_fixed_points(LoopMap(lambda x, contexts: f(x), (30,)), starts(12, 30))
    monkeypatch.setattr(anderson, "combine", None)
    monkeypatch.setattr(anderson_memory, "_COMPILED", ())
    plain = find_fixed_points(LoopMap(lambda x, contexts: f(x), (30,)), starts(12, 30))
    assert list(fast.measurement.outcomes) == list(plain.measurement.outcomes)
    torch.testing.assert_close(fast.states, plain.states, rtol=0, atol=1e-8)
