"""Writes the reference of the site from the source when the site is built, so that it cannot be out of date.

- One page for each room of ``distill`` and for ``teacher`` and ``student``, with the docstrings of its modules.
- One page of commands: the docstring of each verb and the keys of its YAML file.
- One page for each group of configurations: the keys of each choice, with the comments behind them.
- CONTRIBUTING.md and CHANGELOG.md of the repository.

MkDocs calls the functions whose names begin with ``on_``.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import griffe
import yaml
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")


class Key(NamedTuple):
    """One key of a YAML file.

    Attributes:
        name: dotted.
        value: as it stands in the file.
        comment: the text behind it.
    """

    name: str
    value: str
    comment: str


class Roles(griffe.Extension):
    """Turns the roles of docstrings, such as ``:class:`distill.losses.Loss```, into links where the target is documented."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of ``obj``."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(_link, _escaped(obj.docstring.value))


def _escaped(text: str) -> str:
    """Returns text whose placeholders, such as <run.dir>, are no HTML; code is left as it is."""
    return re.sub(r"(`+[^`]*`+)|<(?=\w)", lambda found: found[1] or "&lt;", text)


def _link(role: re.Match[str]) -> str:
    target = role[1]
    if target.partition(".")[0] not in ("distill", "teacher", "student"):
        return f"`{target}`"
    return f'<autoref identifier="{target}" optional>`{target.rpartition(".")[2]}`</autoref>'


def on_files(files: Files, config: Any) -> Files:
    """Adds the generated pages, and their places in the navigation."""
    pages = reference_pages()
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    python = [path for path in pages if path.startswith("reference/python/")]
    configuration = [path for path in pages if path.startswith("reference/configuration/")]
    for entry in config.nav:
        if "Reference" in entry:
            entry["Reference"] = ["reference/commands.md", {"Python": python}, {"Configuration": configuration}]
    config.nav.append({"Project": ["contributing.md", "changelog.md"]})
    return files


def reference_pages() -> dict[str, str]:
    """Returns the text of each generated page by its path in the site."""
    pages = {"reference/commands.md": commands_page()}
    pages |= {f"reference/configuration/{group}.md": group_page(group) for group in groups()}
    rooms = [path.parent for path in sorted((ROOT / "distill").glob("*/__init__.py"))]
    packages = [ROOT / "distill", ROOT / "teacher", ROOT / "student"]
    for folder in (*packages, *rooms):
        name = ".".join(folder.relative_to(ROOT).parts)
        pages[f"reference/python/{name}.md"] = package_page(folder, name)
    for name in ("CONTRIBUTING", "CHANGELOG"):
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        pages[f"{name.lower()}.md"] = text.replace("](docs/", "](")
    return pages


def package_page(folder: Path, name: str) -> str:
    """Returns the page of a package: what belongs in it, and the documentation of its modules."""
    charter = _docstring(folder / "__init__.py")
    inside = folder.glob("*.py") if folder == ROOT / "distill" else folder.rglob("*.py")
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in sorted(inside)]
    modules = [module.removesuffix(".__init__") for module in modules if not module.endswith("__main__")]
    modules = [module for module in modules if module != name or name == "distill"]
    return "\n\n".join([f"# {name}", ROLE.sub(r"`\1`", charter), *(f"::: {module}" for module in modules)]) + "\n"


def commands_page() -> str:
    """Returns the page of all verbs: what each does, and the keys of its YAML file."""
    parts = [
        "# Commands",
        "`python -m distill <verb> [key=value ...]`, or `distill <verb>`. `--help` after a verb shows the same.",
    ]
    for file in sorted((ROOT / "distill/cli/commands").glob("*.py")):
        verb = file.stem
        if verb == "__init__":
            continue
        chosen = yaml.safe_load((ROOT / f"configs/{verb}.yaml").read_text(encoding="utf-8")).get("defaults", [])
        said, _, examples = _docstring(file).partition("Examples:")
        parts += [f"## {verb}", _escaped(ROLE.sub(r"`\1`", said.strip()))]
        if examples:
            parts.append("```sh\n" + "\n".join(line.strip() for line in examples.strip().splitlines()) + "\n```")
        links = [_choice(entry) for entry in chosen if isinstance(entry, dict)]
        if links:
            parts.append("Groups, with their defaults: " + ", ".join(links) + ".")
        parts.append(_table(keys(ROOT / f"configs/{verb}.yaml")))
    return "\n\n".join(part for part in parts if part) + "\n"


