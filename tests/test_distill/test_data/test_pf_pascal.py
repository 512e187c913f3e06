import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from distill.__main__ import main
from distill.core.errors import DataError
from distill.data.datasets.pf_pascal import PFPascalPairs

HEADER = "source_image,target_image,class,XA,YA,XB,YB"
ROWS = ["JPEGImages/a.jpg,JPEGImages/b.jpg,8,10;30,12;20,15;40,9;22", "JPEGImages/b.jpg,JPEGImages/a.jpg,8,15,9,10,12"]


def build(folder: Path, listing: Path, rows=ROWS, header=HEADER, end="\n") -> None:
    """Two cats of 60 x 40 and 80 x 50 px with three points, the second of which the target lacks."""
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "Annotations" / "cat").mkdir(parents=True)
    for name, size, points in (
        ("a", (60, 40), [[10, 12], [50, 5], [30, 20]]),
        ("b", (80, 50), [[15, 9], [np.nan, np.nan], [40, 22]]),
    ):
        Image.new("RGB", size).save(folder / "JPEGImages" / f"{name}.jpg")
        savemat(
            folder / "Annotations" / "cat" / f"{name}.mat", {"kps": np.array(points), "bbox": [5.0, 4.0, 45.0, 30.0]}
        )
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text(end.join([header, *rows]) + end, newline="")


@pytest.fixture
def layout(tmp_path):
    build(tmp_path, tmp_path / "test_pairs.csv")
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "listing"),
    [
        ("PF-dataset-PASCAL", "PF-dataset-PASCAL/test_pairs_pf_pascal.csv"),
        ("PF-PASCAL", "PF-PASCAL/test_pairs.csv"),
        ("pf-pascal/PF-dataset-PASCAL", "pf-pascal/test_pairs.csv"),
    ],
)
def test_the_three_namings_are_read_from_any_of_their_folders(tmp_path, folder, listing):
    build(tmp_path / folder, tmp_path / listing, end="\r\n")
    for root in dict.fromkeys((tmp_path, tmp_path / folder.split("/")[0], tmp_path / folder)):
        pairs = PFPascalPairs(str(root), size=64)
        assert pairs.pairs == [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg")]


def test_lists_alone_do_not_say_which_points_are_the_same_in_two_pairs(layout, tmp_path, capsys):
    data = ["data", "convert", "data=pf_pascal", f"data.root={layout}", "data.split=test", "format=coco"]
    assert main([*data, f"to={tmp_path}/whole.json"]) == 0
    shutil.rmtree(layout / "Annotations")
    assert main([*data, f"to={tmp_path}/to.json"]) == 2
    assert "of pf_pascal, for keypoints by image, but it numbers those of each pair anew" in capsys.readouterr().err


def test_points_are_the_common_ones_and_the_tolerance_is_the_targets_longer_side(layout):
    pair = PFPascalPairs(str(layout), size=64)[0]
    assert pair.kps_id[0].tolist() == [0, 2] and pair.category == ["cat"]
    assert float(pair.pck_threshold) == 80
    np.testing.assert_allclose(pair.trg_kps[0].numpy() * [80 / 64, 50 / 64], [[15, 9], [40, 22]], atol=1e-4)


def test_the_list_has_the_points_where_the_annotations_are_absent(layout):
    with_files = PFPascalPairs(str(layout), size=64)[0]
    shutil.rmtree(layout / "Annotations")
    pair = PFPascalPairs(str(layout), size=64)[0]
    np.testing.assert_allclose(pair.trg_kps.numpy(), with_files.trg_kps.numpy())
    np.testing.assert_allclose(pair.src_kps.numpy(), with_files.src_kps.numpy())


def test_a_training_list_has_no_points_and_mirrored_rows_are_left_out(layout):
    rows = ["JPEGImages/a.jpg,JPEGImages/b.jpg,8,0", "JPEGImages/a.jpg,JPEGImages/b.jpg,8,1"]
    (layout / "trn_pairs.csv").write_text("\n".join(["source_image,target_image,class,flip", *rows]))
    pairs = PFPascalPairs(str(layout), split="train", size=64)
    assert len(pairs) == 1 and pairs[0].kps_mask.sum() == 2
    assert pairs.ignored == {"row 3 of trn_pairs.csv": "asks for a mirrored pair"}
    (layout / "Annotations" / "cat" / "b.mat").unlink()
    with pytest.raises(DataError, match=r"b\.mat but it is missing"):
        pairs[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER, "Expected rows below the header"),
        (HEADER + "\n" + ROWS[0][:-25], "cells in row 2"),
        (HEADER.replace("class", "klass") + "\n" + ROWS[0], r"\['class'\] are missing"),
        (HEADER + "\n" + ROWS[0].replace(",8,", ",21,"), "class from 1 to 20 in row 2"),
        (HEADER + "\n" + ROWS[0].replace("10;30", "10;x"), "numbers in row 2"),
        (HEADER + "\n" + ROWS[0].replace("10;30", "10"), "as many XA, YA, XB and YB in row 2"),
        (HEADER + "\n" + ROWS[0].replace("10;30", "10;inf"), "finite numbers in row 2"),
    ],
)
def test_a_broken_list_is_named(layout, text, message):
    (layout / "test_pairs.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        PFPascalPairs(str(layout))
    assert "test_pairs.csv" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 200, None, {"kps": np.zeros(3)}, {"bbox": [1.0, 1, 1, 1]}])
def test_a_broken_annotation_is_named(layout, content):
    file = layout / "Annotations" / "cat" / "b.mat"
    if isinstance(content, dict):
        savemat(file, {"kps": np.zeros((2, 2)), "bbox": [1.0, 1, 5, 5]} | content)
    else:
        file.write_bytes(file.read_bytes()[:150] if content is None else content)
    with pytest.raises(DataError, match=re.escape(str(file))):
        PFPascalPairs(str(layout))[0]
    kept = PFPascalPairs  # both pairs use the file: nothing is left
    with pytest.raises(DataError, match="all 2 are broken"):
        kept(str(layout), on_error="skip")


def test_missing_folders_and_lists_are_named(layout, tmp_path):
    with pytest.raises(DataError, match="val_pairs.csv"):
        PFPascalPairs(str(layout), split="val")
    with pytest.raises(DataError, match="JPEGImages"):
        PFPascalPairs(str(tmp_path / "nowhere"))


def test_the_papers_tolerance_is_that_of_a_squashed_image(layout):
    pair = PFPascalPairs(str(layout), convention="paper")[0]
    assert float(pair.pck_threshold) == 512 and pair.trg_size.tolist() == [[512, 512]]


@pytest.mark.parametrize(
    ("bbox", "message"),
    [([5.0, 4.0, 400.0, 30.0], "inside its 80 x 50 px"), ([0.0, 0.0, 9.0, 8.0], "not x, y, width, height")],
)
def test_a_box_that_does_not_suit_its_photograph_is_named(layout, bbox, message):
    points = np.array([[15, 9], [np.nan, np.nan], [40, 22]])
    savemat(layout / "Annotations" / "cat" / "b.mat", {"kps": points + 10, "bbox": bbox})
    with pytest.raises(DataError, match=message):
        PFPascalPairs(str(layout), size=64)[0]


def test_a_row_that_repeats_a_pair_is_ignored_and_named(layout):
    (layout / "test_pairs.csv").write_text("\n".join([HEADER, *ROWS, ROWS[0]]))
    pairs = PFPascalPairs(str(layout))
    assert len(pairs) == 2 and pairs.ignored == {"row 4 of test_pairs.csv": "repeats the pair a.jpg -> b.jpg"}
