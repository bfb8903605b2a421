"""How fast are the analyzers beside the Python tools that answer the same questions, in one run on one thread?

    python benchmarks/speed_against_peers.py                # about 5 minutes with all peers (pip install -e ".[bench]")
    python benchmarks/speed_against_peers.py --only regimes --orbits 200
    python benchmarks/speed_against_peers.py --tiny

Four parts, each with its answers checked: "regimes" (short orbits of six regimes, 1 % noise, 128 x 256: regime and
period together, everything together, each analyzer alone), "recurrence" (one long orbit), "contraction" (planted rates)
and "exponents" (scalar series of 3,000 steps). All take turns in every round; quoted is the median of the rounds'
ratios with the least and the most. Peers see a part of the orbits (they are slow) and are scaled per orbit. Tools for
scalar series get the first principal component, the finding of which is not counted against them.
"""

import functools
import math

import numpy as np
import peers
import side_by_side
import torch

import dynloop
import dynloop.analyzers
from dynloop import Outcome, Trajectories, measure
from dynloop.distances import distances
from synthetic import bank

NOISE, OFFSET, STEPS, DIM = 0.01, 10.0, 128, 256
SIX = {"fixed point": ("contraction", "damped_spiral"), "converging": ("slow_contraction", "slow_spiral"),
       "orbit": ("smooth_cycle", "random_cycle"), "quasi-periodic": ("rotation", "torus"),
       "slider": ("drift", "wobbling_drift"), "chaotic": ("logistic_chaos", "henon", "ikeda", "lozi")}
BARE, DECIDED, ALL = "bare distance pass", "limit_regime + minimal_period", "all analyzers together"
GOALS = {"nolds tuned, exponent": 20, "nolitsa tuned, exponent of states": 75, "PyDMD DMD, multipliers": 50,
         "PyDMD optimised, multipliers": 100}  # times DECIDED
GOAL_MS = {DECIDED: 0.3, "contraction_rate": 1.0}


def here():
    return {name: getattr(dynloop, name) for name in dynloop.analyzers.__all__}