def _choice(entry: dict[str, str]) -> str:
    """Returns an entry of a defaults list as a link to its group."""
    ((key, choice),) = entry.items()
    group = key.removeprefix("override ").lstrip("/").partition("@")[0]
    return f"[`{key}={choice}`](configuration/{group}.md#{choice})"


def groups() -> list[str]:
    """Returns the names of all groups of configurations."""
    return sorted(folder.name for folder in (ROOT / "configs").iterdir() if any(folder.glob("*.yaml")))


def group_page(group: str) -> str:
    """Returns the page of a group: for each choice its comment and its keys."""
    parts = [f"# {group}=", f"Chosen by `{group}=<name>`; a key is written `{group}.<key>=<value>`."]
    if group in ("experiment", "suite"):
        parts[1] = f"Chosen by `{group}=<name>`."
    for file in sorted((ROOT / "configs" / group).glob("*.yaml")):
        head, indented = _header(file)
        parts += [f"## {file.stem}", f"```text\n{head}\n```" if indented else _escaped(head), _table(keys(file))]
    return "\n\n".join(part for part in parts if part) + "\n"


def keys(file: Path) -> list[Key]:
    """Returns the keys of a YAML file in their order, with the comment behind each.

    Keys of the files of the same group that its list of defaults names come first, where the file does not give them anew.
    """
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text)
    own = {key.name: key for key in _keys(root, text.splitlines(), "")} if isinstance(root, yaml.MappingNode) else {}
    found: dict[str, Key] = {}
    for base, prefix in _bases(file):
        found |= {prefix + key.name: key._replace(name=prefix + key.name) for key in keys(base)}
    for name, key in own.items():
        found[name] = key if key.comment or name not in found else key._replace(comment=found[name].comment)
    return list(found.values())


def _bases(file: Path) -> Iterator[tuple[Path, str]]:
    """Yields the files whose keys a choice takes over, and what stands before these keys."""
    if file.parent == ROOT / "configs":  # the groups of a verb have pages of their own
        return
    for entry in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", []):
        ((group, name),) = entry.items() if isinstance(entry, dict) else ((entry, None),)
        group, _, package = group.partition("@")
        if group == "_self_" or group.startswith("override"):
            continue
        path = group if name is None else f"{group}/{name}"
        folder = ROOT / "configs" if path.startswith("/") else file.parent
        base = folder / f"{path.lstrip('/')}.yaml"
        if base.is_file():  # another library's otherwise, such as a launcher of Hydra's
            yield base, "" if package in ("", "_here_") else f"{package}."


def _keys(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[Key]:
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", lines[key.start_mark.line]
        if key.value in ("defaults", "_partial_"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value and not value.flow_style:
            comment = _comment(line, key.end_mark.column + 1)
            target = next((v.value for k, v in value.value if k.value == "_target_"), "")
            if comment or target:
                yield Key(name, target, comment)
            yield from _keys(value, lines, f"{name}.")
        elif key.value != "_target_" or not prefix:
            last = lines[value.end_mark.line] if value.end_mark.line < len(lines) else ""
            yield Key(name, _source(value, lines), _comment(last, value.end_mark.column))


def _source(value: yaml.Node, lines: list[str]) -> str:
    """Returns a value as it is written."""
    start, end = value.start_mark, value.end_mark
    if start.line == end.line:
        return lines[start.line][start.column : end.column]
    inside = [lines[start.line][start.column :], *lines[start.line + 1 : end.line]]
    inside.append(lines[end.line][: end.column] if end.line < len(lines) else "")
    return " ".join(part.strip() for part in inside if part.strip())


def _comment(line: str, after: int) -> str:
    return line[after:].strip().removeprefix("#").strip() if line[after:].strip().startswith("#") else ""


def _header(file: Path) -> tuple[str, bool]:
    """Returns the comment at the top of a file, and whether it has a layout of its own."""
    head = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            head.append(line[1:].removeprefix(" "))
    return "\n".join(head).strip(), len(head) > 4


def _table(found: list[Key]) -> str:
    if not found:
        return ""
    rows = ["| key | value | meaning |", "|---|---|---|"]
    for key in found:
        value = f"`{key.value}`" if key.value else ""
        rows.append("| " + " | ".join(_cell(text) for text in (f"`{key.name}`", value, key.comment)) + " |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


def _docstring(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
