import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.core.errors import ConfigError, DataError
from distill.data.datasets.folder import FolderPairs, of_split
from distill.data.images import read_image, readable_suffixes
from distill.data.pair_list import pair_list
from distill.evaluation.evaluate import evaluate
from distill.matchers.oracle import Oracle


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Three cats and two dogs of 60 x 40 px, a single cow, and a file that is no photograph."""
    random = np.random.default_rng(0)
    for name in ("cat/1 (a).jpg", "cat/2.PNG", "cat/3.jpg", "dog/a.jpg", "dog/b.jpg", "cow/alone.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("hello")
    return tmp_path


def label(layout: Path, kind: str = "csv") -> None:
    points = {
        "cat/1 (a).jpg": {"nose": [10, 12], "tail": [50, 30]},
        "cat/2.PNG": {"nose": [20, 22]},
        "cat/3.jpg": {"tail": [8, 9], "nose": [30, 5]},
    }
    if kind == "json":
        content = {name: {"points": found, "bbox": [5, 2, 55, 32]} for name, found in points.items()}
        (layout / "points.json").write_text(json.dumps(content))
    else:
        rows = [f"{name},{part},{x},{y}" for name, found in points.items() for part, (x, y) in found.items()]
        (layout / "points.csv").write_text("\r\n".join(["image,part,x,y", *rows]), newline="")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_points_are_found_by_the_names_of_their_parts(layout, kind):
    label(layout, kind)
    pairs = FolderPairs(str(layout), size=64, threshold="bbox" if kind == "json" else "img")
    assert len(pairs) == 6, "all ordered pairs of annotated images"
    number = pairs.pairs.index(("cat/1 (a).jpg", "cat/3.jpg"))
    pair = pairs[number]
    assert [pairs.parts[k] for k in pair.kps_id[0]] == ["nose", "tail"]
    np.testing.assert_allclose(pair.trg_kps[0].numpy() * [60 / 64, 40 / 64], [[30, 5], [8, 9]], atol=1e-4)
    assert float(pair.pck_threshold) == pytest.approx(50 if kind == "json" else 60, abs=1e-4)
    assert set(evaluate(Oracle(), pairs, "oracle", progress=False).report["pck"]["image"].values()) == {100.0}


def test_without_points_some_are_drawn_in_the_source_and_the_truth_is_not_known(layout):
    pairs = FolderPairs(str(layout), size=64, n_points=7)
    assert len(pairs) == 6 + 2
    by_source = {}
    for number, (source, _) in enumerate(pairs.pairs):
        pair = pairs[number]
        assert pair.kps_mask.sum() == 7 and torch.isnan(pair.trg_kps).all()
        assert ((pair.src_kps > 0) & (pair.src_kps < 64)).all()
        torch.testing.assert_close(by_source.setdefault(source, pair.src_kps), pair.src_kps)
    with pytest.raises(DataError, match="Expected annotated points in folder.*annotate some"):
        evaluate(Oracle(), pairs, "oracle", progress=False)


def test_a_list_of_pairs_is_followed(layout, tmp_path):
    chosen = [("dog/b.jpg", "dog/a.jpg"), ("cat/1 (a).jpg", "cat/2.PNG")]
    (tmp_path / "pairs.csv").write_text(pair_list(chosen))
    pairs = FolderPairs(str(layout), pairs=str(tmp_path / "pairs.csv"))
    assert pairs.pairs == chosen and pairs.fingerprint() != FolderPairs(str(layout)).fingerprint()
    (tmp_path / "pairs.csv").write_text(pair_list([("dog/b.jpg", "dog/c.jpg")]))
    with pytest.raises(DataError, match="row 2 of .* there is no dog/c.jpg"):
        FolderPairs(str(layout), pairs=str(tmp_path / "pairs.csv"))


def test_no_image_is_in_two_splits_and_new_images_move_few():
    names = [f"cat/{k}.jpg" for k in range(40)] + [f"dog/{k}.jpg" for k in range(5)]
    parts = [set(of_split(names, split)) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [32 + 3, 4 + 2, 4]
    assert set.union(*parts) == set(names)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("points.csv", "image;part;x;y\ncat/2.PNG;a;1;2", "commas between the cells of"),
        ("points.csv", "image,part,x,y\ncat/2.PNG,a,1", "4 cells in row 2"),
        ("points.csv", "image,part,x,y\ncat/2.PNG,a,one,2", "numbers in row 2"),
        ("points.csv", "image,part,x,y\ncat/9.jpg,a,1,2", "there is no cat/9.jpg"),
        ("points.csv", "", "is empty"),
        (
            "points.csv",
            "image,part,x,y\ncat/2.PNG,a,1,2\ncat/2.PNG,a,5,6",
            "row 3 of .* repeats a of cat/2.PNG from row 2",
        ),
        ("points.json", '{"cat/2.PNG": {"points": {"a": [1, 2], "a": [5, 6]}}}', "the key 'a' comes twice"),
        (
            "points.json",
            '{"cat/2.PNG": {"points": {}}, "cat/2.PNG": {"points": {}}}',
            "the key 'cat/2.PNG' comes twice",
        ),
        ("points.json", '{"cat/2.PNG": {"points": {}, "box": [1, 1, 2, 2]}}', "unknown key 'box'"),
        ("points.csv", "image,part,x,y\ncat/2.PNG,a,1,\0", "in row 2|cannot be read"),
        ("points.csv", "image,part,x,y\ncat/2.PNG," + "a" * 200_000 + ",1,2", "cannot be read"),
        (
            "points.json",
            '{"cat/2.PNG": {"points": {"a": [1' + "0" * 400 + ", 1]}}}",
            "the point a of cat/2.PNG is .* where 2 numbers",
        ),
        ("points.json", "[" * 100_000, "nested too deeply"),
        ("points.json", "{", "it is no JSON"),
        ("points.json", '{"cat/2.PNG": {}}', "the key 'points' is missing from the entry of cat/2.PNG"),
        ("points.json", '{"cat/2.PNG": {"points": {"a": [1]}}}', r"the point a of cat/2.PNG is \[1\] where 2 numbers"),
        (
            "points.json",
            '{"cat/2.PNG": {"points": {"a": ["1", "2"]}}}',
            "the point a of cat/2.PNG is .* where 2 numbers",
        ),
        ("points.json", '{"cat/2.PNG": {"points": {"a": [true, false]}}}', "the point a of cat/2.PNG is .* 2 numbers"),
        ("points.json", '{"cat/2.PNG": {"points": [[1, 2]]}}', "points of cat/2.PNG is .* where an object is expected"),
        ("points.json", '{"cat/2.PNG": [1, 2]}', r"the entry of cat/2.PNG is \[1, 2\] where an object is expected"),
        ("points.json", "[[1, 2]]", r"the file is \[\[1, 2\]\] where an object is expected"),
        (
            "points.json",
            '{"cat/2.PNG": {"points": {}, "bbox": [1, 2, 3]}}',
            "the bbox of cat/2.PNG is .* where 4 numbers",
        ),
        ("points.json", '{"cat/2.PNG": {"points": {}, "bbox": [3, 3, 3, 9]}}', "is empty"),
        ("points.json", '{"cat/2.PNG": {"points": {"a": [NaN, 1]}}}', "the point a of cat/2.PNG is .* where 2 numbers"),
    ],
)
def test_a_broken_file_of_points_is_named(layout, file, text, message):
    (layout / file).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        FolderPairs(str(layout))
    assert file in str(caught.value)


def test_a_point_outside_its_image_is_an_error_or_a_counted_skip(layout):
    label(layout)
    with (layout / "points.csv").open("a") as file:
        file.write("\ncat/2.PNG,tail,61,5")
    with pytest.raises(DataError, match=r"2\.PNG inside its 60 x 40 px but .*points.csv says \(61, 5\)"):
        [FolderPairs(str(layout))[k] for k in range(6)]
    pairs = FolderPairs(str(layout), on_error="skip")
    assert len(pairs) == 2 and len(pairs.skipped) == 4
    report = evaluate(Oracle(), pairs, "oracle", progress=False).report
    assert report["n_pairs"] == 2 and len(report["skipped"]) == 4 and "cat/2.PNG" in next(iter(report["skipped"]))


def test_a_corrupt_photograph_is_an_error_or_a_counted_skip(layout):
    (layout / "dog" / "a.jpg").write_bytes((layout / "dog" / "a.jpg").read_bytes()[:400])
    with pytest.raises(DataError, match="dog/a.jpg"):
        [pair for pair in map(FolderPairs(str(layout)).__getitem__, range(8))]
    pairs = FolderPairs(str(layout), on_error="skip")
    assert len(pairs) == 6 and set(pairs.skipped) == {"dog/a.jpg -> dog/b.jpg", "dog/b.jpg -> dog/a.jpg"}


def test_what_is_wrong_is_named(layout, tmp_path):
    with pytest.raises(DataError, match="Expected a folder of photographs in data.root but there is none"):
        FolderPairs(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="8 photographs of one category .* the largest category has 3"):
        FolderPairs(str(layout), split="test")
    with pytest.raises(ConfigError, match="data.pairs_per_image"):
        FolderPairs(str(layout), pairs_per_image=0)
    with pytest.raises(ConfigError, match="did you mean 'bbox'"):
        FolderPairs(str(layout), threshold="bbx")
    with pytest.raises(ConfigError, match="data.n_points"):
        FolderPairs(str(layout), n_points=0)
    with pytest.raises(ConfigError, match="did you mean 'skip'"):
        FolderPairs(str(layout), on_error="skp")
    label(layout)
    with pytest.raises(ConfigError, match="a bbox of every image"):
        FolderPairs(str(layout), threshold="bbox")


def test_images_without_a_box_for_the_tolerance_are_refused(layout):
    """A single point has a box without sides: no answer but the exact one would ever be right."""
    label(layout)
    with pytest.raises(ConfigError, match=r"two points at different places .*kps_bbox but cat/2.PNG has none"):
        FolderPairs(str(layout), threshold="kps_bbox")
    (layout / "points.csv").write_text(
        "image,part,x,y\ncat/2.PNG,a,1,1\ncat/2.PNG,b,1,7\ncat/3.jpg,a,1,1\ncat/3.jpg,b,9,4\n"
    )
    assert sorted(float(pair.pck_threshold) for pair in FolderPairs(str(layout), threshold="kps_bbox")) == [6, 8]


def test_a_photograph_of_a_phone_is_read_upright_as_match_reads_it(tmp_path):
    """Stored 60 x 40 px and shown 40 x 60 px: points are pixels of what is shown."""
    shown = np.zeros((60, 40, 3), np.uint8)
    shown[48:56, 4:12] = (255, 0, 0)
    (tmp_path / "cat").mkdir()
    for name in "ab":
        image = Image.fromarray(np.ascontiguousarray(np.rot90(shown)))
        exif = image.getexif()
        exif[0x0112] = 6  # to be rotated clockwise when shown
        image.save(tmp_path / "cat" / f"{name}.jpg", exif=exif, quality=95)
    (tmp_path / "points.csv").write_text("image,part,x,y\ncat/a.jpg,spot,8,52\ncat/b.jpg,spot,8,52\n")
    pair = FolderPairs(str(tmp_path), size=64)[0]
    assert pair.trg_size.tolist() == [[60, 40]]
    x, y = pair.trg_kps[0, 0].int().tolist()
    red, green, _ = pair.trg_img[0, :, y, x].tolist()
    assert red > 0.8 and green < 0.2
    assert read_image(tmp_path / "cat" / "a.jpg").shape == (1, 3, 60, 40)


def save(file: Path, size: tuple[int, int] = (60, 40)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(file)


def test_hidden_files_and_folders_do_not_count_and_other_files_are_named(layout):
    for name in (".ipynb_checkpoints/1.jpg", "cat/._2.jpg", "cat/.thumbs/3.jpg", "above.jpg", "cat/kittens/4.jpg"):
        save(layout / name)
    (layout / "dog" / "c.raw").write_bytes(b"raw")
    (layout / "README.md").write_text("mine")
    pairs = FolderPairs(str(layout))
    assert len(pairs) == 6 + 2 and not any("/." in name or name[0] == "." for name in pairs.ignored)
    assert pairs.ignored == {
        "README.md": "no image",
        "above.jpg": "lies beside the sub-folders, not in one of them",
        "cat/kittens/": "folders in a sub-folder are not read",
        "cat/notes.txt": "no image",
        "cow/alone.jpg": "is the only photograph of its category in split all, so no pair has it",
        "dog/c.raw": "no image",
    }


def test_pipes_links_to_themselves_and_folders_that_may_not_be_read_are_named(layout, monkeypatch):
    os.mkfifo(layout / "dog" / "pipe.jpg")
    listed = os.scandir

    def scandir(folder):
        if str(folder).endswith("cow"):
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    pairs = FolderPairs(str(layout))
    assert pairs.ignored["dog/pipe.jpg"] == "no file" and pairs.ignored["cow/"] == "cannot be read (Permission denied)"
    (layout / "dog" / "loop.jpg").symlink_to("loop.jpg")
    assert "dog/loop.jpg" in FolderPairs(str(layout)).problems()
    assert any("loop.jpg" in name for name in FolderPairs(str(layout), on_error="skip").skipped)


def test_photographs_directly_in_the_folder_are_one_category_and_their_masks_lie_directly_in_theirs(layout, tmp_path):
    root, masks = layout / "cat", tmp_path / ".masks"
    masks.mkdir()
    (root / "points.csv").write_text("image,part,x,y\n1 (a).jpg,nose,10,12\n2.PNG,nose,20,22\n3.jpg,tail,1,2\n")
    pairs = FolderPairs(str(root))
    assert pairs.names == ["1 (a).jpg", "2.PNG", "3.jpg"] and len(pairs) == 6
    assert pairs[0].category == ["object"] and pairs.ignored == {"notes.txt": "no image"}
    assert [len(FolderPairs(str(root), split=split)) for split in ("train", "val")] == [6, 6]
    half = np.zeros((40, 60), np.uint8)
    half[:, 30:] = 255
    for name in ("1 (a)", "2", "3"):
        Image.fromarray(half).save(masks / f"{name}.png")
    assert pairs.source_mask(0, np.array([[0.25, 0.5], [0.75, 0.5]]), masks).tolist() == [False, True]


def test_formats_that_cannot_be_read_here_are_named(layout, monkeypatch):
    (layout / "dog" / "c.heic").write_bytes(b"heic")
    monkeypatch.setattr("distill.data.datasets.folder.readable_suffixes", lambda: frozenset({".jpg", ".png"}))
    assert "pillow-heif" in FolderPairs(str(layout)).ignored["dog/c.heic"]


@pytest.mark.parametrize("suffix", ["tif", "jfif", "gif", "avif"])
def test_further_formats_are_read(layout, suffix):
    if f".{suffix}" not in readable_suffixes():
        pytest.skip(f"Pillow reads no {suffix} here")
    Image.new("RGB", (60, 40)).save(layout / "dog" / f"c.{suffix}", "JPEG" if suffix == "jfif" else None)
    assert any(f"dog/c.{suffix}" in pair for pair in FolderPairs(str(layout)).pairs)


def test_photographs_without_points_are_ignored_and_named(layout):
    label(layout)
    pairs = FolderPairs(str(layout))
    assert pairs.ignored["dog/a.jpg"] == "points.csv has no points of it" and "points.csv" not in pairs.ignored


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([10, 10, 5000, 32], r"inside its 60 x 40 px but .*points.json says \[10, 10, 5000, 32\]"),
        ([-9, 2, 55, 32], "inside its 60 x 40 px"),
        (
            [8, 10, 52, 20],
            r"the point \(10, 12\)|the point \(50, 30\); a box is x0, y0, x1, y1 in px, not x, y, width, height",
        ),
    ],
)
def test_a_box_that_does_not_suit_its_photograph_or_points_is_an_error(layout, box, message):
    content = {
        "cat/1 (a).jpg": {"points": {"nose": [10, 12], "tail": [50, 30]}, "bbox": box},
        "cat/2.PNG": {"points": {"nose": [20, 22]}, "bbox": [5, 2, 55, 32]},
    }
    (layout / "points.json").write_text(json.dumps(content))
    pairs = FolderPairs(str(layout), threshold="bbox")
    with pytest.raises(DataError, match=message):
        pairs[0]
    assert len(pairs.problems()) == 1


@pytest.mark.parametrize("count", [2, 3, 4, 7, 8, 40])
def test_a_folder_of_any_size_trains_and_validates(tmp_path, count):
    for number in range(count):
        save(tmp_path / "cat" / f"{number}.jpg")
    train, val = (FolderPairs(str(tmp_path), split=split) for split in ("train", "val"))
    assert len(train) == len(train.names) * (len(train.names) - 1) > 0 and len(val) > 0
    if count >= 4:
        assert not set(train.names) & set(val.names) and not val.notes
    else:
        assert val.names == train.names and "validation uses the photographs of training" in val.notes[0]


def test_more_pairs_than_there_are_give_all_of_them_and_a_note(layout):
    pairs = FolderPairs(str(layout), n_pairs=800)
    assert len(pairs) == 8 and pairs.notes == ["split all has 8 pairs, 800 were asked for"]
    assert not FolderPairs(str(layout)).notes
    with pytest.raises(DataError, match="data.n_pairs of at least 1"):
        FolderPairs(str(layout), n_pairs=0)


def test_a_large_folder_is_not_paired_completely(layout, monkeypatch):
    monkeypatch.setattr("distill.data.photograph_pairs.MAX_PAIRS", 5)
    pairs = FolderPairs(str(layout))
    assert len(pairs) == 5 and pairs.notes[0].startswith("5 of the 8 pairs of split all are drawn")


def test_whether_answers_can_be_scored_is_known(layout):
    assert not FolderPairs(str(layout)).has_truth
    label(layout)
    assert FolderPairs(str(layout)).has_truth


@pytest.mark.parametrize("row", ["cat/2.PNG,cat/2.PNG", "cat/3.jpg,cat/2.PNG"])
def test_a_list_that_repeats_a_pair_or_pairs_an_image_with_itself_is_refused(layout, tmp_path, row):
    (tmp_path / "list.csv").write_text(f"source_image,target_image\ncat/3.jpg,cat/2.PNG\n{row}\n")
    with pytest.raises(DataError, match="row 3 of .*list.csv"):
        FolderPairs(str(layout), pairs=str(tmp_path / "list.csv"))


def test_names_with_quotation_marks_survive_a_list_of_pairs(layout, tmp_path):
    save(layout / "cat" / 'a "b", c.jpg')
    pairs = FolderPairs(str(layout))
    (tmp_path / "list.csv").write_text(pair_list(pairs.pairs))
    assert FolderPairs(str(layout), pairs=str(tmp_path / "list.csv")).pairs == pairs.pairs


def test_a_file_name_that_is_no_text_is_ignored_and_named(layout):
    (layout / "dog" / "b.jpg").rename(os.fsdecode(os.fsencode(layout / "dog") + b"/\xff.jpg"))
    pairs = FolderPairs(str(layout))
    assert len(pairs) == 6 and pairs.ignored["dog/\\udcff.jpg"] == "its name is not UTF-8"
