import copy
import json

import pytest
import torch
from lightning import Trainer, seed_everything

from distill.data.datamodule import PairDataModule
from distill.data.shapes import ShapesPairs
from distill.errors import ConfigError
from distill.losses import CoordinateHuber, HeatmapKL
from distill.matchers.oracle import Oracle
from distill.training.log import JsonLines
from distill.training.module import Aside, Distillation
from student import StudentMatcher


def distillation(lr: float = 3e-3, **weights) -> Distillation:
    seed_everything(0, verbose=False)
    student = StudentMatcher("test_resnet", strides=[8, 16], width=32)
    losses = {"heatmap": HeatmapKL(1.0), "points": CoordinateHuber()}
    return Distillation(student, Oracle(), losses, weights or {"heatmap": 1.0, "points": 1.0}, None, lr, 0.0)


def fit(module: Distillation, folder, max_epochs: int, **options) -> Trainer:
    pairs = ShapesPairs("train", 8, 0, 64)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=JsonLines(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        log_every_n_steps=1,
        check_val_every_n_epoch=max_epochs,
        **options,
    )
    trainer.fit(module, PairDataModule(pairs, pairs, batch_size=8))  # type: ignore[arg-type]
    return trainer


def test_a_student_learns_a_handful_of_pairs_by_heart(tmp_path):
    trainer = fit(distillation(), tmp_path, 80)
    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
    assert metrics["val/pck@0.10"] == metrics["val/pck_teacher@0.10"] > 80
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[-1] < losses[0] / 3


def test_the_teacher_is_in_no_checkpoint(tmp_path):
    module = distillation()
    module._teacher = Aside(torch.nn.Linear(3, 3))
    module.learn_from(torch.nn.Linear(3, 3))
    assert copy.deepcopy(module).teacher is module.teacher
    assert not any("teacher" in name for name in module.state_dict())
    assert all(name.startswith("student.") for name in module.state_dict())


def test_a_loss_without_a_weight_is_an_error():
    with pytest.raises(ConfigError, match="weight for each loss"):
        distillation(heatmap=1.0)


def test_the_order_of_training_pairs_depends_on_the_seed_alone():
    pairs = ShapesPairs("train", 16, 0, 32)
    orders = []
    for seed in (0, 0, 1):
        loader = PairDataModule(pairs, pairs, 4, seed=seed).train_dataloader()
        orders.append([name for batch in loader for name in batch.src_hash])
    assert orders[0] == orders[1] != orders[2]


def test_a_batch_size_of_nothing_is_refused():
    pairs = ShapesPairs("train", 8, 0, 32)
    with pytest.raises(ConfigError, match="batch_size >= 1"):
        PairDataModule(pairs, pairs, 0)
