"""Likeness of representations: against brute force over tuples of tokens, closed forms, and planted values."""

import functools
import itertools
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from dynloop import Trajectories
from dynloop.stages import CkaSums, HsicSums, cka, layer_cka, layer_cosine, token_pairs
from dynloop.stages.token_pairs import dependences, each, every


def slow_dependence(x, y, prompt):
    """The definition: over all tuples of tokens of distinct prompts, a token of n standing for 1 / n of its prompt."""
    _, place, sizes = np.unique(prompt, return_inverse=True, return_counts=True)
    k, other, w = x @ x.T, y @ y.T, 1 / sizes[place]
    totals, weights = np.zeros(3), np.zeros(3)
    for number, size in enumerate((2, 4, 3)):
        for tokens in itertools.product(range(len(x)), repeat=size):
            if len({place[t] for t in tokens}) < size:
                continue
            i, j, *rest = tokens
            value = k[i, j] * (other[i, j] if size == 2 else other[rest[0], rest[1]] if size == 4 else
                               other[i, rest[0]])
            weight = np.prod(w[list(tokens)])
            totals[number] += weight * value
            weights[number] += weight
    two, four, three = totals / weights
    return two + four - 2 * three


def song(x, y):
    """HSIC_1 of Song et al. (2012), from the Gram matrices without their diagonals."""
    n = len(x)
    k, other = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(other, 0)
    return (np.trace(k @ other) + k.sum() * other.sum() / (n - 1) / (n - 2)
            - 2 / (n - 2) * (k.sum(0) * other.sum(0)).sum()) / n / (n - 3)


def summed(x, y, prompt, of=HsicSums.of_prompt):
    parts = [of(x[prompt == p], y[prompt == p]) for p in np.unique(prompt)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole, parts


def correlated(rng, n_prompts, n_tokens, dim, rho=0.9):
    """Gaussian tokens of unit variance, an autoregression within each prompt; (prompts * tokens, dim)."""
    noise = rng.normal(size=(n_prompts, n_tokens, dim)) * np.sqrt(1 - rho**2)
    noise[:, 0] /= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise, axis=1).reshape(-1, dim)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 3), min_size=4, max_size=5))
@settings(max_examples=15, deadline=None)
def test_the_sums_give_the_definition_for_prompts_of_any_length(seed, sizes):
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(len(sizes)), sizes)
    x, y = rng.normal(size=(len(prompt), 2)) + 1, rng.normal(size=(len(prompt), 3))
    assert summed(x, y, prompt)[0].dependence() == pytest.approx(slow_dependence(x, y, prompt), rel=1e-9, abs=1e-10)


def test_with_one_token_a_prompt_it_is_hsic_1_as_it_is_by_row(rng):
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 3))
    whole, _ = summed(x, y, np.arange(20))
    assert whole.dependence() == pytest.approx(song(x, y), rel=1e-10)
    prompt = np.arange(20) // 4
    by_row, _ = summed(x, y, prompt, HsicSums.of_rows)
    assert by_row.dependence() == pytest.approx(song(x, y), rel=1e-10)
    found = cka(x, y, prompt=prompt, debias="row").value
    assert found == pytest.approx(song(x, y) / np.sqrt(song(x, x) * song(y, y)), rel=1e-10)


def test_without_correction_it_is_the_usual_formula(rng):
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 3)) + 2
    a, b = x - x.mean(0), y - y.mean(0)
    usual = np.sum((a.T @ b) ** 2) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert cka(x, y, prompt=np.arange(30) // 5, debias=None).value == pytest.approx(usual, rel=1e-12)


def test_sums_of_parts_in_any_order_are_the_sums_of_all_and_can_be_taken_away(rng):
    x, y, prompt = rng.normal(size=(24, 3)), rng.normal(size=(24, 2)), np.arange(24) // 4
    whole, parts = summed(x, y, prompt)
    late = (parts[5] + parts[1]) + (parts[4] + (parts[0] + parts[3])) + parts[2]
    assert late.dependence() == pytest.approx(whole.dependence(), rel=1e-12)
    kept = prompt != 2
    assert (whole - parts[2]).dependence() == pytest.approx(summed(x[kept], y[kept], prompt[kept])[0].dependence(),
                                                            rel=1e-10)
    of_cka = CkaSums.of_prompt(x[:4], y[:4])
    for p in range(1, 6):
        of_cka = of_cka + CkaSums.of_prompt(x[prompt == p], y[prompt == p])
    assert of_cka.value() == pytest.approx(cka(x, y, prompt=prompt).value, rel=1e-9)


def test_fewer_than_four_prompts_have_no_dependence(rng):
    x, prompt = rng.normal(size=(12, 3)), np.arange(12) // 4
    assert np.isnan(summed(x, x, prompt)[0].dependence())


def test_turning_scaling_and_moving_change_nothing(rng):
    x, y = rng.normal(size=(60, 5)), rng.normal(size=(60, 4))
    y[:, :3] += x[:, :3]
    prompt = np.repeat(np.arange(9), [3, 5, 7, 9, 11, 2, 8, 8, 7])
    turn = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    one, other = cka(x, y, prompt=prompt), cka(3 * x @ turn + 1e4, y - 50, prompt=prompt)
    assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high), rel=1e-6)


