"""The Lightning data module of training and validation pairs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from distill.core.errors import ConfigError
from distill.core.types import PairBatch
from distill.core.workers import quiet_worker
from distill.data.joined_pairs import JoinedPairs
from distill.data.pairs import collate_pairs
from distill.data.samplers import LabelledThenAll, WholeBatches
from distill.system.environment import check_workers

Collate = Callable[[Sequence[PairBatch]], Any]
"""Makes a batch of pairs."""


class PairDataModule(LightningDataModule):
    """Batches of training pairs in an order that the seed decides, and of validation pairs in their own order.

    The order of an epoch depends on the seed and the epoch alone, so that a resumed training goes on as it would have.
    Several processes share the pairs: training pairs evenly, validation batches as one process would make them. Memory
    is pinned where batches go to a GPU.

    Args:
        train: training pairs.
        val: validation pairs.
        batch_size: pairs at a time.
        num_workers: processes that load; 0 loads in the training process.
        seed: of the order.
        train_collate: makes a batch of training pairs, in the loading processes.
        val_collate: the same for validation pairs.
        unlabelled: further training pairs, and the epoch from which on they take part; None for none.

    Raises:
        ConfigError: for a batch size below 1, negative workers, or more of them than the machine can use.
    """

    def __init__(
        self,
        train: Dataset[PairBatch],
        val: Dataset[PairBatch],
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        train_collate: Collate = collate_pairs,
        val_collate: Collate = collate_pairs,
        unlabelled: tuple[Dataset[PairBatch], int] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"Expected batch_size >= 1 and num_workers >= 0 but got {batch_size} and {num_workers}.")
        check_workers(num_workers)
        self.train, self.val = train, val
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_collate, self.val_collate = train_collate, val_collate
        self.unlabelled, self.resumed_at = unlabelled, 0

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch that a resumed training goes on with."""
        return {"resumed_at": self.trainer.current_epoch + 1 if self.trainer is not None else 0}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Takes over what :meth:`state_dict` returned."""
        self.resumed_at = int(state_dict["resumed_at"])

    def train_dataloader(self) -> DataLoader[PairBatch]:
        """Returns a loader of training pairs, shuffled by the seed and the epoch."""
        further, first_epoch = self.unlabelled or (None, math.inf)
        pairs = self.train if further is None else JoinedPairs([self.train, further])  # type: ignore[list-item]
        n_labelled: int = len(self.train)  # type: ignore[arg-type]
        sampler = LabelledThenAll(pairs, n_labelled, first_epoch, *self._place(), self.seed, self.resumed_at)
        return self._loader(pairs, sampler, self.train_collate)

    def val_dataloader(self) -> DataLoader[PairBatch]:
        """Returns a loader of validation pairs, in the data set's order."""
        sampler = WholeBatches(self.val, self.batch_size, *self._place())
        return self._loader(self.val, sampler, self.val_collate)

    def _place(self) -> tuple[int, int]:
        """Returns how many processes there are and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _loader(
        self, pairs: Dataset[PairBatch], sampler: DistributedSampler[Any], collate: Collate
    ) -> DataLoader[PairBatch]:
        return DataLoader(
            pairs,
            self.batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._on_gpu(),
            worker_init_fn=quiet_worker,
        )
