"""Measures of attention maps: closed forms and slow oracles."""

import math
import warnings

import numpy as np
import pytest
import torch
from attention_maps import drawn, even, sink
from hypothesis import given
from hypothesis import strategies as st

from dynloop import Outcome
from dynloop.attention import (
    attention_distance,
    attention_stabilisation,
    column_concentration,
    mixing_score,
    sink_rate,
)
from dynloop.attention.nulls import largest_distance, uniform_concentration, uniform_distance
from dynloop.nano import NanoConfig

TINY = NanoConfig(width=16, n_heads=2)
PROMPTS = [list(range(1, 13)), list(range(20, 32)), list(range(40, 54))]


def slow_numbers(a):
    """Sink score of key 0, mixing and concentration of one map, number by number."""
    n = len(a)
    mixing = -sum(a[t][k] * math.log(a[t][k]) for t in range(n) for k in range(n) if a[t][k] > 0) / n
    share = [sum(a[t][k] for t in range(n)) / n for k in range(n)]
    return (sum(a[t][0] for t in range(n)) / n, mixing,
            1 + sum(c * math.log(c) for c in share if c > 0) / math.log(n))


@pytest.mark.parametrize("n", [10, 14, 64, 512])
def test_uniform_causal_attention_is_at_every_null(n):
    maps = even(n)
    harmonic = sum(1 / i for i in range(1, n + 1))
    m = sink_rate(maps)
    assert m["score"][0] == pytest.approx(harmonic / n, rel=1e-12)
    assert m["excess"][0] == pytest.approx(0, abs=1e-13)
    m = mixing_score(maps)
    assert m.values[0] == pytest.approx(math.log(math.factorial(n)) / n, rel=1e-12)
    assert m["relative"][0] == pytest.approx(1, rel=1e-12)
    assert column_concentration(maps)["excess"][0] == pytest.approx(0, abs=1e-12)
    for one_hot in (torch.eye(n, dtype=torch.float64), sink(n)):
        m = attention_distance(torch.stack((maps, one_hot)), dims=["layer"])
        assert m.values[0, 1] == pytest.approx(math.sqrt(n - harmonic), rel=1e-10)
        assert m["null"][0] == pytest.approx(m.values[0, 1], rel=1e-10)


@pytest.mark.parametrize(("n", "expected"), [(8, 0.151), (14, 0.134), (16, 0.1305), (32, 0.112), (64, 0.097),
                                             (128, 0.085), (256, 0.075), (512, 0.067), (1024, 0.061)])
def test_the_concentration_of_uniform_attention_falls_slowly(n, expected):
    assert uniform_concentration(n) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("n", "expected"), [(8, 0.340), (10, 0.293), (14, 0.232), (64, 0.074)])
def test_the_sink_score_of_uniform_attention(n, expected):
    assert sink_rate(even(n), threshold=0.5)["score"][0] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("n", [16, 64])
def test_identity_and_full_sink_are_exact(n):
    maps = torch.stack((torch.eye(n, dtype=torch.float64), sink(n)))
    m = sink_rate(maps)
    assert m.values.tolist() == [0, 1]
    assert m["score"].tolist() == [1 / n, 1]
    assert mixing_score(maps).values.tolist() == [0, 0]
    np.testing.assert_allclose(column_concentration(maps).values, [0, 1], atol=1e-14)
    m = attention_distance(maps, dims=["recurrence"])
    np.testing.assert_allclose(m.values, math.sqrt(2 * (n - 1)) * np.array([[0, 1], [1, 0]]), rtol=1e-12)
    np.testing.assert_allclose(m["relative"], [[0, 1], [1, 0]], rtol=1e-12)


def test_the_printed_concentration_is_one_plus_t_times_the_corrected():
    for n, expected in ((8, 2.2), (1024, 63)):
        m = column_concentration(even(n), formula="printed")
        sums = even(n).sum(0)
        assert m.values[0] == pytest.approx(1 + float((sums * sums.log()).sum()) / math.log(n), rel=1e-10)
        assert m.values[0] == pytest.approx(expected, rel=0.02)
        assert m["excess"][0] == pytest.approx(0, abs=1e-8)
    assert column_concentration(sink(16), formula="printed").values[0] == pytest.approx(17)
    with pytest.raises(ValueError, match="formula must be one of corrected, printed"):
        column_concentration(even(8), formula="as printed")


