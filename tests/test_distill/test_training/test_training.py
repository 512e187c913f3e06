import copy
import json

import pytest
import torch
from lightning import Trainer, seed_everything

from distill.core.errors import ConfigError, DataError
from distill.core.types import Matches
from distill.data.datamodule import PairDataModule
from distill.data.datasets.shapes import ShapesPairs
from distill.evaluation.pictures import CAPTION_HEIGHT
from distill.labels.curriculum import Curriculum
from distill.losses import CoordinateHuber, HeatmapKL, RelaxedCycle
from distill.matchers.oracle import Oracle
from distill.training.callbacks.build import callbacks, checkpoints
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.match_pictures import MatchPictures
from distill.training.callbacks.self_distillation import SelfDistillation
from distill.training.module import Distillation, UnregisteredReference
from distill.training.optimiser import groups
from student import StudentMatcher

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


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
    module._teacher = UnregisteredReference(torch.nn.Linear(3, 3))
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


def test_a_loss_that_is_no_number_names_batch_and_pair_and_leaves_the_weights(tmp_path):
    module = distillation()

    class Broken:
        """NaN for one pair, and only there."""

        def __call__(self, example):
            bad = [name == "train-5" for name in example.pairs.src_id]
            value = example.prediction.trg_kps.mean((1, 2))
            return torch.where(torch.tensor(bad), torch.nan, value).mean()

    pairs = [ShapesPairs("train", 8, 0, 64)[n]._replace(src_id=[f"train-{n}"]) for n in range(8)]
    module.losses["heatmap"] = Broken()
    before = copy.deepcopy(module.state_dict())
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, **QUIET)
    with pytest.raises(DataError, match="heatmap is NaN or infinite in batch 0, at the pair train-5"):
        trainer.fit(module, PairDataModule(pairs, pairs, batch_size=8))  # type: ignore[arg-type]
    weights = [name for name, _ in module.named_parameters()]
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in weights)


def test_a_loss_on_descriptors_needs_a_student_that_has_them():
    class Plain(torch.nn.Module):
        def forward(self, src_img, trg_img, src_kps):
            return Matches(src_kps, src_kps[..., 0], src_kps)

    with pytest.raises(ConfigError, match="for the losses cycle but Plain has none"):
        Distillation(Plain(), Oracle(), {"cycle": RelaxedCycle()}, {"cycle": 1.0}, None, 1e-3, 0.0)


def test_a_curriculum_lets_in_the_surest_labels_first():
    curriculum = Curriculum(start=0.25, end=1.0, over=0.5)
    label = Matches(torch.zeros(1, 8, 2), torch.arange(1.0, 9.0)[None] / 8, torch.zeros(1, 8, 1, 1))
    assert (curriculum(label, 0.0).confidence > 0).all()  # nobody has told it of the labels yet
    curriculum.calibrate(label.confidence.flatten())
    counts = [int((curriculum(label, progress).confidence > 0).sum()) for progress in (0.0, 0.25, 0.5, 1.0)]
    assert counts == [2, 5, 8, 8]
    assert curriculum(label, 0.0).confidence[0, -2:].tolist() == [0.875, 1.0]
    with pytest.raises(ConfigError, match="curriculum in"):
        Curriculum(start=0)


def test_the_backbone_learns_at_its_own_rate_and_what_is_frozen_not_at_all():
    student = StudentMatcher("test_resnet", [8, 16], 8)
    head, backbone = groups(student, 1e-2, 0.1)
    assert (head["lr"], backbone["lr"]) == (1e-2, pytest.approx(1e-3))
    assert {id(p) for p in backbone["params"]} == {id(p) for p in student.backbone.parameters()}
    frozen = StudentMatcher("test_resnet", [8, 16], 8, tuning="frozen")
    assert len(groups(frozen, 1e-2, 0.1)) == 1
    with pytest.raises(ConfigError, match="backbone_lr to be positive"):
        groups(student, 1e-2, 0)
    with pytest.raises(ConfigError, match="all its parameters are frozen"):
        groups(student.requires_grad_(False), 1e-2, 1)


