"""What a configuration builds: whether each ``_target_`` can be imported, said in words before anything is built."""

import difflib
import importlib
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig

from distill.core.errors import ConfigError, in_one_line


def check_targets(config: Any) -> None:
    """Checks every ``_target_`` in ``config``, nested ones included.

    Raises:
        ConfigError: when one names no module, or a name that its module does not have.
    """
    for target in _targets(config):
        if not isinstance(target, str) or "." not in target.strip("."):
            raise ConfigError(f"Expected _target_ as <module>.<name> but got {target!r}; write both.")
        problem = _problem(target.split("."))
        if problem is not None:
            raise ConfigError(f"Expected _target_ to name a class or a function but {target} does not: {problem}")


def _targets(config: Any) -> Iterator[Any]:
    """Yields the values of ``_target_`` in ``config``, those of built objects left alone."""
    if isinstance(config, DictConfig) and not config._is_none() and not config._is_missing():
        if "_target_" in config:
            yield config["_target_"]
        nodes: list[Any] = [config._get_node(name) for name in config]
    elif isinstance(config, ListConfig) and not config._is_none() and not config._is_missing():
        nodes = [config._get_node(number) for number in range(len(config))]
    else:
        return
    for node in nodes:
        yield from _targets(node)


def _problem(parts: list[str]) -> str | None:
    """Returns why a dotted name cannot be imported; None when it can."""
    for count in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
                return f"its module {name} needs the package {error.name}, which is not installed; install it."
            continue
        except ImportError as error:
            return f"its module {name} cannot be imported ({in_one_line(error, None)}); correct the module."
        except ValueError:  # of an empty part, as in "a..b"
            return "it is no dotted name; correct it."
        return _missing(found, name, parts[count:])
    return f"there is no module {parts[0]!r}; install its package, or set PYTHONPATH to the folder that holds it."


def _missing(found: Any, name: str, rest: list[str]) -> str | None:
    """Returns which of the attributes ``rest`` of the module ``name`` there is not; None when there are all."""
    for part in rest:
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, [other for other in dir(found) if other[:1] != "_"], n=1)
            return f"{name} has no {part!r}; {f'did you mean {close[0]!r}?' if close else 'correct the name.'}"
        found, name = getattr(found, part), f"{name}.{part}"
    return None
