"""The optimiser and its schedule."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast, get_args

import timm.optim
import torch
from torch import nn

from distill.core.errors import ConfigError, nearest
from distill.core.muon import newton_schulz_in_fast_precision, split_for_muon

OptimizerName = Literal["adamw", "muon"]
PEAK_RATES: dict[OptimizerName, float] = {"adamw": 1e-3, "muon": 4e-3}
"""Peak learning rates where none is given."""
REST = 0.25
"""The rate of what Muon leaves to AdamW, as a fraction of Muon's."""
COLOURS = 3
"""Channels of an image."""


class Muon(timm.optim.Muon):
    """timm's Muon, as fast on processors without instructions for bfloat16."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Changes the weights; returns what ``closure`` does, a loss."""
        with newton_schulz_in_fast_precision(timm.optim.muon):
            return super().step(closure)


def build_optimizer(
    student: nn.Module,
    name: OptimizerName,
    steps: int,
    lr: float,
    backbone_lr: float,
    weight_decay: float,
    warmup: float,
) -> dict[str, Any]:
    """Returns an optimiser under a linear warm-up and a cosine decay to zero, in the form that Lightning expects.

    Args:
        student: whose parameters are trained.
        name: "adamw"; or "muon": :func:`matrices` by Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon) with
            steps of the size of AdamW's (Liu et al., 2025, arXiv:2502.16982), all other parameters by AdamW
            at a quarter of the rate.
        steps: of the optimiser, in all.
        lr: peak rate.
        backbone_lr: see :func:`groups`.
        weight_decay: as a fraction of the rate.
        warmup: share of the steps until the peak, in (0, 1).

    Raises:
        ConfigError: for another name, a warm-up outside (0, 1), a negative decay, and what :func:`groups` raises.
    """
    if name not in get_args(OptimizerName):
        raise ConfigError(
            f"Expected a known optimizer but got {name!r}; {nearest(str(name), get_args(OptimizerName))}."
        )
    if not 0 < warmup < 1:
        raise ConfigError(f"Expected warmup, the share of steps until the peak rate, in (0, 1) but got {warmup}.")
    if not 0 <= weight_decay < math.inf:
        raise ConfigError(f"Expected weight_decay of at least 0 but got {weight_decay}; 0.05 is usual.")
    parts = groups(student, lr, backbone_lr)
    if name == "muon":
        parts = split_for_muon(parts, list(matrices(student)))
        options = {"betas": (0.9, 0.999), "fallback_lr_scale": REST, "weight_decay": weight_decay}
        optimizer: torch.optim.Optimizer = Muon(parts, lr=lr, **options)
    else:
        optimizer = torch.optim.AdamW(parts, lr=lr, weight_decay=weight_decay)
    peaks = [part["lr"] for part in parts]
    total = max(2, steps)
    if warmup * total == 1:  # OneCycleLR divides by the warm-up's length less one step
        warmup *= 1 - 1e-9
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=total, pct_start=warmup, cycle_momentum=name == "adamw"
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


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


def matrices(student: nn.Module) -> Iterator[nn.Parameter]:
    """Yields what Muon is meant for: weights of linear layers, and of convolutions that mix channels other than colours."""
    for layer in student.modules():
        is_linear = isinstance(layer, nn.Linear)
        if is_linear or (isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels > COLOURS):
            yield cast(nn.Parameter, layer.weight)


def optimizer_of(checkpoint: dict[str, Any]) -> OptimizerName:
    """Returns the name of the optimiser whose state a checkpoint of Lightning has."""
    parts = [part for state in checkpoint.get("optimizer_states", []) for part in state["param_groups"]]
    return "muon" if any("ns_steps" in part for part in parts) else "adamw"
