import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres, gaussian_heatmap, sample_at
from distill.core.types import Matches
from distill.data.pairs import collate_pairs
from distill.losses import (
    Contrastive,
    CoordinateHuber,
    Equivariance,
    Example,
    HeatmapKL,
    RelaxedCycle,
    SimilarityDistillation,
    weighted_mean,
)
from distill.losses.heatmap import LEAST, summed_up
from distill.training.callbacks.nan_check import one_pair
from distill.transforms.warp import RandomWarp
from student import StudentMatcher


def matches(points, confidence, heatmap) -> Matches:
    return Matches(torch.tensor(points), torch.tensor(confidence), heatmap)


@pytest.fixture
def example(make_pairs):
    def build(prediction: Matches, label: Matches, mask: torch.Tensor) -> Example:
        return Example(make_pairs(mask.shape[1], size=32)._replace(kps_mask=mask), label, prediction)

    return build


def random_case(side: int = 8):
    random = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, False]])
    label = matches([[[8.0, 8.0]] * 3], [[1.0, 0.25, 9.0]], torch.rand(1, 3, 4, 4, generator=random))
    prediction = matches(
        [[[8.0, 11.0], [20.0, 8.0], [0.0, 0.0]]], [[0.0] * 3], torch.randn(1, 3, side, side, generator=random)
    )
    return prediction, label, mask


def test_what_stands_outside_the_mask_has_no_effect_whatever_it_is():
    values, confidence = torch.tensor([[2.0, 4.0, math.nan]]), torch.tensor([[1.0, 0.5, math.nan]])
    mask = torch.tensor([[True, True, False]])
    assert weighted_mean(values, confidence, mask).item() == pytest.approx((2 + 0.5 * 4) / 1.5)


def test_heatmap_kl_agrees_with_scipy(example):
    prediction, label, mask = random_case()
    expected = []
    for n in range(2):
        scores = np.exp(prediction.heatmap[0, n].double().numpy())
        cells = (scores / scores.sum()).reshape(4, 2, 4, 2).sum((1, 3))
        target = label.heatmap[0, n].double().numpy() ** 3
        expected.append(rel_entr(target / target.sum(), cells).sum())
    value = HeatmapKL(sharpness=3)(example(prediction, label, mask))
    assert float(value) == pytest.approx((expected[0] + 0.25 * expected[1]) / 1.25, rel=1e-4)


@pytest.mark.parametrize(("fine", "coarse"), [(56, 16), (32, 16), (7, 3), (16, 16), (5, 4)])
def test_cells_of_grids_that_do_not_divide_are_summed_by_their_exact_overlap(fine, coarse):
    maps = torch.rand(1, 2, fine, fine + 1).softmax(-1)

    def shares(cells: int) -> np.ndarray:
        """By sampling a line at 20,000 places: which cell and which coarser cell each lies in."""
        at = (np.arange(20_000) + 0.5) / 20_000
        counts = np.zeros((coarse, cells))
        np.add.at(counts, ((at * coarse).astype(int), (at * cells).astype(int)), 1)
        return counts / counts.sum(0)

    expected = shares(fine) @ maps[0].numpy() @ shares(fine + 1).T
    found = summed_up(maps, (coarse, coarse))[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=5e-3)
    torch.testing.assert_close(found.sum((-2, -1)), maps.sum((-2, -1))[0])


@pytest.mark.parametrize(("student", "teacher"), [(56, 16), (16, 56), (14, 16), (9, 9)])
def test_heatmap_kl_is_never_negative_and_zero_for_equal_distributions(student, teacher, example):
    """With 56 and 16 cells the target summed to 0.93 and the divergence was -1.12."""
    points = [[[8.0, 8.0]] * 3]
    mask = torch.ones(1, 3, dtype=torch.bool)
    for seed in range(5):
        random = torch.Generator().manual_seed(seed)
        label = matches(points, [[1.0] * 3], torch.rand(1, 3, teacher, teacher, generator=random) ** 8)
        prediction = matches(points, [[1.0] * 3], 4 * torch.randn(1, 3, student, student, generator=random))
        assert float(HeatmapKL(1.0)(example(prediction, label, mask))) >= 0
    # Where the finer of two maps is the coarser one, cells cut in parts, both say the same.
    same = summed_up(prediction.heatmap.flatten(2).softmax(-1).view_as(prediction.heatmap), (teacher, teacher))
    if teacher < student:
        label = label._replace(heatmap=same)
        assert float(HeatmapKL(1.0)(example(prediction, label, mask))) == pytest.approx(0, abs=1e-5)


def test_heatmap_kl_under_autocast_is_that_without_it(example):
    prediction, label, mask = random_case(7)
    plain = HeatmapKL()(example(prediction, label, mask))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(HeatmapKL()(example(prediction, label, mask)), plain)


