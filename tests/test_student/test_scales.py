"""Images described at several scales."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from distill.core.errors import ConfigError
from distill.export.graph import OPSET
from student import FeatureTeacher, FusedFeatures, NearestNeighbour, StudentMatcher
from student.backbone import Backbone


def halved(image: np.ndarray) -> np.ndarray:
    """Returns an image (3, H, W) at half its sides: each pixel the mean of 4 x 4, with weights 1, 3, 3, 1 along each axis."""

    def along_last(values: np.ndarray) -> np.ndarray:
        side, result = values.shape[-1], []
        for place in range(side // 2):
            taken = [(2 * place - 1 + k, weight) for k, weight in enumerate((1, 3, 3, 1))]
            taken = [(pixel, weight) for pixel, weight in taken if 0 <= pixel < side]
            result.append(sum(w * values[..., p] for p, w in taken) / sum(w for _, w in taken))
        return np.stack(result, -1)

    return along_last(along_last(image).swapaxes(-1, -2)).swapaxes(-1, -2)


@pytest.fixture(scope="module")
def backbones():
    def made(**options):
        torch.manual_seed(0)
        return Backbone("test_resnet", [8, 16], **options).eval()

    return made(), made(scales=[1.0, 0.5])


def test_maps_of_both_scales_are_those_of_the_image_and_of_its_half_finest_first(backbones):
    plain, scaled = backbones
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    half = torch.from_numpy(halved(image[0].double().numpy())).float()[None]
    with torch.no_grad():
        (fine, coarse), (half_fine, half_coarse), found = plain(image), plain(half), scaled(image)
    assert scaled.strides == (8, 16, 16, 32) and scaled.channels == tuple(m.shape[1] for m in found)
    for expected, got in zip((fine, coarse, half_fine, half_coarse), found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scaled_on_a_processor_too(backbones, dtype):
    scaled, image = copy.deepcopy(backbones[1]).to(dtype), torch.rand(1, 3, 64, 64, dtype=dtype)
    with torch.no_grad():
        found, expected = scaled(image), backbones[1](image.float())
    for half, full in zip(found, expected, strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), full, atol=0.1 * full.abs().max().item(), rtol=0.1)


def test_a_transformer_sees_whole_patches_at_every_scale():
    torch.manual_seed(0)
    backbone = Backbone("test_vit", [16], scales=[1.0, 0.6], debias=5).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(4, 6), (2, 4)]  # 0.6 of 4 and 6 patches is 2.4 and 3.6


def test_a_network_of_several_strides_sees_whole_cells_at_every_scale(backbones):
    plain, scaled = backbones
    with torch.no_grad():
        sides = [tuple(m.shape[-2:]) for m in plain(torch.rand(1, 3, 70, 90)) + scaled(torch.rand(1, 3, 70, 90))]
    assert sides == [(8, 12), (4, 6), (8, 12), (4, 6), (4, 6), (2, 3)]  # 64 x 96 px, and 32 x 48 for 35 x 45
    assert plain.resamples((70, 64)) and not plain.resamples((64, 96))
    assert scaled.resamples((48, 48)) and not scaled.resamples((64, 96))
    assert not Backbone("test_vit", [16], scales=[1.0, 0.6]).resamples((64, 64))


def test_a_network_whose_cells_do_not_cover_the_image_is_refused():
    pytest.importorskip("timm", minversion="1.0.31", reason="older releases say other strides of this network")
    backbone = Backbone("pit_ti_224", [8, 16])
    with pytest.raises(
        ConfigError, match="maps of pit_ti_224 whose cells cover the image, 8 px each .* got 27 x 27 cells of 224"
    ):
        backbone(torch.rand(1, 3, 224, 224))


def test_labels_of_sizes_that_are_rounded_are_another_teachers():
    def cells(size, **options):
        model = NearestNeighbour("test_resnet", [8, 16], **options)
        fused = FusedFeatures({"one": model}, sizes={"one": size})
        found = {
            FeatureTeacher(model, size=size).fingerprint().get("cells"),
            FeatureTeacher(fused).fingerprint().get("cells"),
        }
        return found.pop() if len(found) == 1 else found

    assert cells(64) is None and cells(72) == "whole"
    assert cells(160, scales=[1.0, 0.6]) is None and cells(64, scales=[1.0, 0.6]) == "whole"


def test_scales_add_no_weights_and_decide_the_fingerprint(backbones):
    plain, scaled = backbones
    assert plain.state_dict().keys() == scaled.state_dict().keys()
    told = [NearestNeighbour("test_resnet", [16], **options).fingerprint() for options in ({}, {"scales": [1.0, 0.5]})]
    assert "scales" not in told[0] and told[0] != told[1]
    teachers = [
        FeatureTeacher(NearestNeighbour("test_resnet", [16], scales=[1.0, s])).fingerprint() for s in (0.5, 0.6)
    ]
    assert teachers[0] != teachers[1]


def test_the_student_joins_the_maps_of_all_scales():
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8, 16], 6, backbone_skip=True, scales=[1.0, 0.5]).eval()
    with torch.no_grad():
        maps = student.describe(torch.rand(1, 3, 64, 64))
    assert maps.shape == (1, 6 + sum(student.backbone.channels), 8, 8) and len(student.fusion.lateral) == 4


class Smaller(nn.Module):
    """The part of a backbone that makes an image smaller; all behind it is exported without scales, too."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.backbone._scaled(images, 0.6)


def test_an_image_is_made_smaller_in_onnx_as_in_torch(backbones, tmp_path):
    smaller, image = Smaller(backbones[1]).eval(), torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(2))
    torch.onnx.export(smaller, (image,), dynamo=True, verbose=False).save(tmp_path / "smaller.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "smaller.onnx").run(None, {"images": image.numpy()})
    assert found.shape == (1, 3, 32, 48)  # whole cells of 16 px
    np.testing.assert_allclose(found, smaller(image).numpy(), atol=1e-5)


class Describing(nn.Module):
    """The part of a student that scales concern."""

    def __init__(self, student: StudentMatcher) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.student.describe(images)


def test_a_transformer_of_several_scales_is_exported(tmp_path):
    torch.manual_seed(0)
    student, images = StudentMatcher("test_vit", [16], 8, scales=[1.0, 0.5]).eval(), torch.rand(2, 3, 64, 64)
    student.freeze_for_export(64)
    describe = Describing(student)
    free = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), "opset_version": OPSET}
    torch.onnx.export(describe, (images,), dynamo=True, verbose=False, **free).save(tmp_path / "maps.onnx")
    (found,) = onnxruntime.InferenceSession(tmp_path / "maps.onnx").run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, describe(images).detach().numpy(), atol=1e-4)


def test_a_transformer_of_one_scale_is_fixed_at_the_size_that_it_sees():
    torch.manual_seed(0)
    student, image = StudentMatcher("test_vit", [16], 8, scales=[0.5]).eval(), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = student.describe(image)
        student.freeze_for_export(64)
        torch.testing.assert_close(student.describe(image), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scales", [[], [0.0], [1.5], [-0.5, 1.0], [float("nan")], [1.0, 1.0]])
def test_scales_that_are_none_are_refused(scales):
    with pytest.raises(ConfigError, match="scales of the backbone above 0, of at most 1, each once"):
        Backbone("test_resnet", [16], scales=scales)
