"""From a backbone's feature maps to one map of descriptors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres


class Fusion(nn.Module):
    """Adds up feature maps from coarse to fine (Lin et al., "Feature pyramid networks", CVPR 2017).

    Args:
        channels: of each map, finest first.
        width: of the result.
        position: whether two channels with x and y in [-1, 1] join the result before the last convolutions.
        upsample: how often the result is doubled in size, each time with a convolution of its own.
        shortcut: whether the maps, normalised and joined as the nearest neighbour compares them, stand beside the result,
            see :class:`Shortcut`. A head that starts as the nearest neighbour needs fewer labels than one that starts from
            nothing; only for a backbone with weights.

    Raises:
        ConfigError: for a negative ``upsample``.
    """

    def __init__(
        self, channels: Sequence[int], width: int, position: bool = False, upsample: int = 0, shortcut: bool = False
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
        self.upsample = nn.ModuleList(Doubling(width) for _ in range(upsample))
        self.shortcut = Shortcut(sum(channels)) if shortcut else None

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns (B, C, h, w) at the finest map's size, or 2^upsample times that.

        C is ``width``, and with a shortcut the sum of all channels on top of it.
        """
        fused = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            fused = lateral(finer) + resized(fused, finer.shape[-2:])
        if self.position:
            h, w = fused.shape[-2:]
            grid = cell_centres((h, w), (2, 2), fused).permute(2, 0, 1) - 1
            fused = torch.cat([fused, grid.expand(fused.shape[0], -1, -1, -1)], dim=1)
        fused = self.refine(fused)
        for double in self.upsample:
            fused = double(fused)
        return fused if self.shortcut is None else self.shortcut(maps, fused)


class Doubling(nn.Module):
    """Doubles a map's sides: bilinear, plus what a convolution makes of it.

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


class Shortcut(nn.Module):
    """The backbone's own features beside what a head makes of them, so that their similarities add up.

    Args:
        channels: of all maps together; each gets a learned weight.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.gain = nn.Parameter(torch.tensor(0.3))  # of the head, which starts out as noise

    def forward(self, maps: Sequence[Tensor], head: Tensor) -> Tensor:
        """Returns (B, channels + width, h, w): the weighted maps, and the head's (B, width, h, w)."""
        joined = torch.cat([resized(F.normalize(m, dim=1), head.shape[-2:]) for m in maps], dim=1)
        return torch.cat([F.normalize(joined, dim=1) * self.weight, self.gain * F.normalize(head, dim=1)], dim=1)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Returns (B, C, h, w) maps resized bilinearly to ``size`` (h, w)."""
    return F.interpolate(maps, [int(side) for side in size], mode="bilinear", align_corners=False)
