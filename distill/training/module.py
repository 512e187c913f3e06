"""Training a student on a teacher's labels."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric

from distill.core.checks import check_answer
from distill.core.errors import ConfigError
from distill.core.protocols import Matcher, PairMatcher, match
from distill.core.schedules import drop_length
from distill.core.types import Matches, PairBatch
from distill.data.pairs import to_original
from distill.labels.curriculum import Curriculum
from distill.labels.filtered import FilteredConfidence
from distill.labels.labelled_pairs import LabelledPairs, split_labelled
from distill.labels.truth import FewShotTruth
from distill.losses import DenseStudent, Example, Loss
from distill.metrics.pck import PCK
from distill.training.callbacks.nan_check import check_finite, check_finite_gradients, check_gradients_reach
from distill.training.optimiser import OptimizerName, build_optimizer
from distill.transforms.augment import Augment

TOTAL = "loss"
"""Name of the weighted sum among the losses."""
STEPS_PER_EPOCH = "steps_per_epoch"
"""Name of the optimiser's steps in an epoch, in a checkpoint."""


class UnregisteredReference:
    """Holds an object that is used in training but is no part of the module: in no checkpoint, and not copied with it.

    Args:
        content: the object.
    """

    def __init__(self, content: Any) -> None:
        self.content = content

    def __deepcopy__(self, memo: dict) -> "UnregisteredReference":
        return self


