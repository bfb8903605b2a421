"""What is lost when spans of a prompt are cut out: one by one, or the least attended of them first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dynloop.attention.spans import Span, check_spans
from dynloop.measurement import Measurement
from dynloop.models import LoopedModel, load, undisturbed
from dynloop.outcome import Outcome
from dynloop.recording.capture import _check_run
from dynloop.recording.prompts import encode_prompts
from dynloop.recording.span_attention import check_ranges, span_attention
from dynloop.settings import check_number, check_whole

ORDERS = ("least first", "most first", "random")
UNITS = {"loss_change": "nats", "loss": "nats", "base_loss": "nats", "n_tokens": "tokens", "n_cut": "spans"}
_BATCH = 16
_CHANGES = ("loss_change", "accuracy_change", "loss", "accuracy", "base_loss", "base_accuracy")


def span_importance(model: LoopedModel | nn.Module | str | Path, prompts: Sequence[Any], spans: Sequence[Any], *,
                    answers: Sequence[tuple[int, int]] | None = None, n_recurrences: int = 32, seed: int = 0,
                    batch_size: int = _BATCH) -> Measurement:
    """The change of the answer's loss and accuracy when one span is cut out of the prompt, each span by itself.

        loss_change = loss without the span - loss with all,   loss = mean over the answer's tokens of -ln p

    The span's tokens are taken out and the rest closes up, as when a shortened text is given to the model: positions
    are those of the shorter prompt. `recurrence_importance` is the same question of a recurrence.

    Args:
        model: as in `capture`; causal. It need not be a map.
        prompts: texts or sequences of token numbers.
        spans: of each prompt, (first, stop) or (first, stop, kind), in order, before the answer.
        answers: of each prompt (first, stop), the tokens that are predicted; by default all after the last span.
        n_recurrences: applications of the block.
        seed: prompt i starts from seed + i, where the initial state is random.
        batch_size: prompts of one length that run together.

    Returns:
        A row a prompt and span, labelled `model`, `prompt`, `span`, `kind`, `first`, `last`: `loss_change` in nats a
        token (above 0: the span helped), `accuracy_change` (of the share of answer tokens that are the most probable
        ones), `loss`, `accuracy`, `base_loss`, `base_accuracy`, `n_tokens` (of the span).
        `estimate(m.select(kind=...), statistic="mean", resample="prompt")` is the effect of a kind.
        `NOT_FOUND`: nothing would be left before the answer. `NOT_FINITE`: logits are not.

    Raises:
        ValueError: spans that reach into the answer; an answer that is not there; a model that is not causal, or takes
            prompts of one length alone.

    Misleads:
        Two spans that say the same are each worth nothing by themselves: together they may be worth all
        (`span_removal`). A cut moves what follows nearer to the beginning; with absolute positions, or a model that
        knows one length, that alone changes the loss: compare with the removal of spans of the same length that say
        nothing. A random initial state is drawn anew for the shorter prompt.

    Source:
        Leave-one-out of input spans (Li, Monroe and Jurafsky 2016, arXiv 1612.08220: erasure); for reasoning traces
        Bogdan et al. 2025 (arXiv 2506.19143).

    Example:
        >>> from dynloop.attention.spans import find_spans
        >>> from dynloop.recording.span_removal import span_importance
        >>> text = "import os\\nclass A:\\n    def f(self):\\n        return self.x"
        >>> m = span_importance("nano-settles", [text], [find_spans(text)[:-1]], n_recurrences=8)
        >>> int(m["loss_change"].argmax())  # the line that the answer needs most: the one with `self` and the indent
        2
    """
    run = _Answers(model, prompts, spans, answers, n_recurrences, seed, batch_size)
    jobs = [(i, (s,)) for i, own in enumerate(run.spans) for s in range(len(own))]
    changes, outcomes = run.changes([[job] for job in jobs])
    spans_of = [run.spans[i][cut[0]] for i, cut in jobs]
    length = np.array([span.stop - span.first for span in spans_of], dtype=np.float64)
    length[[outcome is not Outcome.FOUND for outcome in outcomes]] = np.nan
    return Measurement("span_importance", {**changes, "n_tokens": length}, outcomes,
                       units={name: UNITS[name] for name in UNITS if name != "n_cut"}, settings=run.settings,
                       labels={**run.labels([i for i, _ in jobs]), "span": np.array([cut[0] for _, cut in jobs]),
                               "kind": np.array([span.kind for span in spans_of]),
                               "first": np.array([span.first for span in spans_of]),
                               "last": np.array([span.stop - 1 for span in spans_of])})


def span_removal(model: LoopedModel | nn.Module | str | Path, prompts: Sequence[Any], spans: Sequence[Any], *,
                 fractions: Sequence[float] = (0.25, 0.5, 0.75), scores: Measurement | Sequence[Any] | None = None,
                 by: str = "lift", orders: Sequence[str] = ORDERS, n_random: int = 8,
                 answers: Sequence[tuple[int, int]] | None = None, n_recurrences: int = 32, seed: int = 0,
                 batch_size: int = _BATCH) -> Measurement:
    r"""The change of the answer's loss and accuracy when a fraction of the spans is cut, in three orders.

        "least first"   the spans with the lowest scores go (keep the most attended, drop the least)
        "most first"    those with the highest go
        "random"        spans drawn evenly; the mean over `n_random` draws: what any cut of so many spans costs

    Of n spans, floor(fraction n + 1/2) are cut. All runs predict the same answer tokens, so that the change is paired:
    `estimate(m.select(fraction=.5, order="least first"), statistic="mean", resample="prompt")` gives it with its
    interval over prompts, `compare({order: m.select(fraction=.5, order=order) for order in ("random", "least first")},
    resample="prompt", paired="prompt")` says whether the order matters.

    Args:
        model, prompts, spans, answers, n_recurrences, seed, batch_size: as in `span_importance`.
        fractions: of the spans that are cut, from 0 to 1.
        scores: a number for each span of each prompt; or `span_attention` of these spans, of which the mean over
            recurrences, layers and heads is taken. By default that, with these settings, where the answer's tokens
            attend.
        by: which variable of `span_attention` is the score: "lift" (length and position taken out), "share", "excess".
        orders: which of the three.
        n_random: draws.

    Returns:
        A row a prompt, fraction and order, labelled `model`, `prompt`, `fraction`, `order`: `loss_change`,
        `accuracy_change`, `loss`, `accuracy`, `base_loss`, `base_accuracy` as in `span_importance`, `n_cut` (spans) and
        `cut_share`, the share of the spans' tokens that went. Outcomes as there.

    Raises:
        ValueError: as in `span_importance`; fractions, orders or scores that are not there.

    Misleads:
        Orders cut equally many spans, not tokens: look at `cut_share` before calling an order better. That the least
        attended spans can go shows that attention ranks spans, only if cutting others ("random", "most first") costs
        more. Scores of the answer's own tokens know the answer: for a rule that must decide before it, measure
        `span_attention` with other `queries`. See `span_importance` on positions.

    Source:
        Removal in the order of a score, with its reverse and a random order as controls: Samek et al. 2017 (IEEE
        Trans. Neural Networks 28, 2660); of the steps of reasoning traces as published (some 75 % could go).

    Example:
        >>> from dynloop.attention.spans import find_spans
        >>> from dynloop.recording.span_removal import span_removal
        >>> text = "import os\nimport re\nimport sys\nimport os\n"
        >>> m = span_removal("nano-settles", [text], [find_spans(text)[:-1]], fractions=[0.34], n_recurrences=8)
        >>> dict(zip(m.labels["order"].tolist(), m["n_cut"].tolist(), strict=True))
        {'least first': 1.0, 'most first': 1.0, 'random': 1.0}
    """
    if isinstance(orders, str) or not orders or not set(orders) <= set(ORDERS):
        raise ValueError(f"orders must be some of {', '.join(ORDERS)}; got {orders!r}.")
    orders = list(dict.fromkeys(orders))
    wanted: list[Any] = list(fractions) if isinstance(fractions, Sequence | np.ndarray) else []
    for fraction in wanted or [None]:
        check_number("every fraction", fraction, lambda v: 0 <= v <= 1, "a number from 0 to 1, in a list with at least "
                                                                        "one (the default is 0.25, 0.5, 0.75)")
    check_whole("n_random", n_random, 1, "a whole number of at least 1 draw (the default is 8)")
    run = _Answers(model, prompts, spans, answers, n_recurrences, seed, batch_size)
    ranked = bool(set(orders) - {"random"})
    own = run.scores(scores, by) if ranked else [np.zeros(len(here)) for here in run.spans]
    jobs, rows = [], []
    for i, here in enumerate(run.spans):
        rng = np.random.default_rng([seed, i])
        draws = [rng.permutation(len(here)) for _ in range(n_random)]
        upwards = np.argsort(own[i], kind="stable")
        lists = {"least first": [upwards], "most first": [np.argsort(-own[i], kind="stable")], "random": draws}
        for fraction in wanted:
            n_cut = int(np.floor(fraction * len(here) + 0.5))
            for order in orders:
                jobs.append([(i, tuple(sorted(one[:n_cut].tolist()))) for one in lists[order]])
                rows.append((i, float(fraction), order, n_cut))
    changes, outcomes = run.changes(jobs)
    cut = np.array([np.mean([run.n_tokens(i, gone) for i, gone in together]) for together in jobs])
    whole = np.array([run.n_tokens(i, range(len(run.spans[i]))) for i, *_ in rows])
    bad = [outcome is not Outcome.FOUND for outcome in outcomes]
    n_cut_of, share = np.array([float(n) for *_, n in rows]), cut / whole
    n_cut_of[bad] = share[bad] = np.nan
    return Measurement("span_removal", {**changes, "n_cut": n_cut_of, "cut_share": share}, outcomes,
                       units={name: UNITS[name] for name in UNITS if name != "n_tokens"},
                       settings={**run.settings, "by": by if ranked and not _own_scores(scores) else None,
                                 "n_random": n_random},
                       labels={**run.labels([i for i, *_ in rows]), "fraction": np.array([f for _, f, *_ in rows]),
                               "order": np.array([order for _, _, order, _ in rows])})


def _own_scores(scores: Any) -> bool:
    return scores is not None and not isinstance(scores, Measurement)


class _Answers:
    """The loss and accuracy of each prompt's answer, with all spans and with some cut out."""

    def __init__(self, model: LoopedModel | nn.Module | str | Path, prompts: Sequence[Any], spans: Sequence[Any],
                 answers: Sequence[tuple[int, int]] | None, n_recurrences: int, seed: int, batch_size: int) -> None:
        self.looped = looped = load(model)
        check_whole("n_recurrences", n_recurrences, 1, "a whole number of at least 1 (the default is 32)")
        check_whole("seed", seed, 0, "a whole number of at least 0 (the default)")
        check_whole("batch_size", batch_size, 1, f"a whole number of at least 1 prompt (the default is {_BATCH})")
        _check_run(looped, n_recurrences, 1, 0)
        if not looped.causal or looped.n_tokens is not None:
            raise ValueError(f"{looped.name} {'takes prompts of one length' if looped.causal else 'is not causal'}: "
                             "there is no loss of an answer with and without a span.")
        self.prompts = encode_prompts(looped, prompts)
        lengths = [len(prompt) for prompt in self.prompts]
        self.spans = check_spans(spans, lengths)
        self.answers = self._answers(answers, lengths)
        self.n_recurrences, self.seed, self.batch_size = n_recurrences, seed, batch_size
        self.settings = {"n_recurrences": n_recurrences, "seed": seed, "answers": None if answers is None else
                         tuple((own.first, own.stop) for own in self.answers)}

    def _answers(self, given: Sequence[tuple[int, int]] | None, lengths: list[int]) -> list[Span]:
        if given is None:
            found = [Span(own[-1].stop, n) for own, n in zip(self.spans, lengths, strict=True)]
        else:
            found = [own[0] for own in check_ranges("answers", given, lengths)]
        for i, (answer, own) in enumerate(zip(found, self.spans, strict=True)):
            if not max(own[-1].stop, 1) <= answer.first < answer.stop:
                raise ValueError(f"the answer of prompt {i} is tokens {answer.first} to {answer.stop - 1}, and its "
                                 f"last span ends with {own[-1].stop - 1}: there must be an answer, after the spans. "
                                 "Leave the last span out, or give answers=.")
        return found

    def labels(self, prompts: list[int]) -> dict[str, np.ndarray]:
        return {"model": np.full(len(prompts), self.looped.name), "prompt": np.array(prompts)}

    def n_tokens(self, prompt: int, spans: Sequence[int]) -> int:
        return sum(self.spans[prompt][s].stop - self.spans[prompt][s].first for s in spans)

    def scores(self, given: Measurement | Sequence[Any] | None, by: str) -> list[np.ndarray]:
        """A number a span of every prompt."""
        if _own_scores(given):
            try:
                found = [np.asarray(own, dtype=np.float64) for own in given]  # type: ignore[union-attr]
            except (TypeError, ValueError):
                found = []
            if [own.shape for own in found] != [(len(own),) for own in self.spans] or \
                    not all(np.isfinite(own).all() for own in found):
                raise ValueError("scores must hold a finite number for each span of each prompt: "
                                 f"{[len(own) for own in self.spans]} of them; got {given!r}.")
            return found
        measured = given if isinstance(given, Measurement) else span_attention(
            self.looped, self.prompts, self.spans, n_recurrences=self.n_recurrences, seed=self.seed,
            queries=[(own.first, own.stop) for own in self.answers])
        if by not in measured.variables or not {"prompt", "span", "first", "last"} <= set(measured.labels):
            raise ValueError(f"by must be a variable of span_attention; got {by!r} of {measured!r}, which has "
                             f"{', '.join(measured.variables)}.")
        labels = measured.labels
        found = []
        for i, own in enumerate(self.spans):
            here = [(labels["prompt"] == i) & (labels["span"] == s) & (labels["first"] == span.first) &
                    (labels["last"] == span.stop - 1) & measured.found for s, span in enumerate(own)]
            if not all(rows.any() for rows in here):
                raise ValueError(f"scores hold no {by} of span {[rows.any() for rows in here].index(False)} of prompt "
                                 f"{i}: measure span_attention of these prompts and spans.")
            found.append(np.array([measured[by][rows].mean() for rows in here]))
        return found

    def kept(self, prompt: int, cut: tuple[int, ...]) -> list[int] | None:
        """The prompt up to the end of its answer, without some spans; None if nothing is left before the answer."""
        gone = {t for s in cut for t in range(*self.spans[prompt][s][:2])}
        answer = self.answers[prompt]
        if len(gone) == answer.first:
            return None
        return [token for t, token in enumerate(self.prompts[prompt][:answer.stop]) if t not in gone]

    def changes(self, jobs: list[list[tuple[int, tuple[int, ...]]]]) -> tuple[dict[str, np.ndarray], list[Outcome]]:
        """Of each job, a mean over cuts of one prompt: the numbers and the outcome."""
        every = {(i, ()) for together in jobs for i, _ in together} | {job for together in jobs for job in together}
        texts = {job: text for job in sorted(every) if (text := self.kept(*job)) is not None}
        known: dict[tuple[int, tuple[int, ...]], tuple[float, float]] = {}
        for batch in self._batches(texts):
            known.update(zip(batch, self._losses([texts[job] for job in batch], [i for i, _ in batch]), strict=True))
        found = {name: np.full(len(jobs), np.nan) for name in _CHANGES}
        outcomes = []
        for row, together in enumerate(jobs):
            if any(job not in known for job in together):
                outcomes.append(Outcome.NOT_FOUND)
                continue
            base = known[together[0][0], ()]
            loss, accuracy = np.mean([known[job] for job in together], axis=0)
            finite = bool(np.isfinite([loss, base[0]]).all())
            outcomes.append(Outcome.FOUND if finite else Outcome.NOT_FINITE)
            if finite:
                # the mean of changes, not the change of means: no change at all is 0 to the last bit
                changed = np.mean([np.subtract(known[job], base) for job in together], axis=0)
                for name, value in zip(_CHANGES, (*changed, loss, accuracy, *base), strict=True):
                    found[name][row] = value
        return found, outcomes

    def _batches(self, texts: dict[Any, list[int]]) -> Iterator[list[Any]]:
        looped = self.looped
        # as in capture: what a loop that ends early, or draws its own numbers, does depends on what runs beside it
        size = 1 if looped.ragged or (looped.random_start and not looped.is_map) else self.batch_size
        by_shape: dict[tuple[int, int], list[Any]] = {}
        for job, text in texts.items():
            answer = self.answers[job[0]]
            by_shape.setdefault((len(text), answer.stop - answer.first), []).append(job)
        for members in by_shape.values():
            for first in range(0, len(members), size):
                yield members[first:first + size]

    def _losses(self, texts: list[list[int]], prompts: list[int]) -> list[tuple[float, float]]:
        """Loss and accuracy of the answers of some prompts of one length."""
        looped, answer = self.looped, self.answers[prompts[0]]
        n, seeds = answer.stop - answer.first, [self.seed + i for i in prompts]
        with undisturbed(looped.module):
            torch.manual_seed(seeds[0])
            tokens = torch.tensor(texts, device=looped.device)
            start = looped.initial_state(looped.embed(tokens), seeds=seeds) if looped.is_map else None
            logits = looped.logits(tokens, self.n_recurrences, start)
            if logits.ndim != 3 or logits.shape[1] < tokens.shape[1]:
                raise ValueError(f"{looped.name} gave {tuple(logits.shape)}; logits (prompts, tokens, vocabulary) are "
                                 "needed.")
            log_p = logits[:, -n - 1:-1].double().log_softmax(-1)
            wanted = tokens[:, -n:]
            loss = F.nll_loss(log_p.transpose(1, 2), wanted, reduction="none").mean(-1)
            right = (log_p.argmax(-1) == wanted).double().mean(-1)
        return list(zip(loss.tolist(), right.tolist(), strict=True))
