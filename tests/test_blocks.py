"""Toy blocks: closed forms against the modules themselves, against autograd, and against long runs."""

import itertools
import math

import numpy as np
import pytest
import torch

from dynloop import contraction_rate
from synthetic.blocks import (
    GOLDEN,
    NORMS,
    SYSTEMS,
    Circle,
    affine_block,
    as_system,
    drifting_block,
    record_layers,
    turning_block,
)
from synthetic.recordings import record

KINDS = [{}, {"spread": 0.0}, {"n_layers": 2, "seed": 1}, {"n_layers": 7, "spread": 0.9, "angle": -2.5},
         {"injection": False}, {"width": 64, "rate": 0.95}, {"orbit": 0.3, "period": 7},
         {"orbit": 0.9, "period": 2, "spread": 0.2}, {"n_layers": 1, "orbit": 0.3, "period": 3}]
BLOCKS = [affine_block(), affine_block(degenerate=True), affine_block(n_layers=1, width=5, seed=3),
          affine_block(n_layers=6, angle=3.0, rate=0.99, seed=2),
          *(turning_block(norm=norm, **kind) for norm, kind in itertools.product(NORMS, KINDS)
            if not (norm == "sandwich" and kind.get("spread") == 0))]
SETTLING = [b for b in BLOCKS if b.period == 1]

each = pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"{b.name} {b.n_layers} layers")
each_settling = pytest.mark.parametrize("block", SETTLING, ids=lambda b: f"{b.name} {b.n_layers} layers")
each_norm = pytest.mark.parametrize("norm", NORMS)


def run(block, n_steps, prompts=(0, 1), rng=0):
    """Loop states (n, n_steps, width) from random starts."""
    e = block.embed(prompts)
    x = torch.from_numpy(np.random.default_rng(rng).normal(size=e.shape))
    states = []
    with torch.no_grad():
        for _ in range(n_steps):
            states.append(x)
            x = block(x, e)
    return torch.stack(states, 1).numpy()


@each
def test_the_limits_are_what_the_layers_do(block):
    e = block.embed([0, 5, 9])
    limits = block.limits(e)
    state = limits[:, -1, -1]
    for t in range(block.period):
        states = block.layer_states(state, e)
        np.testing.assert_allclose(states, limits[:, t], atol=1e-12)
        state = states[:, -1]
    assert torch.equal(block(state, e), block.layer_states(state, e)[:, -1])


@each_settling
def test_every_rotation_of_the_layers_has_its_own_fixed_point(block):
    """Prop. 4.1: x_l = f_l(x_{l-1}) is a fixed point of f_l ... f_1 a f_k ... f_{l+1}."""
    e = block.embed([2])
    limits = block.limits(e)[:, 0]
    for layer in range(1, block.n_layers + 1):
        x = limits[:, layer - 1]
        for at in np.roll(np.arange(block.n_layers), -layer):
            x = block.layers[at](block.adapter(x, e) if at == 0 else x)
        np.testing.assert_allclose(x, limits[:, layer - 1], atol=1e-12)


@each
def test_all_layers_share_their_nonzero_multipliers(block):
    e = block.embed([1])[0]
    found = [block.multipliers(e, layer=layer) for layer in range(1, block.n_layers + 1)]
    for own in found[1:]:
        # eigenvalues of a non-normal product; zero ones come in blocks, whose rounding errors are roots
        np.testing.assert_allclose(np.sort(np.abs(own)), np.sort(np.abs(found[0])), atol=2e-6)
        large = [m[np.abs(m) > 1e-3] for m in (own, found[0])]
        assert len(large[0]) == len(large[1])
        assert all(np.abs(large[1] - m).min() < 1e-9 for m in large[0])


@pytest.mark.parametrize("block", [b for b in BLOCKS if "multipliers" in b.exact],
                         ids=lambda b: f"{b.name} {b.n_layers} layers")
def test_the_closed_form_of_the_multipliers_is_that_of_autograd(block):
    found, exact = block.multipliers(block.embed([0])[0]), block.exact["multipliers"]
    np.testing.assert_allclose(np.abs(found), np.abs(exact), atol=2e-6)
    assert all(np.abs(found - m).min() < 1e-9 for m in exact if abs(m) > 1e-3)
    assert all(np.abs(exact - m).min() < 1e-9 for m in found if abs(m) > 1e-3)
    per_step = np.sort(np.abs(exact))[::-1] ** (1 / block.period)
    np.testing.assert_allclose(np.exp(block.exact["lyapunov"]), per_step, atol=1e-12)
    assert block.exact["rate"] == pytest.approx(per_step[0], rel=1e-12)


