"""Every command, key, module, file and link that the documentation names is there."""

import importlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from distill.__main__ import ACTIONS, VERBS
from distill.cli.arguments import CommandLine, split
from distill.cli.config import compose, defaults, options, shipped
from distill.core.errors import ConfigError

PROGRAMS = {
    *("python", "python3.11", "pip", "distill", "git", "mkdocs", "export", "tensorboard", "torchrun", "ruff", "mypy"),
    *(".venv/bin/python", ".venv/bin/pip", ".", "pre-commit", ".ci/run", "cd", "uv"),
}


def arguments(words: list[str]) -> tuple[str, CommandLine]:
    """Returns the verb of a command and what follows it; of a sweep the first value of each key."""
    verb, *rest = words
    if verb in ACTIONS and rest and "=" not in rest[0] and not rest[0].startswith("-"):
        key, known = ACTIONS[verb]
        assert rest[0] in known, f"{verb} {rest[0]}"
        rest = [f"{key}={rest[0]}", *rest[1:]]
    line = split(rest)
    chosen = [word for word in line.overrides if not word.startswith("hydra/")]
    if line.sweeps:
        chosen = [f"{key}={value.partition(',')[0]}" for key, _, value in (word.partition("=") for word in chosen)]
    return verb, replace(line, overrides=chosen)


def test_every_command_line_composes(verbs):
    for words in verbs:
        verb, line = arguments(words)
        own = line.config_dir and Path(line.config_dir, f"{verb}.yaml").is_file()
        assert verb in VERBS or own, f"no verb {verb}"
        if line.wants_help:
            continue
        try:
            compose(verb, line.overrides, line.config_dir)
        except ConfigError as error:
            if "Expected a value for" not in str(error):  # commands in running text name some of their keys only
                raise AssertionError(f"python -m distill {' '.join(words)}: {error}") from error


def test_commands_begin_with_known_programs_and_name_known_extras(shell, root):
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words in shell:
        assert words[0] in PROGRAMS or "=" in words[0], f"an unknown program: {' '.join(words)}"
        for extra in re.findall(r"(?:distill|\.)\[([\w,]+)\]", " ".join(words)):
            assert set(extra.split(",")) <= set(extras), f"no extra {extra}"


@pytest.fixture(scope="module")
def known_keys() -> set[str]:
    """All keys of all verbs, those of every choice of their groups, and the names of the groups."""
    found: set[str] = set()
    for verb in VERBS:
        config, groups = defaults(verb)
        found |= set(_paths(config))
        for group in groups:
            place, _, package = group.partition("@")
            found |= {place, package or place}
            for file in _choices(place):
                prefix = "" if "@package _global_" in file.read_text(encoding="utf-8") else f"{package or place}."
                found |= set(_paths(OmegaConf.load(file), prefix))
    return found


def _choices(group: str) -> Iterator[Path]:
    """Yields the files of a group's choices, and those of the groups that they take theirs from."""
    for file in shipped(f"configs/{group}").rglob("*.yaml"):
        yield file
        for other in re.findall(r"^  - /(\w+)@_here_", file.read_text(encoding="utf-8"), re.MULTILINE):
            yield from _choices(other)


def _paths(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in config:
        yield f"{prefix}{name}"
        node = config._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _paths(node, f"{prefix}{name}.")


def test_every_key_in_the_text_is_a_key(text, known_keys):
    for code in re.findall(r"`([^`\n]+)`", text):
        for key, value in re.findall(r"(?:^|\s)([a-z_]+(?:\.[a-z_]+)*)=([^\s]*)", code):
            if code.startswith(("python", "pip ")) or "(" in code:
                continue  # a command line, which is composed, or Python
            assert key in known_keys, f"{code!r} names the key {key}, which no verb has"
            choices = options(key)
            if choices and re.fullmatch(r"\w+", value):
                assert value in choices, f"{code!r} names a choice of {key} that is not there"


def test_every_module_and_class_in_the_text_is_there(text, known_keys):
    for name in re.findall(r"(?:`|\]\[)((?:distill|teacher|student)(?:\.\w+)+)(?:`|\])", text):
        if name in known_keys or name in ("student.safetensors", "student.onnx"):
            continue
        module, rest = name, []
        while True:
            try:
                found = importlib.import_module(module)
                break
            except ModuleNotFoundError:
                module, _, last = module.rpartition(".")
                assert module, f"no module for {name}"
                rest.insert(0, last)
        for part in rest:
            assert hasattr(found, part), f"{name} is not there"
            found = getattr(found, part)


def test_every_file_of_the_repository_in_the_text_is_there(text, root):
    for name in re.findall(r"`((?:configs|checkpoints|tests|distill|teacher|docs|\.ci)/[^`*<{ ]*)`", text):
        assert (root / name).exists(), f"no {name}"


def test_every_link_leads_somewhere(page, text):
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")) and "reference/" not in target:
            file, _, anchor = target.partition("#")
            assert (page.parent / file).exists(), f"no {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", (page.parent / file).read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target
