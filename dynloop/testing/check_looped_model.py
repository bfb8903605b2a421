"""The contract of a specification of a looped model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch

from dynloop.maps.loop_map import LoopMap
from dynloop.models import LoopedModel, recording, undisturbed, verify
from dynloop.settings import check_whole
from dynloop.testing.check_map import check_map
from dynloop.testing.condition import condition
from dynloop.testing.contract import Contract, claim, differ, hold

_NEW_TOKENS = 3
_ROUNDED = 1e-5


@dataclasses.dataclass(frozen=True)
class _Subject:
    model: LoopedModel
    tokens: torch.Tensor
    n: int

    def start(self, tokens: torch.Tensor, seed: int = 5) -> Any:
        if not self.model.is_map:
            return None
        return self.model.initial_state(self.model.embed(tokens), seeds=range(seed, seed + len(tokens)))

    def seeded(self, tokens: torch.Tensor, seed: int = 5) -> torch.Tensor:
        """Logits; a model that draws its own start draws it from this seed."""
        torch.manual_seed(seed)
        return self.model.logits(tokens, self.n, self.start(tokens, seed))

    def recorded(self, tokens: torch.Tensor, seed: int = 5) -> tuple[dict[tuple[int, int], torch.Tensor], torch.Tensor]:
        """States by (recurrence, point), and logits."""
        found: dict[tuple[int, int], torch.Tensor] = {}

        def keep(forward: int, recurrence: int, point: int, state: torch.Tensor) -> None:
            found[recurrence, point] = state.clone()

        with recording(self.model, keep) as calls:
            logits = self.seeded(tokens, seed)
        calls.check(self.n)
        return found, logits


def check_looped_model(model: LoopedModel, tokens: torch.Tensor | Sequence[Sequence[int]] | None = None, *,
                       n_recurrences: int | None = None, only: Sequence[str] | None = None) -> None:
    """Hold a specification to what capture and `LoopMap` rely on, by running its model.

    Args:
        model: the specification, such as `hooked_block` or an adapter of your own gives it.
        tokens: (prompts, tokens) to run it on, at least two prompts; by default three of six tokens.
        n_recurrences: how many; by default 5, or what comes next to it that the model can run.
        only: some of the contracts, by their keys in `MODEL_CONTRACTS`; all by default. Of a model whose states can
            only be recorded, those that need a map hold by themselves.

    Raises:
        AssertionError: the first contract that is broken, with what to do.
        TypeError: no `LoopedModel`.
        ValueError: no such contract; tokens of another shape.

    Misleads:
        A model of random small weights hardly changes its states, and confirms what a trained one would not. Weights
        of usual size are best.

    Source:
        The contract tests of dynloop.models, which call this function.

    Example:
        >>> from dynloop.models import nano
        >>> from dynloop.testing import check_looped_model
        >>> check_looped_model(nano("nano-settles"))
        >>> import dataclasses
        >>> looped = nano("nano-settles")
        >>> check_looped_model(dataclasses.replace(looped, step=lambda state, context: state))
        Traceback (most recent call last):
        ...
        AssertionError: nano-settles breaks the contract 'steps by hand': it must have a step and a readout ...
    """
    if not isinstance(model, LoopedModel):
        raise TypeError(f"model must be a LoopedModel; got {type(model).__name__}. Describe a torch module with "
                        "dynloop.models.hooked_block, or take a known one by dynloop.models.load.")
    if n_recurrences is None:
        n_recurrences = min(max(1, 5 // model.multiple) * model.multiple, model.most_recurrences or 2**31)
    check_whole("n_recurrences", n_recurrences, 1, "a whole number of at least 1")
    if tokens is None:
        shape = (3, model.n_tokens or 6)
        tokens = torch.randint(0, model.vocabulary, shape, generator=torch.Generator().manual_seed(1))
        if model.padding is not None:
            tokens[tokens == model.padding] = (model.padding + 1) % model.vocabulary
    tokens = torch.as_tensor(tokens, device=model.device)
    if tokens.ndim != 2 or len(tokens) < 2 or tokens.is_floating_point():
        raise ValueError(f"tokens must be whole numbers (prompts, tokens) of at least two prompts; got {tokens.dtype} "
                         f"of shape {tuple(tokens.shape)}.")
    hold(model.name, _Subject(model, tokens, n_recurrences), MODEL_CONTRACTS, only)


def _steps(own: _Subject) -> None:
    if own.model.is_map:
        verify(own.model, own.tokens, n_recurrences=own.n)
        verify(own.model, own.tokens, n_recurrences=own.n, seed=9)


def _outputs(own: _Subject) -> None:
    with undisturbed(own.model.module):
        plain = own.seeded(own.tokens[:1])
        claim(torch.equal(own.recorded(own.tokens[:1])[1], plain), "logits have other bits while states are recorded")


def _places(own: _Subject) -> None:
    model, by_hand = own.model, list[torch.Tensor]()
    with undisturbed(model.module):
        recorded, _ = own.recorded(own.tokens[:1])
        done = len(recorded) // len(model.points)
        claim(set(recorded) == {(r, p) for r in range(done) for p in range(len(model.points))},
              "some recurrences have states that others lack")
        claim(done == own.n or model.ragged, f"{done} recurrences were seen where {own.n} were asked for")
        if not model.is_map or model.forwards == "recurrences":
            return
        places = {(module, point.reads) for point in model.points for module in point.modules}
        handles: list[Any] = []
        for point in model.points:
            for module in point.modules:
                if (module, point.reads) not in places:
                    continue
                places.remove((module, point.reads))
                handles.append(module.register_forward_pre_hook(
                    lambda part, given, kwargs, point=point: by_hand.append(point.state(given, kwargs)),
                    with_kwargs=True) if point.reads == "input" else module.register_forward_hook(
                    lambda part, given, out, point=point: by_hand.append(point.state(out))))
        try:
            context = model.embed(own.tokens[:1])
            state = model.initial_state(context, seeds=[5])
            for r in range(done):
                state = model.step(state, context, **({} if model.autonomous else {"recurrence": r}))
        finally:
            for handle in handles:
                handle.remove()
    claim(len(by_hand) == len(recorded), f"{done} steps call the points {len(by_hand)} times, and the model's own "
                                         f"forward pass {len(recorded)} times")
    for number, found in enumerate(by_hand):
        r, p = divmod(number, len(model.points))
        claim(found is not None and torch.allclose(found, recorded[r, p], rtol=_ROUNDED, atol=_ROUNDED),
              f"the state at point {p + 1} of recurrence {r + 1} is another than the {number + 1}th call of a step by "
              "hand makes")


def _alone(own: _Subject) -> None:
    if own.model.ragged or (own.model.random_start and not own.model.is_map):
        return  # such prompts are run one by one
    with undisturbed(own.model.module):
        together, logits = own.recorded(own.tokens)
        for i in range(len(own.tokens)):
            alone, its = own.recorded(own.tokens[i:i + 1], 5 + i)
            for (r, p), state in alone.items():
                scale = max(1.0, float(state.abs().max()))
                apart = float((together[r, p][i:i + 1] - state).abs().max()) / scale
                claim(apart <= 10 * _ROUNDED, f"the state of prompt {i} at point {p + 1} of recurrence {r + 1} differs "
                                              f"by {apart:.3g} of its size when others run beside it")
            claim(torch.allclose(its, logits[i:i + 1], rtol=1e-3, atol=1e-3 * max(1.0, float(its.abs().max()))),
                  f"the logits of prompt {i} are others when prompts run beside it")


def _starts(own: _Subject) -> None:
    model, tokens = own.model, own.tokens[:2]
    if not model.is_map:
        return
    with undisturbed(model.module):
        context = model.embed(tokens)
        starts = model.initial_state(context, seeds=[5, 6])
        due = (2, tokens.shape[1] + model.prefix, model.state_width)
        claim(tuple(starts.shape) == due, f"initial states have shape {tuple(starts.shape)} where {due} is due")
        alone = model.initial_state(model.embed(tokens[1:]), seeds=[6])
        claim(torch.allclose(alone, starts[1:], rtol=_ROUNDED, atol=_ROUNDED),
              "a prompt starts elsewhere beside others")
        again = model.initial_state(context, seeds=[9, 6])
        claim(torch.equal(again[1], starts[1]), "the same seed gives another start")
        claim(torch.equal(again[0], starts[0]) != model.random_start,
              f"another seed gives {'the same' if model.random_start else 'another'} start, and random_start is "
              f"{model.random_start}")


def _map(own: _Subject) -> None:
    if own.model.is_map:
        check_map(LoopMap.of(own.model, own.tokens[:2], recurrence=None if own.model.autonomous else 0))


def _causal(own: _Subject) -> None:
    model = own.model
    if not model.is_map or own.tokens.shape[1] < 2:
        return
    other = own.tokens[:1].clone()
    other[:, -1] = (other[:, -1] + 1) % model.vocabulary
    ends = []
    with undisturbed(model.module):
        for tokens in (own.tokens[:1], other):
            context = model.embed(tokens)
            state = model.initial_state(context, seeds=[0])
            for r in range(2):
                state = model.step(state, context, **({} if model.autonomous else {"recurrence": r}))
            ends.append(state[:, :-1])
    alike = torch.allclose(ends[0], ends[1], rtol=_ROUNDED, atol=1e-6)
    claim(alike or not model.causal, "states of earlier tokens change with the last token, and causal is True")
    claim(model.causal or not alike, "states of earlier tokens do not change with the last token, and causal is False")


def _generation(own: _Subject) -> None:
    model, tokens = own.model, own.tokens[:2]
    if model.generate is None:
        return
    with undisturbed(model.module):
        made = model.generate(tokens, own.n, own.start(tokens), _NEW_TOKENS)
        due = (len(tokens), tokens.shape[1] + _NEW_TOKENS)
        claim(isinstance(made, torch.Tensor) and tuple(made.shape) == due and torch.equal(made[:, :tokens.shape[1]],
                                                                                          tokens),
              f"it did not give the prompts with {_NEW_TOKENS} tokens after them, {due}")
        if model.random_start:
            return  # of what a new token starts from, the cache alone knows
        for last in range(tokens.shape[1], due[1]):
            logits = own.seeded(made[:, :last])[:, -1].float()
            best, chosen = logits.max(-1).values, logits.gather(-1, made[:, last:last + 1])[:, 0]
            claim((best - chosen <= 1e-3 * logits.abs().amax(-1)).all(),
                  f"token {last} is not the one that the model finds likeliest without a cache")


def _provenance(own: _Subject) -> None:
    record = own.model.provenance
    claim(json.loads(json.dumps(record)) == record, "JSON gives it back as something else")


def _unchanged(own: _Subject) -> None:
    before = condition(own.model.module)
    with undisturbed(own.model.module):
        own.recorded(own.tokens[:1])
    if own.model.is_map:
        verify(own.model, own.tokens, n_recurrences=own.n)
    changed = differ(before, condition(own.model.module))
    claim(not changed, f"{changed} is another afterwards")


MODEL_CONTRACTS: dict[str, Contract] = {
    "steps by hand": Contract(
        "have a step and a readout that make the model's own states and logits from its initial state",
        "Compare step() with the body of the model's loop, and readout() with what follows the loop.", _steps),
    "outputs": Contract("give the same logits, bit for bit, while its states are recorded",
                        "Let run() call the model with fixed arguments and no randomness of its own.", _outputs),
    "places": Contract(
        "call its points once a recurrence, in their order, in the forward pass and in a step",
        "List in points what one recurrence calls, in order; what is called twice stands there twice.", _places),
    "alone": Contract("run each prompt as if it were alone", "Say ragged=True where the loop ends for all prompts at "
                      "once, or take what mixes prompts out of run().", _alone),
    "starts": Contract("start each prompt from its own seed alone",
                       "Draw in initial_state from a generator of each prompt's own seed; say random_start=True if and "
                       "only if seeds matter.", _starts),
    "causality": Contract("say by causal= whether states depend on later tokens", "Set causal= accordingly.", _causal),
    "a map": Contract("have a step that is a map with exact derivatives",
                      "See what the map broke; check_map(LoopMap.of(model, tokens)) repeats it alone.", _map),
    "generation": Contract("generate with its cache what it would without", "Hand the cache on in generate(), and "
                           "start each new token as the model does; or leave generate out.", _generation),
    "provenance": Contract("have provenance that JSON can hold", "Use strings, numbers, lists and dicts with string "
                           "keys.", _provenance),
    "the model": Contract("leave its model and all random states as they are",
                          "Put back in run() what it sets; see dynloop.models.temporarily.", _unchanged)}
