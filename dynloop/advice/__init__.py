"""What a recording says about compute that could be saved: exit rules, solvers, forecasts."""

from dynloop.advice.exit_rule import exit_rule
from dynloop.advice.exit_rules import ExitRules, exit_rules
from dynloop.advice.extrapolation_forecast import extrapolation_forecast
from dynloop.advice.loops_by_difficulty import LoopsByDifficulty, loops_by_difficulty
from dynloop.advice.loops_needed import loops_needed
from dynloop.advice.readout import readout_of
from dynloop.advice.recurrences_needed import recurrences_needed
from dynloop.advice.solver_cost import solver_cost
from dynloop.advice.solver_forecast import solver_forecast

__all__ = ["ExitRules", "LoopsByDifficulty", "exit_rule", "exit_rules", "extrapolation_forecast", "loops_by_difficulty",
           "loops_needed", "readout_of", "recurrences_needed", "solver_cost", "solver_forecast"]
