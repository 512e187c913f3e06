import pytest
import torch

from distill.core.checks import check_query
from distill.core.errors import DataError

IMAGE = torch.full((1, 3, 8, 8), 0.5)
POINT = torch.tensor([[[4.0, 4.0]]])


@pytest.mark.parametrize(
    ("src", "trg", "points", "message"),
    [
        (IMAGE[:, :2], IMAGE, POINT, r"src_img of shape \(B, 3, H, W\)"),
        (IMAGE, (255 * IMAGE).byte(), POINT, "trg_img as floats"),
        (IMAGE, IMAGE * float("nan"), POINT, "trg_img to be finite"),
        (IMAGE * 200, IMAGE, POINT, r"src_img in \[0, 1\]"),
        (IMAGE, IMAGE.repeat(2, 1, 1, 1), POINT, "as many source as target"),
        (IMAGE, IMAGE, POINT[0], r"src_kps of shape \(1, N, 2\)"),
        (IMAGE, IMAGE, POINT[:, :0], "at least one point"),
        (IMAGE, IMAGE, POINT + 5, r"inside its image of 8 x 8 px but point 0 of image 0 is \(9, 9\)"),
        (IMAGE, IMAGE, POINT * float("nan"), "inside its image"),
    ],
)
def test_a_query_that_no_matcher_can_answer_is_refused(src, trg, points, message):
    with pytest.raises(DataError, match=message):
        check_query(src, trg, points)


def test_a_point_on_the_border_is_inside():
    check_query(IMAGE, IMAGE, torch.tensor([[[0.0, 8.0]]]))
