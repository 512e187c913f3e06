"""One matcher's answers with another matcher's confidence."""

import torch
from torch import Tensor

from distill.core.checks import check_query
from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_weight, image_size
from distill.core.protocols import Matcher, PairMatcher, match, match_query, on_device
from distill.core.types import Matches, PairBatch


class RescoredMatcher:
    """Answers as ``matcher`` does; the confidence comes from ``confidence_from``.

    The confidence of an answer is the second matcher's own confidence times a Gaussian of the distance between both
    answers. The confidence of a student that was trained on a teacher's labels separates the right labels from the wrong
    ones better than the teacher's own, because a student does not learn errors that differ from image to image.

    Args:
        matcher: whose points and heatmaps are returned.
        confidence_from: the second matcher.
        tolerance: standard deviation of the Gaussian, as a fraction of the image's longer side.

    Raises:
        ConfigError: for a tolerance that is not positive.
    """

    def __init__(
        self, matcher: Matcher | PairMatcher, confidence_from: Matcher | PairMatcher, tolerance: float = 0.1
    ) -> None:
        if tolerance <= 0:
            raise ConfigError(f"Expected matcher.tolerance to be positive but got {tolerance}; 0.1 is usual.")
        self.matcher, self.confidence_from, self.tolerance = matcher, confidence_from, tolerance

    @torch.no_grad()
    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.core.protocols.Matcher`.

        Raises:
            DataError: for images or points that are not as the contract says.
            ConfigError: when one of the matchers needs more than two images and points.
        """
        check_query(src_img, trg_img, src_kps)
        on_device(self.confidence_from, trg_img.device)
        answer = match_query(self.matcher, src_img, trg_img, src_kps)
        return self._rescored(answer, match_query(self.confidence_from, src_img, trg_img, src_kps), image_size(trg_img))

    @torch.no_grad()
    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        on_device(self.confidence_from, pairs.trg_img.device)
        answer = match(self.matcher, pairs)
        return self._rescored(answer, match(self.confidence_from, pairs), image_size(pairs.trg_img))

    def _rescored(self, answer: Matches, other: Matches, size: tuple[int, int]) -> Matches:
        near = gaussian_weight(answer.trg_kps, other.trg_kps, size, self.tolerance)
        return answer._replace(confidence=other.confidence * near)
