"""How alike the states of two recordings are, at every pair of depths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.outcome import Outcome
from dynloop.settings import check_whole
from dynloop.stages.cka import DEBIAS, HsicSums, aligned
from dynloop.stages.runs import Run, Runs
from dynloop.stages.token_pairs import dependences, each, every
from dynloop.store import Store
from dynloop.trajectories import Trajectories

if TYPE_CHECKING:
    import xarray

_BYTES = 128 * 2**20  # of cross products in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """Values for every pair of depths, and what is known without each prompt.

    Attributes:
        values: (depths, other depths).
        without: (prompts, depths, other depths).
        outcomes, other_outcomes: of each depth: whether all prompts reach it.
        recurrences, layers, other_recurrences, other_layers: of each depth.
        n_layers: depths of one recurrence.
    """

    values: np.ndarray
    without: np.ndarray
    outcomes: np.ndarray
    other_outcomes: np.ndarray
    recurrences: np.ndarray
    layers: np.ndarray
    other_recurrences: np.ndarray
    other_layers: np.ndarray
    n_layers: int


class Both:
    """Two recordings of the same tokens, read prompt by prompt; one where there is no other."""

    def __init__(self, source: Store | Trajectories, other: Store | Trajectories | None,
                 recurrences: Sequence[int] | None) -> None:
        self.one = Runs(source, recurrences=recurrences)
        self.two = self.one if other is None else Runs(other)
        first = self.one.by_prompt("recording")
        second = first if other is None else self.two.by_prompt("reference")
        if set(first) != set(second):
            lone = sorted(set(first) ^ set(second), key=str)
            raise ValueError(f"both recordings must be of the same prompts; {len(lone)} are in one alone (such as "
                             f"{lone[0]}). Select those in both.")
        self.places = [(first[key], second[key]) for key in first]

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Any:
        shape: Any = None
        for i, j in self.places:
            a = self.one.load(i)
            b = a if self.two is self.one else self.two.load(j)
            if a.states.shape[2] != b.states.shape[2] or (a.tokens != b.tokens).any():
                raise ValueError(f"both recordings must be of the same tokens; prompt {a.labels['prompt']} has "
                                 f"{len(a.tokens)} and {len(b.tokens)}, or others. Record the same positions.")
            own = (a.states.shape[:2], a.states.shape[3], b.states.shape[:2], b.states.shape[3])
            shape = shape or own
            if own != shape:
                raise ValueError(f"prompts differ in recurrences, layers or width: {own} and {shape}. Record all "
                                 "prompts alike.")
            yield a, b


def _worst(outcomes: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(outcomes)
    found = np.full(stacked.shape[1:], Outcome.FOUND, dtype=object)
    for bad in (Outcome.TOO_SHORT, Outcome.NOT_FINITE):
        found[(stacked == bad).any(0)] = bad
    return found


def _finish(values: np.ndarray, without: np.ndarray, runs: list[tuple[np.ndarray, np.ndarray]], a: Run,
            b: Run) -> Pairs:
    one, two = (_worst([pair[k] for pair in runs]) for k in (0, 1))
    for k, bad in ((-2, one != Outcome.FOUND), (-1, two != Outcome.FOUND)):
        np.moveaxis(values, k, 0)[bad] = np.nan
        np.moveaxis(without, k, 0)[bad] = np.nan
    n_a, n_b = len(a.layers), len(b.layers)
    return Pairs(values, without, one, two, np.repeat(a.recurrences, n_a), np.tile(a.layers, len(a.recurrences)),
                 np.repeat(b.recurrences, n_b), np.tile(b.layers, len(b.recurrences)), n_a)


def cosines(source: Store | Trajectories, other: Store | Trajectories | None,
            recurrences: Sequence[int] | None = None) -> Pairs:
    """Mean cosine between the states of the same token, over tokens and then prompts."""
    found, outcomes = [], []
    for a, b in (both := Both(source, other, recurrences)):
        if a.states.shape[3] != b.states.shape[3]:
            raise ValueError(f"cosines need states of one width; got {a.states.shape[3]} and {b.states.shape[3]}. Use "
                             "CKA.")
        with np.errstate(invalid="ignore", divide="ignore"):
            one, two = (x / np.linalg.norm(x, axis=-1, keepdims=True)
                        for x in (np.nan_to_num(run.depths, posinf=0, neginf=0) for run in (a, b)))
        found.append(one.reshape(len(one), -1) @ two.reshape(len(two), -1).T / len(a.tokens))
        outcomes.append((a.outcomes.reshape(-1), b.outcomes.reshape(-1)))
    each, n = np.stack(found), len(both)
    without = (each.sum(0) - each) / (n - 1) if n > 1 else np.full(each.shape, np.nan)
    return _finish(each.mean(0), without, outcomes, a, b)


def alignments(source: Store | Trajectories, other: Store | Trajectories | None, debias: str | None,
               recurrences: Sequence[int] | None = None) -> Pairs:
    """CKA between all pairs of depths, with the value without each prompt."""
    both = Both(source, other, recurrences)
    n, outcomes, middle = 0, [], [np.zeros(()), np.zeros(())]
    for a, b in both:  # the mean of the tokens is taken from all: it changes nothing but the rounding
        outcomes.append((a.outcomes.reshape(-1), b.outcomes.reshape(-1)))
        middle = [m + np.nan_to_num(run.depths, posinf=0, neginf=0).sum(1, keepdims=True)
                  for m, run in zip(middle, (a, b), strict=True)]
        n += len(a.tokens)

    def tokens(run: Run, which: int) -> np.ndarray:
        return np.nan_to_num(run.depths, posinf=0, neginf=0) - middle[which] / n

    by = _over_prompts if debias == "prompt" else _over_rows
    values, without = by(both, tokens, debias)
    return _finish(values, without, outcomes, a, b)


def _over_prompts(both: Both, tokens: Callable[[Run, int], np.ndarray],
                  _: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Values (depths, other depths) and the same without each prompt, over tokens of distinct prompts."""
    n = len(both)
    reads = [lambda i: tokens(both.one.load(both.places[i][0]), 0)]
    if both.two is not both.one:
        reads.append(lambda i: tokens(both.two.load(both.places[i][1]), 1))
    xy = dependences(reads[0], n, every, *reads[1:])
    if len(reads) == 1:
        own = [[np.diagonal(part, axis1=-2, axis2=-1) for part in xy]] * 2
    else:
        own = [list(dependences(read, n, each)) for read in reads]
    values, without = (aligned(part, x[..., :, None], y[..., None, :]) for part, x, y in zip(xy, *own, strict=True))
    return values, without


