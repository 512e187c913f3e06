import copy
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from distill.core.errors import ConfigError, DataError, ExportError, WeightsError
from distill.core.types import Matches
from distill.export import onnx as export_module
from distill.export.gate import Gate
from distill.export.onnx import BOUNDS, Deviation, best_of, check, export_student, near_px, verify
from distill.export.onnx_matcher import OnnxMatcher
from student import StudentMatcher

SETTINGS = {"plain": {}, "every step": {"consensus": 3.0, "refinement": 8, "upsample": 1}}


@pytest.fixture(scope="module", params=SETTINGS.values(), ids=SETTINGS)
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8, 16], 16, **request.param).eval()
    path = tmp_path_factory.mktemp("onnx") / "student.onnx"
    return student, path, export_student(student, path, 64, {"backbone": "test_resnet"})


def test_the_file_gives_the_students_answers_at_any_number_of_pairs_and_points(exported, make_pairs):
    student, path, deviation = exported
    assert deviation.points_px < 0.05 and deviation.ties <= 0.02
    matcher = OnnxMatcher(path)
    for n in (1, 9):
        pair = make_pairs(n, size=64)
        with torch.no_grad():
            expected = student(pair.src_img, pair.trg_img, pair.src_kps)
        torch.testing.assert_close(
            matcher(pair.src_img, pair.trg_img, pair.src_kps).trg_kps, expected.trg_kps, atol=0.05, rtol=0
        )


def test_the_free_dimensions_have_names(exported):
    graph = onnx.load(exported[1]).graph
    dims = {i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input}
    assert dims["src_img"] == dims["trg_img"] == ["pairs", 3, 64, 64] and dims["src_kps"] == ["pairs", "points", 2]


def test_images_of_another_size_are_resized_and_points_come_back_in_their_pixels(exported, make_pairs):
    pair = make_pairs(3, size=128)
    answer = OnnxMatcher(exported[1])(pair.src_img, pair.trg_img, pair.src_kps)
    assert answer.trg_kps.shape == (1, 3, 2) and float(answer.trg_kps.max()) <= 128


def test_another_students_file_is_found_out(exported):
    other = copy.deepcopy(exported[0])
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    with pytest.raises(ExportError, match="ONNX file to give the student's answers"):
        verify(OnnxMatcher(exported[1]), other, 64)


