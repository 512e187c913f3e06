from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from distill.core.errors import ConfigError, DataError
from distill.data.datasets.pf_willow import PFWillowPairs


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Two folders of three photographs; the first point is red, the others stand in a row to its right."""
    for folder in ("car(S)", "duck(S)"):
        for number in range(3):
            file = tmp_path / folder / f"photo {number}.png"
            file.parent.mkdir(exist_ok=True)
            width, height, x, y = 60 + number, 40, 12 + number, 20
            pixels = np.zeros((height, width, 3), np.uint8)
            pixels[y - 3 : y + 3, x - 3 : x + 3] = (255, 0, 0)
            Image.fromarray(pixels).save(file)
            savemat(file.with_suffix(".mat"), {"pts_coord": np.stack([x + 4.0 * np.arange(10), np.full(10, y)])})
    return tmp_path


def test_all_ordered_pairs_within_a_folder_are_there_once(layout):
    pairs = PFWillowPairs(str(layout))
    named = {(pair.src_id[0], pair.trg_id[0]) for pair in map(pairs.__getitem__, range(len(pairs)))}
    expected = {
        (f"{folder}/photo {a}", f"{folder}/photo {b}")
        for folder in ("car(S)", "duck(S)")
        for a in range(3)
        for b in range(3)
        if a != b
    }
    assert len(pairs) == 12 and named == expected


def test_points_lie_where_the_photograph_shows_them(layout):
    pairs = PFWillowPairs(str(layout), n_pairs=5, size=64)
    for number in range(5):
        pair = pairs[number]
        x, y = pair.trg_kps[0, 0].int().tolist()
        red, green, _ = pair.trg_img[0, :, y, x].tolist()
        assert red > 0.8 and green < 0.2


def test_the_threshold_is_the_longer_side_of_the_targets_point_box_in_its_own_pixels(layout):
    pair = PFWillowPairs(str(layout), size=64)[0]
    assert float(pair.pck_threshold) == pytest.approx(36, abs=1e-4)
    assert pair.kps_mask.sum() == 10


def test_the_photographs_at_hand_give_ninety_pairs_a_folder(photographs):
    pairs = PFWillowPairs(str(photographs / "PF-WILLOW" / "PF-dataset"))
    assert len(pairs) == 270
    assert ((pairs[0].trg_kps >= 0) & (pairs[0].trg_kps <= 128)).all()


def test_what_is_wrong_is_named(layout, tmp_path):
    with pytest.raises(ConfigError, match="'test', all there is"):
        PFWillowPairs(str(layout), split="train")
    with pytest.raises(ConfigError, match="at least 16 px"):
        PFWillowPairs(str(layout), size=8)
    with pytest.raises(DataError, match="found none"):
        PFWillowPairs(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="data.n_pairs of at least 1"):
        PFWillowPairs(str(layout), n_pairs=0)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(40), b"\x00" * 300])
def test_a_broken_annotation_is_named(layout, content):
    (layout / "car(S)" / "photo 1.mat").write_bytes(content)
    with pytest.raises(DataError, match="photo 1.mat"):
        PFWillowPairs(str(layout))


@pytest.mark.parametrize("points", [np.zeros((10, 2)), np.full((2, 10), np.nan)])
def test_annotations_of_another_shape_or_without_values_are_refused(layout, points):
    savemat(layout / "duck(S)" / "photo 0.mat", {"pts_coord": points})
    with pytest.raises(DataError, match=r"Expected finite pts_coord of shape \(2, 10\)"):
        PFWillowPairs(str(layout))


def test_a_broken_photograph_is_named(layout):
    (layout / "car(S)" / "photo 1.png").write_bytes(b"no image")
    pairs = PFWillowPairs(str(layout))
    with pytest.raises(DataError, match="photo 1.png"):
        [pairs[number] for number in range(len(pairs))]


def write_list(layout: Path, name: str = "test_pairs_pf.csv", rows=None) -> None:
    header = ["imageA", "imageB", *(f"{axis}{image}{n}" for image in "AB" for axis in "XY" for n in range(1, 11))]
    if rows is None:
        a, b = [12, *range(16, 52, 4)], [13, *range(17, 53, 4)]
        rows = [["PF-dataset/car(S)/photo 0.png", "PF-dataset/car(S)/photo 1.png", *a, *[20] * 10, *b, *[20] * 10]]
    lines = [",".join(map(str, row)) for row in [header, *rows]]
    (layout / name).write_text("\r\n".join(lines) + "\r\n", newline="")


@pytest.mark.parametrize("name", ["test_pairs_pf.csv", "test_pairs.csv"])
def test_a_list_of_pairs_is_followed_and_says_the_same_as_the_annotations(layout, name):
    made = PFWillowPairs(str(layout), size=64)
    expected = made[made.pairs.index(("car(S)/photo 0", "car(S)/photo 1"))]
    write_list(layout, name)
    pairs = PFWillowPairs(str(layout), size=64)
    assert pairs.pairs == [("car(S)/photo 0", "car(S)/photo 1")]
    np.testing.assert_allclose(pairs[0].trg_kps.numpy(), expected.trg_kps.numpy(), atol=1e-4)
    np.testing.assert_allclose(pairs[0].src_kps.numpy(), expected.src_kps.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows below the header"),
        ([["a.png", "b.png", *[1] * 39]], "42 cells in row 2"),
        ([["", "b.png", *[1] * 40]], "two images in row 2"),
        ([[".", "b.png", *[1] * 40]], "two images in row 2"),
        ([["car(S)/photo 0.png", "car(S)/photo 1.png", "x", *[1] * 39]], "numbers in row 2"),
    ],
)
def test_a_broken_list_is_named(layout, rows, message):
    write_list(layout, rows=rows)
    with pytest.raises(DataError, match=message) as caught:
        PFWillowPairs(str(layout))
    assert "test_pairs_pf.csv" in str(caught.value)


def test_a_list_that_asks_for_a_photograph_that_is_not_there_is_an_error_or_a_counted_skip(layout):
    good = [["car(S)/photo 0.png", "car(S)/photo 1.png", *[15] * 40]]
    write_list(layout, rows=good + [["car(S)/photo 0.png", "car(S)/gone.png", *[15] * 40]])
    with pytest.raises(DataError, match=r"gone\.png"):
        PFWillowPairs(str(layout))[1]
    pairs = PFWillowPairs(str(layout), on_error="skip")
    assert len(pairs) == 1 and list(pairs.skipped) == ["car(S)/photo 0 -> car(S)/gone"]


def test_the_folder_above_will_do(layout, tmp_path):
    (tmp_path / "above").mkdir()
    (tmp_path / "above" / "PF-dataset").symlink_to(layout, target_is_directory=True)
    assert PFWillowPairs(str(tmp_path / "above")).pairs == PFWillowPairs(str(layout)).pairs


def test_more_pairs_than_there_are_give_all_of_them_and_a_note(layout):
    pairs = PFWillowPairs(str(layout), n_pairs=13)
    assert len(pairs) == 12 and pairs.notes == ["split test has 12 pairs, 13 were asked for"]


def test_a_row_that_repeats_a_pair_is_ignored_and_named(layout):
    rows = [["car(S)/photo 0.png", "car(S)/photo 1.png", *[15] * 40]] * 2
    write_list(layout, rows=rows)
    pairs = PFWillowPairs(str(layout))
    assert len(pairs) == 1 and list(pairs.ignored) == ["row 3 of test_pairs_pf.csv"]


def test_hidden_files_and_folders_do_not_count(layout):
    (layout / "car(S)" / "._photo 0.mat").write_bytes(b"\0\5\26\7")
    (layout / ".checkpoints").mkdir()
    (layout / ".checkpoints" / "photo 0.mat").write_bytes(b"\0")
    assert len(PFWillowPairs(str(layout))) == 12


def test_photographs_without_points_and_points_without_photographs_are_named(layout):
    (layout / "car(S)" / "photo 9.png").write_bytes((layout / "car(S)" / "photo 0.png").read_bytes())
    pairs = PFWillowPairs(str(layout))
    assert len(pairs) == 12 and pairs.ignored == {"car(S)/photo 9.png": "has no points beside it"}
