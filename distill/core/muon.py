"""Parameter groups for timm's Muon, which updates by AdamW what Muon is not meant for."""

from typing import Any

from torch import nn

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