def test_heatmap_kl_is_zero_when_the_student_says_what_the_teacher_says(example):
    _, label, mask = random_case()
    prediction = label._replace(heatmap=2 * label.heatmap.log())
    assert float(HeatmapKL(sharpness=2)(example(prediction, label, mask))) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("ahead", "learns"), [(10.0, True), (18.0, True), (20.0, False), (200.0, False)])
def test_heatmap_kl_teaches_nothing_in_a_cell_that_the_student_all_but_rules_out(ahead, learns, example):
    """Its probability is exp(-18) = 1.5e-8, and exp(-20) = 2e-9: such a label is mostly wrong."""
    scores = torch.tensor([[[[0.0, ahead]]]], requires_grad=True)
    label = matches([[[0.0, 0.0]]], [[1.0]], torch.tensor([[[[1.0, 0.0]]]]))
    value = HeatmapKL(1.0)(example(matches([[[0.0, 0.0]]], [[1.0]], scores), label, torch.ones(1, 1, dtype=torch.bool)))
    value.backward()
    assert scores.grad is not None and float(scores.grad.abs().max()) == pytest.approx(float(learns), abs=1e-3)
    assert float(value) == pytest.approx(min(ahead, -math.log(LEAST)), abs=1e-3)


def test_coordinate_huber_by_hand(example):
    prediction, label, mask = random_case()
    # Distances 3 and 12 of 32 px; delta 0.25: the first is square, the second straight.
    near, far = (3 / 32) ** 2 / 2 / 0.25, 12 / 32 - 0.125
    value = CoordinateHuber(delta=0.25)(example(prediction, label, mask))
    assert float(value) == pytest.approx((near + 0.25 * far) / 1.25, rel=1e-4)


def test_padding_has_no_gradient_even_where_it_holds_nonsense(example):
    prediction, label, mask = random_case()
    heatmap, points = prediction.heatmap.requires_grad_(), prediction.trg_kps.requires_grad_()
    prediction = Matches(points, prediction.confidence, heatmap)
    (HeatmapKL()(example(prediction, label, mask)) + CoordinateHuber()(example(prediction, label, mask))).backward()
    assert heatmap.grad is not None and points.grad is not None
    assert not heatmap.grad[0, 2].any() and not points.grad[0, 2].any()
    assert heatmap.grad[0, 0].any() and points.grad[0, 0].any()


def test_labels_without_confidence_teach_nothing():
    value = weighted_mean(torch.ones(1, 2), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))
    assert float(value) == 0 and math.isfinite(value)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: HeatmapKL(0), "sharpness"),
        (lambda: CoordinateHuber(-1), "delta"),
        (lambda: RelaxedCycle(1.5), "RelaxedCycle"),
        (lambda: Contrastive(0), "temperature > 0"),
        (lambda: Equivariance(RandomWarp(), share=0), "share in"),
        (lambda: Equivariance(RandomWarp(), colour=-0.1), "colour >= 0"),
        (lambda: SimilarityDistillation(None, side=0), "SimilarityDistillation"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_work_are_named(build, name):
    with pytest.raises(ConfigError, match=name):
        build()


@pytest.fixture
def dense(make_pairs):
    """A batch as an untrained student sees it, with labels at random."""
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [4, 8], 8).eval()
    pairs = collate_pairs([make_pairs(4, size=64, seed=seed) for seed in range(2)])._replace(category=["cat", "dog"])
    prediction, src_map, trg_map = student.forward_with_descriptors(pairs.src_img, pairs.trg_img, pairs.src_kps)
    label = Matches(torch.rand(2, 4, 2) * 64, torch.rand(2, 4), torch.rand(2, 4, 8, 8))
    return Example(pairs, label, prediction, student, src_map, trg_map)


