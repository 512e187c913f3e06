"""timm's Muon: its parameter groups, with AdamW for what Muon is not meant for, and its arithmetic on processors."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from distill.core.devices import has_bf16

MUON = {"use_muon": True, "nesterov": True, "ns_coefficients": "original"}
"""Options of Muon's groups, as Jordan et al. (2024, kellerjordan.github.io/posts/muon)."""
ADAMW = {"use_fallback": True, "nesterov": False, "eps": 1e-8}
"""Options of AdamW's groups; with nesterov timm's would be NAdamW."""


def split_for_muon(groups: list[dict[str, Any]], matrices: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Returns ``groups``, each split into one for Muon and one for AdamW; empty ones are left out.

    Args:
        groups: as optimisers take them, each with "params", a list.
        matrices: parameters for Muon, those of no group included.
    """
    chosen = {id(weight) for weight in matrices}
    split = [
        {**group, "params": [p for p in group["params"] if (id(p) in chosen) == inner], **options}
        for group in groups
        for inner, options in ((True, MUON), (False, ADAMW))
    ]
    return [group for group in split if group["params"]]


@contextmanager
def newton_schulz_in_fast_precision(muon: ModuleType) -> Iterator[None]:
    """Has timm's Muon orthogonalise in single precision on processors without instructions for bfloat16.

    timm computes in bfloat16 everywhere. A step of the default student takes 2.3 s so on two cores with AVX2 alone, and 0.05 s in single
    precision.

    Args:
        muon: the module ``timm.optim.muon``.
    """
    in_bfloat16 = muon.zeropower_via_newtonschulz
    on_cpu = torch.bfloat16 if has_bf16() else torch.float32

    def orthogonalized(matrix: Tensor, *args: Any, **options: Any) -> Tensor:
        """Returns timm's answer, (..., m, n) as ``matrix``."""
        dtype = on_cpu if matrix.device.type == "cpu" else torch.bfloat16
        return in_bfloat16(matrix, *args, **options, dtype=dtype)

    muon.zeropower_via_newtonschulz = orthogonalized  # type: ignore[attr-defined]
    try:
        yield
    finally:
        muon.zeropower_via_newtonschulz = in_bfloat16  # type: ignore[attr-defined]
