"""Maps of finitely many states, laid out as points: a tail of known length, then a cycle of known period, exactly."""

import numpy as np

from synthetic.system import System


def finite_map(name: str, following: np.ndarray, starts: np.ndarray, dim: int, *, seed: int = 0, **exact) -> System:
    """A map of states 0..m-1, each of them a random point: x' = point[following[the nearest one to x]].

    Args:
        name: its name.
        following: (m,), the state after each.
        starts: the states in which orbits start.
        dim: dimensions of the points.
        seed: of the points.
        exact: as in `System`.
    """
    points = 1 + np.random.default_rng([2710, dim, seed]).normal(size=(len(following), dim))
    squares = (points**2).sum(1)

    def step(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return points[following[(squares - 2 * x @ points.T).argmin(1)]]

    return System(name, dim, lambda rng, n: points[rng.choice(starts, size=n)], step, exact=exact)


def tail_and_cycle(following: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Steps before the cycle, and period of the cycle, from each state of a finite map."""
    m = len(following)
    on_cycle = np.arange(m)
    for _ in range(m):
        on_cycle = following[on_cycle]  # where each state is after m steps: on a cycle
    periodic = np.zeros(m, dtype=bool)
    periodic[on_cycle] = True
    period, ahead = np.zeros(m, dtype=int), following[on_cycle]
    for t in range(1, m + 1):
        period[(period == 0) & (ahead == on_cycle)] = t
        ahead = following[ahead]
    tail, now = np.zeros(m, dtype=int), np.arange(m)
    for _ in range(m):
        tail += ~periodic[now]
        now = following[now]
    return tail, period


def tadpoles(tail: int, period: int, dim: int, *, n_copies: int = 16, seed: int = 0) -> System:
    """Copies of one shape, a tail that leads into a cycle; orbits start at the tips (without a tail: anywhere)."""
    length = tail + period
    one = np.arange(1, length + 1)
    one[-1] = tail
    first = length * np.arange(n_copies)[:, None]
    starts = first[:, 0] if tail else np.arange(length * n_copies)
    return finite_map(f"finite map, tail {tail}, cycle {period}, {dim}d", (first + one).ravel(), starts, dim, seed=seed,
                      regime="orbit" if period > 1 else "fixed point", tail=tail, period=period)


def random_map(n_states: int, dim: int, *, seed: int) -> System:
    """A random function; orbits start in those of its states that share the most common tail (2 at least) and period.

    Raises:
        ValueError: all its cycles are fixed points, or no tail is that long.
    """
    following = np.random.default_rng([2711, n_states, seed]).integers(n_states, size=n_states)
    tails, periods = tail_and_cycle(following)
    shapes, counts = np.unique(np.stack([tails, periods])[:, (tails >= 2) & (periods >= 2)], axis=1,
                               return_counts=True)
    if not len(counts):
        raise ValueError(f"the random map of {n_states} states with seed {seed} has no tail of 2 that leads into a "
                         "cycle of 2; choose another seed.")
    tail, period = map(int, shapes[:, counts.argmax()])
    return finite_map(f"random map of {n_states} states, {dim}d, seed {seed}", following,
                      np.flatnonzero((tails == tail) & (periods == period)), dim, seed=seed,
                      regime="orbit", tail=tail, period=period)


SYSTEMS = (
    tadpoles(0, 2, 8), tadpoles(0, 9, 32), tadpoles(5, 3, 16), tadpoles(20, 6, 4), tadpoles(40, 16, 64),
    tadpoles(12, 1, 16),
    random_map(100, 16, seed=3), random_map(100, 64, seed=2), random_map(400, 8, seed=6),
)
