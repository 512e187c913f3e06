import numpy as np
import pytest
import torch

from distill.core.vote import vote


def best_on_a_grid(points: np.ndarray, weights: np.ndarray, sigma: float, side: int) -> tuple[float, float]:
    """Returns the place with the largest kernel sum, by looking everywhere."""
    best, place = -1.0, (0.0, 0.0)
    for x in np.arange(0, side, 0.5):
        for y in np.arange(0, side, 0.5):
            support = 0.0
            for (px, py), weight in zip(points, weights, strict=True):
                support += weight * np.exp(-((px - x) ** 2 + (py - y) ** 2) / (2 * sigma**2))
            if support > best:
                best, place = support, (x, y)
    return place


def test_the_vote_is_where_a_search_of_all_places_finds_the_most_support():
    random = np.random.default_rng(0)
    for _ in range(5):
        points = np.concatenate([random.normal(20, 2, (4, 2)), random.normal(45, 2, (3, 2))])
        weights = random.uniform(0.1, 1, 7)
        found = vote(torch.tensor(points)[None], torch.tensor(weights)[None], sigma=3.0)
        expected = best_on_a_grid(points, weights, 3.0, 60)
        np.testing.assert_allclose(found.points[0].numpy(), expected, atol=0.5)


def test_one_source_is_taken_as_it_is():
    found = vote(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[0.3]]), 2.0)
    assert found.points.tolist() == [[3.0, 4.0]]
    assert float(found.agreement) == pytest.approx(1) and float(found.confidence) == pytest.approx(0.3)


def test_sources_that_are_far_off_do_not_pull_the_answer_but_lower_the_confidence():
    points = torch.tensor([[[10.0, 10.0], [11.0, 10.0], [90.0, 90.0]]])
    found = vote(points, torch.tensor([[0.8, 0.8, 0.8]]), 3.0)
    np.testing.assert_allclose(found.points[0].numpy(), [10.5, 10.0], atol=1e-3)
    assert 0.6 < float(found.agreement) < 0.67 and float(found.confidence) == pytest.approx(
        0.8 * float(found.agreement)
    )


def test_the_heavier_side_wins_and_missing_answers_do_not_count():
    points = torch.tensor([[[10.0, 0.0], [50.0, 0.0], [torch.nan, torch.nan]], [[torch.nan, torch.nan]] * 3])
    found = vote(points, torch.tensor([[0.2, 0.9, 1.0]] * 2), 3.0)
    np.testing.assert_allclose(found.points[0].numpy(), [50, 0], atol=1e-3)
    assert found.points[1].isnan().all() and found.confidence[1] == 0 and found.agreement[1] == 0


def test_answers_without_any_confidence_are_counted_among_themselves():
    found = vote(torch.tensor([[[1.0, 1.0], [1.0, 1.0], [40.0, 40.0]]]), torch.zeros(1, 3), 2.0)
    np.testing.assert_allclose(found.points[0].numpy(), [1, 1], atol=1e-3)
    assert float(found.confidence) == pytest.approx(0, abs=1e-6)
