"""Spectra of single tokens: against dense blocks of the whole Jacobian; sources and driven tokens by construction."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dynloop import Outcome
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.token_spectrum import token_spectrum
from dynloop.models import nano

cuda = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))


def causal_map(rng, n_tokens, width, *, device="cpu", dtype=torch.float64):
    """A small looped layer: causal attention with values, then a tanh layer with a residual; two prompts."""
    q, k, v, w = (torch.as_tensor(rng.normal(size=(width, width)) / math.sqrt(width)).to(device, dtype)
                  for _ in range(4))
    e = torch.as_tensor(rng.normal(size=(2, n_tokens, width))).to(device, dtype)

    def step(x, contexts):
        x = 0.5 * x + 0.6 * F.scaled_dot_product_attention(x @ q, x @ k, x @ v, is_causal=True)
        return torch.tanh(x @ w + e[contexts])

    return LoopMap(step, (n_tokens, width), n_contexts=2, causal=True, device=device, dtype=dtype, name="small")


def own_blocks(f, states, contexts=None):
    """Dense blocks J_tt of every token, (n, tokens, width, width), cut out of the whole Jacobian."""
    n_tokens, width = f.state_shape
    whole = f.jacobian(states, contexts).reshape(-1, n_tokens, width, n_tokens, width)
    return torch.stack([whole[:, t, :, t] for t in range(n_tokens)], dim=1).cpu()


def radii(matrices):
    return np.abs(np.linalg.eigvals(matrices)).max(-1)


@pytest.mark.parametrize("device", ["cpu", cuda])
def test_radii_are_those_of_the_dense_blocks(rng, device):
    f = causal_map(rng, 5, 6, device=device)
    states = torch.as_tensor(rng.normal(size=(3, 5, 6)), device=device)
    m = token_spectrum(f, states[None])
    np.testing.assert_allclose(m["radius"].reshape(3, 5), radii(own_blocks(f, states)), rtol=1e-9)
    assert m.labels["token"].tolist() == [0, 1, 2, 3, 4] * 3
    assert m.labels["sequence"].tolist() == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("device", ["cpu", cuda])
def test_products_give_the_radii_of_dense_blocks(rng, device):
    f = causal_map(rng, 4, 48, device=device)
    states = torch.as_tensor(rng.normal(size=(2, 4, 48)), device=device)
    m = token_spectrum(f, states[None], n_eigenvalues=3, dense_up_to=0)
    blocks = own_blocks(f, states).numpy()
    expected = np.sort(np.abs(np.linalg.eigvals(blocks)), axis=-1)[..., ::-1][..., :3].reshape(8, 3)
    np.testing.assert_allclose(np.hypot(m["eigenvalues_real"], m["eigenvalues_imag"]), expected, rtol=1e-7)
    assert (m["residuals"] <= 1e-12).all()
    dense = token_spectrum(f, states[None], n_eigenvalues=3)
    np.testing.assert_allclose(m["radius"], dense["radius"], rtol=1e-9)


def test_the_largest_radius_is_that_of_the_whole_sequence(rng):
    f = causal_map(rng, 5, 6)
    states = torch.as_tensor(rng.normal(size=(2, 5, 6)))
    whole = radii(f.jacobian(states).numpy())
    m = token_spectrum(f, states[None])
    np.testing.assert_allclose(m["sequence_radius"], np.repeat(whole, 5), rtol=1e-9)
    np.testing.assert_allclose(m["radius"].reshape(2, 5).max(1), whole, rtol=1e-9)


@pytest.mark.parametrize("dense_up_to", [0, 256])
def test_along_an_orbit_the_blocks_of_the_product_are_the_products_of_the_blocks(rng, dense_up_to):
    f = causal_map(rng, 2, 44)
    states = [torch.as_tensor(rng.normal(size=(1, 2, 44)))]
    for _ in range(2):
        states.append(f(states[-1]))
    states = torch.stack(states)
    product = torch.eye(44, dtype=torch.float64)
    whole = torch.eye(88, dtype=torch.float64)
    for state in states:
        product = own_blocks(f, state)[0] @ product
        whole = f.jacobian(state)[0] @ whole
    m = token_spectrum(f, states, dense_up_to=dense_up_to)
    np.testing.assert_allclose(m["radius"], radii(product.numpy()) ** (1 / 3), rtol=1e-9)
    np.testing.assert_allclose(m["sequence_radius"], radii(whole.numpy()) ** (1 / 3), rtol=1e-9)


def test_contexts_belong_to_their_sequences(rng):
    f = causal_map(rng, 3, 4)
    states = torch.as_tensor(rng.normal(size=(3, 3, 4)))
    contexts = torch.tensor([1, 1, 0])
    m = token_spectrum(f, states[None], contexts, labels={"prompt": ["b", "c", "a"]})
    np.testing.assert_allclose(m["radius"].reshape(3, 3), radii(own_blocks(f, states, contexts)), rtol=1e-9)
    assert m.labels["prompt"].tolist() == ["b"] * 3 + ["c"] * 3 + ["a"] * 3


def swinging(gains, width=2):
    """Tokens x' = tanh(gain x) + a little of those before: a gain below -1 swings with period 2, above 1 goes away."""
    gains = torch.as_tensor(gains, dtype=torch.float64)[:, None]

    def step(x, contexts):
        return torch.tanh(gains * x) + 0.2 * F.scaled_dot_product_attention(x, x, x, is_causal=True)

    return LoopMap(step, (len(gains), width), causal=True)


def settled(f, n_steps, start=1.0):
    x = torch.full((1, *f.state_shape), start, dtype=torch.float64)
    for _ in range(2000):
        x = f(x)
    states = [x]
    for _ in range(n_steps - 1):
        states.append(f(states[-1]))
    return torch.stack(states)


def test_the_token_that_starts_a_cycle_is_the_source_and_those_after_it_are_driven():
    f = swinging([0.5, -0.9, -1.8, 0.3, 0.1])
    m = token_spectrum(f, settled(f, 2))
    assert m["role"].tolist() == ["still", "still", "source", "driven", "driven"]
    assert (m["radius"] < 1).all()  # the cycle attracts
    assert (m["step"][:2] < 1e-12).all()
    assert (m["step"][2:] > 1e-2).all()


def test_two_tokens_that_swing_by_themselves_are_source_and_driven_unless_their_blocks_are_unstable():
    f = swinging([0.5, -1.8, -0.1, -1.8])
    cycle = settled(f, 2)
    assert token_spectrum(f, cycle)["role"].tolist() == ["still", "source", "driven", "driven"]
    at_rest = torch.zeros(1, 1, 4, 2, dtype=torch.float64)  # the unstable fixed point between
    m = token_spectrum(f, at_rest)
    assert m["role"].tolist() == ["still", "source", "still", "source"]
    np.testing.assert_allclose(m["radius"][0], 0.5 + 0.2, rtol=1e-12)  # the first token attends to itself alone
    np.testing.assert_allclose(m["radius"][1], 1.8 - 0.2 / 2, rtol=1e-12)


def test_what_counts_as_moving_is_a_setting():
    f = swinging([0.5, -1.8, 0.3])
    cycle = settled(f, 2)
    largest = token_spectrum(f, cycle)["step"].max()
    assert token_spectrum(f, cycle, still=2 * largest)["role"].tolist() == ["still"] * 3


def test_a_token_that_is_not_finite_spoils_its_sequence_alone():
    f = swinging([0.5, 0.4, 0.3])
    states = torch.zeros(1, 2, 3, 2, dtype=torch.float64)
    states[0, 1, 1] = torch.nan
    m = token_spectrum(f, states)
    assert m.outcomes.tolist() == [Outcome.FOUND] * 3 + [Outcome.NOT_FINITE] * 3
    assert m["role"].tolist() == ["still"] * 3 + [""] * 3
    assert np.isnan(m["sequence_radius"][3:]).all()
    for name in ("radius", "eigenvalues_real", "eigenvalues_imag", "step"):
        assert np.isnan(m[name][3:]).all(), name


def test_what_does_not_converge_is_no_answer(rng):
    f = causal_map(rng, 3, 64)
    m = token_spectrum(f, torch.zeros(1, 1, 3, 64), dense_up_to=0, max_products=10)
    assert set(m.outcomes) == {Outcome.NOT_CONVERGED}
    assert np.isnan(m["radius"]).all()
    assert set(m["role"]) == {""}


def test_a_sequence_does_not_depend_on_those_beside_it(rng):
    f = causal_map(rng, 3, 48)
    states = torch.as_tensor(rng.normal(size=(4, 3, 48)))
    together = token_spectrum(f, states[None], dense_up_to=0)
    for i in range(4):
        alone = token_spectrum(f, states[None, i:i + 1], torch.tensor([i % 2]), dense_up_to=0)
        np.testing.assert_allclose(alone["radius"], together["radius"][3 * i:3 * i + 3], rtol=1e-10)


def test_a_looped_model_has_the_radii_of_its_dense_blocks():
    f = LoopMap.of(nano("nano-settles"), [list(b"def")])
    h = f.initial_states()
    for _ in range(60):
        h = f(h)
    expected = radii(own_blocks(f, h).numpy())[0]
    for dense_up_to in (0, 256):
        m = token_spectrum(f, h[None], dense_up_to=dense_up_to)
        np.testing.assert_allclose(m["radius"], expected, rtol=1e-8)
    assert m["sequence_radius"][0] == pytest.approx(radii(f.jacobian(h)[0].numpy()), rel=1e-8)
    assert set(m["role"]) == {"still"}


def test_maps_without_own_blocks_are_refused():
    with pytest.raises(ValueError, match=r"causal maps with states .* causal=False"):
        token_spectrum(LoopMap(lambda x, contexts: x, (3, 2)), torch.zeros(1, 1, 3, 2))
    with pytest.raises(ValueError, match=r"states \(3,\)"):
        token_spectrum(LoopMap(lambda x, contexts: x, (3,), causal=True), torch.zeros(1, 1, 3))


def test_states_of_different_orbits_are_refused(rng):
    f = causal_map(rng, 3, 4)
    states = torch.as_tensor(rng.normal(size=(1, 2, 3, 4)))
    following = f(states[0])
    following[1] += 1
    with pytest.raises(ValueError, match="must follow one another; state 2 of sequence 1 lies"):
        token_spectrum(f, torch.stack([states[0], following]))


@pytest.mark.parametrize(("wrong", "words"), [
    ({"still": 0}, "still must be"), ({"n_eigenvalues": 5}, "from 1 to the dimension, 4; got 5"),
    ({"tolerance": 0}, "tolerance must be"), ({"labels": {"token": [1]}}, "must not be called token")])
def test_settings_that_make_no_sense_are_refused(rng, wrong, words):
    with pytest.raises(ValueError, match=words):
        token_spectrum(causal_map(rng, 3, 4), torch.zeros(1, 1, 3, 4), **wrong)


def test_one_state_without_its_place_in_an_orbit_is_refused(rng):
    with pytest.raises(ValueError, match=r"needs states \(n, 3, 4\)"):
        token_spectrum(causal_map(rng, 3, 4), torch.zeros(1, 3, 4))
