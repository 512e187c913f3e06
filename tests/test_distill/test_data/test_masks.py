"""Masks of objects, from alpha channels and folders, and points of a grid on the object."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.__main__ import main
from distill.core.errors import ConfigError, DataError
from distill.data.datasets.folder import FolderPairs
from distill.data.datasets.shapes import ShapesPairs
from distill.data.datasets.shapes.render import render
from distill.data.grid_points import GridPoints
from distill.data.masks import lookup, read_mask
from distill.data.pairs import Query
from distill.labels.audit import audit

WIDTH, HEIGHT = 60, 40
PHOTOGRAPH = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
OBJECT = np.zeros((HEIGHT, WIDTH), bool)
OBJECT[4:30, 10:24], OBJECT[20:30, 10:50] = True, True  # an L
INDEXED = Image.fromarray(np.where(OBJECT, 3, 0).astype(np.uint8), "P")
INDEXED.putpalette([0, 0, 0, 9, 9, 9, 99, 0, 0, 0, 0, 1])
CUT = Image.fromarray(np.dstack([PHOTOGRAPH, OBJECT * np.uint8(255)]))

WAYS = {
    "bits": Image.fromarray(OBJECT),
    "0 and 1": Image.fromarray(OBJECT.astype(np.uint8)),
    "0 and 255": Image.fromarray(OBJECT * np.uint8(255)),
    "16 bits": Image.fromarray(OBJECT * np.uint16(65535)),
    "0 and 1 of 16 bits": Image.fromarray(OBJECT.astype(np.uint16)),
    "numbers of 16 bits": Image.fromarray(
        np.where(OBJECT, 100, np.where(np.roll(OBJECT, 15, 1), 3, 1)).astype(np.uint16)
    ),
    "numbers of 32 bits": Image.fromarray(np.where(OBJECT, 2**31 - 1, -1).astype(np.int32)),
    "floats": Image.fromarray(np.where(OBJECT, 1000, 0.5).astype(np.float32)),
    "colours": Image.fromarray(np.dstack([OBJECT * np.uint8(200)] * 3)),
    "votes of annotators": Image.fromarray(np.where(OBJECT, 204, 51).astype(np.uint8)),
    "numbers of classes": INDEXED,
    "a cut-out": CUT,
    "twice as large": Image.fromarray(np.kron(OBJECT, np.ones((2, 2), bool))),
}


@pytest.fixture
def photograph(tmp_path) -> Path:
    path = tmp_path / "photographs" / "thing" / "a.jpg"
    path.parent.mkdir(parents=True)
    Image.fromarray(PHOTOGRAPH).save(path)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_a_mask_beside_the_photographs_is_read_however_it_is_written(photograph, tmp_path, way):
    (tmp_path / "masks" / "thing").mkdir(parents=True)
    deep = WAYS[way].mode in ("I", "F")  # which PNG does not hold
    WAYS[way].save(tmp_path / "masks" / "thing" / ("a.tif" if deep else "a.png"))
    mask = read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks")
    centres = np.stack(np.meshgrid((np.arange(WIDTH) + 0.5) / WIDTH, (np.arange(HEIGHT) + 0.5) / HEIGHT), -1)
    assert np.array_equal(lookup(mask, centres.reshape(-1, 2)).reshape(HEIGHT, WIDTH), OBJECT)


def test_what_is_opaque_in_a_16_bit_file_is_the_object(photograph, tmp_path):
    (tmp_path / "masks" / "thing").mkdir(parents=True)
    values = Image.fromarray(np.where(OBJECT, 1, 40_000).astype(np.uint16))
    values.save(tmp_path / "masks" / "thing" / "a.png", transparency=40_000)
    assert np.array_equal(read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks"), OBJECT)


def test_a_smaller_mask_of_the_same_ratio_serves_and_another_is_refused(photograph, tmp_path):
    (tmp_path / "masks" / "thing").mkdir(parents=True)
    path = tmp_path / "masks" / "thing" / "a.png"
    for size in ((30, 20), (20, 13), (61, 41), (59, 39)):
        Image.fromarray(OBJECT).resize(size, Image.Resampling.NEAREST).save(path)
        mask = read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks")
        assert lookup(mask, np.array([[12.5 / 60, 6.5 / 40], [40.5 / 60, 6.5 / 40], [1.0, 1.0]])).tolist() == [1, 0, 0]
    for size in ((40, 60), (30, 22), (40, 40)):
        Image.fromarray(OBJECT).resize(size).save(path)
        with pytest.raises(DataError, match=r"a.jpg, 60 x 40 px, at the same ratio of the sides but .*a.png has \d+ x"):
            read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks")


def test_masks_that_say_nothing_are_named(photograph, tmp_path):
    with pytest.raises(DataError, match=r"mask of .*thing/a.jpg in .*masks/thing/a.png but there is none"):
        read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks")
    (tmp_path / "masks" / "thing").mkdir(parents=True)
    path = tmp_path / "masks" / "thing" / "a.png"
    Image.new("L", (WIDTH, HEIGHT)).save(path)
    with pytest.raises(DataError, match="all of it is background"):
        read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks")
    path.unlink()
    path = path.with_suffix(".tif")
    Image.fromarray(np.full((HEIGHT, WIDTH), np.nan, np.float32)).save(path)
    with pytest.raises(DataError, match="a.tif cannot be read .it holds NaN or infinity"):
        read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks")
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"an image file but .*a.tif cannot be read"):
        read_mask(photograph, (HEIGHT, WIDTH), tmp_path / "masks")


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        (Image.fromarray(PHOTOGRAPH), "it has no transparency"),
        (Image.fromarray(PHOTOGRAPH).convert("RGBA"), "all of it is opaque"),
        (Image.new("RGBA", (WIDTH, HEIGHT)), "nothing is opaque"),
    ],
)
def test_photographs_without_an_object_in_their_alpha_channel_are_named(tmp_path, picture, found):
    picture.save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=f"alpha channel of .*a.png but {found}; name a folder of masks in points.masks"
    ):
        read_mask(tmp_path / "a.png", (HEIGHT, WIDTH))


def test_the_alpha_channel_turns_with_the_photograph(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left
    CUT.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "a.png", (HEIGHT, WIDTH)), OBJECT)
    stored = read_mask(tmp_path / "a.png", (WIDTH, HEIGHT), exif_orientation=False)
    assert np.array_equal(stored, np.rot90(OBJECT))


@pytest.fixture
def cut_outs(tmp_path) -> Path:
    """Three photographs with an alpha channel, of different shapes; an L is opaque in each."""
    root = tmp_path / "cut"
    (root / "thing").mkdir(parents=True)
    for name, size in (("a", (WIDTH, HEIGHT)), ("b", (80, 120)), ("c", (64, 64))):
        CUT.resize(size, Image.Resampling.NEAREST).save(root / "thing" / f"{name}.png")
    return root


@pytest.mark.parametrize(("size", "resize"), [(32, "squash"), (64, "letterbox"), (224, "letterbox")])
def test_points_on_the_object_are_the_same_at_every_size(cut_outs, size, resize):
    pairs = FolderPairs(cut_outs, size=size, resize=resize)
    grid, everywhere = GridPoints(pairs, side=20, within="mask"), GridPoints(pairs, side=20)
    for number in range(len(grid)):
        with Image.open(cut_outs / pairs.pairs[number][0]) as picture:
            alpha = np.asarray(picture)[..., 3]
        expected = []
        for x, y in everywhere.query(number).points.tolist():
            if alpha[int(y * alpha.shape[0]), int(x * alpha.shape[1])] == 255:
                expected.append((x, y))
        assert 20 < len(expected) < 200
        np.testing.assert_allclose(grid.query(number).points, expected, atol=1e-7)
        decoded = Query.of(grid[number])
        np.testing.assert_allclose(decoded.points, expected, atol=1e-5)
        assert grid[number].trg_kps.isnan().all()


def test_all_masks_are_read_before_anything_else_happens(cut_outs):
    Image.fromarray(PHOTOGRAPH).save(cut_outs / "thing" / "c.png")
    with pytest.raises(DataError, match=r"alpha channel of .*c.png but it has no transparency"):
        GridPoints(FolderPairs(cut_outs, size=32), within="mask")


def test_settings_of_masks_that_cannot_work_are_refused(cut_outs, few):
    pairs = FolderPairs(cut_outs, size=32)
    with pytest.raises(ConfigError, match="points.within=mask with points.masks=m but got 'box'; set it"):
        GridPoints(pairs, within="box", masks="m")
    with pytest.raises(ConfigError, match="data set with masks for points.within=mask but few has none"):
        GridPoints(few, within="mask")
    with pytest.raises(ConfigError, match="points.masks=null with data=shapes, which knows its masks, but got m"):
        GridPoints(ShapesPairs("val", 2), within="mask", masks="m")


def test_an_object_between_the_points_of_the_grid_gets_those_of_a_finer_one(cut_outs):
    """A single opaque pixel in a, a spot of a hundredth of the sides in b; c is an L, which the grid's own points hit."""
    one, spot = Image.new("RGBA", (WIDTH, HEIGHT)), Image.new("RGBA", (400, 600))
    one.putpixel((30, 20), (1, 2, 3, 255))
    spot.paste((1, 2, 3, 255), (100, 300, 104, 306))
    one.save(cut_outs / "thing" / "a.png")
    spot.save(cut_outs / "thing" / "b.png")
    pairs = FolderPairs(cut_outs, size=32)
    grid, everywhere = GridPoints(pairs, side=4, within="mask"), GridPoints(pairs, side=4)
    boxes = {"a.png": (30 / 60, 20 / 40, 31 / 60, 21 / 40), "b.png": (100 / 400, 300 / 600, 104 / 400, 306 / 600)}
    seen = set()
    for number, (source, _) in enumerate(pairs.pairs):
        points, name = grid.query(number).points, Path(source).name
        seen.add(name)
        if name == "c.png":
            assert len(points) > 1 and {tuple(p) for p in points} <= {tuple(p) for p in everywhere.query(number).points}
            continue
        x0, y0, x1, y1 = boxes[name]
        assert 1 <= len(points) <= 8
        assert all(x0 <= x <= x1 and y0 <= y <= y1 for x, y in points.tolist())
        np.testing.assert_array_equal(points, GridPoints(pairs, side=4, within="mask").query(number).points)
        np.testing.assert_allclose(Query.of(grid[number]).points, points, atol=1e-5)
    assert seen == {"a.png", "b.png", "c.png"}


