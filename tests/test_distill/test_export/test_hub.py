"""Students by their name on the hub, from its cache on this machine."""

import shutil

import pytest
import torch

import distill
from distill.core.errors import WeightsError
from distill.export.bundle import write_bundle
from distill.export.hub import is_hub_id
from distill.export.student_file import read_about, save_student
from student import StudentMatcher

CONFIG = {"_target_": "student.StudentMatcher", "backbone": "test_resnet", "strides": [8, 16], "width": 16, "size": 64}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache with a snapshot of the repository birds/matcher, and no network."""
    torch.manual_seed(0)
    save_student(
        StudentMatcher("test_resnet", [8, 16], 16), CONFIG, tmp_path / "s.safetensors", {"data": {"name": "cub"}}
    )
    bundle = write_bundle(tmp_path / "s.safetensors", tmp_path / "bundle")
    repository = tmp_path / "hub" / "models--birds--matcher"
    shutil.copytree(bundle, repository / "snapshots" / COMMIT)
    for reference in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / reference).write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["birds/matcher", "birds/matcher@v1", f"birds/matcher@{COMMIT}"])
def test_a_student_is_loaded_by_its_name_on_the_hub(cache, name):
    found, expected = distill.load_student(name), distill.load_student(cache / "s.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    assert found.size == 64 and read_about(name) == {"data": {"name": "cub"}}


def test_what_the_hub_does_not_give_is_told(cache):
    with pytest.raises(WeightsError, match="no path here and the hub does not give its model.safetensors"):
        distill.load_student("birds/other")
    with pytest.raises(WeightsError, match="does not give"):
        distill.load_student("birds/matcher@v2")


def test_a_path_on_this_machine_comes_first(cache):
    shutil.copytree(cache / "bundle", cache / "birds" / "matcher")
    assert not is_hub_id("birds/matcher")
    with pytest.raises(WeightsError, match="there is none at birds/wrong"):  # the folder birds is there
        distill.load_student("birds/wrong")


@pytest.mark.parametrize("path", ["student.safetensors", "a/b/c", "/a/b", "../b", "a/b.safetensors", "a/b@", "./b"])
def test_paths_are_no_names_of_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(path)
