"""An ONNX file from a stranger: it reads no other file, and its metadata is data."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from distill.core.errors import WeightsError
from distill.export.onnx_matcher import OnnxMatcher

SIZE = 16


def model(size=str(SIZE), shapes=(("pairs", 3, SIZE, SIZE), ("pairs", "points", 2)), tensors=(), nodes=(), **metadata):
    """Returns a small file with the contract's names, which answers with the points it was given."""
    names = ("src_img", "trg_img", "src_kps")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, (shapes[0], *shapes), strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("trg_kps", "confidence", "heatmap")
    ]
    body = [
        helper.make_node("Identity", ["src_kps"], ["trg_kps"]),
        helper.make_node("ReduceMax", ["src_kps"], ["confidence"], keepdims=0, axes=[-1]),
        helper.make_node("Unsqueeze", ["src_kps", "last"], ["heatmap"]),
    ]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [3])
    graph = helper.make_graph([*nodes, *body], "g", inputs, outputs, [last, *tensors])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(made, {"size": size, **metadata})
    return made


def external(location):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def ask(path):
    image = torch.full((1, 3, SIZE, SIZE), 0.5)
    return OnnxMatcher(path)(image, image, torch.tensor([[[1.0, 2.0]]]))


def test_the_file_that_the_others_differ_from_is_accepted(tmp_path):
    onnx.save(model(), tmp_path / "m.onnx")
    assert ask(tmp_path / "m.onnx").trg_kps.tolist() == [[[1.0, 2.0]]]


@pytest.mark.parametrize("location", ["inner/../../secret.bin", "../secret.bin", "/absolute", "beside.bin"])
def test_weights_in_another_file_are_refused(tmp_path, location):
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    for file in (tmp_path / "secret.bin", folder / "beside.bin"):
        np.arange(4, dtype=np.float32).tofile(file)
    location = str(tmp_path / "secret.bin") if location == "/absolute" else location
    node = helper.make_node("Identity", ["w"], ["unused"])
    (folder / "m.onnx").write_bytes(model(tensors=[external(location)], nodes=[node]).SerializeToString())
    with pytest.raises(WeightsError, match="which needs no other, but it cannot be read") as caught:
        OnnxMatcher(folder / "m.onnx")
    assert "\n" not in str(caught.value)


def test_a_description_in_the_metadata_is_not_built(tmp_path):
    marker = tmp_path / "marker"
    hostile = {"_target_": "pathlib.Path.touch", "_args_": [str(marker)]}
    onnx.save(model(student=json.dumps(hostile), about=json.dumps(hostile)), tmp_path / "m.onnx")
    ask(tmp_path / "m.onnx")
    assert not marker.exists()


@pytest.mark.parametrize("size", ["", "0", "-1", "1e3", "²", "9" * 30, "999999", "17"])
def test_a_size_that_is_none_or_another_than_the_graphs_is_refused(tmp_path, size):
    onnx.save(model(size=size), tmp_path / "m.onnx")
    with pytest.raises(WeightsError, match="Expected a student that distill exported"):
        OnnxMatcher(tmp_path / "m.onnx")


def test_operators_of_a_foreign_library_are_refused(tmp_path):
    node = helper.make_node("Run", ["src_kps"], ["unused"], domain="hostile")
    made = model(nodes=[node])
    made.opset_import.append(helper.make_opsetid("hostile", 1))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(WeightsError, match="cannot be read"):
        OnnxMatcher(tmp_path / "m.onnx")


def test_answers_of_another_shape_are_refused(tmp_path):
    made = model()
    made.graph.node[0].op_type = "Shape"  # trg_kps becomes whole numbers of another shape
    made.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(WeightsError, match="its answers have the shapes"):
        ask(tmp_path / "m.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 an archive", b"{}"])
def test_files_that_are_no_model_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        OnnxMatcher(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
