"""Hold a specification against the model that it describes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from dynloop.models.looped_model import LoopedModel, Missing, undisturbed
from dynloop.models.recorder import recording
from dynloop.settings import check_number, check_whole

TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        n_recurrences: recurrences that ran (fewer than asked where the loop ended early).
        step_error: largest relative distance between a recorded state and one step from the recorded state before it.
        path_error: the same from the initial state on by steps alone; a chaotic loop magnifies rounding in it.
        logit_error: largest relative distance between the model's logits and the readout of the last recorded state.
        tolerance: what the step and logit errors had to stay within.
    """

    n_recurrences: int
    step_error: float
    path_error: float
    logit_error: float
    tolerance: float


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    wide = torch.promote_types(expected.dtype, torch.float32)
    found, expected = found.to(wide), expected.to(wide)
    scale = expected.norm(dim=-1).clamp_min(torch.finfo(wide).tiny)
    return float(((found - expected).norm(dim=-1) / scale).max())


def verify(model: LoopedModel, tokens: torch.Tensor | None = None, *, n_recurrences: int | None = None,
           seed: int = 0, tolerance: float | None = None) -> Verification:
    """Run the model and step it by hand: both must give the same states and logits.

    With recorded loop states h_1 ... h_R of the model's own forward pass from the initial state h_0: h_(r+1) must be
    step(h_r; context), and the logits readout(h_R; context).

    Args:
        model: a specification with embed, initial_state, step and readout.
        tokens: (batch, tokens); by default two prompts of eight tokens, or of the one length that the model takes.
        n_recurrences: how many to run; by default 4, or what comes next to it that the model can run.
        seed: prompt i starts from seed + i.
        tolerance: largest relative error; by default 1e-6, and 4 roundings where the loop computes less finely.

    Returns:
        The errors found.

    Misleads: it says that the specification describes the model that was given, on these tokens. It says nothing of
        tokens of another kind (padding), and a `step` that calls the model's own wrong code agrees with it.

    Raises:
        RuntimeError: they do not agree, with the errors; or the calls are not those of the specification.
        ValueError: the specification has no map.

    Example:
        >>> from dynloop.models import nano, verify
        >>> verify(nano("nano-settles")).step_error
        0.0
    """
    if not model.is_map:
        for part in (model.embed, model.initial_state, model.step):
            if isinstance(part, Missing):
                part()
    if tokens is None:
        length = model.n_tokens or 8
        tokens = (torch.arange(2 * length) * 7 + 3).reshape(2, length) % model.vocabulary
    tokens = tokens.to(model.device)
    if n_recurrences is None:
        n_recurrences = max(1, 4 // model.multiple) * model.multiple
        if model.most_recurrences is not None:
            n_recurrences = min(n_recurrences, model.most_recurrences)
    check_whole("n_recurrences", n_recurrences, 1, "a whole number from 1")
    if tolerance is None:
        tolerance = max(TOLERANCE, 4 * torch.finfo(model.compute_dtype).eps)
    check_number("tolerance", tolerance, lambda v: 0 < v < 1, "between 0 and 1, such as 1e-6")
    wanted = [range(len(model.points))[point] for point in model.state_points]
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def keep(forward: int, recurrence: int, point: int, state: torch.Tensor) -> None:
        if point in wanted:
            seen[recurrence, point] = state.detach().clone()

    with undisturbed(model.module):
        context = model.embed(tokens)
        start = model.initial_state(context, seeds=[seed + i for i in range(len(tokens))])
        expected = (*tokens.shape[:1], tokens.shape[1] + model.prefix, model.state_width)
        if tuple(start.shape) != expected:
            raise RuntimeError(f"the initial state of {model.name} has shape {tuple(start.shape)} where {expected} is "
                               "needed (prompts, tokens with the prefix, width of all state points).")
        with recording(model, keep) as calls:
            logits = model.logits(tokens, n_recurrences, start.clone())
        calls.check(n_recurrences)
        n_run = calls.recurrences[-1]
        states = [torch.cat([seen[r, point].to(start.device) for point in wanted], dim=-1) for r in range(n_run)]
        by_hand, before, step_error, path_error = start, start, 0.0, 0.0
        for r, state in enumerate(states):
            if state.shape != start.shape:
                raise RuntimeError(f"the recorded state of {model.name} has shape {tuple(state.shape)}; its initial "
                                   f"state has {tuple(start.shape)}. state_points or width are wrong.")
            which: dict[str, Any] = {} if model.autonomous else {"recurrence": r}
            step_error = max(step_error, _error(model.step(before, context, **which), state))
            by_hand = model.step(by_hand, context, **which)
            path_error = max(path_error, _error(by_hand, state))
            before = state
        logit_error = _error(model.readout(before, context), logits)
    found = Verification(n_run, step_error, path_error, logit_error, tolerance)
    for what, error in (("steps by hand", step_error), ("the readout of the last state", logit_error)):
        if not error <= tolerance:
            raise RuntimeError(f"the specification of {model.name} does not describe it: {what} differ from the "
                               f"model's own by {error:.3g} of their size, where {tolerance:.3g} is allowed. Look at "
                               "step, readout, initial_state and state_points, and at what `run` does with its "
                               "initial state.")
    return found
