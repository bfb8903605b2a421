"""From recordings to a report: measure, estimate, draw, and say what was found."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynloop.analyzers import contraction_rate, distance_to_limit, limit_regime, limit_regime_blayney
from dynloop.measurement import Measurement
from dynloop.measuring import Analyzer, measure
from dynloop.outcome import Outcome
from dynloop.report.figures import Drawing, distance_curves, distance_map, draw, pca_path
from dynloop.report.report import Report, Table, number, percent, significant
from dynloop.statistics import Estimate, estimate
from dynloop.store import Store
from dynloop.trajectories import Trajectories
from dynloop.version import __version__


def build_report(sources: Sequence[Store | Trajectories], *, resample: str = "prompt", n_resamples: int = 1000,
                 title: str = "How the loop settles") -> Report:
    """Measure recordings and put the answers into a report.

    Args:
        sources: stores or trajectories, one a model; at least one.
        resample: the label whose values are independent of each other.
        n_resamples: bootstrap resamples of every interval.
        title: heading of the report.

    Raises:
        ValueError: no recording, a label that it does not have, or fewer than two values of that label.
    """
    if not sources:
        raise ValueError("a report needs at least one recording; got none.")
    parts = [_Recording(source, i + 1, resample, n_resamples) for i, source in enumerate(sources)]
    names = [part.name for part in parts]
    for i, part in enumerate(parts):
        if names.count(part.name) > 1:
            part.name = f"{part.name} ({i + 1})"
    return Report(
        title=title, findings=tuple(part.finding() for part in parts),
        tables=(_convergence(parts), _rates(parts), _regimes(parts), _published_regimes(parts)),
        drawings=tuple(drawing for kind in zip(*(part.drawings() for part in parts), strict=True) for drawing in kind),
        appendix=(_provenance(parts), _outcomes(parts)),
        estimates=tuple(e for part in parts for e in part.estimates),
        provenance={"dynloop": __version__, "n_resamples": n_resamples, "resample": resample,
                    "recordings": {part.name: part.provenance for part in parts}})


class _Recording:
    """One recording, measured once; what the tables, figures and sentences are made of."""

    def __init__(self, source: Store | Trajectories, number: int, resample: str, n_resamples: int) -> None:
        self.source = source
        self.number = number
        self.provenance: dict[str, Any] = dict(source.header) if isinstance(source, Store) else {}
        analyzers: list[Analyzer] = [functools.partial(distance_to_limit, metric="relative"), contraction_rate,
                                     limit_regime, limit_regime_blayney]
        self.distance, self.rate, self.regime, self.published = measure(source, analyzers)
        if resample != "orbit" and resample not in self.rate.labels:
            raise ValueError(f"this recording has no label {resample!r} to resample; it has "
                             f"{', '.join(self.rate.labels) or 'no labels'}. Name one of these with --resample.")
        models = set(self.rate.labels.get("model", ()))
        self.name = str(models.pop()) if len(models) == 1 else f"recording {number}"
        self.layers = np.unique(self.rate.labels["layer"]).tolist() if "layer" in self.rate.labels else [None]
        self.n_steps = source.n_steps
        self.last = self._at(self.layers[-1])
        regime, published = (m if self.layers[-1] is None else m.select(layer=self.layers[-1])
                             for m in (self.regime, self.published))
        ask = functools.partial(estimate, resample=resample, n_resamples=n_resamples)
        distance, rate = self.last
        self.resample = resample
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # few units are said in the report itself
            statistics = ["share"] if resample == "orbit" else ["share", "affected share"]
            self.shares, self.published_shares = (
                {r: [ask(m, statistic=s, of=r) for s in statistics] for r in m.categories["regime"] if m.found.any()}
                for m in (regime, published))
            self.moving = ask(distance, statistic="share", of=Outcome.NOT_CONVERGED)
            self.rates: dict[Any, tuple[Estimate, ...]] = {}
            for layer in self.layers:
                own = self._at(layer)[1]
                units = np.arange(own.n_orbits) if resample == "orbit" else own.labels[resample]
                if len(np.unique(units[own.found])) > 1:
                    self.rates[layer] = tuple(ask(own, statistic="median", variable=v)
                                              for v in ("rate", "relative_floor", "regime_length")
                                              if np.isfinite(own[v][own.found]).all())
        self.n_units = rate.n_orbits if resample == "orbit" else len(np.unique(rate.labels[resample]))

    def _at(self, layer: Any) -> tuple[Measurement, Measurement]:
        if layer is None:
            return self.distance, self.rate
        return self.distance.select(layer=layer), self.rate.select(layer=layer)

    @property
    def estimates(self) -> list[Estimate]:
        """Every estimate of this recording, each with the recording's name as its model."""
        return [*(e for shares in (self.shares, self.published_shares) for pair in shares.values() for e in pair),
                self.moving,
                *(e for group in self.rates.values() for e in group)]

    def finding(self) -> str:
        """What the recording says, in one sentence with its numbers."""
        distance, rate = self.last
        n, unit = distance.n_orbits, self.resample
        where = f"{n:,} tokens of {self.n_units} {unit}s" if unit == "prompt" else \
            f"{n:,} orbits of {self.n_units} {unit}s"
        moving = distance.counts().get(Outcome.NOT_CONVERGED, 0)
        gone = distance.counts().get(Outcome.NOT_FINITE, 0)
        subject = f"{self.name}: "
        rest = distance.counts().get(Outcome.FOUND, 0)
        if rest == n:
            text = f"all {where} come to rest within {self.n_steps} recurrences"
        elif moving == n:
            text = f"none of {where} comes to rest within {self.n_steps} recurrences"
        else:
            text = f"{rest:,} of {where} come to rest within {self.n_steps} recurrences; {moving:,} still move"
        text += f" (still moving: {percent(self.moving)}, {100 * self.moving.confidence_level:g} % interval)"
        if short := distance.counts().get(Outcome.TOO_SHORT, 0):
            text += f"; {short:,} are too short to tell"
        if gone:
            text += f"; {gone:,} left the finite numbers"
        if self.layers[-1] in self.rates and self.rates[self.layers[-1]]:
            found = self.rates[self.layers[-1]]
            text += f"; before any floor a recurrence shrinks the step to {number(found[0])} of its length"
            floor, length = (next((e for e in found if e.name.endswith(n)), None)
                             for n in ("relative_floor", "regime_length"))
            if floor and length:
                text += f", and the floor is met after {length.value:.0f} recurrences"
            text += " (medians)"
            if rate.counts().get(Outcome.FOUND, 0) < n:
                text += f", measured on {rate.counts()[Outcome.FOUND]:,} tokens"
        elif n_rates := rate.counts().get(Outcome.FOUND, 0):
            text += f"; {n_rates:,} have a contraction rate, in too few {unit}s for an interval"
        else:
            text += "; no contraction rate can be measured"
        losses = self.provenance.get("model", {}).get("held_out_loss", {})
        trained = self.provenance.get("model", {}).get("model", {}).get("n_recurrences")
        if str(trained) in losses and str(self.n_steps) in losses:
            before, after = losses[str(trained)], losses[str(self.n_steps)]
            text += f". Held-out loss: {before:.2f} nats per byte at {trained} recurrences, {after:.2f} at " \
                    f"{self.n_steps}"
        return subject + text + "."

    def _example(self) -> dict[str, Any]:
        """Labels of the orbit of the last layer that settles last: the most interesting one to draw."""
        rate = self.last[1]
        length = np.where(rate.found, rate["regime_length"], -1)
        o = int(length.argmax())
        return {name: rate.labels[name][o] for name in (self.resample, "token", "layer") if name in rate.labels}

    def drawings(self) -> list[Drawing]:
        """Distance curves, one path, one heat map."""
        slug = f"{self.number}-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in self.name).lower()
        distance, rate = self.last
        chosen = self._example()
        place = ", ".join(f"{k} {v}" for k, v in chosen.items())
        of_unit = {k: v for k, v in chosen.items() if k != "token"}
        n, steps = self.distance.n_orbits, self.n_steps
        settings = rate.settings
        floor = (f"floor: median of the last quarter of the steps; regime: steps above {settings['floor_factor']:g} "
                 f"floors, at least {settings['min_points']} of them")
        floors = np.isfinite(self.rate["relative_floor"]).any()
        orbit = self.source.trajectories(**chosen) if isinstance(self.source, Store) else self.source.select(**chosen)
        one = distance.select(**of_unit)
        return [
            draw(f"{slug}-distance", distance_curves(self.distance, self.rate),
                 caption=f"{self.name}: distance to the state after {steps} recurrences, relative to its norm. Lines: "
                         f"median over {n // len(self.layers):,} tokens of {self.n_units} {self.resample}s a layer; "
                         f"bands: the middle 90 % of tokens; "
                         + (f"dotted: median floor of the steps ({floor}). " if floors else
                            f"no floor of the steps was reached ({floor}). ")
                         + "The last stretch falls by construction: the reference is the last state.",
                 alt=f"Line chart: relative distance to the last state over {steps} recurrences for {self.name}, "
                     "one line a layer."),
            draw(f"{slug}-path", pca_path(orbit[0:1]),
                 caption=f"{self.name}: path of one orbit ({place}) over {int(orbit.lengths[0])} recurrences in the "
                         "plane of its two leading principal components (fitted on this orbit, n = 1). "
                         + ("It is the one that settles last. " if rate.found.any() else "No orbit has a rate; it is "
                            "the first one. ") + "A random walk would draw an arc, too.",
                 alt=f"Scatter plot of one orbit of {self.name} in two principal components, coloured by recurrence."),
            draw(f"{slug}-map", distance_map(one),
                 caption=f"{self.name}: distance of each token of {', '.join(f'{k} {v}' for k, v in of_unit.items())} "
                         f"to its state after {steps} recurrences, relative to its norm, log10 scale "
                         f"(n = {one.n_orbits} tokens). At rest counts what lies below "
                         f"{significant(distance.settings['tolerance'])} (log10: "
                         f"{np.log10(distance.settings['tolerance']):.2g}) for the last quarter.",
                 alt=f"Heat map of {self.name}: tokens by recurrences, colour is the log distance to the last state."),
        ]


