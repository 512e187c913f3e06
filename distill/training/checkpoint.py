"""Reading Lightning's checkpoints: tensors and plain values only, so that a file from a stranger runs no code."""

from pathlib import Path
from typing import Any

import torch

from distill.core.errors import WeightsError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Returns what a checkpoint holds, on the CPU; its tensors are read when they are used.

    Raises:
        WeightsError: when the file is damaged, holds objects other than tensors and plain values, or is no checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises whatever a damaged or hostile file makes it stumble on
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise WeightsError(
            f"Expected a checkpoint of tensors and plain values at {path} but it cannot be read ({reason}); remove it, or "
            "choose another run.dir."
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "global_step"} <= content.keys():
        raise WeightsError(f"Expected a checkpoint of Lightning at {path} but it is none; choose another run.dir.")
    return content
