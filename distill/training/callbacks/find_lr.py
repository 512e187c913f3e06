"""The search for a learning rate, with the same display as all else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import lr_finder

from distill.data.datamodule import PairDataModule
from distill.system.progress import bar


class FindLearningRate(LearningRateFinder):
    """Looks for the peak learning rate of a new training, which then starts as with ``lr=`` the one that was found.

    This is Lightning's :class:`~lightning.pytorch.callbacks.LearningRateFinder`, which tries one rate at a time for all parameters. Four
    things differ. The rate is that of :func:`steepest`, and is told. The schedule is made anew: Lightning's change of the present rate
    ends with the schedule's first step. The order of pairs is that of the first epoch, not of the one after the checkpoint that is
    restored. The bar is not of tqdm, which fills the log of a batch job.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches, except where a training goes on: its checkpoint has the rates that were found."""
        if trainer.ckpt_path is None:
            super().on_fit_start(trainer, pl_module)

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
        if self.optimal_lr is not None:
            pl_module.lr = steepest(self.optimal_lr.results["lr"], self.optimal_lr.results["loss"])
            if trainer.is_global_zero:
                print(f"find_lr: lr={pl_module.lr:.3g}")
        data = trainer.datamodule
        if isinstance(data, PairDataModule):
            data.resumed_at = 0
        trainer.fit_loop._combined_loader = None  # is made again, in the order of the first epoch
        trainer.strategy.setup_optimizers(trainer)


def steepest(rates: Sequence[float], losses: Sequence[float], skip: int = 10) -> float:
    """Returns the learning rate at which the loss falls fastest per factor of the rate.

    Lightning's own suggestion divides by differences of the rates, which are 1e-8 at the beginning: noise there decides it.

    Args:
        rates: tried one after the other, in ascending order.
        losses: smoothed, one for each.
        skip: how many are left out at the beginning, where the smoothed loss still settles; the last is left out, too.
    """
    first = min(skip, max(0, len(rates) - 3))
    tried, found = (np.asarray(values, np.float64)[first:-1] for values in (rates, losses))
    slopes = np.gradient(found, np.log(tried))
    return float(tried[np.nanargmin(slopes)])


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
