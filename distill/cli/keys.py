"""Keys of a configuration: their names, the nearest name to a wrong one, and the types of their values."""

import difflib
import inspect
import math
import pydoc
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import Container, DictConfig, ListConfig, OmegaConf

from distill.cli.overrides import is_path
from distill.cli.renamed import new_name
from distill.core.errors import nearest
from distill.core.numbers import is_number

USUAL_NAMES = {
    "learning_rate": "lr",
    "epochs": "trainer.max_epochs",
    "n_epochs": "trainer.max_epochs",
    "bs": "batch_size",
    "workers": "num_workers",
    "out": "run.dir",
    "output": "run.dir",
    "output_dir": "run.dir",
    "checkpoint": "ckpt",
    "image_size": "data.size",
    "img_size": "data.size",
    "precision": "trainer.precision",
    "gpus": "trainer.devices",
}
"""Names that other programs have for our keys, which are spelt too differently to be found as mistypings."""

LISTS_OR_WORDS = ("what",)
"""Keys whose default is a list, but that take a single word as well."""

LEAST = {
    "ablation_pairs": 1,
    "batch_seconds": 0,
    "batch_size": 1,
    "browsed": 0,
    "calibration_pairs": 0,
    "dense": 1,
    "flush_seconds": 0,
    "frames": 1,
    "gate_pairs": 0,
    "images": 1,
    "labels": 1,
    "n_pairs": 0,
    "num_workers": 0,
    "pairs_per_image": 1,
    "panels": 1,
    "pictures": 0,
    "reference_pairs": 0,
    "repeats": 1,
    "seed": 0,
    "size": 1,
    "teacher_pairs": 0,
}
"""The smallest whole numbers that make sense, by the last part of a key; whatever reads a setting may ask for more."""

LARGEST_SEED = 2**32 - 1
"""What NumPy takes, and with it Lightning's ``seed_everything``."""

NULL_MEANS_SOMETHING = ("ema", "shares", "cycle_tolerance")
"""The last parts of a verb's own keys whose default is a value, but that may be null; so may any ``n_pairs``."""

LEFT_OUT_BY_NULL = (
    "loss.weights.",
    *(f"{fused}.model.{entry}." for fused in ("teacher", "matcher") for entry in ("weights", "sizes")),
)
"""Beginnings of keys whose entries null leaves out: a loss without its weight, as ``loss.terms.<name>=null`` with it, and the weight or
the size of a source of fused features."""

WEIGHTS = ("weights", "unet_weights")
"""The last parts of keys of a network whose null stands for random weights, or for those of the pipeline; recipes name files there."""

ONE_PATH = ("ckpt", "data_root", "dir", "file", "folder", "init_from", "path", "root", "src")
"""The last parts of keys that hold one path, never a list."""

UNBOUNDED = ("flip_tolerance",)
"""The last parts of keys whose number may be infinite."""


def out_of_range(config: DictConfig) -> list[str]:
    """Returns an error message for each value that is below :data:`LEAST`, and for each seed above :data:`LARGEST_SEED`."""
    problems = []
    for key in _with_values(config):
        value, last = OmegaConf.select(config, key, throw_on_missing=False), key.rpartition(".")[2]
        if not is_number(value):
            continue
        if value < LEAST[last]:
            problems.append(f"Expected {key} of at least {LEAST[last]} but got {value}.")
        elif last == "seed" and value > LARGEST_SEED:
            problems.append(f"Expected {key} of at most {LARGEST_SEED} but got {value}.")
    return problems


def _with_values(config: DictConfig) -> list[str]:
    """Returns those keys that :data:`LEAST` knows and that have a value of their own."""
    known = (key for key in keys(config) if key.rpartition(".")[2] in LEAST)
    return [
        key for key in known if not section_of(config, key)[0]._get_node(key.rpartition(".")[2])._is_interpolation()
    ]


