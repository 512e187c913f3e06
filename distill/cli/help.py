"""What ``python -m distill <verb> --help`` prints."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from distill.cli.config import defaults, option_file, options
from distill.cli.verbs import verb_documentation


def describe_verb(verb: str, config_dir: str | Path | None = None, overrides: Sequence[str] = ()) -> str:
    """Returns what a verb does, its keys with their defaults and meaning, and the choices of each group.

    Args:
        verb: the command's name.
        config_dir: a folder of the user's own with further groups and choices.
        overrides: ``key=value`` of the command line; the keys of a choice such as ``data=folder`` are shown instead of the default's.
    """
    _, choices = defaults(verb, config_dir)
    asked = dict(override.split("=", 1) for override in overrides if "=" in override)
    file = option_file(verb, config_dir)
    assert file is not None, "every verb has a configuration"
    parts = [verb_documentation(verb, config_dir), "keys and their defaults:\n\n" + _indented(_without_defaults(file))]
    for group, default in choices.items():
        folder, _, place = group.partition("@")  # matcher@describer: a choice of matcher that stands under describer
        known = options(folder, config_dir)
        chosen = asked[group] if asked.get(group) in known else default
        part = f"{group}=<{', '.join(known)}>"
        shown = _with_included(folder, chosen, config_dir)
        if shown:
            part += f", {default} being the default" + ("" if chosen == default else f"; the keys of {chosen}")
            part += ":\n\n" + _indented(shown, place or group)
        parts.append(part)
    return "\n\n".join(part.rstrip() for part in parts)


def _with_included(group: str, choice: str, config_dir: str | Path | None) -> str:
    """Returns the keys of a choice, after those of the files in its list of defaults; "" where there is no such file."""
    file = option_file(f"{group}/{choice}", config_dir)
    if file is None:
        return ""
    own = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    names = [
        entry.partition("@")[0] for entry in own.get("defaults", []) if isinstance(entry, str) and entry != "_self_"
    ]
    included = [_with_included(group, name, config_dir) for name in names]
    return "\n".join(text.strip("\n") for text in [*included, _without_defaults(file)] if text)


def _without_defaults(file: Path) -> str:
    """Leaves out the list of groups, which the rest of the help explains."""
    kept, inside = [], False
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("defaults:"):
            inside = True
        elif inside and line and not line.startswith((" ", "-")):
            inside = False
        if not inside:
            kept.append(line)
    return "\n".join(kept)


def _indented(text: str, group: str | None = None) -> str:
    lines = [f"  {line}" for line in text.strip().splitlines() if "_target_" not in line or line.startswith(" ")]
    note = [f"  (written {group}.<key>=<value>)"] if group else []
    return "\n".join(lines + note)
