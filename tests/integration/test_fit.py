"""From labels to ONNX and back, in small."""

import json

import pytest
import torch
from safetensors.torch import load_file

from distill.__main__ import main
from distill.data.datasets.shapes import ShapesPairs
from distill.labels import LabelStore

SMALL = [
    "trainer=smoke",
    "student.backbone=test_resnet",
    "student.strides=[8,16]",
    "student.width=16",
    "data.size=64",
    "train.n_pairs=16",
    "val.n_pairs=8",
    "test.n_pairs=8",
    "device=cpu",
    "trainer.accelerator=cpu",
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "run"
    teacher = ["teacher.steps=2", "teacher.embeddings=1", "teacher.crops=1", "teacher.crop_pool=4"]
    assert main(["fit", f"run.dir={folder}", *SMALL, *teacher]) == 0
    return folder


def test_the_run_holds_all_that_was_made(fitted):
    report = json.loads((fitted / "metrics.json").read_text())
    assert [row["matcher"] for row in report["matchers"]] == ["teacher", "student", "nearest_neighbour", "box_relative"]
    assert report["matchers"][0]["latency_ms"] is None and report["matchers"][1]["latency_ms"] > 0
    logged = [json.loads(line) for line in (fitted / "metrics.jsonl").read_text().splitlines()]
    keys = {key for row in logged for key in row}
    assert keys >= {"train/loss", "train/heatmap", "train/points", "val/loss", "val/pck@0.10", "val/pck_teacher@0.10"}


def test_labels_made_on_the_fly_are_in_the_store(fitted):
    store = LabelStore(fitted / "labels")
    assert len(store) > 50 and store.fingerprint is not None and store.fingerprint["steps"] == "2"


def test_the_teacher_is_in_no_checkpoint(fitted):
    state = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert state and all(name.startswith("student.") for name in state)


def test_the_student_the_onnx_file_and_the_report_score_the_same(fitted, tmp_path):
    score = json.loads((fitted / "metrics.json").read_text())["matchers"][1]["pck"]["point"]["0.15"]
    for name, choice in (("a", f"ckpt={fitted}/student.safetensors"), ("b", f"file={fitted}/student.onnx")):
        matcher = ["matcher=onnx"] if name == "b" else []
        arguments = [
            "evaluate",
            choice,
            *matcher,
            "data.size=64",
            "data.n_pairs=8",
            "device=cpu",
            f"run.dir={tmp_path}/{name}",
        ]
        assert main(arguments) == 0
        found = json.loads((tmp_path / name / "metrics.json").read_text())["pck"]["point"]["0.15"]
        assert found == pytest.approx(score, abs=0.5 if name == "a" else 2.0)


def test_compare_reads_the_labels_and_times_the_teacher(fitted, tmp_path):
    teacher = ["teacher.steps=2", "teacher.embeddings=1", "teacher.crops=1", "teacher.crop_pool=4", "teacher_pairs=1"]
    arguments = ["compare", f"ckpt={fitted}/student.safetensors", f"labels.dir={fitted}/labels", "device=cpu"]
    assert main([*arguments, "data.size=64", "data.n_pairs=8", f"run.dir={tmp_path}/c", *teacher]) == 0
    report = json.loads((tmp_path / "c" / "metrics.json").read_text())
    timed, before = report["matchers"][0], json.loads((fitted / "metrics.json").read_text())["matchers"][0]
    assert timed["latency_ms"] > 0 and timed["parameters"] > 1e6 and timed["pck"] == before["pck"]
    assert "data:image/jpeg;base64" in (tmp_path / "c" / "report.html").read_text()


def test_compare_holds_all_against_any_of_them(fitted, tmp_path):
    arguments = ["compare", f"ckpt={fitted}/student.safetensors", "teacher=oracle", "teacher_pairs=0", "device=cpu"]
    assert main([*arguments, "data.size=64", "data.n_pairs=8", f"run.dir={tmp_path}/c", "reference=student"]) == 0
    report = json.loads((tmp_path / "c" / "metrics.json").read_text())
    scores = {row["matcher"]: row["pck"]["image"]["0.10"] for row in report["matchers"]}
    assert set(report["differences"]) == {"teacher", "nearest_neighbour", "box_relative"}
    for name, difference in report["differences"].items():
        assert difference["0.10"]["mean"] == pytest.approx(scores[name] - scores["student"], abs=0.02)


def test_compare_with_an_unknown_reference_reads_nothing(tmp_path, capsys):
    assert main(["compare", "ckpt=none.safetensors", "reference=techer", f"run.dir={tmp_path}/c"]) == 2
    assert "did you mean 'teacher'" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_another_teachers_labels_are_refused(fitted, tmp_path, capsys):
    arguments = [
        "fit",
        f"run.dir={tmp_path}/r",
        f"labels.dir={fitted}/labels",
        "teacher.steps=3",
        "teacher.embeddings=1",
    ]
    assert main([*arguments, *SMALL, "teacher.crops=1", "teacher.crop_pool=4"]) == 2
    assert "steps (2 in the store, 3 asked for)" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_student_may_be_trained_further(fitted, tmp_path, capsys):
    start = f"init_from={fitted}/student.safetensors"
    still = [
        "teacher=oracle",
        *SMALL,
        "test.n_pairs=0",
        "lr=1e-12",
        "weight_decay=0",
        "self_distillation.start_epoch=0",
        "onnx=false",
    ]
    assert main(["fit", f"run.dir={tmp_path}/r", *still, start]) == 0
    assert not (tmp_path / "r" / "student.onnx").exists(), "which was not asked for"
    before, after = (load_file(folder / "student.safetensors") for folder in (fitted, tmp_path / "r"))
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before if name.endswith("weight"))
    val = ShapesPairs("val", 8, size=64)
    assert len(LabelStore(tmp_path / "r" / "labels")) == sum(int(val[i].kps_mask.sum()) for i in range(8))
    assert main(["fit", f"run.dir={tmp_path}/s", *still, start, "student.width=8"]) == 2
    assert "student.<name> settings" in capsys.readouterr().err and not (tmp_path / "s").exists()
    for choice, named in (("confidence", "['confidence']"), ("curriculum", "a curriculum")):
        assert main(["fit", f"run.dir={tmp_path}/s", *still, start, f"filter={choice}"]) == 2
        assert f"got {named}; start later" in capsys.readouterr().err and not (tmp_path / "s").exists()


