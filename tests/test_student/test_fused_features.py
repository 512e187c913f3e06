"""Features of several networks, joined."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.cli.config import compose, instantiate
from distill.core.errors import ConfigError, DataError
from student import FeatureTeacher, FusedFeatures, NearestNeighbour


class Fixed(nn.Module):
    """Describes every image by the same random map."""

    def __init__(self, channels: int, cells: int, seed: int) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        self.register_buffer("map", F.normalize(torch.randn(channels, cells, cells, generator=random), dim=0))
        self.sizes: list[tuple[int, int]] = []

    def describe(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return self.map.expand(len(images), -1, -1, -1)


class Outside:
    """Features of something that is no torch module and has a fingerprint of its own."""

    def __init__(self, version: str = "1") -> None:
        self.version = version

    def describe(self, images):
        return F.normalize(F.adaptive_avg_pool2d(images, 8) - 0.45, dim=1)

    def fingerprint(self):
        return {"method": f"outside {self.version}"}


def test_cosines_are_weighed_by_the_squares_of_the_weights():
    a, b = Fixed(5, 4, 0), Fixed(7, 4, 1)
    found = FusedFeatures({"a": a, "b": b}, {"a": 3.0, "b": 0.5}).describe(torch.rand(2, 3, 16, 16))
    assert found.shape == (2, 12, 4, 4)
    flat, first, second = found[0].flatten(1), a.map.flatten(1), b.map.flatten(1)
    for i in range(16):
        for j in range(16):
            of_a, of_b = float(first[:, i] @ first[:, j]), float(second[:, i] @ second[:, j])
            expected = (9 * of_a + 0.25 * of_b) / 9.25
            assert float(flat[:, i] @ flat[:, j]) == pytest.approx(expected, abs=1e-5)


def test_maps_are_brought_to_the_finest_grid_and_images_to_a_sources_own_size():
    a, b = Fixed(5, 4, 0), Fixed(7, 8, 1)
    fused = FusedFeatures({"a": a, "b": b}, sizes={"b": 24})
    found = fused.describe(torch.rand(1, 3, 16, 20))
    assert found.shape == (1, 12, 8, 8) and (a.sizes, b.sizes) == ([(16, 20)], [(24, 24)])
    torch.testing.assert_close(found.square().sum(1), torch.ones(1, 8, 8))
    coarse = F.normalize(F.interpolate(a.map[None], (8, 8), mode="bilinear", align_corners=False), dim=1)
    torch.testing.assert_close(found[:, :5] * 2**0.5, coarse)


def test_one_source_answers_as_it_does_alone():
    images, points = torch.rand(2, 1, 3, 64, 64), torch.tensor([[[20.0, 30.0], [40.0, 12.0]]])
    alone = FeatureTeacher(NearestNeighbour("test_resnet", [16]), side=8)
    fused = FeatureTeacher(FusedFeatures({"only": NearestNeighbour("test_resnet", [16]), "off": None}), side=8)
    for first, second in zip(alone(*images, points), fused(*images, points), strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
    assert alone.n_parameters == fused.n_parameters > 0


def test_images_are_looked_at_in_the_size_that_the_sources_want():
    sources = {"a": Fixed(5, 4, 0), "b": Fixed(7, 8, 1)}
    assert FeatureTeacher(FusedFeatures(sources, sizes={"a": 24, "b": 32})).size == 32
    assert FeatureTeacher(FusedFeatures(sources)).size is None
    assert FeatureTeacher(FusedFeatures(sources, sizes={"a": 24}), size=48).size == 48


def test_a_weight_or_a_size_of_null_is_none_at_all():
    """So that a recipe's can be taken back from the command line."""
    sources = {"a": Fixed(5, 4, 0), "b": Fixed(7, 8, 1)}
    told = compose("fit", ["experiment=spair71k_fused", "teacher.model.sizes.diffusion=null", "data.root=/nowhere"])
    assert told.teacher.model.sizes == {"diffusion": None, "backbone": 840}
    assert compose("evaluate", ["matcher=fused", "matcher.model.weights.diffusion=null"])
    taken_back = FusedFeatures(sources, weights={"a": None, "b": 2.0}, sizes={"a": None})
    assert taken_back.fingerprint() == FusedFeatures(sources, weights={"b": 2.0}).fingerprint()


