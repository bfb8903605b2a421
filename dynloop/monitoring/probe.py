"""The fixed batch on which a model in training is watched, and the numbers that are taken of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dynloop.analyzers import contraction_rate, distance_to_limit, successive_distance
from dynloop.maps import LoopMap
from dynloop.maps.krylov import by_modulus, leading_eigenvalues
from dynloop.models import LoopedModel
from dynloop.monitoring.bystander import bystander
from dynloop.outcome import Outcome
from dynloop.recording.attention import AttentionLayers, attention_layers
from dynloop.recording.in_memory import in_memory
from dynloop.trajectories import Trajectories

ORBITS = 64  # whose rates are fitted, unless positions are given
_VECTORS, _PRODUCTS, _TOLERANCE = 16, 32, 0.02  # Arnoldi: vectors kept, products allowed, relative residual
_DENSE = 64  # numbers in a state up to which the Jacobian itself is taken

Numbers = dict[str, Any]
Failed = Callable[[str, Exception], None]


class Probe:
    """Prompts of one length on which the loop is measured again and again.

    Args:
        looped: the model in training.
        prompts: token numbers, all of one length.
        n_recurrences: applications of the block.
        positions: of the tokens whose orbits are fitted.
        tolerance: as in `distance_to_limit`.
        autocast: dtype in which the probe runs; None for what is on around the call.
    """

    def __init__(self, looped: LoopedModel, prompts: Sequence[Sequence[int]], *, n_recurrences: int,
                 positions: Sequence[int], tolerance: float, autocast: torch.dtype | None) -> None:
        self.looped, self.prompts, self.n_recurrences = looped, prompts, n_recurrences
        self.positions, self.tolerance, self.autocast = positions, tolerance, autocast
        self.attention: AttentionLayers | None = None
        self.radius = True
        self._slowest: torch.Tensor | None = None  # direction of each prompt, from the last call

    def watch_attention(self, symbols: Sequence[str]) -> None:
        """Find the attention calls of the loop.

        Raises:
            ValueError, RuntimeError: as `attention_layers`.
        """
        with bystander(self.looped.module, self.autocast):
            self.attention = attention_layers(self.looped, self.prompts, self.n_recurrences, symbols)

    def compile(self) -> None:
        """Have every kernel compiled that a measurement may come to need: which they are depends on the orbits, and a
        model in training changes its ways. One compilation takes as long as many measurements.
        """
        n_steps, rng = max(self.n_recurrences, 16), np.random.default_rng(0)
        t, (a, b) = np.arange(n_steps)[:, None], rng.normal(size=(2, 1, 8))
        far = rng.normal(size=(n_steps, 8))
        broken = 1 + 0.5**t * a
        broken[n_steps // 2:] = np.nan
        orbits = [1 + 0.5**t * a, 1 + 0.97**t * a, 3 + t * a, 3 + far, 3 + far.cumsum(0), 3 + (-1.0) ** t * a, broken,
                  1 + 0.9**t * (np.cos(t) * a + np.sin(t) * b), 1 + np.linspace(0.5, 0.95, 8) ** t * a, a + 0 * t,
                  1 + 0.8**t * a + 1e-3 * far, 1 + 0.98**t * a + 0.3 * far, np.log1p(t) * a + 1e-2 * far,
                  1e8 + 1 / (1 + t) * a]
        _of_orbits(Trajectories(torch.as_tensor(np.stack(orbits)).to(self.looped.compute_dtype)), self.tolerance, {})

    def measure(self, failed: Failed) -> Numbers:
        """All numbers of the model as it is now; what cannot be had is NaN, and `failed` is told why."""
        numbers: Numbers = {"outcomes": {}}
        with bystander(self.looped.module, self.autocast):
            self._states(numbers)
            if self.radius:
                try:
                    self._spectral_radius(numbers)
                except Exception as error:  # the other numbers shall not be lost with it
                    self._slowest = None
                    numbers["spectral_radius"] = np.nan
                    failed("spectral radius", error)
        return numbers

    def _states(self, numbers: Numbers) -> None:
        orbits, distances = in_memory(self.looped, self.prompts, n_recurrences=self.n_recurrences,
                                      tokens=self.positions, attention=self.attention)
        numbers |= _of_orbits(orbits, self.tolerance, numbers["outcomes"])
        if distances is not None:
            # the first recurrence has no distance, and behind the end of a ragged loop there is none
            ended = distances.shape[-1] - 1 - np.isfinite(distances)[..., ::-1].argmax(-1)
            last = np.take_along_axis(distances, ended[..., None], -1)
            numbers["attention_distance"] = _over(np.mean, last)
            numbers["attention_distance_largest"] = _over(np.max, last)

    def _spectral_radius(self, numbers: Numbers) -> None:
        looped = self.looped
        dtype = torch.promote_types(looped.compute_dtype, torch.float32)
        with torch.autocast(looped.device.type, enabled=False):
            loop = LoopMap.of(looped, torch.tensor(self.prompts), dtype=dtype)
            n = len(self.prompts)
            with loop.held(), np.errstate(all="ignore"):
                states = loop.initial_states(seeds=range(n))
                for _ in range(self.n_recurrences):
                    states = loop(states)
                finite = states.isfinite().flatten(1).all(1).cpu().numpy()
                radius = np.full(n, np.nan)
                if finite.any():
                    radius[finite] = self._radii(loop, states, np.flatnonzero(finite))
        numbers["outcomes"]["spectral_radius"] = _counted([
            Outcome.FOUND if known else Outcome.NOT_CONVERGED if there else Outcome.NOT_FINITE
            for known, there in zip(np.isfinite(radius), finite, strict=True)])
        numbers["spectral_radius"] = _over(np.median, radius)
        numbers["spectral_radius_largest"] = _over(np.max, radius)

    def _radii(self, loop: LoopMap, states: torch.Tensor, rows: np.ndarray) -> np.ndarray:
        if loop.dim <= _DENSE:
            values = np.linalg.eigvals(loop.jacobian(states[rows], rows).double().cpu().numpy())
            return np.abs(np.take_along_axis(values, by_modulus(values), -1)[:, 0])
        at = torch.as_tensor(rows)

        def product(own: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
            there = at[own]
            pushed = loop.jvps(states[there.to(states.device)],
                               vectors.reshape(*vectors.shape[:2], *loop.state_shape), there)[1]
            return pushed.reshape(vectors.shape)

        start = None if self._slowest is None else self._slowest[rows]
        found = leading_eigenvalues(product, len(rows), loop.dim, k=1, tolerance=_TOLERANCE, seed=0, dtype=loop.dtype,
                                    device=loop.device, subspace=_VECTORS, max_products=_PRODUCTS, start=start)
        if self._slowest is None:
            self._slowest = torch.ones(len(states), loop.dim, dtype=loop.dtype, device=loop.device)
        good = torch.as_tensor(found.converged)
        self._slowest[at[good].to(loop.device)] = found.vectors[good.to(loop.device)]
        return np.abs(found.values[:, 0])


def _of_orbits(orbits: Trajectories, tolerance: float, outcomes: dict[str, Any]) -> Numbers:
    rate, rest = contraction_rate(orbits), distance_to_limit(orbits, tolerance=tolerance)
    outcomes["contraction_rate"], outcomes["distance_to_limit"] = _counted(rate.outcomes), _counted(rest.outcomes)
    last = np.maximum(orbits.lengths - 1, 0)
    end = orbits.states[torch.arange(orbits.n_orbits), torch.as_tensor(last)].double().norm(dim=-1).cpu().numpy()
    steps = successive_distance(orbits, metric="relative").values
    final = np.take_along_axis(steps, np.maximum(last - 1, 0)[:, None], 1)[:, 0]
    gone = orbits.diverged
    return {"contraction_rate": _over(np.median, rate.values),
            "precision_floor": _over(np.median, rate["relative_floor"]),
            "share_not_converged": 1 - float(rest.found.mean()),
            "state_norm": _over(np.median, np.where(gone, np.nan, end)),
            "relative_step": _over(np.median, np.where(gone, np.nan, final))}


def _over(statistic: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    """Of the finite values; NaN where there is none."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    return float(statistic(finite)) if len(finite) else float("nan")


def _counted(outcomes: Iterable[Outcome]) -> Mapping[str, int]:
    return {o.value: n for o in Outcome if (n := int(sum(own is o for own in outcomes)))}


def synchronised(device: torch.device) -> None:
    """Wait for what the device has been given, so that the clock sees whose time it is."""
    with contextlib.suppress(RuntimeError):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
