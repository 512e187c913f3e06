"""The optimisers of the second stage; both skip a step at which ``found_inf`` is not 0, as torch's fused ones do."""

from collections.abc import Callable
from typing import Any, Literal

import timm.optim
import torch
from torch import nn

from distill.core.muon import newton_schulz_in_fast_precision, split_for_muon

OptimizerName = Literal["adamw", "muon"]
ENDS = ("unet.conv_in.", "unet.conv_out.")
"""First and last layer of a UNet, which Muon is not meant for (Jordan et al., 2024)."""


class Muon(timm.optim.Muon):
    """timm's Muon that skips a step at which ``found_inf`` (a tensor, set from outside) is not 0."""

    found_inf: torch.Tensor | None = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Changes the weights, or nothing; the host waits for ``found_inf``."""
        if self.found_inf is not None and self.found_inf.item():
            return None
        with newton_schulz_in_fast_precision(timm.optim.muon):
            return super().step(closure)


def build_optimizer(name: OptimizerName, module: nn.Module, lr: float, beta2: float) -> torch.optim.Optimizer:
    """Returns the optimiser of all parameters of ``module``, which holds its UNet as ``unet``.

    Args:
        name: "adamw", fused; or "muon": matrices and convolutions inside the UNet by Muon (Jordan et al., 2024,
            kellerjordan.github.io/posts/muon) with steps of the size of AdamW's (Liu et al., 2025, arXiv:2502.16982), all
            other parameters by AdamW.
        module: what is trained.
        lr: learning rate.
        beta2: decay a step of AdamW's average of the squared gradients.
    """
    if name == "adamw":
        return torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, beta2), weight_decay=0.01, fused=True)
    named = list(module.named_parameters())
    inner = [p for key, p in named if key.startswith("unet.") and not key.startswith(ENDS) and p.dim() > 1]
    groups = split_for_muon([{"params": [p for _, p in named]}], inner)
    return Muon(groups, lr=lr, betas=(0.9, beta2), weight_decay=0.01)
