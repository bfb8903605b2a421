"""Analyses of a recording: f(trajectories, *, ...) -> Measurement, one question a file, named after its function."""

from dynloop.analyzers.chaos_01 import chaos_01
from dynloop.analyzers.contraction_rate import contraction_rate
from dynloop.analyzers.convergence_time import convergence_time
from dynloop.analyzers.correlation_dimension import correlation_dimension
from dynloop.analyzers.cyclic_fixed_points import cyclic_fixed_points
from dynloop.analyzers.distance_to_limit import distance_to_limit
from dynloop.analyzers.dominant_modes import dominant_modes
from dynloop.analyzers.limit_regime import limit_regime
from dynloop.analyzers.limit_regime_blayney import limit_regime_blayney
from dynloop.analyzers.lyapunov_from_data import lyapunov_from_data
from dynloop.analyzers.minimal_period import minimal_period
from dynloop.analyzers.path_straightness import path_straightness
from dynloop.analyzers.recurrence_quantification import recurrence_quantification
from dynloop.analyzers.successive_distance import successive_distance
from dynloop.analyzers.turning_angle import turning_angle

__all__ = [
    "chaos_01",
    "contraction_rate",
    "convergence_time",
    "correlation_dimension",
    "cyclic_fixed_points",
    "distance_to_limit",
    "dominant_modes",
    "limit_regime",
    "limit_regime_blayney",
    "lyapunov_from_data",
    "minimal_period",
    "path_straightness",
    "recurrence_quantification",
    "successive_distance",
    "turning_angle",
]
