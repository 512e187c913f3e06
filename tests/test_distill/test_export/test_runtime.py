"""The runtime without torch: it agrees with the torch matcher, and refuses what is no query."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import distill
from distill.core.errors import ConfigError, DataError
from distill.export.onnx_matcher import OnnxMatcher
from distill.export.runtime import Matcher, read_image
from distill.export.runtime_query import checked_image

POINTS = [(20.5, 30.0), (88.0, 10.0), (1.0, 59.0)]


@pytest.fixture(scope="module")
def folder(exported_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtime")
    shutil.copyfile(exported_file, folder / "student.onnx")
    generator = np.random.default_rng(0)
    for name, shape in (("a", (60, 90)), ("b", (120, 70))):
        pixels = generator.integers(0, 256, (shape[0] // 10, shape[1] // 10, 3), np.uint8)
        Image.fromarray(pixels).resize(shape[::-1], Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder


def test_it_gives_the_torch_matchers_answers_in_the_images_own_pixels(folder):
    answer = Matcher(folder / "student.onnx").match(read_image(folder / "a.png"), read_image(folder / "b.png"), POINTS)
    images = [distill.read_image(folder / f"{name}.png") for name in "ab"]
    expected = OnnxMatcher(folder / "student.onnx")(*images, torch.tensor([POINTS]))
    for found, field in zip(answer, expected, strict=True):
        np.testing.assert_allclose(found, field[0], atol=2e-3, rtol=1e-3)
    assert answer.points.shape == (3, 2) and answer.confidence.shape == (3,) and answer.heatmap.ndim == 3


def test_bytes_floats_and_pillow_images_are_the_same_query(folder):
    matcher, pixels = Matcher(folder / "student.onnx"), [read_image(folder / f"{name}.png") for name in "ab"]
    expected = matcher.match(*pixels, POINTS)
    for other in ([p / 255 for p in pixels], [Image.fromarray(p) for p in pixels]):
        for found, field in zip(matcher.match(*other, np.array(POINTS)), expected, strict=True):
            np.testing.assert_allclose(found, field, atol=1e-4)


@pytest.mark.parametrize("kind", ["I;16", "RGBA", "LA", "P"])
def test_an_open_pillow_image_is_read_as_its_file_is(kind, tmp_path):
    """16-bit values were cut at 255, and the colour under transparency was used."""
    level = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8))
    if kind == "I;16":
        picture = Image.fromarray(np.asarray(level).astype(np.uint16) * 257)
    else:
        picture = level.convert("RGBA" if kind == "P" else kind)
        picture.putalpha(Image.fromarray(np.tile(np.uint8([0, 128, 255]), (20, 10))))
        picture = picture.convert(kind)
    picture.save(tmp_path / "picture.png")
    given = checked_image(picture, "src")
    np.testing.assert_array_equal(given, read_image(tmp_path / "picture.png"))
    if kind == "I;16":
        np.testing.assert_array_equal(given[..., 0], np.asarray(level))


def test_an_open_pillow_image_whose_range_or_orientation_is_not_known_is_refused():
    picture = Image.new("RGB", (20, 10))
    picture.getexif()[274] = 6
    with pytest.raises(DataError, match="src upright but .* orientation 6; .*exif_transpose"):
        checked_image(picture, "src")
    for mode, value, found in (("F", 200.0, r"floats lie in \[200, 200\]"), ("I", 200, "32-bit integers")):
        with pytest.raises(DataError, match=f"Expected src as .* but .*{found}"):
            checked_image(Image.new(mode, (20, 10), value), "src")
    assert checked_image(Image.new("F", (20, 10), 0.2), "src").tolist()[0][0] == [51, 51, 51]


def test_no_points_get_no_answers(folder):
    image = read_image(folder / "a.png")
    answer = Matcher(folder / "student.onnx").match(image, image, [])
    assert [field.shape for field in answer] == [(0, 2), (0,), (0, 8, 8)]


@pytest.mark.parametrize(
    ("src", "points", "message"),
    [
        ("a.png", POINTS, "src as an array .* but got str"),
        (np.zeros((60, 90)), POINTS, r"src of shape \(H, W, 3\) but got \(60, 90\)"),
        (np.zeros((3, 60, 90), np.uint8), POINTS, r"src of shape \(H, W, 3\)"),
        (np.zeros((60, 90, 3), int), POINTS, "src as bytes or as floats .* but got int64"),
        (np.full((60, 90, 3), 128.0), POINTS, r"src in \[0, 1\] but got \[128, 128\]; divide by 255"),
        (np.full((60, 90, 3), np.nan), POINTS, r"src in \[0, 1\]"),
        (None, [(91, 5)], r"inside the source of 90 x 60 px but point 0 is \(91, 5\)"),
        (None, [(np.nan, 5)], "inside the source"),
        (None, [(1, 2, 3)], r"points of shape \(N, 2\)"),
        (None, [1, 2], r"points of shape \(N, 2\)"),
        (None, "here", "points as .* numbers"),
        (None, [("1", "2")], "points as .* numbers"),
        (None, [(True, False)], "points as .* numbers"),
        (None, [(1, 2), (3,)], "points as .* numbers"),
        (None, [(10**400, 2)], "points as .* numbers"),
        (None, np.array([(1, 2), (3,)], dtype=object), "points as .* numbers but got: object"),
        (None, torch.zeros(1, 2, requires_grad=True), "points as .* numbers but got: .* requires grad"),
        (None, [[1, 2]] * 100_000, "at most 10000 points at once but got 100000"),
    ],
)
def test_what_is_no_query_is_refused_and_the_matcher_goes_on(folder, src, points, message):
    matcher, image = Matcher(folder / "student.onnx"), read_image(folder / "a.png")
    with pytest.raises(DataError, match=message):
        matcher.match(image if src is None else src, image, points)
    assert matcher.match(image, image, POINTS).points.shape == (3, 2)


@pytest.mark.parametrize(
    "providers",
    [["NoSuchExecutionProvider"], "CPUExecutionProvider", 5, [5], [("CPU", {})], [("CPUExecutionProvider", 5)]],
)
def test_a_provider_that_is_not_there_is_refused(folder, providers):
    with pytest.raises(ConfigError, match="Expected providers of ONNX Runtime among"):
        Matcher(folder / "student.onnx", providers=providers)


def test_a_provider_may_have_options(folder):
    image = read_image(folder / "a.png")
    answers = [
        Matcher(folder / "student.onnx", providers=providers).match(image, image, POINTS)
        for providers in (None, [("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})])
    ]
    assert np.array_equal(answers[0].points, answers[1].points)


@pytest.mark.parametrize("threads", ["two", -1, 1.5, True, 100_000])
def test_a_number_of_threads_that_is_none_is_refused(folder, threads):
    with pytest.raises(ConfigError, match="threads of ONNX Runtime as a whole number"):
        Matcher(folder / "student.onnx", threads=threads)


def test_it_needs_neither_torch_nor_anything_else_that_is_large(folder):
    code = f"""
