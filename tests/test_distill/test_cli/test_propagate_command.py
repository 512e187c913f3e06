"""Points of a few photographs carried to a folder, corrected, and carried again."""

import io
import json
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from distill.__main__ import main
from distill.cli.commands.propagate import with_carried
from distill.core.errors import ConfigError
from distill.data.coco import read_coco_images, write_coco
from distill.data.keypoint_files import write_keypoints
from distill.data.keypoints import ImageKeypoints
from distill.data.points_file import read_keypoints, read_points_file
from distill.labels.propagate import PropagateConfig, Propagator, lacking_parts, plan
from student import NearestNeighbour

SIZE = (48, 64)  # height, width of all photographs
SHIFTS = {"cup/a.png": (0, 0), "cup/b.png": (4, 3), "cup/c.png": (-4, 6), "pot/x.png": (0, 0), "pot/y.png": (4, -4)}
POINTS = {"rim": (22.5, 16.5), "handle": (40.5, 24.5), "foot": (28.5, 34.5)}
MATCHER = ["matcher=nearest_neighbour", "matcher.backbone=test_resnet", "matcher.strides=[4]", "size=64", "device=cpu"]


def truth(name: str) -> dict[str, tuple[float, float]]:
    """The points of a photograph, which all are one picture moved by a few pixels."""
    dx, dy = SHIFTS[name]
    return {part: (x + dx, y + dy) for part, (x, y) in POINTS.items()}


def tools_file(category: str = "cup") -> dict:
    """A COCO file as CVAT lays it out, with an object of another category and without the keys that not all tools write."""
    points = [value for x, y in truth("cup/a.png").values() for value in (x - 0.5, y - 0.5, 2)]
    return {
        "info": {"contributor": ""},
        "licenses": [{"id": 0, "name": "", "url": ""}],
        "categories": [
            {"id": 2, "name": category, "supercategory": "", "keypoints": list(POINTS), "skeleton": [[1, 2], [2, 3]]},
            {"id": 5, "name": "table", "supercategory": ""},
        ],
        "images": [
            {"id": 11, "width": 64, "height": 48, "file_name": "cup/a.png", "license": 0},
            {"id": 12, "width": 64, "height": 48, "file_name": "cup/b.png", "date_captured": 0},
        ],
        "annotations": [
            {"id": 1, "image_id": 12, "category_id": 5, "segmentation": [[0, 0, 9, 0, 9, 9]], "area": 40.5, "bbox": [0, 0, 9, 9]},
            {"id": 2, "image_id": 11, "category_id": 2, "segmentation": [], "keypoints": points, "attributes": {"occluded": False}},
        ],
    }  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("propagate") / "photos"
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8))
    canvas = np.asarray(coarse.resize((120, 100), Image.Resampling.BICUBIC))
    for name, (dx, dy) in SHIFTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas[20 - dy : 20 - dy + SIZE[0], 20 - dx : 20 - dx + SIZE[1]]).save(folder / name)
    return folder


@pytest.fixture
def layout(photographs: Path, tmp_path: Path) -> Path:
    shutil.copytree(photographs, tmp_path / "photos")
    (tmp_path / "cvat.json").write_text(json.dumps(tools_file()))
    return tmp_path


def propagate(layout: Path, *extra: str, run: str = "out") -> int:
    return main(["propagate", f"root={layout}/photos", f"run.dir={layout}/{run}", *MATCHER, *extra])


def test_points_are_carried_to_the_others_of_their_kind(layout, capsys):
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    assert "1 annotated photographs of 1 kinds to 2 others" in capsys.readouterr().out
    found = read_keypoints(layout / "out/keypoints.json", list(SHIFTS)).images
    assert set(found) == {"cup/a.png", "cup/b.png", "cup/c.png"}  # there is no annotated pot
    assert found["cup/a.png"].points == truth("cup/a.png") and not found["cup/a.png"].confidence
    for name in ("cup/b.png", "cup/c.png"):
        errors = [np.hypot(*np.subtract(found[name].points[part], point)) for part, point in truth(name).items()]
        assert max(errors) < 5, errors
        assert all(0 < value <= 1 for value in found[name].confidence.values())


