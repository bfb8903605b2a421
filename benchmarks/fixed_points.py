"""Are all fixed points found, none invented, with fewer block evaluations than iteration, and faster than the peers?

    python benchmarks/fixed_points.py --save benchmarks/results/fixed_points.json        # some 3 minutes with peers
    python benchmarks/fixed_points.py --only speed
    python benchmarks/fixed_points.py --tiny

Four parts, each with its answers checked: "models" (the shipped nano models in float64), "networks" (tanh networks with
planted points, and small ones against brute force), "evaluations" (beside plain iteration, by spectral radius) and
"speed" (a random GRU of width 256 from 64 starts, to a residual of 1e-6 in float32 and of 1e-10 in float64). Peers are
torchdeq (pip install torchdeq; all its solvers, a row each) and fixed-point-finder with its defaults (GitHub,
mattgolub/fixed-point-finder: its folder on PYTHONPATH). All take turns in every round, fixed-point-finder only once;
quoted is the median of the rounds' ratios with the least and the most. Without peers the benchmark runs and says so.
"""

import contextlib
import functools
import importlib.util
import io
import math

import numpy as np
import side_by_side
import torch
from scipy.optimize import root

from dynloop.maps import LoopMap
from dynloop.maps.fixed_point import METHODS, find_fixed_points
from dynloop.models import nano

PROMPTS = ("def f(x):\n", "import os\n", "for i in (", "class A(B)", "return x +", "print(len(", "try:\n    y",
           "while True")
TIMES_TORCHDEQ, TIMES_FINDER = 1.5, 300  # goals


def normal(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).normal(size=shape))


def residuals(f, found):
    """max ||F(x) - x|| of the points, evaluated here."""
    if not found.n_points:
        return None
    away = f(found.points, torch.as_tensor(found.contexts)) - found.points
    return float(torch.linalg.vector_norm(away.flatten(1), dim=1).max())


def models(options):
    """From `starts` starts spread over prompts; a point a prompt where the loop settles."""
    rows, figures = [], {}
    for name in ("nano-settles", "nano-random-start", "nano-drifts"):
        n_prompts = min(len(PROMPTS), options.starts)
        model = nano(name)
        f = LoopMap.of(model, torch.tensor([model.encode(p) for p in PROMPTS[:n_prompts]]))
        starts = normal(options.starts, *f.state_shape)
        for method in METHODS:
            if method == "newton_krylov" and name == "nano-drifts":
                continue
            settles = name != "nano-drifts"
            found = find_fixed_points(f, starts, method=method, max_evaluations=options.budget if settles else 100)
            m, residual = found.measurement, residuals(f, found)
            rows.append((name, method, found.n_points, int(m.found.sum()), residual, np.nanmedian(m["evaluations"])))
            figures[f"{name}, {method}"] = dict(zip(
                ("prompts", "starts", "points", "starts_found", "residual", "evaluations"),
                (n_prompts, options.starts, *rows[-1][2:]), strict=True))
            assert found.n_points == (n_prompts if settles else 0), (name, method, found)
            assert m.found.all() == settles
            assert residual is None or residual <= 1e-10
    head = ("model", "method", "points", "starts found", "residual", "evaluations a start")
    print(side_by_side.table(head, rows) + "\n")
    return figures


def network(weight, bias):
    w, b = torch.as_tensor(weight), torch.as_tensor(bias)
    return LoopMap(lambda x, contexts: torch.tanh(x @ w.T + b), (len(bias),))


def planted(n_points, dim, seed):
    """A symmetric tanh network with 2 n known stable points: W p = artanh p for each."""
    rng = np.random.default_rng(seed)
    points = np.tanh(1.5) * np.sign(rng.normal(size=(n_points, dim)))
    return 1.5 / np.tanh(1.5) * points.T @ np.linalg.pinv(points).T, np.concatenate([points, -points])


def brute_force(weight, bias, n):
    rng, found = np.random.default_rng(1), []
    for start in rng.uniform(-1, 1, size=(n, len(bias))):
        at = root(lambda x: np.tanh(weight @ x + bias) - x, start, tol=1e-13,
                  jac=lambda x: (1 - np.tanh(weight @ x + bias) ** 2)[:, None] * weight - np.eye(len(bias))).x
        if np.linalg.norm(np.tanh(weight @ at + bias) - at) < 1e-11 and \
                all(np.linalg.norm(at - p) > 1e-6 for p in found):
            found.append(at)
    return np.array(found).reshape(-1, len(bias))