def test_the_order_of_tokens_and_the_names_of_prompts_change_nothing(rng):
    x, y, prompt = rng.normal(size=(40, 3)), rng.normal(size=(40, 3)), np.arange(40) // 5
    order = rng.permutation(40)
    other = cka(x[order], y[order], prompt=np.array([f"p{p}" for p in prompt])[order])
    assert other.value == pytest.approx(cka(x, y, prompt=prompt).value, rel=1e-10)


def test_independent_autocorrelated_tokens_score_nothing_and_by_row_a_third():
    rng = np.random.default_rng(0)
    prompt = np.arange(32 * 32) // 32
    found = np.array([[cka(x := correlated(rng, 32, 32, 64), y := correlated(rng, 32, 32, 64), prompt=prompt).value,
                       cka(x, y, prompt=prompt, debias="row").value, cka(x, y, prompt=prompt, debias=None).value]
                      for _ in range(12)])
    ours, by_row, biased = found.mean(0)
    assert abs(ours) < 0.01
    assert abs(by_row - 0.309) < 0.015
    assert abs(biased - 0.337) < 0.015
    assert (found[:, 0] < 0).any()  # not clamped


def test_a_planted_quarter_is_recovered_within_its_interval():
    rng = np.random.default_rng(1)
    prompt = np.arange(32 * 32) // 32
    found = []
    for _ in range(10):
        shared, a, b = correlated(rng, 32, 32, 16), correlated(rng, 32, 32, 48), correlated(rng, 32, 32, 48)
        found.append(cka(np.hstack([shared, a]), np.hstack([b, shared]), prompt=prompt))
    assert abs(np.mean([e.value for e in found]) - 0.25) < 0.015
    assert sum(e.low <= 0.25 <= e.high for e in found) >= 8
    assert all(e.n_units == 32 and e.high - e.low < 0.12 for e in found)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0, 16])
def test_the_interval_covers_in_95_percent_of_studies(shared):
    rng = np.random.default_rng(2)
    prompt = np.arange(32 * 32) // 32
    hits = []
    for _ in range(300):
        both, a, b = (correlated(rng, 32, 32, n) for n in (max(shared, 1), 64 - shared, 64 - shared))
        found = cka(np.hstack([both[:, :shared], a]), np.hstack([both[:, :shared], b]), prompt=prompt)
        hits.append(found.low <= shared / 64 <= found.high)
    # where there is none the jackknife errs on the wide side: the statistic is degenerate
    assert 0.92 <= np.mean(hits) <= (0.985 if shared else 1)


def recording(x, dims="prompt layer token"):
    """States (prompt, layer, token, recurrence, dim) as orbits."""
    place = [i.ravel() for i in np.indices(x.shape[:3])]
    return Trajectories(x.reshape(-1, *x.shape[3:]), labels=dict(zip(dims.split(), place, strict=True)))


