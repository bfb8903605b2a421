"""Looped-model families, one a file, behind one protocol."""

from dynloop.models.looped_model import LoopedModel, undisturbed
from dynloop.models.nano import nano

__all__ = ["LoopedModel", "nano", "undisturbed"]
