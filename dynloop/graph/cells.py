"""State space cut into cells, as many as two halves of the recording agree on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories

METHODS = ("k-means", "radius")
CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 24, 32)
QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of the distances between states: radii to choose from
MOST_FITTED = 20_000  # states from which centres are found; all are assigned
LEAST_STATES = 8  # for each cell, where their number is to be chosen: four in each half
MOST_CELLS = 1000  # of fixed radius: more of them are a radius too small


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Centres of cells, and how well two halves of the recording agree on so many.

    A state belongs to the nearest centre. Where it is relative to the centres depends on its coordinates in the plane
    that they span alone, so that these, at most n_cells - 1 of them, are all that is kept of it.

    Args:
        centers: (n_cells, dim).
        n_orbits: from whose states they were found.
        settings: what was tried: n_cells or radius, ascending.
        agreement: adjusted Rand index of each, mean over splits; empty where nothing was to be chosen.
        agreement_error: its standard error over splits.
        chosen: which of the settings.
    """

    centers: np.ndarray
    n_orbits: int
    settings: tuple[float, ...] = ()
    agreement: tuple[float, ...] = ()
    agreement_error: tuple[float, ...] = ()
    chosen: int = 0

    @property
    def n_cells(self) -> int:
        return len(self.centers)

    @functools.cached_property
    def _span(self) -> tuple[np.ndarray, np.ndarray]:
        origin = self.centers.mean(0)
        _, sizes, rows = np.linalg.svd(self.centers - origin, full_matrices=False)
        wanted = sizes > 1e-12 * max(sizes.max(initial=0.0), 1e-300)
        return origin, rows[wanted] if wanted.any() else rows[:1]

    def coordinates(self, states: np.ndarray) -> np.ndarray:
        """States (..., dim) in the plane of the centres: (..., at most n_cells - 1)."""
        origin, rows = self._span
        return (states - origin) @ rows.T

    @functools.cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        places = self.coordinates(self.centers)
        return -2 * places.T, (places**2).sum(1)

    def nearest(self, coordinates: np.ndarray) -> np.ndarray:
        """The cell of each state from its coordinates: (...,) whole numbers."""
        turned, squares = self._places
        return (coordinates @ turned + squares).argmin(-1)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Cells:
    """In which cell every orbit was at every step.

    Args:
        paths: (n_orbits, n_steps) cells from 0; -1 after the end of an orbit.
        coordinates: (n_orbits, n_steps, n) states relative to the centres of their partition (`Partition`), NaN after
            the end and where a partition has fewer.
        partitions: one for all orbits, or one for each.
        partition_of: (n_orbits,) which of these.
        lengths: finite steps.
        diverged: whether a NaN or an infinity ended the orbit.
        labels: of the orbits.
        method: "k-means" or "radius".
    """

    paths: np.ndarray
    coordinates: np.ndarray
    partitions: tuple[Partition, ...]
    partition_of: np.ndarray
    lengths: np.ndarray
    diverged: np.ndarray
    labels: Mapping[str, np.ndarray]
    method: str

    @property
    def n_orbits(self) -> int:
        return len(self.paths)

    @property
    def n_cells(self) -> np.ndarray:
        """Cells that there were for each orbit, (n_orbits,)."""
        return np.array([p.n_cells for p in self.partitions])[self.partition_of]

    def partition(self) -> Partition:
        """The one partition of these orbits.

        Raises:
            ValueError: they have different ones.
        """
        own = np.unique(self.partition_of)
        if len(own) != 1:
            raise ValueError(f"these {self.n_orbits} orbits have {len(own)} partitions of their own, and one is needed "
                             "for a graph. Take one orbit, as found[0], or cells(..., together=True).")
        return self.partitions[own[0]]

    def __getitem__(self, orbits: Any) -> Cells:
        """Some orbits, by number, slice, indices or mask."""
        at = np.atleast_1d(np.arange(self.n_orbits)[orbits])
        return dataclasses.replace(self, paths=self.paths[at], coordinates=self.coordinates[at],
                                   partition_of=self.partition_of[at], lengths=self.lengths[at],
                                   diverged=self.diverged[at], labels={n: v[at] for n, v in self.labels.items()})

    def __repr__(self) -> str:
        counts = self.n_cells
        many = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        return f"Cells({self.n_orbits} orbits in {many} cells by {self.method})"


