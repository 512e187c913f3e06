"""A matcher that is asked about each pair once."""

import torch

from distill.core.protocols import Matcher, PairMatcher, match
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
        """How many pairs are known."""
        return len(self._answers)

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        keys = [self._key(pairs, row) for row in range(len(pairs.category))]
        new = [row for row, key in enumerate(keys) if key not in self._answers]
        if new:
            with torch.no_grad():
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