def test_labels_may_be_judged_by_a_student_that_was_trained_before(fitted, tmp_path, capsys):
    judged = ["fit", "teacher=oracle", *SMALL, "test.n_pairs=0", "onnx=false", "filter=student"]
    assert main([*judged, f"run.dir={tmp_path}/s"]) == 2
    assert "filter.student=" in capsys.readouterr().err and not (tmp_path / "s").exists()
    assert main([*judged, f"run.dir={tmp_path}/r", f"filter.student={fitted}/student.safetensors"]) == 0
    assert "kept, mean confidence 0." in capsys.readouterr().out, "an untrained judge is not sure of the truth"


def test_a_run_is_not_overwritten_but_may_be_resumed(fitted, tmp_path, capsys):
    folder, again = tmp_path / "run", ["teacher=oracle", *SMALL, "onnx=false"]
    assert main(["fit", f"run.dir={folder}", *again]) == 0
    before = (folder / "student.safetensors").read_bytes()
    assert main(["fit", f"run.dir={folder}", *again]) == 2
    assert "run.resume=true" in capsys.readouterr().err and (folder / "student.safetensors").read_bytes() == before
    assert main(["fit", f"run.dir={folder}", "run.resume=true", *again, "trainer.max_epochs=2"]) == 0
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 1 and (folder / "student.safetensors").read_bytes() != before


def test_a_finished_run_is_extended_and_not_shortened(tmp_path, capsys):
    steps = ["trainer=default", "trainer.check_val_every_n_epoch=1", "+trainer.limit_train_batches=1", "batch_size=4"]
    once = ["teacher=oracle", *SMALL, *steps, "test.n_pairs=0", "onnx=false", "pictures=0", f"run.dir={tmp_path}/r"]
    for epochs, resume, code in ((2, "false", 0), (4, "true", 0), (4, "true", 0), (3, "true", 2)):
        assert main(["fit", *once, f"trainer.max_epochs={epochs}", f"run.resume={resume}"]) == code
    assert torch.load(tmp_path / "r" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 3
    assert "Expected trainer.max_epochs of at least 4, the epochs that" in capsys.readouterr().err
