"""A progress bar for trainings that are measured in steps."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from distill.system.progress import bar


class StepProgress(Callback):
    """Shows the steps that are done, all there are, the time that is left, and what was logged last.

    Args:
        description: shown before the bar.
        every: steps between two looks at what was logged, which waits for the device.
        then: what comes after the training and takes time, such as " + 2/2"; shown behind the time that is left.
    """

    def __init__(self, description: str, every: int = 20, then: str = "") -> None:
        self.description, self.every = description, every
        self._bar = bar("steps")
        self._task = self._bar.add_task(description, total=None, then=then)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the bar, where the training goes on from."""
        self._bar.reset(self._task, total=trainer.max_steps, completed=trainer.global_step)
        self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Moves the bar."""
        self._bar.update(self._task, completed=trainer.global_step)
        if trainer.global_step % self.every == 0:
            told = {k: v for k, v in trainer.progress_bar_metrics.items() if isinstance(v, int | float)}
            self._bar.update(self._task, note="".join(f", {key} {value:.4g}" for key, value in told.items()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the bar."""
        self._bar.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the bar, so that the error is seen below it."""
        self._bar.stop()
