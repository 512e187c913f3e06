"""Telling numbers from other values of settings and files: to Python true and false are whole numbers."""

import math
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[int | float]:
    """Returns whether ``value`` is a number; NaN and infinity are, true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: object, least: float = -math.inf) -> TypeGuard[int]:
    """Returns whether ``value`` is a whole number of at least ``least``; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
