"""Reading points from heatmaps, in single precision at least (:mod:`distill.core.precision`)."""

import torch
from torch import Tensor

from distill.core.geometry import cell_centres
from distill.core.precision import in_single, without_autocast


def argmax(heatmap: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Returns (B, N, 2) x, y, in px, of the centre of the highest cell.

    Args:
        heatmap: (B, N, h, w).
        image_size: (H, W) of the image that the heatmap covers.
    """
    centres = cell_centres((heatmap.shape[-2], heatmap.shape[-1]), image_size, heatmap).flatten(0, 1)
    return centres[heatmap.flatten(2).argmax(-1)]


def windowed_soft_argmax(
    heatmap: Tensor, image_size: tuple[int, int], temperature: float | Tensor = 1.0, radius_cells: float = 2.0
) -> Tensor:
    """Returns (B, N, 2) x, y, in px: the mean position under a softmax restricted to a window around the maximum.

    The window excludes a second, distant peak, which would move the mean to a place between the two (Zhang et al.,
    "Telling Left from Right", CVPR 2024). The window carries no gradient, the position within it does. There are no
    data-dependent shapes, so that it exports to ONNX.

    Args:
        heatmap: (B, N, h, w) scores.
        image_size: (H, W) of the image that the heatmap covers.
        temperature: divides the scores before the softmax.
        radius_cells: the window reaches this many cells to each side of the maximum.
    """
    heatmap, (h, w) = in_single(heatmap), (heatmap.shape[-2], heatmap.shape[-1])
    centres = cell_centres((h, w), image_size, heatmap).flatten(0, 1)
    scores = heatmap.flatten(2) / temperature
    peak = centres[scores.argmax(-1)]
    cell = centres.new_tensor([image_size[1] / w, image_size[0] / h])
    offset = ((centres - peak[..., None, :]) / cell).abs().amax(-1)
    weights = scores.masked_fill(offset > radius_cells + 1e-3, float("-inf")).softmax(-1)
    with without_autocast(heatmap):
        return torch.einsum("bnc,cd->bnd", weights, centres)


def window_mass(heatmap: Tensor, points: Tensor, image_size: tuple[int, int], radius_cells: float) -> Tensor:
    """Returns (B, N) in [0, 1]: the probability, under a softmax over all cells, of the window around each point.

    Args:
        heatmap: (B, N, h, w) scores.
        points: (B, N, 2) x, y, px.
        image_size: (H, W).
        radius_cells: half the window's side.
    """
    heatmap, (h, w) = in_single(heatmap), (heatmap.shape[-2], heatmap.shape[-1])
    centres = cell_centres((h, w), image_size, heatmap).flatten(0, 1)
    cell = centres.new_tensor([image_size[1] / w, image_size[0] / h])
    near = ((centres - points[..., None, :]) / cell).abs().amax(-1) <= radius_cells
    return (heatmap.flatten(2).softmax(-1) * near.to(heatmap.dtype)).sum(-1).clamp(0, 1)
