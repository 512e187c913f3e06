"""The progress of a training, over all its epochs."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from distill.system.progress import bar


class TrainingProgress(ProgressBar):
    """Shows the epoch, counted from 1, the steps of the whole training, the loss and the time that is left.

    Args:
        every: steps between two looks at the loss, which wait for the device.
        then: what comes after the training and takes time, such as " + test"; shown behind the time that is left.
    """

    def __init__(self, every: int = 10, then: str = "") -> None:
        super().__init__()
        self.every, self.then = every, then
        self._bar = bar("steps")
        self._task: Any = None
        self._enabled = True

    def disable(self) -> None:
        """See Lightning's; all processes but the first are silent."""
        self._enabled = False

    def enable(self) -> None:
        """See Lightning's."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the bar where the training goes on from."""
        if not self._enabled:
            return
        total = trainer.estimated_stepping_batches
        self._task = self._bar.add_task("train", total=total, then=self.then)
        self._bar.reset(self._task, total=total, completed=trainer.global_step)
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Moves the bar."""
        if self._task is None:
            return
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        epoch = f"train, epoch {trainer.current_epoch + 1}{last}"
        self._bar.update(self._task, completed=trainer.global_step, description=epoch)
        loss = trainer.callback_metrics.get("train/loss")
        if loss is not None and trainer.global_step % self.every == 0:
            self._bar.update(self._task, note=f", loss {float(loss):.3f}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the bar."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the bar, so that the error is seen below it."""
        self._bar.stop()
