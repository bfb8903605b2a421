"""Shared fixtures. Tests never touch the network and never write outside their temporary folder."""

import numpy as np
import pytest
import torch

from dynloop import Trajectories


@pytest.fixture(autouse=True)
def few_threads():
    torch.set_num_threads(2)


@pytest.fixture
def rng():
    return np.random.default_rng(20260222)


@pytest.fixture
def decaying(rng):
    """30 orbits that contract to a fixed point at rates .4 to .9, in 24 dimensions, with labels."""
    rates = np.linspace(0.4, 0.9, 30)
    end, away = rng.normal(size=(2, 30, 1, 24))
    states = end + away * rates[:, None, None] ** np.arange(128)[None, :, None]
    return Trajectories(states, labels={"prompt": np.arange(30) // 5, "token": np.arange(30) % 5, "true": rates})
