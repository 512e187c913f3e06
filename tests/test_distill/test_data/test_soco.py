"""SOCO, on a miniature of its published layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main
from distill.cli.commands.doctor import layout as recognised
from distill.core.errors import ConfigError, DataError
from distill.data.datasets.soco import SOCOPairs
from distill.data.datasets.spair71k import SPairPairs
from distill.data.download import RECIPES, extract
from distill.evaluation.evaluate import evaluate
from distill.labels.generate import by_source_image
from distill.matchers.oracle import Oracle


def point(number: int, name: str, place: list[float]) -> dict:
    concept = {"concept_id": 10, "concept_name": "wheel", "kind": "functional", "shared": True}
    return {"id": number, "name": name, "pos": place, **concept}


@pytest.fixture
def root(tmp_path) -> Path:
    for category, size in (("car", (60, 48)), ("bus", (72, 50))):
        (tmp_path / "Images" / category).mkdir(parents=True)
        for number in (1, 2):
            noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "Images" / category / f"{category}_{number}.JPEG")
    for folder, source, size in (
        ("intra", "car", [60, 48]),
        ("cross", "bus", [72, 50]),
        ("trainsplits/test", "car", [60, 48]),
    ):
        pair = {
            "pair_id": 1,
            "pair_group": "car",
            "src_category": source,
            "trg_category": "car",
            "src_image": f"{source}_1.JPEG",
            "trg_image": "car_2.JPEG",
            "src_imsize": size,
            "trg_imsize": [60, 48],
            "src_bndbox": [2, 2, 58, 44],
            "trg_bndbox": [4, 6, 54, 40],
            "src_keypoints": [point(7, "front", [10, 30]), point(8, "rear", [50, 31]), point(3, "mirror", [22, 12])],
            "trg_keypoints": [point(8, "rear", [48, 33]), point(9, "hook", [5, 20]), point(7, "front", [12, 32])],
            "semantic_overlap": ["front", "rear"],
            "concept_matches": [],
        }
        (tmp_path / "PairAnnotations" / folder / "car").mkdir(parents=True)
        (tmp_path / "PairAnnotations" / folder / "car" / "00001.json").write_text(json.dumps(pair))
    return tmp_path


def edit(root: Path, folder: str = "intra", **changes) -> None:
    file = root / "PairAnnotations" / folder / "car" / "00001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("split", "width"), [("intra", 60), ("cross", 72), ("test", 60)])
def test_common_points_are_asked_for_by_name_and_the_targets_others_are_known(root, split, width):
    pair = SOCOPairs(str(root), split, size=64)[0]
    # "front" and "rear" of both images, in the pixels of squares of 64.
    np.testing.assert_allclose(
        pair.trg_kps[0].numpy(), [[12 * 64 / 60, 32 * 64 / 48], [48 * 64 / 60, 33 * 64 / 48]], rtol=1e-5
    )
    np.testing.assert_allclose(pair.src_kps[0, :, 0].numpy(), [10 * 64 / width, 50 * 64 / width], rtol=1e-5)
    assert pair.trg_all_id[0].tolist() == [0, 1, 2] and pair.category == ["car"]
    assert pair.pck_threshold.tolist() == [50.0], "the longer side of the target's box"


def test_the_truth_scores_full_marks_and_the_doctor_recognises_the_layout(root):
    report = evaluate(Oracle(), SOCOPairs(str(root), "cross", size=64), "oracle", progress=False).report
    assert report["pck_category_mean"]["image"]["0.10"] == 100 and report["n_points"] == 2
    assert recognised(root) == "soco"


def test_the_list_of_pairs_that_describe_writes_names_images(root, tmp_path):
    """A pair is known by its group and its file here, which stood in the columns of source and target."""
    data = ["data=soco", f"data.root={root}", "data.split=cross", "data.size=32", f"run.dir={tmp_path}/d"]
    assert main(["data", "describe", *data]) == 0
    assert (tmp_path / "d/pairs.csv").read_text() == 'source_image,target_image\n"bus/bus_1.JPEG","car/car_2.JPEG"\n'


def test_pairs_of_one_group_have_sources_of_their_own(root):
    folder = root / "PairAnnotations/intra/car"
    other = json.loads((folder / "00001.json").read_text())
    for side in ("image", "imsize", "bndbox", "keypoints"):
        other[f"src_{side}"], other[f"trg_{side}"] = other[f"trg_{side}"], other[f"src_{side}"]
    (folder / "00002.json").write_text(json.dumps(other))
    assert by_source_image(SOCOPairs(str(root), "intra", size=32)) == [[0], [1]]


def test_points_that_are_numbered_by_pair_are_converted_as_pairs_only(root, tmp_path, capsys):
    edit(root, trg_bndbox=None)
    data = ["data", "convert", "data=soco", f"data.root={root}", "data.split=intra"]
    assert main([*data, "format=coco", f"to={tmp_path}/to.json"]) == 2
    assert "of soco, for keypoints by image, but it numbers those of each pair anew" in capsys.readouterr().err
    assert main([*data, "format=spair71k", f"to={tmp_path}/tree"]) == 0
    tree = SPairPairs(str(tmp_path / "tree"), "train", size=64)
    pair = tree.pair_annotation(0)
    assert pair.trg.visible.nonzero()[0].tolist() == [0, 1], "another pair's numbers mean other parts"
    # "front", "rear" and "hook" span 43 x 13 px.
    np.testing.assert_allclose(pair.trg.bbox, [0.7, 15.7, 52.3, 37.3])


def test_photographs_of_one_name_in_two_folders_stay_apart_in_a_tree(root, tmp_path):
    for category in ("car", "bus"):
        (root / f"Images/{category}/{category}_{1 if category == 'bus' else 2}.JPEG").rename(
            root / f"Images/{category}/a.JPEG"
        )
    edit(root, "cross", src_image="a.JPEG", trg_image="a.JPEG")
    data = ["data=soco", f"data.root={root}", "data.split=cross", "format=spair71k", f"to={tmp_path}/tree"]
    assert main(["data", "convert", *data]) == 0
    pair = SPairPairs(str(tmp_path / "tree"), "train", size=64).pair_annotation(0)
    assert [Image.open(side.path).size for side in (pair.src, pair.trg)] == [(72, 50), (60, 48)]


def test_a_photograph_in_pairs_of_two_categories_is_in_a_tree_once_for_each(root, tmp_path):
    pair = json.loads((root / "PairAnnotations/cross/car/00001.json").read_text()) | {"pair_group": "bus"}
    (root / "PairAnnotations/cross/bus").mkdir()
    (root / "PairAnnotations/cross/bus/00002.json").write_text(json.dumps(pair | {"trg_image": "car_1.JPEG"}))
    data = ["data=soco", f"data.root={root}", "data.split=cross", "format=spair71k", f"to={tmp_path}/tree"]
    assert main(["data", "convert", *data]) == 0
    tree = SPairPairs(str(tmp_path / "tree"), "train", size=64)
    sides = {(tree[n].category[0], side.path.name) for n in range(2) for side in _sides(tree.pair_annotation(n))}
    assert sides == {("bus", "bus_1.jpg"), ("bus", "car_1.jpg"), ("car", "bus_1.jpg"), ("car", "car_2.jpg")}


def _sides(pair):
    return pair.src, pair.trg


def test_a_pair_without_a_box_is_scored_by_the_whole_image(root):
    edit(root, trg_bndbox=None)
    assert SOCOPairs(str(root), size=64)[0].pck_threshold.tolist() == [60.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"semantic_overlap": ["front", "mirror"]}, "not points of both images"),
        ({"semantic_overlap": ["front", "front"]}, "not points of both images, each once"),
        ({"trg_image": "../../../secret.png"}, "no plain name"),
        ({"src_category": ".."}, "no plain name"),
        ({"trg_bndbox": [4, 6, 4, 40]}, "is empty"),
        ({"trg_bndbox": "1234"}, 'trg_bndbox is "1234" where 4 numbers are expected'),
        ({"trg_bndbox": [[4, 6], [54, 40]]}, "where 4 numbers are expected"),
        ({"trg_imsize": "64"}, 'trg_imsize is "64" where 2 numbers are expected'),
        (
            {"trg_keypoints": [point(7, "front", "12"), point(8, "rear", [48, 33])]},
            "'front' .* is \"12\" where 2 numbers",
        ),  # type: ignore[arg-type]
        ({"trg_keypoints": [point(7, "front", [1, True]), point(8, "rear", [48, 33])]}, "where 2 numbers are expected"),
        ({"src_category": "bus", "src_image": "bus_1.JPEG", "src_imsize": None}, "of bus and car where pairs of intra"),
        ({"trg_bndbox": None, "trg_imsize": None}, "both missing"),
        ({"src_keypoints": [point(7, "front", [1, 2])] * 2}, "'front' comes twice"),
        ({"src_keypoints": 3}, "src_keypoints is 3 where a list is expected"),
        ({"trg_image": "none.JPEG"}, "none.JPEG"),
        ({"trg_imsize": [61, 48]}, "car_2.JPEG"),
    ],
)
def test_annotations_that_cannot_be_true_are_named(root, changes, message):
    edit(root, **changes)
    pairs = SOCOPairs(str(root), size=64)
    with pytest.raises(DataError, match=message):
        pairs[0]
    assert list(pairs.problems()) and len(SOCOPairs(str(root), "cross", size=64).problems()) == 0


def test_what_is_not_there_is_named(root, tmp_path):
    with pytest.raises(DataError, match="Images.zip and PairAnnotations.zip"):
        SOCOPairs(str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="categories of split intra but got 'cars'; did you mean 'car'"):
        SOCOPairs(str(root), categories=["cars"])
    assert len(SOCOPairs(str(root), categories="car")) == 1  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="categories to name some of car but got none"):
        SOCOPairs(str(root), categories=[])
    with pytest.raises(ConfigError, match="data.split"):
        SOCOPairs(str(root), "val")
    with pytest.raises(ConfigError, match="convention=canonical"):
        SOCOPairs(str(root), convention="paper")


def test_the_archives_of_the_download_unpack_to_what_is_read(root, tmp_path):
    for source in RECIPES["soco"].sources:
        packed = shutil.make_archive(
            str(tmp_path / "packed" / Path(source.filename).stem), "zip", root, Path(source.filename).stem
        )
        extract(Path(packed), tmp_path / "data" / source.into)
    assert len(SOCOPairs(str(tmp_path / "data" / "SOCOv1"))) == len(SOCOPairs(str(root)))
