"""Nearest-neighbour baseline on the features of an untrained or pretrained backbone."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.checks import check_query
from distill.core.digest import state_digest
from distill.core.geometry import flip_points, image_size, sample_at
from distill.core.precision import in_single, without_autocast
from distill.core.readout import argmax
from distill.core.types import Matches
from student.backbone import Backbone

CHANNELS = 64  # of descriptors that are enlarged at a time


class NearestNeighbour(nn.Module):
    """Takes the target cell, or the target pixel, whose descriptor has the highest cosine similarity.

    With random weights it is the baseline of a student trained from scratch. With ``enlarge`` the target's descriptors are
    interpolated bilinearly to the image and normalised again before the maximum is taken, as in the evaluation of DIFT
    (Tang et al., "Emergent Correspondence from Image Diffusion", NeurIPS 2023). With ``flip`` each target is also compared
    flipped horizontally; of the two, the one whose cells are nearer to those of the source is matched. That is the adaptive
    pose alignment of Zhang et al. ("Telling Left from Right", CVPR 2024) for one flip and without masks.

    Args:
        backbone: name of a timm model.
        strides: px per cell of the maps to compare; several are resized to the finest grid, normalised and concatenated.
        weights: see :class:`student.backbone.Backbone`.
        mean: see there.
        std: see there.
        options: see there.
        seed: of random weights.
        enlarge: whether an answer is the best pixel, and not the centre of the best cell.
        flip: whether the target may be compared flipped.
        debias: see :class:`student.backbone.Backbone`.
        scales: see there.
    """

    def __init__(
        self,
        backbone: str,
        strides: Sequence[int] = (16,),
        weights: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 0,
        enlarge: bool = False,
        flip: bool = False,
        debias: int = 0,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self.enlarge, self.flip = enlarge, flip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.backbone = Backbone(backbone, strides, weights, mean, std, options, debias=debias, scales=scales)
        self.eval().requires_grad_(False)

    def forward(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        The heatmap holds the cells' cosines; the confidence is the best cosine, (1 + cos) / 2.
        """
        check_query(src_img, trg_img, src_kps, min_points=0, same_size=True)
        images, size = [src_img, trg_img, *([trg_img.flip(-1)] if self.flip else [])], image_size(trg_img)
        src_map, trg_map, *others = in_single(self.describe(torch.cat(images))).split(src_img.shape[0])
        queries = F.normalize(sample_at(src_map, src_kps, image_size(src_img)), dim=-1)
        with without_autocast(queries):
            flipped = src_map.new_zeros(len(src_map), 1, 1, 1, dtype=torch.bool)
            for other in others:
                flipped = (_nearness(src_map, other) > _nearness(src_map, trg_map))[:, None, None, None]
                trg_map = torch.where(flipped, other, trg_map)
            heatmap = torch.einsum("bnc,bchw->bnhw", queries, trg_map)
        points, best = argmax(heatmap, size), heatmap.amax((-2, -1))
        if self.enlarge and src_kps.shape[1]:
            points, best = _best_pixels(heatmap, trg_map, size)
        points = torch.where(flipped[..., 0], flip_points(points, size), points)
        heatmap = torch.where(flipped, heatmap.flip(-1), heatmap)
        return Matches(points, ((1 + best) / 2).clamp(0, 1), heatmap)

    def fingerprint(self) -> dict[str, str]:
        """See :class:`distill.core.protocols.Fingerprinted`."""
        told = {"backbone": self.backbone.name, "levels": str(self.backbone.levels), "enlarge": str(self.enlarge)}
        told |= {"scales": str(self.backbone.scales)} if self.backbone.scales != (1.0,) else {}
        told |= {"flip": "True"} if self.flip else {}
        # Such as the padding of convolutions, which no weight tells.
        told |= {"options": str(sorted(self.backbone.options.items()))} if self.backbone.options else {}
        return {"method": "nearest neighbour 1", **told, "weights": state_digest(self)}

    @property
    def patch(self) -> int:
        """Side of the coarsest cells, px, of a vision transformer its patch; images whose sides it divides are not resized again."""
        return self.backbone.coarsest

    def resamples(self, size: tuple[int, int]) -> bool:
        """See :meth:`student.backbone.Backbone.resamples`."""
        return self.backbone.resamples(size)

    def describe(self, images: Tensor) -> Tensor:
        """Returns descriptors of length 1, (B, C, h, w), of ``images`` (B, 3, H, W) in [0, 1]."""
        maps = [F.normalize(feature_map, dim=1) for feature_map in self.backbone(images)]
        size = maps[0].shape[-2:]
        joined = torch.cat([F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps], dim=1)
        return F.normalize(joined, dim=1)


def _nearness(src_map: Tensor, trg_map: Tensor) -> Tensor:
    """Returns (B,) the mean over source cells of the highest cosine with any target cell; maps are (B, C, h, w)."""
    return (src_map.flatten(2).transpose(1, 2) @ trg_map.flatten(2)).amax(2).mean(1)


def _best_pixels(heatmap: Tensor, descriptors: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Returns the pixels' centres (B, N, 2), x, y px, with the highest cosines, and these cosines (B, N).

    Interpolation is linear: an enlarged descriptor's product with a query is the enlarged product. Only the lengths of
    the enlarged descriptors are computed from these, some channels at a time.

    Args:
        heatmap: (B, N, h, w) products of queries with the cells' descriptors.
        descriptors: (B, C, h, w).
        size: (H, W) of the image, px.
    """
    large = partial(F.interpolate, size=size, mode="bilinear", align_corners=False)
    points, best = [], []
    for products, cells in zip(heatmap.split(1), descriptors.split(1), strict=True):
        squared = torch.stack([large(part).square().sum(1) for part in cells.split(CHANNELS, dim=1)]).sum(0)
        cosines = large(products) / squared.sqrt().clamp_min(1e-12)[:, None]
        points.append(argmax(cosines, size))
        best.append(cosines.amax((-2, -1)))
    return torch.cat(points), torch.cat(best)
