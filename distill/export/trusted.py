"""Building what a student's file describes, without trusting the file.

A description names classes and their arguments. It comes from a file that somebody else may have written, so it is read
as data: classes of allowed packages only, plain values only, and no argument that names another file, address or cache.
"""

import importlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.errors import DistillError, WeightsError, in_one_line
from distill.core.numbers import is_whole
from distill.core.squares import RESIZES
from distill.export.plan import planned, unfilled

TRUSTED = ("student",)
"""Packages whose classes a student's file may name; what it names is imported and called."""
LARGEST_DESCRIPTION = 1 << 16  # characters
DEEPEST = 8  # levels of nesting
LARGEST_NUMBER = 1 << 16
INTERPOLATION = "${"
"""What OmegaConf replaces in a text, by a whole configuration where it says so."""
SIZES = (1, 8192)  # px, of the images
IMAGES = ("size", "resize")
"""What a description says of the images that the student was trained on."""
_NETWORK_NAME = re.compile(r"\w+(\.\w+)?", re.ASCII)
_SOURCES = re.compile(r"pretrained.*|checkpoint_path|cache_dir", re.ASCII)
"""Arguments of ``timm.create_model`` that make it read other files or addresses; the weights are in the student's file."""


def read_description(text: str | None, path: str | Path) -> dict[str, Any]:
    """Parses a student's configuration, JSON in a file's metadata, and checks that it is plain and of ordinary size.

    Raises:
        WeightsError: when it is missing, no JSON object, nested too deeply, holds a number that is too large, or "size" is
            no side of an image in px, or "resize" no way to bring images to squares.
    """
    try:
        if text is None or len(text) > LARGEST_DESCRIPTION:
            raise ValueError("is missing" if text is None else f"takes {len(text)} characters")
        description = json.loads(text, parse_constant=_refuse_constant)
        if not isinstance(description, dict):
            raise ValueError("is no JSON object")
        _check_plain(description)
        size = description.get("size")
        if not is_whole(size) or not SIZES[0] <= size <= SIZES[1]:
            raise ValueError(f"has the size {size!r}, which must be {SIZES[0]} to {SIZES[1]} px")
        resize = description.get("resize", "squash")
        if resize not in RESIZES:
            raise ValueError(f"has the way to resize {resize!r}, which must be {' or '.join(RESIZES)}")
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else in_one_line(error)
        raise WeightsError(
            f"Expected {path} to describe a student but its description {reason}; give the student.safetensors of a fit."
        ) from error
    return description


