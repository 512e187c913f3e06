"""The second-best place of a heatmap."""

import numpy as np
import pytest

from distill.export.alternatives import second_best, softmax


def test_two_peaks_give_the_smaller_one_with_its_share():
    heatmap = np.zeros((20, 30))
    heatmap[4, 5], heatmap[15, 24] = 0.6, 0.3
    assert second_best(heatmap) == pytest.approx((24.5 / 30, 15.5 / 20, 0.5))


def test_a_flank_of_the_peak_is_no_place_of_its_own():
    x = np.arange(32)
    wide = np.exp(-((x[:, None] - 10) ** 2 + (x - 12) ** 2) / 50)
    assert second_best(wide / wide.sum()) is None


def test_a_small_second_peak_is_none():
    heatmap = np.zeros((20, 20))
    heatmap[4, 5], heatmap[15, 15] = 0.9, 0.1
    assert second_best(heatmap) is None and second_best(heatmap, least_share=0.1) is not None


def test_the_second_window_leaves_out_the_first():
    heatmap = np.zeros((9, 20))
    heatmap[4, 5], heatmap[4, 9], heatmap[4, 8] = 0.5, 0.3, 0.2  # 8 lies within 3 cells of 5
    x, _, share = second_best(heatmap)
    assert (x * 20, share) == pytest.approx((9.5, 0.3 / 0.7))


def test_softmax_is_that_of_the_definition():
    scores = np.array([[0.0, 1.0], [2.0, 1000.0]])
    expected = np.exp(scores / 500) / np.exp(scores / 500).sum()
    np.testing.assert_allclose(softmax(scores, 500.0), expected)
