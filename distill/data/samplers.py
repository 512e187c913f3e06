"""Samplers: which process of a distributed training gets which pairs, and in which order."""

from collections.abc import Iterator
from typing import Any

import torch
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


class LabelledThenAll(DistributedSampler[Any]):
    """Shuffles labelled pairs, and from an epoch on all pairs, of which an epoch has as many as there are labelled ones.

    The data set has the labelled pairs first. From that epoch on each pair has its turn before one comes again. The order
    depends on the seed and the epoch alone.

    Args:
        pairs: all of them.
        n_labelled: how many are labelled.
        first_epoch: the one from which on all pairs are taken.
        world_size: number of processes.
        rank: of this one.
        seed: of the order.
        resumed_at: the epoch that a resumed training goes on with. Lightning starts loading processes before it counts the
            last epoch of the checkpoint.
    """

    def __init__(
        self,
        pairs: Dataset[PairBatch],
        n_labelled: int,
        first_epoch: float,
        world_size: int = 1,
        rank: int = 0,
        seed: int = 0,
        resumed_at: int = 0,
    ) -> None:
        super().__init__(range(n_labelled), world_size, rank, seed=seed)  # type: ignore[arg-type]
        self.resumed_at = self.epoch = resumed_at
        self.n_pairs, self.first_epoch = len(pairs), first_epoch  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Takes the order of that epoch, or of a later one at which the training was resumed."""
        super().set_epoch(max(epoch, self.resumed_at))

    def __iter__(self) -> Iterator[Any]:
        """Yields the numbers of pairs."""
        return super().__iter__() if self.epoch < self.first_epoch else self._turns()

    def _turns(self) -> Iterator[int]:
        start = (self.epoch - int(self.first_epoch)) * self.total_size
        orders = [self._order(n) for n in range(start // self.n_pairs, (start + self.total_size) // self.n_pairs + 1)]
        order, offset = torch.cat(orders), start % self.n_pairs
        return iter(order[offset + self.rank : offset + self.total_size : self.num_replicas].tolist())

    def _order(self, passed: int) -> torch.Tensor:
        """Returns (n_pairs,) the order of the pairs after so many passes over all of them."""
        return torch.randperm(self.n_pairs, generator=torch.Generator().manual_seed(self.seed + passed))
