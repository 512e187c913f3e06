"""Equivariance loss: an image and a warp of it, whose correspondence is known exactly."""

import math

import torch
from torch import Tensor

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres, gaussian_heatmap
from distill.losses.base import Example, dense_parts
from distill.transforms.augment import inside, recolour
from distill.transforms.warp import RandomWarp


class Equivariance:
    """Matches points of a warped source image with the original, where their true places are known; uses no label.

    The target is a Gaussian around the true place. The loss is the cross entropy of the student's distribution over the
    cells of the original, minus the target's entropy, so that its minimum is zero. The image itself is warped and
    described again; descriptor maps are not warped.

    Args:
        warp: draws warps. With ``flip`` above 0 descriptors are made the same for both sides of a symmetric object,
            which helps where one side at a time is visible, and hurts where both are.
        points: a side of the grid of query points, each moved at random within its cell.
        sigma_cells: of the target, in cells of the student's map.
        share: of the batch's pairs, at least one, whose source is warped; each costs another image.
        colour: by how much the warped image's colours change, see :func:`distill.transforms.augment.recolour`; 0 keeps them.

    Raises:
        ConfigError: for amounts that are not positive, a share outside (0, 1], or a negative ``colour``.
    """

    dense = True

    def __init__(
        self, warp: RandomWarp, points: int = 8, sigma_cells: float = 0.7, share: float = 1.0, colour: float = 0.0
    ) -> None:
        if points < 1 or sigma_cells <= 0 or not 0 < share <= 1 or not 0 <= colour < math.inf:
            raise ConfigError(
                "Expected Equivariance with points >= 1, sigma_cells > 0, share in (0, 1] and colour >= 0 but got "
                f"{points}, {sigma_cells}, {share} and {colour}."
            )
        self.warp, self.points, self.sigma_cells, self.share, self.colour = warp, points, sigma_cells, share, colour

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`."""
        student, src_map, _ = dense_parts(example)
        count = max(1, round(self.share * len(src_map)))
        images, size = example.pairs.src_img[:count], example.src_size
        warp = self.warp(count, images)
        queries = jittered_grid(self.points, count, size, images)
        truth = warp.points(queries, size)
        warped = warp.image(images)
        warped_map = student.describe(recolour(warped, self.colour) if self.colour else warped)
        heatmap = student.correlate(warped_map, src_map[:count], queries, size, size).heatmap
        cells = (heatmap.shape[-2], heatmap.shape[-1])
        target = gaussian_heatmap(truth, cells, size, self.sigma_cells * size[1] / cells[1]).flatten(2)
        target = target / target.sum(-1, keepdim=True).clamp_min(1e-12)
        loss = (torch.xlogy(target, target) - target * heatmap.flatten(2).log_softmax(-1)).sum(-1)
        mask = inside(truth, size)
        return (loss * mask).sum() / mask.sum().clamp_min(1)


def jittered_grid(side: int, count: int, size: tuple[int, int], like: Tensor) -> Tensor:
    """Returns (count, side^2, 2) x, y px: one point at random in each cell of a grid over an image of ``size``."""
    centres = cell_centres((side, side), size, like).flatten(0, 1)
    cell = centres.new_tensor([size[1] / side, size[0] / side])
    jitter = torch.rand(count, *centres.shape, device=like.device, dtype=centres.dtype) - 0.5
    return centres + jitter * cell
