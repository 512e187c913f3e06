"""What ``doctor`` tells."""

import importlib

import pytest

from distill.__main__ import main
from distill.cli.commands import doctor
from distill.export.licences import UNKNOWN


def test_doctor_tells_problems_by_its_exit_code_and_recognises_data_sets(photos, tmp_path, capsys):
    assert main(["doctor", f"data_root={photos}", "backbone=vit_small_patch16_dinov3"]) == 0
    shown = capsys.readouterr().out
    assert f"data=folder in {photos}" in shown
    licences = [line.split(maxsplit=1)[1] for line in shown.splitlines() if line.startswith("licence ")]
    assert licences == [
        "of the teacher's model: Apache-2.0",
        "of backbone=vit_small_patch16_dinov3: DINOv3 License",
        "of data=folder: that of your photographs",
    ]
    assert main(["doctor", f"data_root={tmp_path}/none", f"model={tmp_path}/no model"]) == 2
    shown = capsys.readouterr()
    assert f"of the teacher's model: {UNKNOWN}" in shown.out and "of data=" not in shown.out
    assert shown.out.count("problem: ") == 2 and "found 2 problems" in shown.err
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub" / "images.txt").write_text("1 a.jpg\n")
    assert main(["doctor", f"data_root={tmp_path}/cub"]) == 2
    assert "image_class_labels.txt" in capsys.readouterr().out


def test_a_broken_installation_is_a_problem_whatever_it_raises(monkeypatch, capsys):
    imported = importlib.import_module

    def broken(name, *rest):
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms\ndoes not exist")
        return imported(name, *rest)

    def instantiate(config):
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    monkeypatch.setattr(doctor, "instantiate", instantiate)
    assert main(["doctor"]) == 2
    shown = capsys.readouterr().out
    assert "problem: torchvision: operator torchvision::nms does not exist; pip install --upgrade torchvision" in shown
    assert "problem: teacher's model: libcudart.so.12: cannot open shared object file" in shown


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["images.txt"], "cub"),
        (["CUB_200_2011/images.txt"], "cub"),
        (["PairAnnotation/x", "Layout/x", "JPEGImages/x"], "spair71k"),
        (["PairAnnotation/x", "ImageAnnotation/x", "JPEGImages/x"], "ap10k"),
        (["PF-dataset-PASCAL/JPEGImages/x", "PF-dataset-PASCAL/Annotations/x"], "pf_pascal"),
        (["PF-dataset/duck(S)/x"], "pf_willow"),
        (["cat/a.jpg"], "folder"),
    ],
)
def test_a_data_set_is_recognised_by_its_files(files, name, tmp_path):
    from distill.cli.commands.doctor import layout

    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    assert layout(tmp_path) == name
