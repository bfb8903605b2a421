"""Spans of tokens: where they are, what attention they get, what is lost without them; against closed forms."""

import dataclasses
import importlib
import math
import pkgutil

import looped_modules
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from dynloop import Measurement, Outcome, compare, estimate
from dynloop.attention import attention_statistics
from dynloop.attention.spans import STEP_KINDS, Span, check_spans, find_spans, span_shares
from dynloop.models import hooked_block, load, nano
from dynloop.nano import NanoConfig, NanoModel
from dynloop.recording.span_attention import span_attention
from dynloop.recording.span_removal import span_importance, span_removal

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")
VOCABULARY, SURE = 40, 5.0  # tokens from 30 on are values: seen before, one of them makes itself probable
HOMES = {name: home for _, name, _ in pkgutil.iter_modules(looped_modules.__path__)
         if hasattr(home := importlib.import_module(f"looped_modules.{name}"), "looped")}


class Attention(nn.Module):
    """A[t, k] proportional to exp(state[t] * strength[k]), of the second head exp(-state[t] * strength[k]); causal."""

    def forward(self, state, strength):
        sign = torch.tensor([1.0, -1.0]).to(state)[None, :, None, None]
        return F.scaled_dot_product_attention(sign * state[:, None], strength[:, None, :, None].expand(-1, 2, -1, 1),
                                              state[:, None].expand(-1, 2, -1, -1), is_causal=True, scale=1.0)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, state, strength):
        self.attention(state, strength)
        return state + 1


class Planted(nn.Module):
    """The maps of recurrence r are known; the answer is a value token seen before, or nobody knows."""

    def __init__(self, strengths):
        super().__init__()
        self.embedding, self.block = nn.Embedding(VOCABULARY, 1), Block()
        self.register_buffer("strengths", torch.as_tensor(strengths, dtype=torch.float64))

    def forward(self, tokens, n_loops=2):
        state = torch.zeros(*tokens.shape, 1, dtype=torch.float64)
        for _ in range(n_loops):
            state = self.block(state, self.strengths[tokens])
        seen = F.one_hot(tokens, VOCABULARY).cumsum(1) > 0
        return SURE * (seen & (torch.arange(VOCABULARY) >= 30)).double()


def planted(strengths=None):
    model = Planted(np.zeros(VOCABULARY) if strengths is None else strengths)
    return hooked_block(model, ["block"], loops="n_loops", name="planted", dtype=torch.float64)


# the loss of the answer with its value before it, and without
KNOWN, UNKNOWN = math.log(math.exp(SURE) + VOCABULARY - 1) - SURE, math.log(VOCABULARY)


# ---- finding spans


@given(st.lists(st.text(alphabet="ab \n", max_size=4).filter(bool), min_size=1, max_size=12))
def test_every_token_is_in_one_span_and_a_break_ends_the_span_of_its_token(pieces):
    spans = find_spans(pieces, kinds={})
    assert [t for span in spans for t in range(span.first, span.stop)] == list(range(len(pieces)))
    whole, ends = "".join(pieces), np.cumsum([len(piece) for piece in pieces])
    breaks = {i for i in range(len(whole)) if whole[i] == "\n" and whole[i + 1:i + 2] != "\n"}
    holding = {int(np.searchsorted(ends, i, side="right")) + 1 for i in breaks}
    assert {span.stop for span in spans} == holding | {len(pieces)}


def test_a_separator_may_run_over_several_tokens_and_bytes_are_tokens():
    assert find_spans(["a", ".", " ", "b", ". c"], separator=r"\. ", kinds={}) == [
        Span(0, 3, "other"), Span(3, 5, "other")]
    assert find_spans("é\nb".encode(), kinds={"b": "^b$"}, other="") == [Span(0, 3, ""), Span(3, 4, "b")]
    code = "import os\n\n# now\ndef f():\n    pass\n"
    kinds = {"comment": r"^\s*#", "definition": r"^\s*def\b", "blank": r"^\s*$", "import": "^import"}
    assert [span.kind for span in find_spans(code, kinds=kinds)] == ["import", "comment", "definition", "other"]
    assert [span.kind for span in find_spans(code, kinds=kinds, separator=r"\n")] == [
        "import", "blank", "comment", "definition", "other"]


