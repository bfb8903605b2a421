"""Watch the loop of a model while it is trained, without touching the training."""

from dynloop.monitoring.clustering import Clustering, cosine_clustering
from dynloop.monitoring.log import read_log
from dynloop.monitoring.loop_monitor import LoopMonitor
from dynloop.monitoring.training_phases import training_phases

__all__ = ["Clustering", "LoopMonitor", "cosine_clustering", "read_log", "training_phases"]
