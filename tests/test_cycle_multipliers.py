"""Multipliers of cycles: closed forms, layers that share them, and states that are no cycle."""

import math

import numpy as np
import pytest
import torch

from dynloop import Outcome
from dynloop.maps.cycle_multipliers import cycle_multipliers
from dynloop.maps.jacobian_spectrum import jacobian_spectrum
from dynloop.maps.krylov import by_modulus
from dynloop.maps.loop_map import LoopMap
from synthetic.blocks import affine_block, turning_block
from synthetic.henon import period_two as henon_two
from synthetic.logistic import SUPERSTABLE_3, period_three, period_two
from synthetic.random_networks import stored_cycle

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


def logistic(r, **settings):
    return LoopMap(lambda x, contexts: r * x * (1 - x), (1,), name=f"logistic r={r}", **settings)


def henon(a=1.4, b=0.3):
    return LoopMap(lambda z, contexts: torch.stack([1 - a * z[:, 0] ** 2 + z[:, 1], b * z[:, 0]], 1), (2,))


def run(f, x, n_steps):
    """States (n_steps, n, ...) after a transient."""
    for _ in range(5000):
        x = f(x)
    states = [x]
    for _ in range(n_steps - 1):
        states.append(f(states[-1]))
    return torch.stack(states)


def found(m, row=0):
    return m["multipliers_real"][row] + 1j * m["multipliers_imag"][row]


@pytest.mark.parametrize("device", ["cpu", cuda])
@pytest.mark.parametrize("system", [period_two(3.2), period_two(3.44), period_three(3.829), period_three(3.83),
                                    period_three(SUPERSTABLE_3), period_three(3.84)], ids=str)
def test_cycles_of_the_logistic_map_have_the_multipliers_of_the_closed_form(system, device):
    r = SUPERSTABLE_3 if "3.831874" in system.name else float(system.name.split("=")[1])
    f = logistic(r, device=device)
    states = run(f, torch.full((2, 1), 0.5, dtype=torch.float64), system.exact["period"])
    m = cycle_multipliers(f, states)
    assert m.found.all()
    np.testing.assert_allclose(m["multipliers_real"][:, 0], system.exact["multipliers"][0], atol=1e-9)
    assert (m["prime_period"] == system.exact["period"]).all()
    np.testing.assert_allclose(m["rate"], np.abs(m["multiplier"]) ** (1 / system.exact["period"]))


def test_the_unstable_cycle_of_the_henon_map():
    x = torch.tensor([0.975800051175056, -0.475800051175056], dtype=torch.float64)
    m = cycle_multipliers(henon(), torch.stack([x, 0.3 * x.flip(0)], dim=1)[:, None])
    np.testing.assert_allclose(found(m), [-3.01010066774027, -0.0298993322597295], rtol=1e-10)
    np.testing.assert_allclose(found(m).prod(), 0.09, rtol=1e-12)  # each step multiplies areas by .3


def test_attracting_cycles_of_the_henon_map():
    for system in (henon_two(0.5, 0.3), henon_two(0.8, 0.3)):
        a = float(system.name.split()[1][2:])
        m = cycle_multipliers(henon(a), torch.as_tensor(system.exact["cycle"])[:, None])
        np.testing.assert_allclose(np.abs(found(m)), np.abs(system.exact["multipliers"]), rtol=1e-9)


def test_fixed_points_of_the_henon_map_are_cycles_of_one():
    for x, expected in ((0.631354477089505, (-1.923738858153408, 0.155946322302794)),
                        (-1.131354477089505, (3.259822097891454, -0.092029562040839))):
        states = torch.tensor([[[x, 0.3 * x]]], dtype=torch.float64)
        m = cycle_multipliers(henon(), states)
        np.testing.assert_allclose(found(m), expected, rtol=1e-10)
        spectrum = jacobian_spectrum(henon(), states[0])
        np.testing.assert_allclose(found(m), spectrum["eigenvalues_real"][0], rtol=1e-12)


