"""What would the model say now: the states of every recurrence, read out."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynloop.measurement import Measurement
from dynloop.models import LoopedModel, load, undisturbed
from dynloop.models.looped_model import Missing
from dynloop.models.verify import TOLERANCE
from dynloop.outcome import Outcome
from dynloop.recording.capture import _Batch, _layers, _Plan, _recurrences, _run
from dynloop.recording.prompts import encode_prompts, positions_of
from dynloop.settings import check_whole
from dynloop.store import Store

UNITS = {"loss": "nats", "rank_true": "", "rank_final": "", "kl_final": "nats", "kl_successive": "nats",
         "entropy": "nats", "agrees": "", "correct": ""}
N_RECURRENCES = 32
NONE = -100  # a token without a target
_MEMORY = 2**28  # bytes of states and log-probabilities of a batch
_CHUNK = 2**21  # log-probabilities at once


def coda_lens(model: LoopedModel | nn.Module | str | Path, inputs: Sequence[Any] | Store, *,
              n_recurrences: int | None = None, recurrences: Sequence[int] | None = None,
              tokens: Sequence[int] | None = None, targets: Sequence[Sequence[int]] | None = None, seed: int = 0,
              batch_size: int | None = None) -> Measurement:
    """What the model would answer if its loop ended now: coda, final norm and head of the state after each recurrence.

        p[r] = softmax(readout(h[r])),  p[R] what the model answers after its last recurrence
        loss = -ln p[r][next token],  rank_true = 1 + the number of tokens that p[r] holds likelier than the next token
        rank_final = the same of the final answer, the token that p[R] holds likeliest
        kl_final = KL(p[R] || p[r]),  kl_successive = KL(p[r] || p[r - 1]),  entropy = -sum p[r] ln p[r]
        agrees = 1 where p[r] and p[R] hold the same token likeliest, else 0;  correct = the same of the next token

    States are those of the model's own run; that of the last recurrence must give the model's own logits. Prompts run
    unpadded, in batches of one length, and logits of one recurrence at a time are in memory.

    Args:
        model: as in `capture`; it needs `embed` and `readout`.
        inputs: prompts, as in `capture`; or a store that `capture` wrote of this very model, whose states are read out
            without running the loop again: the loop state of all tokens, in the precision of the computation.
        n_recurrences: R, of prompts; by default 32, or as many as the model has. Of a store all that were run.
        recurrences: which to read out, counted from 1, negative ones from the end; by default all.
        tokens: positions, negative ones from the end; by default all.
        targets: for each prompt the token that each position should predict, -100 where none; by default the next
            token of the prompt.
        seed: prompt i starts from seed + i, where the initial state is random. Of a store its own.
        batch_size: prompts that run together; by default as many as take about a quarter of a gigabyte, at most 16.

    Returns:
        A row a prompt, token and recurrence, labelled `model`, `prompt`, `token`, `recurrence`, `seed`, `start` and
        `has_target`: whether the token that follows is known, of which `loss`, `rank_true` and `correct` are, NaN
        elsewhere (at the last token of a prompt; everywhere for models that are not causal, without `targets`).
        `kl_successive` is NaN at the first recurrence, and where the recurrence before was not stored. Select first:
        `estimate(m.select(has_target=True, recurrence=8), variable="loss", statistic="mean", resample="prompt")`.
        `TOO_SHORT`: the loop had ended. `NOT_FINITE`: the logits are not. Where only the last ones are not, there is no
        final answer: the earlier rows are `FOUND`, and what is held against it is NaN.

    Raises:
        ValueError: prompts, tokens, recurrences or targets that do not exist; a model without `embed` or `readout`; a
            store of another model, or without the states that are needed.
        RuntimeError: the readout of the last state is not what the model answers: its specification is wrong.

    Misleads:
        That an answer is there early does not say that later recurrences do nothing with it, and a coda that was never
        trained on early states may misread them: where training took one number of recurrences, all others are outside
        of what the coda knows. An untrained core already lets the number of steps be told from the state: read an
        untrained copy (`dynloop.models.untrained`) beside the trained one before anything is called reasoning. Tokens
        that tie share the best of their ranks, as often in bfloat16: where all are equally likely every rank is 1, but
        `correct` is 1 for the first of them alone. Tokens of one prompt are not independent: resample prompts.

    Source:
        Lu et al. 2025 (arXiv 2507.02199): the coda lens. Successive KL: Geiping et al. 2025 (arXiv 2502.05171), for
        exits.

    Example:
        >>> from dynloop.recording.lenses import coda_lens
        >>> m = coda_lens("nano-settles", ["import os", "def f(x):"], n_recurrences=8)
        >>> m
        Measurement(coda_lens of 144 orbits: 144 found)
        >>> last = m.select(recurrence=8)
        >>> float(last["kl_final"].max()), int(last["rank_final"].max())
        (0.0, 1)
    """
    looped: LoopedModel = load(model)
    for part in (looped.embed, looped.readout):
        if isinstance(part, Missing):
            raise ValueError(f"the coda lens needs what `embed` and `readout` give; {looped.name} has no {part.what}. "
                             "Give hooked_block both, or take logit_lens.")
    points = tuple(range(len(looped.points))[point] for point in looped.state_points)
    layers = _layers(looped, "state")

    def read(states: torch.Tensor, given: torch.Tensor, positions: list[int]) -> Callable[[int, int], torch.Tensor]:
        context = looped.embed(given)

        def logits(layer: int, step: int) -> torch.Tensor:
            out = looped.readout(states[:, layer, :, step], context)
            if out.ndim != 3 or out.shape[1] < given.shape[1]:
                raise ValueError(f"the readout of {looped.name} gave {tuple(out.shape)}; logits (prompts, tokens, "
                                 "vocabulary) are needed.")
            return out[:, -given.shape[1]:][:, positions]

        return logits

    found = _Lens("coda_lens", looped, layers, points, read, whole=True)
    return found.measure(inputs, n_recurrences, recurrences, tokens, targets, seed, batch_size)


def logit_lens(model: LoopedModel | nn.Module | str | Path, inputs: Sequence[Any] | Store, *,
               n_recurrences: int | None = None, layers: Sequence[int] | None = None,
               recurrences: Sequence[int] | None = None, tokens: Sequence[int] | None = None,
               targets: Sequence[Sequence[int]] | None = None, seed: int = 0,
               batch_size: int | None = None) -> Measurement:
    """What every layer of every recurrence already says: final norm and head alone, without the coda.

        p[r, l] = softmax(head(norm(h[r, l])))

    and of it the same numbers as `coda_lens`, held against the same final answer p[R], that of the whole model;
    kl_successive = KL(p[r, l] || p[r - 1, l]), of the same layer.

    Args:
        model: as in `capture`; its specification must name the final norm and head (`unembed`).
        layers: which, counted from 1; by default all.
        others: as in `coda_lens`. A store need hold the layers and tokens that are read only.

    Returns:
        As `coda_lens`, a row a prompt, token, recurrence and `layer`, with `depth` (from 1, over all recurrences) and
        `percent` of the block, as `stage_profile` has them: `profile_by(m, "recurrence", variable="kl_final")`.

    Raises:
        ValueError: as `coda_lens`; a model without `unembed`.

    Misleads:
        Head and final norm were trained on what the coda gives, or in its absence on the state at the end of the loop:
        in other coordinates they read noise. A layer whose reading jumps from that of the one before writes in another
        basis; it need not know less. As for the coda lens, read an untrained copy beside it.

    Source:
        The logit lens: nostalgebraist 2020. Over recurrences and layers: Lu et al. 2025 (arXiv 2507.02199).

    Example:
        >>> from dynloop.recording.lenses import logit_lens
        >>> m = logit_lens("nano-settles", ["import os"], n_recurrences=4, layers=[1, 2])
        >>> m.n_orbits == 9 * 4 * 2, sorted(set(m.labels["depth"].tolist()))
        (True, [1, 2, 3, 4, 5, 6, 7, 8])
    """
    looped: LoopedModel = load(model)
    unembed = looped.unembed
    if unembed is None:
        raise ValueError(f"the specification of {looped.name} does not name its final norm and head. Put them in: "
                         "dataclasses.replace(model, unembed=dynloop.models.Unembedding(head, norm)).")
    chosen = _layers(looped, layers)

    def read(states: torch.Tensor, given: torch.Tensor, positions: list[int]) -> Callable[[int, int], torch.Tensor]:
        return lambda layer, step: unembed(states[:, layer, :, step], point=chosen[layer][0] - 1)

    found = _Lens("logit_lens", looped, chosen, tuple(layer - 1 for layer, _, _ in chosen), read, whole=False)
    return found.measure(inputs, n_recurrences, recurrences, tokens, targets, seed, batch_size)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Runs of some prompts of one length.

    Attributes:
        prompts, seeds, starts: of each row.
        given: its tokens (rows, tokens).
        positions: those whose logits count.
        states: (rows, layers, tokens, recurrences, features); of the coda lens all tokens with the model's own prefix,
            of the logit lens the positions alone.
        numbers: the recurrence of each state, counted from 1.
        run: recurrences that each row ran, (rows,).
        final: what the model answered, (rows, positions, vocabulary).
    """

    prompts: list[int]
    seeds: list[int]
    starts: list[int]
    given: torch.Tensor
    positions: list[int]
    states: torch.Tensor
    numbers: list[int]
    run: list[int]
    final: torch.Tensor


