"""When would a published exit rule have stopped the loop, and what would that have cost?"""

from __future__ import annotations

import numpy as np
import torch

from dynloop.advice.readout import Readout
from dynloop.analyzers import distance_to_limit
from dynloop.distances import distances
from dynloop.measurement import Measurement
from dynloop.measuring import analyzer
from dynloop.outcome import Outcome
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

STATE_RULES = {"latent difference": 0.03, "acceleration": 0.01, "cosine": 1e-3}  # name -> published threshold
OUTPUT_RULES = {"KL": 1e-3, "min-p KL": 1e-5, "entropy difference": 1e-3, "argmax stability": 5.0}
RULES = {**STATE_RULES, **OUTPUT_RULES}
_IN_A_ROW = 2  # accelerations below the threshold
_MIN_P = 0.1  # share of the largest probability below which a token is dropped
_AT_FLOOR = 8.0  # spacings of the number format: a step that stays below is one of rounding


@analyzer(together=("token",))
def exit_rule(trajectories: Trajectories, *, rule: str = "latent difference", threshold: float | None = None,
              readout: Readout | None = None, first_recurrence: int = 1) -> Measurement:
    r"""Recurrence after which a published rule stops each orbit; what it saves, and what the early exit costs.

    With states x[t], steps D[t] = x[t] - x[t-1], outputs p[t] = softmax(readout(x[t])) over V tokens, a rule stops at
    the first t at which (thresholds tau as published):

        latent difference   ||D[t]|| / ||x[t]|| < .03
        acceleration        ||D[t] - D[t-1]|| / ||x[t]|| < .01, twice in a row
        cosine              1 - cos(x[t], x[t-1]) < 1e-3
        KL                  KL(p[t-1] || p[t]) < 1e-3
        min-p KL            the same < 1e-5, probabilities below a tenth of the largest set to 1 / V, renormalised
        entropy difference  |H(p[t]) - H(p[t-1])| < 1e-3, in nats
        argmax stability    the largest logit has been the same token in 5 steps in a row

    Each token stops by itself.

    Args:
        trajectories: orbits of the loop state, as long as the loop is run; their last state stands for what the full
            run gives.
        rule: one of the above.
        threshold: another one than the published.
        readout: (states (n, features) of one recurrence, labels of the orbits) -> logits (n, vocabulary); `readout_of`
            makes it from a model. Rules on outputs need it; with it the cost is that of the outputs, too. It is given
            all tokens of a prompt at once.
        first_recurrence: as in `recurrences_needed`.

    Returns:
        `recurrences` (n_orbits,) that are run; `saved` of those recorded; `saved_share`; `distance`, of the state at
        the exit from the last one over the norm of that; `at_floor`, 1 where the step at the exit is at most one
        spacing of the number format, so that rounding may have stopped the loop and not convergence, else 0;
        `at_rest`, 1 where the orbit comes to rest by `distance_to_limit`, else 0: the full run then is no limit either.
        With a readout: `kl`, KL(p_last || p_exit) in nats, and `argmax_changed`, 1 where the likeliest token is another
        one.
        `NOT_FOUND`: the rule never fired; nothing would have been saved. `AT_PRECISION_FLOOR`: it never fired although
        the orbit came down to the floor of its number format, above which the threshold lies too low. `NOT_FINITE`,
        `TOO_SHORT`.

    Raises:
        ValueError: an unknown rule, or one that needs a readout.

    Misleads:
        A small step is no small distance: at a contraction rate rho the limit is step rho / (1 - rho) away, fifty steps
        at .98, and a slow drift takes small steps for ever; look at `distance` and `at_rest`. In bfloat16, steps at the
        floor are near 5e-3 of the state: thresholds below never fire, and slow motion below half a spacing is rounded
        away and looks like arrival (`at_floor`). An orbit of period 2 never has a small step, but its entropy and its
        argmax may stand still. Costs of a rule are means over the orbits at which it fired. Where a token stops, those
        after it would attend to its early state; that the recording cannot show.

    Source:
        Geiping et al. 2025 (arXiv 2502.05171; thresholds and formulas of the repository's exit evaluators, there for
        the mean over a sequence or the last token; the paper has 5e-4 for KL). Acceleration: Pappone et al. 2025 (arXiv
        2509.23314), there not over the norm of the state, with thresholds from 1e-5 to 1e-2.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.advice import exit_rule
        >>> orbits = Trajectories(1 + 0.5 ** np.arange(1, 65)[None, :, None] * np.ones((1, 1, 16)))
        >>> m = exit_rule(orbits)
        >>> m.values, m["saved"], m["distance"].round(3)
        (array([6.]), array([58.]), array([0.016]))
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}; got {rule!r}.")
    if rule in OUTPUT_RULES and readout is None:
        raise ValueError(f"the rule {rule!r} looks at outputs: give readout=, such as readout_of(model, prompts). "
                         f"Rules on states are {', '.join(STATE_RULES)}.")
    threshold = RULES[rule] if threshold is None else threshold
    check_number("threshold", threshold, lambda v: 0 < v < np.inf, f"a positive number ({RULES[rule]:g} for {rule})")
    check_whole("first_recurrence", first_recurrence, 0, "0 (the initial state was recorded) or more (1 by default)")
    n, lengths, diverged = trajectories.n_orbits, trajectories.lengths, trajectories.diverged
    relative = distances(trajectories).successive(metric="relative")  # [:, t - 1] is of step t
    reading = None if readout is None else _read(trajectories, readout)
    with np.errstate(invalid="ignore"):
        fires, least = _fires(trajectories, relative, rule, threshold, reading)
    fires[np.arange(fires.shape[1])[None] >= lengths[:, None]] = False
    fired = fires.any(1) & ~diverged
    at = np.where(fired, fires.argmax(1), 0)
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps)
    outcomes = []
    for o in range(n):
        if diverged[o] or lengths[o] < least:
            outcomes.append(Outcome.NOT_FINITE if diverged[o] else Outcome.TOO_SHORT)
        elif fired[o]:
            outcomes.append(Outcome.FOUND)
        else:
            late = relative[o, lengths[o] - 1 - max(1, lengths[o] // 4):lengths[o] - 1]
            floor = rule in STATE_RULES and np.median(late) <= _AT_FLOOR * spacing
            outcomes.append(Outcome.AT_PRECISION_FLOOR if floor else Outcome.NOT_FOUND)
    rest = distance_to_limit(trajectories, metric="relative")
    rows = np.arange(n)
    stepped = relative[rows, np.maximum(at - 1, 0)] if relative.shape[1] else np.full(n, np.nan)
    recorded = lengths - 1 + first_recurrence
    variables = {"recurrences": at + first_recurrence, "saved": recorded - at - first_recurrence,
                 "saved_share": (recorded - at - first_recurrence) / np.maximum(recorded, 1),
                 "distance": rest["distance"][rows, at], "at_floor": stepped <= spacing, "at_rest": rest.found}
    if reading is not None:
        variables |= {name: reading[name][rows, at] for name in ("kl", "argmax_changed")}
    found = np.array([outcome is Outcome.FOUND for outcome in outcomes])
    variables = {name: np.where(found, np.asarray(values, dtype=float), np.nan) for name, values in variables.items()}
    return Measurement("exit_rule", variables, outcomes,
                       units={"recurrences": "recurrences", "saved": "recurrences",
                              **({"kl": "nats"} if reading is not None else {})},
                       settings={"rule": rule, "threshold": float(threshold), "first_recurrence": first_recurrence,
                                 "readout": readout is not None}, labels=trajectories.labels)


def _fires(trajectories: Trajectories, relative: np.ndarray, rule: str, threshold: float,
           reading: dict[str, np.ndarray] | None) -> tuple[np.ndarray, int]:
    """Whether the rule is met at each state (n_orbits, n_steps), and the states that it needs."""
    n, n_steps = trajectories.n_orbits, trajectories.n_steps
    fires = np.zeros((n, n_steps), dtype=bool)
    if rule == "latent difference":
        fires[:, 1:] = relative < threshold
        return fires, 2
    if rule == "cosine":
        fires[:, 1:] = distances(trajectories).successive(metric="cosine") < threshold
        return fires, 2
    if rule == "acceleration":
        if n_steps < 2 + _IN_A_ROW:
            return fires, 2 + _IN_A_ROW
        x = trajectories.states.double()
        bend = torch.linalg.vector_norm(x[:, 2:] - 2 * x[:, 1:-1] + x[:, :-2], dim=-1)
        share = torch.where(bend == 0, 0, bend / torch.linalg.vector_norm(x[:, 2:], dim=-1))  # at 0, too, as of steps
        small = share.cpu().numpy() < threshold
        fires[:, 3:] = small[:, 1:] & small[:, :-1]
        return fires, 2 + _IN_A_ROW
    assert reading is not None  # checked at the door
    if rule == "argmax stability":
        same = np.zeros(n)
        for t in range(1, n_steps):
            same = np.where(reading[rule][:, t], same + 1, 0)
            fires[:, t] = same >= threshold
        return fires, 1 + int(np.ceil(threshold))
    fires[:, 1:] = reading[rule][:, 1:] < threshold
    return fires, 2


def _read(trajectories: Trajectories, readout: Readout) -> dict[str, np.ndarray]:
    """What the rules ask of the outputs, for every state (n_orbits, n_steps): of one recurrence after the other, so
    that one distribution an orbit is held, and once for all rules.
    """
    if trajectories.derived.get("reading", (None, None))[0] is readout:
        return trajectories.derived["reading"][1]
    last = torch.as_tensor(np.maximum(trajectories.lengths - 1, 0))
    rows = torch.arange(trajectories.n_orbits)

    def at(step: int) -> torch.Tensor:
        """Log-probabilities; orbits that have ended are read at their last state."""
        states = trajectories.states[rows, torch.clamp(last, max=step)]
        logits = readout(states, trajectories.labels)
        if logits.ndim != 2 or len(logits) != len(states):
            raise ValueError(f"readout must give logits ({len(states)}, vocabulary) for states {tuple(states.shape)}; "
                             f"got {tuple(logits.shape)}.")
        return logits.detach().cpu().double().log_softmax(-1)

    end = at(trajectories.n_steps)
    names = (*OUTPUT_RULES, "kl", "argmax_changed")
    found = {name: np.full((trajectories.n_orbits, trajectories.n_steps), np.nan) for name in names}
    before = None
    for t in range(trajectories.n_steps):
        now = at(t)
        numbers = {"kl": _divergence(end, now), "argmax_changed": end.argmax(-1) != now.argmax(-1)}
        if before is not None:
            numbers |= {"KL": _divergence(before, now), "min-p KL": _divergence(_min_p(before), _min_p(now)),
                        "entropy difference": (_entropy(before) - _entropy(now)).abs(),
                        "argmax stability": before.argmax(-1) == now.argmax(-1)}
        for name, values in numbers.items():
            found[name][:, t] = values.numpy()
        before = now
    trajectories.derived["reading"] = readout, found
    return found


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of log-probabilities; never below 0, where rounding would put it."""
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).clamp(min=0)


def _min_p(p: torch.Tensor) -> torch.Tensor:
    share = p.exp()
    share = torch.where(share < _MIN_P * share.max(-1, keepdim=True).values, 1 / p.shape[-1], share)
    return (share / share.sum(-1, keepdim=True)).log()


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(p.exp()).sum(-1)
