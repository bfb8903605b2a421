"""Part a: what every analyzer says of every system whose answer is known.

Systems of `synthetic/`, asked as `benchmarks/accuracy.py` asks them: recorded exactly, within noise, in bfloat16, and
long. Orbits of one system are alike, so that systems are what is resampled.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import accuracy
import numpy as np
import pandas as pd

import dynloop.analyzers
import synthetic
from dynloop import estimate, measure
from dynloop.report import Section, Table, draw, forest
from reports.numbers import Numbers

COMPUTE = ("_asked",)
SMOKE = {"logistic": 2, "linear": 2, "rotations": 2}  # families, and how many systems of each
SMOKE_ANALYZERS = ("limit_regime", "limit_regime_blayney", "minimal_period", "contraction_rate", "turning_angle",
                   "path_straightness")
WORDS = {"exact": "exact", "noisy": "noise", "bfloat16": "bfloat16", "long": "long"}


def _key(question: accuracy.Question, condition: str) -> str:
    return f"a.{question.analyzer}.{question.answer}.{condition}"


def pieces(tier: str) -> dict[str, Callable[[], Any]]:
    """A piece a family and kind of recording."""
    families = synthetic.families()
    full = tier == "full"
    return {f"{family}-{condition}": functools.partial(
                _asked, family, condition, 4 if full else 2, None if full else SMOKE[family],
                tuple(dynloop.analyzers.__all__) if full else SMOKE_ANALYZERS)
            for family in (families if full else SMOKE)
            for condition in (accuracy.CONDITIONS if full else ("exact",))}


def _asked(family: str, condition: str, n: int, most: int | None, analyzers: Sequence[str]) -> list[dict[str, Any]]:
    """A row a question and system whose answer is known."""
    rows = []
    for system in synthetic.families()[family][:most]:
        name = system.name
        if condition == "long" and all(truth(name, system, None) in (None, accuracy.NOTHING)
                                       for truth in (accuracy.exponent, accuracy.dimension)):
            continue
        asked = [q for q in accuracy.QUESTIONS if q.analyzer in analyzers and condition in q.conditions]
        orbits = accuracy.recorded(system, condition, n)
        own = sorted({q.analyzer for q in asked})
        if orbits is None or not own:
            continue
        measured = dict(zip(own, measure(orbits, [getattr(dynloop.analyzers, a) for a in own]), strict=True))
        states = orbits.states.numpy() if condition in accuracy.EXACT_LONG else orbits.states.float().numpy()
        for question in asked:
            m = measured[question.analyzer]
            result = accuracy.asked(question, name, system, condition, states, m)
            if result:
                rows.append({"key": _key(question, condition), "system": name, **{
                    k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in result.items()},
                    "outcomes": {outcome.name: k for outcome, k in m.counts().items()}})
    return rows


def add(found: Mapping[str, Any], numbers: Numbers) -> None:
    """Shares and errors with intervals over systems, the worst system, and outcomes."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for piece in found.values():
        for row in piece:
            rows.setdefault(row["key"], []).append(row)
    systems = {row["system"] for own in rows.values() for row in own}
    numbers.value("a.systems", len(systems), name="synthetic", what="systems", unit="systems")
    numbers.value("a.steps", accuracy.STEPS, name="synthetic", what="states of a record", unit="states")
    numbers.value("a.long", accuracy.LONG, name="synthetic", what="states of a long record", unit="states")
    numbers.value("a.orbits", max(row["n"] for own in rows.values() for row in own), name="synthetic",
                  what="orbits of a system", unit="orbits")
    for question in accuracy.QUESTIONS:
        for condition in question.conditions:
            if own := rows.get(_key(question, condition)):
                _add(numbers, question, condition, own)


