"""Square crops of an image, and pasting their maps back.

Everything here is in fractions: points are x, y in [0, 1] of the image or of the crop, and a crop is a box
``(left, top, side)`` in fractions of the image's side. Crops are therefore exact at any resolution: nothing is rounded
to pixels on the way out or on the way back.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.geometry import cell_centres


def crop(image: Tensor, boxes: Tensor) -> Tensor:
    """Cuts ``boxes`` (P, 3) out of ``image`` (3, S, S), each resized bilinearly to the whole side: (P, 3, S, S)."""
    images = image.expand(len(boxes), -1, -1, -1)
    grid = _sampling_grid(boxes[:, 2], boxes[:, :2], image.shape[-1])
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def crop_pixels(image: Tensor, boxes: Tensor) -> Tensor:
    """Cuts as :func:`crop` does, for boxes of whole pixels, as released: pixels outside a crop do not influence its border."""
    side = image.shape[-1]
    pieces = []
    for left, top, length in (boxes.cpu().double() * side).round().int().tolist():
        piece = image[None, :, top : top + length, left : left + length]
        pieces.append(F.interpolate(piece, (side, side), mode="bilinear", align_corners=False))
    return torch.cat(pieces)


def into_crop(points: Tensor, boxes: Tensor) -> Tensor:
    """Maps points (..., 2) of the image into the crop of ``boxes`` (..., 3): [0, 1] inside it."""
    return (points - boxes[..., :2]) / boxes[..., 2:]


def paste(maps: Tensor, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Resamples maps of crops onto the grid of the whole image.

    Args:
        maps: (R, h, w), of the crops.
        boxes: (R, 3), of the crops.
        side: of the image's grid, cells.

    Returns:
        (R, side, side) bilinearly resampled, 0 outside the crop, and (R, side, side), 1 where the centre of the cell
        lies inside the crop and 0 elsewhere.
    """
    grid = _sampling_grid(1 / boxes[:, 2], -boxes[:, :2] / boxes[:, 2:], side)
    seen = (grid.abs() <= 1 + 1e-5).all(-1).to(maps.dtype)
    return F.grid_sample(maps[:, None], grid, padding_mode="border", align_corners=False)[:, 0] * seen, seen


def _sampling_grid(scale: Tensor, offset: Tensor, side: int) -> Tensor:
    """Where to sample, in grid_sample's [-1, 1], for a grid whose cell u in [0, 1] reads at ``offset + scale * u``."""
    centres = cell_centres((side, side), (1, 1), scale)
    return 2 * (offset[:, None, None] + scale[:, None, None, None] * centres) - 1