@dataclasses.dataclass(frozen=True)
class _Lens:
    name: str
    looped: LoopedModel
    layers: list[tuple[int, str, tuple[int, ...]]]
    points: tuple[int, ...]
    read: Callable[[torch.Tensor, torch.Tensor, list[int]], Callable[[int, int], torch.Tensor]]
    whole: bool  # whether all tokens are needed to read one

    def measure(self, inputs: Any, n_recurrences: int | None, recurrences: Sequence[int] | None,
                tokens: Sequence[int] | None, targets: Any, seed: int, batch_size: int | None) -> Measurement:
        """A row a prompt, token, recurrence and layer."""
        looped = self.looped
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1, "a whole number of at least 1 prompt")
        check_whole("seed", seed, 0, "a whole number from 0")
        if isinstance(inputs, Store):
            if n_recurrences is not None:
                raise ValueError("a store has the recurrences that were run. Leave n_recurrences out; recurrences= "
                                 "chooses among them.")
            n = int(inputs.header.get("n_recurrences", 0))
            pieces = _of_store(self, inputs, tokens)
        else:
            n = _number(looped, n_recurrences)
            pieces = _of_prompts(self, encode_prompts(looped, inputs), n, tokens, int(seed), batch_size)
        try:
            listed = None if recurrences is None else [operator.index(r) for r in recurrences]
        except TypeError:
            raise ValueError(f"recurrences must be a list of whole numbers; got {recurrences!r}.") from None
        wanted = [r + 1 for r in _recurrences(listed, n)]
        parts = [self._rows(piece, wanted, targets) for piece in pieces]
        order = np.argsort(np.concatenate([labels["prompt"] for _, _, labels in parts]), kind="stable")
        outcomes = np.concatenate([outcomes for _, outcomes, _ in parts])[order]
        values = {name: np.concatenate([numbers[name] for numbers, _, _ in parts])[order] for name in UNITS}
        labels = {name: np.concatenate([own[name] for _, _, own in parts])[order] for name in parts[0][2]}
        return Measurement(self.name, values, outcomes, units=UNITS, settings={"n_recurrences": n},
                           labels={"model": np.full(len(order), looped.name), **labels})

    def _rows(self, piece: _Piece, wanted: list[int],
              targets: Any) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, np.ndarray]]:
        looped, n_layers = self.looped, len(self.layers)
        if missing := sorted(set(wanted) - set(piece.numbers)):
            raise ValueError(f"the store holds no states of recurrences {', '.join(map(str, missing))}. Choose among "
                             "those that were stored.")
        due = _targets(looped, piece, targets).to(looped.device)
        shape = (len(piece.prompts), len(piece.positions), len(wanted), n_layers)
        values = {name: np.full(shape, np.nan) for name in UNITS}
        outcomes = np.full(shape, Outcome.FOUND, dtype=object)
        with undisturbed(looped.module):
            final = piece.final.to(looped.device)
            last = final.double().log_softmax(-1)
            logits_of = self.read(piece.states, piece.given.to(looped.device), piece.positions)
            if self.whole:
                self._check(piece, logits_of, final)
            for layer in range(n_layers):
                before: tuple[int, torch.Tensor | None] = (0, None)
                for step, number in enumerate(piece.numbers):
                    if number not in wanted and number + 1 not in wanted:
                        continue
                    logits = logits_of(layer, step)
                    now = logits.double().log_softmax(-1)
                    if number in wanted:
                        previous = before[1] if before[0] == number - 1 else None
                        at = (slice(None), slice(None), wanted.index(number), layer)
                        for name, numbers in _numbers(now, last, previous, due).items():
                            values[name][at] = numbers.cpu().numpy()
                        outcomes[at][now.isnan().any(-1).cpu().numpy()] = Outcome.NOT_FINITE
                        outcomes[at][[number > run for run in piece.run]] = Outcome.TOO_SHORT
                    before = number, now
        bad = outcomes != Outcome.FOUND
        for found in values.values():
            found[bad] = np.nan
        prompt, token, step, layer = (i.ravel() for i in np.indices(shape))
        number = np.array(wanted)[step]
        labels = {"prompt": np.array(piece.prompts)[prompt], "token": np.array(piece.positions)[token],
                  "recurrence": number, "seed": np.array(piece.seeds)[prompt], "start": np.array(piece.starts)[prompt],
                  "has_target": (due != NONE).cpu().numpy()[prompt, token]}
        if self.name == "logit_lens":
            own, n_points = np.array([name for name, _, _ in self.layers])[layer], len(looped.points)
            labels |= {"layer": own, "depth": (number - 1) * n_points + own, "percent": 100 * (own - 0.5) / n_points}
        return {name: found.ravel() for name, found in values.items()}, outcomes.ravel(), labels

    def _check(self, piece: _Piece, logits_of: Callable[[int, int], torch.Tensor], final: torch.Tensor) -> None:
        """Hold the readout of each row's last state against the model's own answer."""
        for row, run in enumerate(piece.run):
            if run not in piece.numbers:
                continue
            own, due = logits_of(0, piece.numbers.index(run))[row].double(), final[row].double()
            if not bool(due.isfinite().all()):
                continue
            error = float(((own - due).norm(dim=-1) / due.norm(dim=-1).clamp_min(torch.finfo(due.dtype).tiny)).max())
            tolerance = max(TOLERANCE, 4 * torch.finfo(self.looped.compute_dtype).eps)
            if not error <= tolerance:
                raise RuntimeError(f"the readout of the last state of {self.looped.name} differs from what the model "
                                   f"answers by {error:.3g} of its size, where {tolerance:.3g} is allowed: `readout`, "
                                   "`embed` or `state_points` of its specification are wrong, or the store is of "
                                   "another model. See dynloop.models.verify.")