def test_masks_too_small_for_any_point_are_counted_and_named(cut_outs, monkeypatch, caplog):
    monkeypatch.setattr("distill.data.grid_points.FINEST", 8)
    one = Image.new("RGBA", (WIDTH, HEIGHT))
    one.putpixel((30, 20), (1, 2, 3, 255))
    for name in "ab":
        one.save(cut_outs / "thing" / f"{name}.png")
    pairs = FolderPairs(cut_outs, size=32)
    grid = GridPoints(pairs, side=2, within="mask")
    assert "2 of 3 photographs have masks too small for a point of a grid of 8 cells a side" in caplog.text
    assert "thing/a" in caplog.text and "thing/b" in caplog.text and "thing/c" not in caplog.text
    assert {len(grid.query(n).points) > 0 for n, (src, _) in enumerate(pairs.pairs) if "c.png" not in str(src)} == {
        False
    }
    one.save(cut_outs / "thing" / "c.png")
    with pytest.raises(DataError, match="points on the objects of 3 masks but all are too small; correct them"):
        GridPoints(FolderPairs(cut_outs, size=32), side=2, within="mask")


def test_a_box_between_the_points_of_the_grid_has_its_centre(few, monkeypatch):
    pair = few[0]
    box = torch.tensor([[10.0, 11.0, 10.5, 12.0]])
    monkeypatch.setattr(type(few), "__getitem__", lambda self, index: pair._replace(src_bbox=box))
    assert GridPoints(few, side=2, within="box")[0].src_kps.tolist() == [[[10.25, 11.5]]]


