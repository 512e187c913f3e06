"""Metadata of label files: JSON that is checked before it is used."""

import json
from collections.abc import Sequence
from typing import Any


def parse(text: str | bytes | None, formats: Sequence[str]) -> dict[str, Any]:
    """Parses the metadata of a file of labels.

    Args:
        text: JSON; None where the file has no metadata.
        formats: that are accepted, the present one first.

    Returns:
        At least "format", one of ``formats``, and "fingerprint", a dictionary of texts.

    Raises:
        ValueError: when it is no such JSON object, or of another format; the message says what it is.
    """
    try:
        about = json.loads(text or "{}")
        # Half of a surrogate pair, "\\ud800", is text to JSON and to nothing else.
        json.dumps(about, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("its metadata is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("its metadata has text that is no Unicode") from None
    if not isinstance(about, dict):
        raise ValueError("its metadata is no JSON object")
    if about.get("format") not in formats:
        raise ValueError(f"its format is {about.get('format')!r}, not {formats[0]}")
    fingerprint = about.get("fingerprint")
    if not isinstance(fingerprint, dict) or not all(isinstance(value, str) for value in fingerprint.values()):
        raise ValueError("it has no fingerprint of a teacher")
    return about


def texts(values: Any, what: str) -> list[str]:
    """Returns ``values`` after the check that it is a list of texts.

    Raises:
        ValueError: when it is not; ``what`` names the list in the message.
    """
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"its metadata has no list of {what}")
    return values
