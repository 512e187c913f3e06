"""Reading Lightning's checkpoints: tensors and plain values only, so that a file from a stranger runs no code."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.errors import WeightsError, in_one_line


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns what a checkpoint holds, on the CPU; its tensors are read when they are used.

    Raises:
        WeightsError: when the file is damaged, holds objects other than tensors and plain values, or is no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever a damaged or hostile file makes it stumble on
        reason = in_one_line(error, 160)
        raise WeightsError(
            f"Expected a checkpoint of tensors and plain values at {path} but it cannot be read ({reason}); remove it, or "
            "choose another run.dir."
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "global_step"} <= content.keys():
        raise WeightsError(f"Expected a checkpoint of Lightning at {path} but it is none; choose another run.dir.")
    return content


KINDS = {
    "epoch": int,
    "global_step": int,
    "state_dict": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": dict,
    "pytorch-lightning_version": str,
}
"""What a training needs to go on, and the types of it."""


INSIDE: dict[str, Callable[[Any], bool]] = {
    "state_dict": lambda value: isinstance(value, Tensor),
    "optimizer_states": lambda state: isinstance(state, dict) and _are_dicts(state.get("param_groups")),
    "lr_schedulers": lambda state: isinstance(state, dict),
    "loops": lambda state: isinstance(state, dict),
}
"""Whether a value in one of these is what it has to be."""


def read_resumable(path: str | Path) -> dict[str, Any]:
    """Returns what a checkpoint holds that a training goes on from; see :func:`read_checkpoint`.

    Raises:
        WeightsError: also when it lacks what a training needs, or names files outside of its folder, which Lightning would
            remove when it writes the next one.
    """
    content = read_checkpoint(path)
    wrong = sorted(key for key, kind in KINDS.items() if not isinstance(content.get(key), kind))
    if not wrong:
        wrong = [key for key, is_right in INSIDE.items() if not all(map(is_right, _values(content[key])))]
    if wrong:
        raise WeightsError(
            f"Expected a checkpoint to go on from at {path} but {', '.join(wrong)} are missing or of another type; remove it, or "
            "choose another run.dir."
        )
    outside = next((name for name in _texts(content.get("callbacks")) if _leads_away(name)), None)
    if outside is not None:
        raise WeightsError(
            f"Expected a checkpoint at {path} that names files of its own folder but it names {outside!r}; do not trust it."
        )
    return content


def load_state(module: nn.Module, path: str | Path) -> None:
    """Fills ``module`` with the weights of a checkpoint.

    Raises:
        WeightsError: when it cannot be read, or its weights are those of another module.
    """
    try:
        module.load_state_dict(read_checkpoint(path)["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise of_another_training(path, error) from error


def of_another_training(path: str | Path, error: Exception) -> WeightsError:
    """Returns the error of a checkpoint that does not fit what is trained."""
    reason = in_one_line(error)
    return WeightsError(
        f"Expected a checkpoint of this training at {path} but it does not fit ({type(error).__name__}: {reason}); remove it, or "
        "choose another run.dir."
    )


def _values(content: dict[Any, Any] | list[Any]) -> Iterable[Any]:
    return content.values() if isinstance(content, dict) else content


def _are_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(inner, dict) for inner in value)


def _leads_away(name: str) -> bool:
    """Returns whether a file's name steps up, or is one that fsspec opens by a scheme such as ``local://``."""
    return ".." in Path(name).parts or "://" in name or "::" in name


def _texts(value: Any) -> Iterator[str]:
    """Yields all text in nested containers, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(key)
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
