import math

import pytest
import torch

from distill.cli.config import compose, instantiate
from distill.core.errors import ConfigError
from distill.core.types import Matches
from distill.evaluation.evaluate import evaluate
from distill.matchers.oracle import Oracle
from distill.matchers.rescored import RescoredMatcher


class Off:
    """Answers with the truth, moved to the right by ``dx`` px wherever the point's number is odd."""

    def __init__(self, dx: float, confidence: float) -> None:
        self.dx, self.confidence = dx, confidence

    def match_pairs(self, pairs):
        odd = torch.arange(pairs.trg_kps.shape[1]) % 2
        points = pairs.trg_kps + torch.stack([self.dx * odd, 0 * odd], -1)
        return Matches(points, torch.full(points.shape[:2], self.confidence), points.new_ones(*points.shape[:2], 4, 4))


def test_the_answer_is_the_first_matchers_and_the_confidence_the_second_matchers(make_pairs):
    pairs = make_pairs(4, size=64)
    rescored = RescoredMatcher(Off(6.4, 0.9), Off(0.0, 0.5), tolerance=0.1).match_pairs(pairs)
    assert torch.equal(rescored.trg_kps, Off(6.4, 0.9).match_pairs(pairs).trg_kps)
    far = 0.5 * math.exp(-0.5)  # 6.4 px are a tenth of the side, one standard deviation
    torch.testing.assert_close(rescored.confidence[0], torch.tensor([0.5, far, 0.5, far]))


def test_the_confidence_of_an_oracle_separates_right_answers_from_wrong_ones(few):
    blind = evaluate(Off(40.0, 0.9), few, "blind", progress=False).report["confidence"]
    told = evaluate(RescoredMatcher(Off(40.0, 0.9), Oracle()), few, "told", progress=False).report["confidence"]
    assert blind["auroc@0.10"] == 0.5 and told["auroc@0.10"] == 1.0
    assert told["pck@0.10_of_kept"]["0.50"] == 100


def test_a_tolerance_of_zero_is_refused():
    with pytest.raises(ConfigError, match="matcher.tolerance to be positive but got 0"):
        RescoredMatcher(Oracle(), Oracle(), tolerance=0)


def test_the_configuration_wants_a_student():
    with pytest.raises(ConfigError, match="ckpt="):
        instantiate(compose("evaluate", ["matcher=rescored"]).matcher)
