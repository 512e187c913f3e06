"""The search for a learning rate, with the same display as all else."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import lr_finder

from distill.system.progress import bar


class FindLearningRate(LearningRateFinder):
    """Lightning's :class:`~lightning.pytorch.callbacks.LearningRateFinder` without the bar of tqdm, which fills the log of a batch job."""

    def lr_find(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See Lightning's, which takes no other bar than the name ``tqdm`` of its module."""
        shown = bar("steps")
        theirs = lr_finder.tqdm
        lr_finder.tqdm = lambda desc, total: _Steps(shown, total, trainer.is_global_zero)
        try:
            super().lr_find(trainer, pl_module)
        finally:
            lr_finder.tqdm = theirs
            shown.stop()


class _Steps:
    """What Lightning calls of a bar of tqdm."""

    def __init__(self, shown: Any, total: int, visible: bool) -> None:
        self.shown, self.task = shown, shown.add_task("find_lr", total=total, then=" + training", visible=visible)
        if visible:
            shown.start()

    def update(self) -> None:
        """Counts a step."""
        self.shown.advance(self.task)

    def close(self) -> None:
        """Ends the bar."""
        self.shown.stop()