@pytest.mark.parametrize(("text", "kind"), [
    ("Wait, that is 7.", "backtracking"), ("Hmmm.", "backtracking"), ("Let me try again with 3", "backtracking"),
    ("No, it must be even.", "backtracking"), ("that's not right", "backtracking"),
    ("Alternatively, use induction.", "backtracking"), ("Let me verify this.", "verification"),
    ("Double-check: 3 * 4 = 12", "verification"), ("Plugging it back in gives 9.", "verification"),
    ("Therefore x = 3", "answer"), (r"\boxed{3}", "answer"), ("The answer is 3.", "answer"),
    ("Let x be the number.", "other"), ("There is no even prime above 2.", "other"), ("The waiter left.", "other"),
    ("Wait, let me check.", "backtracking"),
])
def test_the_listed_words_name_the_kind_of_a_step(text, kind):
    assert find_spans(text)[0].kind == kind
    assert kind in {*STEP_KINDS, "other"}


@pytest.mark.parametrize(("pieces", "settings", "message"), [
    ("", {}, "at least one"), ([1, 2], {}, "texts of a prompt's tokens"), ("ab", {"separator": "("}, "separator must"),
    ("ab", {"separator": r"\n*"}, "found in an empty text"), ("ab", {"kinds": {"x": 3}}, r"kinds\['x'\] must be"),
])
def test_bad_texts_and_expressions_are_refused(pieces, settings, message):
    with pytest.raises(ValueError, match=message):
        find_spans(pieces, **settings)


@pytest.mark.parametrize(("spans", "message"), [
    ([[(0, 2)]], "a list of spans for each of 2"), ("ab", "a list of spans for each"), ([[(0, 2)], []], "prompt 1"),
    ([[(0, 2)], [(1, 1)]], "prompt 1"), ([[(0, 2)], [(0, 2), (1, 3)]], "apart from each other"),
    ([[(0, 2)], [(0, 6)]], "between 0 and 5"), ([[(0, 2)], [3]], "prompt 1"), ([[(0, 2, 3)], [(0, 2)]], "prompt 0"),
    ([[(0, 2)], [(0.0, "a")]], "prompt 1"),
])
def test_spans_that_are_not_there_are_refused(spans, message):
    with pytest.raises(ValueError, match=message):
        check_spans(spans, [5, 5])


# ---- attention

PROMPT = [1, 2, 30, 3, 4, 5, 31, 6, 7, 8, 9, 2]
SPANS = [(0, 2, "a"), (2, 5, "b"), (6, 7, "c"), (8, 12, "d")]


def by_hand(maps, spans, queries=None, causal=True):
    """Of maps (heads, T, T), mean over heads: share, expected, before, after of each span, by loops."""
    mean, n = maps.mean(0), maps.shape[-1]
    rows = []
    for first, stop, *_ in spans:
        later = [t for t in (range(n) if queries is None else range(*queries)) if t >= stop]
        parts = [(mean[t, first:stop].sum(), (stop - first) / (t + 1 if causal else n), mean[t, :first].sum(),
                  mean[t, stop:].sum()) for t in later]
        rows.append(np.mean(parts, axis=0) if parts else [math.nan] * 4)
    return np.array(rows)


def test_uniform_attention_gives_every_span_what_is_expected():
    m = span_attention(planted(), [PROMPT], [SPANS], n_recurrences=3)
    assert m.n_orbits == 3 * 4
    assert m.counts() == {Outcome.FOUND: 9, Outcome.TOO_SHORT: 3}  # nothing comes after the last span
    np.testing.assert_allclose(m["excess"][m.found], 0, atol=1e-15)
    np.testing.assert_allclose(m["lift"][m.found], 1, rtol=1e-14)
    harmonic = [0, *np.cumsum(1 / np.arange(1, 13))]
    closed = [length * (harmonic[12] - harmonic[stop]) / (12 - stop) for length, stop in ((2, 2), (3, 5), (1, 7))]
    np.testing.assert_allclose(m.select(recurrence=2)["expected"][:3], closed)
    assert m.labels["kind"][:4].tolist() == ["a", "b", "c", "d"]
    assert m.labels["last"][:4].tolist() == [1, 4, 6, 11]
    assert np.isnan(m["share"][3])


