"""Families of p-values, by hand and by scipy."""

import numpy as np
import pytest
from scipy import stats

from dynloop.statistics.adjust import adjust_pvalues


def test_holm_multiplies_by_the_number_of_tests_that_are_left():
    assert adjust_pvalues([0.01, 0.5, 0.03, 0.02]) == pytest.approx([0.04, 0.5, 0.06, 0.06])


def test_benjamini_and_hochberg_is_scipys(rng):
    p = rng.random((4, 5)) ** 2
    theirs = stats.false_discovery_control(p, axis=None).reshape(4, 5)
    assert adjust_pvalues(p, method="fdr_bh") == pytest.approx(theirs, rel=1e-12)


def test_a_test_without_an_answer_does_not_count():
    found = adjust_pvalues([0.01, np.nan, 0.04])
    assert found == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert np.isnan(adjust_pvalues([np.nan])).all()


def test_what_is_no_p_value_and_no_method_is_refused():
    with pytest.raises(ValueError, match="p-values lie between 0 and 1; got"):
        adjust_pvalues([0.1, 1.2])
    with pytest.raises(ValueError, match="method must be one of holm, fdr_bh; got 'sidak'"):
        adjust_pvalues([0.1], method="sidak")


def test_the_range_of_wrong_p_values_is_told_beside_missing_ones():
    with pytest.raises(ValueError, match=r"got 0.5 to 1.1"):
        adjust_pvalues([0.5, np.nan, 1.1])
