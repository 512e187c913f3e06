"""Checks of what a JSON file of annotations holds, whose errors say what was found under which name."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from distill.core import numbers

LARGEST_COORDINATE = 1e9
"""px; larger numbers are mistakes, and the largest whole numbers of JSON are no floats."""


def object_in(value: Any, what: str) -> dict[str, Any]:
    """Returns ``value``, which is called ``what`` in messages.

    Raises:
        ValueError: unless it is a JSON object.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(value)} where an object is expected")
    return value


def objects_in(value: Any, what: str) -> list[dict[str, Any]]:
    """Returns ``value``, which is called ``what`` in messages.

    Raises:
        ValueError: unless it is a list of JSON objects.
    """
    if not isinstance(value, list):
        raise ValueError(f"{what} is {shown(value)} where a list is expected")
    odd = next((entry for entry in value if not isinstance(entry, dict)), None)
    if odd is not None or None in value:
        raise ValueError(f"{what} holds {shown(odd)} where an object is expected")
    return value


def entry_of(container: Mapping[str, Any], key: str, what: str) -> Any:
    """Returns the value of ``key`` in the object that is called ``what``.

    Raises:
        ValueError: when there is none.
    """
    if key not in container:
        raise ValueError(f"the key {key!r} is missing from {what}, which has {', '.join(sorted(container)) or 'none'}")
    return container[key]


def numbers_in(value: Any, count: int, what: str, meaning: str = "") -> list[float]:
    """Returns ``value``, which is called ``what``, as floats; ``meaning`` says what they are.

    Raises:
        ValueError: unless it is a list of ``count`` finite numbers; text and true or false are none.
    """
    if not isinstance(value, list) or len(value) != count or not all(map(is_bounded_number, value)):
        raise ValueError(f"{what} is {shown(value)} where {count} numbers are expected{f': {meaning}' * bool(meaning)}")
    return [float(number) for number in value]


def is_bounded_number(value: Any) -> bool:
    """Returns whether a value is a number that can be a coordinate, within :data:`LARGEST_COORDINATE`; NaN, true and false are none."""
    return numbers.is_number(value) and -LARGEST_COORDINATE <= value <= LARGEST_COORDINATE


def by_id(entries: Iterable[dict[str, Any]], what: str) -> dict[Any, dict[str, Any]]:
    """Returns objects by their "id".

    Raises:
        ValueError: when one has no id, or one that is no number or text, or one that another has as well.
    """
    found: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        key = entry_of(entry, "id", f"an entry of {what}")
        if not isinstance(key, int | str):
            raise ValueError(f"the id {shown(key)} in {what} is neither a number nor text")
        if key in found:
            raise ValueError(f"the id {key} comes twice in {what}")
        found[key] = entry
    return found


def shown(value: Any) -> str:
    """Returns ``value`` as JSON, shortened."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."
