"""A student as two files: descriptors once an image, then matches."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from distill.core.errors import ConfigError, DataError, WeightsError
from distill.data.datasets.shapes import ShapesPairs
from distill.export.onnx import example
from distill.export.onnx_matcher import OnnxMatcher
from distill.export.runtime import SplitMatcher
from distill.export.split import export_split
from student import StudentMatcher

pytestmark = pytest.mark.slow


@pytest.fixture
def exported(exported_page):
    return exported_page


def matcher(folder):
    return SplitMatcher(folder / "encode.onnx", folder / "correlate.onnx")


def test_descriptors_once_an_image_give_the_students_answers_for_several_targets(exported):
    student, folder = exported
    src, trg, points = example(3, 5, 128, seed=9)
    images = [[image.permute(1, 2, 0).numpy() for image in stack] for stack in (src, trg)]
    runtime = matcher(folder)
    source = runtime.describe(images[0][0])
    for target in range(3):
        with torch.no_grad():
            expected = student(src[:1], trg[target : target + 1], points[:1])
        answer = runtime.match(source, runtime.describe(images[1][target]), points[0].numpy())
        np.testing.assert_allclose(answer.heatmap, expected.heatmap[0], atol=1e-3)
        difference = float(np.abs(answer.heatmap - expected.heatmap[0].numpy()).max())
        assert difference / float(np.ptp(expected.heatmap[0].numpy())) < 1e-4
        np.testing.assert_allclose(answer.points, expected.trg_kps[0], atol=0.05)


def test_answers_are_in_the_pixels_of_the_images_and_no_points_get_none(exported):
    runtime = matcher(exported[1])
    wide = np.random.default_rng(0).random((40, 200, 3))
    source, target = runtime.describe(wide), runtime.describe(wide.transpose(1, 0, 2))
    answer = runtime.match(source, target, [(150.0, 20.0)])
    assert (answer.points <= [40, 200]).all() and (answer.points >= 0).all()
    assert runtime.match(source, target, []).points.shape == (0, 2)
    with pytest.raises(DataError, match="inside the source of 200 x 40 px"):
        runtime.match(source, target, [(20.0, 150.0)])


def test_what_was_not_described_by_these_files_is_refused(exported):
    runtime, image = matcher(exported[1]), np.random.default_rng(0).random((40, 50, 3))
    described = runtime.describe(image)
    with pytest.raises(DataError, match="Expected src as describe returns it but got ndarray"):
        runtime.match(image, described, [(1, 1)])
    with pytest.raises(WeightsError, match="Expected an answer of two files but ONNX Runtime says"):
        runtime.match(described, described._replace(map=described.map[:, :-1]), [(1, 1)])


def test_the_graphs_have_names_opset_18_and_no_grid_sample(exported):
    names = {
        "encode": (["images"], ["descriptors"]),
        "correlate": (["src_map", "trg_map", "src_kps"], None),
    }
    for name, (inputs, outputs) in names.items():
        model = onnx.load(exported[1] / f"{name}.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert model.ir_version == 8 and [(e.domain, e.version) for e in model.opset_import] == [("", 18)]
        assert [value.name for value in model.graph.input] == inputs
        assert [value.name for value in model.graph.output] == (outputs or ["trg_kps", "confidence", "heatmap"])
        assert "GridSample" not in {node.op_type for node in model.graph.node}
    dims = [d.dim_param for d in onnx.load(exported[1] / "correlate.onnx").graph.input[2].type.tensor_type.shape.dim]
    assert dims[:2] == ["pairs", "points"]


def test_files_of_two_students_are_refused(exported, tmp_path):
    model = onnx.load(exported[1] / "correlate.onnx")
    next(entry for entry in model.metadata_props if entry.key == "fingerprint").value = "another"
    onnx.save(model, tmp_path / "correlate.onnx")
    with pytest.raises(WeightsError, match="of one student"):
        SplitMatcher(exported[1] / "encode.onnx", tmp_path / "correlate.onnx")
    with pytest.raises(WeightsError, match="of one student"):
        SplitMatcher(exported[1] / "correlate.onnx", exported[1] / "encode.onnx")


def test_files_whose_descriptors_differ_in_length_are_refused(exported, tmp_path):
    encode, correlate = (onnx.load(exported[1] / f"{name}.onnx") for name in ("encode", "correlate"))
    dims = {i.name: [d.dim_value or d.dim_param for d in i.type.tensor_type.shape.dim] for i in correlate.graph.input}
    assert dims["src_map"] == dims["trg_map"]
    dims["src_map"][1] = dims["trg_map"][1] = dims["src_map"][1] // 2  # as of a student without the flip test
    inputs = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in dims.items()]
    outputs = [onnx.helper.make_tensor_value_info("out", TensorProto.FLOAT, dims["src_map"])]
    nodes = [onnx.helper.make_node("Identity", ["src_map"], ["out"])]
    graph = onnx.helper.make_graph(nodes, "another", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=correlate.opset_import, ir_version=8)
    onnx.helper.set_model_props(model, {entry.key: entry.value for entry in encode.metadata_props})
    onnx.save(model, tmp_path / "correlate.onnx")
    with pytest.raises(WeightsError, match="of one student"):
        SplitMatcher(exported[1] / "encode.onnx", tmp_path / "correlate.onnx")


def test_what_cannot_be_split_is_refused_before_anything_is_traced(tmp_path):
    refined = StudentMatcher("test_resnet", [8, 16], 16, refinement=8).eval()
    with pytest.raises(ConfigError, match="also compares pixels"):
        export_split(refined, tmp_path, 64)
    with pytest.raises(ConfigError, match="training pairs to calibrate int8 on but got none"):
        export_split(refined, tmp_path, 64, precision="int8")
    with pytest.raises(ConfigError, match="fp32"):
        export_split(refined, tmp_path, 64, precision="fp23")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_two_files_is_a_matcher_like_a_single_file(exported, make_pairs):
    student, folder = exported
    pair = make_pairs(5, size=128)
    with torch.no_grad():
        expected = student(pair.src_img, pair.trg_img, pair.src_kps)
    found = OnnxMatcher(folder)(pair.src_img, pair.trg_img, pair.src_kps)
    torch.testing.assert_close(found.heatmap, expected.heatmap, atol=1e-3, rtol=1e-3)
    figures = {e.key: e.value for e in onnx.load(folder / "encode.onnx").metadata_props}["figures"]
    assert json.loads(figures)["pck@0.10"]["pairs"] == 8  # gate_pairs of the export


def test_descriptors_on_whole_numbers_are_calibrated_on_training_pairs_and_judged_by_pck(tmp_path):
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8, 16], 16).eval()
    train, val = (ShapesPairs(size=64, split=split, n_pairs=4) for split in ("train", "val"))
    differs, found = export_split(student, tmp_path, 64, None, "int8", None, val, True, train)
    assert 1e-4 < differs < 0.2 and found.n_pairs == 4
    encode, correlate = (onnx.load(tmp_path / f"{name}.onnx") for name in ("encode", "correlate"))
    weights = [tensor for tensor in encode.graph.initializer if len(tensor.dims) == 4 and np.prod(tensor.dims) > 100]
    kinds = {tensor.data_type for tensor in weights}
    assert onnx.TensorProto.INT8 in kinds and encode.ByteSize() < 0.5 * sum(p.numel() * 4 for p in student.parameters())
    assert not {node.op_type for node in correlate.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    src, trg, points = example(1, 5, 64, seed=3)
    with torch.no_grad():
        expected = student(src, trg, points).heatmap
    heatmap = OnnxMatcher(tmp_path)(src, trg, points).heatmap
    assert float((heatmap - expected).abs().max()) < 0.2 * float(expected.max() - expected.min())
    said = {entry.key: entry.value for entry in correlate.metadata_props}
    assert said["precision"] == "int8" and json.loads(said["figures"])["pck@0.10"]["file"] == found.file
