import pytest
import torch

from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_heatmap
from distill.core.readout import windowed_soft_argmax
from distill.matchers.oracle import Oracle
from distill.transforms.augment import Augment, move_image, move_points
from distill.transforms.warp import RandomWarp


def test_points_follow_the_picture_of_a_blob():
    torch.manual_seed(0)
    points = torch.tensor([[[50.0, 70.0]], [[70.0, 40.0]], [[64.0, 64.0]]])
    blobs = gaussian_heatmap(points, (128, 128), (128, 128), sigma_px=4)
    maps = Augment(scale=0.3, shift=0.1, rotation=20)._maps(3, blobs)
    found = windowed_soft_argmax(50 * move_image(blobs, maps, "zeros"), (128, 128), radius_cells=20)
    torch.testing.assert_close(found, move_points(points, maps, (128, 128)), atol=0.3, rtol=0)


def test_nothing_changes_when_all_amounts_are_zero(make_pairs):
    pair = make_pairs(4)
    label = Oracle().match_pairs(pair)
    changed, moved = Augment(0, 0, 0, 0)(pair, label)
    torch.testing.assert_close(changed.src_img, pair.src_img, atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.trg_kps, label.trg_kps, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved.heatmap, label.heatmap, atol=1e-5, rtol=0)
    assert torch.equal(changed.kps_mask, pair.kps_mask)


def test_the_label_moves_with_the_target_and_not_with_the_source(make_pairs):
    torch.manual_seed(1)
    pair = make_pairs(6)
    changed, moved = Augment()(pair, Oracle().match_pairs(pair))
    torch.testing.assert_close(moved.trg_kps, changed.trg_kps)
    assert not torch.allclose(changed.src_kps - pair.src_kps, changed.trg_kps - pair.trg_kps, atol=0.1)


def test_points_that_leave_the_image_do_not_count(make_pairs):
    torch.manual_seed(0)
    pair = make_pairs(1)._replace(trg_kps=torch.tensor([[[0.2, 0.2]]]))
    masks = [Augment(shift=0.3)(pair, Oracle().match_pairs(pair))[0].kps_mask.item() for _ in range(30)]
    assert 0 < sum(masks) < 30


def test_negative_amounts_are_refused():
    with pytest.raises(ConfigError, match="at least 0 in augment"):
        Augment(scale=-1)


def test_a_flip_changes_both_images_and_the_label(make_pairs):
    pair = make_pairs(5)
    changed, moved = Augment(0, 0, 0, 0, flip=1)(pair, Oracle().match_pairs(pair))
    torch.testing.assert_close(changed.src_img, pair.src_img.flip(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed.trg_img, pair.trg_img.flip(-1), atol=1e-5, rtol=0)
    width = pair.src_img.shape[-1]
    for found, before in ((changed.src_kps, pair.src_kps), (moved.trg_kps, pair.trg_kps)):
        torch.testing.assert_close(found[..., 0], width - before[..., 0], atol=1e-3, rtol=0)
        torch.testing.assert_close(found[..., 1], before[..., 1], atol=1e-3, rtol=0)
    torch.testing.assert_close(moved.heatmap, Oracle().match_pairs(pair).heatmap.flip(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_warp_says_where_every_pixel_came_from(flip):
    torch.manual_seed(0)
    warp = RandomWarp(flip=flip)(3, torch.zeros(1))
    truth = torch.tensor([[[60.0, 66.0]], [[50.0, 70.0]], [[70.0, 60.0]]])
    blobs = gaussian_heatmap(truth, (128, 128), (128, 128), sigma_px=4)
    seen = windowed_soft_argmax(50 * warp.image(blobs), (128, 128), radius_cells=14)
    torch.testing.assert_close(warp.points(seen, (128, 128)), truth, atol=0.4, rtol=0)


def test_warps_differ_and_flip_as_often_as_they_are_told():
    torch.manual_seed(0)
    warp = RandomWarp(rotation=0, flip=0.25)(4000, torch.zeros(1))
    assert float((warp.affine[:, 0, 0] < 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert len(warp.wave.unique(dim=0)) == 4000
    with pytest.raises(ConfigError, match="RandomWarp"):
        RandomWarp(flip=2)


def test_known_warps_are_exact_under_autocast():
    """Of 448 px: bfloat16 moved the points by 0.84 px on average."""
    torch.manual_seed(0)
    warp = RandomWarp()(2, torch.zeros(1))
    points, images = torch.rand(2, 20, 2) * 448, torch.rand(2, 3, 448, 448)
    plain = warp.points(points, (448, 448)), warp.image(images)
    with torch.autocast("cpu", torch.bfloat16):
        found = warp.points(points, (448, 448)), warp.image(images)
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_warps_drawn_for_images_of_half_precision_are_those_of_single():
    torch.manual_seed(0)
    plain = RandomWarp()(2, torch.zeros(1))
    torch.manual_seed(0)
    low = RandomWarp()(2, torch.zeros(1, dtype=torch.bfloat16))
    assert torch.equal(plain.affine, low.affine) and torch.equal(plain.wave, low.wave)


def test_augmentation_is_exact_under_autocast(make_pairs):
    pair = make_pairs(6, size=448)
    label = Oracle().match_pairs(pair)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(Augment()(pair, label))
    (plain_pair, plain), (pair, found) = results
    torch.testing.assert_close(pair.src_img, plain_pair.src_img, atol=0, rtol=0)
    torch.testing.assert_close(pair.src_kps, plain_pair.src_kps, atol=0, rtol=0)
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)
