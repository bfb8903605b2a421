"""Figures of measurements and estimates, one a file: each function returns a matplotlib figure.

`caption_of` and `alt_of` say what a figure shows, what was counted and with what settings; `draw` renders it to SVG,
PNG and PDF.
"""

from dynloop.report.figures.attention_curves import attention_curves
from dynloop.report.figures.attention_settling import attention_settling
from dynloop.report.figures.calibration_panel import calibration_panel
from dynloop.report.figures.convergence_times import convergence_times
from dynloop.report.figures.curves import step_curves
from dynloop.report.figures.depth_matrix import depth_matrix
from dynloop.report.figures.distance_curves import distance_curves
from dynloop.report.figures.distance_map import distance_map
from dynloop.report.figures.drawing import Drawing, alt_of, caption_of, draw
from dynloop.report.figures.forest import forest
from dynloop.report.figures.mirroring_scores import mirroring_scores
from dynloop.report.figures.multiplier_circle import multiplier_circle
from dynloop.report.figures.pca_path import pca_path
from dynloop.report.figures.period_counts import period_counts
from dynloop.report.figures.precision_floor import precision_floor
from dynloop.report.figures.rates_by_layer import rates_by_layer
from dynloop.report.figures.recurrence_plot import recurrence_plot
from dynloop.report.figures.regime_shares import regime_shares
from dynloop.report.figures.seed_lines import seed_lines
from dynloop.report.figures.stage_curves import stage_curves
from dynloop.report.figures.stage_strips import stage_strips
from dynloop.report.figures.state_graph import state_graph

__all__ = ["Drawing", "alt_of", "attention_curves", "attention_settling", "calibration_panel", "caption_of",
           "convergence_times", "depth_matrix", "distance_curves", "distance_map", "draw", "forest",
           "mirroring_scores", "multiplier_circle", "pca_path", "period_counts", "precision_floor", "rates_by_layer",
           "recurrence_plot", "regime_shares", "seed_lines", "stage_curves", "stage_strips", "state_graph",
           "step_curves"]
