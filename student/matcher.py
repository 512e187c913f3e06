"""The student: one pass of a small network per image, then a correlation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.geometry import cell_centres, sample_at
from distill.readout import windowed_soft_argmax
from distill.types import Matches
from student.backbone import Backbone


class StudentMatcher(nn.Module):
    """Compares the descriptor at each query point with those of all target cells.

    Args:
        backbone: name of a timm model.
        strides: of its maps that are fused, finest first; the finest is the heatmap's.
        width: channels of the descriptors.
        weights: see :class:`student.backbone.Backbone`.
        mean: see there.
        std: see there.
        options: see there.
        position: whether the descriptors are told where they are in the image. It helps where objects stand upright
            and in the middle, and hurts where they do not.
        temperature: of the correlation at the start; it is learned.
        radius_cells: of the window of the soft-argmax.
    """

    def __init__(
        self,
        backbone: str,
        strides: Sequence[int] = (4, 8, 16),
        width: int = 128,
        weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        options: dict[str, Any] | None = None,
        position: bool = False,
        temperature: float = 0.05,
        radius_cells: float = 3.0,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, strides, weights, mean, std, options)
        self.fusion = Fusion(self.backbone.channels, width, position)
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        self.radius_cells = radius_cells

    def forward(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.protocols.Matcher`.

        The heatmap holds similarities divided by the temperature; a softmax over its cells makes it a distribution.
        The confidence is the probability within the window around the answer.
        """
        size = (src_img.shape[-2], src_img.shape[-1])
        descriptors = self.describe(torch.cat([src_img, trg_img]))
        src_map, trg_map = descriptors[: len(src_img)], descriptors[len(src_img) :]
        queries = F.normalize(sample_at(src_map, src_kps, size), dim=-1)
        heatmap = torch.einsum("bnc,bchw->bnhw", queries, trg_map) / self.log_temperature.exp()
        trg_size = (trg_img.shape[-2], trg_img.shape[-1])
        trg_kps = windowed_soft_argmax(heatmap, trg_size, radius_cells=self.radius_cells)
        return Matches(trg_kps, window_mass(heatmap, trg_kps, trg_size, self.radius_cells), heatmap)

    def describe(self, images: Tensor) -> Tensor:
        """Returns descriptors of length 1, (B, width, h, w), of ``images`` (B, 3, H, W) in [0, 1]."""
        return F.normalize(self.fusion(self.backbone(images)), dim=1)


class Fusion(nn.Module):
    """Adds up feature maps from coarse to fine (Lin et al., "Feature pyramid networks", CVPR 2017).

    Args:
        channels: of each map, finest first.
        width: of the result.
        position: whether two channels with x and y in [-1, 1] join the result before the last convolutions.
    """

    def __init__(self, channels: Sequence[int], width: int, position: bool) -> None:
        super().__init__()
        self.position = position
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        extra = 2 if position else 0
        self.refine = nn.Sequential(
            nn.Conv2d(width + extra, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Returns (B, width, h, w) at the finest map's size."""
        fused = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            fused = lateral(finer) + F.interpolate(fused, finer.shape[-2:], mode="bilinear", align_corners=False)
        if self.position:
            h, w = fused.shape[-2:]
            grid = cell_centres((h, w), (2, 2), fused).permute(2, 0, 1) - 1
            fused = torch.cat([fused, grid.expand(fused.shape[0], -1, -1, -1)], dim=1)
        return self.refine(fused)


def window_mass(heatmap: Tensor, points: Tensor, image_size: tuple[int, int], radius_cells: float) -> Tensor:
    """Returns (B, N) in [0, 1]: the probability, under a softmax over all cells, of the window around each point.

    Args:
        heatmap: (B, N, h, w) scores.
        points: (B, N, 2) x, y, px.
        image_size: (H, W).
        radius_cells: half the window's side.
    """
    h, w = heatmap.shape[-2], heatmap.shape[-1]
    centres = cell_centres((h, w), image_size, heatmap).flatten(0, 1)
    cell = centres.new_tensor([image_size[1] / w, image_size[0] / h])
    near = ((centres - points[..., None, :]) / cell).abs().amax(-1) <= radius_cells
    return (heatmap.flatten(2).softmax(-1) * near.to(heatmap.dtype)).sum(-1).clamp(0, 1)
