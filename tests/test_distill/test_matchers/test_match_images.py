import pytest
import torch

from distill import Matches, match_images
from distill.core.errors import ConfigError, DataError


class Shift(torch.nn.Module):
    """Answers with the point moved by a quarter of the square's side to the right."""

    size = 32

    def forward(self, src_img, trg_img, src_kps):
        assert src_img.shape == trg_img.shape == (1, 3, self.size, self.size)
        points = src_kps + torch.tensor([self.size / 4, 0.0])
        return Matches(points, torch.full(points.shape[:2], 0.5), torch.zeros(*points.shape[:2], 4, 4))


SRC, TRG = torch.rand(1, 3, 50, 100), torch.rand(1, 3, 80, 40)


@pytest.mark.parametrize("points", [[[20, 10], [50, 25]], torch.tensor([[[20.0, 10.0], [50.0, 25.0]]])])
def test_points_are_pixels_of_the_images_as_given(points):
    answer = match_images(Shift(), SRC, TRG, points)
    # (20, 10) of 100 x 50 is (0.2, 0.2); a quarter further right (0.45, 0.2); of 40 x 80 (18, 16).
    assert torch.allclose(answer.trg_kps, torch.tensor([[[18.0, 16.0], [30.0, 40.0]]]), atol=1e-5)
    assert answer.confidence.tolist() == [[0.5, 0.5]]


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
