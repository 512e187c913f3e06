import json
import os
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill import match_images
from distill.__main__ import main
from distill.cli.commands import match
from distill.cli.match_input import read_points
from distill.core.errors import DataError
from distill.data.datasets.folder import FolderPairs
from distill.data.datasets.shapes.render import render
from distill.data.datasets.shapes.scene import sample_scene
from distill.data.images import read_image
from distill.data.keypoint_files import write_keypoints
from distill.data.keypoints import ImageKeypoints
from distill.export.student_file import save_student
from student import StudentMatcher


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    for name, size in (("a", (40, 60)), ("b", (50, 30))):
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def run(folder, *extra: str) -> int:
    matcher = ["matcher=nearest_neighbour", "matcher.backbone=test_resnet", "size=64", "device=cpu"]
    return main(["match", f"src={folder}/a.png", f"trg={folder}/b.png", f"run.dir={folder}/out", *matcher, *extra])


def test_matches_are_in_pixels_of_the_files(images):
    assert run(images, "points=[[10,10],[59.5,39.5]]") == 0
    written = json.loads((images / "out" / "matches.json").read_text())["matches"]
    assert [row["src"] for row in written] == [[10, 10], [59.5, 39.5]]
    assert all(0 <= row["trg"][0] <= 30 and 0 <= row["trg"][1] <= 50 and 0 <= row["confidence"] <= 1 for row in written)
    assert Image.open(images / "out" / "match.png").width > 384


def test_targets_may_have_the_longest_names_that_file_systems_hold(images):
    names = ["x" * 251 + ".png", "長" * 83 + ".png"]
    (images / "many").mkdir()
    for name in names:
        (images / "many" / name).write_bytes((images / "b.png").read_bytes())
    assert run(images, f"trg={images}/many", "points=[[1,1]]", "dense=20") == 0
    targets = json.loads((images / "out" / "matches.json").read_text())["targets"]
    assert [Path(target["trg"]).name for target in targets] == sorted(names)
    for kind in ("pictures", "flow"):
        made = sorted({path.stem for path in (images / "out" / kind).iterdir()})
        assert made == [f"0001_{'x' * 150}", f"0002_{'長' * 50}"]


def test_the_images_of_many_named_targets_are_not_held_together(images, monkeypatch):
    held, most, names = [], 0, []
    for number in range(6):
        names.append(images / f"t{number}.png")
        names[-1].write_bytes((images / "b.png").read_bytes())

    def counting(file):
        nonlocal most
        image = read_image(file)
        held.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in held))
        return image

    monkeypatch.setattr(match, "read_image", counting)
    assert run(images, f"trg=[{','.join(map(str, names))}]", "points=[[1,1]]") == 0
    assert len(held) == 7 and most <= 3  # the source, and the targets of this round and the one before


def test_answers_before_a_target_that_ends_the_command_are_kept(images, monkeypatch):
    drawn = match.picture

    def failing(path, *others):
        if path.stem == "0002_b":
            raise OSError("no space left on device")
        drawn(path, *others)

    monkeypatch.setattr(match, "picture", failing)
    with pytest.raises(OSError, match="no space left"):
        run(images, f"trg=[{images}/a.png,{images}/b.png]", "points=[[1,1]]")
    written = json.loads((images / "out" / "matches.json").read_text())
    assert written["trg"] == f"{images}/a.png" and len(written["matches"]) == 1
    assert (images / "out" / "keypoints.json").is_file() and (images / "out" / "points.csv").is_file()


def test_an_image_matches_itself_in_its_own_pixels(images):
    assert run(images, f"trg={images}/a.png", "points=[[31,21]]", "matcher.strides=[4]") == 0
    (row,) = json.loads((images / "out" / "matches.json").read_text())["matches"]
    assert abs(row["trg"][0] - 31) < 4 and abs(row["trg"][1] - 21) < 3


