"""Analyzers that other processes can import, for test_scale.py: they count their calls, fail, or kill their worker."""

import os
import signal
import time
import uuid
from pathlib import Path

import numpy as np

from dynloop import Measurement, Outcome, analyzer
from dynloop.measuring import groups


def mark(folder, name):
    (Path(folder) / f"{name}-{uuid.uuid4().hex}").touch()


def marks(folder, name):
    return sum(path.name.startswith(f"{name}-") for path in Path(folder).iterdir())


def first_value(trajectories, settings=None, name="first_value"):
    return Measurement(name, {"value": trajectories.states[:, 0, 0].double().numpy()},
                       [Outcome.FOUND] * len(trajectories), labels=trajectories.labels, settings=settings or {})


def counting(trajectories, *, folder=".", seconds=0.0):
    """Marks every orbit that it sees."""
    for orbit in trajectories.labels["orbit"]:
        mark(folder, f"orbit{orbit}")
    time.sleep(seconds)
    return first_value(trajectories)


def failing(trajectories, *, folder=".", orbit=0, times=1):
    """Fails the first so many times that it sees an orbit."""
    if orbit in trajectories.labels["orbit"]:
        mark(folder, "failing")
        if marks(folder, "failing") <= times:
            raise ArithmeticError("this orbit is too hard")
    return first_value(trajectories)


def killing(trajectories, *, folder=".", orbit=0, times=1):
    """Kills its own process, like a machine out of memory, the first so many times that it sees an orbit."""
    if orbit in trajectories.labels["orbit"]:
        mark(folder, "killing")
        if marks(folder, "killing") <= times:
            time.sleep(0.3)  # so that others are under way
            os.kill(os.getpid(), signal.SIGKILL)
    return first_value(trajectories)


def process(trajectories):
    """Which process it was, and how many threads torch had there."""
    import torch

    n = len(trajectories)
    return Measurement("process", {"pid": np.full(n, os.getpid()), "threads": np.full(n, torch.get_num_threads())},
                       [Outcome.FOUND] * n, labels=trajectories.labels)


def peak_memory(trajectories):
    """The most memory that this process has ever had, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    n = len(trajectories)
    return Measurement("peak_memory", {"peak": np.full(n, float(peak)), "pid": np.full(n, os.getpid())},
                       [Outcome.FOUND] * n, labels=trajectories.labels)


@analyzer(together=("layer",))
def across_layers(trajectories):
    """Mean over the layers of the first feature of the first state, and how many layers there were."""
    number = groups(trajectories.labels, len(trajectories), ("layer",))
    sizes = np.bincount(number)
    first = trajectories.states[:, 0, 0].double().numpy()
    return Measurement("across_layers", {"mean": (np.bincount(number, first) / sizes)[number],
                                         "layers": sizes[number].astype(float)},
                       [Outcome.FOUND] * len(trajectories), labels=trajectories.labels)
