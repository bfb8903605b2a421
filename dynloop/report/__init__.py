"""Reports: figures (matplotlib only here), tables and pages made from measurements and estimates."""

from dynloop.report.build import build_report
from dynloop.report.figures import Drawing, distance_curves, distance_map, draw, pca_path
from dynloop.report.report import Report, Table, check_report_folder

__all__ = ["Drawing", "Report", "Table", "build_report", "check_report_folder", "distance_curves", "distance_map",
           "draw", "pca_path"]