def networks(options):
    """Known points that were found, and points that are none."""
    rows, figures = [], {}
    problems = {}
    for seed in range(options.seeds):
        weight, known = planted(6, 100, seed)
        near = known[np.arange(64) % len(known)]
        problems[f"planted, 100 units, {seed}"] = (
            weight, np.zeros(100), known, near + 0.3 * np.random.default_rng(seed).normal(size=near.shape), True)
        for dim in (1, 2, 3, 5):
            rng = np.random.default_rng(seed)
            weight = 2.5 * rng.normal(size=(dim, dim)) / math.sqrt(dim) + 1.5 * np.eye(dim)
            bias = 0.1 * rng.normal(size=dim)
            problems[f"brute force, {dim} units, {seed}"] = (
                weight, bias, brute_force(weight, bias, options.brute), rng.uniform(-1, 1, size=(64, dim)), False)
    for name, (weight, bias, known, starts, stable) in problems.items():
        f, row = network(weight, bias), [name, len(known)]
        for method in METHODS:
            found = find_fixed_points(f, torch.as_tensor(starts), method=method)
            points, residual = found.points.numpy(), residuals(f, found)
            apart = np.linalg.norm(known[:, None] - points, axis=-1)
            reached = int((apart.min(1, initial=1.0) < 1e-8).sum())
            false = 0
            for p, own in enumerate(points):
                again = root(lambda x: np.tanh(weight @ x + bias) - x, own, tol=1e-14).x  # noqa: B023
                false += int(apart[:, p].min() > 1e-8 and np.linalg.norm(again - own) > 1e-7)
            row += [reached, false]
            figures[f"{name}, {method}"] = {"known": len(known), "found": reached, "points": found.n_points,
                                            "false": false, "residual": residual}
            assert false == 0, (name, method)
            assert residual is None or residual <= 1e-10
            assert reached == len(known) or method != ("anderson" if stable else "newton_krylov"), (name, method)
        rows.append(row)
    head = ("network", "known", *(f"{m}: {w}" for m in METHODS for w in ("found", "false")))
    print(side_by_side.table(head, rows) + "\n")
    return figures


def gru(gain, width, dtype):
    torch.manual_seed(0)
    layer = torch.nn.GRU(1, width, batch_first=True).to(dtype).requires_grad_(False)
    layer.weight_hh_l0.mul_(gain)
    return layer


def as_map(layer):
    size, dtype = layer.hidden_size, layer.weight_hh_l0.dtype
    weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0]
    nothing = torch.zeros(4096, 1, dtype=dtype)
    return LoopMap(lambda x, contexts: torch.gru_cell(nothing[:len(x)], x, *weights), (size,), dtype=dtype)


def radius(f, found):
    """Spectral radius at the first point."""
    point = found.points[0]
    jacobian = torch.func.jacrev(lambda x: f.function(x[None], torch.zeros(1, dtype=torch.int64))[0])(point)
    return float(torch.linalg.eigvals(jacobian).abs().max())


def evaluations(options):
    """Evaluations a start, certificates included, beside plain iteration."""
    problems = {}
    for rho in (0.5, 0.8, 0.9, 0.98, 0.995):
        for kind in ("symmetric", "random"):
            a = normal(64, 64).numpy()
            a = a + a.T if kind == "symmetric" else a
            a = torch.as_tensor(a * rho / np.abs(np.linalg.eigvals(a)).max())
            b = normal(64, seed=1)
            problems[f"affine, {kind}, {rho}"] = LoopMap(lambda x, contexts, a=a, b=b: x @ a.T + b, (64,))
    for gain in (1.0, 1.2):
        problems[f"tanh network, gain {gain}"] = network(gain * normal(100, 100).numpy() / 10,
                                                         0.5 * normal(100, seed=1).numpy())
    for gain in (1.0, 2.0, 3.0):
        problems[f"GRU, gain {gain}"] = as_map(gru(gain, 64, torch.float64))
    rows, figures = [], {}
    for name, f in problems.items():
        starts, counts = normal(options.starts, *f.state_shape), []
        for method in ("iteration", "anderson"):
            found = find_fixed_points(f, starts, method=method, max_evaluations=20 * options.budget)
            counts.append(float(found.measurement["evaluations"].mean()))
            assert found.measurement.found.all(), (name, method, found)
        rho = radius(f, found)
        rows.append((name, rho, *counts, counts[0] / counts[1]))
        figures[name] = dict(zip(("radius", "iteration", "anderson", "times"), rows[-1][1:], strict=True))
        assert rho < 0.8 or counts[1] < counts[0], name
    print(side_by_side.table(("map", "spectral radius", "iteration", "anderson", "times fewer"), rows) + "\n")
    return figures


def finder(layer, starts):
    """fixed-point-finder with its defaults; without its printing."""
    from FixedPointFinderTorch import FixedPointFinderTorch

    with contextlib.redirect_stdout(io.StringIO()):
        unique, _ = FixedPointFinderTorch(layer, verbose=False).find_fixed_points(
            starts.numpy().copy(), np.zeros((1, 1), dtype=np.float32))
    return torch.as_tensor(unique.xstar)


