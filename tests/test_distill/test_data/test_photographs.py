from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.core.errors import ConfigError, DataError
from distill.core.squares import letterbox
from distill.data.annotations import ImageAnnotation, PairAnnotation
from distill.data.pairs import collate_pairs, from_original, make_pair, to_original
from distill.data.photographs import PhotographReader, decode


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    made = []
    for number, size in enumerate([(60, 40), (31, 77), (50, 50)]):
        made.append(tmp_path / f"photo {number} (a).png")
        Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(made[-1])
    return made


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_points_come_back_to_where_they_were(files, resize):
    read = PhotographReader(files, 64, resize)
    for file in files:
        photograph = read(file)
        height, width = photograph.original_size
        points = np.random.default_rng(1).uniform(0, 1, (8, 2)) * (width, height)
        image = photograph.annotated(points, np.ones(8, bool), np.array([1.0, 2, 30, 20]), "c", "n")
        pair = collate_pairs([make_pair(image, image, "bbox")] * 2)
        back = to_original(pair.trg_kps, pair)
        np.testing.assert_allclose(back[1].numpy(), points, atol=2e-5)
        torch.testing.assert_close(from_original(back, pair), pair.trg_kps)
        assert float(pair.pck_threshold[0]) == pytest.approx(29, abs=1e-4)


def test_a_letterbox_keeps_the_ratio_of_the_sides_and_shows_a_point_where_it_is(tmp_path):
    pixels = np.zeros((50, 200, 3), np.uint8)
    pixels[20:30, 140:150] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    photograph = PhotographReader([], 100, "letterbox")(tmp_path / "wide.png")
    assert photograph.content == (0, 37, 100, 62)
    image = photograph.annotated(np.array([[145.0, 25.0]]), np.ones(1, bool), np.array([0.0, 0, 9, 9]), "c", "n")
    x, y = image.keypoints[0].tolist()
    assert (x, y) == (72.5, 49.5) and photograph.image[0, int(y), int(x)] > 0.9
    assert 0.4 < photograph.image[0, 5, 5] < 0.6, "the padding is grey"


@pytest.mark.parametrize(("size", "side"), [((1, 999), 64), ((999, 1), 64), ((3, 2), 33), ((480, 640), 512)])
def test_a_letterbox_lies_inside_its_square(size, side):
    x0, y0, x1, y1 = letterbox(size, side)
    assert 0 <= x0 < x1 <= side and 0 <= y0 < y1 <= side and max(x1 - x0, y1 - y0) == side
    assert abs((x1 - x0) - side * size[1] / max(size)) <= 1


def test_each_photograph_is_decoded_once(files, monkeypatch):
    count = []
    monkeypatch.setattr("distill.data.photographs.decode", lambda *a: count.append(a) or decode(*a))
    read = PhotographReader(files, 32)
    first = [read(file) for file in files]
    again = [read(file) for file in files]
    assert len(count) == 3 == read.decoded
    for a, b in zip(first, again, strict=True):
        assert a.hash == b.hash and a.original_size == b.original_size and torch.equal(a.image, b.image)


def test_without_memory_photographs_are_decoded_each_time(files):
    read = PhotographReader(files, 32, cache_mib=0)
    assert read(files[0]).hash == read(files[0]).hash and read.decoded == 0


def test_what_a_forked_process_decodes_is_there_for_all(files):
    read = PhotographReader(files, 32)
    process = get_context("fork").Process(target=read, args=(files[1],))
    process.start()
    process.join()
    assert process.exitcode == 0 and read.decoded == 1
    assert read(files[1]).hash == PhotographReader([], 32)(files[1]).hash


def test_a_reader_travels_to_processes_that_share_nothing(files):
    from multiprocessing.reduction import ForkingPickler

    read = PhotographReader(files, 32)
    read(files[0])
    assert len(bytes(ForkingPickler.dumps(read))) < 2000, "the pixels stay behind"
    state = read.__getstate__()
    other = PhotographReader.__new__(PhotographReader)
    other.__setstate__(state)
    assert other.decoded == 0 and other(files[0]).hash == read(files[0]).hash


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_file_that_is_no_image_is_named(files, content):
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"photo 0 \(a\).png"):
        PhotographReader(files, 32)(files[0])


def test_bad_settings_are_named():
    for settings, message in (
        ({"size": 8}, "at least 16 px"),
        ({"size": 32, "resize": "squish"}, "did you mean 'squash'"),
        ({"size": 32, "cache_mib": -1}, "data.cache_mib"),
    ):
        with pytest.raises(ConfigError, match=message):
            PhotographReader([], **settings)


def annotation(count=3, **changes) -> ImageAnnotation:
    fields = {"points": np.zeros((count, 2)), "visible": np.ones(count, bool), "bbox": np.array([0.0, 0, 9, 9])}
    return ImageAnnotation(Path("a.jpg"), **(fields | changes), category="cat", name="a", source=Path("a.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": [[1.0, 2.0]] * 3}, r"points of a.jpg as a NumPy array \(K, 2\) of x, y, .* gives list \(3, 2\)"),
        ({"points": np.zeros((3, 3))}, r"gives ndarray \(3, 3\) of float64"),
        ({"visible": np.ones(2, bool)}, r"visible of a.jpg as a NumPy array \(K,\) of booleans, one for each point"),
        ({"visible": np.ones(3, int)}, r"gives ndarray \(3,\) of int64"),
        ({"bbox": np.zeros((2, 2))}, r"bbox of a.jpg as a NumPy array \(4,\) of x0, y0, x1, y1"),
    ],
)
def test_annotations_of_other_shapes_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        annotation(**changes)


def test_a_pair_whose_images_have_different_parts_is_refused():
    PairAnnotation(annotation(), annotation())
    with pytest.raises(DataError, match="row for each part in source and target, .* a.jpg has 3 and a.jpg 2"):
        PairAnnotation(annotation(), annotation(2))
