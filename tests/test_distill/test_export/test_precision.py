"""Files of reduced precision, the gate by PCK, and what a file says of itself."""

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from distill.cli.commands.export import gate_pairs
from distill.core.digest import state_digest
from distill.core.errors import ConfigError, ExportError
from distill.core.types import Matches
from distill.data.datasets.shapes import ShapesPairs
from distill.export import gate
from distill.export.gate import Gate
from distill.export.onnx import BOUNDS, export_student
from distill.export.precision import encoder_parts, in_half
from distill.export.split import export_split
from distill.matchers.oracle import Oracle
from student import StudentMatcher

CONFIG = {"_target_": "student.StudentMatcher", "backbone": "test_resnet", "size": 64}
ABOUT = {"teacher": {"class": "a teacher"}, "data": {"name": "shapes"}, "licences": {"data": "CC0"}}


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return StudentMatcher("test_resnet", [8, 16], 16).eval()


@pytest.fixture(scope="module")
def pairs():
    return {split: ShapesPairs(size=64, split=split, n_pairs=6) for split in ("train", "val")}


@pytest.fixture(scope="module", params=["fp16", "int8"])
def made(request, student, pairs, tmp_path_factory):
    """The precision, the file, and its deviation from torch."""
    file, about = tmp_path_factory.mktemp("precision") / "s.onnx", dict(insist=True, about=ABOUT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # NumPy's, which nobody who exports can do anything about
        deviation = export_student(student, file, 64, CONFIG, request.param, pairs["train"], pairs["val"], **about)
    return request.param, file, deviation


@pytest.mark.slow
def test_the_encoder_is_of_the_precision_asked_for_and_the_rest_is_single(made):
    precision, file, deviation = made
    kind, tolerance = {"fp16": (TensorProto.FLOAT16, 0.01), "int8": (TensorProto.INT8, 0.2)}[precision]
    assert 0 < deviation.heatmap < tolerance and deviation.gate.n_pairs == 6
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8 and {entry.domain for entry in model.opset_import} == {""}
    ends = [*model.graph.input, *model.graph.output]
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4 and np.prod(tensor.dims) > 100]
    assert weights and {tensor.data_type for tensor in weights} == {kind}
    types = {
        info.name: info.type.tensor_type.elem_type for info in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    softmax = [node.output[0] for node in model.graph.node if node.op_type in ("Softmax", "Einsum")]
    assert softmax and {types[name] for name in softmax} == {TensorProto.FLOAT}
    if precision == "int8":
        scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        channels = [s for name, s in scales.items() if name.endswith("_scale") and s.ndim == 1 and s.size > 1]
        assert channels, "the weights are scaled per channel"


@pytest.mark.slow
def test_a_file_says_what_it_is_whose_answers_it_learned_and_how_good_it_is(made, student):
    precision, file, deviation = made
    said = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    assert said["format"] == "distill-onnx-1" and said["precision"] == precision and said["size"] == "64"
    assert said["architecture"].startswith("StudentMatcher on test_resnet, ")
    assert json.loads(said["input"])["range"] == [0, 1] and json.loads(said["input"])["size"] == [64, 64]
    assert json.loads(said["student"]) == CONFIG and said["fingerprint"] == state_digest(student)
    assert {key: json.loads(said[key]) for key in ABOUT} == ABOUT
    figures = json.loads(said["figures"])["pck@0.10"]
    assert (figures["torch"], figures["file"], figures["pairs"]) == (deviation.gate.torch, deviation.gate.file, 6)
    assert figures["convention"] == "per image, bbox, shapes val"


def test_the_encoder_in_half_precision_takes_and_gives_single_precision(student):
    assert encoder_parts(student) == ["backbone", "fusion"]
    half, images = in_half(student), torch.rand(2, 3, 64, 64)
    assert {p.dtype for p in half.backbone.parameters()} == {torch.float16}
    assert half.log_temperature.dtype == torch.float32 and student.backbone.mean.dtype == torch.float32
    with torch.no_grad():
        found, expected = half.describe(images), student.describe(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(("file", "refused"), [(81.2, False), (80.7, False), (80.6, True), (90.0, False)])
def test_a_file_may_lose_half_a_point_and_no_more(file, refused):
    measured = Gate(torch=81.2, file=file, n_pairs=100, convention="per image, bbox, shapes val")
    if refused:
        with pytest.raises(
            ExportError, match=r"int8 to keep PCK@0.10 within 0.5 points but it falls from 81.2 to 80.6"
        ):
            gate.check(measured, "int8")
    else:
        gate.check(measured, "int8")


class Fixed(torch.nn.Module):
    """Answers with one place in the target for every point."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def forward(self, src_img, trg_img, src_kps):
        return Matches(
            torch.full_like(src_kps, self.place), torch.ones(src_kps.shape[:2]), torch.ones(*src_kps.shape[:2], 2, 2)
        )


def test_the_gate_measures_both_on_the_same_pairs(pairs):
    measured = gate.measure(Oracle(), Fixed(1000.0), pairs["val"])
    assert measured[:3] == (100.0, 0.0, 6) and measured.loss == 100.0


def test_eight_bits_without_pairs_to_calibrate_on_are_refused(student, tmp_path):
    with pytest.raises(ConfigError, match="training pairs to calibrate int8 on but got none"):
        export_student(student, tmp_path / "s.onnx", 64, precision="int8")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_without_pairs_the_answers_themselves_are_checked(precision, student, pairs, tmp_path):
    deviation = export_student(student, tmp_path / "s.onnx", 64, precision=precision, calibration=pairs["train"])
    bounds = BOUNDS[precision]
    assert deviation.gate is None and 0 < deviation.heatmap <= bounds.heatmap and deviation.ties <= bounds.ties
    differs, gated = export_split(student, tmp_path, 64, precision=precision, calibration=pairs["train"])
    assert gated is None and 0 < differs <= bounds.heatmap


class Black(ShapesPairs):
    """Pairs of black images, whose activations say nothing of the range of others."""

    def __getitem__(self, index):
        pair = super().__getitem__(index)
        return pair._replace(src_img=0 * pair.src_img, trg_img=0 * pair.trg_img)


@pytest.mark.slow
def test_a_badly_calibrated_file_is_refused_without_pairs(student, tmp_path):
    black = Black(size=64, split="train", n_pairs=2)
    told = r"answers but \d\d% of the points differ by more than 1 px or 0.125 cells, .* gate_pairs above 0 .* or add insist"
    with pytest.raises(ExportError, match=told):
        export_student(student, tmp_path / "s.onnx", 64, precision="int8", calibration=black)
    with pytest.raises(ExportError, match=told):
        export_split(student, tmp_path, 64, precision="int8", calibration=black)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_backbone_of_another_family_exports(tmp_path):
    """One block a stage; whole ones, fastvit, swin and dinov2 were tried by hand."""
    torch.manual_seed(0)
    student = StudentMatcher("convnext_atto", [8, 16], 16, options={"depths": [1] * 4}).eval()
    deviation = export_student(student, tmp_path / "s.onnx", 64)
    assert deviation.points_px < 1e-3 and deviation.ties == 0


@pytest.mark.slow
def test_backbones_that_do_not_export_are_named_in_one_line(tmp_path):
    student = StudentMatcher("eva02_tiny_patch14_224", [14], 16, options={"depth": 1}).eval()  # nor does maxvit
    with pytest.raises(ExportError, match="exports to ONNX but eva02_tiny_patch14_224 is none") as caught:
        export_student(student, tmp_path / "s.onnx", 224)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not list(tmp_path.iterdir())


def test_pairs_of_other_data_than_the_student_learned_from_are_named(pairs, student, capsys):
    assert gate_pairs(pairs["val"], student, {"data": {"name": "folder"}}) is pairs["val"]
    assert "compared on shapes, but the student was trained on folder; data=folder" in capsys.readouterr().out
    for about in ({"data": {"name": "shapes"}}, {}, {"data": "shapes"}, {"data": {"name": 5}}):
        assert gate_pairs(pairs["val"], student, about) is pairs["val"]
    assert gate_pairs(None, student, {}) is None and capsys.readouterr().out == ""


def test_a_file_is_compared_with_its_student_where_nothing_is_annotated(pairs, student, capsys, monkeypatch):
    monkeypatch.setattr(pairs["val"], "has_truth", False, raising=False)
    found = gate.measure(student, student, gate_pairs(pairs["val"], student, {}))
    assert (found.torch, found.file) == (100, 100) and "near the student's own" in capsys.readouterr().out

    def elsewhere(src_img, trg_img, src_kps):
        answer = student(src_img, trg_img, src_kps)
        return answer._replace(trg_kps=64 - answer.trg_kps.round())

    assert gate.measure(student, elsewhere, gate_pairs(pairs["val"], student, {})).file < 90
