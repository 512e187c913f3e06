"""A matcher that keeps its answers in memory."""

import torch
from torch import Tensor

from distill.core.checks import check_query
from distill.core.protocols import Matcher, PairMatcher, match, match_query
from distill.core.types import Matches, PairBatch
from distill.data.pairs import select_pairs


class MemoizedMatcher:
    """Keeps answers in memory, by the content of the images and the points; heatmaps in half precision.

    Args:
        matcher: whose answers do not change.
    """

    def __init__(self, matcher: Matcher | PairMatcher) -> None:
        self.matcher = matcher
        self._answers: dict[tuple[str, str, str], Matches] = {}

    def __len__(self) -> int:
        """How many pairs have been answered."""
        return len(self._answers)

    @torch.no_grad()
    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.core.protocols.Matcher`. Images alone have no fingerprints: the answer is not kept.

        Raises:
            DataError: for images or points that are not as the contract says.
            ConfigError: when the matcher needs more than two images and points.
        """
        check_query(src_img, trg_img, src_kps)
        return match_query(self.matcher, src_img, trg_img, src_kps)

    @torch.no_grad()
    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        keys = [self._key(pairs, row) for row in range(len(pairs.category))]
        new = [row for row, key in enumerate(keys) if key not in self._answers]
        if new:
            answers = match(self.matcher, select_pairs(pairs, new))
            for place, row in enumerate(new):
                points, confidence, heatmap = (field[place][pairs.kps_mask[row]].cpu() for field in answers)
                self._answers[keys[row]] = Matches(points, confidence, heatmap.half())
        return self._joined(pairs, [self._answers[key] for key in keys])

    def _joined(self, pairs: PairBatch, rows: list[Matches]) -> Matches:
        """Puts answers (n, ...) of each pair in the places of its points; zero elsewhere."""
        like, (b, n) = pairs.src_kps, pairs.kps_mask.shape
        joined = Matches(
            like.new_zeros(b, n, 2), like.new_zeros(b, n), like.new_zeros(b, n, *rows[0].heatmap.shape[-2:])
        )
        for row, answer in enumerate(rows):
            for field, value in zip(joined, answer, strict=True):
                field[row, pairs.kps_mask[row]] = value.to(like)
        return joined

    @staticmethod
    def _key(pairs: PairBatch, row: int) -> tuple[str, str, str]:
        points = pairs.src_kps[row][pairs.kps_mask[row]].mul(100).round().int()
        return pairs.src_hash[row], pairs.trg_hash[row], str(points.tolist())
