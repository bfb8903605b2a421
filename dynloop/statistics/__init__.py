"""Numbers with intervals that hold for tokens within prompts, comparisons, and nulls."""

from dynloop.statistics.adjust import adjust_pvalues
from dynloop.statistics.block_length import optimal_block_length
from dynloop.statistics.compare import Comparison, Comparisons, compare
from dynloop.statistics.estimate import Estimate, estimate
from dynloop.statistics.mixed_model import mixed_model
from dynloop.statistics.poisson_sums import PoissonSums, poisson_sums
from dynloop.statistics.power import VarianceComponents, detectable_effect, power, power_table
from dynloop.statistics.proportion import proportion
from dynloop.statistics.surrogate import surrogate_test
from dynloop.statistics.surrogates import surrogates

__all__ = [
    "Comparison",
    "Comparisons",
    "Estimate",
    "PoissonSums",
    "VarianceComponents",
    "adjust_pvalues",
    "compare",
    "detectable_effect",
    "estimate",
    "mixed_model",
    "optimal_block_length",
    "poisson_sums",
    "power",
    "power_table",
    "proportion",
    "surrogate_test",
    "surrogates",
]
