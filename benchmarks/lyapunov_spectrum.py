"""How fast and how right are Lyapunov spectra of live maps, beside the Python tools that compute them from a map?

    python benchmarks/lyapunov_spectrum.py                 # about 3 minutes; peers: pip install pynamicalsys lyapynov
    python benchmarks/lyapunov_spectrum.py --tiny

Five parts, each with its answers checked: "speed" (iterations a second of the Henon and logistic maps, ours and theirs
taking turns), "cold start" (a fresh process, from the import of the function and from the start of Python), "short
horizon" (bias at 128 steps in 2,048 dimensions, with and without what is averaged from the start), "accuracy" (systems
with known spectra: errors, and how often the intervals cover), "cost" (forwards a tangent of a transformer block and
of a shipped model). `--only cost` runs one part.
"""

import functools
import importlib
import math
import subprocess
import sys
import time
import warnings

import numpy as np
import side_by_side
import torch
from scipy.special import digamma

from dynloop.maps.loop_map import LoopMap
from dynloop.maps.lyapunov_spectrum import lyapunov_spectrum
from dynloop.models import nano
from synthetic import coupled_maps

GOALS = {"pynamicalsys": 100, "cold start, s": 2, "bias": 1e-3, "forwards a tangent": 2}
HENON = (0.41922, -1.62319)  # Sprott 2003
COLD = """
import time
begun = time.perf_counter()
from dynloop.maps.lyapunov_spectrum import lyapunov_spectrum
loaded, worked = time.perf_counter(), time.process_time()
lyapunov_spectrum(lambda x: (1 - 1.4 * x[0] * x[0] + x[1], 0.3 * x[0]), [[0.1, 0.1]],
                  jacobian=lambda x: ((-2.8 * x[0], 1.0), (0.3, 0.0)), n_steps=1000)
print(time.perf_counter() - loaded, time.process_time() - worked, time.perf_counter() - begun, time.process_time())
"""


def henon(x):
    return 1 - 1.4 * x[0] * x[0] + x[1], 0.3 * x[0]


def henon_jacobian(x):
    return (-2.8 * x[0], 1.0), (0.3, 0.0)


def logistic(x):
    return (4 * x[0] * (1 - x[0]),)


def logistic_jacobian(x):
    return ((4 - 8 * x[0],),)