def test_points_on_the_object_of_a_scene_lie_where_its_rendering_shows_it():
    pairs = ShapesPairs("val", 6, difficulty="hard", size=32)
    grid, right, total = GridPoints(pairs, side=20, within="mask"), 0, 0
    everywhere = GridPoints(pairs, side=20)
    for number in range(6):
        mask = render([pairs.scene(pairs.pairs[number][0])], 512).mask[0].numpy()
        chosen = {tuple(point) for point in grid.query(number).points.tolist()}
        for x, y in everywhere.query(number).points.tolist():
            right += mask[int(y * 512), int(x * 512)] == ((x, y) in chosen)
            total += 1
        decoded = Query.of(grid[number])
        np.testing.assert_allclose(decoded.points, grid.query(number).points, atol=1e-6)
    assert right / total > 0.99, "but at the outline, where 512 px are too coarse"


def test_a_store_is_made_on_points_inside_masks_of_a_folder(tmp_path, capsys):
    for name in "abcdef":
        for folder, picture in (("photographs", Image.fromarray(PHOTOGRAPH)), ("masks", WAYS["0 and 255"])):
            (tmp_path / folder / "thing").mkdir(parents=True, exist_ok=True)
            picture.rotate(ord(name)).save(tmp_path / folder / "thing" / f"{name}.png")
    grid = "_target_: distill.data.grid_points.GridPoints, side: 6, within: mask"
    common = [f"data.root={tmp_path}/photographs", "data=folder", "data.size=64", "train.n_pairs=2", "device=cpu"]
    common += [f"labels.dir={tmp_path}/labels", "teacher=nearest_neighbour", "teacher.model.backbone=test_resnet"]
    common += [f"points={{{grid}, masks: {tmp_path}/masks}}", "teacher.model.strides=[8,16]"]
    assert main(["label", *common, "splits=[train]"]) == 0
    found = audit(tmp_path / "labels")
    assert found.problems == [] and 0 < found.labels < 2 * 36
    shutil.rmtree(tmp_path / "masks")
    assert main(["label", *common, "splits=[train]"]) == 2
    assert "but there is none; add it, correct points.masks" in capsys.readouterr().err
