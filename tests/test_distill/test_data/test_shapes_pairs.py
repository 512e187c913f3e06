import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from distill.core.errors import ConfigError
from distill.data.datasets.shapes import ShapesPairs
from distill.data.pairs import Query, collate_pairs
from distill.evaluation.evaluate import evaluate
from distill.matchers.box_relative import BoxRelative


def test_the_same_seed_gives_the_same_pairs_and_another_does_not():
    first, again, other = (ShapesPairs("test", 4, seed, 32)[2] for seed in (0, 0, 1))
    assert torch.equal(first.src_img, again.src_img) and torch.equal(first.trg_kps, again.trg_kps)
    assert first.src_hash == again.src_hash != other.src_hash


def test_a_report_says_which_world_and_pairs_its_figures_are_of():
    settings = {"split": "test", "n_pairs": 8, "seed": 0, "size": 32, "difficulty": "medium"}
    changes = ({}, {"split": "val"}, {"n_pairs": 9}, {"seed": 1}, {"difficulty": "hard"}, {"size": 16})
    told = [
        evaluate(BoxRelative(), ShapesPairs(**settings | change), "box", progress=False).report["pairs_fingerprint"]
        for change in changes
    ]
    assert len(set(told[:-1])) == 5 and None not in told
    assert told[0] == told[-1]  # the size says how the same pairs are seen


def test_the_same_numbers_of_another_version_of_the_world_are_other_pairs(monkeypatch):
    pairs = ShapesPairs("test", 8)
    before = pairs.fingerprint()
    monkeypatch.setattr("distill.data.datasets.shapes.pairs.WORLD_VERSION", -1)
    assert pairs.fingerprint() != before


def test_points_lie_inside_and_near_the_object():
    pairs = ShapesPairs("val", 8, 0, 48)
    for number in range(8):
        pair = pairs[number]
        for points, box in ((pair.src_kps[0], pair.src_bbox[0]), (pair.trg_kps[0], pair.trg_bbox[0])):
            assert ((points >= box[:2] - 2) & (points <= box[2:] + 2)).all()
            assert ((points >= 0) & (points <= 48)).all()


def test_images_do_not_depend_on_how_many_pairs_are_asked_for():
    few, many = ShapesPairs("train", 8, 0, 32), ShapesPairs("train", 80, 0, 32)
    assert torch.equal(few.image(3)[0].image, many.image(3)[0].image)


def test_every_image_serves_as_source_about_as_often_as_asked_for():
    pairs = ShapesPairs("train", 160, 0, 32, pairs_per_image=4).pairs
    assert len({source for source, _ in pairs}) <= 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, "data.split"),
        ({"split": "test", "n_pairs": 0}, "data.n_pairs of at least 1"),
        ({"split": "test", "n_pairs": None}, "data.n_pairs of at least 1"),
        ({"split": "test", "size": 8}, "at least 16 px"),
        ({"split": "test", "pairs_per_image": 0}, "data.pairs_per_image as a whole number of at least 1"),
        ({"split": "test", "difficulty": "hrad"}, "did you mean 'hard'"),
    ],
)
def test_settings_that_do_not_exist_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        ShapesPairs(**{"n_pairs": 4} | settings)


def test_pairs_can_be_sent_to_processes_that_share_no_memory():
    pairs = ShapesPairs("test", 4, 0, 32)
    expected = pairs[2]
    again = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(again[2].src_img, expected.src_img) and again.pairs == pairs.pairs
    loader = DataLoader(pairs, 2, collate_fn=collate_pairs, num_workers=1, multiprocessing_context="spawn")
    batches = list(loader)
    assert torch.equal(batches[1].trg_img[0], expected.trg_img[0])


@pytest.mark.parametrize("difficulty", ["medium", "hard"])
def test_what_labels_a_pair_has_is_known_without_rendering_it(difficulty, monkeypatch):
    rendered = ShapesPairs("val", 24, 0, 32, difficulty)
    expected = [Query.of(rendered[number]) for number in range(24)]
    monkeypatch.setattr("distill.data.datasets.shapes.pairs.render", lambda *_: pytest.fail("rendered"))
    pairs = ShapesPairs("val", 24, 0, 224, difficulty)
    for number in range(24):
        found = pairs.query(number)
        assert (found.src, found.trg) == (expected[number].src, expected[number].trg)
        np.testing.assert_allclose(found.points, expected[number].points, atol=1e-6)


def test_the_box_of_a_source_is_that_of_its_rendering():
    pairs = ShapesPairs("val", 3, 0, 32)
    np.testing.assert_allclose(pairs.source_box(2) * 32, pairs[2].src_bbox[0], atol=1e-5)
