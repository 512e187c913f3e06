"""Huber loss on coordinates."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.losses.base import Example, weighted_mean


class CoordinateHuber:
    """Huber loss of the distance between points, in fractions of the image's longer side.

    Args:
        delta: distance at which the loss changes from quadratic to linear, so that a grossly wrong label does not dominate;
            a fraction of the longer side.

    Raises:
        ConfigError: for a delta that is not positive.
    """

    def __init__(self, delta: float = 0.05) -> None:
        if delta <= 0:
            raise ConfigError(f"Expected the delta of CoordinateHuber to be positive but got {delta}.")
        self.delta = delta

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`."""
        offset = (example.prediction.trg_kps - example.label.trg_kps) / max(example.trg_size)
        distance = offset.square().sum(-1).add(1e-12).sqrt()
        loss = F.huber_loss(distance, torch.zeros_like(distance), reduction="none", delta=self.delta) / self.delta
        return weighted_mean(loss, example.label.confidence, example.pairs.kps_mask)
