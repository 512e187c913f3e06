"""The nearest neighbour by hard cells, and by maps enlarged to the image."""

import pytest
import torch
from torch.nn import functional as F

from distill.cli.config import compose, instantiate
from distill.core.geometry import cell_centres, sample_at
from student import NearestNeighbour

IMAGES = torch.rand(2, 2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
POINTS = torch.tensor([[[10.0, 20.0], [50.5, 31.25], [96.0, 64.0]], [[0.0, 0.0], [70.0, 3.0], [33.0, 60.0]]])


@pytest.mark.parametrize("strides", [[16], [8, 16]])
def test_enlarged_descriptors_are_compared_at_every_pixel(strides):
    matcher = NearestNeighbour("test_resnet", strides, enlarge=True)
    found = matcher(*IMAGES, POINTS)
    src_map, trg_map = matcher.describe(IMAGES.flatten(0, 1)).split(2)
    queries = F.normalize(sample_at(src_map, POINTS, (64, 96)), dim=-1)
    large = F.normalize(F.interpolate(trg_map, (64, 96), mode="bilinear", align_corners=False), dim=1)
    cosines = torch.einsum("bnc,bchw->bnhw", queries, large)
    best, place = cosines.flatten(2).max(-1)
    centres = cell_centres((64, 96), (64, 96), POINTS).flatten(0, 1)
    reached = cosines.flatten(2).gather(
        -1, (found.trg_kps[..., 1].long() * 96 + found.trg_kps[..., 0].long())[..., None]
    )
    torch.testing.assert_close(reached[..., 0], best, rtol=0, atol=1e-6)
    assert (found.trg_kps == centres[place]).all(-1).float().mean() > 0.8, "other than by rounding"
    torch.testing.assert_close(found.confidence, (1 + best) / 2)
    assert found.heatmap.shape == NearestNeighbour("test_resnet", strides)(*IMAGES, POINTS).heatmap.shape


def test_a_point_is_found_again_in_its_own_image_to_the_pixel():
    hard, enlarged = (NearestNeighbour("test_resnet", [8], enlarge=enlarge) for enlarge in (False, True))
    points = torch.tensor([[[17.5, 22.5], [46.5, 49.5]]])
    image = IMAGES[0, :1]
    assert (enlarged(image, image, points).trg_kps - points).norm(dim=-1).max() < 1
    assert (hard(image, image, points).trg_kps - points).norm(dim=-1).max() > 1


def test_no_points_get_no_answers():
    found = NearestNeighbour("test_resnet", [16], enlarge=True)(IMAGES[0], IMAGES[1], torch.zeros(2, 0, 2))
    assert found.trg_kps.shape == (2, 0, 2) and found.confidence.shape == (2, 0)


def test_a_fingerprint_tells_what_no_weight_does():
    options = {}, {"pad_type": "same"}, {"act_layer": "relu"}
    matchers = [NearestNeighbour("test_efficientnet", [16], options=given) for given in options]
    weights = {matcher.fingerprint()["weights"] for matcher in matchers}
    answers = [matcher(*IMAGES, POINTS).heatmap for matcher in matchers]
    assert len(weights) == 1 and not torch.equal(answers[0], answers[1]) and not torch.equal(answers[0], answers[2])
    told = [matcher.fingerprint() for matcher in matchers]
    assert "options" not in told[0] and len({str(one) for one in told}) == 3


def test_enlarging_is_a_setting_of_the_matcher():
    changes = ["matcher=nearest_neighbour", "matcher.backbone=test_resnet", "matcher.enlarge=true"]
    assert instantiate(compose("evaluate", changes).matcher).enlarge
    assert not instantiate(compose("evaluate", changes[:2]).matcher).enlarge


@pytest.mark.parametrize("enlarge", [False, True])
def test_with_flip_the_nearer_of_target_and_flipped_target_answers(enlarge):
    plain, flipping = (NearestNeighbour("test_resnet", [8], enlarge=enlarge, flip=flip) for flip in (False, True))
    assert flipping.fingerprint() == plain.fingerprint() | {"flip": "True"}
    image, points = IMAGES[0, :1], POINTS[:1]
    found, back = flipping(image, image.flip(-1), points), flipping(image, image, points)
    torch.testing.assert_close(back, plain(image, image, points))
    answer = plain(image, image, points)  # the flipped target is the image itself
    torch.testing.assert_close(found.trg_kps[..., 0], 96 - answer.trg_kps[..., 0])
    torch.testing.assert_close(found.trg_kps[..., 1], answer.trg_kps[..., 1])
    torch.testing.assert_close(found.heatmap, answer.heatmap.flip(-1))
    torch.testing.assert_close(found.confidence, answer.confidence)


def test_each_pair_of_a_batch_is_flipped_or_not_by_itself():
    matcher = NearestNeighbour("test_resnet", [8], flip=True)
    images = IMAGES[0]
    together = matcher(images, torch.stack([images[0].flip(-1), images[1]]), POINTS)
    alone = [matcher(images[:1], images[:1].flip(-1), POINTS[:1]), matcher(images[1:], images[1:], POINTS[1:])]
    torch.testing.assert_close(together.trg_kps, torch.cat([one.trg_kps for one in alone]))


def test_a_shift_is_found_at_a_size_that_the_stride_does_not_divide():
    """92 px are 12 cells of 8 px after resizing to 96; 12 cells, the last half beyond the border, were read as 92 px."""
    blocks = torch.rand(1, 3, 23, 38, generator=torch.Generator().manual_seed(3))
    scene = F.interpolate(blocks, (92, 152), mode="bilinear")
    moved, image = scene[..., 46:138], scene[..., :92]  # by six cells
    x, y = torch.meshgrid(torch.arange(16.0, 36, 4), torch.arange(20.0, 81, 10), indexing="xy")
    points = torch.stack([x, y], -1).view(1, -1, 2)
    matcher = NearestNeighbour("test_resnet", [8], enlarge=True)
    found = matcher(moved, image, points).trg_kps - points
    assert matcher.describe(image).shape[-2:] == (12, 12)
    assert abs(found[..., 0].median() - 46) < 0.75 and abs(found[..., 1].median()) < 0.75  # 1.9 px short before
