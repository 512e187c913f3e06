"""Both an image and its flip are described, and the similarities averaged."""

import pytest
import torch
from torch.nn import functional as F

from distill.core.geometry import flip_points
from student import StudentMatcher
from student.flip_test import join, of_flipped, of_images


@pytest.fixture
def two_maps():
    torch.manual_seed(0)
    return [[F.normalize(torch.randn(2, 5, 6, 8), dim=1) for _ in ("own", "of the flip")] for _ in ("source", "target")]


def test_the_cosine_of_joined_descriptors_is_the_mean_of_both(two_maps):
    (own, flipped), (other, other_flipped) = two_maps
    one, two = join(own, flipped), join(other, other_flipped)
    for y in range(6):
        for x in range(8):
            mean = ((own * other)[0, :, y, x].sum() + (flipped * other_flipped)[0, :, y, 7 - x].sum()) / 2
            torch.testing.assert_close((one * two)[0, :, y, x].sum(), mean)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(2, 6, 8))


def test_the_flipped_images_map_is_that_of_its_descriptors_and_is_undone_by_another_flip(two_maps):
    own, flipped = two_maps[0]
    joined = join(own, flipped)
    torch.testing.assert_close(of_flipped(joined), join(flipped, own), atol=0, rtol=0)
    torch.testing.assert_close(of_flipped(of_flipped(joined)), joined, atol=0, rtol=0)
    torch.testing.assert_close(of_images(joined), own)


@pytest.fixture
def query(make_pairs):
    pair = make_pairs(3, size=64)
    return pair.src_img, pair.trg_img, pair.src_kps


def student(**options) -> StudentMatcher:
    torch.manual_seed(0)
    return StudentMatcher("test_resnet", [8, 16], 8, **options).eval()


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_with_consensus_flipping_both_images_flips_the_answer(query, tolerance):
    src, trg, points = query
    matcher = student(consensus=3.0, consensus_tolerance=tolerance)
    with torch.no_grad():
        answer, again = matcher(src, trg, points), matcher(src.flip(-1), trg.flip(-1), flip_points(points, (64, 64)))
        plain = [student()(src, trg, points), student()(src.flip(-1), trg.flip(-1), flip_points(points, (64, 64)))]
    torch.testing.assert_close(again.heatmap.flip(-1), answer.heatmap, atol=1e-3, rtol=1e-3)
    assert float((plain[1].heatmap.flip(-1) - plain[0].heatmap).abs().max()) > 0.1  # the network tells left from right


def test_points_are_scored_by_the_mean_of_images_and_flipped_images(query):
    src, trg, points = query
    matcher = student(consensus=1e-12)  # of no weight, but images are described as with it
    with torch.no_grad():
        found = matcher(src, trg, points).heatmap
        maps = [matcher.describe(image) for image in (src, trg, src.flip(-1), trg.flip(-1))]
        joined = torch.cat([maps[0], maps[2].flip(-1)], 1), torch.cat([maps[1], maps[3].flip(-1)], 1)
        cell = F.grid_sample(joined[0], (points / 32 - 1)[:, :, None], align_corners=False, padding_mode="border")
        wanted = F.normalize(cell[..., 0].transpose(1, 2), dim=-1) @ joined[1].flatten(2) / 2**0.5
    torch.testing.assert_close(found.flatten(2), wanted / matcher.log_temperature.exp(), atol=1e-3, rtol=1e-3)


def test_training_and_students_without_consensus_describe_an_image_once(query):
    plain, training = student(), student(consensus=3.0).train()
    with torch.no_grad():
        for matcher in (plain, training):
            images = query[0]
            matcher.backbone.eval(), matcher.fusion.eval()
            torch.testing.assert_close(matcher.encode(images), matcher.describe(images))
        voting = student(consensus=3.0)
        answer, src_map, trg_map = voting.forward_with_descriptors(*query)
        assert voting.encode(query[0]).shape[1] == 2 * voting.describe(query[0]).shape[1]
        torch.testing.assert_close(src_map, voting.describe(query[0]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(trg_map, voting.describe(query[1]), atol=1e-5, rtol=1e-5)
