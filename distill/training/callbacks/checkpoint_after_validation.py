"""Checkpoints of a training that is validated every so many steps."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class CheckpointAfterValidation(ModelCheckpoint):
    """Where a step is followed by a validation, the checkpoint is written after it.

    Lightning writes it before, and takes the validation for done when the training goes on from it: a training that is stopped
    during a validation would never make that one.

    Args:
        validate_every: steps between validations, the ``val_check_interval`` of the trainer; None for a training without any.
        kwargs: those of Lightning's, ``every_n_train_steps`` among them.
    """

    def __init__(self, validate_every: int | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.validate_every = validate_every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See Lightning's."""
        if self.validate_every is None or trainer.global_step % self.validate_every:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what the step before the validation would have written."""
        super().on_train_batch_end(trainer, pl_module, None, None, 0)
