"""Checks of settings: one form for every message."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any


def check_number(name: str, value: Any, fits: Callable[[Any], bool], needed: str) -> None:
    """Refuse a setting that is no number or does not fit; `needed` completes "name must be ..." and names a default.

    Raises:
        ValueError: what came, what is needed.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not fits(value):
        raise ValueError(f"{name} must be {needed}; got {value!r}.")


def check_whole(name: str, value: Any, least: int, needed: str) -> None:
    """Refuse a setting that is not a whole number from `least` to 2^31.

    Raises:
        ValueError: what came, what is needed.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not least <= int(value) < 2**31:
        raise ValueError(f"{name} must be {needed}; got {value!r}.")
