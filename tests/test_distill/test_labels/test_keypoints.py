"""Labels as keypoints by image and as SPair-71k's pairs: what label export writes in other tools' formats."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.__main__ import main
from distill.core.vote import vote
from distill.data.datasets.folder import FolderPairs
from distill.data.datasets.spair71k import SPairPairs
from distill.data.points_file import read_keypoints
from distill.labels.keypoints import label_keypoints
from distill.labels.store import LabelStore

NAMES = ["cat/a.png", "cat/b.png", "cat/c.png"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of three annotated photographs, labelled by the oracle, and the arguments that name both."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = ["image,part,x,y"]
    for number, name in enumerate(NAMES):
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name)
        rows += [f"{name},nose,{10 + 5 * number},{8 + number}", f"{name},tail,{50 - number},30.5"]
    (folder / "photos" / "points.csv").write_text("\n".join(rows) + "\n")
    data = ["data=folder", f"data.root={folder}/photos", "data.size=32", f"labels.dir={folder}/labels"]
    data += ["splits=[train]", "train.n_pairs=null"]
    assert main(["label", *data, "teacher=oracle", "device=cpu"]) == 0
    return folder, data


def test_labels_of_each_photograph_are_one_vote_of_all_its_sources(labelled):
    folder, data = labelled
    assert main(["label", "export", *data, "label.format=coco", f"label.file={folder}/kps.json"]) == 0
    found = read_keypoints(folder / "kps.json", NAMES).images
    assert set(found) == set(NAMES)
    for number, name in enumerate(NAMES):
        assert found[name].points["nose"] == pytest.approx((10 + 5 * number, 8 + number), abs=0.02)
        assert found[name].confidence == {"nose": 1.0, "tail": 1.0} and found[name].category == "cat"


def test_answers_of_several_splits_are_voted_on_once(labelled, monkeypatch):
    """All three data sets have all pairs; each photograph has two sources in each, and two parts."""
    folder, _ = labelled
    calls = []
    monkeypatch.setattr("distill.labels.keypoints.vote", lambda *given: calls.append(given) or vote(*given))
    splits = [FolderPairs(f"{folder}/photos", split, size=32) for split in ("train", "val", "all")]
    found, of_split = label_keypoints(LabelStore(folder / "labels"), splits, unsure=0.5)
    assert [tuple(points.shape) for points, _, _ in calls] == [(1, 6, 2)] * 6
    assert set(of_split) == set(found) == set(NAMES) and set(of_split.values()) == {"train"}
    for number, name in enumerate(NAMES):
        assert found[name].points["nose"] == pytest.approx((10 + 5 * number, 8 + number), abs=0.02)


def test_labels_are_exported_with_the_boxes_that_are_known(labelled, tmp_path):
    """The boxes are of cat/a.png and cat/b.png alone; cat/c.png gets one around its points, of which the margin is a tenth."""
    folder, data = labelled
    points = {f"cat/{n}.png": {"nose": [10 + 5 * k, 8 + k], "tail": [50 - k, 30.5]} for k, n in enumerate("abc")}
    boxes = {"cat/a.png": [1, 2, 59, 38], "cat/b.png": [3, 4, 55, 36]}
    content = {name: {"points": own} | ({"bbox": boxes[name]} if name in boxes else {}) for name, own in points.items()}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    data = [*data, f"data.points={tmp_path}/boxes.json"]
    assert main(["label", "export", *data, "label.format=coco", f"label.file={tmp_path}/kps.json"]) == 0
    found = read_keypoints(tmp_path / "kps.json", NAMES).images
    assert [list(found[name].bbox or ()) for name in boxes] == list(boxes.values())
    # From (20, 10) to (48, 30.5); labels are rounded to a few hundredths of a pixel.
    written = json.loads((tmp_path / "kps.json").read_text())
    (of_c,) = [entry["id"] for entry in written["images"] if entry["file_name"] == "cat/c.png"]
    (box,) = [entry["bbox"] for entry in written["annotations"] if entry["image_id"] == of_c]
    assert box == pytest.approx([17.2, 7.2, 33.6, 26.1], abs=0.05) and found["cat/c.png"].bbox is None
    assert main(["label", "export", *data, "label.format=spair71k", f"label.file={tmp_path}/tree"]) == 0
    pairs = SPairPairs(str(tmp_path / "tree"), split="train", size=32)
    pair = pairs.pair_annotation(pairs.pairs.index(("cat/a", "cat/c")))
    np.testing.assert_allclose([pair.src.bbox, pair.trg.bbox], [[1, 2, 59, 38], [17.2, 7.2, 50.8, 33.3]], atol=0.05)


def test_labels_as_a_tree_are_pairs_of_data_spair71k(labelled):
    folder, data = labelled
    assert main(["label", "export", *data, "label.format=spair71k", f"label.file={folder}/tree"]) == 0
    pairs = SPairPairs(str(folder / "tree"), split="train", size=32)
    assert len(pairs) == 6 and not pairs.problems()
    pair = pairs.pair_annotation(pairs.pairs.index(("cat/a", "cat/c")))
    np.testing.assert_allclose(pair.src.points[:2], [[10, 8], [50, 30.5]], atol=1e-3)
    np.testing.assert_allclose(pair.trg.points[:2], [[20, 10], [48, 30.5]], atol=0.02)
    (written, *_) = (folder / "tree/PairAnnotation/trn").iterdir()
    assert json.loads(written.read_text())["confidence"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["label.format=coco", "label.file=a.csv"], "end in .json for coco"),
        (["label.format=coco", "label.file={0}/a.json", "label.unsure=2"], "Expected unsure, a confidence"),
        (["label.unsure=0.5", "label.file={0}/a.csv"], "it belongs to label.format"),
        (["label.format=coco", "label.file={0}/a.json", "labels.dir={0}/none"], "none"),
        (["label.file={0}/a.csv"], "the action works on the label store alone"),
    ],
)
def test_what_cannot_be_exported_is_named(labelled, extra, message, capsys):
    folder, data = labelled
    assert main(["label", "export", *data, *(word.format(folder) for word in extra)]) == 2
    assert message in capsys.readouterr().err and not list(folder.glob("a.*"))


def test_keypoints_need_parts_with_names(labelled, capsys, tmp_path):
    folder, data = labelled
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(folder / "photos" / name).save(tmp_path / name)
    data = [word for word in data if not word.startswith("data.root")] + [f"data.root={tmp_path}"]
    assert main(["label", "export", *data, "label.format=coco", f"label.file={tmp_path}/a.json"]) == 2
    assert "choose label.format=spair71k" in capsys.readouterr().err
