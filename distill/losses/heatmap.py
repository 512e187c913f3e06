"""The teacher's heatmap as a target."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.losses.base import Example, weighted_mean


class HeatmapKL:
    """Kullback-Leibler divergence of the student's distribution over target cells from the teacher's.

    Both are compared on the coarser of the two grids: the student's probabilities are summed up in the label's cells, or
    the label's in the student's.

    Args:
        sharpness: the power that the teacher's map is raised to before it is normalised to a distribution, one over its
            temperature; above 1 it takes out the floor of the map, which lies everywhere.

    Raises:
        ConfigError: for a sharpness that is not positive.
    """

    def __init__(self, sharpness: float = 4.0) -> None:
        if sharpness <= 0:
            raise ConfigError(f"Expected the sharpness of HeatmapKL to be positive but got {sharpness}.")
        self.sharpness = sharpness

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`."""
        label, scores = example.label, example.prediction.heatmap
        target = label.heatmap.clamp_min(0) / label.heatmap.amax((-2, -1), keepdim=True).clamp_min(1e-12)
        target = target.pow(self.sharpness)
        probability = scores.flatten(2).softmax(-1).view_as(scores)
        side = tuple(min(a, b) for a, b in zip(target.shape[-2:], scores.shape[-2:], strict=True))
        target, probability = summed_up(target, side).flatten(2), summed_up(probability, side).flatten(2)
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-12)
        divergence = (torch.xlogy(target, target) - target * probability.clamp_min(1e-8).log()).sum(-1)
        return weighted_mean(divergence, label.confidence, example.pairs.kps_mask)


def summed_up(maps: Tensor, side: tuple[int, ...]) -> Tensor:
    """Returns (B, N, h', w') maps whose cells hold the sums of those of (B, N, h, w) that they cover."""
    scale = maps.shape[-2] * maps.shape[-1] / (side[0] * side[1])
    return F.adaptive_avg_pool2d(maps, (side[0], side[1])) * scale