def test_a_full_sink_gives_all_to_the_span_that_holds_it():
    strengths = np.zeros(VOCABULARY)
    strengths[1] = 800
    m = span_attention(planted(strengths), [PROMPT], [SPANS], n_recurrences=2, each_head=True)
    here = m.select(recurrence=2, head=0)
    np.testing.assert_array_equal(here["share"][:3], [1, 0, 0])
    np.testing.assert_array_equal(here["before"][:3], [0, 1, 1])
    other = m.select(recurrence=2, head=1)["share"][0]  # the other head shuns the sink: an even map without it
    assert other == pytest.approx(np.mean([1 / t for t in range(2, 12)]))


def test_one_span_that_is_attended_to_gets_what_was_planted():
    strengths = np.zeros(VOCABULARY)
    strengths[[30, 31]] = math.log(9)  # as nine others
    m = span_attention(planted(strengths), [PROMPT], [[(6, 7)]], n_recurrences=2, each_head=True)
    shares = [9 / (t - 1 + 18) for t in range(7, 12)]  # t + 1 keys, two of which count nine times
    np.testing.assert_allclose(m.select(recurrence=2, head=0)["share"], np.mean(shares))
    np.testing.assert_allclose(m.select(recurrence=1)["lift"], 1)  # the first recurrence attends evenly


@pytest.mark.parametrize("queries", [None, (7, 9)])
def test_shares_are_those_of_the_maps_and_add_up_to_one(queries):
    looped = nano(NanoModel(NanoConfig(width=16, n_heads=2), seed=3))
    m = span_attention(looped, [PROMPT], [SPANS], n_recurrences=3, queries=None if queries is None else [queries])
    with torch.no_grad(), attention_statistics(looped.module, keep_maps=True) as seen:
        looped.logits(torch.tensor([PROMPT]), 3, None)
    for call in seen.calls[1:7]:
        own = m.select(recurrence=call.recurrence + 1, layer=call.module)
        found = np.stack([own[name] for name in ("share", "expected", "before", "after")], axis=1)
        np.testing.assert_allclose(found, by_hand(call.map[0].double().numpy(), SPANS, queries), atol=1e-6)
    total = (m["share"] + m["before"] + m["after"])[m.found]
    np.testing.assert_allclose(total, 1, rtol=1e-14)
    assert (m["n_queries"][:3] == (np.array([10, 7, 5]) if queries is None else [2, 2, 2])).all()


@pytest.mark.parametrize("name", sorted(HOMES))
def test_any_hooked_model_that_attends_has_shares_that_add_up(name):
    looped = HOMES[name].looped()
    prompt = [1, 2, 3, 4, 5][:looped.n_tokens]
    m = span_attention(looped, [prompt], [[(0, 2), (3, 4)]], n_recurrences=3 if name == "tied_copies" else 4)
    assert m.found.any()
    assert not (set(m.outcomes) - {Outcome.FOUND, Outcome.TOO_SHORT})
    np.testing.assert_allclose((m["share"] + m["before"] + m["after"])[m.found], 1, rtol=1e-13)
    if looped.causal:
        assert (m["share"][m.found] > 0).all()


def test_a_query_that_attends_to_nothing_does_not_count_and_a_broken_map_is_not_finite():
    maps = torch.full((1, 4, 4), 0.25)
    maps[0, 3] = 0
    found = span_shares(maps, [Span(0, 2)], queries=torch.ones(4, dtype=torch.bool), causal=False)
    assert found["n_queries"].tolist() == [[1]]
    assert found["share"].tolist() == found["expected"].tolist() == [[0.5]]
    strengths = np.zeros(VOCABULARY)
    strengths[1] = math.nan
    m = span_attention(planted(strengths), [PROMPT], [SPANS[:2]], n_recurrences=2)
    assert set(m.outcomes) == {Outcome.NOT_FINITE}
    assert np.isnan(m["share"]).all()


