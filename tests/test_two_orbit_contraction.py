"""Two-orbit contraction: rates of linear loops in every number format, several basins, perturbed starts."""

import math

import numpy as np
import pytest
import torch

from dynloop.maps import LoopMap
from dynloop.maps.two_orbit_contraction import two_orbit_contraction
from dynloop.outcome import Outcome

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def normal(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def rotating(rate, dim=400, dtype=torch.float64, device="cpu"):
    """Every multiplier has the modulus of the rate."""
    a = (rate * torch.linalg.qr(normal(dim, dim, seed=1))[0]).to(device, dtype)
    b = normal(dim, seed=2).to(device, dtype)
    return LoopMap(lambda x, c: x @ a + b, (dim,), dtype=dtype, device=device)


def decaying(rate, dim=48, dtype=torch.float64):
    own = (rate * 0.8 ** torch.arange(dim)).to(dtype)
    return LoopMap(lambda x, c: own * x + 1, (dim,), dtype=dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rate", [0.5, 0.7, 0.83, 0.95])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-3), (torch.float32, 2e-3)])
def test_a_rotation_in_many_dimensions_contracts_at_its_rate(rate, dtype, error, device):
    m = two_orbit_contraction(rotating(rate, dtype=dtype, device=device), normal(2, 2, 400, seed=3))
    assert m.found.all()
    np.testing.assert_allclose(m["rate"], rate, rtol=2 * error)
    assert ((m["rate_low"] <= rate) & (rate <= m["rate_high"] + 1e-6)).mean() >= 0.5


@pytest.mark.parametrize("rate", [0.7, 0.83, 0.95])
def test_bfloat16_shows_the_rate_before_its_floor(rate):
    m = two_orbit_contraction(rotating(rate, dtype=torch.bfloat16), normal(2, 4, 400, seed=3))
    assert m.found.all()
    np.testing.assert_allclose(m["rate"], rate, rtol=0.02)
    assert (m["regime_length"] < 100).all()


@pytest.mark.parametrize("rate", [0.6, 0.83, 0.95])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_slowest_of_many_modes_is_the_rate(rate, dtype):
    m = two_orbit_contraction(decaying(rate, dtype=dtype), normal(3, 4, 48, seed=4))
    assert m.found.all()
    np.testing.assert_allclose(np.median(m["rate"]), rate, rtol=2e-3)
    assert ((m["rate_low"] - 1e-6 <= rate) & (rate <= m["rate_high"] + 1e-6)).mean() >= 0.75


def test_two_starts_say_the_same_and_their_distance_is_given():
    begin = normal(2, 3, 48, seed=5)
    m = two_orbit_contraction(decaying(0.8), begin)
    np.testing.assert_allclose(m["rate"][:3], m["rate"][3:], rtol=1e-6)
    np.testing.assert_allclose(m["initial_distance"], np.tile((begin[0] - begin[1]).norm(dim=1), 2), rtol=1e-12)
    assert m.labels["column"].tolist() == [0, 1, 2, 0, 1, 2]
    assert m.labels["start"].tolist() == [0, 0, 0, 1, 1, 1]
    three = normal(3, 1, 48, seed=5)
    found = two_orbit_contraction(decaying(0.8), three)["initial_distance"]
    np.testing.assert_allclose(found[0], (three[0, 0] - three[1:, 0].mean(0)).norm(), rtol=1e-12)


def test_a_drift_that_the_orbits_share_drops_out():
    own = 0.8 ** (1 + torch.arange(16, dtype=torch.float64))
    f = LoopMap(lambda x, c: torch.cat([x[:, :1] + 1, own * x[:, 1:]], dim=1), (17,))
    begin = normal(2, 2, 17, seed=6)
    begin[..., 0] = 0
    m = two_orbit_contraction(f, begin)
    assert m.found.all()
    np.testing.assert_allclose(m["rate"], 0.8, atol=1e-3)


def test_orbits_in_two_basins_do_not_come_together():
    f = LoopMap(lambda x, c: torch.tanh(2 * x), (3,))
    begin = torch.stack([torch.ones(1, 3), -torch.ones(1, 3)])
    m = two_orbit_contraction(f, begin)
    assert set(m.outcomes) == {Outcome.NOT_FOUND}
    assert np.isnan(m["rate"]).all()
    assert (m["estimator"] == "").all()


def test_chaos_does_not_contract():
    f = LoopMap(lambda x, c: 4 * x * (1 - x), (5,))
    m = two_orbit_contraction(f, 0.1 + 0.8 * torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)))
    assert not m.found.any()
    assert np.isnan(m["rate"]).all()


