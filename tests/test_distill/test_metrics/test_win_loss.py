"""Who is right where."""

import numpy as np

from distill.metrics.win_loss import agreement_by_rightness, win_loss


def test_wins_and_losses_are_those_that_a_loop_counts():
    rng = np.random.default_rng(0)
    first, second = ([rng.random(n) < 0.6 for n in range(1, 40)] for _ in range(2))
    pairs = dict.fromkeys(("wins", "losses", "ties"), 0)
    points = dict.fromkeys(("both", "wins", "losses", "neither"), 0)
    for a, b in zip(first, second, strict=True):
        pairs["wins" if sum(a) > sum(b) else "losses" if sum(a) < sum(b) else "ties"] += 1
        for one, other in zip(a, b, strict=True):
            points["both" if one and other else "wins" if one else "losses" if other else "neither"] += 1
    assert win_loss(first, second) == {"pairs": pairs, "points": points}


def test_agreement_is_split_by_whether_the_reference_was_right():
    close = [np.array([True, False, True]), np.array([True])]
    right = [np.array([True, True, False]), np.array([True])]
    found = agreement_by_rightness(close, right)
    assert found == {"right": {"within": 66.667, "n_points": 3}, "wrong": {"within": 100.0, "n_points": 1}}
    assert agreement_by_rightness(close[1:], right[1:])["wrong"] == {"within": None, "n_points": 0}