class Distillation(LightningModule):
    """Trains a student matcher to give its teacher's answers.

    The teacher is no child of this module: its weights are in no checkpoint, and no optimiser sees them. Ground truth
    is read for the metrics only, except for the pairs of ``truth``.

    Args:
        student: the module that is trained; called as a matcher.
        teacher: what makes the labels.
        losses: by name.
        weights: of the losses, by the same names.
        augment: what is done to labelled training pairs; None for nothing.
        lr: peak learning rate.
        weight_decay: as a fraction of the rate.
        backbone_lr: the backbone's peak rate, as a fraction of ``lr``.
        warmup: share of the steps until the peak.
        curriculum: which labels count when; None for all, always.
        truth: annotation of some training pairs, which goes before their labels; None for none.
        optimizer: "adamw" or "muon", see :func:`distill.training.optimiser.build_optimizer`.

    Raises:
        ConfigError: when a loss has no weight or a negative one, when there is none or all weights are 0, when a loss or
            the student cannot be called, or when a loss needs descriptors that the student has not.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Matcher | PairMatcher,
        losses: Mapping[str, Loss],
        weights: Mapping[str, float],
        augment: Augment | None,
        lr: float,
        weight_decay: float,
        backbone_lr: float = 1.0,
        warmup: float = 0.1,
        curriculum: Curriculum | None = None,
        truth: FewShotTruth | None = None,
        optimizer: OptimizerName = "adamw",
    ) -> None:
        super().__init__()
        losses = {name: loss for name, loss in losses.items() if loss is not None}
        weights = {name: weight for name, weight in weights.items() if weight is not None}
        _check_losses(losses, weights)
        _check_student(student, losses)
        self.dense = isinstance(student, DenseStudent)
        self.student = student
        self._teacher, self._labeller = UnregisteredReference(teacher), UnregisteredReference(teacher)
        self.losses, self.weights = losses, weights
        self.augment, self.curriculum, self.truth = augment, curriculum, truth
        self.filtered: FilteredConfidence | None = None  # of the teacher's labels, where a filter weighs them
        self.optimizer_name: OptimizerName = optimizer
        self.lr, self.weight_decay, self.backbone_lr, self.warmup = lr, weight_decay, backbone_lr, warmup
        self.pck_truth, self.pck_teacher = PCK((0.05, 0.10)), PCK((0.05, 0.10))
        self.val_losses = nn.ModuleDict({name: MeanMetric() for name in (*losses, TOTAL)})

    @property
    def teacher(self) -> Matcher | PairMatcher:
        """What the student is validated against."""
        return self._teacher.content

    @property
    def labeller(self) -> Matcher | PairMatcher:
        """What makes the labels that the student is trained on: the teacher, unless :meth:`learn_from` was called."""
        return self._labeller.content

    def learn_from(self, labeller: Matcher | PairMatcher) -> None:
        """Takes training labels from ``labeller`` from now on. A setter would register a network as a part of this one."""
        self._labeller.content = labeller

    def training_step(self, batch: PairBatch | LabelledPairs, batch_idx: int) -> Tensor:
        """Returns the weighted sum of the losses on a batch, a scalar.

        Labels that come with the batch are used as long as the labeller is the teacher; otherwise the labeller is asked.
        Pairs without a common point add nothing to losses on points. A batch of such pairs only is not logged.

        Raises:
            DataError: when a loss is no scalar, NaN or infinite, or cut off from the student, or the student's answer has other
                shapes than the contract's.
        """
        pairs, label = split_labelled(batch)
        with torch.no_grad():
            if label is None or self.labeller is not self.teacher:
                label = match(self.labeller, pairs if self.truth is None else self.truth.without_known(pairs))
            if self.labeller is self.teacher:
                label = self._weighed(pairs, label)
            if self.truth is not None:
                label = self.truth(pairs, label)
            if self.augment is not None:
                pairs, label = self.augment(pairs, label)
        terms, _ = self._losses(pairs, label, batch_idx)
        check_gradients_reach(terms, self.weights)
        if pairs.kps_mask.any():
            self.log_dict({f"train/{name}": term for name, term in terms.items()}, batch_size=len(pairs.category))
        return terms[TOTAL]

    def validation_step(self, batch: PairBatch | LabelledPairs, batch_idx: int) -> None:
        """Scores the student against ground truth and against the teacher's labels, both as PCK per image."""
        pairs, label = split_labelled(batch)
        label = match(self.teacher, pairs) if label is None else label
        terms, points = self._losses(pairs, label, batch_idx)
        for name, term in terms.items():
            self._val_loss(name).update(term.detach(), pairs.kps_mask.any(1).sum())
        predicted = to_original(points, pairs)
        self.pck_truth.update(predicted, to_original(pairs.trg_kps, pairs), pairs.kps_mask, pairs.pck_threshold)
        self.pck_teacher.update(predicted, to_original(label.trg_kps, pairs), pairs.kps_mask, pairs.pck_threshold)

    def on_validation_epoch_end(self) -> None:
        """Logs the losses, ``val/pck@0.10`` (ground truth) and ``val/pck_teacher@0.10`` in percent, over all processes.

        A loss is the mean over batches, weighted by their pairs with a common point; without any such pair it is left out.
        """
        for name in self.val_losses:
            loss = self._val_loss(name).compute()
            if not torch.isnan(loss):
                self.log(f"val/{name}", loss, sync_dist=False)
        scores = {"pck": self.pck_truth, "pck_teacher": self.pck_teacher}
        for name, metric in scores.items():
            for alpha, value in metric.compute()["image"].items():
                self.log(f"val/{name}@{alpha}", value, prog_bar=alpha == "0.10", sync_dist=False)
        with torch.inference_mode(False):  # the new states are added to in place, by a training too
            for state in (*scores.values(), *map(self._val_loss, self.val_losses)):
                state.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the steps of an epoch, for :func:`distill.training.checks.check_fit` of a training that goes on."""
        batches = self.trainer.num_training_batches
        if math.isfinite(batches):  # it is not before a training has its data
            checkpoint[STEPS_PER_EPOCH] = math.ceil(batches / self.trainer.accumulate_grad_batches)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the length of the schedule to this training, which may have more epochs than the checkpoint's had."""
        drop_length(checkpoint)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Checks the gradients, except where a gradient scaler leaves out the steps whose gradients overflow.

        Raises:
            DataError: when a gradient is NaN or infinite.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            check_finite_gradients(self.student, self.trainer.global_step)

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimiser under a warm-up and a cosine over the trainer's steps."""
        steps, rates = int(self.trainer.estimated_stepping_batches), (self.lr, self.backbone_lr)
        return build_optimizer(self.student, self.optimizer_name, steps, *rates, self.weight_decay, self.warmup)

    def progress(self) -> float:
        """Returns the share of the training that is over, in [0, 1]."""
        return min(1.0, self.trainer.global_step / max(1.0, float(self.trainer.estimated_stepping_batches)))

    def _weighed(self, pairs: PairBatch, label: Matches) -> Matches:
        """Returns the teacher's labels with the filter's confidences, those that the curriculum does not count yet at zero.

        Labels of another labeller have confidences of another scale, for which neither was calibrated.
        """
        label = label if self.filtered is None else self.filtered(pairs, label)
        return label if self.curriculum is None else self.curriculum(label, self.progress())

    def _val_loss(self, name: str) -> MeanMetric:
        return cast(MeanMetric, self.val_losses[name])

    def _losses(self, batch: PairBatch, label: Matches, batch_idx: int) -> tuple[dict[str, Tensor], Tensor]:
        """Returns each loss by name and their weighted sum as "loss", and the student's points (B, N, 2)."""
        example = self._example(batch, label)
        terms = {name: loss(example) for name, loss in self.losses.items()}
        check_finite(terms, self.losses, example, batch_idx)
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return terms | {TOTAL: total}, example.prediction.trg_kps

    def _example(self, batch: PairBatch, label: Matches) -> Example:
        query, name = (batch.src_img, batch.trg_img, batch.src_kps), type(self.student).__name__
        if not self.dense:
            return Example(batch, label, check_answer(self.student(*query), batch.src_kps, name))
        prediction, src_map, trg_map = self.student.forward_with_descriptors(*query)  # type: ignore[operator]
        return Example(batch, label, check_answer(prediction, batch.src_kps, name), self.student, src_map, trg_map)


