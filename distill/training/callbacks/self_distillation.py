"""Labels from a copy of the student itself."""

import copy
from collections.abc import Callable
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from distill.core.errors import ConfigError, WeightsError, in_one_line
from distill.core.protocols import Matcher, PairMatcher
from distill.losses import DenseStudent
from distill.matchers.memoized import MemoizedMatcher
from distill.training.module import Distillation


class SelfDistillation(Callback):
    """From some epoch on, labels come from a copy of the student, which each validation renews.

    With an exponential moving average of the weights, the copy has the averaged weights: Lightning swaps them in for
    validation, and this callback, which has to come before the averaging one, copies the student at the validation's end.
    The copy's weights are part of a checkpoint, so that a resumed training goes on with the same labels.

    Args:
        teacher: makes a matcher of the copy, ``teacher(model=copy)``, such as :class:`student.FeatureTeacher`, whose
            answers the student can learn something from.
        start_epoch: how many epochs the first teacher's labels are used; 0 for a student that was trained before.

    Raises:
        ConfigError: for a negative epoch. See also :meth:`check`.
    """

    def __init__(self, teacher: Callable[..., Matcher | PairMatcher], start_epoch: int = 8) -> None:
        if start_epoch < 0:
            raise ConfigError(f"Expected self_distillation.start_epoch of at least 0 but got {start_epoch}.")
        self.teacher, self.start_epoch = teacher, start_epoch
        self.rounds = 0
        self._weights: dict[str, Tensor] | None = None

    def first_epoch(self, trainer: Trainer) -> int:
        """Returns the first epoch whose labels are surely the student's own: one after a validation, or the first of all.

        Raises:
            ConfigError: where validations are counted in steps, so that no epoch is sure to follow one.
        """
        every = trainer.check_val_every_n_epoch
        if every is None:
            raise ConfigError(
                "Expected a number for trainer.check_val_every_n_epoch, after which pairs without labels are taken, but got null; "
                "give one, or set train.unlabelled=0."
            )
        every = every or 1  # 0 is refused by distill.training.checks
        return -(-self.start_epoch // every) * every

    def state_dict(self) -> dict[str, Any]:
        """Returns the copy's weights, None before there is one, and how often it was renewed."""
        return {"weights": self._weights, "rounds": self.rounds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned.

        Raises:
            WeightsError: when it is something else.
        """
        weights, rounds = state_dict.get("weights"), state_dict.get("rounds")
        whole = weights is None or (
            isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())
        )
        if not (whole and isinstance(rounds, int)):
            raise WeightsError("Expected a copy of the student in the checkpoint but found something else; remove it.")
        self._weights, self.rounds = weights, rounds

    def check(self, student: nn.Module, size: int) -> None:
        """Raises a :class:`ConfigError` for a student that cannot make labels, or a teacher that cannot be made of it.

        Args:
            student: to be trained.
            size: side of the training images, px; a teacher with a method ``check_size`` is asked whether it takes them.
        """
        if not callable(self.teacher):
            raise ConfigError(
                f"Expected self_distillation.teacher to describe what makes labels but got {self.teacher!r}; "
                "self_distillation=null leaves it out."
            )
        self._check_student(student)
        try:
            made = self.teacher(model=copy.deepcopy(student))
        except TypeError as error:  # an argument that it does not take, or not of this type
            raise ConfigError(
                f"Expected settings in self_distillation.teacher that it takes but got: {in_one_line(error)}; correct them."
            ) from error
        check_size = getattr(made, "check_size", None)
        if callable(check_size):
            check_size(size)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises a :class:`ConfigError` for a student that cannot make labels, before it is trained."""
        assert isinstance(pl_module, Distillation)
        self._check_student(pl_module.student)

    def _check_student(self, student: nn.Module) -> None:
        if not isinstance(student, DenseStudent):
            raise ConfigError(
                "Expected a student with forward_with_descriptors, describe and correlate for self_distillation but "
                f"{type(student).__name__} has none; set self_distillation=null."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Renews the labels."""
        if not trainer.sanity_checking and trainer.current_epoch + 1 >= self.start_epoch:
            self._weights = None
            self._relabel(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes labels with the copy of the checkpoint, or, where the first teacher's are never used, with the student."""
        if self._weights is not None or self.start_epoch == 0:
            self._relabel(pl_module)

    def _relabel(self, pl_module: LightningModule) -> None:
        """Takes labels from a copy of the student, with the weights of the checkpoint where there are some.

        Raises:
            WeightsError: when these are another network's.
        """
        assert isinstance(pl_module, Distillation)
        model = copy.deepcopy(pl_module.student)
        if self._weights is not None:
            try:
                model.load_state_dict(self._weights)
            except RuntimeError as error:
                reason = in_one_line(error)
                raise WeightsError(
                    f"Expected a copy of this student in the checkpoint but it is another's ({reason}); remove it."
                ) from error
        else:
            self.rounds += 1
        self._weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        # One at a time: labels that are made again after a resumption equal those made before, whatever the batches were.
        pl_module.learn_from(MemoizedMatcher(self.teacher(model=model), singly=True))
