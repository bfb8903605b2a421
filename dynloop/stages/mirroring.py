"""How far each loop of a model repeats the stages of a feed-forward reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.stages.cka import jackknife
from dynloop.stages.profile import curves, stage_profile
from dynloop.stages.runs import Runs, places_of
from dynloop.stages.similarity import alignments, cosines
from dynloop.statistics.intervals import student

BY = ("profile", "cosine", "cka")
_LEAST = 3  # layers: two points always correlate at 1 or -1


@dataclasses.dataclass(frozen=True, eq=False)
class Match:
    """How well the layers of a loop match those of a reference.

    Attributes:
        score: at equal percent of depth.
        shifted: (n,) the score of every circular shift of the longer of the two, itself first.
        best: of the best monotone alignment.
        best_shifted: (n,) the same for every shift.
        alignment: (layers,) the reference's layer for each of the loop's, counted from 1.
    """

    score: float
    shifted: np.ndarray
    best: float
    best_shifted: np.ndarray
    alignment: np.ndarray


def monotone_alignment(similarity: np.ndarray) -> tuple[float, np.ndarray]:
    """The assignment of a reference's layers to a loop's, never going back, whose mean similarity is largest.

        max over a_1 <= a_2 <= ... <= a_L of (1/L) sum_l S[l, a_l]

    by dynamic programming; of equally good ones that which goes on latest.

    Args:
        similarity: S (loop layers, reference layers), finite.

    Returns:
        The mean similarity, and a (loop layers,), counted from 0.
    """
    n, m = similarity.shape
    best = np.empty((n, m))
    came = np.empty((n, m), dtype=np.int64)
    row = np.zeros(m)
    for layer in range(n):
        place = np.zeros(m, dtype=np.int64)  # of the largest entry up to each
        for j in range(1, m):
            place[j] = j if row[j] > row[place[j - 1]] else place[j - 1]
        came[layer] = place
        row = best[layer] = row[place] + similarity[layer]
    path = np.empty(n, dtype=np.int64)
    path[-1] = int(np.argmax(best[-1]))
    for layer in range(n - 1, 0, -1):
        path[layer - 1] = came[layer, path[layer]]
    return float(best[-1].max() / n), path


def at_equal_percent(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The layers of a stack of n and of one of m at max(n, m) equal steps of percent depth, counted from 0."""
    middle = (np.arange(max(n, m)) + 0.5) / max(n, m)
    return (middle * n).astype(np.int64), (middle * m).astype(np.int64)


def resampled(curve: np.ndarray, n: int) -> np.ndarray:
    """A curve over the layers (..., layers) at n points of equal percent depth, by straight lines between layers."""
    m = curve.shape[-1]
    at = np.clip((np.arange(n) + 0.5) / n * m - 0.5, 0, m - 1)
    low = np.minimum(at.astype(np.int64), m - 2) if m > 1 else np.zeros(n, dtype=np.int64)
    part = at - low
    return curve[..., low] * (1 - part) + curve[..., np.minimum(low + 1, m - 1)] * part