def _check_losses(losses: Mapping[str, Loss], weights: Mapping[str, float]) -> None:
    """Raises a :class:`ConfigError` unless each loss can be called and has a weight, and one of them counts."""
    if not losses or set(losses) != set(weights):
        raise ConfigError(
            f"Expected a weight for each loss but got losses {list(losses)} and weights {list(weights)}; give loss.weights "
            "the names of loss.terms, null leaves one out."
        )
    if min(weights.values()) < 0 or not any(weights.values()):
        raise ConfigError(f"Expected weights of at least 0, and one above it, but got {weights}; correct loss.weights.")
    for name, loss in losses.items():
        if not callable(loss):
            raise ConfigError(
                f"Expected loss.terms.{name} to be called with an example but {type(loss).__name__} has no __call__; add it."
            )
    if TOTAL in losses:
        raise ConfigError(f"Expected losses with names of their own but got {TOTAL!r}, their sum's; rename it.")


def _check_student(student: nn.Module, losses: Mapping[str, Loss]) -> None:
    """Raises a :class:`ConfigError` unless ``student`` is a matcher, with descriptors where a loss needs them."""
    if not isinstance(student, nn.Module) or type(student).forward is nn.Module.forward:
        raise ConfigError(
            f"Expected a student that is a torch.nn.Module with forward(src_img, trg_img, src_kps) but "
            f"{type(student).__name__} {'has no forward' if isinstance(student, nn.Module) else 'is no module'}; add it."
        )
    wanting = [name for name, loss in losses.items() if getattr(loss, "dense", False)]
    if wanting and not isinstance(student, DenseStudent):
        raise ConfigError(
            f"Expected a student with forward_with_descriptors, describe and correlate for the losses {', '.join(wanting)} but "
            f"{type(student).__name__} has none; loss=distillation does without."
        )
