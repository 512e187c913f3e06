"""A row is named by its number in the file, as a spreadsheet shows it: empty rows count."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from distill.cli.match_input import read_points
from distill.core.errors import DataError
from distill.data.datasets.pf_pascal import _read_list
from distill.data.datasets.pf_willow import PFWillowPairs
from distill.data.pair_list import read_pair_list
from distill.data.points_file import read_points_file
from distill.data.readers import read_csv

KNOWN = ["cat/1.jpg", "cat/2.jpg"]


def written(folder: Path, text: str, name: str = "file.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8", newline="")
    return file


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("empty", ["", ",,,", "  ,,, "])
def test_rows_have_their_number_in_the_file_and_empty_ones_are_left_out(tmp_path, end, empty):
    lines = ["", "image,part,x,y", empty, "a,b,1,2", empty, empty, "c,d,3,4", empty]
    header, rows = read_csv(written(tmp_path, end.join(lines)))
    assert header == ["image", "part", "x", "y"]
    assert rows == {4: ["a", "b", "1", "2"], 7: ["c", "d", "3", "4"]}


def test_a_row_ends_where_csv_says_and_not_at_other_separators_in_a_name(tmp_path):
    name = "two\u2028lines\x0b\x85.jpg"
    assert read_csv(written(tmp_path, f"image,x\n{name},1\n"))[1] == {2: [name, "1"]}
    assert read_csv(written(tmp_path, 'image,x\n"two\nlines",1\nb,2\n'))[1] == {2: ["two\nlines", "1"], 3: ["b", "2"]}


def test_text_that_is_no_csv_is_named_by_its_row(tmp_path):
    with pytest.raises(DataError, match="Expected CSV in .* but row 4 cannot be read"):
        read_csv(written(tmp_path, 'image,x\n\na,1\n"b"c,1\n'))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("cat/1.jpg,a,1,2\n\n\ncat/1.jpg,a,3,4", "row 6 of .* repeats a of cat/1.jpg from row 3"),
        ("cat/1.jpg,a,1,2\n\n\ncat/1.jpg,b,one,4", "numbers in row 6"),
        ("cat/1.jpg,a,1,2\n\n\ncat/1.jpg,b,nan,4", "finite numbers in row 6"),
        ("cat/1.jpg,a,1,2\n\n\ncat/1.jpg,b,4", "4 cells in row 6"),
        ("cat/1.jpg,a,1,2\n\n\ncat/1.jpg, a ,3,4", "row 6 of .* repeats a of cat/1.jpg from row 3"),
        ("cat/1.jpg,a,1,2\n\n\ncat/1.jpg, ,3,4", "name of a part in row 6"),
        (
            "cat/1.jpg,a,1,2\n\n\ncat/1.jpg,b,3,2_0",
            "numbers in row 6 of .* but could not convert string to float: '2_0'",
        ),
    ],
)
def test_points_of_photographs(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_points_file(written(tmp_path, f"image,part,x,y\n\n{rows}\n"), KNOWN)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("cat/1.jpg,cat/2.jpg\n\ncat/1.jpg,cat/2.jpg", "row 5 of .* repeats row 3"),
        ("cat/1.jpg,cat/2.jpg\n\ncat/1.jpg,cat/1.jpg", "two images in row 5"),
        ("cat/1.jpg,cat/2.jpg\n\ncat/1.jpg,cat/3.jpg", "in row 5 of .* there is no cat/3.jpg"),
    ],
)
def test_lists_of_pairs(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_pair_list(written(tmp_path, f"source_image,target_image\n\n{rows}\n"), KNOWN)


def test_points_of_match(tmp_path):
    file = written(tmp_path, "x,y\n\n1,2\n\n3,four\n")
    with pytest.raises(DataError, match="numbers in row 5"):
        read_points(str(file), tmp_path / "a.png")
    file.write_text("x,y\n\n1,2\n\n3,4\n")
    read = read_points(str(file), tmp_path / "a.png")
    assert read.names == ["0", "1"] and read.xy.tolist() == [[[1, 2], [3, 4]]]
    assert read_points(OmegaConf.create([[1, 2]]), tmp_path / "a.png").names == ["0"]


def test_lists_of_pf_pascal(tmp_path):
    header = "source_image,target_image,class,flip"
    file = written(tmp_path, f"{header}\n\na.jpg,b.jpg,8,0\n\na.jpg,b.jpg,8,1\n\nb.jpg,a.jpg,8,0\n")
    ignored: dict[str, str] = {}
    assert [number for number, *_ in _read_list(file, ignored)] == [3, 7]
    assert list(ignored) == ["row 5 of file.csv"]
    with pytest.raises(DataError, match="class from 1 to 20 in row 4"):
        _read_list(written(tmp_path, f"{header}\n\n\na.jpg,b.jpg,21,0\n"), {})


def test_lists_of_pf_willow(tmp_path):
    (tmp_path / "car").mkdir()
    for name in "ab":
        Image.new("RGB", (60, 40)).save(tmp_path / "car" / f"{name}.png")
    header = ",".join(f"c{number}" for number in range(42))
    row = ",".join(["car/a.png", "car/b.png", *["15"] * 40])
    written(tmp_path, f"{header}\n\n{row}\n\n{row}\n", "test_pairs_pf.csv")
    assert list(PFWillowPairs(str(tmp_path)).ignored) == ["row 5 of test_pairs_pf.csv"]
    other = ",".join(["car/b.png", "car/a.png", *["15"] * 39, "x"])
    written(tmp_path, f"{header}\n\n{row}\n\n{other}\n", "test_pairs_pf.csv")
    with pytest.raises(DataError, match="numbers in row 5"):
        PFWillowPairs(str(tmp_path))
