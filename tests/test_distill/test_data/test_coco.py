import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.core.errors import DataError
from distill.data.coco import read_coco_images, write_coco
from distill.data.datasets.folder import FolderPairs
from distill.data.keypoints import ImageKeypoints

NAMES = ["cat/a.jpg", "cat/b.jpg", "dog/a.jpg"]
PARTS = ["nose", "left ear", "tail"]


def content() -> dict:
    """What tools write: 0-indexed pixels, a visibility for each point, boxes as x, y, width, height."""
    return {
        "info": {},
        "licenses": [],
        "images": [
            {"id": 7, "file_name": "photos/cat/a.jpg", "width": 60, "height": 40},
            {"id": 9, "file_name": "b.jpg", "width": 60, "height": 40},
        ],
        "categories": [{"id": 3, "name": "cat", "keypoints": PARTS, "skeleton": [[1, 2]]}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [5, 4, 30, 20],
                "num_keypoints": 2,
                "keypoints": [10, 12, 2, 0, 0, 0, 30, 20, 1],
            },
            {"id": 2, "image_id": 9, "category_id": 3, "bbox": [2, 2, 9, 9], "keypoints": [5, 6, 2, 7, 8, 2, 0, 0, 0]},
            {"id": 3, "image_id": 9, "category_id": 3, "bbox": [2, 2, 9, 9], "keypoints": [0] * 9},
        ],
    }


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / name)
    (tmp_path / "person_keypoints.json").write_text(json.dumps(content()))
    return tmp_path


def test_half_a_pixel_is_added_to_points_and_none_to_boxes():
    found = read_coco_images(content(), NAMES)
    assert found["cat/a.jpg"].points == {"nose": (10.5, 12.5), "tail": (30.5, 20.5)}
    assert found["cat/b.jpg"].points == {"nose": (5.5, 6.5), "left ear": (7.5, 8.5)}
    assert found["cat/a.jpg"].bbox == (5, 4, 35, 24) and found["cat/a.jpg"].size == (40, 60)


def test_a_folder_is_annotated_by_a_coco_file(layout):
    pairs = FolderPairs(str(layout), points="person_keypoints.json", threshold="bbox", size=64)
    assert pairs.parts == ["left ear", "nose", "tail"] and len(pairs) == 2 and pairs.has_truth
    pair = pairs[pairs.pairs.index(("cat/a.jpg", "cat/b.jpg"))]
    np.testing.assert_allclose(pair.src_kps[0].numpy() * [60 / 64, 40 / 64], [[10.5, 12.5]], atol=1e-4)
    assert float(pair.pck_threshold) == pytest.approx(9, abs=1e-4)
    assert pairs.ignored == {"dog/a.jpg": "person_keypoints.json has no points of it"}


def test_what_is_written_is_what_was_read():
    images = {
        "cat/a.jpg": ImageKeypoints(
            {"nose": (10.25, 12.5), "tail": (0.5, 39.5)}, (5.0, 4.0, 35.0, 24.0), (40, 60), category="cat"
        ),
        "dog/a.jpg": ImageKeypoints({"nose": (1.5, 2.5)}, (0.0, 0.0, 60.0, 40.0), (40, 60), category="dog"),
    }
    document = json.loads(json.dumps(write_coco(images)))
    assert read_coco_images(document, NAMES) == images
    assert document["annotations"][0]["keypoints"] == [9.75, 12.0, 2, 0.0, 39.0, 2]
    assert document["annotations"][0]["bbox"] == [5, 4, 30, 20] and document["annotations"][0]["num_keypoints"] == 2


def test_an_unsure_point_is_written_as_labelled_but_not_visible():
    images = {"cat/a.jpg": ImageKeypoints({"nose": (10.5, 12.5)}, None, (40, 60), frozenset({"nose"}))}
    assert write_coco(images)["annotations"][0]["keypoints"][2] == 1