def _add(numbers: Numbers, question: accuracy.Question, condition: str, rows: Sequence[Mapping[str, Any]]) -> None:
    key = _key(question, condition)
    known = [row for row in rows if "answered" in row]
    if known:
        _share(numbers, f"{key}.answered", "answered", [(r["system"], r["answered"], r["n"]) for r in known], question)
    if any("right" in row for row in known):
        _share(numbers, f"{key}.right", "right answers", [(r["system"], r["right"], r["answered"]) for r in known],
               question)
    errors = [(row["system"], error) for row in known for error in row.get("errors", ()) if math.isfinite(error)]
    if errors:
        frame = pd.DataFrame(errors, columns=["system", "error"])
        _estimated(numbers, f"{key}.error", frame, "median", question, variable="error")
        worst = max(errors, key=lambda pair: pair[1])
        numbers.value(f"{key}.worst", worst[1], name=question.analyzer, what="largest error", n=len(errors),
                      notes=(worst[0],))
    if any("held" in row for row in known):
        _share(numbers, f"{key}.covered", "intervals that hold the answer",
               [(r["system"], r["held"], r["answered"]) for r in known if "held" in r], question)
    if nothing := [row for row in rows if "false" in row]:
        _share(numbers, f"{key}.false", "answers where there is nothing",
               [(r["system"], r["false"], r["n"]) for r in nothing], question)
    outcomes: dict[str, int] = {}
    for row in known:
        for outcome, k in row["outcomes"].items():
            outcomes[outcome] = outcomes.get(outcome, 0) + k
    answered = sum(row["answered"] for row in known)
    if question.analyzer.startswith("limit_regime") and outcomes.get("FOUND", 0) > answered:
        outcomes |= {"UNDETERMINED": outcomes["FOUND"] - answered, "FOUND": answered}
    for outcome, k in outcomes.items():
        numbers.value(f"{key}.outcome.{outcome}", k, name=question.analyzer, what=f"orbits with outcome {outcome}",
                      unit="orbits", n=sum(outcomes.values()))


def _share(numbers: Numbers, key: str, what: str, counts: Sequence[tuple[str, int, int]],
           question: accuracy.Question) -> None:
    frame = pd.DataFrame([(system, i < events) for system, events, n in counts for i in range(n)],
                         columns=["system", what])
    if len(frame):
        _estimated(numbers, key, frame, "share", question, variable=what, of=True)


def _estimated(numbers: Numbers, key: str, frame: pd.DataFrame, statistic: str, question: accuracy.Question,
               **asked: Any) -> None:
    if frame["system"].nunique() > 1:
        found = estimate(frame, statistic=statistic, resample="system", **asked)
        what = f"share of {asked['variable']}" if statistic == "share" else f"{statistic} {asked['variable']}"
        numbers.add(key, dataclasses.replace(found, name=f"{question.analyzer}: {question.answer}", statistic=what))
        return
    values = frame[asked["variable"]].to_numpy(float)
    numbers.value(key, float(np.median(values) if statistic == "median" else values.mean()), name=question.analyzer,
                  what=f"{statistic} of {asked['variable']}", n=len(values), resample="system",
                  notes=("one system, so no interval",))


def _row(numbers: Numbers, question: accuracy.Question, condition: str) -> tuple[Any, ...]:
    key = _key(question, condition)
    of = next((f"{key}.{part}" for part in ("answered", "false") if f"{key}.{part}" in numbers), "")
    good = numbers.cell(f"{key}.right", "%") if f"{key}.right" in numbers else numbers.cell(f"{key}.error")
    return (question.analyzer, question.answer, WORDS[condition], numbers.cell(of, "units"),
            numbers.cell(f"{key}.answered", "%"), good, numbers.cell(f"{key}.worst", "value"),
            numbers.cell(f"{key}.covered", "%"), numbers.cell(f"{key}.false", "%"))


_HEAD = ("analyzer", "asked for", "recording", "systems", "answered", "right, or median error", "worst",
         "interval covers", "answers where there is none")


def findings(numbers: Numbers) -> tuple[str, ...]:
    """For the top of the page."""
    return tuple(filter(None, (_sentence(numbers, 3), _coverage(numbers))))


def _coverage(numbers: Numbers) -> str:
    """Where intervals fall short of what they promise."""
    keys = [f"a.contraction_rate.ln rate.{condition}.covered" for condition in ("exact", "noisy", "bfloat16")]
    if not all(key in numbers for key in keys):
        return ""
    return numbers.text("Where it falls short: intervals of contraction_rate, nominally 95 %, hold the rate of these "
                        f"systems in {{{keys[0]}:%}} of the clean records, {{{keys[1]}:%}} of those within noise and "
                        f"{{{keys[2]}:%}} of those in bfloat16.")


