"""Watch the loop of a model while it is trained, without touching the training."""

from dynloop.monitoring.log import read_log
from dynloop.monitoring.loop_monitor import LoopMonitor

__all__ = ["LoopMonitor", "read_log"]
