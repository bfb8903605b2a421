"""Kaplan-Yorke dimension: the formula against a slow one, known systems, intervals, and what is no answer."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynloop.maps.kaplan_yorke_dimension import kaplan_yorke_dimension
from dynloop.maps.lyapunov_spectrum import lyapunov_spectrum
from dynloop.outcome import Outcome
from synthetic import coupled_maps, henon, kaplan_yorke


def slow(exponents):
    """One sum after another."""
    total = 0.0
    for j, own in enumerate(exponents):
        if total + own < 0:
            return j + total / abs(own)
        total += own
    return float(len(exponents))


@given(hnp.arrays(float, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-3, 3)))
@settings(max_examples=60, deadline=None)
def test_every_spectrum_equals_the_oracle(exponents):
    exponents = -np.sort(-exponents, axis=1)
    m = kaplan_yorke_dimension(exponents)
    np.testing.assert_allclose(m.values, [slow(own) for own in exponents], atol=1e-9)
    assert ((m.values >= 0) & (m.values <= exponents.shape[1])).all()


@pytest.mark.parametrize("system", [s for s in (*coupled_maps.SYSTEMS, *henon.SYSTEMS, *kaplan_yorke.SYSTEMS)
                                    if {"kaplan_yorke", "lyapunov"} <= {*s.exact, *s.reported}], ids=lambda s: s.name)
def test_known_spectra_have_the_known_dimension(system):
    known = {**{name: value for name, (value, _) in system.reported.items()}, **system.exact}
    m = kaplan_yorke_dimension([known["lyapunov"]])
    assert m.values[0] == pytest.approx(known["kaplan_yorke"], abs=2e-5)


def test_the_dimension_of_henon_lies_in_its_interval():
    spectrum = lyapunov_spectrum(lambda x: (1 - 1.4 * x[0] * x[0] + x[1], 0.3 * x[0]),
                                 0.05 * np.random.default_rng(0).normal(size=(12, 2)),
                                 jacobian=lambda x: ((-2.8 * x[0], 1.0), (0.3, 0.0)), n_steps=50_000)
    m = kaplan_yorke_dimension(spectrum)
    assert ((m["low"] < 1.25827) & (m["high"] > 1.25827)).mean() > 0.7
    np.testing.assert_allclose(m.values, 1.25827, atol=5e-3)
    wider = kaplan_yorke_dimension(spectrum, confidence_level=0.999)
    assert (wider["high"] - wider["low"] > m["high"] - m["low"]).all()


def test_an_orbit_at_rest_has_dimension_0_and_one_that_fills_space_all_of_them():
    m = kaplan_yorke_dimension([[-0.1, -0.2], [0.3, -0.3], [0.3, 0.1], [0.2, -math.inf]])
    assert m.values.tolist() == [0, 2, 2, 1]
    assert m["n_exponents"].tolist() == [1, 2, 2, 2]


def test_too_few_exponents_are_no_answer():
    m = kaplan_yorke_dimension([[0.3, -0.1], [0.3, -0.4]], dim=3)
    assert m.outcomes.tolist() == [Outcome.NOT_FOUND, Outcome.FOUND]
    assert np.isnan(m.values).tolist() == [True, False]


def test_an_orbit_without_exponents_has_no_dimension():
    spectrum = lyapunov_spectrum(lambda x: (4.5 * x[0] * (1 - x[0]),), [[0.3], [0.0]],
                                 jacobian=lambda x: ((4.5 - 9 * x[0],),))
    m = kaplan_yorke_dimension(spectrum)
    assert m.outcomes.tolist() == [Outcome.NOT_FINITE, Outcome.FOUND]
    assert np.isnan(m["low"]).tolist() == [True, False]
    assert kaplan_yorke_dimension([[math.nan, 0.0]]).outcomes.tolist() == [Outcome.NOT_FINITE]


@pytest.mark.parametrize(("given_", "options", "words"), [
    ([0.1, -0.2], {}, r"exponents must have shape \(n, k\)"), ([[]], {}, "exponents must have shape"),
    ([[0.1, -0.2]], {"dim": 1}, "dim must be a whole number of at least the 2"),
    ([[0.1]], {"confidence_level": 0}, "confidence_level must be between 0 and 1"),
])
def test_input_that_makes_no_sense_is_refused(given_, options, words):
    with pytest.raises(ValueError, match=words):
        kaplan_yorke_dimension(given_, **options)


def test_a_spectrum_knows_its_dimensions():
    spectrum = lyapunov_spectrum(lambda x: (0.5 * x[0],), [[1.0]], jacobian=lambda x: ((0.5,),))
    with pytest.raises(ValueError, match="a state has 1 numbers; leave dim out"):
        kaplan_yorke_dimension(spectrum, dim=3)