import sys, json
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "timm", "onnx", "diffusers", "transformers", "hydra", "omegaconf",
                                      "lightning", "safetensors", "scipy"):
            raise ImportError(f"{{name}} is not installed")
sys.meta_path.insert(0, Block())
from distill.export.runtime import Matcher, read_image
from distill.export.runtime_query import checked_image
answer = Matcher({str(folder / "student.onnx")!r}).match(
    read_image({str(folder / "a.png")!r}), read_image({str(folder / "b.png")!r}), {POINTS}
)
print(json.dumps(answer.points.tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    images = [distill.read_image(folder / f"{name}.png") for name in "ab"]
    expected = OnnxMatcher(folder / "student.onnx")(*images, torch.tensor([POINTS])).trg_kps[0]
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=0.02)


def test_pictures_that_are_too_large_are_refused_and_the_matcher_goes_on(folder, tmp_path):
    matcher, image = Matcher(folder / "student.onnx"), read_image(folder / "a.png")
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (20_000, 10_000, 3))  # 200 megapixels, of three bytes
    with pytest.raises(DataError, match="trg of at most 179 megapixels but got 10000 x 20000 px"):
        matcher.match(image, huge, POINTS)
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)  # 50 kB that ask for a gigabyte
    with pytest.raises(DataError, match="bomb.png cannot be read .*megapixels"):
        read_image(bomb)
    assert matcher.match(image, image, POINTS).points.shape == (3, 2)


def test_two_questions_at_once_get_the_answers_of_one_after_the_other(folder):
    matcher = Matcher(folder / "student.onnx", threads=1)
    images = [read_image(folder / f"{name}.png") for name in "ab"]
    questions = [[(10.0 + number, 20.0)] for number in range(8)]
    expected = [matcher.match(*images, points).points for points in questions]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda points: matcher.match(*images, points).points, questions))
    np.testing.assert_allclose(found, expected, atol=1e-4)
