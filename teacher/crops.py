"""Square crops of an image, and the way back from what was seen in them.

Everything here is in fractions: points are x, y in [0, 1] of the image or of the crop, and a crop is a box
``(left, top, side)`` in fractions of the image's side. Crops are therefore exact at any resolution: nothing is rounded
to pixels on the way out or on the way back.

An image has a fixed pool of crops, in this order: the whole image, the four corners, then random ones. Each is encoded
once, and both phases of the method draw from the pool.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.geometry import cell_centres

WHOLE = 0
CORNERS = (1, 2, 3, 4)


def crop_boxes(n_random: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Returns an image's pool of boxes (5 + n_random, 3): whole, corners, random places.

    Args:
        n_random: how many random crops.
        ratio: side of the crops as a fraction of the image's.
        generator: on the CPU.
    """
    free = 1 - ratio
    corners = torch.tensor([[0.0, 0.0], [free, 0.0], [0.0, free], [free, free]])
    offsets = torch.cat([corners, torch.rand(n_random, 2, generator=generator) * free])
    boxes = torch.cat([offsets, torch.full((len(offsets), 1), ratio)], dim=1)
    return torch.cat([torch.tensor([[0.0, 0.0, 1.0]]), boxes])


def crop(image: Tensor, boxes: Tensor) -> Tensor:
    """Cuts ``boxes`` (P, 3) out of ``image`` (3, S, S), each resized bilinearly to the whole side: (P, 3, S, S)."""
    images = image.expand(len(boxes), -1, -1, -1)
    grid = _sampling_grid(boxes[:, 2], boxes[:, :2], image.shape[-1])
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def into_crop(points: Tensor, boxes: Tensor) -> Tensor:
    """Maps points (..., 2) of the image into the crop of ``boxes`` (..., 3): [0, 1] inside it."""
    return (points - boxes[..., :2]) / boxes[..., 2:]


def paste(maps: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Lays maps seen in crops back over the whole image.

    Args:
        maps: (R, h, w), what was seen.
        boxes: (R, 3), where.
        side: of the grid laid over the image.

    Returns:
        (R, side, side) bilinearly resampled, 0 outside the crop, and (R, side, side), 1 where the centre of the cell
        lies inside the crop and 0 elsewhere.
    """
    grid = _sampling_grid(1 / boxes[:, 2], -boxes[:, :2] / boxes[:, 2:], side)
    seen = (grid.abs() <= 1 + 1e-5).all(-1).to(maps.dtype)
    return F.grid_sample(maps[:, None], grid, padding_mode="border", align_corners=False)[:, 0] * seen, seen


def choose_crops(points: Tensor, boxes: Tensor, priority: Tensor, margin: float) -> Tensor:
    """Chooses for each point a crop that keeps it off the border.

    A crop suits a point by the point's distance from the crop's border, of which no more than ``margin`` counts. The
    most suitable is taken, and among equals the one of the highest priority. So a point near the image's border gets
    a crop that shows as much of its surroundings as any does.

    Args:
        points: (R, 2) of the image.
        boxes: (P, 3), the image's pool.
        priority: (R, P) in [0, 1); minus infinity bars a crop.
        margin: fraction of the crop's side.

    Returns:
        (R,) int64 in [0, P).
    """
    inside = into_crop(points[:, None], boxes[None])
    room = torch.minimum(inside, 1 - inside).amin(-1).clamp(-1.0, margin)
    return ((room * 1000).round() + priority).argmax(-1)  # a thousandth of the side makes no difference


def _sampling_grid(scale: Tensor, offset: Tensor, side: int) -> Tensor:
    """Where to sample, in grid_sample's [-1, 1], for a grid whose cell u in [0, 1] reads at ``offset + scale * u``."""
    centres = cell_centres((side, side), (1, 1), scale)
    return 2 * (offset[:, None, None] + scale[:, None, None, None] * centres) - 1
