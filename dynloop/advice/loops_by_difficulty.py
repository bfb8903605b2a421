"""How many more loops does a harder question need?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.settings import check_number
from dynloop.statistics import Estimate, estimate

if TYPE_CHECKING:
    import pandas

_CENSORED = (Outcome.NOT_FOUND, Outcome.TOO_SHORT)
_ROUNDING = 1 / 12  # variance of a number that was rounded to a whole one
_MOST_STEPS, _SMALL = 100, 1e-10  # of Newton's method


@dataclasses.dataclass(frozen=True, eq=False)
class LoopsByDifficulty:
    """The regression of loops on difficulty, and what it rests on.

    Attributes:
        slope: loops per step of difficulty, questions that were not answered counted as needing more loops than were
            run.
        slope_of_solved: the same of the answered questions alone, by least squares; None where that cannot be had.
        intercept: loops at difficulty 0, on the line of `slope`.
        scatter: standard deviation of a question's loops about the line.
        solved: difficulty -> share of its questions that were answered for good, with its interval.
        medians: difficulty -> median loops, infinite where half of its questions or more were not answered.
        chance: difficulty -> share that guessing would answer.
        notes: what a reader must know besides.
    """

    slope: Estimate
    slope_of_solved: Estimate | None
    intercept: float
    scatter: float
    solved: Mapping[int, Estimate]
    medians: Mapping[int, float]
    chance: Mapping[int, float]
    notes: tuple[str, ...]

    def to_frame(self) -> pandas.DataFrame:
        """A row a difficulty: questions, median loops, share answered with its interval, chance."""
        import pandas as pd

        return pd.DataFrame([{"difficulty": d, "questions": own.n, "median_loops": self.medians[d],
                              "solved": own.value, "solved_low": own.low, "solved_high": own.high,
                              "chance": self.chance[d]} for d, own in self.solved.items()])

    def __str__(self) -> str:
        lines = [str(self.slope)] + ([] if self.slope_of_solved is None else [str(self.slope_of_solved)])
        lines += [f"difficulty {d}: median {self.medians[d]:g} loops, {own.value:.3g} [{own.low:.3g}, {own.high:.3g}] "
                  f"of {own.n} answered, {self.chance[d]:.3g} by chance" for d, own in self.solved.items()]
        return "\n".join([*lines, *(f"({note})" for note in self.notes)])


def loops_by_difficulty(measured: Measurement, *, resample: str, target: str | None = None,
                        confidence_level: float = 0.95) -> LoopsByDifficulty:
    """Loops per step of difficulty, by a regression that knows what was not answered within the loops that were run.

        loops = a + b difficulty + scatter, normal;   not answered: loops > n_recurrences - stay + 1

    Tobit's model, fitted by maximum likelihood in Olsen's parameters, in which it has one maximum. Loops are whole
    numbers: each stands for the values that round to it, which adds 1/12 to the variance. Where every question was
    answered this is least squares. The interval comes from leaving out one unit after the other (jackknife, t, longer
    on the side of a long tail, as `estimate`'s "skewed t").

    Args:
        measured: of `loops_needed`; of several trained models, `Measurement.concatenate` of theirs, each with its label
            `seed`.
        resample: what is independent: "prompt" for one model, "seed > prompt", "seed × prompt" (the same questions
            under every seed) or "seed" for several; as in `estimate`.
        target: as in `estimate`.
        confidence_level: nominal coverage.

    Returns:
        `LoopsByDifficulty`. Questions whose logits were not finite are left out, and a note counts them.

    Raises:
        ValueError: no measurement of `loops_needed`, fewer than two difficulties with an answered question, or too few
            units.

    Misleads:
        That a question which was not answered needs more loops is an assumption: a model that has not learnt a
        difficulty will not answer it however long it runs. Where shares differ much between difficulties, read `solved`
        first, and `slope_of_solved`, which errs to the other side: of hard questions it sees the easily answered alone.
        A share no larger than chance says that the loops of that difficulty are those of guesses; a note names it.
        Where easy questions need fewer than one loop the line is too flat.

    Source:
        Tobin 1958, Econometrica 26, 24; Olsen 1978, Econometrica 46, 1211. The jackknife as `estimate`.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome
        >>> from dynloop.advice import loops_by_difficulty
        >>> hops = np.arange(60) % 4 + 1
        >>> loops = hops + np.random.default_rng(0).integers(0, 2, 60)
        >>> measured = Measurement("loops_needed", {"loops": loops.astype(float)}, [Outcome.FOUND] * 60,
        ...                        settings={"n_recurrences": 16}, labels={"prompt": np.arange(60), "difficulty": hops})
        >>> slope = loops_by_difficulty(measured, resample="prompt").slope
        >>> slope.low < 1 < slope.high
        True
    """
    import pandas as pd

    check_number("confidence_level", confidence_level, lambda v: 0 < v < 1, "between 0 and 1 (default 0.95)")
    if not isinstance(measured, Measurement) or "n_recurrences" not in measured.settings or \
            "difficulty" not in measured.labels or "loops" not in measured.variables:
        raise ValueError("measured must be what loops_needed gives, with `loops` and the label difficulty; got "
                         f"{measured!r}.")
    # an answer that comes later is not seen often enough to count
    limit = int(measured.settings["n_recurrences"]) - int(measured.settings.get("stay", 1)) + 1
    kept = np.array([o is Outcome.FOUND or o in _CENSORED for o in measured.outcomes])
    difficulty = np.asarray(measured.labels["difficulty"])
    levels = np.unique(difficulty[kept]).tolist()
    if (n_answered := len(np.unique(difficulty[measured.found]))) < 2:
        raise ValueError(f"a slope needs answered questions of at least two difficulties; of {len(levels)} "
                         f"difficulties {n_answered} have any. Ask easier questions, train longer, or run more loops.")
    frame = pd.DataFrame({name: np.asarray(own) for name, own in measured.labels.items() if name != "chance"})
    frame["row"] = np.arange(len(frame), dtype=float)
    line = _Line(difficulty.astype(float), np.asarray(measured["loops"]), limit)
    how: dict[str, Any] = {"resample": resample, "target": target, "confidence_level": confidence_level}

    def slope(name: str, mask: np.ndarray) -> Estimate:
        whole = line.fit(np.flatnonzero(mask))
        if not line.scattered(whole, mask):  # a jackknife of rounding errors
            found = estimate(frame[mask].assign(same=whole[0]), variable="same", statistic="mean", **how)
        else:
            found = estimate(frame[mask], variable="row", statistic=line.slope, method="skewed t", **how)
        left_out = {o.value: n for o, n in measured.counts().items()
                    if o is not Outcome.FOUND and not (o in _CENSORED and name == "slope")}
        return dataclasses.replace(found, name=f"loops_needed on difficulty, {name}", statistic="slope",
                                   unit="loops per step of difficulty", excluded=left_out,
                                   settings=dict(measured.settings))

    whole = line.fit(np.flatnonzero(kept))
    solved, medians, chance = {}, {}, {}
    for d in levels:
        own = measured.select(difficulty=d)
        try:
            solved[d] = estimate(own, statistic="share", of=Outcome.FOUND, **how)
        except ValueError as error:
            raise ValueError(f"difficulty {d}, with {own.n_orbits} questions: {error}") from error
        medians[d] = float(np.median(np.where(own.found, own["loops"], np.inf)))
        chance[d] = float(np.mean(own.labels["chance"])) if "chance" in own.labels else math.nan
    notes = [f"difficulty {d}: the share answered, {solved[d].value:.3g}, is not known to exceed chance, "
             f"{chance[d]:.3g}: its loops may be those of guesses" for d in levels if solved[d].low <= chance[d]]
    if censored := int((kept & ~measured.found).sum()):
        notes.append(f"{censored} of {int(kept.sum())} questions were not answered within {limit} loops, and count as "
                     "needing more")
    if lost := int((~kept).sum()):
        notes.append(f"{lost} questions left the finite numbers and were left out")
    try:
        of_solved = slope("of the answered alone", measured.found) if censored else None
    except ValueError as error:
        of_solved = None
        notes.append(f"no slope of the answered alone: {error}")
    return LoopsByDifficulty(slope("slope", kept), of_solved, whole[1], whole[2], solved, medians, chance, tuple(notes))


class _Line:
    """The regression as a function of rows, by distinct pairs of difficulty and loops.

    Args:
        x: (n,) difficulties.
        y: (n,) loops, NaN where there are more than `limit`.
        limit: loops that were run.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, limit: int) -> None:
        self.shift, self.limit = float(x.mean()), limit + 0.5
        pairs = np.stack([x - self.shift, np.where(np.isnan(y), np.inf, y)], axis=1)
        cells, self.of_row = np.unique(pairs, axis=0, return_inverse=True)
        self.of_row = self.of_row.ravel()
        self.over = np.isinf(cells[:, 1])
        self.x, self.y = cells[:, 0], np.where(self.over, self.limit, cells[:, 1])

    def slope(self, rows: np.ndarray) -> float:
        return self.fit(rows)[0]

    def scattered(self, fit: tuple[float, float, float], mask: np.ndarray) -> bool:
        """Whether there is anything beside the line."""
        there = np.bincount(self.of_row[mask], minlength=len(self.x)) > 0
        off = self.y - fit[1] - fit[0] * (self.x + self.shift)
        return bool((there & (self.over | (np.abs(off) > 1e-9 * (1 + np.abs(self.y))))).any())

    def fit(self, rows: np.ndarray) -> tuple[float, float, float]:
        """Slope, intercept at difficulty 0 and scatter; NaN where they cannot be had."""
        w = np.bincount(self.of_row[np.asarray(rows, dtype=np.int64)], minlength=len(self.x)).astype(float)
        known = w * ~self.over
        nothing = (math.nan, math.nan, math.nan)
        if len(np.unique(self.x[known > 0])) < 2:
            return nothing
        start = np.polynomial.polynomial.polyfit(self.x, self.y, 1, w=np.sqrt(w))
        off = self.y - start[0] - start[1] * self.x
        scatter = math.sqrt(float((w * off**2).sum() / w.sum()))
        if (w * self.over).any():
            found = self._censored(w, start, math.sqrt(scatter**2 + _ROUNDING))
            if found is None:
                return nothing
            start, scatter = found
        return float(start[1]), float(start[0] - start[1] * self.shift), scatter

    def _censored(self, w: np.ndarray, line: np.ndarray, scatter: float) -> tuple[np.ndarray, float] | None:
        """Newton's method in (line / scatter, 1 / scatter), in which the likelihood is concave."""
        from scipy import special

        design = np.stack([np.ones_like(self.x), self.x, -self.y])  # u = line / scatter . (1, x) - y / scatter
        known, over = w * ~self.over, w * self.over
        at = np.array([*line, 1.0]) / scatter

        def likelihood(at: np.ndarray) -> float:
            u = at @ design
            return float(known.sum() * math.log(at[2]) - (known * (u**2 + _ROUNDING * at[2] ** 2)).sum() / 2
                         + (over * special.log_ndtr(u)).sum())

        now = likelihood(at)
        for _ in range(_MOST_STEPS):
            u = at @ design
            mills = np.exp(-u**2 / 2 - special.log_ndtr(u)) / math.sqrt(2 * math.pi)
            slope = design @ (over * mills - known * u)
            slope[2] += known.sum() / at[2] - _ROUNDING * known.sum() * at[2]
            curvature = (design * (over * mills * (u + mills) + known)) @ design.T
            curvature[2, 2] += known.sum() / at[2] ** 2 + _ROUNDING * known.sum()
            step = np.linalg.solve(curvature, slope)
            gain, size = float(slope @ step), 1.0
            if gain < _SMALL:
                return at[:2] / at[2], 1 / float(at[2])
            while size > 1e-6:
                new = at + size * step
                if new[2] > 0 and (reached := likelihood(new)) >= now + 1e-4 * size * gain:
                    at, now = new, reached
                    break
                size /= 2
            else:
                return None
        return None
