import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_heatmap
from distill.core.protocols import DescribesAhead, Fingerprinted, PairMatcher
from distill.core.tensor_cache import GIB, tensor_bytes
from distill.data.pairs import collate_pairs, select_pairs
from distill.matchers.memoized import MemoizedMatcher
from student import FeatureTeacher, NearestNeighbour, StudentMatcher
from student.feature_teacher import DESCRIBED_TOGETHER


class Colours(nn.Module):
    """Describes a picture by its averaged colours: coarse, but exactly known, and the same for flipped images."""

    def __init__(self, cells: int = 16) -> None:
        super().__init__()
        self.cells = cells

    def describe(self, images):
        return F.normalize(F.adaptive_avg_pool2d(images, self.cells) - 0.45, dim=1)


def blob_picture(places, size=64):
    """Three blobs, red, green and blue, at places (3, 2)."""
    blobs = gaussian_heatmap(torch.as_tensor(places, dtype=torch.float32)[None], (size, size), (size, size), 5.0)
    return 0.4 + 0.6 * blobs


def teacher(**options) -> FeatureTeacher:
    return FeatureTeacher(Colours(), **{"side": 16, "sigma_cells": 1.5, "consensus": 1.0} | options)


@pytest.mark.parametrize("flipped", [False, True])
def test_blobs_are_found_in_a_shifted_picture_and_in_its_flipped_image(flipped):
    places = torch.tensor([[20.0, 20.0], [40.0, 24.0], [28.0, 44.0]])
    truth = places + torch.tensor([4.0, 6.0])
    source, target = blob_picture(places), blob_picture(truth)
    if flipped:
        target, truth = target.flip(-1), torch.stack([64 - truth[:, 0], truth[:, 1]], -1)
    answer = teacher()(source, target, places[None])
    assert float((answer.trg_kps[0] - truth).norm(dim=-1).max()) < 4
    assert float(answer.confidence.min()) > 0.8
    torch.testing.assert_close(answer.heatmap.sum((-2, -1)), torch.ones(1, 3))


def test_pairs_of_a_batch_do_not_meddle_with_each_other():
    places = torch.tensor([[20.0, 20.0], [40.0, 24.0], [28.0, 44.0]])
    source, shifted = blob_picture(places), blob_picture(places + 5)
    sources, targets = torch.cat([source, shifted, source]), torch.cat([shifted, source.flip(-1), source])
    points = torch.stack([places, places + 5, places.flip(0)])
    together = teacher()(sources, targets, points)
    for row in range(3):
        alone = teacher()(sources[row : row + 1], targets[row : row + 1], points[row : row + 1])
        for field, single in zip(together, alone, strict=True):
            torch.testing.assert_close(field[row], single[0], atol=1e-4, rtol=1e-4)


def test_finer_cells_of_the_target_make_finer_answers():
    places = torch.tensor([[20.0, 20.0], [40.0, 24.0], [28.0, 44.0]])
    truth = places + torch.tensor([3.0, 5.0])

    def error(target_side: int) -> float:
        matcher = FeatureTeacher(Colours(32), side=8, target_side=target_side, sigma_cells=1.0)
        answer = matcher(blob_picture(places), blob_picture(truth), places[None])
        assert answer.heatmap.shape[-1] == target_side
        return float((answer.trg_kps[0] - truth).norm(dim=-1).mean())

    assert error(32) < 1.0 < error(8)


def test_a_part_that_the_target_has_not_gets_little_confidence():
    places = torch.tensor([[16.0, 16.0], [48.0, 20.0], [20.0, 48.0]])
    source, target = blob_picture(places), blob_picture(places)
    target[:, 1] = 0.4  # no green any more
    confidence = teacher(consensus=0.0)(source, target, places[None]).confidence[0]
    assert confidence[1] < 0.5 < min(confidence[0], confidence[2])


