"""Answers and their confidence, read from attention maps."""

import numpy as np
import pytest
import torch

from teacher import confidence
from teacher.settings import Settings
from teacher.target_image import aggregate_maps, read_out, subpixel


def test_subpixel_finds_the_vertex_of_a_parabola_and_keeps_to_cells_at_the_border():
    x, y = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="xy")
    heatmap = (10 - (x - 3.7) ** 2 - (y - 5.2) ** 2)[None, None]
    np.testing.assert_allclose(subpixel(heatmap)[0, 0] * 8, [3.7, 5.2], atol=1e-4)
    edge = torch.zeros(1, 1, 4, 4)
    edge[0, 0, 0, 3] = 1
    np.testing.assert_allclose(subpixel(edge)[0, 0] * 4, [3.5, 0.5])


def test_each_readout_of_a_lone_peak_is_the_peak():
    heatmap = torch.zeros(1, 1, 16, 16)
    heatmap[0, 0, 4, 9] = 1
    for readout in ("argmax", "subpixel", "windowed_soft_argmax"):
        found = read_out(heatmap, Settings(readout=readout))  # type: ignore[arg-type]
        np.testing.assert_allclose(found[0, 0] * 16, [9.5, 4.5], atol=0.02)
    pulled = read_out(heatmap, Settings(readout="soft_argmax"))[0, 0] * 16
    weight = np.exp(-10) / (1 + 255 * np.exp(-10))
    others = (256 * 8 - 9.5) * weight, (256 * 8 - 4.5) * weight
    np.testing.assert_allclose(
        pulled, [9.5 * (1 - 255 * weight) + others[0], 4.5 * (1 - 255 * weight) + others[1]], 1e-4
    )


def test_attention_that_the_flipped_image_shares_loses_half():
    maps, flipped = torch.zeros(1, 1, 1, 2, 2), torch.zeros(1, 1, 1, 2, 2)
    maps[..., 0, 0], maps[..., 1, 1], flipped[..., 0, 0] = 0.8, 0.6, 0.8
    found = aggregate_maps(maps, None, flipped)
    np.testing.assert_allclose(found[0], [[0.4, 0], [0, 0.6]], atol=1e-6)


def test_the_mass_around_an_answer_is_that_of_the_heatmap_raised_to_a_power():
    heatmap, point = torch.tensor([[[[0.81, 0.09]]]]), torch.tensor([[[0.25, 0.5]]])
    assert float(confidence.peak_mass(heatmap, point, 0.5)) == pytest.approx(0.9 / (0.9 + 0.3))
    assert float(confidence.peak_mass(heatmap, point)) == pytest.approx(0.6561 / (0.6561 + 0.0081))


def test_confidences_are_high_for_a_sharp_answer_and_low_for_a_blurred_one():
    sharp, blurred = torch.full((1, 8, 8), 1e-6), torch.ones(1, 8, 8)
    sharp[0, 3, 3] = 1
    assert float(confidence.relative_negentropy(sharp)) > 0.99 and float(confidence.relative_negentropy(blurred)) < 1e-5
    apart = torch.zeros(1, 2, 10, 10)
    apart[0, 0, 0, 0] = apart[0, 1, 0, 2] = 1
    assert float(confidence.prompt_agreement(apart)) == pytest.approx(np.exp(-0.1 / 0.1), rel=1e-5)
    assert float(confidence.prompt_agreement(apart[:, :1])) == 1
    joint = confidence.joint([torch.tensor([0.25]), torch.tensor([1.0])])
    assert float(joint) == pytest.approx(0.5)
