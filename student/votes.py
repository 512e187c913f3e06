"""A second opinion on a student's answer: that of the cells around the query point.

Descriptors see little of the object, and a symmetric one has two places for a point. Each cell votes for the offset that
its own match has, and neighbours share their votes (:mod:`distill.consensus`); the target is looked at as it is and in
the mirror, and the look that agrees better is taken. Nothing is learned, and training does without: the descriptors are
to find the point by themselves.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.consensus import FEWEST, agreement, mutual_probability, votes_at
from distill.errors import ConfigError

CELLS = 20
"""Cells a side, at most, that vote, and that images are compared by: comparing takes the fourth power of it."""
TARGET_CELLS = 40
"""Cells a side, at most, that are voted for: as fine as the answer is to be."""
TEMPERATURE = 0.05
"""Divides the cosines of cells."""
SIGMA_CELLS = 3.0
"""How far neighbours vote."""


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

    def agreement(self, src_map: Tensor, trg_map: Tensor) -> Tensor:
        """Returns (B,) how well images agree.

        Args:
            src_map: (B, C, h, w) descriptors of length 1.
            trg_map: the same of the targets.
        """
        return agreement(_probability(_pooled(src_map, CELLS), _pooled(trg_map, CELLS)), SIGMA_CELLS)

    def add(self, heatmap: Tensor, src_map: Tensor, trg_map: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns (B, N, h, w): the votes for points, and what their own descriptors say.

        Args:
            heatmap: (B, N, h, w) scores of the points by themselves.
            src_map: (B, C, h, w) descriptors of length 1.
            trg_map: the same of the targets.
            points: (B, N, 2) x, y, px of the sources.
            size: (H, W) of the sources, px.
        """
        probability = _probability(_pooled(src_map, CELLS), _pooled(trg_map, TARGET_CELLS))
        votes = votes_at(probability, points / points.new_tensor([size[1], size[0]]), SIGMA_CELLS)
        finer = F.interpolate(votes.clamp_min(FEWEST).log(), heatmap.shape[-2:], mode="bilinear", align_corners=False)
        return heatmap + self.strength * finer


def _probability(here: Tensor, there: Tensor) -> Tensor:
    return mutual_probability(torch.einsum("bchw,bcyx->bhwyx", here, there) / TEMPERATURE)


def _pooled(maps: Tensor, cells: int) -> Tensor:
    """Averages descriptors (B, C, h, w) until at most ``cells`` are left a side."""
    factor = -(-max(maps.shape[-2:]) // cells)
    return F.normalize(F.avg_pool2d(maps, factor), dim=1) if factor > 1 else maps
