"""The trivial baseline: the same relative position in the object's box."""

import torch
from torch import Tensor

from distill.core.checks import check_query
from distill.core.geometry import gaussian_heatmap, image_size
from distill.core.types import Matches, PairBatch


class BoxRelative:
    """Maps a point by its relative position in the source box to the same position in the target box.

    It looks at no pixel, and knows the target's box, which other matchers do not. Called with images alone it takes the
    whole images as the boxes.
    """

    @torch.no_grad()
    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.core.protocols.Matcher`.

        Raises:
            DataError: for images or points that are not as the contract says.
        """
        check_query(src_img, trg_img, src_kps)
        src_bbox, trg_bbox = (_whole(image_size(image), src_kps) for image in (src_img, trg_img))
        return self._answer(src_kps, src_bbox, trg_bbox, image_size(trg_img))

    @torch.no_grad()
    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        return self._answer(pairs.src_kps, pairs.src_bbox, pairs.trg_bbox, image_size(pairs.trg_img))

    def _answer(self, points: Tensor, src_bbox: Tensor, trg_bbox: Tensor, trg_size: tuple[int, int]) -> Matches:
        """Maps points (B, N, 2) from boxes (B, 4) to boxes (B, 4) in targets of ``trg_size`` (H, W), all in px."""
        src, trg = src_bbox[:, None], trg_bbox[:, None]
        relative = (points - src[..., :2]) / (src[..., 2:] - src[..., :2]).clamp_min(1e-6)
        found = trg[..., :2] + relative * (trg[..., 2:] - trg[..., :2])
        heatmap = gaussian_heatmap(found, (16, 16), trg_size, 0.055 * max(trg_size))
        return Matches(found, torch.ones_like(found[..., 0]), heatmap)


def _whole(size: tuple[int, int], like: Tensor) -> Tensor:
    """Returns (B, 4) the boxes of whole images of ``size`` (H, W), one for each row of ``like``."""
    return like.new_tensor([0, 0, size[1], size[0]]).expand(len(like), 4)
