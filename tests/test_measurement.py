"""One analyzer's answer: shapes that agree, an outcome for every orbit, and tables that lose nothing."""

import numpy as np
import pytest

from dynloop import Measurement, Outcome

F, S, X = Outcome.FOUND, Outcome.TOO_SHORT, Outcome.NOT_FINITE


def rate(**changes):
    given = {"name": "rate", "variables": {"rate": [0.8, np.nan, 0.9], "length": [12.0, 3.0, 40.0]},
             "outcomes": [F, S, F], "units": {"rate": "per recurrence"}, "settings": {"factor": 3.0},
             "labels": {"prompt": [0, 0, 1], "model": ["a", "b", "b"]}}
    return Measurement(**(given | changes))


def curve(n_steps=4, **more):
    steps = np.arange(3.0 * n_steps).reshape(3, n_steps)
    return rate(variables={"d": steps, "last": [1.0, 2.0, 3.0], **more}, units={})


@pytest.mark.parametrize(("changes", "words"), [
    ({"outcomes": ["found", S, F]}, "outcomes must be a list of Outcome members"),
    ({"outcomes": [F, None, F]}, "outcomes must be a list of Outcome"),
    ({"outcomes": F}, "outcomes must be a list of Outcome"),
    ({"outcomes": [[F, S, F]]}, "outcomes must be a list of Outcome"),
    ({"variables": {}, "units": {}}, "at least one variable; 'rate' has none"),
    ({"variables": {"rate": [1.0, 2.0]}}, r"variable 'rate' of 'rate' must hold one row for each of 3.*shape \(2,\)"),
    ({"variables": {"rate": 1.0}}, "variable 'rate'"),
    ({"variables": {"rate": np.ones((3, 2, 2))}}, r"got shape \(3, 2, 2\)"),
    ({"labels": {"prompt": [1, 2]}}, "label 'prompt'"),
    ({"labels": {"prompt": np.ones((3, 2))}}, "label 'prompt'"),
    ({"units": {"speed": "m", "mass": "kg"}}, "units are given for mass, speed, which 'rate' does not have"),
])
def test_what_does_not_agree_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        rate(**changes)


def test_the_first_variable_is_the_value():
    m = rate()
    assert m.values is m["rate"]
    assert m.values[2] == 0.9
    assert m.unit == "per recurrence"
    assert m.units == {"rate": "per recurrence", "length": ""}
    assert m.n_orbits == 3
    assert m.found.tolist() == [True, False, True]


def test_an_unknown_variable_names_those_that_are_there():
    with pytest.raises(KeyError, match="rate has no variable 'speed'; it has rate, length"):
        rate()["speed"]


def test_counts_follow_the_order_of_outcomes_and_leave_out_none():
    assert list(rate(outcomes=[X, S, X]).counts().items()) == [(S, 1), (X, 2)]
    assert repr(rate()) == "Measurement(rate of 3 orbits: 2 found, 1 too short)"


def test_every_outcome_has_a_sentence_of_its_own():
    sentences = [outcome.sentence for outcome in Outcome]
    assert len(set(sentences)) == len(Outcome)
    assert all(s.endswith(".") and len(s.split()) >= 4 for s in sentences)


def test_a_measurement_is_frozen():
    m = rate()
    with pytest.raises(AttributeError):
        m.name = "other"
    for mapping in (m.variables, m.units, m.settings, m.labels):
        with pytest.raises(TypeError):
            mapping["rate"] = 1


def test_select_takes_rows_of_everything():
    part = rate().select(model="b", prompt=[1, 7])
    assert part.values.tolist() == [0.9]
    assert part.outcomes.tolist() == [F]
    assert part.labels["prompt"].tolist() == [1]
    assert (part.units, part.settings) == (rate().units, rate().settings)
    assert curve().select(prompt=0).values.shape == (2, 4)


@pytest.mark.parametrize(("wanted", "words"), [({"layer": 1}, "no label 'layer'; rate has prompt, model"),
                                               ({"prompt": 7}, "no orbit has prompt=7")])
def test_select_refuses_what_is_not_there(wanted, words):
    with pytest.raises(ValueError, match=words):
        rate().select(**wanted)
    with pytest.raises(ValueError, match="rate has no labels"):
        rate(labels={}).select(prompt=1)


