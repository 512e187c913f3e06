import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.core.errors import ConfigError, DataError
from distill.data.datasets.cub import CUBPairs
from distill.data.pair_list import pair_list


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Two classes of eight images each, half of them for training; part 1 is red, part 15 hidden everywhere."""
    random = np.random.default_rng(0)
    lines: dict[str, list[str]] = {name: [] for name in ("images", "labels", "split", "boxes", "parts")}
    for image in range(1, 17):
        name, (width, height) = f"00{1 + image % 2}.bird/{image} (a).png", (40 + image, 30)
        pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
        x, y = int(random.integers(10, 25)), int(random.integers(8, 20))
        pixels[y - 2 : y + 2, x - 2 : x + 2] = (255, 0, 0)
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        lines["images"].append(f"{image} {name}")
        lines["labels"].append(f"{image} {1 + image % 2}")
        lines["split"].append(f"{image} {image % 4 // 2}")
        lines["boxes"].append(f"{image} 4.0 6.0 30.0 20.0")
        lines["parts"] += [f"{image} {part} {x + part - 1}.0 {y}.0 {int(part < 15)}" for part in range(1, 16)]
    (tmp_path / "parts").mkdir()
    for name, file in (
        ("images", "images.txt"),
        ("labels", "image_class_labels.txt"),
        ("split", "train_test_split.txt"),
        ("boxes", "bounding_boxes.txt"),
        ("parts", "parts/part_locs.txt"),
    ):
        (tmp_path / file).write_text("\r\n".join(lines[name]) + "\r\n")
    return tmp_path


def test_points_lie_where_the_photograph_shows_them(layout):
    pairs = CUBPairs(str(layout), "test", 10, size=64)
    for number in range(10):
        pair = pairs[number]
        assert pair.kps_id[0].tolist() == list(range(14))
        x, y = pair.trg_kps[0, 0].int().tolist()
        red, green, blue = pair.trg_img[0, :, y, x].tolist()
        assert red > 0.8 and green < 0.2 and blue < 0.2


def test_the_threshold_is_the_longer_side_of_the_box_in_the_photographs_pixels(layout):
    pair = CUBPairs(str(layout), "test", 3, size=64)[0]
    assert float(pair.pck_threshold) == pytest.approx(30)
    height, width = pair.trg_size[0].tolist()
    torch.testing.assert_close(
        pair.trg_bbox[0], torch.tensor([4, 6, 34, 26]) * torch.tensor([64 / width, 64 / height] * 2)
    )


def test_the_official_split_is_kept_and_no_image_is_in_two(layout):
    seen = {}
    for split, n_pairs in (("train", 4), ("test", 8)):
        pairs = CUBPairs(str(layout), split, n_pairs, size=32)
        seen[split] = {pairs.ids[name] for pair in pairs.pairs for name in pair}
    assert seen["test"] <= {i for i in range(17) if i % 4 // 2 == 0} and not seen["train"] & seen["test"]


def test_photographs_are_known_by_their_content(layout):
    first, again = (CUBPairs(str(layout), "test", 4, size=32)[0] for _ in range(2))
    other = CUBPairs(str(layout), "test", 4, size=48)[0]
    assert first.src_hash == again.src_hash != other.src_hash


@pytest.mark.parametrize(
    "file",
    [
        "images.txt",
        "image_class_labels.txt",
        "train_test_split.txt",
        "bounding_boxes.txt",
        "parts/part_locs.txt",
    ],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "malformed"])
def test_each_file_is_named_when_it_is_missing_empty_or_malformed(layout, file, damage):
    path = layout / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_text("" if damage == "empty" else "one two three\n")
    with pytest.raises(DataError, match=path.name):
        CUBPairs(str(layout), "test", 4)


def test_a_photograph_that_cannot_be_read_is_named(layout):
    pairs = CUBPairs(str(layout), "test", 4, size=32)
    (layout / "images" / pairs.pairs[0][0]).write_bytes(b"no image")
    with pytest.raises(DataError, match="Expected an image file but"):
        pairs[0]


def test_an_image_without_a_box_is_named(layout):
    lines = (layout / "bounding_boxes.txt").read_text().splitlines()
    (layout / "bounding_boxes.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="bounding_boxes.txt but image 1 is"):
        CUBPairs(str(layout), "test", 4)


def test_an_image_option_that_is_unknown_or_null_is_named(layout):
    with pytest.raises(ConfigError, match=r"Expected an argument of a data set but got 'sise'; did you mean 'size'\?"):
        CUBPairs(str(layout), "test", 4, sise=32)
    with pytest.raises(ConfigError, match=r"Expected a value for data.resize but got null; the default is squash\."):
        CUBPairs(str(layout), "test", 4, resize=None)


def test_bad_settings_are_named(layout):
    with pytest.raises(ConfigError, match="did you mean 'test'"):
        CUBPairs(str(layout), "tets", 4)
    with pytest.raises(ConfigError, match="at least 16 px"):
        CUBPairs(str(layout), "test", 4, size=4)
    with pytest.raises(ConfigError, match="data.pairs_per_image as a whole number of at least 1 but got 0"):
        CUBPairs(str(layout), "test", 4, pairs_per_image=0)


@pytest.mark.parametrize("folder", ["CUB_crops", "CUB_200_2011"])
def test_real_photographs_are_read(photographs, folder):
    pairs = CUBPairs(str(photographs / folder), "test", 20, size=64)
    pair = pairs[0]
    assert pair.kps_mask.sum() >= 1 and pair.src_img.shape == (1, 3, 64, 64)
    assert ((pair.trg_kps >= 0) & (pair.trg_kps <= 64)).all()


def test_the_papers_pairs_are_those_of_the_first_three_classes_in_one_direction(layout):
    pairs = CUBPairs(str(layout), "test", None, pairs="paper", size=32)
    seen = [set(pair) for pair in pairs.pairs]
    assert len(seen) == 2 * 6 and all(seen.count(pair) == 1 for pair in seen)
    assert CUBPairs(str(layout), "test", None, convention="paper", size=32).pairs == pairs.pairs
    assert len(CUBPairs(str(layout), "test", None, size=32)) == 2 * 12, "all classes, both directions"


def test_a_list_of_pairs_can_be_cited(layout, tmp_path):
    pairs = CUBPairs(str(layout), "test", 7, seed=3, size=32)
    (tmp_path / "pairs.csv").write_text(pair_list(pairs.pairs))
    again = CUBPairs(str(layout), "test", None, seed=9, pairs=str(tmp_path / "pairs.csv"), size=32)
    assert again.pairs == pairs.pairs and again.fingerprint() == pairs.fingerprint()
    with pytest.raises(DataError, match="columns"):
        CUBPairs(str(layout), "test", None, pairs=str(layout / "images.txt"))


def test_a_point_outside_its_photograph_is_an_error_or_a_counted_skip(layout):
    name = CUBPairs(str(layout), "test", 4, size=32).pairs[0][0]
    file = layout / "parts" / "part_locs.txt"
    image = CUBPairs(str(layout), "test", 4, size=32).ids[name]
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{image} 2 ")]
    file.write_text("\n".join([*lines, f"{image} 2 900.0 5.0 1"]))
    with pytest.raises(DataError, match=r"part_locs.txt says \(900, 5\)"):
        CUBPairs(str(layout), "test", 4, size=32)[0]
    pairs = CUBPairs(str(layout), "test", 24, size=32, on_error="skip")
    assert len(pairs) == 24 - 6 == 24 - len(pairs.skipped) and all(name in pair for pair in pairs.skipped)


def test_every_broken_file_is_told_at_once(layout):
    (layout / "images.txt").unlink()
    (layout / "bounding_boxes.txt").write_text("1 2 3 x 5\n")
    with pytest.raises(DataError, match="images.txt.*bounding_boxes.txt"):
        CUBPairs(str(layout), "test", 4)


def test_a_class_with_one_image_makes_no_pairs(layout):
    lines = (layout / "image_class_labels.txt").read_text().splitlines()
    (layout / "image_class_labels.txt").write_text("\n".join([lines[0].rpartition(" ")[0] + " 3", *lines[1:]]))
    pairs = CUBPairs(str(layout), "test", None, size=32)
    assert not any(pairs.annotations.number[pairs.ids[name]] == 3 for pair in pairs.pairs for name in pair)


def test_the_orientation_of_a_benchmarks_photographs_is_ignored(layout):
    """The annotations of CUB-200-2011 suit the pixels as they are stored."""
    pairs = CUBPairs(str(layout), "test", 4, size=32)
    expected = pairs[0]
    for name in {name for pair in pairs.pairs for name in pair}:
        image = Image.open(layout / "images" / name)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(layout / "images" / name, exif=exif)
    again = CUBPairs(str(layout), "test", 4, size=32)[0]
    assert torch.equal(again.trg_img, expected.trg_img) and again.trg_size.tolist() == expected.trg_size.tolist()


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("parts/part_locs.txt", "3 4 9.0 9.0 1", "part 4 of image 3 comes twice"),
        ("bounding_boxes.txt", "3 4.0 6.0 30.0 20.0", "image 3 has several"),
        ("images.txt", "3 002.bird/3 (a).png", "image 3 has several"),
        ("image_class_labels.txt", "3 1", "image 3 has several"),
        ("train_test_split.txt", "3 1", "image 3 has several"),
    ],
)
def test_a_line_that_comes_twice_is_named(layout, file, line, message):
    with (layout / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(DataError, match=message):
        CUBPairs(str(layout), "test", 4)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("4.0 6.0 34.0 260.0", r"inside its \d+ x 30 px but .*bounding_boxes.txt says \[4, 6, 34, 260\]"),
        ("0.0 0.0 3.0 3.0", "x, y, width, height in px, not x0, y0, x1, y1"),
        ("4.0 6.0 0.0 20.0", "a box with an area for image"),
    ],
)
def test_a_box_that_does_not_suit_its_photograph_is_named(layout, box, message):
    name = CUBPairs(str(layout), "test", 4, size=32).pairs[0][0]
    image = CUBPairs(str(layout), "test", 4, size=32).ids[name]
    file = layout / "bounding_boxes.txt"
    lines = [line for line in file.read_text().splitlines() if not line.startswith(f"{image} ")]
    file.write_text("\n".join([*lines, f"{image} {box}"]))
    pairs = CUBPairs(str(layout), "test", 4, size=32)
    with pytest.raises(DataError, match=message):
        pairs[0]
    assert pairs.problems()


def test_an_image_without_visible_parts_is_ignored_and_named(layout):
    file = layout / "parts" / "part_locs.txt"
    lines = [line[:-1] + "0" if line.startswith("4 ") else line for line in file.read_text().splitlines()]
    file.write_text("\n".join(lines))
    pairs = CUBPairs(str(layout), "test", None, size=32)
    assert pairs.ignored == {"001.bird/4 (a).png": "no part of it is visible"}


def test_more_pairs_than_there_are_give_all_of_them_and_a_note(layout):
    pairs = CUBPairs(str(layout), "test", 1000, size=32)
    assert len(pairs) == 24 and pairs.notes == ["split test has 24 pairs, 1000 were asked for"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("image_class_labels.txt", "² 1"),
        ("image_class_labels.txt", "3 1.5"),
        ("image_class_labels.txt", "3 " + "9" * 5000),
        ("parts/part_locs.txt", "3 1.5 9.0 9.0 1"),
        ("train_test_split.txt", "1² 1"),
        ("bounding_boxes.txt", "-3 1 1 5 5"),
    ],
)
def test_a_number_that_is_no_whole_number_is_named(layout, file, line):
    with (layout / file).open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(DataError, match=f"line .* of .*{file.rpartition('/')[2]} but got '{line}'"):
        CUBPairs(str(layout), "test", 4)


def test_pairs_for_a_second_test_are_of_photographs_that_the_first_leaves_out(layout, root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "docs"))
    left_out = importlib.import_module("left_out_pairs").left_out
    tested = CUBPairs(str(layout), "test", 1)
    pairs = left_out(str(layout), 3, first=1)
    assert len(set(pairs)) == 3 and all(a != b for a, b in pairs)
    assert not {name for pair in pairs for name in pair} & {name for pair in tested.pairs for name in pair}
    assert all(
        tested.annotations.category[tested.ids[a]] == tested.annotations.category[tested.ids[b]] for a, b in pairs
    )
    assert {name for pair in pairs for name in pair} <= set(tested.names)
    with pytest.raises(SystemExit, match="Expected 500 pairs"):
        left_out(str(layout), 500, first=1)
