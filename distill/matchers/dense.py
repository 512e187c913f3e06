"""A match for every part of an image: a flow field, and the target warped onto the source by it."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import DataError
from distill.core.geometry import cell_centres, image_size
from distill.core.numbers import is_whole
from distill.core.protocols import Matcher
from distill.matchers.match_images import match_images

MOST_POINTS = 100_000
CHUNK = 1024  # points at a time, which bounds the memory of heatmaps


class Flow(NamedTuple):
    """Where a grid of points of one image lies in another.

    Attributes:
        src: (h, w, 2) x, y in px of the source: the centres of an (h, w) grid of cells over it.
        trg: (h, w, 2) x, y in px of the target.
        confidence: (h, w) in [0, 1].
    """

    src: Tensor
    trg: Tensor
    confidence: Tensor


def dense_flow(
    matcher: Matcher,
    src_img: Tensor,
    trg_img: Tensor,
    step: int,
    size: int | None = None,
    device: str | None = None,
    resize: str | None = None,
) -> Flow:
    """Matches a grid of points; see :func:`distill.matchers.match_images.match_images` for the other arguments.

    Args:
        matcher: see there.
        src_img: (1, 3, H, W) float in [0, 1].
        trg_img: (1, 3, H', W').
        step: distance of the points, px of the source; the cells are as near to it as divides the sides.
        size: see there.
        device: see there.
        resize: see there.

    Raises:
        DataError: see :func:`grid_size`.
    """
    h, w = grid_size(src_img, step)
    src = cell_centres((h, w), image_size(src_img), src_img.new_zeros(0)).cpu()
    found = [
        match_images(matcher, src_img, trg_img, part, size, device, resize) for part in src.flatten(0, 1).split(CHUNK)
    ]
    trg = torch.cat([answer.trg_kps[0] for answer in found])
    return Flow(src, trg.view(h, w, 2), torch.cat([answer.confidence[0] for answer in found]).view(h, w))


def grid_size(src_img: Tensor, step: int) -> tuple[int, int]:
    """Returns how many points (h, w) a grid over ``src_img`` has that lie about ``step`` px apart.

    Raises:
        DataError: when ``step`` is no positive whole number, or gives more than 100,000 points.
    """
    if not is_whole(step) or step < 1:
        raise DataError(
            f"Expected dense, the distance of points in px, as a whole number of at least 1 but got {step!r}."
        )
    height, width = image_size(src_img)
    h, w = max(1, round(height / step)), max(1, round(width / step))
    if h * w > MOST_POINTS:
        raise DataError(
            f"Expected at most {MOST_POINTS} points but dense={step} gives {h} x {w} of a source of {width} x {height} px; "
            f"set dense={int((height * width / MOST_POINTS) ** 0.5) + 1} or more."
        )
    return h, w


def warp_target(trg_img: Tensor, flow: Flow, size: tuple[int, int]) -> Tensor:
    """Returns (1, 3, H, W): the target drawn in the shape of the source, at ``size`` (H, W) px.

    Each pixel shows the target at the place that the flow names. What is interpolated bilinearly, and continued as a constant
    beyond the centres of the outermost cells, is how far the flow lies from the source stretched to the target.
    """
    frame = image_size(trg_img)
    offset = flow.trg - cell_centres((flow.trg.shape[0], flow.trg.shape[1]), frame, flow.trg)
    drawn = F.interpolate(offset.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)
    places = drawn.permute(0, 2, 3, 1) + cell_centres(size, frame, flow.trg)
    grid = places / places.new_tensor([frame[1], frame[0]]) * 2 - 1
    return F.grid_sample(trg_img.cpu(), grid, padding_mode="border", align_corners=False)
