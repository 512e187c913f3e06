"""The optimiser and its schedule."""

import math
from typing import Any

import torch
from torch import nn

from distill.core.errors import ConfigError


def groups(student: nn.Module, lr: float, backbone_lr: float) -> list[dict[str, Any]]:
    """Returns the student's trainable parameters with their peak learning rates.

    Args:
        student: what it calls ``backbone`` is its backbone.
        lr: peak rate.
        backbone_lr: the backbone's, as a fraction of ``lr``.

    Raises:
        ConfigError: for rates that are not positive, or when nothing is trainable.
    """
    if not (0 < lr < math.inf and 0 < backbone_lr < math.inf):
        raise ConfigError(
            f"Expected lr and backbone_lr to be positive but got {lr} and {backbone_lr}; student.tuning=frozen keeps the "
            "backbone as it is."
        )
    backbone = getattr(student, "backbone", None)
    below = set(backbone.parameters()) if isinstance(backbone, nn.Module) else set()
    trainable = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not trainable:
        raise ConfigError("Expected a student with something to train but all its parameters are frozen.")
    split = [[p for p in trainable if (p in below) == inner] for inner in (False, True)]
    rates = (lr, lr * backbone_lr)
    return [{"params": part, "lr": rate} for part, rate in zip(split, rates, strict=True) if part]


def adamw(student: nn.Module, steps: int, lr: float, backbone_lr: float, weight_decay: float, warmup: float) -> dict:
    """Returns AdamW under a linear warm-up and a cosine decay to zero, in the form that Lightning expects.

    Args:
        student: whose parameters are trained.
        steps: of the optimiser, in all.
        lr: peak rate.
        backbone_lr: see :func:`groups`.
        weight_decay: of AdamW.
        warmup: share of the steps until the peak, in (0, 1).

    Raises:
        ConfigError: for a warm-up outside (0, 1), a negative decay, and what :func:`groups` raises.
    """
    if not 0 < warmup < 1:
        raise ConfigError(f"Expected warmup, the share of steps until the peak rate, in (0, 1) but got {warmup}.")
    if not 0 <= weight_decay < math.inf:
        raise ConfigError(f"Expected weight_decay of at least 0 but got {weight_decay}; 0.05 is usual.")
    parts = groups(student, lr, backbone_lr)
    optimizer = torch.optim.AdamW(parts, lr=lr, weight_decay=weight_decay)
    peaks = [part["lr"] for part in parts]
    total = max(2, steps)
    if warmup * total == 1:  # OneCycleLR divides by the warm-up's length less one step
        warmup *= 1 - 1e-9
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=total, pct_start=warmup)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
