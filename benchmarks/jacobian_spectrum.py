"""Are spectral radii, operator norms and token spectra right, and what do they cost in applications of the block?

    python benchmarks/jacobian_spectrum.py                  # about two minutes
    python benchmarks/jacobian_spectrum.py --tiny

Three parts, each with its answers checked. "Matrices": maps whose Jacobian is a known matrix, by products alone
(nothing built), beside SciPy's ARPACK on the same products, a Rayleigh quotient after 100 power iterations (what
torchdeq's `power_method` computes; torchdeq itself too, where it is installed) and one random probe (what a published
penalty calls spectral radius). "Model": a shipped looped model at its fixed point against its dense Jacobian, products
counted, and timed in turn with forwards. "Rates": the rate at which recorded orbits of its tokens
come to rest, where its interval is narrow, against the spectral radius at the limit.
"""

import itertools
import math

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import side_by_side
import torch

from dynloop import Trajectories, contraction_rate
from dynloop.maps.cycle_multipliers import cycle_multipliers
from dynloop.maps.jacobian_spectrum import jacobian_spectrum
from dynloop.maps.krylov import by_modulus
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.token_spectrum import token_spectrum
from dynloop.models import nano

GOAL = 1e-6
TEXT = b"for name in names:\n    total = total + 1\n"


def turn(angle):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def matrices(dim):
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    rest = rng.uniform(-0.7, 0.7, dim)
    sheared = 0.3 * rng.normal(size=(dim, dim)) / math.sqrt(dim)
    sheared[:, :2] = 0
    sheared[:2, :2] = [[0.8, 20.0], [0.0, 0.8]]
    inside = {"symmetric": np.diag(np.linspace(0.95, -0.5, dim)),
              "pair, .95 e^(+-.7i)": scipy.linalg.block_diag(0.95 * turn(0.7), np.diag(rest[2:])),
              "pair, .83, period 6": scipy.linalg.block_diag(0.83 * turn(math.pi / 3), np.diag(rest[2:])),
              "+.95 and -.95": np.diag([0.95, -0.95, *rest[2:]]),
              "non-normal": np.diag([0.95, 0.9, 0.85, 0.8, *0.8 * rest[4:]])
              + np.triu(rng.normal(size=(dim, dim)), 2) * 1.5 / dim,
              "sheared plane, .8 and 20": sheared,
              "Ginibre, .8": 0.8 * rng.normal(size=(dim, dim)) / math.sqrt(dim),
              "one mode 1.5, rest .3": np.diag([1.5, *[0.3] * (dim - 1)]),
              "three times .9": np.diag([0.9, 0.9, 0.9, 0.5, *0.5 * rest[4:]])}
    return {name: frame @ a @ frame.T for name, a in inside.items()}


def rayleigh(matrix, rng, iterations=100):
    """|v . J v| after power iterations from a random start."""
    v = rng.normal(size=len(matrix))
    for _ in range(iterations):
        v = matrix @ (v / np.linalg.norm(v))
    v = v / np.linalg.norm(v)
    return abs(v @ matrix @ v)


def torchdeq_radius(matrix):
    """The peer itself, or None."""
    try:
        from torchdeq.loss import power_method
    except ImportError:
        return None
    torch.manual_seed(0)
    j, x = torch.as_tensor(matrix), torch.zeros(1, len(matrix), dtype=torch.float64, requires_grad=True)
    return float(power_method(x @ j.T, x, n_iters=100)[1])


