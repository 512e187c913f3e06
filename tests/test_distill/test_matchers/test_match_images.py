import numpy as np
import pytest
import torch

from distill import Matches, match_images
from distill.core.errors import ConfigError, DataError
from student import NearestNeighbour


class Shift(torch.nn.Module):
    """Answers with the point moved by a quarter of the square's side to the right."""

    size = 32

    def forward(self, src_img, trg_img, src_kps):
        assert src_img.shape == trg_img.shape == (1, 3, self.size, self.size)
        points = src_kps + torch.tensor([self.size / 4, 0.0])
        return Matches(points, torch.full(points.shape[:2], 0.5), torch.zeros(*points.shape[:2], 4, 4))


SRC, TRG = torch.rand(1, 3, 50, 100), torch.rand(1, 3, 80, 40)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "points",
    [
        [[20, 10], [50, 25]],
        torch.tensor([[[20.0, 10.0], [50.0, 25.0]]]),
        [torch.tensor([20.0, 10.0]), torch.tensor([50.0, 25.0])],
        [np.array([20.0, 10.0]), np.array([50.0, 25.0])],
        np.array([[50.0, 25.0], [20.0, 10.0]])[::-1],
        np.array([[20, 10], [50, 25]], dtype=">f4"),
        np.broadcast_to(np.array([[20.0, 10.0], [50.0, 25.0]]), (1, 2, 2)),  # read-only
    ],
)
def test_points_are_pixels_of_the_images_as_given(points):
    answer = match_images(Shift(), SRC, TRG, points)
    # (20, 10) of 100 x 50 is (0.2, 0.2); a quarter further right (0.45, 0.2); of 40 x 80 (18, 16).
    assert torch.allclose(answer.trg_kps, torch.tensor([[[18.0, 16.0], [30.0, 40.0]]]), atol=1e-5)
    assert answer.confidence.tolist() == [[0.5, 0.5]]


def test_matchers_of_pairs_and_answers_of_other_shapes_are_refused():
    class OfPairs:
        def match_pairs(self, pairs):
            raise AssertionError

    class Points(Shift):
        def forward(self, src_img, trg_img, src_kps):
            return src_kps

    class Fewer(Shift):
        def forward(self, src_img, trg_img, src_kps):
            return Matches(*(field[:, :1] for field in super().forward(src_img, trg_img, src_kps)))

    with pytest.raises(ConfigError, match="OfPairs answers pairs of a data set only"):
        match_images(OfPairs(), SRC, TRG, [[1.0, 1.0]])
    with pytest.raises(DataError, match="Expected Points to return Matches"):
        match_images(Points(), SRC, TRG, [[1.0, 1.0]])
    with pytest.raises(DataError, match=r"Expected trg_kps \(1, 2, 2\) of Fewer .* got \(1, 1, 2\)"):
        match_images(Fewer(), SRC, TRG, [[1.0, 1.0], [2.0, 2.0]])


def test_the_size_can_be_chosen():
    matcher = Shift()
    matcher.size = 64
    assert match_images(matcher, SRC, TRG, [[1.0, 1.0]], size=64).heatmap.shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SRC[0], TRG, [[1, 1]]), r"src_img of shape \(B, 3, H, W\)"),
        ((SRC, (TRG * 255).byte(), [[1, 1]]), "trg_img as floats"),
        ((SRC.repeat(2, 1, 1, 1), TRG, [[1, 1]]), "one src_img but got 2"),
        ((SRC, TRG.to("meta"), [[1, 1]]), "Expected trg_img with pixels but got a tensor of shapes alone"),
        ((SRC, TRG, [[101, 1]]), "every point of points inside"),
        (
            (SRC, TRG, [[1, 2], [3]]),
            r"Expected points as numbers \(N, 2\), x and y in pixels, but got \[\[1, 2\], \[3\]\]",
        ),
        ((SRC, TRG, [[True, False]]), "Expected points as numbers"),
        ((SRC, TRG, torch.tensor([[True, False]])), "Expected points as numbers"),
        ((SRC, TRG, [["5", "6"]]), "Expected points as numbers"),
        ((SRC, TRG, torch.zeros(1, 2, device="meta")), "Expected points as numbers"),
        ((SRC, TRG, "points.csv"), "Expected points as numbers .* but got 'points.csv'"),
        ((SRC, TRG, torch.zeros(1, 2).to_sparse()), "Expected points as numbers"),
        (
            (SRC, TRG, np.array([[1, 2], [3, 4]], dtype=object)),
            r"Expected points as numbers .* but got array\(\[\[1, 2\], \[3, 4\]\], dtype=object\)",
        ),
        ((SRC, TRG, None), "Expected points as numbers"),
        (
            (SRC, TRG, [[1, 1]], -1),
            "Expected size, the side of the squares in px, as a whole number of at least 1 but got -1",
        ),
        ((SRC, TRG, [[1, 1]], 0), "at least 1 but got 0"),
        ((SRC, TRG, [[1, 1]], "64"), "at least 1 but got '64'"),
        ((SRC, TRG, [[1, 1]], True), "whole number .* but got True"),
        ((SRC, TRG, [[1, 1]], 10**6), "of 1 to 8192 but got 1000000"),
    ],
)
def test_what_cannot_be_matched_is_named(arguments, message):
    with pytest.raises(DataError, match=message):
        match_images(Shift(), *arguments)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cuda", "the GPU that device=cuda names"), ("gpu", "did you mean 'cuda'"), (torch.device("cuda", 7), "cuda:7")],
)
def test_a_device_that_is_not_there_is_named(device, message):
    if torch.cuda.device_count() > 7:
        pytest.skip("all of these cards are there")
    if torch.cuda.is_available() and str(device) == "cuda":
        pytest.skip("there is a card")
    with pytest.raises(ConfigError, match=message):
        match_images(Shift(), SRC, TRG, [[1.0, 1.0]], device=device)


