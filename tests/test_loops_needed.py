"""Loops that questions need: exact on a machine that chases one pointer a loop, honest about what is never answered."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from dynloop import Measurement, Outcome
from dynloop.advice.loops_by_difficulty import _Line, loops_by_difficulty
from dynloop.advice.loops_needed import _settled, loops_needed
from dynloop.models import LoopedModel, Missing, StatePoint
from dynloop.nano import make_task

TASK = make_task("pointer_chasing")


class Chaser(nn.Module):
    """Follows one pointer of the question a loop, until as many are followed as it asks for."""

    def __init__(self, nodes=8, *, each=1, forgets=None, breaks=None):
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.nodes, self.each, self.forgets, self.breaks = nodes, each, forgets, breaks

    def embed(self, tokens):
        letters = tokens[:, :2 * self.nodes].view(len(tokens), self.nodes, 2) - ord("a")
        leads = torch.zeros(len(tokens), self.nodes, dtype=torch.long).scatter_(1, letters[..., 0], letters[..., 1])
        return leads, tokens[:, 2 * self.nodes] - ord("0"), tokens[:, 2 * self.nodes + 1] - ord("a"), tokens.shape[1]

    def initial_state(self, context, seeds=None):
        _, hops, start, length = context
        state = torch.zeros(len(hops), length, 3)
        state[:, :, 0], state[:, :, 1] = start[:, None], hops[:, None] * self.each
        return state

    def step(self, state, context):
        left = state[:, :, 1]
        moves = (left > 0) & (left % self.each == (0 if self.each == 1 else 1))
        onward = context[0].gather(1, state[:, :, 0].long())
        state = torch.stack([torch.where(moves, onward, state[:, :, 0].long()).float(), (left - 1).clamp(min=0),
                             state[:, :, 2] + 1], -1)
        if self.forgets is not None:  # at that loop it goes to another node, and stays there
            other = (state[:, :, 0] + 1) % self.nodes
            state[:, :, 0] = torch.where(state[:, :, 2] == self.forgets, other, state[:, :, 0])
        return state

    def readout(self, state, context):
        logits = torch.zeros(*state.shape[:2], 256)
        logits.scatter_(2, (state[:, :, :1].long() + ord("a")), 1.0)
        return torch.where((state[:, :, 2:] == self.breaks) if self.breaks else torch.tensor(False), torch.nan, logits)

    def looped(self):
        return LoopedModel(name="chaser", module=self, points=[StatePoint((self.weight,))], width=3,
                           training_recurrences="none", vocabulary=256, encode=list, embed=self.embed,
                           initial_state=self.initial_state, step=self.step, readout=self.readout,
                           run=lambda tokens, n, state: None, random_start=False, provenance={})


@pytest.fixture(scope="module")
def questions():
    parts = [TASK.questions(0, 40, split=split) for split in ("train", "harder")]
    return type(parts[0]).concatenate(parts)


# ---- loops of single questions

def test_a_machine_that_follows_one_pointer_a_loop_needs_as_many_loops_as_there_are_hops(questions):
    measured = loops_needed(Chaser().looped(), questions, n_recurrences=12)
    assert measured.found.all()
    np.testing.assert_array_equal(measured.values, questions.difficulty)
    np.testing.assert_array_equal(measured["first_right"], questions.difficulty)
    result = loops_by_difficulty(measured, resample="prompt")
    assert result.slope.value == pytest.approx(1, abs=1e-12)
    assert result.slope.low == pytest.approx(1, abs=1e-12)
    assert result.slope.high == pytest.approx(1, abs=1e-12)
    assert result.intercept == pytest.approx(0, abs=1e-9)
    assert result.scatter == pytest.approx(0, abs=1e-9)
    assert result.slope_of_solved is None
    assert result.medians == {d: d for d in range(1, 8)}


def test_a_machine_of_half_the_speed_needs_two_loops_a_hop(questions):
    result = loops_by_difficulty(loops_needed(Chaser(each=2).looped(), questions, n_recurrences=20), resample="prompt")
    assert result.slope.value == pytest.approx(2, abs=1e-12)


def test_what_the_budget_does_not_reach_is_censored_and_the_slope_stays(questions):
    measured = loops_needed(Chaser().looped(), questions, n_recurrences=6)
    outcome = {d: set(measured.outcomes[questions.difficulty == d]) for d in range(1, 8)}
    assert outcome[5] == {Outcome.FOUND}
    assert outcome[6] == {Outcome.TOO_SHORT}  # right once, at the end
    assert outcome[7] == {Outcome.NOT_FOUND}
    assert np.isnan(measured.values[questions.difficulty >= 6]).all()
    result = loops_by_difficulty(measured, resample="prompt")
    assert result.slope.value == pytest.approx(1, abs=0.05)
    assert result.slope_of_solved.value == pytest.approx(1, abs=1e-12)
    assert result.solved[7].value == 0
    assert result.medians[7] == np.inf
    assert any("were not answered within 5 loops" in note for note in result.notes)
    assert any("difficulty 7: the share answered, 0, is not known to exceed chance" in note for note in result.notes)
    assert "median inf loops" in str(result)
    frame = result.to_frame()
    assert frame.difficulty.tolist() == list(range(1, 8))
    assert frame.questions.sum() == len(questions)


def test_an_answer_that_is_lost_again_is_not_found_but_was_right(questions):
    measured = loops_needed(Chaser(forgets=9).looped(), questions, n_recurrences=12)
    assert set(measured.outcomes) == {Outcome.NOT_FOUND}
    assert np.isnan(measured.values).all()
    np.testing.assert_array_equal(measured["first_right"], questions.difficulty)
    with pytest.raises(ValueError, match=r"answered questions of at least two difficulties; of 7 .* 0 have any"):
        loops_by_difficulty(measured, resample="prompt")


def test_logits_that_are_not_finite_are_no_answer(questions):
    measured = loops_needed(Chaser(breaks=3).looped(), questions, n_recurrences=12)
    assert set(measured.outcomes) == {Outcome.NOT_FINITE}
    mixed = Measurement.concatenate([measured, loops_needed(Chaser().looped(), questions, n_recurrences=12)])
    result = loops_by_difficulty(mixed, resample="prompt")
    assert result.slope.value == pytest.approx(1, abs=1e-12)
    assert any(note == f"{len(questions)} questions left the finite numbers and were left out" for note in result.notes)


def test_settled_is_the_definition_on_every_short_history():
    bits = np.array([[(i >> k) & 1 for k in range(5)] for i in range(32)], dtype=bool)
    finite = np.ones((32, 5), dtype=bool)
    for stay in (1, 2, 5):
        loops, first, outcomes = _settled(bits, finite, stay)
        for row, own, early, outcome in zip(bits, loops, first, outcomes, strict=True):
            slow = [r for r in range(1, 6) if row[r - 1:].all()]
            if slow and 5 - slow[0] + 1 >= stay:
                assert (own, outcome) == (slow[0], Outcome.FOUND)
            else:
                assert np.isnan(own)
                assert outcome is (Outcome.TOO_SHORT if slow else Outcome.NOT_FOUND)
            assert early == row.argmax() + 1 if row.any() else np.isnan(early)


@pytest.mark.parametrize(("settings", "words"), [
    ({"n_recurrences": 0}, "n_recurrences must be a whole number"), ({"stay": 0}, "stay must be a whole number"),
    ({"labels": {"prompt": 1}}, "labels must not hold prompt")])
def test_bad_settings_are_refused(questions, settings, words):
    with pytest.raises(ValueError, match=words):
        loops_needed(Chaser().looped(), questions, **settings)


def test_bad_models_and_questions_are_refused(questions):
    with pytest.raises(ValueError, match="questions must come from a task"):
        loops_needed(Chaser().looped(), [b"abc"])
    blind = dataclasses.replace(Chaser().looped(), readout=Missing("readout", "chaser"))
    with pytest.raises(ValueError, match="chaser has no readout"):
        loops_needed(blind, questions)
    for change, words in (({"causal": False}, "chaser is not causal: it would read the answer with the question"),
                          ({"vocabulary": 31}, "chaser has 31 tokens and 0 positions"),
                          ({"prefix": 1}, "1 positions before the prompt"), ({"most_recurrences": 3}, "recurrences")):
        with pytest.raises(ValueError, match=words):
            loops_needed(dataclasses.replace(Chaser().looped(), **change), questions)


# ---- the regression

def planted(rng, n, slope, *, scatter=1.5, limit=64, seeds=None, between=0.0):
    """Loops of n questions (of each of some seeds) of difficulty 1 to 6."""
    parts = []
    for seed in range(seeds or 1):
        d = np.arange(n) % 6 + 1
        mine = slope + between * rng.normal()
        loops = np.maximum(1, np.round(12 + mine * (d - 3.5) + scatter * rng.normal(size=n)))
        over = loops > limit
        parts.append(Measurement(
            "loops_needed", {"loops": np.where(over, np.nan, loops)},
            [Outcome.NOT_FOUND if o else Outcome.FOUND for o in over], settings={"n_recurrences": limit},
            labels={"prompt": np.arange(n), "difficulty": d, "seed": np.full(n, seed)}))
    return Measurement.concatenate(parts)


def test_the_fit_is_the_maximum_that_a_general_optimiser_finds():
    measured = planted(np.random.default_rng(3), 90, 1.0, limit=13)
    x, y = measured.labels["difficulty"].astype(float), measured["loops"]
    slope, intercept, scatter = _Line(x, y, 13).fit(np.arange(90))

    def loss(at):
        line, s = at[0] + at[1] * x, np.exp(at[2])
        known = stats.norm.logpdf(np.where(np.isnan(y), 0, y), line, s) - 1 / 24 / s**2
        return -np.where(np.isnan(y), stats.norm.logsf(13.5, line, s), known).sum()

    best = optimize.minimize(loss, [10, 0.5, 0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12,
                                                                                "maxiter": 5000})
    np.testing.assert_allclose([intercept, slope, np.log(scatter)], best.x, rtol=1e-4, atol=1e-5)


def test_the_fit_without_anything_censored_is_least_squares():
    measured = planted(np.random.default_rng(4), 60, 0.7)
    x, y = measured.labels["difficulty"].astype(float), measured["loops"]
    slope, intercept, _ = _Line(x, y, 64).fit(np.arange(60))
    np.testing.assert_allclose([slope, intercept], np.polyfit(x, y, 1), rtol=1e-10)


def test_censoring_takes_nothing_off_the_slope_where_leaving_out_does():
    slopes = []
    for i in range(40):
        result = planted(np.random.default_rng(i), 90, 1.5, limit=13)
        x, y = result.labels["difficulty"].astype(float), result["loops"]
        answered = np.flatnonzero(result.found)
        slopes.append((_Line(x, y, 13).fit(np.arange(90))[0], _Line(x, y, 13).fit(answered)[0]))
    censored, left_out = np.mean(slopes, axis=0)
    assert censored == pytest.approx(1.5, abs=0.05)
    assert left_out < 1.2


def test_five_seeds_that_differ_need_a_wider_interval_than_their_questions():
    measured = planted(np.random.default_rng(0), 48, 1.0, seeds=5, between=0.4)
    wide = loops_by_difficulty(measured, resample="seed > prompt").slope
    narrow = loops_by_difficulty(measured.select(seed=0), resample="prompt").slope
    assert wide.target == "new seeds"
    assert wide.units["seed"] == 5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert wide.low < 1 < wide.high


def coverage(n_studies, n, slope, **settings):
    hits = 0
    for i in range(n_studies):
        measured = planted(np.random.default_rng((9, i)), n, slope, **settings)
        found = loops_by_difficulty(measured, resample="prompt").slope
        hits += found.low <= slope <= found.high
    return hits


def test_noise_alone_gives_intervals_that_hold_zero():
    assert coverage(40, 36, 0.0) >= 34  # P(fewer | 95 %) < .005


@pytest.mark.slow
@pytest.mark.parametrize(("slope", "limit"), [(0.0, 64), (0.0, 12), (1.0, 64), (1.0, 13)])
def test_intervals_cover_what_was_planted(slope, limit):
    hits = coverage(400, 60, slope, limit=limit)
    assert 0.925 * 400 <= hits <= 0.98 * 400, hits


def test_what_is_no_measurement_of_loops_is_refused():
    other = Measurement("rate", {"rate": np.ones(3)}, [Outcome.FOUND] * 3)
    with pytest.raises(ValueError, match="must be what loops_needed gives"):
        loops_by_difficulty(other, resample="prompt")
    few = planted(np.random.default_rng(0), 7, 1)  # of difficulties 1 to 6, and 1 again
    with pytest.raises(ValueError, match=r"difficulty 2, with 1 questions: .* at least two prompts"):
        loops_by_difficulty(few, resample="prompt")
    with pytest.raises(ValueError, match="confidence_level must be between 0 and 1"):
        loops_by_difficulty(planted(np.random.default_rng(0), 20, 1), resample="prompt", confidence_level=2)