def without_sources(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a student's configuration without the options that make timm read other files or addresses."""
    options = config.get("options")
    if not isinstance(options, Mapping):
        return dict(config)
    return {**config, "options": {key: value for key, value in options.items() if not _SOURCES.fullmatch(str(key))}}


def build_student(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path, trusted: Sequence[str] = ()
) -> nn.Module:
    """Builds what a student's file describes, without its weights.

    A student of ours is first planned and compared with ``tensors``, so that a short file cannot ask for a large network. Its parameters
    have no values until they are loaded; see :mod:`distill.export.plan`.

    Args:
        description: see :func:`read_description`; what it says of :data:`IMAGES` is no argument.
        tensors: the weights in the file.
        path: of the file, for messages.
        trusted: further packages whose classes may be named.

    Raises:
        WeightsError: when the description names a class that is not allowed, or cannot be built, or is of another network.
    """
    if not is_ours(description):
        return build_trusted(_without_images(description), path, trusted)
    check_plan(description, tensors, path, trusted)
    with unfilled():
        return build_trusted(_without_images(description), path, trusted)


def _without_images(description: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in description.items() if key not in IMAGES}


def is_ours(config: Mapping[str, Any]) -> bool:
    """Returns whether a description names a class of the package ``student``."""
    target = config.get("_target_")
    return isinstance(target, str) and target.partition(".")[0] in TRUSTED


def check_plan(
    description: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str | Path, trusted: Sequence[str] = ()
) -> None:
    """Plans what a file describes, without memory, and compares it with the file's weights; arguments as of :func:`build_student`.

    Raises:
        WeightsError: see there.
    """
    with planned(tensors, path):
        plan = build_trusted(_without_images(description), path, trusted)
    given = {name: value.shape for name, value in tensors.items()}
    wanted = {name: value.shape for name, value in plan.state_dict().items()}
    if given != wanted:
        name = next(iter(sorted(n for n in given.keys() | wanted.keys() if given.get(n) != wanted.get(n))))
        raise WeightsError(
            f"Expected weights in {path} that fit the student it describes but {name} is of shape "
            f"{_shape(given.get(name))} and must be of {_shape(wanted.get(name))}; copy the file again or train anew."
        )


def build_trusted(description: Mapping[str, Any], path: str | Path, trusted: Sequence[str] = ()) -> nn.Module:
    """Builds the module that ``description`` names by its ``_target_``, and those nested in its arguments.

    "weights", which names another file, is left out at every level.

    Raises:
        WeightsError: see :func:`build_student`.
    """
    packages = (*TRUSTED, *((trusted,) if isinstance(trusted, str) else trusted))
    if not isinstance(description.get("_target_"), str):
        raise WeightsError(
            f"Expected {path} to name a class of {', '.join(packages)} but it names none; give the student.safetensors of "
            "a fit."
        )
    return _build(dict(description), path, packages)


def plain_arguments(arguments: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Returns arguments for a class of ours that were read from a student's file, checked.

    Raises:
        WeightsError: when they describe an object, name another file for timm to read, or no network of timm.
    """
    special = sorted(key for key in _keys(dict(arguments)) if key.startswith("_"))
    if special:
        raise WeightsError(
            f"Expected plain values in the configuration of {path} but it holds {', '.join(special)}; a file from a "
            "stranger must not run code."
        )
    _check_arguments(arguments, path)
    return dict(arguments)


def _build(config: Any, path: str | Path, packages: Sequence[str]) -> Any:
    if isinstance(config, list):
        return [_build(value, path, packages) for value in config]
    if not isinstance(config, dict):
        return config
    if not any(key.startswith("_") for key in config):
        return {key: _build(value, path, packages) for key, value in config.items()}
    kind = _class_named(config, path, packages)
    given = {key: None if key == "weights" else value for key, value in config.items() if key != "_target_"}
    if kind.__module__.partition(".")[0] in TRUSTED:
        _check_arguments(given, path)
    arguments = {key: _build(value, path, packages) for key, value in given.items()}
    try:
        return kind(**arguments)
    except DistillError:
        raise
    except Exception as error:  # the arguments are a stranger's, and whatever is wrong with them is the file's fault
        reason = in_one_line(error)
        raise WeightsError(
            f"Expected {path} to describe a student that can be built but {kind.__name__} says: {type(error).__name__} "
            f"{reason}; train it again with this version."
        ) from error


def _class_named(config: dict[str, Any], path: str | Path, packages: Sequence[str]) -> type[nn.Module]:
    """Returns the class that ``_target_`` names, if a package among ``packages`` defines it."""
    target = config.get("_target_")
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    others = [key for key in config if key.startswith("_") and key != "_target_"]
    if others or module.partition(".")[0] not in packages:
        raise _untrusted(path, packages, f"{target!r}{f' with {others}' if others else ''}")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise WeightsError(
            f"Expected {path} to name a class that is there but {target!r} cannot be imported ({error}); install its "
            "package, or train the student again with this version."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise WeightsError(f"Expected {path} to name a torch module but {target!r} is none; train the student again.")
    if kind.__module__.partition(".")[0] not in packages:
        raise _untrusted(path, packages, f"{target!r}, which is defined in {kind.__module__},")
    return kind


def _untrusted(path: str | Path, packages: Sequence[str], found: str) -> WeightsError:
    return WeightsError(
        f"Expected {path} to name a class of {', '.join(packages)} but it names {found}; a file from a stranger must not "
        "run code. If the class is your own, name its package: trust=[<package>]."
    )


def _check_arguments(arguments: Mapping[str, Any], path: str | Path) -> None:
    """Refuses arguments of our own classes that would make timm read another file or address."""
    for key in ("backbone", "name"):
        name = arguments.get(key)
        if isinstance(name, str) and not _NETWORK_NAME.fullmatch(name):
            raise WeightsError(
                f"Expected {path} to name a network of timm but it names {name!r}; a file from a stranger must not fetch "
                "others."
            )
    forbidden = sorted(key for key in _keys(arguments) if _SOURCES.fullmatch(key))
    if forbidden:
        raise WeightsError(
            f"Expected {path} to hold all of its student but it asks for {', '.join(forbidden)}; a file from a stranger "
            "must not read others."
        )


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _check_plain(value: Any, depth: int = 0) -> None:
    """Raises a :class:`ValueError` for nesting beyond :data:`DEEPEST` levels, numbers of extraordinary size and interpolations."""
    if depth > DEEPEST:
        raise ValueError(f"is nested more than {DEEPEST} levels deep")
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):
        raise ValueError(f"holds a number larger than {LARGEST_NUMBER}")
    texts = value if isinstance(value, dict) else [value]
    resolved = next((text for text in texts if isinstance(text, str) and INTERPOLATION in text), None)
    if resolved is not None:
        raise ValueError(f"holds {resolved[:60]!r} where plain text is read")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_plain(inner, depth + 1)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is no JSON")


def _shape(shape: torch.Size | None) -> str:
    return "nothing" if shape is None else str(tuple(shape))
