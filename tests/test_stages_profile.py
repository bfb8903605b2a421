"""Profiles over depth: closed forms, planted stages, and attention recorded from a model that attends uniformly."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynloop import Measurement, Outcome, Trajectories, capture, save
from dynloop.attention import nulls
from dynloop.models import nano
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording import attention_of
from dynloop.stages import anisotropy, matrix_entropy, profile_by, stage_profile


def recording(x, **more):
    """States (prompt, layer, token, recurrence, dim) as orbits."""
    prompt, layer, token = (i.ravel() for i in np.indices(x.shape[:3]))
    return Trajectories(x.reshape(-1, *x.shape[3:]),
                        labels={"prompt": prompt, "layer": layer + 1, "token": token, **more})


def test_entropy_of_equal_directions_of_one_line_and_of_nothing():
    assert matrix_entropy(np.eye(6)[:4]) == pytest.approx(math.log(4))
    assert matrix_entropy(np.eye(6)[:4], normalized=True) == pytest.approx(1)
    assert matrix_entropy(np.outer([1.0, -2, 3], [1, 1])) == pytest.approx(0, abs=1e-12)
    assert anisotropy(np.outer([1.0, -2, 3], [1, 1])) == pytest.approx(1)
    assert np.isnan(matrix_entropy(np.zeros((3, 4))))
    assert np.isnan(matrix_entropy(np.full((3, 4), np.inf)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_entropy_and_anisotropy_are_those_of_the_singular_values_at_any_scale(seed, tokens, dim):
    x = np.random.default_rng(seed).normal(size=(2, tokens, dim)) * 1e160
    for found, own, one in zip(matrix_entropy(x), anisotropy(x), x, strict=True):
        p = (np.linalg.svd(one / 1e160, compute_uv=False)) ** 2
        p /= p.sum()
        assert found == pytest.approx(-np.sum(p * np.log(p)), abs=1e-9)
        assert own == pytest.approx(p.max(), rel=1e-9)


@given(st.integers(0, 2**32 - 1), st.floats(0, 6))
@settings(max_examples=50, deadline=None)
def test_one_massive_token_bounds_the_anisotropy_from_below(seed, log_size):
    x = np.random.default_rng(seed).normal(size=(8, 5))
    x[0] *= 10**log_size
    norms = (x**2).sum(1)
    rest = norms[1:].sum()
    alpha = ((x[1:] @ x[0]) ** 2 / norms[0]).sum() / rest
    c = norms[0] / rest
    assert anisotropy(x) >= (c + alpha) / (c + 1) - 1e-12


def planted(rng, shares, norms, n_prompts=6, tokens=5, dim=7):
    """States whose squared singular values at each depth have given shares: (prompt, layer, token, recurrence, dim)."""
    n_recurrences, n_layers = norms.shape
    x = np.empty((n_prompts, n_layers, tokens, n_recurrences, dim))
    for p, r, la in np.ndindex(n_prompts, n_recurrences, n_layers):
        left = np.linalg.qr(rng.normal(size=(tokens, tokens)))[0]
        right = np.linalg.qr(rng.normal(size=(dim, dim)))[0][:tokens]
        x[p, la, :, r] = norms[r, la] * left * np.sqrt(shares[la]) @ right
    return x


def test_a_planted_profile_is_found_exactly(rng):
    shares = np.array([[0.2] * 5, [0.9, 0.1, 0, 0, 0], [0.5, 0.5, 0, 0, 0]])
    norms = np.array([[1.0, 2, 3], [4, 5, 6]])
    m = stage_profile(recording(planted(rng, shares, norms)))
    entropy = [math.log(5), -0.9 * math.log(0.9) - 0.1 * math.log(0.1), math.log(2)]
    assert m.n_orbits == 6 * 6
    np.testing.assert_allclose(m["matrix_entropy"], np.tile(entropy, 12), atol=1e-10)
    np.testing.assert_allclose(m["anisotropy"], np.tile([0.2, 0.9, 0.5], 12), rtol=1e-10)
    assert m.labels["depth"][:6].tolist() == [1, 2, 3, 4, 5, 6]
    assert m.labels["recurrence"][:6].tolist() == [1, 1, 1, 2, 2, 2]
    np.testing.assert_allclose(m.labels["percent"][:3], [100 / 6, 50, 500 / 6])


def test_norms_and_steps_are_those_of_the_states(rng):
    x = rng.normal(size=(3, 2, 4, 3, 5))
    m = stage_profile(recording(x))
    depths = x.transpose(0, 3, 1, 2, 4).reshape(3, 6, 4, 5)
    by_hand = {"residual_norm": np.linalg.norm(depths, axis=-1).mean(-1),
               "first_token_norm": np.linalg.norm(depths[:, :, 0], axis=-1),
               "layer_step": np.linalg.norm(np.diff(depths, axis=1), axis=-1).mean(-1),
               "loop_step": np.linalg.norm(depths[:, 2:] - depths[:, :-2], axis=-1).mean(-1)}
    for name, values in by_hand.items():
        found = m[name].reshape(3, 6)
        gap = 6 - values.shape[1]
        assert np.isnan(found[:, :gap]).all()
        np.testing.assert_allclose(found[:, gap:], values, rtol=1e-12)


def test_what_ended_or_left_the_finite_numbers_has_no_profile(rng):
    x = rng.normal(size=(3, 2, 4, 3, 5))
    x[1, 1, 2, 2] = np.inf
    orbits = recording(x)
    lengths = np.full(24, 3)
    lengths[0] = 2  # of prompt 0, layer 1
    m = stage_profile(orbits.replace(lengths=lengths))
    kinds = m.outcomes.reshape(3, 3, 2)
    assert kinds[0, 2, 0] is Outcome.TOO_SHORT
    assert kinds[1, 2, 1] is Outcome.NOT_FINITE
    assert m.counts() == {Outcome.FOUND: 16, Outcome.TOO_SHORT: 1, Outcome.NOT_FINITE: 1}
    for name in m.variables:
        assert np.isnan(m[name][~m.found]).all()
    assert np.isfinite(m["matrix_entropy"][m.found]).all()


def test_the_order_of_orbits_and_the_disk_change_nothing(rng, tmp_path):
    orbits = recording(rng.normal(size=(3, 2, 4, 3, 5)))
    one = stage_profile(orbits)
    for other in (orbits[rng.permutation(24)], save(orbits, tmp_path / "s")):
        found = stage_profile(other)
        order = np.lexsort((found.labels["depth"], found.labels["prompt"]))
        np.testing.assert_allclose(found["matrix_entropy"][order], one["matrix_entropy"], rtol=1e-12)


def test_the_three_groupings_hold_the_same_numbers(rng):
    m = stage_profile(recording(rng.normal(size=(5, 2, 4, 3, 5))))
    depth, recurrence, layer = (profile_by(m, by, variable="residual_norm") for by in ("depth", "recurrence", "layer"))
    by_hand = m["residual_norm"].reshape(5, 3, 2).mean(0)
    np.testing.assert_allclose(depth["mean"], by_hand.ravel())
    np.testing.assert_allclose(recurrence["mean"], by_hand)
    np.testing.assert_allclose(layer["mean"], by_hand.T)
    assert (depth["n"] == 5).all()
    half = 2.7764451 * m["residual_norm"].reshape(5, 6).std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(depth["high"] - depth["mean"], half, rtol=1e-6)
    assert np.isnan(profile_by(m, "depth", variable="layer_step")["mean"][0])


def test_a_model_that_attends_uniformly_has_no_excess_in_any_quantity(tmp_path):
    model = NanoModel(NanoConfig(width=16, n_heads=2, n_block=2))
    with torch.no_grad():
        for layer in model.block:
            layer.attention.qkv.weight[:32] = 0  # queries and keys
    store = capture(nano(model), [[1, 2, 3, 4, 5, 6, 7], [3, 1, 2]], out=tmp_path / "s", n_recurrences=3,
                    attention=True)
    m = stage_profile(store, of="attention")
    assert m.n_orbits == 2 * 3 * 2
    assert list(dict.fromkeys(m.labels["layer"])) == ["block.0.attention", "block.1.attention"]
    lengths = np.where(m.labels["prompt"] == 0, 7, 3)
    forms = nulls.uniform_sink_score, nulls.uniform_mixing, nulls.uniform_concentration
    null = np.array([[form(int(n)) for form in forms] for n in lengths])
    np.testing.assert_allclose(m["sink_score"], null[:, 0], rtol=1e-5)
    np.testing.assert_allclose(m["mixing"], null[:, 1], rtol=1e-5)
    np.testing.assert_allclose(m["concentration"], null[:, 2], atol=1e-6)
    np.testing.assert_allclose(m["mixing_share"], 1, rtol=1e-5)
    for name in ("sink_excess", "concentration_excess"):
        np.testing.assert_allclose(m[name], 0, atol=1e-6)
    assert (m["sink_rate"] == (null[:, 0] >= 0.3)).all()
    by_depth = stage_profile(store)
    assert by_depth.counts() == {Outcome.FOUND: 12}


def test_attention_by_head_is_averaged_and_lost_columns_are_said(tmp_path):
    model = NanoModel(NanoConfig(width=16, n_heads=2, n_block=2))
    with torch.no_grad():
        model.block[0].attention.qkv.weight[:8] = 0  # queries of the first head
    store = capture(nano(model), [[1, 2, 3, 4, 5]], out=tmp_path / "s", n_recurrences=3, tokens=[0, -1],
                    attention=True)
    m, heads = stage_profile(store, of="attention"), attention_of(store)
    for name in ("block.0.attention", "block.1.attention"):
        own = heads["sink_score"].values[heads["layer"].values == name].mean(0)
        np.testing.assert_allclose(m["sink_score"][m.labels["layer"] == name], own, rtol=1e-6)
    assert np.isnan(m["concentration"]).all()
    assert np.isfinite(m["mixing"]).all()


def test_bad_input_is_refused_with_what_to_do(rng, tmp_path):
    orbits = recording(rng.normal(size=(3, 2, 4, 3, 5)))
    m = stage_profile(orbits)
    with pytest.raises(ValueError, match="of must be one of"):
        stage_profile(orbits, of="heads")
    with pytest.raises(ValueError, match="sink_threshold"):
        stage_profile(orbits, of="attention", sink_threshold=0)
    with pytest.raises(TypeError, match="Give the store"):
        stage_profile(orbits, of="attention")
    with pytest.raises(ValueError, match="capture again with attention=True"):
        stage_profile(save(orbits, tmp_path / "s"), of="attention")
    with pytest.raises(ValueError, match="grouping must be one of"):
        profile_by(m, "loop")
    with pytest.raises(ValueError, match="a stage profile is needed"):
        profile_by(Measurement("x", {"x": np.ones(2)}, [Outcome.FOUND] * 2), "depth")
    with pytest.raises(ValueError, match="at least one token"):
        matrix_entropy(np.ones(3))
    with pytest.raises(ValueError, match="always 0"):
        matrix_entropy(np.ones((1, 3)), normalized=True)
