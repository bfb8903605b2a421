"""The measurements of many runs as labelled arrays, and their file."""

from dynloop.study.study import Study

__all__ = ["Study"]
