"""One analyzer's answer: values and an outcome for every orbit."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynloop.outcome import Outcome

if TYPE_CHECKING:
    import pandas
    import xarray


def _frozen(values: Any) -> np.ndarray:
    """A read-only view; the caller's own array stays writable."""
    view = np.asarray(values).view()
    view.flags.writeable = False
    return view


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """What one analyzer says of every orbit.

    Args:
        name: the analyzer.
        variables: named values, the main one first; each (n_orbits,) or, one value a step, (n_orbits, n). Numbers are
            NaN (texts empty) where the outcome is not `FOUND`, unless the analyzer's docstring says otherwise.
        outcomes: one `Outcome` an orbit; kept as an array of them.
        units: unit of each variable ("" for a pure number); missing ones are "".
        settings: every setting of the analyzer, as used.
        labels: labels of the orbits.
        categories: for a variable of texts, all values that it can have.

    Raises:
        ValueError: shapes that do not agree.

    Example:
        >>> import numpy as np
        >>> from dynloop import Measurement, Outcome
        >>> m = Measurement("rate", {"rate": np.array([0.8, np.nan])}, [Outcome.FOUND, Outcome.TOO_SHORT])
        >>> m
        Measurement(rate of 2 orbits: 1 found, 1 too short)
    """

    name: str
    variables: Mapping[str, np.ndarray]
    outcomes: Any
    units: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    categories: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        outcomes = np.array(self.outcomes, dtype=object)
        if outcomes.ndim != 1 or not all(isinstance(o, Outcome) for o in outcomes):
            raise ValueError(f"outcomes must be a list of Outcome members, one an orbit; got {self.outcomes!r}.")
        if not self.variables:
            raise ValueError(f"a measurement needs at least one variable; {self.name!r} has none.")
        variables = {name: _frozen(values) for name, values in self.variables.items()}
        labels = {name: _frozen(values) for name, values in self.labels.items()}
        outcomes.flags.writeable = False
        for kind, named, dims in (("variable", variables, (1, 2)), ("label", labels, (1,))):
            for name, values in named.items():
                if values.ndim not in dims or len(values) != len(outcomes):
                    raise ValueError(f"{kind} {name!r} of {self.name!r} must hold one row for each of "
                                     f"{len(outcomes)} orbits; got shape {values.shape}.")
        if unknown := set(self.units) - set(variables):
            raise ValueError(f"units are given for {', '.join(sorted(unknown))}, which {self.name!r} does not have.")
        units = {name: self.units.get(name, "") for name in variables}
        for name, value in (("outcomes", outcomes), ("variables", types.MappingProxyType(variables)),
                            ("labels", types.MappingProxyType(labels)), ("units", types.MappingProxyType(units)),
                            ("settings", types.MappingProxyType(dict(self.settings))),
                            ("categories", types.MappingProxyType(dict(self.categories)))):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple:
        return Measurement, (self.name, dict(self.variables), self.outcomes, dict(self.units), dict(self.settings),
                             dict(self.labels), dict(self.categories))

    @property
    def values(self) -> np.ndarray:
        """The main variable."""
        return next(iter(self.variables.values()))

    @property
    def unit(self) -> str:
        """Unit of the main variable."""
        return next(iter(self.units.values()))

    @property
    def n_orbits(self) -> int:
        return len(self.outcomes)

    @functools.cached_property
    def found(self) -> np.ndarray:
        """Where the question was answered, (n_orbits,) bool; read-only."""
        return _frozen(self.outcomes == Outcome.FOUND)

    def __getitem__(self, name: str) -> np.ndarray:
        """One variable by name."""
        if name not in self.variables:
            raise KeyError(f"{self.name} has no variable {name!r}; it has {', '.join(self.variables)}.")
        return self.variables[name]

    def counts(self) -> dict[Outcome, int]:
        """Orbits by outcome, in the order of `Outcome`; those that did not occur are left out."""
        counted = {o: int((self.outcomes == o).sum()) for o in Outcome}
        return {o: n for o, n in counted.items() if n}

    def __repr__(self) -> str:
        counted = ", ".join(f"{n} {o.value}" for o, n in self.counts().items())
        return f"Measurement({self.name} of {self.n_orbits} orbits: {counted})"

    def select(self, **wanted: Any) -> Measurement:
        """The orbits whose labels have the wanted value, or one of the wanted values."""
        mask = np.ones(self.n_orbits, dtype=bool)
        for name, values in wanted.items():
            if name not in self.labels:
                raise ValueError(f"no label {name!r}; {self.name} has {', '.join(self.labels) or 'no labels'}.")
            mask &= np.isin(self.labels[name], np.atleast_1d(values))
        if not mask.any():
            raise ValueError("no orbit has " + ", ".join(f"{n}={v!r}" for n, v in wanted.items()) + ".")
        return dataclasses.replace(self, outcomes=self.outcomes[mask],
                                   variables={n: v[mask] for n, v in self.variables.items()},
                                   labels={n: v[mask] for n, v in self.labels.items()})

    def to_frame(self) -> pandas.DataFrame:
        """A pandas frame: labels, outcome and variables, a row an orbit.

        With a variable of one value a step there is a row an orbit and step, and a column `step`; scalar variables
        are repeated.
        """
        import pandas as pd

        self._refuse_clashes("step")
        frame = pd.DataFrame({**self.labels, "outcome": [o.value for o in self.outcomes]})
        curves = {name: values for name, values in self.variables.items() if values.ndim == 2}
        for name, values in self.variables.items():
            if values.ndim == 1:
                frame[name] = values
        if not curves:
            return frame
        n_steps = max(values.shape[1] for values in curves.values())
        frame = frame.loc[frame.index.repeat(n_steps)].reset_index(drop=True)
        frame["step"] = np.tile(np.arange(n_steps), self.n_orbits)
        for name, values in curves.items():
            padded = np.full((self.n_orbits, n_steps), np.nan)
            padded[:, :values.shape[1]] = values
            frame[name] = padded.ravel()
        return frame

    def to_xarray(self) -> xarray.Dataset:
        """An xarray dataset over `orbit` (and `step` or `<name>_step`); labels are coordinates, settings attributes."""
        import xarray as xr

        curves = {name: values.shape[1] for name, values in self.variables.items() if values.ndim == 2}
        shared = len(set(curves.values())) == 1
        data = {name: (("orbit",) if values.ndim == 1 else ("orbit", "step" if shared else f"{name}_step"), values,
                       {"unit": self.units[name]}) for name, values in self.variables.items()}
        data["outcome"] = (("orbit",), np.array([o.value for o in self.outcomes]), {})
        coordinates = {name: (("orbit",), values) for name, values in self.labels.items()}
        self._refuse_clashes(*{dim for dims, *_ in data.values() for dim in dims})
        attributes = {"analyzer": self.name, **{f"setting_{k}": str(v) for k, v in self.settings.items()}}
        return xr.Dataset(data, coords=coordinates, attrs=attributes)

    def _refuse_clashes(self, *taken: str) -> None:
        if clash := sorted(set(self.labels) & {"outcome", *self.variables, *taken}):
            raise ValueError(f"{', '.join(clash)} is a label of {self.name} and the name of something else in the "
                             "table; rename the label.")

    @staticmethod
    def concatenate(parts: Sequence[Measurement]) -> Measurement:
        """Many measurements of one kind as one, in the given order.

        Raises:
            ValueError: none given, or different analyzers, settings, variables, step counts or labels.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("no measurement to concatenate; give at least one.")
        first = parts[0]
        for part in parts[1:]:
            for what, own, other in (("analyzers", first.name, part.name),
                                     ("settings", first.settings, part.settings),
                                     ("units", first.units, part.units),
                                     ("labels", list(first.labels), list(part.labels)),
                                     ("variables", [(n, v.shape[1:]) for n, v in first.variables.items()],
                                      [(n, v.shape[1:]) for n, v in part.variables.items()])):
                if own != other:
                    raise ValueError(f"measurements of different {what} cannot be one: {own} and {other}. "
                                     "Keep them apart, or measure again with the same settings.")
        if len(parts) == 1:
            return first
        return dataclasses.replace(
            first, outcomes=np.concatenate([p.outcomes for p in parts]),
            variables={n: np.concatenate([p.variables[n] for p in parts]) for n in first.variables},
            labels={n: np.concatenate([p.labels[n] for p in parts]) for n in first.labels})
