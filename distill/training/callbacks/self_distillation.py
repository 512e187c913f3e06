"""The student as its own teacher."""

import copy
from collections.abc import Callable

from lightning import Callback, LightningModule, Trainer

from distill.core.errors import ConfigError
from distill.core.protocols import Matcher, PairMatcher
from distill.losses import DenseStudent
from distill.matchers.memoized import MemoizedMatcher
from distill.training.module import Distillation


class SelfDistillation(Callback):
    """From some epoch on, labels come from a copy of the student, which each validation renews.

    With an exponential moving average of the weights, the copy is the average: Lightning swaps it in for validation, and
    this callback, which has to come before the averaging one, copies the student at the validation's end.

    Args:
        teacher: makes a matcher of the copy, ``teacher(model=copy)``; one that checks the copy's answers by cycle and
            mirror gives it something to teach.
        start_epoch: how many epochs the first teacher's labels are used; 0 for a student that was trained before.

    Raises:
        ConfigError: for a negative epoch.
    """

    def __init__(self, teacher: Callable[..., Matcher | PairMatcher], start_epoch: int = 8) -> None:
        if start_epoch < 0:
            raise ConfigError(f"Expected self_distillation.start_epoch of at least 0 but got {start_epoch}.")
        self.teacher, self.start_epoch = teacher, start_epoch
        self.rounds = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises a :class:`ConfigError` for a student that cannot teach, before it is trained."""
        if not isinstance(getattr(pl_module, "student", None), DenseStudent):
            raise ConfigError(
                "Expected a student with forward_with_descriptors, describe and correlate for self_distillation but "
                f"{type(getattr(pl_module, 'student', pl_module)).__name__} has none; set self_distillation=null."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Renews the labels."""
        if not trainer.sanity_checking and trainer.current_epoch + 1 >= self.start_epoch:
            self._relabel(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Renews the labels at once of a training that is resumed after the first teacher's time, or that has none."""
        if trainer.current_epoch >= self.start_epoch:
            self._relabel(pl_module)

    def _relabel(self, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Distillation)
        pl_module.learn_from(MemoizedMatcher(self.teacher(model=copy.deepcopy(pl_module.student))))
        self.rounds += 1
