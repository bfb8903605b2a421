"""Numbers with intervals that hold for tokens within prompts."""

from dynloop.statistics.estimate import Estimate, estimate

__all__ = ["Estimate", "estimate"]
