import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.core.consensus import (
    NeighbourhoodConsensus,
    agreement,
    blurred,
    consensus_at,
    mutual_probability,
    neighbourhood_consensus,
)


def test_consensus_is_a_sum_over_neighbours_of_the_same_offset():
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
        scores[1, 0, x, 0, 5 - x] = 5.0  # with the same probability, but flipped
    moved, flipped = agreement(mutual_probability(scores), 1.5)
    assert float(moved) > float(flipped)


def test_the_mutual_probability_is_the_geometric_mean_of_both_directions():
    scores = torch.randn(1, 2, 2, 2, 2)
    flat = scores.view(4, 4).double().numpy()
    there = np.exp(flat) / np.exp(flat).sum(1, keepdims=True)
    back = np.exp(flat) / np.exp(flat).sum(0, keepdims=True)
    np.testing.assert_allclose(mutual_probability(scores).view(4, 4).numpy(), np.sqrt(there * back), rtol=1e-4)


def test_agreement_is_the_mean_of_the_highest_consensus():
    probability = mutual_probability(torch.randn(2, 5, 5, 5, 5))
    best = [neighbourhood_consensus(one[None], 1.0).reshape(25, 25).max(1).values.mean() for one in probability]
    torch.testing.assert_close(agreement(probability, 1.0), torch.stack(best))


def test_agreement_with_tolerance_is_the_mean_of_the_highest_blurred_consensus():
    probability = mutual_probability(torch.randn(2, 5, 5, 5, 5))
    maps = [blurred(neighbourhood_consensus(one[None], 1.0).reshape(1, 25, 5, 5), 0.2) for one in probability]
    best = [one.reshape(25, 25).max(1).values.mean() for one in maps]
    torch.testing.assert_close(agreement(probability, 1.0, 0.2), torch.stack(best))


def test_orientations_are_compared_with_their_own_tolerance():
    torch.manual_seed(0)
    src, trg = (F.normalize(torch.randn(1, 16, 8, 8), dim=1) for _ in range(2))
    probability = mutual_probability(torch.einsum("bcyx,bcvu->byxvu", src, trg) / 0.05)
    for tolerance in (0.0, 0.15):
        consensus = NeighbourhoodConsensus(3.0, tolerance=0.3, orientation_tolerance=tolerance)
        torch.testing.assert_close(consensus._agreement(src, trg), agreement(probability, 1.5, tolerance))
    assert NeighbourhoodConsensus(3.0).orientation_tolerance == 0.08


def test_at_the_centres_of_cells_points_have_the_consensus_of_the_cells():
    probability = torch.rand(2, 4, 6, 4, 6)
    cells = [(y, x) for y in range(4) for x in range(6)]
    points = torch.tensor([[((x + 0.5) / 6, (y + 0.5) / 4) for y, x in cells]] * 2)
    found = consensus_at(probability, points, 1.5)
    torch.testing.assert_close(found, neighbourhood_consensus(probability, 1.5).flatten(1, 2))


@pytest.mark.parametrize("finer", [1, 2])
def test_consensus_on_points_between_cells_are_carried_by_the_distance(finer):
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


def test_blurred_maps_are_gaussian_means():
    maps, sigma = np.random.default_rng(0).random((2, 6, 9)), 0.2
    expected = np.zeros_like(maps)
    for n, row, column in np.ndindex(*maps.shape):
        y, x = np.mgrid[:6, :9]
        weights = np.exp(-(((y - row) / (6 * sigma)) ** 2 + ((x - column) / (9 * sigma)) ** 2) / 2)
        expected[n, row, column] = (weights * maps[n]).sum() / weights.sum()
    np.testing.assert_allclose(blurred(torch.from_numpy(maps)[None], sigma)[0].numpy(), expected, rtol=1e-9)


def test_a_gaussian_narrower_than_any_cell_leaves_maps_as_they_are():
    maps = torch.rand(1, 2, 5, 7)
    torch.testing.assert_close(blurred(maps, 1e-30), maps)


