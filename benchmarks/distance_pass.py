"""What do all first analyzers cost beside the bare batched matrix product on the same data?

    python benchmarks/distance_pass.py            # 64 orbits of 128 x 2,048 float32
    python benchmarks/distance_pass.py --tiny

Both are timed in turn in one run and the median of the ratios is quoted; times alone mean little on a shared machine.
The answers are checked first: distances against float64, rates against the planted ones.
"""

import argparse
import json
import platform
import time

import numpy as np
import torch

import dynloop

ANALYZERS = [dynloop.successive_distance, dynloop.distance_to_limit, dynloop.contraction_rate,
             dynloop.limit_regime_blayney]


def planted(n_orbits, n_steps, dim, seed=0):
    """Contracting orbits at known rates, float32, with rounding at their own floor."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.3, 0.85, n_orbits)
    end, away = rng.standard_normal((2, n_orbits, 1, dim))
    states = end + away * rates[:, None, None] ** np.arange(n_steps)[:, None]
    return torch.from_numpy(states.astype("float32")), rates


def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="once, on small data: it runs and its answers are right")
    parser.add_argument("--save", metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args()
    n_orbits, n_steps, dim, repeats = (8, 64, 256, 1) if options.tiny else (64, 128, 2048, 15)
    states, rates = planted(n_orbits, n_steps, dim)
    orbits = dynloop.Trajectories(states)
    steps, _, rate, _ = dynloop.measure(orbits, ANALYZERS)
    exact = np.linalg.norm(np.diff(states.double().numpy(), axis=1), axis=-1)
    error = np.abs(steps.values - exact)[exact > 0] / exact[exact > 0]
    rate_error = np.abs(rate.values / rates - 1)
    assert error.max() < 1e-3, f"a distance is off by {error.max():.2g}"
    assert np.nanmax(rate_error) < 0.02, f"a rate is off by {np.nanmax(rate_error):.2g}"

    gram = torch.empty(n_orbits, n_steps, n_steps)
    product, everything = [], []
    for _ in range(repeats):
        product.append(timed(lambda: torch.bmm(states, states.transpose(1, 2), out=gram)))
        everything.append(timed(lambda: dynloop.measure(dynloop.Trajectories(states), ANALYZERS)))
    ratio = float(np.median(np.array(everything) / np.array(product)))
    figures = {"orbits": n_orbits, "steps": n_steps, "dim": dim, "threads": torch.get_num_threads(),
               "matrix_product_ms": 1e3 * float(np.median(product)),
               "all_analyzers_ms": 1e3 * float(np.median(everything)),
               "ratio": ratio, "largest_distance_error": float(error.max()),
               "largest_rate_error": float(np.nanmax(rate_error)), "torch": torch.__version__,
               "python": platform.python_version()}
    for name, value in figures.items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    if options.save:
        with open(options.save, "w") as file:
            json.dump(figures, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
