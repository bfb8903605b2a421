"""Small orbits of every kind, for contracts of analyzers."""

from __future__ import annotations

import numpy as np
import torch

from dynloop.trajectories import Trajectories

SEED = 20260222
N_ORBITS, N_STEPS, DIM = 22, 64, 6


def every_kind() -> Trajectories:
    """Decays (to noise, too), drifts, circles, cycles, walks, noise and growth: 22 orbits in 6 dimensions."""
    rng, t = np.random.default_rng(SEED), np.arange(N_STEPS)[:, None]
    end, away = rng.normal(size=(2, N_ORBITS, 1, DIM))
    moves = [0.7**t, 0.75**t, 0.8**t, 0.9**t, 0.97**t, 0.99**t, t**1.5 / 64, np.sqrt(t), 1.05**t, (-1.0) ** t]
    states = end + np.stack([away[i] * moves[i] if i < len(moves) else 0 * t * away[i] for i in range(N_ORBITS)])
    angle = 2 * np.pi * t[:, 0] / 7
    states[10, :, :2] += np.stack([np.cos(angle), np.sin(angle)], axis=1)
    states[11:14] += rng.normal(size=(3, 3, DIM))[:, np.arange(N_STEPS) % 3]
    states[14:18] += rng.normal(size=(4, N_STEPS, DIM)).cumsum(1)
    golden = np.pi * (5**0.5 - 1) * np.arange(N_STEPS)
    states[17] = end[17] + 3 * np.stack([np.cos(golden), np.sin(golden), *np.zeros((4, N_STEPS))], axis=1)
    states[18:20] += away[18:20] * 0.5**t + 1e-3 * rng.normal(size=(2, N_STEPS, DIM))
    states[20:] += rng.normal(size=(2, N_STEPS, DIM))
    number = np.arange(N_ORBITS)
    return Trajectories(states, labels={"prompt": number // 4, "token": number % 4})


def long_chaos(dtype: torch.dtype) -> Trajectories:
    """Two orbits of the logistic map, 600 steps, along a line in 6 dimensions."""
    x, states = np.array([0.2, 0.3]), []
    for _ in range(600):
        states.append(x)
        x = 4 * x * (1 - x)
    return Trajectories(torch.from_numpy(np.stack(states, 1)[:, :, None] * np.ones(DIM) / 2).to(dtype))
