"""Flow fields and warped images, against matchers whose answers are known."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.core.errors import DataError
from distill.core.types import Matches
from distill.matchers.dense import Flow, dense_flow, warp_target


class Shift:
    """Answers with the point, moved to the left by a tenth of the side."""

    size = 50

    def __call__(self, src_img, trg_img, src_kps):
        moved = src_kps - torch.tensor([5.0, 0.0])
        return Matches(moved, torch.full(src_kps.shape[:2], 0.7), torch.zeros(*src_kps.shape[:2], 2, 2))


def test_the_grid_covers_the_source_and_its_answers_are_in_pixels_of_the_target():
    flow = dense_flow(Shift(), torch.rand(1, 3, 40, 80), torch.rand(1, 3, 30, 200), step=10)
    assert flow.src.shape == flow.trg.shape == (4, 8, 2) and flow.confidence.shape == (4, 8)
    for row in range(4):
        for column in range(8):
            x, y = 10 * column + 5, 10 * row + 5
            assert flow.src[row, column].tolist() == [x, y]
            expected = [x * 200 / 80 - 20, y * 30 / 40]  # a tenth of the target's width is 20 px
            np.testing.assert_allclose(flow.trg[row, column], expected, rtol=1e-5, atol=1e-5)


def test_more_points_than_go_at_once_are_those_of_single_calls():
    images = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    whole = dense_flow(Shift(), *images, step=1)
    assert whole.src.shape == (64, 64, 2)
    torch.testing.assert_close(whole.trg, whole.src - torch.tensor([6.4, 0.0]))


def test_the_warped_target_has_the_sources_shape():
    ramp = (torch.arange(100.0) / 100).expand(1, 3, 60, 100)  # brightness is the column
    y, x = torch.meshgrid(torch.arange(6) * 10 + 5.0, torch.arange(8) * 10 + 5.0, indexing="ij")
    flow = Flow(torch.stack([x, y], -1), torch.stack([x + 12, y], -1), torch.ones(6, 8))
    warped = warp_target(ramp, flow, (60, 80))
    assert warped.shape == (1, 3, 60, 80)
    expected = (torch.arange(80.0) + 12) / 100
    torch.testing.assert_close(warped[0, 0, 30, 5:75], expected[5:75], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(120, 200), (90, 150)])
def test_the_identity_draws_the_target_up_to_its_border(size):
    """Between the border and the centres of the outermost cells, 20 px of the source, rows and columns were repeated."""
    coarse = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(coarse, (120, 200), mode="bilinear", align_corners=False)
    flow = dense_flow(lambda src, trg, points: Matches(points, points[..., 0], points[..., None]), picture, picture, 40)
    expected = F.interpolate(picture, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(warp_target(picture, flow, size), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("step", "message"), [(0, "at least 1 but got 0"), (2.5, "got 2.5"), (1, "set dense=3 or more")]
)
def test_a_step_that_gives_no_grid_or_too_many_points_is_refused(step, message):
    image = torch.zeros(1, 3, 500, 1000)
    with pytest.raises(DataError, match=message):
        dense_flow(Shift(), image, image, step)
