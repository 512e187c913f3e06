"""Robust weighted vote: one point from the answers of several sources, some of which may be far off.

The answer is a mode, and not a mean: sources that confuse left and right pull a mean between the two, while the mode stays with
the heavier group. It is the point with the greatest sum of weights under a Gaussian kernel, found by mean shift (Comaniciu and
Meer, "Mean shift: a robust approach toward feature space analysis", PAMI 2002), started at the answer with the most support.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from distill.core.precision import in_double

STEPS = 20  # of mean shift; from an answer with support it converges in a few
LEAST_WEIGHT = 1e-6  # of an answer, so that answers of no confidence are still counted among themselves


class Vote(NamedTuple):
    """What N points are voted to be.

    Attributes:
        points: (N, 2) x, y px.
        agreement: (N,) in [0, 1], the share of the weights near the point; 1 for one source.
        confidence: (N,) in [0, 1], the mean weight of the answers near the point, times the agreement. For one source it
            is the source's weight.
    """

    points: Tensor
    agreement: Tensor
    confidence: Tensor


def vote(points: Tensor, weights: Tensor, sigma: float) -> Vote:
    """Returns the robust weighted vote of S sources on N points.

    Args:
        points: (N, S, 2) x, y px; what a source has no answer to is NaN.
        weights: (N, S) in [0, 1] of the answers, such as their confidences.
        sigma: standard deviation of the kernel, px: how far answers may lie apart that mean the same place.

    Returns:
        NaN, with an agreement and a confidence of 0, for a point that no source answers.
    """
    given = torch.isfinite(points).all(-1)
    known = in_double(torch.where(given[..., None], points, 0))
    weight = torch.where(given, in_double(weights).clamp_min(LEAST_WEIGHT), 0)
    least = torch.finfo(known.dtype).tiny

    def kernel(at: Tensor) -> Tensor:
        """Returns (N, M, S): how near the answers are to points (N, M, 2)."""
        return torch.exp(-(at[:, :, None] - known[:, None]).square().sum(-1) / (2 * sigma**2))

    support = (kernel(known) * weight[:, None]).sum(-1).where(given, -1)
    best = support.argmax(1)[:, None, None].expand(-1, 1, 2)
    mode = known.gather(1, best)  # (N, 1, 2)
    for _ in range(STEPS):
        near = kernel(mode)[:, 0] * weight
        mode = (near[..., None] * known).sum(1, keepdim=True) / near.sum(1)[:, None, None].clamp_min(least)
    nearness = kernel(mode)[:, 0] * given
    near, total = (nearness * weight).sum(1), weight.sum(1)
    agreement = near / total.clamp_min(LEAST_WEIGHT / 2)
    confidence = agreement * near / nearness.sum(1).clamp_min(least)
    answered = given.any(1)
    return Vote(
        mode[:, 0].where(answered[:, None], torch.nan).to(points.dtype),
        agreement.where(answered, 0).clamp(0, 1).to(weights.dtype),
        confidence.where(answered, 0).clamp(0, 1).to(weights.dtype),
    )