def test_positions_before_the_prompt_move_the_expectation():
    even = (torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None])[None]
    found = span_shares(even, [Span(0, 2)], queries=torch.ones(4, dtype=torch.bool), prefix=2)
    np.testing.assert_allclose(found["share"], [[np.mean([2 / 5, 2 / 6])]], rtol=1e-6)
    np.testing.assert_allclose(found["expected"], [[np.mean([2 / 5, 2 / 6])]])


class SharedKeys(Attention):
    """Every recurrence attends to the keys of those before it, too."""

    held = ()

    def forward(self, state, strength):
        self.held = () if not state.any() else self.held
        self.held = (*self.held, state)
        keys = torch.cat(self.held, 1)[:, None]
        return F.scaled_dot_product_attention(state[:, None], keys, keys)


class AtFirst(Attention):
    """Attends in the first four recurrences alone."""

    def forward(self, state, strength):
        return super().forward(state, strength) if state.max() < 4 else state


@pytest.mark.parametrize(("attention", "message"), [
    (SharedKeys, "24 keys for recurrence 2, where 12 and 12 of recurrence 2 were due"),
    (AtFirst, r"attended \[4\] times in 6 recurrences")])
def test_maps_without_a_place_by_recurrence_and_token_are_refused(attention, message):
    looped = planted()
    looped.module.block.attention = attention()
    with pytest.raises(RuntimeError, match=message):
        span_attention(looped, [PROMPT], [SPANS], n_recurrences=6)


@pytest.mark.parametrize(("settings", "message"), [
    ({"queries": [(0, 13)]}, "queries must be"), ({"queries": [3]}, "queries must be"),
    ({"each_head": 1}, "each_head must be"), ({"n_recurrences": 0}, "n_recurrences must be"),
    ({"seed": -1}, "seed must be"), ({"spans": [[(0, 13)]]}, "prompt 0"),
])
def test_bad_settings_of_attention_are_refused(settings, message):
    given = {"spans": [SPANS], **settings}
    with pytest.raises(ValueError, match=message):
        span_attention(planted(), [PROMPT], given.pop("spans"), **given)


# ---- removal

STEPS = [(1, 3, "other"), (3, 6, "value"), (6, 7, "check"), (8, 10, "other")]
ANSWERED = [1, 2, 3, 4, 33, 5, 6, 7, 8, 9, 33]  # the value is said in the second step, and asked for at the end


def test_only_the_step_that_matters_is_missed_and_by_the_closed_form():
    m = span_importance(planted(), [ANSWERED], [STEPS], n_recurrences=2)
    np.testing.assert_allclose(m["loss_change"], [0, UNKNOWN - KNOWN, 0, 0], rtol=1e-14)
    assert (m["loss_change"][[0, 2, 3]] == 0).all()
    np.testing.assert_allclose(m["base_loss"], KNOWN)
    assert m["accuracy_change"].tolist() == [0, -1, 0, 0]
    assert m["n_tokens"].tolist() == [2, 3, 1, 2]
    assert m.labels["kind"].tolist() == ["other", "value", "check", "other"]


def test_what_two_steps_say_is_lost_with_both_alone():
    prompt = [33, 2, 33, 4, 33]
    spans = [(0, 1), (2, 3)]
    assert (span_importance(planted(), [prompt], [spans])["loss_change"] == 0).all()
    m = span_removal(planted(), [prompt], [spans], fractions=[0, 0.5, 1], scores=[[0, 1]], answers=[(4, 5)])
    assert m.select(order="least first")["loss_change"].tolist() == [0, 0, pytest.approx(UNKNOWN - KNOWN)]


def test_orders_follow_the_scores_and_a_random_order_is_missed_as_often_as_it_cuts():
    spans = [[(i, i + 1) for i in range(8)]] * 24
    prompts = [[*range(i), 33, *range(i + 1, 8), 9, 33] for i in np.arange(24) % 8]
    scores = [[float(token == 33) for token in prompt[:8]] for prompt in prompts]
    m = span_removal(planted(), prompts, spans, scores=scores, answers=[(9, 10)] * 24, n_random=6)
    lost = UNKNOWN - KNOWN
    for fraction in (0.25, 0.5, 0.75):
        own = {order: m.select(fraction=fraction, order=order) for order in ("least first", "most first", "random")}
        assert (own["least first"]["loss_change"] == 0).all()
        np.testing.assert_allclose(own["most first"]["loss_change"], lost)
        found = estimate(own["random"], statistic="mean", resample="prompt")
        assert found.low <= fraction * lost <= found.high
        assert (own["random"]["n_cut"] == 8 * fraction).all()
        np.testing.assert_allclose(own["random"]["cut_share"], fraction)
    [contrast] = compare({o: m.select(fraction=0.5, order=o) for o in ("random", "least first")}, resample="prompt",
                         paired="prompt")
    assert contrast.high < 0


