"""The errors a user can meet.

Every message says what must hold, what was found, and what to do. The command line prints it on one line and
exits with a non-zero code; from Python it is an ordinary exception.
"""

import difflib
from collections.abc import Iterable


class DistillError(Exception):
    """An error in what the user gave, as opposed to a fault of the project."""


class ConfigError(DistillError):
    """A key, a choice or a combination of settings that cannot work."""


class DataError(DistillError):
    """A file, an image, a point or an annotation that cannot be used."""


class WeightsError(DistillError):
    """A checkpoint or pipeline folder that is missing, truncated or of another architecture."""


class ExportError(DistillError):
    """A student that cannot be written as an ONNX file, or a file that answers otherwise than its student."""


class LabelError(DistillError):
    """A label that is missing, or that something else than the present settings has made."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Returns ``choices`` as text for an error message, the one closest to ``name`` first."""
    choices = sorted(choices)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid names: {', '.join(choices)}"


def in_one_line(error: BaseException, letters: int | None = 200) -> str:
    """Returns an error's text on one line, cut to ``letters`` (None keeps all); the name of its type where it has none."""
    return " ".join(str(error).split())[:letters] or type(error).__name__
