"""What a student is trained to minimise: its distance from the teacher's labels."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import ConfigError
from distill.types import Matches


class Loss(Protocol):
    """Compares a prediction with a label."""

    def __call__(self, prediction: Matches, label: Matches, kps_mask: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Returns a scalar.

        Args:
            prediction: of the student; its heatmap holds logits.
            label: of the teacher; its heatmap is non-negative. Coordinates as in ``prediction``.
            kps_mask: (B, N) bool, the points that count.
            image_size: (H, W) of the target images, px.
        """
        ...


class HeatmapKL:
    """Kullback-Leibler divergence of the student's distribution over target cells from the teacher's.

    The student's probabilities are summed up in the cells of the label's grid.

    Args:
        sharpness: the power that the teacher's map is raised to before it is normalised to a distribution; above 1
            it takes out the floor of the map, which lies everywhere.

    Raises:
        ConfigError: for a sharpness that is not positive.
    """

    def __init__(self, sharpness: float = 4.0) -> None:
        if sharpness <= 0:
            raise ConfigError(f"Expected the sharpness of HeatmapKL to be positive but got {sharpness}.")
        self.sharpness = sharpness

    def __call__(self, prediction: Matches, label: Matches, kps_mask: Tensor, image_size: tuple[int, int]) -> Tensor:
        """See :class:`Loss`."""
        target = label.heatmap.clamp_min(0) / label.heatmap.amax((-2, -1), keepdim=True).clamp_min(1e-12)
        target = target.flatten(2).pow(self.sharpness)
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-12)
        h, w = label.heatmap.shape[-2:]
        probability = prediction.heatmap.flatten(2).softmax(-1).view_as(prediction.heatmap)
        scale = probability[0, 0].numel() / (h * w)
        coarse = F.adaptive_avg_pool2d(probability, (h, w)).flatten(2) * scale
        divergence = (torch.xlogy(target, target) - target * coarse.clamp_min(1e-8).log()).sum(-1)
        return weighted_mean(divergence, label.confidence, kps_mask)


class CoordinateHuber:
    """Huber loss of the distance between points, in fractions of the image's longer side.

    Args:
        delta: where the loss turns from square to straight, so that a wildly wrong label does not dominate.

    Raises:
        ConfigError: for a delta that is not positive.
    """

    def __init__(self, delta: float = 0.05) -> None:
        if delta <= 0:
            raise ConfigError(f"Expected the delta of CoordinateHuber to be positive but got {delta}.")
        self.delta = delta

    def __call__(self, prediction: Matches, label: Matches, kps_mask: Tensor, image_size: tuple[int, int]) -> Tensor:
        """See :class:`Loss`."""
        side = max(image_size)
        offset = (prediction.trg_kps - label.trg_kps) / side
        distance = offset.square().sum(-1).add(1e-12).sqrt()
        loss = F.huber_loss(distance, torch.zeros_like(distance), reduction="none", delta=self.delta) / self.delta
        return weighted_mean(loss, label.confidence, kps_mask)


def weighted_mean(values: Tensor, confidence: Tensor, kps_mask: Tensor) -> Tensor:
    """Returns the mean of ``values`` (B, N) over the points that count, weighted by their confidence (B, N)."""
    weight = confidence * kps_mask
    return (values.where(kps_mask, 0) * weight).sum() / weight.sum().clamp_min(1e-6)
