import math

import torch

from distill.core.geometry import gaussian_heatmap
from distill.core.readout import argmax, window_mass, windowed_soft_argmax


def test_argmax_returns_the_centre_of_the_highest_cell():
    heatmap = torch.zeros(1, 1, 4, 8)
    heatmap[0, 0, 1, 6] = 1
    assert argmax(heatmap, (8, 32))[0, 0].tolist() == [26.0, 3.0]


def test_soft_argmax_is_the_mean_position_under_the_softmax():
    heatmap = torch.zeros(1, 1, 1, 3)
    heatmap[0, 0, 0] = torch.tensor([0.0, 2.0, 1.0])
    weight = [math.exp(v) for v in (0.0, 2.0, 1.0)]
    expected = sum(w * x for w, x in zip(weight, (0.5, 1.5, 2.5), strict=True)) / sum(weight)
    assert math.isclose(float(windowed_soft_argmax(heatmap, (1, 3))[0, 0, 0]), expected, rel_tol=1e-6)


def test_a_second_peak_far_away_does_not_pull_the_answer():
    peaks = torch.tensor([[[40.0, 20.0]], [[100.0, 100.0]]])
    first, second = gaussian_heatmap(peaks, (16, 16), (128, 128), sigma_px=8)
    both = (first + 0.5 * second)[None]
    answer = windowed_soft_argmax(20 * both, (128, 128), radius_cells=2)[0, 0]
    assert float((answer - peaks[0, 0]).norm()) < 4


def test_the_answer_between_two_equal_cells_lies_between_them():
    heatmap = gaussian_heatmap(torch.tensor([[[32.0, 32.0]]]), (16, 16), (128, 128), sigma_px=10)
    answer = windowed_soft_argmax(heatmap, (128, 128), temperature=0.05, radius_cells=3)[0, 0]
    assert float((answer - 32).abs().max()) < 3.0


def test_the_mass_of_a_window_is_the_softmax_summed_over_it():
    heatmap = torch.randn(1, 1, 6, 6)
    point = torch.tensor([[[2.5, 3.5]]])
    expected = heatmap.flatten().softmax(0).view(6, 6)[2:5, 1:4].sum()
    torch.testing.assert_close(window_mass(heatmap, point, (6, 6), 1.0)[0, 0], expected)
