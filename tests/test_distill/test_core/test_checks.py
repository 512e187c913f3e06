import pytest
import torch
from PIL import Image

from distill.core.checks import check_answer, check_label, check_query
from distill.core.errors import DataError
from distill.core.protocols import match_query
from distill.core.types import Matches

IMAGE = torch.full((1, 3, 8, 8), 0.5)
POINT = torch.tensor([[[4.0, 4.0]]])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.int64])
def test_points_of_any_kind_of_number_are_compared_with_images_of_any_size(kind):
    large = torch.zeros(1, 3, 300, 2049)
    check_query(large, large, torch.tensor([[[100, 120]]], dtype=kind))
    small = torch.zeros(1, 3, 8, 99)
    with pytest.raises(DataError, match=r"inside its image of 99 x 8 px but point 0 of image 0 is \(100, 120\)"):
        check_query(small, small, torch.tensor([[[100, 120]]], dtype=kind))


@pytest.mark.parametrize(
    ("src", "trg", "points", "message"),
    [
        (IMAGE[:, :2], IMAGE, POINT, r"src_img of shape \(B, 3, H, W\)"),
        (IMAGE, (255 * IMAGE).byte(), POINT, "trg_img as floats"),
        (IMAGE, IMAGE * float("nan"), POINT, "trg_img to be finite"),
        (IMAGE * 200, IMAGE, POINT, r"src_img in \[0, 1\]"),
        (IMAGE, IMAGE.repeat(2, 1, 1, 1), POINT, "as many source as target"),
        (IMAGE, IMAGE, POINT[0], r"src_kps of shape \(1, N, 2\) but got \(1, 2\); add a batch axis: src_kps\[None\]"),
        (IMAGE, IMAGE, POINT[..., :1], r"src_kps of shape \(1, N, 2\)"),
        (IMAGE, IMAGE, POINT.repeat(2, 1, 1), r"src_kps of shape \(1, N, 2\)"),
        (IMAGE, IMAGE, [[4.0, 4.0]], r"src_kps to be a torch tensor \(B, N, 2\) but got builtins.list"),
        (IMAGE, IMAGE, POINT.numpy(), "src_kps to be a torch tensor .* but got numpy.ndarray"),
        (IMAGE, IMAGE, POINT > 0, "src_kps as numbers but got torch.bool"),
        (IMAGE[0], IMAGE, POINT, r"got \(3, 8, 8\); add a batch axis: src_img\[None\]"),
        (IMAGE, IMAGE.permute(0, 2, 3, 1), POINT, r"got \(1, 8, 8, 3\); move the channels"),
        (IMAGE.numpy(), IMAGE, POINT, r"src_img to be a torch tensor .* but got numpy.ndarray; distill.read_image"),
        (Image.new("RGB", (8, 8)), IMAGE, POINT, "src_img to be a torch tensor .* but got PIL.Image.Image"),
        (IMAGE, "trg.jpg", POINT, "trg_img to be a torch tensor .* but got builtins.str"),
        (IMAGE[:0], IMAGE[:0], POINT[:0], "to hold pixels"),
        (
            IMAGE.to_sparse(),
            IMAGE,
            POINT,
            r"src_img as a dense tensor but got torch.sparse_coo; write src_img.to_dense",
        ),
        (IMAGE * float("inf"), IMAGE, POINT, "src_img to be finite"),
        (IMAGE * 255, IMAGE, POINT, r"src_img in \[0, 1\] but got \[128, 128\]; divide by 255"),
        (IMAGE - 1, IMAGE, POINT, r"src_img in \[0, 1\] but got \[-0.5, -0.5\]; rescale it"),
        (IMAGE, IMAGE, (POINT + 5).long(), r"inside its image of 8 x 8 px but point 0 of image 0 is \(9, 9\)"),
        (IMAGE, IMAGE, POINT[:, :0], "at least one point"),
        (IMAGE, IMAGE, POINT + 5, r"inside its image of 8 x 8 px but point 0 of image 0 is \(9, 9\)"),
        (IMAGE, IMAGE, POINT * float("nan"), "inside its image"),
    ],
)
def test_a_query_that_no_matcher_can_answer_is_refused(src, trg, points, message):
    with pytest.raises(DataError, match=message):
        check_query(src, trg, points)


