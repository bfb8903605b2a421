"""From words to units: what `resample` and `target` mean for the rows at hand."""

from __future__ import annotations

import dataclasses

import numpy as np

from dynloop.statistics.nesting import ORBIT, Nesting, ranks
from dynloop.statistics.units import Leaves, Rows, group

THESE, SEEDS, BOTH = TARGETS = ("these models", "new seeds", "new seeds and prompts")
OF_TRAINING = ("seed", "run", "model")  # labels whose values are trained models


@dataclasses.dataclass(frozen=True, eq=False)
class Design:
    """Units, and how the interval goes about them.

    Attributes:
        leaves: the units.
        target: what the interval speaks of.
        kind: "one" level, "nested", "strata" (the outermost level is kept), "crossed".
    """

    leaves: Leaves
    target: str
    kind: str

    @property
    def n_outer(self) -> int:
        """Units of the level that limits what can be known."""
        if self.kind == "strata":
            return self.leaves.n_leaves
        return min(self.leaves.n_units(i) for i in range(2 if self.kind == "crossed" else 1))

    @property
    def strata(self) -> np.ndarray | None:
        """The stratum of each leaf."""
        return self.leaves.codes[0] if self.kind == "strata" else None

    def outermost(self, rows: np.ndarray) -> Leaves:
        """Whole outermost units as leaves; `rows` (n,) are the rows' units at that level."""
        return group(rows[None], Nesting(self.leaves.nesting.levels[:1]))


def design(rows: Rows, resample: str, target: str | None) -> Design:
    """What is resampled, for which target.

    Args:
        rows: what enters.
        resample: as in `estimate`.
        target: one of `TARGETS`; None for the one that `resample` implies.

    Raises:
        ValueError: a target that these units cannot speak of, or too few units.
    """
    nesting = Nesting.parse(resample)
    if target is not None and target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(map(repr, TARGETS))}; got {target!r}. Leave it out for the "
                         "one that resample implies.")
    trained = [name for name in nesting.levels if name in OF_TRAINING]
    outer, kind = nesting.levels[0], "crossed" if nesting.crossed else "nested" if len(nesting.levels) > 1 else "one"
    possible: tuple[str, ...]
    if kind == "crossed":
        implied, possible = BOTH, TARGETS if len(trained) == 1 else (BOTH,)
    elif outer in OF_TRAINING:
        implied, possible = SEEDS, (SEEDS,) if kind == "one" else TARGETS
    else:
        implied, possible = THESE, (THESE,)
    target = target or implied
    if target not in possible:
        raise ValueError(f"resample={resample!r} can speak of {' or '.join(map(repr, possible))}, not of {target!r}: "
                         + ("resample 'seed > prompt' or 'seed × prompt' for that." if target != THESE else
                            "resample 'prompt' for that."))
    codes = nesting.codes(rows.labels, rows.used)
    if kind == "crossed" and target != BOTH:  # the other level is kept as it is
        keep = next(i for i, name in enumerate(nesting.levels) if (name in OF_TRAINING) == (target == SEEDS))
        nesting, codes, kind = Nesting((nesting.levels[keep],)), codes[keep:keep + 1], "one"
    elif kind == "nested" and target == THESE and outer in OF_TRAINING:
        kind = "strata"
    leaves = group(codes, nesting)
    _refuse_too_few(leaves, target, kind)
    return Design(leaves, target, kind)


def under_many(rows: Rows, nesting: Nesting) -> bool:
    """Whether values of the second level lie under several units of the first: they may be the same units."""
    outer, inner = (ranks(rows.labels[name][rows.used]) for name in nesting.levels[:2])
    n = int(inner.max()) + 1
    return len(np.unique(outer * n + inner)) > n


def _refuse_too_few(leaves: Leaves, target: str, kind: str) -> None:
    """An interval needs two units, and three models if it speaks of others."""
    units = leaves.units()
    if kind == "strata":
        sizes = np.bincount(leaves.codes[0])
        if sizes.min() < 2:
            name = leaves.nesting.levels[-1]
            raise ValueError(f"target 'these models' needs at least two {name}s in each {leaves.nesting.levels[0]}; "
                             f"got {sizes.min()}. Record more, or resample {leaves.nesting.levels[0]!r}.")
        return
    for name in leaves.nesting.levels if kind == "crossed" else leaves.nesting.levels[:1]:
        least = 3 if target != THESE and (name in OF_TRAINING) else 2
        if units[name] < least and least == 3:
            raise ValueError(f"{units[name]} {name}{'s' * (units[name] != 1)} cannot say how {name}s differ: an "
                             f"interval for {target} needs at least three. Record more, or use resample='prompt' and "
                             "the interval speaks of these models alone.")
        if units[name] < least:
            raise ValueError(f"resampling needs at least two {name}s; got {units[name]}. Record more, or state the "
                             "number without an interval." + (" Resample a label." if name == ORBIT else ""))