def cells(trajectories: Trajectories, *, method: str = "k-means", n_cells: Any = None, radius: Any = None,
          together: bool = True, n_splits: int = 5, n_init: int = 4, unit: str = "prompt", rng: Any = 0) -> Cells:
    """Cut state space into cells, and say in which of them every orbit was at every step.

    K-means: n_cells centres with the least sum of squared distances. Radius: each state in turn founds a cell unless
    it lies within the radius of a centre. A state belongs to the nearest centre. Of several settings the finest is
    taken whose agreement is within one standard error of the best: cells are fitted on two random halves of the units
    (steps, where there is one unit), all states are assigned by both, and the adjusted Rand index is averaged over
    splits.

    Args:
        trajectories: the recording.
        method: "k-means" or "radius".
        n_cells: of k-means: a number, or several to choose from; by default 2 to 32. Of several, those
            are tried that leave 8 states to a cell.
        radius: of cells: a number, or several to choose from; by default the 5 to 50 % quantiles of distances.
        together: one partition for all orbits; otherwise each orbit has its own, found from its states alone.
        n_splits: random halves for each setting, where there is something to choose.
        n_init: starts of k-means, of which the best counts.
        unit: label whose values are split; where it is missing, orbits.
        rng: seed or generator.

    Returns:
        The cells.

    Raises:
        ValueError: settings that do not fit, or no finite state.
        TypeError: not trajectories.

    Misleads:
        States of different tokens lie far apart: one partition for all then tells tokens from one another, and orbits
        stay in one cell each; ask with together=False how an orbit moves. Noise is cut into cells, too: little
        agreement (below some .6) says that the cells mean nothing. Transients reach far and take the cells; cut them
        off to see what is left.

    Source:
        Lange, Roth, Braun and Buhmann 2004, Neural Computation 16, 1299 (stability); Hubert and Arabie 1985,
        J. Classification 2, 193; one standard error: Breiman et al. 1984.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.graph import cells
        >>> corners = np.array([[0.0, 0], [3, 0], [3, 3], [0, 3]])
        >>> x = corners[np.arange(40) % 4] + 0.1 * np.random.default_rng(0).normal(size=(1, 40, 2))
        >>> found = cells(Trajectories(x))
        >>> found
        Cells(1 orbits in 4 cells by k-means)
        >>> len(set(found.paths[0, :4])), bool((found.paths[0, 4:] == found.paths[0, :-4]).all())
        (4, True)
    """
    if not isinstance(trajectories, Trajectories):
        raise TypeError(f"cells needs Trajectories; got {type(trajectories).__name__}. Pass Trajectories(array).")
    settings = _settings(method, n_cells, radius)
    check_whole("n_splits", n_splits, 2, "a whole number of at least 2 (the default is 5)")
    check_whole("n_init", n_init, 1, "a whole number of at least 1 (the default is 4)")
    if not isinstance(together, bool | np.bool_):
        raise ValueError(f"together must be True or False; got {together!r}.")
    lengths = trajectories.lengths
    if not lengths.any():
        raise ValueError("no orbit has a finite state; there is nothing to cut into cells.")
    generator = np.random.default_rng(rng)
    units = np.unique(trajectories.labels[unit], return_inverse=True)[1] if unit in trajectories.labels \
        else np.arange(trajectories.n_orbits)
    find = functools.partial(_partition, method=method, settings=settings, n_splits=n_splits, n_init=n_init)
    if together:
        own, of_unit = _sample(trajectories, units, generator)
        partition_of = np.zeros(trajectories.n_orbits, dtype=np.int64)
        partitions = [find(own, of_unit, rng=generator, n_orbits=int((lengths > 0).sum()))]
    else:
        partitions, partition_of = [], np.arange(trajectories.n_orbits)
        for o, own_rng in enumerate(generator.spawn(trajectories.n_orbits)):
            x = _states(trajectories, o) if lengths[o] else np.zeros((1, trajectories.dim))
            partitions.append(find(x, np.arange(len(x)), rng=own_rng, n_orbits=1))
    widest = max(len(p._span[1]) for p in partitions)
    paths = np.full((trajectories.n_orbits, trajectories.n_steps), -1, dtype=np.int64)
    places = np.full((*paths.shape, widest), np.nan)
    for o, length in enumerate(lengths):
        if length:
            p = partitions[partition_of[o]]
            own = p.coordinates(_states(trajectories, o))
            places[o, :length, :own.shape[1]] = own
            paths[o, :length] = p.nearest(own)
    return Cells(paths, places, tuple(partitions), partition_of, lengths, trajectories.diverged,
                 dict(trajectories.labels), method)


