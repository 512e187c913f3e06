"""What a filter makes of the labels of a data set: the confidence of each, found once, by all processes together."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset

from distill.core.errors import LabelError
from distill.core.protocols import Benchmark, Matcher, PairMatcher, match
from distill.core.types import Matches, PairBatch
from distill.data.pairs import collate_pairs, to_device
from distill.data.samplers import WholeBatches
from distill.matchers.memoized import PairKey, pair_key
from distill.system.progress import track


class FilteredConfidence:
    """Puts the confidences that a filter found in place of the teacher's.

    Args:
        found: the key of each pair, see :func:`distill.matchers.memoized.pair_key`, and the confidences (N,) of its points.
    """

    def __init__(self, found: Sequence[tuple[PairKey, Tensor]]) -> None:
        self.by_pair = dict(found)
        self.all = torch.cat([torch.zeros(0), *(confidence for _, confidence in found)])
        """(R,), the confidences of all labels, in the order of the pairs."""

    def __call__(self, pairs: PairBatch, label: Matches) -> Matches:
        """Returns the labels of a batch with the filter's confidences; pairs that it has not seen keep theirs."""
        confidence = label.confidence.clone()
        for row, mask in enumerate(pairs.kps_mask):
            found = self.by_pair.get(pair_key(pairs, row))
            if found is not None:
                confidence[row, mask] = found.to(confidence)
        return label._replace(confidence=confidence)


def filter_benchmark(
    labeller: Matcher | PairMatcher, benchmark: Benchmark, batch_size: int, device: str, progress: bool = True
) -> FilteredConfidence:
    """Returns the confidences of all labels of ``benchmark``.

    The processes of a group share the batches, which are those that one process would make, and exchange what they found.

    Args:
        labeller: makes labels and weighs them, see :class:`distill.labels.filters.Filtered`.
        benchmark: whose labels are weighed.
        batch_size: pairs at a time.
        device: where the images are sent.
        progress: whether to draw a bar.

    Raises:
        LabelError: when all confidences are zero, so that there is nothing to learn from.
    """
    shares = _exchanged(_confidences(labeller, benchmark, batch_size, device, progress))
    numbered = {number: found for share in shares for number, found in share.items()}
    filtered = FilteredConfidence([numbered[number] for number in sorted(numbered)])
    if not (filtered.all > 0).any():
        raise LabelError(
            f"Expected labels to learn from but the filter took out all {len(filtered.all)}; loosen filter.criteria, or "
            "choose filter=none."
        )
    return filtered


Share = dict[int, tuple[PairKey, Tensor]]
"""The key and the confidences of pairs, by their number."""


def _confidences(
    labeller: Matcher | PairMatcher, benchmark: Benchmark, batch_size: int, device: str, progress: bool
) -> Share:
    """Returns what the labeller finds of this process's share of the pairs."""
    data = cast(Dataset, benchmark)
    mine, found = WholeBatches(data, batch_size, *_place()), Share()
    numbers = iter(mine.numbers)
    for pairs in track(
        DataLoader(data, batch_size, sampler=mine, collate_fn=collate_pairs), "filter labels", enabled=progress
    ):
        confidence = match(labeller, to_device(pairs, device)).confidence.float().cpu()
        for row, mask in enumerate(pairs.kps_mask):
            found[next(numbers)] = pair_key(pairs, row), confidence[row, mask]
    return found


def _place() -> tuple[int, int]:
    """Returns how many processes the group has, and the number of this one."""
    many = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_world_size(), distributed.get_rank()) if many else (1, 0)


def _exchanged(share: Share) -> list[Share]:
    """Returns the shares of all processes of the group; this one's where there is no other."""
    processes, _ = _place()
    if processes == 1:
        return [share]
    shares: list[Share] = [Share() for _ in range(processes)]
    distributed.all_gather_object(shares, share)
    return shares
