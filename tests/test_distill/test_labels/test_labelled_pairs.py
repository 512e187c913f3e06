"""Labels are read where pairs are loaded, and are those that the teacher's cache gives."""

import pickle

import pytest
import torch
from lightning import Trainer

from distill.core.errors import LabelError
from distill.core.types import Matches
from distill.data.datamodule import PairDataModule
from distill.data.datasets.shapes import ShapesPairs
from distill.data.pairs import collate_pairs
from distill.labels.cached import Cached
from distill.labels.labelled_pairs import LabelledCollate, split_labelled
from distill.losses import CoordinateHuber, HeatmapKL
from distill.matchers.oracle import Oracle
from distill.training.module import Distillation
from student import StudentMatcher


@pytest.fixture
def pairs():
    return ShapesPairs("train", 8, 0, 64)


@pytest.fixture
def teacher(pairs, tmp_path):
    cached = Cached(tmp_path / "labels", Oracle())
    cached.match_pairs(collate_pairs([pairs[n] for n in range(6)]))
    cached.flush()
    return cached


def collate_of(teacher: Cached) -> LabelledCollate:
    return LabelledCollate(teacher.store.folder, teacher.fingerprint())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_labels_of_a_batch_are_the_teachers_also_from_processes_that_load(pairs, teacher, workers):
    collate = pickle.loads(pickle.dumps(collate_of(teacher)))
    few = [pairs[n] for n in range(6)]
    loader = PairDataModule(few, few, 3, workers, val_collate=collate).val_dataloader()  # type: ignore[arg-type]
    batches = list(loader)
    assert len(batches) == 2
    for batch, label in batches:
        expected = teacher.match_pairs(batch)
        assert all(torch.equal(found, wanted) for found, wanted in zip(label, expected, strict=True))


def test_a_batch_that_lacks_a_label_comes_without_and_one_of_no_points_with_none(pairs, teacher):
    collate = collate_of(teacher)
    assert collate([pairs[0], pairs[7]]).label is None and collate([pairs[0]]).label is not None
    names = ("src_kps", "trg_kps", "kps_mask", "kps_id")
    empty = pairs[7]._replace(**{name: getattr(pairs[7], name)[:, :0] for name in names})
    label = collate([empty]).label
    assert label is not None and label.trg_kps.shape == (1, 0, 2)
    assert split_labelled(pairs[0]).label is None


def test_labels_of_another_teacher_are_refused(pairs, teacher):
    other = LabelledCollate(teacher.store.folder, Oracle(heatmap_side=8).fingerprint())
    with pytest.raises(LabelError, match="heatmap_side"):
        other([pairs[0]])


def test_training_asks_the_teacher_only_for_what_the_batches_lack(pairs, teacher):
    asked = []

    class Counting:
        def match_pairs(self, batch) -> Matches:
            asked.append(len(batch.category))
            return teacher.match_pairs(batch)

    student = StudentMatcher("test_resnet", [8, 16], 8)
    losses = {"heatmap": HeatmapKL(1.0), "points": CoordinateHuber()}
    module = Distillation(student, Counting(), losses, dict.fromkeys(losses, 1.0), None, 1e-3, 0.0)
    collate = collate_of(teacher)
    data = PairDataModule(pairs, pairs, 2, train_collate=collate, val_collate=collate)  # type: ignore[arg-type]
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.validate(module, data, verbose=False)
    assert asked == [2], "pairs 6 and 7 have no label"
    few = [pairs[n] for n in range(6)]
    trainer.fit(module, PairDataModule(few, few, 3, train_collate=collate, val_collate=collate))  # type: ignore[arg-type]
    assert asked == [2], "all of them have labels"


def test_labels_of_the_batches_are_left_aside_once_somebody_else_makes_labels(pairs, teacher):
    asked = []

    class Own(Oracle):
        def match_pairs(self, batch) -> Matches:
            asked.append(len(batch.category))
            return super().match_pairs(batch)

    student = StudentMatcher("test_resnet", [8, 16], 8)
    module = Distillation(student, teacher, {"points": CoordinateHuber()}, {"points": 1.0}, None, 1e-3, 0.0)
    module.learn_from(Own())
    few, collate = [pairs[n] for n in range(6)], collate_of(teacher)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(module, PairDataModule(few, few, 3, train_collate=collate, val_collate=collate))  # type: ignore[arg-type]
    assert asked == [3, 3]
