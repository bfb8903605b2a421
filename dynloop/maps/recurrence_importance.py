"""What does each recurrence contribute: the change of the output when it is skipped or replaced."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dynloop.measurement import Measurement
from dynloop.models import LoopedModel, load, undisturbed
from dynloop.models.looped_model import Missing
from dynloop.outcome import Outcome
from dynloop.settings import check_whole

REPLACEMENTS = ("previous", "start", "other prompt")
UNITS = {"loss_change": "nats", "kl": "nats", "argmax_changed": "", "loss": "nats", "base_loss": "nats"}
NONE = -100  # a token without a target
_BATCH = 16


def recurrence_importance(model: LoopedModel | nn.Module | str | Path, tokens: torch.Tensor | Sequence[Sequence[int]],
                          *, n_recurrences: int = 32, recurrences: Sequence[int] | None = None,
                          replacement: str = "previous", positions: Sequence[int] | None = None,
                          targets: torch.Tensor | None = None, seed: int = 0,
                          batch_size: int = _BATCH) -> Measurement:
    """The change of loss and output when the result of one recurrence is thrown away and the loop goes on.

    After recurrence r the state h[r] is replaced by g, and the R - r recurrences that remain are run:

        "previous"      g = h[r - 1]                the recurrence is skipped
        "start"         g = h[0]                    all recurrences up to r are lost
        "other prompt"  g = h[r] of the next prompt of the tokens: the step is there, its content is another's

        loss_change = loss' - loss,   kl = mean over tokens of KL(p || p'),   argmax_changed = share of the tokens

    Args:
        model: as in `capture`; it must be a map (`embed`, `initial_state`, `step`, `readout`).
        tokens: prompts of one length, (prompts, tokens).
        n_recurrences: R, recurrences of the whole run.
        recurrences: those that are replaced, counted from 1, negative ones from the end; by default all.
        replacement: see above.
        positions: tokens whose state is replaced, negative ones from the end; by default all.
        targets: (prompts, tokens) that the logits are held against, -100 where none; by default the next tokens.
        seed: prompt i starts from seed + i, where the initial state is random.
        batch_size: prompts that run together.

    Returns:
        A row a prompt and recurrence, labelled `prompt` and `recurrence`, for
        `estimate(m.select(recurrence=r), statistic="mean", resample="prompt")`: `loss_change` in nats a token, `kl` in
        nats, `argmax_changed` from 0 to 1, `loss` with the replacement, `base_loss` without. `NOT_FINITE`: the logits
        of either run are not.

    Raises:
        ValueError: recurrences, positions, targets or a replacement that are not there; one prompt for "other prompt";
            a model that is no map, or draws random numbers in its step.

    Misleads:
        Where every recurrence applies the same map, skipping any one of them for all tokens is running one fewer: the
        answer is the same for each, and says how far the output had settled by recurrence R - 1, not which step
        matters. What differs by recurrence there are skips at some `positions`, and the other replacements. A loop that
        contracts repairs what is replaced early: importance near the end is then larger by that alone. KL and loss are
        of this number of recurrences; in training it may have been another.

    Source:
        Ablation of layers one at a time (Veit et al. 2016, arXiv 1605.06431), here along the loop; replacement by
        another prompt's state is resample ablation. The states are those of `dynloop.maps.intervention.intervene`.

    Example:
        >>> from dynloop.maps.recurrence_importance import recurrence_importance
        >>> m = recurrence_importance("nano-settles", [list(b"import os"), list(b"def f(x)") + [58]],
        ...                           n_recurrences=8, recurrences=[1, 8], replacement="start")
        >>> m
        Measurement(recurrence_importance of 4 orbits: 4 found)
        >>> bool(m["kl"][1] > m["kl"][0] >= 0)  # of the first prompt: to start again in the end costs more
        True
    """
    looped = load(model)
    check_whole("n_recurrences", n_recurrences, 1, "a whole number of at least 1 (the default is 32)")
    check_whole("batch_size", batch_size, 1, f"a whole number of at least 1 prompt (the default is {_BATCH})")
    if replacement not in REPLACEMENTS:
        raise ValueError(f"replacement must be one of {', '.join(REPLACEMENTS)}; got {replacement!r}. Choose one.")
    if n_recurrences % looped.multiple or n_recurrences > (looped.most_recurrences or n_recurrences):
        raise ValueError(f"{looped.name} runs multiples of {looped.multiple} recurrences, at most "
                         f"{looped.most_recurrences or 'any number'}; got n_recurrences={n_recurrences}.")
    if any(isinstance(part, Missing) for part in (looped.embed, looped.initial_state, looped.step, looped.readout)):
        raise ValueError(f"{looped.name} has no embed, initial_state, step or readout: its loop cannot be stepped by "
                         "hand. Give them to hooked_block.")
    rows = torch.as_tensor(tokens)
    if rows.ndim != 2 or rows.is_floating_point() or not rows.numel():
        raise ValueError(f"tokens must be whole numbers (prompts, tokens); got {rows.dtype} of shape "
                         f"{tuple(rows.shape)}. One prompt? Pass [prompt].")
    chosen = _chosen("recurrences", recurrences, n_recurrences, 1)
    held = None if positions is None else [looped.prefix + t for t in
                                           _chosen("positions", positions, rows.shape[1], 0)]
    n = len(rows)
    if replacement == "other prompt" and n < 2:
        raise ValueError("replacement='other prompt' needs at least two prompts; got 1. Add one of the same length.")
    wanted = _targets(looped, rows, targets)
    found = {name: np.full((n, len(chosen)), np.nan) for name in UNITS}
    for first in range(0, n, batch_size):
        own = torch.arange(first, min(first + batch_size, n))
        run = _Run(looped, rows, own, wanted[own], n_recurrences, seed, with_next=replacement == "other prompt")
        with undisturbed(looped.module):
            numbers = run.numbers(chosen, replacement, held)
        for name, values in numbers.items():
            found[name][own.numpy()] = values
    finite = np.isfinite(np.stack(list(found.values()))).all(0)
    for values in found.values():
        values[~finite] = np.nan
    outcomes = [Outcome.FOUND if good else Outcome.NOT_FINITE for good in finite.ravel()]
    return Measurement(
        "recurrence_importance", {name: values.ravel() for name, values in found.items()},
        outcomes, units=UNITS,
        settings={"n_recurrences": n_recurrences, "replacement": replacement, "seed": seed,
                  "positions": None if positions is None else tuple(positions)},
        labels={"model": np.full(n * len(chosen), looped.name), "prompt": np.repeat(np.arange(n), len(chosen)),
                "recurrence": np.tile(np.array(chosen), n)})


class _Run:
    """Some prompts, run as they are and with one recurrence's result replaced."""

    def __init__(self, looped: LoopedModel, tokens: torch.Tensor, own: torch.Tensor, targets: torch.Tensor,
                 n_recurrences: int, seed: int, *, with_next: bool) -> None:
        # the prompt after the last comes too, where its states are given to the one before
        self.taken = torch.cat((own, (own[-1:] + 1) % len(tokens))) if with_next else own
        self.looped, self.n, self.n_recurrences, self.seed = looped, len(own), n_recurrences, seed
        self.tokens = tokens[self.taken].to(looped.device)
        self.targets = targets.to(looped.device)

    def numbers(self, chosen: Sequence[int], replacement: str, held: list[int] | None) -> dict[str, np.ndarray]:
        """The numbers of every prompt and recurrence, (prompts, chosen)."""
        looped, n = self.looped, self.n
        torch.manual_seed(self.seed)
        everyone, own = looped.embed(self.tokens), looped.embed(self.tokens[:n])
        states = [looped.initial_state(everyone, seeds=[self.seed + int(i) for i in self.taken])]
        drawn = torch.get_rng_state()
        for r in range(self.n_recurrences):
            states.append(self.step(states[-1], everyone, r))
        base = self.log_probabilities(states[-1][:n], own)
        loss = self.loss(base)
        # with one map for all recurrences a skip is a run of one fewer, whichever it is
        alike = looped.autonomous and replacement == "previous" and held is None
        columns: list[dict[str, torch.Tensor]] = []
        for r in chosen:
            if alike and columns:
                columns.append(columns[0])
                continue
            state = {"previous": states[r - 1][:n], "start": states[0][:n],
                     "other prompt": states[r].roll(-1, 0)[:n]}[replacement]
            if held is not None:
                mixed = states[r][:n].clone()
                mixed[:, held] = state[:, held]
                state = mixed
            for later in range(r, self.n_recurrences):
                state = self.step(state, own, later)
            now = self.log_probabilities(state, own)
            columns.append({"loss_change": self.loss(now) - loss,
                            "kl": (base.exp() * (base - now)).nan_to_num(nan=torch.nan, neginf=0.0).sum(-1).mean(-1),
                            "argmax_changed": (base.argmax(-1) != now.argmax(-1)).double().mean(-1),
                            "loss": self.loss(now), "base_loss": loss})
        if not torch.equal(drawn, torch.get_rng_state()):
            raise ValueError(f"{looped.name} draws random numbers in its step: a run with a replacement would differ "
                             "by these, too. Switch that off.")
        return {name: torch.stack([column[name] for column in columns], 1).cpu().numpy() for name in UNITS}

    def step(self, state: torch.Tensor, context: Any, recurrence: int) -> torch.Tensor:
        """The recurrence of this number, counted from 0."""
        how = {} if self.looped.autonomous else {"recurrence": recurrence}
        return self.looped.step(state, context, **how)

    def log_probabilities(self, state: torch.Tensor, context: Any) -> torch.Tensor:
        """(prompts, tokens, vocabulary), of the prompt's tokens, in double precision."""
        logits = self.looped.readout(state, context)
        if logits.ndim != 3 or logits.shape[1] < self.tokens.shape[1]:
            raise ValueError(f"the readout of {self.looped.name} gave {tuple(logits.shape)}; logits (prompts, tokens, "
                             "vocabulary) are needed.")
        return logits[:, -self.tokens.shape[1]:].double().log_softmax(-1)

    def loss(self, log_probabilities: torch.Tensor) -> torch.Tensor:
        """Mean over the tokens that have a target, (prompts,)."""
        losses = F.nll_loss(log_probabilities.transpose(1, 2), self.targets, ignore_index=NONE, reduction="none")
        return losses.sum(-1) / (self.targets != NONE).sum(-1)


