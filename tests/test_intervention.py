"""States put in place and states pushed: what must not change does not, and what is known comes out."""

import numpy as np
import pytest
import torch

from dynloop import Outcome
from dynloop.maps.intervention import intervene, recovery
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.trajectory import trajectory
from dynloop.models import nano
from dynloop.nano import NanoConfig, NanoModel
from synthetic.blocks import turning_block

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
T, WIDTH = 4, 8


@pytest.fixture(autouse=True, scope="module")
def few_threads():
    torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def nano_map(device="cpu"):
    """With small weights, so that it settles."""
    model = NanoModel(NanoConfig(width=WIDTH, n_heads=2, n_block=1, injection="additive"))
    with torch.no_grad():
        for weight in model.block.parameters():
            weight.mul_(0.7 if weight.ndim > 1 else 1)
    return LoopMap.of(nano(model.to(device)), [list(b"loop"), list(b"maps")])


def linear(matrix):
    return LoopMap(lambda x, c: x @ matrix.T + 1, (len(matrix),))


# ---- replacement


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tokens", [None, [1, -1]])
@pytest.mark.parametrize(("at", "n_held"), [(0, 1), (3, 1), (2, 4), (6, 1), (0, 7)])
def test_a_run_patched_with_its_own_states_does_not_change(at, n_held, tokens, device):
    f = nano_map(device)
    h = f.initial_states()
    own = trajectory(f, h, 6)
    assert torch.equal(intervene(f, h, 6, at=at, state=own, tokens=tokens, n_held=n_held).states, own.states)


def test_a_patch_takes_the_place_and_the_loop_goes_on_from_it():
    f = nano_map()
    h, other = f.initial_states(), normal(2, T, WIDTH)
    patched = intervene(f, h, 7, at=3, state=other)
    free = trajectory(f, h, 7)
    assert torch.equal(patched.states[:, :3], free.states[:, :3])
    torch.testing.assert_close(patched.states[:, 3:], trajectory(f, other, 4).states)


def test_a_replaced_start_is_another_start():
    f, other = nano_map(), normal(1, T, WIDTH)
    patched = intervene(f, f.initial_states(), 5, at=0, state=other)
    torch.testing.assert_close(patched.states, trajectory(f, other.expand(2, -1, -1), 5).states)


def test_a_patched_token_changes_no_earlier_token_of_a_causal_model():
    f = nano_map()
    h, other = f.initial_states(), normal(2, T, WIDTH)
    free, patched = trajectory(f, h, 6), intervene(f, h, 6, at=2, state=other, tokens=[2])
    away = (patched.states - free.states).reshape(2, 7, T, WIDTH).norm(dim=-1)
    assert away[:, :, :2].max() == 0
    assert away[:, :2].max() == 0
    assert torch.equal(patched.states.reshape(2, 7, T, WIDTH)[:, 2, 2], other[:, 2])
    assert away[:, 2, 3].max() == 0  # the next token hears of it one recurrence later
    assert away[:, 3:, 2:].min() > 0


def test_a_later_state_of_another_run_can_be_put_in_early():
    f = nano_map()
    h = f.initial_states()
    run = trajectory(f, h, 9)
    patched = intervene(f, h, 5, at=1, state=run, state_at=5)
    torch.testing.assert_close(patched.states[:, 1:], run.states[:, 5:])


def test_a_held_token_stays_where_it_is_put():
    f = nano_map()
    h, other = f.initial_states(), normal(1, T, WIDTH)
    patched = intervene(f, h, 6, at=2, state=other, tokens=[0], n_held=3).states.reshape(2, 7, T, WIDTH)
    assert (patched[:, 2:5, 0] == other[:, 0]).all()
    assert (patched[:, 5, 0] != other[:, 0]).any()


def test_orbits_of_tokens_are_the_same_orbits():
    f = nano_map()
    h, other = f.initial_states(), normal(1, T, WIDTH)
    whole, apart = (intervene(f, h, 4, at=2, state=other, per=per) for per in ("state", "token"))
    assert torch.equal(apart.states.reshape(2, T, 5, WIDTH).transpose(1, 2).flatten(2), whole.states)


def test_rows_that_diverged_before_the_patch_stay_out():
    f = LoopMap(lambda x, c: x * x, (1,))
    start = torch.tensor([[1e200], [0.5]], dtype=torch.float64)
    patched = intervene(f, start, 4, at=3, state=torch.tensor([[7.0], [8.0]]))
    assert patched.lengths.tolist() == [1, 5]
    assert patched.states[1, 3:].flatten().tolist() == [8.0, 64.0]


