"""Run a looped model from many starts, or with noise, in parallel: do states and answers agree?"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynloop.maps.noisy_trajectory import Noise
from dynloop.maps.recurrence_importance import _chosen
from dynloop.maps.start_spread import check_limits, curves_of, measured, row_of, spread_of, states_needed
from dynloop.measurement import Measurement
from dynloop.models import LoopedModel, load, undisturbed
from dynloop.models.looped_model import Missing
from dynloop.models.random_start import random_start
from dynloop.outcome import Outcome
from dynloop.settings import check_whole

STARTS = ("model", "random", "same")
_ANSWERS = ("agreement", "kappa", "chance", "majority", "kl")


def parallel_trajectories(model: LoopedModel | nn.Module | str | Path, prompts: Sequence[Any], *, n_starts: int = 8,
                          n_recurrences: int = 128, start: str = "model", noise: float = 0.0, relative: bool = True,
                          n_quiet: int = 0, positions: Sequence[int] | None = None, max_period: int = 16,
                          tolerance: float | None = None, seed: int = 0) -> Measurement:
    r"""Width beside depth: S parallel runs of each prompt, their spread, their distinct limits, and their answers.

    States are those of `start_spread`, in the model's own arithmetic, from the start (recurrence 0) on. With noise,

        h[r] = F(h[r - 1]) + noise |h|_rms xi,   xi normal, |h|_rms that of each token of F(h[r - 1])

    Answers are the logits after the last recurrence, p_s(v) at each token:

        agreement = sum_v n_v (n_v - 1) / (S (S - 1)),   n_v the runs whose most probable token is v: the share of pairs
        kappa = (agreement - chance) / (1 - chance),   chance = sum_v q_v^2, q the answers of all runs, tokens, prompts
        kl = mean over ordered pairs of runs of KL(p_s || p_s')

    The mean of kappa over the rows is Fleiss' kappa.

    Args:
        model: as in `capture`; it must be a map (`embed`, `initial_state`, `step`, `readout`).
        prompts: texts or sequences of token numbers, of any lengths.
        n_starts: S, runs of a prompt.
        n_recurrences: applications of the block.
        start: "model": the model's own initial states, where they are random; "random": as long as these, token by
            token, in random directions; "same": all runs begin with the same one, and noise alone parts them.
        noise: standard deviation of what is added after each recurrence; 0 leaves every bit as it is.
        relative: noise in units of |h|_rms; otherwise in state units.
        n_quiet: how many of the last recurrences go without noise.
        positions: tokens that are measured, negative ones from the end; by default all.
        max_period, tolerance: of the limits, as in `start_spread`.
        seed: start s of prompt i has seed + i + s * (number of prompts), as in `capture`; the noise of each its own.

    Returns:
        A row a prompt and token, labelled `model`, `prompt`, `token`: the variables and outcomes of `start_spread`
        (n_recurrences + 1 values a curve), and `agreement`, `kappa`, `chance`, `majority` (share of the runs that give
        the most frequent answer), `kl` in nats, whatever the outcome, as long as they are finite. `kappa` is NaN where
        all runs of all rows give one answer.

    Raises:
        ValueError: starts that are all the same, without noise; a model that is no map or draws random numbers in its
            step; prompts or tokens that are not there.

    Misleads:
        Where the input enters through the initial state alone (a loop without injection), a random start leaves the
        prompt out: the runs then agree on an answer to nothing. Runs of one prompt are no sample of prompts, and
        tokens of one prompt are not independent: resample prompts. Agreement says nothing of being right: a majority
        over starts helps only where starts disagree. Under noise nothing settles: give `n_quiet`, at least
        3 max_period, to see where it has put the runs. `chance` is of these prompts together: select after measuring
        and it stays what it was.

    Source:
        Own. Fleiss 1971 (Psychological Bulletin 76, 378) for chance-corrected agreement; many runs with a vote over
        their answers: Wang et al. 2022 (arXiv 2203.11171).

    Example:
        >>> from dynloop.maps.parallel_trajectories import parallel_trajectories
        >>> m = parallel_trajectories("nano-random-start", ["import os"], n_starts=4, n_recurrences=64, positions=[-1])
        >>> m["n_starts"].tolist(), bool(m["remaining_spread"][0, -1] < 1e-3), m["agreement"].tolist()
        ([4.0], True, [1.0])
    """
    looped = load(model)
    check_whole("n_starts", n_starts, 2, "a whole number of at least 2 (the default is 8)")
    check_whole("n_recurrences", n_recurrences, 1, "a whole number of at least 1 (the default is 128)")
    check_whole("n_quiet", n_quiet, 0, f"a whole number from 0 (the default) to n_recurrences = {n_recurrences}")
    check_whole("seed", seed, 0, "a whole number of at least 0 (the default)")
    check_limits(max_period, tolerance)
    Noise(noise, relative, ())  # which checks its settings
    if n_quiet > n_recurrences:
        raise ValueError(f"n_quiet must be at most n_recurrences = {n_recurrences}; got {n_quiet}.")
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}; got {start!r}. Choose one.")
    if any(isinstance(part, Missing) for part in (looped.embed, looped.initial_state, looped.step, looped.readout)):
        raise ValueError(f"{looped.name} has no embed, initial_state, step or readout: its loop cannot be stepped by "
                         "hand. Give them to hooked_block; or measure a recording, start_spread(capture(..., "
                         "n_starts=8)).")
    if n_recurrences % looped.multiple or n_recurrences > (looped.most_recurrences or n_recurrences):
        raise ValueError(f"{looped.name} runs multiples of {looped.multiple} recurrences, at most "
                         f"{looped.most_recurrences or 'any number'}; got n_recurrences={n_recurrences}.")
    if noise == 0 and (start == "same" or (start == "model" and not looped.random_start)):
        raise ValueError(f"every run of {looped.name} would be the same: its initial state is "
                         f"{'to be the same' if start == 'same' else 'not random'}, and there is no noise. Use "
                         "start='random', or noise above 0.")
    if start == "random":
        looped = random_start(looped)
    encoded = [_encoded(looped, number, prompt) for number, prompt in enumerate(_listed(prompts))]
    held = [_chosen("positions", positions, len(prompt), 0) for prompt in encoded]
    rows: list[tuple[dict[str, np.ndarray | float], Outcome]] = []
    votes: list[np.ndarray] = []
    plan = _Plan(n_starts, n_recurrences, n_quiet, max_period, tolerance, noise, relative)
    for number, (prompt, chosen) in enumerate(zip(encoded, held, strict=True)):
        first = 0 if start == "same" else len(encoded)
        seeds = [seed + number + s * first for s in range(n_starts)]
        noises = np.random.SeedSequence([seed, number]).generate_state(n_starts, np.uint64) >> np.uint64(1)
        with undisturbed(looped.module):
            torch.manual_seed(seeds[0])
            own, top = _runs(looped, prompt, chosen, seeds, noises.tolist(), plan)
        rows += own
        votes += top
    _against_chance(rows, votes)
    labels = {"model": np.full(len(rows), looped.name),
              "prompt": np.repeat(np.arange(len(encoded)), [len(chosen) for chosen in held]),
              "token": np.concatenate([np.array(chosen) for chosen in held])}
    found = measured("parallel_trajectories", rows, labels, {
        "n_starts": n_starts, "n_recurrences": n_recurrences, "start": start, "noise": float(noise),
        "relative": relative, "n_quiet": n_quiet, "max_period": max_period, "tolerance": tolerance, "seed": seed})
    return dataclasses.replace(found, units={**found.units, "kl": "nats"})


@dataclasses.dataclass(frozen=True)
class _Plan:
    """Checked settings of the runs."""

    n_starts: int
    n_recurrences: int
    n_quiet: int
    max_period: int
    tolerance: float | None
    noise: float
    relative: bool


def _runs(looped: LoopedModel, prompt: list[int], chosen: list[int], seeds: list[int], noises: list[int],
          plan: _Plan) -> tuple[list[tuple[dict[str, np.ndarray | float], Outcome]], list[np.ndarray]]:
    """The rows of one prompt, and the answers of its runs at each row."""
    tokens = torch.tensor([prompt] * plan.n_starts, device=looped.device)
    context = looped.embed(tokens)
    state = looped.initial_state(context, seeds=seeds)
    drawn = torch.get_rng_state()
    disturb = Noise(plan.noise, plan.relative, noises)
    window, at = states_needed(plan.max_period), [looped.prefix + t for t in chosen]
    late: deque[torch.Tensor] = deque([state[:, at]], maxlen=window)
    begin, seen = late[0], [spread_of(late[0])]
    for r in range(plan.n_recurrences):
        state = looped.step(state, context, **({} if looped.autonomous else {"recurrence": r}))
        state = state if r >= plan.n_recurrences - plan.n_quiet else disturb(state)
        late.append(state[:, at])
        seen.append(spread_of(late[-1]))
    logits = looped.readout(state, context)
    if logits.ndim != 3 or logits.shape[1] < len(prompt):
        raise ValueError(f"the readout of {looped.name} gave {tuple(logits.shape)}; logits (prompts, tokens, "
                         "vocabulary) are needed.")
    if not torch.equal(drawn, torch.get_rng_state()):
        raise ValueError(f"{looped.name} draws random numbers in its step: its runs would differ by these, too. "
                         "Switch that off; noise= disturbs the transitions.")
    logits = logits[:, -len(prompt):]
    spacing = max(torch.finfo(looped.compute_dtype).eps, torch.finfo(begin.dtype).eps)
    tolerance = spacing**0.5 if plan.tolerance is None else plan.tolerance
    spread, size = np.array(seen).transpose(1, 2, 0)
    rows, votes = [], []
    for i, token in enumerate(chosen):
        ends = torch.stack([states[:, i] for states in late], dim=1)
        answers, top = _answers(logits[:, token])
        finite = bool(np.isfinite(spread[i]).all()) and bool(np.isfinite(answers["agreement"]))
        numbers, outcome = row_of(curves_of(spread[i], size[i]), ends, begin[:, i], window, plan.max_period, tolerance,
                                  spacing, finite)
        rows.append(({**numbers, **dict.fromkeys(_ANSWERS, np.nan), **answers}, outcome))
        votes.append(top)
    return rows, votes


def _answers(logits: torch.Tensor) -> tuple[dict[str, np.ndarray | float], np.ndarray]:
    """What runs (starts, vocabulary) agree on, and the answer of each; none where a number is not finite."""
    log_p = logits.double().log_softmax(-1)
    n = len(log_p)
    if log_p.isnan().any():
        return {"agreement": np.nan, "majority": np.nan, "kl": np.nan}, np.zeros(0, dtype=np.int64)
    top = log_p.argmax(-1).cpu().numpy()
    counts = np.unique(top, return_counts=True)[1]
    p = log_p.exp()
    own = torch.special.xlogy(p, p).sum() * n
    seen = p.sum(0)
    mixed = torch.where(seen > 0, seen * log_p.sum(0), 0.0).sum()  # a token that no run can give
    kl = float((own - mixed) / (n * (n - 1)))
    return {"agreement": float((counts * (counts - 1)).sum() / (n * (n - 1))), "majority": float(counts.max() / n),
            "kl": max(kl, 0.0)}, top


def _against_chance(rows: list[tuple[dict[str, np.ndarray | float], Outcome]], votes: list[np.ndarray]) -> None:
    """Fill in chance and kappa, with the answers of all rows."""
    counts = np.unique(np.concatenate(votes), return_counts=True)[1]
    if not counts.sum():
        return
    chance = float(((counts / counts.sum()) ** 2).sum())
    for (numbers, _), top in zip(rows, votes, strict=True):
        if len(top):
            numbers["chance"] = chance
            if chance < 1:
                numbers["kappa"] = (numbers["agreement"] - chance) / (1 - chance)


def _listed(prompts: Any) -> Sequence[Any]:
    if isinstance(prompts, str | bytes) or not hasattr(prompts, "__len__") or not len(prompts):
        raise ValueError("prompts must be a list of texts or of sequences of token numbers, with at least one; got "
                         f"{prompts!r}. One prompt? Pass [prompt].")
    return prompts


def _encoded(looped: LoopedModel, number: int, prompt: Any) -> list[int]:
    tokens = torch.as_tensor(looped.encode(prompt) if isinstance(prompt, str) else prompt)
    if tokens.ndim != 1 or not len(tokens) or tokens.is_floating_point() or \
            not 0 <= int(tokens.min()) <= int(tokens.max()) < looped.vocabulary:
        raise ValueError(f"prompt {number} must be a text or whole numbers from 0 to {looped.vocabulary - 1}, at least "
                         f"one; got {prompt!r}.")
    return tokens.tolist()