def test_each_image_is_described_once(make_pairs):
    counted = []

    class Counting(Colours):
        def describe(self, images):
            counted.append(len(images))
            return super().describe(images)

    pair = make_pairs(3, size=64)
    matcher = FeatureTeacher(Counting(), side=16)
    first, second = matcher.match_pairs(pair), matcher.match_pairs(pair)
    assert sum(counted) == 4  # two images and the flipped ones
    torch.testing.assert_close(first.trg_kps, second.trg_kps)
    assert isinstance(matcher, PairMatcher) and isinstance(matcher, Fingerprinted)


def test_the_memory_for_images_is_bounded(make_pairs):
    counted = []

    class Counting(Colours):
        def describe(self, images):
            counted.append(len(images) // 2)
            return super().describe(images)

    first, second = make_pairs(1, size=64, seed=0), make_pairs(1, size=64, seed=1)
    image = FeatureTeacher(Colours(), side=16).describe(first.src_img).half()
    matcher = FeatureTeacher(Counting(), side=16, feature_cache_size=2 * tensor_bytes(image) / GIB)
    answer = matcher.match_pairs(first)
    matcher.match_pairs(first)
    assert counted == [1, 1] and len(matcher._features) == 2
    matcher.match_pairs(second._replace(src_img=first.src_img, src_hash=first.src_hash))
    assert counted == [1, 1, 1] and first.src_hash[0] in matcher._features  # what was used last is kept
    matcher.match_pairs(second)
    assert len(matcher._features) == 2 and matcher._features.currsize <= matcher._features.maxsize
    none = FeatureTeacher(Counting(), side=16, feature_cache_size=0)
    torch.testing.assert_close(none.match_pairs(first), answer)
    assert not none._features
    for wrong in (-1.0, float("inf"), "2", True):
        with pytest.raises(ConfigError, match="feature_cache_size of the feature teacher in GiB but got"):
            FeatureTeacher(Colours(), feature_cache_size=wrong)


def test_the_size_that_it_looks_at_is_part_of_its_fingerprint_and_decides_its_answers():
    """A store that was made at 128 px served 448 px as well."""
    places = torch.tensor([[20.0, 20.0], [40.0, 24.0], [28.0, 44.0]])
    source, target = blob_picture(places), blob_picture(places + 4)
    small, large = teacher(size=32), teacher(size=64)
    assert small.fingerprint()["size"] == "32" != large.fingerprint()["size"]
    shrunk = [F.interpolate(image, (32, 32), mode="bilinear", antialias=True) for image in (source, target)]
    torch.testing.assert_close(
        small(source, target, places[None]).trg_kps, 2 * small(*shrunk, places[None] / 2).trg_kps
    )
    torch.testing.assert_close(large(source, target, places[None]), teacher()(source, target, places[None]))
    with pytest.raises(ConfigError, match="'size': 0"):
        teacher(size=0)
    for wrong in ({"cycle_tolerance": 0.0}, {"flip_tolerance": float("nan")}, {"radius_cells": float("nan")}):
        with pytest.raises(ConfigError, match=f"positive amounts in the feature teacher but got .*{next(iter(wrong))}"):
            teacher(**wrong)
    for size in ("64", 64.0, True):
        with pytest.raises(ConfigError, match="size of the feature teacher as whole px"):
            teacher(size=size)


def test_the_fingerprint_tells_weights_and_settings_apart():
    prints = [
        FeatureTeacher(NearestNeighbour("test_resnet", [16], seed=seed), **options).fingerprint()
        for seed, options in ((0, {}), (0, {}), (1, {}), (0, {"consensus": 1.0}))
    ]
    assert prints[0] == prints[1] and prints[0] != prints[2] and prints[0] != prints[3]
    assert {name for name in prints[0] if prints[0][name] != prints[2][name]} == {"model.weights"}


def test_maps_of_other_layers_of_the_same_weights_have_another_fingerprint():
    first, second = (FeatureTeacher(NearestNeighbour("test_resnet", strides)) for strides in ([32], [16, 32]))
    assert first.fingerprint() != second.fingerprint()


def test_amounts_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match="sigma_cells"):
        teacher(sigma_cells=0)
    with pytest.raises(ConfigError, match="strength"):
        teacher(consensus=-1)


