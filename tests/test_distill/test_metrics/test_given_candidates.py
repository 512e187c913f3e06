"""Which of the target's annotated points a heatmap prefers."""

import math

import pytest
import torch

from distill.core.geometry import gaussian_heatmap
from distill.metrics.given_candidates import GivenCandidates, best_candidate, same_group

CANDIDATES = torch.tensor([[[4.0, 4.0], [28.0, 4.0], [28.0, 28.0]]])
PARTS = torch.tensor([[7, 3, 5]])


def test_the_candidate_at_which_the_heatmap_is_highest_is_preferred():
    heatmap = gaussian_heatmap(torch.tensor([[[26.0, 9.0], [5.0, 9.0]]]), (16, 16), (32, 32), 6.0)
    every, last = torch.ones(1, 2, 3, dtype=torch.bool), torch.tensor([[[False, False, True], [False, False, False]]])
    assert best_candidate(heatmap, CANDIDATES, PARTS, every, (32, 32)).tolist() == [[3, 7]]
    assert best_candidate(heatmap, CANDIDATES, PARTS, last, (32, 32)).tolist() == [[5, -1]]


def test_a_heatmap_of_one_cell_and_a_target_without_points_prefer_nothing():
    every = torch.ones(1, 2, 3, dtype=torch.bool)
    assert best_candidate(torch.zeros(1, 2, 1, 1), CANDIDATES, PARTS, every, (32, 32)).tolist() == [[-1, -1]]
    none = best_candidate(torch.rand(1, 2, 4, 4), CANDIDATES[:, :0], PARTS[:, :0], every[..., :0], (32, 32))
    assert none.tolist() == [[-1, -1]]


def test_a_group_is_that_of_the_category_and_parts_in_none_have_no_candidates():
    found = same_group(
        torch.tensor([[3, 7, 9], [3, 7, 9]]), PARTS.expand(2, -1), ["cat", "cow"], {"cat": [[3, 5], [9]]}
    )
    assert found[0].tolist() == [[False, True, True], [False] * 3, [False] * 3] and not found[1].any()
    assert same_group(torch.tensor([[7]]), PARTS, ["cow"], {"": [[7, 3]]})[0].tolist() == [[True, True, False]]


def test_points_with_one_candidate_or_an_unknown_choice_do_not_count():
    metric = GivenCandidates()
    allowed = torch.tensor([[[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 1]]]).bool()
    mask = torch.tensor([[True, True, True, True, False]])
    metric.update(torch.tensor([[3, 5, 7, -1, 7]]), torch.tensor([[3, 3, 7, 3, 7]]), mask, allowed)
    assert metric.compute() == {"right": 50.0, "chance": pytest.approx(100 * (1 / 2 + 1 / 3) / 2), "n_points": 2}
    assert math.isnan(GivenCandidates().compute()["right"])
