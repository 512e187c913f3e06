"""A second opinion: one matcher's answers, and how sure another one is of them."""

from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_weight, image_size
from distill.core.protocols import Matcher, PairMatcher, match, move_to_device_of
from distill.core.types import Matches, PairBatch


class RescoredMatcher:
    """Answers as ``matcher`` does; the confidence is the judge's.

    A judge that answers something else holds the answer to be wrong, one that answers the same vouches for it as far as
    it trusts itself: its own confidence, times a Gaussian of the distance between both answers. A student that was
    trained on a teacher's labels knows which of them are wrong far better than the teacher does, because errors that
    differ from image to image are not what it has learned.

    Args:
        matcher: whose points and heatmaps are given.
        judge: whose confidence counts.
        tolerance: standard deviation of the Gaussian, as a fraction of the image's longer side.

    Raises:
        ConfigError: for a tolerance that is not positive.
    """

    def __init__(self, matcher: Matcher | PairMatcher, judge: Matcher | PairMatcher, tolerance: float = 0.1) -> None:
        if tolerance <= 0:
            raise ConfigError(
                f"Expected matcher.tolerance of a judge to be positive but got {tolerance}; 0.1 is usual."
            )
        self.matcher, self.judge, self.tolerance = matcher, judge, tolerance

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        move_to_device_of(self.judge, pairs.trg_img)
        answer, opinion = match(self.matcher, pairs), match(self.judge, pairs)
        near = gaussian_weight(answer.trg_kps, opinion.trg_kps, image_size(pairs.trg_img), self.tolerance)
        return answer._replace(confidence=opinion.confidence * near)