@pytest.mark.parametrize(("settings", "message"), [
    ({"at": -1}, r"at must be a recurrence from 0 \(the start\) to 4"),
    ({"at": 5}, "recurrences 5 to 5 are to be replaced, and the run ends with 4"),
    ({"at": 3, "n_held": 3}, "recurrences 3 to 5 are to be replaced"),
    ({"n_held": 0}, "n_held must be a whole number"),
    ({"n_steps": 0}, "n_steps must be a whole number"),
    ({"tokens": []}, r"at least one position from -4 to 3; got \[\]"),
    ({"tokens": [4]}, r"at least one position from -4 to 3; got \[4\]"),
    ({"state": torch.zeros(3, T, WIDTH)}, r"state must be \(2, 4, 8\), or 1 row for all; got \(3, 4, 8\)"),
    ({"state": torch.zeros(T, WIDTH)}, "state must be"),
    ({"state_at": 1}, "state_at belongs to another run"),
])
def test_replacements_that_do_not_fit_are_refused(settings, message):
    f = nano_map()
    given = {"n_steps": 4, "at": 1, "state": torch.zeros(2, T, WIDTH)} | settings
    with pytest.raises(ValueError, match=message):
        intervene(f, f.initial_states(), **given)


def test_another_run_must_have_the_recurrence():
    f = LoopMap(lambda x, c: x * x, (1,))
    start = torch.full((1, 1), 1e100, dtype=torch.float64)
    run = trajectory(f, start, 3)
    with pytest.raises(ValueError, match="left the finite numbers after 2 states; recurrence 2 is asked for"):
        intervene(f, start, 3, at=2, state=run)
    with pytest.raises(ValueError, match=r"recurrence 4; got Trajectories\(1 orbits of 4 steps"):
        intervene(f, start, 5, at=4, state=run)
    with pytest.raises(ValueError, match="must have 2 orbits in 1 dimensions"):
        intervene(f, start.expand(2, 1), 3, at=1, state=run)
    with pytest.raises(ValueError, match="state_at must be a recurrence of the other run"):
        intervene(f, start, 3, at=1, state=run, state_at=-1)


def test_tokens_belong_to_states_that_have_some():
    f = linear(torch.eye(2))
    with pytest.raises(ValueError, match=r"map has states \(2,\). Leave them out"):
        intervene(f, normal(1, 2), 3, at=1, state=normal(1, 2), tokens=[0])
    with pytest.raises(ValueError, match=r"map has states \(2,\). Leave them out"):
        recovery(f, normal(1, 2), at=1, tokens=[0])


# ---- recovery


MATRICES = {"real": [[0.9, 0.3, 0.0], [0.0, 0.6, 0.2], [0.0, 0.0, 0.2]],
            "complex": [[0.8 * np.cos(1), -0.8 * np.sin(1), 0], [0.8 * np.sin(1), 0.8 * np.cos(1), 1], [0, 0, 0.4]],
            "far from normal": [[0.8, 20.0], [0.0, 0.7]]}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES.keys())
def test_the_rate_of_recovery_is_the_spectral_radius(matrix):
    matrix = torch.tensor(matrix, dtype=torch.float64)
    m = recovery(linear(matrix), normal(3, len(matrix)), at=10, n_steps=96)
    assert m.found.all()
    np.testing.assert_allclose(m.values, torch.linalg.eigvals(matrix).abs().max(), rtol=1e-4)
    powers = np.stack([np.linalg.matrix_power(matrix.numpy(), t) for t in range(97)])
    assert (m["largest"] <= 1.001 * np.linalg.norm(powers, 2, axis=(1, 2)).max()).all()


def test_the_rate_is_that_of_a_block_with_known_multipliers():
    block = turning_block(rate=0.85, n_layers=2, width=16)
    f = LoopMap.from_module(block, (16,), contexts=[block.embed([0, 1])])
    m = recovery(f, block.limits(block.embed([0, 1]))[:, 0, -1], at=0, size=1e-6, n_steps=128)
    assert m.found.all()
    np.testing.assert_allclose(m.values, 0.85, rtol=2e-3)


