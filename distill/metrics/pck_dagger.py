"""PCK-dagger: PCK that counts a swap of two keypoints as wrong.

Aygün and Mac Aodha, "Demystifying unsupervised semantic correspondence estimation", ECCV 2022.
A predicted point is right only if it is within the tolerance *and* the annotated target keypoint nearest to it is the
right one. What is wrong is a jitter (the right keypoint is the nearest, but none is within the tolerance), a swap (within
the tolerance of some keypoint, but another than the right one is the nearest) or a miss (neither).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from distill.core.precision import in_double
from distill.metrics.pck import pck_correct, with_slack


class Outcomes(NamedTuple):
    """The outcome of each point; each (B, N) bool, exactly one of them true for a point that counts.

    Attributes:
        right: within the tolerance of its keypoint, and that is the nearest one.
        jitter: within the tolerance of no keypoint, the right one being the nearest.
        swap: within the tolerance of some keypoint, another one being the nearest.
        miss: within the tolerance of no keypoint, another one being the nearest.
    """

    right: Tensor
    jitter: Tensor
    swap: Tensor
    miss: Tensor


def pck_dagger_outcomes(
    predicted: Tensor,
    truth: Tensor,
    kps_mask: Tensor,
    pck_threshold: Tensor,
    alpha: float,
    others: Tensor | None = None,
    others_mask: Tensor | None = None,
) -> Outcomes:
    """Classifies predictions as right, jitter, swap or miss.

    Args:
        predicted: (B, N, 2) x, y in original target pixels.
        truth: (B, N, 2), the same.
        kps_mask: (B, N) bool, which points count.
        pck_threshold: (B,) tolerance base, px.
        alpha: fraction of it.
        others: (B, M, 2) further annotated keypoints of the target, such as those that the source does not show.
        others_mask: (B, M) bool, which of them exist.

    A point whose truth is not known (NaN) does not count, as in :class:`distill.metrics.pck.PCK`, and is no candidate.
    """
    kps_mask = _known(truth, kps_mask)
    candidates, exist = in_double(truth), kps_mask
    if others is not None and others_mask is not None:
        candidates, exist = (
            torch.cat([candidates, in_double(others)], 1),
            torch.cat([kps_mask, _known(others, others_mask)], 1),
        )
    candidates = candidates.nan_to_num(0.0)  # so that no distance is NaN; what does not exist is masked below
    own = (in_double(predicted) - in_double(truth)).norm(dim=-1)
    distance = torch.cdist(in_double(predicted), candidates, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.masked_fill(~exist[:, None], torch.inf)
    nearest_is_own = own <= distance.amin(-1) + 1e-9
    close = (distance <= with_slack(alpha * in_double(pck_threshold)[:, None, None])).any(-1)
    within = pck_correct(predicted, truth, pck_threshold, [alpha])[..., 0]
    right = within & nearest_is_own
    return Outcomes(
        right=right & kps_mask,
        jitter=~close & nearest_is_own & kps_mask,
        swap=close & ~nearest_is_own & kps_mask,
        miss=~close & ~nearest_is_own & kps_mask,
    )


def _known(points: Tensor, mask: Tensor) -> Tensor:
    """Returns (B, N) bool which of the points (B, N, 2) exist and are annotated."""
    return mask & torch.isfinite(points).all(-1)


class PCKDagger(Metric):
    """Accumulates the rates of right, jitter, swap and miss, per point.

    Args:
        alpha: fraction of the tolerance base.
    """

    full_state_update = False
    counts: Tensor
    n_points: Tensor

    def __init__(self, alpha: float = 0.10) -> None:
        super().__init__()
        self.alpha = alpha
        self.add_state("counts", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_points", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        predicted: Tensor,
        truth: Tensor,
        kps_mask: Tensor,
        pck_threshold: Tensor,
        others: Tensor | None = None,
        others_mask: Tensor | None = None,
    ) -> None:
        """Adds a batch; arguments as for :func:`pck_dagger_outcomes`."""
        outcomes = pck_dagger_outcomes(predicted, truth, kps_mask, pck_threshold, self.alpha, others, others_mask)
        self.counts += torch.stack([outcome.sum() for outcome in outcomes])
        self.n_points += _known(truth, kps_mask).sum()

    def compute(self) -> dict[str, float]:
        """Returns percentages by name; NaN when nothing was added."""
        rates = 100 * in_double(self.counts) / in_double(self.n_points).where(self.n_points > 0, torch.nan)
        return dict(zip(Outcomes._fields, rates.tolist(), strict=True))
