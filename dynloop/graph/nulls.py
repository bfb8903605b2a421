"""Paths like the recorded ones, but for what a null hypothesis denies."""

from __future__ import annotations

import numpy as np

from dynloop.graph.cells import Partition
from dynloop.kernels.graphs import own_cells
from dynloop.statistics.surrogates import Maker

NULLS = ("shuffle", "ar1", "walk", "length")
# coefficient of an AR(1) null: an alternation of longer memory is a cycle of 2 to a graph, and no null hypothesis of it
LEAST_COEFFICIENT = -0.9
ROUNDS = 20  # of k-means on null states


class Nulls:
    """Makers of null paths of some orbits of one length and one partition, prepared once.

    Args:
        kind: of `NULLS`.
        paths: (n, T) cells.
        coordinates: (n, T, d) of the states in the plane of the centres.
        partition: of these. Where it was found from one orbit, whose states it fits better than any others, null states
            get as many cells of their own.
    """

    def __init__(self, kind: str, paths: np.ndarray, coordinates: np.ndarray, partition: Partition) -> None:
        self.kind, self.paths, self.coordinates, self.partition = kind, paths, coordinates, partition
        if kind == "ar1":
            self.maker = Maker(coordinates, "ar1", 0.0)
            self._tame(self.maker)
        elif kind == "walk":
            self.steps = np.diff(coordinates, axis=1)
        elif kind == "length":
            # in which stay each step lies, and which cells there are
            moved = np.diff(paths, axis=1, prepend=-1) != 0
            self.stay = moved.cumsum(1) - 1
            self.visited = [np.unique(path) for path in paths]

    def _tame(self, maker: Maker) -> None:
        """Raise coefficients to the least, and give their coordinates the variance of the orbit again."""
        low = maker.coefficient < LEAST_COEFFICIENT
        variance = self.coordinates.var(axis=1)
        maker.coefficient = np.where(low, LEAST_COEFFICIENT, maker.coefficient)
        for name, wanted in (("mix", variance * (1 - maker.coefficient**2)), ("start", variance)):
            now = getattr(maker, name)
            scale = np.sqrt(wanted / np.where(low, (now**2).sum(1), 1.0), where=low, out=np.ones_like(variance))
            setattr(maker, name, now * scale[:, None])

    def make(self, generators: list[np.random.Generator]) -> np.ndarray:
        """One null path of every orbit for each generator: (len(generators), n, T)."""
        return {"shuffle": self._shuffle, "ar1": self._ar1, "walk": self._walk, "length": self._length}[self.kind](
            generators)

    def _shuffle(self, generators: list[np.random.Generator]) -> np.ndarray:
        return np.stack([g.permuted(self.paths, axis=1) for g in generators])

    def _ar1(self, generators: list[np.random.Generator]) -> np.ndarray:
        return self._cells(self.maker.make(generators), generators)

    def _walk(self, generators: list[np.random.Generator]) -> np.ndarray:
        n, m, _ = self.steps.shape
        made = np.empty((len(generators), *self.coordinates.shape))
        for i, g in enumerate(generators):
            order = g.permuted(np.broadcast_to(np.arange(m), (n, m)), axis=1)
            made[i, :, 0] = self.coordinates[:, 0]
            made[i, :, 1:] = self.coordinates[:, :1] + self.steps[np.arange(n)[:, None], order].cumsum(1)
        return self._cells(made, generators)

    def of_three(self, generators: list[np.random.Generator]) -> np.ndarray:
        """As "length", over three cells: of all paths without a cycle those that return most strongly."""
        return self._length(generators, 3)

    def _cells(self, made: np.ndarray, generators: list[np.random.Generator]) -> np.ndarray:
        if self.partition.n_orbits > 1:
            return self.partition.nearest(made)
        n, n_steps, k = len(self.paths), self.paths.shape[1], min(self.partition.n_cells, self.paths.shape[1])
        first = np.stack([g.permuted(np.broadcast_to(np.arange(n_steps), (n, n_steps)), axis=1)[:, :k]
                          for g in generators])
        paths = np.empty(made.shape[:-1], dtype=np.int64)
        own_cells(made.reshape(-1, *made.shape[2:]), first.reshape(-1, k), ROUNDS, paths.reshape(-1, n_steps))
        return paths

    def _length(self, generators: list[np.random.Generator], most: int | None = None) -> np.ndarray:
        made = np.empty((len(generators), *self.paths.shape), dtype=np.int64)
        for i, g in enumerate(generators):
            for o, visited in enumerate(self.visited):
                n_stays, n_cells = self.stay[o, -1] + 1, min(len(visited), most or len(visited))
                if n_cells == 2:  # moves alone would leave one path only
                    made[i, o] = visited[g.integers(2, size=len(self.stay[o]))]
                    continue
                # a first cell, and then steps that are never 0 on the ring of cells: no cell follows itself
                turns = g.integers(1, max(n_cells, 2), size=n_stays)
                turns[0] = g.integers(n_cells)
                made[i, o] = visited[(turns.cumsum() % n_cells)[self.stay[o]]]
        return made
