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
    "Study": "dynloop.study",
    "Estimate": "dynloop.statistics",
    "Comparison": "dynloop.statistics",
    "Comparisons": "dynloop.statistics",
    "Report": "dynloop.report",
    "Store": "dynloop.store",
    "open_store": "dynloop.store",
    "save": "dynloop.store",
    "load": "dynloop.store",
    "measure": "dynloop.measuring",
    "analyzer": "dynloop.measuring",
    "MeasureError": "dynloop.tasks",
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
    "compare": "dynloop.statistics",
    "adjust_pvalues": "dynloop.statistics",
    "mixed_model": "dynloop.statistics",
    "poisson_sums": "dynloop.statistics",
    "PoissonSums": "dynloop.statistics",
    "power": "dynloop.statistics",
    "power_table": "dynloop.statistics",
    "detectable_effect": "dynloop.statistics",
    "VarianceComponents": "dynloop.statistics",
    "surrogate_test": "dynloop.statistics",
    "surrogates": "dynloop.statistics",
    "optimal_block_length": "dynloop.statistics",
    "recurrences_needed": "dynloop.advice",
    "exit_rule": "dynloop.advice",
    "exit_rules": "dynloop.advice",
    "extrapolation_forecast": "dynloop.advice",
    "solver_forecast": "dynloop.advice",
    "solver_cost": "dynloop.advice",
    "readout_of": "dynloop.advice",
    "LoopMonitor": "dynloop.monitoring",
    "read_log": "dynloop.monitoring",
    "explorer": "dynloop.report",
    "sink_rate": "dynloop.attention",
    "mixing_score": "dynloop.attention",
    "column_concentration": "dynloop.attention",
    "attention_distance": "dynloop.attention",
    "attention_stabilisation": "dynloop.attention",
    "attention_lag": "dynloop.attention",
    "prompt_states": "dynloop.recording",
    "recurrence_importance": "dynloop.maps",
    "cka": "dynloop.stages",
    "layer_cka": "dynloop.stages",
    "layer_cosine": "dynloop.stages",
    "matrix_entropy": "dynloop.stages",
    "anisotropy": "dynloop.stages",
    "stage_profile": "dynloop.stages",
    "profile_by": "dynloop.stages",
    "mirroring": "dynloop.stages",
    "stage_clusters": "dynloop.stages",
    "StageClusters": "dynloop.stages",
    "cells": "dynloop.graph",
    "Cells": "dynloop.graph",
    "transition_graph": "dynloop.graph",
    "TransitionGraph": "dynloop.graph",
    "graph_statistics": "dynloop.graph",
    "attractors": "dynloop.graph",
    "Attractors": "dynloop.graph",
    "reasoning_graph": "dynloop.graph",
    "small_world": "dynloop.graph",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from dynloop.advice import (
        exit_rule,
        exit_rules,
        extrapolation_forecast,
        readout_of,
        recurrences_needed,
        solver_cost,
        solver_forecast,
    )
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
    from dynloop.attention import (
        attention_distance,
        attention_lag,
        attention_stabilisation,
        attention_statistics,
        column_concentration,
        mixing_score,
        sink_rate,
    )
    from dynloop.graph import (
        Attractors,
        Cells,
        TransitionGraph,
        attractors,
        cells,
        graph_statistics,
        reasoning_graph,
        small_world,
        transition_graph,
    )
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
        recurrence_importance,
        token_spectrum,
        trajectory,
        two_orbit_contraction,
    )
    from dynloop.measurement import Measurement
    from dynloop.measuring import analyzer, measure
    from dynloop.models import hooked_block, inspect_model
    from dynloop.monitoring import LoopMonitor, read_log
    from dynloop.outcome import Outcome
    from dynloop.recording import attention_of, capture, prompt_states, record, step_statistics
    from dynloop.report import Report, explorer
    from dynloop.stages import (
        StageClusters,
        anisotropy,
        cka,
        layer_cka,
        layer_cosine,
        matrix_entropy,
        mirroring,
        profile_by,
        stage_clusters,
        stage_profile,
    )
    from dynloop.statistics import (
        Comparison,
        Comparisons,
        Estimate,
        PoissonSums,
        VarianceComponents,
        adjust_pvalues,
        compare,
        detectable_effect,
        estimate,
        mixed_model,
        optimal_block_length,
        poisson_sums,
        power,
        power_table,
        proportion,
        surrogate_test,
        surrogates,
    )
    from dynloop.store import Store, load, open_store, save
    from dynloop.study import Study
    from dynloop.tasks import MeasureError
    from dynloop.trajectories import Trajectories


__getattr__, __dir__ = exports(__name__, _HOMES)