def test_the_average_of_the_weights_is_what_is_kept(tmp_path):
    module = distillation(lr=1e-2)
    checkpoint = checkpoints(tmp_path, None)
    fit(module, tmp_path, 4, callbacks=callbacks(checkpoint, ema=0.9)[:-1])
    state = torch.load(tmp_path / "checkpoints" / "final.ckpt", weights_only=True)
    name = "student.log_temperature"
    assert not torch.equal(state["state_dict"][name], state["current_model_state"][name])
    assert torch.equal(module.state_dict()[name], state["state_dict"][name])


def test_the_student_becomes_its_own_teacher_with_the_averaged_weights(tmp_path):
    module = distillation(lr=1e-2)
    seen = []

    def teacher(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return Oracle()

    own = SelfDistillation(teacher, start_epoch=2)
    checkpoint = checkpoints(tmp_path, None)
    fit(module, tmp_path, 2, callbacks=callbacks(checkpoint, ema=0.9, self_distillation=own)[:-1])
    state = torch.load(tmp_path / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]
    assert own.rounds == 1 and module.labeller is not module.teacher
    assert torch.equal(seen[0]["log_temperature"], state["student.log_temperature"])
    with pytest.raises(ConfigError, match="start_epoch"):
        SelfDistillation(teacher, -1)


def test_a_student_that_was_trained_before_teaches_itself_from_the_first_step(tmp_path):
    module, taught = distillation(lr=1e-2), []

    def teacher(model):
        taught.append({name: value.clone() for name, value in model.state_dict().items()})
        return Oracle()

    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    fit(module, tmp_path, 1, callbacks=[SelfDistillation(teacher, start_epoch=0)])
    assert all(torch.equal(taught[0][name], value) for name, value in before.items())
    assert not torch.equal(taught[-1]["log_temperature"], before["log_temperature"]) and len(taught) == 2


def test_a_student_that_describes_nothing_cannot_become_its_own_teacher(tmp_path):
    class Blind(torch.nn.Linear):
        def forward(self, src_img, trg_img, src_kps):
            return Matches(src_kps, src_kps[..., 0] * 0, src_kps.new_zeros(*src_kps.shape[:2], 4, 4))

    module = Distillation(Blind(1, 1), Oracle(), {"points": CoordinateHuber()}, {"points": 1.0}, None, 1e-3, 0.0)
    own = SelfDistillation(lambda model: Oracle(), start_epoch=1)
    with pytest.raises(ConfigError, match="Blind has none; set self_distillation=null"):
        fit(module, tmp_path, 1, callbacks=[own])


def test_settings_of_what_runs_beside_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="ema, a decay"):
        callbacks(checkpoints(tmp_path, None), ema=1.0)
    with pytest.raises(ConfigError, match="a monitor to be patient with"):
        callbacks(checkpoints(tmp_path, None), patience=3)


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_mixed_precision_and_accumulation_train(tmp_path, options):
    trainer = fit(distillation(), tmp_path, 2, **options)
    assert torch.isfinite(trainer.callback_metrics["train/loss"])


def test_matches_are_drawn_for_the_folder_and_for_tensorboard(tmp_path):
    shown = []

    class Board(JsonLines):
        @property
        def experiment(self):
            return self

        def add_image(self, name, image, step, dataformats):
            shown.append((name, image.shape, step, dataformats))

    module = distillation()
    pairs = ShapesPairs("train", 4, 0, 64)
    options = {**QUIET, "callbacks": [MatchPictures(tmp_path, 2)], "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=Board(tmp_path), log_every_n_steps=1, **options)
    trainer.fit(module, PairDataModule(pairs, pairs, batch_size=4))  # type: ignore[arg-type]
    assert len(list((tmp_path / "matches").glob("*.png"))) == 1
    ((name, shape, _, order),) = shown
    assert (name, order) == ("val/matches", "HWC") and shape == (2 * (256 + CAPTION_HEIGHT), 3 * 256, 3)


@pytest.mark.slow
def test_a_learning_rate_is_found_before_training(tmp_path):
    module = distillation(lr=1e-7)
    fit(module, tmp_path, 120, callbacks=callbacks(checkpoints(tmp_path, None), find_lr=True)[:-1])
    assert module.lr > 1e-6
