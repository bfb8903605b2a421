"""How often does `limit_regime` name a regime that is not there, and how often does it see the one that is?

    python benchmarks/false_alarms.py --orbits 1100000               # seed 0; about 25 minutes on one core
    python benchmarks/false_alarms.py --orbits 300000 --seed 1       # more, on fresh orbits; the counts add up
    python benchmarks/false_alarms.py --add other/confusion.json     # counts that another machine made
    python benchmarks/false_alarms.py --named --orbits 100000        # systems that the rule was not calibrated on
    python benchmarks/false_alarms.py --tiny

Orbits of `synthetic/bank.py`, drawn afresh for every batch: its families by noise (0 to 20 % of the amplitude), length
and number format, in 256 dimensions with an offset of 0 to 10 amplitudes. One batch is in memory. The counts go to
benchmarks/results/confusion.json after every batch, so that an interrupted run goes on where it was; the tables, with
exact (Clopper-Pearson) intervals, to confusion.md beside it. Counts made by another version of the code are refused.
The same orbits go through the published algorithm, and some through tuned nolds (exponent > .05 = chaotic).

The rule is calibrated on the same families (on other seeds). `--named` therefore counts the named systems of
`synthetic/` instead, at 128 steps, for which their regimes are known, into confusion-named.json and .md.

The formats: "float32"; "bfloat16 stored": computed in float32, rounded once when it is recorded; "bfloat16 computed":
rounded in the loop after every step, an error fading by a factor 0 to .95 a step. The share of wrong answers over a
bank is a fact about the bank: real recordings hold the regimes in other proportions and other shapes.
"""

import ast
import collections
import functools
import hashlib
import inspect
import json
import sys
import time
from pathlib import Path

import numpy as np
import peers
import side_by_side
import torch

import dynloop
import synthetic
from dynloop import Trajectories, measure
from dynloop.statistics.share import clopper_pearson
from synthetic import bank, recordings

LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2)
LENGTHS = (64, 128, 256)
FORMATS = ("float32", "bfloat16 stored", "bfloat16 computed")
OFFSETS = (0.0, 1.0, 3.0, 10.0)
REGIMES = ("fixed point", "converging", "orbit", "quasi-periodic", "slider", "chaotic", "diverging", "undetermined")
NO_ANSWER = "no answer"
DIM = 256
A_BATCH, A_NAMED_BATCH = 128, 32  # orbits of one family, or system, in one cell
CELLS = [(level, n_steps, form) for level in LEVELS for n_steps in LENGTHS for form in FORMATS]
NAMED_CELLS = [cell for cell in CELLS if cell[1] == 128]
CHAOS_ABOVE = 0.05
SURE = (0.9, 0.95, 0.99, 0.999)  # below the first no regime is named
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef)
RESULTS = side_by_side.HERE / "results"


@functools.cache
def sources(named):
    """Name -> regime and (n, n_steps, level, form, rng) -> orbits and planted periods, or None where there are none."""
    if not named:
        return {family: (regime, functools.partial(recorded, family)) for family, (regime, _) in bank.FAMILIES.items()}
    return {name: (system.exact["regime"], functools.partial(recorded_system, system))
            for name, system in synthetic.systems().items() if "regime" in system.exact}


@functools.cache
def fingerprint(named):
    """What the counts depend on, comments and docstrings left out: the rule, what it calls, the orbits."""
    asked = analyzers()
    for one in asked.values():  # loads the kernels that they use
        one(Trajectories(torch.randn(2, 64, 4)))
    modules = {name for name in sys.modules if name.startswith("dynloop.kernels.")} | {"dynloop.distances"}
    for one in asked.values():
        modules |= {one.__module__} | {home for value in vars(sys.modules[one.__module__]).values()
                                       if (home := getattr(value, "__module__", None) or "").startswith("dynloop.")}
    modules -= {"dynloop.measurement", "dynloop.measuring", "dynloop.outcome", "dynloop.settings",
                "dynloop.trajectories", "dynloop.buffers"}
    sources(named)  # loads the modules that make them
    makers = [rounded_in_the_loop, recorded, bank]
    if named:
        makers = [recorded_system, *(module for name, module in sorted(sys.modules.items())
                                     if name.startswith("synthetic.") and module is not bank)]
    parts = [*(sys.modules[name] for name in sorted(modules)), *makers, count, answers]
    settings = repr((CELLS, OFFSETS, DIM, CHAOS_ABOVE))
    return hashlib.sha256("".join([settings, *(_bare(inspect.getsource(part)) for part in parts)]
                                  ).encode()).hexdigest()[:16]


