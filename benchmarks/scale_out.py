"""What do workers cost and gain: 200 shards by the plain loop, by one and two processes, and by a cluster of Dask?

    python benchmarks/scale_out.py --save benchmarks/results/scale_out.json
    python benchmarks/scale_out.py --every-analyzer --shards 20 --rounds 1     # for the plan
    python benchmarks/scale_out.py --tiny

Every configuration is a fresh process, so that each pays for its own imports; they take turns, and all must give the
same answers bit for bit. Work is the processor time of the whole tree of processes, from the start of Python to the end
of the last worker. Elapsed time is that of `measure` alone, the start of its processes included; the cluster of Dask is
there before. Run it on a machine with nothing else to do: the ratio of times needs two free cores. Linux only.
"""

import ctypes
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import side_by_side
import torch

import dynloop
from dynloop.store import StoreWriter

ANALYZERS = ["distance_to_limit", "contraction_rate", "limit_regime", "limit_regime_blayney"]  # those of a report
EVERY = [*ANALYZERS, "successive_distance", "minimal_period", "turning_angle", "path_straightness",
         "recurrence_quantification", "convergence_time", "cyclic_fixed_points", "dominant_modes", "chaos_01",
         "lyapunov_from_data", "correlation_dimension"]
PLAIN = "plain loop"
CONFIGURATIONS = {PLAIN: (None, 0), "1 process": ("processes", 1), "2 processes": ("processes", 2),
                  "Dask, 1 worker": ("dask", 1), "Dask, 2 workers": ("dask", 2)}
TARGETS = {"70 GB": 70e9, "10 TB": 10e12}
_CHILD_SUBREAPER = 36  # prctl: who outlives its parent becomes our child, so that its work is counted


def write(folder, n_shards, shard_mib, n_steps, dim):
    """A store of contracting orbits."""
    rng = np.random.default_rng(0)
    n = max(1, int(shard_mib * 2**20) // (4 * n_steps * dim))
    with StoreWriter(folder, {"labels": {"model": "planted"}, "resolution": 2.0**-23}) as writer:
        for shard in range(n_shards):
            rates = rng.uniform(0.3, 0.95, n).astype("float32")
            end, away = rng.standard_normal((2, n, 1, dim), dtype="float32")
            states = end + away * rates[:, None, None] ** np.arange(n_steps, dtype="float32")[:, None]
            writer.write_states(f"states-{shard:05d}", torch.from_numpy(states),
                                {"prompt": (0, np.full(n, shard)), "token": (0, np.arange(n))})
        return writer.finish()


def digest(measurements):
    """One text for all values of all answers."""
    total = hashlib.sha256()
    for one in measurements:
        for name, values in {**one.variables, **one.labels}.items():
            total.update(f"{name}{values.dtype}{values.shape}".encode() + np.ascontiguousarray(values).tobytes())
        total.update(repr([o.value for o in one.outcomes]).encode())
    return total.hexdigest()


def run(folder, names, kind, workers):
    """One configuration, in a process of its own: seconds of `measure`, and the digest of its answers."""
    analyzers = [getattr(dynloop, name) for name in names]
    store = dynloop.open_store(folder)

    def timed(**options):
        began = time.perf_counter()
        found = dynloop.measure(store, analyzers, **options)
        print(json.dumps({"seconds": time.perf_counter() - began, "digest": digest(found), "bytes": store.n_bytes,
                          "orbits": found[0].n_orbits}))

    if kind != "dask":
        timed(**({"workers": workers} if workers else {}))
        return
    warnings.simplefilter("ignore")
    import distributed

    with distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=60) \
            as cluster, distributed.Client(cluster) as client:
        timed(client=client)


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(folder, names, kind, workers):
    """A configuration: elapsed seconds of `measure`, processor seconds of the whole tree, peak memory of a process."""
    before = processor_seconds()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    text = subprocess.run([sys.executable, __file__, "--child", json.dumps([str(folder), names, kind, workers])],
                          check=True, stdout=subprocess.PIPE, env=environment).stdout
    try:
        while True:
            os.waitpid(-1, 0)  # the process that forked the workers, and whoever else outlived its parent
    except ChildProcessError:
        pass
    return {**json.loads(text.splitlines()[-1]), "work": processor_seconds() - before}


def main():
    options = side_by_side.arguments(
        __doc__, shards=(200, 6, "shards"), shard_mib=(32.0, 0.25, "size of a shard in MiB"),
        steps=(128, 32, "steps of an orbit"), dim=(2048, 64, "dimensions"), rounds=(3, 1, "turns"),
        every_analyzer=(False, False, "all analyzers of one orbit, not only those of a report"))
    names = EVERY if options.every_analyzer else ANALYZERS
    ctypes.CDLL(None).prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    configurations = {name: how for name, how in CONFIGURATIONS.items() if not (options.tiny and how[0] == "dask")}
    with tempfile.TemporaryDirectory() as folder:
        store = write(Path(folder) / "store", options.shards, options.shard_mib, options.steps, options.dim)
        run(store.folder, names, None, 0)  # compiles what is compiled once a machine, and fills the cache
        figures = {name: [] for name in configurations}
        for _ in range(options.rounds):
            for name, how in configurations.items():
                figures[name].append(measured(store.folder, names, *how))
    assert len({one["digest"] for rounds in figures.values() for one in rounds}) == 1, "answers differ"
    assert {one["orbits"] for rounds in figures.values() for one in rounds} == {store.n_orbits}

    def median(name, what):
        return float(np.median([one[what] for one in figures[name]]))

    def ratio(name, other, what):
        return float(np.median([one[what] / two[what]
                                for one, two in zip(figures[name], figures[other], strict=True)]))

    rows = [(name, median(name, "seconds"), median(name, "work"), ratio(name, PLAIN, "seconds"),
             ratio(name, PLAIN, "work")) for name in figures]
    print(side_by_side.table(("", "elapsed s", "work s", "elapsed / plain", "work / plain"), rows))
    pairs = [("1 process", "2 processes"), ("Dask, 1 worker", "Dask, 2 workers")]
    gains = {two: ratio(two, one, "seconds") for one, two in pairs if one in figures}
    for two, gain in gains.items():
        print(f"{two}: {gain:.2f} of the time of one (asked: at most 0.6)")
    per_byte = median(PLAIN, "work") / store.n_bytes
    plan = {name: {"core_hours": n_bytes * per_byte / 3600} for name, n_bytes in TARGETS.items()}
    for name, cost in plan.items():
        print(f"{name}: {cost['core_hours']:.2g} core hours at {1 / per_byte / 2**20:.0f} MiB a second and core")
    side_by_side.save({
        "question": __doc__.splitlines()[0], "machine": side_by_side.machine(), "shards": options.shards,
        "mib": store.n_bytes / 2**20, "steps": options.steps, "dim": options.dim, "analyzers": names,
        "medians": {row[0]: dict(zip(("seconds", "work", "seconds_over_plain", "work_over_plain"), row[1:],
                                     strict=True)) for row in rows},
        "seconds_of_two_over_one": gains, "plan": plan,
        "rounds": {name: [{k: one[k] for k in ("seconds", "work")} for one in rounds]
                   for name, rounds in figures.items()}}, options.save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run(*json.loads(sys.argv[2]))
    else:
        main()