def test_a_perturbed_start_shows_the_rate_of_a_loop_that_remembers_its_start():
    f = LoopMap(lambda x, c: torch.stack([torch.tanh(2 * x[:, 0]), x[:, 1], 0.7 * x[:, 2]], 1)
                + 0.1 * torch.stack([x[:, 2], 0 * x[:, 1], 0 * x[:, 2]], 1), (3,))
    begin = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.0, -2.0]])
    m = two_orbit_contraction(LoopMap(lambda x, c: f(x) * torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype), (3,)), begin,
                              perturbation=1e-3, n_starts=3)
    assert m.n_orbits == 6
    assert m.found.all()
    np.testing.assert_allclose(m["rate"], 0.7, rtol=5e-3)
    np.testing.assert_allclose(m["initial_distance"][:2].min() / math.sqrt(5), 1e-3, rtol=0.8)


def test_perturbations_have_the_size_that_was_asked_for_and_the_seed_decides_them():
    begin = normal(3, 2, 48, seed=7)
    f = LoopMap(lambda x, c: 0.8 * x, (2, 48))
    a, b, c = (two_orbit_contraction(f, begin, perturbation=0.01, rng=seed) for seed in (1, 1, 2))
    np.testing.assert_allclose(a["initial_distance"], np.tile(0.01 * begin.flatten(1).norm(dim=1), 2), rtol=1e-9)
    np.testing.assert_array_equal(a["rate"], b["rate"])
    assert (a["rate"] != c["rate"]).any()
    each = two_orbit_contraction(f, begin, perturbation=0.01, each_token=True)
    np.testing.assert_allclose(each["initial_distance"][:6], 0.01 * begin.norm(dim=2).flatten(), rtol=1e-9)


def test_tokens_have_rates_of_their_own():
    rates = torch.tensor([0.6, 0.9], dtype=torch.float64)[:, None]
    f = LoopMap(lambda x, c: rates * x + c[:, None, None], (2, 12), n_contexts=3)
    m = two_orbit_contraction(f, normal(2, 3, 2, 12, seed=8), each_token=True)
    assert m.n_orbits == 12
    np.testing.assert_allclose(m["rate"], np.tile([0.6, 0.9], 6), atol=2e-3)
    assert m.labels["token"].tolist() == [0, 1] * 6
    assert m.labels["context"].tolist() == [0, 0, 1, 1, 2, 2] * 2


def test_contexts_are_those_asked_for():
    rates = torch.tensor([0.6, 0.9], dtype=torch.float64)
    f = LoopMap(lambda x, c: rates[c][:, None] * x, (12,), n_contexts=2)
    m = two_orbit_contraction(f, normal(2, 3, 12), contexts=torch.tensor([1, 1, 0]))
    np.testing.assert_allclose(m["rate"][:3], [0.9, 0.9, 0.6], atol=2e-3)
    assert m.labels["context"][:3].tolist() == [1, 1, 0]


def test_an_orbit_that_leaves_the_finite_numbers_is_no_answer():
    f = LoopMap(lambda x, c: x * x, (4,))
    m = two_orbit_contraction(f, torch.stack([2 * torch.ones(1, 4), 3 * torch.ones(1, 4)]))
    assert set(m.outcomes) == {Outcome.NOT_FINITE}
    assert two_orbit_contraction(decaying(0.8), normal(2, 1, 48), n_steps=3).outcomes[0] is Outcome.TOO_SHORT


@pytest.mark.parametrize(("shape", "change", "words"), [
    ((2, 48), {}, "starts must have shape"), ((1, 2, 48), {}, "m of at least 2"), ((2, 2, 7), {}, "starts must have"),
    ((2, 2, 48), {"perturbation": 0.1}, "with a perturbation, starts must have shape"),
    ((2, 48), {"perturbation": 0}, "perturbation must be a positive number"),
    ((2, 48), {"perturbation": 0.1, "n_starts": 1}, "n_starts must be a whole number of at least 2"),
    ((2, 2, 48), {"n_steps": 0}, "n_steps must be a whole number"),
    ((2, 2, 48), {"each_token": True}, "each_token needs states"),
    ((2, 2, 48), {"contexts": [0]}, "contexts must hold one number"),
])
def test_input_that_makes_no_sense_is_refused(shape, change, words):
    with pytest.raises(ValueError, match=words):
        two_orbit_contraction(decaying(0.8), normal(*shape), **change)


def test_a_start_of_0_cannot_be_perturbed_by_a_share_of_it():
    with pytest.raises(ValueError, match="a relative perturbation of a start that is 0 is 0"):
        two_orbit_contraction(decaying(0.8), torch.zeros(1, 48), perturbation=0.1)
