"""Analyses of a recording: f(trajectories, *, ...) -> Measurement, one question a file, named after its function."""

from dynloop.analyzers.contraction_rate import contraction_rate
from dynloop.analyzers.distance_to_limit import distance_to_limit
from dynloop.analyzers.limit_regime_blayney import limit_regime_blayney
from dynloop.analyzers.successive_distance import successive_distance

__all__ = ["contraction_rate", "distance_to_limit", "limit_regime_blayney", "successive_distance"]
