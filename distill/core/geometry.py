"""The one coordinate convention, and the geometry that depends on it.

Points are ``(x, y)`` in pixels of the image they are drawn on, continuous, with the centre of the top-left pixel at
(0.5, 0.5): pixel column j covers [j, j + 1). Resizing multiplies by the ratio of sizes, nothing else. Sizes are
``(height, width)``, boxes ``(x0, y0, x1, y1)``.

Coordinates are computed in single precision at least, see :mod:`distill.core.precision`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.precision import in_single, without_autocast


def resize_points(points: Tensor, from_size: tuple[int, int], to_size: tuple[int, int]) -> Tensor:
    """Maps points (..., 2), x, y px, of an image of ``from_size`` (H, W) onto the same image resized to ``to_size`` (H, W).

    A point of the border comes to lie on the border exactly.
    """
    (h0, w0), (h1, w1), points = from_size, to_size, in_single(points)
    return points / points.new_tensor([w0, h0]) * points.new_tensor([w1, h1])


def flip_points(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns points (..., 2), x, y px, of an image of ``size`` (H, W) in the horizontally flipped image."""
    points = in_single(points)
    return torch.stack([size[1] - points[..., 0], points[..., 1]], -1)


def gaussian_weight(first: Tensor, second: Tensor, size: tuple[int, int], tolerance: float) -> Tensor:
    """Returns (...) in [0, 1], exp(-d^2 / (2 tolerance^2)), d being the distance as a fraction of the longer side.

    Args:
        first: (..., 2) points, x, y, px.
        second: (..., 2) points, one for each of ``first``.
        size: (H, W) of the image that both lie in, px.
        tolerance: standard deviation of the Gaussian, as a fraction of the longer side.
    """
    squared = ((in_single(first) - in_single(second)) / max(size)).square().sum(-1)
    return torch.exp(-squared / (2 * tolerance**2))


def relative_points(points: Tensor, box: Tensor) -> Tensor:
    """Returns points (..., 2), x, y px, as fractions of the sides of boxes from their corners: 0 at x0, y0 and 1 at x1, y1.

    With the box that an original image fills, these are x / W and y / H, which labels are keyed by. They are computed in the
    precision of the points, in single precision at least; keys need double precision.

    Args:
        points: (..., 2).
        box: (..., 4) x0, y0, x1, y1 px, one for all points or shaped to be broadcast with them.
    """
    points = in_single(points)
    box = box.to(points)
    return (points - box[..., :2]) / (box[..., 2:] - box[..., :2])


def map_points(points: Tensor, from_box: Tensor, to_box: Tensor) -> Tensor:
    """Maps points (B, N, 2), x, y px, so that ``from_box`` (B, 4) comes to lie on ``to_box`` (B, 4).

    A point of the border comes to lie on the border exactly, and none inside comes to lie outside.
    """
    share = relative_points(points, from_box[:, None])  # exactly 1 at the far border
    new = to_box.to(share)[:, None]
    return torch.lerp(new[..., :2], new[..., 2:], share)


def image_size(images: Tensor) -> tuple[int, int]:
    """Returns (H, W), px, of images (B, 3, H, W)."""
    return images.shape[-2], images.shape[-1]