def six_regimes(n):
    """n orbits, the regimes in turn: states, labels, regime and planted period of each."""
    rng = np.random.default_rng(0)
    a_regime, states, periods = -(-n // len(SIX)), [], []
    for families in SIX.values():
        parts = [bank.record(family, own, STEPS, rng, dim=DIM, noise=NOISE, offset=OFFSET)
                 for i, family in enumerate(families) if (own := len(range(i, a_regime, len(families))))]
        states.append(torch.cat([orbits.states for orbits, _ in parts]))
        periods.append(np.concatenate([period for _, period in parts]))
    o = np.arange(n)
    return torch.stack(states, dim=1).reshape(-1, STEPS, DIM)[:n].contiguous(), {"prompt": o // 4, "layer": o % 4}, \
        np.array([*SIX] * a_regime)[:n], np.stack(periods, axis=1).ravel()[:n]


def distance_pass(states):
    for chunk in Trajectories(states).chunks():
        distances(chunk).squared  # noqa: B018 (filled when asked for)


def regimes(options):
    """Six regimes: everything of ours on all orbits, every peer on the first few."""
    n, n_peer = options.orbits, min(options.peer_orbits, options.orbits)
    states, labels, truth, planted = six_regimes(n)
    found = here()
    decided = [found[name] for name in ("limit_regime", "minimal_period") if name in found]

    def run(some):
        return measure(Trajectories(states, labels=labels), some)

    tasks = {BARE: lambda: distance_pass(states)}
    if len(decided) == 2:
        tasks[DECIDED] = lambda: run(decided)
    tasks[ALL] = lambda: run(found.values())
    tasks |= {name: functools.partial(run, [one]) for name, one in found.items()}
    ours = list(tasks)
    wide = states[:n_peer].double().numpy()
    series = [peers.first_component(one) for one in wide]
    for question, data in (("exponent", series), ("exponent of states", wide), ("multipliers", wide),
                           ("dimension", series), ("dimension of states", wide)):
        tasks |= {f"{name}, {question}": functools.partial(peers.each, function, data)
                  for name, function in peers.asked(question).items()}
    if "nolds tuned" in peers.asked("exponent"):
        tasks["nolds tuned, exponent by a plain line"] = functools.partial(
            peers.each, functools.partial(peers.nolds_exponent_tuned, fit="poly"), series)
    if not peers.missing("pyunicorn"):
        tasks["pyunicorn, recurrence"] = functools.partial(
            peers.each, functools.partial(peers.pyunicorn_recurrence, threshold=0.5), wide)
    seconds = side_by_side.in_turn(tasks, options.repeats)
    ms = {name: 1e3 * s / (n if name in ours else n_peer) for name, s in seconds.items()}

    answers = dict(zip(found, run(found.values()), strict=True))
    rows = [(name, np.median(ms[name]), side_by_side.times(ms[name], ms[BARE])[0], GOAL_MS.get(name),
             _answered(answers.get(name))) for name in ours]
    print(side_by_side.table(("ours", "ms an orbit", "of a bare pass", "goal, ms", "answered"), rows) + "\n")
    yardstick = DECIDED if DECIDED in ms else "limit_regime_blayney"
    rows = []
    for name in (name for name in tasks if name not in ours):
        ratio, everything = (side_by_side.times(ms[name], ms[of]) for of in (yardstick, ALL))
        rows.append((name, np.median(ms[name]), *ratio, GOALS.get(name), everything[0]))
    print(side_by_side.table(("peer", "ms an orbit", f"times {yardstick}", "least", "most", "goal", f"times {ALL}"),
                             rows) + "\n")
    checks = _regime_checks(answers, truth, planted)
    false = {f"{name}, {question}": _false_chaos(function, data, truth[:n_peer])
             for question, data in (("exponent", series), ("exponent of states", wide))
             for name, function in peers.asked(question).items()}
    if false:
        print(side_by_side.table(("peer", *(f"{r}: exponent > .05" for r in SIX)),
                                 [(name, *shares.values()) for name, shares in false.items()]) + "\n")
    return {"orbits": n, "peer_orbits": n_peer, "ms_an_orbit": {name: float(np.median(v)) for name, v in ms.items()},
            "rounds_ms": ms, **checks, "called_chaotic": false}


def _answered(m):
    return None if m is None else f"{m.found.mean():.0%}"


def _regime_checks(answers, truth, planted):
    """Shares that are right; what `limit_regime` promises on easy data is asserted."""
    found = {}
    if "limit_regime" in answers:
        said = answers["limit_regime"]["regime"]
        found["regime_right"] = float((said == truth).mean())
        found["called_chaotic_and_is_not"] = float(((said == "chaotic") & (truth != "chaotic")).mean())
        assert found["called_chaotic_and_is_not"] <= 0.02, found
        assert found["regime_right"] >= 0.8, found
    if "minimal_period" in answers:
        told = np.nan_to_num(answers["minimal_period"]["period"])
        found["period_exact"] = float((told == planted)[planted > 0].mean())
        found["period_of_the_aperiodic"] = float((told > 1)[planted == 0].mean())
        assert found["period_exact"] >= 0.9, found
    print("checks: " + (", ".join(f"{name} {value:.4g}" for name, value in found.items()) or "none yet") + "\n")
    return found


def _false_chaos(function, data, truth):
    above = np.array([isinstance(e, float) and e > 0.05 for e in peers.each(function, data)])
    return {regime: float(above[truth == regime].mean()) for regime in SIX if (truth == regime).any()}


def lorenz(n_steps, *, h=0.05, transient=400):
    """States (n_steps, 3) on the attractor, h apart; Runge-Kutta with steps of h / 10."""
    def field(s):
        return np.array([10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]])

    s, k, states = np.array([1.0, 2.0, 20.0]), h / 10, np.empty((n_steps, 3))
    for t in range(-transient, n_steps):
        if t >= 0:
            states[t] = s
        for _ in range(10):
            a = field(s)
            b = field(s + k / 2 * a)
            c = field(s + k / 2 * b)
            s = s + k / 6 * (a + 2 * b + 2 * c + field(s + k * c))
    return states


def recurrence(options):
    """One orbit of the Lorenz flow, standardised, threshold 0.4: recurrence quantification, equal to 1e-12."""
    if "recurrence_quantification" not in here():
        print("recurrence: recurrence_quantification does not exist yet\n")
        return {}
    rows, figures = [], {}
    for n_steps in (400,) if options.tiny else (2000, 5000):
        states = lorenz(n_steps)
        states = (states / states.std(0)).astype("float32").astype(float)  # a peer reads float32
        orbit = Trajectories(states[None])
        ours = functools.partial(dynloop.recurrence_quantification, orbit, threshold=0.4, scale="absolute",
                                 theiler_window=0)
        tasks = {"ours": ours}
        if not peers.missing("pyunicorn"):
            tasks["pyunicorn"] = functools.partial(peers.pyunicorn_recurrence, states, threshold=0.4)
        seconds = side_by_side.in_turn(tasks, options.repeats)
        m = ours()
        figures[n_steps] = {name: float(np.median(s)) for name, s in seconds.items()}
        if "pyunicorn" in tasks:
            theirs = tasks["pyunicorn"]()
            off = {name: abs(float(m[name][0]) / value - 1) for name, value in theirs.items()}
            assert max(off.values()) < 1e-12, off
            ratio = side_by_side.times(seconds["pyunicorn"], seconds["ours"])
            figures[n_steps] |= {"times": ratio, "largest_difference": max(off.values())}
            rows.append((n_steps, 1e3 * figures[n_steps]["ours"], 1e3 * figures[n_steps]["pyunicorn"], *ratio, 8,
                         max(off.values())))
        else:
            rows.append((n_steps, 1e3 * figures[n_steps]["ours"], *[None] * 6))
    print(side_by_side.table(("steps", "recurrence_quantification, ms", "pyunicorn, ms", "times", "least", "most",
                              "goal", "largest relative difference"), rows) + "\n")
    return figures


def planted(n, *, noise, kind, seed=0):
    """n float32 orbits of 12 modes, the slowest of known modulus, offset 10: states, moduli."""
    rng = np.random.default_rng(seed)
    slowest = rng.uniform(0.6, 0.95, n)
    gap = {"isolated": 0.5, "crowded": 0.85, "complex": 0.5}[kind]
    below = np.minimum(gap ** np.arange(1, 12), 1)
    multipliers = slowest[:, None] * np.concatenate([np.ones(1), below]) + 0j
    if kind == "complex":
        turn = np.exp(1j * rng.uniform(0.3, 2.8, n))
        multipliers[:, 0], multipliers[:, 1] = slowest * turn, slowest * turn.conj()
    amplitudes = rng.choice([-1, 1], (n, 12)) + 0j
    if kind == "complex":
        amplitudes[:, 0] = np.exp(1j * rng.uniform(0, 6.28, n))
        amplitudes[:, 1] = amplitudes[:, 0].conj()
    waves = (amplitudes[:, None] * multipliers[:, None] ** np.arange(STEPS)[:, None])
    waves = np.concatenate([waves.real, waves.imag], axis=2) if kind == "complex" else waves.real
    frames = np.linalg.qr(rng.standard_normal((n, DIM, waves.shape[2])))[0]
    end = rng.standard_normal((n, 1, DIM))
    states = waves @ frames.transpose(0, 2, 1) + 10 * end / np.linalg.norm(end, axis=2, keepdims=True)
    states += noise / math.sqrt(DIM) * rng.standard_normal(states.shape)
    return torch.from_numpy(states.astype("float32")), slowest


def contraction(options):
    """Planted rates: error of contraction_rate beside DMD, and what it costs."""
    n = options.rates
    rows, figures = [], {}
    kinds = ("isolated",) if options.tiny else ("isolated", "crowded", "complex")
    for kind in kinds:
        for noise, dtype in ((1e-3, torch.float32), (1e-2, torch.float32), (0.0, torch.bfloat16)):
            states, true = planted(n, noise=noise, kind=kind)
            states = states.to(dtype)
            tasks = {"contraction_rate": lambda states=states: dynloop.contraction_rate(Trajectories(states))}
            wide = states.double().numpy()
            answers = {}
            for name, function in peers.asked("multipliers").items():
                tasks[name] = functools.partial(peers.each, function, wide)
                found = peers.each(lambda x, f=function: peers.contraction(f(x)), wide)
                answers[name] = np.array([np.nan if isinstance(e, str) else e for e in found])
            seconds = side_by_side.in_turn(tasks, options.repeats if kind == "isolated" else 1)
            m = tasks["contraction_rate"]()
            answers = {"contraction_rate": m["rate"], **answers}
            form = "bfloat16" if dtype is torch.bfloat16 else f"noise {noise:g}"
            for name, rate in answers.items():
                off = np.abs(np.log(rate) / np.log(true) - 1)
                covered = None
                if name == "contraction_rate" and (between := side_by_side.interval(m)):
                    inside = (between[0] <= true) & (true <= between[1])
                    covered = f"{inside[m.found].mean():.0%}"
                ms = 1e3 * np.median(seconds[name]) / n
                ratio = side_by_side.times(seconds[name], seconds["contraction_rate"])[0]
                rows.append((kind, form, name, f"{np.isfinite(rate).mean():.0%}", np.nanmedian(off),
                             np.nanquantile(off, 0.9), covered, ms, None if name == "contraction_rate" else ratio))
                figures[f"{kind}, {form}, {name}"] = {"median_error": float(np.nanmedian(off)), "ms_an_orbit": ms,
                                                      "answered": float(np.isfinite(rate).mean()), "times": ratio}
            if kind == "isolated" and dtype is torch.float32 and side_by_side.interval(m):
                assert np.nanmedian(np.abs(np.log(m["rate"]) / np.log(true) - 1)) < 0.05
    print(side_by_side.table(("modes", "states", "who", "answered", "median error of ln rate", "90 % quantile",
                              "95 % interval covers", "ms an orbit", "times ours"), rows) + "\n")
    return figures


def series(n_steps):
    """Name -> (series (T,), true exponent a step, embedding and fit that suit it, goal)."""
    x = np.empty(n_steps)
    x[0] = 0.3123
    h = np.empty((n_steps, 2))
    h[0] = 0.1, 0.1
    for t in range(n_steps - 1):
        x[t + 1] = 4 * x[t] * (1 - x[t])
        h[t + 1] = 1 - 1.4 * h[t, 0] ** 2 + h[t, 1], 0.3 * h[t, 0]
    return {"logistic r=4": (x, math.log(2), {"dim": 2, "lag": 1, "separation": 5, "length": 7}, 50),
            "Henon": (h[:, 0], 0.41922, {"dim": 2, "lag": 1, "separation": 5, "length": 8}, 50),
            "Lorenz, steps of .05": (lorenz(n_steps)[:, 0], 0.9056 * 0.05,
                                     {"dim": 3, "lag": 3, "separation": 30, "length": 40}, 15)}


def exponents(options):
    """Scalar series in delay coordinates: largest exponent and its cost."""
    rows, figures = [], {}
    for system, (x, true, tuned, goal) in series(options.steps).items():
        orbit = Trajectories(peers.delayed(x, tuned["dim"], tuned["lag"])[None])
        tasks = {}
        if "lyapunov_from_data" in here():
            tasks["lyapunov_from_data"] = functools.partial(dynloop.lyapunov_from_data, orbit)
        for name, function in peers.asked("exponent").items():
            settings = tuned if "tuned" in name else {}
            tasks[name] = functools.partial(peers.attempt, function, x, **settings)
        if "nolds tuned" in tasks:
            tasks["nolds tuned, plain fit"] = functools.partial(peers.attempt, peers.nolds_exponent_tuned, x, **tuned,
                                                                fit="poly")
        seconds = side_by_side.in_turn(tasks, max(1, options.repeats // 2))
        for name, task in tasks.items():
            answer, outcome = task(), None
            if name == "lyapunov_from_data":
                answer, outcome = float(answer.values[0]), answer.outcomes[0]
            ratio = None if "lyapunov_from_data" not in tasks or name == "lyapunov_from_data" else \
                side_by_side.times(seconds[name], seconds["lyapunov_from_data"])
            error = None if isinstance(answer, str) else answer / true - 1
            rows.append((system, name, answer if outcome in (None, Outcome.FOUND) else outcome.value,
                         None if error is None else f"{100 * error:+.1f} %", 1e3 * np.median(seconds[name]),
                         *(ratio or (None,) * 3), goal if name == "nolds tuned" else None))
            figures[f"{system}, {name}"] = {"answer": answer, "relative_error": error, "times": ratio,
                                            "ms": 1e3 * float(np.median(seconds[name]))}
            if name == "lyapunov_from_data" and not options.tiny:
                assert abs(error) < 0.3, f"{system}: {answer} for {true}"
    if rows:
        print(side_by_side.table(("series", "who", "exponent", "error", "ms", "times ours", "least", "most", "goal"),
                                 rows) + "\n")
    return figures


PARTS = {"regimes": regimes, "recurrence": recurrence, "contraction": contraction, "exponents": exponents}


def main():
    options = side_by_side.arguments(
        __doc__, orbits=(1000, 24, "orbits of ours"), peer_orbits=(60, 6, "orbits for the peers"),
        rates=(48, 6, "orbits with planted rates"), steps=(3000, 300, "steps of a series"),
        repeats=(5, 1, "rounds"), only=("", "", f"parts, by commas: {', '.join(PARTS)}"))
    side_by_side.one_thread()
    chosen = options.only.split(",") if options.only else list(PARTS)
    before = side_by_side.machine()
    figures = {name: PARTS[name](options) for name in chosen}
    figures |= {"versions": peers.versions(), "machine": before,
                "load_average_after": side_by_side.machine()["load_average"]}
    for name, version in figures["versions"].items():
        print(f"{name}: {version}")
    print(f"load average {before['load_average']} before, {figures['load_average_after']} after")
    side_by_side.save(figures, options.save)


if __name__ == "__main__":
    main()
