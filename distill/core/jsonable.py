"""Conversion of figures to values that JSON has."""

import math
from collections.abc import Mapping
from typing import Any


def jsonable(content: Any) -> Any:
    """Returns ``content`` with None in place of NaN and infinity, which JSON does not have; nested values included."""
    if isinstance(content, float):
        return float(content) if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: jsonable(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [jsonable(value) for value in content]
    return content
