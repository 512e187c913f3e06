"""Known warps of an image: where every point of the warped image comes from, exactly."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres


@dataclass(frozen=True)
class Warp:
    """B maps from places of the warped image to places of the original, both in [-1, 1] around the centre.

    Attributes:
        affine: (B, 2, 3).
        wave: (B, 2, 3): amplitude, frequency (radians per unit) and phase of a sine that moves x along y, and y along x.
    """

    affine: Tensor
    wave: Tensor

    def origin(self, places: Tensor) -> Tensor:
        """Returns where places (B, N, 2) of the warped image lie in the original, in [-1, 1] units."""
        amplitude, frequency, phase = self.wave[:, None].unbind(-1)
        bent = places + amplitude * (frequency * places.flip(-1) + phase).sin()
        return torch.einsum("bij,bnj->bni", self.affine[:, :, :2], bent) + self.affine[:, None, :, 2]

    def points(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns where points (B, N, 2), x, y px, of the warped images lie in the originals, both of ``size``."""
        extent = points.new_tensor([size[1], size[0]])
        return (self.origin(points / extent * 2 - 1) + 1) / 2 * extent

    def image(self, images: Tensor) -> Tensor:
        """Returns the warped images (B, C, H, W); what lies outside the original is its reflection."""
        h, w = images.shape[-2:]
        places = cell_centres((h, w), (2, 2), images).flatten(0, 1) - 1
        grid = self.origin(places.expand(len(images), -1, -1)).view(-1, h, w, 2)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


class RandomWarp:
    """Draws warps: rotation, scale, shift, a gentle bend, and mirroring.

    Args:
        scale: largest relative change of size.
        shift: largest move, as a fraction of the side.
        tilt: largest rotation, degrees.
        bend: largest amplitude of the bend, as a fraction of the side.
        mirror: how often the image is mirrored, in [0, 1].

    Raises:
        ConfigError: for negative amounts or a share outside [0, 1].
    """

    def __init__(
        self, scale: float = 0.3, shift: float = 0.1, tilt: float = 20.0, bend: float = 0.04, mirror: float = 0.0
    ) -> None:
        if min(scale, shift, tilt, bend) < 0 or not 0 <= mirror <= 1:
            raise ConfigError(
                "Expected amounts of at least 0, and mirror in [0, 1], of RandomWarp but got "
                f"{[scale, shift, tilt, bend, mirror]}."
            )
        self.scale, self.shift, self.tilt, self.bend, self.mirror = scale, shift, tilt, bend, mirror

    def __call__(self, count: int, like: Tensor) -> Warp:
        """Draws ``count`` warps, on the device of ``like``."""
        chance = torch.rand(11, count, device=like.device, dtype=torch.float32)
        amount = chance * 2 - 1
        angle = amount[0] * math.radians(self.tilt)
        factor = (amount[1] * math.log1p(self.scale)).exp()
        move = amount[2:4] * 2 * self.shift
        cos, sin = angle.cos() * factor, angle.sin() * factor
        side = torch.where(chance[4] < self.mirror, -1.0, 1.0)
        affine = torch.stack(
            [torch.stack([cos * side, -sin, move[0]], -1), torch.stack([sin * side, cos, move[1]], -1)], 1
        )
        wave = torch.stack([amount[5:7] * 2 * self.bend, 1 + 2 * chance[7:9], math.pi * amount[9:11]], -1)
        return Warp(affine.to(like.dtype), wave.transpose(0, 1).to(like.dtype))
