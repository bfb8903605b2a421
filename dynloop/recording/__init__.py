"""Run a live model and record its states. (The room is not called `capture`: the function is, and Python binds a
submodule's name on its package.)"""

from dynloop.recording.capture import capture

__all__ = ["capture"]
