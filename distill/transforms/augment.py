"""Augmentation of labelled pairs: images, points and heatmaps are transformed together, after the label was read."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import image_size
from distill.core.precision import in_double, in_single, without_autocast
from distill.core.types import Matches, PairBatch


class Augment:
    """Random affine transforms, flips and colour changes of labelled pairs.

    Source and target get their own affine transform and colours. The label's points and heatmap are transformed as the
    target image is. A flip applies to both images of a pair and to the label, so that corresponding points still
    correspond; one image alone is never flipped.

    Args:
        scale: largest relative change of size, 0.2 for 0.8 to 1.25.
        shift: largest translation, as a fraction of the side.
        rotation: largest rotation, degrees.
        colour: by how much the colours change, see :func:`recolour`.
        flip: probability that both images of a pair are flipped horizontally, in [0, 1].

    Raises:
        ConfigError: for negative amounts, or a share outside [0, 1].
    """

    def __init__(
        self, scale: float = 0.15, shift: float = 0.08, rotation: float = 8.0, colour: float = 0.2, flip: float = 0.0
    ) -> None:
        if min(scale, shift, rotation, colour) < 0 or not 0 <= flip <= 1:
            raise ConfigError(
                "Expected amounts of at least 0 in augment, and flip in [0, 1], but got "
                f"{[scale, shift, rotation, colour, flip]}."
            )
        self.scale, self.shift, self.rotation, self.colour, self.flip = scale, shift, rotation, colour, flip

    def __call__(self, pairs: PairBatch, label: Matches) -> tuple[PairBatch, Matches]:
        """Returns the transformed pairs and label; points outside an image are removed from ``kps_mask``.

        Images, ``src_kps``, ``trg_kps`` and ``kps_mask`` are transformed; the other fields stay those of the images as they were.
        """
        size = image_size(pairs.src_img)
        src, trg = (self._maps(len(image), image) for image in (pairs.src_img, pairs.trg_img))
        if self.flip > 0:
            sign = torch.where(torch.rand(len(src), device=src.device) < self.flip, -1.0, 1.0)
            signs = torch.stack([sign, torch.ones_like(sign), torch.ones_like(sign)], -1)[:, None]
            src, trg = src * signs, trg * signs
        src_kps, trg_kps = move_points(pairs.src_kps, src, size), move_points(pairs.trg_kps, trg, size)
        label_kps = move_points(label.trg_kps, trg, size)
        mask = pairs.kps_mask & inside(src_kps, size) & inside(label_kps, size)
        changed = pairs._replace(
            src_img=recolour(move_image(pairs.src_img, src, "reflection"), self.colour),
            trg_img=recolour(move_image(pairs.trg_img, trg, "reflection"), self.colour),
            src_kps=src_kps,
            trg_kps=trg_kps,
            kps_mask=mask,
        )
        return changed, label._replace(trg_kps=label_kps, heatmap=move_image(label.heatmap, trg, "zeros"))

    def _maps(self, count: int, like: Tensor) -> Tensor:
        """Draws (B, 2, 3) affine maps from new to old coordinates, both x, y in [-1, 1] around the centre."""
        amount = torch.rand(4, count, device=like.device) * 2 - 1
        angle = amount[0] * math.radians(self.rotation)
        factor = (amount[1] * math.log1p(self.scale)).exp()
        move = amount[2:] * 2 * self.shift
        cos, sin = angle.cos() * factor, angle.sin() * factor
        return torch.stack([torch.stack([cos, -sin, move[0]], -1), torch.stack([sin, cos, move[1]], -1)], 1)


def recolour(images: Tensor, amount: float) -> Tensor:
    """Returns images (B, 3, H, W) in [0, 1] with random brightness and, for each channel, random contrast.

    Args:
        images: each gets colours of its own.
        amount: largest relative change of a channel's contrast, and twice the largest change of brightness.
    """
    contrast = 1 + amount * (torch.rand(len(images), 3, 1, 1, device=images.device) * 2 - 1)
    brightness = amount / 2 * (torch.rand(len(images), 1, 1, 1, device=images.device) * 2 - 1)
    return ((images - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def move_image(images: Tensor, maps: Tensor, padding: str) -> Tensor:
    """Returns transformed images (B, C, h, w); ``maps`` (B, 2, 3) map new to old coordinates, x, y in [-1, 1]."""
    images = in_single(images)
    if not images.numel():  # heatmaps of no points
        return images
    with without_autocast(images):
        grid = F.affine_grid(maps, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def move_points(points: Tensor, maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns the points (B, N, 2), x, y px, of images of ``size`` after :func:`move_image` with ``maps``."""
    points = in_single(points)
    extent = points.new_tensor([size[1], size[0]])
    centred = points / extent * 2 - 1 - maps[:, None, :, 2]
    # In double precision where there is one: the inverse of a single-precision map would move points by visible fractions of a pixel.
    with without_autocast(points):
        moved = torch.linalg.solve(in_double(maps[:, :, :2]), in_double(centred.transpose(1, 2))).transpose(1, 2)
    return (moved.to(points) + 1) / 2 * extent


def inside(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns (B, N) bool: which points (B, N, 2), x, y px, lie in images of ``size`` (H, W)."""
    extent = points.new_tensor([size[1], size[0]])
    return ((points >= 0) & (points <= extent)).all(-1)