class Recorded(torch.nn.Module):
    """Answers with the middle of the right half of the square, and keeps what it was given."""

    size, resize = 40, "letterbox"

    def forward(self, src_img, trg_img, src_kps):
        self.given = src_img, trg_img, src_kps
        heatmap = torch.zeros(1, src_kps.shape[1], 4, 4)
        heatmap[..., 1, 2] = 1
        return Matches(src_kps.new_tensor([30.0, 20.0]).expand_as(src_kps), torch.ones(src_kps.shape[:2]), heatmap)


def test_a_student_of_letterboxed_images_is_given_such():
    """100 x 50 becomes 40 x 20 between y 10 and 30; 40 x 80 becomes 20 x 40 between x 10 and 30."""
    matcher = Recorded()
    answer = match_images(matcher, SRC, TRG, [[20, 10], [100, 50]])
    src, trg, points = matcher.given
    assert points.tolist() == [[[8.0, 14.0], [40.0, 30.0]]]
    assert answer.trg_kps.tolist() == [[[40.0, 40.0], [40.0, 40.0]]]  # x: (30 - 10) * 2
    grey = torch.tensor(124 / 255)
    assert (src[..., :10, :] == grey).all() and (src[..., 30:, :] == grey).all()
    assert (trg[..., :10] == grey).all() and (trg[..., 30:] == grey).all()
    content = torch.nn.functional.interpolate(SRC, (20, 40), mode="bilinear", antialias=True, align_corners=False)
    assert torch.equal(src[..., 10:30, :], content.clamp(0, 1))
    assert answer.heatmap.shape == (1, 2, 4, 4)
    # Over the target, x 10 to 30 of the square, cell (1, 2), x 20 to 30, is the right half; read between cells' centres.
    assert answer.heatmap[0, 0, 1].tolist() == pytest.approx([0.0, 0.25, 0.75, 0.75], abs=1e-6)


def test_an_answer_in_the_padding_lies_on_the_border():
    matcher = Recorded()
    matcher.forward = lambda s, t, points: Matches(points.new_tensor([[[38.0, 5.0]]]), *Recorded()(s, t, points)[1:])
    assert match_images(matcher, SRC, TRG, [[20, 10]]).trg_kps.tolist() == [[[40.0, 10.0]]]


def test_the_way_of_resizing_can_be_chosen():
    matcher = Recorded()
    match_images(matcher, SRC, TRG, [[20, 10]], resize="squash")
    assert matcher.given[2].tolist() == [[[8.0, 8.0]]]
    with pytest.raises(ConfigError, match="Expected resize to be one of these but got 'crop'"):
        match_images(matcher, SRC, TRG, [[20, 10]], resize="crop")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_images_of_half_precision_are_resized_and_points_of_the_border_are_taken(dtype):
    matcher = NearestNeighbour("test_resnet", [16])
    images = [torch.rand(1, 3, 90, 68, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    corners = [[34.0, 90.0], [68.0, 90.0], [68.0, 0.0]]
    # At 224 px 90 * (224 / 90), in single precision, lies beyond the border.
    answer = match_images(matcher.to(dtype), *(image.to(dtype) for image in images), corners, size=224)
    assert answer.trg_kps.dtype == torch.float32 and bool(answer.trg_kps.isfinite().all())
