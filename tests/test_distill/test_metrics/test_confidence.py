import math

import numpy as np
import pytest

from distill.metrics.confidence import auroc, kept_pck


def test_auroc_is_the_share_of_right_and_wrong_points_in_the_right_order():
    random = np.random.default_rng(0)
    confidence, right = random.integers(0, 6, 60) / 5, random.random(60) < 0.4
    won = 0.0
    for sure in confidence[right]:
        for other in confidence[~right]:
            won += 1.0 if sure > other else 0.5 if sure == other else 0.0
    assert auroc(confidence, right) == pytest.approx(won / (right.sum() * (~right).sum()))


def test_a_confidence_that_knows_all_scores_one_and_its_opposite_nothing():
    right = np.array([True, False, True, False])
    assert auroc([0.9, 0.1, 0.8, 0.2], right) == 1 and auroc([0.1, 0.9, 0.2, 0.8], right) == 0
    assert auroc([0.5] * 4, right) == 0.5


def test_auroc_has_no_value_when_nothing_is_wrong():
    assert math.isnan(auroc([0.2, 0.4], [True, True]))


def test_points_of_one_confidence_count_alike_whatever_their_order():
    confidence, right = np.array([0.9, 0.5, 0.5, 0.5, 0.5, 0.1, 0.5, 0.1]), np.array([1, 1, 1, 0, 0, 1, 0, 0], bool)
    # By hand: 1, then five of which two are right, then two of which one is.
    expected = {"0.25": 100 * (1 + 0.4) / 2, "0.50": 100 * (1 + 3 * 0.4) / 4, "1.00": 50.0}
    for order in (np.arange(8), np.arange(8)[::-1], np.random.default_rng(0).permutation(8)):
        assert kept_pck(confidence[order], right[order], (0.25, 0.5, 1.0)) == pytest.approx(expected)
    assert kept_pck(np.ones(8), right, (0.25,)) == {"0.25": 50.0}


def test_what_is_kept_are_the_surest_points():
    kept = kept_pck([0.1, 0.9, 0.8, 0.3], [False, True, False, False], shares=(1.0, 0.5, 0.25))
    assert kept == {"1.00": 25.0, "0.50": 50.0, "0.25": 100.0}
