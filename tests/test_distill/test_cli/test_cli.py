import json

import pytest
import torch

from distill.__main__ import VERBS, main
from distill.cli.commands import bench, export
from distill.export.onnx import Deviation
from distill.export.student_file import read_student_file, save_student, save_tensors
from student import StudentMatcher


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    torch.manual_seed(0)
    config = {
        "_target_": "student.StudentMatcher",
        "backbone": "test_resnet",
        "strides": [8, 16],
        "width": 16,
        "size": 32,
    }
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(StudentMatcher("test_resnet", [8, 16], 16), config, path)
    return path


def test_the_overview_names_every_verb(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_what_a_verb_does_and_what_it_takes(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"python -m distill {verb}" in shown and "#" in shown and "_target_: distill.cli.commands" not in shown


def test_help_shows_the_keys_of_the_choice_that_is_named_and_of_the_files_that_it_includes(capsys):
    assert main(["data", "check", "data=folder", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "shapes being the default; the keys of folder:" in shown and "pairs_per_image: 4" in shown
    assert "on_error: raise" in shown and "_here_" not in shown


def test_help_names_the_choices_of_a_group_that_stands_under_another_key(capsys):
    assert main(["data", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "matcher@describer=<box_relative, " in shown and "(written describer.<key>=<value>)" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fitt"], "did you mean 'fit'"),
        (["evaluate", "teacher=oracle"], "settings that evaluate takes but teacher= is none of them"),
        (["label", "experiment=spair71k_sd15"], "python -m distill label --help shows them"),
        (["fit", "--epochs", "3"], "written without dashes"),
        (["fit", "--config-dir"], "folder after --config-dir"),
        (["evaluate", "run.dir={tmp}/r"], "add ckpt="),
        (["evaluate", "ckpt={tmp}/none.safetensors", "run.dir={tmp}/r"], "there is none at"),
        (["evaluate", "matcher=onnx", "file={tmp}/none.onnx", "run.dir={tmp}/r"], "there is none at"),
        (
            ["evaluate", "data=cub", "data.root={tmp}", "matcher=oracle", "run.dir={tmp}/r"],
            "images.txt cannot be read",
        ),
        (["evaluate", "data.n_pairs=0", "matcher=oracle", "run.dir={tmp}/r"], "data.n_pairs of at least 1"),
        (["label", "label.shard=4/4"], "label.shard as i/N"),
        (["fit", "teacher.model={tmp}/none here", "run.dir={tmp}/r"], "no folder"),
        (["fit", "student.backbone=resnet1O", "run.dir={tmp}/r"], "a timm model"),
        (["fit", "student.weights={tmp}/w.safetensors", "run.dir={tmp}/r"], "no such file"),
        (["bench", "what=[speed]", "run.dir={tmp}/r"], "Expected what to list"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(arguments, message, tmp_path, capsys):
    code = main([argument.format(tmp=tmp_path) for argument in arguments])
    shown = capsys.readouterr().err
    error = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(error) == 1 and message in error[0]
    assert not list(tmp_path.iterdir())


def test_evaluate_writes_its_figures_and_a_second_time_beside_them(tmp_path, ckpt, capsys):
    arguments = ["evaluate", f"ckpt={ckpt}", "data.n_pairs=8", "data.size=32", f"run.dir={tmp_path}/run", "device=cpu"]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert report["n_pairs"] <= 8 and set(report["pck"]) == {"image", "point"} and report["threshold"] == "bbox"
    before = (tmp_path / "run" / "metrics.json").read_bytes()
    for number in (2, 3):
        assert main(arguments) == 0
        assert f"run_{number}/metrics.json" in capsys.readouterr().out
        assert f"dir: {tmp_path}/run_{number}" in (tmp_path / f"run_{number}" / "config.yaml").read_text()
    assert (tmp_path / "run" / "metrics.json").read_bytes() == before


def test_export_and_evaluate_of_the_file_agree_with_the_student(tmp_path, ckpt):
    assert main(["export", f"ckpt={ckpt}", f"file={tmp_path}/s.onnx", "gate_pairs=16"]) == 0
    scores = []
    for name, choice in (("a", [f"ckpt={ckpt}"]), ("b", ["matcher=onnx", f"file={tmp_path}/s.onnx"])):
        assert (
            main(["evaluate", *choice, "data.n_pairs=16", "data.size=32", f"run.dir={tmp_path}/{name}", "device=cpu"])
            == 0
        )
        scores.append(json.loads((tmp_path / name / "metrics.json").read_text())["pck"]["point"]["0.15"])
    assert scores[0] == pytest.approx(scores[1], abs=1.0)


@pytest.mark.parametrize("extra", [[], ["split=true"]])
def test_an_export_replaces_neither_the_student_nor_a_photograph(tmp_path, ckpt, photos, capsys, extra):
    student, photo = tmp_path / "s.safetensors", photos / "cat" / "0.png"
    student.write_bytes(ckpt.read_bytes())
    (tmp_path / "s.onnx").write_bytes(ckpt.read_bytes())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for own, file, message in (
        (student, student, "Expected file to end in .onnx but got"),
        (student, photo, "Expected file to end in .onnx but got"),
        (tmp_path / "s.onnx", tmp_path / "s.onnx", "Expected file to be another than the student's"),
    ):
        assert main(["export", f"ckpt={own}", f"file={file}", "gate_pairs=0", *extra]) == 2
        assert message in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
@pytest.mark.parametrize("verb", ["export", "bench"])
def test_a_student_is_checked_and_calibrated_on_images_like_those_of_its_training(
    verb, resize, tmp_path, ckpt, photos, monkeypatch
):
    """The photographs have 64 x 48 px: in a square of 32 px, 4 rows above and below are grey where they are letterboxed."""
    config, weights = read_student_file(ckpt)
    save_tensors(weights, {**config, "resize": resize}, tmp_path / "s.safetensors")
    asked = []
    monkeypatch.setattr(
        export, "export_student", lambda *given: asked.extend([given[5], given[6]]) or Deviation(0, 0, 0, 0)
    )
    monkeypatch.setattr(
        bench,
        "student_rates",
        lambda student, name, given: (
            asked.extend([given.calibration, given.pairs])
            or [{"what": "student", "variant": "tiny", "batch": 1, "threads": 1}]
        ),
    )
    data = ["data=folder", f"data.root={photos}", "calibration_pairs=2", f"ckpt={tmp_path}/s.safetensors"]
    own = {
        "export": [f"file={tmp_path}/s.onnx", "precision=int8", "gate_pairs=2"],
        "bench": ["what=[student]", "precisions=[int8]", "pck_pairs=2", f"run.dir={tmp_path}/b"],
    }
    assert main([verb, *data, *own[verb]]) == 0
    assert len(asked) == 2
    for pairs in asked:
        image = pairs[0].src_img[0]
        assert image.shape == (3, 32, 32)
        borders = torch.cat([image[:, :4], image[:, 28:]], dim=1)
        assert bool((borders == borders[0, 0, 0]).all()) == (resize == "letterbox")


def test_data_describes_and_draws(tmp_path):
    small = ["data.n_pairs=8", "data.pairs_per_image=1", "data.size=32", "images=4"]
    assert main(["data", *small, f"run.dir={tmp_path}/d"]) == 0
    description = json.loads((tmp_path / "d" / "description.json").read_text())
    assert description["pairs"] == 8 and len(description["pairs_per_category"]) == 8
    assert (tmp_path / "d" / "contact_sheet.png").stat().st_size > 1000


def test_bench_measures_side_by_side(tmp_path):
    arguments = ["bench", "what=[student,loader]", "student.backbone=test_resnet", "repeats=2", "batches=[1,2]"]
    arguments += ["threads=[1]", "precisions=[fp32]", "compiled=false", "student.consensus=0"]
    assert main([*arguments, "data.n_pairs=8", "data.size=32", f"run.dir={tmp_path}/b", "device=cpu"]) == 0
    rows = json.loads((tmp_path / "b" / "bench.json").read_text())["rows"]
    assert [row["what"] for row in rows] == ["student"] * 4 + ["loader"] * 6
    assert [row["variant"] for row in rows[:2]] == ["test_resnet, torch", "test_resnet, torch"]
    assert all(row["latency_ms"] > 0 for row in rows) and all(row["fastest_ms"] > 0 for row in rows[:4])
