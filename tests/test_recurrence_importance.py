"""What is lost with a recurrence: against runs written out by hand, and where the answer is known."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from looped_modules import two_stacks

from dynloop import LoopMap, Outcome, estimate, intervene
from dynloop.maps.recurrence_importance import recurrence_importance
from dynloop.models import load, nano
from dynloop.models.looped_model import Missing
from dynloop.nano import NanoConfig, NanoModel

PROMPTS = torch.randint(0, 256, (5, 8), generator=torch.Generator().manual_seed(0))
LOOPED = nano(NanoModel(NanoConfig(width=16, n_heads=2), seed=1))


def written_out(prompt, n, r, replacement, positions, prompts=PROMPTS):
    """The numbers of one prompt, by `intervene` on the map and the definitions."""
    loop_map = LoopMap.of(LOOPED, prompts, dtype=None)
    start = loop_map.initial_states()
    base = intervene(loop_map, start, n, at=0, state=start).states
    held = {"previous": base[:, r - 1], "start": base[:, 0], "other prompt": base[:, r].roll(-1, 0)}[replacement]
    changed = intervene(loop_map, start, n, at=r, state=held.unflatten(1, loop_map.state_shape),
                        tokens=positions).states
    p, q = (loop_map.readout(run[:, n].unflatten(1, loop_map.state_shape))[prompt].double().softmax(-1)
            for run in (base, changed))
    following = prompts[prompt, 1:]
    at = torch.arange(len(following))
    losses = [-float(x[at, following].log().mean()) for x in (p, q)]
    return (losses[1] - losses[0], float((p * (p / q).log()).sum(-1).mean()),
            float((p.argmax(-1) != q.argmax(-1)).double().mean()))


@pytest.mark.parametrize("replacement", ["previous", "start", "other prompt"])
@pytest.mark.parametrize("positions", [None, [2, -1]])
def test_the_numbers_are_those_of_a_run_with_the_state_replaced(replacement, positions):
    m = recurrence_importance(LOOPED, PROMPTS, n_recurrences=4, replacement=replacement, positions=positions,
                              batch_size=2)
    assert m.n_orbits == 20
    assert m.found.all()
    for prompt in (0, 4):
        for r in (1, 3, 4):
            own = m.select(prompt=prompt, recurrence=r)
            np.testing.assert_allclose([own["loss_change"][0], own["kl"][0], own["argmax_changed"][0]],
                                       written_out(prompt, 4, r, replacement, positions), atol=2e-6)
    np.testing.assert_allclose(m["loss"] - m["base_loss"], m["loss_change"], atol=1e-12)


def test_skipping_a_recurrence_of_one_map_is_running_one_fewer():
    m = recurrence_importance(LOOPED, PROMPTS, n_recurrences=6)
    kl = m["kl"].reshape(5, 6)
    assert (kl == kl[:, :1]).all()
    fewer = LOOPED.logits(PROMPTS, 5, None).double().log_softmax(-1)
    base = LOOPED.logits(PROMPTS, 6, None).double().log_softmax(-1)
    np.testing.assert_allclose(kl[:, 0], (base.exp() * (base - fewer)).sum(-1).mean(-1).detach(), atol=1e-6)


def test_a_loop_that_has_settled_misses_no_recurrence_and_mends_an_early_restart():
    settled = load("nano-settles")
    m = recurrence_importance(settled, [list(b"import os, sys")], n_recurrences=64, recurrences=[1, 64])
    assert m["kl"].max() < 1e-8
    assert not m["argmax_changed"].any()
    m = recurrence_importance(settled, [list(b"import os, sys")], n_recurrences=64, recurrences=[16, -1],
                              replacement="start")
    assert m["kl"][0] < 1e-8 < 1e-2 < m["kl"][1]


def test_a_model_whose_recurrences_differ_is_skipped_one_by_one():
    looped = two_stacks.looped()
    assert looped.is_map
    m = recurrence_importance(looped, torch.arange(12).reshape(2, 6) % looped.vocabulary, n_recurrences=4)
    assert m.n_orbits == 8
    assert m.found.all()


def test_intervals_are_over_prompts():
    m = recurrence_importance(LOOPED, PROMPTS, n_recurrences=3, recurrences=[2], replacement="start")
    found = estimate(m, statistic="mean", variable="kl", resample="prompt")
    assert found.n_units == 5
    assert found.low <= found.value <= found.high


def test_targets_choose_what_the_loss_is_of():
    targets = torch.full_like(PROMPTS, -100)
    targets[:, -1] = 7
    m = recurrence_importance(LOOPED, PROMPTS, n_recurrences=3, recurrences=[3], targets=targets)
    base = LOOPED.logits(PROMPTS, 3, None).double().log_softmax(-1)
    np.testing.assert_allclose(m["base_loss"], -base[:, -1, 7].detach(), atol=1e-6)


def test_the_model_comes_back_as_it_was_and_a_broken_one_has_no_answer():
    model = NanoModel(NanoConfig(width=16, n_heads=2), seed=1)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    recurrence_importance(model, PROMPTS, n_recurrences=2)
    assert model.training
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        next(model.block.parameters()).fill_(math.nan)
    m = recurrence_importance(model, PROMPTS, n_recurrences=2)
    assert set(m.outcomes) == {Outcome.NOT_FINITE}
    assert np.isnan(m["base_loss"]).all()


@pytest.mark.parametrize(("settings", "message"), [
    ({"n_recurrences": 0}, "n_recurrences must be a whole number"),
    ({"batch_size": 0}, "batch_size must be a whole number"),
    ({"replacement": "zero"}, "replacement must be one of previous, start, other prompt"),
    ({"recurrences": [0]}, "recurrences must be among 1 to 4"),
    ({"recurrences": [5]}, "recurrences must be among 1 to 4"),
    ({"recurrences": ["a"]}, "recurrences must be among 1 to 4"),
    ({"positions": [8]}, "positions must be among 0 to 7"),
    ({"positions": []}, "positions must be among 0 to 7"),
    ({"targets": torch.zeros(2, 2, dtype=torch.int64)}, "targets must be whole numbers"),
    ({"targets": torch.full((5, 8), 256)}, "targets must be below 256"),
    ({"targets": torch.full((5, 8), -100)}, "one a prompt at least"),
])
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        recurrence_importance(LOOPED, PROMPTS, **{"n_recurrences": 4, **settings})


@pytest.mark.parametrize(("changed", "message"), [
    ({"step": lambda h, context: h + torch.randn_like(h)}, "draws random numbers in its step"),
    ({"readout": lambda h, context: h[:, 0]}, r"gave \(5, 16\); logits"),
    ({"causal": False}, "is not causal"),
    ({"multiple": 3}, "runs multiples of 3 recurrences"),
    ({"most_recurrences": 2}, "at most 2"),
    ({"readout": Missing("readout", "it")}, "has no embed, initial_state, step or readout"),
])
def test_models_that_cannot_answer_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        recurrence_importance(dataclasses.replace(LOOPED, **changed), PROMPTS, n_recurrences=4)


def test_bad_tokens_are_refused():
    with pytest.raises(ValueError, match="tokens must be whole numbers"):
        recurrence_importance(LOOPED, PROMPTS[0])
    with pytest.raises(ValueError, match="at least two prompts"):
        recurrence_importance(LOOPED, PROMPTS[:1], replacement="other prompt")
    with pytest.raises(ValueError, match="Prompts of one token need targets="):
        recurrence_importance(LOOPED, PROMPTS[:, :1])