def test_the_norms_differ_by_one_multiplier_as_the_docstring_says():
    spread, rate = 0.6, 0.7
    blocks = {norm: turning_block(norm=norm, n_layers=2, spread=spread, rate=rate) for norm in NORMS}
    two = np.linalg.svd(blocks["none"].layers[0].weight.numpy())[1]
    turn = 2 * math.asin(two[0] / 2)  # |1 - e^{i phi}| = 2 sin(phi / 2): phi_1, or 2 pi - phi_1
    expected = {"none": rate, "pre": rate * (1 - spread**2 * (1 - math.cos(turn)))**2, "residual": 0.0,
                "sandwich": rate * math.cos(turn)**2}
    for norm, special in expected.items():
        moduli = np.sort(np.abs(blocks[norm].exact["multipliers"]))
        assert moduli[0] == pytest.approx(special, abs=1e-12)
        np.testing.assert_allclose(moduli[1:], rate, rtol=1e-12)


@each
def test_random_starts_reach_the_limit(block):
    n_steps = 60 + block.period * math.ceil(32 / -math.log(block.exact.get("rate", 0.8)) / block.period)
    states = run(block, n_steps + block.period)
    limits = block.limits(block.embed([0, 1]))[:, :, -1].numpy()
    away = np.linalg.norm(states[:, -block.period:, None] - limits[:, None], axis=-1)  # (prompt, step, phase)
    assert away.min(-1).max() < 1e-10
    assert (away.argmin(-1)[:, 1:] != away.argmin(-1)[:, :-1]).all()  # one phase after the other
    one_away = np.linalg.norm(limits[:, :, None] - limits[:, None], axis=-1) + 9 * np.eye(block.period)
    assert one_away.min() > 0.1  # and no phase is another


@each_settling
def test_the_rate_is_that_of_a_long_run(block):
    x_star = block.limits(block.embed([0, 1]))[:, 0, -1].numpy()
    away = np.linalg.norm(run(block, 120) - x_star[:, None], axis=-1)
    assert (away[:, 100] / away[:, 70]) ** (1 / 30) == pytest.approx(block.exact["rate"], rel=5e-3)


def test_without_norms_every_step_contracts_by_the_rate_exactly():
    block = turning_block(norm="none", rate=0.6)
    away = np.linalg.norm(run(block, 40) - block.limits(block.embed([0, 1]))[:, 0, -1].numpy()[:, None], axis=-1)
    np.testing.assert_allclose(away[:, 1:] / away[:, :-1], 0.6, rtol=1e-6)


def test_affine_layers_expand_now_and_then_and_contract_in_the_long_run():
    block = affine_block()
    jacobians = block.layer_jacobians(block.embed([0])[0])[0].numpy()
    norms = [np.linalg.norm(j, 2) for j in jacobians]
    assert max(norms) > 1 > block.exact["rate"]
    assert not np.allclose(jacobians[0] @ jacobians[0].T, jacobians[0].T @ jacobians[0])


@each_norm
def test_a_block_with_spread_has_a_point_for_each_layer_and_a_degenerate_one_has_one(norm):
    spread = 0.5
    points = turning_block(norm=norm, spread=spread).limits(turning_block(norm=norm).embed([0]))[0, 0]
    apart = torch.cdist(points, points)
    assert apart[~torch.eye(4, dtype=bool)].min() > 0.3
    np.testing.assert_allclose(points.norm(dim=-1), math.sqrt(32), rtol=1e-12)
    turned = torch.linalg.norm(points - points.roll(1, 0), dim=-1) / math.sqrt(32)
    angles = 2 * np.arcsin(turned.numpy() / 2 / spread)
    assert angles.sum() == pytest.approx(2 * math.pi, rel=1e-9)  # all turns below pi: a closed polygon
    if norm != "sandwich":
        block = turning_block(norm=norm, spread=0.0)
        at = block.limits(block.embed([0]))[0, 0]
        assert torch.cdist(at, at).max() < 1e-12
        updates = [layer(at[0]) - at[0] for layer in block.layers]
        assert max(u.norm() for u in updates) < 1e-12