def test_the_rate_of_a_model_is_the_spectral_radius_at_its_limit():
    f = nano_map()
    h = f.initial_states()
    for _ in range(300):
        h = f(h)
    assert (f(h) - h).norm() < 1e-12 * h.norm()
    m = recovery(f, h, at=0, size=1e-5)
    assert m.found.all()
    np.testing.assert_allclose(m.values, torch.linalg.eigvals(f.jacobian(h)).abs().amax(1), rtol=5e-3)


def test_the_push_has_the_size_and_the_tokens_that_were_asked_for():
    seen = []

    def function(x, contexts):
        seen.append(x.clone())
        return 0.5 * x

    h = normal(2, 3, 5)
    recovery(LoopMap(function, (3, 5)), h, at=0, size=0.01, tokens=[-1], n_steps=40)
    push = seen[0][2:] - seen[0][:2]
    assert push[:, :2].abs().max() == 0
    torch.testing.assert_close(push[:, 2].norm(dim=-1), 0.01 * h[:, 2].norm(dim=-1))


def test_the_same_seed_pushes_the_same_way():
    f, h = linear(torch.diag(torch.tensor([0.9, 0.5])).double()), normal(2, 2)
    first, second, other = (recovery(f, h, at=1, rng=rng)["distance"] for rng in (0, 0, 1))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_the_distance_is_that_of_the_two_runs():
    f = linear(torch.diag(torch.tensor([0.9, 0.9], dtype=torch.float64)))
    m = recovery(f, normal(1, 2), at=3, n_steps=20)
    np.testing.assert_allclose(m["distance"][0], 0.9 ** np.arange(21), rtol=1e-9)
    np.testing.assert_allclose(m["last"], 0.9**20)
    np.testing.assert_allclose(m["largest"], 1.0)
    assert m.unit == "per recurrence"


def test_a_push_that_grows_is_not_recovered_from():
    m = recovery(LoopMap(lambda x, c: 4 * x * (1 - x), (1,)), torch.tensor([[0.3], [0.7123]]), at=5, size=1e-6)
    assert not m.found.any()
    assert np.isnan(m.values).all()
    assert (m["largest"] > 100).all()


def test_a_push_into_another_basin_is_not_recovered_from():
    """Pushed across 0, the run comes to rest as firmly, but elsewhere."""
    f = LoopMap(lambda x, c: torch.tanh(2 * x), (1,))
    start = torch.full((8, 1), 0.5, dtype=torch.float64)
    m = recovery(f, start, at=0, size=2.0)
    crossed = m["last"] > 0.5
    assert 0 < crossed.sum() < 8
    assert (m.outcomes[crossed] == Outcome.NOT_FOUND).all()
    assert m.found[~crossed].all()


def test_a_push_that_is_forgotten_at_once_lies_at_the_precision_floor():
    m = recovery(LoopMap(lambda x, c: torch.ones_like(x), (2,)), normal(1, 2), at=0)
    assert m.outcomes.tolist() == [Outcome.AT_PRECISION_FLOOR]


def test_a_run_that_leaves_the_finite_numbers_has_no_rate():
    m = recovery(LoopMap(lambda x, c: x * x, (1,)), torch.tensor([[0.5], [1e10]]), at=1, n_steps=20)
    assert m.outcomes[1] == Outcome.NOT_FINITE
    assert np.isnan(m["distance"][1, -1])
    assert np.isfinite(m["distance"][1, 0])
    assert np.isfinite(m["last"]).all()
    gone = recovery(LoopMap(lambda x, c: x * x, (1,)), torch.tensor([[1e200]], dtype=torch.float64), at=3, n_steps=20)
    assert gone.outcomes.tolist() == [Outcome.NOT_FINITE]
    assert np.isnan(gone["last"]).all()
    assert np.isnan(gone["largest"]).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"at": -1}, "at must be a recurrence"),
    ({"n_steps": 0}, "n_steps must be a whole number"),
    ({"size": 0.0}, "size must be a positive number"),
    ({"confidence_level": 1.0}, "confidence_level must be between 0 and 1"),
    ({"size": 1e-30}, r"size=1e-30 is lost in the rounding of torch.float64 in row 0"),
    ({"start": torch.zeros(1, 2)}, "row 0 of the state that is to be pushed is 0"),
])
def test_pushes_that_do_not_fit_are_refused(settings, message):
    given = {"start": normal(1, 2), "at": 0} | settings
    with pytest.raises(ValueError, match=message):
        recovery(LoopMap(lambda x, c: 0.5 * x, (2,)), **given)