def _chosen(name: str, given: Sequence[int] | None, n: int, first: int) -> list[int]:
    """Places from `first` on, of n, in order."""
    if given is None:
        return list(range(first, first + n))
    try:
        found = sorted({i if i >= 0 else i + n + first for i in map(operator.index, given)})
    except TypeError:
        found = []
    if not found or found[0] < first or found[-1] >= n + first:
        raise ValueError(f"{name} must be among {first} to {n + first - 1}, or negative ones from the end; got "
                         f"{given!r}. None stands for all.")
    return found


def _targets(looped: LoopedModel, tokens: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """(prompts, tokens), `NONE` where there is none."""
    if targets is None:
        if not looped.causal:
            raise ValueError(f"{looped.name} is not causal: its next tokens are no prediction. Give targets=.")
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], NONE)), 1)
    targets = torch.as_tensor(targets)
    if targets.shape != tokens.shape or targets.is_floating_point() or not (targets != NONE).any(1).all():
        raise ValueError(f"targets must be whole numbers (prompts, tokens) = {tuple(tokens.shape)}, {NONE} where there "
                         f"is none, and one a prompt at least; got shape {tuple(targets.shape)}, {targets.dtype}. "
                         "Prompts of one token need targets=.")
    if ((targets < 0) & (targets != NONE)).any() or (targets >= looped.vocabulary).any():
        raise ValueError(f"targets must be below {looped.vocabulary}, the vocabulary; got {int(targets.min())} to "
                         f"{int(targets.max())}.")
    return targets.long()