def _provenance(parts: list[_Recording]) -> Table:
    rows: dict[str, list[str]] = {}

    def put(name: str, values: list[Any]) -> None:
        if any(v not in (None, "") for v in values):
            rows[name] = ["" if v in (None, "") else str(v) for v in values]

    def header(*path: str) -> list[Any]:
        found = []
        for part in parts:
            value: Any = part.provenance
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            found.append(value)
        return found

    put("orbits", [f"{p.rate.n_orbits:,}" for p in parts])
    put(f"{parts[0].resample}s", [p.n_units for p in parts])
    put("tokens a layer", [f"{p.last[1].n_orbits:,}" for p in parts])
    put("layers of the block", [", ".join(map(str, p.layers)) if p.layers != [None] else None for p in parts])
    put("recurrences recorded", [p.n_steps for p in parts])
    put("recurrences in training", header("training_recurrences"))
    for name, key in (("injection", "injection"), ("norm placement", "norm"), ("norm at loop end", "loop_norm"),
                      ("initial state", "initial_state"), ("block layers", "n_block"), ("width", "width")):
        values = header("model", "model", key)
        put(name, [{True: "yes", False: "no"}.get(v, v) if isinstance(v, bool) else v for v in values])
    put("seed of the initial states", header("seed"))
    put("computed in", header("dtype"))
    put("stored in", header("stored_dtype"))
    put("device", header("device"))
    put("attention kernel", header("attention_kernel"))
    put("model hash (SHA-256)", [v and v[:16] for v in header("model", "sha256")])
    put("prompts' hash (SHA-256)", [v and v[:16] for v in header("prompts_sha256")])
    put("corpus", header("model", "corpus", "name"))
    put("torch", header("versions", "torch"))
    put("recorded with dynloop", header("versions", "dynloop"))
    return Table("What was run, and on what", ("", *[p.name for p in parts]),
                 tuple((name, *values) for name, values in rows.items()),
                 "Hashes are shortened to 16 digits; report.json has them whole.")


