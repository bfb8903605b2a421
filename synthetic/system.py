"""What every synthetic system is: a rule that makes orbits, and what is known of them."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

REGIMES = (
    "fixed point",     # at rest within 128 steps, but for a hundredth of the way or less
    "converging",      # on its way to a fixed point, with more than that left after 128 steps
    "orbit",           # settles on a cycle of 2 steps or more
    "quasi-periodic",  # bounded, never repeats, and close orbits stay close
    "slider",          # moves on without bound, in steps that do not grow
    "chaotic",         # bounded, and close orbits part exponentially
    "diverging",       # the steps grow without bound
    "undetermined",    # noise: no rule to be found
)
KNOWN = {  # what may be known of a system, in closed form (`exact`) or from somebody's run (`reported`)
    "regime": "one of REGIMES: what an ideal observer of the orbits made by default would say",
    "period": "exact period, in steps",
    "rate": "factor by which one step shrinks a small distance from the limit, once the slowest mode dominates "
            "(on a cycle: the geometric mean over its steps)",
    "lyapunov": "exponents, nats a step, largest first; as many as are known",
    "lyapunov_sum": "sum of all exponents, nats a step: log of the factor by which one step multiplies volumes",
    "multipliers": "multipliers of the limit (fixed point or cycle), largest modulus first",
    "fixed_point": "the state on which orbits settle, (dim,)",
    "cycle": "the states between which orbits settle, in order, (period, dim)",
    "rotation": "rotation number, turns a step; a tuple of them where several frequencies are independent",
    "dimension": "correlation dimension of the limit set",
    "kaplan_yorke": "Kaplan-Yorke dimension",
    "tail": "steps before the cycle of a finite map's orbit",
    "speed": "distance a step of a steady drift",
    "spectral_radius": "largest modulus of an eigenvalue of a linear rule",
}


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """A rule with known answers.

    Args:
        name: unique, readable, with its parameters: "logistic r=3.83".
        dim: dimensions of a state.
        start: (rng, n) -> states (n, dim), float64, from which orbits begin.
        step: (states (n, dim), rng) -> states (n, dim), one step of n orbits at once; rng is for noise and for nothing
            else. A deterministic rule does not touch it.
        transient: steps to leave out so that the orbits show the regime (0 where the approach is the regime).
        exact: closed-form answers, by the names in `KNOWN`.
        reported: answers from somebody's run: name -> (value, source).
        float64_only: narrower arithmetic changes the answer (chaos that collapses onto short cycles).
        noisy: the rule draws from rng.

    Raises:
        ValueError: a name that is not in `KNOWN`, an unknown regime, or a reported answer without its source.
    """

    name: str
    dim: int
    start: Callable[[np.random.Generator, int], np.ndarray]
    step: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    transient: int = 0
    exact: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reported: Mapping[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    float64_only: bool = False
    noisy: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted((set(self.exact) | set(self.reported)) - set(KNOWN)):
            raise ValueError(f"{self.name}: {', '.join(unknown)} is no known answer; choose from {', '.join(KNOWN)}.")
        if self.exact.get("regime", "chaotic") not in REGIMES:
            raise ValueError(f"{self.name}: regime must be one of {', '.join(REGIMES)}; got {self.exact['regime']!r}.")
        for what, found in self.reported.items():
            if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], str) and found[1]):
                raise ValueError(f"{self.name}: reported {what!r} must be (value, source); got {found!r}.")
        object.__setattr__(self, "exact", types.MappingProxyType(dict(self.exact)))
        object.__setattr__(self, "reported", types.MappingProxyType(dict(self.reported)))

    def orbits(self, n_orbits: int, n_steps: int, *, rng: Any = 0) -> np.ndarray:
        """States (n_orbits, n_steps, dim) in float64, after the transient; the same seed gives the same orbits.

        Nothing is cut or padded: an orbit that leaves the finite numbers goes on as inf or NaN.
        """
        rng = np.random.default_rng(rng)
        state = np.asarray(self.start(rng, n_orbits), dtype=np.float64)
        states = np.empty((n_orbits, n_steps, self.dim))
        with np.errstate(over="ignore", invalid="ignore"):
            for t in range(-self.transient, n_steps):
                if t >= 0:
                    states[:, t] = state
                if t + 1 < n_steps:
                    state = self.step(state, rng)
        return states

    def __repr__(self) -> str:
        return f"System({self.name})"