def test_attention_finds_the_step_that_matters_where_the_model_attends_to_it():
    strengths = np.zeros(VOCABULARY)
    strengths[30:] = 3
    m = span_removal(planted(strengths), [ANSWERED], [STEPS], fractions=[0.25, 0.75], n_recurrences=3, n_random=2)
    assert (m.select(order="least first")["loss_change"] == 0).all()
    np.testing.assert_allclose(m.select(order="most first")["loss_change"], UNKNOWN - KNOWN)
    attention = span_attention(planted(strengths), [ANSWERED], [STEPS], n_recurrences=3, queries=[(10, 11)])
    again = span_removal(planted(strengths), [ANSWERED], [STEPS], fractions=[0.25, 0.75], n_recurrences=3, n_random=2,
                         scores=attention)
    for name in m.variables:
        np.testing.assert_array_equal(m[name], again[name])


def test_the_numbers_are_those_of_the_shorter_prompt_given_to_the_model():
    looped, prompt, spans = load("nano-settles"), list(b"import os\nimport re\nimport sys\n"), [(0, 10), (10, 20)]
    m = span_importance(looped, [prompt, prompt[:26]], [spans, spans], n_recurrences=6, batch_size=1)
    for row, text in enumerate((prompt[10:], prompt[:10] + prompt[20:])):
        with torch.no_grad():
            log_p = looped.logits(torch.tensor([text]), 6, None)[0, -12:-1].double().log_softmax(-1)
        own = text[-11:]
        assert m["loss"][row] == pytest.approx(-float(log_p[torch.arange(11), own].mean()))
        assert m["accuracy"][row] == pytest.approx(float((log_p.argmax(-1) == torch.tensor(own)).double().mean()))
    np.testing.assert_allclose(m["loss"] - m["base_loss"], m["loss_change"])
    together = span_importance(looped, [prompt, prompt[:26]], [spans, spans], n_recurrences=6)
    np.testing.assert_allclose(together["loss_change"], m["loss_change"], atol=1e-5)


def test_nothing_left_before_the_answer_has_no_answer_and_broken_logits_are_not_finite():
    spans = [[(0, 2), (2, 4)]]
    m = span_removal(planted(), [[1, 2, 33, 3, 33]], spans, fractions=[0.5, 1.0], scores=[[1, 2]])
    assert m.select(fraction=1).counts() == {Outcome.NOT_FOUND: 3}
    assert np.isnan(m.select(fraction=1)["loss_change"]).all()
    assert np.isnan(m.select(fraction=1)["n_cut"]).all()
    assert m.select(fraction=0.5).found.all()
    model = NanoModel(NanoConfig(width=16, n_heads=2), seed=1)
    with torch.no_grad():
        next(model.block.parameters()).fill_(math.nan)
    assert set(span_importance(model, [[1, 2, 33, 3, 33]], spans).outcomes) == {Outcome.NOT_FINITE}


def test_the_interval_of_a_paired_change_covers_the_change_of_all_prompts(rng):
    """Prompts whose answers hang on a step of another weight each; 300 studies of 24 of them."""
    spans, n = [[(0, 2), (2, 4), (4, 6)]] * 400, 400
    said = rng.random((n, 3)) < [0.7, 0.5, 0.3]  # the value is said in some of three steps
    prompts = [[t for s in range(3) for t in ((33 if said[i, s] else 3), 4)] + [5, *rng.choice([33, 6], 4).tolist()]
               for i in range(n)]
    m = span_importance(planted(), prompts, spans, answers=[(7, 11)] * n, n_recurrences=1, batch_size=400)
    first = m.select(span=0)["loss_change"]
    covered = []
    for _ in range(300):
        own = rng.choice(n, 24, replace=False)
        study = Measurement("span_importance", {"loss_change": first[own]}, [Outcome.FOUND] * 24,
                            labels={"prompt": own})
        found = estimate(study, statistic="mean", resample="prompt")
        covered.append(found.low <= first.mean() <= found.high)
    assert 0.92 <= np.mean(covered) <= 0.995


