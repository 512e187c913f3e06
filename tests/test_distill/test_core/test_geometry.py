import math

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from distill.core.geometry import cell_centres, flip_points, gaussian_heatmap, gaussian_weight, resize_points, sample_at


def test_resizing_multiplies_by_the_ratio_of_sizes():
    points = torch.tensor([[[10.0, 6.0]]])
    torch.testing.assert_close(resize_points(points, (12, 20), (24, 5)), torch.tensor([[[2.5, 12.0]]]))


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


def test_a_gaussian_is_drawn_as_its_formula_says():
    heatmap = gaussian_heatmap(torch.tensor([[3.0, 5.0]]), (4, 6), (8, 12), sigma_px=2.0)
    for row in range(4):
        for column in range(6):
            squared = (2 * column + 1 - 3) ** 2 + (2 * row + 1 - 5) ** 2
            assert math.isclose(float(heatmap[0, row, column]), math.exp(-squared / 8), abs_tol=1e-6)