def test_affine_layers_can_sit_at_one_point():
    block = affine_block(degenerate=True)
    at = block.limits(block.embed([0, 1]))
    assert torch.cdist(at[0, 0], at[0, 0]).max() < 1e-12
    torch.testing.assert_close(at[0], at[1])  # no injection: every prompt ends there
    cyclic = affine_block().limits(affine_block().embed([0, 1]))
    assert torch.pdist(cyclic.flatten(0, 2)).min() > 0.1


def test_without_injection_every_prompt_ends_at_the_same_point():
    with_e, without = (turning_block(injection=i) for i in (True, False))
    assert (run(with_e, 100)[0, -1] - run(with_e, 100)[1, -1]).std() > 0.1
    np.testing.assert_allclose(run(without, 150)[0, -1], run(without, 150)[1, -1], atol=1e-12)


@each_norm
def test_each_norm_stands_where_it_belongs(norm):
    layer = turning_block(norm=norm).layers[0]
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 32)) * 3)

    def n(v):
        return v / v.pow(2).mean(-1, keepdim=True).sqrt()

    def update(v):
        return v @ layer.weight.T + layer.bias

    expected = {"none": lambda: x + update(x), "pre": lambda: x + update(n(x)), "residual": lambda: n(x + update(x)),
                "sandwich": lambda: x + layer.gain * n(update(n(x)))}[norm]()
    torch.testing.assert_close(layer(x), expected)
    if norm == "residual":
        torch.testing.assert_close(layer(x).pow(2).mean(-1), torch.ones(5, dtype=torch.float64))


@each_norm
@pytest.mark.parametrize("period", [2, 7, 12])
def test_an_orbit_has_its_exact_minimal_period(norm, period):
    block = turning_block(norm=norm, orbit=0.3, period=period)
    states = run(block, 300 + 3 * period)[:, 300:]
    back = [np.linalg.norm(states[:, lag:] - states[:, :-lag], axis=-1).max() for lag in range(1, 2 * period)]
    assert back[period - 1] < 1e-10
    assert min(np.delete(back, period - 1)) > 0.1


@each_norm
@pytest.mark.parametrize(("period", "angle"), [(5, 1.0), (None, 2 * math.pi * GOLDEN)])
def test_an_orbit_attracts_wherever_it_was_left(norm, period, angle):
    block = turning_block(norm=norm, orbit=0.4, period=period, angle=angle, rate=0.7)
    e = block.embed([0])
    with torch.no_grad():
        on = torch.from_numpy(run(block, 200, [0]))[:, -1]
        off = on + 0.2 * torch.from_numpy(np.random.default_rng(1).normal(size=on.shape))
        for _ in range(200):
            on, off = block(on, e), block(off, e)
        orbit = []
        for _ in range(3000 if period is None else period):
            orbit.append(on)
            on = block(on, e)
    assert torch.cdist(off, torch.cat(orbit)).min() < (1e-10 if period else 5e-3)
    if period:
        assert np.abs(block.multipliers(e[0])).max() < 1


def test_a_quasi_periodic_orbit_turns_by_its_rotation_number_and_never_returns():
    block = turning_block(orbit=0.3, angle=2 * math.pi * GOLDEN)
    states = run(block, 400, [0])[0, 200:]
    middle = block.embed([0])[0].numpy()
    z = (states - middle) @ block.layers[-1].circle.plane.numpy().T
    turns = np.diff(np.unwrap(np.arctan2(z[:, 1], z[:, 0]))) / 2 / math.pi % 1
    np.testing.assert_allclose(turns, block.exact["rotation"], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 0.3 * math.sqrt(32), rtol=1e-9)
    back = np.linalg.norm(states[1:] - states[0], axis=1)
    assert back.min() > 0.01
    with pytest.raises(ValueError, match="no fixed point or cycle; its regime is quasi-periodic"):
        block.limits(block.embed([0]))


def test_a_circle_is_approached_by_its_rate_in_radius_and_in_phase():
    circle = Circle(torch.eye(2, dtype=torch.float64), radius=2.0, rate=0.6, period=4)
    near = torch.tensor([[2 + 1e-6, 0.0], [0.0, 2 - 1e-6], [2 * math.cos(1e-6), 2 * math.sin(1e-6)]],
                        dtype=torch.float64)
    after = near + circle(near)
    assert (after.norm(dim=1) - 2)[:2].tolist() == pytest.approx([0.6e-6, -0.6e-6], rel=1e-4)
    assert torch.atan2(after[2, 1], after[2, 0]).item() == pytest.approx(0.6e-6, rel=1e-4)