def test_a_tools_coco_file_comes_out_valid_and_with_all_it_held(layout):
    assert propagate(layout, f"points={layout}/cvat.json", "unsure=1") == 0
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(layout / "out/keypoints.json"))
    before, after = tools_file(), coco.dataset
    assert (after["info"], after["licenses"], after["categories"]) == (
        before["info"],
        before["licenses"],
        before["categories"],
    )
    segment, given, *carried = after["annotations"]
    assert {key: segment[key] for key in before["annotations"][0]} == before["annotations"][0]
    assert given["keypoints"] == before["annotations"][1]["keypoints"] and given["attributes"] == {"occluded": False}
    assert [coco.imgs[a["image_id"]]["file_name"] for a in carried] == ["cup/b.png", "cup/c.png"]
    for annotation in after["annotations"]:
        assert {"id", "image_id", "category_id", "iscrowd", "area", "bbox"} <= annotation.keys()
    for annotation in carried:
        x, y, width, height = annotation["bbox"]
        assert annotation["category_id"] == 2 and annotation["num_keypoints"] == 3
        assert annotation["keypoints"][2::3] == [1, 1, 1]  # all below unsure=1
        assert (
            0 <= x < x + width <= 64
            and 0 <= y < y + height <= 48
            and annotation["area"] == pytest.approx(width * height)
        )


