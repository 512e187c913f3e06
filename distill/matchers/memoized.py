"""A matcher that keeps its answers in memory."""

import torch
from torch import Tensor

from distill.core.checks import check_query
from distill.core.protocols import DescribesAhead, Matcher, PairMatcher, match, match_query
from distill.core.types import Matches, PairBatch
from distill.data.pairs import select_pairs

PairKey = tuple[str, str, str]
"""Fingerprints of source and target as they are given, and the points as text."""


class MemoizedMatcher:
    """Keeps answers in memory, by the content of the images and the points; heatmaps in half precision.

    Args:
        matcher: whose answers do not change.
        singly: whether pairs are matched one at a time and without padding. An answer is then the same, bit for bit,
            whatever other pairs are in its batch. Images are described a few together by a matcher that can do so, which must
            give the same.
    """

    def __init__(self, matcher: Matcher | PairMatcher, singly: bool = False) -> None:
        self.matcher, self.singly = matcher, singly
        self._answers: dict[PairKey, Matches] = {}

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
        """See :class:`distill.core.protocols.PairMatcher`. Pairs without points are not asked about."""
        keys = [pair_key(pairs, row) for row in range(len(pairs.category))]
        wanted = pairs.kps_mask.any(1).tolist()
        new = [row for row, key in enumerate(keys) if wanted[row] and key not in self._answers]
        if self.singly and new and isinstance(self.matcher, DescribesAhead):
            self.matcher.describe_ahead(select_pairs(pairs, new))
        for rows in ([row] for row in new) if self.singly else [new] if new else []:
            asked = select_pairs(pairs, rows)
            answers = match(self.matcher, _unpadded(asked) if self.singly else asked)
            for place, row in enumerate(rows):
                mask = pairs.kps_mask[row]
                kept = (field[place] if self.singly else field[place][mask] for field in answers)
                points, confidence, heatmap = (value.cpu() for value in kept)
                self._answers[keys[row]] = Matches(points, confidence, heatmap.half())
        return self._joined(pairs, {row: self._answers[key] for row, key in enumerate(keys) if wanted[row]})

    def _joined(self, pairs: PairBatch, answers: dict[int, Matches]) -> Matches:
        """Puts the answers (n, ...) of pairs, by their row, in the places of their points; zero elsewhere."""
        like, (b, n) = pairs.src_kps, pairs.kps_mask.shape
        cells = next((answer.heatmap.shape[-2:] for answer in answers.values()), (1, 1))
        joined = Matches(like.new_zeros(b, n, 2), like.new_zeros(b, n), like.new_zeros(b, n, *cells))
        for row, answer in answers.items():
            for field, value in zip(joined, answer, strict=True):
                field[row, pairs.kps_mask[row]] = value.to(like)
        return joined


def pair_key(pairs: PairBatch, row: int) -> PairKey:
    """Returns what tells a pair of a batch from others: the content of its images, and its points to 1/100 px."""
    points = pairs.src_kps[row][pairs.kps_mask[row]].mul(100).round().int()
    return pairs.src_hash[row], pairs.trg_hash[row], str(points.tolist())


def _unpadded(pair: PairBatch) -> PairBatch:
    """Returns one pair with its existing points only."""
    mask = pair.kps_mask[0]
    names = ("src_kps", "trg_kps", "kps_mask", "kps_id")
    return pair._replace(**{name: getattr(pair, name)[:, mask] for name in names})