def _regimes(parts: list[_Recording]) -> Table:
    level = 100 * parts[0].moving.confidence_level
    ofs = ["tokens", f"{parts[0].resample}s"][:1 if parts[0].resample == "orbit" else 2]
    rows = [(regime, *(percent(p.shares[regime][i]) if p.shares else "none" for p in parts for i in range(len(ofs))))
            for regime in parts[0].regime.categories["regime"]]
    return Table(
        "Regimes", ("regime", *(f"{p.name}, of {of}" for p in parts for of in ofs)), tuple(rows),
        f"Last layer, {', '.join(f'{p.name}: {p.n_steps} recurrences' for p in parts)}; by limit_regime, calibrated on "
        f"synthetic orbits (named from a confidence of {parts[0].regime.settings['least_confidence']:g} on, else "
        f"undetermined). Brackets: {level:g} % intervals over {parts[0].resample}s; a {parts[0].resample} counts when "
        "at least one of its tokens has the regime. They do not contain the errors of the classifier, which matter for "
        "rare regimes: see dynloop.proportion.")


def _published_regimes(parts: list[_Recording]) -> Table:
    rows = [(p.name, f"of {of}", *(percent(p.published_shares[regime][i]) if p.published_shares else "none"
                                   for regime in p.published.categories["regime"]))
            for p in parts for i, of in enumerate(["tokens", f"{p.resample}s"][:1 if p.resample == "orbit" else 2])]
    settings = parts[0].published.settings
    level = 100 * parts[0].moving.confidence_level
    return Table(
        "Regimes by the published algorithm", ("model", "share", *parts[0].published.categories["regime"]), tuple(rows),
        f"Algorithm 1 of Blayney et al. 2026 on the last layer (n = {settings['n'] or 'all but the last state'}, "
        f"tau = {settings['tau']:g}, rho = {settings['rho']:g}, {settings['metric']}). Brackets: {level:g} % intervals "
        f"over {parts[0].resample}s. The algorithm calls noise an orbit and slow convergence or drift a slider: it is "
        "here for comparison with published shares.")


