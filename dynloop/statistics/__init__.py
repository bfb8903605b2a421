"""Numbers with intervals that hold for tokens within prompts."""

from dynloop.statistics.estimate import Estimate, estimate
from dynloop.statistics.proportion import proportion

__all__ = ["Estimate", "estimate", "proportion"]
