"""Pictures of matches on validation pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer

from distill.core.protocols import match
from distill.core.types import PairBatch
from distill.data.pairs import to_device
from distill.evaluation.pictures import match_panel, stack
from distill.labels.labelled_pairs import LabelledPairs, split_labelled
from distill.training.module import Distillation


class MatchPictures(Callback):
    """Draws the student's and its teacher's answers for the first validation pairs, once per validation.

    The pictures are ``matches/<epoch>.png`` in the run's folder, and images of every logger that takes some
    (TensorBoard).

    Args:
        folder: of the run.
        count: how many pairs.
    """

    def __init__(self, folder: Path, count: int = 4) -> None:
        self.folder, self.count = folder / "matches", count

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: PairBatch | LabelledPairs,
        batch_idx: int,
        *args: int,
    ) -> None:
        """Draws after the first batch."""
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Distillation)
        pairs, label = split_labelled(batch)
        with torch.no_grad():
            answers = {"student": pl_module.student(pairs.src_img, pairs.trg_img, pairs.src_kps).trg_kps}
            answers["teacher"] = (match(pl_module.teacher, pairs) if label is None else label).trg_kps
        pairs = to_device(pairs, "cpu")
        panels = []
        for row in range(min(self.count, len(pairs.category))):
            mask = pairs.kps_mask[row]
            found = {name: points[row].detach().float().cpu()[mask].numpy() for name, points in answers.items()}
            panels.append(match_panel(pairs.src_img[row], pairs.trg_img[row], pairs.src_kps[row][mask].numpy(), found))
        sheet = stack(panels)
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet.save(self.folder / f"{trainer.current_epoch:04d}.png")
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if callable(add_image):
                add_image("val/matches", np.asarray(sheet), trainer.global_step, dataformats="HWC")
