"""Training a student on a teacher's labels."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from distill.data.pairs import to_original
from distill.errors import ConfigError
from distill.losses import Loss
from distill.metrics.pck import PCK
from distill.protocols import Matcher, PairMatcher, match
from distill.training.augment import Augment
from distill.types import PairBatch


class Distillation(LightningModule):
    """Trains a student matcher to give its teacher's answers.

    The teacher is no child of this module: its weights are in no checkpoint, and no optimiser sees them. Ground truth
    is read for the metrics only.

    Args:
        student: the module that is trained; called as a matcher.
        teacher: what makes the labels.
        losses: by name.
        weights: of the losses, by the same names.
        augment: what is done to labelled training pairs; None for nothing.
        lr: peak learning rate of AdamW under a one-cycle schedule.
        weight_decay: of AdamW.

    Raises:
        ConfigError: when a loss has no weight or there is none.
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
    ) -> None:
        super().__init__()
        if not losses or set(losses) != set(weights):
            raise ConfigError(
                f"Expected a weight for each loss but got losses {list(losses)} and weights {list(weights)}."
            )
        self.student = student
        self._teacher = [teacher]  # in a list: no child, hence in no checkpoint
        self.losses, self.weights = dict(losses), dict(weights)
        self.augment, self.lr, self.weight_decay = augment, lr, weight_decay
        self.pck_truth, self.pck_teacher = PCK((0.05, 0.10)), PCK((0.05, 0.10))

    @property
    def teacher(self) -> Matcher | PairMatcher:
        """What makes the labels."""
        return self._teacher[0]

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        """Returns the weighted sum of the losses on a batch of pairs."""
        with torch.no_grad():
            label = match(self.teacher, batch)
            if self.augment is not None:
                batch, label = self.augment(batch, label)
        return self._loss("train", batch, label)[0]

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:
        """Scores the student against ground truth and against the teacher's labels, both as PCK per image."""
        label = match(self.teacher, batch)
        _, points = self._loss("val", batch, label)
        predicted = to_original(points, batch)
        self.pck_truth.update(predicted, to_original(batch.trg_kps, batch), batch.kps_mask, batch.pck_threshold)
        self.pck_teacher.update(predicted, to_original(label.trg_kps, batch), batch.kps_mask, batch.pck_threshold)

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/pck@0.10`` (ground truth) and ``val/pck_teacher@0.10`` in percent."""
        for name, metric in (("pck", self.pck_truth), ("pck_teacher", self.pck_teacher)):
            for alpha, value in metric.compute()["image"].items():
                self.log(f"val/{name}@{alpha}", value, prog_bar=alpha == "0.10", sync_dist=False)
            metric.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW under a one-cycle schedule over the trainer's steps."""
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = max(2, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, stage: str, batch: PairBatch, label: Any) -> tuple[Tensor, Tensor]:
        prediction = self.student(batch.src_img, batch.trg_img, batch.src_kps)
        size = (batch.trg_img.shape[-2], batch.trg_img.shape[-1])
        terms = {name: loss(prediction, label, batch.kps_mask, size) for name, loss in self.losses.items()}
        total = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        logged = {f"{stage}/{name}": term for name, term in terms.items()} | {f"{stage}/loss": total}
        self.log_dict(logged, batch_size=len(batch.category))
        return total, prediction.trg_kps
