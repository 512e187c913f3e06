"""Distillation of the similarities between all cells of two images."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.protocols import on_device
from distill.losses.base import Example, dense_parts


class Guide(Protocol):
    """A network that gives descriptor maps, such as that of the nearest neighbour."""

    def describe(self, images: Tensor) -> Tensor:
        """Returns descriptors of length 1, (B, C, h, w), of images (B, 3, H, W)."""
        ...


class SimilarityDistillation:
    """Divergence of the student's similarities between all cells of both images from a guide's (DistillDIFT, WACV 2025).

    Each source cell's distribution over target cells is compared by its Kullback-Leibler divergence, and each target
    cell's over source cells. The guide sees the images as the student does, after augmentation; nothing of it is trained.

    Args:
        guide: describes images; no part of the student's checkpoints.
        side: cells a side at which both are compared.
        guide_temperature: divides the guide's cosines.
        temperature: divides the student's.

    Raises:
        ConfigError: for a side or a temperature that is not positive.
    """

    dense = True

    def __init__(
        self, guide: Guide, side: int = 16, guide_temperature: float = 0.05, temperature: float = 0.05
    ) -> None:
        if min(side, guide_temperature, temperature) <= 0:
            raise ConfigError(
                "Expected positive side and temperatures of SimilarityDistillation but got "
                f"{[side, guide_temperature, temperature]}."
            )
        self.guide, self.side = guide, side
        self.guide_temperature, self.temperature = guide_temperature, temperature

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`; pairs weigh as much as their labels' mean confidence."""
        _, src_map, trg_map = dense_parts(example)
        images = torch.cat([example.pairs.src_img, example.pairs.trg_img])
        on_device(self.guide, images.device)
        with torch.no_grad():
            wanted = self._similarity(*self.guide.describe(images).chunk(2)) / self.guide_temperature
        found = self._similarity(src_map, trg_map) / self.temperature
        divergence = sum(_divergence(wanted, found, dim) for dim in (1, 2))
        mask = example.pairs.kps_mask
        weight = example.label.confidence.where(mask, 0).sum(1) / mask.sum(1).clamp_min(1)
        return (divergence * weight).sum() / weight.sum().clamp_min(1e-6)

    def _similarity(self, src_map: Tensor, trg_map: Tensor) -> Tensor:
        src, trg = (F.normalize(F.adaptive_avg_pool2d(m, self.side), dim=1).flatten(2) for m in (src_map, trg_map))
        return src.transpose(1, 2) @ trg


def _divergence(wanted: Tensor, found: Tensor, dim: int) -> Tensor:
    """Returns (B,) the mean divergence of the distributions along ``dim`` of logits (B, S, T)."""
    target = wanted.softmax(dim)
    return (target * (wanted.log_softmax(dim) - found.log_softmax(dim))).sum(dim).mean(1)