@pytest.mark.parametrize(
    ("name", "text", "names", "points"),
    [
        ("p.json", "[[1, 2], [3, 4]]", ["0", "1"], [[1, 2], [3, 4]]),
        ("p.csv", "x,y\n1,2\n3,4\n", ["0", "1"], [[1, 2], [3, 4]]),
        ("p.csv", "part,x,y\neye,1,2\nnose,3,4.5\n", ["eye", "nose"], [[1, 2], [3, 4.5]]),
        ("p.csv", "image,part,x,y\nb.png,eye,9,9\na.png,eye,1,2\n", ["eye"], [[1, 2]]),
        ("p.json", '{"a.png": {"points": {"eye": [1, 2]}}, "b.png": {"points": {"eye": [3, 4]}}}', ["eye"], [[1, 2]]),
    ],
)
def test_points_may_come_from_a_file(name, text, names, points, images):
    (images / name).write_text(text)
    found = read_points(str(images / name), images / "a.png")
    assert found.xy.tolist() == [points] and found.names == names


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "a,b\n1,2\n", "Expected the columns x, y"),
        ("p.csv", "x,y\n1,nan\n", "p.csv"),
        ("p.csv", "image,part,x,y\nc.png,eye,9,9\n", "Expected points of a.png"),
        ("p.json", '{"c.png": {"points": {"eye": [1, 2]}}}', "Expected points of a.png"),
        ("p.json", "[[1, 2, 3]]", "Expected points as"),
        ("p.json", "[[1, NaN]]", "Expected points as"),
        ("p.json", "[[true, false]]", "Expected points as [[x,y],...], x and y in pixels of the source, in"),
        ("p.json", '[["1", "2"]]', "Expected points as"),
        ("p.json", '{"a.png": {"point": {"eye": [1, 2]}}}', "the key 'points' is missing from the entry of a.png"),
        ("p.json", "5", "Expected points as"),
        ("p.json", '{"a.png": {"points": {"\\ud800": [1, 2]}}}', "names of parts in UTF-8"),
        ("p.csv", "part,x,y\neye,1,2\neye,3,4\n", "p.csv repeats eye from row 2; remove a row."),
        ("p.csv", "part,x,y\neye,1,2\n ,3,4\n", "Expected the name of a part in row 3"),
        ("p.pkl", "cos\nsystem\n(S'true'\ntR.", "pickles run code and are not read"),
    ],
)
def test_a_file_without_points_of_the_source_is_named(name, text, message, images, capsys):
    (images / name).write_text(text)
    assert run(images, f"points={images}/{name}") == 2
    assert message in capsys.readouterr().err and not (images / "out").exists()


def test_a_folder_of_targets_is_matched_and_carries_the_points_over(images, capsys):
    for name in "cd":
        (images / f"{name}.png").write_bytes((images / "b.png").read_bytes())
    (images / "broken.png").write_text("no image")
    (images / "p.csv").write_text("part,x,y\neye,10,10\nnose,20,15\n")
    assert run(images, f"trg={images}", f"points={images}/p.csv") == 0
    shown = capsys.readouterr().out
    assert shown.count("mean confidence") == 3 and "left out: Expected an image file but" in shown
    written = json.loads((images / "out" / "matches.json").read_text())["targets"]
    assert [target["trg"].rpartition("/")[2] for target in written] == ["b.png", "c.png", "d.png"]
    assert {path.name[4:] for path in (images / "out" / "pictures").iterdir()} == {"_b.png", "_c.png", "_d.png"}
    again = read_points(str(images / "out" / "points.csv"), images / "c.png")
    assert again.names == ["eye", "nose"] and again.xy[0].tolist() == [
        pytest.approx(row["trg"]) for row in written[1]["matches"]
    ]


def test_matches_are_written_for_annotation_tools(images):
    assert run(images, "points=[[10,10],[59.5,39.5]]", "unsure=0.9999") == 0
    rows = json.loads((images / "out" / "matches.json").read_text())["matches"]
    source, target = json.loads((images / "out" / "keypoints.json").read_text())["annotations"]
    assert source["keypoints"] == [9.5, 9.5, 2, 59, 39, 2] and "keypoint_confidence" not in source
    for number, row in enumerate(rows):
        x, y, visibility = target["keypoints"][3 * number : 3 * number + 3]
        assert [x + 0.5, y + 0.5] == pytest.approx(row["trg"]) and target["keypoint_confidence"][number] == row[
            "confidence"
        ]
        assert visibility == (2 if row["confidence"] >= 0.9999 else 1)