def _standard(curve: np.ndarray) -> np.ndarray:
    """Less its mean, over its standard deviation, along the last axis; NaN where it is constant."""
    off = curve - curve.mean(-1, keepdims=True)
    size = np.sqrt((off**2).mean(-1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 1e-12 * np.abs(curve).max(-1, keepdims=True), off / size, np.nan)


def without_line(curve: np.ndarray) -> np.ndarray:
    """A curve less its line of least squares, along the last axis."""
    if curve.shape[-1] < 2:
        return curve - curve
    at = np.arange(curve.shape[-1]) - (curve.shape[-1] - 1) / 2
    off = curve - curve.mean(-1, keepdims=True)
    left = off - (off @ at)[..., None] / (at @ at) * at
    return np.where(np.abs(left) > 1e-12 * np.abs(curve).max(-1, keepdims=True), left, 0.0)


def match_profiles(loop: np.ndarray, reference: np.ndarray, *, detrend: bool = False) -> Match:
    """Mean correlation over quantities of two profiles, (quantities, layers) and (quantities, reference layers)."""
    n, m = loop.shape[-1], reference.shape[-1]
    most = max(n, m)
    shifted = np.empty(most)
    best = np.empty(most)
    path = np.zeros(n, dtype=np.int64)
    if detrend:
        loop, reference = without_line(loop), without_line(reference)
    one, two = _standard(loop), _standard(reference)
    for shift in range(most):
        a, b = (np.roll(loop, shift, -1), reference) if n >= m else (loop, np.roll(reference, shift, -1))
        # of standardised curves: their correlation is 1 less half their mean squared difference
        shifted[shift] = match_score(a, b, detrend=detrend)
        a, b = (np.roll(one, shift, -1), two) if n >= m else (one, np.roll(two, shift, -1))
        apart = ((a[:, :, None] - b[:, None, :]) ** 2).mean(0)
        if np.isfinite(apart).all():
            best[shift], found = monotone_alignment(1 - apart / 2)
            path = found if shift == 0 else path
        else:
            best[shift] = np.nan
    return Match(float(shifted[0]), shifted, float(best[0]), best, path + 1)


def match_layers(similarity: np.ndarray) -> Match:
    """Mean similarity of layers at equal percent of depth, from the similarity of all pairs (layers, others)."""
    n, m = similarity.shape
    rows, columns = at_equal_percent(n, m)
    shifted, best = np.empty((2, max(n, m)))
    path = np.zeros(n, dtype=np.int64)
    for shift in range(max(n, m)):
        turned = np.roll(similarity, shift, 0 if n >= m else 1)
        shifted[shift] = turned[rows, columns].mean()
        if np.isfinite(turned).all():
            best[shift], found = monotone_alignment(turned)
            path = found if shift == 0 else path
        else:
            best[shift] = np.nan
    return Match(float(shifted[0]), shifted, float(best[0]), best, path + 1)


def mirroring(loop: Any, reference: Any, *, by: str = "profile",
              quantities: Sequence[str] = ("matrix_entropy", "anisotropy", "residual_norm"),
              recurrences: Sequence[int] | None = None, detrend: bool = False, controls: Sequence[Any] = (),
              confidence_level: float = 0.95, labels: Mapping[str, Any] | None = None) -> Measurement:
    """How far each recurrence of a looped model repeats the stages of a feed-forward reference on the same prompts.

        by="profile": mean over quantities of corr(profile of the loop, profile of the reference)
        by="cosine", "cka": mean over depths of the likeness of the states at equal percent of depth

    Profiles are means over prompts, brought to equal percent of depth by straight lines between layers. Three further
    numbers say what that is worth. The score of the best monotone alignment of layers (dynamic programming): each layer
    of the loop gets one of the reference's, none before that of the layer before it; for profiles the similarity of two
    layers is 1 less half the mean squared difference of the standardised profiles, whose mean is the correlation. The
    circular-shift null: the same score for every shift of the longer of the two over its layers, which keeps how smooth
    it is. And an interval over prompts, from the score without each of them (jackknife). With controls, recordings of
    the same model with its layers in other orders, or untrained, the score is held against theirs, too.

    Args:
        loop: a recording of the looped model, labelled `prompt`, `layer` and `token`; or its profile, from
            `stage_profile` (by="profile"), of states or of attention.
        reference: the same of the reference on the same prompts. All its depths count in order: record a feed-forward
            model as one recurrence. The loop's own first recurrence will do to ask whether later ones repeat it.
        by: "profile", "cosine" (states of one width) or "cka" (over tokens of distinct prompts; see `cka`).
        quantities: of the profiles; of attention for example ("sink_score", "mixing", "concentration").
        recurrences: which of the loop's are held against the reference, counted from 1; by default all.
        detrend: take the line over depth off every profile first, so that what rises or falls all the way in both does
            not count.
        controls: recordings as `loop` (or profiles), each a draw from what "no mirroring" means.
        confidence_level: of the intervals.
        labels: further labels of the answer, such as {"seed": 3}.

    Returns:
        A row a recurrence, labelled `recurrence`. `score`, with `low` and `high` over prompts; `excess`, the score less
        the mean of the other shifts; `p_value`, the share of shifts with a score at least as large; `smallest_p`, one
        over the number of shifts: no p-value can be below; `best_score`, of the best monotone alignment, with
        `best_p_value`; `alignment` (layers), the reference's layer for each, counted from 1; `null` (shifts), the
        scores of all shifts, the first the observed one; `without_prompt` (prompts), the score without each. With few
        layers no single loop can be significant: join the rows of several seeds and estimate the `excess`,
        `estimate(Measurement.concatenate(rows), variable="excess", statistic="mean", resample="seed")`, or compare
        seeds of two conditions. `control_p_value`, (1 + controls with a score at least as large) / (1 + controls), and
        `control_excess`, the score less their mean, are NaN without controls; `control_scores` (controls) is there with
        them. `low` and `high` are NaN with fewer than two prompts. `TOO_SHORT`: fewer than 3 layers
        in either, or a loop that had ended for a prompt. `NOT_FINITE`: a state that was not. `NOT_FOUND`: a profile
        that is constant over the layers, or states whose likeness is undefined.

    Raises:
        TypeError: neither recordings nor profiles.
        ValueError: prompts, tokens or widths that do not agree; an unknown setting or quantity; fewer than 5 prompts
            for CKA.

    Misleads:
        Depth itself makes stacks alike: in any pre-norm model norms grow and entropy falls with depth, in whatever
        order its layers are, and a shift breaks that. Nano models of 8 layers, not trained, mirror copies of themselves
        with the layers shuffled at .94 (profiles; .41 with detrend=True), and the smallest p of the shifts comes up in
        100 % (32 %; .68 for cosines, .84 for CKA) where 12.5 % are due. The shifts hold their level for the order of
        given profiles alone; to ask it of models give `controls`, or compare conditions over seeds (`compare`). Shifts
        of few layers are a coarse null. A cosine compares coordinates, which two training runs do not share: near 0
        says nothing. The best alignment is the largest of many and is high by chance: its p-value allows for that, its
        score does not. An interval over prompts is for these two models; seeds are needed for more.

    Source:
        The claim: Blayney et al. 2026 (arXiv 2604.11791), figures 7 to 12 and 34 to 62, which print no number.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.stages import mirroring
        >>> stack = np.random.default_rng(0).normal(size=(6, 8, 5, 1, 3))  # prompt, layer, token, recurrence, dim
        >>> prompt, layer, token = (i.ravel() for i in np.indices((6, 8, 5)))
        >>> labels = {"prompt": prompt, "layer": layer, "token": token}
        >>> reference = Trajectories(stack.reshape(240, 1, 3), labels=labels)
        >>> loop = Trajectories(np.repeat(stack, 2, axis=3).reshape(240, 2, 3), labels=labels)
        >>> m = mirroring(loop, reference)
        >>> m.values.round(9), m["p_value"]
        (array([1., 1.]), array([0.125, 0.125]))
    """
    if by not in BY:
        raise ValueError(f"by must be one of {', '.join(BY)}; got {by!r}. Choose one.")
    check_number("confidence_level", confidence_level, lambda level: 0 < level < 1, "between 0 and 1 (default 0.95)")
    if not isinstance(detrend, bool) or (detrend and by != "profile"):
        raise ValueError(f"detrend must be True or False, and is of profiles; got {detrend!r} with by={by!r}. Leave it "
                         "out.")
    if isinstance(quantities, str) or not quantities:
        raise ValueError(f"quantities must be a list of names, such as ['matrix_entropy']; got {quantities!r}.")

    def matched(own: Any) -> Found:
        if by == "profile":
            return _by_profile(own, reference, list(quantities), detrend, recurrences)
        return _by_states(own, reference, by, recurrences)

    if by == "profile" and not isinstance(reference, Measurement):
        reference = stage_profile(reference)
    found, outcomes, loops, names = matched(loop)
    n = len(loops)
    others = np.full((n, len(controls)), np.nan)
    for number, control in enumerate(controls):
        of_control, ends, steps, _ = matched(control)
        if len(steps) != n or (steps != loops).any():
            raise ValueError(f"control {number} has recurrences {steps.tolist()}, the loop {loops.tolist()}. "
                             "Record the same.")
        others[:, number] = [match.score if end is Outcome.FOUND else np.nan
                             for (match, _), end in zip(of_control, ends, strict=True)]
    width = {"alignment": len(found[0][0].alignment), "null": len(found[0][0].shifted),
             "without_prompt": len(found[0][1])}
    scalars = ("score", "low", "high", "excess", "p_value", "smallest_p", "best_score", "best_p_value",
               "control_p_value", "control_excess")
    values: dict[str, np.ndarray] = {name: np.full(n, np.nan) for name in scalars}
    values |= {name: np.full((n, size), np.nan) for name, size in width.items()}
    if len(controls):
        values["control_scores"] = np.full(others.shape, np.nan)
    for r, (match, without) in enumerate(found):
        if outcomes[r] is Outcome.FOUND and not (np.isfinite(match.shifted).all() and np.isfinite(without).all()):
            outcomes[r] = Outcome.NOT_FOUND
        if outcomes[r] is not Outcome.FOUND:
            continue
        low, high = np.nan, np.nan
        if len(without) > 1:
            low, high = student(match.score, jackknife(without, np.ones(len(without))), confidence_level)
        row = {"score": match.score, "low": low, "high": high, "excess": match.score - match.shifted[1:].mean(),
               "p_value": _share(match.shifted), "smallest_p": 1 / len(match.shifted), "best_score": match.best,
               "best_p_value": _share(match.best_shifted), "alignment": match.alignment, "null": match.shifted,
               "without_prompt": without}
        if len(controls):
            row |= {"control_scores": others[r], "control_excess": match.score - others[r].mean(),
                    "control_p_value": _among(match.score, others[r])}
        for name, value in row.items():
            values[name][r] = value
    settings: dict[str, Any] = {"by": by, "confidence_level": confidence_level, "n_controls": len(controls)}
    if by == "profile":
        settings |= {"quantities": ", ".join(quantities), "detrend": detrend}
    more = {name: np.full(n, value) for name, value in {**names, **(labels or {})}.items()}
    return Measurement("mirroring", values, outcomes, settings=settings, labels={**more, "recurrence": loops})


def _among(score: float, others: np.ndarray) -> float:
    """The p-value of a score among those of controls; NaN where one of these has none."""
    if not np.isfinite(others).all():
        return np.nan
    return float((1 + (others >= score - 1e-12 * max(1.0, abs(score))).sum()) / (1 + len(others)))


def _share(scores: np.ndarray) -> float:
    """The share of scores at least as large as the first, but for rounding."""
    return float((scores >= scores[0] - 1e-12 * max(1.0, abs(scores[0]))).mean())


Found = tuple[list[tuple[Match, np.ndarray]], np.ndarray, np.ndarray, dict[str, Any]]


def _by_profile(loop: Any, reference: Any, quantities: list[str], detrend: bool,
                recurrences: Sequence[int] | None) -> Found:
    one, two = (x if isinstance(x, Measurement) else stage_profile(x) for x in (loop, reference))
    a, axes = curves(one, quantities, "loop")
    b, others = curves(two, quantities, "reference")
    if len(axes["prompt"]) != len(others["prompt"]) or (axes["prompt"] != others["prompt"]).any():
        raise ValueError(f"both must be of the same prompts; the loop has {len(axes['prompt'])}, the reference "
                         f"{len(others['prompt'])}, and not the same. Select those in both.")
    b = b.reshape(*b.shape[:2], -1)  # all depths in order
    for name, row in zip(quantities, np.moveaxis(b, 1, 0), strict=True):
        if not np.isfinite(row).all():
            raise ValueError(f"{name} of the reference is not known at every depth (layer_step is not at the first, "
                             "or a token had ended). Leave it out, or the prompt.")
    n, steps = len(a), axes["recurrence"]
    kinds = one.outcomes[np.lexsort((one.labels["depth"], one.labels["prompt"]))].reshape(n, *a.shape[2:])
    outcomes = np.full(a.shape[2], Outcome.FOUND, dtype=object)
    outcomes[~np.isfinite(a).all((0, 1, 3))] = Outcome.TOO_SHORT
    outcomes[(kinds == Outcome.NOT_FINITE).any((0, 2))] = Outcome.NOT_FINITE
    if min(a.shape[3], b.shape[2]) < _LEAST:
        outcomes[:] = Outcome.TOO_SHORT
    found = []
    chosen = places_of(steps, recurrences)
    for r in chosen:
        own, other = a[:, :, r], b
        match = match_profiles(own.mean(0), other.mean(0), detrend=detrend)
        without = np.array([match_score(np.delete(own, i, 0).mean(0), np.delete(other, i, 0).mean(0), detrend=detrend)
                            for i in range(n)]) if n > 1 else np.full(1, match.score)
        found.append((match, without))
    shared = {name: values[0] for name, values in one.labels.items()
              if name not in ("prompt", "recurrence", "layer", "depth", "percent") and (values == values[0]).all()}
    return found, outcomes[chosen], steps[chosen], shared


def match_score(loop: np.ndarray, reference: np.ndarray, *, detrend: bool = False) -> float:
    """The score of `match_profiles` alone."""
    most = max(loop.shape[-1], reference.shape[-1])
    one, two = resampled(loop, most), resampled(reference, most)
    if detrend:
        one, two = without_line(one), without_line(two)
    return float((_standard(one) * _standard(two)).mean())


def _by_states(loop: Any, reference: Any, by: str, wanted: Sequence[int] | None) -> Found:
    if isinstance(loop, Measurement) or isinstance(reference, Measurement):
        raise TypeError(f"by={by!r} compares states; got a measurement. Give the recordings.")
    runs = Runs(loop)
    if by == "cka" and len(runs) < 5:
        raise ValueError(f"CKA over tokens of distinct prompts needs 5 prompts or more, for its interval; got "
                         f"{len(runs)}. Record more prompts, or use by='profile'.")
    pairs = cosines(loop, reference, wanted) if by == "cosine" else \
        alignments(loop, reference, "prompt", wanted)
    n = pairs.n_layers
    recurrences = pairs.recurrences[::n]
    outcomes = np.full(len(recurrences), Outcome.FOUND, dtype=object)
    for bad in (Outcome.TOO_SHORT, Outcome.NOT_FINITE):
        outcomes[(pairs.outcomes.reshape(-1, n) == bad).any(1) | (pairs.other_outcomes == bad).any()] = bad
    if min(n, pairs.values.shape[1]) < _LEAST:
        outcomes[:] = Outcome.TOO_SHORT
    rows, columns = at_equal_percent(n, pairs.values.shape[1])
    found = []
    for r in range(len(recurrences)):
        own = slice(r * n, (r + 1) * n)
        match = match_layers(pairs.values[own])
        without = pairs.without[:, own][:, rows, columns].mean(-1) if len(runs) > 1 else np.full(1, match.score)
        found.append((match, without))
    shared = {name: value for name, value in runs.labels[0].items()
              if name != "prompt" and all(own[name] == value for own in runs.labels)}
    return found, outcomes, recurrences, shared