def on_matrices(dim):
    rng = np.random.default_rng(1)
    rows, figures = [], {}
    for name, matrix in matrices(dim).items():
        j = torch.as_tensor(matrix)
        f = LoopMap(lambda x, contexts, j=j: x @ j.T, (dim,))
        k = 2 if name.startswith("sheared") else 4
        m = jacobian_spectrum(f, torch.zeros(1, dim), n_eigenvalues=k, dense_up_to=0)
        exact = np.linalg.eigvals(matrix)
        exact = exact[by_modulus(exact)][:k]
        radius = 0.8 if name.startswith("sheared") else abs(exact[0])
        error = np.abs(np.hypot(m["eigenvalues_real"][0], m["eigenvalues_imag"][0]) - np.abs(exact)).max() / radius
        norm_error = abs(m["operator_norm"][0] / np.linalg.norm(matrix, 2) - 1)
        growth = max(np.linalg.norm(np.linalg.matrix_power(matrix, p), 2) for p in range(1, 33))
        growth_error = abs(m["transient_growth"][0] / growth - 1)
        spent = itertools.count()
        operator = scipy.sparse.linalg.LinearOperator(
            matrix.shape, matvec=lambda v, a=matrix, spent=spent: (next(spent), a @ v)[1], dtype=float)
        theirs = scipy.sparse.linalg.eigs(operator, k=k + 1, return_eigenvectors=False,  # one more: it may cut a pair
                                          v0=np.random.default_rng(2).normal(size=dim))
        arpack = np.abs(np.sort(np.abs(theirs))[::-1][:k] - np.abs(exact)).max() / radius
        powers = [rayleigh(matrix, rng) for _ in range(56)]
        probe = np.linalg.norm(matrix.T @ (v := rng.normal(size=dim))) / np.linalg.norm(v)
        assert m.found.all(), f"{name}: not found"
        assert error <= GOAL, f"{name}: eigenvalues are off by {error:.2g}"
        assert norm_error <= GOAL, f"{name}: the operator norm is off by {norm_error:.2g}"
        assert growth_error <= 1e-3, f"{name}: transient growth is off by {growth_error:.2g}"
        alone = cycle_multipliers(f, torch.zeros(1, 1, dim), n_multipliers=k, dense_up_to=0)  # eigenvalues, no more
        rows.append((name, radius, error, int(alone["n_products"][0]), arpack, next(spent), norm_error, growth_error,
                     float(np.median(powers)), torchdeq_radius(matrix), probe, int(m["n_products"][0])))
        figures[name] = dict(zip(("radius", "error", "products", "arpack_error", "arpack_products", "norm_error",
                                  "growth_error", "rayleigh", "torchdeq", "probe", "products_of_all_numbers"),
                                 rows[-1][1:], strict=True))
    print(side_by_side.table(("Jacobian", "radius", "ours off", "products", "ARPACK off", "products", "norm off",
                              "growth off", "Rayleigh, 100", "torchdeq", "one probe", "all numbers"), rows) + "\n")
    return figures


def settled(f, n_steps):
    h = f.initial_states()
    states = [h]
    for _ in range(n_steps):
        states.append(f(states[-1]))
    return states


