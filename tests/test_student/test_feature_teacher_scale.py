"""Feature teachers that describe images larger or smaller than they are."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.__main__ import main
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
def test_images_are_enlarged_from_the_size_that_it_looks_at(size, scale, sides, make_pairs, monkeypatch):
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


def test_images_are_enlarged_once_to_whole_cells_of_the_coarsest_stride(monkeypatch):
    """1.25 times 56 px are 70 px: 64 or 80 in cells of 16 px."""
    for made in (NearestNeighbour, partial(StudentMatcher, width=8)):
        matcher = FeatureTeacher(made("test_resnet", [8, 16]), scale=1.25)
        seen = described_sizes(matcher, monkeypatch)
        matcher(torch.rand(1, 3, 56, 56), torch.rand(1, 3, 56, 56), torch.tensor([[[3.0, 40.0]]]))
        assert set(seen) == {(64, 64)}


def test_the_scale_is_part_of_the_fingerprint_where_it_is_not_one():
    model = NearestNeighbour("test_resnet", [8])
    plain, scaled = FeatureTeacher(model).fingerprint(), FeatureTeacher(model, scale=1.25).fingerprint()
    assert scaled == plain | {"scale": "1.25", "target_side": "50", "compared_side": "50"}


@pytest.mark.parametrize(("size", "cells"), [(128, 40), (136, 43), (160, 50), (192, 30), (256, 40)])
def test_enlarged_images_have_finer_maps_whatever_their_size(size, cells):
    """At most 40 cells a side without a scale, so 50 with 1.25: of 136 px fewer cells were left than without."""
    model, image = NearestNeighbour("resnet10t", [4]), torch.rand(1, 3, size, size)
    plain, scaled = FeatureTeacher(model, side=4), FeatureTeacher(model, side=4, scale=1.25)
    assert scaled.describe(scaled._sized(image)).shape[-1] == cells > plain.describe(image).shape[-1]


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf, None, True, "1.25"])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ConfigError, match="scale of the feature teacher as a positive number"):
        FeatureTeacher(NearestNeighbour("test_resnet", [8]), scale=scale)


def test_a_network_of_one_size_is_refused_before_it_is_trained_with_what_to_do():
    student = StudentMatcher("vit_tiny_patch16_224", [16], 8, options={"img_size": 32, "dynamic_img_size": False})
    student.check_size(32)
    with pytest.raises(
        ConfigError, match=r"48 px a side, 1\.5 times 32 px.*set self_distillation\.teacher\.scale=1\.0\.$"
    ):
        SelfDistillation(partial(FeatureTeacher, scale=1.5)).check(student, 32)
    SelfDistillation(FeatureTeacher).check(student, 32)
    assert student.training


class Patches(nn.Module):
    """A student of one's own, whose patches divide 32 px and not 40, and whose ``patch`` is a layer."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 16, 16)

    def describe(self, images):
        if images.shape[-1] % 16:
            raise ValueError("sides must be whole patches")
        return F.normalize(self.patch(images), dim=1)

    def forward(self, src_img, trg_img, src_kps): ...

    def forward_with_descriptors(self, src_img, trg_img, src_kps): ...

    def correlate(self, src_map, trg_map, src_kps, src_size, trg_size): ...


def test_a_student_of_ones_own_is_asked_by_an_image():
    own = partial(SelfDistillation, partial(FeatureTeacher, scale=1.25))
    own().check(Patches(), 64)
    with pytest.raises(ConfigError, match=r"40 px a side, 1\.25 times 32 px.*\(sides must be whole patches\)"):
        own().check(Patches(), 32)


def test_fit_asks_about_the_size_of_its_images(tmp_path, capsys):
    options = "student.options={img_size: 32, dynamic_img_size: false}"
    arguments = ["fit", "student.backbone=vit_tiny_patch16_224", "student.strides=[16]", options, "data.size=32"]
    arguments += ["self_distillation.teacher.scale=1.5", f"run.dir={tmp_path}/r", "device=cpu", "teacher=oracle"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "48 px a side, 1.5 times 32 px" in error and "self_distillation.teacher.scale=1.0" in error
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_network_of_any_size_passes_the_check():
    SelfDistillation(partial(FeatureTeacher, scale=1.25)).check(StudentMatcher("test_resnet", [8], 8), 64)
