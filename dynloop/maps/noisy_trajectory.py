"""Run a live map whose every transition is disturbed by a little noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dynloop.maps.arguments import check_tensor
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.trajectory import orbits_of
from dynloop.settings import check_number, check_whole
from dynloop.trajectories import Trajectories


class Noise:
    """Adds normal numbers to states (rows, ..., features); each row has numbers of its own, whatever runs beside it.

    Args:
        size: their standard deviation.
        relative: in units of the root mean square of what is disturbed, along the last axis.
        seeds: one a row.
    """

    def __init__(self, size: float, relative: bool, seeds: Sequence[int]) -> None:
        check_number("noise", size, lambda v: 0 <= v < np.inf, "a number of at least 0 (0 is no noise)")
        if not isinstance(relative, bool):
            raise ValueError(f"relative must be true or false; got {relative!r}.")
        self.size, self.relative = float(size), relative
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def __call__(self, states: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """The states of these rows (by default all), disturbed; the same tensor where there is no noise."""
        if not self.size:
            return states
        exact = torch.float64 if states.dtype == torch.float64 else torch.float32
        own = self._generators if rows is None else [self._generators[row] for row in rows]
        drawn = torch.stack([torch.randn(states.shape[1:], generator=g, dtype=exact) for g in own]).to(states.device)
        wide = states.to(exact)
        scale = wide.square().mean(-1, keepdim=True).sqrt() * self.size if self.relative else self.size
        return (wide + scale * drawn).to(states.dtype)


def noisy_trajectory(loop_map: LoopMap, start: torch.Tensor, n_steps: int, *, noise: float, relative: bool = True,
                     n_quiet: int = 0, contexts: Any = None, per: str = "state", batch_size: int | None = None,
                     rng: Any = 0) -> Trajectories:
    r"""The orbits of a map with noise in every transition, as a recording for the analyzers.

        h[t+1] = F(h[t]) + noise |h|_rms xi,   xi normal, independent from step to step and number to number

    where |h|_rms is the root mean square of F(h[t]) along its last axis (of each token), or 1.

    Args:
        loop_map: the map.
        start: (n, *state_shape), one row an orbit; the start itself is not disturbed.
        n_steps: applications of the map.
        noise: size of the noise; 0 gives the states of `trajectory`, bit for bit.
        relative: in units of |h|_rms; otherwise in state units.
        n_quiet: how many of the last steps go without noise: where the orbits then settle, noise has put them.
        contexts, per, batch_size: as in `trajectory`.
        rng: seed or generator; each row has numbers of its own.

    Returns:
        As `trajectory`.

    Raises:
        ValueError: a noise below 0; more quiet steps than steps; and as `trajectory`.

    Misleads:
        Noise in a number format that is narrower than the noise is rounded away. Under noise nothing settles: limits
        are of quiet steps.

    Source:
        Additive noise in each transition of an AR(1) process: for F(h) = a h the spread goes to
        noise / sqrt(1 - a^2).

    Example:
        >>> import torch
        >>> from dynloop.maps import LoopMap
        >>> from dynloop.maps.noisy_trajectory import noisy_trajectory
        >>> f = LoopMap(lambda x, contexts: 0.6 * x, (1,))
        >>> orbits = noisy_trajectory(f, torch.zeros(4000, 1), 40, noise=0.8, relative=False)
        >>> round(float(orbits.states[:, -1].std()), 1)
        1.0
    """
    check_tensor("start", start)
    check_whole("n_quiet", n_quiet, 0, "a whole number of at least 0 (the default)")
    if n_quiet > n_steps:
        raise ValueError(f"n_quiet must be at most n_steps = {n_steps}; got {n_quiet}.")
    disturb = Noise(noise, relative, np.random.default_rng(rng).integers(2**62, size=len(start)).tolist())

    def change(t: int, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return disturb(states, rows.tolist()) if 0 < t <= n_steps - n_quiet else states

    return orbits_of(loop_map, start, n_steps, contexts=contexts, per=per, batch_size=batch_size, change=change)
