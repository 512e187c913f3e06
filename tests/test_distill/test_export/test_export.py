import onnx
import pytest
import torch

from distill.core.errors import ConfigError, DataError, WeightsError
from distill.export.onnx import export_student, verify
from distill.export.onnx_matcher import OnnxMatcher
from student import StudentMatcher


@pytest.fixture(scope="module", params=[0.0, 3.0], ids=["plain", "voting"])
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8, 16], 16, consensus=request.param).eval()
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
    other = StudentMatcher("test_resnet", [8, 16], 16).eval()
    with pytest.raises(WeightsError, match="ONNX file to give the student's answers"):
        verify(exported[1], other, 64)


def test_a_student_of_nan_leaves_no_file(exported, tmp_path):
    student = StudentMatcher("test_resnet", [8, 16], 16).eval()
    with torch.no_grad():
        student.fusion.refine[3].bias.fill_(float("nan"))
    with pytest.raises(WeightsError, match="finite answers"):
        export_student(student, tmp_path / "nan.onnx", 64)
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
