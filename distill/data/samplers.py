"""Samplers: which process of a distributed training gets which pairs, and in which order."""

from collections.abc import Iterator

from torch.utils.data import Dataset, DistributedSampler

from distill.core.types import PairBatch


class WholeBatches(DistributedSampler[PairBatch]):
    """Shares whole batches among processes, in the data set's order, each pair once.

    Lightning's own sampler shares pairs and repeats some until all processes have equally many. This one makes the
    batches that one process would make, so that validation gives the same figures on any number of processes.

    Args:
        pairs: to validate on.
        batch_size: of the loader, which must not shuffle.
        world_size: number of processes.
        rank: of this one.
    """

    def __init__(self, pairs: Dataset[PairBatch], batch_size: int, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(pairs, num_replicas=world_size, rank=rank, shuffle=False)
        numbers = range(len(pairs))  # type: ignore[arg-type]
        starts = range(rank * batch_size, len(numbers), world_size * batch_size)
        self.numbers = [number for start in starts for number in numbers[start : start + batch_size]]

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        """Yields the numbers of pairs."""
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