def _over_rows(both: Both, tokens: Callable[[Run, int], np.ndarray],
               debias: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The same over all tokens as if they were independent, from sums over features: a block of depths at a time."""
    same, of = both.one is both.two, HsicSums.of_rows

    def measured(sums: HsicSums) -> np.ndarray:
        return sums.biased() if debias is None else sums.dependence()

    own: list[tuple[np.ndarray, np.ndarray]] = []
    for which in ((0,) if same else (0, 1)):
        sums = None
        for pair in both:
            part = of(x := tokens(pair[which], which), x)
            sums = part if sums is None else sums + part
        assert sums is not None
        lone = [measured(sums - of(x := tokens(pair[which], which), x)) for pair in both]
        own.append((measured(sums), np.stack(lone)))
    if same:
        own.append(own[0])
    a, b = next(iter(both))
    n_one, n_two = len(a.depths), len(b.depths)
    values, without = np.empty((n_one, n_two)), np.empty((len(both), n_one, n_two))
    block = max(1, _BYTES // (8 * 8 * a.states.shape[3] * b.states.shape[3] * n_two))
    for first in range(0, n_one, block):
        rows, sums = slice(first, first + block), None
        for a, b in both:
            part = of(tokens(a, 0)[rows, None], tokens(b, 1)[None])
            sums = part if sums is None else sums + part
        assert sums is not None
        values[rows] = aligned(measured(sums), own[0][0][rows, None], own[1][0])
        for i, (a, b) in enumerate(both):
            left = measured(sums - of(tokens(a, 0)[rows, None], tokens(b, 1)[None]))
            without[i, rows] = aligned(left, own[0][1][i, rows, None], own[1][1][i])
    return values, without


def _array(found: Pairs, name: str) -> xarray.DataArray:
    import xarray

    return xarray.DataArray(
        found.values, dims=("depth", "other_depth"), name=name,
        coords={"recurrence": ("depth", found.recurrences), "layer": ("depth", found.layers),
                "other_recurrence": ("other_depth", found.other_recurrences),
                "other_layer": ("other_depth", found.other_layers)})


def layer_cosine(source: Store | Trajectories, other: Store | Trajectories | None = None) -> xarray.DataArray:
    """Mean cosine of the states of a token at two depths, for all pairs of depths.

        C[i, j] = mean over prompts of mean_t  <x_i,t, y_j,t> / (|x_i,t| |y_j,t|)

    Args:
        source: a recording, labelled `prompt`, `layer` and `token`.
        other: another of the same tokens and width; by default the same one.

    Returns:
        (depths, other depths), depths in the order in which the model makes them (recurrence by recurrence), with
        `recurrence` and `layer` of each. NaN where a token of a prompt had ended or left the finite numbers.

    Raises:
        TypeError: not a recording.
        ValueError: other prompts, tokens or widths; a prompt with more than one run.

    Misleads:
        What all states have in common, and dimensions of massive activation, bring every cosine near 1. Stripes whose
        distance is the number of layers are what a cyclic loop gives, but a block that does nothing gives 1 throughout.

    Source:
        Blayney et al. 2026 (arXiv 2604.11791), figures 19 and 20.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.stages import layer_cosine
        >>> states = np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 2.0]]])  # layer, recurrence, dim
        >>> orbits = Trajectories(states, labels={"prompt": [0, 0], "layer": [1, 2], "token": [0, 0]})
        >>> layer_cosine(orbits).values.round(2)[0]
        array([1.  , 0.71, 0.  , 0.  ])
    """
    return _array(cosines(source, other), "layer_cosine")


def layer_cka(source: Store | Trajectories, other: Store | Trajectories | None = None, *,
              debias: str | None = "prompt", recurrences: Sequence[int] | None = None) -> xarray.DataArray:
    """Debiased CKA of the states at two depths, for all pairs of depths; the widths may differ.

    Args:
        source: a recording, labelled `prompt`, `layer` and `token`.
        other: another of the same tokens; by default the same one.
        debias: as in `cka`. The values that are not debiased over prompts take far longer where depths are many.
        recurrences: which of the source's, counted from 1; by default all.

    Returns:
        As `layer_cosine`. NaN where states are constant, too.

    Raises:
        TypeError: not a recording.
        ValueError: fewer than 5 prompts, a recurrence that was not recorded, or what `layer_cosine` refuses.

    Misleads:
        As `cka`. Time grows with the square of the number of all tokens: 64 prompts of 96 at 256 depths take a
        minute on two cores. Of long prompts record some positions.

    Source:
        See `cka`.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.stages import layer_cka
        >>> states = np.random.default_rng(0).normal(size=(8, 2, 5, 1, 3))  # prompt, layer, token, recurrence, dim
        >>> states[:, 1] = 2 * states[:, 0] + 1
        >>> prompt, layer, token = (i.ravel() for i in np.indices((8, 2, 5)))
        >>> orbits = Trajectories(states.reshape(80, 1, 3), labels={"prompt": prompt, "layer": layer, "token": token})
        >>> layer_cka(orbits).values.round(6)
        array([[1., 1.],
               [1., 1.]])
    """
    if debias not in DEBIAS:
        raise ValueError(f"debias must be one of 'prompt', 'row', None; got {debias!r}. Choose one.")
    check_whole("the number of prompts", len(Runs(source)), 5, "at least 5 for CKA over tokens of distinct prompts")
    return _array(alignments(source, other, debias, recurrences), "layer_cka")