def with_added(path, output: str, number: float) -> onnx.ModelProto:
    """Returns the graph of a file with ``number`` added to one of its outputs."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.output[:] = ["before" if name == output else name for name in node.output]
        node.input[:] = ["before" if name == output else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number, np.float32), "added"))
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "added"], [output]))
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.fixture
def exported_as(exported, tmp_path, monkeypatch):
    """Exports the student in half precision, for which the given graphs are taken."""

    def export(*graphs, **settings):
        monkeypatch.setattr(export_module, "candidates", lambda *_: iter(graphs))
        return export_student(exported[0], tmp_path / "s.onnx", 64, precision="fp16", **settings), tmp_path / "s.onnx"

    return export


def test_a_file_whose_points_are_all_far_off_never_wins(exported, exported_as, make_pairs):
    """Points that are farther off than the bound are left out of the largest distance, which was all that counted."""
    student, path, _ = exported
    worse = with_added(path, "trg_kps", 40.0)
    for graphs in ([worse, onnx.load(path)], [onnx.load(path), worse]):
        deviation, file = exported_as(*graphs)
        assert deviation.ties == 0 and deviation.points_px < 0.05
        pair = make_pairs(9, size=64)
        with torch.no_grad():
            expected = student(pair.src_img, pair.trg_img, pair.src_kps).trg_kps
        found = OnnxMatcher(file)(pair.src_img, pair.trg_img, pair.src_kps).trg_kps
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize(("output", "number"), [("trg_kps", 2.0), ("confidence", -0.1), ("heatmap", 3.0)])
def test_a_file_of_reduced_precision_that_answers_otherwise_is_refused_without_pairs(
    exported, exported_as, tmp_path, output, number
):
    worse = with_added(exported[1], output, number)
    told = "student's answers but .* where fp16 may reach 10%, 0.05 and 0.02; export precision=fp32, set gate_pairs above 0"
    with pytest.raises(ExportError, match=told):
        exported_as(worse)
    assert not list(tmp_path.iterdir())
    exported_as(worse, insist=True)


@pytest.mark.parametrize("output", ["trg_kps", "confidence", "heatmap"])
def test_a_file_that_gives_nan_is_refused_in_any_case(exported, exported_as, tmp_path, output):
    with pytest.raises(ExportError, match="gives NaN or infinity; export precision=fp32"):
        exported_as(with_added(exported[1], output, float("nan")), insist=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", BOUNDS)
def test_a_file_may_reach_its_bounds_and_no_more_where_no_pck_decides(precision):
    bounds = BOUNDS[precision]
    check(bounds, precision)
    assert all(np.isfinite(bounds[:4])), precision
    for name in ("ties", "confidence", "heatmap"):
        beyond = bounds._replace(**{name: 1.01 * getattr(bounds, name)})
        with pytest.raises(ExportError, match=f"where {precision} may reach"):
            check(beyond, precision)
        check(beyond._replace(gate=Gate(80.0, 79.8, 40, "per image")), precision)


def test_the_best_of_several_files_loses_least_pck_or_without_pairs_has_fewest_ties():
    def best(*found: Deviation) -> int:
        return found.index(best_of(range(len(found)), lambda number: found[number])[0])

    far, near = Deviation(0.0, 1.0, 0.0, 0.0), Deviation(0.9, 0.0, 0.0, 0.0)
    assert best(far, near) == 1 and best(near, far) == 0 and best(near, near._replace(points_px=0.8)) == 1
    lost = Gate(80.0, 79.0, 40, "per image")
    assert best(near._replace(gate=lost), far._replace(gate=lost._replace(file=79.5))) == 1
    assert best(far._replace(gate=lost), near._replace(gate=lost)) == 0, "which is the smaller file"


def test_answers_of_reduced_precision_are_near_within_a_pixel_or_an_eighth_of_a_cell():
    assert [near_px(precision, 16) for precision in BOUNDS] == [0.05, 2, 2]
    assert [near_px(precision, 4) for precision in BOUNDS] == [0.05, 1, 1]


class Overflowing(nn.Module):
    """Finite weights, and confidences that are none."""

    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, *query):
        answer = self.student(*query)
        return answer._replace(confidence=answer.confidence / 0 * 0)


def test_a_student_of_nan_leaves_no_file(exported, tmp_path):
    student = StudentMatcher("test_resnet", [8, 16], 16).eval()
    with torch.no_grad():
        student.fusion.refine[3].bias.fill_(float("nan"))
    with pytest.raises(WeightsError, match="finite answers but its fusion.refine.3.bias holds NaN"):
        export_student(student, tmp_path / "nan.onnx", 64)
    with pytest.raises(WeightsError, match="finite answers but it gives NaN"):  # what only its answers show
        verify(OnnxMatcher(exported[1]), Overflowing(exported[0]), 64)
    assert not list(tmp_path.iterdir())


def test_files_that_are_none_of_ours_are_told_apart(exported, tmp_path):
    with pytest.raises(ConfigError, match="file="):
        OnnxMatcher(None)
    with pytest.raises(WeightsError, match="there is none at"):
        OnnxMatcher(tmp_path / "none.onnx")
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(exported[1].read_bytes()[:2000])
    with pytest.raises(WeightsError, match="cannot be read"):
        OnnxMatcher(cut)


def test_bad_settings_are_refused_before_anything_is_traced(exported, tmp_path):
    with pytest.raises(ConfigError, match="fp32"):
        export_student(exported[0], tmp_path / "x.onnx", 64, precision="fp23")
    with pytest.raises(ConfigError, match="positive"):
        export_student(exported[0], tmp_path / "x.onnx", 0)
    with pytest.raises(DataError, match="is a folder"):
        export_student(exported[0], tmp_path, 64)


def test_the_lowest_ir_version_that_the_operator_set_allows_is_written_without_grid_sample(exported):
    model = onnx.load(exported[1])
    assert model.ir_version == 8 and [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    onnx.checker.check_model(model, full_check=True)
    assert not {node.op_type for node in model.graph.node} & {"GridSample"}, "which not every runtime has"


def test_whole_number_points_get_answers_that_are_no_whole_numbers(exported, make_pairs):
    matcher = OnnxMatcher(exported[1])
    for size in (64, 100):  # the file's size, and one that is resized
        pair = make_pairs(4, size=size)
        points = pair.src_kps.round()
        expected = matcher(pair.src_img, pair.trg_img, points)
        found = matcher(pair.src_img, pair.trg_img, points.long())
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
        assert found.trg_kps.dtype == torch.float32 and bool((found.trg_kps % 1 != 0).any())


def test_answers_of_the_file_are_single_precision_whatever_the_points_are(exported, make_pairs):
    pair = make_pairs(4, size=64)
    for dtype in (torch.float64, torch.bfloat16):
        answer = OnnxMatcher(exported[1])(pair.src_img, pair.trg_img, pair.src_kps.to(dtype))
        assert {field.dtype for field in answer} == {torch.float32}


def test_no_points_get_no_answers(exported, make_pairs):
    pair = make_pairs(2, size=64)
    side = 8 * 2 ** len(exported[0].fusion.upsample)
    answer = OnnxMatcher(exported[1])(pair.src_img, pair.trg_img, pair.src_kps[:, :0])
    assert [tuple(field.shape) for field in answer] == [(1, 0, 2), (1, 0), (1, 0, side, side)]


def test_onnx_runtime_asked_for_no_points_does_not_end_the_process(exported):
    """The interpolation of an empty map ended ONNX Runtime 1.32 with SIGFPE."""
    side = 8 * 2 ** len(exported[0].fusion.upsample)
    code = f"""