def test_what_a_person_labelled_as_hidden_is_annotated_and_written_as_hidden_again():
    base = content()
    base["annotations"][1] |= {"keypoints": [5, 6, 1, 7, 8, 1, 0, 0, 0], "keypoint_confidence": [None, 0.5, None]}
    found = read_coco_images(base, NAMES)
    assert (found["cat/a.jpg"].hidden, found["cat/a.jpg"].unsure) == ({"tail"}, frozenset())
    assert (found["cat/b.jpg"].hidden, found["cat/b.jpg"].unsure) == ({"nose"}, {"left ear"})
    written = [annotation["keypoints"] for annotation in write_coco(found, base)["annotations"][:2]]
    assert written == [[10, 12, 2, 0, 0, 0, 30, 20, 1], [5, 6, 1, 7, 8, 1, 0, 0, 0]]


def test_a_made_up_box_is_read_as_none_and_follows_its_points():
    """Points at 10 to 30 px and 20 to 25 px have a margin of a tenth of 20 px; later ones at 40 to 50 and 5 to 35 one of 3 px."""
    made = write_coco({"cat/a.jpg": ImageKeypoints({"nose": (10.0, 20.0), "tail": (30.0, 25.0)}, None, (40, 60))})
    (annotation,) = made["annotations"]
    assert annotation["bbox"] == annotation["keypoint_bbox"] == [8, 18, 24, 9] and annotation["area"] == 216
    annotation["keypoints"] = [39.5, 4.5, 2, 49.5, 34.5, 2]  # corrected, the box left as it was
    corrected = read_coco_images(made, NAMES)
    assert corrected["cat/a.jpg"].bbox is None
    (again,) = write_coco(corrected, made)["annotations"]
    assert again["bbox"] == again["keypoint_bbox"] == [37, 2, 16, 36] and again["area"] == 576
    again |= {"bbox": [30, 1, 25, 38], "area": 950}  # drawn in a tool that keeps our key
    drawn = read_coco_images(made | {"annotations": [again]}, NAMES)
    assert drawn["cat/a.jpg"].bbox == (30, 1, 55, 39)
    (kept,) = write_coco(drawn, made | {"annotations": [again]})["annotations"]
    assert (kept["bbox"], kept["keypoint_bbox"], kept["area"]) == ([30, 1, 25, 38], None, 950)


@pytest.mark.parametrize(
    ("box", "known"),
    [
        ([8, 18, 24, 9], False),  # what was made up, see above
        ([8.02, 17.98, 24, 9.01], False),  # by a tool that rounds
        ([8, 18, 24, 9.2], True),
        ([10, 20, 20, 5], True),
    ],
)
def test_a_box_of_a_file_without_our_key_is_none_where_it_equals_the_one_that_would_be_made_up(box, known):
    file = write_coco({"cat/a.jpg": ImageKeypoints({"nose": (10.0, 20.0), "tail": (30.0, 25.0)}, None, (40, 60))})
    del file["annotations"][0]["keypoint_bbox"]
    file["annotations"][0]["bbox"] = box
    assert (read_coco_images(file, NAMES)["cat/a.jpg"].bbox is not None) == known


def test_a_box_of_the_whole_photograph_stays_known():
    """A photograph is cropped to its object; the box around its points with the margin is the whole of it as well."""
    image = ImageKeypoints({"nose": (1.0, 1.0), "tail": (59.0, 39.0)}, (0.0, 0.0, 60.0, 40.0), (40, 60))
    assert read_coco_images(write_coco({"cat/a.jpg": image}), NAMES)["cat/a.jpg"].bbox == (0, 0, 60, 40)


def test_a_drawn_box_and_its_area_stay_where_corrections_have_no_box():
    base = content()
    base["annotations"][0]["area"] = 450.5
    corrected = {"cat/a.jpg": ImageKeypoints({"nose": (12.5, 12.5)}, None, (40, 60), category="cat")}
    written = write_coco(corrected, base)["annotations"][0]
    assert (written["bbox"], written["area"], written["keypoints"][:3]) == ([5, 4, 30, 20], 450.5, [12, 12, 2])
    corrected["cat/a.jpg"].bbox = (6.0, 4.0, 36.0, 14.0)  # a new one has an area of its own
    written = write_coco(corrected, base)["annotations"][0]
    assert (written["bbox"], written["area"]) == ([6, 4, 30, 10], 300)
    base["annotations"][0]["segmentation"] = [[5, 4, 35, 4, 35, 24]]
    assert write_coco(corrected, base)["annotations"][0]["area"] == 450.5  # that of the outline