def speed(options):
    """One problem, all solvers in turn."""
    missing = [name for name, module in (("torchdeq", "torchdeq"), ("fixed-point-finder", "FixedPointFinderTorch"))
               if importlib.util.find_spec(module) is None]
    figures = {"missing": missing}
    for name in missing:
        print(f"{name} is not installed: no comparison with it.\n")
    for number, (gain, dtype, tolerance) in enumerate(options.problems):
        layer = gru(gain, options.width, dtype)
        f, starts = as_map(layer), normal(64, options.width).to(dtype)
        label = f"gain {gain}, {str(dtype).removeprefix('torch.')}"
        step = functools.partial(f.function, contexts=None)
        tasks = {"plain steps alone": functools.partial(plain, step, starts, tolerance),
                 **{f"ours, {m}": functools.partial(find_fixed_points, f, starts, method=m, tolerance=tolerance)
                    for m in ("anderson", "iteration")}}
        ours = "ours, anderson"
        if "torchdeq" not in missing:
            from torchdeq import get_deq

            for solver in ("fixed_point_iter", "anderson", "broyden"):
                deq = get_deq(f_solver=solver, f_max_iter=500, f_tol=tolerance, f_stop_mode="abs").eval()
                tasks[f"torchdeq, {solver}"] = functools.partial(deq, step, starts)
        with torch.no_grad():
            answers = {name: task() for name, task in tasks.items()}
            seconds = side_by_side.in_turn(tasks, options.repeats, warm=False)
        truth = answers[ours].points
        assert answers[ours].measurement.found.all()
        assert (answers[ours].measurement["residual"] <= tolerance).all()
        rows = []
        for name, answer in answers.items():
            states = answer.states if name.startswith("ours") else answer if name.startswith("plain") else answer[0][-1]
            rows.append([name, 1e3 * np.median(seconds[name]), *side_by_side.times(seconds[name], seconds[ours]),
                         *judged(step, states, truth)])
        if "fixed-point-finder" not in missing and not number:
            told = {}
            with torch.enable_grad():
                took = side_by_side.in_turn(
                    {"finder": lambda: told.update(x=finder(layer, starts)), "ours": tasks[ours]},  # noqa: B023
                    1, warm=False)
            ratio = float(took["finder"][0] / np.median(seconds[ours]))
            rows.append(["fixed-point-finder", 1e3 * took["finder"][0], ratio, ratio, ratio,
                         *judged(step, told["x"], truth)])
        head = ("solver", "ms", "times ours", "least", "most", "residual", "states", "at a fixed point",
                "distinct, 1e-3")
        print(f"GRU of width {options.width}, {label}, residual {tolerance:g}\n\n"
              + side_by_side.table(head, rows) + "\n")
        figures[label] = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows} | {
            "rounds_s": seconds}
        rivals = [row[2] for row in rows if row[0].startswith("torchdeq")]
        if rivals:
            figures[label]["times_torchdeq"] = min(rivals)
            print(f"{min(rivals):.2f} times faster than the best of torchdeq (goal {TIMES_TORCHDEQ})\n")
        if rows[-1][0] == "fixed-point-finder":
            figures["times_finder"] = rows[-1][2]
            print(f"{rows[-1][2]:.0f} times faster than fixed-point-finder (goal {TIMES_FINDER})\n")
    return figures


def plain(step, x, tolerance):
    """The map and nothing else, as often as it takes."""
    while True:
        following = step(x)
        if float(torch.linalg.vector_norm(following - x, dim=1).max()) <= tolerance:
            return x
        x = following


def judged(step, states, truth):
    """Largest residual; how many states, how many of them within 1e-3 of a fixed point, how many distinct ones."""
    with torch.no_grad():
        residual = float(torch.linalg.vector_norm(step(states) - states, dim=1).max())
    apart = torch.cdist(states.double(), truth.double()).min(1).values
    distinct: list[torch.Tensor] = []
    for state in states:
        if all(float((state - other).abs().max()) > 1e-3 for other in distinct):
            distinct.append(state)
    return residual, len(states), int((apart < 1e-3).sum()), len(distinct)


PARTS = {"models": models, "networks": networks, "evaluations": evaluations, "speed": speed}


def main():
    options = side_by_side.arguments(
        __doc__, only=("", "", "one part: " + ", ".join(PARTS)), starts=(64, 4, "starts"),
        budget=(1000, 1000, "evaluations a start"), seeds=(3, 1, "networks of each kind"),
        brute=(500, 200, "starts of the brute-force reference"), width=(256, 32, "of the GRU"),
        repeats=(9, 1, "rounds"))
    single, double = (torch.float32, 1e-6), (torch.float64, 1e-10)
    options.problems = [(1.3, *single), *(() if options.tiny else ((1.3, *double), (2.0, *double), (3.0, *double)))]
    side_by_side.one_thread()
    chosen = [options.only] if options.only else list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        raise SystemExit(f"--only must be one of {', '.join(PARTS)}; got {', '.join(unknown)}.")
    figures = {"machine": side_by_side.machine()}
    for part in chosen:
        print(f"## {part}\n")
        figures[part] = PARTS[part](options)
    side_by_side.save(figures, options.save)


if __name__ == "__main__":
    main()