def test_everything_that_decides_a_description_is_in_the_fingerprint():
    def fingerprint(version="1", seed=0, **options):
        sources = {"a": Outside(version), "b": NearestNeighbour("test_resnet", [16], seed=seed)}
        return FeatureTeacher(FusedFeatures(sources, **options)).fingerprint()

    plain = fingerprint()
    others = [fingerprint("2"), fingerprint(seed=1), fingerprint(weights={"a": 2.0}), fingerprint(sizes={"b": 32})]
    assert fingerprint() == plain and all(isinstance(value, str) for value in plain.values())
    assert len({str(sorted(each.items())) for each in [plain, *others]}) == 5


@pytest.mark.parametrize(
    ("sources", "options", "message"),
    [
        ({}, {}, "at least one source"),
        ({"a": None}, {}, "at least one source"),
        ({"a": nn.Identity()}, {}, "a has no method describe"),
        ({"a": Outside()}, {"weights": {"b": 1.0}}, "weights of fused features by the names of sources; .*a"),
        ({"a": Outside()}, {"weights": {"a": 0.0}}, "positive weights .* a has 0"),
        ({"a": Outside()}, {"weights": {"a": "1"}}, "positive weights .* a has '1'"),
        ({"a": Outside()}, {"sizes": {"a": -3}}, "positive sizes .* a has -3"),
        ({"a": Outside()}, {"sizes": {"a": 1.5}}, "sizes of fused features as whole px but a has 1.5"),
        (None, {}, "at least one source"),
    ],
)
def test_sources_weights_and_sizes_that_cannot_work_are_named(sources, options, message):
    with pytest.raises(ConfigError, match=message):
        FusedFeatures(sources, **options)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.ones(5, 4, 4), r"features \(2, C, h, w\) of 2 images from the source odd but got \(5, 4, 4\)"),
        (torch.ones(1, 5, 4, 4), r"but got \(1, 5, 4, 4\)"),
        (None, "but got NoneType"),
        (torch.full((2, 5, 4, 4), torch.nan), "finite features from the source odd but got NaN"),
    ],
)
def test_a_source_that_describes_wrongly_is_named(answer, message):
    odd = Outside()
    odd.describe = lambda images: answer  # type: ignore[method-assign]
    with pytest.raises(DataError, match=message):
        FusedFeatures({"keys": Fixed(5, 4, 0), "odd": odd}).describe(torch.rand(2, 3, 16, 16))


def test_a_source_without_a_fingerprint_is_named():
    class Nameless:
        describe = Outside.describe

    with pytest.raises(ConfigError, match="with a fingerprint, or a torch.nn.Module, but got Nameless"):
        FeatureTeacher(FusedFeatures({"a": Nameless()})).fingerprint()


def test_diffusion_features_and_a_backbone_are_fused_by_the_configuration(make_pairs):
    config = compose(
        "fit",
        [
            "teacher=fused",
            "device=cpu",
            "student.backbone=test_resnet",
            "teacher.model.sources.diffusion.draws=0",
            "teacher.side=8",
        ],
    )
    teacher = instantiate(config.teacher)
    pair = make_pairs(2, size=64)
    answer = teacher.match_pairs(pair._replace(trg_img=pair.src_img, trg_hash=pair.src_hash))
    assert (answer.trg_kps - pair.src_kps).abs().max() < 8, "an image matches itself"
    told = teacher.fingerprint()
    assert (
        told["model.diffusion.method"].startswith("diffusion_features")
        and told["model.backbone.backbone"] == "test_resnet"
    )
