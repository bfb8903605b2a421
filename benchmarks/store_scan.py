"""How fast is a store on disk analysed, beside a plain read of the same files, and how much memory does it take?

    python benchmarks/store_scan.py --folder /a/disk --gib 8
    python benchmarks/store_scan.py --tiny

Reads and analyses alternate, each on files that were dropped from the system's cache; the median ratio is quoted. The
memory is the peak of the process's anonymous (private) memory above what the libraries took before the first shard.
Linux only.
"""

import argparse
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

import dynloop
from dynloop.store import StoreWriter

ANALYZERS = [dynloop.successive_distance, dynloop.distance_to_limit, dynloop.contraction_rate,
             dynloop.limit_regime_blayney]


def write(folder, n_bytes, n_steps, dim):
    """A store of contracting orbits with known rates."""
    rng = np.random.default_rng(0)
    per_shard = max(1, min(n_bytes, 2**28 - 2**17) // (4 * n_steps * dim))
    writer = StoreWriter(folder, {"labels": {"model": "planted"}, "resolution": 2.0**-23})
    true = []
    for shard in range(max(1, n_bytes // (per_shard * n_steps * dim * 4))):
        rates = rng.uniform(0.3, 0.85, per_shard).astype("float32")
        end, away = rng.standard_normal((2, per_shard, 1, dim), dtype="float32")
        states = end + away * rates[:, None, None] ** np.arange(n_steps, dtype="float32")[:, None]
        writer.write_states(f"states-{shard:05d}", torch.from_numpy(states),
                            {"prompt": (0, np.arange(per_shard) // 16 + shard * per_shard)})
        true.append(rates)
    return writer.finish(), np.concatenate(true)


def drop(store):
    for path in Path(store.folder, "shards").iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(store):
    """Plain sequential reads; seconds."""
    buffer = bytearray(2**24)
    began = time.perf_counter()
    for path in sorted(Path(store.folder, "shards").iterdir()):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def private_bytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="once, on small data: it runs and its answers are right")
    parser.add_argument("--folder", help="where to write the store (deleted afterwards); by default a temporary folder")
    parser.add_argument("--gib", type=float, default=8)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    if options.tiny:
        options.gib, options.dim, options.repeats = 2**-6, 256, 1
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        store, true = write(folder / "store", int(options.gib * 2**30), options.steps, options.dim)
        dynloop.measure(dynloop.Trajectories(torch.randn(2, 16, 4)), ANALYZERS)  # compile first
        before, peak, done = private_bytes(), [0], threading.Event()

        def watch():
            while not done.wait(0.01):
                peak[0] = max(peak[0], private_bytes())

        reads, scans = [], []
        for _ in range(options.repeats):
            drop(store)
            reads.append(read(store))
            drop(store)
            watcher = threading.Thread(target=watch)
            watcher.start()
            began = time.perf_counter()
            _, _, rate, _ = dynloop.measure(dynloop.open_store(store.folder), ANALYZERS)
            scans.append(time.perf_counter() - began)
            done.set()
            watcher.join()
            done.clear()
            assert np.nanmedian(np.abs(rate.values / true - 1)) < 0.01
        ratios = np.array(reads) / np.array(scans)
        figures = {"bytes": store.n_bytes, "steps": options.steps, "dim": options.dim,
                   "threads": torch.get_num_threads(),
                   "read_gb_per_s": store.n_bytes / float(np.median(reads)) / 1e9,
                   "analysed_gb_per_s": store.n_bytes / float(np.median(scans)) / 1e9,
                   "ratio": float(np.median(ratios)), "ratio_least": float(ratios.min()),
                   "ratio_most": float(ratios.max()),
                   "peak_private_mib_above_libraries": max(0, peak[0] - before) / 2**20}
    finally:
        shutil.rmtree(folder)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if options.save:
        Path(options.save).write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