@pytest.mark.parametrize("carry", [True, False])
def test_with_tolerance_a_neighbour_speaks_for_the_places_around_its_match(carry):
    src, trg, points = torch.rand(2, 4, 6, 6), torch.rand(2, 4, 6, 6), torch.rand(2, 3, 2) * 24
    exact, tolerant = (NeighbourhoodConsensus(1.0, carry=carry, tolerance=sigma) for sigma in (0.0, 0.15))
    maps = [one.maps(F.normalize(src, dim=1), F.normalize(trg, dim=1), points, (24, 24)) for one in (exact, tolerant)]
    torch.testing.assert_close(maps[1], blurred(maps[0], 0.15))
    assert not torch.allclose(maps[1], maps[0], rtol=0.1)


def test_confidence_is_read_at_a_lower_temperature_where_consensus_tolerates():
    assert NeighbourhoodConsensus(3.0).confidence_temperature == 2.5
    assert NeighbourhoodConsensus(3.0, tolerance=0.1).confidence_temperature == 2.0


def test_strength_means_the_same_for_maps_and_for_logits():
    logits, consensus = torch.randn(1, 2, 4, 4), torch.rand(1, 2, 4, 4) + 0.1
    weighed = NeighbourhoodConsensus(2.5)
    from_logits = weighed.add_to_logits(logits, consensus).flatten(2).softmax(-1)
    from_map = weighed.multiply(logits.flatten(2).softmax(-1).view_as(logits), consensus).flatten(2)
    torch.testing.assert_close(from_map / from_map.sum(-1, keepdim=True), from_logits)


@pytest.mark.parametrize("consensus", [NeighbourhoodConsensus(3.0, 6, 6, 1.2, 0.1, carry=c) for c in (True, False)])
def test_consensus_on_the_centre_of_a_cell_is_the_same_carried_or_interpolated(consensus):
    torch.manual_seed(0)
    src, trg = (torch.nn.functional.normalize(torch.randn(1, 16, 6, 6), dim=1) for _ in range(2))
    probability = mutual_probability(torch.einsum("bcyx,bcvu->byxvu", src, trg) / 0.1)
    expected = neighbourhood_consensus(probability, 1.2)[0, 2, 4]
    point = torch.tensor([[[(4 + 0.5) * 10, (2 + 0.5) * 10]]])
    torch.testing.assert_close(consensus.maps(src, trg, point, (60, 60))[0, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("carry", [True, False])
def test_consensus_of_maps_does_not_depend_on_autocast(carry):
    torch.manual_seed(0)
    src, trg = (torch.nn.functional.normalize(torch.randn(1, 16, 8, 8), dim=1) for _ in range(2))
    consensus, points = NeighbourhoodConsensus(3.0, carry=carry), torch.rand(1, 5, 2) * 64
    expected = consensus.maps(src, trg, points, (64, 64)), consensus.prefers_flipped(src, trg, trg.flip(-1))
    with torch.autocast("cpu", torch.bfloat16):
        found = consensus.maps(src, trg, points, (64, 64)), consensus.prefers_flipped(src, trg, trg.flip(-1))
    torch.testing.assert_close(found, expected)


def test_with_tolerance_targets_are_compared_no_finer_than_it_leaves_to_be_seen():
    expected = {0.0: 40, 1e-320: 40, 0.01: 40, 0.1: 16, 0.4: 4, 9.0: 1}
    assert {sigma: NeighbourhoodConsensus(3.0, tolerance=sigma).compared_side for sigma in expected} == expected
    assert NeighbourhoodConsensus(3.0, 20, 20, carry=False, tolerance=0.1).compared_side == 20
    maps = F.normalize(
        F.interpolate(torch.rand(2, 24, 8, 8, generator=torch.Generator().manual_seed(0)), (32, 32), mode="bicubic"),
        dim=1,
    )
    points = torch.tensor([[[40.0, 60.0], [80.0, 30.0]]])
    fine, coarse = (
        NeighbourhoodConsensus(1.0, target_side=side, tolerance=0.05).maps(maps[:1], maps[1:], points, (128, 128))
        for side in (40, 16)
    )
    assert fine.shape[-2:] == (32, 32) and coarse.shape[-2:] == (16, 16)
    averaged = F.avg_pool2d(fine, 2)
    same = F.cosine_similarity(averaged.flatten(2), coarse.flatten(2), dim=-1)
    assert float(same.min()) > 0.98
