"""A student of letterboxed images, asked without torch: images, points, answers and heatmaps, against arithmetic and torch."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx_metadata import with_metadata
from PIL import Image
from torch.nn import functional as F

import distill
from distill.core.errors import WeightsError
from distill.core.squares import letterbox
from distill.data.photographs import PhotographReader
from distill.export.runtime import Matcher, SplitMatcher, read_image
from distill.export.runtime_images import Square
from student import StudentMatcher

SIDE = 64
SIZES = {"wide": (64, 40), "tall": (31, 64), "large-wide": (150, 90), "large-tall": (70, 121)}  # width, height, px


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for name, size in SIZES.items():
        pixels = random.integers(0, 256, (7, 7, 3), np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return {name: folder / f"{name}.png" for name in SIZES}


@pytest.fixture(scope="module")
def letterboxed(exported_file, tmp_path_factory):
    return with_metadata(exported_file, tmp_path_factory.mktemp("letterbox") / "student.onnx", resize="letterbox")


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return StudentMatcher("test_resnet", [8, 16], 16).eval()  # that of ``exported_file``


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    """A file of the form of a student that answers the points as it got them, its heatmaps being the target's red channel."""
    square = [1, 3, SIDE, SIDE]
    inputs = [("src_img", square), ("trg_img", square), ("src_kps", [1, "n", 2])]
    outputs = [("trg_kps", [1, "n", 2]), ("confidence", [1, "n"]), ("heatmap", [1, "n", SIDE, SIDE])]
    tensors = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in some] for some in (inputs, outputs)]
    numbers = {"none": 0.0, "last": [2], "starts": [0], "ends": [1], "axes": [1], "cells": [2, 3]}
    kinds = {name: TensorProto.FLOAT if name == "none" else TensorProto.INT64 for name in numbers}
    constants = [
        helper.make_tensor(name, kinds[name], np.shape(value), np.ravel(value)) for name, value in numbers.items()
    ]
    nodes = [
        helper.make_node("Identity", ["src_kps"], ["trg_kps"]),
        helper.make_node("Mul", ["src_kps", "none"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "last"], ["confidence"], keepdims=0),
        helper.make_node("Slice", ["trg_img", "starts", "ends", "axes"], ["red"]),
        helper.make_node("Unsqueeze", ["confidence", "cells"], ["ones"]),
        helper.make_node("Add", ["red", "ones"], ["heatmap"]),
    ]
    graph = helper.make_graph(nodes, "echo", *tensors, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"size": str(SIDE), "resize": "letterbox"})
    file = tmp_path_factory.mktemp("echo") / "echo.onnx"
    onnx.save(model, file)
    return file


def test_a_point_lies_where_arithmetic_has_it(echo):
    """200 x 100 px lie on rows 16 to 48 of the square, 100 x 200 px on its columns 16 to 48; both scales are 0.32."""
    wide, tall = np.zeros((100, 200, 3), np.uint8), np.zeros((200, 100, 3), np.uint8)
    found = Matcher(echo).match(wide, tall, [(50, 25), (125, 50), (0, 0)])
    # In the square: (16, 24), (40, 32), (0, 16). The last is on the padding of the tall target, 50 px left of it.
    np.testing.assert_allclose(found.points, [(0, 75), (75, 100), (0, 50)], atol=1e-4)
    back = Matcher(echo).match(wide, wide, [(50, 25), (199.5, 99.5)])
    np.testing.assert_allclose(back.points, [(50, 25), (199.5, 99.5)], atol=1e-4)