def _settings(method: str, n_cells: Any, radius: Any) -> tuple[float, ...]:
    """Numbers to choose from, ascending in fineness; none: by default."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}. Choose one of these.")
    name, given, other = ("n_cells", n_cells, radius) if method == "k-means" else ("radius", radius, n_cells)
    if other is not None:
        raise ValueError(f"method {method!r} takes {name}; got {'radius' if name == 'n_cells' else 'n_cells'}="
                         f"{other!r}. Leave it out, or choose the other method.")
    if given is None:
        return CANDIDATES if method == "k-means" else ()
    several = tuple(given) if isinstance(given, Sequence | np.ndarray) and not isinstance(given, str) else (given,)
    if not several:
        raise ValueError(f"{name} must hold at least one number; got none.")
    for value in several:
        if name == "n_cells":
            check_whole(name, value, 1, "a whole number of at least 1, or several")
        else:
            check_number(name, value, lambda v: 0 < v < np.inf, "a positive number, or several")
    return tuple(sorted({float(v) if name == "radius" else int(v) for v in several}, reverse=name == "radius"))


def _states(trajectories: Trajectories, orbit: int) -> np.ndarray:
    return trajectories.states[orbit, :int(trajectories.lengths[orbit])].double().cpu().numpy()


def _sample(trajectories: Trajectories, units: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_FITTED` finite states, and the unit of each; the step, where there is one unit."""
    lengths = trajectories.lengths
    total = int(lengths.sum())
    at = np.arange(total) if total <= MOST_FITTED else np.sort(rng.choice(total, MOST_FITTED, replace=False))
    ends = np.cumsum(lengths)
    orbit = np.searchsorted(ends, at, side="right")
    step = at - (ends - lengths)[orbit]
    x = trajectories.states[orbit, step].double().cpu().numpy()
    return x, (units[orbit] if len(np.unique(units[orbit])) > 1 else np.arange(len(at)))


def _partition(x: np.ndarray, units: np.ndarray, *, method: str, settings: tuple[float, ...], n_splits: int,
               n_init: int, n_orbits: int, rng: np.random.Generator) -> Partition:
    if method == "radius" and not settings:
        settings = _radii(x, rng)
    fit: Any = functools.partial(_k_means, n_init=n_init) if method == "k-means" else _leaders
    if method == "k-means" and len(settings) > 1:
        settings = tuple(k for k in settings if k * LEAST_STATES <= len(x)) or settings[:1]
    if len(settings) == 1:
        return Partition(fit(x, settings[0], rng=rng), n_orbits, settings)
    from sklearn.metrics import adjusted_rand_score

    distinct = np.unique(units)
    scores = np.zeros((n_splits, len(settings)))
    for i in range(n_splits):
        half = np.isin(units, rng.permutation(distinct)[:max(1, len(distinct) // 2)])
        if half.all():  # one unit of one state
            scores[i] = 1.0
            continue
        for j, setting in enumerate(settings):
            one, other = (Partition(fit(part, setting, rng=rng), n_orbits) for part in (x[half], x[~half]))
            scores[i, j] = adjusted_rand_score(_assigned(one, x), _assigned(other, x)) \
                if min(one.n_cells, other.n_cells) > 1 else 0.0  # one cell for all is no answer
    mean, error = scores.mean(0), scores.std(0, ddof=1) / np.sqrt(n_splits)
    best = mean.argmax()
    chosen = int(np.flatnonzero(mean >= mean[best] - error[best] - 1e-12).max())
    return Partition(fit(x, settings[chosen], rng=rng), n_orbits, settings, tuple(mean.tolist()), tuple(error.tolist()),
                     chosen)


def _assigned(partition: Partition, x: np.ndarray) -> np.ndarray:
    return partition.nearest(partition.coordinates(x))


def _k_means(x: np.ndarray, n: float, *, n_init: int, rng: np.random.Generator) -> np.ndarray:
    from sklearn.cluster import KMeans

    distinct = np.unique(x[:int(n) + 1], axis=0)
    if len(distinct) <= n:  # only then are there perhaps too few in all
        distinct = np.unique(x, axis=0)
        if len(distinct) <= n:
            return distinct
    seed = int(rng.integers(2**31))
    return KMeans(int(n), n_init=n_init, random_state=seed).fit(x).cluster_centers_


def _leaders(x: np.ndarray, radius: float, *, rng: np.random.Generator) -> np.ndarray:
    """Centres no two of which lie within the radius, every state within the radius of one; in random order."""
    left, centers = x[rng.permutation(len(x))], []
    while len(left):
        centers.append(left[0])
        left = left[((left - left[0]) ** 2).sum(1) > radius**2]
        if len(centers) > MOST_CELLS:
            raise ValueError(f"radius must not cut the recording into more than {MOST_CELLS} cells; got {radius:g}. "
                             "Choose a larger one.")
    return np.array(centers)


def _radii(x: np.ndarray, rng: np.random.Generator) -> tuple[float, ...]:
    from scipy.spatial.distance import pdist

    some = x if len(x) <= 1000 else x[rng.choice(len(x), 1000, replace=False)]
    distances = pdist(some) if len(some) > 1 else np.zeros(1)
    found = {float(q) for q in np.quantile(distances, QUANTILES) if q > 0}
    return tuple(sorted(found, reverse=True)) or (max(float(distances.max()) / 2, 1.0),)


def several(found: Cells | Iterable[Cells]) -> list[Cells]:
    """One or many `Cells` as a list.

    Raises:
        TypeError: something else.
    """
    listed = [found] if isinstance(found, Cells) else list(found) if isinstance(found, Iterable) else [found]
    if not listed or not all(isinstance(c, Cells) for c in listed):
        raise TypeError(f"this needs Cells, or several; got {type(found).__name__}. Pass cells(trajectories).")
    return listed