@given(st.integers(2, 12), st.booleans(), st.integers(0, 10**6))
def test_random_maps_score_as_the_slow_definitions_do(n, causal, seed):
    maps = drawn(3, n, n, seed=seed, causal=causal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # short prompts: the null passes the threshold
        found = np.stack([sink_rate(maps, causal=causal)["score"], mixing_score(maps, causal=causal).values,
                          column_concentration(maps, causal=causal).values], 1)
    np.testing.assert_allclose(found, [slow_numbers(a.tolist()) for a in maps], atol=1e-12)
    distance = attention_distance(maps, dims=["layer"], causal=causal).values
    slow = [[float(torch.linalg.matrix_norm(a - b)) for b in maps] for a in maps]
    np.testing.assert_allclose(distance, slow, atol=2e-7)
    assert distance.max() <= largest_distance(n, causal=causal)
    assert mixing_score(maps, causal=causal)["relative"].max() <= 1 + 1e-12


def test_maps_that_are_not_causal_have_the_flat_nulls():
    maps = torch.full((16, 16), 1 / 16, dtype=torch.float64)
    assert sink_rate(maps, causal=False)["null"][0] == 1 / 16
    assert mixing_score(maps, causal=False)["relative"][0] == pytest.approx(1)
    assert column_concentration(maps, causal=False).values[0] == pytest.approx(0, abs=1e-14)
    pair = torch.stack((maps, torch.eye(16, dtype=torch.float64)))
    assert attention_distance(pair, dims=["layer"], causal=False).values[0, 1] == pytest.approx(math.sqrt(15))
    assert uniform_distance(16, causal=False) == math.sqrt(15)
    assert largest_distance(8, causal=False) == 4
    with pytest.raises(ValueError, match="no weight on later keys"):
        sink_rate(maps)


def test_another_position_has_its_own_null():
    m = sink_rate(even(16), position=3)
    assert m["excess"][0] == pytest.approx(0, abs=1e-14)
    assert m["null"][0] == pytest.approx(sum(1 / i for i in range(4, 17)) / 16)


def test_rows_are_labelled_by_the_axes_and_heads_average_to_the_rate():
    maps = even(16).expand(2, 3, 2, 4, 16, 16).clone()
    maps[1, 2, 0, :3] = sink(16)
    m = sink_rate(maps)
    assert list(m.labels) == ["prompt", "recurrence", "layer", "head"]
    assert m.n_orbits == 48
    assert m.select(prompt=1, recurrence=3, layer=0).values.mean() == 0.75
    assert sink_rate(even(16)).n_orbits == 1
    assert not sink_rate(even(16)).labels
    assert list(mixing_score(maps, dims=["a", "b", "c", "d"]).labels) == ["a", "b", "c", "d"]


def test_depths_are_recurrence_by_recurrence_and_layer_by_layer():
    maps = drawn(2, 3, 2, 4, 9, 9)  # prompt, recurrence, layer, head
    m = attention_distance(maps)
    matrices = m.values.reshape(2, 4, 6, 6)
    assert matrices[1, 2, 3, 4] == pytest.approx(float((maps[1, 1, 1, 2] - maps[1, 2, 0, 2]).norm()), rel=1e-9)
    assert m.labels["recurrence"][:6].tolist() == [1, 1, 2, 2, 3, 3]
    assert m.labels["layer"][:2].tolist() == [0, 1]
    with pytest.raises(ValueError, match="along an axis recurrence or layer"):
        attention_distance(maps[:, 0, 0], dims=["prompt", "head"])


def test_maps_with_nan_and_maps_of_one_token_have_no_answer():
    maps = even(16).repeat(2, 1, 1)
    maps[1, 5, 2] = math.nan
    for measure in (sink_rate, mixing_score, column_concentration):
        m = measure(maps)
        assert list(m.outcomes) == [Outcome.FOUND, Outcome.NOT_FINITE]
        assert all(np.isnan(values[1]) and np.isfinite(values[0]) for values in m.variables.values())
        assert list(measure(torch.ones(1, 1)).outcomes) == [Outcome.TOO_SHORT]
        assert np.isnan(measure(torch.ones(1, 1)).values).all()
    m = attention_distance(maps, dims=["recurrence"])
    assert list(m.outcomes) == [Outcome.FOUND, Outcome.NOT_FINITE]
    assert m.values[0, 0] == 0
    assert np.isnan(m.values[[0, 1, 1], [1, 0, 1]]).all()


def test_queries_that_see_nothing_are_left_out():
    maps = sink(16)
    maps[:4] = 0
    assert sink_rate(maps)["score"][0] == 1
    assert mixing_score(maps).values[0] == 0


@pytest.mark.parametrize(("maps", "message"), [
    (torch.ones(4, 4), "adds up to 1"),
    (-torch.eye(4), "weights of at least 0"),
    (torch.ones(3, 4), r"must be numbers \(..., T, T\)"),
    (torch.ones(4, 4, dtype=torch.int64), r"must be numbers \(..., T, T\)"),
])
def test_what_is_no_attention_map_is_refused(maps, message):
    for measure in (sink_rate, mixing_score, column_concentration):
        with pytest.raises(ValueError, match=message):
            measure(maps)


def test_other_bad_input_is_refused():
    with pytest.raises(TypeError, match="attention_of"):
        mixing_score(np.eye(4))
    with pytest.raises(ValueError, match="dims must name the 1 leading axes"):
        mixing_score(even(4)[None], dims=["a", "b"])
    with pytest.raises(ValueError, match="need dims="):
        mixing_score(even(4).expand(1, 1, 1, 1, 1, 4, 4))
    with pytest.raises(ValueError, match="causal must be True or False"):
        mixing_score(even(4), causal="yes")
    with pytest.raises(ValueError, match="threshold must be above 0"):
        sink_rate(even(16), threshold=0)
    with pytest.raises(ValueError, match="position must be below 16"):
        sink_rate(even(16), position=16)
    with pytest.raises(ValueError, match="tolerance must be a positive number"):
        attention_stabilisation(even(16)[None], tolerance=0)
    with pytest.raises(ValueError, match="need an axis recurrence"):
        attention_stabilisation(even(16)[None], dims=["layer"])


def test_a_threshold_that_uniform_attention_passes_is_pointed_out():
    with pytest.warns(UserWarning, match="uniform attention over 8 tokens scores 0.34"):
        assert sink_rate(even(8)).values[0] == 1
    sink_rate(even(10))
