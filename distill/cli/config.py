"""Finding, composing and instantiating configurations.

The configurations live in ``configs/`` at the root of a source tree and in ``distill/configs/`` of an installed
wheel. ``configs/<verb>.yaml`` is the root of a command; every folder beside it is a group, whose files are the choices
a user can name. A folder of the user's own adds groups and choices to these, it does not replace them.
"""

import inspect
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import hydra
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, OmegaConfBaseException

from distill.cli.keys import check_assignments, keys, out_of_range, section_of
from distill.cli.overrides import is_path, parse
from distill.cli.renamed import RENAMED
from distill.cli.targets import check_targets
from distill.cli.unread import unread
from distill.core.errors import ConfigError, DistillError, WeightsError, nearest

NETWORK = ("huggingface_hub", "requests", "httpx", "urllib3")
"""Libraries whose errors mean that something could not be fetched."""

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOT = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE


def shipped(path: str) -> Path:
    """Returns where a file that comes with the project lies, in a source tree or in an installed wheel.

    Configurations write it ``${shipped:checkpoints/sd-mini}``.
    """
    return _ROOT / path


OmegaConf.register_new_resolver("shipped", lambda path: str(shipped(path)), replace=True)


def compose(
    verb: str,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    sweeps: bool = False,
    complete: bool = True,
) -> DictConfig:
    """Composes the configuration of a command.

    Args:
        verb: the command's name.
        overrides: ``key=value`` as on the command line.
        config_dir: a folder of the user's own with further groups and choices.
        sweeps: whether overrides may name several values, which are then left out here.
        complete: whether every required value has to be given.

    Raises:
        ConfigError: naming every override that cannot be read, every unknown key or choice with the nearest valid
            name, every value of the wrong type, and every required value that is not given.
    """
    parsed = [(text, override) for text, override in parse(overrides, sweeps) if not override.is_sweep_override()]
    if sweeps:  # Hydra itself reads its own settings there, with the launchers that plugins add
        parsed = [(text, override) for text, override in parsed if not override.key_or_group.startswith("hydra")]
    chosen, assigned = _split(parsed, config_dir)
    with _search(verb, config_dir) as base:
        config = _hydra_compose(verb, [*base, *chosen])
    _raise_together(check_assignments(config, assigned, verb))
    for override in assigned:
        _assign(config, override)
    check_references(config, [override.key_or_group for override in assigned])
    _raise_together([*unread(verb, config, [override.key_or_group for _, override in parsed]), *out_of_range(config)])
    expand_home(config)
    if complete:
        check_complete(config)
    return config


def expand_home(config: DictConfig) -> None:
    """Writes the home directory where a path begins with ``~``."""
    for key in list(keys(config)):
        node, _, last = section_of(config, key)
        value = node._get_node(last)
        values = list(value) if isinstance(value, ListConfig) and not value._is_missing() else [value._value()]
        if is_path(key) or isinstance(value, ListConfig):
            expanded = [os.path.expanduser(v) if isinstance(v, str) and v.startswith("~") else v for v in values]
            if expanded != values:
                OmegaConf.update(config, key, expanded if isinstance(value, ListConfig) else expanded[0])


def check_references(config: DictConfig, given: Sequence[str]) -> None:
    """Raises a :class:`ConfigError` that names the ``given`` keys whose ``${...}`` cannot be resolved; missing ones may come later."""
    problems = []
    for key in (key for key in keys(config) if any(key == name or key.startswith(f"{name}.") for name in given)):
        try:
            value = OmegaConf.select(config, key)
            if isinstance(value, ListConfig):
                OmegaConf.to_container(value, resolve=True)
        except InterpolationToMissingValueError:
            continue
        except OmegaConfBaseException as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            problems.append(f"Expected a reference in {key} that can be resolved but got: {reason}; correct it.")
    _raise_together(problems)


