"""The analyzers on orbits whose answer is known, in the shape, length and number format of a recording."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from dynloop.analyzers import contraction_rate, limit_regime, limit_regime_blayney, minimal_period
from dynloop.measurement import Measurement
from dynloop.measuring import measure
from dynloop.outcome import Outcome
from dynloop.trajectories import Trajectories

MOST_STEPS, MOST_FEATURES = 256, 256
ORBITS = 32  # of each system
_STARTS_AT = 1.0  # distance from the limit at the start, over the limit's norm
_AMPLITUDE = 0.3  # of lasting movement, over the same norm
_RATE = 0.8  # at which the start is forgotten
_LEFT = 1e-3  # of the slow spiral's start, at the end of the record
_ANALYZERS = (limit_regime, limit_regime_blayney, minimal_period, contraction_rate)
SHUFFLED, TURNED = "states of the late half in random order", "steps with random signs"
_LASTING = ("orbit", "quasi-periodic", "slider", "chaotic", "diverging")


class Planted(NamedTuple):
    """A system in closed form: movement (n, T, D) around a limit of norm 1, and what should be said of it."""

    name: str
    regimes: tuple[str, ...]
    movement: Callable[[np.random.Generator, int, int, int], np.ndarray]
    period: int | None = None
    rate: Callable[[int], float] | None = None


def _directions(rng: np.random.Generator, n: int, k: int, dim: int) -> np.ndarray:
    """Orthogonal directions of length 1, k for each of n orbits, (n, k, D); zeros where there are fewer features."""
    q = np.linalg.qr(rng.normal(size=(n, dim, min(k, dim))))[0].transpose(0, 2, 1)
    return np.concatenate([q, np.zeros((n, k - q.shape[1], dim))], axis=1)


def _decay(rng: np.random.Generator, n: int, steps: int, dim: int) -> np.ndarray:
    return _STARTS_AT * _RATE ** np.arange(steps)[:, None] * _directions(rng, n, 1, dim)


def _spiral(rng: np.random.Generator, n: int, steps: int, dim: int) -> np.ndarray:
    t = np.arange(steps) + rng.uniform(0, 10, (n, 1))
    turn = np.stack([np.cos(0.5 * t), np.sin(0.5 * t)], axis=-1)
    return _STARTS_AT * (spiral_rate(steps) ** np.arange(steps))[:, None] * (turn @ _directions(rng, n, 2, dim))


def spiral_rate(steps: int) -> float:
    """Modulus of the slow spiral: a thousandth of its start is left at the end of the record."""
    return _LEFT ** (1 / max(steps - 1, 1))


def _cycle(rng: np.random.Generator, n: int, steps: int, dim: int, *, period: int) -> np.ndarray:
    points = rng.normal(size=(n, period, dim)) / np.sqrt(dim)
    return _decay(rng, n, steps, dim) + _AMPLITUDE * points[:, np.arange(steps) % period]


def _torus(rng: np.random.Generator, n: int, steps: int, dim: int) -> np.ndarray:
    t = np.arange(steps)
    angles = [2 * np.pi * w * t + rng.uniform(0, 2 * np.pi, (n, 1)) for w in ((np.sqrt(5) - 1) / 2, np.sqrt(2) - 1)]
    turn = np.stack([f(a) for a in angles for f in (np.cos, np.sin)], axis=-1)
    return _decay(rng, n, steps, dim) + _AMPLITUDE * turn @ _directions(rng, n, 4, dim)


def _henon(rng: np.random.Generator, n: int, steps: int, dim: int) -> np.ndarray:
    x, y, path = rng.uniform(-0.1, 0.1, n), rng.uniform(-0.1, 0.1, n), []
    for _ in range(200 + steps):
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
        path.append(np.stack([x, y / 0.3], axis=-1))
    return _decay(rng, n, steps, dim) + _AMPLITUDE * np.stack(path[200:], axis=1) @ _directions(rng, n, 2, dim)


def _walk(rng: np.random.Generator, n: int, steps: int, dim: int) -> np.ndarray:
    return _AMPLITUDE * np.cumsum(rng.normal(size=(n, steps, dim)), axis=1) / np.sqrt(dim * steps)


def _drift(rng: np.random.Generator, n: int, steps: int, dim: int) -> np.ndarray:
    away = 2 * _AMPLITUDE * np.arange(steps)[:, None] / steps * _directions(rng, n, 1, dim)
    return _decay(rng, n, steps, dim) + away


PLANTED = (
    Planted("fixed point", ("fixed point",), _decay, 1, lambda steps: _RATE),
    Planted("slow spiral onto a fixed point", ("fixed point", "converging"), _spiral, None, spiral_rate),
    Planted("cycle of period 2", ("orbit",), functools.partial(_cycle, period=2), 2),
    Planted("cycle of period 3", ("orbit",), functools.partial(_cycle, period=3), 3),
    Planted("torus of two rotations", ("quasi-periodic",), _torus),
    Planted("chaos (Hénon map)", ("chaotic",), _henon),
    Planted("steady drift", ("slider",), _drift),
    Planted("random walk", ("undetermined",), _walk),
)


def planted_orbits(system: Planted, *, n: int = ORBITS, n_steps: int, dim: int, floor: float,
                   dtype: torch.dtype = torch.float32, resolution: float | None = None, rng: Any = 0) -> Trajectories:
    """Orbits of a planted system as a recording would hold them.

    Args:
        system: one of `PLANTED`.
        n: how many.
        n_steps, dim: length and features.
        floor: length of the steps that noise alone makes, over the norm of the limit.
        dtype: of the recording; states are rounded to it.
        resolution: of the dtype in which the model computed; by default that of `dtype`.
        rng: seed or generator.
    """
    rng = np.random.default_rng(rng)
    limit = _directions(rng, n, 1, dim)
    noise = floor / np.sqrt(2 * dim) * rng.normal(size=(n, n_steps, dim))
    states = torch.as_tensor(limit + system.movement(rng, n, n_steps, dim) + noise)
    if resolution is not None and resolution > torch.finfo(dtype).eps:  # the model computed in fewer bits
        coarse = next(d for d in (torch.bfloat16, torch.float16, torch.float32) if torch.finfo(d).eps <= resolution)
        states = states.to(coarse)
    return Trajectories(states.to(dtype), resolution=resolution)


def calibrate(*, n_steps: int, dim: int, floor: float, dtype: torch.dtype = torch.float32,
              resolution: float | None = None, sample: Trajectories | None = None, seed: int = 0) -> dict[str, Any]:
    """What the analyzers say of planted systems in a recording's shape, and of its own orbits out of order.

    Args:
        n_steps, dim: of the recording; taken up to 256 each.
        floor: median floor of the steps, over the norm of the last state.
        dtype, resolution: of the recording.
        sample: some of its orbits; the states of their late half are put into random order, or their steps
            get random signs.
        seed: of everything that is drawn. The planted systems of one shape are measured once in a process.

    Returns:
        Plain numbers and texts: the shape, and a row a system with counts of what was said.

    Misleads:
        A dozen closed forms are not the world: the rates hold for these systems alone. A recording wider than 256
        features is stood for by 256. A planted transient decays at .8 a step, whatever the recording's does.
    """
    steps, features = min(n_steps, MOST_STEPS), min(dim, MOST_FEATURES)
    rows = copy.deepcopy(_planted_rows(steps, features, float(floor), dtype, resolution, seed))
    rng = np.random.default_rng(seed)
    if sample is not None and sample.n_orbits and sample.n_steps > 2:
        complete = np.flatnonzero(~sample.diverged & (sample.lengths == sample.n_steps))
        if len(complete):
            whole = sample[complete]
            states = whole.states.double().cpu().numpy()[:, -steps:]
            half = states.shape[1] // 2
            order = rng.permuted(np.tile(np.arange(half, states.shape[1]), (len(states), 1)), axis=1)
            late = np.take_along_axis(states, order[..., None], axis=1)
            moves = np.diff(states, axis=1)
            turned = moves * rng.choice([-1.0, 1.0], size=(*moves.shape[:2], 1))
            for name, made in ((SHUFFLED, np.concatenate([states[:, :half], late], axis=1)),
                               (TURNED, np.concatenate([states[:, :1], turned], axis=1).cumsum(axis=1))):
                orbits = Trajectories(torch.as_tensor(made).to(whole.states.dtype), resolution=whole.resolution)
                rows.append({"system": name, "kind": "surrogate",
                             "right": ["fixed point", "converging", "undetermined"], "period": None, "rate": None,
                             **_said(orbits)})
    return {"n_steps": steps, "dim": features, "floor": float(floor), "dtype": str(dtype).removeprefix("torch."),
            "resolution": float(resolution or torch.finfo(dtype).eps), "systems": rows}


@functools.lru_cache(maxsize=16)
def _planted_rows(steps: int, features: int, floor: float, dtype: torch.dtype, resolution: float | None,
                  seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    rows = []
    for system in PLANTED:
        orbits = planted_orbits(system, n_steps=steps, dim=features, floor=floor, dtype=dtype, resolution=resolution,
                                rng=rng)
        rows.append({"system": system.name, "kind": "planted", "right": list(system.regimes), "period": system.period,
                     "rate": None if system.rate is None else float(system.rate(steps)), **_said(orbits)})
    return rows


def _said(orbits: Trajectories) -> dict[str, Any]:
    """What the analyzers say of orbits, counted."""
    regime, published, period, rate = measure(orbits, _ANALYZERS)
    found = rate.found
    return {"n": orbits.n_orbits, "regimes": _counted(regime), "published": _counted(published),
            "periods": {f"{p:g}": int(n) for p, n in zip(*np.unique(period.values[period.found], return_counts=True),
                                                         strict=True)},
            "rates": int(found.sum()), "median_rate": float(np.median(rate.values[found])) if found.any() else None}


def _counted(regime: Measurement) -> dict[str, int]:
    """Orbits by regime, or by outcome where none was given."""
    said = [str(r) if r else o.value for r, o in zip(regime.values, regime.outcomes, strict=True)
            if r or o is not Outcome.FOUND]
    return {word: said.count(word) for word in sorted(set(said))}


def power_and_false_alarms(panel: dict[str, Any]) -> dict[str, tuple[int, int, int, int]]:
    """Of each regime: (called, tried) on planted systems that have it, and on all others that do not.

    The slow spiral may be called either of two; it counts for neither's power, and as a false alarm of all others.
    """
    counts = {}
    for regime in ("fixed point", *_LASTING[:4]):
        hit = tried = alarm = other = 0
        for row in panel["systems"]:
            if row["kind"] != "planted":
                continue
            called = row["regimes"].get(regime, 0)
            if row["right"] == [regime]:
                hit, tried = hit + called, tried + row["n"]
            elif regime not in row["right"]:
                alarm, other = alarm + called, other + row["n"]
        counts[regime] = hit, tried, alarm, other
    return counts
