import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.core.errors import ConfigError, DataError
from distill.data.datasets.ap10k import AP10KPairs

IMAGES = {"Felidae/cat/1": (60, 40), "Felidae/cat/2": (50, 50), "Felidae/lion/3": (80, 60), "Bovidae/cow/4": (70, 40)}
LISTS = {
    "test": {"000-1-2:cat": ("Felidae/cat/1", "Felidae/cat/2")},
    "trn": {"000-2-1:cat": ("Felidae/cat/2", "Felidae/cat/1")},
    "test_cross_species": {"000-1-3:Felidae": ("Felidae/cat/1", "Felidae/lion/3")},
    "test_cross_family": {"000-1-4:all": ("Felidae/cat/1", "Bovidae/cow/4")},
}


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Four animals; part 0 is missing in the second, the shoulders (5, 8) are visible in all."""
    for name, (width, height) in IMAGES.items():
        image = tmp_path / "JPEGImages" / f"{name}.jpg"
        note = tmp_path / "ImageAnnotation" / f"{name}.json"
        image.parent.mkdir(parents=True, exist_ok=True)
        note.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height)).save(image)
        points = [[0.0, 0.0, 0.0]] * 17
        points[5], points[8] = [20.0, 10.0, 2.0], [30.0, 12.0, 1.0]
        if name[-1] != "2":
            points[0] = [25.0, 30.0, 2.0]
        flat = [value for point in points for value in point]
        note.write_text(json.dumps({"keypoints": flat, "bbox": [10, 5, 30, 33], "width": width, "height": height}))
    for folder, pairs in LISTS.items():
        (tmp_path / "PairAnnotation" / folder).mkdir(parents=True)
        for name, (src, trg) in pairs.items():
            paths = {"src_json_path": f"data/ap-10k/ImageAnnotation/{src}.json"}
            paths["trg_json_path"] = f"data\\ap-10k\\ImageAnnotation\\{trg}.json".replace("/", "\\")
            (tmp_path / "PairAnnotation" / folder / f"{name}.json").write_text(json.dumps(paths))
    return tmp_path


@pytest.mark.parametrize(
    ("across", "target", "category"),
    [
        ("none", "Felidae/cat/2.jpg", "cat"),
        ("species", "Felidae/lion/3.jpg", "Felidae"),
        ("families", "Bovidae/cow/4.jpg", "all"),
    ],
)
def test_pairs_within_a_species_across_species_and_across_families(layout, across, target, category):
    pairs = AP10KPairs(str(layout), across=across, size=64)
    pair = pairs[0]
    assert len(pairs) == 1 and pair.trg_id == [target] and pair.category == [category]
    assert float(pair.pck_threshold) == pytest.approx(33, abs=1e-4)


def test_points_that_one_of_the_two_lacks_are_not_asked_for(layout):
    pair = AP10KPairs(str(layout), size=64)[0]
    assert pair.kps_id[0].tolist() == [5, 8]
    np.testing.assert_allclose(pair.trg_kps[0].numpy() * 50 / 64, [[20, 10], [30, 12]], atol=1e-4)
    assert AP10KPairs(str(layout), split="train", size=64)[0].trg_all_id[0].tolist() == [0, 5, 8]


def test_a_file_system_without_colons_will_do(layout):
    for file in (layout / "PairAnnotation" / "test_cross_species").iterdir():
        file.rename(file.with_name(file.name.replace(":", "_")))
    assert AP10KPairs(str(layout), across="species")[0].category == ["Felidae"]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("PairAnnotation/test/000-1-2:cat.json", lambda text: "", "it is no JSON"),
        ("PairAnnotation/test/000-1-2:cat.json", lambda text: "{}", "the key 'src_json_path' is missing"),
        (
            "PairAnnotation/test/000-1-2:cat.json",
            lambda text: text.replace("ImageAnnotation", "X"),
            "names no file below ImageAnnotation",
        ),
        ("ImageAnnotation/Felidae/cat/2.json", lambda text: text[:40], "it is no JSON"),
        (
            "ImageAnnotation/Felidae/cat/2.json",
            lambda text: text.replace("[0.0, ", "[", 1),
            "keypoints is .* where 51 numbers",
        ),
        ("ImageAnnotation/Felidae/cat/2.json", lambda text: text.replace("30, 33", "0, 33"), "has no area"),
        ("ImageAnnotation/Felidae/cat/2.json", lambda text: "[]", "the file is .* where an object is expected"),
        ("PairAnnotation/test/000-1-2:cat.json", lambda text: text.replace("Felidae", ".."), "names no file below"),
        ("ImageAnnotation/Felidae/cat/2.json", None, "cannot be read"),
        ("ImageAnnotation/Felidae/cat/2.json", lambda text: text.replace("20.0", "51.0"), "inside its 50 x 50 px"),
        ("ImageAnnotation/Felidae/cat/2.json", lambda text: text.replace("30, 33", "300, 33"), "inside its 50 x 50 px"),
        (
            "ImageAnnotation/Felidae/cat/2.json",
            lambda text: text.replace("30, 33", "3, 3"),
            "a box is x, y, width, height in px, not x0",
        ),
        (
            "ImageAnnotation/Felidae/cat/2.json",
            lambda text: text.replace("{", '{"bbox": [1, 1, 2, 2], ', 1),
            "comes twice",
        ),
        ("JPEGImages/Felidae/cat/2.jpg", None, "Expected an image file"),
    ],
)
def test_a_broken_file_is_named(layout, file, damage, message):
    path = layout / file
    path.unlink() if damage is None else path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        AP10KPairs(str(layout))[0]
    assert path.name in str(caught.value)


def test_what_is_wrong_is_named(layout, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'species'"):
        AP10KPairs(str(layout), across="specie")
    with pytest.raises(ConfigError, match="suit split train"):
        AP10KPairs(str(layout), split="train", across="families")
    with pytest.raises(ConfigError, match="does not read ap10k"):
        AP10KPairs(str(layout), convention="paper")
    with pytest.raises(DataError, match="data download"):
        AP10KPairs(str(tmp_path / "nowhere"))


def test_hidden_files_do_not_count(layout):
    (layout / "PairAnnotation" / "test" / "._000-1-2:cat.json").write_bytes(b"\0\5\26\7")
    assert len(AP10KPairs(str(layout))) == 1


def test_a_pair_that_is_listed_twice_is_taken_once_and_named(layout):
    folder = layout / "PairAnnotation" / "test"
    (folder / "001-1-2:cat.json").write_text((folder / "000-1-2:cat.json").read_text())
    pairs = AP10KPairs(str(layout))
    assert len(pairs) == 1 and list(pairs.ignored) == ["001-1-2:cat.json"]
