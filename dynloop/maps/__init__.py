"""Analyses of a rule: a live map that can be stepped and differentiated."""

from dynloop.maps.attention_stability import attention_stability
from dynloop.maps.basin_fractions import BasinFractions, basin_fractions
from dynloop.maps.cycle_multipliers import cycle_multipliers
from dynloop.maps.fixed_point import FixedPoints, find_fixed_points
from dynloop.maps.intervention import intervene, recovery
from dynloop.maps.jacobian_spectrum import jacobian_spectrum
from dynloop.maps.kaplan_yorke_dimension import kaplan_yorke_dimension
from dynloop.maps.loop_map import LoopMap
from dynloop.maps.lyapunov_spectrum import LyapunovSpectrum, lyapunov_spectrum
from dynloop.maps.noisy_trajectory import noisy_trajectory
from dynloop.maps.parallel_trajectories import parallel_trajectories
from dynloop.maps.recurrence_importance import recurrence_importance
from dynloop.maps.start_spread import start_spread
from dynloop.maps.token_spectrum import token_spectrum
from dynloop.maps.trajectory import trajectory
from dynloop.maps.two_orbit_contraction import two_orbit_contraction

__all__ = [
           "BasinFractions",
           "FixedPoints",
           "LoopMap",
           "LyapunovSpectrum",
           "attention_stability",
           "basin_fractions",
           "cycle_multipliers",
           "find_fixed_points",
           "intervene",
           "jacobian_spectrum",
           "kaplan_yorke_dimension",
           "lyapunov_spectrum",
           "noisy_trajectory",
           "parallel_trajectories",
           "recovery",
           "recurrence_importance",
           "start_spread",
           "token_spectrum",
           "trajectory",
           "two_orbit_contraction",
]
