"""Equal buffers in all processes of a distributed training."""

from lightning import Callback, LightningModule, Trainer
from torch import distributed


class SameBuffers(Callback):
    """Copies the buffers of the first process to all others before validation.

    Running averages, as of batch normalisation, differ between processes during training. Checkpoints hold those of the
    first process, so validation has to use them too. This callback comes after one that averages weights, which swaps in its
    own buffers at the same time.
    """

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Broadcasts the buffers from process 0."""
        if distributed.is_available() and distributed.is_initialized() and trainer.world_size > 1:
            for buffer in pl_module.buffers():
                distributed.broadcast(buffer, 0)
