"""Straightness of a path, and the drift-to-loop ratio: closed forms, and who follows whom."""

import itertools

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Outcome, Trajectories, path_straightness

T = np.arange(128)[:, None]


def test_a_straight_path_is_straight_at_any_speed(rng):
    start, way = rng.normal(size=(2, 4, 1, 16))
    for along in (T, 0.8**T, 1.05**T, np.sqrt(T), np.minimum(T, 9)):
        m = path_straightness(Trajectories(start + way * along))
        np.testing.assert_allclose(m.values, 1, rtol=1e-9)
        assert (m.values <= 1).all()


@pytest.mark.parametrize(("rate", "angle"), [(0.9, 0.3), (0.97, 1.0), (0.5, 2.0), (0.99, 0.05)])
def test_a_spiral_has_its_closed_form(rate, angle, rng):
    z = rate * np.exp(1j * angle)
    plane = np.linalg.qr(rng.normal(size=(8, 2)))[0].T
    orbit = z**T
    m = path_straightness(Trajectories((2 + np.concatenate([orbit.real, orbit.imag], axis=1) @ plane)[None]))
    expected = abs(1 - z**127) * (1 - rate) / (abs(1 - z) * (1 - rate**127))
    assert m.values[0] == pytest.approx(expected, rel=1e-9)
    assert m["displacement"][0] == pytest.approx(abs(1 - z**127), rel=1e-9)
    assert m["path_length"][0] == pytest.approx(abs(1 - z) * (1 - rate**127) / (1 - rate), rel=1e-9)


@pytest.mark.parametrize(("name", "expected"), [("walk", 127**-0.5), ("noise", 1 / 127), ("circle", 0.0)])
def test_the_nulls_have_the_straightness_that_is_stated(name, expected, rng):
    g = rng.normal(size=(60, 128, 400))
    circle = np.concatenate([np.cos(2 * np.pi * T / 127), np.sin(2 * np.pi * T / 127)], axis=1)[None]
    states = {"walk": g.cumsum(1), "noise": g, "circle": circle}[name]
    assert path_straightness(Trajectories(states)).values.mean() == pytest.approx(expected, rel=0.03, abs=1e-12)


def test_an_orbit_that_never_moves_has_no_path(rng):
    states = rng.normal(size=(3, 20, 4))
    states[1] = states[1, 0]
    m = path_straightness(Trajectories(states, labels={"block": [0, 1, 2]}))
    assert m.outcomes.tolist() == [Outcome.FOUND, Outcome.NOT_FOUND, Outcome.FOUND]
    for name in m.variables:
        assert np.isnan(m[name][1]), name


@pytest.mark.parametrize(("n_steps", "outcome"), [(2, Outcome.TOO_SHORT), (3, Outcome.FOUND)])
def test_one_step_is_no_path(n_steps, outcome, rng):
    states = rng.normal(size=(2, 6, 4))
    for orbits in (Trajectories(states[:, :n_steps]), Trajectories(states, lengths=[n_steps] * 2)):
        assert path_straightness(orbits).outcomes.tolist() == [outcome] * 2


def test_a_shift_changes_no_path(rng):
    states = rng.normal(size=(5, 60, 8)).cumsum(1)
    here, there = path_straightness(Trajectories(states)), path_straightness(Trajectories(states + 7))
    for name in here.variables:
        np.testing.assert_allclose(there[name], here[name], rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@given(seed=st.integers(0, 2**32 - 1), n_steps=st.integers(3, 80), dim=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_every_path_equals_the_oracle(dtype, seed, n_steps, dim):
    rng = np.random.default_rng(seed)
    states = 10.0 ** rng.uniform(-3, 3) * rng.normal(size=(3, 1, dim)) + rng.normal(size=(3, n_steps, dim)).cumsum(1) \
        * 10.0 ** rng.uniform(-3, 3)
    states[1, n_steps // 2:] = states[1, n_steps // 2]
    orbits = Trajectories(torch.as_tensor(states).to(getattr(torch, dtype)))
    m = path_straightness(orbits)
    for o, orbit in enumerate(orbits.states.double().numpy()):
        if (orbit == orbit[0]).all():
            assert m.outcomes[o] is Outcome.NOT_FOUND
        else:
            tight = 1e-9 if dtype == "float64" else 1e-3
            assert m.values[o] == pytest.approx(oracles.path_straightness(orbit), rel=tight, abs=1e-12)


def blocks(rng, n_prompts=3, n_blocks=4, n_steps=10, dim=6):
    """Blocks that are looped one after the other: small steps within, a jump between. Labels prompt and block."""
    of = np.array(list(itertools.product(range(n_prompts), range(n_blocks))))
    states = 10 * rng.normal(size=(len(of), 1, dim)) + rng.normal(size=(len(of), n_steps, dim)).cumsum(1)
    return Trajectories(states, labels={"prompt": of[:, 0], "block": 5 * of[:, 1]})


def test_the_drift_to_loop_ratio_is_the_jump_to_the_next_block_over_the_mean_step(rng):
    orbits = blocks(rng)
    for order in (np.arange(12), np.random.default_rng(1).permutation(12)):
        own = orbits[order]
        ratio = path_straightness(own)["drift_to_loop_ratio"]
        for o, (prompt, block) in enumerate(zip(own.labels["prompt"], own.labels["block"], strict=True)):
            if block == 15:
                assert np.isnan(ratio[o])
                continue
            following = orbits.select(prompt=prompt, block=block + 5).states[0]
            assert ratio[o] == pytest.approx(oracles.drift_to_loop_ratio(own.states[o], following), rel=1e-9)


def test_two_scales_of_movement_give_a_ratio_far_above_1_and_one_scale_does_not(rng):
    walk = rng.normal(size=(3, 40, 64)).cumsum(1).reshape(3, 4, 10, 64)  # one movement, cut into four blocks
    labels = {"prompt": np.repeat(range(3), 4), "block": np.tile(range(4), 3)}
    one = path_straightness(Trajectories(walk.reshape(12, 10, 64), labels=labels))["drift_to_loop_ratio"]
    two = path_straightness(Trajectories(walk.reshape(12, 10, 64) + 100 * rng.normal(size=(12, 1, 64)), labels=labels))
    last = labels["block"] == 3
    np.testing.assert_allclose(one[~last], 1, atol=0.3)
    assert (two["drift_to_loop_ratio"][~last] > 50).all()
    assert np.isnan(one[last]).all()


def test_layers_of_one_block_and_unlabelled_orbits_have_no_drift_to_loop_ratio(rng):
    orbits = blocks(rng)
    for name in ("layer", "token"):
        m = path_straightness(orbits.replace(labels={"prompt": orbits.labels["prompt"], name: orbits.labels["block"]}))
        assert m.found.all()
        assert np.isnan(m["drift_to_loop_ratio"]).all()


def test_an_orbit_that_diverged_has_no_ratio_and_still_begins_somewhere(rng):
    orbits = blocks(rng, n_prompts=1)
    states = orbits.states.clone()
    states[1, 4:] = torch.nan
    states[3] = torch.nan
    m, whole = path_straightness(orbits.replace(states=states)), path_straightness(orbits)
    assert m["drift_to_loop_ratio"][0] == whole["drift_to_loop_ratio"][0]
    assert np.isnan(m["drift_to_loop_ratio"][1:]).all()


def test_which_block_follows_must_be_known(rng):
    orbits = blocks(rng)
    with pytest.raises(ValueError, match=r"'block' must tell orbits apart .* got 0 twice\. Add a label"):
        path_straightness(orbits.replace(labels={"block": orbits.labels["block"]}))
