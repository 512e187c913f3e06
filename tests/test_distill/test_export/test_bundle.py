"""A student's folder for sharing, and what a student's file says of itself."""

import json
from pathlib import Path

import pytest
import torch

import distill
from distill.core.errors import ConfigError, WeightsError
from distill.export.bundle import model_card, write_bundle
from distill.export.student_file import add_about, read_about, save_student
from student import StudentMatcher

CONFIG = {"_target_": "student.StudentMatcher", "backbone": "test_resnet", "strides": [8, 16], "width": 16, "size": 64}
ABOUT = {"teacher": {"class": "teacher.PromptOptimization"}, "data": {"name": "cub", "n_pairs": 500}}
RESIZED = {"absent": {}, "squash": {"resize": "squash"}, "letterbox": {"resize": "letterbox"}}


@pytest.fixture
def ckpt(tmp_path):
    torch.manual_seed(0)
    save_student(StudentMatcher("test_resnet", [8, 16], 16), CONFIG, tmp_path / "student.safetensors", ABOUT)
    return tmp_path / "student.safetensors"


def test_a_bundle_loads_in_one_line_and_gives_the_students_answers(ckpt, tmp_path, make_pairs):
    pair = make_pairs(4, size=64)
    query = (pair.src_img, pair.trg_img, pair.src_kps)
    folder = write_bundle(ckpt, tmp_path / "bundle")
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    found, expected = distill.load_student(folder)(*query), distill.load_student(ckpt)(*query)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert read_about(folder) == ABOUT
    assert json.loads((folder / "config.json").read_text()) == {"library_name": "distill", **CONFIG}


def test_an_older_bundle_is_replaced_and_files_of_something_else_are_not(ckpt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle(ckpt, "mine")
    Path("mine/notes.txt").write_text("mine")
    Path("mine/README.md").write_text("of an older student")
    assert "Semantic matcher" in (write_bundle(ckpt, "mine") / "README.md").read_text()
    assert Path("mine/notes.txt").read_text() == "mine"
    for name in ("README.md", "config.json", "model.safetensors"):
        other = tmp_path / f"other_{name}"
        other.mkdir()
        (other / name).write_bytes(b"of another project")
        with pytest.raises(
            ConfigError, match=f"an older bundle in bundle=other_{name} but it holds {name} of something"
        ):
            write_bundle(ckpt, other.name)
        assert [(path.name, path.read_bytes()) for path in other.iterdir()] == [(name, b"of another project")]


def test_the_card_tells_origin_figures_with_convention_limits_and_licences(ckpt, tmp_path):
    figures = {"pck@0.10": 71.5, "convention": "per image, bbox, cub test, 600 pairs"}
    add_about(ckpt, {"figures": figures, "licences": {"backbone": "apache-2.0", "student": "cc-by-nc-4.0"}})
    card = (write_bundle(ckpt, tmp_path / "bundle") / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: distill\nlicense: "cc-by-nc-4.0"\n')
    for told in (
        "teacher.PromptOptimization",
        "name cub, n_pairs 500",
        "pck@0.10 71.5",
        figures["convention"],
        "apache-2.0",
    ):
        assert told in card
    assert "## Limits" in card and "load_student" in card


def test_the_card_says_how_images_are_resized():
    cards = {resize: model_card({**CONFIG, **resize_of}, {}, 1) for resize, resize_of in RESIZED.items()}
    squashed = "resized to 64 x 64 px without keeping the ratio of their sides"
    assert squashed in cards["squash"] and cards["absent"] == cards["squash"]
    assert "longer side fills 64 x 64 px" not in cards["squash"]
    assert squashed not in cards["letterbox"] and "without keeping" not in cards["letterbox"]
    assert "the longer side fills 64 x 64 px, centred there, and padded with grey of 124/255" in cards["letterbox"]


def test_what_is_not_known_is_said_to_be_unknown(tmp_path):
    save_student(StudentMatcher("test_resnet", [8, 16], 16), CONFIG, tmp_path / "s.safetensors")
    card = (write_bundle(tmp_path / "s.safetensors", tmp_path / "bundle") / "README.md").read_text()
    assert "- figures: not recorded in the file" in card and "- licences: not recorded in the file" in card


def test_adding_to_what_a_file_says_leaves_its_weights(ckpt):
    before = distill.load_student(ckpt).state_dict()
    add_about(ckpt, {"figures": {"pck@0.10": 50.0}})
    after = distill.load_student(ckpt).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert read_about(ckpt) == {**ABOUT, "figures": {"pck@0.10": 50.0}}


def test_a_folder_without_a_student_is_told(tmp_path):
    with pytest.raises(WeightsError, match="there is none at .*model.safetensors"):
        distill.load_student(tmp_path)
