"""Coordinates and geometry under autocast: what is computed in bfloat16 by the networks does not reach them."""

import pytest
import torch

from distill.core.geometry import cell_centres, flip_points, gaussian_heatmap, map_points, resize_points, sample_at
from distill.core.precision import in_single, without_autocast
from distill.core.readout import argmax, window_mass, windowed_soft_argmax


@pytest.fixture
def bf16():
    with torch.autocast("cpu", torch.bfloat16):
        yield


def spike(cells: int, column: int, row: int) -> torch.Tensor:
    heatmap = torch.zeros(1, 1, cells, cells, dtype=torch.bfloat16)
    heatmap[0, 0, row, column] = 100.0
    return heatmap


def test_the_read_out_keeps_427_px_of_448(bf16):
    """Cells of 14 px: the centre of column 30 is 427 px, which bfloat16 rounds to 428."""
    heatmap = spike(32, 30, 4)
    expected = torch.tensor([[[427.0, 63.0]]])
    assert torch.equal(argmax(heatmap, (448, 448)), expected)
    assert torch.equal(windowed_soft_argmax(heatmap, (448, 448)), expected)
    assert torch.equal(window_mass(heatmap, expected, (448, 448), 1.0), torch.ones(1, 1))


def test_the_read_out_under_autocast_is_that_without_it():
    heatmap = torch.randn(2, 5, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = windowed_soft_argmax(heatmap, (448, 448), temperature=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(windowed_soft_argmax(heatmap, (448, 448), temperature=0.3), plain, atol=0, rtol=0)


def test_points_are_mapped_exactly(bf16):
    points = torch.tensor([[[427.0, 301.0]]])
    content, whole = torch.tensor([[0.0, 56.0, 448.0, 392.0]]), torch.tensor([[0, 0, 1333, 1000]])
    expected = torch.tensor([[[427 * 1333 / 448, (301 - 56) * 1000 / 336]]])
    torch.testing.assert_close(map_points(points, content, whole), expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(
        resize_points(points, (448, 448), (1000, 1333)), points * torch.tensor([1333 / 448, 1000 / 448])
    )
    assert torch.equal(flip_points(points, (448, 448)), torch.tensor([[[21.0, 301.0]]]))


def test_whole_numbers_are_coordinates_too():
    """Ratios of sizes must not be rounded to whole numbers with them."""
    points = torch.tensor([[[30, 50]]])
    assert resize_points(points, (100, 100), (50, 250)).tolist() == [[[75.0, 25.0]]]
    assert map_points(
        points, torch.tensor([[0.0, 0.0, 60.0, 100.0]]), torch.tensor([[0.5, 0.5, 3.5, 2.5]])
    ).tolist() == [[[2.0, 1.5]]]
    assert gaussian_heatmap(torch.tensor([[1, 1]]), (2, 2), (2, 2), 1.0)[0, 0, 0].item() == pytest.approx(
        0.7788, abs=1e-4
    )


def test_boxes_keep_their_precision_when_points_have_little():
    """A box of 1333 px would be one of 1336 px in bfloat16."""
    points = torch.tensor([[[64.0, 64.0]]], dtype=torch.bfloat16)
    found = map_points(points, torch.tensor([[0.0, 0.0, 64.0, 64.0]]), torch.tensor([[0.0, 0.0, 1333.0, 1001.0]]))
    assert found.tolist() == [[[1333.0, 1001.0]]]
    assert resize_points(points, (64, 64), (1001, 1333)).tolist() == [[[1333.0, 1001.0]]]
    assert flip_points(points, (64, 427)).tolist() == [[[363.0, 64.0]]]


def test_grids_are_laid_in_single_precision_whatever_they_are_laid_for():
    centres = cell_centres((32, 32), (448, 448), torch.zeros(1, dtype=torch.bfloat16))
    assert centres[4, 30].tolist() == [427.0, 63.0]
    assert gaussian_heatmap(centres[4, 30][None], (32, 32), (448, 448), 7.0)[0, 4, 30] == 1


def test_a_map_of_half_precision_is_read_at_the_exact_place(bf16):
    ramp = cell_centres((448, 448), (448, 448), torch.zeros(1)).permute(2, 0, 1)[None]
    points = torch.tensor([[[427.3, 301.6], [10.25, 400.75]]])
    torch.testing.assert_close(sample_at(ramp, points, (448, 448)), points, atol=1e-3, rtol=0)
    low = torch.ones(1, 2, 4, 4, dtype=torch.bfloat16)
    assert sample_at(low, points, (448, 448)).dtype == torch.float32


def test_autocast_is_switched_off_and_on_again(bf16):
    first = torch.rand(4, 4)
    with without_autocast(first):
        assert (first @ first).dtype == torch.float32
    assert (first @ first).dtype == torch.bfloat16
    with without_autocast(first.to("meta")):
        pass
    assert in_single(first.half()).dtype == torch.float32 and in_single(first.double()).dtype == torch.float64
