"""Which crops prompts are shown."""

import numpy as np
import pytest
import torch

from teacher.crop_sampling import CORNERS, PoolCropSampler, RandomCropSampler, crop_boxes
from teacher.settings import Settings


@pytest.mark.parametrize("edges", ["exact", "pixels"])
def test_a_fresh_crop_keeps_the_point_off_its_border_and_stays_inside(edges):
    settings = Settings(crop_source="fresh", crop_edges=edges, crop_ratio=0.6, queries="conditioned")
    names = [("n", row) for row in range(40)]
    sampler = RandomCropSampler(64, names, settings, torch.device("cpu"), 1)
    points = torch.rand(40, 1, 2, generator=torch.Generator().manual_seed(0))
    boxes = sampler.at(points).boxes
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all()
    inside = (points[:, 0] - boxes[:, :2]) / boxes[:, 2:]
    central = ((points[:, 0] > 0.15) & (points[:, 0] < 0.85)).all(1)
    assert central.sum() > 10 and (inside[central] >= 0.15 - 0.04).all() and (inside[central] <= 0.85 + 0.04).all()
    if edges == "pixels":
        assert torch.equal((boxes * 64).round(), boxes * 64) and (boxes[:, 2] * 64 == 38).all()
    corners = torch.stack(
        [RandomCropSampler(64, [("n",)], settings, torch.device("cpu"), 1).numbered(c).boxes[0] for c in CORNERS]
    )
    free = 1 - float(boxes[0, 2])
    np.testing.assert_allclose(corners[:, :2], [[0, 0], [free, 0], [0, free], [free, free]], atol=1e-6)


def test_a_prompt_is_shown_no_crop_of_the_pool_twice_while_it_is_localised():
    boxes = crop_boxes(4, 0.9, torch.Generator().manual_seed(0))
    sampler = PoolCropSampler(boxes, [("locate",)] * 2, Settings(), draws=None)
    points = torch.full((2, 1, 2), 0.5)
    seen = torch.stack([sampler.at(points).crop_of for _ in range(len(boxes))])  # type: ignore[misc]
    assert all(len(set(column.tolist())) == len(boxes) for column in seen.T)


def test_a_samplers_numbers_depend_on_a_prompts_own_name_only():
    boxes, settings = crop_boxes(4, 0.9, torch.Generator().manual_seed(0)), Settings()
    names = [("crops", row) for row in range(3)]
    points = torch.full((3, 1, 2), 0.5)
    together = PoolCropSampler(boxes, names, settings, draws=6)
    alone = PoolCropSampler(boxes, names[1:2], settings, draws=9)
    drawn, again = together.plan(points).crop_of, alone.plan(points[:1]).crop_of
    assert torch.equal(drawn[:, 1], again[:6, 0]) and len(set(drawn[:, 1].tolist())) > 1
    assert (drawn != 0).all(), "the whole image is not among them"


def test_crops_that_are_planned_are_those_that_are_drawn_one_by_one():
    settings = Settings(crop_source="fresh", queries="conditioned")
    names, points = [("n", row) for row in range(3)], torch.rand(3, 1, 2, generator=torch.Generator().manual_seed(0))
    planned, one_by_one = (RandomCropSampler(64, names, settings, torch.device("cpu"), 4) for _ in range(2))
    boxes = planned.plan(points).boxes
    assert torch.equal(boxes, torch.stack([one_by_one.at(points).boxes for _ in range(4)]))


def test_prompts_of_several_images_are_shown_crops_of_their_own():
    pools = torch.stack([crop_boxes(4, ratio, torch.Generator().manual_seed(0)) for ratio in (0.5, 0.8)])
    names, points = [("crops", row) for row in range(3)], torch.full((3, 1, 2), 0.5)
    together = PoolCropSampler(pools[[0, 1, 1]], names, Settings(), draws=5).plan(points)
    for row, pool in enumerate(pools[[0, 1, 1]]):
        alone = PoolCropSampler(pool, names[row : row + 1], Settings(), draws=5).plan(points[:1])
        assert torch.equal(together.boxes[:, row], alone.boxes[:, 0])
