"""Heatmaps in the small form in which answers are kept: few cells and few levels, for pictures."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from distill.core.geometry import image_size
from distill.core.types import PairBatch

SIDE = 16
"""Cells a side, at most."""
LEVELS = 64
"""How many values a cell may have."""
WHOLE = np.array((0.0, 0.0, 1.0, 1.0))
"""The frame of heatmaps that cover the target, see :class:`Heatmaps`."""


class Heatmaps(NamedTuple):
    """The heatmaps of one pair in the form in which they are kept.

    Attributes:
        cells: (N, h, w) uint8 below :data:`LEVELS`, at most :data:`SIDE` a side; none where no heatmap is kept.
        frame: (4,) where they lie in the target: left, top, width, height as fractions of its width and height. They reach
            beyond it where the matcher was given an image with padding.
    """

    cells: NDArray[np.uint8]
    frame: NDArray[np.float64]

    def of_points(self, mask: NDArray[np.bool_]) -> "Heatmaps":
        """Returns those of the points where ``mask`` (N,) is true."""
        return Heatmaps(self.cells[mask], self.frame)

    @classmethod
    def none(cls, count: int) -> "Heatmaps":
        """Returns heatmaps without cells of ``count`` points."""
        return cls(np.zeros((count, 0, 0), np.uint8), WHOLE)

    @classmethod
    def of(cls, heatmap: Tensor, pairs: PairBatch) -> "list[Heatmaps]":
        """Returns those of each pair of a batch, from scores (B, N, h, w) over ``pairs.trg_img``.

        Cells that fall together keep their highest score. Each map goes from 0 at its lowest score to 63 at its highest; a
        map of one value is 0 everywhere.
        """
        size = [min(SIDE, side) for side in heatmap.shape[-2:]]
        maps = F.adaptive_max_pool2d(heatmap.float().nan_to_num(), size)
        low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
        levels = ((maps - low) / (high - low).clamp_min(1e-12) * (LEVELS - 1)).round().byte().cpu().numpy()
        height, width = image_size(pairs.trg_img)
        found = []
        for cells, content in zip(levels, pairs.trg_content.cpu().double().numpy(), strict=True):
            x0, y0, x1, y1 = content
            found.append(cls(cells, np.array((-x0, -y0, width, height)) / (x1 - x0, y1 - y0, x1 - x0, y1 - y0)))
        return found