def _number(looped: LoopedModel, n_recurrences: int | None) -> int:
    if n_recurrences is None:
        most = looped.most_recurrences or N_RECURRENCES
        n_recurrences = max(looped.multiple, min(N_RECURRENCES, most) // looped.multiple * looped.multiple)
    check_whole("n_recurrences", n_recurrences, 1, f"a whole number of at least 1 (default {N_RECURRENCES})")
    looped.check_recurrences(n_recurrences)
    return int(n_recurrences)


def _of_prompts(lens: _Lens, prompts: list[list[int]], n: int, tokens: Sequence[int] | None, seed: int,
                batch_size: int | None) -> Iterator[_Piece]:
    """Run the model on prompts, batch by batch."""
    looped = lens.looped
    width = looped.state_width if lens.whole else looped.width
    plan = _Plan(n, list(range(n)), lens.layers, width, 1, seed, len(prompts), 0, looped.compute_dtype, None)
    by_length: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(number)
    for length, members in sorted(by_length.items()):
        positions = positions_of(tokens, length, members[0])
        # all states that enter the coda: the model's own before the prompt, too
        chosen = list(range(-looped.prefix, length)) if lens.whole else positions
        one = len(chosen) * (len(lens.layers) * n * width * plan.dtype.itemsize + 32 * looped.vocabulary)
        size = 1 if looped.ragged else batch_size or max(1, min(16, _MEMORY // one))
        for first in range(0, len(members), size):
            own = members[first:first + size]
            given = [prompts[p] for p in own]
            states, lengths, about = _run(looped, given, _Batch(0, own, 1, length, chosen, 0), plan)
            final = about["logits"][:, [p + looped.prefix for p in positions]] if lens.whole else about["logits"]
            yield _Piece(own, [plan.seed_of(p, 0) for p in own], [0] * len(own), torch.tensor(given), positions, states,
                         list(range(1, n + 1)), lengths.min(1).values.tolist(), final)


def _of_store(lens: _Lens, store: Store, tokens: Sequence[int] | None) -> Iterator[_Piece]:
    """States that `capture` has recorded, a run at a time."""
    looped, header = lens.looped, store.header
    own, theirs = looped.provenance.get("sha256"), (header.get("model") or {}).get("sha256")
    if "n_recurrences" not in header or own is None or own != theirs:
        raise ValueError(f"{store.folder} is no recording of {looped.name} with these weights. Give the model that was "
                         "recorded, or prompts.")
    if header.get("n_new_tokens") or (lens.whole and looped.prefix):
        raise ValueError(f"states of {store.folder} were recorded with a cache, or after states of the model's own "
                         "that are not in it: they cannot be read out alone. Give prompts.")
    if header["dtype"] != header["stored_dtype"]:
        raise ValueError(f"states of {store.folder} are stored in {header['stored_dtype']} and were computed in "
                         f"{header['dtype']}: their readout is not the model's. Give prompts, or capture again with "
                         "that dtype.")
    numbers = header.get("recurrences") or list(range(1, header["n_recurrences"] + 1))
    held = set(header["layers"])
    joint = lens.whole and len(lens.points) > 1
    if wanting := sorted({layer for layer, _, _ in lens.layers} - held):
        raise ValueError(f"{store.folder} holds layers {', '.join(map(str, sorted(held)))}, and layers "
                         f"{', '.join(map(str, wanting))} are needed. Capture with layers=None, or 'state' for the "
                         "coda lens.")
    for batch in store.inputs():
        there = list(batch["positions"])
        length = batch["tokens"].shape[1]
        positions = positions_of(tokens, length, batch["prompts"][0])
        needed = range(length) if lens.whole else positions
        if missing := sorted(set(needed) - set(there)):
            what = "The coda sees all tokens: capture with tokens=None, or give prompts." if lens.whole else \
                "Choose others."
            raise ValueError(f"{store.folder} holds no states of tokens {', '.join(map(str, missing[:5]))} of prompt "
                             f"{batch['prompts'][0]}. {what}")
        at = torch.tensor([there.index(t) for t in positions])
        for row, (prompt, start) in enumerate(zip(batch["prompts"], batch["starts"], strict=True)):
            orbits = store.trajectories(prompt=prompt, start=start, layer=[layer for layer, _, _ in lens.layers])
            if joint and orbits.states.shape[-1] != looped.state_width:
                raise ValueError(f"{store.folder} holds the parts of the joint state of {looped.name} one by one. Give "
                                 "prompts, or capture with layers='state'.")
            order = torch.as_tensor(np.lexsort((orbits.labels["token"], orbits.labels["layer"])))
            states = orbits.states[order].reshape(len(lens.layers), len(there), *orbits.states.shape[1:])
            kept = torch.tensor([sorted(there).index(t) for t in needed])
            n_run = int(orbits.lengths.min())
            run = header["n_recurrences"] if n_run == len(numbers) else (numbers[n_run - 1] if n_run else 0)
            yield _Piece([int(prompt)], [int(batch["seeds"][row])], [int(start)], batch["tokens"][row:row + 1],
                         positions, states[None, :, kept].to(looped.device), numbers, [run],
                         batch["logits"][row:row + 1, at])


def _targets(looped: LoopedModel, piece: _Piece, targets: Any) -> torch.Tensor:
    """(rows, positions), `NONE` where there is none."""
    given = piece.given
    if targets is not None:
        try:
            rows = torch.stack([torch.as_tensor(targets[p]) for p in piece.prompts])
        except (TypeError, IndexError, KeyError, ValueError, RuntimeError):
            rows = torch.zeros(0)
        if rows.shape != given.shape or rows.is_floating_point() or bool((((rows < 0) & (rows != NONE)) | (
                rows >= looped.vocabulary)).any()):
            raise ValueError("targets must be, for each prompt, as many whole numbers as it has tokens, below "
                             f"{looped.vocabulary}, or {NONE} where there is none; those of prompt {piece.prompts[0]} "
                             "and of its length are not.")
    elif looped.causal:
        rows = torch.cat((given[:, 1:], torch.full_like(given[:, :1], NONE)), 1)
    else:
        rows = torch.full_like(given, NONE)
    return rows[:, piece.positions].long()


def _numbers(now: torch.Tensor, last: torch.Tensor, previous: torch.Tensor | None,
             due: torch.Tensor) -> dict[str, torch.Tensor]:
    """The numbers of `UNITS`, (rows, positions), from log-probabilities (rows, positions, vocabulary)."""
    rows, width = now.flatten(0, 1), now.shape[-1]
    ends, before = last.flatten(0, 1), None if previous is None else previous.flatten(0, 1)
    wanted = due.flatten()
    size = max(1, _CHUNK // width)
    parts: list[dict[str, torch.Tensor]] = []
    for first in range(0, len(rows), size):
        piece = slice(first, first + size)
        p, end, target = rows[piece], ends[piece], wanted[piece]
        answer, nothing = end.argmax(-1), torch.full(p.shape[:1], torch.nan, dtype=p.dtype, device=p.device)
        known, answered = target != NONE, ~end.isnan().any(-1)
        truth = torch.where(known, target, 0)
        of_truth = p.gather(-1, truth[:, None])
        of_answer = p.gather(-1, answer[:, None])
        best = p.argmax(-1)
        probability = p.exp()
        parts.append({
            "loss": torch.where(known, -of_truth[:, 0], nothing),
            "rank_true": torch.where(known, 1.0 + (p > of_truth).sum(-1), nothing),
            "rank_final": torch.where(answered, 1.0 + (p > of_answer).sum(-1), nothing),
            "kl_final": _divergence(end.exp(), end, p),
            "kl_successive": nothing if before is None else _divergence(probability, p, before[piece]),
            "entropy": -torch.where(probability == 0, 0, probability * p).sum(-1),
            "agrees": torch.where(answered, (best == answer).to(p.dtype), nothing),
            "correct": torch.where(known, (best == truth).to(p.dtype), nothing)})
    return {name: torch.cat([part[name] for part in parts]).view(now.shape[:2]) for name in UNITS}


def _divergence(probability: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of log-probabilities; never below 0 by rounding alone."""
    return torch.where(probability == 0, 0, probability * (p - q)).sum(-1).clamp_min(0)
