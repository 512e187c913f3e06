"""The rows of a comparison: from ``matchers=`` to matchers by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.cli.config import instantiate
from distill.core.errors import ConfigError, nearest
from distill.core.protocols import Fingerprinted, Matcher, PairMatcher, on_device
from distill.export.onnx_matcher import OnnxMatcher
from distill.export.student_file import load_student, read_student_file
from distill.export.trusted import check_plan, is_ours, plain_arguments
from distill.labels.cached import Cached, fingerprint_of
from distill.labels.place import place_for
from distill.matchers.stored_predictions import StoredPredictions

AnyMatcher = Matcher | PairMatcher
TEACHER, LIVE, STUDENT = "teacher", "teacher_live", "student"
FILES = (".safetensors", ".onnx", ".npz")
PRETRAINED = "pretrained"
BASELINE = "student.NearestNeighbour"
"""What takes the first student's backbone where its own is left open."""


@dataclass(frozen=True)
class Row:
    """One matcher of a comparison.

    Attributes:
        name: in tables, and of the file of its answers.
        what: "teacher", "teacher_live", "student", a name in ``rows``, or a path.
    """

    name: str
    what: str

    @property
    def is_path(self) -> bool:
        """Whether it is a file of a student, of an ONNX graph or of predictions, or a folder of labels."""
        return "/" in self.what or self.what.endswith(FILES)

    @property
    def student_file(self) -> bool:
        """Whether it is a student's file."""
        return self.is_path and self.what.endswith(FILES[0])


def read_rows(cfg: DictConfig) -> list[Row]:
    """Returns what ``matchers=`` names.

    Raises:
        ConfigError: for an entry that is no name, no path and no ``{name: either}``, for an unknown name, and for a name that is
            given twice or cannot name a file.
    """
    given = OmegaConf.to_container(cfg.matchers, resolve=True)
    assert isinstance(given, list)
    if not given:
        raise ConfigError(
            "Expected at least one of matchers to compare but got none; leave matchers= out for the usual ones."
        )
    rows = [_row(entry) for entry in given]
    stems = [row.name for row in rows]
    rows = [Row(_longer(row), row.what) if row.is_path and stems.count(row.name) > 1 else row for row in rows]
    for row in rows:
        _check(row, [other.name for other in rows], cfg)
    return rows


def build_rows(cfg: DictConfig, rows: Sequence[Row], device: str) -> dict[str, AnyMatcher]:
    """Builds the matchers, on ``device``, by name.

    Raises:
        DistillError: for whatever is wrong with the settings or with the files that they name.
    """
    backbone = backbone_of(cfg, rows)
    matchers = {row.name: _build(cfg, row, backbone) for row in rows}
    return {name: on_device(matcher, device) for name, matcher in matchers.items()}


def student_files(cfg: DictConfig, rows: Sequence[Row]) -> list[str]:
    """Returns the paths of the rows that are students' files, in their order."""
    return [
        str(cfg.ckpt) if row.what == STUDENT else row.what for row in rows if row.what == STUDENT or row.student_file
    ]


def backbone_of(cfg: DictConfig, rows: Sequence[Row]) -> dict[str, Any] | None:
    """Returns the arguments of the baselines' backbone: those of ``backbone=``, the rest from the first student.

    Where ``backbone=`` names a network it stands for itself, and nothing is taken from a student.

    Raises:
        ConfigError: when ``backbone=`` is no mapping.
    """
    chosen = cfg.backbone if cfg.backbone is not None else OmegaConf.create({})
    if not isinstance(chosen, DictConfig):
        raise ConfigError(
            f"Expected backbone as arguments of a timm backbone but got {chosen!r}; write 'backbone={{backbone: {chosen}}}'."
        )
    given: dict[str, Any] = OmegaConf.to_container(chosen, resolve=True)  # type: ignore[assignment]
    if "backbone" in given:
        return given
    files = student_files(cfg, rows) or ([str(cfg.ckpt)] if cfg.ckpt is not None else [])
    return {**backbone_arguments(files[0]), **given} if files else None


def backbone_arguments(ckpt: str) -> dict[str, Any]:
    """Returns what builds the untouched backbone of a student's file, with two kinds of strides.

    "strides" is the one that a nearest neighbour compares, 16 where the student has it; "all_strides" are the student's own.
    A student's file does not choose what is read from this machine: weights of a file that it names are not among the
    arguments, their path is "weights_file".

    Raises:
        WeightsError: when the file's configuration holds anything but plain values, see :func:`plain_arguments`, or describes
            another network than that of its weights, which a baseline would take the memory of.
    """
    config, tensors = read_student_file(ckpt)
    names = ("backbone", "weights", "mean", "std", "options", "strides")
    shared = plain_arguments({key: config.get(key) for key in names}, ckpt)
    if is_ours(config):
        check_plan(config, tensors, ckpt)
    strides = list(shared.pop("strides") or [16])
    if shared["weights"] not in (None, PRETRAINED):
        shared["weights_file"] = shared.pop("weights")
    return {"strides": [16 if 16 in strides else strides[-1]], "all_strides": strides, **shared}