@pytest.mark.parametrize("norm", ["none", "pre", "sandwich"])
def test_a_drift_is_steady_and_its_direction_freezes(norm):
    states = run(drifting_block(norm=norm, speed=0.5, n_layers=3), 2000, [0])[0]
    steps = np.diff(states, axis=0)
    np.testing.assert_allclose(np.linalg.norm(steps, axis=1), 0.5, rtol=1e-9)
    np.testing.assert_allclose(steps, steps[:1].repeat(len(steps), 0), atol=1e-9)
    cosine = states @ states[-1] / np.linalg.norm(states, axis=1) / np.linalg.norm(states[-1])
    assert cosine[1000] > 0.9999  # and yet nothing converges


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_systems_are_their_blocks_and_keep_what_they_promise(system):
    states = system.orbits(3, 130, rng=0)
    assert np.isfinite(states).all()
    if "fixed_point" in system.exact:
        assert np.abs(states[:, -1] - system.exact["fixed_point"]).max() < 1e-9
        m = contraction_rate(record(system, 10, 128, dim=64))
        assert np.nanmedian(m.values) == pytest.approx(system.exact["rate"], abs=0.02)
    if "period" in system.exact:
        np.testing.assert_allclose(states[:, 7:], states[:, :-7], atol=1e-10)
    if "speed" in system.exact:
        np.testing.assert_allclose(np.linalg.norm(np.diff(states, axis=1), axis=-1), system.exact["speed"], rtol=1e-9)
    np.testing.assert_array_equal(system.orbits(3, 20, rng=0), states[:, :20])


def test_names_of_systems_are_unique():
    assert len({s.name for s in SYSTEMS}) == len(SYSTEMS)


def test_recorded_layers_are_the_layers_with_their_labels():
    block = turning_block(norm="pre", n_layers=3)
    r = record_layers(block, 4, 25, n_starts=2, rng=7)
    assert r.states.shape == (4 * 2 * 3, 25, 32)
    assert {name: v[:7].tolist() for name, v in r.labels.items() if name not in ("model", "regime")} == {
        "prompt": [0] * 6 + [1], "orbit": [0, 0, 0, 1, 1, 1, 2], "layer": [1, 2, 3, 1, 2, 3, 1]}
    e, x = block.embed([1]), r.select(prompt=1, orbit=2, layer=3).states[:, 4]
    torch.testing.assert_close(block.layer_states(x, e)[0], r.select(orbit=2).states[:, 5])
    settled = record_layers(block, 4, 150).states[:, -1].unflatten(0, (4, 3))
    torch.testing.assert_close(settled, block.limits(block.embed(range(4)))[:, 0])


def test_prompts_keep_their_embedding_whichever_others_are_asked_for():
    for block in (affine_block(), turning_block()):
        torch.testing.assert_close(block.embed([3, 8])[1], block.embed([8])[0], rtol=1e-14, atol=1e-14)
        assert (block.embed([3])[0] - block.embed([8])[0]).norm() > 1


@pytest.mark.parametrize("norm", ["pre", "residual", "sandwich"])
def test_cosines_tell_cyclic_from_degenerate(norm):
    """M6 of the paper by hand: (a) all layers settle; (b) the first one against the layer point farthest from it."""
    def cosines(block):
        states = record_layers(block, 3, 100).states.unflatten(0, (3, block.n_layers))
        points = states[:, :, -1]
        a = torch.cosine_similarity(states[:, :, 60], points, dim=-1)
        b = torch.cosine_similarity(states[:, :1, 60], points, dim=-1)
        return a.min().item(), b.min().item()
    assert cosines(turning_block(norm=norm))[0] > 1 - 1e-9
    assert cosines(turning_block(norm=norm))[1] < 0.9
    if norm != "sandwich":
        assert min(cosines(turning_block(norm=norm, spread=0.0))) > 1 - 1e-9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_block_that_runs_in_a_format_ends_within_its_resolution(dtype):
    block = turning_block(norm="residual")
    r = record_layers(block, 5, 128, dtype=dtype)
    assert r.states.dtype == getattr(torch, dtype)
    assert r.resolution == torch.finfo(r.states.dtype).eps
    off = (r.states[:, -1].double().unflatten(0, (5, 4)) - block.limits(block.embed(range(5)))[:, 0]).norm(dim=-1)
    assert off.max() < 8 * r.resolution * math.sqrt(32)
    assert off.max() > 0.01 * r.resolution * math.sqrt(32)  # the arithmetic was that of the format
    assert block.keep.dtype == torch.float64  # and the block is as it was


