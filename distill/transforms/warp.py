"""Random warps of an image whose correspondence is known exactly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres
from distill.core.precision import in_single, without_autocast


@dataclass(frozen=True)
class Warp:
    """B maps from coordinates of the warped image to those of the original, x, y in [-1, 1] around the centre.

    Attributes:
        affine: (B, 2, 3).
        wave: (B, 2, 3): amplitude, frequency (radians per unit) and phase of a sine that moves x along y, and y along x.
    """

    affine: Tensor
    wave: Tensor

    def origin(self, places: Tensor) -> Tensor:
        """Returns the coordinates in the original of ``places`` (B, N, 2) of the warped image, both in [-1, 1]."""
        amplitude, frequency, phase = self.wave[:, None].unbind(-1)
        displaced = places + amplitude * (frequency * places.flip(-1) + phase).sin()
        with without_autocast(displaced):
            return torch.einsum("bij,bnj->bni", self.affine[:, :, :2], displaced) + self.affine[:, None, :, 2]

    def points(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns the points of the originals that ``points`` (B, N, 2), x, y px, of the warped images show.

        Args:
            points: (B, N, 2).
            size: (H, W) of both images, px.
        """
        points = in_single(points)
        extent = points.new_tensor([size[1], size[0]])
        return (self.origin(points / extent * 2 - 1) + 1) / 2 * extent

    def image(self, images: Tensor) -> Tensor:
        """Returns the warped images (B, C, H, W); the original is continued by reflection."""
        images, (h, w) = in_single(images), images.shape[-2:]
        places = cell_centres((h, w), (2, 2), images).flatten(0, 1) - 1
        grid = self.origin(places.expand(len(images), -1, -1)).view(-1, h, w, 2)
        with without_autocast(images):
            return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


class RandomWarp:
    """Draws warps: rotation, scale, translation, a smooth elastic deformation, and a horizontal flip.

    Args:
        scale: largest relative change of size.
        shift: largest translation, as a fraction of the side.
        rotation: largest rotation, degrees.
        elastic: largest amplitude of the elastic deformation, as a fraction of the side.
        flip: probability of a flip, in [0, 1].

    Raises:
        ConfigError: for negative amounts or a share outside [0, 1].
    """

    def __init__(
        self, scale: float = 0.3, shift: float = 0.1, rotation: float = 20.0, elastic: float = 0.04, flip: float = 0.0
    ) -> None:
        if min(scale, shift, rotation, elastic) < 0 or not 0 <= flip <= 1:
            raise ConfigError(
                "Expected amounts of at least 0, and flip in [0, 1], of RandomWarp but got "
                f"{[scale, shift, rotation, elastic, flip]}."
            )
        self.scale, self.shift, self.rotation, self.elastic, self.flip = scale, shift, rotation, elastic, flip

    def __call__(self, count: int, like: Tensor) -> Warp:
        """Draws ``count`` warps, on the device of ``like``, in its precision but in single at least."""
        chance = torch.rand(11, count, device=like.device, dtype=torch.float32)
        amount = chance * 2 - 1
        angle = amount[0] * math.radians(self.rotation)
        factor = (amount[1] * math.log1p(self.scale)).exp()
        move = amount[2:4] * 2 * self.shift
        cos, sin = angle.cos() * factor, angle.sin() * factor
        sign = torch.where(chance[4] < self.flip, -1.0, 1.0)
        affine = torch.stack(
            [torch.stack([cos * sign, -sin, move[0]], -1), torch.stack([sin * sign, cos, move[1]], -1)], 1
        )
        wave = torch.stack([amount[5:7] * 2 * self.elastic, 1 + 2 * chance[7:9], math.pi * amount[9:11]], -1)
        dtype = in_single(like).dtype
        return Warp(affine.to(dtype), wave.transpose(0, 1).to(dtype))
