"""A second opinion on a student's answer: that of the cells around the query point.

Descriptors see little of the object, and a symmetric one has two places for a point. Each cell votes for the offset that
its own match has, and neighbours share their votes (:mod:`distill.consensus`); the target is looked at as it is and in
the mirror, and the look that agrees better is taken. Nothing is learned, and training does without: the descriptors are
to find the point by themselves.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.consensus import consensus
from distill.errors import ConfigError
from distill.geometry import sample_at

CELLS = 20
"""Cells a side at which images are compared at most: the votes take the fourth power of it."""
TEMPERATURE = 0.05
"""Divides the cosines of cells."""
SIGMA_CELLS = 3.0
"""How far neighbours vote."""


class Look(NamedTuple):
    """One look at a target.

    Attributes:
        heatmap: (B, N, h, w) scores of the target's cells, votes included.
        agreement: (B,) of both images as a whole.
    """

    heatmap: Tensor
    agreement: Tensor


class Votes:
    """Adds neighbours' votes to heatmaps.

    Args:
        strength: of the votes' logarithm, relative to the scores.

    Raises:
        ConfigError: for a strength that is negative.
    """

    def __init__(self, strength: float) -> None:
        if strength < 0:
            raise ConfigError(f"Expected student.consensus of at least 0, which is none, but got {strength}.")
        self.strength = strength

    @property
    def temperature(self) -> float:
        """Divides the voted scores before they are read as probabilities.

        Votes repeat what the scores say, and the sum would be too sure of itself: with it the calibration error on
        validation pairs of the procedural world is 0.02, without it 0.15.
        """
        return 1 + self.strength / 2

    def look(self, heatmap: Tensor, src_map: Tensor, trg_map: Tensor, points: Tensor, size: tuple[int, int]) -> Look:
        """Adds the votes for points to what their own descriptors say.

        Args:
            heatmap: (B, N, h, w) scores of the points by themselves.
            src_map: (B, C, h, w) descriptors of length 1.
            trg_map: the same of the targets.
            points: (B, N, 2) x, y, px of the sources.
            size: (H, W) of the sources, px.
        """
        here, there = _pooled(src_map), _pooled(trg_map)
        votes, agreement = consensus(torch.einsum("bchw,bcyx->bhwyx", here, there) / TEMPERATURE, SIGMA_CELLS)
        of_points = sample_at(votes.flatten(3).permute(0, 3, 1, 2), points, size).unflatten(2, votes.shape[3:])
        finer = F.interpolate(of_points, heatmap.shape[-2:], mode="bilinear", align_corners=False)
        return Look(heatmap + self.strength * finer, agreement)


def better(plain: Look, mirrored: Look) -> Tensor:
    """Returns (B, N, h, w), for each pair the heatmap of the look that agrees better, the mirrored one mirrored back."""
    turned = mirrored.agreement > plain.agreement
    return torch.where(turned[:, None, None, None], mirrored.heatmap.flip(-1), plain.heatmap)


def _pooled(maps: Tensor) -> Tensor:
    """Averages descriptors (B, C, h, w) until at most ``CELLS`` are left a side."""
    factor = -(-max(maps.shape[-2:]) // CELLS)
    return F.normalize(F.avg_pool2d(maps, factor), dim=1) if factor > 1 else maps
