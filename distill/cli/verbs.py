"""Finds the function that runs a verb: one of the project, or one that a configuration of the user's names."""

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.cli.config import option_file, shipped
from distill.core.errors import ConfigError, in_one_line
from distill.system.garbage import without_collection


def run_verb(verb: str, config: DictConfig, config_dir: str | Path | None = None) -> None:
    """Runs ``verb`` with its composed configuration.

    Raises:
        ConfigError: when the configuration of a user's verb names no function, or lacks a key that the verb reads.
    """
    function = verb_function(verb, config_dir)
    try:
        inspect.signature(function).bind(config)
    except TypeError as error:
        raise ConfigError(
            f"Expected a function of the verb {verb} that takes the configuration but {error}; write def run(cfg)."
        ) from error
    try:
        function(config)
    except OmegaConfBaseException as error:
        reason = in_one_line(error, None)
        raise ConfigError(f"Expected a configuration of {verb} with all its keys but {reason}") from error


def verb_function(verb: str, config_dir: str | Path | None = None) -> Callable[[DictConfig], object]:
    """Returns the function of a verb, which takes the composed configuration.

    A verb with a file in ``configs/`` lies in ``distill.cli.commands``. Any other is the user's: the key
    ``_target_`` at the top of ``<config_dir>/<verb>.yaml`` names its function.

    Raises:
        ConfigError: when the file names no function, or one that cannot be imported.
    """
    if (shipped("configs") / f"{verb}.yaml").is_file():
        with without_collection():
            return importlib.import_module(f"distill.cli.commands.{verb}").run
    file = option_file(verb, config_dir)
    target = OmegaConf.select(OmegaConf.load(file), "_target_") if file is not None else None
    if not isinstance(target, str) or "." not in target:
        raise ConfigError(
            f"Expected _target_ in {file} to name the function of the verb {verb} but got {target}; add it."
        )
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"Expected _target_ in {file} to name a function but {target} cannot be imported ({error}); is its folder in "
            "PYTHONPATH?"
        ) from error


def verb_documentation(verb: str, config_dir: str | Path | None = None) -> str:
    """Returns what a verb's help begins with: the docstring of its module, or of the function where that has none.

    A module of the project is parsed and not imported, because importing takes seconds.
    """
    if (shipped("configs") / f"{verb}.yaml").is_file():
        file = Path(__file__).parent / "commands" / f"{verb}.py"
        return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    function = verb_function(verb, config_dir)
    module = inspect.getmodule(function)
    return inspect.cleandoc((module and module.__doc__) or function.__doc__ or "")