@pytest.mark.parametrize("written", ["points.csv", "keypoints.json"])
def test_what_was_matched_in_a_flat_folder_is_read_as_its_points(images, tmp_path_factory, monkeypatch, written):
    """Also where the program runs in the folder, so that the names on the command line have none in front."""
    out, matcher = tmp_path_factory.mktemp("out"), ["matcher=nearest_neighbour", "matcher.backbone=test_resnet"]
    monkeypatch.chdir(images)
    given = ["src=a.png", "trg=b.png", "points=[[10,10],[50,30]]", "unsure=0", "size=64", "device=cpu"]
    assert main(["match", *given, f"run.dir={out}/run", *matcher]) == 0
    matches = json.loads((out / "run" / "matches.json").read_text())["matches"]
    for root in (".", str(images)):
        pairs = FolderPairs(root, points=str(out / "run" / written), size=64)
        read = [pairs.image_annotation(name).points.tolist() for name in ("a.png", "b.png")]
        assert read == [[pytest.approx(row[side], abs=1e-4) for row in matches] for side in ("src", "trg")]
    (out / "mine.csv").write_text("image,part,x,y\nelsewhere/a.png,eye,1,2\nb.png,eye,1,2\n")
    with pytest.raises(DataError, match="there is no elsewhere/a.png; name them relative to the folder"):
        FolderPairs(".", points=str(out / "mine.csv"), size=64)


def test_points_may_come_from_a_coco_file_that_is_about_other_images_too(images):
    (images / "c.png").write_bytes((images / "b.png").read_bytes())
    assert run(images, "points=[[10,10],[59.5,39.5]]") == 0
    found = read_points(str(images / "out" / "keypoints.json"), images / "a.png")
    assert found.names == ["0", "1"] and found.xy.tolist() == [[[10, 10], [59.5, 39.5]]]
    matches = json.loads((images / "out" / "matches.json").read_text())["matches"]
    again = read_points(str(images / "out" / "keypoints.json"), images / "b.png")
    np.testing.assert_allclose(again.xy[0], [row["trg"] for row in matches], atol=1e-4)


@pytest.mark.parametrize(("format_", "file"), [("sleap", "p.slp"), ("deeplabcut", "p.csv"), ("label_studio", "p.json")])
def test_points_may_come_from_an_annotation_tools_file_that_is_about_other_images_too(images, format_, file):
    """Written by the tools' own library, or in their format, with two photographs, one of which has the source's name."""
    photos = images / "photos"
    for name in ("cat/1.png", "dog/1.png"):
        (photos / name).parent.mkdir(parents=True)
        (photos / name).write_bytes((images / "a.png").read_bytes())
    points = {"cat/1.png": {"eye": (10.5, 12.5), "nose": (20.25, 4.0)}, "dog/1.png": {"eye": (1.0, 2.0)}}
    known = {name: ImageKeypoints(found, size=(40, 60)) for name, found in points.items()}
    write_keypoints(known, photos, photos / file, format_)
    found = read_points(str(photos / file), photos / "cat" / "1.png")
    assert found.names == ["eye", "nose"]
    np.testing.assert_allclose(found.xy[0], list(points["cat/1.png"].values()), atol=1e-4)
    with pytest.raises(DataError, match="Expected points of 2.png in .* but found 0 entries"):
        read_points(str(photos / file), photos / "cat" / "2.png")


def test_points_may_come_from_a_photograph_that_was_uploaded_to_label_studio(images):
    """The first two addresses are those of its export; x and y are percent of the image of 60 x 40 px."""
    tasks = []
    for number, image in enumerate(("/data/upload/1/1a2b3c4d-a.png", "s3://bucket/b.png", "https://[bad/a.png")):
        value = {"x": 10 + number, "y": 50, "keypointlabels": ["eye"]}
        region = {"type": "keypointlabels", "original_width": 60, "original_height": 40, "value": value}
        tasks.append({"id": number, "data": {"image": image}, "annotations": [{"result": [region]}]})
    (images / "p.json").write_text(json.dumps(tasks[:2]))
    assert read_points(str(images / "p.json"), images / "a.png").xy.tolist() == [[[6, 20]]]
    (images / "p.json").write_text(json.dumps(tasks))
    with pytest.raises(DataError, match="p.json but Invalid IPv6 URL"):
        read_points(str(images / "p.json"), images / "a.png")


