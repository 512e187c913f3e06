"""Checks of weights that come from a file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from distill.core.errors import WeightsError
from distill.core.files import check_permission

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_readable(path: str | Path) -> None:
    """Raises a :class:`WeightsError` when this user may not read a file, of which safetensors says that it does not exist."""
    try:
        check_permission(path)
    except PermissionError as error:
        raise WeightsError(
            f"Expected weights that may be read but got {path} ({error.strerror}); ask its owner, for example for chmod a+r."
        ) from error


def check_kinds(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises a :class:`WeightsError` when a tensor is no floating point where the network has some, or the reverse.

    Quantised weights are whole numbers, which torch would convert without their scale.

    Args:
        given: tensors of the file by name; those that ``wanted`` lacks are passed over.
        wanted: of the network.
        path: of the file.
    """
    for name, value in given.items():
        if name in wanted and (value.dtype in FLOATS) != wanted[name].is_floating_point():
            kind = "floating point of 16, 32 or 64 bits" if wanted[name].is_floating_point() else "whole numbers"
            found = str(value.dtype).removeprefix("torch.")
            raise WeightsError(
                f"Expected weights in {path} but {name} holds {found} where {kind} are read; train it anew."
            )


def check_finite(given: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises a :class:`WeightsError` when a tensor of ``given`` holds NaN or infinity; ``path`` is where they are from."""
    for name, value in given.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"Expected finite weights in {path} but {name} holds NaN or infinity; copy it again, or train it anew."
            )


def check_none_missing(missing: Iterable[str], what: str, path: str | Path, advice: str) -> None:
    """Checks that a library found all weights of a network; it draws the others at random.

    Args:
        missing: names of those that it did not find.
        what: the network, for the message.
        path: of the weights.
        advice: what to do, the end of the message.

    Raises:
        WeightsError: when there are some.
    """
    names = sorted(missing)
    if names:
        raise WeightsError(
            f"Expected all weights of {what} in {path} but {len(names)} are missing, first {names[0]!r}; {advice}"
        )
