"""PCK on the geometry-aware subset: points of which another part of their symmetric group is visible too.

Zhang et al., "Telling Left from Right: Identifying Geometry-Aware Semantic Correspondence", CVPR 2024: a common point
counts when at least two of its group of mirrored or repeated parts, itself included, are annotated in the target.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from distill.metrics.pck import PCK

Groups = Mapping[str, Sequence[Sequence[int]]]


def geometry_aware(
    kps_id: Tensor, kps_mask: Tensor, trg_all_id: Tensor, category: Sequence[str], symmetric_groups: Groups
) -> Tensor:
    """Returns which points are geometry-aware.

    Args:
        kps_id: (B, N) which part each common point is.
        kps_mask: (B, N) bool, which points count.
        trg_all_id: (B, M) the parts annotated in the target, -1 for none.
        category: B names.
        symmetric_groups: by category groups of parts; "" stands for categories that are not named.

    Returns:
        (B, N) bool, a subset of ``kps_mask``.
    """
    subset = torch.zeros_like(kps_mask)
    for row, name in enumerate(category):
        for group in symmetric_groups.get(name, symmetric_groups.get("", ())):
            members = torch.tensor(group, device=kps_id.device)
            if int(torch.isin(members, trg_all_id[row]).sum()) >= 2:
                subset[row] |= torch.isin(kps_id[row], members)
    return subset & kps_mask


class GeometryAwarePCK(PCK):
    """Accumulates PCK of the geometry-aware points over batches and processes; pairs without such do not count.

    Args:
        symmetric_groups: by category groups of parts; "" stands for categories that are not named.
        alphas: fractions of the tolerance base.
    """

    def __init__(self, symmetric_groups: Groups, alphas: Sequence[float] = (0.01, 0.05, 0.10, 0.15)) -> None:
        super().__init__(alphas)
        self.symmetric_groups = symmetric_groups

    def update(  # type: ignore[override]
        self,
        predicted: Tensor,
        truth: Tensor,
        kps_mask: Tensor,
        pck_threshold: Tensor,
        kps_id: Tensor,
        trg_all_id: Tensor,
        category: Sequence[str],
    ) -> None:
        """Adds a batch; arguments as for :meth:`PCK.update` and :func:`geometry_aware`."""
        subset = geometry_aware(kps_id, kps_mask, trg_all_id, category, self.symmetric_groups)
        super().update(predicted, truth, subset, pck_threshold)