def test_a_photograph_of_the_very_name_goes_before_one_that_looks_like_its_upload(images):
    (images / "p.csv").write_text("image,part,x,y\n1a2b3c4d-a.png,eye,9,9\na.png,eye,1,2\n")
    assert read_points(str(images / "p.csv"), images / "a.png").xy.tolist() == [[[1, 2]]]


def test_a_list_of_targets_must_be_readable_as_a_whole(images, capsys):
    assert run(images, f"trg=[{images}/b.png,{images}/none.png]", "points=[[1,1]]") == 2
    assert "none.png cannot be read" in capsys.readouterr().err and not (images / "out").exists()
    assert run(images, f"trg=[{images}/b.png,{images}/a.png]", "points=[[1,1]]") == 0
    assert len(json.loads((images / "out" / "matches.json").read_text())["targets"]) == 2


def test_images_that_files_of_points_cannot_tell_apart_are_refused(images, capsys):
    """points.csv had three rows of cat/1.png, which data=folder refuses, and keypoints.json the source's points alone."""
    for year in (2023, 2024, 2025):
        (images / f"{year}" / "cat").mkdir(parents=True)
        (images / f"{year}" / "cat" / "1.png").write_bytes((images / "b.png").read_bytes())
    first, second, third = (f"{images}/{year}/cat/1.png" for year in (2023, 2024, 2025))
    for src, trg, other in ((first, second, second), (f"{images}/b.png", f"[{second},{third}]", third)):
        assert run(images, f"src={src}", f"trg={trg}", "points=[[1,1]]") == 2
        shown = capsys.readouterr().err
        assert f"{other} are both cat/1.png; rename one" in shown and not (images / "out").exists()
    assert run(images, f"src={first}", f"trg={second}", "dense=20") == 0  # no points, which would be of one of them


def test_of_a_source_among_the_targets_the_given_points_are_written(images):
    assert run(images, f"trg=[{images}/b.png,{images}/a.png]", "points=[[10,10],[50,30]]") == 0
    targets = json.loads((images / "out" / "matches.json").read_text())["targets"]
    for file in ("points.csv", "keypoints.json"):
        pairs = FolderPairs(str(images), points=str(images / "out" / file), size=64)
        assert pairs.image_annotation("a.png").points.tolist() == [[10, 10], [50, 30]]
        expected = [pytest.approx(row["trg"], abs=1e-4) for row in targets[0]["matches"]]
        assert pairs.image_annotation("b.png").points.tolist() == expected


def test_a_target_whose_name_is_not_utf_8_is_left_out_of_a_folder_and_refused_otherwise(images, capsys):
    odd = os.fsdecode(os.fsencode(images) + b"/K\xe4tzchen.png")
    Path(odd).write_bytes((images / "b.png").read_bytes())
    assert run(images, f"trg={images}", "points=[[1,1]]", "unsure=0") == 0
    shown = capsys.readouterr().out
    assert f"left out: {images}/K\\udce4tzchen.png: its name is not UTF-8" in shown
    assert {row.split(",")[0].rpartition("/")[2] for row in (images / "out/points.csv").read_text().split()[1:]} == {
        "a.png",
        "b.png",
    }
    for extra in ([f"trg={odd}"], [f"src={odd}"]):
        assert run(images, *extra, "points=[[1,1]]", f"run.dir={images}/other") == 2
        assert "Expected names in UTF-8" in capsys.readouterr().err and not (images / "other").exists()


def test_a_folder_without_images_is_refused(images, capsys):
    (images / "empty").mkdir()
    assert run(images, f"trg={images}/empty", "points=[[1,1]]") == 2
    assert "Expected images in the folder" in capsys.readouterr().err


def test_a_second_call_writes_beside_the_first(images):
    assert run(images, "points=[[1,1]]") == 0 and run(images, "points=[[2,2]]") == 0
    first, second = (json.loads((images / name / "matches.json").read_text()) for name in ("out", "out_2"))
    assert first["matches"][0]["src"] == [1, 1] and second["matches"][0]["src"] == [2, 2]


def test_points_beside_photographs_are_not_replaced_by_a_run_in_their_folder(images, capsys):
    (images / "points.csv").write_text("image,part,x,y\na.png,eye,1,2\n")
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    assert run(images, f"points={images}/points.csv", f"run.dir={images}") == 0
    assert before == {path.name: path.read_bytes() for path in images.iterdir()}
    assert (images.with_name(f"{images.name}_2") / "points.csv").is_file()


