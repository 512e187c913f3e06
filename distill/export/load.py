"""A trained student as a matcher."""

from pathlib import Path

from torch import nn

from distill.cli.config import instantiate
from distill.core.errors import ConfigError
from distill.export.student_file import load_into, read_student_file


def load_student(path: str | Path | None) -> nn.Module:
    """Builds the student that a file describes, with its weights, in evaluation mode.

    Its ``size`` is the side of the images it was trained on, px.

    Raises:
        ConfigError: when no file is given.
        WeightsError: when the file is missing, truncated, or no student.
    """
    if path is None:
        raise ConfigError(
            "Expected a student's file but got none; add ckpt=<student.safetensors of a fit>, or filter.student= for "
            "filter=student."
        )
    config, tensors = read_student_file(path)
    size = config.pop("size")
    student = load_into(instantiate({**config, "weights": None}), tensors, path)
    student.size = size
    return student