import numpy, onnxruntime
session = onnxruntime.InferenceSession({str(exported[1])!r}, providers=["CPUExecutionProvider"])
image = numpy.full((1, 3, 64, 64), 0.5, "float32")
points = numpy.zeros((1, 0, 2), "float32")
print([field.shape for field in session.run(None, {{"src_img": image, "trg_img": image, "src_kps": points}})])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"[(1, 0, 2), (1, 0), (1, 0, {side}, {side})]"


def test_a_query_that_is_none_is_refused_by_the_file_and_by_torch(exported, make_pairs):
    student, path, _ = exported
    pair = make_pairs(2, size=64)
    for matcher in (student, OnnxMatcher(path)):
        with pytest.raises(DataError, match="divide by 255"):
            matcher((255 * pair.src_img).byte(), pair.trg_img, pair.src_kps)
        with pytest.raises(DataError, match="divide by 255"):
            matcher(255 * pair.src_img, pair.trg_img, pair.src_kps)
        with pytest.raises(DataError, match="inside its image"):
            matcher(pair.src_img, pair.trg_img, pair.src_kps + 64)
        with pytest.raises(DataError, match="add a batch axis"):
            matcher(pair.src_img[0], pair.trg_img[0], pair.src_kps[0])
        with pytest.raises(DataError, match="numpy.ndarray"):
            matcher(pair.src_img.numpy(), pair.trg_img, pair.src_kps)
    with pytest.raises(DataError, match="one size"):
        student(pair.src_img, pair.trg_img[..., :48], pair.src_kps)


class Unexportable(nn.Module):
    """Answers as a student does, by a loop whose length depends on the pixels."""

    def forward(self, src_img, trg_img, src_kps):
        if float(src_img.mean()) > 0.5:
            src_kps = src_kps + 1
        return Matches(src_kps, src_kps[..., 0], src_kps[..., None])


def test_a_student_that_does_not_export_ends_in_one_line_and_leaves_no_file(tmp_path):
    with pytest.raises(ExportError, match="Expected a student that torch exports to ONNX but Unexportable") as caught:
        export_student(Unexportable(), tmp_path / "x.onnx", 64)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not list(tmp_path.iterdir())


class Failing(nn.Module):
    """Cannot be traced, and says why in the second line."""

    def forward(self, src_img, trg_img, src_kps):
        raise RuntimeError("It failed:\n  the second line says why.")


def test_what_torch_says_of_a_failure_is_told_beyond_its_first_line(tmp_path):
    with pytest.raises(ExportError, match="RuntimeError, It failed: the second line says why; the student itself"):
        export_student(Failing(), tmp_path / "x.onnx", 64)
