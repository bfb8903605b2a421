"""Recordings of live maps: the states are those of the map, rows that diverge stop, labels tell orbits apart."""

import numpy as np
import pytest
import torch

from dynloop import contraction_rate
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.trajectory import trajectory
from dynloop.models import nano
from dynloop.nano import NanoConfig, NanoModel

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nano_map(dtype=torch.float64, device="cpu"):
    model = nano(NanoModel(NanoConfig(width=8, n_heads=2), seed=3).to(device))
    return LoopMap.of(model, [list(b"loop"), list(b"maps"), list(b"slow")], dtype=dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_states_are_those_of_the_map_one_after_the_other(dtype, device):
    f = nano_map(dtype, device)
    h, which = f.initial_states([2, 0, 2, 1]), [2, 0, 2, 1]
    orbits = trajectory(f, h, 5, contexts=which)
    assert orbits.states.shape == (4, 6, f.dim)
    assert orbits.states.dtype == dtype
    assert orbits.states.device.type == device
    assert orbits.resolution == torch.finfo(dtype).eps
    for t in range(6):
        torch.testing.assert_close(orbits.states[:, t].reshape(h.shape), h)
        h = f(h, which)


def test_labels_count_the_starts_of_each_context():
    orbits = trajectory(LoopMap(lambda x, c: x, (1,), n_contexts=3), normal(5, 1), 2, contexts=[1, 0, 1, 1, 2])
    assert orbits.labels["context"].tolist() == [1, 0, 1, 1, 2]
    assert orbits.labels["start"].tolist() == [0, 0, 1, 2, 0]


def test_tokens_are_orbits_of_their_own():
    f = nano_map()
    h = f.initial_states([0, 1, 1])
    whole, apart = (trajectory(f, h, 4, contexts=[0, 1, 1], per=per) for per in ("state", "token"))
    assert apart.states.shape == (12, 5, 8)
    assert torch.equal(apart.states.reshape(3, 4, 5, 8).transpose(1, 2).flatten(2), whole.states)
    assert apart.labels["token"].tolist() == [0, 1, 2, 3] * 3
    assert apart.labels["context"].tolist() == [0] * 4 + [1] * 8
    assert apart.labels["start"].tolist() == [0] * 8 + [1] * 4


def test_batches_change_nothing():
    f, h = nano_map(), normal(7, 4, 8)
    whole = trajectory(f, h, 5)
    for size in (1, 3, 100):
        torch.testing.assert_close(trajectory(f, h, 5, batch_size=size).states, whole.states, rtol=1e-12, atol=1e-12)


def test_rows_that_leave_the_finite_numbers_are_cut_there_and_run_no_further():
    rows = []

    def square(x, contexts):
        rows.append(len(x))
        return x * x

    start = [[0.5, 0.5], [10.0, 1.0], [1e200, 0.0], [torch.nan, 0.0], [1e308, -1e308]]
    orbits = trajectory(LoopMap(square, (2,)), torch.tensor(start, dtype=torch.float64), 12)
    assert orbits.lengths.tolist() == [13, 9, 1, 0, 1]  # 10^(2^9) is past the largest number
    assert orbits.diverged.tolist() == [False, True, True, True, True]
    assert rows[0] == 4
    assert rows[-1] == 1


def test_a_map_that_brings_infinities_back_does_not_heal_an_orbit():
    orbits = trajectory(LoopMap(lambda x, c: torch.where(x.isinf(), 0.0, 1e200 * x), (1,)), torch.full((1, 1), 1e10), 9)
    assert orbits.lengths.tolist() == [2]


def test_a_large_state_whose_sum_overflows_is_finite():
    orbits = trajectory(LoopMap(lambda x, c: x, (2,)), torch.full((2, 2), 1.7e308, dtype=torch.float64), 3)
    assert orbits.lengths.tolist() == [4, 4]


def test_a_token_that_diverges_leaves_the_others_alone():
    f = LoopMap(lambda x, c: x * x, (2, 1))
    start = torch.tensor([[[0.5], [1e200]], [[1e200], [1e200]]], dtype=torch.float64)
    assert trajectory(f, start, 3, per="token").lengths.tolist() == [4, 1, 1, 1]
    assert trajectory(f, start, 3).lengths.tolist() == [1, 1]


def test_nothing_runs_when_all_have_diverged():
    calls = []
    f = LoopMap(lambda x, c: calls.append(1) or x * torch.inf, (1,))
    trajectory(f, torch.ones(2, 1), 50)
    assert len(calls) == 1


def test_the_rate_of_a_recorded_linear_map_is_its_spectral_radius():
    matrix = torch.diag(torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64))
    rate = contraction_rate(trajectory(LoopMap(lambda x, c: x @ matrix, (3,)), normal(2, 3), 128))
    np.testing.assert_allclose(rate.values, 0.9, rtol=1e-6)


@pytest.mark.parametrize(("settings", "message"), [
    ({"n_steps": 0}, "n_steps must be a whole number of at least 1"),
    ({"per": "layer"}, "per must be one of state, token; got 'layer'"),
    ({"per": "token"}, r"need states \(tokens, features\); map has states \(3,\)"),
    ({"batch_size": 0}, "batch_size must be a whole number of at least 1 row"),
    ({"start": normal(0, 3)}, "at least one state"),
    ({"start": normal(3)}, r"map maps states \(n, 3\); got \(3,\)"),
    ({"contexts": [5]}, "contexts must be 1 whole numbers from 0 to 0"),
])
def test_what_does_not_fit_is_refused(settings, message):
    given = {"start": normal(1, 3), "n_steps": 2} | settings
    with pytest.raises(ValueError, match=message):
        trajectory(LoopMap(lambda x, c: x, (3,)), **given)
