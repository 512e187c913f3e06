"""Reading ``key=value``: Hydra's grammar, and paths as they are.

The value of a key that holds a path is text, whatever it looks like: ``run.dir=2024_01_31``, ``data.root=my photos [2]``.
Quotes, lists and ``null`` keep the meaning that Hydra gives them.
"""

import os
import re
import shlex
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from distill.core.errors import ConfigError

PATHS = frozenset(
    [
        *("annotations", "bundle", "ckpt", "corrections", "curve", "data_root", "dir", "file", "folder", "init_from"),
        *("model", "onnxruntime_web", "page", "pairs", "path", "points", "prompt_file", "repo", "root", "save_dir"),
        *("src", "student", "to", "trg", "unet_weights", "weights"),
    ]
)
"""Last parts of the keys whose values are paths, or names that are read as they stand."""

LISTS_OF_PATHS = frozenset(["examples", "fallbacks", "matchers", "sources", "trg"])
"""Last parts of the keys whose values may be lists of paths, or of names."""

_NO_TEXT = re.compile(r"(?i:true|false|[+-]?(?:[\d_]*\.?[\d_]+\.?(?:e[+-]?\d+)?|inf|nan))")
"""What Hydra reads as a number or a truth value."""
_QUOTED = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
_ENTRY = re.compile(_QUOTED + r"""|\{[^{}]*\}|(?<=[\[,])\s*([^\s'"\[\]{},:]+)\s*(?=[,\]])""")
"""Quoted text or a mapping in a list, or an entry that is neither, which is the group."""

QUOTES = "'\""
_MAPPING_OR_ENTRY = re.compile(rf"""\{{[^{{}}]*\}}|{_QUOTED}|[^,\s][^,]*""")
"""An entry of a list: a mapping, quoted text, or text up to the next comma."""


def plain(text: str, sweeps: bool = False) -> str:
    """Returns an override with the value of a path quoted, so that Hydra takes it as it is; others unchanged.

    Args:
        text: ``key=value``.
        sweeps: whether a comma separates values to try.
    """
    key, equals, value = text.partition("=")
    if key.rpartition(".")[2] in LISTS_OF_PATHS and value[:1] == "[" and not os.path.lexists(value):
        return f"{key}={_ENTRY.sub(_as_text, value)}"
    if not equals or not is_path(key) or value in ("", "null") or _is_quoted(value):
        return text
    if not os.path.lexists(value):
        if value[0] in "[{" and _parsed(text) is not None:
            return text
        if sweeps and ("," in value or re.match(r"(choice|range|glob)\(", value)):
            return text
    return f"{key}={quoted(value)}"


def _as_text(entry: re.Match[str]) -> str:
    """Returns an entry of a list, quoted where Hydra would take it for a number or a truth value."""
    return quoted(entry[1]) if entry[1] and _NO_TEXT.fullmatch(entry[1]) else entry[0]


def is_path(key: str) -> bool:
    """Returns whether a dotted key holds a path; keys below ``loss.weights`` are names of losses, with numbers."""
    section, _, last = key.lstrip("+").rpartition(".")
    return last in PATHS and section != "loss.weights"


def quoted(value: str) -> str:
    """Returns ``value`` as a quoted string of Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", lambda found: 2 * found[1] + r"\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{trailing * chr(92)}'"


def parse(overrides: Sequence[str], sweeps: bool = False) -> list[tuple[str, Override]]:
    """Parses overrides by Hydra's grammar.

    Args:
        overrides: ``key=value`` as on the command line.
        sweeps: whether a value may list several values to try.

    Returns:
        For each override its text, paths quoted as :func:`plain` does, and Hydra's parsed form.

    Raises:
        ConfigError: naming every override that cannot be read.
    """
    parsed, problems = [], []
    for given in overrides:
        text = plain(given, sweeps)
        key, equals, value = text.partition("=")
        override = _parsed(text)
        if not equals and not text.startswith("~"):
            problems.append(f"Expected key=value but got {given!r}; write {given}=<value>.")
        elif override is None:
            problems.append(f"Expected key=value but cannot read {given!r}; {_quoting(key, value)}.")
        elif override.is_sweep_override() and not sweeps:
            problems.append(
                f"Expected one value for {override.key_or_group} but got several; add --multirun to try each, or quote "
                f"{in_shell(key, value)}."
            )
        elif is_path(key) and not override.is_delete() and _text(override) == "":
            problems.append(f"Expected a path for {key} but got nothing; write {key}=<path>, or leave it out.")
        else:
            parsed.append((text, override))
    if problems:
        raise ConfigError(" ".join(problems))
    return parsed


def _quoting(key: str, value: str) -> str:
    """Returns the advice for a value that Hydra cannot read."""
    one_path = is_path(key) and key.rpartition(".")[2] not in LISTS_OF_PATHS
    if one_path or (value[:1], value[-1:]) not in (("[", "]"), ("{", "}")):
        return f"quote the value: {in_shell(key, value)}"
    entries = [entry.strip() for entry in _MAPPING_OR_ENTRY.findall(value[1:-1])]
    whole = f"{key}=[{','.join(entry if entry[0] in '{' + QUOTES else quoted(entry) for entry in entries)}]"
    if value[0] == "{" or _parsed(whole) is None:
        return "quote the texts in it, such as 'a=b'; keys are of letters, digits, _, -, / and dots"
    return f"quote each entry: {shlex.quote(whole)}"


def in_shell(key: str, value: str) -> str:
    """Returns ``key=value`` with the value as text, quoted for Hydra and for a shell."""
    return shlex.quote(f"{key}={quoted(value)}")


def _parsed(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _text(override: Override) -> object:
    value = override.value()
    return value.text if isinstance(value, QuotedString) else value


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] in QUOTES and value[-1] == value[0]