def test_the_seed_decides_weights_and_starts():
    for make in (affine_block, turning_block, drifting_block):
        one, two, other = (run(make(seed=seed), 5) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one, two)
        assert not np.allclose(one, other)
    a, b, c = (record_layers(turning_block(), 2, 5, rng=rng).states for rng in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(("make", "change"), [
    *((affine_block, c) for c in ({"width": 8}, {"n_layers": 3}, {"rate": 0.7}, {"angle": 0.5}, {"degenerate": True})),
    *((turning_block, c) for c in ({"norm": "none"}, {"width": 16}, {"n_layers": 3}, {"rate": 0.7}, {"angle": 0.5},
                                   {"orbit": 0.2}, {"orbit": 0.2, "period": 3}, {"spread": 0.4},
                                   {"injection": False})),
    *((drifting_block, c) for c in ({"width": 8}, {"n_layers": 3}, {"speed": 2.0})),
])
def test_every_setting_matters(make, change):
    base = {"norm": "pre"} if make is turning_block else {}  # around the residual, layers that turn add up to one
    plain, changed = run(make(**base), 20, [1]), run(make(**base | change), 20, [1])
    assert plain.shape != changed.shape or not np.allclose(plain, changed)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: affine_block(width=3), "width must be a whole number of at least 4"),
    (lambda: affine_block(rate=1.0), "rate must be a factor"),
    (lambda: affine_block(angle=math.inf), "angle must be a finite angle"),
    (lambda: affine_block(n_layers=0), "n_layers must be"),
    (lambda: affine_block(degenerate=1), "degenerate must be true or false; got 1"),
    (lambda: affine_block(seed=-1), "seed must be"),
    (lambda: turning_block(norm="post"), "norm must be one of none, pre, residual, sandwich; got 'post'"),
    (lambda: turning_block(width=20), "width must be a multiple of 8; got 20"),
    (lambda: turning_block(orbit=1.0), "orbit must be a radius"),
    (lambda: turning_block(spread=0.9, orbit=0.5), "spread must be a share"),
    (lambda: turning_block(spread=-0.1), "spread must be a share"),
    (lambda: turning_block(period=7), "a period belongs to an orbit"),
    (lambda: turning_block(orbit=0.3, period=1), "period must be a whole number of at least 2"),
    (lambda: turning_block(injection=None), "injection must be true or false"),
    (lambda: turning_block(norm="sandwich", n_layers=1), "cannot rest; got n_layers=1"),
    (lambda: turning_block(norm="sandwich", spread=0.0), "cannot rest"),
    (lambda: drifting_block(norm="residual"), "norm must be one of none, pre, sandwich; got 'residual'"),
    (lambda: drifting_block(speed=0), "speed must be a positive"),
    (lambda: drifting_block().limits(drifting_block().embed([0])), "its regime is slider"),
    (lambda: affine_block().multipliers(affine_block().embed([0])[0], layer=5), "layer must be a layer from 1 to 4"),
    (lambda: affine_block().multipliers(affine_block().embed([0])[0], layer=0), "layer must be a layer from 1 to 4"),
    (lambda: record_layers(affine_block().layers[0], 1, 5), "block must be a Block"),
    (lambda: record_layers(affine_block(), 0, 5), "n_prompts must be"),
    (lambda: record_layers(affine_block(), 1, 5, dtype="int8"), "dtype must be float64"),
])
def test_nonsense_is_refused_with_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_block_is_a_system_on_its_first_prompt():
    block = turning_block(norm="sandwich")
    x = as_system(block).orbits(2, 6, rng=3)
    np.testing.assert_allclose(block(torch.from_numpy(x[:, 4]), block.embed([0, 0])).numpy(), x[:, 5], atol=1e-12)