def cell_centres(size: tuple[int, int], image_size: tuple[int, int], like: Tensor) -> Tensor:
    """Returns (h, w, 2) the x, y, in px, of the centres of an (h, w) grid of cells laid over an image.

    Args:
        size: the grid's (h, w).
        image_size: (H, W) of the image it covers.
        like: a tensor whose device and dtype to use; single precision in place of half precision.
    """
    like = in_single(like)
    (h, w), (height, width) = size, image_size
    y = (torch.arange(h, device=like.device, dtype=like.dtype) + 0.5) * (height / h)
    x = (torch.arange(w, device=like.device, dtype=like.dtype) + 0.5) * (width / w)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def sample_at(feature_map: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Reads a feature map bilinearly at points.

    An exported graph gets :func:`gather_at`, which has no GridSample operator; ``grid_sample`` is faster in torch.

    Args:
        feature_map: (B, C, h, w).
        points: (B, N, 2) x, y in pixels of the image that the map covers; clamped at the map's border.
        image_size: (H, W) of that image.

    Returns:
        (B, N, C), in single precision at least.
    """
    if torch.compiler.is_exporting():
        return gather_at(feature_map, points, image_size)
    feature_map = in_single(feature_map)
    points = points.to(feature_map.dtype)
    height, width = image_size
    with without_autocast(feature_map):
        grid = points / points.new_tensor([width, height]) * 2 - 1
        sampled = F.grid_sample(feature_map, grid[:, None], padding_mode="border", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


def gather_at(feature_map: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Reads a feature map bilinearly at points, by a weighted sum of the four cells around each.

    Arguments and result are those of :func:`sample_at`. Values and gradients are those of ``grid_sample`` with border
    padding, but for rounding. Some runtimes lack the operator GridSample, and TensorRT has computed it wrongly.
    """
    feature_map = in_single(feature_map)
    points = points.to(feature_map.dtype)
    (height, width), (b, c, h, w) = image_size, feature_map.shape
    last = points.new_tensor([w - 1, h - 1])
    place = torch.minimum((points / points.new_tensor([width / w, height / h]) - 0.5).clamp_min(0), last)
    low = place.floor()
    right, down = (place - low).unbind(-1)
    weights = torch.stack([(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down], -1)
    x, y = low.long().unbind(-1)
    across, below = (x + 1).clamp_max(w - 1), (y + 1).clamp_max(h - 1)
    cells = torch.stack([y * w + x, y * w + across, below * w + x, below * w + across], -1)  # (B, N, 4)
    cells = cells + torch.arange(b, device=cells.device)[:, None, None] * (h * w)
    corners = feature_map.permute(0, 2, 3, 1).reshape(-1, c).index_select(0, cells.flatten())
    return (corners.view(*cells.shape, c) * weights[..., None]).sum(2)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns images (B, 3, H, W) in [0, 1] resized bilinearly, with antialiasing, to ``size`` (H', W'), in their own precision.

    Images of that size are returned as they are. Computed in single precision at least: on a CPU torch antialiases no half floats.
    """
    if image_size(images) == size:
        return images
    if size[1] == 1 != size[0]:  # torch 2.14 on a CPU mixes the rows of one column up, but not the columns of one row
        return resize_images(images.mT, (1, size[0])).mT
    resized = F.interpolate(in_single(images), size, mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1).to(images)


def resize_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns (B, N, h', w') maps (B, N, h, w) resized bilinearly to ``size`` (h', w'); N may be 0.

    Equals ``F.interpolate(..., align_corners=False)``, which refuses an empty map and, exported, ends an ONNX runtime.
    """
    rows, columns = (_interpolation(maps.shape[axis], size[axis], maps) for axis in (-2, -1))
    return rows @ maps @ columns.T


def _interpolation(cells: int, count: int, like: Tensor) -> Tensor:
    """Returns (count, cells): the weights of ``cells`` values in each of ``count`` bilinearly interpolated ones."""
    place = ((torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) * (cells / count) - 0.5).clamp(
        0, cells - 1
    )
    steps = torch.arange(cells, dtype=like.dtype, device=like.device)
    return (1 - (place[:, None] - steps).abs()).clamp_min(0)


def gaussian_heatmap(points: Tensor, size: tuple[int, int], image_size: tuple[int, int], sigma_px: float) -> Tensor:
    """Draws a Gaussian of peak 1 at each point.

    Args:
        points: (..., 2) x, y in pixels of an image of ``image_size``.
        size: (h, w) of the maps to draw.
        image_size: (H, W).
        sigma_px: standard deviation in pixels of the image.

    Returns:
        (..., h, w), exp(-d^2 / (2 sigma^2)) with d the distance in pixels from cell centre to point.
    """
    points = in_single(points)
    centres = cell_centres(size, image_size, points)
    squared = (centres - points[..., None, None, :]).square().sum(-1)
    return torch.exp(-squared / (2 * sigma_px**2))
