"""Scenes: deterministic, in frame, and described by what is in them."""

import dataclasses

import numpy as np
import pytest

from distill.core.errors import ConfigError
from distill.data.datasets.shapes.anatomy import Anatomy, rotation
from distill.data.datasets.shapes.captions import facing
from distill.data.datasets.shapes.categories import CATEGORIES, PALETTES
from distill.data.datasets.shapes.scene import BACKGROUNDS, COLOURS, DIFFICULTIES, sample_scene


def test_rotations_turn_about_the_named_axes():
    np.testing.assert_allclose(rotation((90, 0, 0)) @ [1, 0, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(rotation((0, 90, 0)) @ [1, 0, 0], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(rotation((0, 0, 90)) @ [0, 1, 0], [0, 0, 1], atol=1e-12)


def test_a_keypoint_on_an_ellipsoid_lies_on_its_surface():
    anatomy = Anatomy()
    number = anatomy.add("ellipsoid", "body", (1, 2, 3), (0.5, 0.25, 1.0), (30, -20, 10))
    anatomy.mark("tip", number, (3, -2, 1))
    position, _ = anatomy.keypoints["tip"]
    local = rotation((30, -20, 10)).T @ (position - np.array([1, 2, 3]))
    assert np.sum((local / [0.5, 0.25, 1.0]) ** 2) == pytest.approx(1)


def test_mirrored_parts_and_points_are_mirror_images():
    anatomy = Anatomy()
    sides = anatomy.both_sides("box", "wings", (0.1, 0.4, 0), (0.2, 0.3, 0.01), (-20, 5, 12))
    anatomy.mark_both("tip", sides, (0.3, 1, 0.5))
    left, right = anatomy.keypoints["left_tip"][0], anatomy.keypoints["right_tip"][0]
    np.testing.assert_allclose(left * [1, -1, 1], right, atol=1e-12)


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_has_points_pairs_and_a_palette_for_each_group(category: str):
    anatomy = Anatomy()
    CATEGORIES[category](anatomy, lambda low, high: (low + high) / 2)
    names = set(anatomy.keypoints)
    assert len(names) >= 8
    assert {n.replace("left_", "right_") for n in names if n.startswith("left_")} <= names
    assert set(anatomy.group) == set(PALETTES[category])
    assert {colour for palette in PALETTES[category].values() for colour in palette} <= set(COLOURS)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_scene_depends_on_seed_and_index_alone(difficulty: str):
    first, again, other = (sample_scene(seed, 7, difficulty) for seed in (3, 3, 4))
    for name in ("centre", "half", "axes", "colour", "keypoints", "bbox", "light", "ground"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.keypoints, other.keypoints)


def test_the_object_stays_in_the_frame_unless_the_world_is_hard():
    for index in range(40):
        scene = sample_scene(0, index, "medium")
        assert not scene.truncated
        assert (np.abs(scene.keypoints[:, :2]) <= 1).all()
        u0, v0, u1, v1 = scene.bbox
        assert 0.58 <= max(u1 - u0, v1 - v0) / 2 <= 0.92


def test_keypoints_lie_in_the_object_box():
    for index in range(24):
        scene = sample_scene(1, index, "easy")
        assert (scene.keypoints[:, :2] >= scene.bbox[:2] - 1e-9).all()
        assert (scene.keypoints[:, :2] <= scene.bbox[2:] + 1e-9).all()


def test_what_faces_right_has_its_front_to_the_right():
    fronts = {"dog": "nose", "bird": "beak_tip", "car": "front_bumper", "fish": "mouth", "boat": "bow"}
    backs = {"dog": "tail_base", "bird": "tail_tip", "car": "rear_bumper", "fish": "tail_base", "boat": "keel"}
    for index in range(48):
        scene = sample_scene(2, index, "easy")
        if scene.category in fronts:
            points = dict(zip(scene.keypoint_names, scene.keypoints, strict=True))
            ahead = points[fronts[scene.category]][0] > points[backs[scene.category]][0]
            assert ahead == (facing(scene.yaw) == "right") == ("facing right" in scene.caption)


def test_a_yaw_of_90_faces_the_viewer():
    assert [facing(yaw) for yaw in (0, 90, 180, 270)] == ["right", "forward", "left", "away"]
    for index in range(0, 800, 8):
        scene = sample_scene(5, index, "hard")
        if facing(scene.yaw) == "forward":
            points = dict(zip(scene.keypoint_names, scene.keypoints, strict=True))
            assert points["nose"][2] < points["tail_base"][2], "smaller depth is nearer"
            return
    pytest.fail("no dog faced the viewer")


def test_the_caption_names_category_colours_and_background():
    for index in range(16):
        scene = sample_scene(0, index, "medium")
        words = scene.caption.split()
        assert scene.category in words and words[-1] in BACKGROUNDS
        for group in PALETTES[scene.category]:
            assert words[words.index(group) - 1] in COLOURS


@pytest.mark.parametrize(
    ("difficulty", "main", "palette"),
    # hard: one of twelve colours for the main one, three of twelve for the palette
    [
        ("easy", 1.0, 1.0),
        ("medium", 0.75 + 0.2 / 3 + 0.05 / 12, 0.95 + 0.05 / 4),
        ("varied", 0.4 + 0.1 / 3 + 0.5 / 12, 0.5 + 0.5 / 4),
        ("hard", 1 / 12, 1 / 4),
    ],
)
def test_parts_have_their_usual_colours_as_often_as_the_world_says(difficulty, main, palette):
    usual = allowed = drawn = 0
    for index in range(600):
        scene = sample_scene(3, index, difficulty)
        words = scene.caption.split()
        for group, colours in PALETTES[scene.category].items():
            colour = words[words.index(group) - 1]
            usual, allowed, drawn = usual + (colour == colours[0]), allowed + (colour in colours), drawn + 1
    # Three standard deviations of a share of some 2400 draws.
    assert abs(usual / drawn - main) < 0.03 and abs(allowed / drawn - palette) < 0.03


def test_an_unknown_difficulty_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'medium'"):
        sample_scene(0, 0, "medum")


def test_each_amount_of_the_varied_world_lies_between_those_of_medium_and_hard():
    bounds = [np.hstack(dataclasses.astuple(DIFFICULTIES[name])) for name in ("medium", "varied", "hard")]
    # Amounts that fall from medium to hard, such as the smallest size, count as their negatives.
    medium, varied, hard = np.stack(bounds) * np.sign(bounds[2] - bounds[0])
    assert (medium < varied).all() and (varied < hard).all()
