"""A trained student as one safetensors file that says how to build it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from distill.core.errors import ConfigError, WeightsError, in_one_line
from distill.core.files import replacing
from distill.core.version import __version__
from distill.core.weights import check_finite, check_kinds, check_readable
from distill.export.hub import hub_file, is_hub_id
from distill.export.trusted import build_student, read_description, without_sources

_FORMAT = "distill-student-2"
BUNDLED = "model.safetensors"
"""The name of a student's file in a bundle, see :mod:`distill.export.bundle`."""
ABOUT_FIELDS = ("teacher", "data", "figures", "licences")
"""What a student's file may say of itself, each a mapping of plain values."""


def save_student(
    student: nn.Module, config: Mapping[str, Any], path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Writes a student's weights and configuration; an older file is replaced at once or not at all.

    Args:
        student: a module.
        config: what builds it, with its ``_target_``, "size", the side of the images it was trained on, px, and "resize", how these
            were brought to squares, "squash" (which is meant without it) or "letterbox".
        path: of the file.
        about: :data:`ABOUT_FIELDS` as far as they are known, for people and for the metadata of exported files.

    Raises:
        OSError: when there is no room; an older file stays.
        DataError: when it cannot be written there.
    """
    save_tensors({name: value.detach() for name, value in student.state_dict().items()}, config, path, about)


def save_tensors(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: str | Path, about: Mapping[str, Any] | None = None
) -> None:
    """Writes a student's file of weights by name; see :func:`save_student`."""
    metadata = {"format": _FORMAT, "student": json.dumps(without_sources(config)), "version": __version__}
    metadata["about"] = json.dumps(dict(about or {}))
    content = save({name: value.cpu().contiguous() for name, value in tensors.items()}, metadata)
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def add_about(path: str | Path, about: Mapping[str, Any]) -> None:
    """Adds to what a student's file says of itself, see :func:`save_student`; the weights stay as they are."""
    config, tensors = read_student_file(path)
    save_tensors(tensors, config, path, {**read_about(path), **about})


def read_student_file(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the configuration in a student's file, with "size" in px, and the weights by name, on the CPU.

    Raises:
        WeightsError: when the file is missing, truncated, or no student, or its configuration is none.
    """
    path = _file(path)
    if not os.path.isfile(path):
        raise WeightsError(
            f"Expected a student's file but there is none at {path}; give the student.safetensors of a fit."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"Expected a whole student's file at {path} but it cannot be read ({error}); copy it again or train anew."
        ) from error
    if metadata.get("format") != _FORMAT:
        raise WeightsError(
            f"Expected a student written by distill at {path} but its format is {metadata.get('format')!r} where {_FORMAT!r} is "
            "read; give the student.safetensors of a fit with this version."
        )
    return read_description(metadata.get("student"), path), tensors


def read_about(path: str | Path) -> dict[str, Any]:
    """Returns what a student's file says of itself: :data:`ABOUT_FIELDS`, each a mapping, as far as the file has them.

    Raises:
        WeightsError: when it cannot be read, or what it says, or one of these fields, is no JSON object.
    """
    try:
        with safe_open(_file(path), "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"Expected a student's file at {path} but what it says of itself cannot be read.") from error
    if not isinstance(about, dict):
        raise WeightsError(
            f"Expected a student's file at {path} that says of itself a JSON object but got {about!r:.80}; give another file."
        )
    for key in ABOUT_FIELDS:
        if not isinstance(about.get(key, {}), dict):
            raise WeightsError(
                f"Expected a student's file at {path} that says of its {key} a JSON object but got {about[key]!r:.80}; give "
                "another file."
            )
    return about


def _file(path: str | Path) -> Path:
    """Returns a student's file, that in the folder of a bundle, or that of a repository of the Hugging Face hub.

    Raises:
        ConfigError: when it is no path.
        WeightsError: when this user may not read it.
    """
    if not isinstance(path, str | Path) or path == "":
        raise ConfigError(f"Expected the path of a student's file but got {path!r:.80}; give it as text.")
    check_readable(path)
    if os.path.isdir(path):
        check_readable(Path(path, BUNDLED))
        return Path(path, BUNDLED)
    return hub_file(str(path), BUNDLED) if is_hub_id(path) else Path(path)


def load_into(student: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> nn.Module:
    """Fills ``student`` with weights and returns it in evaluation mode.

    Raises:
        WeightsError: when they are of another network, of another kind than its own, or not finite.
    """
    check_kinds(tensors, student.state_dict(), path)
    check_finite(tensors, path)
    try:
        student.load_state_dict(dict(tensors))
    except RuntimeError as error:
        reason = in_one_line(error, 300)
        raise WeightsError(
            f"Expected weights in {path} that fit the student but {reason}; give the "
            "student.<name> settings that it was trained with, or train it anew."
        ) from error
    return student.eval()


def load_student(path: str | Path | None, trusted: Sequence[str] = ()) -> nn.Module:
    """Builds the student that a file describes, with its weights, in evaluation mode.

    Its ``size`` is the side of the images it was trained on, px, its ``resize`` how they were brought to squares, None where a
    file does not say. Its weights ask for no gradients, so its answers carry none; ``student.requires_grad_(True).train()``
    trains it further.

    Args:
        path: of the file, or of the folder of a bundle; or the hub's name of one, "owner/name" or "owner/name@revision".
        trusted: packages of your own whose classes the file may name, besides ``student``. A file decides which of their
            classes is called and with which arguments.

    Raises:
        ConfigError: when no file is given, or no path.
        WeightsError: when the file is missing, truncated, no student, holds weights that are not finite, or names a class of
            another package, or the hub does not give it.
    """
    if path is None:
        raise ConfigError(
            "Expected a student's file but got none; add ckpt=<student.safetensors of a fit> (for filter=student: "
            "filter.student=)."
        )
    config, tensors = read_student_file(path)
    student = load_into(build_student(config, tensors, path, trusted), tensors, path)
    resize: Any = config.get("resize")
    student.size, student.resize = config["size"], resize
    return student.requires_grad_(False)
