"""Percentage of correct keypoints (PCK).

A predicted point is right within ``alpha`` times the tolerance base of its pair, the boundary included. The figures of
the field differ by how they are averaged: per image (the mean over pairs of each pair's share of right points) and per
point (the share of right points among all). Both are reported; they are not comparable with each other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from distill.core.precision import in_double, in_single_where_needed

ALPHAS = (0.01, 0.05, 0.10, 0.15)
Amount = TypeVar("Amount", float, NDArray[np.float64], Tensor)


def alpha_key(alpha: float) -> str:
    """Returns ``alpha`` as it is written in reports and metric names: "0.10"."""
    return f"{alpha:.2f}"


def pck_correct(predicted: Tensor, truth: Tensor, pck_threshold: Tensor, alphas: Sequence[float] = ALPHAS) -> Tensor:
    """Returns which points are right.

    Args:
        predicted: (B, N, 2) x, y in original target pixels.
        truth: (B, N, 2), the same.
        pck_threshold: (B,) tolerance base, px.
        alphas: A fractions of it.

    Returns:
        (B, N, A) bool; false for a point with NaN.
    """
    distance = (in_double(predicted) - in_double(truth)).norm(dim=-1)
    tolerance = in_double(pck_threshold)[:, None] * torch.tensor(list(alphas), dtype=torch.float64).to(distance)
    return distance[..., None] <= with_slack(tolerance[:, None])


def with_slack(tolerance: Amount) -> Amount:
    """Returns tolerances, px, that rounding cannot pass: far less than a pixel more. A point at exactly the tolerance is right."""
    return tolerance * (1 + 1e-9) + 1e-9


def image_pck(correct: Tensor, kps_mask: Tensor) -> Tensor:
    """Returns (B, A) the share of right points of each pair; NaN for a pair without points.

    Args:
        correct: (B, N, A) bool.
        kps_mask: (B, N) bool, which points count.
    """
    counted = correct & kps_mask[..., None]
    return in_double(counted.sum(1)) / in_double(kps_mask.sum(1, keepdim=True)).where(
        kps_mask.any(1, keepdim=True), torch.nan
    )


def category_mean(per_category: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the mean over categories of PCK by alpha; a category without points (NaN) does not count.

    Args:
        per_category: by category PCK by alpha.
    """
    counted = [figures for figures in per_category.values() if not any(map(math.isnan, figures.values()))]
    keys = next(iter(per_category.values()), {})
    return {key: sum(f[key] for f in counted) / len(counted) if counted else math.nan for key in keys}


class PCK(Metric):
    """Accumulates PCK over batches and processes; pairs without points, and points without a truth, do not count.

    Args:
        alphas: fractions of the tolerance base.
    """

    full_state_update = False
    image_sum: Tensor
    point_sum: Tensor
    n_pairs: Tensor
    n_points: Tensor

    def __init__(self, alphas: Sequence[float] = ALPHAS) -> None:
        super().__init__()
        self.alphas = tuple(alphas)
        zeros = torch.zeros(len(self.alphas), dtype=torch.float64)
        self.add_state("image_sum", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("point_sum", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("n_pairs", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("n_points", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor, kps_mask: Tensor, pck_threshold: Tensor) -> None:
        """Adds a batch; arguments as for :func:`pck_correct` and :func:`image_pck`."""
        kps_mask = kps_mask & torch.isfinite(truth).all(-1)
        correct = pck_correct(predicted, truth, pck_threshold, self.alphas)
        self.image_sum += image_pck(correct, kps_mask).nansum(0)
        self.point_sum += (correct & kps_mask[..., None]).sum((0, 1))
        self.n_pairs += kps_mask.any(1).sum()
        self.n_points += kps_mask.sum()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ()) -> Module:
        """Moves the state; as float32 to a device that refuses float64."""
        return super()._apply(in_single_where_needed(fn), exclude_state)

    def compute(self) -> dict[str, dict[str, float]]:
        """Returns ``{"image": {"0.10": percent, ...}, "point": {...}}``; NaN when nothing was added."""
        per_image = 100 * self.image_sum / in_double(self.n_pairs).where(self.n_pairs > 0, torch.nan)
        per_point = 100 * self.point_sum / in_double(self.n_points).where(self.n_points > 0, torch.nan)
        keys = [alpha_key(alpha) for alpha in self.alphas]
        return {
            "image": dict(zip(keys, per_image.tolist(), strict=True)),
            "point": dict(zip(keys, per_point.tolist(), strict=True)),
        }
