"""The calibrated model behind `limit_regime`: regime probabilities from the numbers of an orbit's distance matrix.

Three sets of boosted trees, made by benchmarks/calibrate_limit_regime.py from millions of pairs of synthetic states:
what kind of movement it is; whether recurrent movement has a period (from ratios of returns alone, whatever the shape
of the orbit); and whether recurrent movement without one is quasi-periodic or chaotic.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch

from dynloop.distances import distances
from dynloop.kernels.regime import FREQUENCIES_A_STEP, NAMES, regime_numbers
from dynloop.kernels.trees import probabilities, tree_sums
from dynloop.trajectories import Trajectories

REGIMES = ("fixed point", "converging", "orbit", "quasi-periodic", "slider", "chaotic", "diverging", "undetermined")
KINDS = ("converging", "diverging", "fixed point", "recurrent", "slider", "undetermined")
STAGES = ("kind", "period", "chaos")
PERIOD_NUMBERS = ("return_1", "return_2_rise", "return_last_rise", "far_return_rise", "neighbours_below_return",
                  "return_trend", "return_over_rest", "dimension", "neighbours_1")
CHAOS_NUMBERS = tuple(n for n in NAMES if n.startswith((
    "lag_", "rest_", "neighbours", "determinism", "theiler", "return", "far_", "shorter", "step_return", "dimension",
    "memory", "peak", "turn_", "late_step")))
LONGEST_WINDOW = 256  # only the last so many steps are looked at
SHORTEST = 16
FARTHEST_RETURN = 0.3  # of the typical squared distance: beyond, noise would be above half of the orbit's amplitude
_LASTING = ("orbit", "quasi-periodic", "slider", "chaotic")
_TRENDS = ("converging", "slider", "diverging")
# log10 of late amplitude over the format's spacing
_ROUNDING = -0.5  # what rounding alone may do to a state at rest
_NEAR_SPACING, _NEAR_SPACING_DRIFT = 0.9, 0.5  # what rounding within a loop may do to an orbit, or to a drift
BEYOND_DOUBT = 0.98  # confidence that a lasting regime needs after a start from afar
_CAME_FROM_AFAR = 0.7  # log10 of start over late squared amplitude
_DUST = 24.0  # the same, of what is left of a decay onto exactly 0: rounding of sums long gone
# log10 of what energy and squared steps may both lose from the third to the last quarter: a spiral at .99 a step loses
# .28 in 128 steps
_MOST_FADING = {**dict.fromkeys(REGIMES, np.inf), "orbit": 0.25, "quasi-periodic": 0.25, "chaotic": 0.5}
_NEGLIGIBLE = 1e-3  # probability of recurrence below which it does not matter which kind it would be
_CLIP = 99.0
_TINY, _HUGE = 1e-60, 1e60  # distances from the last state
_AT_REST = 1e-300  # what the kernel gives instead of a late amplitude of 0
_FILE = Path(__file__).with_name("regime_model.npz")


def orbit_numbers(trajectories: Trajectories, *, longest_period: int | None = None) -> np.ndarray:
    """The numbers (n_orbits, len(NAMES)) of each orbit; 0 where it has fewer than `SHORTEST` finite steps.

    They are computed once and shared by the analyzers of these trajectories.

    Args:
        trajectories: orbits.
        longest_period: of the profile of returns, which is then taken from all steps; by default it is taken from the
            last `LONGEST_WINDOW`, up to a third of them.
    """
    key = f"regime numbers {longest_period}"
    if key in trajectories.derived:
        return trajectories.derived[key]
    found, lengths = distances(trajectories), trajectories.lengths
    numbers = np.zeros((trajectories.n_orbits, len(NAMES)))
    squared, sizes = found.squared, np.fmax.reduce(found.from_last(), axis=1)
    far = np.isfinite(sizes) & (sizes > 0) & ((sizes < _TINY) | (sizes > _HUGE))
    exponents = np.where(far, np.frexp(np.where(far, sizes, 1.0))[1], 0)
    if far.any():  # fourth powers of distances must stay within float64
        squared = np.ldexp(squared, -2 * exponents[:, None, None])
    for length in np.unique(lengths[lengths >= SHORTEST]):
        regime_numbers(squared, np.where(lengths == length, lengths, 0), LONGEST_WINDOW,
                       LONGEST_WINDOW if longest_period is None else length, int(longest_period or length),
                       *_windows(min(int(length), LONGEST_WINDOW)), numbers)
    end = found.norms[np.arange(len(numbers)), np.maximum(lengths - 1, 0)]
    spacing = max(trajectories.resolution, torch.finfo(trajectories.states.dtype).eps) * np.nan_to_num(end)
    with np.errstate(divide="ignore"):  # one that rests in 0 has no spacing, but it rests
        late = 0.5 * np.log10(numbers[:, 0]) + exponents * np.log10(2) - np.log10(np.maximum(spacing, 1e-300))
    numbers[:, 0] = np.where(numbers[:, 0] > _AT_REST, late, -_CLIP)
    numbers = np.clip(np.nan_to_num(numbers, posinf=_CLIP, neginf=-_CLIP), -_CLIP, _CLIP)
    numbers[lengths < SHORTEST] = 0
    trajectories.derived[key] = numbers
    return numbers


@functools.lru_cache(maxsize=64)
def _windows(n_steps: int) -> tuple[np.ndarray, np.ndarray]:
    w = n_steps - n_steps // 4
    n = FREQUENCIES_A_STEP * w
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(w) + 0.5) / w)
    return hann, np.cos(2 * np.pi * np.outer(np.arange(1, n + 1) / (2 * n), np.arange(w)))


@functools.lru_cache(maxsize=1)
def _model() -> dict[str, np.ndarray]:
    with np.load(_FILE) as stored:
        return dict(stored)


def _stage(name: str, numbers: np.ndarray) -> np.ndarray:
    model = _model()
    part = [model[f"{name}_{what}"] for what in ("columns", "feature", "threshold", "left", "right", "value", "roots")]
    base = model[f"{name}_base"]
    sums = np.repeat(base[None], len(numbers), axis=0)
    tree_sums(numbers, *part, len(base), sums)
    return probabilities(sums)


def regime_probabilities(trajectories: Trajectories, *, longest_period: int | None = None) -> np.ndarray:
    """Probability of every member of `REGIMES`, (n_orbits, len(REGIMES)); meaningless below `SHORTEST` steps."""
    key = f"regime probabilities {longest_period}"
    if key not in trajectories.derived:
        numbers = orbit_numbers(trajectories, longest_period=longest_period)
        kind = dict(zip(KINDS, _stage("kind", numbers).T, strict=True))
        may = (numbers[:, NAMES.index("period")] >= 2) & \
            (10 ** numbers[:, NAMES.index("return_1")] < FARTHEST_RETURN)
        period, quasi = np.zeros(len(numbers)), np.zeros(len(numbers))
        recurs = kind["recurrent"] > _NEGLIGIBLE
        if (recurs & may).any():
            period[recurs & may] = _stage("period", numbers[recurs & may])[:, 1]
        if recurs.any():
            quasi[recurs] = _stage("chaos", numbers[recurs])[:, 1]
        found = {**kind, "orbit": kind["recurrent"] * period,
                 "quasi-periodic": kind["recurrent"] * (1 - period) * quasi,
                 "chaotic": kind["recurrent"] * (1 - period) * (1 - quasi)}
        trajectories.derived[key] = np.column_stack([found[regime] for regime in REGIMES])
    return trajectories.derived[key]


def verdicts(trajectories: Trajectories, least_confidence: float, *, from_afar: float = BEYOND_DOUBT,
             longest_period: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The regime of every orbit, (n_orbits,) texts, and its confidence, (n_orbits,); "" and NaN below `SHORTEST` steps.

    The likeliest regime is named, and "undetermined" where it is too unlikely or where it may not last: a recurrent
    orbit must not fade; one that came from afar, as contractions do, needs a confidence of `from_afar`, and must not be
    so near the number format's spacing, or so tiny beside its start, that rounding may move it.
    """
    numbers = orbit_numbers(trajectories, longest_period=longest_period)
    likely = regime_probabilities(trajectories, longest_period=longest_period)
    best, confidence = likely.argmax(1), likely.max(1)
    late, start = numbers[:, NAMES.index("late_over_spacing")], numbers[:, NAMES.index("start")]
    named = np.array(REGIMES)[best]
    lasts_from_afar = np.isin(named, _LASTING) & (start > _CAME_FROM_AFAR)  # as every contraction does
    near = (late < np.where(named == "slider", _NEAR_SPACING_DRIFT, _NEAR_SPACING)) | (start > _DUST)
    unsure = (confidence < np.where(lasts_from_afar, max(least_confidence, from_afar), least_confidence)) | \
        (lasts_from_afar & near) | (_fading(numbers) > [_MOST_FADING[r] for r in named])
    named[unsure] = "undetermined"
    resting = (late < _ROUNDING) | ((late < 0) & ~np.isin(named, _TRENDS))
    named[resting], confidence[resting] = "fixed point", 1.0
    short = trajectories.lengths < SHORTEST
    named[short], confidence[short] = "", np.nan
    return named, confidence


def _fading(numbers: np.ndarray) -> np.ndarray:
    """By how many powers of ten energy and squared steps both fall from the third to the last quarter, (n,)."""
    falls = []
    for kind in ("energy", "step"):
        blocks = numbers[:, [NAMES.index(f"{kind}_{b}") for b in range(4, 8)]]
        falls.append((blocks[:, :2].sum(1) - blocks[:, 2:].sum(1)) / 2)
    return np.minimum(*falls)
