"""Files that another user may not read: the error says so, and not that they do not exist."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.__main__ import main
from distill.core.errors import WeightsError
from distill.export.student_file import load_student, save_student
from student import StudentMatcher
from student.backbone import Backbone

NOBODY = 65534


@contextmanager
def closed(path):
    """Takes the permission to read ``path`` from whoever runs the test; root is another user meanwhile."""
    mode, root = path.stat().st_mode, os.geteuid() == 0
    os.chmod(path, 0)
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        os.chmod(path, mode)


@pytest.fixture
def folder():
    """A folder that all users may look into."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        config = {
            "_target_": "student.StudentMatcher",
            "backbone": "test_resnet",
            "strides": [8],
            "width": 8,
            "size": 64,
        }
        save_student(StudentMatcher("test_resnet", [8], 8), config, Path(name, "in", "student.safetensors"))
        save_file({"x": torch.zeros(1)}, Path(name, "in", "backbone.safetensors"))
        yield Path(name)


def test_a_students_file_that_may_not_be_read_is_not_said_to_be_missing(folder):
    for path in (folder / "in" / "student.safetensors", folder / "in"):
        with closed(path), pytest.raises(WeightsError, match="may be read .*student.safetensors .*Permission denied"):
            load_student(folder / "in" / "student.safetensors")
    with closed(folder / "in" / "backbone.safetensors"), pytest.raises(WeightsError, match="Permission denied"):
        Backbone("test_resnet", [8], str(folder / "in" / "backbone.safetensors"))
    assert load_student(folder / "in" / "student.safetensors").size == 64


def test_a_folder_that_may_not_be_entered_is_one_line(folder, capsys):
    data = ["data", "check", "data=folder", f"data.root={folder}/in/photos"]
    for arguments in (data, ["label", "status", f"labels.dir={folder}/in/labels"]):
        main(arguments)  # imports all that it needs: another user may not be allowed to read where Python lies
        capsys.readouterr()
        with closed(folder / "in"):
            assert main(arguments) == 2
        said = capsys.readouterr().err.strip()
        assert (
            said.startswith("error: Expected to be allowed to use ")
            and "Permission denied" in said
            and "\n" not in said
        )


def test_labels_that_may_not_be_read_are_not_said_to_be_missing_nor_set_aside(capsys):
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        fit = ["teacher=oracle", "data.size=32", "splits=[train]", "train.n_pairs=4", "device=cpu"]
        assert main(["label", f"labels.dir={name}/labels", *fit]) == 0
        capsys.readouterr()
        (file,) = Path(name).glob("labels/[!.]*.safetensors")
        for action in ("status", "verify", "repair"):
            with closed(file):
                assert main(["label", action, f"labels.dir={name}/labels"]) == 2
            said = capsys.readouterr().err.strip()
            assert f"to use {file} but got: Permission denied" in said and "\n" not in said
            assert file.is_file()