def peer(name):
    """The module of a peer, or None where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed; its rows are left out.")
        return None


def lyapynov_henon(module, n_steps):
    system = module.DiscreteDS(np.array([0.1, 0.1]), 0, lambda x, t: np.array(henon(x)),
                               lambda x, t: np.array(henon_jacobian(x)))
    return module.LCE(system, 2, 100, n_steps, False)


def speed(options):
    """Iterations a second; ours and theirs take turns."""
    n = options.iterations
    ours = {"henon": functools.partial(lyapunov_spectrum, henon, [[0.1, 0.1]], jacobian=henon_jacobian, n_steps=n),
            "logistic": functools.partial(lyapunov_spectrum, logistic, [[0.3]], jacobian=logistic_jacobian, n_steps=n)}
    steps = dict.fromkeys(ours, n)
    tasks: dict = dict(ours)
    if module := peer("pynamicalsys"):
        made = {name: module.DiscreteDynamicalSystem(model=f"{name} map") for name in ours}
        less = max(n // 100, 1000)
        for method in ("ER", "QR"):
            tasks[f"pynamicalsys {method}, henon"] = functools.partial(
                made["henon"].lyapunov, [0.1, 0.1], less, parameters=[1.4, 0.3], method=method)
        tasks["pynamicalsys, logistic"] = functools.partial(made["logistic"].lyapunov, [0.3], less, parameters=[4.0])
        steps |= dict.fromkeys([name for name in tasks if name.startswith("pynamicalsys")], less)
    if module := peer("lyapynov"):
        steps["lyapynov, henon"] = max(n // 5000, 200)
        tasks["lyapynov, henon"] = functools.partial(lyapynov_henon, module, steps["lyapynov, henon"])
    seconds = side_by_side.in_turn(tasks, options.repeats)
    a_step = {name: own / steps[name] for name, own in seconds.items()}
    rows = []
    for name, own in a_step.items():
        system = name.rpartition(" ")[2] if "," in name else name
        ratio = side_by_side.times(own, a_step[system]) if name != system else (None,) * 3
        goal = GOALS["pynamicalsys"] if name.startswith("pynamicalsys") and system == "henon" else None
        rows.append((name if "," in name else f"ours, {name}", 1 / np.median(own), *ratio, goal))
    print(side_by_side.table(("map", "iterations a second", "ours is faster, times", "least", "most", "goal"),
                             rows) + "\n")
    for name, truth in (("henon", HENON), ("logistic", (math.log(2),))):
        found = ours[name]().exponents[0]
        assert np.allclose(found, truth, atol=30 / math.sqrt(n) + 1e-4), (name, found)
    return {"iterations_a_second": {name: float(np.median(1 / own)) for name, own in a_step.items()}}


def cold_start(options):
    """Seconds in a fresh process."""
    runs = np.array([[float(v) for v in subprocess.check_output([sys.executable, "-c", COLD], text=True).split()]
                     for _ in range(options.repeats)])
    names = ("first call", "first call, of processor", "import and first call",
             "all from the start of Python, of processor")
    print(side_by_side.table(("cold start, s", "median", "least", "goal"), [
        (name, *row, GOALS["cold start, s"]) for name, row in zip(names, np.stack([np.median(runs, 0), runs.min(0)], 1),
                                                                  strict=True)]) + "\n")
    return dict(zip(names, np.median(runs, 0), strict=True))


def short_horizon(options):
    """Bias of the largest exponent, ours and averaged from the start, over random starts."""
    dim, rows, worst = options.dim, [], 0.0
    spectra = {"gap .11": np.append(0.95, np.linspace(0.85, 0.05, dim - 1)),
               "gap .05": np.append(0.95, np.linspace(0.9, 0.05, dim - 1)),
               "gap .01": np.append(0.95, np.linspace(0.94, 0.05, dim - 1)),
               "none: evenly from .95 to .05": np.linspace(0.95, 0.05, dim),
               ".95 x .97^i": 0.95 * 0.97 ** np.arange(float(dim))}
    rng = np.random.default_rng(0)
    for name, multipliers in spectra.items():
        own = torch.from_numpy(multipliers)
        f = LoopMap(lambda x, contexts, own=own: own * x, (dim,))
        exact = np.log(multipliers)
        for k in (1, 8):
            begin = torch.from_numpy(rng.normal(size=(options.starts, dim)))
            s = lyapunov_spectrum(f, begin, n_exponents=k, n_steps=128)
            plain = lyapunov_spectrum(f, begin, n_exponents=k, n_steps=128, discard=0)
            late = plain.log_stretches[:, 96:].mean(1)
            bias, covered = s.exponents.mean(0) - exact[:k], (s.low <= exact[:k]) & (exact[:k] <= s.high)
            rows.append((name, k, *(np.abs(v.mean(0) - exact[:k]).max() for v in (plain.exponents, late)),
                         np.abs(bias).max(), np.abs(s.exponents - exact[:k]).max(), covered.mean(),
                         np.median(s.measurement["discarded"])))
            worst = max(worst, float(np.abs(bias).max()))
    print(side_by_side.table((f"multipliers, {dim} dimensions", "exponents", "bias of all steps", "of the last quarter",
                              "ours", "largest error", "covered", "discarded"), rows) + "\n")
    assert worst <= GOALS["bias"], worst
    return {"worst_bias": worst, "rows": rows}


def ring(size):
    def step(x, contexts):
        y = torch.remainder(1.9 * x, 1)
        return 0.7 * y + 0.15 * (y.roll(1, 1) + y.roll(-1, 1))

    return LoopMap(step, (size,)), coupled_maps.ring(size, 1.9, 0.3).exact["lyapunov"]


def products(dim, n, n_steps, rng):
    matrices = iter([torch.from_numpy(rng.normal(size=(n, dim, dim)) / dim**0.5) for _ in range(n_steps)])
    return LoopMap(lambda x, contexts: (next(matrices) @ x[:, :, None])[:, :, 0], (dim,)), \
        0.5 * (math.log(2 / dim) + digamma((dim - np.arange(dim)) / 2))


def accuracy(options):
    """Errors, and the share of intervals that cover."""
    rng, n, more = np.random.default_rng(1), options.orbits, 1 if options.tiny else 4
    cat = LoopMap(lambda x, c: torch.remainder(torch.stack([2 * x[:, 0] + x[:, 1], x[:, 0] + x[:, 1]], 1), 1), (2,))
    golden = 2 * math.log((1 + math.sqrt(5)) / 2)
    live_henon = LoopMap(lambda x, c: torch.stack([1 - 1.4 * x[:, 0]**2 + x[:, 1], 0.3 * x[:, 0]], 1), (2,))
    chain, chain_exact = ring(64)
    matrices, newman = products(16, n, 250 * more, rng)
    few, few_exact = products(64, 8, 128, rng)
    cases = {
        "henon, 128 steps": (live_henon, rng.uniform(-0.1, 0.1, (n, 2)), HENON, {}),
        "henon": (live_henon, rng.uniform(-0.1, 0.1, (n, 2)), HENON, {"n_steps": 500 * more}),
        "henon, compiled": (henon, rng.uniform(-0.1, 0.1, (n, 2)), HENON,
                            {"n_steps": 25_000 * more, "jacobian": henon_jacobian}),
        "logistic, compiled": (logistic, rng.uniform(0.1, 0.9, (n, 1)), (math.log(2),),
                               {"n_steps": 25_000 * more, "jacobian": logistic_jacobian}),
        "cat map": (cat, rng.uniform(size=(n, 2)), (golden, -golden), {}),
        "ring of 64 beta maps": (chain, rng.uniform(size=(4, 64)), chain_exact, {"n_exponents": 64,
                                                                                "n_steps": 250 * more}),
        "random products, 16d": (matrices, np.zeros((n, 16)), newman, {"n_exponents": 16, "n_steps": 250 * more}),
        "random products, 64d": (few, np.zeros((8, 64)), few_exact, {"n_exponents": 8}),
    }
    rows, figures = [], {}
    for name, (f, begin, exact, settings) in cases.items():
        s = lyapunov_spectrum(f, torch.from_numpy(begin), **settings)
        exact = np.array(exact)[:s.exponents.shape[1]]
        covered = (s.low - 2e-5 * (exact[0] == HENON[0]) - 1e-12 <= exact) & (
            exact <= s.high + 2e-5 * (exact[0] == HENON[0]) + 1e-12)
        away = s.exponents - exact
        rows.append((name, settings.get("n_steps", 128), len(begin), np.abs(away.mean(0)).max(),
                     float(np.sqrt((away**2).mean())), float(np.mean(s.high - s.low) / 2), covered.mean()))
        figures[name] = {"rms_error": rows[-1][4], "covered": float(covered.mean())}
        assert covered.mean() > 0.85, rows[-1]
    print(side_by_side.table(("system", "steps", "orbits", "largest bias", "rms error", "mean half width", "covered"),
                             rows) + "\n")
    return figures


def block(width, tokens=64, heads=8):
    """A transformer block with attention that is written out, and a state."""
    torch.manual_seed(0)
    read, write, up, down = (torch.randn(*shape) / shape[0]**0.5 for shape in (
        (width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)))

    def step(x, contexts):
        own = torch.nn.functional.rms_norm(x, (width,)) @ read
        q, k, v = own.unflatten(-1, (3, heads, -1)).movedim(-4, -2).unbind(-4)  # (n, heads, tokens, features)
        weights = (q @ k.mT / (width / heads)**0.5).softmax(-1)
        x = x + (weights @ v).movedim(-3, -2).flatten(-2) @ write
        x = x + torch.nn.functional.gelu(torch.nn.functional.rms_norm(x, (width,)) @ up) @ down
        return torch.nn.functional.rms_norm(x, (width,))

    return LoopMap(step, (tokens, width), dtype=torch.float32), torch.randn(1, tokens, width)


def shipped(name):
    """A shipped looped model on a prompt of 41 tokens, and its initial state."""
    f = LoopMap.of(nano(name), [list(b"for name in names:\n    total = total + 1\n")])
    return f, f.initial_states()


def cost(options):
    """Seconds of k tangents over those of the forwards of the same map, a tangent and step.

    The orbit itself takes one forward a step, so that one tangent cannot cost less than two by this count; "beyond the
    orbit" leaves that forward out.
    """
    n_steps, rows, figures = 64, [], {}
    problems = {f"block of {options.width} features": block(options.width), "nano-settles": shipped("nano-settles")}
    for name, (f, begin) in problems.items():

        def forwards(f=f, begin=begin):
            x = begin
            for _ in range(n_steps):
                x = f(x)

        tasks = {k: functools.partial(lyapunov_spectrum, f, begin, n_exponents=k, n_steps=n_steps)
                 for k in (1, 2, 4, 8)}
        seconds = side_by_side.in_turn({"forwards": forwards, **tasks}, options.repeats)
        for k in tasks:
            ratio = side_by_side.times(seconds[k] / k, seconds["forwards"])
            beyond = side_by_side.times((seconds[k] - seconds["forwards"]) / k, seconds["forwards"])[0]
            rows.append((name, k, *ratio, beyond, GOALS["forwards a tangent"]))
            figures[f"{name}, {k}"] = {"with the orbit": ratio, "beyond the orbit": beyond}
    print(side_by_side.table(("map", "tangents", "forwards a tangent", "least", "most", "beyond the orbit", "goal"),
                             rows) + "\n")
    return figures


PARTS = (speed, cold_start, short_horizon, accuracy, cost)


def main():
    options = side_by_side.arguments(
        __doc__, iterations=(20_000_000, 20_000, "iterations of ours"), repeats=(5, 1, "rounds"),
        dim=(2048, 256, "dimensions of the short horizon"), starts=(20, 4, "starts of the short horizon"),
        orbits=(200, 20, "orbits of the accuracy part"), width=(512, 32, "features of the block"),
        only=("", "", "one part: " + ", ".join(part.__name__ for part in PARTS)))
    side_by_side.one_thread()
    figures = {"machine": side_by_side.machine()}
    chosen = [part for part in PARTS if options.only in ("", part.__name__)]
    if not chosen:
        raise SystemExit(f"--only must be one of {', '.join(part.__name__ for part in PARTS)}; got {options.only}.")
    for part in chosen:
        began = time.perf_counter()
        figures[part.__name__] = part(options)
        print(f"({part.__name__}: {time.perf_counter() - began:.0f} s)\n", flush=True)
    side_by_side.save(figures, options.save)


if __name__ == "__main__":
    main()