def test_a_box_that_is_filled_in_for_another_photograph_is_no_known_one():
    base = content()
    del base["annotations"][1]["bbox"]
    image = ImageKeypoints({"nose": (12.5, 12.5)}, (5.0, 4.0, 35.0, 24.0), (40, 60), category="cat")
    written = write_coco({"cat/a.jpg": image}, base)
    assert written["annotations"][1]["bbox"] == [5, 6, 3, 3]  # pixels 5 to 7 and 6 to 8
    assert read_coco_images(written, NAMES)["cat/b.jpg"].bbox is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][2].update(keypoints=[1, 1, 2] * 3), "cat/b.jpg has two objects"),
        (
            lambda c: c["annotations"][0].update(keypoints=[1, 1]),
            "keypoints of annotation 1 is .* where 9 numbers are expected: x, y and visi",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 1, 0, 5]),
            r"the bbox \[1, 1, 0, 5\] of annotation 1 .* x, y, width, height",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, "9", 5]), "bbox of annotation 1 is .* where 4 numbers"),
        (lambda c: c["annotations"][0].update(bbox=[1, 1, 5]), "bbox of annotation 1 is .* where 4 numbers"),
        (
            lambda c: c["annotations"][0].update(keypoint_bbox=[1, 5]),
            "keypoint_bbox of annotation 1 is .* where 4 numbers",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=4),
            "annotation 1 is of category 4, which categories does not list",
        ),
        (lambda c: c["annotations"][0].update(image_id=1), "annotation 1 is of image 1, which images does not list"),
        (lambda c: c["annotations"][0].pop("image_id"), "the key 'image_id' is missing from annotation 1"),
        (
            lambda c: c["annotations"][0]["keypoints"].__setitem__(2, 7),
            "visibility 7 of nose in annotation 1 .* 0, 1 or 2",
        ),
        (lambda c: c["annotations"][0]["keypoints"].__setitem__(2, -1), "visibility -1 of nose"),
        (lambda c: c["annotations"][0]["keypoints"].__setitem__(2, 1.5), "visibility 1.5 of nose"),
        (
            lambda c: c["annotations"][0]["keypoints"].__setitem__(0, "10"),
            "keypoints of annotation 1 is .* where 9 numbers",
        ),
        (
            lambda c: c["annotations"][0]["keypoints"].__setitem__(0, True),
            "keypoints of annotation 1 is .* where 9 numbers",
        ),
        (lambda c: c["images"][1].update(id=7), "the id 7 comes twice in images"),
        (lambda c: c["categories"].append(c["categories"][0]), "the id 3 comes twice in categories"),
        (lambda c: c["images"][0].update(width="60"), "width and height of image 7"),
        (lambda c: c["images"].append("a.jpg"), 'images holds "a.jpg" where an object is expected'),
        (lambda c: c.update(categories={}), "categories is {} where a list is expected"),
        (lambda c: c["images"][1].update(file_name="a.jpg"), "may be cat/a.jpg or dog/a.jpg"),
        (lambda c: c["images"][1].update(file_name="c.jpg"), "c.jpg is not in the folder"),
        (lambda c: c["categories"][0].update(keypoints=["nose", "nose", "tail"]), "names a keypoint twice"),
        (lambda c: c.update(annotations=[]), "no annotation has keypoints"),
    ],
)
def test_what_is_wrong_is_named(layout, change, message):
    changed = content()
    change(changed)
    (layout / "person_keypoints.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=message) as caught:
        FolderPairs(str(layout), points="person_keypoints.json")
    assert "person_keypoints.json" in str(caught.value)


def test_a_box_that_does_not_suit_is_told_as_the_file_has_it(layout):
    changed = content()
    changed["annotations"][0]["bbox"] = [30, 20, 35, 24]  # x0, y0, x1, y1 by mistake
    (layout / "person_keypoints.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=r"says \[30, 20, 35, 24\]; a box is x, y, width, height in px, correct it"):
        FolderPairs(str(layout), points="person_keypoints.json")[0]


def test_annotations_of_a_photograph_of_another_size_are_refused(layout):
    Image.new("RGB", (40, 60)).save(layout / "cat" / "a.jpg")
    with pytest.raises(DataError, match=r"cat/a.jpg of 60 x 40 px, as .* says, but it has 40 x 60 px"):
        FolderPairs(str(layout), points="person_keypoints.json")[0]
