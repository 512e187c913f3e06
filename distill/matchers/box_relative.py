"""The trivial baseline: the same relative position in the object's box."""

import torch

from distill.core.geometry import gaussian_heatmap
from distill.core.types import Matches, PairBatch


class BoxRelative:
    """Maps a point by its relative position in the source box to the same place in the target box.

    It looks at no pixel, and is told the target's box, which the other matchers are not.
    """

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        src, trg = pairs.src_bbox[:, None], pairs.trg_bbox[:, None]
        relative = (pairs.src_kps - src[..., :2]) / (src[..., 2:] - src[..., :2]).clamp_min(1e-6)
        points = trg[..., :2] + relative * (trg[..., 2:] - trg[..., :2])
        height, width = pairs.trg_img.shape[-2:]
        heatmap = gaussian_heatmap(points, (16, 16), (height, width), 0.055 * max(height, width))
        return Matches(points, torch.ones_like(points[..., 0]), heatmap)