def test_the_model_comes_back_as_it_was():
    model = NanoModel(NanoConfig(width=16, n_heads=2, initial_state="random"), seed=1)
    model.train()
    drawn = torch.get_rng_state()
    m = span_removal(model, [PROMPT, PROMPT[:9]], [SPANS[:3], SPANS[:3]], n_recurrences=2, n_random=2)
    assert m.found.all()
    assert model.training
    assert torch.equal(drawn, torch.get_rng_state())


@pytest.mark.parametrize(("settings", "message"), [
    ({"orders": ["best"]}, "orders must be some of"), ({"orders": "random"}, "orders must be some of"),
    ({"fractions": []}, "every fraction must be"), ({"fractions": [1.5]}, "every fraction must be"),
    ({"fractions": 0.5}, "every fraction must be"), ({"n_random": 0}, "n_random must be"),
    ({"scores": [[1, 2]]}, r"scores must hold a finite number for each span of each prompt: \[4\]"),
    ({"scores": [[1, 2, 3, math.nan]]}, "scores must hold"), ({"scores": 3}, "scores must hold"),
    ({"by": "weight"}, "by must be a variable of span_attention"), ({"answers": [(5, 11)]}, "after the spans"),
    ({"answers": [(10, 12)]}, "answers must be"), ({"spans": [[(0, 11)]]}, "Leave the last span out"),
    ({"batch_size": 0}, "batch_size must be"),
])
def test_bad_settings_of_removal_are_refused(settings, message):
    given = {"spans": [STEPS], "n_recurrences": 2, **settings}
    with pytest.raises(ValueError, match=message):
        span_removal(planted(), [ANSWERED], given.pop("spans"), **given)


def test_scores_of_other_spans_and_models_without_an_answer_are_refused():
    other = span_attention(planted(), [ANSWERED], [STEPS[:3]], n_recurrences=2)
    with pytest.raises(ValueError, match="hold no lift of span 3 of prompt 0"):
        span_removal(planted(), [ANSWERED], [STEPS], scores=other, n_recurrences=2)
    with pytest.raises(ValueError, match="is not causal"):
        span_importance(dataclasses.replace(planted(), causal=False), [ANSWERED], [STEPS])
    with pytest.raises(ValueError, match="takes prompts of one length"):
        span_importance(dataclasses.replace(planted(), n_tokens=11), [ANSWERED], [STEPS])
    pooled = dataclasses.replace(planted(), run=lambda tokens, n, state: torch.zeros(len(tokens), 4))
    with pytest.raises(ValueError, match=r"gave \(1, 4\)"):
        span_importance(pooled, [ANSWERED], [STEPS])


def test_expressions_find_characters_of_several_bytes_in_bytes_as_in_the_text():
    text = "über 3。No, wait — das prüfe ich。\r\nEnde"
    kinds = {"check": "prüfe", "start": "^über"}
    spans = find_spans(text, separator="。|\\n+", kinds=kinds)
    at = np.cumsum([0, *(len(character.encode()) for character in text)]).tolist()
    assert [span.kind for span in spans] == ["start", "check", "other", "other"]
    assert find_spans(text.encode(), separator="。|\\n+", kinds=kinds) == [
        Span(at[span.first], at[span.stop], span.kind) for span in spans]
    broken = b"a\xff\n\xc3\nb"
    assert find_spans(broken) == [Span(0, 3, "other"), Span(3, 5, "other"), Span(5, 6, "other")]


def test_numbers_of_tokens_are_whole():
    assert check_spans([[(np.int64(0), np.int64(2))]], [4]) == [[Span(0, 2)]]
    for bad in ((0.0, 2.0), (0, 2.5), ("0", 2)):
        with pytest.raises(ValueError, match="the spans of prompt 0 must be"):
            check_spans([[bad]], [4])
