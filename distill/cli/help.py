"""What ``python -m distill <verb> --help`` prints."""

from pathlib import Path

from distill.cli.config import defaults, option_file, options
from distill.cli.verbs import verb_documentation


def describe_verb(verb: str, config_dir: str | Path | None = None) -> str:
    """Returns what a verb does, its keys with their defaults and meaning, and the choices of each group."""
    _, choices = defaults(verb, config_dir)
    file = option_file(verb, config_dir)
    assert file is not None, "every verb has a configuration"
    parts = [verb_documentation(verb, config_dir), "keys and their defaults:\n\n" + _indented(_without_defaults(file))]
    for group, chosen in choices.items():
        names = ", ".join(options(group, config_dir))
        part = f"{group}=<{names}>"
        chosen_file = option_file(f"{group}/{chosen}", config_dir)
        if chosen_file is not None:
            part += f", {chosen} being the default:\n\n" + _indented(chosen_file.read_text(encoding="utf-8"), group)
        parts.append(part)
    return "\n\n".join(part.rstrip() for part in parts)


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
