"""From a fit to files of every precision, evaluated, and run in an environment that has no torch."""

import json
import subprocess
import sysconfig
import venv
from pathlib import Path
from typing import NamedTuple

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
DATA = [f"data.size={SIZE}", "data.difficulty=easy"]
GATE_PAIRS = 200  # some 1,500 points, so that a point of PCK is no chance
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


class Exported(NamedTuple):
    """The student of a fit by its precisions, its own file as "torch", and the precisions that the gate refused."""

    files: dict[str, Path]
    refused: set[str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Exported:
    """A student that is right about two points in three, so that losses are those of the precision."""
    folder = tmp_path_factory.mktemp("round")
    small = ["student.backbone=test_resnet", "student.consensus=0", "student.position=true", "teacher=oracle"]
    few = ["train.n_pairs=96", "val.n_pairs=8", "test.n_pairs=8", "pictures=0", "trainer.max_epochs=8"]
    steps = ["lr=3e-3", "ema=null", "loss=distillation", "self_distillation=null"]
    assert main(["fit", f"run.dir={folder}/fit", f"labels.dir={folder}/labels", *DATA, *small, *few, *steps]) == 0
    files, refused = {"torch": folder / "fit/student.safetensors", "fp32": folder / "fit/student.onnx"}, set()
    for precision in ("fp16", "int8"):
        files[precision] = folder / f"{precision}.onnx"
        asked = [f"ckpt={files['torch']}", f"file={files[precision]}", f"precision={precision}", DATA[1]]
        asked += [f"gate_pairs={GATE_PAIRS}", "calibration_pairs=32"]
        if main(["export", *asked]) != 0:
            assert not files[precision].exists()
            refused.add(precision)
            assert main(["export", *asked, "insist=true"]) == 0
    return Exported(files, refused)


@pytest.fixture(scope="module")
def files(exported) -> dict[str, Path]:
    return exported.files


def test_every_file_keeps_the_students_figures_within_the_gate_or_was_refused(exported, tmp_path):
    figures = {}
    for name, file in exported.files.items():
        matcher = ["matcher=student", f"ckpt={file}"] if name == "torch" else ["matcher=onnx", f"file={file}"]
        where = [f"run.dir={tmp_path / name}", "data.split=val", f"data.n_pairs={GATE_PAIRS}"]
        assert main(["evaluate", *matcher, *DATA, *where]) == 0
        figures[name] = json.loads((tmp_path / name / "metrics.json").read_text())["pck"]["image"]
    expected = figures.pop("torch")
    assert expected["0.10"] > 40
    for alpha, figure in expected.items():
        assert abs(figures["fp32"][alpha] - figure) < 0.05
        assert abs(figures["fp16"][alpha] - figure) <= LARGEST_LOSS
    for name in ("fp16", "int8"):
        loss = expected["0.10"] - figures[name]["0.10"]
        print(
            f"\n{name} loses {loss:.2f} points of {expected['0.10']:.1f}{', and was refused' * (name in exported.refused)}"
        )
        assert (loss > LARGEST_LOSS) == (name in exported.refused)
        metadata = {entry.key: entry.value for entry in onnx.load(exported.files[name]).metadata_props}
        said = json.loads(metadata["figures"])["pck@0.10"]
        assert metadata["precision"] == name and said["pairs"] == GATE_PAIRS
        assert (said["torch"], said["file"]) == (expected["0.10"], figures[name]["0.10"])
    assert "fp16" not in exported.refused


def test_the_file_of_a_fit_names_teacher_data_and_figures(files):
    metadata = {entry.key: entry.value for entry in onnx.load(files["fp32"]).metadata_props}
    figures = json.loads(metadata["figures"])
    report = json.loads((files["fp32"].parent / "metrics.json").read_text())
    student = next(row for row in report["matchers"] if row["matcher"] == "student")
    assert figures["pck@0.10"] == student["pck"]["image"]["0.10"]
    assert figures["convention"] == "per image, bbox, shapes test, 8 pairs"
    assert "Oracle" in json.loads(metadata["teacher"])["class"] and json.loads(metadata["data"])["n_pairs"] == 96


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
