"""Shared fixtures. Tests never touch the network and never write outside their temporary folder."""

import contextlib
import functools

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


@pytest.fixture(scope="session")
def few_planted():
    """`with few_planted():` reports try the analyzers on two planted systems, not eight."""
    from dynloop.report import calibration

    apart = functools.cache(calibration._planted_rows.__wrapped__)  # whole panels have rows of their own

    @contextlib.contextmanager
    def few():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(calibration, "PLANTED", calibration.PLANTED[1:3])
            patch.setattr(calibration, "_planted_rows", apart)
            yield
    return few


@pytest.fixture
def small_panel(few_planted):
    """The same for tests of reports that look at something else."""
    with few_planted():
        yield


@pytest.fixture
def decaying(rng):
    """30 orbits that contract to a fixed point at rates .4 to .9, in 24 dimensions, with labels."""
    rates = np.linspace(0.4, 0.9, 30)
    end, away = rng.normal(size=(2, 30, 1, 24))
    states = end + away * rates[:, None, None] ** np.arange(128)[None, :, None]
    return Trajectories(states, labels={"prompt": np.arange(30) // 5, "token": np.arange(30) % 5, "true": rates})