def with_backbone(config: Any, backbone: Mapping[str, Any] | None, name: str) -> Any:
    """Returns ``config`` with ``backbone`` in each description of a nearest neighbour that leaves its own open.

    Its ``strides: all`` are those of the student that the backbone comes from, see :func:`backbone_arguments`.

    Raises:
        ConfigError: when there is none to fill in, or its weights lie in a file that only the student's file names.
    """
    if not isinstance(config, dict):
        return config
    config = {key: with_backbone(value, backbone, name) for key, value in config.items()}
    if config.get("_target_") != BASELINE or config.get("backbone") is not None:
        return config
    if backbone is None:
        raise ConfigError(
            f"Expected a backbone for {name} but got neither a student nor backbone=; add ckpt=<student.safetensors>, or "
            "backbone={backbone: resnet50, weights: pretrained}."
        )
    filled = {**backbone, **{key: value for key, value in config.items() if value is not None}}
    every, file = filled.pop("all_strides", backbone.get("strides", [16])), filled.pop("weights_file", None)
    if file is not None and filled.get("weights") is None:
        raise ConfigError(
            f"Expected backbone.weights for {name}, since the student began with weights of a file, but got none; add "
            f"'backbone={{weights: {str(file)[:200]}}}' if that file is yours. A student's file does not choose what is read."
        )
    return filled | ({"strides": every} if filled.get("strides") == "all" else {})


def _row(entry: Any) -> Row:
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, what = next(iter(entry.items()))
    else:
        name, what = None, entry
    if not isinstance(what, str) or not what:
        raise ConfigError(
            f"Expected entries of matchers that are a name, a path, or {{name: either}} but got {entry!r}; such as "
            "matchers=[teacher,{small: runs/small/student.safetensors}]."
        )
    row = Row(str(name or ""), what)
    if row.is_path:
        row = Row(row.name, str(Path(what).expanduser()))
    return row if name else Row(Path(row.what).stem if row.is_path else what, row.what)


def _longer(row: Row) -> str:
    """Returns a path's name with that of its folder before it."""
    return f"{Path(row.what).absolute().parent.name}_{row.name}"


def _check(row: Row, names: Sequence[str], cfg: DictConfig) -> None:
    if names.count(row.name) > 1:
        raise ConfigError(
            f"Expected each of matchers to have a name of its own but {row.name!r} stands {names.count(row.name)} times; write "
            f"{{<name>: {row.what}}}."
        )
    if not re.fullmatch(r"\w[\w.+ -]{0,59}", row.name):
        raise ConfigError(
            f"Expected names of matchers of at most 60 letters, digits, spaces and . + - _ but got {row.name!r}; write "
            f"{{<name>: {row.what}}}."
        )
    known = [TEACHER, LIVE, STUDENT, *cfg.rows]
    if row.is_path:
        if not Path(row.what).exists():
            raise ConfigError(
                f"Expected a file or folder for {row.name} of matchers but there is none at {row.what}; correct it."
            )
    elif row.what not in known:
        raise ConfigError(
            f"Expected matchers of known names, or paths with a / or one of {', '.join(FILES)}, but got {row.what!r}; "
            f"{nearest(row.what, known)}."
        )
    elif row.what in cfg.rows and not isinstance(cfg.rows[row.what], DictConfig):
        raise ConfigError(
            f"Expected rows.{row.what} to describe a matcher by its _target_ but got {cfg.rows[row.what]!r}; correct it."
        )
    if row.what == STUDENT and cfg.ckpt is None:
        raise ConfigError(
            "Expected a value for ckpt but got none; add ckpt=<student.safetensors>, or leave student out of matchers."
        )


def labelled(teacher: Matcher | PairMatcher, cfg: DictConfig) -> Cached:
    """Returns the teacher behind its labels: in ``labels.dir``, or beside it where that holds another teacher's.

    Raises:
        ConfigError: when the teacher has no fingerprint.
        LabelError: when the labels are damaged.
    """
    folder = Path(cfg.labels.dir)
    place = place_for(folder, fingerprint_of(teacher, cfg.data)) if isinstance(teacher, Fingerprinted) else folder
    if place != folder:
        print(f"note: {folder} holds labels of another teacher; those of this one are in {place}")
    return Cached(place, teacher, fallbacks=list(cfg.labels.fallbacks), images=cfg.data)


def _build(cfg: DictConfig, row: Row, backbone: Mapping[str, Any] | None) -> AnyMatcher:
    if row.what == TEACHER:
        return labelled(instantiate(cfg.teacher), cfg)
    if row.what == LIVE:
        return instantiate(cfg.teacher)
    if row.what == STUDENT or row.student_file:
        return load_student(student_files(cfg, [row])[0], cfg.trust)
    if not row.is_path:
        described = OmegaConf.to_container(cfg.rows[row.what], resolve=True)
        return instantiate(with_backbone(described, backbone, row.what))
    path = Path(row.what)
    if path.is_dir():
        return Cached(path)
    return OnnxMatcher(path) if path.suffix == ".onnx" else StoredPredictions(path)