@pytest.mark.parametrize("dense_up_to", [0, 256])
def test_the_layers_of_one_block_share_the_nonzero_multipliers(dense_up_to):
    block = affine_block(width=48, n_layers=4, rate=0.9, angle=1.0)
    e = block.embed([0, 3])
    limits = block.limits(e)[:, 0]  # (n, layers, width)
    maps = [LoopMap(lambda x, contexts: block.layers[0](block.adapter(x, e[contexts])), (48,), n_contexts=2),
            *(LoopMap(lambda x, contexts, layer=layer: layer(x), (48,), n_contexts=2) for layer in block.layers[1:])]
    for first in range(4):
        order = [*range(first, 4), *range(first)]
        states = limits[:, [i - 1 for i in order]].transpose(0, 1)  # what enters each layer
        m = cycle_multipliers([maps[i] for i in order], states, n_multipliers=6, dense_up_to=dense_up_to)
        for row in range(2):
            np.testing.assert_allclose(found(m, row), block.multipliers(e[row])[:6], atol=1e-9)
        assert (m["prime_period"] == 4).all()
        np.testing.assert_allclose(m["multiplier"], 0.9, rtol=1e-9)


@pytest.mark.parametrize("norm", ["none", "pre", "residual", "sandwich"])
def test_a_cycle_of_a_looped_block_has_the_multipliers_of_its_closed_form(norm):
    block = turning_block(norm=norm, orbit=0.3, period=5, width=48)
    e = block.embed([0])
    f = LoopMap(lambda x, contexts: block(x, e), (48,))
    states = block.limits(e)[0, :, -1][:, None]
    exact = block.multipliers(e[0])
    for dense_up_to in (0, 256):
        m = cycle_multipliers(f, states, n_multipliers=5, dense_up_to=dense_up_to)
        np.testing.assert_allclose(np.abs(found(m)), np.abs(exact[:5]), atol=1e-8)


def test_many_equal_multipliers_of_a_network_with_a_stored_cycle():
    system = stored_cycle(64, 8, 2.0)
    rng = np.random.default_rng(0)
    cycle = system.exact["cycle"]
    weights = torch.as_tensor(np.roll(cycle, -1, axis=0).T @ cycle / (cycle[0] @ cycle[0]) * 2.0)
    f = LoopMap(lambda x, contexts: torch.tanh(x @ weights.T), (64,))
    np.testing.assert_allclose(f(torch.as_tensor(cycle)), system.step(cycle, rng), atol=1e-12)
    for dense_up_to in (0, 256):
        m = cycle_multipliers(f, torch.as_tensor(cycle)[:, None], n_multipliers=9, dense_up_to=dense_up_to)
        np.testing.assert_allclose(found(m), system.exact["multipliers"][:9], atol=1e-9)
        np.testing.assert_allclose(m["rate"], system.exact["rate"], rtol=1e-9)


def test_multipliers_are_eigenvalues_of_the_product_of_dense_jacobians(rng):
    weights = torch.as_tensor(1.4 * rng.normal(size=(2, 50, 50)) / math.sqrt(50))
    maps = [LoopMap(lambda x, contexts, w=w: torch.tanh(x @ w.T), (50,)) for w in weights]
    there = torch.as_tensor(np.tanh(rng.normal(size=(2, 1, 50))))
    bias = [torch.atanh(there[1 - j]) - there[j] @ weights[j].T for j in range(2)]  # makes a cycle of any two states
    maps = [LoopMap(lambda x, contexts, j=j: torch.tanh(x @ weights[j].T + bias[j]), (50,)) for j in range(2)]
    product = maps[1].jacobian(there[1])[0] @ maps[0].jacobian(there[0])[0]
    values = np.linalg.eigvals(product.numpy())
    for dense_up_to in (0, 256):
        m = cycle_multipliers(maps, there, dense_up_to=dense_up_to)
        np.testing.assert_allclose(found(m), values[by_modulus(values)][:4], atol=1e-10)


