"""Running a matcher over a benchmark, timed."""

import time
from collections.abc import Callable, Iterator, Sized
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.core.checks import check_confidence
from distill.core.errors import DataError
from distill.core.protocols import Benchmark, Matcher, PairMatcher, match
from distill.core.types import Matches, PairBatch
from distill.data.pairs import collate_pairs, to_device
from distill.system.progress import PartsProgress, track


class Asked(NamedTuple):
    """A batch of pairs with a matcher's answers, on the CPU.

    Attributes:
        numbers: of the pairs in the data set.
        pairs: the batch.
        known: (B, N) bool, which points count.
        answer: to all points; what stands outside ``pairs.kps_mask`` has no meaning.
        seconds: that the answer took.
    """

    numbers: range
    pairs: PairBatch
    known: Tensor
    answer: Matches
    seconds: float


def ask(
    matcher: Matcher | PairMatcher,
    benchmark: Benchmark,
    name: str,
    known: Callable[[PairBatch], Tensor],
    batch_size: int = 8,
    device: str = "cpu",
    progress: bool | PartsProgress = True,
) -> Iterator[Asked]:
    """Yields the answers to all batches that have a point, whether it counts or not.

    Args:
        matcher: on ``device`` already.
        benchmark: the pairs.
        name: of the matcher, for errors and the bar.
        known: says which points (B, N) of a batch count.
        batch_size: pairs at a time.
        device: where the pairs are sent.
        progress: whether to draw a bar; or a display of several parts, the next of which this is.

    Raises:
        DataError: when the matcher answers with NaN or infinity.
    """
    loader = DataLoader(cast(Dataset, benchmark), batch_size, collate_fn=collate_pairs)
    first = 0
    n_pairs = len(cast(Sized, benchmark))
    for pairs in track(loader, f"evaluate {name}", progress, "pairs", n_pairs, lambda pairs: len(pairs.category)):
        numbers, first = range(first, first + len(pairs.category)), first + len(pairs.category)
        if pairs.kps_mask.any():  # else what is asked, and kept, would depend on what falls into a batch
            yield Asked(numbers, pairs, known(pairs), *timed_answer(matcher, pairs, name, device))


def timed_answer(
    matcher: Matcher | PairMatcher, pairs: PairBatch, name: str, device: str = "cpu"
) -> tuple[Matches, float]:
    """Returns the answer to all points on the CPU, and the seconds that it took.

    Raises:
        DataError: when it holds NaN or infinity, or confidences outside of [0, 1].
    """
    start = time.perf_counter()
    with torch.no_grad():
        answer = Matches(*(field.cpu() for field in match(matcher, to_device(pairs, device))))
    seconds = time.perf_counter() - start
    for what, values in (("points", answer.trg_kps), ("confidences", answer.confidence)):
        if not torch.isfinite(values[pairs.kps_mask]).all():
            raise DataError(f"Expected finite {what} from {name} but got NaN or infinity; check its weights.")
    check_confidence(answer.confidence[pairs.kps_mask], name)
    return answer, seconds
