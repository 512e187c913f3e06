"""From a fit to files of every precision, evaluated, and run in an environment that has no torch."""

import json
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import distill
from distill.__main__ import main
from distill.data.datasets.shapes import ShapesPairs
from distill.export.gate import LARGEST_LOSS
from distill.export.onnx_matcher import OnnxMatcher

pytestmark = pytest.mark.slow
SIZE = 64
NEEDED = ("numpy", "numpy.libs", "onnxruntime", "PIL", "pillow.libs")
"""What the runtime needs of the running environment, and nothing else."""
SCRIPT = """
import importlib.util, json, sys
assert not any(importlib.util.find_spec(name) for name in ("torch", "onnx", "hydra", "timm", "lightning", "scipy"))
from distill.export.runtime import Matcher, read_image
images = [read_image(name) for name in sys.argv[1:3]]
answers = {file: Matcher(file).match(*images, json.loads(sys.argv[3])) for file in sys.argv[4:]}
print(json.dumps({file: [answer.points.tolist(), answer.confidence.tolist()] for file, answer in answers.items()}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The student of a fit by its precisions: its own file as "torch", and those that were exported."""
    folder = tmp_path_factory.mktemp("round")
    small = ["student.backbone=test_resnet", "student.strides=[8,16]", "student.consensus=0", f"data.size={SIZE}"]
    pairs = ["train.n_pairs=16", "val.n_pairs=8", "test.n_pairs=8", "trainer=smoke", "teacher=oracle"]
    assert main(["fit", f"run.dir={folder}/fit", f"labels.dir={folder}/labels", *small, *pairs]) == 0
    made = {"torch": folder / "fit/student.safetensors", "fp32": folder / "fit/student.onnx"}
    for precision in ("fp16", "int8"):
        made[precision] = folder / f"{precision}.onnx"
        few = ["gate_pairs=8", "calibration_pairs=16", "insist=true"]
        assert main(["export", f"ckpt={made['torch']}", f"file={made[precision]}", f"precision={precision}", *few]) == 0
    return made


def test_every_file_is_evaluated_to_the_students_figures_within_the_gate(files, tmp_path):
    figures = {}
    for name, file in files.items():
        matcher = ["matcher=student", f"ckpt={file}"] if name == "torch" else ["matcher=onnx", f"file={file}"]
        where = [f"run.dir={tmp_path / name}", f"data.size={SIZE}", "data.n_pairs=40"]
        assert main(["evaluate", *matcher, *where]) == 0
        figures[name] = json.loads((tmp_path / name / "metrics.json").read_text())["pck"]["image"]
    for alpha, expected in figures["torch"].items():
        assert abs(figures["fp32"][alpha] - expected) < 0.05
        assert abs(figures["fp16"][alpha] - expected) <= 2  # one of some 400 points is a quarter of a point
        assert abs(figures["int8"][alpha] - expected) <= 8  # of weights that one epoch has hardly trained
    assert figures["torch"]["0.10"] > 0


def test_what_a_file_says_of_its_loss_is_what_the_gate_allows_or_was_insisted_on(files):
    for name in ("fp16", "int8"):
        metadata = {entry.key: entry.value for entry in onnx.load(files[name]).metadata_props}
        figure = json.loads(metadata["figures"])["pck@0.10"]
        assert metadata["precision"] == name and figure["pairs"] == 8
        assert figure["torch"] - figure["file"] <= (LARGEST_LOSS if name == "fp16" else 20)


def test_the_file_of_a_fit_names_teacher_data_and_figures(files):
    metadata = {entry.key: entry.value for entry in onnx.load(files["fp32"]).metadata_props}
    figures = json.loads(metadata["figures"])
    report = json.loads((files["fp32"].parent / "metrics.json").read_text())
    student = next(row for row in report["matchers"] if row["matcher"] == "student")
    assert figures["pck@0.10"] == student["pck"]["image"]["0.10"]
    assert figures["convention"] == "per image, bbox, shapes test, 8 pairs"
    assert "Oracle" in json.loads(metadata["teacher"])["class"] and json.loads(metadata["data"])["n_pairs"] == 16


def test_an_environment_without_torch_gives_the_same_answers(files, tmp_path, root):
    site = Path(sysconfig.get_path("purelib"))
    venv.create(tmp_path / "env")
    own = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    for name in NEEDED:
        if (site / name).exists():
            (own / name).symlink_to(site / name)
    (own / "distill").symlink_to(root / "distill")
    pair = ShapesPairs(size=SIZE, split="val", n_pairs=1)[0]
    images = []
    for name, image in (("a", pair.src_img), ("b", pair.trg_img)):
        images.append(tmp_path / f"{name}.png")
        Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(images[-1])
    points = pair.src_kps[0][pair.kps_mask[0]].tolist()
    exported = [str(files[name]) for name in ("fp32", "fp16", "int8")]
    command = [tmp_path / "env/bin/python", "-c", SCRIPT, *images, json.dumps(points), *exported]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={})
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    read = [distill.read_image(image) for image in images]
    student = distill.match_images(distill.load_student(files["torch"]), *read, torch.tensor(points))
    np.testing.assert_allclose(answers[exported[0]][0], student.trg_kps[0], atol=0.05)
    np.testing.assert_allclose(answers[exported[0]][1], student.confidence[0], atol=1e-3)
    for file, (found, _) in answers.items():
        same = distill.match_images(OnnxMatcher(file), *read, torch.tensor(points))
        np.testing.assert_allclose(found, same.trg_kps[0], atol=0.05, err_msg=file)
