"""The contract of every analyzer. A new file in dynloop/analyzers is found and held to it without a line here."""

import importlib
import inspect
import pkgutil

import numpy as np
import oracles
import pytest

import dynloop
import dynloop.analyzers
import dynloop.distances
from dynloop import Outcome
from dynloop.testing import ANALYZER_CONTRACTS, check_analyzer
from dynloop.testing.orbits import every_kind

NAMES = [m.name for m in pkgutil.iter_modules(dynloop.analyzers.__path__)]
SEES_THE_ORIGIN = {"limit_regime_blayney", "cyclic_fixed_points"}  # cosines


def named(name):
    """The analyzer of a file, exported or not."""
    return getattr(importlib.import_module(f"dynloop.analyzers.{name}"), name)


METRICS = [(name, metric) for name in NAMES if "metric" in inspect.signature(named(name)).parameters
           for metric in getattr(importlib.import_module(f"dynloop.analyzers.{name}"), "METRICS",
                                 dynloop.distances.METRICS)]


@pytest.fixture
def orbits():
    return every_kind()


def test_there_are_analyzers():
    assert len(NAMES) >= 4


@pytest.mark.parametrize("name", NAMES)
def test_a_file_holds_one_public_function_of_its_name_and_it_is_exported(name):
    module = importlib.import_module(f"dynloop.analyzers.{name}")
    public = [n for n, f in vars(module).items()
              if inspect.isfunction(f) and f.__module__ == module.__name__ and not n.startswith("_")]
    assert public == [name], f"dynloop/analyzers/{name}.py must hold one public function, {name}"
    line = f"from dynloop.analyzers.{name} import {name}"
    assert name in dynloop.analyzers.__all__, f"add to dynloop/analyzers/__init__.py: {line}, and its name to __all__"
    assert name in dynloop.__all__, f'add to _HOMES in dynloop/__init__.py: "{name}": "dynloop.analyzers",'
    assert getattr(dynloop, name) is getattr(dynloop.analyzers, name) is getattr(module, name)


def test_nothing_is_exported_that_has_no_file():
    assert sorted(dynloop.analyzers.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_how_when_and_whence(name):
    text = inspect.getdoc(named(name))
    places = [text.find(f"\n{section}:\n") for section in ("Args", "Returns", "Misleads", "Source", "Example")]
    assert places[0] > 0
    assert places == sorted(places), "a section is missing, or they are out of order"
    assert f"{name}(" in text[places[-1]:], "the example does not call it"
    for setting in inspect.signature(named(name)).parameters:
        assert f"\n    {setting}: " in text[places[0]:places[1]], f"Args does not explain {setting}"


@pytest.mark.parametrize("contract", ANALYZER_CONTRACTS)
@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract_of_analyzers(name, contract):
    if contract != "shifted space" or name not in SEES_THE_ORIGIN:
        check_analyzer(named(name), only=[contract])


@pytest.mark.parametrize("contract", ["alone", "turned space"])
@pytest.mark.parametrize(("name", "metric"), METRICS)
def test_it_does_in_every_metric(name, metric, contract):
    check_analyzer(named(name), settings={"metric": metric}, only=[contract])


@pytest.mark.parametrize("name", NAMES)
def test_the_first_argument_is_called_trajectories(name):
    assert next(iter(inspect.signature(named(name)).parameters)) == "trajectories"


@pytest.mark.parametrize("metric", ["euclidean", "relative", "cosine"])
def test_the_two_distances_are_those_of_their_formulas(metric, orbits):
    step = dynloop.successive_distance(orbits, metric=metric)
    away = dynloop.distance_to_limit(orbits, metric=metric)
    for o, orbit in enumerate(orbits.states.numpy()):
        np.testing.assert_allclose(step.values[o], oracles.successive(orbit, metric), rtol=1e-6, atol=1e-13)
        np.testing.assert_allclose(away.values[o], oracles.from_last(orbit, metric), rtol=1e-6, atol=1e-13)
        assert away["last_step"][o] == pytest.approx(oracles.successive(orbit, "relative")[-1], rel=1e-9)
    assert {step.unit, away.unit} == {"state units" if metric == "euclidean" else ""}


def test_the_last_step_and_the_last_quarter_decide_what_counts_as_a_limit(orbits):
    for tolerance in (1e-6, 1e-3, 0.1):
        m = dynloop.distance_to_limit(orbits, tolerance=tolerance)
        assert set(m.outcomes) == {Outcome.FOUND, Outcome.NOT_CONVERGED}
        late = [np.median(oracles.from_last(orbit, "relative")[-1 - orbits.n_steps // 4:-1])
                for orbit in orbits.states.numpy()]
        np.testing.assert_allclose(m["late_distance"], late, rtol=1e-9)
        assert m.found.tolist() == (np.maximum(m["last_step"], late) <= tolerance).tolist()
        assert np.isfinite(m.values).all()  # given all the same


def test_before_the_end_of_the_finite_numbers_there_are_steps_but_no_limit(orbits):
    states = orbits.states.clone()
    states[0, 40] = np.nan
    cut = orbits.replace(states=states)
    step, away = dynloop.successive_distance(cut), dynloop.distance_to_limit(cut)
    np.testing.assert_array_equal(np.isfinite(step.values[0]), np.arange(63) < 39)
    np.testing.assert_allclose(step.values[0, :39], dynloop.successive_distance(orbits).values[0, :39], rtol=1e-9)
    assert np.isnan(away.values[0]).all()
    assert np.isnan(away["last_step"][0])
