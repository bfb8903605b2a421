"""Reports: figures (matplotlib only here), tables and pages made from measurements and estimates."""

from dynloop.report.build import build_report
from dynloop.report.cells import Cell, Table
from dynloop.report.explorer import explorer
from dynloop.report.figures import (
    Drawing,
    alt_of,
    attention_curves,
    attention_settling,
    calibration_panel,
    caption_of,
    convergence_times,
    depth_matrix,
    distance_curves,
    distance_map,
    draw,
    forest,
    mirroring_scores,
    multiplier_circle,
    pca_path,
    period_counts,
    precision_floor,
    rates_by_layer,
    recurrence_plot,
    regime_shares,
    seed_lines,
    stage_curves,
    stage_strips,
    state_graph,
    step_curves,
)
from dynloop.report.report import DEFAULT_FORMATS, FORMATS, Report, check_formats, check_report_folder
from dynloop.report.sections import Section

__all__ = ["DEFAULT_FORMATS", "FORMATS", "Cell", "Drawing", "Report", "Section", "Table", "alt_of",
           "attention_curves", "attention_settling", "build_report", "calibration_panel", "caption_of",
           "check_formats", "check_report_folder", "convergence_times", "depth_matrix", "distance_curves",
           "distance_map", "draw", "explorer", "forest", "mirroring_scores", "multiplier_circle", "pca_path",
           "period_counts", "precision_floor", "rates_by_layer", "recurrence_plot", "regime_shares", "seed_lines",
           "stage_curves", "stage_strips", "state_graph", "step_curves"]
