"""dynloop: the dynamics of looped language models.

A looped model applies one block of layers again and again, h <- F(h; x). dynloop records what the loop does, measures
it, and reports the numbers with their intervals. Public names load on first use, so that `import dynloop` and
`dynloop --help` answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynloop.lazy import exports
from dynloop.version import __version__

_HOMES = {
    "Outcome": "dynloop.outcome",
    "Trajectories": "dynloop.trajectories",
    "Measurement": "dynloop.measurement",
    "Estimate": "dynloop.statistics",
    "Report": "dynloop.report",
    "Store": "dynloop.store",
    "open_store": "dynloop.store",
    "save": "dynloop.store",
    "load": "dynloop.store",
    "measure": "dynloop.measuring",
    "analyzer": "dynloop.measuring",
    "capture": "dynloop.recording",
    "successive_distance": "dynloop.analyzers",
    "distance_to_limit": "dynloop.analyzers",
    "contraction_rate": "dynloop.analyzers",
    "limit_regime": "dynloop.analyzers",
    "limit_regime_blayney": "dynloop.analyzers",
    "minimal_period": "dynloop.analyzers",
    "turning_angle": "dynloop.analyzers",
    "path_straightness": "dynloop.analyzers",
    "recurrence_quantification": "dynloop.analyzers",
    "convergence_time": "dynloop.analyzers",
    "cyclic_fixed_points": "dynloop.analyzers",
    "dominant_modes": "dynloop.analyzers",
    "chaos_01": "dynloop.analyzers",
    "lyapunov_from_data": "dynloop.analyzers",
    "correlation_dimension": "dynloop.analyzers",
    "LoopMap": "dynloop.maps",
    "trajectory": "dynloop.maps",
    "find_fixed_points": "dynloop.maps",
    "jacobian_spectrum": "dynloop.maps",
    "token_spectrum": "dynloop.maps",
    "cycle_multipliers": "dynloop.maps",
    "lyapunov_spectrum": "dynloop.maps",
    "kaplan_yorke_dimension": "dynloop.maps",
    "two_orbit_contraction": "dynloop.maps",
    "basin_fractions": "dynloop.maps",
    "attention_stability": "dynloop.maps",
    "intervene": "dynloop.maps",
    "recovery": "dynloop.maps",
    "attention_statistics": "dynloop.attention",
    "record": "dynloop.recording",
    "step_statistics": "dynloop.recording",
    "attention_of": "dynloop.recording",
    "hooked_block": "dynloop.models",
    "inspect_model": "dynloop.models",
    "estimate": "dynloop.statistics",
    "proportion": "dynloop.statistics",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from dynloop.analyzers import (
        chaos_01,
        contraction_rate,
        convergence_time,
        correlation_dimension,
        cyclic_fixed_points,
        distance_to_limit,
        dominant_modes,
        limit_regime,
        limit_regime_blayney,
        lyapunov_from_data,
        minimal_period,
        path_straightness,
        recurrence_quantification,
        successive_distance,
        turning_angle,
    )
    from dynloop.attention import attention_statistics
    from dynloop.maps import (
        LoopMap,
        attention_stability,
        basin_fractions,
        cycle_multipliers,
        find_fixed_points,
        intervene,
        jacobian_spectrum,
        kaplan_yorke_dimension,
        lyapunov_spectrum,
        recovery,
        token_spectrum,
        trajectory,
        two_orbit_contraction,
    )
    from dynloop.measurement import Measurement
    from dynloop.measuring import analyzer, measure
    from dynloop.models import hooked_block, inspect_model
    from dynloop.outcome import Outcome
    from dynloop.recording import attention_of, capture, record, step_statistics
    from dynloop.report import Report
    from dynloop.statistics import Estimate, estimate, proportion
    from dynloop.store import Store, load, open_store, save
    from dynloop.trajectories import Trajectories


__getattr__, __dir__ = exports(__name__, _HOMES)
