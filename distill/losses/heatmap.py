"""Kullback-Leibler divergence from the teacher's heatmap."""

import torch
from torch import Tensor

from distill.core.errors import ConfigError
from distill.core.precision import in_single, without_autocast
from distill.losses.base import Example, weighted_mean

LEAST = 1e-8
"""Probability of a cell below which the divergence does not rise any more, nor has a gradient."""


class HeatmapKL:
    """Kullback-Leibler divergence of the student's distribution over target cells from the teacher's; at least 0.

    Both are compared on the coarser of the two grids, to which the finer distribution is summed. Cells that the student all but
    rules out (:data:`LEAST`) teach nothing: labels there are mostly wrong, and students that learn from them are worse
    (docs/results/student.md, "Tried without gain").

    Args:
        sharpness: power that the teacher's map is raised to before it is normalised to a distribution, the inverse of a
            temperature; above 1 it suppresses the map's uniform background.

    Raises:
        ConfigError: for a sharpness that is not positive.
    """

    def __init__(self, sharpness: float = 4.0) -> None:
        if sharpness <= 0:
            raise ConfigError(f"Expected the sharpness of HeatmapKL to be positive but got {sharpness}.")
        self.sharpness = sharpness

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`."""
        label, scores, heatmap = example.label, in_single(example.prediction.heatmap), in_single(example.label.heatmap)
        target = heatmap.clamp_min(0) / heatmap.amax((-2, -1), keepdim=True).clamp_min(1e-12)
        target = target.pow(self.sharpness)
        probability = scores.flatten(2).softmax(-1).view_as(scores)
        size = tuple(min(a, b) for a, b in zip(target.shape[-2:], scores.shape[-2:], strict=True))
        target, probability = summed_up(target, size).flatten(2), summed_up(probability, size).flatten(2)
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-12)
        divergence = (torch.xlogy(target, target) - target * probability.clamp_min(LEAST).log()).sum(-1)
        # Rounding, and the least probability, may leave it a little below 0.
        return weighted_mean(divergence.clamp_min(0), label.confidence, example.pairs.kps_mask)


def summed_up(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Returns (B, N, h', w') the sums of maps (B, N, h, w) over the cells of a coarser grid ``size`` (h', w').

    A cell that lies in several coarser ones is divided by its area, so that each map keeps its sum.
    """
    rows, columns = (_overlap(maps.shape[axis], size[axis], maps) for axis in (-2, -1))
    with without_autocast(maps):
        return rows @ maps @ columns.T


def _overlap(cells: int, coarser: int, like: Tensor) -> Tensor:
    """Returns (coarser, cells): the share of each of ``cells`` equal parts of a line that lies in each coarser part.

    Lengths are whole numbers: with ``cells * coarser`` units to the line a cell has ``coarser`` and a coarser one ``cells``.
    """
    fine = torch.arange(cells, device=like.device) * coarser
    coarse = torch.arange(coarser, device=like.device)[:, None] * cells
    shared = torch.minimum(fine + coarser, coarse + cells) - torch.maximum(fine, coarse)
    return shared.clamp_min(0).to(like.dtype) / coarser