def sections(numbers: Numbers) -> list[Section]:
    """One table a kind of recording, the outcomes, and the shares as a figure."""
    asked = [(q, c) for q in accuracy.QUESTIONS for c in q.conditions
             if any(f"{_key(q, c)}.{part}" in numbers for part in ("answered", "false"))]
    first = [(q, c) for q, c in asked if c == next(d for p, d in asked if p is q)]
    rest = [pair for pair in asked if pair not in first]
    note = numbers.text(
        "Systems: those whose answer is known, {a.orbits:count} orbits each. Noise: of one percent, in float32. Right, "
        "in percent: of the answered ones, where the answer "
        "is a word or a period. Error: relative, of a rate that of its logarithm; of times, cosines, shares and angles "
        "absolute (see benchmarks/accuracy.py). Worst: largest error of one orbit. Interval covers: of the nominal "
        "95 % intervals of single orbits. Answers where there is none: orbits of systems that have no such answer, and "
        "got one. Brackets: 95 % intervals over systems, whose orbits are alike; {a.steps:count} "
        "states a record, {a.long:count} where it is long.")
    clean = [(row[0], row[1] + (f" ({row[2]})" if c != "exact" else ""), *row[3:])
             for row, (_, c) in zip([_row(numbers, q, c) for q, c in first], first, strict=True)]
    tables = [Table("known-systems", "Clean recordings", (*_HEAD[:2], *_HEAD[3:]), clean, note)]
    if rest:
        tables.append(Table("known-systems-other", "Noise, bfloat16 and other lengths", _HEAD,
                            [_row(numbers, q, c) for q, c in rest], note))
    tables.append(_outcomes(numbers, first))
    shown = [(q, c) for q, c in first if f"{_key(q, c)}.right" in numbers]
    labels = [f"{q.analyzer.replace('_', ' ')}: {q.answer}" for q, c in shown]
    drawings = []
    if shown:
        figure = forest([numbers[f"{_key(q, c)}.right"] for q, c in shown], labels=labels)
        drawings = [draw("right-answers", figure, caption=(
            "Share of the answered orbits whose answer is right, clean recordings of systems with exact answers; 95 % "
            "intervals over systems (n as in the table above)."),
            alt="Dots with intervals, one a question: shares of right answers by analyzer.")]
    text = [numbers.text(
        "Every analyzer was asked for what is known in closed form of {a.systems:count} synthetic systems: fixed "
        "points and slow approaches, cycles, rotations, drifts, chaos and noise. Each was recorded cleanly (float64), "
        "within noise, and in bfloat16; exponents and dimensions also in long records."), _sentence(numbers)]
    if told := _coverage(numbers):
        text.append(f"{told} The misses are those of some systems, whose orbits fail together: modes that crowd, rates "
                    "close to one, approaches that are not linear. The logarithm of a rate near one has large relative "
                    "errors.")
    return [Section("known-systems", "Analyzers against known systems", text=text, tables=tables,
                    drawings=drawings)]


def _sentence(numbers: Numbers, most: int | None = None) -> str:
    parts = [(text, key) for text, key in (
        ("limit_regime names the regime rightly in {KEY.right:%} of the orbits that it answers",
         "a.limit_regime.regime.exact"),
        ("minimal_period the period in {KEY.right:%}", "a.minimal_period.period.exact"),
        ("contraction_rate misses ln rate by {KEY.error} of it (median), and its 95 % interval holds the rate in "
         "{KEY.covered:%}", "a.contraction_rate.ln rate.exact"),
        ("lyapunov_from_data is off by {KEY.error} (median, long records)",
         "a.lyapunov_from_data.largest exponent of chaos.long"),
        ("correlation_dimension by {KEY.error}", "a.correlation_dimension.dimension.long"),
        ("the published classifier names the regime rightly in {KEY.right:%}", "a.limit_regime_blayney.regime.exact"))
        if all(f"{key}.{part}" in numbers for part in (["right"] if "right" in text else ["error"]))]
    told = "; ".join(numbers.text(text.replace("KEY", key)) for text, key in parts[:most]
                     if "covered" not in text or f"{key}.covered" in numbers)
    return numbers.text("On clean recordings of {a.systems:count} systems with known answers: ") + told + "."


def _outcomes(numbers: Numbers, asked: Sequence[tuple[accuracy.Question, str]]) -> Table:
    names = ("FOUND", "UNDETERMINED", "NOT_FOUND", "NOT_CONVERGED", "AT_PRECISION_FLOOR", "TOO_SHORT", "NOT_FINITE")
    rows = [(q.analyzer, q.answer, *(numbers.cell(f"{_key(q, c)}.outcome.{name}", "count") for name in names),
             numbers[f"{_key(q, c)}.worst"].notes[0] if f"{_key(q, c)}.worst" in numbers else "")
            for q, c in asked if f"{_key(q, c)}.answered" in numbers]
    return Table("outcomes", "What became of the orbits that have an answer, clean recordings",
                 ("analyzer", "asked for", *(name.lower().replace("_", " ") for name in names), "worst error in"), rows,
                 "Orbits by outcome: an analyzer that cannot tell says so, without a number. Undetermined: a verdict "
                 "of the classifiers; not converged: that of distance_to_limit on what still moves."
                 ).without_empty_columns()
