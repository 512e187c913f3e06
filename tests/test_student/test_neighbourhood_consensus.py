import pytest
import torch
from torch.nn import functional as F

from distill.core.consensus import NeighbourhoodConsensus, pooled
from distill.core.errors import ConfigError
from student import FeatureTeacher, StudentMatcher
from student.flip_test import join

SIZE = (96, 96)


def places(shift=(0, 0)) -> torch.Tensor:
    """Descriptors (1, 24, 12, 12) that differ from cell to cell, moved by so many cells in y and x."""
    torch.manual_seed(0)
    return F.normalize(torch.randn(1, 24, 12, 12), dim=1).roll(shift, (-2, -1))


def cell(y: int, x: int) -> torch.Tensor:
    return torch.tensor([[[(x + 0.5) * 8, (y + 0.5) * 8]]])


def add(consensus: NeighbourhoodConsensus, logits, source, target, points) -> torch.Tensor:
    return consensus.add_to_logits(logits, consensus.maps(source, target, points, SIZE))


def best(heatmap: torch.Tensor) -> tuple[int, int]:
    return divmod(int(heatmap[0, 0].argmax()), heatmap.shape[-1])


def test_a_point_without_scores_of_its_own_follows_its_neighbours():
    nothing = torch.zeros(1, 1, 12, 12)
    assert best(add(NeighbourhoodConsensus(2.0), nothing, places(), places((1, 2)), cell(5, 5))) == (6, 7)


def test_consensus_outweighs_a_similar_descriptor_elsewhere():
    source, target = places(), places((1, 2))
    target[..., 10, 1] = source[..., 5, 5]  # the lookalike, a little better than the truth
    scores = torch.einsum("bc,bchw->bhw", source[..., 5, 5], target)[:, None] / 0.05
    scores[..., 10, 1] += 0.5
    assert best(scores) == (10, 1)
    assert best(add(NeighbourhoodConsensus(3.0), scores, source, target, cell(5, 5))) == (6, 7)


def test_consensus_on_a_finer_target_has_its_cells():
    source, target = places(), places((1, 2))
    target = F.interpolate(target, scale_factor=3, mode="nearest")  # 36 cells of 8/3 px
    votes = add(NeighbourhoodConsensus(2.0), torch.zeros(1, 1, 36, 36), source, target, cell(5, 5))
    assert best(votes) == (6 * 3 + 1, 7 * 3 + 1)


@pytest.mark.parametrize("flipped", [False, True])
def test_an_image_agrees_better_than_its_flip(flipped):
    target = places((1, 2)).flip(-1) if flipped else places((1, 2))
    assert bool(NeighbourhoodConsensus(2.0).prefers_flipped(places(), target, target.flip(-1))) is flipped


def test_each_pair_of_a_batch_takes_the_orientation_that_agrees_better():
    student = StudentMatcher("test_resnet", [8, 16], 8, consensus=3.0).eval()
    source = torch.cat([places(), places()])
    target = torch.cat([places((1, 2)), places((1, 2)).flip(-1)])
    points = torch.cat([cell(5, 5)] * 2)
    source, target = (join(maps, maps.flip(-1)) for maps in (source, target))  # descriptors that a flip does not change
    answer = student.match_encoded(source, target, points, SIZE, SIZE)
    assert best(answer.heatmap[:1]) == (6, 7) and best(answer.heatmap[1:]) == (6, 12 - 1 - 7)
    torch.testing.assert_close(answer.trg_kps[:, 0], torch.tensor([[60.0, 52.0], [36.0, 52.0]]), atol=2.0, rtol=0)


@pytest.mark.parametrize(("cells", "left"), [(24, 12), (12, 12), (11, 6), (6, 6), (5, 4)])
def test_fine_maps_are_averaged_until_they_are_coarse_enough(cells, left):
    maps = places()
    expected = F.normalize(maps.unflatten(-1, (left, -1)).unflatten(2, (left, -1)).mean((3, 5)), dim=1)
    torch.testing.assert_close(pooled(maps, cells), expected)


def test_cells_that_do_not_divide_a_side_still_cover_it():
    maps = torch.zeros(1, 2, 7, 5)
    maps[:, 0], maps[:, 1, -1, -1] = 1.0, 1.0
    found = pooled(maps, 4)  # windows of two cells, by turns, from every end
    assert found.shape == (1, 2, 4, 3)
    torch.testing.assert_close(found[0, :, -1, -1], F.normalize(torch.tensor([1.0, 1 / 4]), dim=0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"side": 0},
        {"target_side": -1},
        {"sigma_cells": 0.0},
        {"temperature": 0.0},
        {"tolerance": float("nan")},
        {"sigma_cells": float("inf")},
    ],
)
def test_amounts_that_cannot_work_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        NeighbourhoodConsensus(1.0, **wrong)


def test_consensus_is_left_out_of_training_and_has_no_weights(make_pairs):
    pair = make_pairs(3, size=64)
    query = (pair.src_img, pair.trg_img, pair.src_kps)
    plain, voting = StudentMatcher("test_resnet", [8, 16], 8), StudentMatcher("test_resnet", [8, 16], 8, consensus=3.0)
    voting.load_state_dict(plain.state_dict())
    with torch.no_grad():
        for student in (plain, voting):
            student.fusion.eval(), student.backbone.eval()
        torch.testing.assert_close(voting(*query).heatmap, plain(*query).heatmap)
        plain.eval(), voting.eval()
        other, answer = plain(*query), voting(*query)
    assert not torch.allclose(answer.heatmap, other.heatmap)
    assert answer.heatmap.shape == other.heatmap.shape and ((answer.confidence >= 0) & (answer.confidence <= 1)).all()


def test_a_negative_strength_is_refused():
    with pytest.raises(
        ConfigError, match="consensus of at least 0, such tolerances, and positive finite .* but got .*strength"
    ):
        StudentMatcher("test_resnet", [8], 8, consensus=-1.0)


def test_the_neighbourhoods_width_is_that_of_the_settings():
    narrow, usual = (
        StudentMatcher("test_resnet", [8], 8, consensus=3.0, **more) for more in ({"consensus_sigma": 1.5}, {})
    )
    assert narrow.consensus == NeighbourhoodConsensus(
        3.0, sigma_cells=1.5
    ) and usual.consensus == NeighbourhoodConsensus(3.0)
    with pytest.raises(ConfigError, match="sigma_cells"):
        StudentMatcher("test_resnet", [8], 8, consensus=3.0, consensus_sigma=0.0)


def test_the_tolerance_is_that_of_the_settings():
    student = StudentMatcher("test_resnet", [8], 8, consensus=3.0, consensus_tolerance=0.1)
    assert student.consensus == NeighbourhoodConsensus(3.0, tolerance=0.1)
    with pytest.raises(ConfigError, match="such tolerances, .* but got .*tolerance"):
        StudentMatcher("test_resnet", [8], 8, consensus=3.0, consensus_tolerance=-0.1)


def test_labels_tell_the_tolerances_that_they_were_made_with():
    student = StudentMatcher("test_resnet", [8], 8)
    exact, tolerant = (FeatureTeacher(student, consensus_tolerance=sigma).fingerprint() for sigma in (0.0, 0.1))
    assert (exact["tolerance"], exact["compared_side"]) == ("0.0", "40")
    assert (tolerant["tolerance"], tolerant["compared_side"]) == ("0.1", "16")
    assert exact["orientation_tolerance"] == tolerant["orientation_tolerance"] == "0.08"