def test_a_category_called_object_is_taken_as_a_category(layout, capsys):
    """It stands for none where a file has no categories; in COCO's format it is one, which match writes."""
    photos = layout / "photos"
    files = [f"src={photos}/cup/a.png", f"trg={photos}/cup/b.png", "points=[[22.5,16.5],[40.5,24.5]]"]
    assert main(["match", *files, *MATCHER, "unsure=0", f"run.dir={layout}/match"]) == 0
    points = layout / "match/keypoints.json"
    for run in ("out", "again"):  # what it writes is its own input, too
        assert propagate(layout, f"points={points}", "unsure=0", run=run) == 0
        points = layout / run / "keypoints.json"
        written = json.loads(points.read_text())
        assert [category["name"] for category in written["categories"]] == ["object"]
        assert sorted(annotation["image_id"] for annotation in written["annotations"]) == [1, 2, 3]
        assert set(read_points_file(points, list(SHIFTS)).images) == {"cup/a.png", "cup/b.png", "cup/c.png"}
    data = ["data=folder", f"data.root={photos}", f"data.points={points}"]
    assert main(["data", "check", *data]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("by_person", [True, False])
def test_photographs_of_a_kind_have_one_category(layout, capsys, by_person):
    """A photograph of another one would get a second object, beside that which the file has, and no reader takes two."""
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    written = json.loads((layout / "out/keypoints.json").read_text())
    written["categories"].append({"id": 7, "name": "mug", "keypoints": list(POINTS), "skeleton": []})
    (of_b,) = [a for a in written["annotations"] if a.get("keypoint_confidence") and a["image_id"] == 12]
    of_b |= {"category_id": 7} | ({"keypoint_confidence": [None] * 3} if by_person else {})
    (layout / "two.json").write_text(json.dumps(written))
    assert propagate(layout, f"points={layout}/two.json", run="again") == 2
    assert "Expected one category in cup but cup/b.png is a mug and another is a cup" in capsys.readouterr().err


def test_more_sources_vote_and_what_a_matcher_set_before_is_no_source(layout):
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    written = json.loads((layout / "out/keypoints.json").read_text())
    (of_b,) = [a for a in written["annotations"] if a.get("keypoint_confidence") and a["image_id"] == 12]
    of_b["keypoint_confidence"] = [None, None, of_b["keypoint_confidence"][2]]
    rim, handle = truth("cup/b.png")["rim"], truth("cup/b.png")["handle"]
    of_b["keypoints"][:6] = [rim[0] - 0.5, rim[1] - 0.5, 2, handle[0] - 0.5, handle[1] - 0.5, 2]
    (layout / "corrected.json").write_text(json.dumps(written))
    assert propagate(layout, f"points={layout}/corrected.json", run="again") == 0
    found = read_keypoints(layout / "again/keypoints.json", list(SHIFTS)).images
    assert found["cup/b.png"].points["rim"] == rim and set(found["cup/b.png"].confidence) == {"foot"}
    assert set(found["cup/c.png"].confidence) == set(POINTS)


def cup(points: dict, confidence: dict | None = None) -> ImageKeypoints:
    return ImageKeypoints(points, size=SIZE, category="cup", confidence=confidence or {})


def test_a_part_that_is_annotated_later_is_carried_to_photographs_that_were_filled_before():
    """Where it is named as new: what a person left out stays so, as the handle of the second."""
    names = ["cup/a.png", "cup/b.png", "cup/c.png"]
    filled = {
        "cup/a.png": cup(truth("cup/a.png")),
        "cup/b.png": cup({"rim": (1, 1), "lid": (2, 2)}, {"rim": 0.9}),
        "cup/c.png": cup({"handle": (1, 1), "foot": (3, 3)}, {"handle": 0.9}),
    }
    todo = plan(names, filled)
    assert todo.wanted == {"cup/b.png": ["rim"], "cup/c.png": ["handle"]}
    assert lacking_parts(names, filled, todo) == {
        **{part: ["cup/b.png"] for part in ("foot", "handle")},
        **{part: ["cup/c.png"] for part in ("lid", "rim")},
    }
    todo = plan(names, filled, ["foot", "lid"])
    assert todo.wanted == {"cup/a.png": ["lid"], "cup/b.png": ["rim", "foot"], "cup/c.png": ["handle", "lid"]}
    assert lacking_parts(names, filled, todo) == {"handle": ["cup/b.png"], "rim": ["cup/c.png"]}
    with pytest.raises(ConfigError, match="new_parts that a person annotated but got 'fot'; did you mean 'foot'"):
        plan(names, filled, ["fot"])


def test_sources_are_those_that_show_what_is_lacking_and_earlier_answers_stay(layout):
    """The first photograph shows the rim alone, which would leave the only vote to one that has nothing to say."""
    names, handle = ["cup/a.png", "cup/b.png", "cup/c.png"], truth("cup/b.png")["handle"]
    known = {
        "cup/a.png": cup({"rim": truth("cup/a.png")["rim"]}),
        "cup/b.png": cup({"handle": handle}),
        "cup/c.png": cup({"handle": (3.0, 4.0), "foot": (5.0, 6.0)}, {"handle": 0.4, "foot": 0.3}),
    }
    todo, matcher = plan(names, known), NearestNeighbour("test_resnet", [4])
    assert todo.wanted == {"cup/c.png": ["handle"]}
    (one,) = Propagator(matcher, layout / "photos", known, todo, PropagateConfig(size=64, sources=1))
    assert one.parts == ["handle"]
    kept = with_carried(known["cup/c.png"], one, todo, unsure=0.35)
    assert kept.points["foot"] == (5.0, 6.0) and kept.confidence["foot"] == 0.3 and kept.points["handle"] != (3.0, 4.0)
    assert kept.unsure >= {"foot"}


def corrections(layout: Path, size: tuple[int, int] = SIZE) -> Path:
    """What the review page saves: the rim of b set right, its handle confirmed as it is, its foot not visible."""
    content = json.loads((layout / "out/keypoints.json").read_text())
    chosen = [a for a in content["annotations"] if a.get("keypoint_confidence") and a["image_id"] == 12]
    chosen[0]["keypoints"] = [28, 18, 2, *chosen[0]["keypoints"][3:5], 2, 0, 0, 0]
    chosen[0]["keypoint_confidence"] = [None, None, None]
    images = [{"id": 12, "file_name": "cup/b.png", "width": size[1], "height": size[0]}]
    file = layout / "corrections.json"
    file.write_text(json.dumps({"images": images, "annotations": chosen, "categories": content["categories"]}))
    return file


def test_corrections_are_written_back_and_nothing_else_changes(layout, capsys):
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    file = layout / "out/keypoints.json"
    before = read_keypoints(file, list(SHIFTS)).images
    assert main(["propagate", "apply", f"corrections={corrections(layout)}", f"annotations={file}"]) == 0
    assert "1 photographs with 2 points that a person set or confirmed" in capsys.readouterr().out
    after = read_keypoints(file, list(SHIFTS)).images
    assert after["cup/b.png"].points == {"rim": (28.5, 18.5), "handle": before["cup/b.png"].points["handle"]}
    assert not after["cup/b.png"].confidence and after["cup/c.png"] == before["cup/c.png"]
    assert json.loads(file.read_text())["annotations"][0]["segmentation"] == [[0, 0, 9, 0, 9, 9]]
    assert [path.name for path in file.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("earlier", [False, True])
def test_a_box_that_no_one_drew_follows_the_corrected_points(layout, capsys, earlier):
    """It became a known one, outside of which the corrected points lay; files of earlier versions do not say who made it."""
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    file = layout / "out/keypoints.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"] if earlier else []:
        annotation.pop("keypoint_bbox", None)
    file.write_text(json.dumps(content))
    saved = json.loads(corrections(layout).read_text())
    saved["annotations"][0]["keypoints"] = [1.5, 2.5, 2, 21.5, 12.5, 2, 0, 0, 0]
    (layout / "corrections.json").write_text(json.dumps(saved))
    assert main(["propagate", "apply", f"corrections={layout}/corrections.json", f"annotations={file}"]) == 0
    (of_b,) = [a for a in json.loads(file.read_text())["annotations"] if a["image_id"] == 12 and a.get("keypoints")]
    assert (of_b["bbox"], of_b["area"]) == ([0, 1, 24, 14], 336)  # points 2 to 22, 3 to 13 and a margin of 2 px
    found = read_keypoints(file, list(SHIFTS)).images
    assert [found[name].bbox for name in sorted(found)] == [None] * 3
    data = ["data=folder", f"data.root={layout}/photos", f"data.points={file}"]
    assert main(["data", "check", *data]) == 0, capsys.readouterr().err


def test_what_a_person_labelled_as_hidden_stays_hidden_and_is_carried(layout):
    """The handle of a, a source, and the rim of b, to which the foot is carried; the rest of b was never set."""
    content = tools_file()
    content["annotations"][1]["keypoints"][5] = 1
    points = {"keypoints": [26, 19, 1, 0, 0, 0, 2, 2, 2], "keypoint_confidence": [None, None, 0.5]}
    content["annotations"].append({"id": 3, "image_id": 12, "category_id": 2, **points})
    (layout / "hidden.json").write_text(json.dumps(content))
    assert propagate(layout, f"points={layout}/hidden.json", "unsure=0") == 0
    file = layout / "out/keypoints.json"
    written = json.loads(file.read_text())
    by_image = {a["image_id"]: a for a in written["annotations"] if a.get("keypoints")}
    assert [by_image[number]["keypoints"][2::3] for number in (11, 12, 13)] == [[2, 1, 2], [1, 0, 2], [2, 2, 2]]
    by_image[12]["keypoint_confidence"] = [None] * 3  # the foot confirmed
    (layout / "corrections.json").write_text(json.dumps(written | {"annotations": [by_image[12]]}))
    assert main(["propagate", "apply", f"corrections={layout}/corrections.json", f"annotations={file}"]) == 0
    after = {a["image_id"]: a for a in json.loads(file.read_text())["annotations"] if a.get("keypoints")}
    assert [after[number]["keypoints"][2::3] for number in (11, 12)] == [[2, 1, 2], [1, 0, 2]]
    found = read_points_file(file, list(SHIFTS)).images
    assert "handle" in found["cup/a.png"].points and found["cup/b.png"].points["rim"] == (26.5, 19.5)


def test_annotations_that_are_damaged_are_named_where_corrections_are_written(layout, capsys):
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    saved, file = corrections(layout), layout / "out/keypoints.json"
    content = json.loads(file.read_text())
    (of_b,) = [a for a in content["annotations"] if a["image_id"] == 12 and a.get("keypoints")]
    of_b["keypoints"] = of_b["keypoints"][:8]
    file.write_text(json.dumps(content))
    assert main(["propagate", "apply", f"corrections={saved}", f"annotations={file}"]) == 2
    assert f"keypoints of annotation {of_b['id']} is" in capsys.readouterr().err


@pytest.mark.parametrize("images", [3, {}, [3], None])
def test_annotations_of_another_structure_are_named_where_corrections_are_written(layout, images, capsys):
    file, saved = layout / "keypoints.json", layout / "corrections.json"
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    saved.write_text(json.dumps(tools_file()))
    assert main(["propagate", "apply", f"corrections={saved}", f"annotations={file}"]) == 2
    error = capsys.readouterr().err
    assert f"Expected COCO keypoints in {file} but images " in error and "give the file that propagate wrote" in error


def test_a_file_that_cannot_be_added_to_is_named_before_a_point_is_carried(layout, capsys):
    """What has no keypoints is read only when the file is written again."""
    content = tools_file()
    del content["images"][1]["file_name"]
    (layout / "cvat.json").write_text(json.dumps(content))
    assert propagate(layout, f"points={layout}/cvat.json") == 2
    assert f"in {layout}/cvat.json but the key 'file_name' is missing" in capsys.readouterr().err
    assert not (layout / "out").exists()


def test_a_drawn_box_stays_when_points_are_carried_and_corrected(layout):
    content = tools_file()
    content["annotations"][1]["bbox"] = [10, 10, 40, 30]
    points = {"keypoints": [20, 16, 2, 0, 0, 0, 0, 0, 0], "keypoint_confidence": [0.5, None, None]}
    content["annotations"].append({"id": 3, "image_id": 12, "category_id": 2, "bbox": [15, 12, 38, 30], **points})
    (layout / "boxes.json").write_text(json.dumps(content))
    assert propagate(layout, f"points={layout}/boxes.json", "new_parts=[handle,foot]") == 0
    file = layout / "out/keypoints.json"
    assert main(["propagate", "apply", f"corrections={corrections(layout)}", f"annotations={file}"]) == 0
    found = read_keypoints(file, list(SHIFTS)).images
    assert (found["cup/a.png"].bbox, found["cup/b.png"].bbox) == ((10, 10, 50, 40), (15, 12, 53, 42))
    assert found["cup/c.png"].bbox is None


def test_corrections_of_other_photographs_leave_the_file_as_it_is(layout, capsys):
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    file = layout / "out/keypoints.json"
    before = file.read_bytes()
    wrong = corrections(layout, size=(64, 48))
    assert main(["propagate", "apply", f"corrections={wrong}", f"annotations={file}"]) == 2
    assert "Expected corrections of cup/b.png as it is in" in capsys.readouterr().err
    outside = json.loads(corrections(layout).read_text())
    outside["annotations"][0]["keypoints"][0] = 900
    (layout / "outside.json").write_text(json.dumps(outside))
    assert main(["propagate", "apply", f"corrections={layout}/outside.json", f"annotations={file}"]) == 2
    assert "Expected all points of cup/b.png inside its" in capsys.readouterr().err
    wrong = corrections(layout, size=(64, 48))
    (layout / "broken.json").write_text('{"images": []}')
    assert main(["propagate", "apply", f"corrections={layout}/broken.json", f"annotations={file}"]) == 2
    assert "it has no images, annotations and categories" in capsys.readouterr().err
    assert main(["propagate", "apply", f"corrections={wrong}"]) == 2
    assert "add annotations=<file>" in capsys.readouterr().err and file.read_bytes() == before


def test_a_photograph_that_cannot_be_read_is_left_out(layout, capsys):
    (layout / "photos/cup/c.png").write_text("no image")
    assert propagate(layout, f"points={layout}/cvat.json") == 0
    assert "left out: Expected an image file but" in capsys.readouterr().out
    assert "cup/c.png" not in read_points_file(layout / "out/keypoints.json", list(SHIFTS)).images


def test_a_matchers_points_of_another_kind_are_kept_with_the_size_of_their_photograph(layout, capsys):
    """SLEAP's files say no sizes; those of photographs to which nothing is carried were missing when all was written."""
    known = {"cup/a.png": ImageKeypoints(truth("cup/a.png"), category="cup")}
    for name in ("pot/x.png", "pot/y.png"):
        known[name] = ImageKeypoints({"lid": (20.0, 10.0)}, category="pot", confidence={"lid": 0.5})
    write_keypoints(known, layout / "photos", layout / "kps.slp", "sleap")
    (layout / "photos/pot/y.png").write_text("no image")
    assert propagate(layout, f"points={layout}/kps.slp") == 0
    assert capsys.readouterr().out.count("left out: Expected an image file but") == 1
    written = json.loads((layout / "out/keypoints.json").read_text())
    sizes = {entry["file_name"]: (entry["height"], entry["width"]) for entry in written["images"]}
    assert sizes == dict.fromkeys(["cup/a.png", "cup/b.png", "cup/c.png", "pot/x.png"], SIZE)
    kept = read_keypoints(layout / "out/keypoints.json", list(SHIFTS)).images["pot/x.png"]
    assert kept.points == {"lid": (20.0, 10.0)} and kept.confidence == {"lid": 0.5}


def test_the_review_leaves_out_what_a_file_says_of_a_photograph_that_cannot_be_read(layout, capsys):
    """A file of COCO says its size, so that the photograph is opened for its picture only, when all has been computed."""
    content = tools_file()
    content["images"].append({"id": 13, "width": 64, "height": 48, "file_name": "pot/x.png"})
    points = {"keypoints": [20, 10, 2, 0, 0, 0, 0, 0, 0], "keypoint_confidence": [0.5, None, None]}
    content["annotations"].append({"id": 3, "image_id": 13, "category_id": 2, **points})
    (layout / "with_pot.json").write_text(json.dumps(content))
    (layout / "photos/pot/x.png").write_text("no image")
    assert propagate(layout, f"points={layout}/with_pot.json") == 0
    assert "left out of the review: Expected an image file but" in capsys.readouterr().out
    assert "pot/x.png" in read_keypoints(layout / "out/keypoints.json", list(SHIFTS)).images
    assert '"name": "pot/x.png"' not in (layout / "out/review.html").read_text()


def test_photographs_directly_in_a_folder_are_of_one_kind(layout):
    (layout / "photos/cup/points.csv").write_text("image,part,x,y\na.png,rim,22.5,16.5\n")
    arguments = ["propagate", f"root={layout}/photos/cup", f"run.dir={layout}/flat", *MATCHER, "cycle_tolerance=null"]
    assert main(arguments) == 0
    found = read_keypoints(layout / "flat/keypoints.json", ["a.png", "b.png", "c.png"]).images
    assert set(found) == {"a.png", "b.png", "c.png"} and found["b.png"].category == "object"


def test_a_photograph_beside_the_sub_folders_is_left_out_as_data_folder_leaves_it_out(layout, capsys):
    shutil.copy(layout / "photos/cup/a.png", layout / "photos/cover.png")
    (layout / "photos/points.csv").write_text("image,part,x,y\ncup/a.png,rim,22.5,16.5\n")
    assert propagate(layout) == 0
    told = "left out: 1 photographs of the folder, such as cover.png (lies beside the sub-folders, not in one of them)"
    assert told in capsys.readouterr().out
    found = read_keypoints(layout / "out/keypoints.json", list(SHIFTS)).images
    assert set(found) == {"cup/a.png", "cup/b.png", "cup/c.png"}


def test_a_folder_without_photographs_is_named_by_the_setting_of_propagate(layout, capsys):
    (layout / "empty").mkdir()
    for folder, message in (("empty", "found none; give it in root."), ("cvat.json", "in root but {0} is a file")):
        assert main(["propagate", f"root={layout / folder}", f"points={layout}/cvat.json", *MATCHER]) == 2
        assert message.format(layout / folder) in capsys.readouterr().err


def test_a_file_name_that_is_no_text_is_left_out_and_corrections_are_written(layout, capsys):
    name = os.fsdecode(b"K\xe4tzchen.png")  # as old archives have it
    folder = layout / "photos/cup"
    shutil.copy(folder / "b.png", folder / name)
    (layout / "points.csv").write_text("image,part,x,y\na.png,rim,22.5,16.5\n")
    arguments = [f"root={folder}", f"points={layout}/points.csv", f"run.dir={layout}/out", *MATCHER]
    assert main(["propagate", *arguments]) == 0
    assert r"such as K\udce4tzchen.png (its name is not UTF-8)" in capsys.readouterr().out
    file = layout / "out/keypoints.json"
    written = json.loads(file.read_text())
    names = {entry["id"]: entry["file_name"] for entry in written["images"]}
    assert sorted(names.values()) == ["a.png", "b.png", "c.png"]
    written["images"].append({"id": 99, "file_name": name, "width": 64, "height": 48})  # as earlier versions wrote it
    file.write_text(json.dumps(written))
    chosen = [a for a in written["annotations"] if names[a["image_id"]] == "b.png"]
    chosen[0] |= {"keypoints": [28, 18, 2], "keypoint_confidence": [None]}
    (layout / "corrections.json").write_text(json.dumps(written | {"annotations": chosen}))
    assert main(["propagate", "apply", f"corrections={layout}/corrections.json", f"annotations={file}"]) == 0
    after = json.loads(file.read_text())
    assert [entry["file_name"] for entry in after["images"] if entry["id"] == 99] == [name]
    assert read_coco_images(after, ["a.png", "b.png", "c.png", name])["b.png"].points == {"rim": (28.5, 18.5)}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["points={0}/none.json"], "none.json"),
        ([], "add points=<file>"),
        (["root=null"], "add root=<folder>"),
        (["points={0}/cvat.json", "root={0}/nowhere"], "there is none at"),
        (["points={0}/cvat.json", "unsure=1.5"], "Expected unsure, a confidence"),
        (["points={0}/cvat.json", "vote_sigma=0"], "Expected positive amounts for propagate"),
        (["points={0}/outside.json"], "Expected all points of cup/a.png inside its 64 x 48 px but rim"),
        (["points={0}/resized.json"], "photos/cup/a.png of 128 x 48 px, as"),
        (["action=measure", "points={0}/resized.json"], "but it has 64 x 48 px as viewers show it"),
        (["points={0}/all.csv"], "Expected photographs that lack points but all have them"),
        (["points={0}/cvat.json", "sources=1.5"], "Expected sources as a whole number, or null for all, but got 1.5"),
        (["points={0}/cvat.json", "size=8193"], "Expected size, the side in px, of at most 8192 but got 8193"),
        (["points={0}/cvat.json", "new_parts=[3]"], "Expected new_parts that a person annotated but got '3'"),
        (["action=3"], "Expected a word after propagate but got 3"),
        (["action=measure", "points={0}/all.csv", "measure.goal=150"], "Expected measure.goal as a percentage above 0"),
        (["action=measure", "points={0}/all.csv", "measure.kinds=-1"], "Expected measure.kinds as a whole number"),
        (["points={0}/cvat.json", "matcher=oracle"], "Expected a matcher that answers photographs without annotation"),
    ],
)
def test_what_is_wrong_is_named(layout, extra, message, capsys):
    outside = tools_file()
    outside["annotations"][1]["keypoints"][0] = 64
    (layout / "outside.json").write_text(json.dumps(outside))
    resized = tools_file()
    resized["images"][0]["width"] = 128  # of a copy that a tool made larger: the same numbers are other places
    (layout / "resized.json").write_text(json.dumps(resized))
    rows = [f"{name},{part},{x},{y}" for name in SHIFTS for part, (x, y) in truth(name).items()]
    (layout / "all.csv").write_text("\n".join(["image,part,x,y", *rows]) + "\n")
    words = [word.format(layout) for word in extra]
    keep = MATCHER if "matcher=oracle" not in extra else ["size=64", "device=cpu"]
    arguments = ["propagate", f"root={layout}/photos", f"run.dir={layout}/out", *keep]
    assert (
        main([*(a for a in arguments if a.partition("=")[0] not in {w.partition("=")[0] for w in words}), *words]) == 2
    )
    assert message in capsys.readouterr().err and not (layout / "out").exists()


