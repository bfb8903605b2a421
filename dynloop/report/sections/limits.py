"""What the numbers do not say."""

from __future__ import annotations

from collections.abc import Sequence

from dynloop.outcome import Outcome
from dynloop.report.calibration import MOST_FEATURES, MOST_STEPS
from dynloop.report.cells import listed
from dynloop.report.runs import Run
from dynloop.report.sections.rest import FEW
from dynloop.report.sections.section import Section


def section(runs: Sequence[Run]) -> Section:
    """Sentences that follow from how the runs were recorded and measured."""
    first = runs[0]
    levels = first.nesting.levels
    points = []
    if "seed" in levels or "model" in levels:
        points.append(f"Intervals are over {first.units}: they speak of new ones of these, trained and recorded in the "
                      "same way.")
    elif levels == ("orbit",):
        points.append("Every orbit was taken for independent. Tokens of one prompt are not: if these are such, the "
                      "intervals are far too narrow.")
    else:
        points.append(f"Intervals are over {first.units}: they speak of these models on new {levels[0]}s, not of new "
                      "training runs. For those train several seeds and resample them.")
    if few := [f"{run.name} ({run.n_units[0]})" for run in runs if run.n_units[0] < FEW]:
        points.append(f"Few {levels[0]}s in {listed(few)}: intervals over fewer than {FEW} lean on their method "
                      "(Student's t assumes that unit values are about normal; exact ones do not, and are wide).")
    unknown = [run.name for run in runs if "recording" not in run.provenance]
    if unknown:
        points.append(f"Of {listed(unknown)} it is not known in which dtype and dimension the states were recorded.")
    coarse = [run.name for run in runs if run.provenance.get("recording", {}).get("resolution", 0) > 1e-4]
    if coarse:
        points.append(f"{listed(coarse)} computed or stored in few bits: exact repeats and steps of ratio 1 are "
                      "rounding, not dynamics.")
    wide = [run.name for run in runs if run.provenance.get("recording", {}).get("dim", 0) > MOST_FEATURES
            or (run.n_steps or 0) > MOST_STEPS]
    if wide:
        points.append(f"The calibration panel is smaller than {listed(wide)}: at most {MOST_STEPS} recurrences and "
                      f"{MOST_FEATURES} features.")
    if missing := [run.name for run in runs if "calibration" not in run.provenance]:
        points.append(f"No calibration panel was measured for {listed(missing)}: error rates at this shape are not "
                      "known.")
    moving = [run.name for run in runs if run.has("distance_to_limit")
              and run.measurements["distance_to_limit"].counts().get(Outcome.NOT_CONVERGED)]
    if moving:
        points.append(f"In {listed(moving)} some orbits still move when the record ends: their distance is one to an "
                      "arbitrary state, and a longer record may tell otherwise.")
    if any(run.has("limit_regime") for run in runs):
        points.append("limit_regime was calibrated on synthetic orbits. Chaos in many dimensions looks like coloured "
                      "noise within 128 steps and is then undetermined; the shares are not corrected for the errors of "
                      "the classifier.")
    points.append("Rest within the record is necessary for a fixed point, not sufficient: record twice as many "
                  "recurrences to check.")
    points.append("Where two intervals overlap, the numbers may still differ, and where many are compared, some will "
                  "look different by chance: dynloop.compare tests differences.")
    return Section("limits", "Limits", points=points)