def test_all_pairs_of_depths_are_the_pairs_one_by_one(rng):
    x, y = rng.normal(size=(7, 3, 4, 2, 5)), rng.normal(size=(7, 2, 4, 1, 6))
    y[:, :1, :, :, :3] += x[:, :1, :, :1, :3]
    prompt = np.arange(28) // 4
    both, own = layer_cka(recording(x), recording(y)), layer_cka(recording(x))
    cosine = layer_cosine(recording(x))
    flat = [x[:, la, :, r] for r in range(2) for la in range(3)]
    for i, a in enumerate(flat):
        assert (both.recurrence[i], both.layer[i]) == (i // 3 + 1, i % 3)
        for j in range(2):
            one = cka(a.reshape(28, 5), y[:, j, :, 0].reshape(28, 6), prompt=prompt)
            assert both.values[i, j] == pytest.approx(one.value, rel=1e-8, abs=1e-10)
        for j, b in enumerate(flat):
            one = cka(a.reshape(28, 5), b.reshape(28, 5), prompt=prompt)
            assert own.values[i, j] == pytest.approx(one.value, rel=1e-8, abs=1e-10)
            slow = np.mean((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
            assert cosine.values[i, j] == pytest.approx(slow, rel=1e-12)
    by_row = layer_cka(recording(x), recording(y), debias="row")
    one = cka(flat[1].reshape(28, 5), y[:, 1, :, 0].reshape(28, 6), prompt=prompt, debias="row")
    assert by_row.values[1, 1] == pytest.approx(one.value, rel=1e-8)


def test_a_depth_that_some_prompt_does_not_reach_has_no_likeness(rng):
    x = rng.normal(size=(6, 2, 4, 3, 5))
    x[2, 1, 0, 2] = np.nan  # the last depth of all
    for found in (layer_cka(recording(x)), layer_cosine(recording(x))):
        assert np.isnan(found.values[-1]).all()
        assert np.isnan(found.values[:, -1]).all()
        assert np.isfinite(found.values[:-1, :-1]).all()


def test_bad_input_is_refused_with_what_to_do(rng):
    x, prompt = rng.normal(size=(12, 3)), np.arange(12) // 2
    with pytest.raises(ValueError, match="debias must be one of"):
        cka(x, x, prompt=prompt, debias="song")
    with pytest.raises(ValueError, match="same tokens in the same order"):
        cka(x, x[:5], prompt=prompt)
    with pytest.raises(ValueError, match="needs 5 prompts or more"):
        cka(x, x, prompt=np.arange(12) // 3)
    with pytest.raises(ValueError, match="finite"):
        cka(x, np.where(x > 1, np.nan, x), prompt=prompt)
    with pytest.raises(ValueError, match="constant"):
        cka(x, np.ones((12, 2)), prompt=prompt)
    with pytest.raises(ValueError, match="confidence_level"):
        cka(x, x, prompt=prompt, confidence_level=2)
    states = rng.normal(size=(6, 2, 4, 3, 5))
    with pytest.raises(ValueError, match="same prompts"):
        layer_cosine(recording(states), recording(states[:5]))
    with pytest.raises(ValueError, match="same tokens"):
        layer_cosine(recording(states), recording(states[:, :, :3]))
    with pytest.raises(ValueError, match="one width"):
        layer_cosine(recording(states), recording(states[..., :3]))
    with pytest.raises(ValueError, match="no label 'prompt'"):
        layer_cosine(recording(states, "run layer token"))
    with pytest.raises(ValueError, match="at least 5"):
        layer_cka(recording(states[:4]))
    with pytest.raises(ValueError, match="debias must be one of"):
        layer_cka(recording(states), debias="none")
    twice = recording(states)
    twice = twice.replace(labels={**twice.labels, "prompt": twice.labels["prompt"] // 2,
                                  "start": twice.labels["prompt"] % 2})
    with pytest.raises(ValueError, match="Select one value of start"):
        layer_cosine(twice)
    with pytest.raises(TypeError, match="a recording is needed"):
        layer_cosine(states)
    with pytest.raises(ValueError, match="every token at every layer"):
        layer_cosine(recording(states)[:-1])


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 4), min_size=5, max_size=6))
@settings(max_examples=10, deadline=None)
def test_pairs_of_tokens_give_what_sums_over_features_give(seed, sizes):
    rng = np.random.default_rng(seed)
    one = [rng.normal(size=(3, n, 4)) + 1 for n in sizes]
    two = [rng.normal(size=(2, n, 5)) - x[:2, :, :1] for n, x in zip(sizes, one, strict=True)]
    parts = [HsicSums.of_prompt(x[:, None], y[None]) for x, y in zip(one, two, strict=True)]
    whole = functools.reduce(operator.add, parts)
    value, without = dependences(one.__getitem__, len(one), every, two.__getitem__)
    np.testing.assert_allclose(value, whole.dependence(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(without, [(whole - part).dependence() for part in parts], rtol=1e-8, atol=1e-8)
    alone, _ = dependences(one.__getitem__, len(one), each)
    both, _ = dependences(one.__getitem__, len(one), every)
    np.testing.assert_allclose(alone, np.diagonal(both), rtol=1e-12)


def test_blocks_of_prompts_change_nothing(monkeypatch, rng):
    states = rng.normal(size=(7, 3, 4, 5))
    whole = dependences(states.__getitem__, 7, every)
    for size in (4 * states[0].nbytes, 1):  # two prompts at a time; one prompt, and one of its tokens, at a time
        monkeypatch.setattr(token_pairs, "_BYTES", size)
        parts = dependences(states.__getitem__, 7, every)
        np.testing.assert_allclose(parts[0], whole[0], rtol=1e-12)
        np.testing.assert_allclose(parts[1], whole[1], rtol=1e-12)


def test_some_recurrences_are_those_rows_of_all(rng):
    states = rng.normal(size=(6, 2, 3, 4, 5))  # prompt, layer, token, recurrence, dim
    prompt, layer, token = (i.ravel() for i in np.indices((6, 2, 3)))
    orbits = Trajectories(states.reshape(36, 4, 5), labels={"prompt": prompt, "layer": layer, "token": token})
    some, whole = layer_cka(orbits, recurrences=[2, 4]), layer_cka(orbits)
    assert some.recurrence.values.tolist() == [2, 2, 4, 4]
    at = np.isin(whole.recurrence.values, [2, 4])
    np.testing.assert_allclose(some.values, whole.values[np.ix_(at, at)], rtol=1e-8)