def test_two_sizes_are_refused_where_a_matcher_takes_one():
    check_query(IMAGE, IMAGE[..., :6], POINT)
    with pytest.raises(
        DataError, match="one size but got 8 x 8 and 8 x 6 px; resize one, or call distill.match_images"
    ):
        check_query(IMAGE, IMAGE[..., :6], POINT, same_size=True)


def test_no_points_are_a_query_where_a_matcher_answers_it():
    check_query(IMAGE, IMAGE, POINT[:, :0], min_points=0)


def test_every_message_is_one_line():
    for image in (IMAGE.numpy(), IMAGE[0], IMAGE * 255):
        with pytest.raises(DataError) as caught:
            check_query(image, IMAGE, POINT)
        assert "\n" not in str(caught.value)


def test_a_point_on_the_border_is_inside():
    check_query(IMAGE, IMAGE, torch.tensor([[[0.0, 8.0]]]))


GOOD = Matches(torch.rand(2, 3, 2), torch.rand(2, 3), torch.rand(2, 3, 4, 5))
ASKED = torch.rand(2, 3, 2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"Mine to return Matches\(trg_kps, confidence, heatmap\) of torch tensors but got NoneType"),
        (tuple(GOOD), "but got tuple; distill.Matches makes one"),
        (Matches(*(value.numpy() for value in GOOD)), "but got Matches of ndarray, ndarray, ndarray"),
        (
            GOOD._replace(trg_kps=GOOD.trg_kps[0]),
            r"trg_kps \(2, 3, 2\) of Mine for 2 pairs with 3 points each but got \(3, 2\)",
        ),
        (GOOD._replace(confidence=GOOD.confidence[..., None]), r"confidence \(2, 3\) of Mine .* but got \(2, 3, 1\)"),
        (GOOD._replace(heatmap=GOOD.heatmap.flatten(2)), r"heatmap \(B, N, h, w\) of Mine .* but got \(2, 3, 20\)"),
    ],
)
def test_an_answer_of_another_shape_is_refused(answer, message):
    class Mine:
        def __call__(self, src_img, trg_img, src_kps):
            return answer

    with pytest.raises(DataError, match=message):
        match_query(Mine(), IMAGE, IMAGE, ASKED)


def test_an_answer_of_the_contract_is_returned_as_it_is():
    assert check_answer(GOOD, ASKED, "Mine") is GOOD
    check_label(GOOD, torch.ones(2, 3, dtype=torch.bool), "Mine")
    cosines = torch.linspace(-1, 1, 2 * 3 * 4 * 5).view(3, 2, 5, 4).transpose(0, 1)  # of the last points of either pair
    check_label(GOOD._replace(heatmap=cosines), torch.tensor([[False, False, True]] * 2), "Mine")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("trg_kps", float("nan"), "finite trg_kps of Mine"),
        ("confidence", 1.5, r"confidences in \[0, 1\] of Mine but got .* to 1.5;"),
        ("confidence", -0.5, r"confidences in \[0, 1\] of Mine but got -0.5 to "),
        ("confidence", float("nan"), r"confidences in \[0, 1\]"),
        ("heatmap", -0.5, "heatmap of Mine whose best cell is at least 0 but got"),
        ("heatmap", float("inf"), "finite heatmap of Mine whose best cell is at least 0 but got"),
    ],
)
def test_a_label_of_other_values_is_refused_where_its_point_counts(field, value, message):
    mask = torch.ones(2, 3, dtype=torch.bool)
    values = getattr(GOOD, field).clone()
    values[1, 2] = value
    answer = GOOD._replace(**{field: values})
    with pytest.raises(DataError, match=message):
        check_label(answer, mask, "Mine")
    mask[1, 2] = False
    check_label(answer, mask, "Mine")