def test_clicks_are_counted_on_what_is_hidden(layout, capsys):
    rows = [f"{name},{part},{x},{y}" for name in SHIFTS for part, (x, y) in truth(name).items() if name[0] == "c"]
    (layout / "all.csv").write_text("\n".join(["image,part,x,y", *rows]) + "\n")
    arguments = [f"root={layout}/photos", f"points={layout}/all.csv", f"run.dir={layout}/clicks", *MATCHER]
    assert main(["propagate", "measure", *arguments, "measure.annotated=[1,2]"]) == 0
    written = json.loads((layout / "clicks/clicks.json").read_text())
    assert [row["annotated"] for row in written["mean"]] == [1, 2] and written["kinds"][0]["kind"] == "cup"
    for row in written["mean"]:
        assert row["photographs"] == 1 and row["points"] == 3 and row["carried"] == 100
        assert row["pck"] == 100 or row["clicks"] > 0
    assert main(["propagate", "measure", *arguments, "measure.annotated=[3]"]) == 2
    assert "more than 3 annotated photographs of a kind" in capsys.readouterr().err


def test_clicks_are_counted_on_what_a_person_set_and_not_on_what_was_carried(layout, capsys):
    """Of cups a and b are a person's and c is a matcher's, wrong; of pots all are a matcher's."""
    images = {name: ImageKeypoints(truth(name), size=SIZE) for name in ("cup/a.png", "cup/b.png")}
    for name in ("cup/c.png", "pot/x.png"):
        images[name] = ImageKeypoints(
            dict.fromkeys(POINTS, (1.5, 1.5)), size=SIZE, confidence=dict.fromkeys(POINTS, 0.9)
        )
    (layout / "mixed.json").write_text(json.dumps(write_coco(images)))
    arguments = [f"root={layout}/photos", f"points={layout}/mixed.json", *MATCHER]
    for seed in range(3):
        run = [f"run.dir={layout}/clicks{seed}", f"measure.seed={seed}", "measure.annotated=[1]"]
        assert main(["propagate", "measure", *arguments, *run]) == 0
        written = json.loads((layout / f"clicks{seed}/clicks.json").read_text())
        assert [(row["kind"], row["photographs"], row["points"]) for row in written["kinds"]] == [("cup", 1, 3)]
        assert written["mean"][0]["pck"] == 100
    capsys.readouterr()
    assert main(["propagate", "measure", *arguments, f"run.dir={layout}/few", "measure.annotated=[1,2]"]) == 2
    few = "more than 2 annotated photographs of a kind but a person set points in 2 of cup; lower measure.annotated"
    assert few in capsys.readouterr().err and not (layout / "few").exists()
    (layout / "mixed.json").write_text(json.dumps(write_coco({"pot/x.png": images["pot/x.png"]})))
    assert main(["propagate", "measure", *arguments, f"run.dir={layout}/none"]) == 2
    assert "points that a person set in" in capsys.readouterr().err and not (layout / "none").exists()


