import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates
from torch.nn import functional as F

from distill.core.geometry import (
    cell_centres,
    flip_points,
    gather_at,
    gaussian_heatmap,
    gaussian_weight,
    map_points,
    resize_images,
    resize_maps,
    resize_points,
    sample_at,
)


def test_resizing_multiplies_by_the_ratio_of_sizes():
    points = torch.tensor([[[10.0, 6.0]]])
    torch.testing.assert_close(resize_points(points, (12, 20), (24, 5)), torch.tensor([[[2.5, 12.0]]]))


def test_a_point_of_the_border_stays_on_the_border_at_every_size():
    sides = torch.arange(1.0, 1300)
    far = torch.stack([sides, sides.flip(0)], -1)[:, None]
    whole = torch.cat([torch.zeros(len(sides), 2), far[:, 0]], -1)
    for side in (112, 128, 192, 224, 384, 448, 518, 768):
        square = torch.tensor([[0.0, 0.0, side, side]]).expand(len(sides), -1)
        content = torch.tensor([[0.0, side // 7, side, side - side // 9]]).expand(len(sides), -1)
        assert (map_points(far, whole, square) == side).all()
        assert (map_points(far, whole, content)[:, 0] == content[:, 2:]).all()
        assert (map_points(map_points(far, whole, square), square, whole) == far).all()
        for width, height in far[::13, 0].int().tolist():
            corner = torch.tensor([[float(width), float(height)]])
            assert resize_points(corner, (height, width), (side, side + 1)).tolist() == [[side + 1, side]]


def test_a_flipped_point_reads_from_the_flipped_image_what_the_point_reads():
    image, points = torch.rand(1, 3, 6, 10), torch.tensor([[[2.5, 3.5], [9.5, 0.5]]])
    flipped = sample_at(image.flip(-1), flip_points(points, (6, 10)), (6, 10))
    torch.testing.assert_close(flipped, sample_at(image, points, (6, 10)))


def test_closeness_falls_off_with_the_distance_in_longer_sides():
    first, second = torch.tensor([[0.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    found = gaussian_weight(first, second, (20, 50), 0.1)
    torch.testing.assert_close(found, torch.tensor([1.0, math.exp(-0.5)]))  # 5 px are a tenth of 50


def test_cells_of_a_grid_are_centred_half_a_cell_from_the_border():
    centres = cell_centres((2, 4), (10, 8), torch.zeros(()))
    assert centres[0, 0].tolist() == [1.0, 2.5] and centres[1, 3].tolist() == [7.0, 7.5]


def test_sampling_agrees_with_scipy():
    random = torch.Generator().manual_seed(0)
    feature_map = torch.rand(1, 2, 5, 7, generator=random)
    points = torch.rand(1, 9, 2, generator=random) * torch.tensor([70.0, 40.0])
    sampled = sample_at(feature_map, points, (40, 70))
    row, column = (points[0, :, 1] / 8 - 0.5).numpy(), (points[0, :, 0] / 10 - 0.5).numpy()
    for channel in range(2):
        expected = map_coordinates(feature_map[0, channel].numpy(), [row, column], order=1, mode="nearest")
        np.testing.assert_allclose(sampled[0, :, channel].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gathering_agrees_with_grid_sample_and_so_do_its_gradients(channels_last):
    random = torch.Generator().manual_seed(0)
    feature_map = torch.rand(3, 4, 5, 7, generator=random)
    if channels_last:
        feature_map = feature_map.contiguous(memory_format=torch.channels_last)
    points = torch.rand(3, 40, 2, generator=random) * torch.tensor([90.0, 60.0]) - 10  # some outside
    points[:, :3] = torch.tensor([[5.0, 4.0], [70.0, 40.0], [0.0, 0.0]])  # a centre and two corners
    weights = torch.rand(3, 40, 4, generator=random)
    found = []
    for read in (sample_at, gather_at):
        inputs = feature_map.clone().requires_grad_(), points[:, 3:].clone().requires_grad_()
        values = read(inputs[0], torch.cat([points[:, :3], inputs[1]], 1), (40, 70))
        found.append((values.detach(), *torch.autograd.grad((values * weights).sum(), inputs)))
    for expected, gathered in zip(*found, strict=True):
        torch.testing.assert_close(gathered, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("read", [sample_at, gather_at])
def test_points_in_double_precision_are_read_as_those_in_single(read):
    feature_map = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[[3.0, 2.0], [9.5, 7.25]]])
    answer = read(feature_map, points.double(), (8, 10))
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer, read(feature_map, points, (8, 10)))


def test_no_points_are_read_as_no_descriptors():
    for read in (sample_at, gather_at):
        assert read(torch.rand(2, 4, 5, 7), torch.zeros(2, 0, 2), (40, 70)).shape == (2, 0, 4)


@pytest.mark.parametrize("size", [(9, 13), (3, 4), (5, 7), (1, 2)])
def test_resizing_maps_agrees_with_interpolate(size):
    maps = torch.rand(2, 3, 5, 7)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_maps(maps, size), expected)
    assert resize_maps(maps[:, :0], size).shape == (2, 0, *size)


def test_a_gaussian_is_drawn_as_its_formula_says():
    heatmap = gaussian_heatmap(torch.tensor([[3.0, 5.0]]), (4, 6), (8, 12), sigma_px=2.0)
    for row in range(4):
        for column in range(6):
            squared = (2 * column + 1 - 3) ** 2 + (2 * row + 1 - 5) ** 2
            assert math.isclose(float(heatmap[0, row, column]), math.exp(-squared / 8), abs_tol=1e-6)


@pytest.mark.parametrize("source", [(300, 2), (300, 1), (40, 8), (2, 300)])
@pytest.mark.parametrize("size", [(64, 1), (1, 64), (1, 1), (400, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_resized_to_one_column_or_row_are_those_of_pillow(source, size, channels):
    image = torch.rand(2, channels, *source, generator=torch.Generator().manual_seed(0))
    found = resize_images(image, size).numpy()
    for picture, resized in zip(image.flatten(0, 1).numpy(), found.reshape(-1, *size), strict=True):
        expected = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(resized, np.asarray(expected), atol=1e-5)
