"""What does every analyzer say of every system whose answer is known: error, coverage of its interval, refusals?

    python benchmarks/accuracy.py --save benchmarks/results/accuracy.json    # about 5 minutes on one core
    python benchmarks/accuracy.py --only minimal_period,contraction_rate
    python benchmarks/accuracy.py --tiny

Systems of `synthetic/`, recorded four ways: "exact" (float64, 128 steps, in their own dimensions), "noisy" (float32,
256 dimensions, an offset of 3 amplitudes, noise of 1 %), "bfloat16" (the same without noise, rounded in the loop and in
storage) and "long" (float64, 1,000 steps; exponents and dimensions only). Where there is nothing to be found, an answer
counts as a false one. With --save a Markdown table of every question and system is written beside the JSON.
"""

import dataclasses
import inspect
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import side_by_side
from side_by_side import interval

import dynloop
import dynloop.analyzers
import synthetic
from dynloop import Trajectories, measure
from synthetic.blocks import affine_block, drifting_block, record_layers, turning_block
from synthetic.recordings import record

NOTHING = object()  # the system has no such answer, and an analyzer that gives one is wrong
STEPS, LONG, DIM = 128, 1000, 256
CONDITIONS = ("exact", "noisy", "bfloat16", "long")


@dataclasses.dataclass(frozen=True)
class Question:
    """One analyzer's question to systems whose answer is known.

    Args:
        analyzer, answer: who is asked, and what for, in words.
        truth: (name, system, states) -> the answer, one for all orbits or one each (or a function that makes it of the
            measurement, where it depends on a setting); NOTHING; or None, if not known.
        said: (measurement) -> one value an orbit; NaN or "" where there is none.
        error: "right" (the same or not), "relative", "absolute", or "log" (relative, of the logarithms).
        interval: (measurement) -> low and high, which should hold the truth in 95 % of the orbits; or nothing.
        conditions: in which it is asked.
        answered: (measurement) -> where there is an answer.
        claims: (measurement) -> where it claims something, of systems that have NOTHING; by default where it answers.
        promise: largest median error, or least share of right answers, in the first of its conditions.
    """

    analyzer: str
    answer: str
    truth: Callable[[str, Any, np.ndarray], Any]
    said: Callable[[Any], np.ndarray]
    error: str
    interval: Callable[[Any], Any] | None = None
    conditions: tuple[str, ...] = CONDITIONS[:3]
    answered: Callable[[Any], np.ndarray] = lambda m: m.found
    claims: Callable[[Any], np.ndarray] | None = None
    promise: float | None = None


def main_variable(m):
    return m.values


def variable(name):
    return lambda m: m[name]


def slowest(name):
    return lambda m: m[name][:, 0]


def within_two_errors(m):
    margin = 1.96 * np.fmax(m["error"], m["spread"])
    return m["rho"][:, 0] - margin, m["rho"][:, 0] + margin


def speed(name, system, states):
    return system.exact.get("speed")


def regime(name, system, states):
    """Of noise there is none to be named; of periods above a third of the record none can be known."""
    found = system.exact.get("regime")
    if found == "orbit" and system.exact.get("period", 0) > states.shape[1] // 3:
        return None
    return NOTHING if found == "undetermined" else found


def regime_of_the_paper(name, system, states):
    """The published algorithm knows three regimes."""
    regime = system.exact.get("regime")
    return None if regime is None else regime if regime in ("fixed point", "orbit", "slider") else NOTHING


def period(name, system, states):
    """Within a third of the record; longer ones may be found or not."""
    if system.exact.get("regime") not in (None, "orbit"):
        return NOTHING
    p = system.exact.get("period")
    return p if p is not None and p <= states.shape[1] // 3 else None


def rate(name, system, states):
    """Where an approach is recorded that shrinks by a factor other than 0 and 1."""
    if system.exact.get("regime") in ("quasi-periodic", "slider", "chaotic", "undetermined", "diverging"):
        return NOTHING
    r = system.exact.get("rate")
    return r if r is not None and 0.01 < r < 1 and not system.transient else None


def exponent(name, system, states):
    """The largest one of chaos, exact or else reported. Regular motion and noise have none above 0."""
    regime = system.exact.get("regime")
    if regime != "chaotic":
        return None if regime is None else NOTHING
    spectrum = system.exact.get("lyapunov") or system.reported.get("lyapunov", (None,))[0]
    return None if spectrum is None else spectrum[0]


def chaos(name, system, states):
    regime = system.exact.get("regime")
    return {"chaotic": "chaotic", "undetermined": None, None: None}.get(regime, "regular")


def dimension(name, system, states):
    if system.exact.get("regime") in ("undetermined", "fixed point", "orbit"):
        return NOTHING
    return system.exact.get("dimension") or system.reported.get("dimension", (None,))[0]