def test_kinds_that_cannot_be_scored_are_told_and_in_no_mean(layout, capsys):
    """Each pot shows another part, so that nothing that is carried can be judged; it counted as a PCK of 0 and 0 clicks."""
    points = {name: truth(name) for name in SHIFTS if name[0] == "c"}
    pots = {"pot/x.png": {"lid": (20.0, 10.0)}, "pot/y.png": {"spout": (30.0, 20.0)}}
    for file, known in (("both", points | pots), ("pots", pots)):
        rows = [f"{name},{part},{x},{y}" for name, own in known.items() for part, (x, y) in own.items()]
        (layout / f"{file}.csv").write_text("\n".join(["image,part,x,y", *rows]) + "\n")
    arguments = [f"root={layout}/photos", f"run.dir={layout}/out", *MATCHER, "measure.annotated=[1]"]
    assert main(["propagate", "measure", *arguments, f"points={layout}/both.csv"]) == 0
    told = capsys.readouterr().out
    assert (
        "left out: pot with 1 annotated, whose parts no other photograph shows" in told and "1 kinds, corrected" in told
    )
    written = json.loads((layout / "out/clicks.json").read_text())
    cups, of_pots = written["kinds"]
    assert (of_pots["kind"], of_pots["carried"], of_pots["pck"], of_pots["clicks"]) == ("pot", 0, None, None)
    assert [row["pck"] for row in written["mean"]] == [cups["pck"]] and written["mean"][0]["photographs"] == 2
    assert main(["propagate", "measure", *arguments, f"points={layout}/pots.csv", f"run.dir={layout}/pots"]) == 2
    assert "Expected photographs of a kind that show a part in common" in capsys.readouterr().err
    assert not (layout / "pots").exists()


