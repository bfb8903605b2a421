"""What would the published exit rules have saved and cost on these data?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.advice.exit_rule import OUTPUT_RULES, RULES, STATE_RULES, exit_rule
from dynloop.advice.readout import Readout
from dynloop.measurement import Measurement
from dynloop.measuring import measure
from dynloop.outcome import Outcome
from dynloop.statistics import Estimate, estimate
from dynloop.store import Store
from dynloop.trajectories import Trajectories

if TYPE_CHECKING:
    import pandas

_NEVER = (Outcome.NOT_FOUND, Outcome.AT_PRECISION_FLOOR)  # the loop would have run to its end


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ExitRules:
    """Exit rules side by side.

    Attributes:
        measurements: rule -> what it does to every orbit (`exit_rule`).
        estimates: rule -> quantity -> number with its interval; a quantity that no orbit has is missing.
    """

    measurements: Mapping[str, Measurement]
    estimates: Mapping[str, Mapping[str, Estimate]]

    def to_frame(self) -> pandas.DataFrame:
        """A row a rule: orbits by outcome, and every estimate with its interval (NaN where there is none)."""
        import pandas as pd

        rows = []
        for rule, measured in self.measurements.items():
            row: dict[str, Any] = {"rule": rule, "threshold": measured.settings["threshold"],
                                   **{outcome.value: int(n) for outcome, n in measured.counts().items()}}
            for name, one in self.estimates[rule].items():
                row |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
            rows.append(row)
        frame = pd.DataFrame(rows)
        counts = [outcome.value for outcome in Outcome if outcome.value in frame]
        return frame.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int))

    def __repr__(self) -> str:
        return "\n".join(str(one) for own in self.estimates.values() for one in own.values())


def exit_rules(source: Trajectories | Store, *, resample: str, rules: Sequence[str] | None = None,
               thresholds: Mapping[str, float] | None = None, readout: Readout | None = None,
               select: Mapping[str, Any] | None = None, first_recurrence: int = 1, confidence_level: float = 0.95,
               rng: Any = 0) -> ExitRules:
    """Run exit rules over a recording in one pass, and estimate what they save and cost.

    Args:
        source: orbits of the loop state, or a store.
        resample: what is independent, such as "prompt"; as in `estimate`.
        rules: which ones; by default all that can be had: those on outputs with a readout alone.
        thresholds: rule -> another threshold than the published.
        readout: as in `exit_rule`.
        select: labels to select, as in `measure`; of a recording of several layers, the one that is the loop state.
        first_recurrence: as in `recurrences_needed`.
        confidence_level, rng: as in `estimate`.

    Returns:
        `ExitRules`, with estimates of

        * `fired`, share of the orbits that were long enough and finite;
        * `saved`, recurrences, and `saved_share`, means over the same orbits: where the rule never fired nothing is
          saved;
        * `distance`, `at_floor`, `at_rest` and, with a readout, `kl` and `argmax_changed`: means over the orbits at
          which it fired.

    Raises:
        ValueError: as `exit_rule`, `estimate` and `measure`.

    Misleads:
        As `exit_rule`. Costs are of the orbits that left early, savings of all: multiply costs by `fired` before they
        are weighed against each other.

    Source:
        As `exit_rule`; intervals as `estimate`.

    Example:
        >>> import numpy as np
        >>> from dynloop import Trajectories
        >>> from dynloop.advice import exit_rules
        >>> rng = np.random.default_rng(0)
        >>> rate = rng.uniform(0.5, 0.9, 40)[:, None, None]
        >>> states = 1 + rate ** np.arange(1, 65)[None, :, None] * np.ones(8)
        >>> orbits = Trajectories(states, labels={"prompt": np.arange(40)})
        >>> exit_rules(orbits, resample="prompt").to_frame()[["rule", "fired", "saved"]].round(1)
                        rule  fired  saved
        0  latent difference    1.0   55.8
        1       acceleration    1.0   55.8
        2             cosine    1.0   62.0
    """
    if rules is None:
        rules = list(RULES if readout is not None else STATE_RULES)
    elif isinstance(rules, str) or not rules or not set(rules) <= set(RULES):
        raise ValueError(f"rules must be a list of {', '.join(RULES)}; got {rules!r}.")
    if unknown := sorted(set(thresholds or {}) - set(rules)):
        raise ValueError(f"thresholds are given for {', '.join(unknown)}, not among the rules {', '.join(rules)}.")
    if readout is None and (needy := [rule for rule in rules if rule in OUTPUT_RULES]):
        raise ValueError(f"{', '.join(needy)} look at outputs: give readout=, such as readout_of(model, prompts).")
    asked = [functools.partial(exit_rule, rule=rule, threshold=(thresholds or {}).get(rule), readout=readout,
                               first_recurrence=first_recurrence) for rule in rules]
    measured = dict(zip(rules, measure(source, asked, select=select), strict=True))
    how = {"resample": resample, "confidence_level": confidence_level, "rng": rng}
    return ExitRules(measured, {rule: _estimates(one, how) for rule, one in measured.items()})


def _estimates(measured: Measurement, how: dict[str, Any]) -> dict[str, Estimate]:
    asked = measured.found | np.array([outcome in _NEVER for outcome in measured.outcomes], dtype=bool)
    if not asked.any():
        return {}
    ran = dataclasses.replace(measured, variables={  # to the end, where the rule never fired
        "fired": np.where(measured.found, 1.0, 0.0), **{name: np.where(measured.found, measured[name], 0.0)
                                                        for name in ("saved", "saved_share")}},
        units={"saved": "recurrences"},
        outcomes=[Outcome.FOUND if own else outcome for own, outcome in zip(asked, measured.outcomes, strict=True)])
    found = {name: estimate(ran, statistic="mean", variable=name, **how) for name in ran.variables}
    if measured.found.any():
        costs = [name for name in measured.variables if name not in ("recurrences", "saved", "saved_share")]
        found |= {name: estimate(measured, statistic="mean", variable=name, **how) for name in costs}
    return found
