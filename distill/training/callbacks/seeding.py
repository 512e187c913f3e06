"""Random numbers that do not depend on whether a training was resumed."""

from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer, seed_everything


class BatchSeed(Callback):
    """Seeds all generators anew before every batch, from the seed, the epoch, the batch and the process.

    What is random in a step then depends on nothing that happened before it, so that a training that was killed and
    goes on from a checkpoint draws what it would have drawn. Each validation draws the same, whatever the epoch, so that
    figures of two epochs differ by the weights alone.

    Args:
        seed: of the training.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seeds Python's, NumPy's and torch's generators."""
        _seed_all(self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The same, for a validation, whose batches are the same on any number of processes."""
        _seed_all(self.seed, batch_idx * trainer.world_size + trainer.global_rank)


def _seed_all(*place: int) -> None:
    seed_everything(int(np.random.SeedSequence(place).generate_state(1)[0]), verbose=False)