def test_where_the_labels_grid_is_finer_it_is_summed_up_too(dense):
    fine = dense.label._replace(heatmap=torch.rand(2, 4, 32, 32))
    coarse = fine._replace(heatmap=fine.heatmap.view(2, 4, 16, 2, 16, 2).sum((3, 5)))
    values = [float(HeatmapKL(1.0)(dataclasses.replace(dense, label=label)).detach()) for label in (fine, coarse)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_the_relaxed_cycle_counts_what_lies_beyond_its_tolerance(dense):
    there, size = dense.prediction.trg_kps, (64, 64)
    back = dense.student.correlate(dense.trg_map, dense.src_map, there, size, size).trg_kps
    distance = (back - dense.pairs.src_kps).norm(dim=-1).detach().numpy() / 64
    weight = dense.label.confidence.numpy()
    for tolerance in (0.0, 0.2):
        expected = (np.maximum(distance - tolerance, 0) * weight).sum() / weight.sum()
        assert float(RelaxedCycle(tolerance)(dense).detach()) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_contrastive_by_a_loop(dense):
    loss, pairs, label = Contrastive(0.1, 0.2), dense.pairs, dense.label
    with torch.no_grad():
        queries = F.normalize(sample_at(dense.src_map, pairs.src_kps, (64, 64)), dim=-1)
        keys = F.normalize(sample_at(dense.trg_map, label.trg_kps, (64, 64)), dim=-1)
    total = 0.0
    for b, n in np.ndindex(2, 4):
        exponentials = []
        for a, m in np.ndindex(2, 4):  # the pairs' categories differ
            near = a == b and float((label.trg_kps[b, n] - label.trg_kps[a, m]).norm()) / 64 <= 0.2
            if (a, m) == (b, n) or not near:
                exponentials.append(math.exp(float(queries[b, n] @ keys[a, m]) / 0.1))
        own = math.exp(float(queries[b, n] @ keys[b, n]) / 0.1)
        total += float(label.confidence[b, n]) * -math.log(own / sum(exponentials))
    assert float(loss(dense)) == pytest.approx(total / float(label.confidence.sum()), rel=1e-3)


def test_other_pairs_of_the_same_category_are_no_negatives(dense):
    same = dataclasses.replace(dense, pairs=dense.pairs._replace(category=["cat", "cat"]))
    rows = [one_pair(dense, row) for row in range(2)]
    parts = [float(Contrastive()(row)) * float(row.label.confidence.sum()) for row in rows]
    assert float(Contrastive()(same)) == pytest.approx(sum(parts) / float(dense.label.confidence.sum()), rel=1e-4)


def test_similarity_to_oneself_costs_nothing_and_to_another_something(dense):
    assert float(SimilarityDistillation(dense.student)(dense)) == pytest.approx(0, abs=1e-4)
    other = StudentMatcher("test_resnet", [4, 8], 8).eval()
    value = SimilarityDistillation(other)(dense)
    assert float(value) > 0.01
    value.backward()
    assert all(p.grad is None for p in other.parameters())
    assert any(p.grad is not None for p in dense.student.parameters())


def test_a_student_that_follows_every_warp_loses_nothing_and_a_random_one_much(dense):
    torch.manual_seed(0)
    still = RandomWarp(0, 0, 0, 0)
    equivariance = Equivariance(still, points=4, sigma_cells=0.4)
    sharp = dataclasses.replace(dense, student=Places(), src_map=Places().describe(dense.pairs.src_img))
    astray = dataclasses.replace(sharp, src_map=sharp.src_map.roll(5, dims=-1))  # it finds everything five cells off
    right, wrong, untrained = (float(equivariance(example).detach()) for example in (sharp, astray, dense))
    assert right < 1.5 < untrained and wrong > 5 * right


def test_equivariance_asks_about_a_share_of_the_batch(dense):
    counted = []

    class Counting(Places):
        def describe(self, images):
            counted.append(len(images))
            return super().describe(images)

    example = dataclasses.replace(dense, student=Counting(), src_map=Places().describe(dense.pairs.src_img))
    for share in (1.0, 0.5, 0.01):
        Equivariance(RandomWarp(), share=share)(example)
    assert counted == [2, 1, 1]


def test_the_warped_image_gets_colours_of_its_own_where_asked_for(dense):
    """Each channel is a straight line of the channel that it was, where it is not cut off at 0 or 1."""
    shown = []

    class Recording(Places):
        def describe(self, images):
            shown.append(images)
            return super().describe(images)

    torch.manual_seed(0)
    example = dataclasses.replace(dense, student=Recording(), src_map=Places().describe(dense.pairs.src_img))
    for colour in (0.0, 0.4):
        Equivariance(RandomWarp(0, 0, 0, 0), colour=colour)(example)
    plain, recoloured = (images.flatten(2) for images in shown)
    slopes = []
    for before, after in zip(plain.flatten(0, 1).double().numpy(), recoloured.flatten(0, 1).numpy(), strict=True):
        uncut = (after > 0) & (after < 1)
        slope, offset = np.polyfit(before[uncut], after[uncut], 1)
        assert np.abs(slope * before[uncut] + offset - after[uncut]).max() < 1e-4 and 0.6 <= slope <= 1.4
        slopes.append(slope)
    assert len(set(np.round(slopes, 3))) == len(slopes), "each channel of each image has a contrast of its own"
    torch.testing.assert_close(plain, dense.pairs.src_img.flatten(2), atol=1e-4, rtol=0)


class Places:
    """Describes every cell by where it is: right for a picture that was not moved, whatever it shows."""

    def describe(self, images):
        return gaussian_heatmap(cell_centres((16, 16), (16, 16), images).flatten(0, 1), (16, 16), (16, 16), 0.7).expand(
            len(images), -1, -1, -1
        )

    def correlate(self, src_map, trg_map, src_kps, src_size, trg_size):
        queries = F.normalize(sample_at(src_map, src_kps, src_size), dim=-1)
        heatmap = 30 * torch.einsum("bnc,bchw->bnhw", queries, F.normalize(trg_map, dim=1))
        return Matches(src_kps, src_kps[..., 0], heatmap)
