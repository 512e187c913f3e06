"""Symmetric groups from the names of parts."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from distill.data.datasets.folder import FolderPairs
from distill.data.datasets.shapes.pairs import ShapesPairs
from distill.data.datasets.shapes.scene import sample_scene
from distill.data.symmetry import named_groups
from distill.evaluation.evaluate import evaluate
from distill.matchers.oracle import Oracle


def test_parts_whose_names_differ_in_the_side_only_are_a_group():
    names = [
        "left eye",
        "beak",
        "right eye",
        "L_Ear",
        "R_Ear",
        "wingLeft",
        "wingRight",
        "leg_l_1",
        "leg_r_1",
        "leg_l_2",
    ]
    assert named_groups(names) == ((0, 2), (3, 4), (5, 6), (7, 8))


def test_words_that_only_begin_or_end_like_a_side_are_none():
    assert named_groups(["bill", "rest", "leftover", "rightover", "tail l", "nose", "", "naïve r"]) == ()


def test_groups_of_shapes_are_of_the_keypoints_that_its_scenes_have():
    for number in range(16):
        scene = sample_scene(0, number, "medium")
        for left, right in ShapesPairs.symmetric_groups[scene.category]:
            assert scene.keypoint_names[left].replace("left_", "right_") == scene.keypoint_names[right]


def test_shapes_and_folders_report_accuracy_given_the_concept(tmp_path: Path):
    report = evaluate(Oracle(heatmap_side=64), ShapesPairs("val", 16), "oracle", progress=False).report
    assert report["given_candidates"]["group"]["right"] == 100 == report["geometry_aware"]["image"]["0.10"]
    for number in range(2):
        (tmp_path / "mugs").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 90 * number, np.uint8)).save(tmp_path / f"mugs/{number}.png")
    with (tmp_path / "points.csv").open("w") as file:
        rows = [
            [f"mugs/{n}.png", part, x, 20]
            for n in (0, 1)
            for part, x in (("left rim", 8), ("right rim", 30), ("foot", 20))
        ]
        csv.writer(file).writerows([["image", "part", "x", "y"], *rows])
    folder = FolderPairs(str(tmp_path), size=32)
    assert folder.parts == ["foot", "left rim", "right rim"] and folder.symmetric_groups == {"": ((1, 2),)}
    found = evaluate(Oracle(heatmap_side=32), folder, "oracle", progress=False).report
    assert found["geometry_aware"]["n_points"] == 4 and found["given_candidates"]["group"]["n_points"] == 4