def test_states_that_go_round_twice_are_a_cycle_of_the_prime_period():
    f = logistic(3.2)
    states = run(f, torch.full((1, 1), 0.3, dtype=torch.float64), 6)
    fixed = torch.full((6, 1, 1), 1 - 1 / 3.2, dtype=torch.float64)
    m = cycle_multipliers(f, torch.cat([states, fixed, states.roll(1, 0)], dim=1))
    assert m["prime_period"].tolist() == [2, 1, 2]
    np.testing.assert_allclose(m["multipliers_real"][:, 0], [0.16, -1.2, 0.16], rtol=1e-9)


def test_states_that_do_not_close_are_no_cycle():
    f = logistic(3.9)
    states = run(f, torch.full((1, 1), 0.3, dtype=torch.float64), 3)
    bad = torch.full((3, 1, 1), torch.nan)
    m = cycle_multipliers(f, torch.cat([states, bad], dim=1))
    assert m.outcomes.tolist() == [Outcome.NOT_CONVERGED, Outcome.NOT_FINITE]
    assert m["cycle_residual"][0] > 1e-3
    for name in ("multiplier", "multipliers_real", "multipliers_imag", "rate", "prime_period"):
        assert np.isnan(m[name]).all(), name


def test_the_tolerance_of_a_cycle_decides_what_is_one():
    f = logistic(3.2)
    states = run(f, torch.full((1, 1), 0.3, dtype=torch.float64), 2) + 1e-5
    assert cycle_multipliers(f, states).outcomes[0] is Outcome.NOT_CONVERGED
    m = cycle_multipliers(f, states, cycle_tolerance=1e-3)
    np.testing.assert_allclose(found(m)[0], 0.16, atol=1e-3)
    assert found(m)[0] != pytest.approx(0.16, abs=1e-6)


def test_contexts_belong_to_their_cycles():
    r = torch.tensor([3.2, 3.4], dtype=torch.float64)
    f = LoopMap(lambda x, contexts: r[contexts, None] * x * (1 - x), (1,), n_contexts=2)
    states = run(f, torch.full((2, 1), 0.3, dtype=torch.float64), 2)
    m = cycle_multipliers(f, states.flip(1), torch.tensor([1, 0]), labels={"r": [3.4, 3.2]})
    np.testing.assert_allclose(m["multipliers_real"][:, 0], [4 + 6.8 - 3.4**2, 0.16], rtol=1e-9)
    assert m.labels["r"].tolist() == [3.4, 3.2]


def test_what_does_not_converge_is_no_answer(rng):
    weights = torch.as_tensor(rng.normal(size=(100, 100)) / 10)
    f = LoopMap(lambda x, contexts: x @ weights.T, (100,))
    m = cycle_multipliers(f, torch.zeros(1, 1, 100), dense_up_to=0, max_products=10)
    assert m.outcomes[0] is Outcome.NOT_CONVERGED
    assert np.isnan(m["multiplier"][0])


@pytest.mark.parametrize(("states", "settings", "words"), [
    (torch.zeros(2, 1), {}, r"shape \(period, n, 1\).*got \(2, 1\)"),
    (torch.zeros(0, 1, 1), {}, r"got \(0, 1, 1\)"),
    (torch.zeros(1, 1, 1), {"n_multipliers": 2}, "from 1 to the dimension, 1; got 2"),
    (torch.zeros(1, 1, 1), {"cycle_tolerance": 0}, "cycle_tolerance must be")])
def test_what_does_not_fit_is_refused(states, settings, words):
    with pytest.raises(ValueError, match=words):
        cycle_multipliers(logistic(3.2), states, **settings)


def test_layers_and_states_must_go_together():
    with pytest.raises(ValueError, match="multiple of 2"):
        cycle_multipliers([logistic(3.2), logistic(3.3)], torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match="of no map"):
        cycle_multipliers([], torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match=r"got shapes \(1,\), \(2,\)"):
        cycle_multipliers([logistic(3.2), henon()], torch.zeros(2, 1, 1))