def check_complete(config: DictConfig) -> None:
    """Raises a :class:`ConfigError` that names the values that are still to be given."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        wanted = " ".join(f"{key}=<{key.rpartition('.')[2]}>" for key in missing)
        raise ConfigError(f"Expected a value for {', '.join(missing)} but got none; add {wanted}.")


def defaults(verb: str, config_dir: str | Path | None = None) -> tuple[DictConfig, dict[str, str]]:
    """Returns a command's configuration as it is without overrides, and the choice it makes in each group.

    Values that the user must give are missing (``???``).
    """
    with _search(verb, config_dir) as base:
        config = _hydra_compose(verb, base, return_hydra_config=True)
    choices = {group: str(choice) for group, choice in config.hydra.runtime.choices.items() if "hydra" not in group}
    with open_dict(config):
        del config["hydra"]
    return config, choices


def options(group: str, config_dir: str | Path | None = None) -> list[str]:
    """Returns the names a user can choose from in ``group``, in alphabetical order; none if there is no such group."""
    return sorted({file.stem for folder in _folders(config_dir) for file in (folder / group).glob("*.yaml")})


def option_file(name: str, config_dir: str | Path | None = None) -> Path | None:
    """Returns the file of a choice such as "data/shapes" or of a command such as "fit", if there is one."""
    files = (folder / f"{name}.yaml" for folder in _folders(config_dir))
    return next((file for file in files if file.is_file()), None)


def instantiate(config: Any, **kwargs: Any) -> Any:
    """Builds what ``config`` describes by its ``_target_``; ``kwargs`` are passed on as they are.

    Nested descriptions are built too. Lists and dictionaries arrive as plain ones.

    Raises:
        ConfigError: if a ``_target_`` cannot be imported or does not take the arguments.
        DistillError: whatever the built objects themselves raise about their arguments.
    """
    if config is None:
        return None
    if isinstance(config, dict):
        config = OmegaConf.create(config)
    if not OmegaConf.is_config(config):
        raise ConfigError(f"Expected settings with a _target_ but got {config}; write null, or name what is built.")
    has_target = isinstance(config, DictConfig) and "_target_" in config
    partial = has_target and not config.get("_partial_")
    target = str(config["_target_"]) if has_target else "the configuration"
    try:
        check_targets(config)
        built = hydra.utils.instantiate(config, _convert_="all", **({"_partial_": True} if partial else {}))
        return built(**kwargs) if partial else built
    except DistillError:
        raise
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        named = re.search(r"Error in call to target '([^']+)'", str(error))
        if isinstance(cause, Exception) and not _is_call_error(cause):
            _check_nulls(config, cause)
            raise (_in_words(cause, named[1] if named else target) or cause) from cause.__cause__
        raise ConfigError(f"Expected a working configuration but {_one_line(cause or error)}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error
    except (
        Exception
    ) as error:  # from a class that may be the user's own; what is not the user's to mend is raised again
        if isinstance(error, TypeError) and partial and _is_call_error(error):
            raise ConfigError(
                f"Expected settings that {target} takes but {_one_line(error)}{_what_it_takes(target, error)}."
            ) from error
        _check_nulls(config, error)
        told = _in_words(error, target)
        if told is None:
            raise
        raise told from error


def built_by_name(cfg: DictConfig, key: str, kind: type[T]) -> dict[str, T]:
    """Returns what the section ``key`` describes, by name.

    Raises:
        ConfigError: when something in it is not of the expected kind.
    """
    built = instantiate(cfg[key]) or {}
    for name, value in built.items():
        if value is not None and not isinstance(value, kind):
            raise ConfigError(
                f"Expected {key}.{name} to describe a {kind.__module__.partition('.')[0]} {kind.__name__} by its _target_ but "
                f"got {value!r}; correct it, or leave it out."
            )
    return {name: value for name, value in built.items() if value is not None}


def _check_nulls(config: Any, error: Exception) -> None:
    """Raises a :class:`ConfigError` if null for an argument that takes none explains ``error``."""
    if not (isinstance(error, TypeError | AttributeError) and isinstance(config, DictConfig) and "_target_" in config):
        return
    parameters = inspect.signature(hydra.utils.get_object(config["_target_"])).parameters
    for name, parameter in parameters.items():
        if (
            name in config
            and config[name] is None
            and not re.search("None|Any|Optional|_empty", str(parameter.annotation))
        ):
            raise ConfigError(f"Expected a value for {name} of {config['_target_']} but got null.") from error


def _in_words(error: Exception, target: str) -> DistillError | None:
    """Returns what the user can do about an error of a library's, or None for one that is not the user's to mend."""
    if type(error).__name__.startswith(
        "StrictDataclass"
    ):  # a configuration of transformers that huggingface_hub checks
        return ConfigError(f"Expected settings that {target} takes but got: {_one_line(error)}")
    if type(error).__module__.partition(".")[0] in NETWORK:
        return WeightsError(
            f"Expected to fetch what {target} needs from the Hugging Face hub but cannot ({_one_line(error)[:160]}); "
            "connect to the network, or name a file or folder of this machine instead."
        )
    if target.startswith("lightning."):  # whatever they raise about their arguments, or about a package that is missing
        return ConfigError(f"Expected settings of {target} that work on this machine but got: {_one_line(error)}")
    return None


def _what_it_takes(target: str, error: TypeError) -> str:
    """Returns what a class takes, where ``error`` says that it was given another argument."""
    unknown = re.search(r"unexpected keyword argument '([^']+)'", str(error))
    if unknown is None:
        return ""
    return f"; {nearest(unknown[1], list(inspect.signature(hydra.utils.get_object(target)).parameters))}"


def _is_call_error(error: BaseException) -> bool:
    """Returns whether the call itself failed, as with a wrong argument, rather than the code that was called."""
    if isinstance(error, InstantiationException | ImportError):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, TypeError) and (innermost == __file__ or "hydra" in Path(innermost).parts)


def _folders(config_dir: str | Path | None) -> list[Path]:
    folders = [shipped("configs")]
    if config_dir is not None:
        own = Path(config_dir).expanduser().resolve()
        if not own.is_dir():
            raise ConfigError(
                f"Expected --config-dir to be a folder but found none at {own}; give one with YAML files."
            )
        folders.append(own)
    return folders


@contextmanager
def _search(verb: str, config_dir: str | Path | None) -> Iterator[list[str]]:
    """Prepares Hydra to search the folder that holds the verb, and yields the overrides that make it search the other too."""
    first, *others = sorted(_folders(config_dir), key=lambda folder: not (folder / f"{verb}.yaml").is_file())
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(first), version_base="1.3"):
            yield [f"hydra.searchpath=['file://{folder}']" for folder in others]
    finally:
        GlobalHydra.instance().hydra = previous


def _hydra_compose(verb: str, overrides: Sequence[str], return_hydra_config: bool = False) -> DictConfig:
    try:
        return hydra.compose(verb, list(overrides), return_hydra_config=return_hydra_config)
    except (HydraException, OmegaConfBaseException) as error:
        group = re.search(r"Could not override '([^']+)'", str(error))
        if group:
            raise ConfigError(
                f"Expected settings that {verb} takes but {group[1]}= is none of them; python -m distill {verb} --help shows them."
            ) from error
        raise ConfigError(_one_line(error)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"Expected valid YAML in the configuration but {_one_line(error)}") from error


def _assign(config: DictConfig, override: Override) -> None:
    """Gives a key its value as Hydra does when it composes, which would read all files again; the checks have passed."""
    key = override.key_or_group
    try:
        if override.is_delete():
            section, _, last = section_of(config, key)
            with open_dict(section):
                del section[last]
        else:
            opened = OmegaConf.select(config, key, throw_on_missing=False) == {}  # a section for what users add
            adds = override.is_add() or override.is_force_add() or opened
            OmegaConf.update(config, key, override.value(), merge=True, force_add=adds)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error)) from error


def _split(parsed: list[tuple[str, Override]], config_dir: str | Path | None) -> tuple[list[str], list[Override]]:
    """Separates what Hydra composes, choices in groups and its own settings, from assignments of values, and checks the choices."""
    chosen: list[str] = []
    assigned: list[Override] = []
    problems = []
    for text, override in parsed:
        hydras = override.key_or_group.startswith("hydra.") or override.package is not None
        names = [] if hydras else options(override.key_or_group, config_dir)
        if hydras or names:
            chosen.append(text)
        else:
            assigned.append(override)
        value, group = override.value(), override.key_or_group
        if names and (override.is_delete() or value is None):
            problems.append(f"Expected a choice of {group} but got none; {nearest('', names)}.")
        elif names and str(value) not in names:
            now = RENAMED.get(f"{group}={value}")
            hint = f"{group}={value} is now {now}" if now else nearest(str(value), names)
            problems.append(f"Expected a known choice of {group} but got {value}; {hint}.")
    _raise_together(problems)
    return chosen, assigned


def _raise_together(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError(" ".join(problems))


def _one_line(error: BaseException) -> str:
    """Returns an error's text without Hydra's references to its manual, its list of search paths, and Python's advice."""
    text = str(error).partition("Config search path:")[0]
    text = re.sub(r"See https://hydra\.cc\S*.*", "", text)
    text = re.sub(r"\. Did you mean '\w+'\?$", "", text)  # Python's own advice, from 3.13 on
    return " ".join(text.split())