def test_a_run_where_the_program_runs_is_refused_if_it_might_replace_files(images, monkeypatch, capsys):
    monkeypatch.chdir(images)
    assert run(images, "points=[[1,1]]", "run.dir=.") == 2
    assert "Expected the name of a new folder in run.dir but . holds other files" in capsys.readouterr().err
    (images / "new").mkdir()
    monkeypatch.chdir(images / "new")
    assert run(images, "points=[[1,1]]", "run.dir=.") == 0 and (images / "new" / "matches.json").is_file()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["points=[[61,10]]"], "inside its image of 60 x 40 px"),
        (["points=[]"], "Expected points as [[x,y],...]"),
        (["points=[1,2]"], "Expected points as [[x,y],...]"),
        (["points=[[true,false]]"], "Expected points as [[x,y],...]"),
        (['points=[["5","6"]]'], "Expected points as [[x,y],...]"),
        (["points=[[1,null]]"], "Expected points as [[x,y],...]"),
        (["points=nowhere.json"], "cannot be read"),
        (["points=[[1,1]]", "src=nothing.png"], "nothing.png cannot be read"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(images, extra, message, capsys):
    assert run(images, *extra) == 2
    assert message in capsys.readouterr().err and not (images / "out").exists()


def test_images_are_turned_as_their_exif_orientation_says(tmp_path):
    picture = Image.new("RGB", (20, 10))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (1, 3, 20, 10)


def test_a_file_that_is_no_image_is_an_error(tmp_path):
    (tmp_path / "x.png").write_text("not an image")
    with pytest.raises(DataError, match="x.png cannot be read"):
        read_image(tmp_path / "x.png")


def test_a_teacher_matches_across_categories(tmp_path, sd1_folder):
    scenes = [sample_scene(0, index, "easy") for index in range(2)]
    assert [scene.category for scene in scenes] == ["dog", "bird"]
    for name, picture in zip("ab", render(scenes, 64).image, strict=True):
        array = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    head = ((scenes[0].keypoints[list(scenes[0].keypoint_names).index("nose"), :2] + 1) * 32).round(1).tolist()
    teacher = [
        "steps=2",
        "embeddings=1",
        "crops=1",
        "crop_pool=4",
        "layers=[up@1/4]",
        "null_prompt=zeros",
        "prompt_length=7",
        f"model={sd1_folder}",
    ]
    settings = ["matcher=prompt_optimization", *(f"matcher.{setting}" for setting in teacher)]
    paths = [f"src={tmp_path}/a.png", f"trg={tmp_path}/b.png", f"run.dir={tmp_path}/out"]
    assert main(["match", *paths, f"points=[{head}]", "size=64", "device=cpu", *settings]) == 0
    (row,) = json.loads((tmp_path / "out" / "matches.json").read_text())["matches"]
    assert row["src"] == head and all(0 <= value <= 64 for value in row["trg"])
    assert Image.open(tmp_path / "out" / "match.png").width > 128


def test_a_student_of_letterboxed_photographs_is_asked_with_such(images, capsys):
    torch.manual_seed(0)
    config = {"_target_": "student.StudentMatcher", "backbone": "test_resnet", "strides": [4], "width": 16, "size": 64}
    student = StudentMatcher("test_resnet", [4], 16).eval()
    save_student(student, config | {"resize": "letterbox"}, images / "student.safetensors")
    arguments = [
        f"src={images}/a.png",
        f"trg={images}/b.png",
        "points=[[10,10]]",
        "device=cpu",
        f"ckpt={images}/student.safetensors",
    ]
    src, trg = (read_image(images / f"{name}.png") for name in "ab")
    for given, resize in (([], "letterbox"), (["resize=squash"], "squash")):
        assert main(["match", *arguments, *given, f"run.dir={images}/{resize}"]) == 0
        (row,) = json.loads((images / resize / "matches.json").read_text())["matches"]
        wanted = match_images(student, src, trg, [[10, 10]], size=64, resize=resize).trg_kps[0, 0]
        assert row["trg"] == pytest.approx(wanted.tolist(), abs=0.01)
    assert main(["match", *arguments, "resize=crop", f"ckpt={images}/none.safetensors"]) == 2
    assert "Expected resize to be one of these but got 'crop'" in capsys.readouterr().err
