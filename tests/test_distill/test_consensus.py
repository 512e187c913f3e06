import numpy as np
import torch

from distill.consensus import consensus, mutual_probability, neighbourhood_votes, refine_scores


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
    found = neighbourhood_votes(torch.from_numpy(probability)[None], sigma)[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_a_match_that_its_neighbours_share_wins_over_a_lookalike():
    scores = torch.full((1, 1, 6, 1, 6), 0.0)
    for x in range(5):
        scores[0, 0, x, 0, x + 1] = 5.0  # everything moved by one
    scores[0, 0, 2, 0, 0] = 5.5  # the lookalike
    assert int(scores[0, 0, 2, 0].argmax()) == 0
    refined, agreement = refine_scores(scores, 1.5, 2.0)
    assert int(refined[0, 0, 2, 0].argmax()) == 3
    assert float(agreement) > float(refine_scores(torch.zeros_like(scores), 1.5, 2.0)[1])


def test_the_mutual_probability_is_the_geometric_mean_of_both_directions():
    scores = torch.randn(1, 2, 2, 2, 2)
    flat = scores.view(4, 4).double().numpy()
    there = np.exp(flat) / np.exp(flat).sum(1, keepdims=True)
    back = np.exp(flat) / np.exp(flat).sum(0, keepdims=True)
    np.testing.assert_allclose(mutual_probability(scores).view(4, 4).numpy(), np.sqrt(there * back), rtol=1e-4)


def test_votes_come_as_logarithms_and_agreement_is_judged_by_the_near_neighbourhood():
    scores = torch.randn(2, 5, 5, 5, 5)
    votes, agreement = consensus(scores, 2.0)
    probability = mutual_probability(scores)
    torch.testing.assert_close(votes.exp(), neighbourhood_votes(probability, 2.0))
    best = [neighbourhood_votes(one[None], 1.0).reshape(25, 25).max(1).values.mean() for one in probability]
    torch.testing.assert_close(agreement, torch.stack(best))
    torch.testing.assert_close(refine_scores(scores, 2.0, 3.0)[0], scores + 3 * votes)