def check_assignments(config: DictConfig, overrides: Sequence[Override], verb: str) -> list[str]:
    """Returns what is wrong with the keys, and with the types of the values, that ``overrides`` assign."""
    problems = []
    for override in overrides:
        key = override.key_or_group
        if key.startswith("hydra."):
            continue
        if override.is_delete():
            if "." not in key or not _exists(config, key):
                problems.append(
                    f"Expected a part of a section after ~ but got {key}; write {key}=null to leave it out."
                )
            elif override.value() not in (None, _present(config, key)):
                problems.append(
                    f"Expected {key} to be {override.value()} but it is {_present(config, key)}; write ~{key} alone."
                )
            continue
        if override.is_add() or override.is_force_add():
            top = key.partition(".")[0]
            if top not in config:
                problems.append(f"Expected +{key} to add to a section of {verb} but nothing reads {top}; leave it out.")
            elif (
                override.is_add()
                and not isinstance(override.value(), list | dict)
                and _present(config, key) is not None
            ):
                problems.append(f"Expected +{key} to add a key but there is one of this name; write {key}=, without +.")
            continue
        if _exists(config, key):
            problem = _type_problem(config, key, override.value())
        else:
            now = new_name(key, override.value(), lambda name: _exists(config, name))
            hint = f"{key} is now {now}" if now else _nearest_key(config, key)
            problem = f"Expected a key of {verb} but got {key}; {hint}."
        problems += [problem] if problem else []
    return problems


def _present(config: DictConfig, key: str) -> Any:
    """Returns a key's value, a reference unresolved, and None for a key that is not there or still to be given."""
    if not _exists(config, key):
        return None
    node, _, last = section_of(config, key)
    found = node._get_node(last)
    return None if found._is_missing() else found._value()


def _exists(config: DictConfig, key: str) -> bool:
    node, _, last = section_of(config, key)
    return isinstance(node, DictConfig) and last in node.keys()  # noqa: SIM118 - a value still to be given is a key too


def section_of(config: DictConfig, key: str) -> tuple[Any, str, str]:
    """Returns the section of ``config`` that ``key`` lies in, or the innermost that exists, its name, and the rest."""
    node: Any = config
    path: list[str] = []
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(node, DictConfig) or part not in node or OmegaConf.is_missing(node, part):
            return node, ".".join(path), part
        node = node[part]
        path.append(part)
    return node, ".".join(path), last


def _nearest_key(config: DictConfig, key: str) -> str:
    everything = list(keys(config))
    usual = USUAL_NAMES.get(key.rpartition(".")[2])
    if usual in everything:
        return f"did you mean {usual!r}? see --help for all keys"
    node, path, last = section_of(config, key)
    if isinstance(node, DictConfig) and last in _taken(node):
        return f"+{key}=... adds one"
    same_name = [other for other in everything if other.rpartition(".")[2] == key.rpartition(".")[2]]
    close = same_name[:1] or difflib.get_close_matches(key, everything, n=1, cutoff=0.75)
    if not isinstance(node, DictConfig):
        return f"{path} has no parts"
    siblings = [f"{path}.{name!s}" if path else str(name) for name in node]
    if close and close[0] not in siblings:
        return f"did you mean {close[0]!r}? see --help for all keys; +{key}=... adds one"
    siblings = [name for name in siblings if not name.rpartition(".")[2].startswith("_")]
    if not siblings:
        return f"+{key}=... adds one"
    return f"{nearest(f'{path}.{last}' if path else last, siblings)}; +{key}=... adds one"


def _taken(section: DictConfig) -> Collection[str]:
    """Returns the names of the arguments that what ``section`` describes takes."""
    target = OmegaConf.select(section, "_target_", throw_on_missing=False, throw_on_resolution_failure=False)
    try:
        return inspect.signature(pydoc.locate(str(target))).parameters.keys()  # type: ignore[arg-type]
    except (pydoc.ErrorDuringImport, TypeError, ValueError):  # of a target that is none, which is said when it is built
        return ()


def keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all values in ``config``; a dictionary whose keys no dotted name has is one value."""
    for name in config:
        key = f"{prefix}{name!s}"
        node = config._get_node(name)
        if isinstance(node, DictConfig) and _is_section(node):
            yield from keys(node, f"{key}.")
        else:
            yield key


def _is_section(node: DictConfig) -> bool:
    present = not node._is_none() and not node._is_interpolation()
    return present and all(isinstance(name, str) and "." not in name for name in node)


def _type_problem(config: DictConfig, key: str, value: Any) -> str | None:
    """Compares a new value with the type of the default that it replaces, as far as that says anything."""
    node, _, last = section_of(config, key)
    default = node._get_node(last)
    if value is None:
        return _null_problem(node, key, last)
    if not _is_finite(value) and not (last in UNBOUNDED and value == math.inf):
        return f"Expected finite numbers for {key} but got {value}."
    if last in ONE_PATH and isinstance(value, list | dict):
        return f"Expected one path for {key} but got {value}."
    if default._is_missing() or default._is_interpolation() or _is_reference(value):
        return None
    if value == {} and isinstance(default, DictConfig) and len(default):
        return (
            f"Expected parts for {key} but got an empty mapping, which leaves it as it is, as mappings are merged; write "
            f"~{key}.{next(iter(default))!s} to leave a part out."
        )
    if default._is_none() and last in LEAST and isinstance(value, bool | float | str):
        return f"Expected a whole number for {key} but got {value}."
    old = default if isinstance(default, Container) else default._value()
    if key.startswith("trainer.limit_") and isinstance(value, float):
        return None  # a share of the batches, as Lightning reads it
    if key == "trainer.devices" and isinstance(value, list | str):
        return None  # GPUs by their numbers, or all of them
    if isinstance(old, ListConfig) and not isinstance(value, list) and key not in LISTS_OR_WORDS:
        return f"Expected a list for {key} but got {value}; write {key}=[{value}]."
    rules: list[tuple[type | tuple[type, ...], tuple[type, ...], str]] = [
        (bool, (bool,), "true or false"),
        (int, (int,), "a whole number"),
        (float, (int, float), "a number"),
        (DictConfig, (dict,), f"one of its keys, {key}.<key>=<value>,"),
    ]
    for type_, accepted, wanted in rules:
        if isinstance(old, type_):
            right = isinstance(value, accepted) and (bool in accepted or not isinstance(value, bool))
            return None if right else f"Expected {wanted} for {key} but got {value}; the default is {_shown(old)}."
    return None


def _null_problem(section: Any, key: str, last: str) -> str | None:
    """Returns what is wrong with null for ``key`` of ``section``.

    It is taken where the default is null, for what is built by a ``_target_``, for any ``n_pairs``, and for those other
    settings of what is built that are neither in :data:`LEAST` nor paths, weights excepted.
    """
    default = section._get_node(last)
    if default._is_missing():
        return f"Expected a value for {key} but got null; write {key}=<{last}>."
    is_built = isinstance(default, DictConfig) and "_target_" in default
    if (
        default._is_none()
        or is_built
        or last == "n_pairs"
        or last in NULL_MEANS_SOMETHING
        or key.startswith(LEFT_OUT_BY_NULL)
    ):
        return None
    if "_target_" in section and not (is_path(key) or last in LEAST):
        return None
    if "_target_" in section and last in WEIGHTS and not isinstance(default, Container):
        return None
    usual = "" if isinstance(default, Container) else f" for {OmegaConf.select(section, last)}"
    return f"Expected a value for {key} but got null; leave it out{usual}."


def _is_finite(value: Any) -> bool:
    """Returns whether all numbers in ``value``, also in nested lists and dictionaries, are finite."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return math.isfinite(value) if isinstance(value, float) else all(map(_is_finite, inner))


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("${")


def _shown(value: Any) -> str:
    return "a section" if isinstance(value, Container) else str(value)