def test_a_kind_with_too_few_photographs_is_named_before_a_point_is_carried(layout, capsys, monkeypatch):
    """Pots come after cups, which were carried for nothing."""
    monkeypatch.setattr(Propagator, "__iter__", lambda self: pytest.fail("it carried"))
    names = [name for name in SHIFTS if name != "pot/y.png"]
    rows = [f"{name},{part},{x},{y}" for name in names for part, (x, y) in truth(name).items()]
    (layout / "all.csv").write_text("\n".join(["image,part,x,y", *rows]) + "\n")
    assert propagate(layout, "action=measure", f"points={layout}/all.csv", "measure.annotated=[1]") == 2
    assert "a person set points in 1 of pot" in capsys.readouterr().err


def test_photographs_are_resized_as_the_student_was_trained(layout):
    known = {"cup/a.png": ImageKeypoints({"rim": (5.0, 5.0)})}
    student = SimpleNamespace(size=32, resize="letterbox")
    for config, wanted in ((PropagateConfig(), "letterbox"), (PropagateConfig(resize="squash"), "squash")):
        propagator = Propagator(student, layout / "photos", known, plan(["cup/a.png", "cup/b.png"], known), config)
        assert (propagator.read.size, propagator.read.resize) == (32, wanted)
    with pytest.raises(ConfigError, match="Expected resize to be one of these but got 'crop'"):
        PropagateConfig(resize="crop")
