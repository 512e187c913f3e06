import numpy as np
import pytest
import torch

from distill.core.consensus import agreement, consensus_at, mutual_probability, neighbourhood_consensus


def test_votes_are_sums_over_neighbours_that_moved_alike():
    random = np.random.default_rng(0)
    probability = random.random((4, 5, 4, 5)).astype(np.float32)
    sigma, radius = 1.0, 2
    expected = np.zeros_like(probability)
    for y, x, v, u in np.ndindex(*probability.shape):
        for dy in range(-radius, radius + 1):
            for dx in range(-radius, radius + 1):
                place = (y + dy, x + dx, v + dy, u + dx)
                if all(0 <= p < n for p, n in zip(place, probability.shape, strict=True)):
                    expected[y, x, v, u] += np.exp(-(dx**2 + dy**2) / (2 * sigma**2)) * probability[place]
    found = neighbourhood_consensus(torch.from_numpy(probability)[None], sigma)[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_images_agree_where_neighbours_share_their_offset():
    scores = torch.zeros(2, 1, 6, 1, 6)
    for x in range(5):
        scores[0, 0, x, 0, x + 1] = 5.0  # everything moved by one
        scores[1, 0, x, 0, 5 - x] = 5.0  # as surely, but turned round
    moved, turned = agreement(mutual_probability(scores), 3.0)
    assert float(moved) > float(turned)


def test_the_mutual_probability_is_the_geometric_mean_of_both_directions():
    scores = torch.randn(1, 2, 2, 2, 2)
    flat = scores.view(4, 4).double().numpy()
    there = np.exp(flat) / np.exp(flat).sum(1, keepdims=True)
    back = np.exp(flat) / np.exp(flat).sum(0, keepdims=True)
    np.testing.assert_allclose(mutual_probability(scores).view(4, 4).numpy(), np.sqrt(there * back), rtol=1e-4)


def test_agreement_is_the_best_vote_of_the_near_neighbourhood():
    probability = mutual_probability(torch.randn(2, 5, 5, 5, 5))
    best = [neighbourhood_consensus(one[None], 1.0).reshape(25, 25).max(1).values.mean() for one in probability]
    torch.testing.assert_close(agreement(probability, 2.0), torch.stack(best))


def test_at_the_centres_of_cells_points_have_the_votes_of_the_cells():
    probability = torch.rand(2, 4, 6, 4, 6)
    cells = [(y, x) for y in range(4) for x in range(6)]
    points = torch.tensor([[((x + 0.5) / 6, (y + 0.5) / 4) for y, x in cells]] * 2)
    found = consensus_at(probability, points, 1.5)
    torch.testing.assert_close(found, neighbourhood_consensus(probability, 1.5).flatten(1, 2))


@pytest.mark.parametrize("finer", [1, 2])
def test_votes_for_points_between_cells_are_carried_by_the_distance(finer):
    random = np.random.default_rng(0)
    probability = random.random((3, 4, 3 * finer, 4 * finer))
    points, sigma, radius = random.random((5, 2)), 0.8, 1
    expected = np.zeros((5, 3 * finer, 4 * finer))
    for n, i, j, v, u in np.ndindex(5, *probability.shape):
        away = points[n] * (4, 3) - (j + 0.5, i + 0.5)  # x, y, in cells of the source
        if (np.abs(away) >= radius + 0.5).any():
            continue
        vote = np.exp(-(away**2).sum() / (2 * sigma**2)) * probability[i, j, v, u]
        x, y = np.array([u, v]) + away * finer  # where the match leads, in cells of the target, split among four
        for row, column in np.ndindex(*expected.shape[1:]):
            expected[n, row, column] += vote * max(0, 1 - abs(row - y)) * max(0, 1 - abs(column - x))
    found = consensus_at(torch.from_numpy(probability)[None], torch.from_numpy(points)[None], sigma)
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-9, atol=1e-12)