def _bare(source):
    """Code without its comments and docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return ast.dump(tree)


def rounded_in_the_loop(states, rng):
    """Errors of bfloat16 that come back: x = round(planned + kept * error of the last step), states (n, T, D)."""
    kept = torch.from_numpy(rng.uniform(0, 0.95, (len(states), 1)).astype("float32"))
    by_step = states.transpose(0, 1).contiguous()
    error = torch.zeros_like(by_step[0])
    for planned in by_step:
        held = (planned + kept * error).bfloat16().float()
        error = held - planned
        planned.copy_(held)
    return by_step.transpose(0, 1).contiguous()


def recorded(family, n, n_steps, level, form, rng):
    """n orbits of a family as a recording, and their planted periods; offsets of 0 to 10 amplitudes."""
    orbits, planted = bank.record(family, n, n_steps, rng, dim=DIM, offset=0.0)
    states, resolution = orbits.states.float(), orbits.resolution
    if orbits.states.dtype is torch.float32:  # else the family has rounded its own loop, offset and all
        shift = rng.standard_normal((n, 1, states.shape[2]), dtype="float32")
        shift *= rng.choice(OFFSETS, (n, 1, 1)) / np.linalg.norm(shift, axis=2, keepdims=True)
        states.add_(torch.from_numpy(shift.astype("float32")))
        if form == "bfloat16 computed":
            states, resolution = rounded_in_the_loop(states, rng), torch.finfo(torch.bfloat16).eps
    if level:  # torch draws normal numbers three times as fast as NumPy
        source = torch.Generator().manual_seed(int(rng.integers(2**62)))
        states.add_(torch.empty_like(states).normal_(generator=source), alpha=level / states.shape[2]**0.5)
    return Trajectories(states if form == "float32" else states.bfloat16(), resolution=resolution), planted


def recorded_system(system, n, n_steps, level, form, rng):
    """The same of a named system; none where the format changes its answer, or three periods exceed the record."""
    in_loop, period = form == "bfloat16 computed", system.exact.get("period", 0)
    if (in_loop and system.float64_only) or period > n_steps // 3:
        return None
    try:
        orbits = recordings.record(system, n, n_steps, dim=max(DIM, system.dim), noise=level, rng=rng,
                                   offset=float(rng.choice(OFFSETS)), computed_in="bfloat16" if in_loop else None,
                                   storage="float32" if form == "float32" else "bfloat16")
    except ValueError:  # orbits at rest have no amplitude to set a noise by
        return None
    return orbits, np.full(n, period)


def analyzers():
    """The regime and, where there is one, the period; the published algorithm beside them."""
    wanted = ["limit_regime" if hasattr(dynloop, "limit_regime") else "limit_regime_blayney", "minimal_period",
              "limit_regime_blayney"]
    return {name: getattr(dynloop, name) for name in wanted if hasattr(dynloop, name)}


def answers(m):
    """The answer for each orbit."""
    return [str(v) or NO_ANSWER for v in m["regime"]]


def count(cell, seed, unit, n, n_peer, named):
    """Counts of one cell of the table over all families: family -> what -> answer -> orbits."""
    level, n_steps, form = cell
    found, asked = {}, analyzers()
    for i, (family, (regime, make)) in enumerate(sources(named).items()):
        rng = np.random.default_rng([seed, unit, i])
        made = make(n, n_steps, level, form, rng)
        if made is None:
            continue
        orbits, planted = made
        measured = dict(zip(asked, measure(orbits, asked.values()), strict=True))
        ours = measured.get("limit_regime", measured["limit_regime_blayney"])
        of = found[family] = {"regime": collections.Counter(answers(ours)),
                              "published": collections.Counter(answers(measured["limit_regime_blayney"]))}
        if "confidence" in ours.variables:
            right = np.array(answers(ours)) == regime
            sure = np.searchsorted(SURE, np.nan_to_num(ours["confidence"]), side="right")
            of["confidence"] = collections.Counter(f"{b} {'right' if r else 'wrong'}" for b, r in
                                                   zip(sure.tolist(), right.tolist(), strict=True))
        if "minimal_period" in measured:
            period = measured["minimal_period"]
            told = np.where(period.found, np.nan_to_num(period["period"]), 0)
            of["period"] = collections.Counter(np.select(
                [told <= 1, told == planted, planted > 0], ["none", "exact", "another"], "false").tolist())  # 1: rest
        if n_peer and not peers.missing("nolds"):
            of["nolds"] = collections.Counter(map(_chaotic, orbits.states[:n_peer].float().numpy()))
    return {family: {what: dict(c) for what, c in of.items()} for family, of in found.items()}


def _chaotic(states):
    exponent = peers.attempt(peers.nolds_exponent_tuned, peers.first_component(states), fit="poly")
    return NO_ANSWER if isinstance(exponent, str) or not np.isfinite(exponent) else \
        "chaotic" if exponent > CHAOS_ABOVE else "other"


def name_of(cell):
    return f"{cell[0]:g} | {cell[1]} | {cell[2]}"


def added(total, more):
    """Nested counts, summed: `more` into `total`."""
    for key, value in more.items():
        if isinstance(value, dict):
            added(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
    return total


def run(state, *, orbits, seed, cells=None, n=None, n_peer=4, file=None, progress=None):
    """Go on counting until this seed has `orbits`; whole batches, each cell in turn."""
    cells = cells or (NAMED_CELLS if state["named"] else CELLS)
    n = n or (A_NAMED_BATCH if state["named"] else A_BATCH)
    own = state["seeds"].setdefault(str(seed), {"a_batch": n, "units": 0, "orbits": 0, "seconds": 0.0, "counts": {}})
    if own["a_batch"] != n:
        raise SystemExit(f"seed {seed} was counted in batches of {own['a_batch']}; go on with these, or take a new "
                         "seed.")
    while own["orbits"] < orbits:
        unit = own["units"]
        began = time.perf_counter()
        cell = cells[unit % len(cells)]
        counts = count(cell, seed, unit, n, n_peer, state["named"])
        added(own["counts"].setdefault(name_of(cell), {}), counts)
        own.update(units=unit + 1, orbits=own["orbits"] + sum(sum(of["regime"].values()) for of in counts.values()),
                   seconds=own["seconds"] + time.perf_counter() - began)
        if file:
            side_by_side.save(state, file, indent=None)
        if progress:
            print(f"\r{own['orbits']} orbits, {1e3 * own['seconds'] / own['orbits']:.2f} ms each", end="",
                  file=progress, flush=True)
    return state


def total(state):
    """Cell -> family -> what -> answer -> orbits, over all seeds."""
    counts = {}
    for own in state["seeds"].values():
        added(counts, own["counts"])
    return counts


def pooled(counts, what, truth, *, keep=lambda level, n_steps, form: True):
    """Truth -> answer -> orbits over the cells that `keep` takes; `truth` tells it of each family."""
    found = {}
    for cell, families in counts.items():
        level, n_steps, form = cell.split(" | ")
        if keep(float(level), int(n_steps), form):
            for family, of in families.items():
                added(found.setdefault(truth[family], {}), of.get(what, {}))
    return found


def share(events, n):
    """A share in percent with its exact 95 % interval."""
    if not n:
        return None
    low, high = clopper_pearson(events, n, 0.95)
    return f"{100 * events / n:.3g} % [{100 * low:.3g}, {100 * high:.3g}]"


def false_alarms(matrix, claim):
    """Orbits of which `claim` was said though it is not so, of all of which it is not so."""
    return (sum(told.get(claim, 0) for truth, told in matrix.items() if truth != claim),
            sum(sum(told.values()) for truth, told in matrix.items() if truth != claim))


def report(state):
    """The tables, as Markdown."""
    counts = total(state)
    n = sum(own["orbits"] for own in state["seeds"].values())
    seconds = sum(own["seconds"] for own in state["seeds"].values())
    rule, truths = state["rule"], {name: regime for name, (regime, _) in sources(state["named"]).items()}

    def by_level(what):
        return {level: pooled(counts, what, truths, keep=lambda v, *_, level=level: v == level) for level in LEVELS}

    at = by_level("regime")
    head = ["", *(f"noise {100 * level:g} %" for level in LEVELS)]
    made_by = "python benchmarks/false_alarms.py" + " --named" * state["named"]
    parts = [f"# How often `{rule}` is right, and how often it names what is not there\n",
             f"{n} synthetic orbits of {len(truths)} "
             f"{'systems (`synthetic/`)' if state['named'] else 'families (`synthetic/bank.py`)'}, seeds "
             f"{', '.join(state['seeds'])}; {1e3 * seconds / max(n, 1):.2f} ms an orbit with generation and peers. "
             f"Made by `{made_by}`; do not edit. Intervals are exact (Clopper-Pearson, 95 %), "
             "for this bank.\n",
             "## Said though it is not so\n",
             "Share of the orbits of all other regimes, lengths and formats pooled.\n",
             side_by_side.table(head, [[claim, *(share(*false_alarms(at[level], claim)) for level in LEVELS)]
                                       for claim in REGIMES if claim != "undetermined"]),
             "\n## Seen where it is\n",
             "Share of the orbits of a regime of which it was said; for the rest see the next table.\n",
             side_by_side.table(head, [[regime, *(share(at[level].get(regime, {}).get(regime, 0),
                                                        sum(at[level].get(regime, {}).values())) for level in LEVELS)]
                                       for regime in REGIMES]),
             "\n## Every answer\n",
             "Orbits by truth (rows) and answer (columns), all lengths and formats.\n"]
    columns = [*REGIMES, "slow", "unknown", NO_ANSWER]
    seen = {answer for matrix in at.values() for told in matrix.values() for answer in told}
    columns = [c for c in columns if c in seen] + sorted(seen - set(columns))
    for level in LEVELS:
        if at[level]:
            parts += [f"Noise {100 * level:g} %:\n", side_by_side.table(
                ["truth", *columns], [[truth, *(at[level][truth].get(c, 0) for c in columns)]
                                      for truth in REGIMES if truth in at[level]]) + "\n"]
    parts += ["## Peers on the same orbits\n"]
    published = by_level("published")
    rows = [[f"published algorithm says {claim}, though it is not so",
             *(share(*false_alarms(published[level], claim)) for level in LEVELS)] for claim in ("orbit", "slider")]
    nolds = by_level("nolds")
    if any(told for matrix in nolds.values() for told in matrix.values()):
        rows += [[f"tuned nolds says chaotic of {truth}",
                  *(share(nolds[level].get(truth, {}).get("chaotic", 0), sum(nolds[level].get(truth, {}).values()))
                    for level in LEVELS)] for truth in REGIMES]
    parts += [side_by_side.table(head, rows)]
    periods = by_level("period")
    if any(told for matrix in periods.values() for told in matrix.values()):
        others = {level: _sum(told for truth, told in periods[level].items() if truth != "orbit") for level in LEVELS}
        orbit = {level: periods[level].get("orbit", {}) for level in LEVELS}
        parts += ["\n## Periods (`minimal_period`)\n", side_by_side.table(head, [
            ["exact, of orbits with a period", *(share(orbit[v].get("exact", 0), sum(orbit[v].values()))
                                                 for v in LEVELS)],
            ["another period, of these", *(share(orbit[v].get("another", 0), sum(orbit[v].values())) for v in LEVELS)],
            ["a period, of orbits without", *(share(others[v].get("false", 0), sum(others[v].values()))
                                              for v in LEVELS)]])]
    sure = _sum(told for matrix in by_level("confidence").values() for told in matrix.values())
    if sure:
        k = [sure.get(f"{b} right", 0) + sure.get(f"{b} wrong", 0) for b in range(len(SURE) + 1)]
        parts += ["\n## Is its confidence what it says?\n", side_by_side.table(
            ["confidence", "orbits", "right"],
            [[f"{low:g} to {high:g}", k[b], share(sure.get(f"{b} right", 0), k[b])]
             for b, (low, high) in enumerate(zip(SURE, [*SURE[1:], 1], strict=True), 1)])]
    parts += ["\n## By length and format\n"]
    rows = []
    for level, n_steps, form in CELLS:
        matrix = pooled(counts, "regime", truths, keep=lambda *c, cell=(level, n_steps, form): c == cell)
        for truth in REGIMES:
            if told := matrix.get(truth):
                rows.append([f"{100 * level:g} %", n_steps, form, truth, sum(told.values()),
                             share(told.get(truth, 0), sum(told.values())),
                             share(*false_alarms(matrix, truth)), *(told.get(c, 0) for c in columns)])
    parts += [side_by_side.table(["noise", "T", "format", "truth", "orbits", "seen", "said though not so", *columns],
                                 rows)]
    parts += ["\n## By family, all noises, lengths and formats\n"]
    families = pooled(counts, "regime", {family: family for family in truths})
    parts += [side_by_side.table(["family", "truth", "seen", *columns], [
        [family, truths[family], share(told.get(truths[family], 0), sum(told.values())),
         *(told.get(c, 0) for c in columns)] for family, told in families.items()])]
    return "\n".join(parts) + "\n"


def _sum(many):
    found = {}
    for one in many:
        added(found, one)
    return found


def fresh(named=False):
    return {"rule": next(iter(analyzers())), "named": named, "made_by": fingerprint(named), "seeds": {},
            "versions": {**peers.versions(), "torch": torch.__version__, "numpy": np.__version__}}


def opened(file, named):
    """Counts so far. Those of other code are refused."""
    path = Path(file)
    if not path.exists():
        return fresh(named)
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["made_by"] != fingerprint(named):
        raise SystemExit(f"{path} was counted with other code ({state['made_by']}, now {fingerprint(named)}). Move it "
                         "away, and count afresh.")
    return state


def check(state):
    """What must hold of any counts, and of the rule's promises on easy ones."""
    counts = total(state)
    assert sum(sum(told["regime"].values()) for cell in counts.values() for told in cell.values()) == \
        sum(own["orbits"] for own in state["seeds"].values())
    if state["rule"] != "limit_regime" or state["named"]:
        return
    truths = {name: regime for name, (regime, _) in sources(False).items()}
    clean = pooled(counts, "regime", truths, keep=lambda level, *_: level <= 0.05)
    for claim in ("chaotic", "orbit", "slider"):
        events, n = false_alarms(clean, claim)
        assert clopper_pearson(events, n, 0.95)[0] <= 0.02, f"{events} of {n} are called {claim} and are not"


