"""Image pairs as Lightning wants them."""

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from distill.data.pairs import collate_pairs
from distill.errors import ConfigError
from distill.types import PairBatch


class PairDataModule(LightningDataModule):
    """Batches of training pairs in an order that the seed decides, and of validation pairs in their own order.

    Args:
        train: training pairs.
        val: validation pairs.
        batch_size: pairs at a time.
        num_workers: processes that load; 0 loads in the training process.
        seed: of the order.

    Raises:
        ConfigError: for a batch size below 1 or negative workers.
    """

    def __init__(
        self, train: Dataset[PairBatch], val: Dataset[PairBatch], batch_size: int, num_workers: int = 0, seed: int = 0
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(f"Expected batch_size >= 1 and num_workers >= 0 but got {batch_size} and {num_workers}.")
        self.train, self.val = train, val
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def train_dataloader(self) -> DataLoader[PairBatch]:
        """Shuffled."""
        order = torch.Generator().manual_seed(self.seed)
        return self._loader(self.train, shuffle=True, generator=order)

    def val_dataloader(self) -> DataLoader[PairBatch]:
        """In the data set's order."""
        return self._loader(self.val)

    def _loader(self, pairs: Dataset[PairBatch], **options) -> DataLoader[PairBatch]:
        return DataLoader(
            pairs,
            self.batch_size,
            collate_fn=collate_pairs,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )
