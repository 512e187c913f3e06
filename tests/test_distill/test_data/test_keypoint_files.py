"""Keypoints in the formats of annotation tools: round trips, conventions of pixels, confidences and visibility."""

import errno
import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from distill.__main__ import main
from distill.core.errors import ConfigError, DataError
from distill.data.coco import read_coco_images, write_coco
from distill.data.datasets.folder import FolderPairs
from distill.data.datasets.spair71k import SPairPairs
from distill.data.image_copies import safe_names
from distill.data.keypoint_files import FORMATS, check_format, write_keypoints
from distill.data.keypoints import ImageKeypoints, NameFinder
from distill.data.label_studio import read_label_studio, write_label_studio
from distill.data.points_file import read_keypoints, read_points_file
from distill.data.readers import _unique, read_json
from distill.data.sleap import labelled_images
from distill.data.yolo_pose import yolo_line

SIZE = (40, 60)


def keypoints() -> dict[str, ImageKeypoints]:
    """One image by a person, one by a matcher with an unsure point, one of another category."""
    return {
        "cat/a.jpg": ImageKeypoints(
            {"nose": (10.25, 12.5), "tail": (0.5, 39.5)}, (0.0, 4.0, 35.0, 40.0), SIZE, category="cat"
        ),
        "cat/b.png": ImageKeypoints(
            {"nose": (30.0, 20.0), "tail": (5.0, 6.0)},
            (2.0, 2.0, 40.0, 30.0),
            SIZE,
            frozenset({"tail"}),
            "cat",
            {"nose": 0.875, "tail": 0.125},
        ),
        "dog/a.jpg": ImageKeypoints({"nose": (1.5, 2.5)}, (0.0, 0.0, 60.0, 40.0), SIZE, category="dog"),
    }


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(keypoints()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def close(points: dict[str, tuple[float, float]]) -> dict:
    return {part: pytest.approx(point, abs=1e-4) for part, point in points.items()}


@pytest.mark.parametrize("format_", ["coco", "sleap"])
def test_formats_with_confidence_give_back_what_was_written(format_, layout):
    file = layout / f"kps{FORMATS[format_]}"
    write_keypoints(keypoints(), layout, file, format_)
    found = read_keypoints(file, list(keypoints())).images
    for name, expected in keypoints().items():
        assert found[name].points == close(expected.points), name
        assert found[name].confidence == pytest.approx(expected.confidence)
        assert (found[name].unsure, found[name].category) == (expected.unsure, expected.category)


def test_what_a_matcher_was_unsure_of_is_no_annotation(layout):
    file = layout / "kps.json"
    write_keypoints(keypoints(), layout, file, "coco")
    assert set(read_points_file(file, list(keypoints())).images["cat/b.png"].points) == {"nose"}


def test_label_studio_has_persons_points_as_annotations_and_a_matchers_as_predictions(layout):
    from sleap_io.io import labelstudio

    file = layout / "tasks.json"
    write_keypoints(keypoints(), layout, file, "label_studio")
    tasks = json.loads(file.read_text())
    (region, _) = tasks[0]["annotations"][0]["result"]
    assert region["value"]["x"] == pytest.approx(100 * 10.25 / 60) and region["value"]["y"] == pytest.approx(
        100 * 12.5 / 40
    )
    assert tasks[1]["annotations"] == [], "an empty one counts as done, and the task is left out of the queue"
    predicted = {r["value"]["keypointlabels"][0]: r for r in tasks[1]["predictions"][0]["result"]}
    assert predicted["nose"]["score"] == 0.875 and predicted["tail"]["meta"] == {"text": ["unsure"]}
    found = read_points_file(file, list(keypoints())).images
    assert set(found) == {"cat/a.jpg", "dog/a.jpg"} and found["cat/a.jpg"].points == close(
        keypoints()["cat/a.jpg"].points
    )
    for task in tasks:  # sleap-io reads tasks of videos only
        task["meta"] = {"video": {"filename": task["data"]["image"], "frame_idx": 0, "shape": (1, *SIZE, 3)}}
    frame = labelstudio.parse_tasks(tasks[:1], labelstudio.infer_nodes(tasks[:1]))[0]
    theirs = dict(zip(frame.instances[0].skeleton.node_names, frame.instances[0].numpy().tolist(), strict=True))
    assert theirs["nose"] == pytest.approx([10.25, 12.5])


def test_label_studio_gets_addresses_whose_points_come_back_to_their_photographs():
    """In an address "+" is a space: the points of "a+b.jpg" came back as those of "a b.jpg"."""
    others = ["cat/a b.jpg", "cat/100%.jpg", "cat/ab.jpg", "b.jpg"]
    names = ["cat/a+b.jpg", "cat/100%25.jpg", "cat/a#b.jpg", "R&D=1;2/a?d=b.jpg", "кот/ü ö.jpg"]
    images = {n: ImageKeypoints({"nose": (float(x), 1.0)}, size=SIZE) for x, n in enumerate(names, start=1)}
    tasks = write_label_studio(images)
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=cat/a%2Bb.jpg"
    found = read_label_studio(tasks, [*others, *names])
    assert {name: image.points for name, image in found.items()} == {n: close(i.points) for n, i in images.items()}


def test_deeplabcuts_file_is_read_again_without_what_is_unsure(layout):
    file = layout / "CollectedData.csv"
    write_keypoints(keypoints(), layout, file, "deeplabcut")
    lines = file.read_text().splitlines()
    assert lines[1] == "bodyparts,nose,nose,tail,tail" and lines[3] == "cat/a.jpg,9.75,12.0,0.0,39.0"
    assert lines[4] == "cat/b.png,29.5,19.5,,"
    found = read_points_file(file, list(keypoints())).images
    assert found["cat/b.png"].points == {"nose": (30.0, 20.0)}
    assert found["cat/a.jpg"].points == keypoints()["cat/a.jpg"].points


def test_images_that_deeplabcuts_file_names_have_to_be_there(layout):
    file = layout / "CollectedData.csv"
    write_keypoints(keypoints(), layout, file, "deeplabcut")
    (layout / "cat" / "a.jpg").unlink()
    with pytest.raises(DataError, match="all 3 images that .* names beside it but some are missing"):
        read_points_file(file, list(keypoints()))


def test_slp_files_hold_0_indexed_pixels_and_scores(layout):
    import sleap_io

    write_keypoints(keypoints(), layout, layout / "kps.slp", "sleap")
    labels = sleap_io.load_slp(str(layout / "kps.slp"), open_videos=False)
    by_a_person, predicted = (labels[number].instances[0] for number in (0, 1))
    np.testing.assert_allclose(by_a_person.numpy(), [[9.75, 12.0], [0.0, 39.0]])
    assert isinstance(predicted, sleap_io.PredictedInstance)
    np.testing.assert_allclose(predicted.points["score"], [0.875, 0.125])
    assert predicted.points["visible"].tolist() == [True, False]


def test_a_damaged_slp_file_is_named(layout):
    (layout / "kps.slp").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="labels of SLEAP in .*kps.slp but they cannot be read"):
        read_points_file(layout / "kps.slp", list(keypoints()))


@pytest.mark.parametrize("number", [1, 5, -1])
def test_a_frame_that_its_list_of_images_lacks_is_named(number, layout):
    """A negative number named another image of the list."""
    h5py = pytest.importorskip("h5py")
    file = layout / "kps.slp"
    write_keypoints({"cat/a.jpg": keypoints()["cat/a.jpg"]}, layout, file, "sleap")
    with h5py.File(file, "r+") as opened:
        rows, attributes = opened["frames"][:], dict(opened["frames"].attrs)
        signed = np.dtype([(name, "<i8") for name in rows.dtype.names])
        rows = rows.astype(signed)
        rows["frame_idx"] = number
        del opened["frames"]
        opened.create_dataset("frames", data=rows).attrs.update(attributes)
    for read in (lambda: read_points_file(file, list(keypoints())), lambda: labelled_images(file)):
        with pytest.raises(
            DataError, match=f"kps.slp but .*a frame has number {number}, counted from 0, in a list of 1 images"
        ):
            read()


def test_yolo_pose_has_fractions_and_visibilities(layout, tmp_path):
    splits = {"cat/a.jpg": "train", "cat/b.png": "val", "dog/a.jpg": "train"}
    write_keypoints(keypoints(), layout, tmp_path / "yolo", "yolo_pose", splits)
    described = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert described["kpt_shape"] == [2, 3] and described["names"] == {0: "cat", 1: "dog"}
    assert (described["train"], described["val"]) == ("images/train", "images/val")
    cells = (tmp_path / "yolo/labels/val/cat/b.txt").read_text().split()
    values = [float(cell) for cell in cells]
    np.testing.assert_allclose(values[1:5], [21 / 60, 16 / 40, 38 / 60, 28 / 40], atol=1e-6)
    np.testing.assert_allclose(values[5:], [30 / 60, 20 / 40, 2, 5 / 60, 6 / 40, 1], atol=1e-6)
    assert (tmp_path / "yolo/labels/train/dog/a.txt").read_text().split()[-3:] == ["0", "0", "0"]
    assert (tmp_path / "yolo/images/val/cat/b.png").read_bytes() == (layout / "cat/b.png").read_bytes()


def test_yolo_pose_has_a_label_for_each_of_two_photographs_that_differ_in_their_ending(layout, tmp_path):
    """YOLO's programs look for the label of an image under its name with the ending .txt."""
    images = {name: keypoints()["dog/a.jpg"] for name in ("cat/a.jpg", "cat/a.PNG", "cat/b.png")}
    images["cat/a.PNG"] = replace(images["cat/a.PNG"], points={"nose": (45.0, 30.0)})
    Image.open(layout / "cat/a.jpg").save(layout / "cat/a.PNG")
    write_keypoints(images, layout, tmp_path / "yolo", "yolo_pose")
    copies = sorted((tmp_path / "yolo/images/train/cat").iterdir())
    assert [copy.name for copy in copies] == ["a.jpg", "a_2.png", "b.png"]
    labels = [tmp_path / "yolo/labels/train/cat" / f"{copy.stem}.txt" for copy in copies]
    assert len(list(labels[0].parent.iterdir())) == 3
    noses = [[float(cell) for cell in label.read_text().split()[5:7]] for label in labels]
    np.testing.assert_allclose(noses, [[1.5 / 60, 2.5 / 40], [45 / 60, 30 / 40], [1.5 / 60, 2.5 / 40]], atol=1e-6)


def test_copies_of_turned_photographs_are_upright(layout, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(layout / "cat/a.jpg").save(layout / "cat/a.jpg", exif=exif)
    turned = keypoints()
    turned["cat/a.jpg"].size = (60, 40)
    write_keypoints(turned, layout, tmp_path / "yolo", "yolo_pose")
    copied = Image.open(tmp_path / "yolo/images/train/cat/a.jpg")
    assert copied.size == (40, 60) and not copied.getexif()


def coco_of(content: dict, folder: Path) -> COCO:
    file = folder / "checked.json"
    file.write_text(json.dumps(content))
    with redirect_stdout(io.StringIO()):
        return COCO(str(file))


def test_pycocotools_gives_what_is_written_full_marks(tmp_path):
    content = write_coco(keypoints())
    truth = coco_of(content, tmp_path)
    assert [truth.anns[number]["num_keypoints"] for number in (1, 2, 3)] == [2, 2, 1]
    answers = [{**a, "score": 1.0} for a in content["annotations"] if a["category_id"] == 1]
    with redirect_stdout(io.StringIO()):
        judged = COCOeval(truth, truth.loadRes(answers), "keypoints")
        judged.params.kpt_oks_sigmas, judged.params.catIds = np.full(2, 0.05), [1]
        judged.evaluate(), judged.accumulate(), judged.summarize()
    assert judged.stats[0] == pytest.approx(1)


def tools_file() -> dict:
    """What CVAT and Label Studio write: numbers of their own, further keys, skeletons from 1, objects without keypoints."""
    points = [9.5, 11.5, 2, 0, 0, 0]
    return {
        "info": {"contributor": "", "date_created": ""},
        "licenses": [{"name": "", "id": 0, "url": ""}],
        "categories": [
            {"id": 4, "name": "cat", "supercategory": "", "keypoints": ["tail", "nose"], "skeleton": [[1, 2]]},
            {"id": 9, "name": "grass", "supercategory": ""},
        ],
        "images": [
            {"id": 31, "width": 60, "height": 40, "file_name": "images/1a2b3c4d-b.png", "license": 0, "coco_url": ""},
            {"id": 17, "file_name": "cat/a.jpg"},
        ],
        "annotations": [
            {"id": 5, "image_id": 31, "category_id": 9, "segmentation": [[1, 1, 20, 1, 20, 20]], "area": 190.5, "bbox": [1, 1, 19, 19]},
            {"id": 7, "image_id": 17, "category_id": 4, "segmentation": [], "keypoints": points, "attributes": {"occluded": False}},
        ],
    }  # fmt: skip


def test_a_tools_file_is_added_to_and_keeps_what_it_holds(tmp_path):
    images = read_coco_images(tools_file(), list(keypoints()))
    assert images["cat/a.jpg"].points == {"tail": (10.0, 12.0)} and images["cat/a.jpg"].size is None
    content = write_coco(keypoints(), tools_file())
    before = tools_file()
    assert content["info"] == before["info"] and content["licenses"] == before["licenses"]
    assert content["categories"][:2] == before["categories"]
    assert {k: content["annotations"][0][k] for k in before["annotations"][0]} == before["annotations"][0]
    assert [entry["id"] for entry in content["images"]] == [31, 17, 32]
    assert content["annotations"][1]["attributes"] == {"occluded": False} and content["annotations"][1]["id"] == 7
    truth = coco_of(content, tmp_path)
    by_image = {a["image_id"]: a for a in content["annotations"] if a.get("keypoints")}
    assert by_image[17]["keypoints"] == [0.0, 39.0, 2, 9.75, 12.0, 2]  # in the order of the file's category
    assert by_image[31]["keypoint_confidence"] == [0.125, 0.875] and by_image[31]["keypoints"][2] == 1
    assert all({"id", "iscrowd", "area", "bbox", "num_keypoints"} <= a.keys() for a in truth.anns.values())
    with redirect_stdout(io.StringIO()):  # also where the tool's file has outlines without keypoints
        judged = COCOeval(truth, truth.loadRes([{**a, "score": 1.0} for a in by_image.values()]), "keypoints")
        judged.params.kpt_oks_sigmas, judged.params.catIds = np.full(2, 0.05), [4, 9]
        judged.evaluate()
    again = read_coco_images(content, list(keypoints()))
    assert {name: image.points for name, image in again.items()} == {n: i.points for n, i in keypoints().items()}


def test_parts_that_a_category_lacks_are_added_behind_those_it_has():
    base = tools_file()
    base["categories"][0] |= {"keypoints": ["tail"], "skeleton": []}
    base["annotations"][1]["keypoints"] = [9.5, 11.5, 2]
    only = {"cat/b.png": keypoints()["cat/b.png"]}
    content = write_coco(only, base)
    assert content["categories"][0]["keypoints"] == ["tail", "nose"]
    assert content["annotations"][1]["keypoints"] == [9.5, 11.5, 2, 0, 0, 0] and base["categories"][0]["keypoints"] == [
        "tail"
    ]


@pytest.mark.parametrize("confidence", [[0.5, 0.5, 0.5], [2, None], ["1", None], "ab", [True, None]])
def test_wrong_confidences_are_named(confidence):
    content = write_coco({"cat/a.jpg": keypoints()["cat/a.jpg"]})
    content["annotations"][0]["keypoint_confidence"] = confidence
    with pytest.raises(ValueError, match="keypoint_confidence of annotation 1 is .* where 2 numbers in"):
        read_coco_images(content, ["cat/a.jpg"])


def test_label_studios_tasks_are_read_by_their_images_address(tmp_path):
    def task(image: str, *regions: dict, cancelled: bool = False) -> dict:
        return {
            "data": {"text": "a", "img": image},
            "annotations": [{"result": list(regions), "was_cancelled": cancelled}],
        }

    def region(part: str | list[str], x: float, y: float, **more: object) -> dict:
        size = {"original_width": 60, "original_height": 40, "image_rotation": 0}
        parts = part if isinstance(part, list) else [part]
        return {"type": "keypointlabels", "value": {"x": x, "y": y, "keypointlabels": parts}, **size, **more}

    other = {"type": "rectanglelabels", "value": {}}
    file = tmp_path / "tasks.json"
    tasks = [
        task("/data/upload/3/0f0f0f0f-a.jpg", other, region("nose", 50, 25)),
        task("/data/local-files/?d=photos/cat/b.jpg", region("nose", 10, 10)),
        task("https://x.test/dog/c%20d.jpg", region("nose", 1, 1), cancelled=True),
    ]
    file.write_text(json.dumps(tasks))
    known = ["cat/a.jpg", "cat/b.jpg", "dog/c d.jpg"]
    found = read_points_file(file, known).images
    assert {name: image.points for name, image in found.items()} == {
        "cat/a.jpg": {"nose": (30.0, 10.0)},
        "cat/b.jpg": {"nose": (6.0, 4.0)},
    }
    for wrong, message in (
        ([region("nose", 1, 1), region("nose", 2, 2)], "has nose twice"),
        ([region(["nose", "tail"], 1, 1)], r"a point of cat/a.jpg is labelled \['nose', 'tail'\] where one part is"),
        ([region([], 1, 1)], r"a point of cat/a.jpg is labelled \[\] where one part is expected"),
        ([region("nose", 101, 1)], r"at \(101, 1\) percent"),
        ([region("nose", 1, 1, image_rotation=90)], "of a rotated image"),
    ):
        file.write_text(json.dumps([task("cat/a.jpg", *wrong)]))
        with pytest.raises(DataError, match=message):
            read_points_file(file, known)


def test_a_csv_file_may_begin_with_an_empty_line(tmp_path):
    (tmp_path / "points.csv").write_text("\nimage,part,x,y\ncat/a.jpg,nose,1,2\n")
    assert read_keypoints(tmp_path / "points.csv", ["cat/a.jpg"]).images["cat/a.jpg"].points == {"nose": (1.0, 2.0)}


@pytest.mark.parametrize("content", ["{}", '{"cat/a.jpg": {"points": {}}}'])
def test_a_file_without_points_is_not_said_to_be_of_an_unsure_matcher(content, tmp_path):
    (tmp_path / "points.json").write_text(content)
    with pytest.raises(DataError, match=r"Expected annotated points in .*points\.json but it has none; give some"):
        read_points_file(tmp_path / "points.json", ["cat/a.jpg"])


def test_files_that_name_no_category_get_it_from_the_sub_folder(layout):
    """Also where a file names images with the folder's own name in front, which is none of its categories."""
    known = list(keypoints())
    for format_, name in (("label_studio", "tasks.json"), ("deeplabcut", "CollectedData.csv")):
        write_keypoints(keypoints(), layout, layout / name, format_)
        found = read_keypoints(layout / name, known).images
        assert (found["cat/a.jpg"].category, found["dog/a.jpg"].category) == ("cat", "dog"), format_
    (layout / "points.csv").write_text("image,part,x,y\ncat/a.jpg,nose,1,2\n")
    assert read_keypoints(layout / "points.csv", known).images["cat/a.jpg"].category == "cat"
    (layout / "cat/points.json").write_text('{"cat/a.jpg": {"points": {"nose": [1, 2]}}}')
    assert read_keypoints(layout / "cat/points.json", ["a.jpg"], layout / "cat").images["a.jpg"].category == "object"


@pytest.mark.parametrize("format_", ["coco", "sleap"])
def test_a_category_that_a_file_names_stays_whatever_it_is_called(format_, layout):
    file = layout / f"kps{FORMATS[format_]}"
    called = {name: replace(image, category="object") for name, image in keypoints().items()}
    write_keypoints(called, layout, file, format_)
    assert {image.category for image in read_keypoints(file, list(called)).images.values()} == {"object"}


def test_safe_names_are_distinct():
    names = ["a b/x-1.jpg", "a b/x 1.png", "a b/X_1.jpg", "ü/é.jpg", "ö/é.jpg"]
    safe = safe_names(names, ".jpg")
    assert len({name.lower() for name in safe.values()}) == 5
    assert safe["a b/x-1.jpg"] == "a_b/x_1.jpg" and safe["a b/x 1.png"] == "a_b/x_1_2.jpg"


def test_safe_names_keep_folders_apart_whatever_their_order():
    names = ["пёс/1.jpg", "кот/1.jpg", "кот/2.jpg", "Bär/1.jpg", "Bör/a/1.jpg", "Bör/b/1.jpg", "b_r/1.jpg"]
    safe = safe_names(names)
    folders = {name.rpartition("/")[0]: new.rpartition("/")[0] for name, new in safe.items()}
    assert folders == {
        "Bär": "B_r",
        "Bör/a": "B_r_2/a",
        "Bör/b": "B_r_2/b",
        "b_r": "b_r_3",
        "кот": "___",
        "пёс": "____2",
    }
    assert safe["кот/2.jpg"] == "___/2.jpg" and safe_names(names[::-1]) == safe


@pytest.mark.parametrize(
    ("format_", "path", "message"),
    [
        ("coko", "a.json", "did you mean 'coco'"),
        ("coco", "a.csv", "end in .json for coco"),
        ("sleap", "old.slp", "old.slp is there"),
    ],
)
def test_where_a_format_cannot_be_written_is_said_before_anything_is_done(format_, path, message, tmp_path):
    (tmp_path / "old.slp").touch()
    with pytest.raises(ConfigError, match=message):
        check_format(format_, tmp_path / path, "to")


def spair_of(layout: Path, *extra: str) -> Path:
    write_keypoints(keypoints(), layout, layout / "kps.json", "coco")
    to = layout.parent / "tree"
    data = ["data=folder", f"data.root={layout}", "data.points=kps.json", "data.size=32"]
    assert main(["data", "convert", *data, f"to={to}", "format=spair71k", "data.split=train", *extra]) == 0
    return to


def test_an_spair_tree_is_read_again_with_the_same_points(layout):
    pairs = SPairPairs(str(spair_of(layout)), split="train", size=32)
    assert len(pairs) == 2 and not pairs.problems()  # of the two cats, in both directions
    pair = pairs.pair_annotation(pairs.pairs.index(("cat/a", "cat/b")))
    parts = FolderPairs(str(layout), points="kps.json", size=32).parts
    number = parts.index("nose")
    assert pair.src.visible.nonzero()[0].tolist() == [number]  # the unsure tail is left out
    np.testing.assert_allclose([pair.src.points[number], pair.trg.points[number]], [(10.25, 12.5), (30, 20)])
    assert pair.src.bbox.tolist() == [0, 4, 35, 40] and pairs[0].pck_threshold > 0


def test_an_spair_tree_has_the_files_of_pairs_that_other_projects_look_for(layout):
    """By a line of the layout, or all of a category; both with the colon of the published files."""
    folder = spair_of(layout)
    lines = (folder / "Layout/large/trn.txt").read_text().split()
    assert [line.partition(":")[2] for line in lines] == ["cat", "cat"]
    files = sorted(folder.glob("PairAnnotation/trn/*:cat.json"))
    assert files == sorted(folder / f"PairAnnotation/trn/{line}.json" for line in lines)


def test_a_file_system_without_colons_is_named_where_an_spair_tree_is_written(layout, monkeypatch, capsys):
    write, to = Path.write_text, layout.parent / "tree"

    def refuse(file, text, **settings):
        if ":" in file.name:
            raise OSError(errno.EINVAL, "Invalid argument", str(file))
        return write(file, text, **settings)

    write_keypoints(keypoints(), layout, layout / "kps.json", "coco")
    monkeypatch.setattr(Path, "write_text", refuse)
    assert converted(layout, to, "spair71k", "data.split=train") == 2
    assert "takes colons for SPair-71k's layout but it refuses the name 000001-" in capsys.readouterr().err
    assert not to.exists()


def test_an_spair_tree_has_a_category_for_each_that_is_not_named_in_latin_letters(tmp_path):
    for number, name in enumerate(("кот/1.png", "кот/2.png", "пёс/1.png", "пёс/2.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (80 * number, 0, 0)).save(tmp_path / "photos" / name)
    rows = [f"{kind}/{n}.png,{part},{n},2" for kind, part in (("кот", "ear"), ("пёс", "tail")) for n in (1, 2)]
    (tmp_path / "photos/points.csv").write_text("\n".join(["image,part,x,y", *rows]) + "\n", encoding="utf-8")
    data = ["data=folder", f"data.root={tmp_path}/photos", "data.split=train", f"to={tmp_path}/tree", "format=spair71k"]
    assert main(["data", "convert", *data]) == 0
    pairs = SPairPairs(str(tmp_path / "tree"), split="train", size=32)
    assert len(pairs) == 4 and not pairs.problems()  # of each category in both directions
    reds = {annotation.category: set() for annotation in pairs.image_annotations()}
    for annotation in pairs.image_annotations():
        reds[annotation.category].add(bool(np.asarray(Image.open(annotation.path))[0, 0, 0] > 120))  # of a dog
    assert sorted(map(list, reds.values())) == [[False], [True]]


def test_what_a_matcher_set_is_converted_with_its_confidence_and_its_unsure_points(layout):
    """Carried points go on to another tool: they became a person's, and the unsure ones were lost."""
    write_keypoints(keypoints(), layout, layout / "kps.json", "coco")
    to = layout.parent / "labels.json"
    data = ["data=folder", f"data.root={layout}", "data.points=kps.json", f"to={to}"]
    assert main(["data", "convert", *data, "format=coco"]) == 0
    found = read_keypoints(to, list(keypoints())).images
    for name, image in keypoints().items():
        assert found[name].points == close(image.points) and found[name].unsure == image.unsure
        assert found[name].confidence == pytest.approx(image.confidence)


def test_what_a_person_labelled_as_hidden_is_converted_as_hidden(layout):
    images = {"cat/a.jpg": replace(keypoints()["cat/a.jpg"], hidden=frozenset({"tail"}))}
    write_keypoints(images, layout, layout / "kps.json", "coco")
    for format_, to in (("coco", layout.parent / "to.json"), ("yolo_pose", layout.parent / "to")):
        assert converted(layout, to, format_) == 0
    (annotation,) = json.loads((layout.parent / "to.json").read_text())["annotations"]
    assert annotation["keypoints"] == [9.75, 12, 2, 0, 39, 1]
    (label,) = (layout.parent / "to/labels").rglob("*.txt")
    assert label.read_text().split()[-6:] == ["0.170833", "0.312500", "2", "0.008333", "0.987500", "1"]


def test_one_annotated_photograph_is_converted_and_its_file_is_read_once(layout, monkeypatch, capsys):
    """Converting needs no pairs; a photograph beside the sub-folders was taken for all there are when the file was read again."""
    points, box, tail = {"nose": (30.0, 20.0), "tail": (5.0, 6.0)}, (2.0, 2.0, 40.0, 30.0), frozenset({"tail"})
    expected = ImageKeypoints(points, box, SIZE, tail, "cat", {"tail": 0.125})  # the tail is a matcher's
    write_keypoints({"cat/b.png": expected}, layout, layout / "kps.json", "coco")
    Image.new("RGB", (60, 40)).save(layout / "beside.png")
    data, read = ["data=folder", f"data.root={layout}", "data.points=kps.json"], []
    monkeypatch.setattr("distill.data.points_file.read_json", lambda *a, **k: read.append(a[0]) or read_json(*a, **k))
    assert main(["data", "convert", *data, f"to={layout.parent}/one.json", "format=coco"]) == 0
    assert "1 images in" in capsys.readouterr().out and [file.name for file in read] == ["kps.json"]
    (image,) = read_keypoints(layout.parent / "one.json", list(keypoints())).images.values()
    assert image.points == close(points) and image.unsure == tail and image.confidence == pytest.approx({"tail": 0.125})
    assert main(["data", "convert", *data, f"to={layout.parent}/tree", "format=spair71k"]) == 2
    assert "two images of one category with points in" in capsys.readouterr().err
    assert main(["data", "convert", *data, "data.by_person=true", f"to={layout.parent}/two.json", "format=coco"]) == 0
    (image,) = read_keypoints(layout.parent / "two.json", list(keypoints())).images.values()
    assert image.points == close({"nose": points["nose"]}) and not image.confidence and not image.unsure


def annotated_photographs(folder: Path, **notes: list) -> Path:
    """Writes grey photographs of 60 x 40 px with a COCO file, in which each has the keys given: [keypoints, further keys]."""
    entries, annotations = [], []
    for number, (name, (keypoints, more)) in enumerate(notes.items(), start=1):
        (folder / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (80, 20 * number, 0)).save(folder / f"cat/{name}.png")
        entries.append(
            {"id": number, "file_name": f"cat/{name}.png", "width": 60, "height": 40} | more.pop("entry", {})
        )
        annotations.append({"id": number, "image_id": number, "category_id": 1, "keypoints": keypoints} | more)
    categories = [{"id": 1, "name": "cat", "keypoints": ["nose", "tail"]}]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "kps.json").write_text(json.dumps(content))
    return folder


def converted(layout: Path, to: Path, format_: str, *extra: str, points: str = "kps.json") -> int:
    data = ["data=folder", f"data.root={layout}", f"data.points={points}", f"to={to}", f"format={format_}"]
    return main(["data", "convert", *data, *extra])


@pytest.mark.parametrize("format_", FORMATS)
def test_an_annotation_of_another_size_is_refused_and_not_converted_to_one_that_looks_whole(format_, tmp_path, capsys):
    whole, other = [[9.5, 9.5, 2, 19.5, 9.5, 2], {}], [[9.5, 9.5, 2, 0, 0, 0], {"entry": {"width": 120, "height": 80}}]
    folder = annotated_photographs(tmp_path / "photos", a=whole, b=other)
    assert converted(folder, tmp_path / f"to{FORMATS[format_]}", format_) == 2
    assert "b.png of 120 x 80 px, as" in capsys.readouterr().err and not (tmp_path / f"to{FORMATS[format_]}").exists()


def test_points_that_a_matcher_was_unsure_of_lie_inside_their_photograph_too(tmp_path, capsys):
    unsure = [[9.5, 9.5, 2, 89.5, 9.5, 1], {"keypoint_confidence": [None, 0.25]}]
    folder = annotated_photographs(tmp_path / "photos", a=unsure, b=[[9.5, 9.5, 2, 0, 0, 0], {}])
    assert converted(folder, tmp_path / "to.json", "label_studio") == 2
    assert "a.png inside its 60 x 40 px but" in capsys.readouterr().err


def test_what_is_broken_is_left_out_of_a_conversion_by_name_where_that_is_asked_for(tmp_path, capsys):
    whole, outside = [[9.5, 9.5, 2, 0, 0, 0], {}], [[69.5, 9.5, 2, 0, 0, 0], {}]
    folder = annotated_photographs(tmp_path / "photos", a=whole, b=outside, c=[[7.5, 8.5, 2, 0, 0, 0], {}])
    assert converted(folder, tmp_path / "to.json", "coco", "data.on_error=skip") == 0
    out = capsys.readouterr().out
    assert "2 images in" in out and out.count("b.png inside its 60 x 40 px") == 1
    assert set(read_keypoints(tmp_path / "to.json", ["cat/a.png", "cat/c.png"]).images) == {"cat/a.png", "cat/c.png"}
    assert converted(folder, tmp_path / "tree", "spair71k", "data.on_error=skip", "data.split=train") == 0
    out = capsys.readouterr().out
    assert "2 pairs in" in out and out.count("b.png inside its 60 x 40 px") == 1  # of a and c, in both directions


def test_photographs_whose_points_are_all_unsure_are_converted(tmp_path, capsys):
    """They are no annotation, and were lost; YOLO's folder has them for training, and fit's photographs where fit uses them."""
    notes = {f"p{number}": [[9.5, 9.5, 2, 0, 0, 0], {}] for number in range(4)}
    notes["unsure"] = [[19.5, 9.5, 1, 0, 0, 0], {"keypoint_confidence": [0.25, None], "bbox": [10, 5, 20, 30]}]
    folder = annotated_photographs(tmp_path / "photos", **notes)
    assert converted(folder, tmp_path / "to.json", "coco") == 0 and "5 images in" in capsys.readouterr().out
    image = read_keypoints(tmp_path / "to.json", [f"cat/{name}.png" for name in notes]).images["cat/unsure.png"]
    assert image.points == {"nose": (20, 10)} and image.unsure == {"nose"} and image.confidence == {"nose": 0.25}
    assert image.bbox == (10, 5, 30, 35)
    assert converted(folder, tmp_path / "yolo", "yolo_pose") == 0
    validated = FolderPairs(str(folder), "val", points="kps.json", size=32).names
    assert sorted(f"cat/{file.name}" for file in (tmp_path / "yolo/images/val/cat").iterdir()) == validated
    cells = (tmp_path / "yolo/labels/train/cat/unsure.txt").read_text().split()
    assert cells[5:8] == [f"{20 / 60:.6f}", f"{10 / 40:.6f}", "1"]
    for split, count in (("train", 3), ("val", 2)):
        assert converted(folder, tmp_path / f"{split}.json", "coco", f"data.split={split}") == 0
        assert f"{count} images in" in capsys.readouterr().out


def test_boxes_that_are_not_known_surround_the_points_and_not_the_image(layout):
    """The points of cat/a.jpg are 9.75 px wide and 27 px high, and the margin is a tenth of the longer side."""
    rows = ["image,part,x,y", "cat/a.jpg,nose,10.25,12.5", "cat/a.jpg,tail,20,39.5", "cat/b.png,nose,30,20"]
    (layout / "points.csv").write_text("\n".join(rows) + "\n")
    assert converted(layout, layout.parent / "to.json", "coco", points="points.csv") == 0
    boxes = [entry["bbox"] for entry in json.loads((layout.parent / "to.json").read_text())["annotations"]]
    np.testing.assert_allclose(boxes, [[7.55, 9.8, 15.15, 30.2], [29, 19, 2, 2]])
    assert converted(layout, layout.parent / "tree", "spair71k", "data.split=train", points="points.csv") == 0
    pair = SPairPairs(str(layout.parent / "tree"), "train", size=32).pair_annotation(0)
    np.testing.assert_allclose(
        sorted([pair.src.bbox, pair.trg.bbox], key=list), [[7.55, 9.8, 22.7, 40], [29, 19, 31, 21]]
    )


def test_yolos_boxes_are_cut_at_the_border_of_the_image():
    outside = ImageKeypoints({"nose": (30.0, 20.0)}, (-4.0, -3.0, 63.0, 30.0), SIZE)
    assert yolo_line(outside, 0, ["nose"]).split()[1:5] == ["0.500000", "0.375000", "1.000000", "0.750000"]


@pytest.mark.parametrize("linked_by", ["from_predicted", "track"])
def test_a_prediction_that_a_person_corrected_in_sleap_is_not_read(linked_by, layout):
    import sleap_io

    skeleton = sleap_io.Skeleton(["nose", "tail"], name="cat")
    video = sleap_io.Video.from_filename([str(layout / "cat/a.jpg")])
    found = sleap_io.PredictedInstance.from_numpy(
        np.array([[5.0, 5], [6, 6]]), skeleton=skeleton, point_scores=[0.5, 0.5]
    )
    right = sleap_io.Instance.from_numpy(np.array([[9.5, 11.5], [19.5, 21.5]]), skeleton=skeleton)
    if linked_by == "track":
        found.track = right.track = sleap_io.Track("cat")
    else:
        right.from_predicted = found
    frame = sleap_io.LabeledFrame(video=video, frame_idx=0, instances=[found, right])
    sleap_io.save_slp(sleap_io.Labels([frame]), str(layout / "kps.slp"), embed=False, verbose=False)
    image = read_points_file(layout / "kps.slp", list(keypoints())).images["cat/a.jpg"]
    assert image.points == {"nose": (10, 12), "tail": (20, 22)} and not image.confidence


def test_a_node_that_a_person_marked_as_not_visible_in_sleap_is_no_point(layout):
    """SLEAP puts the nodes of a new instance anywhere; a person marks those that the image does not show."""
    import sleap_io

    skeleton = sleap_io.Skeleton(["nose", "tail"], name="cat")
    video = sleap_io.Video.from_filename([str(layout / "cat/a.jpg")])
    right = sleap_io.Instance.from_numpy(np.array([[9.5, 11.5], [19.5, 21.5]]), skeleton=skeleton)
    right.points["visible"][1] = False
    frame = sleap_io.LabeledFrame(video=video, frame_idx=0, instances=[right])
    sleap_io.save_slp(sleap_io.Labels([frame]), str(layout / "kps.slp"), embed=False, verbose=False)
    assert read_points_file(layout / "kps.slp", list(keypoints())).images["cat/a.jpg"].points == {"nose": (10, 12)}


def test_a_csv_file_with_semicolons_is_told_to_have_commas(layout):
    (layout / "points.csv").write_text("image;part;x;y\ncat/a.jpg;nose;10,5;12\n")
    with pytest.raises(
        DataError, match="Expected commas between the cells of .*points.csv but its header is image;part"
    ):
        read_points_file(layout / "points.csv", list(keypoints()))


def test_a_prediction_beside_another_persons_instance_is_a_second_object(layout):
    import sleap_io

    skeleton = sleap_io.Skeleton(["nose"], name="cat")
    video = sleap_io.Video.from_filename([str(layout / "cat/a.jpg")])
    found = sleap_io.PredictedInstance.from_numpy(np.array([[5.0, 5]]), skeleton=skeleton, point_scores=[0.5])
    right = sleap_io.Instance.from_numpy(np.array([[9.5, 11.5]]), skeleton=skeleton)
    frame = sleap_io.LabeledFrame(video=video, frame_idx=0, instances=[found, right])
    sleap_io.save_slp(sleap_io.Labels([frame]), str(layout / "kps.slp"), embed=False, verbose=False)
    with pytest.raises(DataError, match="has two instances; crop one image for each object"):
        read_points_file(layout / "kps.slp", list(keypoints()))


def test_a_repeated_key_is_found_in_a_time_that_grows_with_their_number():
    compared = []

    class Key(str):
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return super().__eq__(other)

        __hash__ = str.__hash__

    with pytest.raises(ValueError, match="the key '999' comes twice in one object"):
        _unique([(Key(number), None) for number in [*range(1000), 999]])
    assert len(compared) < 10_000, "a comparison of each key with each other takes half a million"


def test_a_place_to_write_is_needed(layout, capsys):
    assert main(["data", "convert", "data=folder", f"data.root={layout}"]) == 2
    assert "add to=<name>" in capsys.readouterr().err
    assert main(["data", "convert", f"to={layout}/x.json"]) == 2
    assert "Expected a data set of photographs in a folder" in capsys.readouterr().err
    assert main(["data", "convert", "data=folder", f"data.root={layout}", f"to={layout}/x.json"]) == 2
    assert "Expected annotated points in" in capsys.readouterr().err


def test_a_backslash_in_a_name_separates_nothing_where_there_is_such_a_file():
    find = NameFinder(["a/back\\slash.jpg", "a/b.jpg"])
    assert find("a/back\\slash.jpg") == "a/back\\slash.jpg" and find("a\\b.jpg") == "a/b.jpg"