def largest_multiplier(name, system, states):
    """Modulus of the slowest mode of a fixed point."""
    if system.exact.get("regime") not in ("fixed point", "converging"):
        return NOTHING if system.exact.get("regime") == "undetermined" else None
    multipliers = system.exact.get("multipliers")
    modulus = None if multipliers is None else float(abs(multipliers[0]))
    return modulus if modulus is not None and 0.01 < modulus < 1 else None


def turn(name, system, states):
    """Angle of the slowest mode of a fixed point, radians, where no other mode is as slow."""
    first = largest_multiplier(name, system, states)
    if first in (None, NOTHING):
        return None
    multipliers = np.asarray(system.exact["multipliers"])
    turning = np.abs(np.angle(multipliers[np.abs(multipliers) > 0.98 * first]))
    return float(turning[0]) if np.ptp(turning) < 1e-9 else None


def arrival(name, system, states):
    """First step from which the orbit stays within the radius about the exact fixed point, counted directly."""
    if system.exact.get("regime") not in (None, "fixed point"):
        return NOTHING if system.exact["regime"] != "converging" else None
    end = system.exact.get("fixed_point")
    if end is None:
        return None

    def of(m):
        outside = ~(np.linalg.norm(states - end, axis=2) <= m["radius"][:, None])
        return np.where(outside.any(1), states.shape[1] - outside[:, ::-1].argmax(1), 0)

    return of


def rest(name, system, states):
    return {"fixed point": "at rest", "converging": None, None: None}.get(system.exact.get("regime"), "moving")


def verdict(name, system, states):
    return {"fixed point": "fixed point", "converging": None, None: None}.get(system.exact.get("regime"),
                                                                             "no fixed point")


def angle(name, system, states):
    """Of a uniform rotation in one plane, degrees."""
    turns = system.exact.get("rotation", ())
    plain = name.startswith("rotation") and np.ndim(turns) == 1 and len(turns) == 1
    return 360 * min(turns[0], 1 - turns[0]) if plain else None


def late_cosine(name, system, states):
    """Of noise: a closed form of the memory that its name tells."""
    memory = {"random walk": 1.0, "white noise": 0.0}.get(name.rpartition(" ")[0])
    if name.startswith("autoregression"):
        memory = float(name.split()[1])
    return None if memory is None or system.dim < 8 else -(1 - memory) / 2


def straightness(name, system, states):
    return 1.0 if name.startswith("drift ") and "onto" not in name else None


def determinism(name, system, states):
    return 1.0 if name.startswith("rotation") and "period" in system.exact else None


def returns(name, system, states):
    """Share of the pairs of an exact cycle that are whole periods apart."""
    if determinism(name, system, states) is None:
        return None
    n = states.shape[1]
    lags = np.arange(system.exact["period"], n, system.exact["period"])
    return 2 * (n - lags).sum() / (n * (n - 1))