def _convergence(parts: list[_Recording]) -> Table:
    rows = []
    for p in parts:
        row = [p.name, percent(p.moving)]
        for variable in ("last_step", "late_distance"):
            known = p.last[0][variable][np.isfinite(p.last[0][variable])]
            row += [significant(float(np.median(known))), significant(float(known.max()))] if len(known) else ["", ""]
        rows.append((*row, significant(p.distance.settings["tolerance"])))
    few = [f"{p.name} ({p.n_units})" for p in parts if p.n_units < 20]
    return Table("At rest or moving",
                 ("model", "tokens still moving", "median last step", "largest last step", "median late distance",
                  "largest late distance", "tolerance"), tuple(rows),
                 "Last layer. Still moving: the last step, or the median distance from the last state over the last "
                 "quarter of the record (late distance), is larger than the tolerance. All are relative to the last "
                 f"state's norm. Brackets: {100 * parts[0].moving.confidence_level:g} % intervals over "
                 f"{parts[0].resample}s."
                 + (f" Few {parts[0].resample}s: {', '.join(few)}; bootstrap intervals over so few cover less than "
                    "they say." if few else ""))


def _rates(parts: list[_Recording]) -> Table:
    rows = []
    for p in parts:
        for layer in p.layers:
            own = p._at(layer)[1]
            found = {e.name.rpartition(".")[2]: e for e in p.rates.get(layer, ())}
            rate = found.get("contraction_rate")
            rows.append((p.name, "" if layer is None else str(layer), number(rate) if rate else "none",
                         number(found["relative_floor"]) if "relative_floor" in found else "",
                         number(found["regime_length"]) if "regime_length" in found else "",
                         f"{int(own.found.sum()):,} of {own.n_orbits:,}"))
    settings = parts[0].rate.settings
    note = (f"Medians over tokens with {100 * parts[0].moving.confidence_level:g} % intervals over "
            f"{parts[0].resample}s. Rate: factor by which a recurrence shrinks the step, fitted on the steps above "
            f"{settings['floor_factor']:g} floors (at least {settings['min_points']} points); floor: median of the "
            "last quarter of the steps, relative to the state's norm; regime: how many steps that took. ")
    gaps = [_disagreement(p) for p in parts]
    told = [f"{p.name}: {100 * gap:.1f} %" for p, gap in zip(parts, gaps, strict=True) if gap is not None]
    if told:
        note += ("All layers of one block share their multipliers, so their rates must agree; median difference of "
                 f"ln rate between layers of one token, relative: {'; '.join(told)}.")
    return Table("Contraction before the precision floor",
                 ("model", "layer", "rate per recurrence", "relative floor", "regime (recurrences)",
                  "tokens with a rate"),
                 tuple(rows), note)


def _disagreement(part: _Recording) -> float | None:
    """Median over tokens of the spread of ln rate between layers, over its mean."""
    if len(part.layers) < 2:
        return None
    columns = [np.log(part._at(layer)[1].values) for layer in part.layers]
    if len({len(c) for c in columns}) > 1:
        return None
    logs = np.stack(columns)
    known = np.isfinite(logs).all(0)
    if not known.any():
        return None
    return float(np.median(np.ptp(logs[:, known], axis=0) / np.abs(logs[:, known].mean(0))))


def _outcomes(parts: list[_Recording]) -> Table:
    rows = []
    for p in parts:
        for m in (p.distance, p.rate, p.regime, p.published):
            rows += [(p.name, m.name, outcome.value, f"{count:,}", outcome.sentence)
                     for outcome, count in m.counts().items()]
    return Table("What became of every orbit", ("model", "analyzer", "outcome", "orbits", "meaning"), tuple(rows),
                 "All layers. No orbit is left out silently: what is not found is not in the numbers above, and stands "
                 "here.")
