"""Which of the target's annotated points a heatmap prefers.

Given that the answer is one of the annotated points, is it the right one? With all of them as candidates the figure says how
well parts are told apart when their places are known. With those of one symmetric group only, such as the four paws, it says
how well mirrored and repeated parts of a known concept are told apart. Chance differs from pair to pair and is reported.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from distill.core.geometry import sample_at
from distill.core.precision import in_double, in_single_where_needed
from distill.metrics.geometry_aware import Groups


def same_group(kps_id: Tensor, trg_all_id: Tensor, category: Sequence[str], symmetric_groups: Groups) -> Tensor:
    """Says which annotated points of the target lie in the symmetric group of each query point.

    Args:
        kps_id: (B, N) which part each point is.
        trg_all_id: (B, M) the parts annotated in the target, -1 for none.
        category: B names.
        symmetric_groups: by category groups of parts; "" stands for categories that are not named.

    Returns:
        (B, N, M) bool; none of them for a part that is in no group.
    """
    found = torch.zeros(*kps_id.shape, trg_all_id.shape[1], dtype=torch.bool, device=kps_id.device)
    for row, name in enumerate(category):
        for group in symmetric_groups.get(name, symmetric_groups.get("", ())):
            members = torch.tensor(group, device=kps_id.device)
            found[row] |= torch.isin(kps_id[row], members)[:, None] & torch.isin(trg_all_id[row], members)
    return found


def best_candidate(
    heatmap: Tensor, candidates: Tensor, candidate_id: Tensor, allowed: Tensor, size: tuple[int, int]
) -> Tensor:
    """Returns (B, N) the part of the allowed candidate at which the heatmap is highest, the first of equals.

    It is -1 where no candidate is allowed, and everywhere for a heatmap of one cell, which says nothing.

    Args:
        heatmap: (B, N, h, w) scores.
        candidates: (B, M, 2) x, y, px.
        candidate_id: (B, M) which part each is.
        allowed: (B, N, M) bool.
        size: (H, W) of the image that the heatmap covers.
    """
    if heatmap.shape[-2] * heatmap.shape[-1] == 1 or not candidates.shape[1]:
        return torch.full(heatmap.shape[:2], -1, device=heatmap.device)
    scores = sample_at(heatmap, candidates, size).transpose(1, 2)
    best = scores.masked_fill(~allowed, -torch.inf).argmax(-1)
    return candidate_id.gather(1, best).masked_fill(~allowed.any(-1), -1)


class GivenCandidates(Metric):
    """Accumulates how often the preferred candidate is the right one, over points with at least two candidates."""

    full_state_update = False
    right: Tensor
    chance: Tensor
    n_points: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("chance", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_points", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, chosen: Tensor, kps_id: Tensor, kps_mask: Tensor, allowed: Tensor) -> None:
        """Adds a batch.

        Args:
            chosen: (B, N) of :func:`best_candidate`; -1 does not count.
            kps_id: (B, N) the right parts.
            kps_mask: (B, N) bool, which points count.
            allowed: (B, N, M) bool, the candidates.
        """
        count = allowed.sum(-1)
        counted = kps_mask & (chosen >= 0) & (count >= 2)
        self.right += (counted & (chosen == kps_id)).sum()
        self.chance += (1 / in_double(count[counted])).sum()
        self.n_points += counted.sum()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Module:
        """Moves the state; as float32 to a device that refuses float64."""
        return super()._apply(in_single_where_needed(fn), exclude_state)

    def compute(self) -> dict[str, float]:
        """Returns "right" and "chance" in percent, NaN without points, and "n_points"."""
        n = in_double(self.n_points).where(self.n_points > 0, torch.nan)
        return {
            "right": float(100 * self.right / n),
            "chance": float(100 * self.chance / n),
            "n_points": int(self.n_points),
        }
