"""From a backbone's feature maps to one map of descriptors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres


class Fusion(nn.Module):
    """Adds feature maps from coarse to fine (Lin et al., "Feature pyramid networks", CVPR 2017).

    Args:
        channels: of each map, finest first.
        width: channels of the result.
        position: whether two channels with x and y in [-1, 1] are appended before the last convolutions.
        upsample: number of :class:`UpsampleBlock`; each doubles the height and width of the result.
        backbone_skip: whether the normalised backbone features are concatenated to the result, see
            :class:`BackboneSkip`. A head that starts as the nearest neighbour needs fewer labels than a random one; only
            for a backbone with weights.

    Raises:
        ConfigError: for a negative ``upsample``.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        position: bool = False,
        upsample: int = 0,
        backbone_skip: bool = False,
    ) -> None:
        super().__init__()
        if upsample < 0:
            raise ConfigError(f"Expected student.upsample of at least 0 but got {upsample}; 1 doubles the map's sides.")
        self.position = position
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        extra = 2 if position else 0
        self.refine = nn.Sequential(
            nn.Conv2d(width + extra, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.upsample = nn.ModuleList(UpsampleBlock(width) for _ in range(upsample))
        self.backbone_skip = BackboneSkip(sum(channels)) if backbone_skip else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns (B, C, h, w), the height and width of the finest map times 2^upsample.

        C is ``width``; with ``backbone_skip`` it is ``width`` plus the sum of ``channels``.
        """
        fused = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            fused = lateral(finer) + resized(fused, finer.shape[-2:])
        if self.position:
            h, w = fused.shape[-2:]
            grid = cell_centres((h, w), (2, 2), fused).permute(2, 0, 1) - 1
            fused = torch.cat([fused, grid.to(fused).expand(fused.shape[0], -1, -1, -1)], dim=1)
        fused = self.refine(fused)
        for block in self.upsample:
            fused = block(fused)
        return fused if self.backbone_skip is None else self.backbone_skip(maps, fused)


class UpsampleBlock(nn.Module):
    """Doubles the height and width of a map: bilinear interpolation plus a convolutional residual.

    Args:
        width: channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.refine = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Returns (B, C, 2 h, 2 w) of (B, C, h, w)."""
        larger = resized(maps, (2 * maps.shape[-2], 2 * maps.shape[-1]))
        return larger + self.refine(larger)


class BackboneSkip(nn.Module):
    """Concatenates the backbone's own features with the head's, so that the inner products of both add up.

    Args:
        channels: of all backbone maps together; each gets a learned weight.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.gain = nn.Parameter(torch.tensor(0.3))  # of the head, whose first weights are random

    def forward(self, maps: Sequence[Tensor], head: Tensor) -> Tensor:
        """Returns (B, channels + width, h, w): the weighted maps, then the head's features (B, width, h, w)."""
        joined = torch.cat([resized(F.normalize(m, dim=1), head.shape[-2:]) for m in maps], dim=1)
        return torch.cat([F.normalize(joined, dim=1) * self.weight, self.gain * F.normalize(head, dim=1)], dim=1)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Returns (B, C, h, w) maps resized bilinearly to ``size`` (h, w)."""
    return F.interpolate(maps, [int(side) for side in size], mode="bilinear", align_corners=False)
