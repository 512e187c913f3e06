"""Baselines and wrappers are called like any matcher, or say in one line what they need."""

import pytest
import torch

from distill.core.errors import ConfigError, DataError
from distill.core.types import Matches
from distill.labels.cached import Cached
from distill.matchers.box_relative import BoxRelative
from distill.matchers.memoized import MemoizedMatcher
from distill.matchers.oracle import Oracle
from distill.matchers.rescored import RescoredMatcher


class Shift(torch.nn.Module):
    """Answers with the query, moved by a weight."""

    def __init__(self, dx: float = 0.0, confidence: float = 0.5) -> None:
        super().__init__()
        self.dx, self.confidence = torch.nn.Parameter(torch.tensor([dx, 0.0])), confidence

    def forward(self, src_img, trg_img, src_kps):
        points = src_kps + self.dx
        heatmap = points.new_zeros(*points.shape[:2], 4, 4) + self.dx.sum()
        return Matches(points, torch.full_like(points[..., 0], self.confidence), heatmap)


def query(size=(20, 40)):
    images = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(0))
    return images[0], images[1], torch.tensor([[[10.0, 5.0], [40.0, 20.0]]])


def test_without_boxes_the_box_baseline_takes_the_whole_images():
    src_img, _, points = query()
    answer = BoxRelative()(src_img, torch.rand(1, 3, 80, 80), points)
    torch.testing.assert_close(answer.trg_kps, torch.tensor([[[20.0, 20.0], [80.0, 80.0]]]))
    assert answer.confidence.shape == (1, 2) and answer.heatmap.shape == (1, 2, 16, 16)


def test_a_rescored_matcher_is_called_with_images_and_points_alone():
    answer = RescoredMatcher(Shift(0.0, 0.9), Shift(0.0, 0.3))(*query())
    torch.testing.assert_close(answer.trg_kps, query()[2])
    assert answer.confidence.tolist() == [[pytest.approx(0.3)] * 2]


def test_a_memoized_matcher_is_called_with_images_and_points_alone():
    torch.testing.assert_close(MemoizedMatcher(Shift(1.0))(*query()).trg_kps, query()[2] + torch.tensor([1.0, 0.0]))


def test_the_oracle_says_that_two_images_have_no_truth():
    with pytest.raises(ConfigError, match="Expected annotated pairs for the oracle .*evaluate matcher=oracle"):
        Oracle()(*query())


def test_stored_labels_say_that_they_are_found_by_the_pairs_of_a_data_set(tmp_path):
    with pytest.raises(ConfigError, match="Expected pairs of a data set for stored labels .*evaluate matcher=cached"):
        Cached(tmp_path)(*query())


@pytest.mark.parametrize("inner", [Oracle, lambda: Cached("nowhere")])
def test_a_wrapper_of_a_matcher_that_needs_more_says_what_that_one_needs(inner):
    with pytest.raises(ConfigError, match="Expected (annotated pairs|pairs of a data set)"):
        RescoredMatcher(inner(), Shift())(*query())
    with pytest.raises(ConfigError, match="Expected (annotated pairs|pairs of a data set)"):
        MemoizedMatcher(inner())(*query())


def test_a_wrapper_of_a_matcher_of_pairs_only_names_its_class():
    class OfPairs:
        def match_pairs(self, pairs):
            raise AssertionError("asked")

    for wrapper in (RescoredMatcher(OfPairs(), Shift()), MemoizedMatcher(OfPairs())):
        with pytest.raises(ConfigError, match="OfPairs answers pairs of a data set only"):
            wrapper(*query())


@pytest.mark.parametrize(
    "build", [BoxRelative, lambda: RescoredMatcher(Shift(), Shift()), lambda: MemoizedMatcher(Shift())]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, t, p: ((s * 255).byte(), t, p), "floats in .0, 1. but got torch.uint8"),
        (lambda s, t, p: (s, t * 255, p), "trg_img in .0, 1. but got"),
        (lambda s, t, p: (s, t, p + 1), "point 1 of image 0 is .41, 21."),
        (lambda s, t, p: (s[0], t, p), r"shape \(B, 3, H, W\)"),
        (lambda s, t, p: (s, t.repeat(2, 1, 1, 1), p), "as many source as target images but got 1 and 2"),
    ],
)
def test_what_is_no_query_is_refused(build, change, message):
    with pytest.raises(DataError, match=message):
        build()(*change(*query()))


@pytest.mark.parametrize(
    "build", [BoxRelative, lambda: RescoredMatcher(Shift(), Shift()), lambda: MemoizedMatcher(Shift())]
)
def test_answers_carry_no_gradient(build, make_pairs):
    src_img, trg_img, points = query()
    answers = [build()(src_img.requires_grad_(), trg_img, points.requires_grad_())]
    pairs = make_pairs(3)
    answers.append(build().match_pairs(pairs._replace(src_kps=pairs.src_kps.requires_grad_())))
    assert not any(value.requires_grad for answer in answers for value in answer)
