"""How do time and memory of each analyzer grow with the number of orbits, their length and their dimension?

    python benchmarks/cost.py                 # about 5 minutes on one core
    python benchmarks/cost.py --tiny

Time: milliseconds an orbit, each analyzer alone, the distance pass included, at 128 steps in 256 dimensions, and the
exponents of the growth with steps and dimensions (2 means fourfold at twice the size) from the two largest sizes.
Memory: the peak of the process's private memory above what it held before, while a store is analysed, for some orbits
and for four times as many; it must not grow by more than the answers themselves. Linux only for the memory.
"""

import functools
import gc
import math
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import side_by_side
import store_scan
import torch

import dynloop
import dynloop.analyzers
from dynloop import Trajectories, measure
from dynloop.distances import distances

BARE = "distance pass"
SLACK = 32 * 2**20  # bytes: distances of a chunk more or less, and what the allocator keeps


def bare(trajectories):
    for chunk in trajectories.chunks():
        distances(chunk).squared  # noqa: B018 (filled when asked for)


def orbits(n, n_steps, dim):
    """Half contract to a floor of noise, half are chaotic in a few dimensions: easy work and hard."""
    rng = np.random.default_rng(0)
    t = np.arange(n_steps)[:, None]
    contracting = rng.uniform(0.5, 0.95, (n // 2, 1, 1)) ** t * rng.standard_normal((n // 2, 1, dim))
    x = np.empty((n - n // 2, n_steps, 2))
    x[:, 0] = rng.uniform(-0.1, 0.1, (len(x), 2))
    for i in range(n_steps - 1):
        x[:, i + 1] = np.stack([1 - 1.4 * x[:, i, 0] ** 2 + x[:, i, 1], 0.3 * x[:, i, 0]], axis=1)
    states = np.concatenate([contracting, x @ rng.standard_normal((2, dim))]) + 3 * rng.standard_normal((n, 1, dim))
    states += 1e-3 * rng.standard_normal(states.shape)
    return torch.from_numpy(states.astype("float32"))


def exponent(sizes, ms):
    """Slope of ln time over ln size between the last two sizes."""
    return math.log(ms[-1] / ms[-2]) / math.log(sizes[-1] / sizes[-2])


def grown(tasks, sizes, make, n_orbits, repeats):
    """ms an orbit of each task at each size."""
    found = {name: [] for name in tasks}
    for size in sizes:
        states = make(size)
        seconds = side_by_side.in_turn({name: functools.partial(lambda f, s: f(Trajectories(s)), task, states)
                                        for name, task in tasks.items()}, repeats)
        for name, s in seconds.items():
            found[name].append(1e3 * float(np.median(s)) / n_orbits(size))
    return found


def peak(function):
    """What a call answers, and the peak of private memory above the level before, in bytes."""
    gc.collect()
    before, highest, done = store_scan.private_bytes(), [0], threading.Event()

    def watch():
        while not done.wait(0.003):
            highest[0] = max(highest[0], store_scan.private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answer = function()
    finally:
        done.set()
        watcher.join()
    return answer, max(0, highest[0] - before)


def memory(analyzers, n, n_steps, dim):
    """Analyzers -> peaks in MiB for n and 4 n orbits, and MiB of their answers to 3 n."""
    folder, found = Path(tempfile.mkdtemp()), {}
    try:
        stores = [store_scan.write(folder / f"{k}", k * 4 * n_steps * dim, n_steps, dim)[0] for k in (n, 4 * n)]
        for name, some in analyzers.items():
            measure(stores[0], some)  # what stays for good is there before
            results = [peak(functools.partial(measure, store, some)) for store in stores]
            size = sum(v.nbytes for m in results[1][0] for v in m.variables.values()) / 4 * 3
            peaks = [high for _, high in results]
            assert peaks[1] - peaks[0] <= SLACK + 4 * size, f"{name} takes {peaks} bytes for {n} and {4 * n} orbits"
            found[name] = [p / 2**20 for p in (*peaks, size)]
    finally:
        shutil.rmtree(folder)
    return found


def main():
    options = side_by_side.arguments(__doc__, orbits=(128, 8, "orbits at 128 steps in 256 dimensions"),
                                     repeats=(3, 1, "rounds"), stored=(2048, 256, "orbits of the smaller store"))
    side_by_side.one_thread()
    analyzers = {name: getattr(dynloop.analyzers, name) for name in dynloop.analyzers.__all__}
    tasks = {BARE: bare, **analyzers}
    n = options.orbits
    steps, dims = ((32, 64), (64, 128)) if options.tiny else ((32, 64, 128, 256, 512), (64, 256, 1024, 4096))
    of_steps = {size: max(2, n * 128 // size) for size in steps}
    of_dims = {size: max(2, min(n, n * 256 // size)) for size in dims}
    by_steps = grown(tasks, steps, lambda t: orbits(of_steps[t], t, 256), of_steps.get, options.repeats)
    by_dim = grown(tasks, dims, lambda d: orbits(of_dims[d], 128, d), of_dims.get, options.repeats)
    by_orbits = grown(tasks, (n, 4 * n), lambda k: orbits(k, 128 if not options.tiny else 32, 256), lambda k: k,
                      options.repeats)
    print(side_by_side.table(
        ("ms an orbit", *(f"T={t}, D=256" for t in steps), "T^", *(f"D={d}, T=128" for d in dims), "D^",
         f"{4 * n} orbits of {n}"),
        [(name, *by_steps[name], exponent(steps, by_steps[name]), *by_dim[name], exponent(dims, by_dim[name]),
          f"{4 * by_orbits[name][1] / by_orbits[name][0]:.2f} times the time") for name in tasks]) + "\n")
    figures = {"steps": steps, "ms_by_steps": by_steps, "dims": dims, "ms_by_dim": by_dim, "orbits": (n, 4 * n),
               "ms_by_orbits": by_orbits, "machine": side_by_side.machine()}
    if sys.platform == "linux":
        each = {} if options.tiny else {name: [one] for name, one in analyzers.items()}
        k = options.stored
        figures["peak_mib"] = memory({**each, "all together": list(analyzers.values())}, k, 128,
                                     32 if options.tiny else 256)
        print(side_by_side.table(("private memory, MiB", f"peak, {k} orbits", f"peak, {4 * k}", "answers to the rest"),
                                 [(name, *row) for name, row in figures["peak_mib"].items()]))
    side_by_side.save(figures, options.save)


if __name__ == "__main__":
    main()