def late_speed(m):
    steps = m["distance"]
    return np.median(steps[:, -(steps.shape[1] // 4):], axis=1)


def as_words(yes, no):
    return lambda m: np.where(m.found, yes, no)


EXACT, EXACT_LONG = ("exact",), ("exact", "long")
QUESTIONS = (
    Question("limit_regime", "regime", regime, variable("regime"), "right", promise=0.9,
             answered=lambda m: ~np.isin(m["regime"], ["undetermined", ""])),
    Question("limit_regime_blayney", "regime", regime_of_the_paper, variable("regime"), "right",
             answered=lambda m: m.found & (m["regime"] != "unknown")),
    Question("minimal_period", "period", period, variable("period"), "right", promise=0.9,
             claims=lambda m: m.found & (m["period"] > 1)),
    Question("contraction_rate", "ln rate", rate, variable("rate"), "log", interval=interval, promise=0.05),
    Question("dominant_modes", "ln of the slowest modulus", largest_multiplier, slowest("rho"), "log",
             interval=within_two_errors, promise=0.1),
    Question("dominant_modes", "its angle", turn, slowest("angle"), "absolute", promise=0.05),
    Question("lyapunov_from_data", "largest exponent of chaos", exponent, main_variable, "relative", interval=interval,
             conditions=("long", "exact", "noisy"), promise=0.2, claims=lambda m: m.found & (m.values > 0.05)),
    Question("correlation_dimension", "dimension", dimension, main_variable, "relative", interval=interval,
             conditions=("long", "exact"), promise=0.2),
    Question("chaos_01", "chaotic or regular", chaos,
             lambda m: np.where(m.found, np.where(m.values > 0.5, "chaotic", "regular"), ""), "right",
             conditions=("long", "exact", "noisy"), promise=0.8),
    Question("convergence_time", "steps until it stays near", arrival, variable("time"), "absolute", conditions=EXACT,
             promise=2.0),
    Question("distance_to_limit", "at rest or moving", rest, as_words("at rest", "moving"), "right", promise=0.8,
             answered=lambda m: np.ones(m.n_orbits, bool)),
    Question("cyclic_fixed_points", "a fixed point or none", verdict, variable("verdict"), "right", promise=0.8),
    Question("successive_distance", "speed of a drift", speed, late_speed, "relative",
             conditions=EXACT, promise=1e-6),
    Question("turning_angle", "angle of a rotation", angle, variable("angle"), "relative", promise=1e-3),
    Question("turning_angle", "late cosine of noise", late_cosine, variable("late_cosine"), "absolute",
             conditions=EXACT, promise=0.1),
    Question("path_straightness", "straightness of a drift", straightness, variable("straightness"), "absolute",
             conditions=EXACT, promise=1e-6),
    Question("recurrence_quantification", "determinism of a cycle", determinism, variable("determinism"), "absolute",
             promise=1e-9),
    Question("recurrence_quantification", "recurrence rate of a cycle", returns, variable("recurrence_rate"),
             "absolute", promise=1e-9),
)


def recorded(system, condition, n):
    """The orbits of a system as that condition has them; None where it makes no sense for this system."""
    if condition in EXACT_LONG:
        return Trajectories(system.orbits(n, STEPS if condition == "exact" else LONG, rng=1))
    wide = max(DIM, system.dim)
    try:
        if condition == "noisy":
            return record(system, n, STEPS, dim=wide, noise=0.01, rng=1)
        return record(system, n, STEPS, dim=wide, storage="bfloat16", rng=1,
                      computed_in=None if system.float64_only else "bfloat16")
    except ValueError:  # orbits that do not move, or are not finite, have no amplitude
        return None


def asked(question, name, system, condition, states, m):
    """What came of a question: None where the answer is not known."""
    truth = question.truth(name, system, states)
    if truth is None or condition not in question.conditions:
        return None
    n, found = len(m.outcomes), question.answered(m)
    truth = truth(m) if callable(truth) else truth
    if truth is NOTHING:
        claims = question.claims(m) if question.claims else found
        return {"n": n, "false": int(claims.sum())}
    said = question.said(m)
    if question.error == "right":
        return {"n": n, "answered": int(found.sum()), "right": int((said[found] == truth).sum())}
    truth = np.broadcast_to(np.asarray(truth, dtype=float), (n,))
    found = found & np.isfinite(said)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = {"relative": lambda: said / truth - 1, "absolute": lambda: said - truth,
                 "log": lambda: np.log(said) / np.log(truth) - 1}[question.error]()
    result = {"n": n, "answered": int(found.sum()), "errors": np.abs(error[found])}
    if question.interval and (between := question.interval(m)):
        result |= {"held": int(((between[0] <= truth) & (truth <= between[1]))[found].sum())}
    return result


def pooled(parts):
    """One row of a table from what came of many systems."""
    n = sum(p["n"] for p in parts if "answered" in p)
    answered = sum(p["answered"] for p in parts if "answered" in p)
    errors = np.concatenate([p["errors"] for p in parts if "errors" in p] or [np.empty(0)])
    nothing = [p for p in parts if "false" in p]
    held = [p for p in parts if "held" in p]
    return {"systems": len(parts), "orbits": n, "answered": answered / n if n else None,
            "right": sum(p["right"] for p in parts if "right" in p) / answered
            if answered and any("right" in p for p in parts) else None,
            "median_error": float(np.median(errors)) if len(errors) else None,
            "error_90": float(np.quantile(errors, 0.9)) if len(errors) else None,
            "covered": sum(p["held"] for p in held) / k if (k := sum(p["answered"] for p in held)) else None,
            "orbits_with_nothing": sum(p["n"] for p in nothing),
            "false": sum(p["false"] for p in nothing) / sum(p["n"] for p in nothing) if nothing else None}


HEAD = ("orbits", "answered", "right", "median error", "90 % of errors below", "interval covers", "nothing there",
        "answered all the same")


def cells(row):
    def percent(share):
        return None if share is None else f"{100 * share:.3g} %"

    return (row["orbits"], percent(row["answered"]), percent(row["right"]), row["median_error"], row["error_90"],
            percent(row["covered"]), row["orbits_with_nothing"], percent(row["false"]))


def layers(n_steps):
    """Verdicts on blocks whose layers have distinct points, one point, or none: (block, truth, said)."""
    blocks = [(affine_block(), "cyclic"), (turning_block(), "cyclic"), (affine_block(degenerate=True), "degenerate"),
              (turning_block(spread=0.0), "degenerate"), (drifting_block(), "no fixed point"),
              (turning_block(period=7, orbit=0.3), "no fixed point")]
    for block, truth in blocks:
        for dtype in ("float64", "float32", "bfloat16"):
            m = dynloop.cyclic_fixed_points(record_layers(block, 4, n_steps, dtype=dtype))
            yield block.name, dtype, truth, float((m["verdict"] == truth).mean()), m


def main():
    options = side_by_side.arguments(__doc__, orbits=(8, 2, "orbits of each system"),
                                     only=("", "", "analyzers, by commas"))
    side_by_side.one_thread()
    here = {name: getattr(dynloop.analyzers, name) for name in dynloop.analyzers.__all__}
    wanted = options.only.split(",") if options.only else list(here)
    questions = [q for q in QUESTIONS if q.analyzer in here and q.analyzer in wanted]
    families = synthetic.families()
    if options.tiny:  # two of each family
        families = {family: members[:2] for family, members in families.items()}
    began, found = time.perf_counter(), {}
    for family, members in families.items():
        for system in members:
            for condition in CONDITIONS:
                own = sorted({q.analyzer for q in questions if condition in q.conditions})
                if not own or (options.tiny and condition == "bfloat16") or (condition == "long" and (
                        options.tiny or (exponent(system.name, system, None) in (None, NOTHING)
                        and dimension(system.name, system, None) in (None, NOTHING)))):
                    continue
                orbits = recorded(system, condition, options.orbits)
                if orbits is None:
                    continue
                measured = dict(zip(own, measure(orbits, [here[name] for name in own]), strict=True))
                states = orbits.states.numpy() if condition in EXACT_LONG else orbits.states.float().numpy()
                for question in questions:
                    if question.analyzer in measured and (result := asked(
                            question, system.name, system, condition, states, measured[question.analyzer])):
                        found[question.analyzer, question.answer, condition, family, system.name] = result
    rows, figures = [], {}
    for question in questions:
        for condition in question.conditions:
            parts = [r for key, r in found.items() if key[:3] == (question.analyzer, question.answer, condition)]
            if parts:
                row = pooled(parts)
                figures[f"{question.analyzer}: {question.answer} ({condition})"] = row | {"error_is": question.error}
                rows.append((question.analyzer, question.answer, question.error, condition, row["systems"],
                             *cells(row)))
                check(question, condition, row)
    text = side_by_side.table(("analyzer", "question", "error", "recorded", "systems", *HEAD), rows)
    print(text + "\n")
    in_layers = list(layers(STEPS)) if "cyclic_fixed_points" in wanted and not options.tiny else []
    block_table = side_by_side.table(("block", "dtype", "verdict should be", "share of its layers' orbits"),
                                     [row[:4] for row in in_layers])
    if in_layers:
        print(block_table + "\n")
    seconds = time.perf_counter() - began
    print(f"{sum(map(len, families.values()))} systems of {len(families)} families, {seconds:.0f} s")
    detail = [(*key, pooled([result])) for key, result in found.items()]
    side_by_side.save({"summary": figures, "blocks": [row[:4] for row in in_layers], "orbits": options.orbits,
                       "seconds": seconds, "machine": side_by_side.machine(),
                       "systems": {"columns": ("analyzer", "answer", "recorded", "family", "system", *HEAD),
                                   "rows": [(*key, *map(_short, [*row.values()][1:])) for *key, row in detail]}},
                      options.save, indent=None)
    if options.save:
        about = inspect.cleandoc(__doc__)
        Path(options.save).with_suffix(".md").write_text("\n".join([
            "# What the analyzers say of systems with known answers\n", about[about.index("Systems of"):],
            "\nMade by `python benchmarks/accuracy.py`; do not edit.\n", text, "\n## Layers of a block\n", block_table,
            "\n## What falls short\n\nSystems with a refusal, a wrong or false answer, or a median error above .1.\n",
            side_by_side.table(("analyzer", "question", "recorded", "family", "system", *HEAD),
                               sorted((*key, *cells(row)) for *key, row in detail if falls_short(row)))]) + "\n",
            encoding="utf-8")


def _short(value):
    return float(f"{value:.4g}") if isinstance(value, float) else value


def falls_short(row):
    return (row["answered"] or 1) < 1 or row["answered"] == 0 or (row["right"] or 1) < 1 or row["right"] == 0 or \
        (row["median_error"] or 0) > 0.1 or (row["false"] or 0) > 0


def check(question, condition, row):
    """The promise holds where the recording is clean."""
    if question.promise is None or condition != question.conditions[0]:
        return
    about = f"{question.analyzer}, {question.answer}, {condition}"
    if question.error == "right" and row["right"] is not None:
        assert row["right"] >= question.promise, f"{about}: {row['right']:.2f} right"
    elif row["median_error"] is not None:
        assert row["median_error"] <= question.promise, f"{about}: median error {row['median_error']:.3g}"


if __name__ == "__main__":
    main()