def tiny():
    """Three cells of few orbits; in two parts they count the same as in one."""
    cells = [(0.0, 64, "float32"), (0.05, 64, "bfloat16 computed"), (0.2, 64, "bfloat16 stored")]
    a_unit = 4 * len(bank.FAMILIES)
    settings = {"cells": cells, "n": 4, "n_peer": 1}
    whole = run(fresh(), orbits=3 * a_unit, seed=0, **settings)
    parts = run(fresh(), orbits=a_unit, seed=0, **settings)
    parts = run(json.loads(json.dumps(parts)), orbits=2 * a_unit, seed=0, **settings)
    assert total(parts) != total(whole)
    first = {name: c for name, c in total(whole).items() if name != name_of(cells[2])}
    assert total(parts) == first
    return whole


def main():
    options = side_by_side.arguments(__doc__, orbits=(1_100_000, 0, "orbits of this seed, in whole batches"),
                                     seed=(0, 0, "seed of fresh orbits"),
                                     peer_orbits=(4, 1, "of each batch, for nolds"),
                                     named=(False, False, "named systems, not the families of the bank"),
                                     add=("", "", "counts of another machine, to add"))
    side_by_side.one_thread()
    file = options.save or (None if options.tiny else
                            RESULTS / ("confusion-named.json" if options.named else "confusion.json"))
    if options.tiny:
        state = tiny()
    else:
        state = opened(file, options.named)
        if options.add:
            other = opened(options.add, options.named)
            if both := set(other["seeds"]) & set(state["seeds"]):
                raise SystemExit(f"seed {', '.join(both)} is in both; its orbits would count twice.")
            state["seeds"].update(other["seeds"])
        else:
            run(state, orbits=options.orbits, seed=options.seed, n_peer=options.peer_orbits, file=file,
                progress=sys.stderr)
    check(state)
    text = report(state)
    print(text if not options.tiny else text[:text.index("## By length")])
    side_by_side.save(state, file, indent=None)
    if file:
        Path(file).with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
