"""Width beside depth: spread, limits and agreement of parallel runs, where the answers are known in closed form."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from dynloop import LoopMap, Outcome, Trajectories, capture, estimate
from dynloop.maps.noisy_trajectory import noisy_trajectory
from dynloop.maps.parallel_trajectories import parallel_trajectories
from dynloop.maps.start_spread import spread_of, start_spread
from dynloop.maps.trajectory import trajectory
from dynloop.models import load, nano
from dynloop.models.looped_model import Missing
from dynloop.models.random_start import random_start
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording.prompt_states import prompt_states

TWO_WELLS = LoopMap(lambda x, c: torch.tanh(2 * x), (1,))
PROMPTS = ["import os", "def f(x):"]


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def affine(a, b=1.0, dim=16, **settings):
    return LoopMap(lambda x, c: a * x + b, (dim,), **settings)


# ---- spread


@pytest.mark.parametrize("a", [0.3, -0.8, 0.95])
def test_a_contraction_shrinks_the_spread_by_its_rate_at_every_step_and_has_one_limit(a):
    m = start_spread(trajectory(affine(a), drawn(6, 16), 700))
    np.testing.assert_allclose(m["remaining_spread"][0, :40], abs(a) ** np.arange(40), rtol=1e-9, atol=1e-15)
    assert m.found.all()
    assert m["n_limits"].tolist() == [1]
    assert m["largest_share"].tolist() == m["settled_share"].tolist() == [1]


def test_an_expansion_grows_the_spread_and_has_no_limit():
    m = start_spread(trajectory(affine(1.1), drawn(6, 16), 60))
    np.testing.assert_allclose(m["remaining_spread"][0], 1.1 ** np.arange(61), rtol=1e-9)
    assert m.outcomes.tolist() == [Outcome.NOT_CONVERGED]
    assert np.isnan(m["n_limits"][0])
    assert m["settled_share"].tolist() == m["least_limits"].tolist() == [0]


@given(n=st.integers(2, 7), dim=st.integers(1, 5), shift=st.floats(-1e6, 1e6), seed=st.integers(0, 99))
def test_spread_is_the_root_mean_square_distance_of_two_over_root_two(n, dim, shift, seed):
    states = drawn(n, 3, dim, seed=seed) + shift
    spread, size = spread_of(states)
    pairs = torch.stack([(states[i] - states[j]).square().sum(-1) for i, j in itertools.combinations(range(n), 2)])
    np.testing.assert_allclose(spread, (pairs.mean(0) / 2).sqrt(), rtol=1e-6, atol=1e-9 * (1 + abs(shift)))
    np.testing.assert_allclose(size, states.norm(dim=-1).square().mean(0).sqrt(), rtol=1e-9)


def test_equal_states_have_no_spread_at_all_in_any_format():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        spread, _ = spread_of((drawn(1, 4, 8) * 1e3).repeat(7, 1, 1).to(dtype))
        assert (spread == 0).all()


def test_noise_spreads_a_contraction_to_the_closed_form():
    a, sigma, dim = 0.9, 0.05, 64
    orbits = noisy_trajectory(affine(a, 0.0, dim), torch.zeros(400, dim, dtype=torch.float64), 120, noise=sigma,
                              relative=False)
    spread = start_spread(orbits)["spread"][0]
    steps = np.arange(121)
    np.testing.assert_allclose(spread, sigma * np.sqrt(dim * (1 - a ** (2 * steps)) / (1 - a**2)), rtol=0.02)


def test_the_spread_does_not_depend_on_how_many_runs_there_are():
    a, sigma = 0.5, 1.0
    orbits = noisy_trajectory(affine(a, 0.0, 4), torch.zeros(4000, 4, dtype=torch.float64), 12, noise=sigma,
                              relative=False)
    squared = [np.mean([spread_of(orbits.states[i:i + n, -1:])[0][0] ** 2 for i in range(0, 4000, n)])
               for n in (2, 5, 50)]
    np.testing.assert_allclose(squared, 4 / (1 - a**2), rtol=0.05)


def test_relative_noise_is_in_units_of_the_state():
    start = torch.full((300, 40), 7.0, dtype=torch.float64)
    orbits = noisy_trajectory(affine(1.0, 0.0, 40), start, 1, noise=0.01)
    np.testing.assert_allclose((orbits.states[:, 1] - 7).std(), 0.07, rtol=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_noise_every_bit_is_that_of_a_plain_trajectory(dtype):
    f = affine(0.7, dtype=dtype)
    assert torch.equal(noisy_trajectory(f, drawn(5, 16), 30, noise=0.0).states, trajectory(f, drawn(5, 16), 30).states)


def test_each_run_has_noise_of_its_own_whatever_runs_beside_it_and_quiet_steps_have_none():
    f, start = affine(0.7), drawn(5, 16)
    whole = noisy_trajectory(f, start, 30, noise=0.1, n_quiet=10)
    np.testing.assert_array_equal(noisy_trajectory(f, start, 30, noise=0.1, n_quiet=10, batch_size=2).states,
                                  whole.states)
    again = trajectory(f, whole.states[:, 20], 10)
    assert torch.equal(again.states, whole.states[:, 20:])
    assert not torch.equal(whole.states[0, 1] - f(start)[0], whole.states[1, 1] - f(start)[1])
    assert not torch.equal(noisy_trajectory(f, start, 30, noise=0.1, rng=1).states, whole.states)


# ---- limits


def test_two_wells_have_two_limits_with_the_shares_of_their_starts():
    begin = drawn(400, 1) + 0.5
    m = start_spread(trajectory(TWO_WELLS, begin, 100))
    right = float((begin > 0).double().mean())
    assert m["n_limits"].tolist() == [2]
    assert m["largest_share"][0] == right
    assert m["final_spread"][0] == pytest.approx(2 * 0.9575040240772687 * math.sqrt(right * (1 - right) * 400 / 399))


def test_noise_puts_the_runs_into_both_wells_and_quiet_steps_show_it():
    begin = torch.full((60, 1), 0.9575)
    noisy = noisy_trajectory(TWO_WELLS, begin, 260, noise=0.6, relative=False, n_quiet=60)
    m = start_spread(noisy)
    assert m["n_limits"].tolist() == [2]
    assert 0.3 < m["largest_share"][0] < 0.75
    assert np.isnan(m["remaining_spread"]).all()  # they began at one point
    loud = start_spread(noisy_trajectory(TWO_WELLS, begin, 260, noise=0.6, relative=False))
    assert loud.outcomes.tolist() == [Outcome.NOT_CONVERGED]


def test_under_the_identity_every_start_is_its_own_limit():
    m = start_spread(trajectory(LoopMap(lambda x, c: x, (3,)), drawn(7, 3), 60))
    assert m["n_limits"].tolist() == [7]
    assert m["largest_share"][0] == pytest.approx(1 / 7)
    assert (m["remaining_spread"] == 1).all()


def test_starts_on_one_cycle_at_other_phases_share_their_limit():
    turn = LoopMap(lambda x, c: 0.5 * (x - torch.tensor([1.0, 0]) * x[:, :1].sign()) @ torch.diag(
        torch.tensor([-1.0, 1])).double() - torch.tensor([1.0, 0]) * x[:, :1].sign(), (2,))  # +-1 in turn, damped
    m = start_spread(trajectory(turn, torch.tensor([[1.2, 0.3], [-0.9, 0.1], [0.8, -2]], dtype=torch.float64), 200))
    assert m["n_limits"].tolist() == [1]
    assert m["final_spread"][0] > 0.5  # out of phase


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_rounding_at_the_floor_is_no_other_limit(dtype, seed):
    """A contracting matrix in a short format stalls in other last bits from every start: 64 groups, one limit each."""
    matrix = torch.linalg.qr(drawn(32, 32, seed=seed))[0] * 0.9
    offset = drawn(64, 32, seed=seed + 9)
    f = LoopMap(lambda x, c: (x @ matrix.to(x) + offset.to(x)[c]), (32,), n_contexts=64, dtype=dtype)
    contexts = torch.arange(64).repeat(8)
    m = start_spread(trajectory(f, 3 * drawn(512, 32, seed=seed + 20), 300, contexts=contexts))
    assert len(m.outcomes) == 64
    assert (m["least_limits"] == 1).all()
    assert (m["n_limits"][m.found] == 1).all()
    assert m.found.mean() == 1 or dtype == torch.bfloat16
    assert (m["final_relative_spread"] < 8 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_jitter_of_any_size_makes_no_other_limits(dtype):
    """Noise from the floor up to the radius, which seems to shrink at other lags by chance: never a second limit."""
    f, root = affine(0.5, n_contexts=20, dtype=dtype), torch.finfo(dtype).eps ** 0.5
    contexts = torch.arange(20).repeat(6)
    for noise in (1e-3, 0.03, 0.3, 1, 30):
        orbits = noisy_trajectory(f, drawn(120, 16), 100, noise=noise * root, contexts=contexts)
        m = start_spread(orbits)
        assert (m["least_limits"] <= 1).all()
        assert (m["n_limits"][m.found] == 1).all()
    assert (m["settled_share"] == 0).all()  # far above the radius nothing has settled


def test_orbits_that_are_too_short_or_leave_the_numbers_have_no_limit():
    m = start_spread(trajectory(affine(0.5), drawn(3, 16), 20))
    assert m.outcomes.tolist() == [Outcome.TOO_SHORT]
    assert np.isfinite(m["spread"]).all()
    assert start_spread(trajectory(affine(0.5), drawn(3, 16), 60), max_period=4).found.all()
    m = start_spread(trajectory(LoopMap(lambda x, c: x**2, (1,)), torch.tensor([[0.5], [0.25], [9.0]]), 60))
    assert m.outcomes.tolist() == [Outcome.NOT_FINITE]
    assert np.isfinite(m["spread"][0, :5]).all()
    assert np.isnan(m["spread"][0, -1])
    assert np.isnan(m["final_spread"][0])


def test_groups_are_those_that_agree_in_all_labels_but_start_and_seed():
    states = drawn(12, 60, 2)
    labels = {"prompt": np.arange(12) % 2, "layer": np.arange(12) // 6, "start": np.arange(12) // 2 % 3,
              "seed": np.arange(12)}
    m = start_spread(Trajectories(states, labels=labels))
    assert list(zip(m.labels["prompt"], m.labels["layer"], strict=True)) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert set(m.labels) == {"prompt", "layer"}
    np.testing.assert_allclose(m["spread"][3], spread_of(states[[7, 9, 11]])[0])


# ---- models


def test_a_recording_and_a_live_run_have_the_same_spread(tmp_path):
    store = capture("nano-settles", PROMPTS, out=tmp_path / "s", n_recurrences=64, start="random", n_starts=4,
                    layers="state")
    recorded = start_spread(store)
    live = parallel_trajectories("nano-settles", PROMPTS, n_starts=4, n_recurrences=64, start="random")
    assert recorded.n_orbits == live.n_orbits == 18
    order = np.lexsort((recorded.labels["token"], recorded.labels["prompt"]))
    np.testing.assert_allclose(live["relative_spread"][:, 1:], recorded["relative_spread"][order], rtol=2e-3, atol=1e-6)
    np.testing.assert_array_equal(live["n_limits"], recorded["n_limits"][order])
    whole = start_spread(next(iter(prompt_states(store, prompt=0))))
    squared = (recorded["spread"][recorded.labels["prompt"] == 0] ** 2).sum(0)
    np.testing.assert_allclose(whole["spread"][0] ** 2, squared, rtol=1e-5)


def test_a_model_with_random_starts_comes_to_one_limit_and_one_answer():
    m = parallel_trajectories("nano-random-start", PROMPTS, n_starts=6, n_recurrences=96, positions=[3, -1])
    assert m.labels["token"].tolist() == [3, 8, 3, 8]
    assert m.found.all()
    assert (m["n_limits"] == 1).all()
    assert (m["agreement"] == 1).all()
    assert (m["kl"] < 1e-6).all()
    assert (m["remaining_spread"][:, 0] == 1).all()
    assert (m["remaining_spread"][:, -1] < 1e-4).all()
    found = estimate(m, statistic="mean", variable="agreement", resample="prompt")
    assert found.value == 1


def test_answers_are_those_of_the_definitions_and_kappa_is_that_of_fleiss():
    looped = nano(NanoModel(NanoConfig(width=16, n_heads=2, injection="none"), seed=1))
    prompts = [[5, 6, 7, 8], [9, 8, 7]]
    m = parallel_trajectories(looped, prompts, n_starts=5, n_recurrences=3, start="random", seed=11)
    begins = random_start(looped)
    top, kls = [], []
    for i, prompt in enumerate(prompts):
        tokens = torch.tensor([prompt] * 5)
        with torch.no_grad():
            state = begins.initial_state(looped.embed(tokens), seeds=[11 + i + 2 * s for s in range(5)])
            log_p = looped.logits(tokens, 3, state).double().log_softmax(-1)
        top.append(log_p.argmax(-1).T)
        kls += [np.mean([float((log_p[a, t].exp() * (log_p[a, t] - log_p[b, t])).sum())
                         for a, b in itertools.permutations(range(5), 2)]) for t in range(len(prompt))]
    answers = torch.cat(top).numpy()
    np.testing.assert_allclose(m["kl"], kls, rtol=1e-4)
    np.testing.assert_allclose(m["agreement"], [np.mean([a[i] == a[j] for i, j in itertools.combinations(range(5), 2)])
                                                for a in answers])
    np.testing.assert_allclose(m["majority"], [np.bincount(a).max() / 5 for a in answers])
    assert 0 < m["agreement"].mean() < 1
    assert m["kappa"].mean() == pytest.approx(fleiss_kappa(aggregate_raters(answers)[0]))


def test_noise_off_gives_the_same_bits_and_noise_parts_runs_that_begin_as_one():
    settings = {"n_starts": 3, "n_recurrences": 12, "start": "random"}
    quiet, off = (parallel_trajectories("nano-settles", PROMPTS[:1], **settings, **extra)
                  for extra in ({}, {"noise": 0.0, "n_quiet": 4}))
    for name in quiet.variables:
        np.testing.assert_array_equal(quiet[name], off[name])
    loud = parallel_trajectories("nano-settles", PROMPTS[:1], n_starts=3, n_recurrences=100, start="same", noise=1e-3,
                                 n_quiet=60)
    assert (loud["spread"][:, 0] == 0).all()
    assert (loud["spread"][:, 1] > 0).all()
    assert loud.found.all()
    assert (loud["n_limits"] == 1).all()
    assert (loud["final_relative_spread"] < 1e-5).all()
    np.testing.assert_allclose(loud["relative_spread"][:, 1], 1e-3, rtol=0.3)


def test_the_model_comes_back_as_it_was_and_a_broken_one_has_no_answer():
    model = NanoModel(NanoConfig(width=16, n_heads=2), seed=1)
    model.train()
    drawn_before = torch.get_rng_state()
    settings = {"n_starts": 3, "n_recurrences": 4, "start": "random", "noise": 0.1}
    parallel_trajectories(model, [[1, 2]], **settings)
    assert model.training
    assert torch.equal(drawn_before, torch.get_rng_state())
    with torch.no_grad():
        next(model.block.parameters()).fill_(math.nan)
    m = parallel_trajectories(model, [[1, 2]], **settings)
    assert set(m.outcomes) == {Outcome.NOT_FINITE}
    assert np.isnan(m["agreement"]).all()
    assert np.isnan(m["kappa"]).all()


def test_a_random_start_is_that_of_capture(tmp_path):
    store = capture("nano-settles", ["abc"], out=tmp_path / "s", n_recurrences=1, start="random", n_starts=2, seed=4)
    looped = load("nano-settles")
    context = looped.embed(torch.tensor([list(b"abc")] * 2))
    begin = random_start(looped).initial_state(context, seeds=[4, 5])
    assert torch.equal(begin.detach(), next(store.inputs())["initial_states"])
    with pytest.raises(ValueError, match="has no step"):
        random_start(dataclasses.replace(looped, step=Missing("step", "it")))


# ---- refusals

LOOPED = nano(NanoModel(NanoConfig(width=16, n_heads=2), seed=1))


@pytest.mark.parametrize(("settings", "message"), [
    ({"n_starts": 1}, "n_starts must be a whole number of at least 2"),
    ({"n_recurrences": 0}, "n_recurrences must be a whole number"),
    ({"n_quiet": 5}, "n_quiet must be at most n_recurrences = 4"),
    ({"n_quiet": -1}, "n_quiet must be a whole number"),
    ({"start": "model"}, "its initial state is not random, and there is no noise"),
    ({"start": "same"}, "its initial state is to be the same, and there is no noise"),
    ({"start": "zero"}, "start must be one of model, random, same"),
    ({"noise": -1}, "noise must be a number of at least 0"),
    ({"relative": 1}, "relative must be true or false"),
    ({"seed": -1}, "seed must be a whole number"),
    ({"positions": [2]}, "positions must be among 0 to 1"),
    ({"max_period": 0}, "max_period must be a whole number"),
    ({"tolerance": 2}, "tolerance must be between 0 and 1"),
    ({"prompts": "abc"}, "prompts must be a list"),
    ({"prompts": []}, "prompts must be a list"),
    ({"prompts": [[]]}, "prompt 0 must be a text or whole numbers from 0 to 255"),
    ({"prompts": [[1], [256]]}, "prompt 1 must be a text"),
])
def test_bad_settings_are_refused(settings, message):
    given = {"prompts": [[1, 2]], "n_recurrences": 4, "start": "random", **settings}
    with pytest.raises(ValueError, match=message):
        parallel_trajectories(LOOPED, given.pop("prompts"), **given)


@pytest.mark.parametrize(("changed", "message"), [
    ({"step": lambda h, context: h + torch.randn_like(h)}, "draws random numbers in its step"),
    ({"readout": lambda h, context: h[:, 0]}, r"gave \(8, 16\); logits"),
    ({"multiple": 3}, "runs multiples of 3 recurrences"),
    ({"readout": Missing("readout", "it")}, "start_spread"),
])
def test_models_that_cannot_answer_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        parallel_trajectories(dataclasses.replace(LOOPED, **changed), [[1, 2]], n_recurrences=4, start="random")


def test_bad_recordings_are_refused():
    with pytest.raises(ValueError, match="need the label 'start'"):
        start_spread(Trajectories(drawn(2, 9, 2)))
    with pytest.raises(ValueError, match="2 of 2 groups have one start alone"):
        start_spread(Trajectories(drawn(2, 9, 2), labels={"start": [0, 0], "prompt": [0, 1]}))
    with pytest.raises(ValueError, match="as Trajectories or a store; got ndarray"):
        start_spread(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="n_quiet must be at most n_steps = 3"):
        noisy_trajectory(affine(0.5), drawn(2, 16), 3, noise=0.1, n_quiet=4)
