"""Conformance for third parties: does an analyzer, a map or a looped model keep what the rest of dynloop relies on?

`check_analyzer`, `check_map` and `check_looped_model` run the contracts that dynloop holds its own to. Each raises
AssertionError with a sentence that names the broken contract and says what to do. They fit into any test:

    from dynloop.testing import check_analyzer

    def test_my_analyzer():
        check_analyzer(my_analyzer)
"""

from dynloop.testing.check_analyzer import ANALYZER_CONTRACTS, check_analyzer
from dynloop.testing.check_looped_model import MODEL_CONTRACTS, check_looped_model
from dynloop.testing.check_map import MAP_CONTRACTS, check_map

__all__ = ["ANALYZER_CONTRACTS", "MAP_CONTRACTS", "MODEL_CONTRACTS", "check_analyzer", "check_looped_model",
           "check_map"]
