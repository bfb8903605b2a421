"""The contract of every analyzer. A new file in dynloop/analyzers is found and held to it without a line here."""

import functools
import importlib
import inspect
import pkgutil

import numpy as np
import oracles
import pytest
import torch

import dynloop
import dynloop.analyzers
import dynloop.distances
from dynloop import Measurement, Outcome, Trajectories

NAMES = [m.name for m in pkgutil.iter_modules(dynloop.analyzers.__path__)]
SEES_THE_ORIGIN = {"limit_regime_blayney", "cyclic_fixed_points"}  # cosines


def named(name):
    """The analyzer of a file, exported or not."""
    return getattr(importlib.import_module(f"dynloop.analyzers.{name}"), name)


SETTINGS = [(name, setting) for name in NAMES for setting in list(inspect.signature(named(name)).parameters)[1:]]


@pytest.fixture(params=NAMES)
def analyze(request):
    return named(request.param)


def in_every_metric(analyze):
    """The analyzer with its defaults, and in each metric that it knows."""
    yield analyze
    if "metric" in inspect.signature(analyze).parameters:
        for metric in getattr(importlib.import_module(analyze.__module__), "METRICS", dynloop.distances.METRICS):
            yield functools.partial(analyze, metric=metric)


@pytest.fixture
def orbits(rng):
    """Decays (to noise, too), drifts, circles, cycles, walks, noise and growth: 22 orbits in 6 dimensions."""
    t = np.arange(64)[:, None]
    end, away = rng.normal(size=(2, 22, 1, 6))
    moves = [0.7**t, 0.75**t, 0.8**t, 0.9**t, 0.97**t, 0.99**t, t**1.5 / 64, np.sqrt(t), 1.05**t, (-1.0) ** t]
    states = end + np.stack([away[i] * moves[i] if i < len(moves) else 0 * t * away[i] for i in range(22)])
    angle = 2 * np.pi * t[:, 0] / 7
    states[10, :, :2] += np.stack([np.cos(angle), np.sin(angle)], axis=1)
    states[11:14] += rng.normal(size=(3, 3, 6))[:, np.arange(64) % 3]
    states[14:18] += rng.normal(size=(4, 64, 6)).cumsum(1)
    golden = np.pi * (5**0.5 - 1) * np.arange(64)
    states[17] = end[17] + 3 * np.stack([np.cos(golden), np.sin(golden), *np.zeros((4, 64))], axis=1)
    states[18:20] += away[18:20] * 0.5**t + 1e-3 * rng.normal(size=(2, 64, 6))
    states[20:] += rng.normal(size=(2, 64, 6))
    return Trajectories(states, labels={"prompt": np.arange(22) // 4, "token": np.arange(22) % 4})


def long_chaos(dtype):
    """Two orbits of the logistic map, 600 steps, along a line in 6 dimensions."""
    x, states = np.array([0.2, 0.3]), []
    for _ in range(600):
        states.append(x)
        x = 4 * x * (1 - x)
    return Trajectories(torch.from_numpy(np.stack(states, 1)[:, :, None] * np.ones(6) / 2).to(dtype))


def same(got, wanted, rtol=1e-9, only=None):
    """The same outcomes, and the same values to rounding."""
    assert got.outcomes.tolist() == wanted.outcomes.tolist()
    for name in [only] if only else wanted.variables:
        if wanted[name].dtype.kind in "fiub":
            np.testing.assert_allclose(got[name], wanted[name], rtol=rtol, atol=1e-12, err_msg=name)
        else:
            assert got[name].tolist() == wanted[name].tolist()


def rows(m, index):
    return Measurement(m.name, {name: values[index] for name, values in m.variables.items()}, m.outcomes[index])


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


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_keyword_only_and_have_defaults(name, orbits):
    analyze = named(name)
    first, *settings = inspect.signature(analyze).parameters.values()
    assert first.name == "trajectories"
    for setting in settings:
        assert setting.kind is inspect.Parameter.KEYWORD_ONLY
        assert setting.default is not inspect.Parameter.empty
    with pytest.raises(TypeError):
        analyze(orbits, "euclidean")


def test_an_unknown_setting_is_refused(analyze, orbits):
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        analyze(orbits, nonsense=1)


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_nonsense_is_refused_for_every_setting(name, setting, orbits):
    for nonsense in (object(), "nonsense", [], {}, -1, float("nan"), float("inf"), -0.5, 1j):
        with pytest.raises((ValueError, TypeError)) as refusal:
            named(name)(orbits, **{setting: nonsense})
        if isinstance(refusal.value, ValueError):
            assert str(refusal.value).startswith(f"{setting} "), nonsense
            assert repr(nonsense) in str(refusal.value)


def test_defaults_are_recorded_as_used(analyze, orbits):
    m = analyze(orbits)
    assert m.name == analyze.__name__
    assert dict(m.settings) == {p.name: p.default for p in list(inspect.signature(analyze).parameters.values())[1:]}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_orbit_has_an_outcome_in_every_dtype(analyze, orbits, dtype):
    m = analyze(Trajectories(orbits.states.to(dtype), labels=orbits.labels))
    assert len(m.outcomes) == 22
    assert all(isinstance(outcome, Outcome) for outcome in m.outcomes)
    if not m.found.any():  # 64 steps are too few for some questions
        assert analyze(long_chaos(dtype)).found.any()
    assert m.labels["token"].tolist() == orbits.labels["token"].tolist()
    for name, values in m.variables.items():
        assert len(values) == 22
        if values is m.values and values.dtype.kind == "f":
            assert np.isfinite(values[m.found]).all(), name


def test_many_orbits_are_measured_as_each_would_be_alone(analyze, orbits):
    for one in in_every_metric(analyze):
        together = one(orbits)
        for o in range(22):
            same(one(orbits[o]), rows(together, slice(o, o + 1)))


@pytest.mark.parametrize("at_once", [1, 5])
def test_chunks_do_not_matter(analyze, orbits, at_once, monkeypatch):
    whole = analyze(orbits)
    monkeypatch.setattr(Trajectories, "chunks", functools.partialmethod(Trajectories.chunks,
                                                                        max_bytes=at_once * 64 * 6 * 4))
    parts = analyze(orbits.replace(labels=orbits.labels))
    same(parts, whole)
    assert parts.labels["token"].tolist() == whole.labels["token"].tolist()


def test_the_order_of_orbits_does_not_matter(analyze, orbits):
    order = np.random.default_rng(0).permutation(22)
    same(analyze(orbits[order]), rows(analyze(orbits), order))


def test_a_rotation_of_state_space_changes_nothing(analyze, orbits, rng):
    q = torch.from_numpy(np.linalg.qr(rng.normal(size=(6, 6)))[0])
    turned = orbits.replace(states=orbits.states @ q)
    for one in in_every_metric(analyze):
        same(one(turned), one(orbits), rtol=1e-6)


def test_the_order_of_features_changes_nothing(analyze, orbits):
    same(analyze(orbits.replace(states=orbits.states[:, :, [3, 0, 5, 1, 4, 2]])), analyze(orbits), rtol=1e-6)


def test_a_feature_that_is_always_0_changes_nothing(analyze, orbits):
    wider = torch.cat([orbits.states, torch.zeros(22, 64, 3, dtype=torch.float64)], dim=2)
    same(analyze(orbits.replace(states=wider)), analyze(orbits), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(NAMES) - SEES_THE_ORIGIN))
def test_a_shift_of_state_space_changes_no_distance_and_no_rate(name, orbits):
    analyze = named(name)
    moved, still = analyze(orbits.replace(states=orbits.states + 0.5)), analyze(orbits)
    same(moved, still, rtol=1e-6, only=next(iter(still.variables)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("step", [0, 40, 63])
def test_an_orbit_that_leaves_the_finite_numbers_changes_itself_only(analyze, orbits, bad, step):
    states = orbits.states.clone()
    states[3, step, 2] = bad
    others = np.arange(22) != 3
    m = analyze(orbits.replace(states=states))
    assert m.outcomes[3] is Outcome.NOT_FINITE
    same(rows(m, others), rows(analyze(orbits), others))


def test_one_state_is_too_short(analyze, orbits):
    for short in (orbits.replace(states=orbits.states[:, :1]), orbits.replace(lengths=[1] * 22),
                  orbits.replace(lengths=[0] * 22)):
        m = analyze(short)
        assert m.outcomes.tolist() == [Outcome.TOO_SHORT] * 22


def test_what_lies_beyond_a_given_length_does_not_count(analyze, orbits):
    states = orbits.states.clone()
    states[:, 50:] = 1e3
    states[7:, 55:] = np.nan
    cut, short = analyze(orbits.replace(states=states, lengths=[50] * 22)), \
        analyze(orbits.replace(states=orbits.states[:, :50]))
    assert cut.outcomes.tolist() == short.outcomes.tolist()
    for name, values in short.variables.items():
        kept = cut[name] if values.ndim == 1 else cut[name][:, :values.shape[1]]
        if values.dtype.kind == "f":
            np.testing.assert_allclose(kept, values, rtol=1e-9, atol=1e-12, err_msg=name)
            assert values.ndim == 1 or np.isnan(cut[name][:, values.shape[1]:]).all()
        else:
            assert kept.tolist() == values.tolist()


def test_states_are_left_as_they_are(analyze, orbits):
    before = orbits.states.clone()
    analyze(orbits)
    assert torch.equal(orbits.states, before)


def test_asking_twice_gives_the_same_answer_and_memory_of_its_own(analyze, orbits):
    first = analyze(orbits)
    kept = {name: values.copy() for name, values in first.variables.items()}
    for values in first.variables.values():
        with pytest.raises(ValueError, match="read-only"):
            values[0] = values[0]
    again = analyze(orbits)
    for name, values in kept.items():
        np.testing.assert_array_equal(again[name], values)


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