def test_heatmaps_cover_the_target_and_not_its_padding(echo):
    """The file's heatmap is the red of its target: 1/3 left of the middle, 1 right of it, 124/255 on the padding."""
    target = np.full((100, 200, 3), 85, np.uint8)
    target[:, 100:] = 255
    heatmap = Matcher(echo).match(target, target, [(3, 4)]).heatmap[0]
    expected = np.where(np.arange(SIDE) < SIDE // 2, 1 / 3, 1)[None].repeat(SIDE, 0)
    assert heatmap.shape == (SIDE, SIDE)
    clear = np.ix_(
        range(1, SIDE - 1), [*range(29), *range(35, SIDE)]
    )  # neither mixed with the padding nor across the step
    np.testing.assert_allclose(heatmap[clear], expected[clear], atol=1e-5)
    assert Matcher(echo).match(target, target, []).heatmap.shape == (0, SIDE, SIDE)


@pytest.mark.parametrize(("src", "trg"), [("wide", "tall"), ("tall", "wide")])
def test_it_gives_the_answers_of_the_torch_student_on_letterboxed_photographs(letterboxed, student, pictures, src, trg):
    reader = PhotographReader([], SIDE, "letterbox")
    photographs = [reader(pictures[name]) for name in (src, trg)]
    width, height = SIZES[src]
    points = np.random.default_rng(1).uniform(0, 1, (9, 2)) * (width, height)
    nothing = np.zeros(len(points), bool), np.zeros(4), "", ""
    with torch.no_grad():
        asked = photographs[0].annotated(points, *nothing).keypoints[None]
        expected = student(photographs[0].image[None], photographs[1].image[None], asked)
    x0, y0, x1, y1 = photographs[1].content
    scale = np.array(SIZES[trg]) / (x1 - x0, y1 - y0)
    answer = Matcher(letterboxed).match(*(read_image(pictures[name]) for name in (src, trg)), points)
    places = (expected.trg_kps[0].numpy() - (x0, y0)) * scale
    np.testing.assert_allclose(answer.points, places.clip(0, SIZES[trg]), atol=1e-3)
    assert (places == places.clip(0, SIZES[trg])).all(1).sum() >= 3  # not all are on the padding
    np.testing.assert_allclose(answer.confidence, expected.confidence[0], atol=1e-4)


def test_it_gives_the_answers_and_heatmaps_of_match_images(letterboxed, student, pictures):
    files, points = (
        [pictures[name] for name in ("large-wide", "large-tall")],
        [(30.0, 20.0), (100.5, 70.0), (149.0, 3.0)],
    )
    answer = Matcher(letterboxed).match(*map(read_image, files), points)
    expected = distill.match_images(student, *map(distill.read_image, files), points, size=SIDE, resize="letterbox")
    for found, field, tolerance in zip(answer, expected, (1e-3, 1e-4, 1e-3), strict=True):
        np.testing.assert_allclose(found, field[0], atol=tolerance)


@pytest.mark.parametrize("name", ["large-wide", "large-tall"])
def test_larger_images_are_resized_as_torch_and_the_reader_do(pictures, name):
    width, height = SIZES[name]
    w, h = (64, 38) if name == "large-wide" else (37, 64)  # 64 * 90 / 150 = 38.4, 64 * 70 / 121 = 37.02
    left, top = (64 - w) // 2, (64 - h) // 2
    image = read_image(pictures[name])
    found = Square(SIDE, "letterbox").pixels(image)[0]
    stack = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    content = F.interpolate(stack, (h, w), mode="bilinear", antialias=True)
    expected = F.pad(content, (left, 64 - w - left, top, 64 - h - top), value=124 / 255)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    read = PhotographReader([], SIDE, "letterbox")(pictures[name])
    np.testing.assert_allclose(found, read.image, atol=1.01 / 255)  # Pillow rounds bytes after each axis
    assert letterbox((height, width), SIDE) == (left, top, left + w, top + h)


def test_a_file_that_says_squash_or_nothing_squashes(exported_file, letterboxed, pictures, tmp_path):
    images, points = [read_image(pictures[name]) for name in ("wide", "tall")], [(20.5, 30.0), (1.0, 39.0)]
    said = [with_metadata(exported_file, tmp_path / f"{resize}.onnx", resize=resize) for resize in ("squash", None)]
    squashed, silent = (Matcher(file).match(*images, points) for file in said)
    assert all(np.array_equal(a, b) for a, b in zip(squashed, silent, strict=True))
    own = [np.asarray(Image.fromarray(i.astype(np.float32)).resize((64, 64), 2)) for i in np.float32(images[0] / 255).T]
    np.testing.assert_allclose(Square(SIDE, "squash").pixels(images[0])[0], np.stack(own).transpose(0, 2, 1), atol=1e-5)
    assert np.abs(squashed.points - Matcher(letterboxed).match(*images, points).points).max() > 0.5


@pytest.mark.parametrize("resize", ["crop", "", "Letterbox", "letterbox "])
def test_another_way_to_resize_is_refused(exported_file, tmp_path, resize):
    file = with_metadata(exported_file, tmp_path / "student.onnx", resize=resize)
    with pytest.raises(WeightsError, match="resized by .* which is none of squash, letterbox; export it again"):
        Matcher(file)


@pytest.mark.slow
def test_two_files_letterbox_as_one_does(exported_page, pictures, tmp_path):
    """Their student has consensus, so each image is described flipped, too."""
    student, page = exported_page
    files = [
        with_metadata(page / f"{n}.onnx", tmp_path / f"{n}.onnx", resize="letterbox") for n in ("encode", "correlate")
    ]
    split, square = SplitMatcher(*files), Square(128, "letterbox")
    images = [read_image(pictures[name]) for name in ("large-wide", "large-tall")]
    points = np.array([(30.0, 20.0), (100.0, 70.0)], np.float32)
    found = split.match(*(split.describe(image) for image in images), points)
    # 150 x 90 px lie at (0, 25) as 128 x 77 px, 70 x 121 px at (27, 0) as 74 x 128 px.
    asked = points * (128 / 150, 77 / 90) + (0, 25)
    with torch.no_grad():
        stacks = (torch.from_numpy(square.pixels(image)) for image in images)
        expected = student(*stacks, torch.from_numpy(asked).float()[None])
    places = (expected.trg_kps[0].numpy() - (27, 0)) * (70 / 74, 121 / 128)
    np.testing.assert_allclose(found.points, places.clip(0, (70, 121)), atol=0.05)
    other = with_metadata(page / "correlate.onnx", tmp_path / "other.onnx", resize="squash")
    with pytest.raises(WeightsError, match="of one student"):
        SplitMatcher(files[0], other)
