"""Equal buffers in all processes of a distributed training."""

from lightning import Callback, LightningModule, Trainer
from torch import distributed


class SameBuffers(Callback):
    """Gives all processes the first one's buffers before validation.

    Averages as of batch normalisation are each process's own while it trains. The first one's are kept, and so these
    are what must be validated.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sends them."""
        if distributed.is_available() and distributed.is_initialized() and trainer.world_size > 1:
            for buffer in pl_module.buffers():
                distributed.broadcast(buffer, 0)