def test_a_student_of_letterboxed_images_teaches_with_such():
    model = NearestNeighbour("test_resnet", [8])
    plain = FeatureTeacher(model, size=64)
    assert plain.resize is None and "resize" not in plain.fingerprint()
    model.resize = "letterbox"
    boxed = FeatureTeacher(model, size=64)
    assert boxed.resize == "letterbox" and boxed.fingerprint() == plain.fingerprint() | {"resize": "letterbox"}


def test_images_that_are_described_ahead_are_described_once_a_few_at_a_time_and_answered_alike(make_pairs):
    counted = []

    class Counting(Colours):
        def describe(self, images):
            counted.append(len(images))
            return super().describe(images)

    pairs = collate_pairs([make_pairs(3, size=64, seed=seed) for seed in range(6)])
    matcher, plain = FeatureTeacher(Counting(), side=16), FeatureTeacher(Colours(), side=16)
    assert isinstance(matcher, DescribesAhead)
    matcher.describe_ahead(pairs)
    images = len({*pairs.src_hash, *pairs.trg_hash})
    assert sum(counted) == 2 * images and max(counted) == 2 * DESCRIBED_TOGETHER
    matcher.describe_ahead(pairs)
    assert sum(counted) == 2 * images
    for found, expected in zip(matcher.match_pairs(pairs), plain.match_pairs(pairs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("backbone", "strides"), [("resnet10t", [4, 8, 16]), ("test_vit", [16]), ("convnext_atto", [4, 8])]
)
def test_few_images_together_get_the_descriptors_of_each_alone_bit_for_bit(backbone, strides, dtype):
    """A resumed training makes its labels with other images in a batch than before, and they have to be the same."""
    torch.manual_seed(0)
    matcher = FeatureTeacher(StudentMatcher(backbone, strides, 16))
    images = torch.rand(DESCRIBED_TOGETHER, 3, 64, 64)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        alone = torch.cat([matcher.describe(image[None]) for image in images])
        for number in range(2, DESCRIBED_TOGETHER + 1):
            assert torch.equal(matcher.describe(images[:number]), alone[:number])


def test_memorised_answers_do_not_depend_on_the_other_pairs(make_pairs):
    """Images are described together, pairs matched one at a time."""
    torch.manual_seed(0)
    model = StudentMatcher("test_resnet", [8, 16], 16)
    pairs = collate_pairs([make_pairs(3, size=64, seed=seed) for seed in range(6)])
    together = MemoizedMatcher(FeatureTeacher(model, side=8), singly=True).match_pairs(pairs)
    singly = MemoizedMatcher(FeatureTeacher(model, side=8), singly=True)
    for row in range(6):
        alone = singly.match_pairs(select_pairs(pairs, [row]))
        for found, expected in zip(alone, together, strict=True):
            assert torch.equal(found[0], expected[row])


def test_memorised_answers_describe_the_images_of_new_pairs_ahead(make_pairs, monkeypatch):
    pairs = collate_pairs([make_pairs(3, size=64, seed=seed) for seed in range(3)])
    pairs.kps_mask[2] = False
    matcher, asked = FeatureTeacher(Colours(), side=16), []
    monkeypatch.setattr(matcher, "describe_ahead", lambda pairs: asked.append(pairs.src_hash))
    memoized = MemoizedMatcher(matcher, singly=True)
    memoized.match_pairs(select_pairs(pairs, [0]))
    memoized.match_pairs(pairs)
    memoized.match_pairs(pairs)
    assert asked == [pairs.src_hash[:1], pairs.src_hash[1:2]]