def on_a_model(n_tokens, repeats):
    f = LoopMap.of(nano("nano-settles"), [list(TEXT[:n_tokens])])
    h = settled(f, 150)[-1]
    width = f.state_shape[1]
    rng = np.random.default_rng(0)
    v = torch.as_tensor(rng.normal(size=(8, *h.shape)))
    seconds = side_by_side.in_turn({
        "forward": lambda: f(h), "jvp": lambda: f.jvp(h, v[0]), "8 jvps": lambda: f.jvps(h, v),
        "vjp": lambda: f.vjp(h, v[0]), "own-token jvp": lambda: f.own_token_jvps(h, v[:1]),
        "8 own-token jvps": lambda: f.own_token_jvps(h, v)}, repeats)
    cost = {name: side_by_side.times(s, seconds["forward"])[0] for name, s in seconds.items()}
    print(side_by_side.table(("product", "forwards"), cost.items()) + "\n")
    whole = f.jacobian(h)[0].numpy()
    exact = np.linalg.eigvals(whole)
    exact = np.abs(exact[by_modulus(exact)])
    blocks = whole.reshape(n_tokens, width, n_tokens, width)
    own = np.array([np.abs(np.linalg.eigvals(blocks[:, :, t][t])).max() for t in range(n_tokens)])
    rows, figures = [], {"forwards": cost}

    def add(name, ask, off):
        """Ask, check, and time the question against ten forwards."""
        m = ask()
        error, products = off(m), int(m["n_products"][0])
        assert m.found.all(), f"{name}: not found"
        assert error <= GOAL, f"{name}: off by {error:.2g}"
        some = side_by_side.in_turn({"forwards": lambda: [f(h) for _ in range(10)], "asked": ask},
                                    1 if repeats == 1 else 3, warm=False)
        forwards = 10 * side_by_side.times(some["asked"], some["forwards"])[0]
        rows.append((name, error, products, forwards))
        figures[name] = {"error": error, "products": products, "forwards": forwards}

    for k in (1, 4):
        add(f"{k} eigenvalue{'s' if k > 1 else ''}, by products",
            lambda k=k: cycle_multipliers(f, h[None], n_multipliers=k, dense_up_to=0),
            lambda m, k=k: np.abs(np.hypot(m["multipliers_real"][0], m["multipliers_imag"][0])
                                  - exact[:k]).max() / exact[0])
    add("all numbers of jacobian_spectrum, by products", lambda: jacobian_spectrum(f, h, dense_up_to=0),
        lambda m: max(abs(m["spectral_radius"][0] / exact[0] - 1),
                      abs(m["operator_norm"][0] / np.linalg.norm(whole, 2) - 1)))
    add("multipliers, Jacobian built", lambda: cycle_multipliers(f, h[None], dense_up_to=f.dim),
        lambda m: abs(m["multiplier"][0] / exact[0] - 1))
    for name, dense_up_to in (("all tokens' radii, by products", 0), ("all tokens' radii, blocks built", 256)):
        add(name, lambda dense_up_to=dense_up_to: token_spectrum(f, h[None], dense_up_to=dense_up_to),
            lambda m: max(np.abs(m["radius"] / own - 1).max(), abs(m["sequence_radius"][0] / exact[0] - 1)))
    print(side_by_side.table((f"{n_tokens} tokens x {width}", "off, relative", "products", "forwards"), rows) + "\n")
    return figures


def on_rates(n_prompts, n_tokens):
    prompts = [list(TEXT[i:i + n_tokens]) for i in range(n_prompts)]
    f = LoopMap.of(nano("nano-settles"), prompts)
    states = settled(f, 256)
    h = states[-1]
    m = token_spectrum(f, h[None])
    # attention hands the slowest rate on: a token comes to rest like the slowest of those before it, and itself
    slowest = np.maximum.accumulate(m["radius"].reshape(n_prompts, n_tokens), axis=1).ravel()
    at_rest = ((f(h) - h).norm(dim=-1) <= 1e-9 * h.norm(dim=-1)).flatten().numpy()
    orbits = torch.stack(states[:-1], dim=2).flatten(0, 1)  # one a token
    rates = contraction_rate(Trajectories(orbits))
    low, high = side_by_side.interval(rates)
    narrow = high < 1.02 * low  # else the floor came before the slowest mode was alone
    usable = at_rest & rates.found & narrow
    off = np.abs(rates.values[usable] / slowest[usable] - 1)
    figures = {"tokens": int(usable.size), "measurable": int(usable.sum()),
               "within_one_percent": int((off < 0.01).sum()), "median": float(np.median(off)),
               "largest": float(off.max())}
    print(f"rates: {figures['measurable']} of {figures['tokens']} tokens measurable to 2 %, "
          f"{figures['within_one_percent']} of these within 1 % of the spectral radius; off by {figures['median']:.2g} "
          f"(median), {figures['largest']:.2g} (largest)\n")
    return figures


def main():
    options = side_by_side.arguments(__doc__, dim=(256, 64, "dimensions of the matrices"),
                                     tokens=(8, 3, "tokens of the model's prompt"),
                                     repeats=(15, 1, "rounds of timing"))
    side_by_side.one_thread()
    figures = {"matrices": on_matrices(options.dim), "model": on_a_model(options.tokens, options.repeats),
               "rates": on_rates(1 if options.tiny else 4, options.tokens), "machine": side_by_side.machine()}
    side_by_side.save(figures, options.save)


if __name__ == "__main__":
    main()
