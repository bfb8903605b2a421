"""From recordings and studies to a report: measure, estimate, draw, and say what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynloop.report.report import Report
from dynloop.report.runs import Run, measured, runs_of
from dynloop.report.sections import (
    Section,
    attention,
    comparisons,
    control,
    exclusions,
    intervals,
    limits,
    others,
    panel,
    periods,
    pictures,
    rates,
    recordings,
    regimes,
    rest,
    stages,
)
from dynloop.report.sections.findings import findings
from dynloop.settings import check_whole
from dynloop.store import Store
from dynloop.study import Study
from dynloop.trajectories import Trajectories
from dynloop.version import __version__

SECTIONS: tuple[Callable[[Sequence[Run]], Section | None], ...] = (
    recordings.section, rest.section, rates.section, rates.floors, regimes.section, periods.section, others.section,
    control.section, comparisons.section, pictures.section, stages.section, attention.section, panel.section,
    exclusions.section, limits.section, intervals.section)


def build_report(sources: Sequence[Store | Trajectories | Study], *, resample: str = "prompt", n_resamples: int = 1000,
                 title: str = "How the loop settles", comparing: bool = False, workers: int | None = None,
                 resume: str | Path | None = None) -> Report:
    """Measure recordings, take the measurements of studies, and put the answers into a report.

    A recording is measured by `distance_to_limit`, `contraction_rate`, `limit_regime`, `limit_regime_blayney`,
    `minimal_period` and `convergence_time`, and the same analyzers are tried on planted systems of its shape. Where
    it holds prompts at several layers, a sample of it gets a profile of stages; where it holds statistics of
    attention, these stand beside their nulls. Every run of a study is shown as it was measured; figures of single
    orbits, stages and attention need the recording. A run is taken for an untrained control when its provenance
    says so (`dynloop capture MODEL --untrained` writes it), or its name.

    Args:
        sources: stores, trajectories (one run each) or studies; at least one.
        resample: what is independent of each other: a label such as "prompt", or a nesting such as "seed > prompt".
        n_resamples: bootstrap resamples of every interval.
        title: heading of the report.
        comparing: test every other run against the first one; same prompts are paired.
        workers, resume: how stores are measured, as in `measure`.

    Returns:
        The report; its `study` holds the measurements of all runs.

    Raises:
        ValueError: no recording, a label that it does not have, or fewer than two values of that label.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.report import build_report
        >>> rng = np.random.default_rng(0)
        >>> orbits = rng.normal(size=(40, 1, 8)) + 0.6 ** np.arange(60)[:, None] * rng.normal(size=(40, 1, 8))
        >>> report = build_report([Trajectories(orbits, labels={"prompt": np.arange(40) // 2, "model": "mine"})],
        ...                       n_resamples=200)
        >>> print(report.findings[0].split(" (")[0])
        mine: all 40 tokens of 20 prompts come to rest within 60 recurrences
    """
    check_whole("n_resamples", n_resamples, 100, "a whole number of at least 100")
    if not sources:
        raise ValueError("a report needs at least one recording; got none.")
    named: list[Any] = []
    for i, source in enumerate(sources, start=1):
        if isinstance(source, Study):
            named += [(run, source.measurements(run), source.provenance(run), None) for run in source.runs]
            continue
        found, provenance = measured(source, resample, workers=workers, resume=resume)
        models = set(found[0].labels.get("model", ()))
        named.append((str(models.pop()) if len(models) == 1 else f"recording {i}", found, provenance, source))
    runs = runs_of(named, resample=resample, n_resamples=n_resamples)
    asked = [section for section in SECTIONS if comparing or section is not comparisons.section]
    sections = tuple(part for section in asked if (part := section(runs)))
    told = findings(runs)
    return Report(
        title=title, findings=told, sections=sections, estimates=tuple(e for run in runs for e in run.estimates),
        provenance={"dynloop": __version__, "n_resamples": n_resamples, "resample": resample,
                    "recordings": {run.name: run.provenance for run in runs}},
        study=Study.of({run.name: list(run.measurements.values()) for run in runs},
                       provenance={run.name: run.provenance for run in runs}))
