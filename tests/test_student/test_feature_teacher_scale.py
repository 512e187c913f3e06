"""Feature teachers that describe images larger or smaller than they are."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.training.callbacks.self_distillation import SelfDistillation
from student import FeatureTeacher, NearestNeighbour, StudentMatcher


def described_sizes(matcher: FeatureTeacher, monkeypatch) -> list[tuple[int, int]]:
    """Returns a list to which the (H, W) of all images that are described are added."""
    seen, describe = [], matcher.model.describe
    monkeypatch.setattr(matcher.model, "describe", lambda images: (seen.append(images.shape[-2:]), describe(images))[1])
    return seen


def test_answers_are_those_for_the_larger_images(make_pairs):
    pair, model = make_pairs(2, size=64), NearestNeighbour("test_resnet", [8])
    found = FeatureTeacher(model, side=8, scale=1.5)(pair.src_img, pair.trg_img, pair.src_kps)
    larger = [
        F.interpolate(image, (96, 96), mode="bilinear", align_corners=False) for image in (pair.src_img, pair.trg_img)
    ]
    expected = FeatureTeacher(model, side=8)(*larger, 1.5 * pair.src_kps)
    assert found.heatmap.shape[-1] == 12
    torch.testing.assert_close(1.5 * found.trg_kps, expected.trg_kps, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.confidence, expected.confidence, atol=1e-4, rtol=1e-3)
    # Memorised descriptors are those of the larger images, too, but for half precision.
    cached = FeatureTeacher(model, side=8, scale=1.5).match_pairs(pair)
    torch.testing.assert_close(cached.trg_kps, found.trg_kps, atol=0.1, rtol=0)


@pytest.mark.parametrize(("size", "scale", "sides"), [(None, 1.25, (80, 80)), (48, 1.5, (72, 72)), (48, 1, (48, 48))])
def test_a_fraction_is_one_of_the_size_that_it_looks_at(size, scale, sides, make_pairs, monkeypatch):
    pair, matcher = make_pairs(1, size=64), FeatureTeacher(NearestNeighbour("test_resnet", [8]), size=size, scale=scale)
    seen = described_sizes(matcher, monkeypatch)
    matcher(pair.src_img, pair.trg_img, pair.src_kps)
    assert set(seen) == {sides}


def test_images_that_are_not_square_keep_their_shape(monkeypatch):
    matcher = FeatureTeacher(NearestNeighbour("test_resnet", [8]), scale=1.25)
    seen = described_sizes(matcher, monkeypatch)
    matcher(torch.rand(1, 3, 64, 32), torch.rand(1, 3, 32, 64), torch.tensor([[[3.0, 40.0]]]))
    assert set(seen) == {(80, 40), (40, 80)}


@pytest.mark.parametrize("made", [NearestNeighbour, partial(StudentMatcher, width=8)])
def test_a_transformer_is_given_whole_patches(made, make_pairs, monkeypatch):
    pair, matcher = make_pairs(1, size=64), FeatureTeacher(made("test_vit", [16]), scale=1.3)
    seen = described_sizes(matcher, monkeypatch)
    answer = matcher(pair.src_img, pair.trg_img, pair.src_kps)
    assert set(seen) == {(80, 80)} and answer.heatmap.shape[-1] == 5  # 1.3 of 4 patches is 5.2


def test_the_scale_is_part_of_the_fingerprint_where_it_is_not_one():
    model = NearestNeighbour("test_resnet", [8])
    plain, scaled = FeatureTeacher(model).fingerprint(), FeatureTeacher(model, scale=1.25).fingerprint()
    assert scaled == plain | {"scale": "1.25"}


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ConfigError, match=r"positive amounts in the feature teacher but got \{'scale': "):
        FeatureTeacher(NearestNeighbour("test_resnet", [8]), scale=scale)


def test_a_network_of_one_size_is_refused_before_it_is_trained_with_what_to_do():
    student = StudentMatcher("vit_tiny_patch16_224", [16], 8, options={"img_size": 32, "dynamic_img_size": False})
    student.check_size(32)
    with pytest.raises(
        ConfigError, match=r"48 px a side, 1.5 times their 32 px.*self_distillation\.teacher\.scale=1\.0"
    ):
        SelfDistillation(partial(FeatureTeacher, scale=1.5)).check(student, 32)
    SelfDistillation(FeatureTeacher).check(student, 32)
    assert student.training


def test_a_network_of_any_size_passes_the_check():
    SelfDistillation(partial(FeatureTeacher, scale=1.25)).check(StudentMatcher("test_resnet", [8], 8), 64)
