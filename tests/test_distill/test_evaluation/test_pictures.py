"""Pictures of matches: where marks are drawn."""

import numpy as np
import pytest
import torch

from distill.evaluation.pictures import draw_points, match_panel


def mark_of(picture):
    """Returns x, y in px of the middle of the one mark, which is the largest red thing on black."""
    red, green, blue = np.moveaxis(np.asarray(picture).astype(int), -1, 0)
    rows, columns = np.nonzero((red > 200) & (green < 100) & (blue < 100))
    return (columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2


@pytest.mark.parametrize(
    ("height", "width", "x", "y"), [(1000, 30, 15, 500), (1000, 30, 15, 950), (300, 45, 22.5, 270)]
)
def test_marks_lie_at_their_share_of_the_sides_in_pictures_of_thin_images(height, width, x, y):
    """The shorter side is rounded to whole pixels, 11.5 to 12, so that the two sides are resized by two factors."""
    picture = draw_points(torch.zeros(3, height, width), np.array([[x, y]]), 384)
    place, size = mark_of(picture), picture.size
    assert max(size) == 384
    expected = np.array((x / width, y / height)) * size
    along = int(np.argmax(size))  # a mark is wider than the other side
    assert place[along] == pytest.approx(expected[along], abs=1)


def test_a_line_leads_from_each_point_to_its_truth():
    black = torch.zeros(3, 100, 100)
    picture = np.asarray(draw_points(black, np.array([[20.0, 50.0]]), 200, np.array([[80.0, 50.0]])))
    assert (picture[100, 60:158, 0] > 200).all() and not picture[100, 165:].any()


@pytest.mark.parametrize("far", [1e6, 1e12, 1e30, -1e36])
def test_points_far_outside_are_drawn_as_outside(far):
    """Pillow raised a SystemError at 1e30, and drew elsewhere at what its whole numbers do not hold."""
    black = torch.zeros(3, 64, 48)
    inside, outside = np.array([[24.0, 32.0]]), np.array([[far, far]])
    assert not np.asarray(draw_points(black, outside, 128)).any()
    panel = np.asarray(match_panel(black, black, inside, {"a": outside}, inside, side=128))
    assert panel[-128:, 96:].any(), "the line from it to the truth"