def test_concatenation_keeps_the_order_and_undoes_selection():
    whole = curve()
    back = Measurement.concatenate([whole.select(prompt=0), whole.select(prompt=1)])
    for name in whole.variables:
        np.testing.assert_array_equal(back[name], whole[name])
    assert back.outcomes.tolist() == whole.outcomes.tolist()
    assert back.labels["model"].tolist() == ["a", "b", "b"]
    assert (back.name, back.units, back.settings) == (whole.name, whole.units, whole.settings)
    assert Measurement.concatenate(iter([whole])) is whole


def test_concatenation_keeps_texts_whole():
    short, long = (rate(variables={"regime": [text] * 3}, units={}) for text in ("orbit", "fixed point"))
    assert Measurement.concatenate([short, long]).values.tolist() == ["orbit"] * 3 + ["fixed point"] * 3


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": "other"}, "different analyzers cannot be one: rate and other"),
    ({"settings": {"factor": 2.0}}, "different settings"),
    ({"units": {}}, "different units"),
    ({"labels": {"prompt": [0, 0, 1]}}, "different labels"),
    ({"variables": {"rate": [1.0, 2.0, 3.0]}}, "different units|different variables"),
    ({"variables": {"rate": np.ones((3, 2)), "length": [1.0, 2.0, 3.0]}}, "different variables"),
    ({"variables": {"length": [1.0, 2.0, 3.0], "rate": [1.0, 2.0, 3.0]}}, "different variables"),
])
def test_measurements_of_different_things_are_not_joined(changes, words):
    with pytest.raises(ValueError, match=words):
        Measurement.concatenate([rate(), rate(**changes)])


def test_nothing_cannot_be_joined():
    with pytest.raises(ValueError, match="no measurement to concatenate"):
        Measurement.concatenate([])


def test_a_frame_has_a_row_an_orbit():
    frame = rate().to_frame()
    assert list(frame) == ["prompt", "model", "outcome", "rate", "length"]
    assert frame["outcome"].tolist() == ["found", "too short", "found"]
    np.testing.assert_array_equal(frame["rate"], [0.8, np.nan, 0.9])


def test_a_frame_of_curves_has_a_row_an_orbit_and_step():
    frame = curve().to_frame()
    assert len(frame) == 12
    assert frame["step"].tolist() == [0, 1, 2, 3] * 3
    assert frame["d"].tolist() == list(range(12))
    assert frame["last"].tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4
    assert frame["prompt"].tolist() == [0] * 8 + [1] * 4
    assert frame["outcome"].tolist() == ["found"] * 4 + ["too short"] * 4 + ["found"] * 4


def test_a_shorter_curve_beside_a_longer_one_is_filled_with_nan():
    frame = curve(short=np.ones((3, 2))).to_frame()
    np.testing.assert_array_equal(frame["short"], [1, 1, np.nan, np.nan] * 3)


def test_an_xarray_dataset_holds_variables_labels_units_and_settings():
    data = curve().to_xarray()
    assert data["d"].dims == ("orbit", "step")
    assert data["last"].dims == data["outcome"].dims == ("orbit",)
    assert data["model"].values.tolist() == ["a", "b", "b"]
    assert data["outcome"].values.tolist() == ["found", "too short", "found"]
    assert data.attrs == {"analyzer": "rate", "setting_factor": "3.0"}
    assert rate().to_xarray()["rate"].attrs == {"unit": "per recurrence"}
    np.testing.assert_array_equal(data["d"], curve()["d"])


def test_curves_of_different_lengths_get_dimensions_of_their_own():
    data = curve(short=np.ones((3, 2))).to_xarray()
    assert data["d"].dims == ("orbit", "d_step")
    assert data["short"].dims == ("orbit", "short_step")


@pytest.mark.parametrize("name", ["rate", "outcome"])
def test_a_label_that_is_also_a_variable_is_refused_by_xarray(name):
    for hand_on in ("to_xarray", "to_frame"):
        with pytest.raises(ValueError, match=f"{name} is a label of rate and the name of something else"):
            getattr(rate(labels={name: [1, 2, 3]}), hand_on)()
