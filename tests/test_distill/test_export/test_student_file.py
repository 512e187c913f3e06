import errno
import os
import resource
import stat

import pytest
import torch
from safetensors.torch import save_file

from distill.core.errors import ConfigError, WeightsError
from distill.export.bundle import write_bundle
from distill.export.licences import UNKNOWN, inherited_licence
from distill.export.student_file import (
    ABOUT_FIELDS,
    load_into,
    load_student,
    read_about,
    read_student_file,
    save_student,
)
from student import StudentMatcher

CONFIG = {"_target_": "student.StudentMatcher", "backbone": "test_resnet", "strides": [8, 16], "width": 16, "size": 64}


@pytest.fixture(scope="module")
def student() -> StudentMatcher:
    torch.manual_seed(0)
    return StudentMatcher("test_resnet", [8, 16], 16).eval()


def test_a_student_comes_back_as_it_was(tmp_path, student, make_pairs):
    save_student(student, CONFIG, tmp_path / "s.safetensors")
    again = load_student(tmp_path / "s.safetensors")
    pair = make_pairs(4, size=64)
    with torch.no_grad():
        expected, found = (m(pair.src_img, pair.trg_img, pair.src_kps) for m in (student, again))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)) and again.size == 64


VIT = {"backbone": "test_vit", "strides": [16]}


@pytest.mark.parametrize(
    "options",
    [
        VIT | {"debias": 5},
        VIT
        | {
            "strides": [16, 16],
            "layers": [0, -1],
            "debias": 5,
            "backbone_skip": True,
            "upsample": 1,
        },  # as student=dinov3
        VIT | {"lora": {"rank": 2}},
        VIT | {"scales": [1.0, 0.5], "options": {"img_size": 64}},
        {"scales": [1.0, 0.6], "position": True, "upsample": 2, "refinement": 4, "consensus": 2.0},
        {
            "tuning": "frozen",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.6, 0.7],
            "backbone_skip": True,
            "temperature": 0.1,
        },
    ],
    ids=lambda options: "-".join(key for key in options if key not in VIT),
)
def test_a_student_of_any_options_comes_back_as_it_was(tmp_path, options, make_pairs):
    torch.manual_seed(0)
    config = CONFIG | options
    student = StudentMatcher(**{key: value for key, value in config.items() if key not in ("_target_", "size")}).eval()
    for name, value in student.state_dict().items():
        if name.endswith("basis"):  # as it would be with other weights: directions that are computed when it is built
            value.copy_(torch.linalg.qr(torch.randn_like(value))[0])
    save_student(student, config, tmp_path / "s.safetensors")
    torch.manual_seed(1)
    again, pair = load_student(tmp_path / "s.safetensors"), make_pairs(2, size=64)
    with torch.no_grad():
        expected, found = (m(pair.src_img, pair.trg_img, pair.src_kps) for m in (student, again))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_answers_of_a_loaded_student_carry_no_gradients(tmp_path, student, make_pairs):
    save_student(student, CONFIG, tmp_path / "s.safetensors")
    pair = make_pairs(4, size=64)
    answer = load_student(tmp_path / "s.safetensors")(pair.src_img, pair.trg_img, pair.src_kps)
    assert not any(field.requires_grad for field in answer)


def test_a_missing_file_a_truncated_one_and_a_foreign_one_are_told_apart(tmp_path, student):
    path = tmp_path / "s.safetensors"
    with pytest.raises(WeightsError, match="there is none at"):
        read_student_file(path)
    save_student(student, CONFIG, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cannot be read"):
        read_student_file(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="format is None"):
        read_student_file(path)
    save_file({"x": torch.zeros(1)}, path, {"format": "distill-student-1", "student": "{}"})
    with pytest.raises(
        WeightsError, match="'distill-student-1' where 'distill-student-2' is read; .* with this version"
    ):
        read_student_file(path)
    with pytest.raises(ConfigError, match="ckpt="):
        load_student(None)


@pytest.mark.parametrize("path", [5000 * "a", "a/" + 5000 * "b", "\0x", "a/\0b", "."])
def test_a_path_that_no_file_can_have_is_one_of_a_missing_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"^Expected a student's file.* but"):
        load_student(path)


def test_an_empty_path_is_not_the_working_directory(student, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_student(student, CONFIG, tmp_path / "model.safetensors")
    load_student(".")  # the folder of a bundle
    with pytest.raises(ConfigError, match="Expected the path of a student's file but got ''"):
        load_student("")


def test_weights_of_another_network_are_refused(student):
    other = StudentMatcher("test_resnet", [8, 16], 24)
    with pytest.raises(WeightsError, match="fit the student but .*student.<name> settings"):
        load_into(other, student.state_dict(), "there")


def test_another_user_may_read_the_file_as_far_as_the_umask_allows(tmp_path, student):
    before = os.umask(0o022)
    try:
        save_student(student, CONFIG, tmp_path / "s.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s.safetensors").stat().st_mode) == 0o644


def test_an_interrupted_write_leaves_the_older_file(tmp_path, student, monkeypatch):
    path = tmp_path / "s.safetensors"
    save_student(student, CONFIG, path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_student(student, {**CONFIG, "size": 32}, path)
    assert path.read_bytes() == before


def test_a_file_that_has_no_room_is_an_error_of_the_system(tmp_path, student):
    """It was one of safetensors, which the command line showed as a traceback."""
    path, (soft, hard) = tmp_path / "student.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError) as caught:
            save_student(student, CONFIG, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert not list(tmp_path.iterdir())


def test_a_students_file_says_how_its_images_were_resized(tmp_path, student):
    path = tmp_path / "s.safetensors"
    for resize in ("letterbox", "squash"):
        save_student(student, CONFIG | {"resize": resize}, path)
        assert load_student(path).resize == resize
    save_student(student, CONFIG, path)
    assert load_student(path).resize is None
    for wrong in ("crop", None, 3, ["squash"]):
        save_student(student, CONFIG | {"resize": wrong}, path)
        with pytest.raises(WeightsError, match="the way to resize .*, which must be squash or letterbox"):
            load_student(path)


@pytest.mark.parametrize("wrong", [["x"], "MIT", 5, None])
@pytest.mark.parametrize("field", ABOUT_FIELDS)
def test_what_a_file_says_of_itself_are_mappings(tmp_path, student, field, wrong):
    """A file of somebody else ended with a traceback where its licences are a list."""
    path = tmp_path / "s.safetensors"
    save_student(student, CONFIG, path, {field: wrong})
    told = f"says of its {field} a JSON object but got .*; give another file"
    with pytest.raises(WeightsError, match=told):
        read_about(path)
    with pytest.raises(WeightsError, match=told):
        write_bundle(path, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists() and inherited_licence(str(path)) == UNKNOWN


def test_a_file_may_say_nothing_of_itself_and_more_than_is_read(tmp_path, student):
    path = tmp_path / "s.safetensors"
    for about in ({}, {"licences": {}}, {"data": {"name": "cub"}, "notes": ["mine"]}):
        save_student(student, CONFIG, path, about)
        assert read_about(path) == about
