"""Annotations from a stranger: they name files of their own folder only."""

import pytest

from distill.core.errors import DataError
from distill.data.datasets.cub import CUBPairs
from distill.data.datasets.pf_willow import PFWillowPairs
from distill.data.datasets.spair71k import SPairPairs

LEADS_AWAY = ("../../secret", "/etc/secret", "a/../../../secret")


@pytest.mark.parametrize("name", LEADS_AWAY)
@pytest.mark.parametrize("line", ["1-{}-b:cat", "1-a-{}:cat", "{}-a-b:cat", "1-a-b:{}"])
def test_a_layout_of_spair_71k_cannot_lead_out_of_its_folder(tmp_path, name, line):
    (tmp_path / "Layout" / "large").mkdir(parents=True)
    (tmp_path / "Layout" / "large" / "test.txt").write_text(line.format(name) + "\n")
    with pytest.raises(DataError, match="test.txt to name files of its own folder but it names .*secret"):
        SPairPairs(str(tmp_path))


@pytest.mark.parametrize("name", LEADS_AWAY)
def test_a_list_of_cubs_images_cannot_lead_out_of_its_folder(tmp_path, name):
    (tmp_path / "parts").mkdir()
    for file, line in {
        "images.txt": f"1 {name}",
        "image_class_labels.txt": "1 1",
        "train_test_split.txt": "1 0",
        "bounding_boxes.txt": "1 1 1 9 9",
        "parts/part_locs.txt": "1 1 4 4 1",
    }.items():
        (tmp_path / file).write_text(line + "\n")
    with pytest.raises(DataError, match="images.txt to name files of its own folder but it names .*secret"):
        CUBPairs(str(tmp_path), "test")


@pytest.mark.parametrize("name", ["../secret.png", "/secret.png"])
def test_a_list_of_pf_willows_pairs_cannot_lead_out_of_its_folder(tmp_path, name):
    header = ["imageA", "imageB", *(f"{axis}{n}" for axis in ("XA", "YA", "XB", "YB") for n in range(10))]
    rows = [header, [name, "a/b.png", *["1"] * 40]]
    (tmp_path / "test_pairs_pf.csv").write_text("\n".join(",".join(row) for row in rows) + "\n")
    with pytest.raises(DataError, match="test_pairs_pf.csv to name files of its own folder but it names .*secret"):
        PFWillowPairs(str(tmp_path))
