"""The contract of an analyzer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from dynloop.measurement import Measurement
from dynloop.outcome import Outcome
from dynloop.testing.contract import Contract, claim, differ, hold
from dynloop.testing.orbits import DIM, N_ORBITS, N_STEPS, every_kind, long_chaos
from dynloop.trajectories import Trajectories

SEES = ("axes", "origin")
_NONSENSE: tuple[Any, ...] = (object(), "nonsense", [], {}, -1, float("nan"), float("inf"), -0.5, 1j)
_EXACT, _ROUNDED, _TINY = 1e-9, 1e-6, 1e-12


@dataclasses.dataclass(frozen=True)
class _Subject:
    analyzer: Callable[..., Measurement]
    settings: Mapping[str, Any]
    orbits: Trajectories

    def __call__(self, trajectories: Trajectories) -> Measurement:
        return self.analyzer(trajectories, **self.settings)

    @functools.cached_property
    def found(self) -> Measurement:
        """Of the orbits as they are."""
        return self(self.orbits)

    @property
    def own(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.analyzer).parameters.values())


def check_analyzer(analyzer: Callable[..., Measurement], *, settings: Mapping[str, Any] | None = None,
                   sees: Collection[str] = (), only: Sequence[str] | None = None) -> None:
    """Hold an analyzer to what dynloop relies on: f(trajectories, *, settings) -> Measurement.

    It is run on 22 small orbits of every kind (decays, drifts, cycles, walks, noise), some 60 times.

    Args:
        analyzer: the function.
        settings: with which it is run; by default its own defaults.
        sees: what its answer may depend on: "origin" (it looks at directions from 0, as cosines do), "axes" (it looks
            at single features). By default neither: distances do not change when state space is shifted or turned.
        only: some of the contracts, by their keys in `ANALYZER_CONTRACTS`; all by default.

    Raises:
        AssertionError: the first contract that is broken, with what to do.
        ValueError: no such contract, or another thing to see.

    Misleads:
        That an analyzer keeps its contract does not make its answers right: hold them against closed forms.

    Source:
        The contract tests of dynloop.analyzers, which call this function.

    Example:
        >>> import dynloop
        >>> from dynloop.testing import check_analyzer
        >>> check_analyzer(dynloop.successive_distance)
        >>> def endless(trajectories):
        ...     states = trajectories.states.double().numpy()
        ...     return dynloop.Measurement("endless", {"size": abs(states).max((1, 2))},
        ...                                [dynloop.Outcome.FOUND] * len(states), labels=trajectories.labels)
        >>> check_analyzer(endless, sees=["axes", "origin"])
        Traceback (most recent call last):
        ...
        AssertionError: endless breaks the contract 'orbits that are not finite': ...
    """
    if isinstance(sees, str) or not set(sees) <= set(SEES):
        raise ValueError(f"sees must be a list of some of {', '.join(SEES)}; got {sees!r}. Leave it out for none.")
    skipped = {key for key, needs in _NOT_SEEN.items() if needs & set(sees)}
    chosen = only if only is not None else [key for key in ANALYZER_CONTRACTS if key not in skipped]
    name = getattr(analyzer, "__name__", type(analyzer).__name__)
    hold(name, _Subject(analyzer, dict(settings or {}), every_kind()), ANALYZER_CONTRACTS, chosen)


def rows(m: Measurement, index: Any) -> Measurement:
    """Some rows of a measurement, without labels."""
    return Measurement(m.name, {name: values[index] for name, values in m.variables.items()}, m.outcomes[index])


def same(got: Measurement, wanted: Measurement, rtol: float = _EXACT, only: str | None = None) -> None:
    """Raise AssertionError unless outcomes are the same, and values to rounding."""
    unlike = np.flatnonzero(np.array([a is not b for a, b in zip(got.outcomes, wanted.outcomes, strict=True)]))
    if len(unlike):
        o = int(unlike[0])
        raise AssertionError(f"the outcome of orbit {o} is {got.outcomes[o].value} instead of "
                             f"{wanted.outcomes[o].value}")
    for name in [only] if only else wanted.variables:
        a, b = got[name], wanted[name]
        close = np.isclose(a, b, rtol=rtol, atol=_TINY, equal_nan=True) if b.dtype.kind in "fiub" else a == b
        if not close.all():
            at = tuple(int(i) for i in np.argwhere(~close)[0])
            raise AssertionError(f"{name}{list(at)} is {a[at]} instead of {b[at]}")


def _settings(own: _Subject) -> None:
    first, *settings = own.own
    claim(first.kind in (first.POSITIONAL_OR_KEYWORD, first.POSITIONAL_ONLY) and first.default is first.empty,
          f"its first argument, {first.name}, is not the trajectories alone")
    for setting in settings:
        claim(setting.kind is setting.KEYWORD_ONLY, f"{setting.name} is {setting.kind.description}")
        claim(setting.default is not setting.empty, f"{setting.name} has no default")


def _unknown(own: _Subject) -> None:
    try:
        own.analyzer(own.orbits, no_such_setting=1)
    except TypeError:
        return
    raise AssertionError("no_such_setting=1 was taken without a word")


def _nonsense(own: _Subject) -> None:
    for setting in own.own[1:]:
        for nonsense in _NONSENSE:
            try:
                own.analyzer(own.orbits, **{setting.name: nonsense})
            except TypeError:
                continue
            except ValueError as error:
                claim(str(error).startswith(f"{setting.name} ") and repr(nonsense) in str(error),
                      f"of {setting.name}={nonsense!r} it says {str(error)!r}")
                continue
            raise AssertionError(f"{setting.name}={nonsense!r} was taken without a word")


def _recorded(own: _Subject) -> None:
    claim(isinstance(own.found, Measurement), f"it gave {type(own.found).__name__}")
    name = getattr(own.analyzer, "__name__", type(own.analyzer).__name__)
    claim(own.found.name == name, f"its measurement is called {own.found.name!r}")
    used = {p.name: p.default for p in own.own[1:]} | dict(own.settings)
    claim(dict(own.found.settings) == used, f"it recorded {dict(own.found.settings)!r} of {used!r}")


def _outcomes(own: _Subject) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        m = own(Trajectories(own.orbits.states.to(dtype), labels=own.orbits.labels))
        claim(len(m.outcomes) == N_ORBITS, f"it gave {len(m.outcomes)} rows for {N_ORBITS} orbits")
        claim(all(isinstance(outcome, Outcome) for outcome in m.outcomes), "some are no Outcome")
        claim(m.found.any() or own(long_chaos(dtype)).found.any(), f"in {dtype} it never finds anything")
        for name, values in own.orbits.labels.items():
            claim(name in m.labels and differ(np.asarray(m.labels[name]), np.asarray(values), "x") == "",
                  f"the label {name} of the trajectories is not that of its rows")
        if m.values.dtype.kind == "f":
            claim(np.isfinite(m.values[m.found]).all(), f"in {dtype} a row is found and its value is not finite")


def _alone(own: _Subject) -> None:
    for o in range(N_ORBITS):
        same(own(own.orbits[o]), rows(own.found, slice(o, o + 1)))


def _chunks(own: _Subject) -> None:
    whole = own.found
    for at_once in (1, 5):
        small = functools.partialmethod(Trajectories.chunks, max_bytes=at_once * N_STEPS * DIM * 4)
        with mock.patch.object(Trajectories, "chunks", small):
            same(own(own.orbits.replace(labels=own.orbits.labels)), whole)


def _order(own: _Subject) -> None:
    order = np.random.default_rng(0).permutation(N_ORBITS)
    same(own(own.orbits[order]), rows(own.found, order))


def _turned(own: _Subject) -> None:
    q = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).normal(size=(DIM, DIM)))[0])
    same(own(own.orbits.replace(states=own.orbits.states @ q)), own.found, _ROUNDED)


def _features(own: _Subject) -> None:
    same(own(own.orbits.replace(states=own.orbits.states[:, :, [3, 0, 5, 1, 4, 2]])), own.found, _ROUNDED)


def _wider(own: _Subject) -> None:
    wider = torch.cat([own.orbits.states, torch.zeros(N_ORBITS, N_STEPS, 3, dtype=torch.float64)], dim=2)
    same(own(own.orbits.replace(states=wider)), own.found, _ROUNDED)


def _shifted(own: _Subject) -> None:
    same(own(own.orbits.replace(states=own.orbits.states + 0.5)), own.found, _ROUNDED,
         next(iter(own.found.variables)))


def _not_finite(own: _Subject) -> None:
    others = np.arange(N_ORBITS) != 3
    for bad in (np.nan, np.inf):
        for step in (0, 40, N_STEPS - 1):
            states = own.orbits.states.clone()
            states[3, step, 2] = bad
            m = own(own.orbits.replace(states=states))
            claim(m.outcomes[3] is Outcome.NOT_FINITE,
                  f"of an orbit with {bad} at step {step} it says {m.outcomes[3].value!r}")
            same(rows(m, others), rows(own.found, others))


def _too_short(own: _Subject) -> None:
    for short in (own.orbits.replace(states=own.orbits.states[:, :1]), own.orbits.replace(lengths=[1] * N_ORBITS),
                  own.orbits.replace(lengths=[0] * N_ORBITS)):
        said = {outcome.value for outcome in own(short).outcomes}
        claim(said == {Outcome.TOO_SHORT.value}, f"of orbits of at most one state it says {', '.join(sorted(said))}")


def _lengths(own: _Subject) -> None:
    states = own.orbits.states.clone()
    states[:, 50:] = 1e3
    states[7:, 55:] = np.nan
    cut = own(own.orbits.replace(states=states, lengths=[50] * N_ORBITS))
    short = own(own.orbits.replace(states=own.orbits.states[:, :50]))
    kept = {name: cut[name] if values.ndim == 1 else cut[name][:, :values.shape[1]]
            for name, values in short.variables.items()}
    same(Measurement(cut.name, kept, cut.outcomes), short)
    for name, values in short.variables.items():
        beyond = cut[name][:, values.shape[1]:] if values.ndim > 1 else np.zeros(0)
        claim(values.dtype.kind != "f" or np.isnan(beyond).all(), f"{name} has numbers beyond the length of an orbit")


def _untouched(own: _Subject) -> None:
    before = own.orbits.states.clone()
    own(own.orbits)
    claim(torch.equal(own.orbits.states, before), "the states of the trajectories are others afterwards")


def _again(own: _Subject) -> None:
    kept = {name: values.copy() for name, values in own(own.orbits).variables.items()}
    again = own(own.orbits)
    for name, values in kept.items():
        claim(np.array_equal(again[name], values, equal_nan=values.dtype.kind == "f"),
              f"{name} is another the second time")


_NOT_SEEN = {"turned space": {"axes"}, "order of features": {"axes"}, "features of 0": {"axes"},
             "shifted space": {"axes", "origin"}}
ANALYZER_CONTRACTS: dict[str, Contract] = {
    "settings": Contract(
        "take the trajectories first, and settings by name alone, each with a default",
        "Write def name(trajectories, *, setting=default).", _settings),
    "unknown settings": Contract(
        "refuse a setting that it does not know", "Leave **kwargs out of its signature.", _unknown),
    "nonsense": Contract(
        "refuse nonsense for every setting by a ValueError that begins with the setting's name and shows what came",
        "Use dynloop.settings.check_number or check_whole.", _nonsense),
    "recorded settings": Contract(
        "give a Measurement of its own name with all settings as they were used",
        "Pass name and settings={...} to Measurement, with every setting of the signature.", _recorded),
    "outcomes": Contract(
        "give every orbit an Outcome, in every dtype, with the labels of the trajectories, and finite values where "
        "found",
        "Pass outcomes and labels=trajectories.labels to Measurement; what is not finite is not FOUND.", _outcomes),
    "alone": Contract(
        "answer for each orbit of many as if it were alone",
        "Let nothing (a scale, a seed, a common fit) pass from one orbit to another.", _alone),
    "chunks": Contract(
        "give the same answer however trajectories.chunks() cuts them",
        "Keep the answers of the chunks apart and put them together in order.", _chunks),
    "order of orbits": Contract(
        "give the same answers in whatever order the orbits stand",
        "Draw random numbers, if any, for each orbit from a seed of its own.", _order),
    "turned space": Contract(
        "not change when state space is turned", "Use distances and angles; else say sees=['axes'].", _turned),
    "order of features": Contract(
        "not depend on the order of the features", "Use distances and angles; else say sees=['axes'].", _features),
    "features of 0": Contract(
        "not change when features are added that are always 0",
        "Do not divide by the number of features; else say sees=['axes'].", _wider),
    "shifted space": Contract(
        "not change when state space is shifted",
        "Use differences of states; where directions from 0 are meant, say sees=['origin'].", _shifted),
    "orbits that are not finite": Contract(
        "call an orbit with a number that is not finite NOT_FINITE, and leave the others alone",
        "Look at trajectories.diverged and trajectories.lengths before anything else.", _not_finite),
    "short orbits": Contract(
        "call an orbit of one state or none TOO_SHORT", "Look at trajectories.lengths before anything else.",
        _too_short),
    "lengths": Contract(
        "look at no state beyond the length of its orbit", "Cut each orbit at trajectories.lengths.", _lengths),
    "states": Contract("leave the states as they are", "Work on a copy.", _untouched),
    "the same again": Contract(
        "give the same answer to the same question",
        "Take random numbers from rng=0 (np.random.default_rng), and keep no state between calls.", _again)}
