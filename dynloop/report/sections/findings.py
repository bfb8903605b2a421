"""What the runs say, in sentences made of the numbers of the tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dynloop.outcome import Outcome
from dynloop.report.cells import listed, number, percent
from dynloop.report.runs import Run
from dynloop.report.sections import control

_ONE = {"fixed point": "at a fixed point", "converging": "still converging", "orbit": "on a periodic orbit",
        "quasi-periodic": "quasi-periodic", "slider": "drifting", "chaotic": "chaotic", "diverging": "diverging",
        "undetermined": "undetermined"}


def findings(runs: Sequence[Run]) -> tuple[str, ...]:
    """A paragraph a run, then one for each untrained control beside its trained model."""
    return (*(_finding(run) for run in runs), *control.sentences(runs))


def _finding(run: Run) -> str:
    parts = [text for text in (_rest(run), _contraction(run)) if text]
    told = f"{run.name}: {'; '.join(parts)}" if parts else f"{run.name}: nothing that a finding could be made of"
    return ". ".join(text for text in (told, _regimes(run), _losses(run)) if text) + "."


def _rest(run: Run) -> str:
    if not run.has("distance_to_limit"):
        return ""
    counts = run.part("distance_to_limit", layer=run.last_layer).counts()
    n, rest, moving = sum(counts.values()), counts.get(Outcome.FOUND, 0), counts.get(Outcome.NOT_CONVERGED, 0)
    if not rest + moving:
        text = f"none of {run.of_units} can be judged"
    elif rest == n:
        text = f"all {run.of_units} come to rest within {run.n_steps} recurrences"
    elif moving == n:
        text = f"none of {run.of_units} comes to rest within {run.n_steps} recurrences"
    else:
        text = f"{rest:,} of {run.of_units} come to rest within {run.n_steps} recurrences" + (
            f"; {moving:,} still move" if moving else "")
    share = run.ask("distance_to_limit", "share", of=Outcome.NOT_CONVERGED, layer=run.last_layer)
    if share and rest + moving:
        text += f" (still moving: {percent(share)}, {100 * share.confidence_level:g} % interval)"
    if short := counts.get(Outcome.TOO_SHORT, 0):
        text += f"; {short:,} {'is' if short == 1 else 'are'} too short to tell"
    if gone := counts.get(Outcome.NOT_FINITE, 0):
        text += f"; {gone:,} left the finite numbers"
    return text


def _contraction(run: Run) -> str:
    if not run.has("contraction_rate"):
        return ""
    own = run.part("contraction_rate", layer=run.last_layer)
    rate, floor, length = (run.ask("contraction_rate", "median", variable=v, layer=run.last_layer)
                           for v in ("rate", "relative_floor", "regime_length"))
    n_rates = own.counts().get(Outcome.FOUND, 0)
    if not rate:
        return f"{n_rates:,} have a contraction rate, in too few {run.nesting.levels[0]}s for an interval" if n_rates \
            else "no contraction rate can be measured"
    text = f"before any floor a recurrence shrinks the step to {number(rate)} of its length"
    if floor and length:
        text += f", and the floor is met after {number(length)} recurrences"
    text += " (medians)"
    return text + (f", measured on {n_rates:,} tokens" if n_rates < own.n_orbits else "")


def _regimes(run: Run) -> str:
    """The two most frequent regimes, and whether anything that lasts was seen at all."""
    if not run.has("limit_regime"):
        return ""
    own = run.part("limit_regime", layer=run.last_layer)
    values = own["regime"][own.found]
    names, counts = np.unique(values, return_counts=True)
    if not len(names):
        return ""
    order = np.argsort(-counts, kind="stable")[:2]
    shares = [(str(names[i]), run.ask("limit_regime", "share", of=str(names[i]), layer=run.last_layer)) for i in order]
    told = [f"{percent(share)} {_ONE.get(name, name)}" for name, share in shares if share]
    if not told:
        return ""
    text = f"Regimes by limit_regime, in shares of the tokens: {listed(told)}"
    lasting = [name for name in ("orbit", "quasi-periodic", "slider", "chaotic") if name not in names]
    if len(lasting) == 4 and (bound := run.ask("limit_regime", "share", of="orbit", layer=run.last_layer)):
        text += f"; no orbit, quasi-periodic movement, slider or chaos (each {percent(bound)})"
    return text


def _losses(run: Run) -> str:
    model = run.provenance.get("model")
    model = model if isinstance(model, dict) else {}
    losses, trained = model.get("held_out_loss", {}), model.get("model", {}).get("n_recurrences")
    if str(trained) not in losses or str(run.n_steps) not in losses:
        return ""
    return (f"Held-out loss: {losses[str(trained)]:.2f} nats per byte at {trained} recurrences, "
            f"{losses[str(run.n_steps)]:.2f} at {run.n_steps}")
